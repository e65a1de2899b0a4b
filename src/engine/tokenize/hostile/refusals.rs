//! Tests: refused tokenizers, and error messages that name the problem.

use serde_json::{Map, Value, json};

use super::{BERT, ROBERTA, XLM_ROBERTA, doubling, parsed, read, with};
use crate::base::errors::chain;
use crate::engine::Tokenizer;

fn refusal(json: &Value) -> String {
    chain(&read(json).unwrap_err())
}

#[test]
fn unsupported_part_is_refused_by_name() {
    let hang = r"(?:(([a-z ]|[a-z ]){18})\2*#|(?s:.))";
    let split = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let replace =
        |from: Value, to: &str| json!({"type": "Replace", "pattern": from, "content": to});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true});
    let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "normalizers": steps});
    let spacing = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true});
    for (place, value, expected) in [
        (
            "/pre_tokenizer",
            split(hang),
            "the pre-tokenizer Split with the regular expression \"(?:(([a-z ]|",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Digits", "individual_digits": true}),
            "the pre-tokenizer \"Digits\" is not supported",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "\u{1b}[2J"}),
            "the pre-tokenizer \"\\u{1b}[2J\" is not supported",
        ),
        ("/pre_tokenizer", json!({}), "the pre-tokenizer without a type is not supported"),
        (
            "/pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [bytes, bytes]}),
            "this sequence of 2 pre-tokenizers",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Metaspace", "replacement": "x"}),
            "Metaspace with \"x\" for a space",
        ),
        (
            "/normalizer",
            replace(json!({"String": "a"}), &"b".repeat(9999)),
            "Replace with the text \"a\" and the content \"bbb",
        ),
        (
            "/normalizer",
            replace(json!({"Regex": "(a*)*"}), " "),
            "Replace with the regular expression \"(a*)*\"",
        ),
        (
            "/normalizer",
            json!({"type": "Prepend", "prepend": "aaaa"}),
            "the normalizer Prepend with \"aaaa\"",
        ),
        (
            "/normalizer",
            sequence(vec![replace(json!({"String": "!"}), " ! "); 2]),
            "Replace with the text \"!\" twice",
        ),
        ("/normalizer", sequence(vec![json!({"type": "NFC"}); 49]), "a sequence of 49 normalizers"),
        (
            "/normalizer",
            sequence(vec![json!({"type": "NFKC"}), doubling()]),
            "more than one of Precompiled, NFKC, NFKD",
        ),
        (
            "/normalizer",
            sequence(vec![spacing; 2]),
            "more than one BertNormalizer with handle_chinese_chars",
        ),
        (
            "/normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
            "the charsmap declares 4294967295 bytes for its array, but has 0",
        ),
        (
            "/normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": "%"}),
            "the charsmap is not base64",
        ),
        (
            "/decoder",
            json!({"type": "BPEDecoder", "suffix": ""}),
            "the decoder \"BPEDecoder\" is not supported",
        ),
        (
            "/decoder",
            json!({"type": "Strip", "content": " ", "start": 0, "stop": 1}),
            "this decoder Strip",
        ),
        (
            "/decoder",
            replace(json!({"Regex": hang}), ""),
            "the decoder Replace with the regular expression",
        ),
        ("/model/type", json!("Word\u{202e}"), "the model \"Word\\u{202e}\" is not supported"),
        (
            "/model/continuing_subword_prefix",
            json!("#".repeat(9999)),
            "continuing_subword_prefix is \"####",
        ),
        (
            "/model/max_input_chars_per_word",
            json!(100_000),
            "max_input_chars_per_word is 100000, more than 100",
        ),
        ("/model/unk_token", json!("[NO]"), "unk_token \"[NO]\" is not in the vocabulary"),
        ("/model/vocab/x", json!(1), "two words have the id 1"),
        ("/model/vocab/x", json!(u32::MAX), "has 4294967296 tokens"),
        ("/version", json!("2.0"), "the version is \"2.0\"; only 1.0 is supported"),
        ("/more", json!(1), "unknown field `more`"),
        (
            "/added_tokens",
            json!([{"id": 0, "content": "a".repeat(129)}]),
            "has 129 bytes, more than 128",
        ),
    ] {
        let json = with(BERT, &[(place, value)]);
        let told = refusal(&json);
        assert!(told.contains(expected), "{told} instead of {expected}");
        assert!(told.len() < 700 && !told.chars().any(char::is_control), "{told}");
    }
}

