//! Tests of `pack`.

use std::cell::RefCell;
use std::fs;

use serde_json::json;

use proptest::prelude::*;

use super::super::directory_fixture::{Layout, model_directory, safetensors, write_json};
use super::super::unpack::{Durability, unpack};
use super::super::unpack_limits::UnpackLimits;
use super::*;
use crate::base::units::Bytes;

fn request(source: &Path) -> PackRequest {
    PackRequest {
        source: source.to_owned(),
        id: Some("tiny".parse().unwrap()),
        ..PackRequest::default()
    }
}

fn constant(manifest: &Manifest, _contents: &PackageContents) -> Result<Vec<f32>, BoxError> {
    Ok(vec![0.5; manifest.dimensions])
}

fn packed(request: &PackRequest) -> Result<(PackResult, Vec<u8>), PackError> {
    let mut bytes = Vec::new();
    let packed = pack(request, &constant, &|_, _| {}, &mut bytes)?;
    Ok((packed, bytes))
}

/// Returns the names and contents of an archive.
fn members(package: &[u8]) -> Vec<(String, Vec<u8>)> {
    let tar = zstd::decode_all(package).unwrap();
    let text = |field: &[u8]| {
        String::from_utf8(field.iter().copied().take_while(|byte| *byte != 0).collect()).unwrap()
    };
    let mut members = Vec::new();
    let mut rest = tar.as_slice();
    while rest[0] != 0 {
        let size = usize::from_str_radix(&text(&rest[124..136]), 8).unwrap();
        members.push((text(&rest[..100]), rest[512..512 + size].to_vec()));
        rest = &rest[512 + size.next_multiple_of(512)..];
    }
    assert_eq!(rest, [0; 1024]);
    members
}

#[test]
fn self_test_vector_keeps_three_digits() {
    assert_eq!(round_vector(&[0.123_456, -0.000_96, 0.5]), [0.123, -0.001, 0.5]);
    assert_eq!(round_vector(&[12.345, -0.04]), [12.3, -0.0]);
    assert_eq!(round_vector(&[0.0, 0.0]), [0.0, 0.0]);
}

#[test]
fn archive_contains_manifest_and_self_tested_files() {
    for layout in [Layout::Two, Layout::Six] {
        for precision in [Precision::F32, Precision::F16, Precision::Int8] {
            let directory = model_directory(layout);
            let request = PackRequest { precision: Some(precision), ..request(directory.path()) };
            let seen = RefCell::new(Vec::new());
            let self_test = |manifest: &Manifest, contents: &PackageContents| {
                assert_eq!(manifest.self_test.vector, [0.0; 3]);
                let owned = |(name, bytes): (String, &[u8])| (name, bytes.to_vec());
                seen.borrow_mut().extend(contents.members().into_iter().map(owned));
                Ok(vec![0.6, 0.8, 0.0])
            };
            let mut bytes = Vec::new();
            let packed = pack(&request, &self_test, &|_, _| {}, &mut bytes).unwrap();

            let mut members = members(&bytes);
            let (name, json) = members.remove(0);
            assert_eq!(name, MANIFEST);
            assert_eq!(Manifest::parse(&json).unwrap(), packed.manifest);
            assert_eq!(members, seen.into_inner());
            for (member, (name, contents)) in packed.manifest.files.iter().zip(&members) {
                assert_eq!(member.path.as_str(), name);
                assert_eq!(member.size, contents.len() as u64);
                assert_eq!(member.sha256, Digest::of(contents));
            }
            let names: Vec<_> = members.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, [CONFIG, TOKENIZER, WEIGHTS, "dense.0.safetensors"]);
            assert_eq!(packed.manifest.self_test.vector, [0.6, 0.8, 0.0]);
            assert_eq!(packed.manifest_digest, Digest::of(&json));
            assert_eq!(packed.package_digest, Digest::of(&bytes));
            assert_eq!(packed.bytes, bytes.len() as u64);
        }
    }
}

#[test]
fn packing_is_reproducible() {
    let [(first, first_bytes), (_, second_bytes)] =
        [model_directory(Layout::Two), model_directory(Layout::Two)]
            .map(|directory| packed(&request(directory.path())).unwrap());
    assert!(first_bytes == second_bytes);
    assert_eq!(first.manifest.file_name(), "tiny-1.model.tar.zst");
    assert_eq!(first.manifest.precision, Precision::F32);
}

