//! Helpers of the tests of the checks: answers of a daemon, and the comparison.

use std::time::Duration;

use serde_json::json;

use super::facts::{DaemonAnswers, EmbeddingAnswer};
use super::{Check, Verdict};

/// Asserts that `check` has this verdict, and contains `found` and the expected repair, if any.
pub(super) fn assert(check: &Check, verdict: Verdict, found: &str, action: Option<&str>) {
    assert_eq!(check.verdict, verdict, "{check:?}");
    assert!(check.found.contains(found), "{found}: {check:?}");
    assert_eq!(check.action.is_some(), action.is_some(), "{check:?}");
    if let (Some(expected), Some(action)) = (action, &check.action) {
        assert!(action.contains(expected), "{expected}: {check:?}");
    }
}

/// Returns the answers of a daemon with models of these ids, states and sizes on disk. The first
/// model is the default.
pub(super) fn answers(models: &[(&str, &str, u64)]) -> DaemonAnswers {
    let packages = models.iter().map(|(id, residency, size)| {
        json!({
            "id": id, "version": "1", "revision": "", "current": true, "origin": "dropped",
            "status": "available", "residency": residency, "resident_bytes": 0,
            "arithmetic": null, "waiting": 0, "dimensions": 1, "max_sequence_length": 1,
            "precision": "f32", "architecture": "", "embedding_space": "", "prompts": {},
            "languages": [], "license": "", "source": null, "size_bytes": size,
            "package_sha256": "", "installed_at": 0, "last_validated_at": 0, "access_count": 0,
            "last_access_at": null,
        })
    });
    let status = json!({
        "version": env!("CARGO_PKG_VERSION"), "pid": 1, "uptime_seconds": 0, "ready": true,
        "default_model": models.first().map_or("", |model| model.0), "threads": 1,
        "resident_memory_bytes": null, "memory_level": "normal",
        "memory_pressure_source": "polling", "queue_size": 1, "machine_memory_bytes": null,
        "machine_memory_available_bytes": null,
        "configuration": { "files": [], "generation": 1, "problems": [], "restart_needed": [] },
        "tenants": [], "quarantine": [], "packages": Vec::from_iter(packages),
    });
    let memory = json!({
        "level": "normal", "cause": null, "source": "polling", "shedding": false,
        "headroom_bytes": 1000, "unreclaimable_bytes": 0, "process_bytes": 0, "mapped_bytes": 0,
        "swap_bytes": 0, "pressure": null, "configured_limit_bytes": null, "limits": [],
        "system": {
            "total_bytes": null, "available_bytes": null, "swap_total_bytes": 0,
            "swap_free_bytes": 0, "pressure": null,
        },
        "models": [], "actions": [],
    });
    DaemonAnswers {
        status: serde_json::from_value(status).unwrap(),
        memory: serde_json::from_value(memory).unwrap(),
        unready: None,
        sandbox: None,
        embedding: Ok(EmbeddingAnswer {
            model: models.first().map_or("", |model| model.0).to_owned(),
            dimensions: 3,
            time: Duration::from_micros(2500),
        }),
    }
}
