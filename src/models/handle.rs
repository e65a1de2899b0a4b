//! Handle of the manager: the requests that other modules may send to it.
//!
//! A request for a resident model takes its lease from the [`ServingTable`], and the manager learns
//! of it from the shared times of use. All other requests are commands to the manager. Every wait
//! is bounded: the manager replies within microseconds, and the work that it starts is awaited no
//! longer than a request may take.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
use crate::models::residency::model_state::Reservation;
use crate::models::residency::retention::KeepAliveRequest;
use crate::models::serving::table::ServingTable;
use crate::models::usage::Usage;
use crate::models::{
    FlushResult, Lease, LivenessProbe, MemoryView, Overview, REQUEST_TIMEOUT, ReleasedLease,
    Residency,
};
use crate::package::{EntryKey, Store, StoreEntry};
use crate::telemetry::events::{Event, Events};
use crate::telemetry::metrics::{LeaseOutcome, Metrics};

/// Commands that wait for the manager. It replies within microseconds, so that only bursts fill the
/// channel.
const MAX_COMMANDS: usize = 256;
/// Longest time that a request waits for a model that is loading before the client is asked to
/// retry.
const LOAD_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// default model; loads the model first if need be. Cancelling stops the wait, not the load.
    ///
    /// # Errors
    /// When there is no such model, it does not fit into memory, or it cannot be loaded.
    pub async fn lease(&self, name: Option<&str>) -> Result<Lease, ModelError> {
        let name = name.map_or_else(|| self.default_model(), str::to_owned);
        match self.lease_resident(&name) {
            Some(lease) => Ok(lease),
            None => self.request_lease(name).await,
        }
    }

    /// Acquires a lease on `name` if it is resident, without the manager. Returns `None` if only
    /// the manager can answer, with a lease or with an error.
    fn lease_resident(&self, name: &str) -> Option<Lease> {
        let catalog = self.catalog();
        let key = &catalog.find(name).ok()?.key;
        let lease = self.serving.lease(key, name, &self.usage, tokio::time::Instant::now())?;
        self.store.count_access(key);
        self.metrics.count_lease(key.id(), LeaseOutcome::Hit);
        Some(lease)
    }

    async fn request_lease(&self, name: String) -> Result<Lease, ModelError> {
        self.send_command(|reply| Command::Lease { name, reply }).await?
    }

    /// Acquires a lease on `wanted` by `deadline`, and waits no longer than [`LOAD_TIMEOUT`] while
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
        deadline: Instant,
    ) -> Result<Lease, ModelError> {
        let error = match self.lease_by(wanted, deadline).await {
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
            if Instant::now() >= deadline {
                break;
            }
            // Ask by revision: another content of the same version may have another embedding
            // space.
            let (id, _version, revision) = candidate.parts();
            let name = candidate.name();
            match self.lease_by(&format!("{id}@{revision}"), deadline).await {
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

    /// Acquires a lease on the same model as one that was given back, by `deadline`; loads the
    /// model first if need be.
    ///
    /// # Errors
    /// When the model is no longer installed, does not fit into memory, or cannot be loaded in
    /// time.
    pub async fn renew(
        &self,
        absent: &ReleasedLease,
        deadline: Instant,
    ) -> Result<Lease, ModelError> {
        let ReleasedLease { name, key, info, fallback_for } = absent.clone();
        let lease =
            self.lease_by(&format!("{}@{}", info.manifest.id, info.revision), deadline).await?;
        // A revision is shortened, so that it may match another content by now.
        if lease.key != key {
            return Err(ModelError::Ended(name));
        }
        Ok(Lease { name, info, fallback_for, ..lease })
    }

    async fn lease_by(&self, name: &str, deadline: Instant) -> Result<Lease, ModelError> {
        let patience = deadline.saturating_duration_since(Instant::now()).min(LOAD_TIMEOUT);
        // After the deadline even a resident model is a timeout: the client no longer waits.
        if !patience.is_zero()
            && let Some(lease) = self.lease_resident(name)
        {
            return Ok(lease);
        }
        match tokio::time::timeout(patience, self.request_lease(name.to_owned())).await {
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

    /// Drains and unloads `name`, and waits until it is unloaded. Returns whether it was in memory.
    /// Cancelling stops the wait.
    ///
    /// # Errors
    /// When there is no such model, it is pinned, or it does not finish in time.
    pub async fn unload(&self, name: &str) -> Result<bool, ModelError> {
        let name = name.to_owned();
        let Some(gone) = self.send_command(|reply| Command::Unload { name, reply }).await?? else {
            return Ok(false);
        };
        let gone = tokio::time::timeout(REQUEST_TIMEOUT, gone).await;
        // The channel closes without a value if the model was removed from the store in the
        // meantime. It is unloaded as well.
        drop(gone.map_err(|_elapsed| ModelError::Timeout(REQUEST_TIMEOUT))?);
        Ok(true)
    }

    /// Unloads all models that are not pinned, and waits until they are unloaded. Cancelling stops
    /// the wait.
    ///
    /// # Errors
    /// When the daemon is stopping, or they do not finish in time.
    pub async fn flush(&self) -> Result<FlushResult, ModelError> {
        self.send_command(|reply| Command::Flush { reply }).await
    }

    /// Limits the memory of this process until the next start of the daemon; `None` leaves only the
    /// limits of the kernel. Waits until memory is measured against the new limit. Cancelling stops
    /// the wait.
    pub async fn set_memory_limit(&self, limit: Option<Bytes>) {
        let now = Instant::now();
        self.sampler.set_limit(limit);
        let mut readings = self.readings.clone();
        // An error means that the monitor has ended, which only happens when the daemon stops.
        drop(readings.wait_for(|reading| reading.at >= now).await);
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
    use crate::engine::Precision;
    use crate::models::DefaultModelState;
    use crate::models::residency::load;
    use crate::models::residency::retention::{KeepAlive, ModelUser};
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

    fn install(store: &Store) {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(MODEL);
        let mut package = Vec::new();
        let request = PackRequest { source, ..PackRequest::default() };
        pack(&request, &computed, &|_, _| {}, &mut package).unwrap();
        let size = Bytes::mib(64);
        let quota = Quota { max_size: size, max_models: 9, cleanup: CleanupRule::Manual };
        let staged = store.stage(&package[..], &UnpackLimits::for_size(size)).unwrap();
        let key = store.install(staged, Origin::Installed, quota, |_| false).unwrap().entry.key;
        store.activate(&key, quota, |_| false).unwrap();
    }

    impl TestManager {
        /// Creates a manager, which has not loaded the model yet.
        fn new() -> Self {
            let place = tempfile::tempdir().unwrap();
            let store = Arc::new(Store::volatile(place.path()).unwrap());
            install(&store);
            let (change_settings, settings) = watch::channel(Arc::new(settings()));
            let parts = ManagerParts {
                store,
                options: OPTIONS,
                settings,
                sampler: MemorySampler::new(Path::new("/"), None),
                readings: watch::channel(Reading::default()).1,
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
    async fn draining_model_is_leased_after_reload() {
        let mut manager = TestManager::new();
        let handle = manager.handle.clone();
        drop(manager.load().await);
        let held = handle.lease_resident(MODEL).unwrap();
        let name = MODEL.to_owned();
        let unload = handle.send_command(|reply| Command::Unload { name, reply });
        let drained = manager.run(unload).await.unwrap().unwrap().unwrap();
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