#[test]
fn request_overrides_defaults() {
    let directory = model_directory(Layout::Two);
    let (plain, _) = packed(&request(directory.path())).unwrap();
    assert_eq!(plain.manifest.license, "NOASSERTION");
    assert_eq!((plain.manifest.source, plain.manifest.revision), (None, None));
    let (named, _) = packed(&PackRequest {
        version: Some("2.1".parse().unwrap()),
        license: Some("MIT".to_owned()),
        revision: Some("abc".to_owned()),
        ..request(directory.path())
    })
    .unwrap();
    assert_eq!(named.manifest.version.as_str(), "2.1");
    assert_eq!(named.manifest.license, "MIT");
    assert_eq!(named.manifest.revision.as_deref(), Some("abc"));
}

#[test]
fn trained_lengths_come_from_request_directory_or_id() {
    let directory = model_directory(Layout::Two);
    let lengths = |request: &PackRequest| {
        packed(request).map(|(packed, _)| packed.manifest.matryoshka_dimensions)
    };
    let plain = request(directory.path());
    assert_eq!(lengths(&plain).unwrap(), [0; 0]);
    write_json(
        directory.path(),
        "config_sentence_transformers.json",
        &json!({ "matryoshka_dimensions": [3, 2, 1, 2, 0] }),
    );
    assert_eq!(lengths(&plain).unwrap(), [1, 2]);
    let asked = |lengths: &[usize]| PackRequest {
        matryoshka_dimensions: Some(lengths.to_vec()),
        ..plain.clone()
    };
    assert_eq!(lengths(&asked(&[3, 2])).unwrap(), [2]);
    assert_eq!(lengths(&asked(&[])).unwrap(), [0; 0]);
    for wrong in [0, 4] {
        let error = lengths(&asked(&[wrong])).unwrap_err();
        assert!(error.source().unwrap().to_string().contains("from 1 to less than 3"), "{error}");
    }
}

#[test]
fn id_defaults_to_valid_directory_name() {
    let outer = tempfile::tempdir().unwrap();
    for (name, valid) in [("my-model.v2", true), ("my model", false), ("-x", false)] {
        let source = outer.path().join(name);
        fs::rename(model_directory(Layout::Two).keep(), &source).unwrap();
        let request = PackRequest { source, ..PackRequest::default() };
        match packed(&request) {
            Ok((packed, _)) => assert!(valid && packed.manifest.id.as_str() == name),
            Err(error) => {
                assert!(!valid && error.to_string().contains("--model-id"), "{error}");
            }
        }
    }
}

/// Returns a directory with the shape of multilingual-e5-small, without its prompts.
fn e5_directory() -> tempfile::TempDir {
    let directory = model_directory(Layout::Two);
    let path = directory.path();
    let class = |name: &str, path: &str| {
        let class = format!("sentence_transformers.models.{name}");
        json!({ "path": path, "type": class })
    };
    let modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")];
    write_json(path, "modules.json", &modules.map(|(name, path)| class(name, path)).into());
    let config =
        json!({ "model_type": "bert", "hidden_size": 384, "max_position_embeddings": 512 });
    write_json(path, "config.json", &config);
    let pooling = json!({ "word_embedding_dimension": 384, "pooling_mode_mean_tokens": true });
    write_json(path, "1_Pooling/config.json", &pooling);
    write_json(path, "config_sentence_transformers.json", &json!({}));
    directory
}

#[test]
fn known_model_gets_missing_facts() {
    let directory = e5_directory();
    let id = Some("multilingual-e5-small".parse().unwrap());
    let (packed, _) = packed(&PackRequest { id, ..request(directory.path()) }).unwrap();
    let manifest = packed.manifest;
    assert_eq!(manifest.license, "MIT");
    assert_eq!(manifest.languages, ["mul"]);
    let source = "https://huggingface.co/intfloat/multilingual-e5-small";
    assert_eq!(manifest.source.as_deref(), Some(source));
    let prompts: Vec<_> = manifest.prompts.values().collect();
    assert_eq!(prompts, ["passage: ", "query: "]);
    assert_eq!(manifest.default_prompt, None);
}

