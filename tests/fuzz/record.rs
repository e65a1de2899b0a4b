//! Fuzzes the records of the store: any bytes parse or are refused, file names in a record stay in
//! their directory, and a store with such an entry opens.
//!
//! Works in the directory `TMPDIR`, which must be empty; `run` provides it.
#![no_main]

use std::path::{Component, Path};
use std::sync::OnceLock;
use std::{env, fs};

use caxton::package::{Digest, Manifest, Origin, InstallRecord, Store};
use libfuzzer_sys::fuzz_target;

/// Manifest of the one entry that gets every input as its record.
const MANIFEST: &[u8] = include_bytes!("corpus/manifest/valid.json");

fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = serde_json::from_slice::<InstallRecord>(bytes) {
        let json = serde_json::to_vec(&record).expect("what was read can be written");
        let again: InstallRecord = serde_json::from_slice(&json).expect("what was written can be read");
        assert_eq!(again, record);
        match &record.origin {
            Origin::Dropped { files } => files.keys().for_each(|name| assert_plain(name)),
            Origin::Bundled { file, .. } => assert_contained(file),
            Origin::Installed => {}
        }
    }
    fs::write(entry().join("record.json"), bytes).expect("a record");
    let (store, damaged) = Store::open(&env::temp_dir()).expect("the store opens");
    assert_eq!(store.entries().len() + damaged.len(), 1);
});

/// Checks the name of a file in the main drop directory, or the absolute path of one in another
/// directory.
fn assert_plain(name: &str) {
    if !name.starts_with('/') {
        return assert_contained(name);
    }
    let is_plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
    assert!(Path::new(name).components().all(is_plain), "{name:?}");
}

fn assert_contained(name: &str) {
    let mut components = Path::new(name).components();
    assert!(matches!(components.next(), Some(Component::Normal(_))), "{name:?}");
    assert_eq!((components.next(), name.contains('/')), (None, false), "{name:?}");
}

/// Returns the directory of the entry, which is created once.
fn entry() -> &'static Path {
    static ENTRY: OnceLock<std::path::PathBuf> = OnceLock::new();
    ENTRY.get_or_init(|| {
        let manifest = Manifest::parse(MANIFEST).expect("a seed");
        let name = format!("{}@{}+{}", manifest.id, manifest.version, Digest::of(MANIFEST).short());
        let entry = env::temp_dir().join("models").join(name);
        fs::create_dir_all(&entry).expect("TMPDIR");
        fs::write(entry.join("manifest.json"), MANIFEST).expect("a manifest");
        entry
    })
}
