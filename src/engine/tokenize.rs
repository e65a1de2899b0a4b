//! Texts become token ids, as the transformers library makes them for one text.
//!
//! Owns the special tokens around a text and the truncation: what `tokenizer.json` says of
//! truncation and padding is not used. Never pads.
//!
//! Invariants:
//! 1. The ids of a text are those of tokenizing all of it and truncating then, although a long text
//!    is cut first; see [`Tokenizer::encode_truncated`].
//! 2. [`Tokens::ids`] are at most `max_sequence_length`, each below [`Tokenizer::vocabulary_size`].

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
use super::quote::escaped;
use file::TokenizerFile;
pub(super) use memory::Memory;
use parts::Around;

/// Name of the file in messages.
const FILE: &str = "tokenizer.json";
/// Bytes of text per token at which the first cut is made. English has 4 to 5; a text of rarer
/// tokens is cut again further on, which costs a third more at worst.
const BYTES_PER_TOKEN: usize = 8;
/// How much further the next cut is.
const WIDENING: usize = 4;
/// Before this many bytes ahead of a cut, only the word that reaches so far can be other than in
/// the whole text: a cut may split a word, a grapheme before its normalisation, a run of spaces or
/// a special token, and all but the word (which is looked at as a whole) are shorter than this.
const CUT_MARGIN: usize = 1024;
/// The longest text, or part of one, that the library is given at once unless the model takes more tokens than that: it
/// takes a hundred times the memory.
const MOST_AT_ONCE: usize = 1 << 20;
/// Bytes of a text that are counted at once.
const COUNTED_BYTES: usize = 64 << 10;
/// Tokens of a vocabulary, where the number of word embeddings is not known.
const MOST_TOKENS: usize = 1 << 22;

/// Which end of a text that is too long is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Truncation {
    /// Its end.
    #[default]
    Right,
    /// Its beginning, with the prompt.
    Left,
}

/// A token and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its id.
    pub id: u32,
    /// The part of the text that it stands for; of a special token, its name.
    pub text: String,
    /// Where that part is, in characters; `None` for a special token around the text.
    pub characters: Option<Range<usize>>,
}

/// The tokens of one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids, with the special tokens around them.
    pub ids: Vec<u32>,
    /// How many the whole text has; `None` when its end was cut off unseen.
    pub whole: Option<usize>,
}

impl Tokens {
    /// Whether tokens beyond `max_sequence_length` were left out.
    pub fn truncated(&self) -> bool {
        self.whole != Some(self.ids.len())
    }
}

/// A model's tokenizer. Shared between threads; holds no state that a call changes.
pub struct Tokenizer {
    library: tokenizers::Tokenizer,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    /// Tokens of a text that fit beside the special ones; at least one.
    room: usize,
    vocabulary_size: usize,
    cut_margin: usize,
}

/// The file is no tokenizer, in the words of a library, which may repeat the file's.
fn unreadable(source: impl fmt::Display) -> EngineError {
    EngineError::File { file: FILE.to_owned(), source: escaped(source).into() }
}

fn mismatch(what: impl fmt::Display) -> EngineError {
    EngineError::Mismatch(format!("{FILE}: {what}"))
}

impl fmt::Debug for Tokenizer {
    /// Without the vocabulary, which would fill pages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocabulary_size", &self.vocabulary_size())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads the tokenizer in the bytes of a `tokenizer.json`, for texts of at most `max_sequence_length`
    /// tokens.
    ///
    /// # Errors
    /// When the bytes are no tokenizer, ask for a part that Caxton does not run, or its special tokens leave no room
    /// for a text.
    pub fn from_bytes(bytes: &[u8], max_sequence_length: usize) -> Result<Self, EngineError> {
        Self::for_rows(bytes, max_sequence_length, MOST_TOKENS)
    }

