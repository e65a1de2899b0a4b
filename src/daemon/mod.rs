//! The daemon: where everything is put together, and the order in which it starts, reloads and stops.
//!
//! Owns every task. A task that ends before it was told to ends the daemon with an error, so that it never lives on
//! without one of its parts.
//!
//! - Start: log → configuration → store → socket → bundled packages → connections → default model → READY=1. A
//!   default model that is not installed or does not load does not hold READY=1 back: the operator can then see why
//!   in `STATUS=`, and mend it by dropping a package; `/readyz` says 503 until it answers.
//! - Reload: a tick of the watcher and SIGHUP do the same: read all, check all, apply all or nothing.
//! - Stop: STOPPING=1 → no more connections → requests in flight until `socket.drain_timeout` → models → exit.

mod listen;
mod reload;
mod serve;
mod systemd;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use clap::{CommandFactory, Parser};
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch as channel};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;

use crate::api::{self, App, Tenants};
use crate::config::{self, Settings, Source};
use crate::errors::chain;
use crate::events::Events;
use crate::exit::Exit;
use crate::files;
use crate::log;
use crate::memory::monitor::{Gauge, Reading, monitor};
use crate::memory::release;
use crate::memory::source::{self, Environment};
use crate::metrics::Metrics;
use crate::models::install::Installer;
use crate::models::intake::Intake;
use crate::models::usage::{self, Usage};
use crate::models::{Handle, Parts, load};
use crate::package::{Store, StoreError};
use crate::units::milliseconds;
use crate::watch;
use listen::{Bound, Listening};
use reload::Reloader;

