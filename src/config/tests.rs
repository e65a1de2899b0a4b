//! Tests of `config`.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::file::{Node, Value};
use super::*;
use crate::base::units::{Bytes, Percent};

const SHIPPED: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/etc/caxton/caxton.yaml"));

fn load_bytes(content: &[u8]) -> Result<LoadedConfig, ConfigError> {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("caxton.yaml");
    fs::write(&path, content).unwrap();
    load(&ConfigSource::File(path))
}

fn load_yaml(yaml: &str) -> Settings {
    load_bytes(yaml.as_bytes()).expect(yaml).settings
}

/// Returns the problems below `root`, one on each line, without the path of the root.
fn below(root: &TempDir) -> String {
    let problems = load(&ConfigSource::Layers { root: root.path().into() }).err();
    let text = problems.map(|error| error.to_string()).unwrap_or_default();
    text.replace(&root.path().display().to_string(), "")
}

fn write(root: &Path, name: &str, content: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Collects the dotted names of all keys in the tree.
fn names(section: &str, node: &Node, found: &mut Vec<String>) {
    let Value::Section(entries) = &node.value else {
        return found.push(section.to_owned());
    };
    for (key, value) in entries {
        let Value::Text(key) = &key.value else { continue };
        let name = if section.is_empty() { key.clone() } else { format!("{section}.{key}") };
        names(&name, value, found);
    }
}

#[test]
fn defaults_apply_without_files() {
    let root = TempDir::new().unwrap();
    let loaded = load(&ConfigSource::Layers { root: root.path().into() }).unwrap();
    assert_eq!(loaded, LoadedConfig { settings: Settings::default(), files: Vec::new() });
}

#[test]
fn shipped_file_has_defaults_and_every_key() {
    let mut expected = Settings::default();
    expected.socket.group = Some("caxton".to_owned());
    assert_eq!(load_yaml(SHIPPED), expected);
    expected.models.insert("bundled-mini".to_owned(), ModelSettings::default());
    let alias = AliasSettings { model: "bundled-mini".to_owned(), ..AliasSettings::default() };
    expected.aliases.insert("default".to_owned(), alias);

    // A key that is commented out directly follows its `#`; a sentence follows after a space.
    let uncomment = |line: &str| match line.split_once('#') {
        Some((indent, key)) if indent.trim().is_empty() && !key.starts_with(' ') => {
            format!("{indent}{key}\n")
        }
        _ => format!("{line}\n"),
    };
    let uncommented: String = SHIPPED.lines().map(uncomment).collect();
    assert_eq!(load_yaml(&uncommented), expected);
    let mut found = Vec::new();
    names("", &file::parse(uncommented.as_bytes()).unwrap(), &mut found);
    let keys = KEYS.iter().filter(|key| !key.alias);
    let keys = keys.map(|key| key.name.replace(MODEL, "bundled-mini").replace(ALIAS, "default"));
    assert_eq!(found, keys.collect::<Vec<_>>());
    assert!(SHIPPED.lines().all(|line| line.chars().count() <= 120));
}

#[test]
fn shipped_comment_tells_need_of_restart() {
    let (mut comment, mut marked) = ("", Vec::new());
    for line in SHIPPED.lines().map(str::trim) {
        if line.is_empty() || line.starts_with("# ") {
            comment = line;
        } else if line.trim_start_matches('#').contains(": ") {
            // The last line of the comment has the mark.
            marked.push(std::mem::take(&mut comment).ends_with("Restart."));
        }
    }
    let keys: Vec<_> = KEYS.iter().filter(|key| !key.alias).collect();
    assert_eq!(marked.len(), keys.len());
    for (key, marked) in keys.iter().zip(marked) {
        assert_eq!(marked, key.restart, "{}", key.name);
    }
}

#[test]
fn offline_edge_device_configuration_loads() {
    let settings = load_yaml(
        r#"
memory:
  backend: "embedded"
  embedding_model: "bundled-mini"
  model_cache: { directory: "/data/caxton/models", auto_download: false, bundled_models_only: true }
  fallback_strategy: "strict"
  download: { enabled: false }
"#,
    );
    let mut expected = Settings::default();
    expected.memory.model_cache.directory = "/data/caxton/models".into();
    expected.memory.model_cache.bundled_only = true;
    expected.memory.fallback_strategy = FallbackStrategy::Strict;
    assert_eq!(settings, expected);
}

#[test]
fn every_key_reaches_its_setting() {
    let settings = load_yaml(
        r#"
socket:
  { path: /s, mode: "0600", group: 7, admins: { users: [a, 1], groups: [b] }, max_connections: 2,
    max_body: 1MiB, drain_timeout: 1500ms, overload_status: 503 }
memory:
  embedding_model: m
  rerank_model: r@1
  fallback_models: [n]
  fallback_strategy: manual
  allow_fallback: true
  allow_dimension_mismatch: true
  dynamic_selection: true
  preload_models: [m, n]
  preload_expected: false
  max_loaded_models: 2
  max_idle_time: 30m
  memory_limit: 512MiB
  min_free: 1MiB
  eviction_policy: fifo
  pressure: { moderate: 50%, high: 60%, critical: 70%, recovery_time: 3s, reload_cooldown: 4s }
  model_cache:
    { directory: /d, max_size_gb: 0.5, max_models: 3, cleanup_policy: manual, unused_for: 30days,
      validation_interval: 1h, validation_on_startup: false, bundled_only: true }
packages:
  { drop_directory: /p, more_directories: [{ path: /q, remove_with_file: true }, { path: /r }],
    bundled_directory: /b, keys_directory: /k, disable_unsigned: true, updates: manual,
    replace_embedding_space: true, remove_with_file: false,
    incomplete_timeout: 5s, max_package_size: 1GB }
embedding: { precision: int8, threads: 4, batch_tokens: 1024, queue_size: 9, queue_tokens: 512,
  max_batch_wait_ms: 7, parallel_batches: 3, allow_any_dimensions: true }
models:
  m.1@2.0:
    { memory_priority: 5, max_idle_time: 5m, preload: true, pinned: true, max_sequence_length: 64 }
aliases:
  m.1-2.0: { model: m, revision: "2", canary: { model: n, revision: "0123", percent: 10 } }
tenants:
  - { name: t, users: [7], groups: [g], model: m, allowed_models: [n@1], priority: 8,
      max_concurrent: 4, dedicated_queue: true }
require_sandbox: true
log: { level: trace }
"#,
    );
    let expected = Settings {
        socket: SocketSettings {
            path: "/s".into(),
            mode: 0o600,
            group: Some("7".to_owned()),
            admins: Admins {
                users: vec!["a".to_owned(), "1".to_owned()],
                groups: vec!["b".to_owned()],
            },
            max_connections: 2,
            max_body: Bytes::mib(1),
            drain_timeout: Duration::from_millis(1500),
            overload_status: 503,
        },
        memory: MemorySettings {
            embedding_model: "m".to_owned(),
            rerank_model: Some("r@1".to_owned()),
            fallback_models: vec!["n".to_owned()],
            fallback_strategy: FallbackStrategy::Manual,
            allow_fallback: true,
            allow_dimension_mismatch: true,
            dynamic_selection: true,
            preload_models: vec!["m".to_owned(), "n".to_owned()],
            preload_expected: false,
            max_loaded_models: 2,
            max_idle_time: Some(Duration::from_secs(1800)),
            memory_limit: Some(Bytes::mib(512)),
            min_free: Bytes::mib(1),
            eviction_policy: EvictionPolicy::Fifo,
            pressure: PressureSettings {
                moderate: Percent::new(50),
                high: Percent::new(60),
                critical: Percent::new(70),
                recovery_time: Duration::from_secs(3),
                reload_cooldown: Duration::from_secs(4),
            },
            model_cache: ModelCacheSettings {
                directory: "/d".into(),
                max_size: Bytes(500_000_000),
                max_models: 3,
                cleanup_policy: CleanupPolicy::Manual,
                unused_for: Some(Duration::from_secs(30 * 86_400)),
                validation_interval: Duration::from_secs(3600),
                validation_on_startup: false,
                bundled_only: true,
            },
        },
        packages: PackageSettings {
            drop_directory: "/p".into(),
            more_directories: vec![
                DropDirectorySettings { path: "/q".into(), remove_with_file: true },
                DropDirectorySettings { path: "/r".into(), remove_with_file: false },
            ],
            bundled_directory: "/b".into(),
            keys_directory: "/k".into(),
            disable_unsigned: true,
            updates: UpdatePolicy::Manual,
            replace_embedding_space: true,
            remove_with_file: false,
            incomplete_timeout: Duration::from_secs(5),
            max_package_size: Bytes(1_000_000_000),
        },
        embedding: EmbeddingSettings {
            precision: Precision::Int8,
            threads: Some(4),
            batch_tokens: 1024,
            queue_size: 9,
            queue_tokens: 512,
            max_batch_wait_ms: 7,
            parallel_batches: Some(3),
            allow_any_dimensions: true,
        },
        models: BTreeMap::from([(
            "m.1@2.0".to_owned(),
            ModelSettings {
                memory_priority: 5,
                max_idle_time: IdleTime::After(Duration::from_secs(300)),
                preload: true,
                pinned: true,
                max_sequence_length: Some(64),
            },
        )]),
        aliases: BTreeMap::from([(
            "m.1-2.0".to_owned(),
            AliasSettings {
                model: "m".to_owned(),
                revision: Some("2".to_owned()),
                canary: CanarySettings {
                    model: Some("n".to_owned()),
                    revision: Some("0123".to_owned()),
                    percent: 10,
                },
            },
        )]),
        tenants: vec![TenantSettings {
            name: "t".to_owned(),
            users: vec!["7".to_owned()],
            groups: vec!["g".to_owned()],
            model: Some("m".to_owned()),
            allowed_models: Some(vec!["n@1".to_owned()]),
            priority: 8,
            max_concurrent: Some(4),
            dedicated_queue: true,
        }],
        require_sandbox: true,
        log: LogSettings { level: LogLevel::Trace },
    };
    assert_eq!(settings, expected);

    // The value above sets every setting, and a reload names each key once, in the order of the
    // table.
    let difference = diff(&Settings::default(), &settings);
    let keys = |restart| {
        let keys = KEYS.iter().filter(move |k| !k.alias && k.setting.is_some());
        let keys = keys.filter(move |k| k.restart == restart);
        let named = |name: &str| name.replace(MODEL, "m.1@2.0").replace(ALIAS, "m.1-2.0");
        keys.map(|k| named(k.name)).collect::<Vec<_>>()
    };
    assert_eq!(difference, ConfigChange { restart: keys(true), live: keys(false) });
    assert_eq!(diff(&settings, &settings), ConfigChange::default());
}

#[test]
fn later_files_override_keys_and_whole_lists() {
    let root = TempDir::new().unwrap();
    write(
        root.path(),
        "usr/lib/caxton/caxton.yaml",
        "socket: { group: caxton, max_connections: 8, admins: { users: [a, b] } }\n\
             memory: { model_cache: { bundled_only: true } }\nembedding: { threads: 2 }\n\
             models: { a.1: { max_idle_time: 5s, pinned: true }, b: { preload: true } }",
    );
    write(
        root.path(),
        "etc/caxton/conf.d/50-site.yaml",
        "socket: { group: ~, drain_timeout: 5s, admins: { users: [c] } }\n\
             memory: { model_cache: { bundled_models_only: false } }\nembedding: { threads: auto }\n\
             models: { a.1: { max_idle_time: never, memory_priority: 1 } }",
    );
    write(root.path(), "run/caxton/conf.d/10-run.yaml", "socket: { drain_timeout: 1ms }");
    let loaded = load(&ConfigSource::Layers { root: root.path().into() }).unwrap();
    let mut expected = Settings::default();
    expected.socket.max_connections = 8;
    expected.socket.drain_timeout = Duration::from_secs(5);
    expected.socket.admins.users = vec!["c".to_owned()];
    let default = ModelSettings::default();
    let pinned = ModelSettings {
        memory_priority: 1,
        max_idle_time: IdleTime::Never,
        pinned: true,
        ..default
    };
    expected.models.insert("a.1".to_owned(), pinned);
    expected.models.insert("b".to_owned(), ModelSettings { preload: true, ..default });
    assert_eq!(loaded.settings, expected);
    let names: Vec<_> = loaded.files.iter().filter_map(|file| file.file_name()).collect();
    assert_eq!(names, ["caxton.yaml", "10-run.yaml", "50-site.yaml"]);
}

#[test]
fn every_file_and_value_has_origin() {
    let root = TempDir::new().unwrap();
    let at = |name: &str| root.path().join(name);
    let queue = "embedding:\n  queue_size: 3\n  threads: 2\n";
    write(root.path(), "usr/lib/caxton/caxton.yaml", "");
    write(root.path(), "etc/caxton/caxton.yaml", queue);
    write(root.path(), "usr/lib/caxton/conf.d/10-a.yaml", "log: { level: warn }");
    write(root.path(), "run/caxton/conf.d/10-a.yaml", "");
    write(root.path(), "usr/lib/caxton/conf.d/90-b.yaml", "embedding: { queue_size: 4 }");
    let explained = explain(&ConfigSource::Layers { root: root.path().into() }).unwrap();
    let (main, last) = (at("etc/caxton/caxton.yaml"), at("usr/lib/caxton/conf.d/90-b.yaml"));
    let found = |path: &PathBuf, status| SourceFile { path: path.clone(), status };
    let mask = at("run/caxton/conf.d/10-a.yaml");
    assert_eq!(
        explained.found,
        [
            found(&at("usr/lib/caxton/caxton.yaml"), FileStatus::ReplacedBy(main.clone())),
            found(&main, FileStatus::Applied),
            found(&at("usr/lib/caxton/conf.d/10-a.yaml"), FileStatus::ReplacedBy(mask.clone())),
            found(&mask, FileStatus::Empty),
            found(&last, FileStatus::Applied),
        ]
    );
    assert_eq!(explained.loaded.files, [main.clone(), last.clone()]);
    let written: Vec<_> =
        explained.values.iter().filter_map(|v| Some((v.key(), v.origin.clone()?))).collect();
    let origin = |file: &PathBuf, line, column| ValueOrigin {
        file: file.clone(),
        position: Position { line, column },
    };
    assert_eq!(
        written,
        [
            ("embedding.threads".to_owned(), origin(&main, 3, 12)),
            ("embedding.queue_size".to_owned(), origin(&last, 1, 26)),
        ]
    );
}

#[test]
fn reload_names_only_changed_model_keys() {
    let before = load_yaml("models: { a: { pinned: true }, b: { memory_priority: 2 } }");
    let after =
        load_yaml("models: { a: { pinned: true, preload: true }, c.1: { max_idle_time: 9s } }");
    let expected = ["models.b.memory_priority", "models.c.1.max_idle_time", "models.a.preload"];
    assert_eq!(diff(&before, &after).live, expected);
    assert_eq!(diff(&after, &before).live, expected);
    assert_eq!(
        diff(&Settings::default(), &load_yaml("models: { a: {} }")),
        ConfigChange::default()
    );
}

#[test]
fn unordered_thresholds_are_refused_at_last_key() {
    let one = |yaml: &str| {
        let root = TempDir::new().unwrap();
        write(root.path(), "etc/caxton/caxton.yaml", yaml);
        below(&root)
    };
    let in_one_file = [
        (
            "memory: { pressure: { moderate: 85% } }",
            "/etc/caxton/caxton.yaml:1:33: memory.pressure.moderate: expected a value below \
                 memory.pressure.high, which is 85% by default, found 85%",
        ),
        (
            "memory:\n  pressure:\n    moderate: 99%\n    high: 98%\n    critical: 97%",
            "/etc/caxton/caxton.yaml:4:11: memory.pressure.high: expected a value above \
                 memory.pressure.moderate, which is 99% in /etc/caxton/caxton.yaml:3:15, found 98%\n\
                 /etc/caxton/caxton.yaml:5:15: memory.pressure.critical: expected a value above \
                 memory.pressure.high, which is 98% in /etc/caxton/caxton.yaml:4:11, found 97%",
        ),
        ("memory: { pressure: { moderate: 1%, high: 2%, critical: 3% } }", ""),
    ];
    for (yaml, expected) in in_one_file {
        assert_eq!(one(yaml), expected, "{yaml}");
    }

    let root = TempDir::new().unwrap();
    let high = "memory: { pressure: { high: 96%, critical: 97% } }";
    write(root.path(), "usr/lib/caxton/caxton.yaml", high);
    write(root.path(), "run/caxton/conf.d/50.yaml", "memory: { pressure: { critical: 90% } }");
    assert_eq!(
        below(&root),
        "/run/caxton/conf.d/50.yaml:1:33: memory.pressure.critical: expected a value above \
             memory.pressure.high, which is 96% in /usr/lib/caxton/caxton.yaml:1:29, found 90%"
    );
    // A file may contradict a lower one, as long as a later file corrects that.
    write(root.path(), "etc/caxton/conf.d/60.yaml", "memory: { pressure: { high: 80% } }");
    assert_eq!(below(&root), "");
}

#[test]
fn alias_must_name_a_model() {
    let cases = [
        (
            "aliases: { a: { revision: v } }",
            "f:1:27: aliases.a.model: missing: expected the id of the model that the alias names",
        ),
        (
            "aliases: { a: { model: m, canary: { percent: 5 } } }",
            "f:1:46: aliases.a.canary.model: missing: canary.percent is above 0; add the id of \
                 the canary's model",
        ),
        (
            "aliases: { a: { model: a } }",
            "f:1:24: aliases.a.model: \"a\" is an alias; expected the id of a model",
        ),
        (
            "aliases: { a: { model: m, canary: { model: b } }, b: { model: m } }",
            "f:1:44: aliases.a.canary.model: \"b\" is an alias; expected the id of a model",
        ),
        // The alias has the model's own id, pinned to a version.
        ("aliases: { a: { model: a, revision: v } }", ""),
        ("aliases: { a: }", ""),
    ];
    for (yaml, expected) in cases {
        let root = TempDir::new().unwrap();
        write(root.path(), "etc/caxton/caxton.yaml", yaml);
        assert_eq!(below(&root).replace("/etc/caxton/caxton.yaml", "f"), expected, "{yaml}");
    }
    // A later file changes the percentage alone.
    let root = TempDir::new().unwrap();
    let alias = "aliases: { a: { model: m, canary: { model: n, percent: 5 } } }";
    write(root.path(), "etc/caxton/caxton.yaml", alias);
    let more = "aliases: { a: { canary: { percent: 50 } } }";
    write(root.path(), "etc/caxton/conf.d/more.yaml", more);
    let settings = load(&ConfigSource::Layers { root: root.path().into() }).unwrap().settings;
    let canary = CanarySettings { model: Some("n".to_owned()), revision: None, percent: 50 };
    assert_eq!(settings.aliases["a"].canary, canary);
    assert_eq!(diff(&Settings::default(), &settings).live.len(), 3);
}

#[test]
fn further_drop_directory_has_one_use() {
    let root = TempDir::new().unwrap();
    let more = "packages: { more_directories: [{ path: /a }, { path: /var/lib/caxton/ }] }";
    write(root.path(), "etc/caxton/caxton.yaml", more);
    assert_eq!(
        below(&root),
        "/etc/caxton/caxton.yaml:1:31: packages.more_directories: /var/lib/caxton is also \
         memory.model_cache.directory; use another directory"
    );
    let store = "memory: { model_cache: { directory: /b } }";
    write(root.path(), "etc/caxton/conf.d/store.yaml", store);
    assert_eq!(below(&root), "");
}

#[test]
fn default_alias_is_the_default_model() {
    assert_eq!(Settings::default().default_model(), "bundled-mini");
    let settings = load_yaml("aliases: { default: { model: m }, a: { model: n } }");
    assert_eq!(settings.default_model(), "default");
    let settings = load_yaml("memory: { embedding_model: a }\naliases: { a: { model: n } }");
    assert_eq!(settings.default_model(), "a");
}

#[test]
fn problems_of_all_files_are_reported_together() {
    let root = TempDir::new().unwrap();
    let base = root.path().display().to_string();
    write(
        root.path(),
        "etc/caxton/caxton.yaml",
        "memory:\n  model_cache:\n    max_models: 0\n    max_modles: 3\n    max_models: 1\n",
    );
    write(root.path(), "etc/caxton/conf.d/10-bad.yaml", "socket: [\n");
    write(root.path(), "etc/caxton/conf.d/20-good.yaml", "log: { level: warn }\n");
    write(
        root.path(),
        "etc/caxton/conf.d/30-units.yaml",
        "socket:\n  max_body: 16\n  drain_timeout: 20\n",
    );
    let error = load(&ConfigSource::Layers { root: root.path().into() }).unwrap_err();
    assert_eq!(
        error.to_string().replace(&base, ""),
        "/etc/caxton/caxton.yaml:3:17: memory.model_cache.max_models: expected 1 to 1000, found 0\n\
             /etc/caxton/caxton.yaml:4:5: memory.model_cache: unknown key \"max_modles\"; \
             did you mean \"max_models\"?\n\
             /etc/caxton/caxton.yaml:5:5: memory.model_cache.max_models: duplicate key: \
             line 3 has the same key; remove one\n\
             /etc/caxton/conf.d/10-bad.yaml:1:9: unclosed bracket '['\n\
             /etc/caxton/conf.d/30-units.yaml:2:13: socket.max_body: expected a size with its unit, \
             such as \"512MiB\", from 1.0 KiB to 1.0 GiB, found 16\n\
             /etc/caxton/conf.d/30-units.yaml:3:18: socket.drain_timeout: expected a duration with \
             its unit, such as \"10s\", from 0s to 10m, found 20"
    );
}

#[test]
fn missing_file_error_names_path_and_operation() {
    let error = load(&ConfigSource::File("/nowhere/caxton.yaml".into())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/nowhere/caxton.yaml: failed to open: No such file or directory (os error 2)"
    );
}

/// Generates documents of known and unknown keys with values of every kind, so that most of
/// them pass the parser.
fn documents() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "socket",
        "memory",
        "model_cache",
        "mode",
        "group",
        "admins",
        "users",
        "max_models",
        "max_size_gb",
        "download",
        "enabled",
        "pressure",
        "high",
        "memory_limit",
        "models",
        "a.1",
        "max_idle_time",
        "embedding",
        "threads",
        "log",
        "level",
        "x",
        "<<",
    ]);
    let value = prop::sample::select(vec![
        "1",
        "-1",
        "1e308",
        "-0.0",
        ".nan",
        "18446744073709551615",
        "\"0660\"",
        "auto",
        "~",
        "[a, ~, {}]",
        "{}",
        "true",
        "5s",
        "99999999999999999999y",
        "1e9GiB",
        "64MiB",
        "1%",
        "never",
        "/a",
        "''",
        "*a",
    ]);
    let line = (0_usize..4, key, prop::option::of(value)).prop_map(|(depth, key, value)| {
        format!("{}{key}: {}\n", "  ".repeat(depth), value.unwrap_or_default())
    });
    prop::collection::vec(line, 0..12).prop_map(|lines| lines.concat())
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_the_loader(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Err(error) = load_bytes(&bytes) {
            prop_assert!(!error.problems.is_empty());
        }
    }

    #[test]
    fn arbitrary_document_problems_are_single_lines(yaml in documents()) {
        if let Err(error) = load_bytes(yaml.as_bytes()) {
            prop_assert_eq!(error.to_string().lines().count(), error.problems.len());
        }
    }
}
