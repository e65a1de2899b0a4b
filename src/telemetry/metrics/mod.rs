//! Metrics of the daemon, and their encoding for Prometheus.
//!
//! Defines every series with its name, its unit and the values of its labels. Counts and times are
//! recorded when they happen. Current state ([`ObservedState`]) is passed in by the caller that
//! renders, so that it is never stale.
//!
//! Invariants:
//! 1. Labels are bounded: routes are those of [`Metrics::new`], reasons and outcomes are constants
//!    of this program, and models and versions are the installed ones. Data from clients is never
//!    a label.
//! 2. A series exists with the value zero before its first count, because `rate()` ignores a series
//!    that appears with its first count. The exceptions are outcomes that are not in [`OUTCOMES`],
//!    and durations of installations that did not succeed.
//! 3. Names end in their base unit, and counters in `_total`
//!    (<https://prometheus.io/docs/practices/naming/>).

mod labels;
mod observed;
mod text;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeMetric;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

pub use labels::{
    CANCELED, FailureType, INTERNAL, InstallLabel, LeaseOutcome, OK, StoreEvictionLabel,
    UnloadLabel,
};
pub use observed::{ObservedModel, ObservedState, Stall};
pub use text::Format;

use labels::{
    FALLBACK_REASONS, FailureLabels, LeaseLabels, ModelLabels, OTHER, OUTCOMES, ReasonLabels,
    RequestLabels, StageLabels, StatusLabels, UnloadLabels, failure_label, failure_labels,
    lease_label, lease_labels, model_labels, unload_label, unload_labels,
};

/// Prefix of every name.
const PREFIX: &str = "caxton";

/// Durations of the stages of an answered request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages {
    /// Conversion of texts to token ids.
    pub tokenization: Duration,
    /// Waiting for the model.
    pub queue: Duration,
    /// Computation of vectors from token ids.
    pub inference: Duration,
    /// Total time from the head of the request to the head of its response.
    pub total: Duration,
}

/// Counters of this daemon. Clones share them.
///
/// Recording takes less than a microsecond. A recording waits for a scrape at most while the scrape
/// writes one family.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    routes: &'static [&'static str],
    registry: Registry,
    /// Models that have series, as `id@version`.
    models: Mutex<BTreeSet<String>>,
    requests: Family<RequestLabels, Counter>,
    stages: Family<StageLabels, Histogram>,
    batch_texts: Histogram,
    batch_tokens: Histogram,
    leases: Family<LeaseLabels, Counter>,
    model_tokens: Family<ModelLabels, Counter>,
    loads: Family<ModelLabels, Histogram>,
    load_failures: Family<ModelLabels, Counter>,
    validation_failures: Family<FailureLabels, Counter>,
    evictions: Family<UnloadLabels, Counter>,
    unloads: Family<UnloadLabels, Counter>,
    installs: Family<StatusLabels, Histogram>,
    install_results: Family<StatusLabels, Counter>,
    store_evictions: Family<ReasonLabels, Counter>,
    fallbacks: Family<ReasonLabels, Counter>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Creates a histogram from 100 µs (a short text on a fast machine) to 52 s.
fn request_times() -> Histogram {
    Histogram::new(exponential_buckets(100e-6, 2.0, 20))
}

/// Creates a histogram from 5 ms (a static table) to 82 s (a large model on a slow memory card).
fn load_times() -> Histogram {
    Histogram::new(exponential_buckets(5e-3, 2.0, 15))
}

