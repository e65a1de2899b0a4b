//! Parses the command line of `caxtond`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use super::run;
use crate::base::exit::Exit;
use crate::config::ConfigSource;
use crate::models::ingest::selftest;

/// Serve text embeddings over one Unix socket.
#[derive(Debug, Parser)]
#[command(name = "caxtond", version)]
struct Arguments {
    /// Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and
    /// /usr/lib/caxton.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Returns the clap command, from which the manual page is made.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Runs `caxtond`: parses the command line and runs the daemon.
pub fn main() -> ExitCode {
    if let Some(code) = selftest::run_if_asked() {
        return code;
    }
    match Arguments::try_parse() {
        Ok(Arguments { config: Some(file) }) => run(ConfigSource::File(file)),
        Ok(Arguments { config: None }) => run(ConfigSource::Layers { root: PathBuf::from("/") }),
        Err(error) => {
            // An error of printing is ignored: if stdout and stderr are closed, the message cannot
            // be shown.
            drop(error.print());
            if error.use_stderr() { Exit::Usage } else { Exit::Ok }
        }
    }
    .into()
}
