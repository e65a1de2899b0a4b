//! Fuzzes the header of weights: any bytes load as a model that computes a vector, or are refused.
//!
//! The input is the JSON of the header. Its length is written before it, and the values of a model
//! after it.
#![no_main]

mod golden;

use golden::{CONFIG, TOKENIZER, WEIGHTS, try_model};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let length = WEIGHTS.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    let values = &WEIGHTS[8 + usize::try_from(length).expect("a length")..];
    let file = [&(bytes.len() as u64).to_le_bytes(), bytes, values].concat();
    try_model(CONFIG, TOKENIZER, &file);
});
