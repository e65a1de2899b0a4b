//! Table of all keys of a configuration file: the name, the permitted values, the setting, and
//! whether it needs a restart.
//!
//! One table drives the checks, the suggestions for a misspelt key, the list of keys that a reload
//! changes, and the test of the shipped file, so that these cannot drift apart. Caxton refuses
//! unknown keys; it never accepts and ignores one. [`MODEL`] and [`ALIAS`] are placeholders for
//! sections that the operator names.

use std::time::Duration;

use super::kind::ValueKind;
use super::kind::sections::SectionField;
use super::settings::MemorySettings;
use crate::base::units::Bytes;

/// Placeholder of a section that has a model's name, written by the operator. Neither a key nor a
/// model can have this name, because `<` and `>` are not permitted in either.
pub(super) const MODEL: &str = "<model>";
/// Placeholder of a section that has an alias's name, as [`MODEL`].
pub(super) const ALIAS: &str = "<alias>";

/// Returns the kind of name that the operator may write for the placeholder `name`; `None` when
/// `name` is a key or a section itself.
pub(super) fn placeholder(name: &str) -> Option<&'static ValueKind> {
    match name {
        MODEL => Some(&ValueKind::Model),
        ALIAS => Some(&ValueKind::Name),
        _ => None,
    }
}

/// One key of a file.
#[derive(Debug)]
pub(super) struct ConfigKey {
    /// Names of its sections and its own name, joined by dots.
    pub(super) name: &'static str,
    /// Path of its field in [`super::Settings`], with the same placeholder; `None` when only one
    /// value is permitted.
    pub(super) setting: Option<&'static str>,
    /// Permitted values.
    pub(super) kind: ValueKind,
    /// Whether a change takes effect only after a restart.
    pub(super) restart: bool,
    /// Whether it is a second name of the key before it.
    pub(super) alias: bool,
}

const fn live(name: &'static str, kind: ValueKind) -> ConfigKey {
    ConfigKey { name, setting: Some(name), kind, restart: false, alias: false }
}

const fn restart(name: &'static str, kind: ValueKind) -> ConfigKey {
    ConfigKey { name, setting: Some(name), kind, restart: true, alias: false }
}

/// Returns a key with a single permitted value, which states the existing behavior.
const fn fixed(name: &'static str, kind: ValueKind) -> ConfigKey {
    ConfigKey { name, setting: None, kind, restart: false, alias: false }
}

