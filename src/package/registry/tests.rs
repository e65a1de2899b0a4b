//! Tests of the table's consistency and of the lookups.

use std::collections::BTreeSet;

use super::*;
use crate::package::manifest::{CONFIG, TOKENIZER, WEIGHTS};
use crate::package::{Digest, ModelId, fixture};

#[test]
fn models_are_found_by_all_their_names() {
    for model in known_models() {
        for name in model.names() {
            let found = find_known_model(name).unwrap();
            assert_eq!(found.id, model.id, "{name}");
            assert_eq!(find_known_model(&name.to_uppercase()).unwrap().id, model.id, "{name}");
        }
    }
    for (name, id) in [
        ("bundled-mini", "all-MiniLM-L6-v2"),
        ("all-minilm:latest", "all-MiniLM-L6-v2"),
        ("nomic-embed-text", "nomic-embed-text-v1.5"),
        ("snowflake/snowflake-arctic-embed-xs", "snowflake-arctic-embed-xs"),
        ("cross-encoder/ms-marco-MiniLM-L-6-v2", "ms-marco-MiniLM-L6-v2"),
    ] {
        assert_eq!(find_known_model(name).unwrap().id, id);
    }
    for unknown in ["", "MiniLM", "nobody/all-MiniLM-L6-v2", "all-minilm:1b", ":latest"] {
        assert!(find_known_model(unknown).is_none(), "{unknown}");
    }
}

#[test]
fn names_are_unique_and_well_formed() {
    let mut seen = BTreeSet::new();
    for model in known_models() {
        model.id.parse::<ModelId>().unwrap();
        let (owner, name) = model.repository.split_once('/').unwrap();
        assert!(!owner.is_empty() && name == model.id, "{}", model.repository);
        for name in model.names() {
            assert!(seen.insert(name.to_ascii_lowercase()), "{name} appears twice");
            let is_name = |c: char| c.is_ascii_alphanumeric() || "._-/:".contains(c);
            assert!(!name.is_empty() && name.chars().all(is_name), "{name}");
        }
    }
    assert!(known_models().count() > 40);
}

#[test]
fn rows_are_complete_and_consistent() {
    for model in known_models() {
        let id = model.id;
        assert!(!model.family.is_empty() && !model.tasks.is_empty(), "{id}");
        let description = model.description;
        assert!(!description.is_empty() && !description.ends_with('.'), "{id}");
        assert!(description.chars().count() <= 80, "{id}");
        assert_eq!(model.dimensions.is_none(), model.is_reranker(), "{id}");
        assert!(!model.is_reranker() || model.tasks.len() == 1, "{id}");
        assert!(model.words * model.width <= model.parameters, "{id}: the table is too large");
        for language in model.languages {
            let is_tag = language.bytes().all(|byte| byte.is_ascii_lowercase());
            assert!(is_tag && (2..=3).contains(&language.len()), "{id}: {language}");
        }
        if let Some(length) = model.max_sequence_length {
            assert!((64..=32_768).contains(&length), "{id}");
        }
        let poolings = ["mean", "cls", "lasttoken"];
        assert!(model.pooling.is_none_or(|pooling| poolings.contains(&pooling)), "{id}");
        if let Some(digest) = model.weights_sha256 {
            digest.parse::<Digest>().unwrap();
        }
        if let Some(revision) = model.revision {
            let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            assert!(revision.len() == 40 && revision.bytes().all(is_digit), "{id}");
        }
    }
}

#[test]
fn vectors_have_the_length_of_the_hidden_layer() {
    for model in known_models() {
        // EmbeddingGemma 2 lengthens the vectors of the tokens before pooling.
        if model.dense_layers == Some(0) && model.architecture != "embedding_gemma2" {
            let length = model.dimensions.map_or(model.width, |length| length as u64);
            assert_eq!(length, model.width, "{}", model.id);
        }
        let is_unread = model.obstacle.is_some() || model.is_reranker();
        assert!(model.dense_layers.is_some() || is_unread, "{}", model.id);
    }
}

