//! Estimates the memory of a tokenizer from its `tokenizer.json`, before the tokenizer is read.
//!
//! This module knows the sizes of the library's structures. The count keeps neither words nor
//! prefixes in memory. It accepts any file, because the reader rejects an invalid one later.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::file::AddedTokens;
use super::model::{MOST_NODES, SMALL_VOCABULARY};

/// Bytes of an entry in the library's table from words to ids. An entry in the table from ids to
/// words has the same size.
const TABLE_ENTRY: u64 = 33;
/// Bytes of an entry in the library's table of merges.
const MERGE_ENTRY: u64 = 17;
/// Bytes for each merge that the allocator retains after the list of merges is freed; measured 48
/// to 72.
const MERGE_KEPT: u64 = 72;
/// Additional bytes for each merge while the list of merges exists.
const MERGE_READ: u64 = 50;
/// Bytes of a word and its score in the library's list.
const SCORED: u64 = 32;
/// Bytes of an inner node of the library's trie with at most three children.
const NODE: u64 = 352;
/// Bytes that each word may add to its parent node; measured 45 to 152.
const LEAF: u64 = 160;
/// Bytes for each added token, and for each byte of its text, during the lifetime of the tokenizer.
const ADDED: (u64, u64) = (260, 14);
/// Additional bytes for each added token, and for each byte of its text, while the search structure
/// for added tokens is built.
const ADDED_READ: (u64, u64) = (60, 66);

/// Memory of a tokenizer in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct TokenizerMemory {
    /// Memory for the lifetime of the tokenizer.
    pub(in crate::engine) kept: u64,
    /// Additional memory while the file is read.
    pub(in crate::engine) reading: u64,
}

impl TokenizerMemory {
    /// Returns an upper bound for a tokenizer of `rows` words: the estimate for words that share as
    /// few prefixes as the reader allows.
    pub(in crate::engine) fn upper_bound(rows: usize) -> Self {
        const WORD: u64 = 400 + LEAF + NODE * MOST_NODES as u64;
        let (rows, few) = (rows as u64, (SMALL_VOCABULARY as u64).saturating_mul(NODE));
        Self { kept: rows.saturating_mul(WORD).saturating_add(few), reading: few }
    }

    /// Returns the memory of the tokenizer in `bytes` for a table of `rows` word embeddings, or
    /// `None` if the file has no readable vocabulary.
    pub(in crate::engine) fn estimate(bytes: &[u8], rows: usize) -> Option<Self> {
        let RawTokenizer { added_tokens, model } = serde_json::from_slice(bytes).ok()?;
        let model: RawModel<'_> = serde_json::from_str(model.get()).ok()?;
        let mut words = WordTotals { rows, ..WordTotals::default() };
        let is_list = model.vocab.get().starts_with('[');
        if is_list {
            // The number of prefixes cannot exceed the number of bytes in the file.
            words.nodes =
                Some(PrefixCounter::new(rows.saturating_mul(MOST_NODES).min(bytes.len())));
        }
        let mut reader = serde_json::Deserializer::from_str(model.vocab.get());
        if is_list {
            reader.deserialize_seq(&mut words).ok()?;
        } else {
            reader.deserialize_map(&mut words).ok()?;
        }
        let mut merges = ElementCount(0);
        if let Some(section) = model.merges {
            merges = serde_json::from_str(section.get()).ok()?;
        }
        let mut memory = match &words.nodes {
            None => words.in_dictionary(merges.0),
            Some(nodes) => words.in_trie(nodes.count()),
        };
        // The reader of added tokens bounds both numbers.
        let (tokens, bytes) = (added_tokens.0.len() as u64, added_tokens.bytes());
        memory.kept = memory.kept.saturating_add(ADDED.0 * tokens + ADDED.1 * bytes);
        memory.reading =
            memory.reading.saturating_add(ADDED_READ.0 * tokens + ADDED_READ.1 * bytes);
        Some(memory)
    }
}

/// Parts of a file that determine the memory.
#[derive(Deserialize)]
struct RawTokenizer<'a> {
    #[serde(default)]
    added_tokens: AddedTokens,
    #[serde(borrow)]
    model: &'a RawValue,
}

#[derive(Deserialize)]
struct RawModel<'a> {
    #[serde(borrow)]
    vocab: &'a RawValue,
    #[serde(borrow)]
    merges: Option<&'a RawValue>,
}

/// Running totals over the kept words. Words beyond `rows` do not count, because the reader keeps
/// no words if there are more than `rows`.
#[derive(Default)]
struct WordTotals {
    rows: usize,
    count: u64,
    /// Bytes that the allocator reserves for the words.
    allocated: u64,
    /// Prefixes of the words, counted only for a list of words with scores.
    nodes: Option<PrefixCounter>,
}

