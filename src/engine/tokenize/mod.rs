//! Converts texts to token ids, as the transformers library does for a single text and for a pair.
//!
//! This module adds the special tokens around a text and truncates it. It ignores the truncation
//! and padding settings in `tokenizer.json`, and never pads.
//!
//! A pair of texts is joined from the tokens of both, so that a query is tokenized once for all of
//! its documents ([`pair`]).
//!
//! Invariants:
//! 1. The ids of a text equal those of tokenizing the whole text and truncating the result,
//!    although a long text is cut first; see [`Tokenizer::encode_truncated`].
//! 2. [`Tokens::ids`] has at most [`Tokenizer::max_sequence_length`] ids, each below
//!    [`Tokenizer::vocabulary_size`], apart from the [token type](super::token_type) of the tokens
//!    of a pair.

mod charsmap;
mod file;
#[cfg(test)]
mod hostile;
mod memory;
mod merges;
mod model;
mod pair;
mod parts;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokenizers::Encoding;

use super::EngineError;
use super::quote::escape;
use file::TokenizerFile;
pub(super) use memory::TokenizerMemory;
use pair::PairTokens;
use parts::SurroundingTokens;

/// Name of the file in messages.
const FILE: &str = "tokenizer.json";
/// Bytes of text per token for the first cut of a long text. English has 4 to 5 bytes per token. A
/// text with longer tokens is cut a second time further on, and so on; the shorter attempts cost at
/// most a third more.
const BYTES_PER_TOKEN: usize = 8;
/// Factor by which each cut is longer than the one before.
const WIDENING: usize = 4;
/// Margin in bytes next to a cut. A cut may split a word, a grapheme that is normalized as a whole,
/// a run of spaces or a special token. All of these except words are shorter than the margin. So
/// beyond the margin, only the word that extends into it can differ from the whole text; that word
/// is treated as a whole.
const CUT_MARGIN: usize = 1024;
/// Maximum length of a text, or part of one, that the library tokenizes at once, in bytes; more
/// only if the model's maximum sequence length requires it. The library needs a hundred times the
/// memory of its input.
const MOST_AT_ONCE: usize = 1 << 20;
/// Bytes of a text that are counted at once.
const COUNTED_BYTES: usize = 64 << 10;
/// Maximum size of a vocabulary if the number of word embeddings is unknown.
const MOST_TOKENS: usize = 1 << 22;

/// End at which a text that is too long is truncated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Truncation {
    /// Removes tokens from the end of the text.
    #[default]
    Right,
    /// Removes tokens from the beginning of the text, including the prompt.
    Left,
}

/// A token and its origin in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSpan {
    /// Token id.
    pub id: u32,
    /// Part of the text that the token represents; the name of a special token.
    pub text: String,
    /// Position of that part, in characters; `None` for a special token around the text.
    pub characters: Option<Range<usize>>,
}

/// Tokens of one text, of a pair of texts, or of one text of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids, including the special tokens around a text or a pair.
    pub ids: Vec<u32>,
    /// Number of tokens of the whole text; `None` if the text was cut before it was tokenized
    /// completely.
    pub whole: Option<usize>,
}

impl Tokens {
    /// Returns whether the text was truncated to `max_sequence_length`.
    pub fn truncated(&self) -> bool {
        self.whole != Some(self.ids.len())
    }
}

/// Tokenizer of a model. Threads may share it.
pub struct Tokenizer {
    library: tokenizers::Tokenizer,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    /// Special tokens of a pair; `None` unless the model scores pairs.
    pair: Option<PairTokens>,
    /// Maximum number of tokens that the model reads, without the special ones; at least one.
    model_room: usize,
    /// Maximum number of tokens of a text, without the special ones; from 1 to `model_room`.
    room: AtomicUsize,
    vocabulary_size: usize,
    cut_margin: usize,
}

/// Wraps the error of a library that rejected the file. The message is escaped, because it may
/// quote the file.
fn unreadable(source: impl fmt::Display) -> EngineError {
    EngineError::File { file: FILE.to_owned(), source: escape(source).into() }
}

fn mismatch(what: impl fmt::Display) -> EngineError {
    EngineError::Mismatch(format!("{FILE}: {what}"))
}

impl fmt::Debug for Tokenizer {
    /// Omits the vocabulary, which would fill pages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocabulary_size", &self.vocabulary_size())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a tokenizer from the bytes of a `tokenizer.json`, for texts of at most
    /// `max_sequence_length` tokens.
    ///
    /// # Errors
    /// Returns an error if the bytes are malformed, require a component that Caxton does not
    /// support, or the special tokens fill `max_sequence_length`.
    pub fn from_bytes(bytes: &[u8], max_sequence_length: usize) -> Result<Self, EngineError> {
        Self::for_rows(bytes, max_sequence_length, MOST_TOKENS)
    }