    /// Reads a tokenizer as [`Tokenizer::from_bytes`] does, for a table of `rows` word embeddings.
    ///
    /// # Errors
    /// Those of [`Tokenizer::from_bytes`], and when it has more tokens than `rows`: memory is taken for `rows` at most.
    pub(super) fn for_rows(
        bytes: &[u8],
        max_sequence_length: usize,
        rows: usize,
    ) -> Result<Self, EngineError> {
        Self::new(file::read(bytes, rows)?, max_sequence_length)
    }

    /// Reads a tokenizer as [`Tokenizer::for_rows`] does, for texts that have no special tokens around them: their ids
    /// may be none.
    ///
    /// # Errors
    /// Those of [`Tokenizer::for_rows`].
    pub(super) fn without_special_tokens(
        bytes: &[u8],
        max_sequence_length: usize,
        rows: usize,
    ) -> Result<Self, EngineError> {
        let file = file::read(bytes, rows)?;
        Self::new(TokenizerFile { around: Around::default(), ..file }, max_sequence_length)
    }

    fn new(file: TokenizerFile, max_sequence_length: usize) -> Result<Self, EngineError> {
        let TokenizerFile { library, around, ids: vocabulary_size, longest_added } = file;
        let Around { prefix, suffix } = around;
        let around = prefix.len() + suffix.len();
        if around >= max_sequence_length {
            return Err(mismatch(format!(
                "{around} special tokens around a text leave no room for it in \
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

    /// Number of tokens in the vocabulary: every id is below it.
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    /// The tokens of `prompt` followed by `text`, as one text, whose end is left out when it is too long.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode_truncated`].
    pub fn encode(&self, prompt: &str, text: &str) -> Result<Tokens, EngineError> {
        self.encode_truncated(prompt, text, Truncation::Right)
    }

    /// The tokens of `prompt` followed by `text`, as one text, without what is too long on one side.
    ///
    /// Of a long text only the part at the kept side is tokenized: one in which more tokens than fit lie
    /// wholly beyond what the cut can have changed. When it has not enough, a longer one is taken. So
    /// the cost is that of the text which matters, except that a word without end matters wholly, up to a mebibyte.
    ///
    /// # Errors
    /// [`EngineError::Tokenize`] when the tokenizer has no token for a part of the text, [`EngineError::Endless`] when
    /// so much of it is one word, or none, that the tokens at the kept side cannot be told.
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
            // Not `encode_fast`, which does not tell where in the text a token lies.
            let tokens = self.library.encode(part, false).map_err(EngineError::Tokenize)?;
            let settled = match truncation {
                Truncation::Right => {
                    0..settled_tokens(&tokens, part.len().saturating_sub(self.cut_margin))
                }
                Truncation::Left => unsettled_tokens(&tokens, self.cut_margin)..tokens.len(),
            };
            // One more than fits, to know that the text is truncated.
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

    /// How many tokens `prompt` followed by `text` has as one text, special tokens included.
    ///
    /// The library takes a hundred times the size of what it tokenizes at once, so that a text longer
    /// than [`COUNTED_BYTES`] is counted piece by piece, each ending before a space: a piece may differ
    /// from its part of the whole by a token.
    ///
    /// # Errors
    /// [`EngineError::Tokenize`] when the tokenizer has no token for a part of the text.
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

    /// Counts the first piece of a text that is not empty: its tokens, without special ones, and its length in bytes.
    ///
    /// # Errors
    /// [`EngineError::Tokenize`] when the tokenizer has no token for a part of the piece.
    pub fn count_piece(&self, text: &str) -> Result<(usize, usize), EngineError> {
        let piece = &text[..end_of_piece(text)];
        let tokens = self.library.encode_fast(piece, false).map_err(EngineError::Tokenize)?;
        Ok((tokens.len(), piece.len()))
    }

    /// The tokens that a client sent as `ids`, with special tokens around them unless it has sent
    /// those too.
    ///
    /// # Errors
    /// [`EngineError::TokenOutOfRange`] for an id that the vocabulary does not have.
    pub fn encode_ids(&self, ids: &[u32], truncation: Truncation) -> Result<Tokens, EngineError> {
        self.check_range(ids)?;
        let bare = ids
            .strip_prefix(self.prefix.as_slice())
            .and_then(|ids| ids.strip_suffix(self.suffix.as_slice()));
        Ok(self.wrap(bare.unwrap_or(ids), truncation))
    }

    /// The tokens of all of `prompt` followed by `text`, with where they come from; with `special`, those
    /// around a text as well.
    ///
    /// Takes a hundred times the memory of the text.
    ///
    /// # Errors
    /// [`EngineError::Tokenize`] when the tokenizer has no token for a part of the text.
    pub fn pieces(
        &self,
        prompt: &str,
        text: &str,
        special: bool,
    ) -> Result<Vec<Piece>, EngineError> {
        let text = with_prompt(prompt, text);
        let tokens = self.library.encode_char_offsets(text.as_ref(), false);
        let tokens = tokens.map_err(EngineError::Tokenize)?;
        // Where each character begins, so that the cost is not that of a search for every token.
        let begins: Vec<usize> =
            text.char_indices().map(|(begin, _)| begin).chain([text.len()]).collect();
        let of_text =
            tokens.get_ids().iter().zip(tokens.get_offsets()).map(|(&id, &(start, stop))| {
                let bytes = begins.get(start).zip(begins.get(stop));
                let part =
                    bytes.and_then(|(&begin, &end)| text.get(begin..end)).unwrap_or_default();
                Piece { id, text: part.to_owned(), characters: Some(start..stop) }
            });
        let around = |ids: &[u32]| -> Vec<Piece> {
            let named = |&id: &u32| Piece {
                id,
                text: self.library.id_to_token(id).unwrap_or_default(),
                characters: None,
            };
            if special { ids.iter().map(named).collect() } else { Vec::new() }
        };
        Ok(around(&self.prefix).into_iter().chain(of_text).chain(around(&self.suffix)).collect())
    }

    /// The text that `ids` stand for, as the tokenizer puts tokens together; without special tokens if
    /// `skip_special`.
    ///
    /// # Errors
    /// [`EngineError::TokenOutOfRange`] for an id that the vocabulary does not have,
    /// [`EngineError::Tokenize`] when the tokens make no text.
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

    /// How many special tokens lie around a text.
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

/// Where the first piece of `text` ends that is counted at once; not 0 unless the text is empty.
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

/// How many tokens of `beginning` are those of the whole text: all before the word that reaches
/// beyond byte `settled_bytes`.
///
/// When none does, all before the last word: control characters that the normaliser drops may lie
/// between it and the cut, and behind the cut its end.
fn settled_tokens(beginning: &Encoding, settled_bytes: usize) -> usize {
    let words = beginning.get_word_ids();
    let open = beginning.get_offsets().iter().position(|&(_, end)| end > settled_bytes);
    let Some(open) = open.or_else(|| words.len().checked_sub(1)) else { return 0 };
    let same_word = words[..open].iter().rev().take_while(|&&word| word == words[open]).count();
    open - same_word
}

/// How many tokens of `end` may be other than those of the whole text: all up to the end of the word
/// that begins before byte `settled_from`, or of the first word.
fn unsettled_tokens(end: &Encoding, settled_from: usize) -> usize {
    let words = end.get_word_ids();
    let begun = end.get_offsets().iter().take_while(|&&(start, _)| start < settled_from).count();
    // When none does, control characters that the normaliser drops may lie between the cut and the first
    // word, which goes on before them.
    let begun = begun.max(1).min(words.len());
    let Some(&open) = words[..begun].last() else { return 0 };
    begun + words[begun..].iter().take_while(|&&word| word == open).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::{TruncationDirection, TruncationParams};

    use super::*;

    const BERT: &[u8] = include_bytes!("../../tests/golden/tiny-bert-mean/tokenizer.json");
    const ROBERTA: &[u8] = include_bytes!("../../tests/golden/tiny-roberta/tokenizer.json");
    const XLM_ROBERTA: &[u8] = include_bytes!("../../tests/golden/tiny-xlm-roberta/tokenizer.json");
    const ALL: [(&str, &[u8]); 3] =
        [("bert", BERT), ("roberta", ROBERTA), ("xlm-roberta", XLM_ROBERTA)];
    const MAX: usize = 24;

    /// The library's own answer: the whole text, truncated by it.
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
    fn special_tokens_are_those_of_the_post_processor() {
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
    fn without_special_tokens_a_text_may_have_none_at_all() {
        let tokenizer = Tokenizer::without_special_tokens(BERT, 2, MOST_TOKENS).unwrap();
        assert!(tokenizer.encode("", "").unwrap().ids.is_empty());
        let with = Tokenizer::from_bytes(BERT, MAX).unwrap().encode("", "a a").unwrap().ids;
        let ids = |text: &str| tokenizer.encode("", text).unwrap();
        assert_eq!(ids("a a"), Tokens { ids: with[1..3].to_vec(), whole: Some(2) });
        assert!(ids("a a a").truncated());
        assert_eq!(tokenizer.encode_ids(&[2, 3], Truncation::Right).unwrap().ids, [2, 3]);
    }

    #[test]
    fn a_prompt_is_part_of_the_text() {
        for (name, bytes) in ALL {
            let tokenizer = Tokenizer::from_bytes(bytes, MAX).unwrap();
            let prompted = tokenizer.encode("query: ", "a fox").unwrap();
            assert_eq!(prompted, whole(bytes, "query: a fox"), "{name}");
        }
    }

    #[test]
    fn truncation_is_told_exactly() {
        let tokenizer = Tokenizer::from_bytes(BERT, 4).unwrap();
        let ids = |text: &str| tokenizer.encode("", text).unwrap();
        assert_eq!((ids("a a").ids.len(), ids("a a").truncated()), (4, false));
        assert_eq!((ids("a a a").ids.len(), ids("a a a").truncated()), (4, true));
        // Long enough to be cut, and yet not truncated: spaces are no tokens.
        let spaces = " ".repeat(100_000);
        assert!(!ids(&format!("a{spaces}a")).truncated());
        assert!(ids(&format!("a{spaces}a{spaces}a")).truncated());
        // Control characters are dropped: the word goes on behind them.
        let controls = "\u{1}".repeat(5_000);
        let joined = ids(&format!("a quick{controls}brown"));
        assert_eq!(joined, ids("a quickbrown"));
    }

    #[test]
    fn ids_of_a_client_are_wrapped_once_checked_and_truncated() {
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
    fn pieces_lie_where_their_text_is() {
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
    fn a_text_is_put_together_of_its_tokens() {
        let tokenizer = Tokenizer::from_bytes(BERT, MAX).unwrap();
        let ids = tokenizer.encode("", "the quick fox").unwrap().ids;
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "the quick fox");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "[CLS] the quick fox [SEP]");
        assert_eq!(tokenizer.decode(&[], true).unwrap(), "");
    }

    #[test]
    fn a_tokenizer_that_cannot_serve_is_refused() {
        let refusal =
            |bytes: &[u8], max| Tokenizer::from_bytes(bytes, max).err().unwrap().to_string();
        assert_eq!(refusal(b"{}", MAX), "tokenizer.json cannot be read");
        assert_eq!(
            refusal(BERT, 2),
            "tokenizer.json: 2 special tokens around a text leave no room for it in \
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
    fn truncation_and_padding_of_the_file_are_not_used() {
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
    fn a_long_text_is_cut_before_it_is_tokenized() {
        // Milliseconds; tokenizing all of it would take minutes, and memory of a hundred times its
        // size.
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
    fn what_has_no_words_is_refused_before_it_takes_a_hundred_times_its_memory() {
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

    /// Pieces that a cut, a normaliser or a word splitter may trip over.
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
        fn a_cut_text_has_the_tokens_of_the_whole(
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
        fn pieces_have_the_ids_of_the_whole_and_lie_in_the_text(
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

        // Every cut, not only those that `encode` makes, with a margin that the pieces keep.
        #[test]
        fn tokens_before_any_cut_are_settled(
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
