//! Assembles the daemon from its parts, and starts, reloads and stops it.
//!
//! The daemon starts and supervises every task. A task that ends too early ends the daemon with an
//! error, so that the daemon never runs without one of its parts.
//!
//! - Start: log → configuration → store → sandbox → threads → socket → connections → default model
//!   → READY=1 → untested entries, bundled packages, drop directory. Available models are served
//!   before any package is tested. If the store has no usable default model, connections and
//!   READY=1 wait for at most ten seconds ([`preload`](mod@preload)), while the bundled one is
//!   unpacked and tested. While files are hashed, the daemon asks systemd for more time. READY=1 is
//!   sent without a default model as well, so that the operator can read the reason in `STATUS=`
//!   and can drop a package. `/readyz` answers 503 until the model answers. Wrong configuration
//!   files do not delay the start if the last good configuration was kept on disk.
//! - Reload: on SIGHUP, or when the watcher reports a change, the daemon reads and checks all
//!   files, and applies all of them or none.
//! - Stop: STOPPING=1 → no new connections → requests in progress, until `socket.drain_timeout` →
//!   models → exit.

mod arguments;
mod connections;
mod last_good;
mod linger;
mod listen;
mod preload;
mod reload;
mod request_body;
mod sandbox;
mod serve;
mod signal;
mod systemd;
mod tasks;
mod watchdog;

use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch as channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;

use crate::api::wire::sandbox::Sandbox;
use crate::api::{self, App, Tenants};
use crate::base::errors::{chain, errno};
use crate::base::exit::Exit;
use crate::base::units::milliseconds;
use crate::config::{self, ConfigSource, PackageSettings, Settings};
use crate::files;
use crate::files::watch::{self, CompletedFiles, WriteFilter};
use crate::memory::monitor::{MemorySampler, Reading, monitor};
use crate::memory::source::{self, PressureEnvironment};
use crate::memory::{malloc_trim, mlock};
use crate::models::ingest::install::Installer;
use crate::models::ingest::selftest::SelfTester;
use crate::models::ingest::trust;
use crate::models::ingest::{self, DropDirectory, Ingester};
use crate::models::residency::load;
use crate::models::usage::{self, Usage};
use crate::models::{ManagerHandle, ManagerParts};
use crate::package::{self, Store, StoreError};
use crate::service::{Budget, EmbeddingService, Permits};
use crate::telemetry::events::Events;
use crate::telemetry::log::{self, Message};
use crate::telemetry::metrics::Metrics;
pub use arguments::{command, main};
use last_good::LastGood;
use listen::{ListeningSocket, SocketGuard};
use preload::{load_default, preload, wait_for_default};
use reload::{InitialConfig, NoUsableConfig, Reloader};
use serve::LivenessPing;
use signal::Signals;
use tasks::{report, report_accept_loop, run_task};

/// Root of the paths of the kernel's files.
const ROOT: &str = "/";
/// Number of processors per thread of the async runtime. The runtime waits, copies and tokenizes
/// short texts. Models compute on threads of their own, one for each processor. Under overload, a
/// larger runtime would take processor time from the models.
const PROCESSORS_PER_RUNTIME_THREAD: usize = 4;
/// Time after which an idle thread of the blocking pool ends. It is longer than the interval of the
/// memory monitor, because starting a new thread when memory is short would take some memory.
const BLOCKING_THREAD_KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Time after the drain in which workers may finish their current pass.
const WORKERS_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time of a stop in addition to the drain and the workers.
const STOP_ALLOWANCE: Duration = Duration::from_secs(5);
/// Capacity of the channel for liveness checks of the accept loop. The watchdog sends one at a
/// time.
const MAX_PINGS: usize = 1;

/// Runs the daemon with the configuration of `source` until SIGTERM or SIGINT.
pub fn run(source: ConfigSource) -> Exit {
    let exit = run_until_stopped(source).err().unwrap_or(Exit::Ok);
    match log::finish() {
        Ok(()) => exit,
        // The log has printed the error to stderr.
        Err(_error) if exit == Exit::Ok => Exit::System,
        Err(_error) => exit,
    }
}