#[test]
fn longest_text_can_be_lowered_only() {
    let directory = model_directory(Layout::Two);
    let length = |tokens: Option<usize>| {
        let asked = PackRequest { max_sequence_length: tokens, ..request(directory.path()) };
        packed(&asked).map(|(packed, _)| packed.manifest.max_sequence_length)
    };
    let whole = length(None).unwrap();
    assert_eq!(length(Some(whole)).unwrap(), whole);
    assert_eq!(length(Some(3)).unwrap(), 3);
    for wrong in [0, 2, whole + 1] {
        let message = length(Some(wrong)).unwrap_err().to_string();
        let part = format!("3 to {whole} tokens, not {wrong}");
        assert!(message.contains(&part) && message.contains("--max-sequence-length"), "{message}");
    }
}

#[test]
fn weights_are_compared_with_published_ones() {
    let directory = e5_directory();
    let id = |id: &str| PackRequest { id: Some(id.parse().unwrap()), ..request(directory.path()) };
    let mini = find_known_model("all-MiniLM-L6-v2").unwrap();
    let (changed, _) = packed(&id(mini.id)).unwrap();
    assert_eq!(changed.origin, WeightsOrigin::Changed(mini));
    // The registry has no digest of the first, and does not know the second.
    for other in ["e5-small-v2", "own-model"] {
        assert_eq!(packed(&id(other)).unwrap().0.origin, WeightsOrigin::Unknown);
    }
    let mut source = ModelDirectory::read(directory.path(), StatedSteps::default(), None).unwrap();
    let digest = Digest::of(&source.weights).to_string();
    let published = KnownModel { weights_sha256: Some(String::leak(digest)), ..*mini };
    let published: &KnownModel = Box::leak(Box::new(published));
    assert_eq!(origin(Some(published), &source), WeightsOrigin::Published(published));
    // A revision claims that the files are those of the repository.
    let revised = |revision: &str| {
        packed(&PackRequest { revision: Some(revision.to_owned()), ..id(mini.id) })
    };
    let message = revised(mini.revision.unwrap()).unwrap_err().to_string();
    assert!(message.contains("SHA-256") && message.contains("--revision"), "{message}");
    assert_eq!(revised("own").unwrap().0.origin, WeightsOrigin::Changed(mini));
    source.weights_path.set_file_name("pytorch_model.bin");
    assert_eq!(origin(Some(published), &source), WeightsOrigin::Unknown);
}

#[test]
fn known_dense_layers_must_be_in_directory() {
    let directory = model_directory(Layout::Two);
    let path = directory.path();
    let mut source = ModelDirectory::read(path, StatedSteps::default(), None).unwrap();
    let labse = find_known_model("LaBSE").unwrap();
    source.dimensions = 768;
    source.pooling = "cls";
    assert!(compare(labse, &source).is_ok());
    source.dense.clear();
    let message = compare(labse, &source).unwrap_err().to_string();
    assert!(message.contains("the number of dense layers is 0 instead of 1"), "{message}");
}

#[test]
fn known_model_supplies_steps_of_plain_directory() {
    let directory = e5_directory();
    let path = directory.path();
    fs::remove_file(path.join("modules.json")).unwrap();
    for name in ["1_Pooling", "2_Dense"] {
        fs::remove_dir_all(path.join(name)).unwrap();
    }
    let original = Some("intfloat/multilingual-e5-small".to_owned());
    let known = PackRequest { original, ..request(path) };
    let (packed_known, _) = packed(&known).unwrap();
    assert_eq!(packed_known.manifest.pooling, "mean");
    assert!(packed_known.manifest.normalize);
    let stated = PackRequest { pooling: Some("max"), normalize: Some(false), ..request(path) };
    let (packed_stated, _) = packed(&stated).unwrap();
    assert_eq!(packed_stated.manifest.pooling, "max");
    assert!(!packed_stated.manifest.normalize);
    let message = packed(&request(path)).unwrap_err().source().unwrap().to_string();
    assert!(message.contains("--original"), "{message}");
}

#[test]
fn other_name_of_known_model_is_only_an_original() {
    let directory = model_directory(Layout::Two);
    let id = Some("bundled-mini".parse().unwrap());
    let named = PackRequest { id, ..request(directory.path()) };
    let (packed_named, _) = packed(&named).unwrap();
    assert_eq!(packed_named.manifest.source, None);
    let original = Some("bundled-mini".to_owned());
    let error = packed(&PackRequest { original, ..named }).unwrap_err();
    assert!(matches!(error, PackError::Contradiction { .. }), "{error}");
}

