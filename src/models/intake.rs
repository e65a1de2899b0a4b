//! The intake: packages of the bundled and the drop directory become models, and leave when their files leave.
//!
//! Owns the drop directory's ledger and the schedule of validations. Every event is only a reason to look: a look
//! at the directory decides, so that a lost event costs time, never correctness.

mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::install::{InstallError, Installer};
use super::load::LoadError;
use crate::config::Settings;
use crate::engine::EngineError;
use crate::errors::{chain, errno};
use crate::events::Event;
use crate::log::Message;
use crate::package::drop::{self, Fingerprint, Ledger, Round, Verdict};
use crate::package::{Entry, Key, Origin, SignatureError, Status, UnpackError};

/// A look without an event: bounds what a lost or impossible notification costs.
const RESCAN: Duration = Duration::from_secs(30);

/// The part of the settings that the intake follows while it runs.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Whether a model leaves the store when its file leaves the drop directory.
    pub remove_with_file: bool,
    /// How long a half-copied package may stay without growing.
    pub incomplete_timeout: Duration,
    /// How often every installed file is hashed again.
    pub validation_interval: Duration,
    /// Whether that happens at start, too.
    pub validation_on_startup: bool,
}

impl From<&Settings> for Schedule {
    fn from(settings: &Settings) -> Self {
        let cache = &settings.memory.model_cache;
        Self {
            remove_with_file: settings.packages.remove_with_file,
            incomplete_timeout: settings.packages.incomplete_timeout,
            validation_interval: cache.validation_interval,
            validation_on_startup: cache.validation_on_startup,
        }
    }
}

/// The intake's own state; see the module.
pub struct Intake {
    installer: Installer,
    schedule: watch::Receiver<Schedule>,
    bundled_directory: PathBuf,
    drop_directory: PathBuf,
    ledger: Ledger,
    /// Said once, not at every look.
    unreadable: bool,
    /// Files that `bundled_only` keeps out; said once each.
    kept_out: BTreeSet<String>,
}

impl Intake {
    /// An intake for these two directories.
    pub fn new(
        installer: Installer,
        schedule: watch::Receiver<Schedule>,
        bundled_directory: PathBuf,
        drop_directory: PathBuf,
    ) -> Self {
        Self {
            installer,
            schedule,
            bundled_directory,
            drop_directory,
            ledger: Ledger::default(),
            unreadable: false,
            kept_out: BTreeSet::new(),
        }
    }

    /// Finishes what a crash interrupted, and installs what is new in the bundled directory.
    ///
    /// Afterwards every bundled model can be loaded. Takes as long as unpacking what is new.
    pub async fn prepare(&mut self) {
        let entries = self.installer.handle().store().entries();
        for entry in entries.iter().filter(|entry| entry.record.status == Status::Untested) {
            match self.installer.try_out(entry.key.clone()).await {
                Ok(removed) => {
                    tracing::info!(
                        name: Message::PackageAccepted.name(),
                        model = %entry.key,
                        "finished its installation"
                    );
                    records::left(&removed);
                }
                Err(error) => {
                    tracing::error!(
                        name: Message::PackageRefused.name(),
                        model = %entry.key, reason = chain(&error),
                        "removed"
                    );
                }
            }
        }
        self.install_bundled().await;
        let now = Instant::now();
        let mut entries = self.installer.handle().store().entries();
        entries.sort_by_key(|entry| entry.record.installed_at);
        let mut dropped = BTreeMap::new();
        for entry in entries {
            if let Origin::Dropped { files } = entry.record.origin
                && entry.record.status == Status::Available
            {
                for (file, fingerprint) in files {
                    dropped.insert(file, (fingerprint, entry.key.clone()));
                }
            }
        }
        for (file, (fingerprint, key)) in dropped {
            // A crash may have come between a package and what it replaces.
            self.discard_dropped(&file, Some(&key)).await;
            self.ledger.remember(&file, fingerprint, now);
        }
    }