fn run_until_stopped(source: ConfigSource) -> Result<(), Exit> {
    let started = Instant::now();
    // Call both before a second thread exists.
    let gives_back = malloc_trim::fix_thresholds();
    let kept = mlock::lock_program();
    // Start the log before the configuration is read, so that problems of the configuration are
    // logged.
    let level = log::start(LevelFilter::INFO).map_err(|_already| Exit::Software)?;
    let last_good = LastGood::of_process();
    let start = InitialConfig::read(&source, &last_good).map_err(|NoUsableConfig| Exit::Config)?;
    let settings = &start.loaded.settings;
    level.set(reload::level(settings));
    if !gives_back {
        tracing::info!(
            name: Message::MemoryKept.name(),
            "the C library may keep the memory of unloaded models"
        );
    }
    if let Err(error) = kept {
        tracing::info!(
            name: Message::ProgramNotKept.name(),
            errno = error as i32, %error,
            "{}", unlocked_text(error)
        );
    }
    let files = &start.loaded.files;
    tracing::info!(
        name: Message::Starting.name(),
        version = env!("CARGO_PKG_VERSION"), ?files,
        "starting"
    );
    let draining = CancellationToken::new();
    // The sandbox denies access to the files that the tester opens here.
    let tester = SelfTester::new(draining.clone());
    // Opening the store creates the directories to which the sandbox then grants access.
    let store = open_store(settings)?;
    let writes = sandbox::ExtraWritePaths { last_good: last_good.path(), socket: listen::binds() };
    let sandbox = sandbox::enter_sandbox(settings, &source, files, &writes)?;
    // The process has more than one thread from here on. If the log cannot begin, it has printed
    // the error to stderr.
    log::begin().map_err(|_error| Exit::System)?;
    // Packages and keys are untrusted input, so they are read inside the sandbox. They are read
    // before the first request. The task that follows the keys logs their errors at its first read.
    let (changed, _errors) = trust::TrustRoots::from(settings).reevaluate(&store);
    trust::log_changes(&changed);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(load::processors().div_ceil(PROCESSORS_PER_RUNTIME_THREAD))
        .thread_keep_alive(BLOCKING_THREAD_KEEP_ALIVE)
        .enable_all()
        .build()
        .map_err(|error| start_failed("cannot start the async runtime", &error))?;
    // Install the handlers early: a signal may arrive while a bundled package is unpacked on a slow
    // disk.
    let mut signals = {
        let _entered = runtime.enter();
        Signals::listen()
            .map_err(|error| start_failed("cannot install the signal handlers", &error))?
    };
    let listening = ListeningSocket::open(&settings.socket)
        .map_err(|error| start_failed("cannot listen on the socket", &error))?;
    let configuration = ReadConfiguration { source, start, last_good, level };
    let outcome = runtime.block_on(async {
        let testing = SelfTestRunner { tester, draining };
        let start = Daemon::start(started, configuration, store, sandbox, listening, testing);
        let daemon = tokio::select! {
            daemon = start => daemon?,
            signal = signals.stop.recv() => {
                tracing::info!(
                    name: Message::Stopping.name(),
                    signal,
                    "stopped before it was ready"
                );
                return Ok(());
            }
        };
        daemon.run(signals).await
    });
    // Work that cannot be cancelled, such as an installation, is abandoned. The next start empties
    // the staging directory.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// Returns the text of the log record for a program whose pages are not locked because of `error`.
/// ENOMEM means that the limit is too low, and EPERM that it is zero: mlockall(2).
fn unlocked_text(error: Errno) -> &'static str {
    match error {
        Errno::ENOMEM | Errno::EPERM => {
            "cannot lock the program in memory, because LimitMEMLOCK= is too low"
        }
        _ => "cannot lock the program in memory",
    }
}

