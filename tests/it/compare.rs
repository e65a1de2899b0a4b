//! Tests of `caxton model compare`, with package files and with the models of a daemon.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Root, pack};

/// Texts with different words, so that no two of them have the same vector.
const TEXTS: [&str; 12] = [
    "The pump runs hot.",
    "A fox crosses the road.",
    "Replace the filter every month.",
    "The bearing is worn.",
    "Open the valve slowly.",
    "Rain is expected tomorrow.",
    "The motor draws too much current.",
    "Bread is baked in the morning.",
    "The sensor reports no signal.",
    "A ship leaves the harbor.",
    "Check the oil level.",
    "The train is late.",
];

/// Runs `caxton model compare` and returns the exit code, stdout and stderr.
fn compare(root: &Root, arguments: &[&Path], options: &[&str]) -> (i32, String, String) {
    let output =
        root.cli().args(["model", "compare"]).args(arguments).args(options).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Runs it with `--json`; it must succeed. Returns the report.
fn report(root: &Root, a: &Path, b: &Path, pairs: Option<&str>) -> Value {
    // Lines may have both forms.
    let [json, plain] = [json_lines(&TEXTS[..6]), TEXTS[6..].join("\n")];
    let texts = write(root, "texts.txt", &(json + &plain));
    let mut options = vec!["--json", "--texts", texts.to_str().unwrap()];
    options.extend(pairs.into_iter().flat_map(|pairs| ["--pairs", pairs]));
    let (code, stdout, stderr) = compare(root, &[a, b], &options);
    assert_eq!(code, 0, "{stderr}");
    serde_json::from_str(&stdout).unwrap()
}

fn json_lines(texts: &[&str]) -> String {
    texts.iter().map(|text| json!(text).to_string() + "\n").collect()
}

fn write(root: &Root, name: &str, content: &str) -> PathBuf {
    let path = root.path().join(name);
    fs::write(&path, content).unwrap();
    path
}

fn package(root: &Root, golden: &str, id: &str) -> PathBuf {
    let path = root.path().join(format!("{id}.model.tar.zst"));
    fs::write(&path, pack(golden, id, "1")).unwrap();
    path
}

#[test]
fn equal_packages_agree_completely() {
    let root = Root::without_bundled();
    let a = package(&root, "tiny-bert-mean", "a");
    // The same files under another id have the same embedding space.
    let b = package(&root, "tiny-bert-mean", "b");
    let report = report(&root, &a, &b, None);
    assert_eq!(report["same_embedding_space"], true, "{report}");
    assert_eq!((&report["texts"], &report["similarity_pairs"]), (&json!(12), &json!(66)));
    assert_eq!(report["neighbor_overlap"], 1.0, "{report}");
    assert!(report["rank_correlation"].as_f64().unwrap() > 0.999, "{report}");
    let verdict = "a@1 and b@1 have the same embedding space: their vectors may be mixed";
    assert_eq!(report["verdict"], verdict);
    for model in ["a", "b"] {
        assert_eq!(report[model]["measured_in"], "process");
        for figure in ["texts_per_second", "load_ms", "memory_bytes"] {
            assert!(report[model][figure].as_f64().unwrap() > 0.0, "{figure}: {report}");
        }
    }
}

#[test]
fn different_packages_are_told_apart_and_search_is_judged() {
    let root = Root::without_bundled();
    let a = package(&root, "tiny-bert-mean", "a");
    let b = package(&root, "tiny-mpnet", "b");
    // Each text is the relevant one for itself, so that every model finds it first.
    let pairs: String = TEXTS.iter().map(|text| format!("{text}\t{text}\t2\n")).collect();
    let pairs = write(&root, "pairs.tsv", &pairs);
    let compared = report(&root, &a, &b, pairs.to_str());
    assert_eq!(compared["same_embedding_space"], false, "{compared}");
    let overlap = compared["neighbor_overlap"].as_f64().unwrap();
    // Ten of the eleven other texts are neighbors, so that nine are common at least.
    assert!((0.9..=1.0).contains(&overlap), "{compared}");
    assert!(compared["rank_correlation"].as_f64().unwrap() < 0.999, "{compared}");
    assert_eq!((&compared["a"]["ndcg_at_10"], &compared["queries"]), (&json!(1.0), &json!(12)));
    let verdict = compared["verdict"].as_str().unwrap();
    assert!(verdict.contains("must not be mixed: embed all texts again; both find"), "{verdict}");

    // In a human's table, both models are columns.
    let texts = write(&root, "texts.jsonl", &json_lines(&TEXTS));
    let (code, stdout, stderr) = compare(&root, &[&a, &b], &["--texts", texts.to_str().unwrap()]);
    assert_eq!(code, 0, "{stderr}");
    let heading = stdout.lines().next().unwrap();
    assert!(heading.contains("a@1") && heading.contains("b@1"), "{stdout}");
    assert!(stdout.ends_with("embed all texts again\n"), "{stdout}");
}

#[test]
fn installed_models_are_compared_in_the_daemon() {
    let daemon = Root::with_other().start();
    let compared = report(&daemon, Path::new("bundled-mini"), Path::new("other@2"), None);
    for (model, name) in [("a", "bundled-mini@1"), ("b", "other@2")] {
        let found = &compared[model];
        assert_eq!((&found["measured_in"], &found["model"]), (&json!("daemon"), &json!(name)));
        assert!(found["load_ms"].as_f64().unwrap() > 0.0, "{compared}");
    }
    // The vectors over the socket are those of the package file.
    let file = package(&daemon, "tiny-bert-mean", "copy");
    let same = report(&daemon, Path::new("bundled-mini"), &file, None);
    assert_eq!(same["same_embedding_space"], true, "{same}");
    assert_eq!(same["neighbor_overlap"], 1.0, "{same}");
    assert_eq!(same["b"]["measured_in"], "process");
    daemon.stop();
}

#[test]
fn installed_models_are_compared_without_daemon() {
    let root = Root::with_other().start().stop();
    let compared = report(&root, Path::new("bundled-mini"), Path::new("other"), None);
    assert_eq!(compared["a"]["measured_in"], "process");
    assert_eq!(compared["b"]["model"], "other@2");
}

#[test]
fn unusable_input_names_file_and_limit() {
    let root = Root::without_bundled();
    let a = package(&root, "tiny-bert-mean", "a");
    let texts = write(&root, "texts.jsonl", &json_lines(&TEXTS));
    let many: String = (0..=5000).map(|index| format!("\"text {index}\"\n")).collect();
    let many = write(&root, "many.jsonl", &many);
    let bad = write(&root, "bad.tsv", "only one field\n");
    let foreign = root.path().join("latin1.txt");
    fs::write(&foreign, b"a\nh\xf6he\n").unwrap();
    let cases: [(&Path, Option<&Path>, &str); 4] = [
        (&many, None, "many.jsonl has more than 5000 different texts"),
        (&foreign, None, "line 2 of "),
        (&texts, Some(&bad), "line 1 of"),
        (&root.path().join("absent"), None, "absent"),
    ];
    for (texts, pairs, message) in cases {
        let mut options = vec!["--texts", texts.to_str().unwrap()];
        options.extend(pairs.into_iter().flat_map(|path| ["--pairs", path.to_str().unwrap()]));
        let (code, stdout, stderr) = compare(&root, &[&a, &a], &options);
        assert!(code == 65 || code == 71, "{stderr}");
        assert!(stderr.contains(message) && stdout.is_empty(), "{message}: {stderr}");
    }
    let (code, _, stderr) =
        compare(&root, &[&a, Path::new("none-such")], &["--texts", texts.to_str().unwrap()]);
    assert_eq!(code, 65, "{stderr}");
    assert!(stderr.contains("\"none-such\" is not installed"), "{stderr}");
}