    async fn install_bundled(&self) {
        let directory = &self.bundled_directory;
        let listed = directory.clone();
        let listing = match off_runtime(move || drop::list(&listed)).await {
            Some(Ok(listing)) => listing,
            Some(Err(error)) => {
                return records::unreadable("there are no bundled models", &error);
            }
            None => return,
        };
        let entries = self.installer.handle().store().entries();
        for (file, fingerprint) in &listing {
            let origin = Origin::Bundled { file: file.clone(), fingerprint: fingerprint.clone() };
            let known = entries.iter().any(|entry| {
                entry.record.origin == origin && entry.record.status == Status::Available
            });
            if known {
                continue;
            }
            match self.installer.install_file(directory.join(file), origin).await {
                Ok(installed) => records::accepted(file, &installed),
                Err(error) => {
                    let reason = chain(&error);
                    tracing::error!(
                        name: Message::PackageRefused.name(),
                        file, reason, errno = errno(&error),
                        "a bundled package was refused"
                    );
                    self.tell_refused(file, reason);
                }
            }
        }
        // An upgrade of the appliance took packages away or put others in their place. What was there stays while its
        // successor is refused.
        let entries = self.installer.handle().store().entries();
        let current: BTreeSet<_> = entries
            .iter()
            .filter_map(|entry| match &entry.record.origin {
                Origin::Bundled { file, fingerprint } => {
                    (listing.get(file) == Some(fingerprint)).then_some(file)
                }
                _ => None,
            })
            .collect();
        for entry in &entries {
            if let Origin::Bundled { file, fingerprint } = &entry.record.origin
                && listing.get(file) != Some(fingerprint)
                && (current.contains(file) || !listing.contains_key(file))
            {
                records::removed(file, &entry.key, "removed: the appliance brings it no more");
                self.discard(entry.key.clone()).await;
            }
        }
    }

