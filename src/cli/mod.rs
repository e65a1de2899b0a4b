//! The command line: commands become requests over the socket, or work on the store while no daemon
//! runs.
//!
//! Answers go to standard output, progress and errors to standard error, with one line for each
//! cause. The only socket that is opened is the daemon's.

mod approve;
mod bar;
mod bench;
mod cat_config;
mod check;
mod client;
mod compare;
mod demo;
mod doctor;
mod embed;
mod events;
mod export;
mod install;
mod intake;
mod known_models;
mod licenses;
mod lines;
mod local_model;
mod measure;
mod memory;
mod model;
mod model_names;
mod output;
mod owner;
mod pack;
mod progress;
mod rank;
mod recommend;
mod rollback;
mod shell;
mod stats;
mod status;
mod store_access;
mod temp_store;
mod terminal;
mod text_file;
mod top;
mod unused;
mod upload;
mod verify;

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::base::exit::Exit;
use crate::base::printable;
use crate::config::{self, ConfigError, ConfigSource, Settings};
use crate::files::FileError;
use crate::models::ingest::install::{InstallError, RemoveError};
use crate::models::ingest::selftest;
use crate::package::{ApprovalError, PackError, RollbackError, StoreError, UnpackError};
use client::{Client, ClientError};
use owner::RootNotDropped;
use text_file::InputError;

/// Text embeddings for every program on this device.
#[derive(Debug, Parser)]
#[command(
    name = "caxton",
    version,
    arg_required_else_help = true,
    after_help = "`caxton doctor` checks this machine for problems. See also caxton(1), caxton.yaml(5) and caxtond(8)."
)]
struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

const EMBED_EXAMPLES: &str = "Examples:
  caxton embed 'The pump runs hot.'
  caxton embed --model bundled-mini --json < texts.txt
  caxton embed --json-lines --skip 1000 < texts.txt";

/// Heading of the options that every command accepts.
const GLOBAL: &str = "Global options";

/// Location of the daemon, or of its store while no daemon runs.
#[derive(Clone, Debug, Args)]
struct Connection {
    /// Socket of the daemon [default: socket.path of the configuration].
    #[arg(
        long,
        env = "CAXTON_SOCKET",
        value_name = "PATH",
        global = true,
        help_heading = GLOBAL,
        hide_env_values = true
    )]
    socket: Option<PathBuf>,
    /// Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and
    /// /usr/lib/caxton.
    #[arg(long, value_name = "FILE", global = true, help_heading = GLOBAL)]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the vectors of texts, one line for each text.
    ///
    /// Without TEXT, each line of standard input is a text. Empty lines are skipped.
    #[command(after_help = EMBED_EXAMPLES)]
    Embed(embed::Embed),
    /// Sort lines of standard input by their similarity to a query, the most similar first.
    ///
    /// Each line of the output has the score, a tab and the text. At most 2,048 lines are read.
    #[command(after_help = "Examples:\n  caxton rank 'a machine is too warm' --top 5 < texts.txt")]
    Rank(rank::Rank),
    /// Install, verify, list and pack models.
    #[command(subcommand)]
    Model(model::Model),
    #[command(subcommand)]
    Memory(memory::Memory),
    /// Show the state of the daemon: models, queue, memory, store and sandbox.
    #[command(after_help = "Examples:\n  caxton status\n  caxton status --json")]
    Status(status::Status),
    #[command(after_help = "Examples:\n  caxton events --no-follow")]
    Events(events::Events),
    Top(top::Top),
    /// Measure the speed of a model on this machine, without a daemon, or the speed of the daemon.
    ///
    /// Without --daemon, the command loads the model and embeds all texts in repeated rounds, tokenizing included.
    /// Then it embeds single texts, for two seconds or for --seconds if that is shorter, and at
    /// least 100 of them. It reports the texts and tokens per second, the time of a single text,
    /// the time to load the model, the time from the start to the first vector, the peak memory of
    /// the process, the precision, and the share of the processors' peak rate in matrix products.
    /// A static model has no matrix products.
    #[command(
        after_help = "Examples:\n  caxton bench --model bge-small-1.model.tar.zst --input texts.jsonl --seconds 1\n  caxton bench --daemon --input texts.jsonl --seconds 1"
    )]
    Bench(bench::Bench),
    /// Check a configuration, and show every problem with its file, line and column.
    ///
    /// The command starts nothing. With --diff, it also shows each key whose value would change if
    /// the running daemon reloaded now, with the value in the daemon and the value in the files.
    /// The mark "[restart]" means that the change applies after a restart. When no daemon runs, the
    /// files are compared with the defaults. Only administrators may read the values of the daemon.
    #[command(after_help = "Examples:\n  caxton check\n  caxton check conf.d/50-site.yaml")]
    Check(check::Check),
    CatConfig(cat_config::CatConfig),
    /// Find the problems of this machine, and show how to repair them.
    ///
    /// The command checks the configuration, the units, the socket, the group, the daemon, its
    /// models, rejected packages, the drop directory, the disk, memory and its pressure, the
    /// sandbox, the processor, the journal, the clock and inotify. Each check prints one line with
    /// its result (pass, warn, fail or skipped) and its finding, and then the repair. The command
    /// changes nothing. Checks that need root are skipped for other users. The exit status is 1
    /// when a check failed.
    #[command(after_help = "Examples:\n  caxton doctor\n  caxton doctor --json")]
    Doctor(doctor::Doctor),
    /// Start a temporary daemon, embed twelve sentences through its socket, and clean up.
    Demo(demo::Demo),
    /// Run the daemon, for `caxton demo`. Installed systems run caxtond.
    #[command(hide = true)]
    Daemon,
}

