//! Fuzzes `tokenizer.json`: any bytes load as a tokenizer that encodes texts, or are refused.
#![no_main]

mod golden;

use golden::{CONFIG, WEIGHTS, try_model};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| try_model(CONFIG, bytes, WEIGHTS));