impl WordTotals {
    fn add(&mut self, word: &[u8]) {
        if self.count < self.rows as u64 {
            self.count += 1;
            // glibc adds 8 bytes to each allocation, rounds it up to a multiple of 16, and
            // allocates at least 32.
            self.allocated += ((word.len() as u64 + 8).next_multiple_of(16)).max(32);
            if let Some(nodes) = &mut self.nodes {
                nodes.add(word);
            }
        }
    }

    /// Returns the memory of the two word tables and of `merges` merges.
    fn in_dictionary(&self, merges: u64) -> TokenizerMemory {
        let tables = buckets(self.count).saturating_mul(2 * TABLE_ENTRY);
        let words = self.allocated.saturating_mul(2);
        let merged = buckets(merges).saturating_mul(MERGE_ENTRY);
        let merged = merged.saturating_add(merges.saturating_mul(MERGE_KEPT));
        TokenizerMemory {
            kept: tables.saturating_add(words).saturating_add(merged),
            reading: merges.saturating_mul(MERGE_READ),
        }
    }

    /// Returns the memory of a list, a table and a trie with `nodes` inner nodes.
    fn in_trie(&self, nodes: u64) -> TokenizerMemory {
        let lists = self.count.saturating_mul(SCORED + LEAF);
        let table = buckets(self.count).saturating_mul(TABLE_ENTRY);
        let words = self.allocated.saturating_mul(2);
        let trie = nodes.saturating_mul(NODE);
        let kept = lists.saturating_add(table).saturating_add(words).saturating_add(trie);
        TokenizerMemory { kept, reading: 0 }
    }
}

/// Returns the number of buckets of a hash table with `entries` entries: a power of two, of which
/// one eighth stays free.
fn buckets(entries: u64) -> u64 {
    match entries {
        0 => 0,
        _ => entries.saturating_mul(8).div_ceil(7).checked_next_power_of_two().unwrap_or(u64::MAX),
    }
}

impl<'de> Visitor<'de> for &mut WordTotals {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("words")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key_seed(WordVisitor(&mut *self))?.is_some() {
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(ScoredWordVisitor(&mut *self))?.is_some() {}
        Ok(())
    }
}

/// Visitor that adds one word.
struct WordVisitor<'a>(&'a mut WordTotals);

impl<'de> DeserializeSeed<'de> for WordVisitor<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_str(self)
    }
}

impl Visitor<'_> for WordVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a word")
    }

    fn visit_str<E>(self, word: &str) -> Result<(), E> {
        self.0.add(word.as_bytes());
        Ok(())
    }
}

/// Visitor that adds the word of a pair of word and score.
struct ScoredWordVisitor<'a>(&'a mut WordTotals);

impl<'de> DeserializeSeed<'de> for ScoredWordVisitor<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ScoredWordVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a word with its score")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<(), A::Error> {
        pair.next_element_seed(WordVisitor(self.0))?;
        while pair.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// Number of elements of a list.
struct ElementCount(u64);

impl<'de> Deserialize<'de> for ElementCount {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Counter;

        impl<'de> Visitor<'de> for Counter {
            type Value = ElementCount;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<ElementCount, A::Error> {
                let mut count = 0;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(ElementCount(count))
            }
        }

        reader.deserialize_seq(Counter)
    }
}

/// Counter of distinct prefixes of words, with an error of about 1 %. Each hash sets a bit of a
/// table (linear counting, Whang and others 1990, <https://doi.org/10.1145/78922.78925>). The hash
/// is keyed with a secret, so a package cannot choose prefixes that collide.
struct PrefixCounter {
    bits: Vec<u64>,
    start: u64,
    factor: u64,
}

impl PrefixCounter {
    /// Creates a table for about `most` prefixes.
    fn new(most: usize) -> Self {
        let words = most.max(SMALL_VOCABULARY).div_ceil(64).next_power_of_two();
        let keys = RandomState::new();
        Self { bits: vec![0; words], start: keys.hash_one(0), factor: keys.hash_one(1) | 1 }
    }

