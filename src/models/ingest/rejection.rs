//! Handles rejected packages: moves them from the main drop directory to its quarantine, or leaves
//! them in a further one, and detaches the models that came with them.

use std::collections::BTreeMap;
use std::path::Path;

use super::drop_directory::DropDirectory;
use super::{Ingester, log_records, run_blocking};
use crate::base::errors::{chain, errno};
use crate::base::units::Bytes;
use crate::models::ingest::install::InstallError;
use crate::package::drop_dir::{self, FileFingerprint, QuarantineResult};
use crate::package::{Origin, StoreEntry};
use crate::telemetry::events::Event;
use crate::telemetry::log::Message;

/// Error of a rejected file that is still in the drop directory. The journal has the reason.
#[derive(Debug)]
struct NotMoved;

impl Ingester {
    /// Quarantines an entry whose self-tests never ended. A dropped entry is removed if all its
    /// files can be moved to the quarantine. Any other entry is quarantined in the store.
    ///
    /// The files are moved first: after a crash in between, the entry is still in the store, and
    /// the next start repeats this.
    pub(super) async fn quarantine_untested(&mut self, entry: &StoreEntry) {
        let (key, reason) = (&entry.key, chain(&InstallError::NoTestAttemptsLeft));
        tracing::error!(
            name: Message::PackageRefused.name(),
            model = %key, reason,
            "model quarantined"
        );
        let mut moved = false;
        if let Origin::Dropped { files } = &entry.record.origin {
            moved = self.quarantine_files(files, &reason).await;
        }
        if moved {
            self.discard(key.clone()).await;
        } else if let Some(Err(error)) = self.installer.quarantine(key.clone(), reason).await {
            log_records::log_store_error(key, &error, "model cannot be quarantined");
        }
    }

    /// Moves `files` of the main drop directory to its quarantine if they are still the files that
    /// were read. Returns whether none of them is left. Files of further directories stay.
    pub(super) async fn quarantine_files(
        &self,
        files: &BTreeMap<String, FileFingerprint>,
        reason: &str,
    ) -> bool {
        let Some(main) = self.directories.first() else { return false };
        let listed = main.path.clone();
        let Some(Ok(listing)) = run_blocking(move || drop_dir::list(&listed)).await else {
            return false;
        };
        let mut moved = true;
        for (file, fingerprint) in files {
            let Some(name) = main.name_of(file) else {
                moved = false;
                continue;
            };
            // A file that was replaced meanwhile is another package.
            if listing.get(name) == Some(fingerprint) {
                let (refused, reason) = (fingerprint.clone(), reason.to_owned());
                moved &= self.move_to_quarantine(&main.path, name, refused, reason).await.is_ok();
            }
        }
        moved
    }

    /// Rejects a file of `directory`: moves it to the quarantine, or leaves it in a further
    /// directory and remembers that it is wrong.
    pub(super) async fn quarantine(
        &self,
        directory: &mut DropDirectory,
        name: String,
        fingerprint: FileFingerprint,
        reason: String,
    ) {
        let (path, examined, refused) = (directory.path.clone(), name.clone(), fingerprint.clone());
        // Another file may have this name by now. The next scan judges it.
        let is_still =
            run_blocking(move || drop_dir::is_unchanged(&path, &examined, &refused)).await;
        if !matches!(is_still, Some(Ok(true) | Err(_))) {
            return;
        }
        let file = directory.file(&name);
        self.publish_rejected(&file, reason.clone());
        // Detach first. After a crash in between, or if the file cannot be moved, it is still there
        // and is rejected again. In the opposite order, the predecessor of the package would be
        // removed together with the file.
        self.detach_models(directory, &name).await;
        if directory.is_further() {
            tracing::error!(
                name: Message::PackageRefused.name(),
                file, reason,
                "package refused; it stays where it is and is not read again"
            );
            return directory.scanner.give_up(&name, reason);
        }
        let moved = self.move_to_quarantine(&directory.path, &name, fingerprint, reason.clone());
        if let Err(NotMoved) = moved.await {
            directory.scanner.give_up(&name, reason);
        }
    }

    /// Moves a rejected file to the quarantine and logs it.
    async fn move_to_quarantine(
        &self,
        directory: &Path,
        file: &str,
        fingerprint: FileFingerprint,
        reason: String,
    ) -> Result<(), NotMoved> {
        let directory = directory.to_owned();
        let (name, why) = (file.to_owned(), reason.clone());
        let most = Bytes(self.installer.rules().limits.max_compressed);
        let moved = move || drop_dir::quarantine(&directory, &name, &fingerprint, &why, most);
        match run_blocking(moved).await {
            Some(Ok(QuarantineResult::Replaced)) => {
                tracing::info!(
                    name: Message::PackageIncomplete.name(),
                    file, reason,
                    "refused file was replaced by another file, which is examined next"
                );
                Ok(())
            }
            Some(Ok(QuarantineResult::Moved(path))) => {
                let quarantined = path.display().to_string();
                tracing::error!(
                    name: Message::PackageRefused.name(),
                    file, reason, quarantined,
                    "package refused"
                );
                Ok(())
            }
            Some(Err(error)) => {
                tracing::error!(
                    name: Message::PackageRefused.name(),
                    file, reason, errno = errno(&error), error = chain(&error),
                    "package refused, but it cannot be moved to quarantine"
                );
                Err(NotMoved)
            }
            None => Err(NotMoved),
        }
    }

    pub(super) fn publish_rejected(&self, file: &str, reason: String) {
        let refused = Event::PackageRefused { file: Some(file.to_owned()), reason };
        self.installer.handle().events().publish(refused);
    }

    /// Detaches the models that came with the file `name` of `directory`, which is rejected.
    ///
    /// A model with another file stays. A model that came from exactly the rejected package is
    /// removed. A predecessor, which the rejected package was to replace, stays although it has no
    /// file any more.
    async fn detach_models(&self, directory: &DropDirectory, name: &str) {
        let file = &directory.file(name);
        let mut entries = Vec::new();
        for entry in &self.entries_of_file(file) {
            match self.detach(&entry.key, file).await {
                Ok(true) => {}
                Ok(false) => entries.push(entry.clone()),
                Err(error) => {
                    let what = "model cannot be detached from a file";
                    log_records::log_store_error(&entry.key, &error, what);
                }
            }
        }
        if entries.is_empty() {
            return;
        }
        let refused = directory.path.join(name);
        let digest = match run_blocking(move || drop_dir::digest(&refused)).await {
            Some(Ok(digest)) => Some(digest),
            Some(Err(error)) => {
                tracing::warn!(
                    name: Message::PackageStays.name(),
                    file, errno = errno(&error), error = chain(&error),
                    "models of the refused file stay: the file cannot be read"
                );
                None
            }
            None => return,
        };
        for entry in entries {
            if Some(entry.record.package_digest) == digest {
                if let Err(error) = self.remove_if_only_file(file, &entry.key).await {
                    log_records::log_store_error(&entry.key, &error, "model cannot be removed");
                }
                continue;
            }
            match self.installer.detach_from_all_files(entry.key.clone()).await {
                Some(Ok(())) => {
                    log_records::log_kept(
                        file,
                        &entry.key,
                        "model stays: its successor was refused",
                    );
                }
                Some(Err(error)) => {
                    log_records::log_store_error(
                        &entry.key,
                        &error,
                        "model cannot be detached from its files",
                    );
                }
                None => return,
            }
        }
    }
}