impl Metrics {
    /// Creates metrics with all counts at zero. `routes` are the registered paths, which become the
    /// labels of requests.
    pub fn new(routes: &'static [&'static str]) -> Self {
        let inner = Inner {
            routes,
            registry: Registry::default(),
            models: Mutex::default(),
            requests: Family::default(),
            stages: Family::new_with_constructor(request_times),
            batch_texts: Histogram::new(exponential_buckets(1.0, 2.0, 12)),
            batch_tokens: Histogram::new(exponential_buckets(8.0, 2.0, 12)),
            leases: Family::default(),
            model_tokens: Family::default(),
            loads: Family::new_with_constructor(load_times),
            load_failures: Family::default(),
            validation_failures: Family::default(),
            evictions: Family::default(),
            unloads: Family::default(),
            installs: Family::new_with_constructor(load_times),
            install_results: Family::default(),
            store_evictions: Family::default(),
            fallbacks: Family::default(),
        };
        let metrics = Self(Arc::new(inner.registered()));
        metrics.begin();
        metrics
    }

    /// Creates the series that do not belong to a model, with the value zero.
    fn begin(&self) {
        let Inner {
            routes,
            requests,
            stages,
            fallbacks,
            installs,
            install_results,
            store_evictions,
            ..
        } = &*self.0;
        for route in routes.iter().copied().chain([OTHER]) {
            for outcome in OUTCOMES {
                drop(requests.get_or_create(&RequestLabels { route, outcome }));
            }
        }
        for stage in ["tokenization", "queue", "inference", "total"] {
            drop(stages.get_or_create(&StageLabels { stage }));
        }
        for reason in FALLBACK_REASONS {
            drop(fallbacks.get_or_create(&ReasonLabels { reason }));
        }
        for label in InstallLabel::all() {
            drop(install_results.get_or_create(&StatusLabels { status: label.name() }));
        }
        let installed = StatusLabels { status: InstallLabel::Installed.name() };
        drop(installs.get_or_create(&installed));
        for label in StoreEvictionLabel::ALL {
            drop(store_evictions.get_or_create(&ReasonLabels { reason: label.name() }));
        }
        self.begin_model("");
    }

    /// Counts a request of `route`, a registered path. `outcome` is [`OK`], [`CANCELED`],
    /// [`INTERNAL`] or the code of its error.
    pub fn count_request(&self, route: Option<&str>, outcome: &'static str) {
        let known = self.0.routes.iter().copied().find(|known| Some(*known) == route);
        let labels = RequestLabels { route: known.unwrap_or(OTHER), outcome };
        self.0.requests.get_or_create(&labels).inc();
    }

    /// Records the durations of a request that returned vectors.
    pub fn observe_stages(&self, Stages { tokenization, queue, inference, total }: Stages) {
        let stages = [
            ("tokenization", tokenization),
            ("queue", queue),
            ("inference", inference),
            ("total", total),
        ];
        for (stage, took) in stages {
            self.0.stages.get_or_create(&StageLabels { stage }).observe(took.as_secs_f64());
        }
    }

    /// Records one forward pass.
    pub fn count_batch(&self, texts: usize, tokens: usize) {
        self.0.batch_texts.observe(texts as f64);
        self.0.batch_tokens.observe(tokens as f64);
    }

    /// Counts a request for the installed `model`, which is `id@version` here and below.
    pub fn count_lease(&self, model: &str, outcome: LeaseOutcome) {
        self.begin_model(model);
        self.0.leases.get_or_create(&lease_label(model, outcome)).inc();
    }

    /// Counts tokens whose vectors the installed `model` computed.
    pub fn count_tokens(&self, model: &str, tokens: usize) {
        self.begin_model(model);
        self.0.model_tokens.get_or_create(&model_labels(model)).inc_by(tokens as u64);
    }

    /// Records that the installed `model` was loaded.
    pub fn count_load(&self, model: &str, took: Duration) {
        self.begin_model(model);
        self.0.loads.get_or_create(&model_labels(model)).observe(took.as_secs_f64());
    }

    /// Counts a failed load of the installed `model`.
    pub fn count_load_failure(&self, model: &str) {
        self.begin_model(model);
        self.0.load_failures.get_or_create(&model_labels(model)).inc();
    }

    /// Counts bytes that failed validation.
    ///
    /// `model` is an installed model, and `None` for a package that was not installed: the id that
    /// such a package claims is not verified.
    pub fn count_validation_failure(&self, model: Option<&str>, failure: FailureType) {
        let model = model.unwrap_or_default();
        self.begin_model(model);
        self.0.validation_failures.get_or_create(&failure_label(model, failure)).inc();
    }

    /// Counts an eviction or unloading of the installed `model`.
    pub fn count_unload(&self, model: &str, label: UnloadLabel) {
        self.begin_model(model);
        let labels = unload_label(model, label);
        match label {
            UnloadLabel::Pressure | UnloadLabel::Displaced => {
                self.0.evictions.get_or_create(&labels).inc()
            }
            UnloadLabel::Idle | UnloadLabel::Request => self.0.unloads.get_or_create(&labels).inc(),
        };
    }

    /// Records the duration of an attempt to install a package, and counts the attempt.
    pub fn count_install(&self, label: InstallLabel, took: Duration) {
        let labels = StatusLabels { status: label.name() };
        self.0.installs.get_or_create(&labels).observe(took.as_secs_f64());
        self.count_install_result(label);
    }

    /// Counts an attempt to install a package, of which only the end was in this process.
    pub fn count_install_result(&self, label: InstallLabel) {
        let labels = StatusLabels { status: label.name() };
        self.0.install_results.get_or_create(&labels).inc();
    }

    /// Counts a model that Caxton removed from the store by itself.
    pub fn count_store_eviction(&self, label: StoreEvictionLabel) {
        let labels = ReasonLabels { reason: label.name() };
        self.0.store_evictions.get_or_create(&labels).inc();
    }

    /// Counts a request that a fallback answered. `reason` is the error code that the requested
    /// model would have given.
    pub fn count_fallback(&self, reason: &'static str) {
        let known = FALLBACK_REASONS.iter().copied().find(|known| *known == reason);
        let labels = ReasonLabels { reason: known.unwrap_or(OTHER) };
        self.0.fallbacks.get_or_create(&labels).inc();
    }

    /// Renders every series as text. Removes the series of models that are not installed any more.
    ///
    /// Takes about a millisecond of CPU time, so it must not run on a thread of the async runtime.
    ///
    /// # Errors
    /// Never in practice; the encoder's signature allows an error.
    pub fn render(&self, observed: &ObservedState, format: Format) -> Result<String, fmt::Error> {
        self.keep_models(observed.models.keys());
        let mut now = Registry::with_prefix(PREFIX);
        observed.register(&mut now);
        let mut text = String::new();
        encode_registry(&mut text, &self.0.registry)?;
        encode_registry(&mut text, &now)?;
        encode_eof(&mut text)?;
        Ok(format.of(text))
    }

    /// Creates series at zero for all `installed` models, and removes the series of all other
    /// models.
    fn keep_models<'a>(&self, installed: impl Iterator<Item = &'a String>) {
        let installed: BTreeSet<&String> = installed.collect();
        installed.iter().for_each(|model| self.begin_model(model));
        let gone: Vec<String> = {
            let mut models = self.models();
            let gone =
                models.iter().filter(|model| !model.is_empty() && !installed.contains(model));
            let gone = gone.cloned().collect();
            models.retain(|model| model.is_empty() || installed.contains(model));
            gone
        };
        gone.iter().for_each(|model| self.0.forget(model));
    }

    /// Creates the series of `model` with the value zero. The empty text means packages that were
    /// not installed.
    fn begin_model(&self, model: &str) {
        let mut models = self.models();
        if models.contains(model) {
            return;
        }
        models.insert(model.to_owned());
        drop(models);
        self.0.begin(model);
    }

    fn models(&self) -> MutexGuard<'_, BTreeSet<String>> {
        // The set is consistent even after a panic of a thread that held the lock.
        self.0.models.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn begin(&self, model: &str) {
        failure_labels(model).for_each(|of| drop(self.validation_failures.get_or_create(&of)));
        if model.is_empty() {
            return;
        }
        lease_labels(model).for_each(|of| drop(self.leases.get_or_create(&of)));
        unload_labels(model, UnloadLabel::EVICTIONS)
            .for_each(|of| drop(self.evictions.get_or_create(&of)));
        unload_labels(model, UnloadLabel::UNLOADS)
            .for_each(|of| drop(self.unloads.get_or_create(&of)));
        drop(self.model_tokens.get_or_create(&model_labels(model)));
        drop(self.loads.get_or_create(&model_labels(model)));
        drop(self.load_failures.get_or_create(&model_labels(model)));
    }

    fn forget(&self, model: &str) {
        for of in failure_labels(model) {
            self.validation_failures.remove(&of);
        }
        for of in lease_labels(model) {
            self.leases.remove(&of);
        }
        for of in unload_labels(model, UnloadLabel::EVICTIONS) {
            self.evictions.remove(&of);
        }
        for of in unload_labels(model, UnloadLabel::UNLOADS) {
            self.unloads.remove(&of);
        }
        self.model_tokens.remove(&model_labels(model));
        self.loads.remove(&model_labels(model));
        self.load_failures.remove(&model_labels(model));
    }

    /// Registers every family under its name.
    fn registered(mut self) -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let mut add = FamilyRegistrar(&mut registry);
        add.family("requests", "Requests by route and outcome", &self.requests);
        add.family(
            "request_duration_seconds",
            "Duration of requests that returned vectors, by stage",
            &self.stages,
        );
        add.family("batch_texts", "Texts of a forward pass", &self.batch_texts);
        add.family("batch_tokens", "Tokens of a forward pass", &self.batch_tokens);
        add.family(
            "model_requests",
            "Requests for a model: hit (resident), miss (loaded first) or rejected",
            &self.leases,
        );
        add.family(
            "model_tokens",
            "Tokens whose vectors a model computed, special tokens included",
            &self.model_tokens,
        );
        add.family(
            "model_load_time_seconds",
            "Duration of a load, from the check of the files to the resident model",
            &self.loads,
        );
        add.family(
            "model_load_failures",
            "Failed loads, except of models that do not fit into memory",
            &self.load_failures,
        );
        add.family(
            "model_validation_failures",
            "Failed validations; model_id is empty for a package that was not installed",
            &self.validation_failures,
        );
        add.family(
            "model_evictions",
            "Evictions because memory was short (pressure) or for another model (displaced)",
            &self.evictions,
        );
        add.family(
            "model_unloads",
            "Unloads because a model was idle (idle) or an administrator requested it (request)",
            &self.unloads,
        );
        add.family(
            "model_install_duration_seconds",
            "Duration of an attempt to install a package from its first read, by its result",
            &self.installs,
        );
        add.family(
            "model_install",
            "Attempts to install a package, by their result",
            &self.install_results,
        );
        add.family(
            "model_cache_evictions",
            "Models that were removed from the store to stay within its limits (limit), for other \
             content of the same version (replaced), or because they were unused (unused)",
            &self.store_evictions,
        );
        add.family("fallback", "Requests that a fallback answered, by the reason", &self.fallbacks);
        self.registry = registry;
        self
    }
}

