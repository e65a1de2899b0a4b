//! Decides on models whose file is missing from the drop directory.
//!
//! A missing file counts as removed only if it was last seen in the same directory, identified by
//! its file system and inode. If another volume is mounted, or no volume, the models stay.

use std::collections::BTreeMap;
use std::time::Instant;

use super::{Ingester, log_records};
use crate::package::drop_dir::FileFingerprint;
use crate::package::{Origin, StoreEntry};

impl Ingester {
    /// Updates the directory that the store records for each present and unchanged file: if none is
    /// recorded yet, or if the same directory has another identity now.
    pub(super) async fn record_directories(&mut self, listing: &BTreeMap<String, FileFingerprint>) {
        self.kept_without_file.retain(|(file, _key)| !listing.contains_key(file));
        for entry in &self.installer.handle().store().entries() {
            let Origin::Dropped { files } = &entry.record.origin else { continue };
            for (file, known) in files {
                let Some(seen) = listing.get(file) else { continue };
                if seen == known && seen.directory_id() != known.directory_id() {
                    let seen = self
                        .installer
                        .record_fingerprint(entry.key.clone(), file.clone(), seen.clone())
                        .await;
                    if let Some(Err(error)) = seen {
                        log_records::log_store_error(
                            &entry.key,
                            &error,
                            "file of the model cannot be recorded",
                        );
                    }
                }
            }
        }
    }

    /// Decides on the models that came with the file `name`, which is missing from the drop
    /// directory.
    ///
    /// A model is removed if the file was seen in the present directory, which has `directory_id`.
    /// A model stays if the file was seen in another directory: a volume is not mounted, or was
    /// replaced. In this case each scan reports the file as missing again, until that directory is
    /// back or the models are removed.
    pub(super) async fn on_missing_file(&mut self, name: &str, directory_id: &str) {
        let mut seen_elsewhere = None;
        for StoreEntry { key, record, .. } in &self.entries_of_file(name) {
            let Origin::Dropped { files } = &record.origin else { continue };
            let Some(fingerprint) = files.get(name) else { continue };
            if fingerprint.directory_id() == Some(directory_id) {
                continue;
            }
            seen_elsewhere = Some(fingerprint.clone());
            if self.kept_without_file.insert((name.to_owned(), key.clone())) {
                log_records::log_kept_without_file(name, key);
            }
        }
        self.detach_from_others(name, None, Some(directory_id)).await;
        if let Some(fingerprint) = seen_elsewhere {
            self.scanner.record_installed(name, fingerprint, Instant::now());
        }
    }
}
