//! Tests of `caxton model`, with a running daemon and without one: both give the same output and
//! the same exit codes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::packages::names;
use crate::support::{Daemon, Root, TINY_DIMENSIONS, golden, pack, tiny_package};

/// EX_DATAERR of `sysexits.h`: the data is wrong.
const DATA: i32 = 65;
const USAGE: i32 = 64;
const UNAVAILABLE: i32 = 69;
const SYSTEM: i32 = 71;

/// Root with a running daemon, or without one.
enum Place {
    Served(Box<Daemon>),
    Alone(Root),
}

impl Place {
    /// Creates both, each with the bundled model in its store.
    fn both() -> [Self; 2] {
        let served = Root::new().start();
        let alone = Root::new().start().stop();
        [Self::Served(Box::new(served)), Self::Alone(alone)]
    }

    fn root(&self) -> &Root {
        match self {
            Self::Served(daemon) => daemon,
            Self::Alone(root) => root,
        }
    }

    /// Runs `caxton model` with `arguments` and returns the exit code, stdout and stderr.
    fn model(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = self.root().cli().arg("model").args(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    /// Runs [`Self::model`], which must succeed without output on stderr, and returns its stdout.
    fn done(&self, arguments: &[&str]) -> String {
        let (code, stdout, stderr) = self.model(arguments);
        assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}: {stdout}");
        stdout
    }

    /// Runs [`Self::model`], which must fail with `code` and print `words` on stderr.
    fn refused(&self, arguments: &[&str], code: i32, words: &[&str]) {
        let (found, stdout, stderr) = self.model(arguments);
        assert_eq!(found, code, "{arguments:?}: {stdout}{stderr}");
        assert!(stderr.starts_with("caxton: "), "{arguments:?}: {stderr}");
        for word in words {
            assert!(stderr.contains(word), "{arguments:?}: {word} is not in {stderr}");
        }
    }

    fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn path(&self, name: &str) -> String {
        self.root().path().join(name).into_os_string().into_string().unwrap()
    }

    /// Returns the models in the output of `list`.
    fn listed(&self) -> Vec<String> {
        let list: Value = serde_json::from_str(&self.done(&["list", "--json"])).unwrap();
        let packages = list["packages"].as_array().unwrap();
        let name = |package: &Value| {
            format!("{}@{}", package["id"].as_str().unwrap(), package["version"].as_str().unwrap())
        };
        packages.iter().map(name).collect()
    }
}

/// Returns the package with one flipped bit in the content of a member.
fn with_flipped_bit_in(member: &str, package: &[u8]) -> Vec<u8> {
    let mut archive = zstd::decode_all(package).unwrap();
    let header = archive.windows(member.len() + 1).position(|window| {
        window.strip_suffix(b"\0").is_some_and(|name| name == member.as_bytes())
    });
    archive[header.unwrap() + 512 + 20] ^= 1;
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(&archive).unwrap();
    encoder.finish().unwrap()
}

fn tiny() -> String {
    golden("tiny-bert-mean").into_os_string().into_string().unwrap()
}

/// Installs version 1.2 of the model `m` and returns the package and its path.
fn install(place: &Place) -> (Vec<u8>, String) {
    let package = pack("tiny-bert-cls", "m", "1.2");
    let file = place.file("m-1.2.model.tar.zst", &package);
    let installed = place.done(&["install", &file]);
    assert_eq!(installed, "installed: m@1.2, signature: none\n");
    (package, file)
}

#[test]
fn package_is_installed_and_listed_once() {
    for place in Place::both() {
        let (_, file) = install(&place);
        let again = place.done(&["install", &file]);
        assert_eq!(again, "already installed: m@1.2, signature: none\n");
        assert_eq!(place.listed(), ["bundled-mini@1", "m@1.2"]);
        let table = place.done(&["list"]);
        assert!(
            table.lines().any(|line| line.starts_with("m ") && line.contains("1.2")),
            "{table}"
        );
    }
}

#[test]
fn installed_package_is_shown_verified_and_exported() {
    for place in Place::both() {
        let (package, _) = install(&place);
        for name in ["m", "m@1.2"] {
            let shown: Value =
                serde_json::from_str(&place.done(&["show", name, "--json"])).unwrap();
            assert_eq!(shown["origin"], "installed");
            assert_eq!(shown["status"], "available");
            assert!(shown["size_bytes"].as_u64().unwrap() > 10_000);
            let text = place.done(&["show", name]);
            let digest = shown["package_sha256"].as_str().unwrap();
            assert!(text.contains(digest), "{text}");
            let verified = place.done(&["verify", name]);
            assert!(verified.starts_with("ok: m@1.2, every file matches"), "{verified}");
            let exported = place.path("exported.model.tar.zst");
            place.done(&["export", name, "--output", &exported]);
            assert_eq!(fs::read(&exported).unwrap(), package);
        }
    }
}

#[test]
fn several_packages_are_installed_independently() {
    for place in Place::both() {
        let good = place.file("m.model.tar.zst", &pack("tiny-bert-cls", "m", "1"));
        let bad = place.file("bad.model.tar.zst", b"no package");
        let missing = place.path("missing.model.tar.zst");
        let (code, stdout, stderr) = place.model(&["install", "--json", &bad, &good]);
        assert_eq!(code, DATA, "{stderr}");
        assert!(stderr.starts_with(&format!("caxton: {bad}: ")), "{stderr}");
        let results: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(results.as_array().unwrap().len(), 2, "{results}");
        assert!(results[0]["error"].is_string() && results[0]["file"] == bad, "{results}");
        assert_eq!(results[1]["package"]["id"], "m", "{results}");
        assert_eq!(results[1]["error"], Value::Null, "{results}");
        assert_eq!(place.listed(), ["bundled-mini@1", "m@1"]);
        // The exit code is that of the worst failure, not of the last one.
        let (code, stdout, stderr) = place.model(&["install", &missing, &good, &bad]);
        assert_eq!(code, SYSTEM, "{stderr}");
        assert_eq!(stdout, "already installed: m@1, signature: none\n");
        let one: Value = serde_json::from_str(&place.done(&["install", "--json", &good])).unwrap();
        assert_eq!((&one["file"], &one["existed"]), (&good.as_str().into(), &true.into()));
    }
}

#[test]
fn export_accepts_id_as_option_and_warns_about_names() {
    for place in Place::both() {
        let (package, _) = install(&place);
        let copy = place.path("copy.model.tar.zst");
        place.done(&["export", "--model-id", "m", "--output", &copy, "--include-metadata"]);
        assert_eq!(fs::read(&copy).unwrap(), package);
        let other = place.path("copy.tar.gz");
        let (code, _, stderr) = place.model(&["export", "m", "--output", &other]);
        assert_eq!(code, 0, "{stderr}");
        assert!(stderr.contains("copy.tar.gz does not end in .model.tar.zst"), "{stderr}");
        for ids in [&["m", "--model-id", "m"][..], &[]] {
            let (code, ..) = place.model(&[&["export", "--output", &copy], ids].concat());
            assert_eq!(code, USAGE, "{ids:?}");
        }
    }
}

/// Returns the status of each file in the output of `verify --json`.
fn statuses(report: &Value) -> Vec<(&str, &str)> {
    let files = report["files"].as_array().unwrap();
    files
        .iter()
        .map(|file| (file["name"].as_str().unwrap(), file["status"].as_str().unwrap()))
        .collect()
}

#[test]
fn verify_report_has_measured_figures() {
    for place in Place::both() {
        let (_, file) = install(&place);
        for what in [&file, "m"] {
            let report: Value =
                serde_json::from_str(&place.done(&["verify", "--json", what])).unwrap();
            let files = ["config.json", "tokenizer.json", "model.safetensors"];
            assert_eq!(statuses(&report), files.map(|name| (name, "valid")), "{report}");
            assert_eq!((&report["valid"], &report["can_load"]), (&true.into(), &true.into()));
            assert_eq!((&report["id"], &report["version"]), (&"m".into(), &"1.2".into()));
            assert_eq!(report["dimensions"], TINY_DIMENSIONS);
            assert!(report["self_test_cosine"].as_f64().unwrap() >= 0.9995, "{report}");
            for figure in ["load_ms", "weight_bytes", "peak_bytes"] {
                assert!(report[figure].as_f64().unwrap() > 0.0, "{figure}: {report}");
            }
            assert_eq!(report["faults"], Value::Array(Vec::new()));
        }
    }
}

#[test]
fn verify_report_lists_every_faulty_file() {
    for place in Place::both() {
        let package = with_flipped_bit_in("tokenizer.json", tiny_package());
        let package = with_flipped_bit_in("model.safetensors", &package);
        let file = place.file("bad.model.tar.zst", &package);
        let (code, stdout, _) = place.model(&["verify", "--json", &file]);
        let report: Value = serde_json::from_str(&stdout).unwrap();
        let expected = [
            ("config.json", "valid"),
            ("tokenizer.json", "invalid"),
            ("model.safetensors", "invalid"),
        ];
        assert_eq!((code, statuses(&report)), (DATA, expected.to_vec()), "{report}");
        assert_eq!(report["can_load"], false);
        place.refused(&["verify", &file], DATA, &["tokenizer.json", "model.safetensors"]);

        // Remove the bundled packages, because the daemon would repair the corrupt entry from them.
        for package in names(&place.root().bundled()) {
            fs::remove_file(place.root().bundled().join(package)).unwrap();
        }
        let models = place.root().state().join("models");
        let entry: PathBuf = fs::read_dir(models).unwrap().next().unwrap().unwrap().path();
        fs::remove_file(entry.join("tokenizer.json")).unwrap();
        fs::write(entry.join("model.safetensors"), "short").unwrap();
        let (code, stdout, _) = place.model(&["verify", "--json", "bundled-mini"]);
        let report: Value = serde_json::from_str(&stdout).unwrap();
        let expected = [
            ("config.json", "valid"),
            ("tokenizer.json", "missing"),
            ("model.safetensors", "invalid"),
        ];
        assert_eq!((code, statuses(&report)), (DATA, expected.to_vec()), "{report}");
        assert_eq!(report["faults"].as_array().unwrap().len(), 2, "{report}");
        let words = ["tokenizer.json", "model.safetensors"];
        place.refused(&["verify", "bundled-mini"], DATA, &words);
    }
}

#[test]
fn removed_package_is_not_installed_any_more() {
    for place in Place::both() {
        install(&place);
        assert_eq!(place.done(&["remove", "m"]), "removed: m@1.2\n");
        assert_eq!(place.listed(), ["bundled-mini@1"]);
        for command in [
            &["remove", "m"][..],
            &["show", "m"],
            &["verify", "m"],
            &["export", "m", "--output", &place.path("no")],
        ] {
            place.refused(command, DATA, &["\"m\" is not installed"]);
        }
        assert!(!Path::new(&place.path("no")).exists());
    }
}

#[test]
fn install_packs_a_source_directory() {
    for place in Place::both() {
        let (source, id) = (tiny(), "--model-id");
        let command = ["install", id, "m", "--source", &source, "--validate-checksums"];
        let said = place.done(&command);
        assert!(said.starts_with("installed: m@1, signature: none\nok: m@1, every file"), "{said}");
        assert_eq!(place.listed(), ["bundled-mini@1", "m@1"]);
        // A well-known name is accepted only for the model that it names.
        let known = ["install", id, "all-MiniLM-L6-v2", "--source", &source];
        place.refused(&known, DATA, &["this directory is not all-MiniLM-L6-v2", "384"]);
        assert_eq!(place.listed(), ["bundled-mini@1", "m@1"]);
    }
}

#[test]
fn packing_is_reproducible_and_prints_digest() {
    let place = Place::Alone(Root::without_bundled());
    for precision in ["f32", "f16", "int8", "int4-table"] {
        let pack = |name: &str| {
            let output = place.path(name);
            let source = tiny();
            let command = ["pack", "--source", &source, "--precision", precision];
            let said = place.done(&[&command[..], &["--output", &output]].concat());
            let package = fs::read(&output).unwrap();
            let digest = caxton::package::Digest::of(&package);
            assert_eq!(said, format!("{digest}  {output}\n"));
            let verified = place.done(&["verify", &output]);
            assert!(verified.contains(&digest.to_string()), "{verified}");
            assert!(verified.starts_with("ok: tiny-bert-mean@1, 3 files"), "{verified}");
            package
        };
        assert_eq!(pack("one"), pack("two"), "{precision}");
    }
}

#[test]
fn damaged_package_is_rejected_with_member_name() {
    for place in Place::both() {
        let good = tiny_package();
        for member in ["model.safetensors", "tokenizer.json", "config.json"] {
            let file = place.file("bad.model.tar.zst", &with_flipped_bit_in(member, good));
            place.refused(&["verify", &file], DATA, &[member, "SHA-256"]);
            place.refused(&["install", &file], DATA, &[member, "SHA-256"]);
        }
        let half = place.file("half.model.tar.zst", &good[..good.len() / 2]);
        let file = place.file("sum.model.tar.zst", good);
        place.file(
            "sum.model.tar.zst.sha256",
            format!("{}  sum.model.tar.zst\n", "0".repeat(64)).as_bytes(),
        );
        for command in ["verify", "install"] {
            place.refused(&[command, &half], DATA, &["before it is complete"]);
            place.refused(&[command, &file], DATA, &[".sha256 file says 0000"]);
        }
        assert_eq!(place.listed(), ["bundled-mini@1"]);
    }
}

#[test]
fn bundled_model_cannot_be_removed() {
    for place in Place::both() {
        place.refused(&["remove", "bundled-mini"], DATA, &["belongs to the appliance"]);
        assert_eq!(place.listed(), ["bundled-mini@1"]);
    }
}

#[test]
fn changed_model_fails_verification_and_export() {
    for place in Place::both() {
        // Remove the bundled packages, because the daemon would repair the corrupt entry from them.
        for package in names(&place.root().bundled()) {
            fs::remove_file(place.root().bundled().join(package)).unwrap();
        }
        let models = place.root().state().join("models");
        let entry: PathBuf = fs::read_dir(models).unwrap().next().unwrap().unwrap().path();
        let weights = entry.join("model.safetensors");
        let mut bytes = fs::read(&weights).unwrap();
        bytes[100] ^= 1;
        fs::write(&weights, bytes).unwrap();
        let words = ["model.safetensors", "corrupt"];
        place.refused(&["verify", "bundled-mini"], DATA, &words);
        place.refused(&["export", "bundled-mini", "--output", &place.path("no")], DATA, &words);
        assert!(!Path::new(&place.path("no")).exists());
    }
}

#[test]
fn failures_have_sysexits_codes() {
    for place in Place::both() {
        let missing = place.path("missing.model.tar.zst");
        place.refused(&["install", &missing], SYSTEM, &[&missing]);
        let source = place.path("no directory");
        place.refused(&["install", "--model-id", "m", "--source", &source], DATA, &[&source]);
        let (code, _, stderr) = place.model(&["install"]);
        assert_eq!(code, USAGE, "{stderr}");
        let nowhere = place.path("nowhere.sock");
        place.refused(&["list", "--socket", &nowhere], UNAVAILABLE, &[&nowhere]);
        let keys = place.root().keys().join("bad.pub");
        fs::write(&keys, "no key").unwrap();
        let file = place.file("m.model.tar.zst", tiny_package());
        place.refused(&["verify", &file], 78, &["bad.pub"]);
    }
}

#[test]
fn store_held_by_daemon_is_not_opened() {
    let daemon = Root::new().start();
    // The command line then looks for the daemon at a socket on which it does not listen.
    let elsewhere = daemon.path().join("elsewhere.sock");
    let config = fs::read_to_string(daemon.config()).unwrap();
    let other = daemon.path().join("other.yaml");
    let socket = daemon.socket().to_str().unwrap().to_owned();
    fs::write(&other, config.replace(&socket, elsewhere.to_str().unwrap())).unwrap();
    let output =
        crate::support::cli().args(["model", "list", "--config"]).arg(&other).output().unwrap();
    assert_eq!(output.status.code(), Some(UNAVAILABLE));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("in use by another process"), "{stderr}");
    daemon.embed("a text".into());
}