    /// Reads a tokenizer like [`Tokenizer::from_bytes`], for a table of `rows` word embeddings.
    ///
    /// # Errors
    /// Returns the errors of [`Tokenizer::from_bytes`], and an error if the tokenizer has more
    /// tokens than `rows`. The memory is bounded by `rows` in that case, too.
    pub(super) fn for_rows(
        bytes: &[u8],
        max_sequence_length: usize,
        rows: usize,
    ) -> Result<Self, EngineError> {
        Self::new(file::read(bytes, rows)?, max_sequence_length)
    }

    /// Reads a tokenizer like [`Tokenizer::for_rows`], but adds no special tokens. So a text may
    /// have no tokens at all.
    ///
    /// # Errors
    /// Returns the errors of [`Tokenizer::for_rows`].
    pub(super) fn without_special_tokens(
        bytes: &[u8],
        max_sequence_length: usize,
        rows: usize,
    ) -> Result<Self, EngineError> {
        let file = file::read(bytes, rows)?;
        Self::new(
            TokenizerFile { around: SurroundingTokens::default(), ..file },
            max_sequence_length,
        )
    }

    fn new(file: TokenizerFile, max_sequence_length: usize) -> Result<Self, EngineError> {
        let TokenizerFile { library, around, ids: vocabulary_size, longest_added, .. } = file;
        let SurroundingTokens { prefix, suffix } = around;
        let around = prefix.len() + suffix.len();
        if around >= max_sequence_length {
            return Err(mismatch(format!(
                "{around} special tokens around a text leave no token for it in \
                 max_sequence_length {max_sequence_length}"
            )));
        }
        if let Some(id) =
            prefix.iter().chain(&suffix).find(|&&special| special as usize >= vocabulary_size)
        {
            return Err(mismatch(format!(
                "special token {id} is outside the vocabulary of {vocabulary_size} tokens"
            )));
        }
        let model_room = max_sequence_length - around;
        Ok(Self {
            library,
            prefix,
            suffix,
            pair: None,
            model_room,
            room: AtomicUsize::new(model_room),
            vocabulary_size,
            cut_margin: CUT_MARGIN + longest_added,
        })
    }

    /// Truncates texts and pairs to `most` tokens from now on, special tokens included, if this is
    /// less than the model reads; `None` removes the limit. At least one token of a text or a pair
    /// stays.
    pub fn limit_length(&self, most: Option<usize>) {
        let special = self.around().max(self.pair.as_ref().map_or(0, PairTokens::special));
        let room = most.map(|most| most.max(special + 1).saturating_sub(self.around()));
        let room = room.map_or(self.model_room, |room| room.min(self.model_room));
        self.room.store(room, Ordering::Relaxed);
    }

    /// Returns the maximum number of tokens of a text, special tokens included.
    pub fn max_sequence_length(&self) -> usize {
        self.room() + self.around()
    }

    fn room(&self) -> usize {
        self.room.load(Ordering::Relaxed)
    }

    /// Returns the number of tokens in the vocabulary; every id is smaller.
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    /// Tokenizes `prompt` followed by `text` as one text, and truncates it at the end if it is too
    /// long.
    ///
    /// # Errors
    /// Returns the errors of [`Tokenizer::encode_truncated`].
    pub fn encode(&self, prompt: &str, text: &str) -> Result<Tokens, EngineError> {
        self.encode_truncated(prompt, text, Truncation::Right)
    }

    /// Tokenizes `prompt` followed by `text` as one text, and truncates it on the given side if it
    /// is too long.
    ///
    /// A long text is first cut, and only the part on the kept side is tokenized. The cut is long
    /// enough if more tokens than the model accepts lie completely beyond the region that the cut
    /// can have changed. Otherwise a longer part is tokenized. So the cost depends on the part that
    /// is kept, with one exception: an endless word is tokenized up to a mebibyte.
    ///
    /// # Errors
    /// Returns [`EngineError::Tokenize`] if the tokenizer has no token for a part of the text.
    /// Returns [`EngineError::Endless`] if the part that may be tokenized has so few word
    /// boundaries that the kept tokens are not certain.
    pub fn encode_truncated(
        &self,
        prompt: &str,
        text: &str,
        truncation: Truncation,
    ) -> Result<Tokens, EngineError> {
        // Another thread may change the limit. One text has one limit.
        let room = self.room();
        let Tokens { ids, whole } = self.encode_bare(prompt, text, truncation, room)?;
        Ok(self.wrap(&ids, whole))
    }

