//! Tests of `tokenize`.

use proptest::prelude::*;
use tokenizers::{TruncationDirection, TruncationParams};

use super::*;

const BERT: &[u8] = include_bytes!("../../../tests/golden/tiny-bert-mean/tokenizer.json");
const ROBERTA: &[u8] = include_bytes!("../../../tests/golden/tiny-roberta/tokenizer.json");
const XLM_ROBERTA: &[u8] = include_bytes!("../../../tests/golden/tiny-xlm-roberta/tokenizer.json");
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
        assert_eq!((&tokenizer.prefix[..], &tokenizer.suffix[..]), (&[prefix][..], &[suffix][..]));
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
fn lower_limit_truncates_like_a_shorter_model() {
    let tokenizer = Tokenizer::from_bytes(BERT, MAX).unwrap();
    let text = "the quick brown fox jumps over the lazy dog ".repeat(400);
    for most in [MAX - 1, 8, 3] {
        let shorter = Tokenizer::from_bytes(BERT, most).unwrap();
        tokenizer.limit_length(Some(most));
        assert_eq!(tokenizer.max_sequence_length(), most);
        for truncation in [Truncation::Right, Truncation::Left] {
            let encoded = |of: &Tokenizer| of.encode_truncated("", &text, truncation).unwrap().ids;
            assert_eq!(encoded(&tokenizer), encoded(&shorter), "{most} {truncation:?}");
        }
        let ids = |of: &Tokenizer| of.encode_ids(&[5; MAX], Truncation::Right).unwrap();
        assert_eq!(ids(&tokenizer), ids(&shorter));
        assert!(ids(&tokenizer).truncated());
    }
    // The special tokens leave one token at least, and no limit exceeds that of the model.
    for (limit, expected) in [(Some(1), 3), (Some(MAX + 1), MAX), (None, MAX)] {
        tokenizer.limit_length(limit);
        assert_eq!(tokenizer.max_sequence_length(), expected, "{limit:?}");
    }
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
    assert_eq!(prompted.iter().find(|piece| piece.text == "the").unwrap().characters, Some(9..12));
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
    let refusal = |bytes: &[u8], max| Tokenizer::from_bytes(bytes, max).err().unwrap().to_string();
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
            change(single, r#""single":[{"SpecialToken":{"id":"</s>","type_id":1}},"#).as_bytes(),
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
