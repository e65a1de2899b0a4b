//! Reads the `model` section of `tokenizer.json`: the algorithm that splits a word into tokens, its
//! words and its merges.
//!
//! This module enforces the limits of a vocabulary. The number of words is bounded by the number of
//! word embeddings. The length of a word is bounded because the time for a text depends on it. The
//! total length of all words is bounded because memory depends on it.
//!
//! Words beyond the limit are counted but not kept, so that a file with millions of words takes no
//! memory.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokenizers::ModelWrapper;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::models::wordpiece::WordPiece;

use super::super::EngineError;
use super::super::quote::quote;
use super::merges::Merges;
use super::{mismatch, unreadable};

/// Maximum length of a word in bytes. Llama 3 has a word of 128 spaces, which byte-level BPE writes
/// in 256 bytes.
const MOST_WORD_BYTES: usize = 512;
/// Maximum length of a word of a Unigram model in bytes. The library compares each position of a
/// text with the words of all lengths. SentencePiece creates words of at most 16 characters.
const MOST_UNIGRAM_WORD_BYTES: usize = 64;
/// Maximum mean length of the words in bytes. Words of natural languages have 5 to 12.
const MOST_MEAN_BYTES: usize = 24;
/// Maximum mean number of inner trie nodes for each word of a Unigram model. A node takes 340
/// bytes. Words of natural languages share prefixes and have two nodes each.
pub(super) const MOST_NODES: usize = 6;
/// Allowance on top of the limits per word, so that small vocabularies are not refused: bytes of
/// words, nodes of a trie, or merges.
pub(super) const SMALL_VOCABULARY: usize = 16 << 10;
/// Maximum number of merges for each word. Gemma has two.
const MOST_MERGES: usize = 4;
/// Maximum number of characters of a word that WordPiece splits; its time grows with the square of
/// this number.
const MOST_WORD_PIECE_CHARACTERS: usize = 100;
/// The only prefix that BERT's vocabularies use for the continuation of a word.
const CONTINUING: &str = "##";

/// Model of a tokenizer, with its number of ids.
pub(super) struct Model {
    pub(super) library: ModelWrapper,
    /// Number of ids; every id is smaller.
    pub(super) ids: usize,
}

/// The section as written in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawModel<'a> {
    r#type: Option<String>,
    #[serde(borrow)]
    vocab: &'a RawValue,
    #[serde(borrow)]
    merges: Option<&'a RawValue>,
    unk_token: Option<String>,
    unk_id: Option<usize>,
    dropout: Option<f32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    max_input_chars_per_word: Option<usize>,
    #[serde(default)]
    fuse_unk: Option<bool>,
    #[serde(default)]
    byte_fallback: Option<bool>,
    #[serde(default)]
    ignore_merges: Option<bool>,
}

/// Reads the `model` section of a tokenizer for `rows` word embeddings.
///
/// # Errors
/// Returns an error if the model is of another kind, or contradicts itself or the limits.
pub(super) fn read(section: &RawValue, rows: usize) -> Result<Model, EngineError> {
    let written: RawModel<'_> = serde_json::from_str(section.get()).map_err(unreadable)?;
    let kind = match written.r#type.as_deref() {
        Some(kind) => kind,
        // Files from 2020 have no type. The library then tries the models in this order and takes
        // the first one whose fields all exist.
        None if written.merges.is_some() => "BPE",
        None if written.max_input_chars_per_word.is_some() => "WordPiece",
        None if written.unk_token.is_some() => "WordLevel",
        None => "Unigram",
    };
    match kind {
        "WordPiece" => written.word_piece(rows),
        "BPE" => written.bpe(rows),
        "Unigram" => written.unigram(rows),
        "WordLevel" => written.word_level(rows),
        other => Err(mismatch(format!(
            "the model {} is not supported; supported are WordPiece, BPE, Unigram and WordLevel",
            quote(other)
        ))),
    }
}

