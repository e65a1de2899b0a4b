//! The driver: the one sequence of steps from a package to an available entry, for the daemon and the command line.
//!
//! Blocks, and owns nothing: what it works on is lent.

use std::io::Read;

use super::{InstallError, Installed, Rules, admit};
use crate::engine::{Footprint, Options};
use crate::errors::{chain, errno};
use crate::log::Message;
use crate::models::load;
use crate::models::selftest::Tester;
use crate::models::slot::Reservation;
use crate::package::{
    Announced, Entry, Key, Origin, PackageBytes, Sidecars, Status, Store, StoreError,
};

/// Reserves memory for the self-test of an entry, until what it returns is dropped.
pub(super) type Reserve<'a> =
    &'a dyn Fn(&Key, Options) -> Result<Option<Reservation>, InstallError>;

/// Says whether the model that a package announces could fit into memory.
pub(super) type Fits<'a> = &'a dyn Fn(&Announced<'_>) -> Result<(), InstallError>;

/// Brings packages into `store`; see the [module](super) for the states.
pub struct Driver<'a> {
    store: &'a Store,
    rules: &'a Rules,
    options: Options,
    tester: &'a Tester,
    fits: Fits<'a>,
    reserve: Reserve<'a>,
}

impl<'a> Driver<'a> {
    /// A driver beside which nobody uses memory: that of a command line.
    pub fn alone(store: &'a Store, rules: &'a Rules, options: Options, tester: &'a Tester) -> Self {
        let (fits, reserve): (Fits<'a>, Reserve<'a>) = (&|_| Ok(()), &|_, _| Ok(None));
        Self { store, rules, options, tester, fits, reserve }
    }

    /// A driver that refuses what could never fit before it is unpacked, and reserves memory before each self-test.
    pub(super) fn reserving(self, fits: Fits<'a>, reserve: Reserve<'a>) -> Self {
        Self { fits, reserve, ..self }
    }

    /// Reads a package from `source`, verifies it, puts it into the store and tests it.
    ///
    /// Blocks: reads the package once, writes and syncs its files, and waits for the self-test.
    ///
    /// # Errors
    /// When any of that fails; the store then holds what it held before. When the process is told to stop during the
    /// self-test, the entry stays untested and the next start tests it.
    pub fn install(
        &self,
        source: PackageBytes<impl Read>,
        sidecars: &Sidecars,
        origin: Origin,
    ) -> Result<Installed, InstallError> {
        let mut installed = admit(self.store, source, sidecars, origin, self.rules, self.fits)?;
        let entry = &mut installed.entry;
        if entry.record.status == Status::Untested {
            installed.removed = self.finish(&entry.key)?;
            entry.record.status = Status::Available;
        }
        Ok(installed)
    }

    /// Tests an untested entry and makes it available. Returns what left the store for it.
    ///
    /// # Errors
    /// When it does not work: it is removed then, or stays as [`Status::Quarantined`] when it is bundled and its
    /// self-test crashed. When its self-test began too often, or the process is told to stop, it stays as it is.
    pub fn finish(&self, key: &Key) -> Result<Vec<Entry>, InstallError> {
        let entry = self.store.entries().into_iter().find(|entry| entry.key == *key);
        let entry = entry.ok_or_else(|| StoreError::Unknown(key.clone()))?;
        if entry.record.is_given_up() {
            return Err(InstallError::GivenUp);
        }
        // Before anything of it is read: reading alone may end the process.
        self.store.begin_test(key)?;
        let tested = self.test(key, self.options).or_else(|error| {
            let options = error.fall_back(key, self.options).ok_or(error)?;
            self.test(key, options)
        });
        let finished = tested.and_then(|()| {
            let kept = self.rules.keeps(&self.store.entries());
            let keep = |entry: &Entry| kept.contains(&entry.key);
            let removed = self.store.make_available(key, self.rules.quota, keep)?;
            for (stuck, error) in self.store.take_stuck() {
                tracing::error!(
                    name: Message::StoreFailed.name(),
                    model = %stuck, errno = errno(&error), error = chain(&error),
                    "cannot be removed, although {key} has its place"
                );
            }
            Ok(removed)
        });
        match &finished {
            Ok(_left) => {}
            Err(InstallError::Stopping) => self.store.cancel_test(key)?,
            // It would crash again at each start, and its file cannot be moved away.
            Err(error @ (InstallError::Crashed(_) | InstallError::Panicked))
                if entry.record.origin.is_bundled() =>
            {
                self.store.quarantine(key, chain(error))?;
            }
            Err(_error) => drop(self.store.remove(key)?),
        }
        finished
    }

    fn test(&self, key: &Key, options: Options) -> Result<(), InstallError> {
        if self.tester.is_stopped() {
            return Err(InstallError::Stopping);
        }
        let _reservation = (self.reserve)(key, options)?;
        // What no version here can run is refused by its configuration, before a child is started.
        let footprint: Footprint = load::footprint::<InstallError>(self.store, key, options)?;
        self.tester.test(self.store, key, &footprint, options)
    }
}
