//! Places: files of the drop directory count in the directory in which they were seen.
//!
//! Owns the decision on models whose file is missing.

use std::collections::BTreeMap;
use std::time::Instant;

use super::{Intake, records};
use crate::package::drop::Fingerprint;
use crate::package::{Entry, Origin};

impl Intake {
    /// Has the store remember the directory of the files that are there as they were, where it does not know it or it is
    /// known under another number since.
    pub(super) async fn remember_places(&mut self, listing: &BTreeMap<String, Fingerprint>) {
        self.held.retain(|(file, _key)| !listing.contains_key(file));
        for entry in self.installer.handle().store().entries() {
            let Origin::Dropped { files } = entry.record.origin else { continue };
            for (file, known) in files {
                let Some(seen) = listing.get(&file) else { continue };
                if *seen == known && seen.place() != known.place() {
                    let seen = self.installer.saw(entry.key.clone(), file, seen.clone()).await;
                    if let Some(Err(error)) = seen {
                        records::store_failed(&entry.key, &error, "its file is not remembered");
                    }
                }
            }
        }
    }

    /// Decides on the models that came with the file `name`, which is not in the drop directory. They leave when it was
    /// seen in this very directory, `place`. They stay when it was seen in another one: a volume is not mounted, or was
    /// replaced. Then the file is missed again at each look, until that directory is back or the models are removed.
    pub(super) async fn missing(&mut self, name: &str, place: &str) {
        let mut seen_elsewhere = None;
        for Entry { key, record, .. } in self.dropped(name) {
            let Origin::Dropped { files } = record.origin else { continue };
            let Some(fingerprint) = files.get(name) else { continue };
            if fingerprint.place() == Some(place) {
                continue;
            }
            seen_elsewhere = Some(fingerprint.clone());
            if self.held.insert((name.to_owned(), key.clone())) {
                records::held(name, &key);
            }
        }
        self.discard_dropped(name, None, Some(place)).await;
        if let Some(fingerprint) = seen_elsewhere {
            self.ledger.remember(name, fingerprint, Instant::now());
        }
    }
}