    /// Looks at the drop directory whenever `ticks` says so, and validates on schedule, until `cancel`.
    pub async fn run(mut self, mut ticks: mpsc::Receiver<()>, cancel: CancellationToken) {
        let mut validate_at = match self.schedule.borrow().validation_on_startup {
            true => Instant::now(),
            false => Instant::now() + self.schedule.borrow().validation_interval,
        };
        loop {
            let mut next = self.look().await;
            if Instant::now() >= validate_at {
                self.validate(&cancel).await;
                validate_at = Instant::now() + self.schedule.borrow().validation_interval;
                next = Some(Instant::now());
            }
            let rescan = Instant::now() + RESCAN;
            let wake = next.unwrap_or(rescan).min(rescan).min(validate_at);
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep_until(wake.into()) => {}
                tick = ticks.recv() => if tick.is_none() { return },
                // What was kept out may be let in now. The rules change before the schedule does.
                Ok(()) = self.schedule.changed() => {}
            }
        }
    }

    /// One look at the drop directory; returns when the next is due even if nothing happens.
    async fn look(&mut self) -> Option<Instant> {
        let directory = self.drop_directory.clone();
        let listing = match off_runtime(move || drop::list(&directory)).await? {
            Ok(listing) => listing,
            Err(error) => {
                if !std::mem::replace(&mut self.unreadable, true) {
                    records::unreadable("the drop directory cannot be read", &error);
                }
                return None;
            }
        };
        self.unreadable = false;
        if self.installer.rules().bundled_only {
            self.keep_out(listing.into_keys().collect());
            return None;
        }
        self.kept_out.clear();
        let timeout = self.schedule.borrow().incomplete_timeout;
        let Round { ready, refused, gone, next } =
            self.ledger.observe(listing, timeout, Instant::now());
        for name in gone {
            self.discard_dropped(&name, None).await;
        }
        for (name, reason) in refused {
            self.quarantine(name, reason).await;
        }
        let tried = !ready.is_empty();
        for (name, fingerprint) in ready {
            self.attempt(name, fingerprint).await;
        }
        // A verdict may have set a new time to look.
        if tried { Some(Instant::now()) } else { next }
    }

    fn keep_out(&mut self, files: BTreeSet<String>) {
        for file in files.difference(&self.kept_out) {
            tracing::warn!(
                name: Message::PackageKeptOut.name(),
                file,
                "not installed: memory.model_cache.bundled_only is set"
            );
        }
        self.kept_out = files;
    }

    async fn attempt(&mut self, file: String, fingerprint: Fingerprint) {
        let origin = Origin::dropped(file.clone(), fingerprint.clone());
        let verdict =
            match self.installer.install_file(self.drop_directory.join(&file), origin).await {
                Ok(installed) => {
                    records::accepted(&file, &installed);
                    self.discard_dropped(&file, Some(&installed.entry.key)).await;
                    Verdict::Accepted
                }
                Err(error) => {
                    let verdict = judge(&error);
                    match &verdict {
                        Verdict::Incomplete(reason) => {
                            tracing::info!(
                                name: Message::PackageIncomplete.name(),
                                file, reason,
                                "waiting"
                            );
                        }
                        Verdict::Failed(reason) => {
                            tracing::error!(
                                name: Message::PackageNotInstalled.name(),
                                file, reason, errno = errno(&error),
                                "cannot be installed now"
                            );
                        }
                        _ => {}
                    }
                    verdict
                }
            };
        self.ledger.judge(&file, &fingerprint, verdict, Instant::now());
    }

    /// Removes the models that came with `name` alone, except the one that comes with it now.
    async fn discard_dropped(&self, name: &str, except: Option<&Key>) {
        let removes = self.schedule.borrow().remove_with_file;
        for Entry { key, .. } in self.dropped(name) {
            if Some(&key) == except {
                continue;
            }
            if removes {
                self.remove_with(name, &key).await;
            } else {
                self.let_go(&key, name).await;
            }
        }
    }

    /// Removes a model that the file `name` alone gave.
    async fn remove_with(&self, name: &str, key: &Key) {
        match self.installer.remove_with_file(key.clone(), name.to_owned()).await {
            Some(Ok(true)) => records::stays(name, key, "stays: it has another file"),
            Some(Ok(false)) => records::removed(name, key, "removed with its file"),
            Some(Err(error)) => records::store_failed(key, &error, "cannot be removed"),
            None => {}
        }
    }

    /// The models that came with `name`, be it with other files, too.
    fn dropped(&self, name: &str) -> Vec<Entry> {
        let mut entries = self.installer.handle().store().entries();
        entries.retain(|entry| match &entry.record.origin {
            Origin::Dropped { files } => files.contains_key(name),
            _ => false,
        });
        entries
    }

    /// Says that the file `name` does not give a model any more; whether the model stays without it.
    async fn let_go(&self, key: &Key, name: &str) -> bool {
        match self.installer.let_go(key.clone(), name.to_owned()).await {
            Some(Ok(stays)) => {
                if stays {
                    records::stays(name, key, "stays: it has another file");
                }
                stays
            }
            Some(Err(error)) => {
                records::store_failed(key, &error, "cannot be parted from a file");
                true
            }
            None => true,
        }
    }

    async fn discard(&self, key: Key) {
        if let Some(Err(error)) = self.installer.discard(key.clone()).await {
            records::store_failed(&key, &error, "cannot be removed");
        }
    }

    async fn quarantine(&mut self, file: String, reason: String) {
        self.tell_refused(&file, reason.clone());
        // First: after a crash in between, or when it cannot be moved, the file is still there and refused again. The
        // other way round its predecessor would leave with it.
        self.part(&file).await;
        let directory = self.drop_directory.clone();
        let (name, why) = (file.clone(), reason.clone());
        match off_runtime(move || drop::quarantine(&directory, &name, &why)).await {
            Some(Ok(path)) => {
                let quarantined = path.display().to_string();
                tracing::error!(
                    name: Message::PackageRefused.name(),
                    file, reason, quarantined,
                    "package refused"
                );
            }
            Some(Err(error)) => {
                tracing::error!(
                    name: Message::PackageRefused.name(),
                    file, reason, errno = errno(&error), error = chain(&error),
                    "package refused, left where it is"
                );
                self.ledger.ignore(&file);
            }
            None => {}
        }
    }

    fn tell_refused(&self, file: &str, reason: String) {
        let refused = Event::PackageRefused { file: Some(file.to_owned()), reason };
        self.installer.handle().events().send(refused);
    }

    /// Decides on the models that came with `name`, which is refused: one that the refused package itself gave leaves;
    /// one that it was to replace stays, although it has no file any more. One with another file stays.
    async fn part(&self, name: &str) {
        let mut entries = Vec::new();
        for entry in self.dropped(name) {
            if !self.let_go(&entry.key, name).await {
                entries.push(entry);
            }
        }
        if entries.is_empty() {
            return;
        }
        let refused = self.drop_directory.join(name);
        let digest = match off_runtime(move || drop::digest(&refused)).await {
            Some(Ok(digest)) => Some(digest),
            Some(Err(error)) => {
                tracing::warn!(
                    name: Message::PackageStays.name(),
                    file = name, errno = errno(&error), error = chain(&error),
                    "its models stay"
                );
                None
            }
            None => return,
        };
        for entry in entries {
            if Some(entry.record.package_digest) == digest {
                self.remove_with(name, &entry.key).await;
                continue;
            }
            match self.installer.adopt(entry.key.clone()).await {
                Some(Ok(())) => {
                    records::stays(name, &entry.key, "stays: its successor was refused");
                }
                Some(Err(error)) => {
                    records::store_failed(&entry.key, &error, "cannot be kept");
                }
                None => return,
            }
        }
    }

    /// Hashes every installed file; what is corrupt is installed again from its package, where that still is.
    async fn validate(&mut self, cancel: &CancellationToken) {
        for entry in self.installer.handle().store().entries() {
            if cancel.is_cancelled() {
                return;
            }
            match self.installer.verify(entry.key.clone()).await {
                Some(Ok(())) => tracing::debug!(model = %entry.key, "validated"),
                // It is in the journal.
                Some(Err(_error)) => {}
                None => return,
            }
        }
        let mut entries = self.installer.handle().store().entries();
        entries.retain(|entry| matches!(entry.record.status, Status::Corrupt(_)));
        if entries.iter().any(|entry| entry.record.origin.is_bundled()) {
            self.install_bundled().await;
        }
        for entry in entries {
            if let Origin::Dropped { files } = &entry.record.origin {
                files.keys().for_each(|file| self.ledger.forget(file));
            }
        }
    }
}