/// Where the kernel's files are.
const ROOT: &str = "/";
/// Threads of the runtime: they only wait and copy; models compute on their own.
const RUNTIME_THREADS: usize = 2;
/// After the drain, models get this long to finish the pass that they are in.
const WORKERS_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves text embeddings over a Unix socket.
#[derive(Debug, Parser)]
#[command(name = "caxtond", version)]
struct Arguments {
    /// Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and
    /// /usr/lib/caxton.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The command line as clap sees it, for what is made of it: the manual.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// The whole of `caxtond`: reads the command line and runs the daemon.
pub fn main() -> ExitCode {
    match Arguments::try_parse() {
        Ok(Arguments { config: Some(file) }) => run(Source::File(file)),
        Ok(Arguments { config: None }) => run(Source::Layers { root: PathBuf::from("/") }),
        Err(error) => {
            // A closed stdout or stderr leaves nobody to tell.
            drop(error.print());
            if error.use_stderr() { Exit::Usage } else { Exit::Ok }
        }
    }
    .into()
}

/// Runs the daemon with the configuration of `source` until SIGTERM or SIGINT.
pub fn run(source: Source) -> Exit {
    run_until_stopped(source).err().unwrap_or(Exit::Ok)
}

fn run_until_stopped(source: Source) -> Result<(), Exit> {
    let started = Instant::now();
    // Before there is a second thread.
    let gives_back = release::give_back_large_blocks();
    // Before the configuration is read, so that its problems are logged.
    let level = log::start(LevelFilter::INFO).map_err(|_already| Exit::Software)?;
    let loaded = config::load(&source).map_err(|error| {
        for problem in &error.problems {
            tracing::error!("{problem}");
        }
        tracing::error!("the configuration is wrong; `caxton check` shows this list, too");
        Exit::Config
    })?;
    let settings = &loaded.settings;
    level.set(reload::level(settings));
    if !gives_back {
        tracing::info!("this C library may keep memory that models have left");
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), files = ?loaded.files, "starting");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .enable_all()
        .build()
        .map_err(|error| {
            tracing::error!(%error, "cannot start the runtime");
            Exit::System
        })?;
    // Heard before there is anything to clean up, and while what is bundled is unpacked on a slow disk.
    let mut signals = {
        let _entered = runtime.enter();
        Signals::listen()?
    };
    let store = open_store(settings)?;
    let listening = Listening::open(&settings.socket).map_err(|error| {
        tracing::error!(error = chain(&error), "cannot listen");
        Exit::System
    })?;
    let outcome = runtime.block_on(async {
        let daemon = tokio::select! {
            daemon = Daemon::start(started, source, loaded, level, store, listening) => daemon?,
            signal = signals.stop.recv() => {
                tracing::info!(signal, "stopped before it was ready");
                return Ok(());
            }
        };
        daemon.run(signals).await
    });
    // Work that could not be cancelled (an installation) is left behind; its staging is emptied at the next start.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

fn open_store(settings: &Settings) -> Result<Arc<Store>, Exit> {
    let directory = &settings.memory.model_cache.directory;
    let (store, damaged) = Store::open(directory).map_err(|error| {
        tracing::error!(error = chain(&error), "cannot open the store");
        match error {
            StoreError::Locked(_) => Exit::Unavailable,
            _ => Exit::System,
        }
    })?;
    for entry in damaged {
        tracing::error!(entry, "an entry of the store cannot be read and is not used");
    }
    // An operator may have given another place that is not ours to make.
    if let Err(error) = files::create_directory(&settings.packages.drop_directory) {
        tracing::warn!(error = chain(&error), "there is no drop directory");
    }
    Ok(Arc::new(store))
}

struct Daemon {
    app: App,
    /// Each runs until it is cancelled; the name of one that ended, and whether it ended well.
    tasks: JoinSet<(&'static str, Result<(), Exit>)>,
    /// Loads of models that nobody has asked for yet.
    preloads: JoinSet<()>,
    reloader: Reloader,
    ticks: mpsc::Receiver<()>,
    /// Ends connections.
    stop_serving: CancellationToken,
    /// Ends everything else.
    stop_all: CancellationToken,
    /// The socket's path, removed last.
    _bound: Option<Bound>,
}

impl Daemon {
    async fn start(
        started: Instant,
        source: Source,
        loaded: config::Loaded,
        level: log::Level,
        store: Arc<Store>,
        Listening { listener, bound }: Listening,
    ) -> Result<Self, Exit> {
        let settings = loaded.settings.clone();
        let options = load::options(&settings);
        let (stop_serving, stop_all) = (CancellationToken::new(), CancellationToken::new());
        let (config_ticks, ticks) = mpsc::channel(1);
        let (drop_ticks, dropped) = mpsc::channel(1);
        let config_watch =
            watch::watch(config::directories(&source), config_ticks, stop_all.clone());
        let drop_directory = settings.packages.drop_directory.clone();
        let drop_watch = watch::watch(vec![drop_directory.clone()], drop_ticks, stop_all.clone());

        let (metrics, events) = (Metrics::new(api::ROUTES), Events::new(SystemTime::now()));
        let (reloader, follow) = Reloader::new(source, loaded, level, events.clone());
        let gauge = Gauge::new(Path::new(ROOT), settings.memory.memory_limit);
        let (told, readings) = channel::channel(Reading::default());
        let source = source::Source::open(Path::new(ROOT), Environment::of_process());
        let monitor = monitor(gauge.clone(), source, follow.thresholds, told, stop_all.clone());
        let usage = settings.memory.model_cache.directory.join(usage::FILE);
        let parts = Parts {
            store,
            options,
            settings: follow.settings.clone(),
            gauge,
            readings,
            usage: Arc::new(Usage::open(&usage)),
            metrics: metrics.clone(),
            events: events.clone(),
        };
        let (handle, manager) = Handle::new(parts, stop_all.clone());
        let installer = Installer::new(handle.clone(), follow.rules, options);
        let bundled_directory = settings.packages.bundled_directory.clone();
        let mut intake =
            Intake::new(installer.clone(), follow.schedule, bundled_directory, drop_directory);
        let mut tasks = JoinSet::new();
        tasks.spawn(ending("memory monitor", monitor));
        tasks.spawn(ending("manager", manager));
        intake.prepare().await;
        tasks.spawn(ending("intake", intake.run(dropped, stop_all.clone())));
        tasks.spawn(ending("drop directory watcher", drop_watch));
        tasks.spawn(ending("configuration watcher", config_watch));

        let app = App {
            handle,
            installer,
            tenants: Arc::new(Tenants::new(follow.settings.clone())),
            settings: follow.settings,
            configuration: follow.configuration,
            started,
            threads: options.threads,
            metrics,
            events,
            draining: stop_serving.clone(),
        };
        let listener = UnixListener::from_std(listener).map_err(|error| {
            tracing::error!(%error, "cannot listen");
            Exit::System
        })?;
        let serving = serve::serve(
            listener,
            api::router(app.clone()),
            settings.socket.max_connections,
            settings.socket.drain_timeout,
            stop_serving.clone(),
        );
        tasks.spawn(async move { ("connections", served(serving.await)) });
        let preloads = JoinSet::new();
        Ok(Self { app, tasks, preloads, reloader, ticks, stop_serving, stop_all, _bound: bound })
    }