    /// Tokenizes `prompt` followed by `text` without special tokens, and truncates the result to
    /// `room` tokens.
    ///
    /// # Errors
    /// Returns the errors of [`Tokenizer::encode_truncated`].
    fn encode_bare(
        &self,
        prompt: &str,
        text: &str,
        truncation: Truncation,
        room: usize,
    ) -> Result<Tokens, EngineError> {
        let text = with_prompt(prompt, text);
        let mut cut = room.saturating_mul(BYTES_PER_TOKEN).saturating_add(self.cut_margin);
        let most = cut.max(MOST_AT_ONCE);
        while cut < text.len() {
            let part = match truncation {
                Truncation::Right => &text[..text.floor_char_boundary(cut)],
                Truncation::Left => &text[text.ceil_char_boundary(text.len() - cut)..],
            };
            // `encode_fast` does not compute offsets, which are needed here.
            let tokens = self.library.encode(part, false).map_err(EngineError::Tokenize)?;
            let settled = match truncation {
                Truncation::Right => {
                    0..settled_tokens(&tokens, part.len().saturating_sub(self.cut_margin))
                }
                Truncation::Left => unsettled_tokens(&tokens, self.cut_margin)..tokens.len(),
            };
            // More tokens than fit prove that the text is truncated.
            if settled.len() > room {
                let ids = truncate(&tokens.get_ids()[settled], truncation, room).to_vec();
                return Ok(Tokens { ids, whole: None });
            }
            if cut == most {
                return Err(EngineError::Endless { bytes: text.len(), most });
            }
            cut = cut.saturating_mul(WIDENING).min(most);
        }
        let whole =
            self.library.encode_fast(text.as_ref(), false).map_err(EngineError::Tokenize)?;
        let ids = truncate(whole.get_ids(), truncation, room).to_vec();
        Ok(Tokens { ids, whole: Some(whole.len()) })
    }

    /// Counts the tokens of `prompt` followed by `text` as one text, special tokens included.
    ///
    /// The library needs a hundred times the memory of its input. So a text longer than
    /// [`COUNTED_BYTES`] is counted in pieces, each of which ends before a space if possible. The
    /// count of a piece may differ by one token from the count of the same part in the whole text.
    ///
    /// # Errors
    /// Returns [`EngineError::Tokenize`] if the tokenizer has no token for a part of the text.
    pub fn count(&self, prompt: &str, text: &str) -> Result<usize, EngineError> {
        let text = with_prompt(prompt, text);
        let (mut rest, mut count) = (text.as_ref(), self.around());
        while !rest.is_empty() {
            let (tokens, length) = self.count_piece(rest)?;
            count += tokens;
            rest = &rest[length..];
        }
        Ok(count)
    }

    /// Counts the tokens of the first piece of `text`, which must not be empty. Returns the number
    /// of tokens without special ones, and the length of the piece in bytes.
    ///
    /// # Errors
    /// Returns [`EngineError::Tokenize`] if the tokenizer has no token for a part of the piece.
    pub fn count_piece(&self, text: &str) -> Result<(usize, usize), EngineError> {
        let piece = &text[..end_of_piece(text)];
        let tokens = self.library.encode_fast(piece, false).map_err(EngineError::Tokenize)?;
        Ok((tokens.len(), piece.len()))
    }

    /// Checks and truncates the token `ids` that a client sent. Adds the special tokens around
    /// them, unless the client has sent these, too.
    ///
    /// # Errors
    /// Returns [`EngineError::TokenOutOfRange`] for an id outside the vocabulary.
    pub fn encode_ids(&self, ids: &[u32], truncation: Truncation) -> Result<Tokens, EngineError> {
        self.check_range(ids)?;
        let bare = ids
            .strip_prefix(self.prefix.as_slice())
            .and_then(|ids| ids.strip_suffix(self.suffix.as_slice()));
        let bare = bare.unwrap_or(ids);
        Ok(self.wrap(truncate(bare, truncation, self.room()), Some(bare.len())))
    }

