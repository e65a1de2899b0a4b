//! Reasons for refusing keys and values that other programs have, or that an operator may expect.
//!
//! Pure. The reason says why the key or the value does not exist, and what to write instead. Such a
//! key is refused as every unknown key is; only the message differs.

use super::file::Value;
use super::kind::ValueKind;

/// A key or a section that does not exist, by its dotted name in the form of the table of keys, and
/// the reason.
type RefusedKey = (&'static str, &'static str);

const ONE_AFTER_THE_OTHER: &str = "this appliance never downloads; it installs the packages of \
                                   packages.drop_directory one after the other; remove this key";
const RETRIES: &str = "this appliance never downloads; it tries a package that failed again by \
                       itself, after times that double; remove this key";
const INCOMPLETE: &str = "this appliance never downloads; for the time after which an incomplete \
                          package is moved to quarantine, write packages.incomplete_timeout";
const COMPRESSED: &str = "this appliance never downloads; every package is compressed with zstd; \
                          remove this key";
const STREAM: &str = "this appliance never downloads; it reads a package as a stream; remove this \
                      key, and limit the size of packages with packages.max_package_size";
const SOURCE: &str = "this appliance never downloads; make a package with `caxton model pack` on \
                      another computer, and copy it into packages.drop_directory";
const NO_DOWNLOAD: &str = "this appliance never downloads; remove this key, and copy packages into \
                           packages.drop_directory";
const METRICS: &str = "metrics are always on, at GET /metrics of the socket; remove this key";
const ALERTS: &str = "Prometheus sends alerts, by the rules in \
                      /usr/share/doc/caxton/examples/caxton.rules.yaml; remove this key";
const TIMES: &str = "metrics are always on, and GET /metrics of the socket has the times of \
                     requests and loads; remove this key";
const PRESSURE: &str = "the kernel reports memory pressure, so no interval is needed; remove this \
                        key, and set the thresholds in memory.pressure";
const USED_SHARE: &str = "write memory.pressure.high, a share such as 80%, from which models in \
                          use are unloaded";
const IDLE: &str = "write memory.max_idle_time, with its unit, such as 2h";
const LIMIT: &str = "write memory.memory_limit, with its unit, such as 8GiB";
const FREE: &str = "write memory.min_free, with its unit, such as 4GiB";
const LENGTH: &str = "the package states the number of tokens that the model permits; to permit \
                      fewer, write max_sequence_length";
const GENERATION: &str = "Caxton computes embeddings and generates no text; remove this key";
const FROM_PACKAGE: &str = "a package states this; copy the package into packages.drop_directory, \
                            and remove this key";
const BATCH: &str = "texts are not padded, so the number of texts in a pass has no limit; to limit \
                     the tokens of a pass, write embedding.batch_tokens";

static REFUSED: &[RefusedKey] = &[
    ("download", NO_DOWNLOAD),
    ("download.enabled", "the name of this key is memory.download.enabled; write it there"),
    ("download.strategy", NO_DOWNLOAD),
    ("download.max_concurrent", ONE_AFTER_THE_OTHER),
    ("download.parallel_downloads", ONE_AFTER_THE_OTHER),
    ("download.chunk_size_kb", STREAM),
    ("download.retry_delay_ms", RETRIES),
    ("download.retry_attempts", RETRIES),
    ("download.timeout_minutes", INCOMPLETE),
    ("download.compression", COMPRESSED),
    ("download.source", SOURCE),
    ("memory.download.strategy", NO_DOWNLOAD),
    ("memory.download.max_concurrent", ONE_AFTER_THE_OTHER),
    ("memory.download.parallel_downloads", ONE_AFTER_THE_OTHER),
    ("memory.download.chunk_size_kb", STREAM),
    ("memory.download.retry_delay_ms", RETRIES),
    ("memory.download.retry_attempts", RETRIES),
    ("memory.download.timeout_minutes", INCOMPLETE),
    ("memory.download.compression", COMPRESSED),
    ("memory.download.source", SOURCE),
    ("memory.model_cache.download_timeout", INCOMPLETE),
    ("memory.model_cache.parallel_downloads", ONE_AFTER_THE_OTHER),
    ("memory.monitoring", METRICS),
    ("memory.monitoring.track_download_metrics", METRICS),
    ("memory.monitoring.alert_on_failures", ALERTS),
    ("memory.monitoring.performance_logging", TIMES),
    ("memory.monitoring_interval", PRESSURE),
    ("memory.max_memory_usage_percent", USED_SHARE),
    ("memory.model_timeout_hours", IDLE),
    ("memory.min_free_memory_gb", FREE),
    ("memory.max_memory_mb", LIMIT),
    ("monitoring", METRICS),
    ("monitoring.track_download_metrics", METRICS),
    ("monitoring.alert_on_failures", ALERTS),
    ("monitoring.performance_logging", TIMES),
    ("monitoring_interval", PRESSURE),
    ("max_memory_usage_percent", USED_SHARE),
    ("model_timeout_hours", IDLE),
    ("min_free_memory_gb", FREE),
    ("max_memory_mb", LIMIT),
    ("embedding.batch_size", BATCH),
    ("models.<model>.context_length", LENGTH),
    ("models.<model>.type", FROM_PACKAGE),
    ("models.<model>.path", FROM_PACKAGE),
    ("models.<model>.parameters", GENERATION),
    ("models.<model>.temperature", GENERATION),
    ("models.<model>.max_tokens", GENERATION),
    ("models.<model>.do_sample", GENERATION),
];

