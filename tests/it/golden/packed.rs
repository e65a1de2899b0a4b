//! Bounds of packages and of products in each precision.

use std::cell::RefCell;
use std::path::Path;
use std::{env, io};

use caxton::engine::{LoadedModel, Precision};
use caxton::models::residency::load;
use caxton::package::{self, Manifest, PackRequest, PackageContents};

use super::arithmetic::{cosine, dot, mean_and_least, unit};
use super::cases::{Case, MEAN, MINI_LM, TINY, TINY_NEWER};
use super::{MIN_COSINE, MODELS, golden, load as load_model, options, reference, texts, vectors};

/// Least cosine to the vectors of sentence-transformers, for each stored precision. The random
/// weights of the tiny models make attention sharp, which enlarges the errors of int8.
const PACKED: [(package::Precision, f32); 3] = [
    (package::Precision::F32, MIN_COSINE),
    (package::Precision::F16, 0.999_99),
    (package::Precision::Int8, 0.99),
];

/// Packs the model of `case` as `stored`; returns the packed model, for products in `precision`.
fn packed_model(case: &Case, stored: package::Precision, precision: Precision) -> LoadedModel {
    packed_directory(&golden().join(case.name), stored, precision)
}

/// Packs the model in `directory` like [`packed_model`].
fn packed_directory(
    directory: &Path,
    stored: package::Precision,
    precision: Precision,
) -> LoadedModel {
    let request = PackRequest {
        source: directory.to_owned(),
        precision: Some(stored),
        ..PackRequest::default()
    };
    let loaded = RefCell::new(None);
    let run = |manifest: &Manifest, contents: &PackageContents| {
        let model = load::load(manifest, contents.clone(), options(precision))?;
        let vector = load::embed_plain(&model, &manifest.self_test.text)?;
        *loaded.borrow_mut() = Some(model);
        Ok(vector)
    };
    package::pack(&request, &run, &|_, _| {}, io::sink()).unwrap();
    loaded.into_inner().unwrap()
}

#[test]
fn packing_in_any_precision_preserves_vectors() {
    let texts = texts("texts.jsonl");
    for case in TINY.iter().chain(&TINY_NEWER) {
        let expected = reference(case, "embedding");
        for (stored, bound) in PACKED {
            let model = packed_model(case, stored, Precision::F32);
            let mut least = 1.0_f32;
            for (text, expected) in texts.iter().zip(&expected) {
                let found = load::embed_plain(&model, text).unwrap();
                let (Some(found), Some(expected)) = (unit(&found), unit(expected)) else {
                    assert_eq!(&found, expected, "{} {text:?}", case.name);
                    continue;
                };
                least = least.min(dot(&found, &expected));
            }
            eprintln!("{} as {}: least cosine {least}", case.name, stored.name());
            assert!(least >= bound, "{} as {}: {least}", case.name, stored.name());
        }
    }
}

/// Compares the vectors of an int4-table package of `directory` with the reference of `case`;
/// returns the mean and the least cosine.
fn cosines_of_int4_table(case: &Case, directory: &Path, texts: &[String]) -> (f32, f32) {
    let model = packed_directory(directory, package::Precision::Int4Table, Precision::F32);
    let vectors = vectors(&model, "", texts);
    let pairs = vectors.chunks_exact(case.dimensions).zip(reference(case, "embedding"));
    let cosines: Vec<f32> = pairs.map(|(found, expected)| cosine(found, &expected)).collect();
    let (mean, least) = mean_and_least(&cosines);
    eprintln!("{} as int4-table: mean {mean}, least {least}", case.name);
    (mean, least)
}

#[test]
fn int4_table_of_a_tiny_model_stays_near_reference() {
    let (mean, least) =
        cosines_of_int4_table(&MEAN, &golden().join(MEAN.name), &texts("texts.jsonl"));
    assert!(mean >= 0.999 && least >= 0.997, "mean {mean}, least {least}");
}

#[test]
fn int4_table_of_minilm_stays_near_reference() {
    let Some(models) = env::var_os(MODELS) else {
        return crate::support::skipped("int4_table_of_minilm_stays_near_reference", MODELS);
    };
    let directory = Path::new(&models).join(MINI_LM.name);
    let (mean, least) = cosines_of_int4_table(&MINI_LM, &directory, &texts("texts_real.jsonl"));
    assert!(mean >= 0.998 && least >= 0.994, "mean {mean}, least {least}");
}

/// Stored and computed precision of the newer families, with the mean and the least cosine to the
/// vectors of sentence-transformers. The int8 bounds are lower than those of [`ROUNDED`], because
/// the random weights of the tiny models make attention sharp.
const ROUNDED_TINY: [(package::Precision, Precision, f32, f32); 3] = [
    (package::Precision::F32, Precision::Bf16, 0.9999, 0.9995),
    (package::Precision::F32, Precision::Int8, 0.999, 0.996),
    (package::Precision::Int8, Precision::Int8, 0.999, 0.996),
];

#[test]
fn rounded_precisions_of_newer_families_stay_near_reference() {
    let texts = texts("texts.jsonl");
    let mut failures = Vec::new();
    for (stored, precision, mean_bound, least_bound) in ROUNDED_TINY {
        for case in &TINY_NEWER {
            let model = packed_model(case, stored, precision);
            if model.embedder.report().precision != precision {
                let test = "rounded_precisions_of_newer_families_stay_near_reference";
                let test = format!("{test}: {precision}");
                crate::support::skipped(&test, "a processor that multiplies it");
                break;
            }
            let found = vectors(&model, "", &texts);
            let pairs = found.chunks_exact(case.dimensions).zip(reference(case, "embedding"));
            let cosines: Vec<f32> =
                pairs.map(|(found, expected)| cosine(found, &expected)).collect();
            let (mean, least) = mean_and_least(&cosines);
            let line = format!(
                "{} as {} in {precision}: mean {mean}, least {least}",
                case.name,
                stored.name()
            );
            eprintln!("{line}");
            // The negated form also fails for NaN.
            if !(mean >= mean_bound && least >= least_bound) {
                failures.push(line);
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Mean and least cosine to the f32 vectors of sentence-transformers.
const ROUNDED: [(Precision, f32, f32); 2] =
    [(Precision::Bf16, 0.9999, 0.9995), (Precision::Int8, 0.9995, 0.998)];

#[test]
fn rounded_precisions_of_minilm_stay_near_reference() {
    let Some(models) = env::var_os(MODELS) else {
        return crate::support::skipped("rounded_precisions_of_minilm_stay_near_reference", MODELS);
    };
    let directory = Path::new(&models).join(MINI_LM.name);
    let texts = texts("texts_real.jsonl");
    let expected = reference(&MINI_LM, "embedding");
    for (precision, mean_bound, least_bound) in ROUNDED {
        let model = load_model(&MINI_LM, &directory, precision);
        if model.embedder.report().precision != precision {
            let test = format!("rounded_precisions_of_minilm_stay_near_reference: {precision}");
            crate::support::skipped(&test, "a processor that multiplies it");
            continue;
        }
        let vectors = vectors(&model, "", &texts);
        let pairs = vectors.chunks_exact(MINI_LM.dimensions).zip(&expected);
        let cosines: Vec<f32> = pairs.map(|(found, expected)| cosine(found, expected)).collect();
        let (mean, least) = mean_and_least(&cosines);
        eprintln!("{precision} on {}: mean {mean}, least {least}", model.embedder.report().isa);
        assert!(mean >= mean_bound && least >= least_bound, "{precision}: {mean}, {least}");
    }
}
