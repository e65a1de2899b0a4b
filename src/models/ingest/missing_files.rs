//! Decides on models whose file is missing from a drop directory, and detaches models from files
//! that are missing or have other contents now.
//!
//! A missing file counts as removed only if it was last seen in the same directory, identified by
//! its file system and inode. If another volume is mounted, or no volume, the models stay.

use std::collections::BTreeMap;
use std::mem;
use std::time::Instant;

use super::drop_directory::DropDirectory;
use super::{Ingester, log_records};
use crate::package::drop_dir::FileFingerprint;
use crate::package::{Entries, EntryKey, Origin, StoreEntry, StoreError};

/// Result of detaching a file from models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Detached {
    /// Whether a model was removed from the store.
    pub(super) has_removed: bool,
    /// Whether the store refused a change. The next scan tries it again.
    has_failed: bool,
}

impl Ingester {
    /// Updates the directory that the store records for each present and unchanged file: if none is
    /// recorded yet, or if the same directory has another identity now.
    pub(super) async fn record_directories(
        &self,
        directory: &mut DropDirectory,
        listing: &BTreeMap<String, FileFingerprint>,
    ) {
        let entries = self.installer.handle().store().entries();
        forget_kept(directory, listing, &entries);
        for entry in &entries {
            let Origin::Dropped { files } = &entry.record.origin else { continue };
            for (file, known) in files {
                let Some(seen) = directory.name_of(file).and_then(|name| listing.get(name)) else {
                    continue;
                };
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

    /// Decides on the models that came with the file `name`, which is missing from `directory`.
    /// Returns whether a model was removed.
    ///
    /// A model is removed if the file was seen in the present directory, which has the identity
    /// `place`. A model stays if the file was seen in another directory: a volume is not mounted,
    /// or was replaced. In this case each scan reports the file as missing again, until that
    /// directory is back or the models are removed. The same applies if the store refuses a change.
    pub(super) async fn on_missing_file(
        &self,
        directory: &mut DropDirectory,
        name: &str,
        place: &str,
    ) -> bool {
        let mut known = None;
        let mut is_elsewhere = false;
        let file = directory.file(name);
        for StoreEntry { key, record, .. } in &self.entries_of_file(&file) {
            let Origin::Dropped { files } = &record.origin else { continue };
            let Some(fingerprint) = files.get(&file) else { continue };
            known = Some(fingerprint.clone());
            if fingerprint.directory_id() == Some(place) {
                continue;
            }
            is_elsewhere = true;
            let is_first = directory.kept_without_file.is_empty();
            let is_new = directory.kept_without_file.insert((name.to_owned(), key.clone()));
            // A further directory may be absent at any time.
            if directory.is_further() {
                if is_first {
                    let reason = "another directory is in its place";
                    log_records::log_absent(&directory.path, reason);
                }
            } else if is_new {
                log_records::log_kept_without_file(name, key);
            }
        }
        let Detached { has_removed, has_failed } =
            self.detach_from_others(directory, name, None, Some(place)).await;
        if let Some(fingerprint) = known.filter(|_| is_elsewhere || has_failed) {
            directory.scanner.record_installed(name, fingerprint, Instant::now());
        }
        has_removed
    }

    /// Detaches files again that the last scan could not detach. Returns whether a model was
    /// removed.
    pub(super) async fn retry_detaching(
        &self,
        directory: &mut DropDirectory,
        listing: &BTreeMap<String, FileFingerprint>,
        place: &str,
    ) -> bool {
        // A missing file is reported by the scan. Its models stay if it is back.
        let is_due = |name: &String, except: &Option<EntryKey>| {
            listing.contains_key(name) && except.is_some()
        };
        directory
            .undetached
            .retain(|name, except| is_due(name, except) || !listing.contains_key(name));
        let mut has_removed = false;
        for (name, except) in directory.undetached.clone() {
            if is_due(&name, &except) {
                let detached =
                    self.detach_from_others(directory, &name, except.as_ref(), Some(place)).await;
                has_removed |= detached.has_removed;
            }
        }
        has_removed
    }

    /// Detaches the file `name`, as seen in the directory with the identity `place`, from all models
    /// except `except`. Models without another file are removed if the rule of `directory` is so. A
    /// model stays if the file now provides `except`, which waits for approval, and the id still
    /// means the model.
    pub(super) async fn detach_from_others(
        &self,
        directory: &mut DropDirectory,
        name: &str,
        except: Option<&EntryKey>,
        place: Option<&str>,
    ) -> Detached {
        let removes = directory.further.unwrap_or_else(|| self.schedule.borrow().remove_with_file);
        let file = directory.file(name);
        let was_refused = directory.undetached.remove(name).is_some();
        let mut detached = Detached::default();
        for StoreEntry { key, record, .. } in &self.entries_of_file(&file) {
            let Origin::Dropped { files } = &record.origin else { continue };
            let is_of_place = files.get(&file).is_some_and(|known| known.directory_id() == place);
            if Some(key) == except || !is_of_place {
                continue;
            }
            if except.is_some_and(|new| self.waits_to_replace(new, key)) {
                self.keep_until_approval(&file, key).await;
                continue;
            }
            let result = match removes {
                true => self.remove_if_only_file(&file, key).await,
                false => self.detach(key, &file).await.map(|_stays| false),
            };
            match result {
                Ok(is_removed) => detached.has_removed |= is_removed,
                Err(error) => {
                    detached.has_failed = true;
                    if !was_refused {
                        let what = "model cannot be detached from its file; the next scan retries";
                        log_records::log_store_error(key, &error, what);
                    }
                }
            }
        }
        if detached.has_failed {
            directory.undetached.insert(name.to_owned(), except.cloned());
        }
        detached
    }

    /// Removes a model if `file` is its only file. Returns whether it was removed.
    pub(super) async fn remove_if_only_file(
        &self,
        file: &str,
        key: &EntryKey,
    ) -> Result<bool, StoreError> {
        match self.installer.remove_with_file(key.clone(), file.to_owned()).await {
            Some(Ok(true)) => {
                log_records::log_kept(file, key, "model stays: it has another file");
                Ok(false)
            }
            Some(Ok(false)) => {
                self.report_removed(file, key, "model removed with its file");
                Ok(true)
            }
            Some(Err(error)) => Err(error),
            None => Ok(false),
        }
    }

    /// Detaches `file` from a model. Returns whether the model stays without the file.
    pub(super) async fn detach(&self, key: &EntryKey, file: &str) -> Result<bool, StoreError> {
        let stays = self.installer.detach_from_file(key.clone(), file.to_owned()).await;
        let stays = stays.transpose()?;
        if stays == Some(true) {
            log_records::log_kept(file, key, "model stays: it has another file");
        }
        Ok(stays.unwrap_or(true))
    }

    /// Returns the models that came with `file`, possibly with other files too.
    pub(super) fn entries_of_file(&self, file: &str) -> Entries {
        let entries = self.installer.handle().store().entries();
        entries.filtered(|entry| is_of_file(entry, file))
    }
}

fn is_of_file(entry: &StoreEntry, file: &str) -> bool {
    match &entry.record.origin {
        Origin::Dropped { files } => files.contains_key(file),
        _ => false,
    }
}

/// Forgets the models that stay without their files if their files are back, or if the models were
/// removed or do not depend on these files any more.
fn forget_kept(
    directory: &mut DropDirectory,
    listing: &BTreeMap<String, FileFingerprint>,
    entries: &Entries,
) {
    let mut kept = mem::take(&mut directory.kept_without_file);
    kept.retain(|(name, key)| {
        let file = directory.file(name);
        let depends = entries.get(key).is_some_and(|entry| is_of_file(entry, &file));
        depends && !listing.contains_key(name)
    });
    directory.kept_without_file = kept;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::watch::CompletedFiles;
    use crate::package::fixture::entry;

    fn fingerprint() -> FileFingerprint {
        serde_json::from_str("\"1:2:3.0:4.0 in a:1\"").unwrap()
    }

    #[test]
    fn removed_model_is_not_kept_without_file() {
        let name = |id: &str| format!("{id}.model.tar.zst");
        let mut directory = DropDirectory::main("/drop".into(), CompletedFiles::default());
        let entries = ["stays", "installed", "back"].map(|id| {
            let mut entry = entry(id, "1", 2, id);
            if id != "installed" {
                entry.record.origin = Origin::dropped(name(id), fingerprint());
            }
            entry
        });
        let removed = entry("removed", "1", 2, "removed");
        for entry in entries.iter().chain([&removed]) {
            let pair = (name(entry.key.id()), entry.key.clone());
            directory.kept_without_file.insert(pair);
        }
        let listing = BTreeMap::from([(name("back"), fingerprint())]);
        forget_kept(&mut directory, &listing, &Entries::from_iter(entries));
        let kept = directory.kept_without_file.iter().map(|(_, key)| key.id());
        assert_eq!(Vec::from_iter(kept), ["stays"]);
    }
}