/// Whether more bytes, another file or another time may help.
fn judge(error: &InstallError) -> Verdict {
    let reason = chain(error);
    match error {
        InstallError::Unpack(UnpackError::Truncated { .. })
        | InstallError::Signature(SignatureError::Missing) => Verdict::Incomplete(reason),
        InstallError::Unpack(
            UnpackError::Io { .. } | UnpackError::Source(_) | UnpackError::TooSlow { .. },
        )
        | InstallError::Signature(SignatureError::Io { .. })
        | InstallError::Keys(_)
        | InstallError::Load(LoadError::Engine(EngineError::Threads { .. }))
        | InstallError::Store(_)
        | InstallError::Untried(_)
        | InstallError::BundledOnly
        | InstallError::Stopping => Verdict::Failed(reason),
        InstallError::Unpack(UnpackError::Refused { .. })
        | InstallError::Signature(
            SignatureError::Malformed { .. }
            | SignatureError::WrongDigest { .. }
            | SignatureError::UnknownKey(_)
            | SignatureError::Legacy
            | SignatureError::Invalid(_),
        )
        | InstallError::Load(_) => Verdict::Refused(reason),
    }
}

/// Runs `work`, which touches the disk, on the blocking pool; `None` when it panicked or the runtime is going down.
async fn off_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.inspect_err(|error| {
        tracing::error!(
            name: Message::InternalFault.name(),
            %error,
            "work on the drop directory was lost"
        )
    })
    .ok()
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::*;
    use crate::engine::Precision;
    use crate::files::FileError;
    use crate::package::{Digest, StoreError};

    /// What a package is not to blame for must not put it into quarantine.
    #[test]
    fn only_what_is_wrong_with_the_package_itself_is_refused() {
        let path = || PathBuf::from("/path");
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let unpack = InstallError::Unpack;
        let signature = InstallError::Signature;
        let engine = |error| InstallError::Load(LoadError::Engine(error));
        let malformed = || SignatureError::Malformed { path: path(), reason: String::new() };
        let incomplete =
            [unpack(UnpackError::Truncated { bytes: 1 }), signature(SignatureError::Missing)];
        let refused = [
            unpack(UnpackError::Refused { member: None, reason: String::new() }),
            signature(malformed()),
            signature(SignatureError::Legacy),
            signature(SignatureError::WrongDigest {
                expected: Digest::of(b""),
                found: Digest::of(b"a"),
            }),
            InstallError::Load(LoadError::SelfTest { cosine: 0.5, precision: Precision::F32 }),
            engine(EngineError::Mismatch(String::new())),
        ];
        let failed = [
            unpack(UnpackError::Io { operation: "write", path: path(), source: full() }),
            unpack(UnpackError::Source(full())),
            unpack(UnpackError::TooSlow { limit: Duration::from_secs(1) }),
            signature(SignatureError::Io { path: path(), source: full() }),
            InstallError::Keys(malformed()),
            engine(EngineError::Threads { threads: 1, source: full().into() }),
            InstallError::Store(StoreError::Locked(path())),
            InstallError::Store(FileError::new("write", Path::new("/path"))(full()).into()),
            InstallError::BundledOnly,
            InstallError::Stopping,
        ];
        for error in incomplete {
            assert!(matches!(judge(&error), Verdict::Incomplete(_)), "{error:?}");
        }
        for error in refused {
            assert!(matches!(judge(&error), Verdict::Refused(_)), "{error:?}");
        }
        for error in failed {
            assert!(matches!(judge(&error), Verdict::Failed(_)), "{error:?}");
        }
    }

    #[test]
    fn a_verdict_says_all_that_is_known() {
        let error =
            InstallError::Load(LoadError::SelfTest { cosine: 0.5, precision: Precision::F32 });
        let Verdict::Refused(reason) = judge(&error) else { panic!("not refused") };
        assert!(reason.contains("does not work") && reason.contains("cosine 0.5"), "{reason}");
    }
}
