//! Handle of the manager: the requests that other modules may send to it.
//!
//! A request for a resident model takes its lease from the [`ServingTable`], and the manager learns
//! of it from the shared times of use. All other requests are commands to the manager. Every wait
//! is bounded: the manager replies within microseconds, and the work that it starts is awaited no
//! longer than a request may take.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::base::errors::chain;
use crate::base::units::Bytes;
use crate::config::Settings;
use crate::engine::{EngineOptions, Footprint};
use crate::memory::monitor::{MemorySampler, Reading};
use crate::models::catalog::fallback::{self, Fallback, FallbackFor, FallbackLog};
use crate::models::catalog::{Catalog, CatalogSource};
use crate::models::error::ModelError;
use crate::models::residency::manager::{Command, Manager, ManagerParts};
use crate::models::residency::model_state::{LeaseRequest, Reservation};
use crate::models::residency::retention::KeepAliveRequest;
use crate::models::serving::table::ServingTable;
use crate::models::usage::Usage;
use crate::models::{
    FlushResult, FlushScope, Lease, LivenessProbe, MemoryView, Overview, Priority, REQUEST_TIMEOUT,
    ReleasedLease, Residency, Urgency,
};
use crate::package::{EntryKey, Manifest, Store, StoreEntry};
use crate::telemetry::events::{Event, Events};
use crate::telemetry::metrics::{LeaseOutcome, Metrics};

/// Commands that wait for the manager. It replies within microseconds, so that only bursts fill the
/// channel.
const MAX_COMMANDS: usize = 256;
/// Longest time that a request waits for a model that is loading before the client is asked to
/// retry.
const LOAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time that an administrator waits for a model that drains.
const UNLOAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time that an administrator waits for a flush.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);

/// Handle of the manager.
#[derive(Clone, Debug)]
pub struct ManagerHandle {
    commands: mpsc::Sender<Command>,
    serving: Arc<ServingTable>,
    catalog: Arc<CatalogSource>,
    store: Arc<Store>,
    settings: watch::Receiver<Arc<Settings>>,
    overview: watch::Receiver<Overview>,
    sampler: MemorySampler,
    readings: watch::Receiver<Reading>,
    usage: Arc<Usage>,
    fallback_log: Arc<FallbackLog>,
    /// Time of the next validation of all files, in seconds since 1970; 0 when it is not known.
    next_validation: Arc<AtomicU64>,
    metrics: Metrics,
    events: Events,
}

impl ManagerHandle {
    /// Creates a manager: its handle, and the future that runs it. The future ends after `cancel`,
    /// when every worker has finished.
    pub fn new(
        parts: ManagerParts,
        cancel: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (commands, receiver) = mpsc::channel(MAX_COMMANDS);
        let (announce, overview) = watch::channel(Overview::default());
        let serving = Arc::<ServingTable>::default();
        let catalog =
            Arc::new(CatalogSource::new(Arc::clone(&parts.store), parts.settings.clone()));
        let handle = Self {
            commands,
            serving: Arc::clone(&serving),
            catalog: Arc::clone(&catalog),
            store: Arc::clone(&parts.store),
            settings: parts.settings.clone(),
            overview,
            sampler: parts.sampler.clone(),
            readings: parts.readings.clone(),
            usage: Arc::clone(&parts.usage),
            fallback_log: Arc::default(),
            next_validation: Arc::default(),
            metrics: parts.metrics.clone(),
            events: parts.events.clone(),
        };
        let task = Manager::new(parts, catalog, serving, announce).run(receiver, cancel);
        (handle, task)
    }