#[test]
fn published_digests_are_those_of_tested_files() {
    // The repository's own tests read files with these digests.
    for (id, start) in [("all-MiniLM-L6-v2", "53aa5117"), ("all-mpnet-base-v2", "78c0197b")] {
        let digest = find_known_id(id).unwrap().weights_sha256.unwrap();
        assert!(digest.starts_with(start), "{id}");
    }
    let digests = Vec::from_iter(known_models().filter_map(|model| model.weights_sha256));
    let different: BTreeSet<_> = digests.iter().collect();
    assert_eq!(different.len(), digests.len());
    // A digest without a revision could not be refused for a directory that claims to have it.
    for model in known_models().filter(|model| model.weights_sha256.is_some()) {
        assert!(model.revision.is_some(), "{}", model.id);
    }
}

#[test]
fn trained_lengths_are_ascending_and_shorter() {
    for model in known_models() {
        let lengths = model.matryoshka_dimensions;
        assert!(lengths.is_sorted_by(|a, b| a < b), "{}", model.id);
        let whole = model.dimensions.unwrap_or(0);
        assert!(lengths.iter().all(|length| (1..whole).contains(length)), "{}", model.id);
    }
}

#[test]
fn prompts_are_valid() {
    for model in known_models() {
        assert!(model.prompts.is_sorted_by(|a, b| a.0 < b.0), "{}", model.id);
        for (name, text) in model.prompts {
            assert!(!name.is_empty() && !text.is_empty() && text.len() <= 1024, "{}", model.id);
            let is_allowed = |c: char| c == '\n' || !c.is_control();
            assert!(text.chars().all(is_allowed), "{}: {text:?}", model.id);
        }
    }
}

#[test]
fn successors_exist_and_end() {
    for model in known_models() {
        let mut current = model;
        for step in 0.. {
            let Some(next) = current.successor else { break };
            assert!(step < 8, "the successors of {} form a circle", model.id);
            let same_task = find_known_id(next).unwrap().tasks.contains(&model.tasks[0]);
            assert!(same_task, "{} is for another task than {}", next, model.id);
            current = find_known_id(next).unwrap();
        }
    }
}

#[test]
fn sizes_follow_parameters() {
    let mini = find_known_id("all-MiniLM-L6-v2").unwrap();
    assert_eq!(mini.weights_size(Precision::F32), Bytes(90_852_864));
    assert_eq!(mini.weights_size(Precision::F16), Bytes(45_426_432));
    // One scale for each 384 parameters.
    assert_eq!(mini.weights_size(Precision::Int8), Bytes(22_713_216 + 4 * 59_149));
    // 18 bytes for each 32 of the 30,522 · 384 parameters of the table of words.
    let (table, rest) = (6_592_752, 10_992_768);
    assert_eq!(mini.weights_size(Precision::Int4Table), Bytes(table + rest + 4 * (rest / 384)));
    let words = 30_522 * 210;
    assert_eq!(mini.memory(Precision::Int8).0, mini.weights_size(Precision::Int8).0 + words);
    for model in known_models() {
        let [f32, int8] = [Precision::F32, Precision::Int8].map(|it| model.weights_size(it).0);
        assert!(int8 * 3 < f32 && f32 <= int8 * 4, "{}", model.id);
        let int4 = model.weights_size(Precision::Int4Table).0;
        assert!(int4 < int8 && int8 < 2 * int4, "{}", model.id);
        assert_eq!(model.allows_int4_table(), model.architecture != "static", "{}", model.id);
    }
}

#[test]
fn manifest_is_recognized_by_source_or_id() {
    let files: [(&str, &[u8]); 3] = [(CONFIG, b"{}"), (TOKENIZER, b"[]"), (WEIGHTS, b"w")];
    let found = |id: &str, source: Option<&str>| {
        let source = source.map(str::to_owned);
        let manifest = Manifest { source, ..fixture::manifest(id, "1", &files) };
        known_model_of(&manifest).map(|known| known.id)
    };
    let mini = "all-MiniLM-L6-v2";
    let repository = "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2";
    assert_eq!(found(mini, None), Some(mini));
    assert_eq!(found("own-name", Some(repository)), Some(mini));
    assert_eq!(found("own-name", Some(&format!("{repository}/"))), Some(mini));
    assert_eq!(found(mini, Some("https://example.org/model")), Some(mini));
    // Another name may be the id of any model, and a path without an owner is not a repository.
    assert_eq!(found("bundled-mini", None), None);
    assert_eq!(found(mini, Some("https://huggingface.co/someone/else")), None);
    assert_eq!(found("own-name", Some("https://huggingface.co/all-MiniLM-L6-v2")), None);
}