impl RawModel<'_> {
    fn word_piece(self, rows: usize) -> Result<Model, EngineError> {
        match self.continuing_subword_prefix.as_deref() {
            Some(CONTINUING) => {}
            other => {
                let other = quote(other.unwrap_or_default());
                return Err(mismatch(format!(
                    "continuing_subword_prefix is {other}; only \"{CONTINUING}\" is supported"
                )));
            }
        }
        let characters = self.max_input_chars_per_word.unwrap_or(100);
        if characters > MOST_WORD_PIECE_CHARACTERS {
            return Err(mismatch(format!(
                "max_input_chars_per_word is {characters}, more than {MOST_WORD_PIECE_CHARACTERS}"
            )));
        }
        let words = dictionary(self.vocab, rows)?;
        let unknown = self.unknown(&words.vocabulary)?;
        let model = WordPiece::builder()
            .vocab(words.vocabulary)
            .unk_token(unknown)
            .continuing_subword_prefix(CONTINUING.to_owned())
            .max_input_chars_per_word(characters)
            .build()
            .map_err(unreadable)?;
        Ok(Model { library: model.into(), ids: words.ids })
    }

    fn word_level(self, rows: usize) -> Result<Model, EngineError> {
        let words = dictionary(self.vocab, rows)?;
        let unknown = self.unknown(&words.vocabulary)?;
        let model = WordLevel::builder()
            .vocab(words.vocabulary)
            .unk_token(unknown)
            .build()
            .map_err(unreadable)?;
        Ok(Model { library: model.into(), ids: words.ids })
    }

    fn bpe(self, rows: usize) -> Result<Model, EngineError> {
        for (name, affix) in [
            ("continuing_subword_prefix", &self.continuing_subword_prefix),
            ("end_of_word_suffix", &self.end_of_word_suffix),
        ] {
            // The library cuts the prefix from the second word of each merge by its length in
            // bytes, even in the middle of a character.
            if let Some(affix) = affix.as_deref().filter(|affix| !affix.is_empty()) {
                return Err(mismatch(format!("{name} is {}; it must be empty", quote(affix))));
            }
        }
        if self.dropout.is_some_and(|dropout| dropout != 0.0) {
            return Err(mismatch("dropout is not 0, so the tokens of a text would be random"));
        }
        let words = dictionary(self.vocab, rows)?;
        let merges = match self.merges {
            Some(merges) => {
                let most = words
                    .vocabulary
                    .len()
                    .saturating_mul(MOST_MERGES)
                    .saturating_add(SMALL_VOCABULARY);
                let seed = Merges { longest: words.longest, most };
                parse(merges, seed)?
            }
            None => return Err(mismatch("the model BPE has no merges")),
        };
        let unknown =
            if self.unk_token.is_some() { Some(self.unknown(&words.vocabulary)?) } else { None };
        let mut builder = BPE::builder()
            .vocab_and_merges(words.vocabulary, merges)
            .fuse_unk(self.fuse_unk.unwrap_or_default())
            .byte_fallback(self.byte_fallback.unwrap_or_default())
            .ignore_merges(self.ignore_merges.unwrap_or_default());
        if let Some(unknown) = unknown {
            builder = builder.unk_token(unknown);
        }
        Ok(Model { library: builder.build().map_err(unreadable)?.into(), ids: words.ids })
    }

    fn unigram(self, rows: usize) -> Result<Model, EngineError> {
        let ScoredWords { words, seen, .. } = parse(self.vocab, ScoredWordsSeed { rows })?;
        too_many(seen, rows)?;
        let Some(unknown) = self.unk_id else { return Err(mismatch("unk_id is missing")) };
        if unknown >= seen {
            let problem = format!("unk_id is {unknown}, but the vocabulary has {seen} words");
            return Err(mismatch(problem));
        }
        let byte_fallback = self.byte_fallback.unwrap_or_default();
        let model = Unigram::from(words, Some(unknown), byte_fallback).map_err(unreadable)?;
        Ok(Model { library: model.into(), ids: seen })
    }

    /// Returns the word that replaces parts of a text without tokens, and checks that the
    /// vocabulary contains it.
    fn unknown(&self, vocabulary: &Vocab) -> Result<String, EngineError> {
        match &self.unk_token {
            Some(unknown) if vocabulary.contains_key(unknown.as_str()) => Ok(unknown.clone()),
            Some(unknown) => {
                Err(mismatch(format!("unk_token {} is not in the vocabulary", quote(unknown))))
            }
            None => Err(mismatch("unk_token is missing")),
        }
    }
}

/// Checks that there are no more ids than word embeddings.
pub(super) fn too_many(ids: usize, rows: usize) -> Result<(), EngineError> {
    if ids <= rows {
        return Ok(());
    }
    Err(EngineError::Mismatch(format!(
        "tokenizer.json has {ids} tokens, model.safetensors has word embeddings for {rows}"
    )))
}

fn parse<'a, S: DeserializeSeed<'a>>(
    section: &'a RawValue,
    seed: S,
) -> Result<S::Value, EngineError> {
    let mut reader = serde_json::Deserializer::from_str(section.get());
    seed.deserialize(&mut reader).map_err(unreadable)
}

fn dictionary(section: &RawValue, rows: usize) -> Result<Dictionary, EngineError> {
    let words = parse(section, DictionarySeed { rows })?;
    too_many(words.ids.max(words.seen), rows)?;
    Ok(words)
}

/// Total and maximum length of the words so far, in bytes.
#[derive(Default)]
struct WordLengths {
    bytes: usize,
    longest: usize,
}

impl WordLengths {
    fn add<E: serde::de::Error>(&mut self, word: &str, most: usize) -> Result<(), E> {
        if word.len() > most {
            let length = word.len();
            let word = quote(word);
            return Err(E::custom(format!("a word has {length} bytes, more than {most}: {word}")));
        }
        self.bytes += word.len();
        self.longest = self.longest.max(word.len());
        Ok(())
    }