/// Returns the command line as clap sees it, from which the manual and the completions are
/// generated.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Function that runs the daemon with the configuration of a source.
pub type RunDaemon = fn(ConfigSource) -> Exit;

impl Connection {
    fn source(&self) -> ConfigSource {
        match &self.config {
            Some(file) => ConfigSource::File(file.clone()),
            None => ConfigSource::Layers { root: PathBuf::from("/") },
        }
    }

    fn settings(&self) -> Result<Settings, ConfigError> {
        Ok(config::load(&self.source())?.settings)
    }

    fn socket(&self) -> Result<PathBuf, ConfigError> {
        if let Some(path) = &self.socket {
            return Ok(path.clone());
        }
        match self.settings() {
            Ok(settings) => Ok(settings.socket.path),
            // The daemon runs with the last good configuration then, and this is when its state
            // matters most.
            Err(_) if self.config.is_none() => {
                print_error(
                    "caxton: the configuration has errors, so the default socket is used; run `caxton check`",
                );
                Ok(Settings::default().socket.path)
            }
            Err(error) => Err(error),
        }
    }

    async fn connect(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.socket()?).await?)
    }
}

/// Runs `caxton`. `run_daemon` is for `caxton demo`, so that it needs no second program.
pub fn main(run_daemon: RunDaemon) -> ExitCode {
    let started = Instant::now();
    if let Some(code) = selftest::run_if_asked() {
        return code;
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // The text repeats arguments of the command line, so that it must be escaped. An error
            // of a closed stdout or stderr cannot be reported anywhere.
            let text = error.render().to_string();
            drop(match error.use_stderr() {
                true => terminal::err().write_all(text.as_bytes()),
                false => terminal::out().write_all(text.as_bytes()),
            });
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() };
        }
    };
    match run(arguments, run_daemon, started) {
        Ok(exit) => exit.into(),
        Err(error) => {
            let exit = exit_code(&error);
            if !is_closed_pipe(&error) && !error.is::<AlreadyReported>() {
                print_error(&format!("caxton: {}", chain_lines(&error)));
            }
            exit.into()
        }
    }
}

fn run(
    Arguments { connection, command }: Arguments,
    run_daemon: RunDaemon,
    started: Instant,
) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        Command::Embed(command) => runtime.block_on(command.run(&connection)),
        Command::Rank(command) => runtime.block_on(command.run(&connection)),
        Command::Model(command) => runtime.block_on(command.run(&connection)),
        Command::Memory(command) => runtime.block_on(command.run(&connection)).map(|()| Exit::Ok),
        Command::Status(command) => runtime.block_on(command.run(&connection)),
        Command::Top(command) => runtime.block_on(command.run(&connection)),
        Command::Events(command) => runtime.block_on(command.run(&connection)),
        Command::Bench(command) => runtime.block_on(command.run(&connection, started)),
        Command::Check(command) => runtime.block_on(command.run(&connection)),
        Command::CatConfig(command) => command.run(&connection),
        Command::Doctor(command) => runtime.block_on(command.run(&connection)),
        Command::Demo(command) => {
            let bundled = connection.settings()?.packages.bundled_directory;
            runtime.block_on(command.run(&bundled))
        }
        Command::Daemon => Ok(run_daemon(connection.source())),
    }
}

/// Formats the causes of `error`, one in each line.
fn chain_lines(error: &anyhow::Error) -> String {
    // Indent line breaks within a cause, so that their text cannot look like a line of ours.
    let causes = error.chain().map(|cause| cause.to_string().replace('\n', "\n    "));
    Vec::from_iter(causes).join("\n  cause: ")
}

