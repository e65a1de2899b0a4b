//! Attack: `tokenizer.json` has many times more words than `config.json` declares, which is the
//! number for which memory is reserved.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use serde_json::{Map, Value};

use crate::support::tokenizers::tokenizer_refused;
use crate::support::{Daemon, Root};

/// Words of the attacker: two hundred megabytes in the library's memory.
const WORDS: usize = 600_000;

/// Returns the peak memory of the daemon, in bytes.
fn peak(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn oversized_vocabulary_is_rejected_in_bounded_memory() {
    let daemon = Root::new().start();
    let before = peak(&daemon);
    let mut bytes = 0;
    let reason = tokenizer_refused(&daemon, "words", |tokenizer: &mut Value| {
        let words = (540..WORDS).map(|id| (format!("w{id}"), id.into()));
        let words: Map<String, Value> = words.collect();
        tokenizer["model"]["vocab"].as_object_mut().unwrap().extend(words);
        bytes = tokenizer.to_string().len() as u64;
    });
    assert!(
        reason.contains(&format!(
            "tokenizer.json has {WORDS} tokens, model.safetensors has word embeddings for 540"
        )),
        "{reason}"
    );
    // The growth includes the file itself and the memory for unpacking.
    let grown = peak(&daemon) - before;
    assert!(grown < bytes + (64 << 20), "{grown} bytes for a file of {bytes}");
    assert_eq!(daemon.get("/livez").status, 200);
    daemon.stop();
}
