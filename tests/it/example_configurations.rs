//! Example configurations: each loads as it is, or Caxton names every key that it refuses, with the
//! reason and what to write instead.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::time::Duration;

use caxton::config::{ConfigSource, FallbackStrategy, Settings, load};

/// Loads `yaml`. The error has one problem on each line, without the path of the file.
fn settings(yaml: &str) -> Result<Settings, String> {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("caxton.yaml");
    fs::write(&path, yaml).unwrap();
    let prefix = format!("{}:", path.display());
    match load(&ConfigSource::File(path)) {
        Ok(loaded) => Ok(loaded.settings),
        Err(error) => Err(error.to_string().replace(&prefix, "")),
    }
}

#[test]
fn minimal_edge_configuration_loads() {
    let settings = settings(
        "memory:\n  embedding_model: bundled-mini\n  model_cache:\n    bundled_only: true\n    \
         auto_download: false\n    max_size_gb: 0.5\n",
    );
    let mut expected = Settings::default();
    expected.memory.model_cache.bundled_only = true;
    expected.memory.model_cache.max_size.0 = 500_000_000;
    assert_eq!(settings, Ok(expected));
}

#[test]
fn offline_configuration_loads() {
    let settings = settings(
        "memory:\n  embedding_model: bundled-mini\n  backend: embedded\n  \
         download: { enabled: false }\n  fallback_strategy: strict\n  model_cache:\n    \
         bundled_models_only: true\n    auto_download: false\n    \
         directory: /data/caxton/models\n",
    );
    let mut expected = Settings::default();
    expected.memory.fallback_strategy = FallbackStrategy::Strict;
    expected.memory.model_cache.bundled_only = true;
    expected.memory.model_cache.directory = "/data/caxton/models".into();
    assert_eq!(settings, Ok(expected));
}

#[test]
fn fallback_configuration_loads() {
    let settings = settings(
        "memory:\n  allow_dimension_mismatch: false\n  fallback_strategy: auto\n  \
         embedding_model: all-MiniLM-L6-v2\n  fallback_models:\n  - all-MiniLM-L12-v2\n  \
         - distiluse-base-multilingual-cased\n  - bundled-mini\n",
    );
    let mut expected = Settings::default();
    expected.memory.embedding_model = "all-MiniLM-L6-v2".to_owned();
    expected.memory.fallback_models =
        ["all-MiniLM-L12-v2", "distiluse-base-multilingual-cased", "bundled-mini"]
            .map(str::to_owned)
            .to_vec();
    assert_eq!(settings, Ok(expected));
}

