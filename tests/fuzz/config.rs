//! Fuzzes `config.json`: any bytes load as a model that computes a vector, or are refused.
#![no_main]

mod golden;

use golden::{TOKENIZER, WEIGHTS, try_model};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| try_model(bytes, TOKENIZER, WEIGHTS));
