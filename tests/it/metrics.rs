//! Tests of the Prometheus metrics: the series, the time of their first appearance, and their
//! values.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::readme::{Page, pages};
use crate::support::packages::until_quarantined;
use crate::support::{Daemon, Root, packages};

/// Returns the samples of a scrape by their series.
fn scrape(daemon: &Daemon) -> BTreeMap<String, f64> {
    let answer = daemon.get("/metrics");
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    assert_eq!((answer.status, answer.header("content-type")), (200, Some(kind)));
    let text = String::from_utf8(answer.body).unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let samples = samples.map(|line| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        (series.to_owned(), value.parse().unwrap())
    });
    samples.collect()
}

/// Returns the name of a series, without labels and without the suffix of a histogram.
fn family(series: &str) -> &str {
    let name = series.split('{').next().unwrap();
    ["_bucket", "_sum", "_count"].into_iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

fn repository(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn series_exist_at_first_scrape_without_loading_models() {
    let daemon = Root::with_other().start();
    let samples = scrape(&daemon);
    for series in [
        r#"caxton_requests_total{route="/v1/embeddings",outcome="ok"}"#,
        r#"caxton_requests_total{route="/v1/embeddings",outcome="overloaded"}"#,
        r#"caxton_requests_total{route="other",outcome="ok"}"#,
        r#"caxton_request_duration_seconds_count{stage="tokenization"}"#,
        r#"caxton_request_duration_seconds_count{stage="total"}"#,
        r#"caxton_batch_texts_count"#,
        r#"caxton_model_requests_total{model_id="other",version="2",cache="hit"}"#,
        r#"caxton_model_tokens_total{model_id="other",version="2"}"#,
        r#"caxton_model_load_time_seconds_count{model_id="other",version="2"}"#,
        r#"caxton_model_load_failures_total{model_id="bundled-mini",version="1"}"#,
        r#"caxton_model_validation_failures_total{model_id="other",version="2",failure_type="corrupt"}"#,
        r#"caxton_model_evictions_total{model_id="other",version="2",reason="displaced"}"#,
        r#"caxton_model_unloads_total{model_id="other",version="2",reason="idle"}"#,
        r#"caxton_model_memory_usage_bytes{model_id="other",version="2"}"#,
        r#"caxton_model_resident{model_id="other",version="2"}"#,
        r#"caxton_queue_requests{model_id="bundled-mini",version="1"}"#,
        r#"caxton_memory_pressure_level"#,
        r#"caxton_memory_shedding"#,
        r#"caxton_configuration_problems"#,
        r#"caxton_log_records_lost_total"#,
        r#"caxton_packages{state="refused"}"#,
        r#"caxton_package_retries_total"#,
        r#"caxton_model_cache_evictions_total{reason="limit"}"#,
        r#"caxton_model_install_total{status="malformed"}"#,
        // The limit does not count bundled models.
        r#"caxton_model_cache_size_bytes"#,
        r#"caxton_fallback_total{reason="memory_pressure"}"#,
    ] {
        assert_eq!(samples.get(series), Some(&0.0), "{series}");
    }
    for series in [
        r#"caxton_model_memory_usage_bytes{model_id="bundled-mini",version="1"}"#,
        r#"caxton_model_load_time_seconds_count{model_id="bundled-mini",version="1"}"#,
        r#"caxton_model_install_duration_seconds_count{status="installed"}"#,
        r#"caxton_model_install_total{status="installed"}"#,
        r#"caxton_model_last_used_timestamp_seconds{model_id="other",version="2"}"#,
        r#"caxton_disk_free_bytes"#,
        r#"caxton_model_cache_limit_bytes"#,
        r#"caxton_queue_limit_requests"#,
        r#"caxton_ready"#,
        r#"caxton_resident_memory_bytes"#,
        r#"caxton_memory_process_bytes"#,
        r#"caxton_memory_headroom_bytes"#,
        r#"caxton_request_limit_bytes"#,
        r#"caxton_uptime_seconds"#,
        concat!(r#"caxton_build_info{version=""#, env!("CARGO_PKG_VERSION"), r#""}"#),
    ] {
        assert!(samples.get(series).is_some_and(|value| *value > 0.0), "{series}");
    }
    assert_eq!(daemon.package("other")["residency"], "absent");
    daemon.stop();
}

#[test]
fn requests_loads_and_refusals_are_counted() {
    let daemon = Root::with_other().start();
    let hostile = "\"}\\\n{nobody has this}";
    for (model, status) in [("other", 200), ("other", 200), (hostile, 404)] {
        let answer = daemon.embeddings(&json!({ "input": ["a", "b c"], "model": model }));
        assert_eq!(answer.status, status, "{answer:?}");
    }
    assert_eq!(daemon.get("/no/such/route").status, 404);
    fs::write(packages::dropped(&daemon, "bad"), "this is no package").unwrap();
    until_quarantined(&daemon, "bad");
    let unload = daemon.connect().request("DELETE", "/api/memory/models/other", &[], b"");
    assert_eq!(unload.status, 200, "{unload:?}");

    let samples = scrape(&daemon);
    for (series, value) in [
        (r#"caxton_requests_total{route="/v1/embeddings",outcome="ok"}"#, 2.0),
        (r#"caxton_requests_total{route="/v1/embeddings",outcome="model_not_found"}"#, 1.0),
        (r#"caxton_requests_total{route="other",outcome="route_not_found"}"#, 1.0),
        (r#"caxton_requests_total{route="/api/memory/models/{name}",outcome="ok"}"#, 1.0),
        (r#"caxton_request_duration_seconds_count{stage="inference"}"#, 2.0),
        (r#"caxton_request_duration_seconds_count{stage="total"}"#, 2.0),
        (r#"caxton_batch_texts_sum"#, 4.0),
        (r#"caxton_model_requests_total{model_id="other",version="2",cache="miss"}"#, 1.0),
        (r#"caxton_model_requests_total{model_id="other",version="2",cache="hit"}"#, 1.0),
        (r#"caxton_model_load_time_seconds_count{model_id="other",version="2"}"#, 1.0),
        (r#"caxton_model_unloads_total{model_id="other",version="2",reason="request"}"#, 1.0),
        (
            r#"caxton_model_validation_failures_total{model_id="",version="",failure_type="malformed"}"#,
            1.0,
        ),
        (r#"caxton_model_install_total{status="malformed"}"#, 1.0),
        (r#"caxton_model_install_duration_seconds_count{status="malformed"}"#, 1.0),
        // No request has used this model.
        (r#"caxton_model_tokens_total{model_id="bundled-mini",version="1"}"#, 0.0),
        (r#"caxton_model_resident{model_id="other",version="2"}"#, 0.0),
    ] {
        assert_eq!(samples.get(series), Some(&value), "{series}");
    }
    let computed = samples[r#"caxton_model_tokens_total{model_id="other",version="2"}"#];
    assert_eq!(computed, samples["caxton_batch_tokens_sum"]);
    assert!(computed > 4.0, "{computed}");
    let total = samples[r#"caxton_request_duration_seconds_sum{stage="total"}"#];
    let inference = samples[r#"caxton_request_duration_seconds_sum{stage="inference"}"#];
    assert!(0.0 < inference && inference < total, "{inference} of {total}");
    assert!(samples.keys().all(|series| !series.contains("nobody")));
    daemon.stop();
}

#[test]
fn disconnects_are_counted() {
    let daemon = Root::new().start();
    let mut leaving = daemon.connect();
    leaving.send(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{");
    drop(leaving);
    let gone = r#"caxton_requests_total{route="/v1/embeddings",outcome="canceled"}"#;
    let cut = r#"caxton_requests_total{route="/v1/embeddings",outcome="invalid_request"}"#;
    daemon.until("the client that left to be counted", || {
        let samples = scrape(&daemon);
        // The daemon may notice the end of the body or the end of the connection first.
        (samples[gone] + samples[cut] == 1.0).then_some(())
    });
    daemon.stop();
}

#[test]
fn openmetrics_is_served_on_request() {
    let daemon = Root::new().start();
    let accept = [("accept", "application/openmetrics-text;version=1.0.0,*/*;q=0.1")];
    let answer = daemon.connect().request("GET", "/metrics", &accept, b"");
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(answer.header("content-type"), Some(kind));
    assert!(answer.body.ends_with(b"\n# EOF\n"));
    daemon.stop();
}

#[test]
fn scrape_takes_less_than_five_milliseconds() {
    let daemon = Root::with_other().start();
    let mut connection = daemon.connect();
    let times = (0..20).map(|_| {
        let began = Instant::now();
        assert_eq!(connection.request("GET", "/metrics", &[], b"").status, 200);
        began.elapsed()
    });
    // Use the shortest time, because other processes share the machine.
    let best = times.min().unwrap();
    assert!(best < Duration::from_millis(5), "{best:?}");
    daemon.stop();
}

#[test]
fn route_list_matches_registered_routes() {
    let mut registered = BTreeSet::new();
    let mut directories = vec![repository("src/api")];
    while let Some(directory) = directories.pop() {
        for child in fs::read_dir(directory).unwrap() {
            let path = child.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let text = fs::read_to_string(path).unwrap();
            for call in text.split(".route(").skip(1) {
                let path =
                    call.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
                registered.extend(path.map(str::to_owned));
            }
        }
    }
    assert!(registered.len() >= 19, "{registered:?}");
    let told: BTreeSet<String> = caxton::api::ROUTES.iter().map(ToString::to_string).collect();
    assert_eq!(registered, told, "src/api/metrics.rs lists the routes");
}

/// Returns the names in `text` that begin with `caxton_`.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    // Skip the bare prefix, because the README also has the package file `caxton_*.deb`.
    words.filter(|word| word.strip_prefix("caxton_").is_some_and(|rest| !rest.is_empty())).collect()
}

#[test]
fn metrics_of_alerts_and_documentation_exist() {
    let daemon = Root::new().start();
    // These exist only where the kernel reports the figures.
    let mut families = BTreeSet::from([
        "caxton_memory_pressure_stall_ratio".to_owned(),
        "caxton_memory_limit_bytes".to_owned(),
        "caxton_memory_limit_usage_bytes".to_owned(),
    ]);
    families.extend(scrape(&daemon).keys().map(|series| family(series).to_owned()));
    let rules = "packaging/prometheus/caxton.rules.yaml".to_owned();
    let mut files = pages();
    files.push(Page { text: fs::read_to_string(repository(&rules)).unwrap(), path: rules });
    let mut counts = BTreeMap::new();
    for Page { path, text } in &files {
        let names: BTreeSet<_> = named(text).into_iter().map(family).collect();
        let missing: Vec<_> = names.iter().filter(|name| !families.contains(**name)).collect();
        assert!(missing.is_empty(), "{path}: {missing:?}");
        counts.insert(path.as_str(), names.len());
    }
    for (path, least) in [("packaging/prometheus/caxton.rules.yaml", 8), ("docs/operations.md", 30)]
    {
        assert!(counts[path] >= least, "{path}: {counts:?}");
    }
    daemon.stop();
}