/// Helper that registers families under the given names.
struct FamilyRegistrar<'a>(&'a mut Registry);

impl FamilyRegistrar<'_> {
    fn family<M>(&mut self, name: &str, help: &str, metric: &M)
    where
        M: EncodeMetric + TypedMetric + Clone + fmt::Debug + Send + Sync + 'static,
    {
        self.0.register(name, help, metric.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const ROUTES: &[&str] = &["/v1/embeddings", "/status"];

    fn observed(ids: &[&str]) -> ObservedState {
        let models = ids.iter().map(|id| ((*id).to_owned(), ObservedModel::default()));
        ObservedState { models: models.collect(), ..ObservedState::default() }
    }

    fn scrape(metrics: &Metrics, ids: &[&str]) -> BTreeMap<String, f64> {
        let text = metrics.render(&observed(ids), Format::Classic).unwrap();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        });
        samples.collect()
    }

    #[test]
    fn every_series_starts_at_zero() {
        let metrics = Metrics::new(ROUTES);
        let samples = scrape(&metrics, &["mini@1"]);
        for series in [
            r#"caxton_requests_total{route="/v1/embeddings",outcome="ok"}"#,
            r#"caxton_requests_total{route="other",outcome="overloaded"}"#,
            r#"caxton_request_duration_seconds_count{stage="queue"}"#,
            r#"caxton_batch_tokens_count"#,
            r#"caxton_model_requests_total{model_id="mini",version="1",cache="miss"}"#,
            r#"caxton_model_tokens_total{model_id="mini",version="1"}"#,
            r#"caxton_model_load_time_seconds_count{model_id="mini",version="1"}"#,
            r#"caxton_model_validation_failures_total{model_id="mini",version="1",failure_type="corrupt"}"#,
            r#"caxton_model_validation_failures_total{model_id="",version="",failure_type="signature"}"#,
            r#"caxton_model_evictions_total{model_id="mini",version="1",reason="pressure"}"#,
            r#"caxton_model_install_duration_seconds_count{status="installed"}"#,
            r#"caxton_model_memory_usage_bytes{model_id="mini",version="1"}"#,
            r#"caxton_model_cache_size_bytes"#,
            r#"caxton_model_cache_evictions_total{reason="unused"}"#,
            r#"caxton_model_install_total{status="installed"}"#,
            r#"caxton_model_install_total{status="self_test"}"#,
            r#"caxton_package_retries_total"#,
            r#"caxton_fallback_total{reason="memory_pressure"}"#,
        ] {
            assert_eq!(samples.get(series), Some(&0.0), "{series}");
        }
    }

    #[test]
    fn events_are_counted_once() {
        let metrics = Metrics::new(ROUTES);
        metrics.count_request(Some("/v1/embeddings"), OK);
        metrics.count_request(Some("/v1/embeddings"), "overloaded");
        metrics.count_request(Some("/never/registered"), OK);
        metrics.count_request(None, "route_not_found");
        metrics.observe_stages(Stages { total: Duration::from_millis(3), ..Stages::default() });
        metrics.count_batch(4, 100);
        metrics.count_lease("mini@1", LeaseOutcome::Hit);
        metrics.count_tokens("mini@1", 60);
        metrics.count_tokens("mini@1", 40);
        metrics.count_unload("mini@1", UnloadLabel::Displaced);
        metrics.count_unload("mini@1", UnloadLabel::Idle);
        metrics.count_validation_failure(None, FailureType::Digest);
        let refused = InstallLabel::Refused(FailureType::Digest);
        metrics.count_install(refused, Duration::from_millis(250));
        metrics.count_install_result(refused);
        metrics.count_store_eviction(StoreEvictionLabel::Limit);
        metrics.count_fallback("memory_limit");
        metrics.count_fallback("unknown");
        let samples = scrape(&metrics, &["mini@1"]);
        for (series, value) in [
            (r#"caxton_requests_total{route="/v1/embeddings",outcome="ok"}"#, 1.0),
            (r#"caxton_requests_total{route="/v1/embeddings",outcome="overloaded"}"#, 1.0),
            (r#"caxton_requests_total{route="other",outcome="ok"}"#, 1.0),
            (r#"caxton_requests_total{route="other",outcome="route_not_found"}"#, 1.0),
            (r#"caxton_request_duration_seconds_sum{stage="total"}"#, 0.003),
            (r#"caxton_request_duration_seconds_count{stage="queue"}"#, 1.0),
            (r#"caxton_batch_tokens_sum"#, 100.0),
            (r#"caxton_model_requests_total{model_id="mini",version="1",cache="hit"}"#, 1.0),
            (r#"caxton_model_tokens_total{model_id="mini",version="1"}"#, 100.0),
            (
                r#"caxton_model_evictions_total{model_id="mini",version="1",reason="displaced"}"#,
                1.0,
            ),
            (r#"caxton_model_unloads_total{model_id="mini",version="1",reason="idle"}"#, 1.0),
            (
                r#"caxton_model_validation_failures_total{model_id="",version="",failure_type="digest"}"#,
                1.0,
            ),
            (r#"caxton_model_install_total{status="digest"}"#, 2.0),
            (r#"caxton_model_install_duration_seconds_sum{status="digest"}"#, 0.25),
            (r#"caxton_model_install_duration_seconds_count{status="installed"}"#, 0.0),
            (r#"caxton_model_cache_evictions_total{reason="limit"}"#, 1.0),
            (r#"caxton_fallback_total{reason="memory_limit"}"#, 1.0),
            (r#"caxton_fallback_total{reason="other"}"#, 1.0),
        ] {
            assert_eq!(samples.get(series), Some(&value), "{series}");
        }
    }

    #[test]
    fn removed_model_has_no_series() {
        let metrics = Metrics::new(ROUTES);
        metrics.count_lease("gone@1", LeaseOutcome::Miss);
        metrics.count_load("gone@1", Duration::from_millis(20));
        metrics.count_load_failure("gone@1");
        metrics.count_tokens("gone@1", 7);
        metrics.count_unload("gone@1", UnloadLabel::Pressure);
        metrics.count_validation_failure(Some("gone@1"), FailureType::Corrupt);
        assert!(
            scrape(&metrics, &["gone@1"]).keys().any(|series| series.contains("model_id=\"gone\""))
        );
        let samples = scrape(&metrics, &["mini@1"]);
        let left: Vec<_> =
            samples.keys().filter(|series| series.contains("model_id=\"gone\"")).collect();
        assert_eq!(left, [""; 0]);
        // The counts start at zero when the model is installed again.
        let samples = scrape(&metrics, &["gone@1"]);
        let series = r#"caxton_model_requests_total{model_id="gone",version="1",cache="miss"}"#;
        assert_eq!(samples.get(series), Some(&0.0));
    }
}
