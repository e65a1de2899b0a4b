//! `caxton model`: packages made, installed, verified, shown, removed, exported.
//!
//! Through the daemon when one runs; otherwise on its store, which is locked meanwhile.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use axum::body::Body;
use axum::http::{Method, Request};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use futures_util::TryStreamExt;
use http_body_util::BodyExt;
use hyper::body::Bytes;
use tokio_util::io::ReaderStream;

use super::client::{Client, segment};
use super::output::Output;
use super::pack::{Pack, Source};
use super::rollback::Rollback;
use super::scratch::Scratch;
use super::stats::Stats;
use super::status::print_packages;
use super::{Connection, NotInstalled, file_name, print_json, progress, tell};
use crate::api::describe;
use crate::api::wire::{InstalledPackage, Package, PackageList};
use crate::api::{MINISIG_HEADER, NAME_HEADER, SHA256_HEADER};
use crate::config::Settings;
use crate::exit::Exit;
use crate::files::{self, FileError, ReadOnce};
use crate::models::install::{Installed, Rules, install, remove, try_out};
use crate::models::load::options;
use crate::package::{
    Key, Origin, SIDECARS, Sidecars, SignatureStatus, Store, StoreError, choose, known_models,
    write_package,
};

const PACK_EXAMPLES: &str = "Examples:
  caxton model pack --source ./bge-small --output bge-small-1.model.tar.zst";
const VERIFY_EXAMPLES: &str = "Examples:
  caxton model verify bge-small-1.model.tar.zst
  caxton model verify bundled-mini";

/// Install, verify, list and pack models.
#[derive(Debug, Subcommand)]
pub(super) enum Model {
    /// Make a package from a sentence-transformers directory.
    #[command(after_help = PACK_EXAMPLES)]
    Pack(Pack),
    /// Install a package, or a directory that is packed first; for administrators.
    #[command(after_help = "Examples:\n  caxton model install bge-small-1.model.tar.zst")]
    Install(Install),
    /// Check a package file, or every file of an installed model, against its digests.
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(Verify),
    /// List installed models.
    List(List),
    /// Show everything about an installed model.
    Show(Show),
    /// Show how much each model is used and how fast it is.
    ///
    /// Counted by the daemon from the first use on; restarts do not matter. LATENCY is that of the last 128 to 256
    /// answers, at the median and the 95th percentile. NEXT USE is the hour (UTC) of the coming day in which the
    /// model was used in most of the past weeks.
    Stats(Stats),
    /// Let an id mean an earlier version, until one above all others is installed; for administrators.
    Rollback(Rollback),
    /// Remove an installed model; its file leaves the drop directory, too; for administrators.
    Remove(Remove),
    /// Write an installed model as a package; for administrators.
    #[command(
        after_help = "Examples:\n  caxton model export bge-small --output copy.model.tar.zst"
    )]
    Export(Export),
    /// List the models whose names, prompts and licences are built in.
    Known,
}

/// Install a package.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("package").required(true).args(["file", "source"]))]
pub(super) struct Install {
    /// The package; what stands beside it as FILE.sha256 or FILE.minisig is checked.
    file: Option<PathBuf>,
    /// A sentence-transformers directory to pack and install in one step.
    #[arg(long, value_name = "DIR")]
    source: Option<PathBuf>,
    #[command(flatten)]
    what: Source,
    /// Hash every installed file once more afterwards; digests are always checked during the installation.
    #[arg(long)]
    validate_checksums: bool,
}

/// Check a package or an installed model.
#[derive(Debug, Args)]
pub(super) struct Verify {
    /// A package file, or an installed model as `id`, `id@version` or `id@revision`.
    #[arg(value_name = "FILE|ID")]
    what: PathBuf,
}

/// List installed models.
#[derive(Debug, Args)]
pub(super) struct List {
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
}

/// Show an installed model.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// The model, as `id`, `id@version` or `id@revision`.
    id: String,
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
}

/// Remove an installed model.
#[derive(Debug, Args)]
pub(super) struct Remove {
    /// The model, as `id`, `id@version` or `id@revision`.
    id: String,
}