    /// Checks the mean length of `words` words.
    fn check<E: serde::de::Error>(&self, words: usize) -> Result<(), E> {
        if self.bytes > words.saturating_mul(MOST_MEAN_BYTES).saturating_add(SMALL_VOCABULARY) {
            return Err(E::custom(format!(
                "the {words} words have {} bytes, more than {MOST_MEAN_BYTES} for each word",
                self.bytes
            )));
        }
        Ok(())
    }
}

/// Words with their ids.
struct Dictionary {
    vocabulary: Vocab,
    /// Number of ids; every id is smaller.
    ids: usize,
    /// Number of words in the file. If it exceeds the limit, no words are kept.
    seen: usize,
    /// Length of the longest word in bytes.
    longest: usize,
}

struct DictionarySeed {
    rows: usize,
}

impl<'de> DeserializeSeed<'de> for DictionarySeed {
    type Value = Dictionary;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Dictionary, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for DictionarySeed {
    type Value = Dictionary;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("words with their ids")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Dictionary, A::Error> {
        let mut words = Dictionary { vocabulary: Vocab::new(), ids: 0, seen: 0, longest: 0 };
        let mut lengths = WordLengths::default();
        let mut taken: Vec<bool> = Vec::new();
        while let Some((word, id)) = map.next_entry::<String, u32>()? {
            lengths.add(&word, MOST_WORD_BYTES)?;
            let id_of_word = id as usize;
            words.seen += 1;
            words.ids = words.ids.max(id_of_word.saturating_add(1));
            if words.seen > self.rows || words.ids > self.rows {
                words.vocabulary = Vocab::new();
                continue;
            }
            if taken.len() <= id_of_word {
                taken.resize(id_of_word + 1, false);
            }
            if std::mem::replace(&mut taken[id_of_word], true) {
                return Err(A::Error::custom(format!("two words have the id {id}")));
            }
            if words.vocabulary.contains_key(word.as_str()) {
                return Err(A::Error::custom(format!("the word {} occurs twice", quote(&word))));
            }
            words.vocabulary.insert(word, id);
        }
        lengths.check(words.seen)?;
        words.longest = lengths.longest;
        Ok(words)
    }
}

/// Words with their scores; the id of a word is its index.
struct ScoredWords {
    words: Vec<(String, f64)>,
    /// Number of words in the file. If it exceeds the limit, no words are kept.
    seen: usize,
}

struct ScoredWordsSeed {
    rows: usize,
}

impl<'de> DeserializeSeed<'de> for ScoredWordsSeed {
    type Value = ScoredWords;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<ScoredWords, D::Error> {
        reader.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ScoredWordsSeed {
    type Value = ScoredWords;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("words with their scores")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<ScoredWords, A::Error> {
        let mut words = ScoredWords { words: Vec::new(), seen: 0 };
        let mut lengths = WordLengths::default();
        let mut nodes = TrieNodes::default();
        while let Some((word, score)) = list.next_element::<(String, f64)>()? {
            lengths.add(&word, MOST_UNIGRAM_WORD_BYTES)?;
            if !score.is_finite() {
                return Err(A::Error::custom(format!("the score of {} is {score}", quote(&word))));
            }
            words.seen += 1;
            if words.seen > self.rows {
                words.words = Vec::new();
                nodes = TrieNodes::default();
                continue;
            }
            nodes.add(word.as_bytes());
            words.words.push((word, score));
        }
        lengths.check(words.seen)?;
        let (count, most) = (nodes.0.len(), words.words.len() * MOST_NODES + SMALL_VOCABULARY);
        if count > most {
            return Err(A::Error::custom(format!(
                "the {} words have {count} different prefixes, more than {most}",
                words.seen
            )));
        }
        Ok(words)
    }
}

/// Inner nodes of a trie of the words, as a set of prefix hashes.
#[derive(Default)]
struct TrieNodes(HashSet<u64, BuildHasherDefault<PrehashedHasher>>);

impl TrieNodes {
    fn add(&mut self, word: &[u8]) {
        // FNV-1a. A malicious file can make prefixes collide, so that this count is too low. The
        // true number of nodes is still bounded by the bytes of the words.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for &byte in &word[..word.len().saturating_sub(1)] {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            self.0.insert(hash);
        }
    }
}

/// Hasher for keys that are already hashes.
#[derive(Default)]
struct PrehashedHasher(u64);

impl Hasher for PrehashedHasher {
    fn finish(&self) -> u64 {
        // `HashSet` distinguishes the entries of a group by the highest bits, which FNV-1a mixes
        // worst. So exchange the halves.
        self.0.rotate_left(32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 << 8) | u64::from(byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}
