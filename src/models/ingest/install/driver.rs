//! Runs the steps from a package to an available entry, for the daemon and the command line.
//!
//! All functions block. The driver borrows the store, the rules and the tester.

use std::io::Read;

use super::{InstallError, InstallRules, Installation, verify_and_store};
use crate::base::errors::{chain, errno};
use crate::engine::{EngineOptions, Footprint};
use crate::models::ingest::selftest::{SelfTestFigures, SelfTester};
use crate::models::residency::load;
use crate::models::residency::model_state::Reservation;
use crate::package::{
    EntryKey, InstallStatus, Origin, PackageBytes, PackageHeader, Sidecars, Store, StoreEntry,
    StoreError,
};
use crate::telemetry::log::Message;

/// Function that reserves memory for the self-test of an entry. Dropping the reservation frees it.
pub(super) type ReserveFn<'a> =
    &'a dyn Fn(&EntryKey, EngineOptions) -> Result<Option<Reservation>, InstallError>;

/// Function that checks whether the model of an announced package can fit into memory.
pub(super) type FitsFn<'a> = &'a dyn Fn(&PackageHeader<'_>) -> Result<(), InstallError>;

/// Figures of a model whose self-test has passed.
#[derive(Clone, Copy, Debug)]
pub struct MeasuredModel {
    /// Figures that the self-test measured.
    pub figures: SelfTestFigures,
    /// Estimate of the memory of the model.
    pub footprint: Footprint,
}

/// Sequence of steps that installs packages into `store`. The [module](super) lists the states.
pub struct InstallDriver<'a> {
    store: &'a Store,
    rules: &'a InstallRules,
    options: EngineOptions,
    tester: &'a SelfTester,
    fits: FitsFn<'a>,
    reserve: ReserveFn<'a>,
}

impl<'a> InstallDriver<'a> {
    /// Creates a driver for a process without loaded models, such as the command line. It reserves
    /// no memory.
    pub fn standalone(
        store: &'a Store,
        rules: &'a InstallRules,
        options: EngineOptions,
        tester: &'a SelfTester,
    ) -> Self {
        let (fits, reserve): (FitsFn<'a>, ReserveFn<'a>) = (&|_| Ok(()), &|_, _| Ok(None));
        Self { store, rules, options, tester, fits, reserve }
    }

    /// Adds two functions: `fits` rejects a model that can never fit before it is unpacked, and
    /// `reserve` reserves memory before each self-test.
    pub(super) fn with_reservation(self, fits: FitsFn<'a>, reserve: ReserveFn<'a>) -> Self {
        Self { fits, reserve, ..self }
    }

    /// Reads a package from `source`, verifies it, adds it to the store and tests it.
    ///
    /// Blocks while it reads the package, writes and syncs its files, and waits for the self-test.
    /// The package is read twice if keys are configured.
    ///
    /// # Errors
    /// Fails if any step fails; the store then holds the same entries as before. Two exceptions
    /// leave the new entry in the store. If the daemon is stopped during the self-test, the entry
    /// stays untested, and the next start tests it. If the self-test of a bundled package crashes,
    /// the entry is quarantined.
    pub fn install(
        &self,
        source: PackageBytes<impl Read>,
        sidecars: &Sidecars,
        origin: Origin,
    ) -> Result<Installation, InstallError> {
        let mut installed =
            verify_and_store(self.store, source, sidecars, origin, self.rules, self.fits)?;
        let entry = &mut installed.entry;
        if entry.record.status == InstallStatus::Untested {
            installed.removed = self.finish(&entry.key)?;
            if let Some(finished) = self.store.entries().get(&entry.key) {
                *entry = finished.clone();
            }
        }
        Ok(installed)
    }

    /// Tests an untested entry and makes it available. Returns the entries that were removed for
    /// it.
    ///
    /// # Errors
    /// Fails if the model does not work. The entry is then removed, or becomes
    /// [`InstallStatus::Quarantined`] if it is bundled and its self-test crashed. If the self-test
    /// has used all its attempts, or if the daemon is stopping, the entry is left unchanged.
    pub fn finish(&self, key: &EntryKey) -> Result<Vec<StoreEntry>, InstallError> {
        let entry = self.store.entries().get(key).cloned();
        let entry = entry.ok_or_else(|| StoreError::Unknown(key.clone()))?;
        if entry.record.is_given_up() {
            return Err(InstallError::NoTestAttemptsLeft);
        }
        // Count the attempt before the first byte is read: reading alone may crash the process.
        self.store.begin_test(key)?;
        let finished = self.measure(key).and_then(|_measured| {
            self.store.hold_update(key, self.rules.holds_updates)?;
            let kept = self.rules.protected_keys(&self.store.entries());
            let keep = |entry: &StoreEntry| kept.contains(&entry.key);
            let removed = self.store.activate(key, self.rules.quota, keep)?;
            for (stuck, error) in self.store.take_failed_removals() {
                tracing::error!(
                    name: Message::StoreFailed.name(),
                    model = %stuck, errno = errno(&error), error = chain(&error),
                    "model cannot be removed from the store, although a new model replaces it"
                );
            }
            Ok(removed)
        });
        match &finished {
            Ok(_left) => {}
            Err(InstallError::Stopping) => self.store.cancel_test(key)?,
            // A bundled file cannot be moved away. Without the quarantine, the test would crash
            // again at each start.
            Err(error @ (InstallError::Crashed(_) | InstallError::SelfTestPanicked))
                if entry.record.origin.is_bundled() =>
            {
                self.store.quarantine(key, chain(error))?;
            }
            Err(_error) => drop(self.store.remove(key)?),
        }
        finished
    }

    /// Loads the model of an entry in another process, runs its self-test, and returns the
    /// measured figures. Does not change the entry.
    ///
    /// # Errors
    /// Fails if the model does not work, or if the self-test cannot run.
    pub fn measure(&self, key: &EntryKey) -> Result<MeasuredModel, InstallError> {
        self.test(key, self.options).or_else(|error| {
            let options = error.retry_options(key, self.options).ok_or(error)?;
            self.test(key, options)
        })
    }

    pub(super) fn store(&self) -> &Store {
        self.store
    }

    fn test(&self, key: &EntryKey, options: EngineOptions) -> Result<MeasuredModel, InstallError> {
        if self.tester.is_stopped() {
            return Err(InstallError::Stopping);
        }
        let _reservation = (self.reserve)(key, options)?;
        // The configuration reveals a model that this version cannot run: reject it before a child
        // is started.
        let footprint: Footprint = load::footprint::<InstallError>(self.store, key, options)?;
        let figures = self.tester.test(self.store, key, &footprint, options)?;
        Ok(MeasuredModel { figures, footprint })
    }
}