/// Returns the names on the path `dotted`, with `given` for its placeholder. Only table paths may
/// be split at dots, because the operator's names may have dots, too.
pub(super) fn path<'a>(dotted: &'a str, given: &'a str) -> impl Iterator<Item = &'a str> {
    dotted.split('.').map(move |name| if placeholder(name).is_some() { given } else { name })
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// A year of humantime, 365.25 days, so that the bound prints as `1year`.
const YEAR: Duration = Duration::from_secs(31_557_600);
const TEN_YEARS: Duration = Duration::from_secs(315_576_000);

const KIB: Bytes = Bytes(1 << 10);
const GIB: Bytes = Bytes::mib(1 << 10);
const TIB: Bytes = Bytes::mib(1 << 20);

/// All keys, in the order of the shipped file.
pub(super) static KEYS: &[ConfigKey] = &[
    restart("socket.path", ValueKind::SocketPath),
    restart("socket.mode", ValueKind::Mode),
    restart("socket.group", ValueKind::AccountOrNone),
    live("socket.admins.users", ValueKind::List(&ValueKind::Account)),
    live("socket.admins.groups", ValueKind::List(&ValueKind::Account)),
    restart("socket.max_connections", ValueKind::Count(1, 65_536)),
    live("socket.max_body", ValueKind::Size(KIB, GIB)),
    live("socket.drain_timeout", ValueKind::Time(Duration::ZERO, Duration::from_secs(600))),
    live("socket.overload_status", ValueKind::OneNumberOf(&[429, 503])),
    fixed("memory.backend", ValueKind::OneOf(&["embedded"])),
    live("memory.embedding_model", ValueKind::Model),
    live("memory.rerank_model", ValueKind::Or("none", &ValueKind::Model)),
    live("memory.fallback_models", ValueKind::List(&ValueKind::Model)),
    live("memory.fallback_strategy", ValueKind::OneOf(&["auto", "manual", "strict"])),
    live("memory.allow_fallback", ValueKind::Flag),
    live("memory.allow_dimension_mismatch", ValueKind::Flag),
    live("memory.dynamic_selection", ValueKind::Flag),
    live("memory.preload_models", ValueKind::List(&ValueKind::Model)),
    live("memory.preload_expected", ValueKind::Flag),
    live("memory.max_loaded_models", ValueKind::Count(1, 1000)),
    live("memory.max_idle_time", ValueKind::Or("never", &ValueKind::Time(SECOND, YEAR))),
    live("memory.memory_limit", ValueKind::Or("auto", &MEMORY_LIMIT)),
    live("memory.min_free", ValueKind::Size(Bytes(0), TIB)),
    live("memory.eviction_policy", ValueKind::OneOf(&["memory_pressure", "lru", "fifo", "manual"])),
    live("memory.pressure.moderate", ValueKind::Percent),
    live("memory.pressure.high", ValueKind::Percent),
    live("memory.pressure.critical", ValueKind::Percent),
    live("memory.pressure.recovery_time", ValueKind::Time(SECOND, HOUR)),
    live("memory.pressure.reload_cooldown", ValueKind::Time(Duration::ZERO, HOUR)),
    restart("memory.model_cache.directory", ValueKind::Path),
    ConfigKey {
        setting: Some("memory.model_cache.max_size"),
        ..live("memory.model_cache.max_size_gb", ValueKind::Gigabytes)
    },
    live("memory.model_cache.max_models", ValueKind::Count(1, 1000)),
    live("memory.model_cache.cleanup_policy", ValueKind::OneOf(&["lru", "fifo", "manual"])),
    live(
        "memory.model_cache.unused_for",
        ValueKind::Or("never", &ValueKind::Time(HOUR, TEN_YEARS)),
    ),
    live("memory.model_cache.validation_interval", ValueKind::Time(MINUTE, YEAR)),
    restart("memory.model_cache.validation_on_startup", ValueKind::Flag),
    live("memory.model_cache.bundled_only", ValueKind::Flag),
    ConfigKey {
        setting: Some("memory.model_cache.bundled_only"),
        alias: true,
        ..live("memory.model_cache.bundled_models_only", ValueKind::Flag)
    },
    fixed("memory.model_cache.auto_download", ValueKind::NoDownload),
    fixed("memory.download.enabled", ValueKind::NoDownload),
    restart("packages.drop_directory", ValueKind::Path),
    restart("packages.more_directories", ValueKind::Records(DROP_DIRECTORY)),
    restart("packages.bundled_directory", ValueKind::Path),
    restart("packages.keys_directory", ValueKind::Path),
    live("packages.disable_unsigned", ValueKind::Flag),
    live("packages.updates", ValueKind::OneOf(&["automatic", "manual"])),
    live("packages.replace_embedding_space", ValueKind::Flag),
    live("packages.remove_with_file", ValueKind::Flag),
    live("packages.incomplete_timeout", ValueKind::Time(SECOND, DAY)),
    live("packages.max_package_size", ValueKind::Size(KIB, TIB)),
    restart("embedding.precision", ValueKind::OneOf(&["auto", "f32", "int8", "bf16"])),
    restart("embedding.threads", ValueKind::Or("auto", &ValueKind::Count(1, 256))),
    live("embedding.batch_tokens", ValueKind::Count(512, 65_536)),
    live("embedding.queue_size", ValueKind::Count(1, 100_000)),
    live("embedding.queue_tokens", ValueKind::Count(512, 100_000_000)),
    live("embedding.max_batch_wait_ms", ValueKind::Count(0, 1000)),
    live("embedding.parallel_batches", ValueKind::Or("auto", &ValueKind::Count(1, 64))),
    live("embedding.allow_any_dimensions", ValueKind::Flag),
    live("models.<model>.memory_priority", ValueKind::Count(1, 5)),
    live("models.<model>.max_idle_time", ValueKind::IdleTime(SECOND, YEAR)),
    live("models.<model>.preload", ValueKind::Flag),
    live("models.<model>.pinned", ValueKind::Flag),
    live(
        "models.<model>.max_sequence_length",
        ValueKind::Or("model", &ValueKind::Count(8, 65_536)),
    ),
    live("aliases.<alias>.model", ValueKind::Name),
    live("aliases.<alias>.revision", ValueKind::Or("current", &ValueKind::Name)),
    live("aliases.<alias>.canary.model", ValueKind::Or("none", &ValueKind::Name)),
    live("aliases.<alias>.canary.revision", ValueKind::Or("current", &ValueKind::Name)),
    live("aliases.<alias>.canary.percent", ValueKind::Count(0, 100)),
    live("tenants", ValueKind::Records(TENANT)),
    restart("require_sandbox", ValueKind::Flag),
    live("log.level", ValueKind::OneOf(&["error", "warn", "info", "debug", "trace"])),
];

static MEMORY_LIMIT: ValueKind =
    ValueKind::Size(MemorySettings::LEAST_LIMIT, MemorySettings::MOST_LIMIT);

/// Keys of a section in `packages.more_directories`.
static DROP_DIRECTORY: &[SectionField] = &[
    SectionField { name: "path", kind: ValueKind::Path },
    SectionField { name: "remove_with_file", kind: ValueKind::Flag },
];

/// Keys of a section in `tenants`.
static TENANT: &[SectionField] = &[
    SectionField { name: "name", kind: ValueKind::Name },
    SectionField { name: "users", kind: ValueKind::List(&ValueKind::Account) },
    SectionField { name: "groups", kind: ValueKind::List(&ValueKind::Account) },
    SectionField { name: "model", kind: ValueKind::Model },
    SectionField {
        name: "allowed_models",
        kind: ValueKind::Or("all", &ValueKind::List(&ValueKind::Model)),
    },
    SectionField { name: "priority", kind: ValueKind::Count(1, 9) },
    SectionField {
        name: "max_concurrent",
        kind: ValueKind::Or("unlimited", &ValueKind::Count(1, 65_536)),
    },
    SectionField { name: "dedicated_queue", kind: ValueKind::Flag },
];

#[cfg(test)]
mod tests {
    use super::super::file::parse;
    use super::*;

    /// Returns whether the key called `name` accepts the value `yaml`.
    fn accepts(name: &str, yaml: &str) -> bool {
        let key = KEYS.iter().find(|key| key.name == name).expect(name);
        key.kind.check(&parse(yaml.as_bytes()).unwrap().value).is_some()
    }

    #[test]
    fn every_key_accepts_exactly_its_range() {
        let path_107 = format!("/{}", "x".repeat(106));
        let path_108 = format!("/{}", "x".repeat(107));
        let name_96 = "m".repeat(96);
        let name_97 = "m".repeat(97);
        let cases: &[(&str, &[&str], &[&str])] = &[
            (
                "socket.path",
                &["/run/a.sock", &path_107],
                &["run/a.sock", "\"\"", &path_108, "3", "~"],
            ),
            (
                "socket.mode",
                &["\"0600\"", "'0777'", "\"660\""],
                &[
                    "0660",
                    "432",
                    "0o660",
                    "\"0577\"",
                    "\"01777\"",
                    "\"+660\"",
                    "\"0689\"",
                    "rw",
                    "~",
                ],
            ),
            ("socket.group", &["caxton", "1001", "~", "null"], &["\"\"", "a b", "a:b", "-1", "[]"]),
            (
                "socket.admins.users",
                &["[]", "[root, 1001]"],
                &["root", "[a, ~]", "[[a]]", "[4294967296]"],
            ),
            ("socket.admins.groups", &["[wheel]"], &["{}"]),
            (
                "socket.max_connections",
                &["1", "65536"],
                &["0", "65537", "-1", "1.5", "\"5\"", "lots"],
            ),
            (
                "socket.max_body",
                &["1KiB", "1GiB", "16 MiB"],
                &["1023B", "1025MiB", "16", "16M", "-1MiB"],
            ),
            ("socket.drain_timeout", &["0s", "10m", "1m 30s"], &["601s", "20", "-1s", "soon", "~"]),
            (
                "socket.overload_status",
                &["429", "503"],
                &["430", "500", "\"429\"", "429.0", "auto", "~"],
            ),
            ("memory.backend", &["embedded"], &["openai", "Embedded", "true"]),
            (
                "memory.embedding_model",
                &["a", "a.B_c-1@2", &name_96],
                &["\"\"", "a/b", "a b", "ä", &name_97, "1"],
            ),
            ("memory.rerank_model", &["none", "a@1.0"], &["\"\"", "a b", "[a]", "~"]),
            ("memory.fallback_models", &["[]", "[a, b@1.0]"], &["a", "[a, ../b]", "~"]),
            ("memory.fallback_strategy", &["auto", "manual", "strict"], &["none", "true"]),
            ("memory.allow_fallback", &["true"], &["yes"]),
            ("memory.allow_dimension_mismatch", &["false"], &["0"]),
            ("memory.dynamic_selection", &["true"], &["auto"]),
            ("memory.preload_models", &["[]", "[a, b]"], &["a", "[a, ../b]"]),
            ("memory.preload_expected", &["false"], &["never"]),
            ("memory.max_loaded_models", &["1", "1000"], &["0", "1001", "auto"]),
            (
                "memory.max_idle_time",
                &["never", "1s", "30m", "1year"],
                &["0s", "999ms", "2years", "300", "default", "~"],
            ),
            (
                "memory.memory_limit",
                &["auto", "1MiB", "1TiB"],
                &["1023KiB", "1025GiB", "512", "Auto", "50%", "~"],
            ),
            ("memory.min_free", &["0B", "64MiB", "1TiB"], &["64", "auto", "1025GiB"]),
            (
                "memory.eviction_policy",
                &["memory_pressure", "lru", "fifo", "manual"],
                &["memory-pressure", "LRU", "none", "~"],
            ),
            ("memory.pressure.moderate", &["1%", "75%", "100%"], &["0%", "101%", "75", "0.75"]),
            ("memory.pressure.high", &["1%", "100%"], &["0%", "101%"]),
            ("memory.pressure.critical", &["1%", "100%"], &["0%", "101%"]),
            ("memory.pressure.recovery_time", &["1s", "1h"], &["999ms", "61m", "10"]),
            ("memory.pressure.reload_cooldown", &["0s", "1h"], &["61m", "30", "never"]),
            (
                "memory.model_cache.directory",
                &["/var/lib/x", &path_108],
                &["x", "~", "\"/a\\0b\"", "[/a]"],
            ),
            (
                "memory.model_cache.max_size_gb",
                &["5.0", "5", "0.25", "1000000"],
                &["0", "0.0", "-1", "1e-10", "1000001", "1e300", ".inf", ".nan", "5GB", "~"],
            ),
            ("memory.model_cache.max_models", &["1", "1000"], &["0", "1001"]),
            (
                "memory.model_cache.cleanup_policy",
                &["lru", "fifo", "manual"],
                &["LRU", "random", "~"],
            ),
            (
                "memory.model_cache.unused_for",
                &["never", "1h", "30days", "10years"],
                &["59m", "11years", "30", "Never", "~"],
            ),
            (
                "memory.model_cache.validation_interval",
                &["1m", "24h", "1year"],
                &["59s", "2years", "60"],
            ),
            (
                "memory.model_cache.validation_on_startup",
                &["true", "false"],
                &["yes", "1", "\"true\"", "~"],
            ),
            ("memory.model_cache.bundled_only", &["true"], &["on"]),
            ("memory.model_cache.bundled_models_only", &["true"], &["on"]),
            ("memory.model_cache.auto_download", &["false"], &["true", "0", "~"]),
            ("memory.download.enabled", &["false"], &["true", "~"]),
            ("packages.drop_directory", &["/srv/models"], &["models"]),
            (
                "packages.more_directories",
                &[
                    "[]",
                    "[{ path: /media/stick }]",
                    "[{ path: /a, remove_with_file: true }, { path: /b }]",
                ],
                &[
                    "{}",
                    "[/media/stick]",
                    "[{}]",
                    "[{ path: media }]",
                    "[{ path: /a }, { path: /a }]",
                    "[{ path: /a, remove_with_file: 1 }]",
                    "[{ path: /a, name: b }]",
                ],
            ),
            ("packages.bundled_directory", &["/usr/share/x"], &["x"]),
            ("packages.keys_directory", &["/etc/keys"], &["keys"]),
            ("packages.disable_unsigned", &["true"], &["yes"]),
            ("packages.updates", &["automatic", "manual"], &["auto", "true", "~"]),
            ("packages.replace_embedding_space", &["true"], &["yes"]),
            ("packages.remove_with_file", &["false"], &["no"]),
            ("packages.incomplete_timeout", &["1s", "24h"], &["999ms", "25h", "10"]),
            ("packages.max_package_size", &["1KiB", "4GiB", "1TiB"], &["1B", "2TiB", "4"]),
            ("embedding.precision", &["auto", "bf16"], &["f16", "8"]),
            ("embedding.threads", &["auto", "1", "256"], &["0", "257", "Auto", "~"]),
            ("embedding.batch_tokens", &["512", "65536"], &["511", "65537"]),
            ("embedding.queue_size", &["1", "100000"], &["0", "100001"]),
            ("embedding.queue_tokens", &["512", "100000000"], &["511", "100000001"]),
            ("embedding.max_batch_wait_ms", &["0", "1000"], &["1001", "2ms"]),
            ("embedding.parallel_batches", &["auto", "1", "64"], &["0", "65", "1.0", "~"]),
            ("embedding.allow_any_dimensions", &["true"], &["1"]),
            ("models.<model>.memory_priority", &["1", "5"], &["0", "6", "high", "~"]),
            (
                "models.<model>.max_idle_time",
                &["default", "never", "1s", "300s", "1year"],
                &["0s", "999ms", "2years", "300", "Never", "~"],
            ),
            ("models.<model>.preload", &["true"], &["yes"]),
            ("models.<model>.pinned", &["false"], &["0"]),
            (
                "models.<model>.max_sequence_length",
                &["model", "8", "65536"],
                &["7", "65537", "auto", "\"256\"", "~"],
            ),
            ("aliases.<alias>.model", &["a", "a.B_c-1", &name_96], &["a@1", "-a", &name_97, "~"]),
            (
                "aliases.<alias>.revision",
                &["current", "1.0-rc1", "\"1\"", "0123456789ab"],
                &["a@1", "~", "1.5", "1", "-1"],
            ),
            ("aliases.<alias>.canary.model", &["none", "a"], &["a@1", "~"]),
            ("aliases.<alias>.canary.revision", &["current", "v2"], &["a b"]),
            ("aliases.<alias>.canary.percent", &["0", "100"], &["101", "-1", "10%", "~"]),
            (
                "tenants",
                &[
                    "[]",
                    "[{ name: a }]",
                    "[{ name: a, users: [1, b], groups: [], model: m@1, allowed_models: [m] }]",
                    "[{ name: a, allowed_models: all, priority: 9, max_concurrent: 1 }]",
                    "[{ name: a, max_concurrent: unlimited, dedicated_queue: true }, { name: b }]",
                ],
                &[
                    "{}",
                    "[a]",
                    "[{}]",
                    "[{ name: a/b }]",
                    "[{ name: a, priority: 0 }]",
                    "[{ name: a, priority: 10 }]",
                    "[{ name: a, max_concurrent: 0 }]",
                    "[{ name: a, name: b }]",
                    "[{ name: a }, { name: a }]",
                    "[{ name: a, user: b }]",
                ],
            ),
            ("require_sandbox", &["true", "false"], &["yes", "1", "\"true\""]),
            ("log.level", &["error", "trace"], &["verbose", "3"]),
        ];
        for (name, good, bad) in cases {
            good.iter().for_each(|yaml| assert!(accepts(name, yaml), "{name}: {yaml}"));
            bad.iter().for_each(|yaml| assert!(!accepts(name, yaml), "{name}: {yaml}"));
        }
        let covered: Vec<_> = cases.iter().map(|(name, ..)| *name).collect();
        assert_eq!(covered, KEYS.iter().map(|key| key.name).collect::<Vec<_>>());
    }

    #[test]
    fn expectation_names_the_bounds() {
        let expected = |name| KEYS.iter().find(|key| key.name == name).unwrap().kind.to_string();
        assert_eq!(
            expected("socket.max_body"),
            "a size with its unit, such as \"512MiB\", from 1.0 KiB to 1.0 GiB"
        );
        assert_eq!(
            expected("socket.drain_timeout"),
            "a duration with its unit, such as \"10s\", from 0s to 10m"
        );
        assert_eq!(
            expected("memory.model_cache.validation_interval"),
            "a duration with its unit, such as \"10s\", from 1m to 1year"
        );
        assert_eq!(
            expected("memory.model_cache.max_size_gb"),
            "a number of gigabytes above 0 and up to 1000000"
        );
        assert_eq!(
            expected("models.<model>.max_idle_time"),
            "default, never or a duration with its unit, such as \"10s\", from 1s to 1year"
        );
        assert_eq!(
            expected("memory.pressure.high"),
            "a whole number of percent, from \"1%\" to \"100%\""
        );
        assert_eq!(
            expected("memory.model_cache.unused_for"),
            "never or a duration with its unit, such as \"10s\", from 1h to 10years"
        );
        assert_eq!(expected("socket.overload_status"), "429 or 503");
        assert_eq!(expected("memory.backend"), "embedded");
        assert_eq!(expected("memory.model_cache.cleanup_policy"), "one of lru, fifo, manual");
    }
}