/// Logs the error that prevents the start, and returns the exit status.
fn start_failed(what: &str, error: &(dyn Error + 'static)) -> Exit {
    tracing::error!(
        name: Message::StartFailed.name(),
        errno = errno(error), error = chain(error),
        "{what}"
    );
    Exit::System
}

fn open_store(settings: &Settings) -> Result<Arc<Store>, Exit> {
    let directory = &settings.memory.model_cache.directory;
    let (store, damaged) = Store::open(directory).map_err(|error| {
        let exit = start_failed("cannot open the store", &error);
        if matches!(error, StoreError::Locked(_)) { Exit::Unavailable } else { exit }
    })?;
    for entry in damaged {
        tracing::error!(
            name: Message::StoreEntryDamaged.name(),
            entry,
            "cannot read an entry of the store; its model is not used"
        );
    }
    // The operator may have configured a directory that the daemon cannot create.
    if let Err(error) = files::create_directory(&settings.packages.drop_directory) {
        tracing::warn!(
            name: Message::DirectoryUnreadable.name(),
            errno = errno(&error), error = chain(&error),
            "cannot create the drop directory"
        );
    }
    Ok(Arc::new(store))
}

/// Returns the drop directories, the main one first, each with the names of its complete files.
fn drop_directories_of(settings: &Settings) -> Vec<(DropDirectory, CompletedFiles)> {
    let PackageSettings { drop_directory, more_directories, .. } = &settings.packages;
    let main = CompletedFiles::default();
    let mut directories = vec![(DropDirectory::main(drop_directory.clone(), main.clone()), main)];
    directories.extend(more_directories.iter().map(|more| {
        let completed = CompletedFiles::default();
        let (path, removes) = (&more.path, more.remove_with_file);
        (DropDirectory::further(path, removes, completed.clone()), completed)
    }));
    directories
}

/// Configuration as it was read at start, and the means to read it again.
struct ReadConfiguration {
    source: ConfigSource,
    start: InitialConfig,
    last_good: LastGood,
    level: log::LevelHandle,
}

/// Runner of self-tests, and the token that stops it when the daemon drains.
struct SelfTestRunner {
    tester: SelfTester,
    draining: CancellationToken,
}

struct Daemon {
    app: App,
    /// Supervised tasks. Each runs until it is cancelled, and returns its name and result.
    tasks: JoinSet<(&'static str, Result<(), Exit>)>,
    /// Task that asks systemd for more time, until the daemon is ready.
    extending: JoinSet<()>,
    /// Channel for the watchdog's liveness checks of the accept loop.
    pings: mpsc::Sender<LivenessPing>,
    /// Loads of models that were not requested yet.
    preloads: JoinSet<()>,
    /// Models that the last applied settings preload; `None` until the daemon is ready.
    preloaded: Option<BTreeSet<String>>,
    reloader: Reloader,
    ticks: mpsc::Receiver<()>,
    /// Tokens shared with the ingester.
    start_signals: ingest::StartSignals,
    /// Stops connections and self-tests.
    stop_serving: CancellationToken,
    /// Stops all other tasks.
    stop_all: CancellationToken,
    /// Guard of the socket's path. The last field, so that the path is removed last.
    _bound: Option<SocketGuard>,
}

impl Daemon {
    async fn start(
        started: Instant,
        ReadConfiguration { source, start, last_good, level }: ReadConfiguration,
        store: Arc<Store>,
        sandbox: Sandbox,
        ListeningSocket { listener, bound }: ListeningSocket,
        SelfTestRunner { tester, draining: stop_serving }: SelfTestRunner,
    ) -> Result<Self, Exit> {
        let settings = start.loaded.settings.clone();
        let options = load::options(&settings);
        let stop_all = CancellationToken::new();
        let (config_ticks, ticks) = mpsc::channel(1);
        let (drop_ticks, dropped) = mpsc::channel(1);
        let config_watch = watch::watch(
            config::directories(&source),
            WriteFilter::Finished,
            config_ticks,
            stop_all.clone(),
        );
        // Each directory has a watcher of its own: the file system of one may not answer.
        let (mut drop_directories, mut drop_watches) = (Vec::new(), Vec::new());
        for (directory, completed) in drop_directories_of(&settings) {
            let watched = vec![directory.path().to_owned()];
            let writes = WriteFilter::Each(completed);
            drop_watches.push(watch::watch(watched, writes, drop_ticks.clone(), stop_all.clone()));
            drop_directories.push(directory);
        }
        let (key_ticks, keys_changed) = mpsc::channel(1);
        let keys = vec![settings.packages.keys_directory.clone()];
        let keys_watch = watch::watch(keys, WriteFilter::Finished, key_ticks, stop_all.clone());

        let (metrics, events) = (Metrics::new(api::ROUTES), Events::new(SystemTime::now()));
        let gauge = MemorySampler::new(Path::new(ROOT), settings.memory.memory_limit);
        let (reloader, follow) =
            Reloader::new(source, start, last_good, level, gauge.clone(), events.clone());
        let (told, readings) = channel::channel(Reading::default());
        let source =
            source::PressureSource::open(Path::new(ROOT), PressureEnvironment::of_process());
        let monitor = monitor(gauge.clone(), source, follow.thresholds, told, stop_all.clone());
        let usage = settings.memory.model_cache.directory.join(usage::FILE);
        let budget = Budget::new(readings.clone(), follow.settings.clone());
        let parts = ManagerParts {
            store,
            options,
            settings: follow.settings.clone(),
            sampler: gauge,
            readings,
            usage: Arc::new(Usage::open(&usage)),
            metrics: metrics.clone(),
            events: events.clone(),
        };
        let (handle, manager) = ManagerHandle::new(parts, stop_all.clone());
        let installer = Installer::new(handle.clone(), follow.rules, options, tester);
        let bundled_directory = settings.packages.bundled_directory.clone();
        let ingester =
            Ingester::new(installer.clone(), follow.schedule, bundled_directory, drop_directories);
        let intake = ingester.intake();
        let mut extending = JoinSet::new();
        extending.spawn(systemd::extend_start(package::hashed_bytes));
        let mut tasks = JoinSet::new();
        tasks.spawn(run_task("memory monitor", monitor));
        tasks.spawn(run_task("manager", manager));
        let trust = trust::watch_keys(
            handle.clone(),
            (&settings).into(),
            keys_changed,
            follow.settings.clone(),
            stop_all.clone(),
        );
        tasks.spawn(run_task("trust", trust));
        tasks.spawn(run_task("keys watcher", keys_watch));
        let together = ingest::StartSignals::default();
        let run = ingester.run(dropped, together.clone(), stop_all.clone());
        tasks.spawn(run_task("ingester", run));
        for drop_watch in drop_watches {
            tasks.spawn(run_task("drop directory watcher", drop_watch));
        }
        tasks.spawn(run_task("configuration watcher", config_watch));

        let permits = Permits::new(load::processors());
        let app = App::from(api::AppParts {
            service: EmbeddingService::new(handle.clone(), permits, metrics.clone()),
            handle,
            installer,
            intake,
            tenants: Arc::new(Tenants::new(follow.settings.clone())),
            settings: follow.settings,
            initial_settings: reloader.at_start(),
            configuration: follow.configuration,
            sandbox,
            started,
            threads: options.threads,
            metrics,
            events,
            budget,
            streams: api::Streams::default(),
            draining: stop_serving.clone(),
        });
        let listener = UnixListener::from_std(listener)
            .map_err(|error| start_failed("cannot listen on the socket", &error))?;
        let (turns, turned) = mpsc::channel(MAX_PINGS);
        let most = settings.socket.max_connections;
        let serving = serve::serve(
            listener,
            (api::router(app.clone()), api::refusal_router(app.clone(), most)),
            most,
            app.settings.clone(),
            turned,
            stop_serving.clone(),
        );
        let first = wait_for_default(together.default_available.clone(), stop_serving.clone());
        tasks.spawn(async move {
            first.await;
            ("connections", report_accept_loop(serving.await))
        });
        Ok(Self {
            app,
            tasks,
            extending,
            pings: turns,
            preloads: JoinSet::new(),
            preloaded: None,
            reloader,
            ticks,
            start_signals: together,
            stop_serving,
            stop_all,
            _bound: bound,
        })
    }

    async fn run(mut self, mut signals: Signals) -> Result<(), Exit> {
        let there = wait_for_default(
            self.start_signals.default_available.clone(),
            self.stop_serving.clone(),
        );
        let default = load_default(self.app.handle.clone(), there);
        let mut default = std::pin::pin!(default);
        let mut ready = false;
        let mut overview = self.app.handle.overview();
        loop {
            tokio::select! {
                () = &mut default, if !ready => {
                    ready = true;
                    // The status that is sent now does not need to be sent again.
                    overview.mark_unchanged();
                    let status = self.status();
                    tracing::info!(
                        name: Message::Ready.name(),
                        status, elapsed_ms = self.elapsed_ms(),
                        "ready"
                    );
                    self.extending.shutdown().await;
                    systemd::ready(&status);
                    self.start_signals.daemon_ready.cancel();
                    self.watch();
                    self.preload();
                    self.reloader.keep().await;
                }
                changed = overview.changed(), if ready => {
                    if changed.is_err() {
                        return Err(Exit::Software);
                    }
                    systemd::status(&self.status());
                }
                signal = signals.stop.recv() => return self.stop(signal).await,
                _ = signals.reload.recv() => self.reload().await,
                Some(()) = self.ticks.recv() => self.reload().await,
                Some(_) = self.preloads.join_next() => {}
                Some(ended) = self.tasks.join_next() => {
                    tracing::error!(
                        name: Message::InternalFault.name(),
                        "a task of the daemon ended unexpectedly; stopping"
                    );
                    return Err(report(&ended).err().unwrap_or(Exit::Software));
                }
            }
        }
    }

    /// Starts the watchdog. Called after READY=1, because systemd measures the interval from then.
    fn watch(&mut self) {
        let (handle, turns) = (self.app.handle.clone(), self.pings.clone());
        let watchdog = watchdog::watch(handle, turns, self.stop_all.clone());
        self.tasks.spawn(run_task("watchdog", watchdog));
    }

    /// Loads the models that the settings preload and did not preload before.
    fn preload(&mut self) {
        let settings = self.app.settings.borrow().clone();
        let names = preload::names(&settings);
        let before = self.preloaded.replace(names.clone()).unwrap_or_default();
        for name in names {
            // The default model is resident, or its error is logged already.
            if !before.contains(&name) && name != settings.default_model() {
                self.preloads.spawn(preload(self.app.handle.clone(), name));
            }
        }
    }

    async fn reload(&mut self) {
        let Some(read) = self.reloader.read().await else { return };
        systemd::reloading();
        self.reloader.apply(read);
        systemd::ready(&self.status());
        // Before the daemon is ready, the models are not preloaded yet.
        if self.preloaded.is_some() {
            self.preload();
        }
        self.reloader.keep().await;
    }

    /// Returns the status text for `systemctl status`.
    fn status(&self) -> String {
        let overview = self.app.handle.overview().borrow().clone();
        let configuration = self.app.configuration.borrow();
        let problem = match (configuration.problems.is_empty(), configuration.last_good) {
            (true, _) => "",
            (false, false) => "; the new configuration was rejected, the last good one is used",
            (false, true) => {
                "; the configuration files have errors, the last good configuration is used"
            }
        };
        format!("{overview}{problem}")
    }

    fn elapsed_ms(&self) -> u64 {
        milliseconds(self.app.started.elapsed())
    }

    async fn stop(mut self, signal: &str) -> Result<(), Exit> {
        tracing::info!(name: Message::Stopping.name(), signal, "draining");
        let drain_timeout = self.app.settings.borrow().socket.drain_timeout;
        systemd::stopping(drain_timeout + WORKERS_TIMEOUT + STOP_ALLOWANCE);
        self.stop_serving.cancel();
        // Tasks end in any order. Wait for the connections to drain before the other tasks are
        // cancelled.
        let mut outcome = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            outcome = outcome.and(report(&ended));
            if matches!(ended, Ok(("connections", _))) {
                break;
            }
        }
        self.preloads.shutdown().await;
        self.stop_all.cancel();
        let rest = async {
            let mut outcome = Ok(());
            while let Some(ended) = self.tasks.join_next().await {
                outcome = outcome.and(report(&ended));
            }
            outcome
        };
        match tokio::time::timeout(WORKERS_TIMEOUT, rest).await {
            Ok(rest) => outcome = outcome.and(rest),
            Err(_elapsed) => {
                tracing::warn!(
                    name: Message::DrainTimeout.name(),
                    "workers did not finish their passes in time"
                )
            }
        }
        // The next start unpacks an interrupted package from the beginning. An orderly stop must
        // not count as a failed attempt.
        self.app.handle.store().end_unpacking();
        tracing::info!(name: Message::Stopped.name(), "stopped");
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_lock_limit_is_named_only_when_it_is_the_cause() {
        for (error, expected) in [
            (Errno::ENOMEM, true),
            (Errno::EPERM, true),
            (Errno::EAGAIN, false),
            (Errno::ENOSYS, false),
        ] {
            assert_eq!(unlocked_text(error).contains("LimitMEMLOCK="), expected, "{error}");
        }
    }
}
