//! `caxton demo`: shows embeddings from start to end, in a temporary directory that is removed
//! afterwards.
//!
//! Starts this program as a daemon, waits until it reports that it is ready, sends texts through
//! its real socket, and stops it like systemd does.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};

use super::client::Client;
use super::{print_error, terminal};
use crate::api::wire::{EmbeddingsResponse, Vector};
use crate::base::exit::Exit;
use crate::models::residency::load::cosine;
use crate::package::SUFFIX;

/// Longest time until the daemon is ready. Unpacking, verifying and testing the bundled model takes
/// about a second, and longer on a slow disk.
const START_TIMEOUT: Duration = Duration::from_secs(60);

const SENTENCES: [&str; 12] = [
    "The pump's bearing is running hot.",
    "Temperature of the motor mount exceeds its limit.",
    "The door of the cold store was left open overnight.",
    "Someone forgot to close the refrigerator.",
    "A customer asks how to return a pair of shoes.",
    "What is your refund policy?",
    "The vehicle needs new brake pads.",
    "Replace the worn disc brakes before the next trip.",
    "Backups finished without errors at three in the morning.",
    "Last night's copy of the database was successful.",
    "The weather will be sunny with a light breeze.",
    "Expect clear skies and little wind tomorrow.",
];

/// Start a temporary daemon, embed twelve sentences through its socket, and clean up.
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Directory of packages that include bundled-mini [default: the packages that came with
    /// Caxton].
    #[arg(long, value_name = "DIR")]
    bundled: Option<PathBuf>,
    /// Keep the daemon running until Ctrl-C, to try the printed curl command.
    #[arg(long)]
    wait: bool,
}

impl Demo {
    pub(super) async fn run(self, installed: &Path) -> anyhow::Result<Exit> {
        let bundled = match self.bundled {
            Some(directory) => directory,
            None => find_bundled(installed)?,
        };
        let place = tempfile::Builder::new()
            .prefix("caxton-demo-")
            .tempdir()
            .context("cannot create a temporary directory")?;
        let started = Instant::now();
        let mut daemon = Daemon::start(place.path(), &bundled).await?;
        let shown = match show(&daemon, started.elapsed(), self.wait).await {
            Ok(()) if self.wait => {
                print_error("\nThe daemon runs until Ctrl-C.");
                tokio::signal::ctrl_c().await.context("cannot wait for Ctrl-C")
            }
            shown => shown,
        };
        let stopped = daemon.stop().await;
        shown.and(stopped)?;
        Ok(Exit::Ok)
    }
}

/// Finds the directory of bundled packages: the one that a package installs, or that of a source
/// tree around the working directory or this program.
fn find_bundled(installed: &Path) -> anyhow::Result<PathBuf> {
    let here = std::env::current_dir().ok();
    let program = std::env::current_exe().ok();
    let trees = [&here, &program].into_iter().flatten().flat_map(|path| path.ancestors());
    let candidates = std::iter::once(installed.to_owned())
        .chain(trees.map(|directory| directory.join("bundled-models")));
    for candidate in candidates {
        let holds_package = fs::read_dir(&candidate).is_ok_and(|mut entries| {
            entries.any(|entry| {
                entry.is_ok_and(|entry| entry.file_name().to_string_lossy().ends_with(SUFFIX))
            })
        });
        if holds_package {
            return Ok(candidate);
        }
    }
    bail!("found no directory with the bundled model; name it with --bundled DIR")
}