#[test]
fn contradictory_post_processor_is_refused() {
    // The first case made the library index beyond the end of a list.
    let token = |ids: Value| json!({"<s>": {"id": "<s>", "ids": ids, "tokens": ["<s>"]}});
    let single = json!([{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
    let second = json!([{"Sequence": {"id": "B", "type_id": 0}}]);
    for (single, special_tokens, expected) in [
        (
            single.clone(),
            token(json!([])),
            "special token \"<s>\" of the post-processor has 0 ids and 1 tokens",
        ),
        (single.clone(), token(json!([0, 1])), "has 2 ids and 1 tokens"),
        (
            single.clone(),
            json!({"<s>": {"id": "<t>", "ids": [0], "tokens": ["<s>"]}}),
            "special token \"<s>\" of the post-processor has another id, \"<t>\"",
        ),
        (single.clone(), json!({}), "does not define its special token \"<s>\""),
        (second, json!({}), "does not take a single text exactly once"),
        (json!([]), json!({}), "does not take a single text exactly once"),
        (single, token(json!([999])), "special token 999 is outside the vocabulary of 245 tokens"),
        // The number is checked before the next piece, because the pieces could repeat a long list.
        (
            json!(["<s>", "<t>"].map(|id| json!({"SpecialToken": {"id": id, "type_id": 0}}))),
            json!({"<s>": {"id": "<s>", "ids": vec![0; 17], "tokens": vec!["<s>"; 17]}}),
            "more than 16 special tokens on a side of a text",
        ),
    ] {
        let processor = json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special_tokens});
        let told = refusal(&with(XLM_ROBERTA, &[("/post_processor", processor)]));
        assert!(told.contains(expected), "{told} instead of {expected}");
    }
    let around = json!({"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]});
    let processor = json!({"type": "Sequence", "processors": vec![around; 17]});
    let error = refusal(&with(XLM_ROBERTA, &[("/post_processor", processor)]));
    assert!(error.contains("more than 16 special tokens on a side of a text"), "{error}");
}

#[test]
fn vocabulary_is_bounded_by_word_embeddings() {
    let bytes = BERT.as_bytes();
    let size = Tokenizer::from_bytes(bytes, 512).unwrap().vocabulary_size();
    assert!(Tokenizer::for_rows(bytes, 512, size).is_ok());
    let told = Tokenizer::for_rows(bytes, 512, size - 1).unwrap_err().to_string();
    let expected = format!(
        "tokenizer.json has {size} tokens, model.safetensors has word embeddings for {}",
        size - 1
    );
    assert_eq!(told, expected);
    let told = Tokenizer::for_rows(XLM_ROBERTA.as_bytes(), 512, 100).unwrap_err().to_string();
    assert_eq!(
        told,
        "tokenizer.json has 245 tokens, model.safetensors has word embeddings for 100"
    );
    // An added token that the vocabulary does not contain gets the next free id.
    let added = json!([{"id": 0, "content": "<new>"}]);
    let json = with(BERT, &[("/added_tokens", added)]).to_string();
    assert!(Tokenizer::for_rows(json.as_bytes(), 512, size + 1).is_ok());
    assert!(Tokenizer::for_rows(json.as_bytes(), 512, size).is_err());
}

#[test]
fn overlong_words_and_trie_prefixes_are_refused() {
    let long =
        |bytes: usize| with(BERT, &[("/model/vocab", json!({"[UNK]": 0, "a".repeat(bytes): 1}))]);
    assert!(refusal(&long(513)).contains("has 513 bytes, more than 512"));
    let many = |bytes: usize, count: usize| {
        let mut words = Map::new();
        words.insert("[UNK]".to_owned(), 0.into());
        for id in 1..=count {
            words.insert(format!("{id:0bytes$}"), id.into());
        }
        with(
            BERT,
            &[
                ("/model/vocab", words.into()),
                ("/added_tokens", json!([])),
                ("/post_processor", Value::Null),
            ],
        )
    };
    assert!(read(&many(24, 2000)).is_ok());
    assert!(refusal(&many(60, 2000)).contains("the 2001 words have"));
    let list = |words: Vec<Value>, unknown: Value| {
        with(XLM_ROBERTA, &[("/model/vocab", words.into()), ("/model/unk_id", unknown)])
    };
    let word = |bytes: usize| json!(["a".repeat(bytes), -1.0]);
    assert!(refusal(&list(vec![word(65)], 0.into())).contains("has 65 bytes, more than 64"));
    let outside = refusal(&list(vec![word(1)], 1.into()));
    assert!(outside.contains("unk_id is 1, but the vocabulary has 1 words"), "{outside}");
    assert!(refusal(&list(vec![word(1)], Value::Null)).contains("unk_id is missing"));
    // No two words share a prefix, so each byte would be a node of the library's trie.
    let apart = (0..9000_u32).map(|number| {
        let start: String =
            number.to_be_bytes().map(|byte| char::from(b'A' + byte % 26)).iter().collect();
        json!([format!("{number:04x}{start}abcdefghijklmn"), -1.0])
    });
    let told = refusal(&list(apart.collect(), 0.into()));
    assert!(told.contains("different prefixes"), "{told}");
}

#[test]
fn merges_are_validated_and_bounded() {
    let merges = |merges: Value| refusal(&with(ROBERTA, &[("/model/merges", merges)]));
    let longest =
        parsed(ROBERTA)["model"]["vocab"].as_object().unwrap().keys().map(String::len).max();
    let half = "a".repeat(longest.unwrap());
    // The library would panic on a write beyond the end of its buffer.
    assert!(merges(json!([[half, "b"]])).contains("is longer than every word"));
    assert!(merges(json!([["a"]])).contains("is not a pair"));
    assert!(merges(json!(["a b c"])).contains("is not a pair"));
    assert!(merges(json!([["a", "\u{1b}"]])).contains("cannot be read"));
    assert!(read(&with(ROBERTA, &[("/model/merges", json!(["#version: 0.2"]))])).is_ok());
    let many = vec![json!(["o", "r"]); 40_000];
    assert!(merges(many.into()).contains("more than"));
    for (field, value) in [
        ("continuing_subword_prefix", json!("##")),
        ("end_of_word_suffix", json!("</w>")),
        ("dropout", json!(0.5)),
    ] {
        let told = refusal(&with(ROBERTA, &[(&format!("/model/{field}"), value)]));
        assert!(told.contains(field), "{told}");
    }
}
