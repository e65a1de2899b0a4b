//! State of the daemon at the moment of a scrape, and the gauges for it.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::labels::{ModelLabels, model_labels};

type Bytes = Gauge<u64, AtomicU64>;
type Number = Gauge<f64, AtomicU64>;

/// State of the daemon now. Sizes are in bytes. `None` means that the system does not report the
/// value; it gives no series.
#[derive(Clone, Debug, Default)]
pub struct ObservedState {
    /// Version of the daemon.
    pub version: &'static str,
    /// Time since the daemon started.
    pub uptime: Duration,
    /// Whether the default model can answer, at once or after it is loaded.
    pub ready: bool,
    /// Number of problems in the configuration files.
    pub configuration_problems: usize,
    /// Log records that were not delivered to the journal since the start.
    pub log_records_lost: u64,
    /// Resident memory of the process.
    pub resident: Option<u64>,
    /// Anonymous and shared memory of the process.
    pub process: u64,
    /// Memory of the control group that the kernel cannot reclaim.
    pub unreclaimable: u64,
    /// Memory limit of which the greatest share is in use: its value, and the memory that counts
    /// towards it.
    pub limit: Option<(u64, u64)>,
    /// Headroom: memory that a model may take without the eviction of another one.
    pub headroom: u64,
    /// Pressure level: 0 normal, 1 moderate, 2 high, 3 critical.
    pub pressure_level: u8,
    /// Whether requests are shed because memory is short.
    pub shedding: bool,
    /// Memory charged for the requests and responses in progress.
    pub requests_held: u64,
    /// Limit of that memory.
    pub requests_limit: u64,
    /// Time lost to memory shortage; empty if the kernel does not count it.
    pub stalls: Vec<Stall>,
    /// Total size of the files of installed models that count towards the limit.
    pub cache: u64,
    /// Limit of that size.
    pub cache_limit: u64,
    /// Free space of the store's file system; `None` if it cannot be measured.
    pub disk_free: Option<u64>,
    /// Packages on their way by state.
    pub packages: BTreeMap<&'static str, usize>,
    /// Attempts to install a package that had failed before.
    pub package_retries: u64,
    /// Maximum number of queued requests of one model.
    pub queue_limit: usize,
    /// Maximum number of queued tokens of one model.
    pub queue_limit_tokens: usize,
    /// Installed models as `id@version`. Revisions of one version are added up.
    pub models: BTreeMap<String, ObservedModel>,
}

/// State of a model now.
#[derive(Clone, Copy, Debug, Default)]
pub struct ObservedModel {
    /// Whether the model is resident.
    pub resident: bool,
    /// Memory of the weights, in bytes.
    pub memory: u64,
    /// Queued requests.
    pub waiting: usize,
    /// Tokens of the queued requests.
    pub waiting_tokens: usize,
    /// Time of the last use in seconds since 1970, or of the installation before the first use.
    pub last_used: u64,
}

