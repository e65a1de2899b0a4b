//! Pairs of texts: a query with a document, as a classifier reads them.
//!
//! The tokens of both texts are joined by the pair template of the tokenizer. A pair that is too
//! long loses tokens of the longer text first, as with the strategy `longest_first` of the
//! library: <https://github.com/huggingface/tokenizers/blob/v0.22.0/tokenizers/src/utils/truncation.rs>.
//!
//! Invariant: the ids of a pair equal those of the library, except that where both texts alone are
//! longer than the model reads and the room is odd, the other text may have the odd token. The
//! library then compares the tokens of a part of each text, whose end depends on its version. Here
//! the whole texts decide, or the second one if both are so long that they are cut before they are
//! tokenized.

use super::parts::PairTemplate;
use super::{Tokenizer, Tokens, Truncation, file, mismatch, truncate};
use crate::engine::EngineError;
use crate::engine::token_type::{id_and_type, with_type};

/// Special tokens of a pair, with their token types, and the token types of the texts.
pub(super) struct PairTokens(PairTemplate);

impl PairTokens {
    /// Takes the template of a tokenizer with `vocabulary` ids. Sets all token types to 0 unless
    /// the model `has_types`.
    fn new(
        template: PairTemplate,
        vocabulary: usize,
        has_types: bool,
    ) -> Result<Self, EngineError> {
        let outside = |token: &u32| id_and_type(*token).0 as usize >= vocabulary;
        if let Some(token) = template.specials().find(outside) {
            let id = id_and_type(token).0;
            return Err(mismatch(format!(
                "special token {id} is outside the vocabulary of {vocabulary} tokens"
            )));
        }
        if has_types {
            return Ok(Self(template));
        }
        let untyped = |tokens: Vec<u32>| tokens.into_iter().map(|t| id_and_type(t).0).collect();
        let PairTemplate { before, between, after, .. } = template;
        Ok(Self(PairTemplate {
            before: untyped(before),
            between: untyped(between),
            after: untyped(after),
            ..PairTemplate::default()
        }))
    }

    /// Returns the number of special tokens.
    pub(super) fn special(&self) -> usize {
        self.0.specials().count()
    }
}

impl Tokenizer {
    /// Reads a tokenizer like [`Tokenizer::for_rows`], for a model that scores pairs of texts.
    /// `has_types` states whether the model distinguishes the texts of a pair by their
    /// [token types](crate::engine::token_type).
    ///
    /// # Errors
    /// Returns the errors of [`Tokenizer::for_rows`], and an error if the tokenizer has no usable
    /// template for pairs.
    pub(in crate::engine) fn for_pairs(
        bytes: &[u8],
        max_sequence_length: usize,
        rows: usize,
        has_types: bool,
    ) -> Result<Self, EngineError> {
        let mut file = file::read(bytes, rows)?;
        let template = std::mem::replace(&mut file.pair, Ok(PairTemplate::default()))?;
        let pair = PairTokens::new(template, file.ids, has_types)?;
        let special = pair.special();
        if special >= max_sequence_length {
            return Err(mismatch(format!(
                "{special} special tokens of a pair leave no token for its texts in \
                 max_sequence_length {max_sequence_length}"
            )));
        }
        Ok(Self { pair: Some(pair), ..Self::new(file, max_sequence_length)? })
    }

    /// Returns the number of special tokens of a pair; 0 if the model does not score pairs.
    pub fn special_of_pair(&self) -> usize {
        self.pair.as_ref().map_or(0, PairTokens::special)
    }

    /// Tokenizes one text of a pair, without special tokens. The result has at most as many tokens
    /// as a pair may keep of one text.
    ///
    /// # Errors
    /// Returns the errors of [`Tokenizer::encode_truncated`].
    pub fn encode_part(&self, text: &str, truncation: Truncation) -> Result<Tokens, EngineError> {
        self.encode_bare("", text, truncation, self.room_of_pair())
    }