    /// Tokenizes all of `prompt` followed by `text`, and returns the tokens with their positions.
    /// Includes the special tokens around the text if `special` is true.
    ///
    /// Needs a hundred times the memory of the text.
    ///
    /// # Errors
    /// Returns [`EngineError::Tokenize`] if the tokenizer has no token for a part of the text.
    pub fn pieces(
        &self,
        prompt: &str,
        text: &str,
        special: bool,
    ) -> Result<Vec<TokenSpan>, EngineError> {
        let text = with_prompt(prompt, text);
        let tokens = self.library.encode_char_offsets(text.as_ref(), false);
        let tokens = tokens.map_err(EngineError::Tokenize)?;
        // Precompute the byte offset of each character, so that a token's position needs no search
        // through the text.
        let begins: Vec<usize> =
            text.char_indices().map(|(begin, _)| begin).chain([text.len()]).collect();
        let of_text =
            tokens.get_ids().iter().zip(tokens.get_offsets()).map(|(&id, &(start, stop))| {
                let bytes = begins.get(start).zip(begins.get(stop));
                let part =
                    bytes.and_then(|(&begin, &end)| text.get(begin..end)).unwrap_or_default();
                TokenSpan { id, text: part.to_owned(), characters: Some(start..stop) }
            });
        let around = |ids: &[u32]| -> Vec<TokenSpan> {
            let named = |&id: &u32| TokenSpan {
                id,
                text: self.library.id_to_token(id).unwrap_or_default(),
                characters: None,
            };
            if special { ids.iter().map(named).collect() } else { Vec::new() }
        };
        Ok(around(&self.prefix).into_iter().chain(of_text).chain(around(&self.suffix)).collect())
    }

    /// Decodes `ids` to text. Omits special tokens if `skip_special` is true.
    ///
    /// # Errors
    /// Returns [`EngineError::TokenOutOfRange`] for an id outside the vocabulary, and
    /// [`EngineError::Tokenize`] if the tokens do not form a text.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, EngineError> {
        self.check_range(ids)?;
        self.library.decode(ids, skip_special).map_err(EngineError::Tokenize)
    }

    fn check_range(&self, ids: &[u32]) -> Result<(), EngineError> {
        let vocabulary = self.vocabulary_size;
        match ids.iter().find(|&&id| id as usize >= vocabulary) {
            Some(&id) => Err(EngineError::TokenOutOfRange { id, vocabulary }),
            None => Ok(()),
        }
    }

    /// Puts the special tokens around the `ids` of a text that had `whole` tokens.
    fn wrap(&self, ids: &[u32], whole: Option<usize>) -> Tokens {
        Tokens {
            ids: [&self.prefix, ids, &self.suffix].concat(),
            whole: whole.map(|whole| self.around() + whole),
        }
    }

    /// Returns the number of special tokens around a text.
    pub fn around(&self) -> usize {
        self.prefix.len() + self.suffix.len()
    }
}

/// Returns the `room` of `ids` that `truncation` keeps.
fn truncate(ids: &[u32], truncation: Truncation, room: usize) -> &[u32] {
    match truncation {
        Truncation::Right => &ids[..ids.len().min(room)],
        Truncation::Left => &ids[ids.len().saturating_sub(room)..],
    }
}

fn with_prompt<'a>(prompt: &str, text: &'a str) -> Cow<'a, str> {
    match prompt {
        "" => Cow::Borrowed(text),
        _ => Cow::Owned([prompt, text].concat()),
    }
}

/// Returns the end of the first piece of `text` to count at once. Returns 0 only for an empty text.
fn end_of_piece(text: &str) -> usize {
    if text.len() <= COUNTED_BYTES {
        return text.len();
    }
    let end = text.floor_char_boundary(COUNTED_BYTES);
    match text[..end].rfind(char::is_whitespace) {
        Some(space) if space > 0 => space,
        _ => end,
    }
}

/// Returns the number of leading tokens of `beginning` that the whole text has, too: all tokens
/// before the word that extends beyond byte `settled_bytes`.
///
/// If no token extends so far, the last word is not settled either: between it and the cut there
/// may be control characters, which the normalizer drops, and the word may continue behind the cut.
fn settled_tokens(beginning: &Encoding, settled_bytes: usize) -> usize {
    let words = beginning.get_word_ids();
    let open = beginning.get_offsets().iter().position(|&(_, end)| end > settled_bytes);
    let Some(open) = open.or_else(|| words.len().checked_sub(1)) else { return 0 };
    let same_word = words[..open].iter().rev().take_while(|&&word| word == words[open]).count();
    open - same_word
}

/// Returns the number of leading tokens of `end` that may differ from those of the whole text: all
/// tokens up to the end of the word that begins before byte `settled_from`. The first word always
/// counts.
fn unsettled_tokens(end: &Encoding, settled_from: usize) -> usize {
    let words = end.get_word_ids();
    let begun = end.get_offsets().iter().take_while(|&&(start, _)| start < settled_from).count();
    // The first word is unsettled even if it begins later: between the cut and the word there may
    // be control characters, which the normalizer drops, and the word may have begun before the
    // cut.
    let begun = begun.max(1).min(words.len());
    let Some(&open) = words[..begun].last() else { return 0 };
    begun + words[begun..].iter().take_while(|&&word| word == open).count()
}

#[cfg(test)]
mod tests;