    async fn run(mut self, mut signals: Signals) -> Result<(), Exit> {
        let default = load_ahead(self.app.handle.clone(), self.app.handle.default_model());
        let mut default = std::pin::pin!(default);
        let mut ready = false;
        let mut overview = self.app.handle.overview();
        loop {
            tokio::select! {
                () = &mut default, if !ready => {
                    ready = true;
                    // What is said now need not be said again.
                    overview.mark_unchanged();
                    let status = self.status();
                    tracing::info!(status, elapsed_ms = self.elapsed_ms(), "ready");
                    systemd::ready(&status);
                    self.preload();
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
                    tracing::error!("a part of the daemon ended; stopping");
                    return Err(report(&ended).err().unwrap_or(Exit::Software));
                }
            }
        }
    }

    fn preload(&mut self) {
        let settings = self.app.settings.borrow().clone();
        let mut names: BTreeSet<String> = settings.memory.preload_models.iter().cloned().collect();
        let models = settings.models.iter().filter(|(_, model)| model.preload);
        names.extend(models.map(|(name, _)| name.clone()));
        // The default model is there or has said why not.
        names.remove(settings.default_model());
        for name in names {
            self.preloads.spawn(load_ahead(self.app.handle.clone(), name));
        }
    }

    async fn reload(&mut self) {
        let Some(read) = self.reloader.read().await else { return };
        systemd::reloading();
        self.reloader.apply(read);
        systemd::ready(&self.status());
    }

    /// What `systemctl status` shows.
    fn status(&self) -> String {
        let overview = self.app.handle.overview().borrow().clone();
        let problem = match self.app.configuration.borrow().problems.is_empty() {
            true => "",
            false => "; the configuration was rejected, the last good one is in force",
        };
        format!("{overview}{problem}")
    }

    fn elapsed_ms(&self) -> u64 {
        milliseconds(self.app.started.elapsed())
    }

    async fn stop(mut self, signal: &str) -> Result<(), Exit> {
        tracing::info!(signal, "draining");
        systemd::stopping();
        self.stop_serving.cancel();
        // The tasks end in no particular order; only connections end before the rest is told to.
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
            Err(_elapsed) => tracing::warn!("models did not finish in time"),
        }
        tracing::info!("stopped");
        outcome
    }
}

/// The signals that the daemon follows.
struct Signals {
    stop: Stop,
    reload: Signal,
}

struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Exit> {
        let listen = || -> io::Result<_> {
            let terminate = signal(SignalKind::terminate())?;
            let interrupt = signal(SignalKind::interrupt())?;
            let reload = signal(SignalKind::hangup())?;
            Ok(Self { stop: Stop { terminate, interrupt }, reload })
        };
        listen().map_err(|error| {
            tracing::error!(%error, "cannot listen to signals");
            Exit::System
        })
    }
}

impl Stop {
    /// Waits for a signal to stop; cancelling loses none.
    async fn recv(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

async fn ending(
    name: &'static str,
    task: impl Future<Output = ()>,
) -> (&'static str, Result<(), Exit>) {
    task.await;
    (name, Ok(()))
}

fn served(outcome: io::Result<usize>) -> Result<(), Exit> {
    match outcome {
        Ok(0) => Ok(()),
        Ok(cut) => {
            tracing::warn!(cut, "connections were cut off: the drain took too long");
            Ok(())
        }
        Err(error) => {
            tracing::error!(%error, "the socket failed");
            Err(Exit::System)
        }
    }
}

fn report(ended: &Result<(&'static str, Result<(), Exit>), JoinError>) -> Result<(), Exit> {
    match ended {
        Ok((name, outcome)) => {
            tracing::debug!(task = name, ok = outcome.is_ok(), "ended");
            *outcome
        }
        Err(error) => {
            tracing::error!(%error, "a task panicked");
            Err(Exit::Software)
        }
    }
}

/// Loads a model before anybody asks. What goes wrong is logged here; a request will see it again.
async fn load_ahead(handle: Handle, name: String) {
    if let Err(error) = handle.lease(Some(&name)).await {
        tracing::error!(model = name, error = chain(&error), "cannot be loaded ahead");
    }
}
