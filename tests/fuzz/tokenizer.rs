//! Any bytes are a `tokenizer.json` whose texts have tokens, or are refused.
#![no_main]

mod golden;

use golden::{CONFIG, WEIGHTS, try_model};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| try_model(CONFIG, bytes, WEIGHTS));
