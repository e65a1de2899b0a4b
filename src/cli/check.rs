//! `caxton check`: lists all problems of the configuration, and its changes, without starting a
//! daemon.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::client::{Client, ClientError};
use super::{Connection, model_names, print_error, terminal};
use crate::api::describe_value;
use crate::api::wire::DaemonStatus;
use crate::api::wire::configuration::{ActiveConfiguration, ConfigValue};
use crate::base::exit::Exit;
use crate::config::{self, ConfigSource, Provenance, Settings};

/// Longest time for the answer of a running daemon with its models.
const PATIENCE: Duration = Duration::from_secs(5);

/// Check a configuration, and show every problem with its file, line and column.
///
/// If a daemon runs, a note names each of memory.fallback_models whose vectors no request for
/// another model gets.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// Configuration file to check alone [default: the files that the daemon would read].
    path: Option<PathBuf>,
    /// Show the values that would change if the daemon reloaded now.
    #[arg(long)]
    diff: bool,
    /// Compare with the defaults, even when a daemon runs.
    #[arg(long, requires = "diff")]
    defaults: bool,
}

impl Check {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let source = self.path.clone().map_or_else(|| connection.source(), ConfigSource::File);
        let explained = match config::explain(&source) {
            Ok(explained) => explained,
            Err(error) => {
                print_error(&error.to_string());
                return Ok(Exit::Config);
            }
        };
        let mut out = terminal::out();
        match explained.loaded.files.as_slice() {
            [] => writeln!(out, "ok: no configuration files; the defaults apply")?,
            files => {
                files.iter().try_for_each(|file| writeln!(out, "ok: {}", file.display()))?;
            }
        }
        drop(out);
        for note in Self::fallback_notes(connection, &explained).await {
            print_error(&format!("note: {note}"));
        }
        if self.diff {
            self.print_differences(connection, &explained).await?;
        }
        Ok(Exit::Ok)
    }

    async fn print_differences(
        &self,
        connection: &Connection,
        explained: &Provenance,
    ) -> anyhow::Result<()> {
        let (name, old) = match self.daemon(connection, &explained.loaded.settings).await? {
            Some(ActiveConfiguration { values }) => ("the running daemon", values),
            None => {
                let defaults = config::values(&Settings::default());
                ("the defaults", defaults.iter().map(describe_value).collect())
            }
        };
        let new: Vec<_> = explained.values.iter().map(describe_value).collect();
        let mut out = terminal::out();
        writeln!(out, "compared with {name}:")?;
        let differences = differences(&old, &new);
        if differences.is_empty() {
            writeln!(out, "no differences")?;
        }
        differences.iter().try_for_each(|difference| writeln!(out, "{difference}"))?;
        Ok(())
    }

    /// Returns notes about fallbacks that can answer for no model. Only a running daemon knows the
    /// models; without its answer, there are no notes.
    async fn fallback_notes(
        connection: &Connection,
        Provenance { loaded, values, .. }: &Provenance,
    ) -> Vec<String> {
        let settings = &loaded.settings;
        let status = async {
            let mut client = Client::connect(&socket(connection, settings)).await?;
            client.get::<DaemonStatus>("/status").await
        };
        match tokio::time::timeout(PATIENCE, status).await {
            Ok(Ok(status)) => model_names::fallback_notes(settings, values, &status.packages),
            Ok(Err(_)) | Err(_) => Vec::new(),
        }
    }

    /// Fetches the values that apply in the running daemon; `None` when no daemon runs, or with
    /// `--defaults`.
    async fn daemon(
        &self,
        connection: &Connection,
        settings: &Settings,
    ) -> anyhow::Result<Option<ActiveConfiguration>> {
        if self.defaults {
            return Ok(None);
        }
        let socket = socket(connection, settings);
        let mut client = match Client::connect(&socket).await {
            Ok(client) => client,
            Err(error) if error.is_unreachable() => {
                print_error(&format!(
                    "no daemon listens on {}; comparing with the defaults",
                    socket.display()
                ));
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let answer: Result<ActiveConfiguration, ClientError> =
            client.get("/api/configuration").await;
        Ok(Some(answer?))
    }
}

/// Returns the path of the daemon's socket.
fn socket(connection: &Connection, settings: &Settings) -> PathBuf {
    connection.socket.clone().unwrap_or_else(|| settings.socket.path.clone())
}

/// Returns one line for each key whose value differs. If only one side has a model or alias, it is
/// compared with the defaults.
fn differences(old: &[ConfigValue], new: &[ConfigValue]) -> Vec<String> {
    let by_key = |values: &'_ [ConfigValue]| {
        let pairs = values.iter().map(|value| (value.key.clone(), value.value.clone()));
        pairs.collect::<BTreeMap<_, _>>()
    };
    let (old_values, new_values) = (by_key(old), by_key(new));
    let changed = new.iter().filter_map(|value| {
        let before = old_values.get(&value.key).unwrap_or(&value.default);
        (*before != value.value).then(|| line(value, before, &value.value))
    });
    let gone = old.iter().filter_map(|value| {
        let gone = !new_values.contains_key(&value.key) && value.value != value.default;
        gone.then(|| line(value, &value.value, &value.default))
    });
    changed.chain(gone).collect()
}

/// Formats a difference: `embedding.queue_size: 1000 → 9 (/etc/caxton/conf.d/50-site.yaml:2:15)`.
fn line(
    ConfigValue { key, restart, file, line, column, .. }: &ConfigValue,
    old: &str,
    new: &str,
) -> String {
    let origin = match (file, line, column) {
        (Some(file), Some(line), Some(column)) => format!("{file}:{line}:{column}"),
        _ => "default".to_owned(),
    };
    let restart = if *restart { " [restart]" } else { "" };
    format!("{key}: {old} → {new} ({origin}){restart}")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn values(yaml: &str) -> Vec<ConfigValue> {
        let settings = config::parse(Path::new("f"), yaml.as_bytes().to_vec()).expect(yaml);
        config::values(&settings).iter().map(describe_value).collect()
    }

    #[test]
    fn differences_follow_key_order_with_removed_last() {
        let old = values(
            "embedding: { queue_size: 9 }\nmodels: { a: { pinned: true }, b: { preload: false } }",
        );
        let new = values("socket: { mode: \"0600\" }\nmodels: { c.1: { max_idle_time: 90s } }");
        assert_eq!(
            differences(&old, &new),
            [
                "socket.mode: \"0660\" → \"0600\" (default) [restart]",
                "embedding.queue_size: 9 → 1000 (default)",
                "models.c.1.max_idle_time: default → 1m 30s (default)",
                "models.a.pinned: true → false (default)",
            ]
        );
        assert!(differences(&old, &old).is_empty());
    }

    #[test]
    fn change_shows_file_line_and_column() {
        let mut value = values("").remove(0);
        value.file = Some("/f".to_owned());
        (value.line, value.column) = (Some(3), Some(7));
        assert_eq!(line(&value, "a", "b"), "socket.path: a → b (/f:3:7) [restart]");
    }
}