/// Share of time in which tasks waited for memory (pressure stall information).
#[derive(Clone, Copy, Debug)]
pub struct Stall {
    /// Kind: `some` if at least one task waited, `full` if all did.
    pub kind: &'static str,
    /// Time over which the share is averaged, such as `10s`.
    pub window: &'static str,
    /// Share from 0 to 1.
    pub ratio: f64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabels {
    version: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StallLabels {
    kind: &'static str,
    window: &'static str,
}

impl ObservedState {
    /// Registers a metric for each of the values in `registry`.
    pub(super) fn register(&self, registry: &mut Registry) {
        let build = Family::<VersionLabels, Bytes>::default();
        build.get_or_create(&VersionLabels { version: self.version }).set(1);
        registry.register("build_info", "Always 1; the version is a label", build);
        let mut add = GaugeRegistrar { registry };
        add.number("uptime_seconds", "Time since the daemon started", self.uptime.as_secs_f64());
        add.flag("ready", "Whether the default model can answer, maybe after a load", self.ready);
        add.number(
            "configuration_problems",
            "Problems of the configuration files; the last valid configuration applies",
            self.configuration_problems as f64,
        );
        add.registry.register(
            "log_records_lost",
            "Records that were dropped because journald did not accept them",
            ConstCounter::new(self.log_records_lost),
        );
        self.register_memory(&mut add);
        self.register_store(&mut add);
        self.register_models(&mut add);
    }

    fn register_store(&self, add: &mut GaugeRegistrar<'_>) {
        add.bytes(
            "model_cache_size_bytes",
            "Size of the files of installed models, without bundled ones",
            self.cache,
        );
        add.bytes("model_cache_limit_bytes", "Limit of that size", self.cache_limit);
        if let Some(free) = self.disk_free {
            add.bytes("disk_free_bytes", "Free space of the store's file system", free);
        }
        let packages = Family::<StateLabels, Bytes>::default();
        for (state, count) in &self.packages {
            packages.get_or_create(&StateLabels { state }).set(*count as u64);
        }
        add.registry.register("packages", "Packages on their way, by state", packages);
        add.registry.register(
            "package_retries",
            "Attempts to install a package that had failed before",
            ConstCounter::new(self.package_retries),
        );
    }

    fn register_memory(&self, add: &mut GaugeRegistrar<'_>) {
        add.number(
            "memory_pressure_level",
            "Memory pressure: 0 normal, 1 moderate, 2 high, 3 critical",
            f64::from(self.pressure_level),
        );
        add.flag("memory_shedding", "Whether requests are shed, as memory is short", self.shedding);
        if let Some(resident) = self.resident {
            add.bytes("resident_memory_bytes", "Resident memory of the daemon", resident);
        }
        add.bytes(
            "memory_process_bytes",
            "Anonymous and shared memory of the daemon",
            self.process,
        );
        add.bytes(
            "memory_unreclaimable_bytes",
            "Memory of the control group that the kernel cannot reclaim",
            self.unreclaimable,
        );
        if let Some((limit, used)) = self.limit {
            add.bytes("memory_limit_bytes", "Limit of which the greatest share is in use", limit);
            add.bytes("memory_limit_usage_bytes", "Memory that counts towards that limit", used);
        }
        add.bytes(
            "memory_headroom_bytes",
            "Memory that a model may take without an eviction",
            self.headroom,
        );
        add.bytes(
            "request_held_bytes",
            "Memory charged for the bodies and responses of requests in progress",
            self.requests_held,
        );
        add.bytes("request_limit_bytes", "Limit of that memory", self.requests_limit);
        if !self.stalls.is_empty() {
            let stalls = Family::<StallLabels, Number>::default();
            for Stall { kind, window, ratio } in self.stalls.iter().copied() {
                stalls.get_or_create(&StallLabels { kind, window }).set(ratio);
            }
            add.registry.register(
                "memory_pressure_stall_ratio",
                "Share of the time in which some or all tasks waited for memory",
                stalls,
            );
        }
    }

    fn register_models(&self, add: &mut GaugeRegistrar<'_>) {
        add.number(
            "queue_limit_requests",
            "Maximum number of queued requests of one model",
            self.queue_limit as f64,
        );
        add.number(
            "queue_limit_tokens",
            "Maximum number of queued tokens of one model",
            self.queue_limit_tokens as f64,
        );
        let memory = Family::<ModelLabels, Bytes>::default();
        let resident = Family::<ModelLabels, Bytes>::default();
        let waiting = Family::<ModelLabels, Number>::default();
        let waiting_tokens = Family::<ModelLabels, Number>::default();
        let last_used = Family::<ModelLabels, Bytes>::default();
        for (name, model) in &self.models {
            let labels = model_labels(name);
            memory.get_or_create(&labels).set(model.memory);
            resident.get_or_create(&labels).set(u64::from(model.resident));
            waiting.get_or_create(&labels).set(model.waiting as f64);
            waiting_tokens.get_or_create(&labels).set(model.waiting_tokens as f64);
            last_used.get_or_create(&labels).set(model.last_used);
        }
        let registry = &mut *add.registry;
        registry.register(
            "model_memory_usage_bytes",
            "Memory of the weights, without the word embeddings, which are mapped from the file",
            memory,
        );
        registry.register("model_resident", "Whether the model is in memory", resident);
        registry.register("queue_requests", "Queued requests of the model", waiting);
        registry.register(
            "queue_tokens",
            "Tokens of the queued requests of the model",
            waiting_tokens,
        );
        registry.register(
            "model_last_used_timestamp_seconds",
            "Time of the last use of the model, or of its installation before the first use",
            last_used,
        );
    }
}

/// Helper that registers gauges without labels.
struct GaugeRegistrar<'a> {
    registry: &'a mut Registry,
}

impl GaugeRegistrar<'_> {
    fn bytes(&mut self, name: &str, help: &str, value: u64) {
        let gauge = Bytes::default();
        gauge.set(value);
        self.registry.register(name, help, gauge);
    }

    fn number(&mut self, name: &str, help: &str, value: f64) {
        let gauge = Number::default();
        gauge.set(value);
        self.registry.register(name, help, gauge);
    }

    fn flag(&mut self, name: &str, help: &str, value: bool) {
        self.number(name, help, f64::from(u8::from(value)));
    }
}