/// A configuration with refused keys, and the problems.
type RefusedExample = (&'static str, &'static [&'static str]);

const REFUSED: &[RefusedExample] = &[
    (
        "memory:\n  embedding_model: all-MiniLM-L6-v2\n  model_cache:\n    auto_download: true\n    \
         cleanup_policy: aggressive\n    max_size_gb: 2.0\n",
        &[
            "4:20: memory.model_cache.auto_download: this appliance never downloads; write false, and copy \
             packages into packages.drop_directory",
            "5:21: memory.model_cache.cleanup_policy: expected one of lru, fifo, manual, found \"aggressive\"; \
             write lru, which removes the least recently used model when a limit is reached; to remove unused \
             models earlier, set unused_for, such as 30days",
        ],
    ),
    (
        "memory:\n  embedding_model: all-mpnet-base-v2\n  \
         fallback_models: [all-MiniLM-L6-v2, bundled-mini]\n  model_cache:\n    \
         cleanup_policy: conservative\n    validation_interval: 6h\n    max_size_gb: 10.0\n",
        &[
            "5:21: memory.model_cache.cleanup_policy: expected one of lru, fifo, manual, found \"conservative\"; \
             write manual, which removes no model and rejects an installation beyond a limit, or lru, which \
             removes the least recently used model only when a limit is reached",
        ],
    ),
    (
        "memory:\n  model_cache:\n    max_models: 10\n    max_size_gb: 5.0\n    \
         directory: ~/.cache/caxton/models\n    validation_interval: 24h\n    cleanup_policy: lru\n    \
         parallel_downloads: 3\n    download_timeout: 30m\n",
        &[
            "5:16: memory.model_cache.directory: expected an absolute path, found \"~/.cache/caxton/models\"; \
             caxtond has no home directory and no environment of a user; write an absolute path, such as \
             /var/lib/caxton",
            "8:5: memory.model_cache.parallel_downloads: this appliance never downloads; it installs the \
             packages of packages.drop_directory one after the other; remove this key",
            "9:5: memory.model_cache.download_timeout: this appliance never downloads; for the time after \
             which an incomplete package is moved to quarantine, write packages.incomplete_timeout",
        ],
    ),
    (
        "download:\n  compression: true\n  retry_delay_ms: 5000\n  chunk_size_kb: 1024\n  \
         max_concurrent: 3\n  strategy: adaptive\n",
        &[
            "2:3: download.compression: this appliance never downloads; every package is compressed with \
             zstd; remove this key",
            "3:3: download.retry_delay_ms: this appliance never downloads; it tries a package that failed \
             again by itself, after times that double; remove this key",
            "4:3: download.chunk_size_kb: this appliance never downloads; it reads a package as a stream; \
             remove this key, and limit the size of packages with packages.max_package_size",
            "5:3: download.max_concurrent: this appliance never downloads; it installs the packages of \
             packages.drop_directory one after the other; remove this key",
            "6:3: download.strategy: this appliance never downloads; remove this key, and copy packages into \
             packages.drop_directory",
        ],
    ),
    (
        "embedding:\n  queue_size: 1000\n  parallel_batches: 2\n  max_batch_wait_ms: 100\n  \
         batch_size: 32\n",
        &[
            "5:3: embedding.batch_size: texts are not padded, so the number of texts in a pass has no limit; \
             to limit the tokens of a pass, write embedding.batch_tokens",
        ],
    ),
    (
        "memory:\n  embedding_model: all-MiniLM-L6-v2\n  backend: embedded\n  model_cache:\n    \
         validation_on_startup: true\n    auto_download: true\n    max_size_gb: 2.0\n    \
         directory: ~/.cache/caxton/models\n  download:\n    source: huggingface\n    \
         retry_attempts: 3\n    timeout_minutes: 10\n",
        &[
            "6:20: memory.model_cache.auto_download: this appliance never downloads; write false, and copy \
             packages into packages.drop_directory",
            "8:16: memory.model_cache.directory: expected an absolute path, found \"~/.cache/caxton/models\"; \
             caxtond has no home directory and no environment of a user; write an absolute path, such as \
             /var/lib/caxton",
            "10:5: memory.download.source: this appliance never downloads; make a package with `caxton model pack` \
             on another computer, and copy it into packages.drop_directory",
            "11:5: memory.download.retry_attempts: this appliance never downloads; it tries a package that \
             failed again by itself, after times that double; remove this key",
            "12:5: memory.download.timeout_minutes: this appliance never downloads; for the time after which \
             an incomplete package is moved to quarantine, write packages.incomplete_timeout",
        ],
    ),
    (
        "memory:\n  embedding_model: all-mpnet-base-v2\n  backend: embedded\n  \
         fallback_models: [all-MiniLM-L6-v2, bundled-mini]\n  monitoring:\n    \
         performance_logging: true\n    alert_on_failures: true\n    track_download_metrics: true\n  \
         model_cache:\n    validation_interval: 6h\n    cleanup_policy: lru\n    max_size_gb: 10.0\n    \
         directory: /opt/caxton/models\n  download:\n    compression: true\n    \
         parallel_downloads: 2\n    retry_attempts: 5\n    timeout_minutes: 30\n",
        &[
            "6:5: memory.monitoring.performance_logging: metrics are always on, and GET /metrics of the \
             socket has the times of requests and loads; remove this key",
            "7:5: memory.monitoring.alert_on_failures: Prometheus sends alerts, by the rules in \
             /usr/share/doc/caxton/examples/caxton.rules.yaml; remove this key",
            "8:5: memory.monitoring.track_download_metrics: metrics are always on, at GET /metrics of the \
             socket; remove this key",
            "15:5: memory.download.compression: this appliance never downloads; every package is compressed \
             with zstd; remove this key",
            "16:5: memory.download.parallel_downloads: this appliance never downloads; it installs the \
             packages of packages.drop_directory one after the other; remove this key",
            "17:5: memory.download.retry_attempts: this appliance never downloads; it tries a package that \
             failed again by itself, after times that double; remove this key",
            "18:5: memory.download.timeout_minutes: this appliance never downloads; for the time after which \
             an incomplete package is moved to quarantine, write packages.incomplete_timeout",
        ],
    ),
    (
        "memory: { model_timeout_hours: 2.0, min_free_memory_gb: 4.0, max_memory_usage_percent: 80.0 }\n\
         monitoring_interval: 30.0\n",
        &[
            "1:11: memory.model_timeout_hours: write memory.max_idle_time, with its unit, such as 2h",
            "1:37: memory.min_free_memory_gb: write memory.min_free, with its unit, such as 4GiB",
            "1:62: memory.max_memory_usage_percent: write memory.pressure.high, a share such as 80%, from \
             which models in use are unloaded",
            "2:1: monitoring_interval: the kernel reports memory pressure, so no interval is needed; remove \
             this key, and set the thresholds in memory.pressure",
        ],
    ),
    (
        "models:\n  small:\n    context_length: 16384\n    parameters: { temperature: 0.01 }\n    \
         preload: true\n",
        &[
            "3:5: models.small.context_length: the package states the number of tokens that the model \
             permits; to permit fewer, write max_sequence_length",
            "4:19: models.small.parameters.temperature: Caxton computes embeddings and generates no text; \
             remove this key",
        ],
    ),
    (
        "max_memory_mb: 8192\nmodels: [{ name: small, preload: true }]\n",
        &[
            "1:1: max_memory_mb: write memory.memory_limit, with its unit, such as 8GiB",
            "2:9: models: expected a section of keys, found a list; write a section for each model, such as \
             models: { bundled-mini: { preload: true } }",
        ],
    ),
];

#[test]
fn every_refused_key_has_its_reason() {
    for (yaml, problems) in REFUSED {
        assert_eq!(settings(yaml), Err(problems.join("\n")), "{yaml}");
    }
}

#[test]
fn examples_load_with_the_advised_keys() {
    let advised = "memory:\n  max_idle_time: 2h\n  memory_limit: 8GiB\n  min_free: 4GiB\n  \
                   pressure: { high: 80% }\n  model_cache:\n    cleanup_policy: lru\n    \
                   unused_for: 30days\n    directory: /var/lib/caxton\n    auto_download: false\n\
                   packages:\n  incomplete_timeout: 30m\n  max_package_size: 1GiB\n\
                   embedding:\n  batch_tokens: 4096\n\
                   models: { bundled-mini: { preload: true, max_sequence_length: 128 } }\n";
    let settings = settings(advised).unwrap();
    assert_eq!(settings.memory.max_idle_time, Some(Duration::from_secs(7200)));
    assert_eq!(settings.model("bundled-mini", "1").max_sequence_length, Some(128));
}
