//! `caxton model`: packs, installs, verifies, shows, removes and exports models.
//!
//! The commands use the daemon when one runs. Otherwise they use its store, which is locked
//! meanwhile.

use std::io::Write;

use axum::body::Body;
use axum::http::Method;
use clap::{Args, Subcommand};

use super::approve::Approve;
use super::client::segment;
use super::compare::Compare;
use super::export::Export;
use super::install::Install;
use super::known_models::Known;
use super::licenses::print_licenses;
use super::pack::Pack;
use super::recommend::Recommend;
use super::rollback::Rollback;
use super::stats::Stats;
use super::status::print_packages;
use super::store_access::StoreAccess;
use super::unused::Unused;
use super::verify::Verify;
use super::{Connection, print_json, terminal};
use crate::api::describe;
use crate::api::wire::{PackageFile, PackageList};
use crate::base::exit::Exit;
use crate::base::printable;
use crate::models::ingest::install::{InstallRules, remove};
use crate::package::Entries;

const PACK_EXAMPLES: &str = "Examples:
  caxton model pack --source ./bge-small --output bge-small-1.model.tar.zst";
const INSTALL_EXAMPLES: &str = "Examples:
  caxton model install bge-small-1.model.tar.zst";
const VERIFY_EXAMPLES: &str = "Examples:
  caxton model verify bge-small-1.model.tar.zst
  caxton model verify bundled-mini --json";
const COMPARE_EXAMPLES: &str = "Examples:
  caxton model compare bundled-mini bge-small-1.model.tar.zst --texts texts.jsonl";
const RECOMMEND_EXAMPLES: &str = "Examples:
  caxton model recommend --task search --complexity 0.3 --max-latency 1m";
const KNOWN_EXAMPLES: &str = "Examples:
  caxton model known --runs --language de --sort memory
  caxton model known nomic-embed-text";
const EXPORT_EXAMPLES: &str = "Examples:
  caxton model export bge-small --output copy.model.tar.zst
  caxton model export --model-id bge-small --output copy.model.tar.zst --include-metadata";

/// Install, verify, list and pack models.
#[derive(Debug, Subcommand)]
pub(super) enum Model {
    /// Make a package from a directory in the layout of sentence-transformers, or from a GGUF file.
    #[command(after_help = PACK_EXAMPLES)]
    Pack(Pack),
    /// Install packages, or pack and install a directory; for administrators.
    ///
    /// Of several packages, each is installed regardless of the others. The exit status is that of
    /// the worst failure.
    #[command(after_help = INSTALL_EXAMPLES)]
    Install(Install),
    /// Verify a package, or every file of an installed model, against its digests.
    ///
    /// A package is also checked against its sidecars, and its self-test is computed. With --json,
    /// the self-test of an installed model is computed, too. If a daemon runs, it does this beside
    /// the models in memory, and only if there is memory for it.
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(Verify),
    /// List installed models.
    List(List),
    /// Show all properties of an installed model.
    Show(Show),
    /// Show the use and the speed of each model.
    ///
    /// The daemon counts from the first use of a model, also across restarts. LATENCY is the median
    /// and the 95th percentile of the last 128 to 256 answers. WEEK is the number
    /// of hours with a use in the last seven days, and in the seven days before. REQ/WEEK is the
    /// number of requests in the last seven days (UTC), with today, and in the seven days before.
    /// TREND compares the recent 95th percentile with that of all answers. PEAK HOURS are the hours
    /// of the day (UTC) with the most use. NEXT USE is the hour (UTC) of the next 24 hours in which
    /// the model was used in at least 60 % of the past weeks.
    Stats(Stats),
    /// Make an id resolve to an earlier version, until a version above all others is installed; for
    /// administrators.
    Rollback(Rollback),
    /// Let an id resolve to an update that waits for approval; for administrators.
    ///
    /// With packages.updates: manual, a higher version of an installed id is installed and tested,
    /// but the id keeps its version until the higher one is approved.
    Approve(Approve),
    /// Remove an installed model, and its file in the drop directory; for administrators.
    Remove(Remove),
    /// Write an installed model as a package; for administrators.
    #[command(after_help = EXPORT_EXAMPLES)]
    Export(Export),
    /// Compare two models on your texts, before you change from one to the other.
    ///
    /// Two models share an embedding space or not: only vectors of one space may be compared. The
    /// report also has the share of the ten nearest texts that both models agree on, the rank
    /// correlation of the similarities of all pairs of texts (of 200,000 pairs, if there are more),
    /// and the speed and the memory of each model. With --pairs, it has nDCG@10: the quality of the
    /// search, from 0 to 1. If a daemon runs, it embeds the texts for installed models.
    #[command(after_help = COMPARE_EXAMPLES)]
    Compare(Compare),
    /// Show the installed models that suit a task, the best first, with the reason.
    ///
    /// The order depends on the task, on the difficulty of the texts, on the measured latency and
    /// on the memory that is free.
    #[command(after_help = RECOMMEND_EXAMPLES)]
    Recommend(Recommend),
    /// List models without a use for some time, the longest unused ones first.
    ///
    /// A model that was installed in this time is not listed. `caxton model remove` removes one.
    #[command(after_help = "Examples:\n  caxton model unused --for 90d")]
    Unused(Unused),
    /// List the known models, whose names, prompts and licences are built in, or show one.
    ///
    /// TASK is the main task. LANG is a language, the number of languages, or mul for many. DIMS is
    /// the length of the vectors; a model with the task rerank scores pairs of texts and gives no
    /// vectors. TOKENS is the longest text. INT8 is the size of the weights in int8; in f16 they
    /// have twice and in f32 four times this size. Sizes are computed from the number of
    /// parameters. The memory is the size and the words of the tokenizer. The vectors are computed
    /// on the processor; no GPU is used.
    #[command(after_help = KNOWN_EXAMPLES)]
    Known(Known),
}