    /// Sends a command and waits for its reply.
    async fn send_command<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, ModelError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_closed| ModelError::Draining)?;
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, answer).await;
        let answer = answer.map_err(|_elapsed| ModelError::Timeout(REQUEST_TIMEOUT))?;
        answer.map_err(|_closed| ModelError::Draining)
    }

    /// Acquires a lease on `name` (`id`, `id@version`, `id@revision` or an alias), or on the
    /// default model; loads the model first if need be, after the models that interactive requests
    /// wait for. Cancelling stops the wait, not the load.
    ///
    /// # Errors
    /// When there is no such model, it does not fit into memory, or it cannot be loaded.
    pub async fn lease(&self, name: Option<&str>) -> Result<Lease, ModelError> {
        let name = name.map_or_else(|| self.default_model(), str::to_owned);
        match self.lease_resident(&name) {
            Some(lease) => Ok(lease),
            None => self.request_lease(name, Priority::Bulk).await,
        }
    }

    /// Acquires a lease on `name` as [`lease`](Self::lease) does, and waits until `deadline` at the
    /// latest. A resident model is leased after the deadline, too.
    ///
    /// # Errors
    /// Those of [`lease`](Self::lease), and when the model is still loading at the deadline.
    pub async fn load(&self, name: &str, deadline: Instant) -> Result<Lease, ModelError> {
        match self.lease_resident(name) {
            Some(lease) => Ok(lease),
            None => {
                let patience = deadline.saturating_duration_since(Instant::now());
                self.lease_within(name, Priority::Bulk, patience).await
            }
        }
    }

    /// Acquires a lease on `name` if it is resident, without the manager. Returns `None` if only
    /// the manager can answer, with a lease or with an error.
    fn lease_resident(&self, name: &str) -> Option<Lease> {
        let catalog = self.catalog();
        let key = &catalog.find(name).ok()?.key;
        let lease = self.serving.lease(key, name, &self.usage, tokio::time::Instant::now())?;
        self.store.count_access(key);
        self.metrics.count_lease(key.name(), LeaseOutcome::Hit);
        Some(lease)
    }

    async fn request_lease(&self, name: String, priority: Priority) -> Result<Lease, ModelError> {
        let command = |reply| Command::Lease(LeaseRequest { name, priority, reply });
        self.send_command(command).await?
    }

    /// Acquires a lease on `wanted` by the deadline, and waits no longer than [`LOAD_TIMEOUT`] while
    /// the model is loading. If the model cannot answer, the lease is on a fallback for which
    /// `is_allowed` returns true; [`Lease::fallback_for`] then describes the fallback. `named`
    /// means that the client itself named the model: in this case a model that is not installed is
    /// an error.
    ///
    /// # Errors
    /// Those of the wanted model, when no fallback may answer or can.
    pub async fn lease_for(
        &self,
        wanted: &str,
        named: bool,
        fallback: Fallback,
        is_allowed: impl Fn(&StoreEntry) -> bool,
        urgency: Urgency,
    ) -> Result<Lease, ModelError> {
        let error = match self.lease_by(wanted, urgency).await {
            Ok(lease) => {
                self.fallback_log.record_recovery(wanted);
                return Ok(lease);
            }
            Err(error) if fallback::is_eligible(&error, named) => error,
            Err(error) => return Err(error),
        };
        let candidates = fallback::candidates(&self.catalog(), wanted, fallback, is_allowed);
        for candidate in candidates {
            // The deadline has passed: do not load a fallback that no client waits for.
            if Instant::now() >= urgency.deadline {
                break;
            }
            // Ask by revision: another content of the same version may have another embedding
            // space.
            let (id, _version, revision) = candidate.parts();
            let name = candidate.name();
            match self.lease_by(&format!("{id}@{revision}"), urgency).await {
                Ok(lease) if lease.key != candidate => {
                    tracing::debug!(model = %candidate, "fallback skipped: its revision is the name of a version");
                }
                Ok(lease) => {
                    if self.fallback_log.record_fallback(wanted, name, &error) {
                        self.events.publish(Event::Fallback {
                            model: wanted.to_owned(),
                            answered_by: name.to_owned(),
                            reason: chain(&error),
                        });
                    }
                    let wanted = wanted.to_owned();
                    let fallback_for = Some(Arc::new(FallbackFor { requested: wanted, error }));
                    return Ok(Lease { fallback_for, ..lease });
                }
                Err(error) => {
                    tracing::debug!(model = %candidate, error = chain(&error), "fallback cannot answer");
                }
            }
        }
        Err(error)
    }

    /// Reserves memory for `key` while it is loaded with `options` outside of the manager, until
    /// the reservation is dropped. Other models are evicted for it as for a request. Cancelling
    /// stops the wait.
    ///
    /// # Errors
    /// When it does not fit, with the numbers.
    pub(super) async fn reserve(
        &self,
        key: EntryKey,
        options: EngineOptions,
    ) -> Result<Reservation, ModelError> {
        self.send_command(|reply| Command::Reserve { key, options, reply }).await?
    }

    /// Checks whether a model of `footprint`, called `name`, would fit into memory if every
    /// evictable model were evicted. Blocks until the memory is measured and the manager has
    /// replied.
    ///
    /// # Errors
    /// When it does not fit, with the numbers, and when the daemon is stopping.
    pub(super) fn could_fit(&self, name: String, footprint: Footprint) -> Result<(), ModelError> {
        let sample = self.sampler.sample();
        let (reply, answer) = oneshot::channel();
        let command = Command::CouldFit { footprint, sample, reply };
        self.commands.blocking_send(command).map_err(|_closed| ModelError::Draining)?;
        let answer = answer.blocking_recv().map_err(|_closed| ModelError::Draining)?;
        answer.map_err(|refusal| ModelError::MemoryLimit { name, refusal: Arc::new(refusal) })
    }

    /// Returns a text of all limits on the memory of models, from the system and the settings. The
    /// text changes when any of them changes.
    pub(super) fn memory_limits(&self) -> String {
        let settings = self.settings.borrow();
        let sample = &self.readings.borrow().sample;
        let limits = Vec::from_iter(sample.limits.iter().map(|limit| limit.bytes));
        let total = sample.machine.total;
        format!("{total:?} {limits:?} {:?} {:?}", settings.memory, settings.models)
    }

    /// Acquires a lease on the same model as one that was given back, by the deadline; loads the
    /// model first if need be.
    ///
    /// # Errors
    /// When the model is no longer installed, does not fit into memory, or cannot be loaded in
    /// time.
    pub async fn renew(
        &self,
        absent: &ReleasedLease,
        urgency: Urgency,
    ) -> Result<Lease, ModelError> {
        let ReleasedLease { name, key, info, fallback_for } = absent.clone();
        let own_name = format!("{}@{}", info.manifest.id, info.revision);
        let lease = self.lease_by(&own_name, urgency).await.map_err(|error| match error {
            // The model was removed meanwhile. The error of the name would list all models, also
            // those that the client must not see.
            ModelError::Unknown { .. } => ModelError::Ended(name.clone()),
            error => error,
        })?;
        // A revision is shortened, so that it may match another content by now.
        if lease.key != key {
            return Err(ModelError::Ended(name));
        }
        Ok(Lease { name, info, fallback_for, ..lease })
    }

    async fn lease_by(&self, name: &str, urgency: Urgency) -> Result<Lease, ModelError> {
        let Urgency { priority, deadline } = urgency;
        let patience = deadline.saturating_duration_since(Instant::now()).min(LOAD_TIMEOUT);
        // After the deadline even a resident model is a timeout: the client no longer waits.
        if !patience.is_zero()
            && let Some(lease) = self.lease_resident(name)
        {
            return Ok(lease);
        }
        self.lease_within(name, priority, patience).await
    }

    /// Requests a lease on `name` from the manager, and waits no longer than `patience`.
    async fn lease_within(
        &self,
        name: &str,
        priority: Priority,
        patience: Duration,
    ) -> Result<Lease, ModelError> {
        let request = self.request_lease(name.to_owned(), priority);
        match tokio::time::timeout(patience, request).await {
            Ok(answer) => answer,
            Err(_elapsed) => {
                let name = name.to_owned();
                Err(self.send_command(|reply| Command::ExplainTimeout { name, reply }).await?)
            }
        }
    }

    /// Returns the state of every model.
    ///
    /// # Errors
    /// When the daemon is stopping.
    pub async fn residency(&self) -> Result<BTreeMap<EntryKey, Residency>, ModelError> {
        self.send_command(|reply| Command::Residency { reply }).await
    }

    /// Starts a liveness pass in the default model, if it is resident, and in every model with
    /// waiting requests; the passes go before those requests. Returns the probes. The reply itself
    /// shows that the manager is alive.
    ///
    /// # Errors
    /// When the daemon is stopping.
    pub async fn start_probes(&self) -> Result<Vec<LivenessProbe>, ModelError> {
        self.send_command(|reply| Command::StartProbes { reply }).await
    }

    /// Returns the state of memory and of the models in it.
    ///
    /// # Errors
    /// When the daemon is stopping.
    pub async fn memory(&self) -> Result<MemoryView, ModelError> {
        self.send_command(|reply| Command::Memory { reply }).await
    }

    /// Pins `name` once it is in memory, or unpins it. Overrides the settings until the next start
    /// of the daemon.
    ///
    /// # Errors
    /// When there is no such model.
    pub async fn pin(&self, name: &str, pinned: bool) -> Result<(), ModelError> {
        let name = name.to_owned();
        self.send_command(|reply| Command::Pin { name, pinned, reply }).await?
    }

    /// Sets how long a user needs `name` after each use, until it is unloaded; does nothing if it
    /// is not in memory. The model stays until the needs of all its users are over. Pins and the
    /// memory plan override this.
    ///
    /// # Errors
    /// When there is no such model.
    pub async fn keep_alive(&self, name: &str, wish: KeepAliveRequest) -> Result<(), ModelError> {
        let name = name.to_owned();
        self.send_command(|reply| Command::KeepAlive { name, wish, reply }).await?
    }

    /// Drains and unloads `name`, and waits until it is unloaded. Returns the model, and whether it
    /// was in memory. `is_forced` drops the requests that wait for it. Cancelling stops the wait,
    /// not the unload.
    ///
    /// # Errors
    /// When there is no such model, it is pinned, or it does not finish within [`UNLOAD_TIMEOUT`].
    pub async fn unload(
        &self,
        name: &str,
        is_forced: bool,
    ) -> Result<(EntryKey, bool), ModelError> {
        let name = name.to_owned();
        let command = |reply| Command::Unload { name, is_forced, reply };
        let (key, gone) = self.send_command(command).await??;
        let Some(gone) = gone else { return Ok((key, false)) };
        let gone = tokio::time::timeout(UNLOAD_TIMEOUT, gone).await;
        // The channel closes without a value if the model was removed from the store in the
        // meantime. It is unloaded as well.
        drop(gone.map_err(|_elapsed| ModelError::StillDraining {
            models: vec![key.name().to_owned()],
            waited: UNLOAD_TIMEOUT,
        })?);
        Ok((key, true))
    }

    /// Frees the memory in `scope`, and waits until it is freed. Cancelling stops the wait, not the
    /// unloads.
    ///
    /// # Errors
    /// When the daemon is stopping, or models do not finish within [`FLUSH_TIMEOUT`].
    pub async fn flush(&self, scope: FlushScope) -> Result<FlushResult, ModelError> {
        let flush = self.send_command(|reply| Command::Flush { scope, reply });
        let Ok(flushed) = tokio::time::timeout(FLUSH_TIMEOUT, flush).await else {
            let states = self.residency().await?;
            let draining = states.iter().filter(|(_, state)| **state == Residency::Draining);
            let models = Vec::from_iter(draining.map(|(key, _)| key.name().to_owned()));
            return Err(match models.is_empty() {
                true => ModelError::Timeout(FLUSH_TIMEOUT),
                false => ModelError::StillDraining { models, waited: FLUSH_TIMEOUT },
            });
        };
        flushed
    }

    /// Returns the number of tokens of a text that the model of `manifest` reads under the present
    /// settings. Longer texts are truncated.
    pub fn max_sequence_length(&self, manifest: &Manifest) -> usize {
        let own = manifest.max_sequence_length;
        let settings = self.settings.borrow();
        let model = settings.model(manifest.id.as_str(), manifest.version.as_str());
        model.max_sequence_length.map_or(own, |most| most.min(own))
    }

    /// Returns whether a request may ask for vectors of a length that its model was not trained
    /// for.
    pub fn allows_any_dimensions(&self) -> bool {
        self.settings.borrow().embedding.allow_any_dimensions
    }

    /// Returns `options` with the present settings that may change while the daemon runs.
    pub(in crate::models) fn current_options(&self, options: EngineOptions) -> EngineOptions {
        EngineOptions { batch_tokens: self.settings.borrow().embedding.batch_tokens, ..options }
    }

    /// Records that the files of all models are validated next after this time.
    pub(in crate::models) fn set_next_validation(&self, after: Duration) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.next_validation.store(now.saturating_add(after).as_secs(), Ordering::Relaxed);
    }

    /// Returns the time of the next validation of all models' files, in seconds since 1970; `None`
    /// while it is not known.
    pub fn next_validation(&self) -> Option<u64> {
        Some(self.next_validation.load(Ordering::Relaxed)).filter(|at| *at > 0)
    }

    /// Limits the memory of this process until the next start of the daemon, or until the setting
    /// changes; `None` leaves only the limits of the kernel. Waits until memory is measured against
    /// the new limit. Cancelling stops the wait.
    pub async fn set_memory_limit(&self, limit: Option<Bytes>) {
        let now = Instant::now();
        self.sampler.set_limit(limit);
        let mut readings = self.readings.clone();
        // An error means that the monitor has ended, which only happens when the daemon stops.
        drop(readings.wait_for(|reading| reading.at >= now).await);
    }

    /// Returns the limit on the memory of this process: that of the configuration, or the one that
    /// was set later.
    pub fn memory_limit(&self) -> Option<Bytes> {
        self.sampler.limit()
    }

    /// Notifies the manager of a change of the store, and of the entries that were removed.
    pub async fn notify_store_changed(&self, gone: Vec<EntryKey>) {
        // A manager that has ended has dropped all models.
        drop(self.commands.send(Command::StoreChanged { removed: gone }).await);
    }

    /// Reports the degraded parts of the daemon to the manager, one sentence each.
    pub async fn report_degraded(&self, degraded: Vec<String>) {
        // A manager that has ended does not announce anything.
        drop(self.commands.send(Command::ReportDegraded { degraded }).await);
    }

    /// Returns the usage statistics of the models.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Returns the metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Returns the event stream.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Returns the store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Returns the name of the model that answers requests without a model name. An alias is
    /// resolved.
    pub fn default_model(&self) -> String {
        self.catalog().default_model(None)
    }

    /// Returns the catalog of the installed models and of their names.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.current()
    }

    /// Returns the summary of all models, and its changes.
    pub fn overview(&self) -> watch::Receiver<Overview> {
        self.overview.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::pin::Pin;
    use std::time::SystemTime;

    use futures_util::FutureExt;
    use tempfile::TempDir;

    use super::*;
    use crate::config::ModelSettings;
    use crate::engine::Precision;
    use crate::memory::level::PressureLevel;
    use crate::models::residency::load;
    use crate::models::residency::retention::{KeepAlive, ModelUser};
    use crate::models::usage::RequestOutcome;
    use crate::models::{DefaultModelState, Flow, Owner, Ticket};
    use crate::package::{
        BoxError, CleanupRule, Manifest, Origin, PackRequest, PackageContents, Quota, UnpackLimits,
        pack,
    };

    const MODEL: &str = "tiny-bert-mean";
    const OPTIONS: EngineOptions =
        EngineOptions { threads: 1, batch_tokens: 512, precision: Precision::F32 };

    /// A manager with one installed model, which is the default one. It runs only while a test
    /// waits in [`run`](Self::run).
    struct TestManager {
        handle: ManagerHandle,
        task: Pin<Box<dyn Future<Output = ()> + Send>>,
        settings: watch::Sender<Arc<Settings>>,
        _place: TempDir,
    }

    fn settings() -> Settings {
        let mut settings = Settings::default();
        settings.memory.embedding_model = MODEL.to_owned();
        settings
    }

    /// Computes the vector of the self-test with the real engine.
    fn computed(manifest: &Manifest, contents: &PackageContents) -> Result<Vec<f32>, BoxError> {
        let model = load::load(manifest, contents.clone(), OPTIONS)?;
        Ok(load::embed_plain(&model, &manifest.self_test.text)?)
    }

    fn install(store: &Store, id: &str) {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(MODEL);
        let mut package = Vec::new();
        let id = Some(id.parse().unwrap());
        let request = PackRequest { source, id, ..PackRequest::default() };
        pack(&request, &computed, &|_, _| {}, &mut package).unwrap();
        let size = Bytes::mib(64);
        let quota = Quota { max_size: size, max_models: 9, cleanup: CleanupRule::Manual };
        let staged = store.stage(&package[..], &UnpackLimits::for_size(size)).unwrap();
        let key = store.install(staged, Origin::Installed, quota, |_| false).unwrap().entry.key;
        store.activate(&key, quota, |_| false).unwrap();
    }

    /// Advances the paused clock until it is dropped.
    async fn let_time_pass() {
        loop {
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }

    /// Returns the result of `work` while the paused clock advances.
    async fn while_time_passes<T>(work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            () = let_time_pass() => unreachable!("time does not end"),
        }
    }

    impl TestManager {
        /// Creates a manager, which has not loaded the model yet.
        fn new() -> Self {
            Self::under(PressureLevel::Normal)
        }

        /// Creates a manager as [`new`](Self::new) under this pressure level.
        fn under(level: PressureLevel) -> Self {
            let place = tempfile::tempdir().unwrap();
            let store = Arc::new(Store::volatile(place.path()).unwrap());
            install(&store, MODEL);
            let (change_settings, settings) = watch::channel(Arc::new(settings()));
            let parts = ManagerParts {
                store,
                options: OPTIONS,
                settings,
                sampler: MemorySampler::new(Path::new("/"), None),
                readings: watch::channel(Reading { level, ..Reading::default() }).1,
                usage: Arc::new(Usage::open(&place.path().join("usage.json"))),
                metrics: Metrics::new(&[]),
                events: Events::new(SystemTime::now()),
            };
            let (handle, task) = ManagerHandle::new(parts, CancellationToken::new());
            Self { handle, task: Box::pin(task), settings: change_settings, _place: place }
        }

        /// Runs the manager until `work` is done.
        async fn run<T>(&mut self, work: impl Future<Output = T>) -> T {
            tokio::select! {
                done = work => done,
                () = &mut self.task => panic!("the manager ended"),
            }
        }

        /// Loads the model, and returns a lease on it.
        async fn load(&mut self) -> Lease {
            let handle = self.handle.clone();
            self.run(handle.lease(Some(MODEL))).await.unwrap()
        }
    }

    #[tokio::test]
    async fn resident_model_is_leased_without_the_manager() {
        let mut manager = TestManager::new();
        let handle = manager.handle.clone();
        assert!(handle.lease_resident(MODEL).is_none(), "the model is not loaded");
        let first = manager.load().await;
        // The manager does not run here.
        let second = handle.lease(None).now_or_never().unwrap().unwrap();
        assert_eq!((first.key, first.info.revision), (second.key, second.info.revision));
        assert_eq!(handle.store().entries()[0].accesses.count(), 2);
        assert!(handle.lease_resident("other").is_none());
    }

    #[tokio::test]
    async fn renewal_of_removed_model_lists_no_models() {
        let mut manager = TestManager::new();
        let handle = manager.handle.clone();
        let released = manager.load().await.release();
        let key = handle.store().entries()[0].key.clone();
        handle.store().remove(&key).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let urgency = Urgency { priority: Priority::Interactive, deadline };
        let ended = manager.run(handle.renew(&released, urgency)).await.unwrap_err();
        assert!(matches!(ended, ModelError::Ended(_)), "{ended}");
    }

    #[tokio::test]
    async fn draining_model_is_leased_after_reload() {
        let mut manager = TestManager::new();
        let handle = manager.handle.clone();
        drop(manager.load().await);
        let held = handle.lease_resident(MODEL).unwrap();
        let name = MODEL.to_owned();
        let unload = |reply| Command::Unload { name, is_forced: false, reply };
        let unload = manager.run(handle.send_command(unload)).await.unwrap();
        let drained = unload.unwrap().1.unwrap();
        // The drain waits for the lease, and no other lease is created.
        assert!(handle.lease_resident(MODEL).is_none());
        drop(held);
        manager.run(drained).await.unwrap();
        assert!(handle.lease_resident(MODEL).is_none());
        let again = manager.load().await;
        assert!(handle.lease_resident(MODEL).is_some());
        drop(again);
    }

    #[tokio::test]
    async fn changed_limits_apply_to_resident_models() {
        let mut manager = TestManager::new();
        let handle = manager.handle.clone();
        let lease = manager.load().await;
        let own = lease.max_sequence_length();
        let scratch = |view: MemoryView| view.models[0].footprint.unwrap().scratch_bytes;
        let before = scratch(manager.run(handle.memory()).await.unwrap());
        let mut changed = settings();
        let capped = ModelSettings { max_sequence_length: Some(8), ..ModelSettings::default() };
        changed.models.insert(MODEL.to_owned(), capped);
        changed.embedding.batch_tokens = 65_536;
        manager.settings.send(Arc::new(changed)).unwrap();
        let estimated = async {
            loop {
                let now = scratch(handle.memory().await.unwrap());
                if now != before {
                    return now;
                }
            }
        };
        manager.run(estimated).await;
        assert_eq!(lease.max_sequence_length(), 8);
        assert_eq!(handle.max_sequence_length(&lease.info.manifest), 8);
        // The next load gets the same limits.
        drop(lease);
        manager.run(handle.unload(MODEL, false)).await.unwrap();
        let lease = manager.load().await;
        assert_eq!(lease.max_sequence_length(), 8);
        manager.settings.send(Arc::new(settings())).unwrap();
        let lifted = async {
            while lease.max_sequence_length() < own {
                handle.residency().await.unwrap();
            }
        };
        manager.run(lifted).await;
        assert_eq!(handle.max_sequence_length(&lease.info.manifest), own);
    }

    #[tokio::test]
    async fn draining_model_is_reported_after_the_timeout() {
        let mut manager = TestManager::new();
        let handle = manager.handle.clone();
        let held = manager.load().await;
        tokio::time::pause();
        let unload = while_time_passes(handle.unload(MODEL, false));
        let refused = manager.run(unload).await.unwrap_err().to_string();
        assert!(refused.starts_with("still draining after 10 s: tiny-bert-mean@"), "{refused}");
        let flush = while_time_passes(handle.flush(FlushScope::All));
        let refused = manager.run(flush).await.unwrap_err().to_string();
        assert!(refused.starts_with("still draining after 30 s: tiny-bert-mean@"), "{refused}");
        drop(held);
        let (key, _) = manager.run(handle.unload(MODEL, false)).await.unwrap();
        assert_eq!(key.id(), MODEL);
        let states = manager.run(handle.residency()).await.unwrap();
        assert_eq!(states[&key], Residency::Unloaded);
    }

    #[tokio::test]
    async fn load_waits_until_its_deadline_and_continues() {
        let mut manager = TestManager::new();
        let handle = manager.handle.clone();
        let late = manager.run(handle.load(MODEL, Instant::now())).await.unwrap_err();
        assert!(matches!(late, ModelError::Loading { .. }), "{late}");
        let loaded = async {
            let key = handle.store().entries()[0].key.clone();
            let is_loaded = |states: BTreeMap<EntryKey, Residency>| {
                matches!(states.get(&key), Some(Residency::Resident { .. }))
            };
            while !is_loaded(handle.residency().await.unwrap()) {}
        };
        manager.run(loaded).await;
        // A resident model needs no time.
        assert!(handle.load(MODEL, Instant::now()).await.is_ok());
    }

    #[tokio::test]
    async fn forced_unload_rejects_the_requests_of_leases() {
        let mut manager = TestManager::new();
        let handle = manager.handle.clone();
        let held = manager.load().await;
        tokio::time::pause();
        let ticket = Ticket {
            flow: Flow { owner: Owner::User(0), connection: 0 },
            priority: None,
            deadline: Instant::now() + Duration::from_secs(1000),
            tenant: None,
            weight: 1,
        };
        // The first unload waits for the requests, and the second one drops them.
        for is_forced in [false, true] {
            let unload = while_time_passes(handle.unload(MODEL, is_forced));
            manager.run(unload).await.unwrap_err();
            assert_eq!(held.check_queue(&ticket).is_err(), is_forced);
        }
        assert!(matches!(held.check_queue(&ticket), Err(ModelError::Ended(_))));
    }

    #[tokio::test]
    async fn flush_frees_only_its_scope() {
        let mut manager = TestManager::new();
        let handle = manager.handle.clone();
        drop(manager.load().await);
        for (scope, unloaded) in [
            (FlushScope::Caches, 0),
            (FlushScope::Unused(Duration::from_secs(3600)), 0),
            (FlushScope::Unused(Duration::ZERO), 1),
            (FlushScope::All, 0),
        ] {
            let flushed = manager.run(handle.flush(scope)).await.unwrap();
            assert_eq!(flushed.unloaded.len(), unloaded, "{scope:?}");
        }
        assert!(handle.lease_resident(MODEL).is_none());
        // A model in use is not unused, however short the time is.
        let held = manager.load().await;
        let flush = handle.flush(FlushScope::Unused(Duration::ZERO));
        assert_eq!(manager.run(flush).await.unwrap().unloaded, []);
        drop(held);
    }

    #[tokio::test]
    async fn refused_self_test_leaves_no_request_unanswered() {
        let mut manager = TestManager::new();
        let handle = manager.handle.clone();
        handle.sampler.set_limit(Some(Bytes::mib(1)));
        let key = handle.store().entries()[0].key.clone();
        // The request waits for the admission of the self-test.
        let both = async { tokio::join!(handle.reserve(key, OPTIONS), handle.lease(Some(MODEL))) };
        let (reserved, leased) = manager.run(both).await;
        assert!(matches!(reserved, Err(ModelError::MemoryLimit { .. })));
        assert!(matches!(leased, Err(ModelError::MemoryLimit { .. })));
    }

    #[tokio::test]
    async fn self_test_takes_over_waiting_requests() {
        let mut manager = TestManager::new();
        let handle = manager.handle.clone();
        let key = handle.store().entries()[0].key.clone();
        let test = async { drop(handle.reserve(key, OPTIONS).await.unwrap()) };
        // The request begins an admission, which the self-test replaces.
        let both = async { tokio::join!(handle.lease(Some(MODEL)), test) };
        let (leased, ()) = manager.run(both).await;
        assert!(leased.is_ok());
    }

    /// Records a weekly use of the installed model in this hour and the next one.
    fn record_weekly_use(handle: &ManagerHandle) {
        let key = handle.store().entries()[0].key.clone();
        let latency = Duration::from_millis(1);
        let outcome = RequestOutcome { texts: 1, tokens: 1, latency, is_ok: true };
        let (hour, now) = (Duration::from_secs(3600), SystemTime::now());
        for week in (1..=4).rev() {
            for later in [Duration::ZERO, hour] {
                handle.usage().record(&key, outcome, now - week * 168 * hour + later);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn expected_model_is_loaded_before_its_use() {
        let mut manager = TestManager::new();
        let handle = manager.handle.clone();
        record_weekly_use(&handle);
        let mut overview = handle.overview();
        let is_ready = |overview: &Overview| overview.state == DefaultModelState::Ready;
        let ready = while_time_passes(overview.wait_for(is_ready));
        drop(manager.run(ready).await.unwrap());
        assert!(handle.lease_resident(MODEL).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_preloaded_while_memory_is_short() {
        let mut manager = TestManager::under(PressureLevel::Moderate);
        let handle = manager.handle.clone();
        record_weekly_use(&handle);
        let minutes = async {
            for _minute in 0..10 {
                tokio::time::advance(Duration::from_secs(60)).await;
                let states = handle.residency().await.unwrap();
                assert!(states.is_empty(), "{states:?}");
            }
        };
        manager.run(minutes).await;
    }

    #[tokio::test(start_paused = true)]
    async fn expected_models_are_preloaded_only_if_enabled() {
        let mut manager = TestManager::new();
        let handle = manager.handle.clone();
        record_weekly_use(&handle);
        // The default model would be loaded in any case.
        let mut changed = settings();
        changed.memory.embedding_model = "other".to_owned();
        changed.memory.preload_expected = false;
        manager.settings.send(Arc::new(changed.clone())).unwrap();
        let minutes = async {
            for _minute in 0..10 {
                tokio::time::advance(Duration::from_secs(60)).await;
                let states = handle.residency().await.unwrap();
                assert!(states.is_empty(), "{states:?}");
            }
        };
        manager.run(minutes).await;
        changed.memory.preload_expected = true;
        manager.settings.send(Arc::new(changed)).unwrap();
        let loading = async { while handle.residency().await.unwrap().is_empty() {} };
        manager.run(loading).await;
    }

    /// Checks the order of two loads that wait for the same place in memory.
    #[tokio::test]
    async fn interactive_load_starts_before_earlier_bulk_load() {
        let mut manager = TestManager::new();
        let handle = manager.handle.clone();
        install(handle.store(), "bulk");
        install(handle.store(), "interactive");
        let mut one = settings();
        one.memory.max_loaded_models = 1;
        manager.settings.send(Arc::new(one)).unwrap();
        let held = manager.load().await;
        // The model may be evicted for another one from then on.
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(60)).await;
        tokio::time::resume();
        let lease = |name: &str, priority| handle.request_lease(name.to_owned(), priority);
        let drained = async {
            let key = held.key.clone();
            while handle.residency().await.unwrap()[&key] != Residency::Draining {}
            drop(held);
        };
        let (bulk, interactive) =
            (lease("bulk", Priority::Bulk), lease("interactive", Priority::Interactive));
        let all = async { tokio::join!(bulk, interactive, drained) };
        let (bulk, interactive, ()) = manager.run(all).await;
        assert_eq!(interactive.unwrap().key.id(), "interactive");
        let refused = bulk.unwrap_err();
        assert!(matches!(refused, ModelError::MemoryLimit { .. }), "{refused}");
    }

    #[tokio::test]
    async fn changed_rules_apply_to_the_next_lease() {
        let mut manager = TestManager::new();
        let handle = manager.handle.clone();
        drop(manager.load().await);
        let mut bundled_only = settings();
        bundled_only.memory.model_cache.bundled_only = true;
        manager.settings.send(Arc::new(bundled_only)).unwrap();
        assert!(handle.lease_resident(MODEL).is_none());
        let refused = manager.run(handle.lease(Some(MODEL))).await.unwrap_err();
        assert!(matches!(refused, ModelError::BundledOnly(_)), "{refused}");
        manager.settings.send(Arc::new(settings())).unwrap();
        assert!(handle.lease_resident(MODEL).is_some());
        handle.serving.set_shedding(true);
        assert!(handle.lease_resident(MODEL).is_none());
        handle.serving.set_shedding(false);
        // The manager has not heard of the removal, but no request finds the entry.
        let key = handle.store().entries()[0].key.clone();
        handle.store().remove(&key).unwrap();
        assert!(handle.lease_resident(MODEL).is_none());
        let missing = manager.run(handle.lease(Some(MODEL))).await.unwrap_err();
        assert!(matches!(missing, ModelError::Unknown { .. }), "{missing}");
    }

    #[tokio::test]
    async fn idle_model_is_unloaded_after_direct_lease() {
        let mut manager = TestManager::new();
        let handle = manager.handle.clone();
        drop(manager.load().await);
        let held = handle.lease_resident(MODEL).unwrap();
        let user = ModelUser::of_uid(1);
        held.record_use(user);
        let keep_alive = KeepAlive::For(Duration::ZERO);
        let wish = KeepAliveRequest { user, is_admin: false, keep_alive };
        manager.run(handle.keep_alive(MODEL, wish)).await.unwrap();
        // The manager sees the lease, although it did not create it.
        let view = manager.run(handle.memory()).await.unwrap();
        assert_eq!(view.models[0].idle, Some(Duration::ZERO));
        assert!(handle.lease_resident(MODEL).is_some());
        drop(held);
        let mut overview = handle.overview();
        let unloaded = |overview: &Overview| overview.state == DefaultModelState::Unloaded;
        drop(manager.run(overview.wait_for(unloaded)).await.unwrap());
        assert!(handle.lease_resident(MODEL).is_none());
    }
}