/// Returns the reason for refusing the key or the section `name`.
pub(super) fn reason(name: &str) -> Option<&'static str> {
    REFUSED.iter().find(|(refused, _)| *refused == name).map(|(_, reason)| *reason)
}

/// Returns the reason for refusing an unknown key of the section `name` that has no own reason.
pub(super) fn reason_of_section(name: &str) -> Option<&'static str> {
    (name == "memory.download").then_some(NO_DOWNLOAD)
}

/// Returns what to write instead of `value`, which is not a section, for the section `name`.
pub(super) fn instead_of_section(name: &str, value: &Value) -> Option<&'static str> {
    let is_list = matches!(value, Value::List(_));
    (name == "models" && is_list).then_some(
        "write a section for each model, such as models: { bundled-mini: { preload: true } }",
    )
}

/// Returns what to write instead of `value`, which the key called `name` does not permit.
pub(super) fn instead(name: &str, kind: &ValueKind, value: &Value) -> Option<&'static str> {
    let Value::Text(text) = value else { return None };
    match (name, kind, text.as_str()) {
        ("memory.model_cache.cleanup_policy", _, "aggressive") => Some(
            "write lru, which removes the least recently used model when a limit is reached; to \
             remove unused models earlier, set unused_for, such as 30days",
        ),
        ("memory.model_cache.cleanup_policy", _, "conservative") => Some(
            "write manual, which removes no model and rejects an installation beyond a limit, or \
             lru, which removes the least recently used model only when a limit is reached",
        ),
        (_, ValueKind::Path, path) if path.starts_with(['~', '$']) => Some(
            "caxtond has no home directory and no environment of a user; write an absolute path, \
             such as /var/lib/caxton",
        ),
        (_, ValueKind::SocketPath, path) if path.starts_with(['~', '$']) => Some(
            "caxtond has no home directory and no environment of a user; write an absolute path, \
             such as /run/caxton/caxton.sock",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::keys::KEYS;
    use super::*;

    #[test]
    fn refused_keys_are_single_and_unknown() {
        let names: BTreeSet<_> = REFUSED.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), REFUSED.len());
        for name in names {
            let below = format!("{name}.");
            let known = KEYS.iter().find(|key| key.name == name || key.name.starts_with(&below));
            assert!(known.is_none(), "{name}");
        }
    }

    #[test]
    fn reasons_name_existing_keys() {
        let named = REFUSED.iter().flat_map(|(_, reason)| reason.split([' ', ',', ';']));
        let named = named.filter(|word| {
            ["memory.", "packages.", "embedding."].iter().any(|section| word.starts_with(section))
        });
        let known = |name: &str| {
            let below = format!("{name}.");
            KEYS.iter().any(|key| key.name == name || key.name.starts_with(&below))
        };
        let named: Vec<_> = named.collect();
        assert!(named.len() > 10, "{named:?}");
        named.iter().for_each(|name| assert!(known(name), "{name}"));
    }
}