/// List installed models.
#[derive(Debug, Args)]
pub(super) struct List {
    /// Print the answer in JSON.
    #[arg(long)]
    json: bool,
    /// Print the licence and the origin of each model.
    #[arg(long, conflicts_with = "json")]
    licenses: bool,
}

/// Show an installed model.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// Model, as `id`, `id@version` or `id@revision`.
    id: String,
    /// Print the answer in JSON.
    #[arg(long)]
    json: bool,
}

/// Remove an installed model.
#[derive(Debug, Args)]
pub(super) struct Remove {
    /// Model, as `id`, `id@version` or `id@revision`.
    id: String,
}

impl Model {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        match self {
            Self::Install(command) => return command.run(connection).await,
            Self::Verify(command) => return command.run(connection).await,
            Self::Compare(command) => return command.run(connection).await,
            Self::Pack(command) => command.run(),
            Self::List(command) => command.run(connection).await,
            Self::Show(command) => command.run(connection).await,
            Self::Stats(command) => command.run(connection).await,
            Self::Rollback(command) => command.run(connection).await,
            Self::Approve(command) => command.run(connection).await,
            Self::Remove(command) => command.run(connection).await,
            Self::Export(command) => command.run(connection).await,
            Self::Recommend(command) => return command.run(connection).await,
            Self::Unused(command) => command.run(connection).await,
            Self::Known(command) => return command.run(),
        }?;
        Ok(Exit::Ok)
    }
}

impl List {
    async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let packages = match StoreAccess::open(connection).await? {
            StoreAccess::Daemon(mut client) => client.get("/api/packages").await?,
            StoreAccess::Store(here) => {
                let entries = here.0.entries();
                let package = |entry| describe(entry, &entries, None);
                PackageList { packages: entries.iter().map(package).collect() }
            }
        };
        match self {
            Self { json: true, .. } => print_json(&packages),
            Self { licenses: true, .. } => print_licenses(&packages.packages),
            Self { .. } => print_packages(&packages.packages),
        }
    }
}

impl Show {
    async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let package = StoreAccess::open(connection).await?.package(&self.id).await?;
        if self.json {
            return print_json(&package);
        }
        let mut out = terminal::out();
        // The names of the JSON fields are documented, so print the same names here.
        let fields = serde_json::to_value(&package)?;
        for (name, value) in fields.as_object().into_iter().flatten() {
            if name == "files" {
                for PackageFile { name, size, sha256 } in &package.files {
                    let file = format!("{:20} {name}, {size} bytes, SHA-256 {sha256}", "file");
                    writeln!(out, "{}", printable::line(&file))?;
                }
                continue;
            }
            let text = match value {
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            writeln!(out, "{name:20} {}", printable::line(&text))?;
        }
        Ok(())
    }
}

impl Remove {
    async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let package = match StoreAccess::open(connection).await? {
            StoreAccess::Daemon(mut client) => {
                let path = format!("/api/packages/{}", segment(&self.id));
                client.call(Method::DELETE, &path, Body::empty()).await?
            }
            StoreAccess::Store(here) => {
                let (store, settings) = *here;
                let removed = remove(&store, &self.id, &InstallRules::from(&settings))?;
                describe(&removed, &Entries::default(), None)
            }
        };
        let name = format!("{}@{}", package.id, package.version);
        writeln!(terminal::out(), "removed: {}", printable::line(&name))?;
        Ok(())
    }
}