    /// Joins the tokens of two texts, as [`Tokenizer::encode_part`] returns them, to a pair.
    /// Truncates each text on the given side if the pair is too long.
    ///
    /// # Errors
    /// Returns [`EngineError::NoScores`] if the model does not score pairs.
    pub fn join(
        &self,
        first: &Tokens,
        second: &Tokens,
        truncation: Truncation,
    ) -> Result<Tokens, EngineError> {
        let PairTokens(template) = self.pair.as_ref().ok_or(EngineError::NoScores)?;
        let length = |text: &Tokens| text.whole.unwrap_or(usize::MAX);
        let [of_first, of_second] = shares([length(first), length(second)], self.room_of_pair());
        let special = template.before.len() + template.between.len() + template.after.len();
        let mut ids = Vec::with_capacity(special + first.ids.len() + second.ids.len());
        ids.extend(&template.before);
        let first_text = truncate(&first.ids, truncation, of_first).iter();
        ids.extend(first_text.map(|&id| with_type(id, template.first_type)));
        ids.extend(&template.between);
        let second_text = truncate(&second.ids, truncation, of_second).iter();
        ids.extend(second_text.map(|&id| with_type(id, template.second_type)));
        ids.extend(&template.after);
        let texts = first.whole.zip(second.whole);
        Ok(Tokens { ids, whole: texts.map(|(first, second)| special + first + second) })
    }

    /// Tokenizes a pair of texts, and truncates both at the end if the pair is too long.
    ///
    /// # Errors
    /// Returns the errors of [`Tokenizer::encode_part`] and of [`Tokenizer::join`].
    pub fn encode_pair(&self, first: &str, second: &str) -> Result<Tokens, EngineError> {
        let part = |text| self.encode_part(text, Truncation::Right);
        self.join(&part(first)?, &part(second)?, Truncation::Right)
    }

    /// Returns the maximum number of tokens of the two texts of a pair together.
    fn room_of_pair(&self) -> usize {
        self.max_sequence_length().saturating_sub(self.special_of_pair())
    }
}

