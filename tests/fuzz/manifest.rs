//! Fuzzes the manifest: any bytes parse or are refused, and a manifest is written and read again
//! unchanged.
#![no_main]

use caxton::package::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = Manifest::parse(bytes) {
        assert!(!manifest.file_name().contains('/'));
        let json = manifest.to_json().expect("what was read can be written");
        assert_eq!(Manifest::parse(&json).expect("what was written can be read"), manifest);
    }
});
