//! `caxton cat-config`: prints every value of the configuration files with its origin, without a
//! daemon.
//!
//! The output is itself a configuration file that gives the same settings.

use std::io::Write;

use clap::Args;

use super::{Connection, print_json, terminal};
use crate::api::describe_value;
use crate::api::wire::configuration::{ConfigFile, ConfigFiles};
use crate::base::exit::Exit;
use crate::config::{self, FileStatus, KeyValue, Provenance, SourceFile, ValueOrigin};

/// Print every value of the configuration, with the file, line and column that set it.
#[derive(Debug, Args)]
pub(super) struct CatConfig {
    /// Print the values in JSON.
    #[arg(long)]
    json: bool,
}

impl CatConfig {
    pub(super) fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let explained = config::explain(&connection.source())?;
        if self.json {
            print_json(&json(&explained))?;
        } else {
            write!(terminal::json(), "{}", text(&explained))?;
        }
        Ok(Exit::Ok)
    }
}

fn json(Provenance { values, found, .. }: &Provenance) -> ConfigFiles {
    let file = |SourceFile { path, status }: &SourceFile| {
        let (state, replaced_by) = match status {
            FileStatus::Applied => ("applied", None),
            FileStatus::Empty => ("empty", None),
            FileStatus::ReplacedBy(by) => ("replaced", Some(by.display().to_string())),
        };
        ConfigFile { path: path.display().to_string(), state: state.to_owned(), replaced_by }
    };
    ConfigFiles {
        files: found.iter().map(file).collect(),
        values: values.iter().map(describe_value).collect(),
    }
}

fn text(Provenance { values, found, .. }: &Provenance) -> String {
    let mut text = String::new();
    for SourceFile { path, status } in found {
        let path = path.display();
        let line = match status {
            FileStatus::Applied => format!("{path}"),
            FileStatus::Empty => format!("{path}: empty; masks the files that it replaces"),
            FileStatus::ReplacedBy(by) => format!("{path}: not read; replaced by {}", by.display()),
        };
        // A path may hold a line break, and the rest of it would be read as a key.
        text.push_str(&format!("# {}\n", line.replace(char::is_control, "?")));
    }
    if found.is_empty() {
        text.push_str("# no configuration files; the defaults apply\n");
    }
    text + &config::document(values, |value| Some(origin(value)))
}

fn origin(KeyValue { origin, fixed, .. }: &KeyValue) -> String {
    match origin {
        Some(ValueOrigin { file, position }) => {
            format!("{}:{}:{}", file.display(), position.line, position.column)
        }
        None if *fixed => "the only value".to_owned(),
        None => "default".to_owned(),
    }
}