/// Write an installed model as a package.
#[derive(Debug, Args)]
pub(super) struct Export {
    /// The model, as `id`, `id@version` or `id@revision`.
    id: String,
    /// The package to write; it appears when it is complete.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// Where installed models are reached.
pub(super) enum Place {
    Daemon(Client),
    Store(Box<(Store, Settings)>),
}

impl Place {
    pub(super) async fn open(connection: &Connection) -> anyhow::Result<Self> {
        match Client::connect(&connection.socket()?).await {
            Ok(client) => Ok(Self::Daemon(client)),
            // A socket that was named is meant.
            Err(error) if error.is_unreachable() && connection.socket.is_none() => {
                let settings = connection.settings()?;
                let store = open_store(&settings)
                    .context("no daemon answers, so its store was to be used")?;
                Ok(Self::Store(Box::new((store, settings))))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn package(&mut self, id: &str) -> anyhow::Result<Package> {
        match self {
            Self::Daemon(client) => {
                Ok(client.get(&format!("/api/packages/{}", segment(id))).await?)
            }
            Self::Store(here) => {
                let entries = here.0.entries();
                let entry = choose(&entries, id).ok_or_else(|| NotInstalled(id.to_owned()))?;
                Ok(describe(entry, &entries, None))
            }
        }
    }
}

/// The store of `settings`, locked; tells which of its entries cannot be read.
pub(super) fn open_store(settings: &Settings) -> Result<Store, StoreError> {
    let (store, damaged) = Store::open(&settings.memory.model_cache.directory)?;
    for entry in damaged {
        tell(&format!("caxton: an entry of the store cannot be read: {entry}"));
    }
    Ok(store)
}

impl Model {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        match self {
            Self::Pack(command) => command.run(),
            Self::Install(command) => command.run(connection).await,
            Self::Verify(command) => command.run(connection).await,
            Self::List(command) => command.run(connection).await,
            Self::Show(command) => command.run(connection).await,
            Self::Stats(command) => command.run(connection).await,
            Self::Rollback(command) => command.run(connection).await,
            Self::Remove(command) => command.run(connection).await,
            Self::Export(command) => command.run(connection).await,
            Self::Known => known(),
        }?;
        Ok(Exit::Ok)
    }
}

impl Install {
    async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let mut place = Place::open(connection).await?;
        // Kept until the end: dropping it removes the package that was made here.
        let scratch;
        let file = match (self.file, self.source) {
            (Some(file), None) => file,
            (None, Some(directory)) => {
                scratch = tempfile::tempdir().context("cannot create a temporary directory")?;
                let file = scratch.path().join(format!("packed{}", crate::package::SUFFIX));
                self.what.pack(&directory, &file)?;
                file
            }
            _ => bail!("give a FILE or --source DIR"),
        };
        let installed = match &mut place {
            Place::Daemon(client) => upload(client, &file).await?,
            Place::Store(here) => install_here(&here.0, &here.1, &file)?,
        };
        let package = &installed.package;
        let name = format!("{}@{}", package.id, package.version);
        let mut out = io::stdout().lock();
        let verb = if installed.existed { "was installed already" } else { "installed" };
        writeln!(out, "{verb}: {name}, signature: {}", installed.signature)?;
        for left in &installed.removed {
            writeln!(out, "left the store: {left}")?;
        }
        drop(out);
        if self.validate_checksums { verify_installed(&mut place, &name).await } else { Ok(()) }
    }
}

/// Sends a package and what stands beside it to the daemon.
async fn upload(client: &mut Client, path: &Path) -> anyhow::Result<InstalledPackage> {
    // Not followed if it is a link, and no FIFO: the same rule as for the drop directory.
    let file = files::open_regular(path)?;
    let length = file.metadata().map_err(FileError::new("examine", path))?.len();
    let bar = progress::bytes(length, "sending");
    let sent = bar.clone();
    let stream = ReaderStream::new(tokio::fs::File::from_std(file))
        .inspect_ok(move |chunk: &Bytes| sent.inc(chunk.len() as u64));
    let mut request = Request::post("/api/packages").header(NAME_HEADER, file_name(path));
    for (ending, header) in SIDECARS.into_iter().zip([SHA256_HEADER, MINISIG_HEADER]) {
        let mut sidecar = path.as_os_str().to_owned();
        sidecar.push(ending);
        let sidecar = PathBuf::from(sidecar);
        if sidecar.exists() {
            let text = files::read_limited(&sidecar, 4096)?;
            request = request.header(header, STANDARD.encode(text));
        }
    }
    let response = client.send(request, Body::from_stream(stream)).await?;
    bar.finish_and_clear();
    let body = super::client::collect(response).await?;
    serde_json::from_slice(&body).context("the daemon's answer cannot be read")
}

fn install_here(
    store: &Store,
    settings: &Settings,
    path: &Path,
) -> anyhow::Result<InstalledPackage> {
    let file = ReadOnce::new(files::open_regular(path)?);
    let sidecars = Sidecars::read(path)?;
    let rules = Rules::from(settings);
    let installed = install(store, file, &sidecars, Origin::Installed, &rules, options(settings))?;
    Ok(InstalledPackage::new(&installed, &store.entries(), None))
}

impl Verify {
    async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        if self.what.is_file() {
            return self.verify_file(connection);
        }
        let id = self.what.to_string_lossy().into_owned();
        let mut place = Place::open(connection).await?;
        verify_installed(&mut place, &id).await
    }