    fn add(&mut self, word: &[u8]) {
        // Only the high bits of a product depend on all bits of its factors. So fold the high half
        // of `hash` into its low half, multiply once more, and use the high half of the result.
        const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut hash = self.start;
        for &byte in &word[..word.len().saturating_sub(1)] {
            hash = hash.wrapping_add(u64::from(byte) + 1).wrapping_mul(self.factor);
            let mixed = (hash ^ (hash >> 32)).wrapping_mul(MIX);
            let place = (mixed >> 32) % (self.bits.len() as u64 * 64);
            if let Some(bits) =
                usize::try_from(place / 64).ok().and_then(|at| self.bits.get_mut(at))
            {
                *bits |= 1 << (place % 64);
            }
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the estimate is positive and far below the largest number"
    )]
    fn count(&self) -> u64 {
        let set: u64 = self.bits.iter().map(|bits| u64::from(bits.count_ones())).sum();
        let all = self.bits.len() as u64 * 64;
        let free = (all - set).max(1);
        // Add one percent, because the estimate must not be too low.
        (all as f64 * (all as f64 / free as f64).ln() * 1.01) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::{Value, json};

    use super::*;

    fn memory(model: &Value, rows: usize) -> TokenizerMemory {
        let file = json!({ "added_tokens": [], "model": model }).to_string();
        TokenizerMemory::estimate(file.as_bytes(), rows).unwrap()
    }

    fn unigram(words: impl Iterator<Item = String>) -> Value {
        let words: Vec<_> = words.map(|word| json!([word, -1.5])).collect();
        json!({ "type": "Unigram", "unk_id": 0, "vocab": words })
    }

    fn dictionary(words: impl Iterator<Item = String>) -> Value {
        words.zip(0_u32..).map(|(word, id)| (word, Value::from(id))).collect()
    }

    /// Checks the estimate against a measurement with glibc: 211 bytes kept for each word.
    #[test]
    fn dictionary_memory_follows_word_count_and_length() {
        let short = json!({ "vocab": dictionary((0..30_000).map(|id| format!("{id:x}"))) });
        let told = memory(&short, 30_000);
        assert_eq!(told, TokenizerMemory { kept: 65_536 * 66 + 30_000 * 64, reading: 0 });
        let long = json!({ "vocab": dictionary((0..30_000).map(|id| format!("{id:0200}"))) });
        assert_eq!(memory(&long, 30_000).kept, 65_536 * 66 + 30_000 * 416);
        // No more words are kept than there are word embeddings.
        assert_eq!(memory(&long, 0).kept, 0);
    }

    /// Checks the estimate against a measurement with glibc: 381 bytes kept for each word with two
    /// merges, and 98 more during the read.
    #[test]
    fn merge_memory_is_counted() {
        let merges = vec![["a", "b"]; 120_000];
        let vocab = dictionary((0..60_000).map(|id| format!("{id:x}")));
        let with = memory(&json!({ "vocab": vocab, "merges": merges }), 60_000);
        assert!((381..440).contains(&(with.kept / 60_000)), "{with:?}");
        assert_eq!(with.reading, 120_000 * MERGE_READ);
    }

    /// Checks the estimate against measurements with glibc: 1,020 bytes kept for each word with a
    /// tail of two letters, 2,076 with five.
    #[test]
    fn trie_memory_follows_word_prefixes() {
        for (tail, measured) in [(2, 1020), (5, 2076)] {
            let words = (0..100_000).map(|id| format!("{id:05x}{}", "z".repeat(tail)));
            let told = memory(&unigram(words), 100_000).kept / 100_000;
            assert!((measured..measured * 6 / 5).contains(&told), "{told} for {measured}");
            assert!(TokenizerMemory::upper_bound(100_000).kept / 100_000 > told);
        }
    }

    #[test]
    fn prefix_count_is_accurate_within_percents() {
        for number in [10_u64, 1000, 200_000] {
            let words: Vec<_> = (0..number).map(|id| format!("{:x}", id * id * 7919)).collect();
            let mut nodes = PrefixCounter::new(words.len() * MOST_NODES);
            let mut beginnings = HashSet::new();
            for word in &words {
                nodes.add(word.as_bytes());
                beginnings.extend((1..word.len()).map(|end| &word[..end]));
            }
            let (told, there) = (nodes.count(), beginnings.len() as u64);
            assert!(told + 20 > there && told < there + there / 25 + 20, "{told} {there}");
        }
    }

    #[test]
    fn added_tokens_count_and_invalid_files_give_none() {
        let added = |id: u32| json!({ "id": id, "content": format!("<{id:06}>") });
        let file = json!({
            "added_tokens": (0..1000).map(added).collect::<Vec<_>>(), "model": { "vocab": {} },
        });
        let told = TokenizerMemory::estimate(file.to_string().as_bytes(), 1000).unwrap();
        assert_eq!(told.kept, 1000 * (ADDED.0 + 8 * ADDED.1));
        for bytes in ["", "{}", r#"{"model": 1}"#, r#"{"model": {"vocab": 1}}"#, "\u{0}"] {
            assert_eq!(TokenizerMemory::estimate(bytes.as_bytes(), 1000), None, "{bytes}");
        }
    }
}
