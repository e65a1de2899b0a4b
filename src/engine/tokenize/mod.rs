//! Converts texts to token ids, as the transformers library does for a single text.
//!
//! This module adds the special tokens around a text and truncates it. It ignores the truncation
//! and padding settings in `tokenizer.json`, and never pads.
//!
//! Invariants:
//! 1. The ids of a text equal those of tokenizing the whole text and truncating the result,
//!    although a long text is cut first; see [`Tokenizer::encode_truncated`].
//! 2. [`Tokens::ids`] has at most `max_sequence_length` ids, each below
//!    [`Tokenizer::vocabulary_size`].

mod charsmap;
mod file;
#[cfg(test)]
mod hostile;
mod memory;
mod model;
mod parts;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use tokenizers::Encoding;

use super::EngineError;
use super::quote::escape;
use file::TokenizerFile;
pub(super) use memory::TokenizerMemory;
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

/// Tokens of one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids, including the special tokens around the text.
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

/// Tokenizer of a model. Calls do not change it, so threads may share it.
pub struct Tokenizer {
    library: tokenizers::Tokenizer,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    /// Maximum number of tokens of a text, without the special ones; at least one.
    room: usize,
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
        let TokenizerFile { library, around, ids: vocabulary_size, longest_added } = file;
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
        Ok(Self {
            library,
            prefix,
            suffix,
            room: max_sequence_length - around,
            vocabulary_size,
            cut_margin: CUT_MARGIN + longest_added,
        })
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
        let text = with_prompt(prompt, text);
        let mut cut = self.room.saturating_mul(BYTES_PER_TOKEN).saturating_add(self.cut_margin);
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
            if settled.len() > self.room {
                let ids = &tokens.get_ids()[settled];
                return Ok(Tokens { whole: None, ..self.wrap(ids, truncation) });
            }
            if cut == most {
                return Err(EngineError::Endless { bytes: text.len(), most });
            }
            cut = cut.saturating_mul(WIDENING).min(most);
        }
        let whole =
            self.library.encode_fast(text.as_ref(), false).map_err(EngineError::Tokenize)?;
        Ok(self.wrap(whole.get_ids(), truncation))
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
        Ok(self.wrap(bare.unwrap_or(ids), truncation))
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

    fn wrap(&self, ids: &[u32], truncation: Truncation) -> Tokens {
        let kept = match truncation {
            Truncation::Right => &ids[..ids.len().min(self.room)],
            Truncation::Left => &ids[ids.len().saturating_sub(self.room)..],
        };
        Tokens {
            ids: [&self.prefix, kept, &self.suffix].concat(),
            whole: Some(self.around() + ids.len()),
        }
    }

    /// Returns the number of special tokens around a text.
    pub fn around(&self) -> usize {
        self.prefix.len() + self.suffix.len()
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
mod tests {
    use proptest::prelude::*;
    use tokenizers::{TruncationDirection, TruncationParams};

    use super::*;

    const BERT: &[u8] = include_bytes!("../../../tests/golden/tiny-bert-mean/tokenizer.json");
    const ROBERTA: &[u8] = include_bytes!("../../../tests/golden/tiny-roberta/tokenizer.json");
    const XLM_ROBERTA: &[u8] =
        include_bytes!("../../../tests/golden/tiny-xlm-roberta/tokenizer.json");
    const ALL: [(&str, &[u8]); 3] =
        [("bert", BERT), ("roberta", ROBERTA), ("xlm-roberta", XLM_ROBERTA)];
    const MAX: usize = 24;

    /// Returns the tokens of the library for the whole text, truncated by the library.
    fn whole(bytes: &[u8], text: &str) -> Tokens {
        whole_truncated(bytes, text, TruncationDirection::Right)
    }

    fn whole_truncated(bytes: &[u8], text: &str, direction: TruncationDirection) -> Tokens {
        let mut library = tokenizers::Tokenizer::from_bytes(bytes).unwrap();
        let all = library.encode(text, true).unwrap().len();
        let truncation = TruncationParams { max_length: MAX, direction, ..Default::default() };
        library.with_truncation(Some(truncation)).unwrap();
        let ids = library.encode(text, true).unwrap().get_ids().to_vec();
        Tokens { ids, whole: Some(all) }
    }

    #[test]
    fn special_tokens_come_from_post_processor() {
        for (bytes, prefix, suffix) in [(BERT, 2, 3), (ROBERTA, 0, 2), (XLM_ROBERTA, 0, 2)] {
            let tokenizer = Tokenizer::from_bytes(bytes, MAX).unwrap();
            assert_eq!(
                (&tokenizer.prefix[..], &tokenizer.suffix[..]),
                (&[prefix][..], &[suffix][..])
            );
            assert_eq!(tokenizer.encode("", "").unwrap().ids, [prefix, suffix]);
        }
    }

    #[test]
    fn special_tokens_can_be_omitted() {
        let tokenizer = Tokenizer::without_special_tokens(BERT, 2, MOST_TOKENS).unwrap();
        assert!(tokenizer.encode("", "").unwrap().ids.is_empty());
        let with = Tokenizer::from_bytes(BERT, MAX).unwrap().encode("", "a a").unwrap().ids;
        let ids = |text: &str| tokenizer.encode("", text).unwrap();
        assert_eq!(ids("a a"), Tokens { ids: with[1..3].to_vec(), whole: Some(2) });
        assert!(ids("a a a").truncated());
        assert_eq!(tokenizer.encode_ids(&[2, 3], Truncation::Right).unwrap().ids, [2, 3]);
    }

    #[test]
    fn prompt_is_tokenized_with_the_text() {
        for (name, bytes) in ALL {
            let tokenizer = Tokenizer::from_bytes(bytes, MAX).unwrap();
            let prompted = tokenizer.encode("query: ", "a fox").unwrap();
            assert_eq!(prompted, whole(bytes, "query: a fox"), "{name}");
        }
    }

    #[test]
    fn truncation_is_reported_exactly() {
        let tokenizer = Tokenizer::from_bytes(BERT, 4).unwrap();
        let ids = |text: &str| tokenizer.encode("", text).unwrap();
        assert_eq!((ids("a a").ids.len(), ids("a a").truncated()), (4, false));
        assert_eq!((ids("a a a").ids.len(), ids("a a a").truncated()), (4, true));
        // The text is long enough to be cut, but not truncated, because spaces are not tokens.
        let spaces = " ".repeat(100_000);
        assert!(!ids(&format!("a{spaces}a")).truncated());
        assert!(ids(&format!("a{spaces}a{spaces}a")).truncated());
        // The normalizer drops control characters, so the word continues behind them.
        let controls = "\u{1}".repeat(5_000);
        let joined = ids(&format!("a quick{controls}brown"));
        assert_eq!(joined, ids("a quickbrown"));
    }

    #[test]
    fn client_ids_are_wrapped_checked_and_truncated() {
        let tokenizer = Tokenizer::from_bytes(BERT, 5).unwrap();
        let cases: [(&[u32], &[u32], bool); 7] = [
            (&[7, 8], &[2, 7, 8, 3], false),
            (&[2, 7, 8, 3], &[2, 7, 8, 3], false),
            (&[], &[2, 3], false),
            (&[2, 3], &[2, 3], false),
            (&[2, 7], &[2, 2, 7, 3], false),
            (&[5, 6, 7, 8], &[2, 5, 6, 7, 3], true),
            (&[2, 5, 6, 7, 8, 3], &[2, 5, 6, 7, 3], true),
        ];
        for (ids, expected, truncated) in cases {
            let tokens = tokenizer.encode_ids(ids, Truncation::Right).unwrap();
            assert_eq!((&tokens.ids[..], tokens.truncated()), (expected, truncated), "{ids:?}");
        }
        let end = tokenizer.encode_ids(&[2, 5, 6, 7, 8, 3], Truncation::Left).unwrap();
        assert_eq!((&end.ids[..], end.whole), (&[2, 6, 7, 8, 3][..], Some(6)));
        let size = u32::try_from(tokenizer.vocabulary_size()).unwrap();
        assert!(tokenizer.encode_ids(&[size - 1], Truncation::Right).is_ok());
        let error = tokenizer.encode_ids(&[7, size], Truncation::Right).unwrap_err().to_string();
        let message = format!("token id {size} is outside the model's vocabulary of {size} tokens");
        assert_eq!(error, message);
        assert_eq!(tokenizer.decode(&[7, size], true).unwrap_err().to_string(), message);
    }

    #[test]
    fn pieces_have_character_ranges() {
        let tokenizer = Tokenizer::from_bytes(BERT, MAX).unwrap();
        let text = "Äpfel, the fox 日";
        let pieces = tokenizer.pieces("", text, true).unwrap();
        let ids: Vec<u32> = pieces.iter().map(|piece| piece.id).collect();
        assert_eq!(ids, whole(BERT, text).ids);
        let (first, last) = (&pieces[0], &pieces[pieces.len() - 1]);
        assert_eq!((first.text.as_str(), &first.characters), ("[CLS]", &None));
        assert_eq!((last.text.as_str(), &last.characters), ("[SEP]", &None));
        let bare = tokenizer.pieces("", text, false).unwrap();
        assert_eq!(bare, pieces[1..pieces.len() - 1]);
        let the = bare.iter().find(|piece| piece.text == "the").unwrap();
        assert_eq!(the.characters, Some(7..10));
        let prompted = tokenizer.pieces("a ", text, false).unwrap();
        assert_eq!(
            prompted.iter().find(|piece| piece.text == "the").unwrap().characters,
            Some(9..12)
        );
    }

    #[test]
    fn tokens_decode_to_text() {
        let tokenizer = Tokenizer::from_bytes(BERT, MAX).unwrap();
        let ids = tokenizer.encode("", "the quick fox").unwrap().ids;
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "the quick fox");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "[CLS] the quick fox [SEP]");
        assert_eq!(tokenizer.decode(&[], true).unwrap(), "");
    }

    #[test]
    fn unusable_tokenizer_is_refused() {
        let refusal =
            |bytes: &[u8], max| Tokenizer::from_bytes(bytes, max).err().unwrap().to_string();
        assert_eq!(refusal(b"{}", MAX), "tokenizer.json cannot be read");
        assert_eq!(
            refusal(BERT, 2),
            "tokenizer.json: 2 special tokens around a text leave no token for it in \
             max_sequence_length 2"
        );
        let change = |from: &str, to: &str| {
            let json = std::str::from_utf8(XLM_ROBERTA).unwrap();
            let mut json: serde_json::Value = serde_json::from_str(json).unwrap();
            let single = json["post_processor"].to_string();
            assert!(single.contains(from), "{single}");
            json["post_processor"] = serde_json::from_str(&single.replacen(from, to, 1)).unwrap();
            json.to_string()
        };
        assert_eq!(
            refusal(change("\"ids\":[2]", "\"ids\":[999]").as_bytes(), MAX),
            "tokenizer.json: special token 999 is outside the vocabulary of 245 tokens"
        );
        let single = r#""single":["#;
        assert_eq!(
            refusal(
                change(single, r#""single":[{"Sequence":{"id":"A","type_id":0}},"#).as_bytes(),
                MAX
            ),
            "tokenizer.json: the post-processor does not take a single text exactly once"
        );
        assert_eq!(
            refusal(
                change(single, r#""single":[{"SpecialToken":{"id":"</s>","type_id":1}},"#)
                    .as_bytes(),
                MAX
            ),
            "tokenizer.json: the post-processor gives a single text token types other than 0"
        );
    }

    #[test]
    fn truncation_and_padding_settings_are_ignored() {
        let mut library = tokenizers::Tokenizer::from_bytes(BERT).unwrap();
        library
            .with_padding(Some(tokenizers::PaddingParams {
                strategy: tokenizers::PaddingStrategy::Fixed(64),
                ..Default::default()
            }))
            .with_truncation(Some(TruncationParams { max_length: 3, ..Default::default() }))
            .unwrap();
        let bytes = library.to_string(false).unwrap();
        let tokenizer = Tokenizer::from_bytes(bytes.as_bytes(), MAX).unwrap();
        let text = "the quick brown fox";
        assert_eq!(tokenizer.encode("", text).unwrap(), whole(BERT, text));
    }

    #[test]
    fn long_text_is_cut_before_tokenization() {
        // This takes milliseconds. Tokenizing the whole text would take minutes and a hundred times
        // its memory.
        let text = "the quick brown fox ".repeat(4_000_000);
        let tokenizer = Tokenizer::from_bytes(BERT, MAX).unwrap();
        let started = std::time::Instant::now();
        let tokens = tokenizer.encode("", &text).unwrap();
        assert!(started.elapsed() < std::time::Duration::from_secs(10));
        assert_eq!(tokens.ids, whole(BERT, &text[..2000]).ids);
        assert_eq!(tokens.whole, None);
        let end = tokenizer.encode_truncated("", &text, Truncation::Left).unwrap();
        assert!(started.elapsed() < std::time::Duration::from_secs(10));
        let expected = whole_truncated(BERT, &text[..2000], TruncationDirection::Left);
        assert_eq!((end.ids, end.whole), (expected.ids, None));
        assert_eq!(tokenizer.count("", &text[..2_000_000]).unwrap(), 400_002);
    }

    #[test]
    fn overlong_text_without_words_is_refused() {
        let tokenizer = Tokenizer::from_bytes(BERT, MAX).unwrap();
        for text in ["a", " ", "\0"].map(|character| character.repeat(MOST_AT_ONCE + 1)) {
            for truncation in [Truncation::Right, Truncation::Left] {
                let error = tokenizer.encode_truncated("", &text, truncation).unwrap_err();
                let bytes = text.len();
                assert!(
                    matches!(error, EngineError::Endless { bytes: told, most: MOST_AT_ONCE } if told == bytes)
                );
            }
        }
        assert_eq!(tokenizer.encode("", &"a".repeat(100_000)).unwrap().ids.len(), 3);
    }

    /// Returns a strategy for pieces of text that may confuse a cut, a normalizer or a word
    /// splitter.
    fn piece() -> impl Strategy<Value = String> {
        let fixed = prop::sample::select(vec![
            " ",
            "  ",
            "\n",
            "\t",
            "the",
            "fox",
            "ing",
            ".",
            ",",
            "'s",
            "don't",
            "[SEP]",
            "[CLS]",
            "</s>",
            "<mask>",
            "<",
            "[",
            "e\u{301}",
            "\u{301}",
            "é",
            "\u{1}",
            "\u{200b}",
            "日本語",
            "中",
            "👩\u{200d}🔬",
            "🚀",
            "🇵🇱",
            "½",
            "ﬁ",
            "ＡＢ",
            "각",
            "각",
            "مرحبا",
            "ß",
            "İ",
            "Σ",
            "0",
            "42",
            "\u{a0}",
        ]);
        prop_oneof![
            8 => fixed.prop_map(str::to_owned),
            1 => "[a-z]{1,12}",
            1 => any::<char>().prop_map(String::from),
            1 => ("[a-z ]", 1_usize..900).prop_map(|(piece, times)| piece.repeat(times)),
        ]
    }

    proptest! {
        #[test]
        fn cutting_does_not_change_tokens(
            pieces in prop::collection::vec(piece(), 0..900),
        ) {
            let text = pieces.concat();
            for (name, bytes) in ALL {
                let tokenizer = Tokenizer::from_bytes(bytes, MAX).unwrap();
                let tokens = tokenizer.encode("", &text).unwrap();
                let whole = whole(bytes, &text);
                prop_assert_eq!(tokens.truncated(), whole.truncated(), "{}", name);
                prop_assert_eq!(tokenizer.count("", &text).unwrap(), whole.whole.unwrap(), "{}", name);
                prop_assert_eq!(tokens.ids, whole.ids, "{}", name);
                let end = tokenizer.encode_truncated("", &text, Truncation::Left).unwrap();
                let whole = whole_truncated(bytes, &text, TruncationDirection::Left);
                prop_assert_eq!(end.truncated(), whole.truncated(), "{}", name);
                prop_assert_eq!(end.ids, whole.ids, "{}", name);
            }
        }

        #[test]
        fn pieces_match_token_ids_and_text(
            pieces in prop::collection::vec(piece(), 0..60),
        ) {
            let text = pieces.concat();
            let length = text.chars().count();
            for (name, bytes) in ALL {
                let tokenizer = Tokenizer::from_bytes(bytes, MAX).unwrap();
                let found = tokenizer.pieces("", &text, true).unwrap();
                let library = tokenizers::Tokenizer::from_bytes(bytes).unwrap();
                let expected = library.encode(text.as_str(), true).unwrap();
                let ids: Vec<u32> = found.iter().map(|piece| piece.id).collect();
                prop_assert_eq!(&ids[..], expected.get_ids(), "{}", name);
                for piece in found {
                    if let Some(Range { start, end }) = piece.characters {
                        prop_assert!(start <= end && end <= length, "{}: {:?}", name, piece.text);
                        let part: String = text.chars().skip(start).take(end - start).collect();
                        prop_assert_eq!(part, piece.text, "{}", name);
                    }
                }
            }
        }

        // Tests every cut, not only those that `encode` makes. The margin is longer than every
        // piece that a cut may split.
        #[test]
        fn settled_tokens_survive_any_cut(
            pieces in prop::collection::vec(piece(), 0..120),
            cut in any::<prop::sample::Index>(),
        ) {
            const MARGIN: usize = 32;
            let text = pieces.concat();
            let end = text.floor_char_boundary(cut.index(text.len() + 1));
            for (name, bytes) in ALL {
                let library = tokenizers::Tokenizer::from_bytes(bytes).unwrap();
                let beginning = library.encode(&text[..end], false).unwrap();
                let settled = settled_tokens(&beginning, end.saturating_sub(MARGIN));
                let whole = library.encode(text.as_str(), false).unwrap();
                prop_assert!(
                    whole.get_ids().starts_with(&beginning.get_ids()[..settled]),
                    "{}: {} of {:?}", name, settled, &text[..end]
                );
                let rest = library.encode(&text[end..], false).unwrap();
                let unsettled = unsettled_tokens(&rest, MARGIN);
                prop_assert!(
                    whole.get_ids().ends_with(&rest.get_ids()[unsettled..]),
                    "{}: from {} of {:?}", name, unsettled, &text[end..]
                );
            }
        }
    }
}