    /// Does everything that an installation does, in a place that is thrown away.
    fn verify_file(&self, connection: &Connection) -> anyhow::Result<()> {
        let settings = connection.settings()?;
        let scratch = Scratch::create(&settings)?;
        let Installed { entry, signature, .. } = scratch.admit(&self.what)?;
        try_out(&scratch.store, &entry.key, &scratch.rules, options(&settings))?;
        let signature = match signature {
            SignatureStatus::Absent => "no signature".to_owned(),
            SignatureStatus::Unchecked => "a signature that no key here can check".to_owned(),
            SignatureStatus::Valid(key) => format!("signed with key {key}"),
        };
        let name = format!("{}@{}", entry.manifest.id, entry.manifest.version);
        writeln!(
            io::stdout().lock(),
            "ok: {name}, {} files, self-test passed, {signature}, SHA-256 {}",
            entry.manifest.files.len(),
            entry.record.package_digest
        )?;
        Ok(())
    }
}

async fn verify_installed(place: &mut Place, id: &str) -> anyhow::Result<()> {
    match place {
        Place::Daemon(client) => {
            let path = format!("/api/packages/{}/verify", segment(id));
            let _: Package = client.call(Method::POST, &path, Body::empty()).await?;
        }
        Place::Store(here) => {
            let store = &here.0;
            let (key, size) = find(store, id)?;
            let bar = progress::bytes(size, "hashing");
            store.verify(&key, |bytes| bar.set_position(bytes))?;
            bar.finish_and_clear();
        }
    }
    let package = place.package(id).await?;
    let (name, version) = (&package.id, &package.version);
    let size = crate::units::Bytes(package.size_bytes);
    writeln!(io::stdout().lock(), "ok: every file of {name}@{version} holds its digest, {size}")?;
    Ok(())
}

fn find(store: &Store, id: &str) -> anyhow::Result<(Key, u64)> {
    let entries = store.entries();
    let entry = choose(&entries, id).ok_or_else(|| NotInstalled(id.to_owned()))?;
    Ok((entry.key.clone(), entry.manifest.total_size()))
}

impl List {
    async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let packages = match Place::open(connection).await? {
            Place::Daemon(mut client) => client.get("/api/packages").await?,
            Place::Store(here) => {
                let entries = here.0.entries();
                let package = |entry| describe(entry, &entries, None);
                PackageList { packages: entries.iter().map(package).collect() }
            }
        };
        if self.json { print_json(&packages) } else { print_packages(&packages.packages) }
    }
}

impl Show {
    async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let package = Place::open(connection).await?.package(&self.id).await?;
        if self.json {
            return print_json(&package);
        }
        let mut out = io::stdout().lock();
        // The fields of the JSON answer are the documentation; one place for both.
        let fields = serde_json::to_value(&package)?;
        for (name, value) in fields.as_object().into_iter().flatten() {
            let text = match value {
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            writeln!(out, "{name:20} {text}")?;
        }
        Ok(())
    }
}

impl Remove {
    async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let package = match Place::open(connection).await? {
            Place::Daemon(mut client) => {
                let path = format!("/api/packages/{}", segment(&self.id));
                client.call(Method::DELETE, &path, Body::empty()).await?
            }
            Place::Store(here) => {
                let (store, settings) = *here;
                describe(&remove(&store, &self.id, &Rules::from(&settings))?, &[], None)
            }
        };
        writeln!(io::stdout().lock(), "removed: {}@{}", package.id, package.version)?;
        Ok(())
    }
}

impl Export {
    async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let mut place = Place::open(connection).await?;
        let package = place.package(&self.id).await?;
        let bar = progress::bytes(package.size_bytes, "writing");
        let mut output = Output::create(&self.output)?;
        match place {
            Place::Daemon(mut client) => {
                let path = format!("/api/packages/{}/export", segment(&self.id));
                let mut body = client.send(Request::get(path), Body::empty()).await?.into_body();
                while let Some(frame) = body.frame().await {
                    let frame = frame.context("the export ended early")?;
                    if let Some(chunk) = frame.data_ref() {
                        output
                            .temporary
                            .write_all(chunk)
                            .map_err(FileError::new("write", &self.output))?;
                        bar.inc(chunk.len() as u64);
                    }
                }
            }
            Place::Store(here) => {
                let store = &here.0;
                let (key, _size) = find(store, &self.id)?;
                let (manifest, contents) = store.read(&key)?;
                let done = |done, _total| bar.set_position(done);
                let out = BufWriter::new(&mut output.temporary);
                write_package(&manifest, &contents, &done, out)?;
            }
        }
        bar.finish_and_clear();
        output.keep()?;
        writeln!(io::stdout().lock(), "written: {}", self.output.display())?;
        Ok(())
    }
}

fn known() -> anyhow::Result<()> {
    let rows: Vec<Vec<String>> = known_models()
        .iter()
        .map(|model| {
            vec![
                model.id.to_owned(),
                model.tier.name().to_owned(),
                model.dimensions.to_string(),
                model.f32_size.to_string(),
                model.int8_size.to_string(),
                model.license.unwrap_or("unknown").to_owned(),
                model.description.to_owned(),
            ]
        })
        .collect();
    let headings = ["MODEL", "TIER", "DIMENSIONS", "F32", "INT8", "LICENSE", "DESCRIPTION"];
    Ok(super::print_table(&headings, &rows)?)
}