/// Writes a line to standard error; ignores errors, since they could not be reported.
fn print_error(line: &str) {
    drop(writeln!(terminal::err(), "{line}"));
}

/// Returns whether the reader of our output has closed it, as `head` does. This is not an error.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

fn exit_code(error: &anyhow::Error) -> Exit {
    if is_closed_pipe(error) {
        return Exit::Ok;
    }
    if let Some(AlreadyReported(exit)) = error.downcast_ref() {
        return *exit;
    }
    let causes = || error.chain();
    if causes().any(|cause| cause.is::<RootNotDropped>()) {
        return Exit::Permission;
    }
    if causes().any(|cause| cause.is::<ConfigError>()) {
        return Exit::Config;
    }
    if causes().any(|cause| {
        cause.is::<NotInstalled>() || cause.is::<PackError>() || cause.is::<InputError>()
    }) {
        return Exit::Data;
    }
    if let Some(error) = causes().find_map(|cause| cause.downcast_ref::<InstallError>()) {
        return match error {
            InstallError::Unpack(UnpackError::Io { .. } | UnpackError::Source(_)) => Exit::System,
            InstallError::Store(error) => store_exit_code(error),
            InstallError::Keys(_) => Exit::Config,
            _ => Exit::Data,
        };
    }
    if let Some(error) = causes().find_map(|cause| cause.downcast_ref::<RemoveError>()) {
        return match error {
            RemoveError::Unknown(_)
            | RemoveError::Bundled(_)
            | RemoveError::InFurtherDirectory { .. } => Exit::Data,
            RemoveError::Store(error) => store_exit_code(error),
            RemoveError::File(_) => Exit::System,
        };
    }
    if let Some(error) = causes().find_map(|cause| cause.downcast_ref::<RollbackError>()) {
        return match error {
            RollbackError::Store(error) => store_exit_code(error),
            RollbackError::Unknown(_)
            | RollbackError::NamesVersion(_)
            | RollbackError::NoPrevious(_)
            | RollbackError::NoVersion { .. } => Exit::Data,
        };
    }
    if let Some(error) = causes().find_map(|cause| cause.downcast_ref::<ApprovalError>()) {
        return match error {
            ApprovalError::Store(error) => store_exit_code(error),
            ApprovalError::Unknown(_) | ApprovalError::NotWaiting(_) => Exit::Data,
        };
    }
    if let Some(error) = causes().find_map(|cause| cause.downcast_ref::<ClientError>()) {
        return match error {
            ClientError::Unreachable { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => Exit::Permission,
                _ => Exit::Unavailable,
            },
            ClientError::Refused { status, .. } => match status.as_u16() {
                403 => Exit::Permission,
                500.. => Exit::Unavailable,
                _ => Exit::Data,
            },
            ClientError::Broken(_) => Exit::Unavailable,
        };
    }
    if let Some(error) = causes().find_map(|cause| cause.downcast_ref::<StoreError>()) {
        return store_exit_code(error);
    }
    if causes().any(|cause| cause.is::<FileError>()) {
        return Exit::System;
    }
    Exit::Failure
}

fn store_exit_code(error: &StoreError) -> Exit {
    match error {
        StoreError::Unknown(_) | StoreError::LooksAlike(_) | StoreError::Corrupt { .. } => {
            Exit::Data
        }
        StoreError::Locked(_) => Exit::Unavailable,
        StoreError::File(_)
        | StoreError::Full(_)
        | StoreError::NoSpace(_)
        | StoreError::TooManyVersions(_) => Exit::System,
    }
}

/// Error: no such model is installed.
#[derive(Debug, thiserror::Error)]
#[error("the model \"{0}\" is not installed; `caxton model list` shows the installed models")]
struct NotInstalled(String);

/// Another process of this program failed and has printed its error.
#[derive(Debug, thiserror::Error)]
#[error("another process of this program failed and printed its error")]
struct AlreadyReported(Exit);

/// Prints indented JSON with a final newline.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut out = BufWriter::new(terminal::json());
    serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(out.flush()?)
}

/// Prints rows below their headings, in aligned columns with two spaces in between.
fn print_table(headings: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let escape = |row: &Vec<String>| {
        Vec::from_iter(row.iter().map(|cell| printable::line(cell).into_owned()))
    };
    let rows = Vec::from_iter(rows.iter().map(escape));
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([headings[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let mut out = terminal::out();
    let headings: Vec<String> = headings.iter().map(ToString::to_string).collect();
    for row in std::iter::once(&headings).chain(&rows) {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(out, "{}", Vec::from_iter(cells).join("  ").trim_end())?;
    }
    Ok(())
}

/// Returns the last component of `path` as text.
fn file_name(path: &Path) -> String {
    path.file_name()
        .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}