/// Returns how many tokens each of two texts of `lengths` keeps if both together have at most
/// `room`. Texts that fit keep all.
fn shares(lengths: [usize; 2], room: usize) -> [usize; 2] {
    let [first, second] = lengths;
    if first.saturating_add(second) <= room {
        return lengths;
    }
    let shorter = first.min(second);
    let half = room / 2;
    // The longer text gets what the shorter one leaves, or half of the room, rounded up.
    let (shorter, longer) =
        if shorter <= half { (shorter, room - shorter) } else { (half, room - half) };
    if first > second { [longer, shorter] } else { [shorter, longer] }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::{TruncationDirection, TruncationParams};

    use super::*;

    const BERT: &[u8] =
        include_bytes!("../../../tests/golden/tiny-bert-cross-encoder/tokenizer.json");
    const XLM_ROBERTA: &[u8] =
        include_bytes!("../../../tests/golden/tiny-xlm-roberta-cross-encoder/tokenizer.json");
    const MODERNBERT: &[u8] =
        include_bytes!("../../../tests/golden/tiny-modernbert-cross-encoder/tokenizer.json");
    const DEBERTA: &[u8] =
        include_bytes!("../../../tests/golden/tiny-deberta-v2-cross-encoder/tokenizer.json");
    const ALL: [&[u8]; 4] = [BERT, XLM_ROBERTA, MODERNBERT, DEBERTA];
    const ROWS: usize = 1200;

    fn tokenizer(bytes: &[u8], length: usize, has_types: bool) -> Tokenizer {
        Tokenizer::for_pairs(bytes, length, ROWS, has_types).unwrap()
    }

    /// Returns the ids of the library for a pair, with the token types. Truncates the tokens of
    /// the whole texts, unless the library may stop early, within each text.
    fn by_library(
        bytes: &[u8],
        texts: [&str; 2],
        max_length: usize,
        direction: TruncationDirection,
        may_stop_early: bool,
    ) -> Vec<u32> {
        let mut library = tokenizers::Tokenizer::from_bytes(bytes).unwrap();
        let [first, second] = texts.map(|text| library.encode(text, false).unwrap());
        let truncation = TruncationParams { max_length, direction, ..Default::default() };
        library.with_truncation(Some(truncation)).unwrap();
        let found = match may_stop_early {
            true => library.encode((texts[0], texts[1]), true),
            false => library.post_process(first, Some(second), true),
        };
        let found = found.unwrap();
        let types = found.get_type_ids();
        found.get_ids().iter().zip(types).map(|(&id, &type_id)| with_type(id, type_id)).collect()
    }

    #[test]
    fn template_joins_the_texts() {
        let bert = tokenizer(BERT, 64, true);
        let [a, b] = ["a", "b"].map(|text| bert.encode_part(text, Truncation::Right).unwrap());
        let pair = bert.encode_pair("a", "b").unwrap();
        let second = with_type(b.ids[0], 1);
        assert_eq!(pair.ids, [2, a.ids[0], 3, second, with_type(3, 1)]);
        assert_eq!((pair.whole, pair.truncated()), (Some(5), false));
        let untyped = tokenizer(BERT, 64, false).encode_pair("a", "b").unwrap();
        assert_eq!(untyped.ids, [2, a.ids[0], 3, b.ids[0], 3]);
        // An empty text is still a text of the pair.
        assert_eq!(bert.encode_pair("a", "").unwrap().ids, [2, a.ids[0], 3, with_type(3, 1)]);
        let roberta = tokenizer(XLM_ROBERTA, 64, false).encode_pair("", "").unwrap();
        assert_eq!(roberta.ids, [0, 2, 2, 2]);
        assert_eq!(tokenizer(XLM_ROBERTA, 64, false).special_of_pair(), 4);
    }

    #[test]
    fn longer_text_is_truncated_first() {
        for (lengths, room, expected) in [
            ([3, 4], 7, [3, 4]),
            ([3, 9], 8, [3, 5]),
            ([9, 3], 8, [5, 3]),
            ([9, 9], 8, [4, 4]),
            ([9, 9], 7, [3, 4]),
            ([9, 8], 7, [4, 3]),
            ([0, 9], 7, [0, 7]),
            ([usize::MAX, usize::MAX], 7, [3, 4]),
            ([usize::MAX, 2], 7, [5, 2]),
            ([2, 2], 0, [0, 0]),
        ] {
            assert_eq!(shares(lengths, room), expected, "{lengths:?} in {room}");
        }
    }

    #[test]
    fn limit_leaves_one_token_of_a_pair() {
        let tokenizer = tokenizer(XLM_ROBERTA, 64, false);
        tokenizer.limit_length(Some(1));
        assert_eq!(tokenizer.max_sequence_length(), 5);
        assert_eq!(tokenizer.encode_pair("a b c", "a b c").unwrap().ids.len(), 5);
        tokenizer.limit_length(Some(9));
        assert_eq!(tokenizer.encode_pair("a b c", "a b c d e").unwrap().ids.len(), 9);
        tokenizer.limit_length(None);
        assert_eq!(tokenizer.max_sequence_length(), 64);
    }

    #[test]
    fn long_texts_are_cut_before_they_are_tokenized() {
        let long = "the quick brown fox ".repeat(1_000_000);
        for bytes in ALL {
            let tokenizer = tokenizer(bytes, 24, false);
            let pair = tokenizer.encode_pair("a quick fox", &long).unwrap();
            assert_eq!((pair.ids.len(), pair.whole, pair.truncated()), (24, None, true));
            let short = &long[..4_000];
            assert_eq!(pair.ids, tokenizer.encode_pair("a quick fox", short).unwrap().ids);
        }
    }

    #[test]
    fn unusable_pair_template_is_refused_only_for_pairs() {
        let change = |pair: &str| {
            let mut json: serde_json::Value = serde_json::from_slice(BERT).unwrap();
            json["post_processor"]["pair"] = serde_json::from_str(pair).unwrap();
            json.to_string()
        };
        let text = |id: &str, type_id: u32| {
            format!(r#"{{"Sequence": {{"id": "{id}", "type_id": {type_id}}}}}"#)
        };
        let (a, b) = (text("A", 0), text("B", 1));
        let many = format!("[{a},{b},{}]", vec![special("[SEP]"); 17].join(","));
        for (pair, expected) in [
            ("[]".to_owned(), "does not take each text of a pair once, in their order"),
            (format!("[{b},{a}]"), "does not take each text of a pair once, in their order"),
            (format!("[{a},{b},{b}]"), "does not take each text of a pair once"),
            (format!("[{a},{}]", text("B", 2)), "the token type 2; expected 0 or 1"),
            (format!("[{a},{},{b}]", special("[NO]")), "does not define its special token"),
            (many, "more than 16 special tokens on a side of a text"),
        ] {
            let json = change(&pair);
            let error = Tokenizer::for_pairs(json.as_bytes(), 64, ROWS, true).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            Tokenizer::for_rows(json.as_bytes(), 64, ROWS).unwrap();
        }
        let mut json: serde_json::Value = serde_json::from_slice(BERT).unwrap();
        json["post_processor"] = serde_json::Value::Null;
        let error = Tokenizer::for_pairs(json.to_string().as_bytes(), 64, ROWS, true).unwrap_err();
        assert!(error.to_string().contains("no template for a pair of texts"), "{error}");
        let error = Tokenizer::for_pairs(BERT, 3, ROWS, true).unwrap_err();
        assert!(error.to_string().starts_with("tokenizer.json: 3 special tokens of a pair"));
        let tokens = Tokens { ids: vec![5], whole: Some(1) };
        let single = Tokenizer::from_bytes(BERT, 64).unwrap();
        let error = single.join(&tokens, &tokens, Truncation::Right).unwrap_err();
        assert!(matches!(error, EngineError::NoScores));
    }

    fn special(id: &str) -> String {
        format!(r#"{{"SpecialToken": {{"id": "{id}", "type_id": 0}}}}"#)
    }

    #[test]
    fn older_post_processors_take_pairs() {
        for (bytes, processor) in [
            (BERT, r#"{"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}"#),
            (
                XLM_ROBERTA,
                r#"{"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0],
                    "trim_offsets": true, "add_prefix_space": false}"#,
            ),
            (
                BERT,
                r#"{"type": "Sequence", "processors": [
                    {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false},
                    {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}]}"#,
            ),
        ] {
            let mut json: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            json["post_processor"] = serde_json::from_str(processor).unwrap();
            let json = json.to_string();
            let texts = ["a quick", "brown fox"];
            let expected = by_library(json.as_bytes(), texts, 64, TruncationDirection::Right, true);
            let found = tokenizer(json.as_bytes(), 64, true).encode_pair(texts[0], texts[1]);
            assert_eq!(found.unwrap().ids, expected, "{processor}");
        }
    }

    proptest! {
        #[test]
        fn pairs_equal_those_of_the_library(
            first in "[ a-z,.]{0,60}",
            second in "[ a-zé中]{0,300}",
            swap in any::<bool>(),
            length in 5_usize..40,
            left in any::<bool>(),
        ) {
            let texts = if swap { [&*second, &*first] } else { [&*first, &*second] };
            let (truncation, direction) = match left {
                true => (Truncation::Left, TruncationDirection::Left),
                false => (Truncation::Right, TruncationDirection::Right),
            };
            for bytes in ALL {
                let tokenizer = tokenizer(bytes, length, true);
                let parts = texts.map(|text| tokenizer.encode_part(text, truncation).unwrap());
                let found = tokenizer.join(&parts[0], &parts[1], truncation).unwrap().ids;
                prop_assert_eq!(&found, &by_library(bytes, texts, length, direction, false));
                // The library stops early in a text that has `length` tokens.
                if parts.iter().any(|part| part.whole.is_some_and(|whole| whole < length)) {
                    prop_assert_eq!(found, by_library(bytes, texts, length, direction, true));
                }
            }
        }
    }
}