struct Daemon {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// Starts this program as a daemon below `place` and waits for READY=1.
    async fn start(place: &Path, bundled: &Path) -> anyhow::Result<Self> {
        let socket = place.join("caxton.sock");
        let config = place.join("caxton.yaml");
        let text = serde_json::json!({
            "socket": { "path": socket },
            "memory": { "model_cache": { "directory": place.join("state") } },
            "packages": {
                "drop_directory": place.join("packages"),
                "bundled_directory": fs::canonicalize(bundled)?,
                "keys_directory": place.join("keys.d"),
            },
        });
        // A JSON document is also a YAML document.
        fs::write(&config, text.to_string()).context("cannot write the configuration")?;
        let notify = place.join("notify");
        let ready = UnixDatagram::bind(&notify).context("cannot create the notification socket")?;
        let log = place.join("log");
        let log_file = File::create(&log).context("cannot create the log file")?;
        let program = std::env::current_exe().context("cannot find this program")?;
        let child = Command::new(program)
            .args(["daemon", "--config"])
            .arg(&config)
            .env("NOTIFY_SOCKET", &notify)
            .env_remove("LISTEN_FDS")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the daemon")?;
        let mut daemon = Self { child, socket, log };
        match tokio::time::timeout(START_TIMEOUT, daemon.wait_ready(&ready)).await {
            Ok(Ok(())) => Ok(daemon),
            Ok(Err(error)) => Err(error),
            Err(_elapsed) => Err(daemon.failure("the daemon was not ready within 60 s")),
        }
    }

    async fn wait_ready(&mut self, ready: &UnixDatagram) -> anyhow::Result<()> {
        let mut message = [0; 4096];
        loop {
            tokio::select! {
                received = ready.recv(&mut message) => {
                    let text = String::from_utf8_lossy(&message[..received?]).into_owned();
                    if text.lines().any(|line| line == "READY=1") {
                        return Ok(());
                    }
                }
                _ = self.child.wait() => return Err(self.failure("the daemon ended too early")),
            }
        }
    }

    fn failure(&self, what: &str) -> anyhow::Error {
        let log = fs::read_to_string(&self.log).unwrap_or_else(|error| error.to_string());
        anyhow::anyhow!("{what}; its log:\n{log}")
    }

    /// Stops the daemon like systemd does, and waits for it.
    async fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            kill(Pid::from_raw(pid), Signal::SIGTERM).context("cannot stop the daemon")?;
        }
        let status = self.child.wait().await.context("cannot wait for the daemon")?;
        if status.success() {
            Ok(())
        } else {
            Err(self.failure(&format!("the daemon failed: {status}")))
        }
    }
}

async fn show(daemon: &Daemon, start: Duration, waits: bool) -> anyhow::Result<()> {
    let mut client = Client::connect(&daemon.socket).await?;
    let asked = Instant::now();
    let body = serde_json::json!({ "input": SENTENCES });
    let answer: EmbeddingsResponse = client.post("/v1/embeddings", &body).await?;
    let took = asked.elapsed();
    let vectors: Vec<&[f32]> = answer
        .data
        .iter()
        .filter_map(|embedding| match &embedding.embedding {
            Vector::Float(vector) => Some(vector.as_slice()),
            Vector::Signed(_) | Vector::Unsigned(_) | Vector::Base64(_) => None,
        })
        .collect();
    if vectors.len() != SENTENCES.len() {
        bail!("expected {} vectors, received {}", SENTENCES.len(), vectors.len());
    }
    let mut out = terminal::out();
    writeln!(
        out,
        "{} verified and ready in {} ms; {} sentences, {} tokens, {} numbers each, in {} ms\n",
        answer.model,
        start.as_millis(),
        SENTENCES.len(),
        answer.usage.total_tokens,
        vectors[0].len(),
        took.as_millis()
    )?;
    for (index, sentence) in SENTENCES.iter().enumerate() {
        let others = (0..SENTENCES.len()).filter(|other| *other != index);
        let scored = others.map(|other| (cosine(vectors[index], vectors[other]), other));
        if let Some((score, nearest)) = scored.max_by(|a, b| a.0.total_cmp(&b.0)) {
            writeln!(out, "{sentence}\n  {score:.2}  {}", SENTENCES[nearest])?;
        }
    }
    let socket = if waits {
        daemon.socket.display().to_string()
    } else {
        "/run/caxton/caxton.sock".to_owned()
    };
    writeln!(
        out,
        "\nThe same with curl{}:\n  curl --unix-socket {socket} http://caxton/v1/embeddings \\\n    \
         -H 'content-type: application/json' -d '{{\"input\": \"{}\"}}'",
        if waits { "" } else { ", once Caxton is installed" },
        SENTENCES[4]
    )?;
    Ok(())
}