#[test]
fn directory_that_contradicts_known_model_is_refused() {
    let directory = e5_directory();
    let path = directory.path();
    let cases = [
        ("all-mpnet-base-v2", "architecture is bert instead of mpnet"),
        ("all-MiniLM-L6-v2", "pooling is cls instead of mean"),
    ];
    let pooling = json!({ "word_embedding_dimension": 384, "pooling_mode_cls_token": true });
    write_json(path, "1_Pooling/config.json", &pooling);
    for (id, part) in cases {
        let request = PackRequest { id: Some(id.parse().unwrap()), ..request(path) };
        let message = packed(&request).unwrap_err().to_string();
        assert!(message.contains(id) && message.contains(part), "{message}");
    }
    let other = model_directory(Layout::Two);
    let id = Some("all-MiniLM-L6-v2".parse().unwrap());
    let message = packed(&PackRequest { id, ..request(other.path()) }).unwrap_err().to_string();
    assert_eq!(
        message,
        "this directory is not all-MiniLM-L6-v2: dimensions is 3 instead of 384; \
             choose another id with --model-id"
    );
}

#[test]
fn failure_names_its_layer_and_keeps_cause() {
    let directory = model_directory(Layout::Two);
    let path = directory.path();
    let run = |self_test: &dyn Fn() -> Result<Vec<f32>, BoxError>, out: &mut dyn Write| {
        pack(&request(path), &|_, _| self_test(), &|_, _| {}, out).unwrap_err()
    };
    let error = run(&|| Err("no memory".into()), &mut io::sink());
    assert_eq!(error.to_string(), "the model failed its self-test");
    assert_eq!(error.source().unwrap().to_string(), "no memory");
    for vector in [vec![], vec![0.5; 4], vec![f32::NAN; 3]] {
        let error = run(&|| Ok(vector.clone()), &mut io::sink());
        assert!(matches!(error, PackError::Manifest(_)), "{error}");
    }
    let error = run(&|| Ok(vec![0.5; 3]), &mut &mut [0_u8; 16][..]);
    assert!(matches!(error, PackError::Write(_)), "{error}");

    let weights = safetensors(&[("w", vec![1], vec![f32::NAN])]);
    fs::write(path.join("model.safetensors"), &weights).unwrap();
    let error = packed(&request(path)).unwrap_err();
    let file = path.join("model.safetensors");
    assert_eq!(error.to_string(), format!("{} cannot be converted", file.display()));
    assert!(error.source().unwrap().to_string().contains("NaN"));
    fs::remove_file(file).unwrap();
    let error = packed(&request(path)).unwrap_err();
    assert_eq!(error.to_string(), "the model directory cannot be packed");
    assert!(error.source().unwrap().to_string().ends_with("pytorch_model.bin is missing too"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn pack_and_unpack_round_trip_exactly(
        layout in prop::sample::select(vec![Layout::Two, Layout::Six]),
        precision in prop::sample::select(vec![Precision::F32, Precision::F16, Precision::Int8]),
        // Rows as wide as the directory's configuration requires.
        rows in prop::collection::vec(prop::array::uniform4(-100.0_f32..100.0), 1..300),
    ) {
        let directory = model_directory(layout);
        let values = rows.as_flattened().to_vec();
        let name = "embeddings.word_embeddings.weight";
        let weights = safetensors(&[(name, vec![rows.len(), 4], values)]);
        fs::write(directory.path().join(WEIGHTS), weights).unwrap();
        let request = PackRequest { precision: Some(precision), ..request(directory.path()) };
        let (packed, bytes) = packed(&request).unwrap();

        let staging = tempfile::tempdir().unwrap();
        let limits = UnpackLimits::for_size(Bytes::mib(1));
        let unpacked = unpack(&bytes[..], &limits, staging.path(), Durability::Synced).unwrap();
        prop_assert_eq!(&unpacked.manifest, &packed.manifest);
        prop_assert_eq!(unpacked.manifest_digest, packed.manifest_digest);
        prop_assert_eq!(unpacked.package_digest, packed.package_digest);
        prop_assert_eq!(unpacked.package_bytes, packed.bytes);
        let read = |name: &str| fs::read(staging.path().join(name)).unwrap();
        let layers = unpacked.manifest.dense.len();
        let contents = PackageContents::from_members(read(WEIGHTS).into(), read, layers);
        let mut again = Vec::new();
        write_package(&unpacked.manifest, &contents, &|_, _| {}, &mut again).unwrap();
        prop_assert!(again == bytes);
    }
}
