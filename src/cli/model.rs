//! `caxton model`: packs, installs, verifies, shows, removes and exports models.
//!
//! The commands use the daemon when one runs. Otherwise they use its store, which is locked
//! meanwhile.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use axum::body::Body;
use axum::http::{Method, Request};
use clap::{Args, Subcommand};
use http_body_util::BodyExt;

use super::client::segment;
use super::output::{ExportTarget, OutputFile};
use super::owner::{self, Owner};
use super::pack::{Pack, Source};
use super::rollback::Rollback;
use super::stats::Stats;
use super::status::print_packages;
use super::store_access::{StoreAccess, open_store_of};
use super::temp_store::{PackageFile, TempStore};
use super::upload::upload;
use super::{AlreadyReported, Connection, NotInstalled, print_json, progress, terminal};
use crate::api::describe;
use crate::api::wire::{InstalledPackage, Package, PackageList};
use crate::base::exit::Exit;
use crate::base::printable;
use crate::config::Settings;
use crate::files::FileError;
use crate::models::ingest::install::{InstallDriver, InstallRules, Installation, remove};
use crate::models::ingest::selftest::SelfTester;
use crate::models::residency::load::options;
use crate::package::{Consent, Entries, EntryKey, Origin, SignatureStatus, Store, write_package};

const PACK_EXAMPLES: &str = "Examples:
  caxton model pack --source ./bge-small --output bge-small-1.model.tar.zst";
const VERIFY_EXAMPLES: &str = "Examples:
  caxton model verify bge-small-1.model.tar.zst
  caxton model verify bundled-mini";

/// Install, verify, list and pack models.
#[derive(Debug, Subcommand)]
pub(super) enum Model {
    /// Make a package from a directory in the layout of sentence-transformers.
    #[command(after_help = PACK_EXAMPLES)]
    Pack(Pack),
    /// Install a package, or pack and install a directory; for administrators.
    #[command(after_help = "Examples:\n  caxton model install bge-small-1.model.tar.zst")]
    Install(Install),
    /// Verify a package, or every file of an installed model, against its digests.
    ///
    /// A package is also checked against its sidecars, and its self-test is computed.
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(Verify),
    /// List installed models.
    List(List),
    /// Show all properties of an installed model.
    Show(Show),
    /// Show the use and the speed of each model.
    ///
    /// The daemon counts from the first use of a model, also across restarts. LATENCY is the median
    /// and the 95th percentile of the last 128 to 256 answers. NEXT USE is the hour (UTC) of the
    /// next 24 hours in which the model was used in at least 60 % of the past weeks.
    Stats(Stats),
    /// Make an id resolve to an earlier version, until a version above all others is installed; for
    /// administrators.
    Rollback(Rollback),
    /// Remove an installed model, and its file in the drop directory; for administrators.
    Remove(Remove),
    /// Write an installed model as a package; for administrators.
    #[command(
        after_help = "Examples:\n  caxton model export bge-small --output copy.model.tar.zst"
    )]
    Export(Export),
    /// List the known models, whose names, prompts and licences are built in.
    Known,
}

/// Install a package.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("package").required(true).args(["file", "source"]))]
pub(super) struct Install {
    /// Package to install. Its sidecars FILE.sha256 and FILE.minisig are checked if they exist.
    file: Option<PathBuf>,
    /// Directory in the layout of sentence-transformers to pack and install in one step.
    #[arg(long, value_name = "DIR")]
    source: Option<PathBuf>,
    #[command(flatten)]
    what: Source,
    /// Allow another embedding space for the id. Vectors from before and after cannot be compared.
    #[arg(long)]
    replace: bool,
    /// Install a signed package although a higher version was installed. The id still resolves to
    /// the highest version.
    #[arg(long)]
    allow_downgrade: bool,
    /// Hash every installed file once more after the installation, which always checks the digests.
    #[arg(long)]
    validate_checksums: bool,
}

/// Verify a package or an installed model.
#[derive(Debug, Args)]
pub(super) struct Verify {
    /// Package file, or installed model as `id`, `id@version` or `id@revision`.
    #[arg(value_name = "FILE|ID")]
    what: PathBuf,
}

/// List installed models.
#[derive(Debug, Args)]
pub(super) struct List {
    /// Print the answer in JSON.
    #[arg(long)]
    json: bool,
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

/// Write an installed model as a package.
#[derive(Debug, Args)]
pub(super) struct Export {
    /// Model, as `id`, `id@version` or `id@revision`.
    id: String,
    /// Package to write, or `-` for standard output. A file appears when it is complete.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
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
            Self::Known => super::known_models::print(),
        }?;
        Ok(Exit::Ok)
    }
}

impl Install {
    async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let consent = Consent { replace: self.replace, allow_downgrade: self.allow_downgrade };
        let daemon = StoreAccess::daemon(connection).await?;
        // The directory of the package that is made here; removed on drop.
        let mut scratch = None;
        let file = match (self.file, self.source) {
            (Some(file), None) => file,
            (None, Some(directory)) => {
                let made = tempfile::tempdir().context("cannot create a temporary directory")?;
                let file = made.path().join(format!("packed{}", crate::package::SUFFIX));
                self.what.pack(&directory, &file)?;
                scratch = Some(made);
                file
            }
            _ => bail!("no package was given; give FILE or --source DIR"),
        };
        let (installed, mut access) = match daemon {
            Some(mut client) => {
                (upload(&mut client, &file, consent).await?, StoreAccess::Daemon(client))
            }
            None => {
                // Open the package now: the user that this process changes to may be unable to read
                // it, and to remove the directory.
                let package = PackageFile::open(&file)?;
                drop(scratch.take());
                let (store, settings) = open_store_of(connection)?;
                let installed = install_here(&store, &settings, package, consent)?;
                (installed, StoreAccess::Store(Box::new((store, settings))))
            }
        };
        let package = &installed.package;
        let name = format!("{}@{}", package.id, package.version);
        let mut out = terminal::out();
        let verb = if installed.existed { "already installed" } else { "installed" };
        let what = format!("{verb}: {name}, signature: {}", installed.signature);
        writeln!(out, "{}", printable::line(&what))?;
        for left in &installed.removed {
            writeln!(out, "removed from the store: {}", printable::line(left))?;
        }
        drop(out);
        if self.validate_checksums { verify_installed(&mut access, &name).await } else { Ok(()) }
    }
}

fn install_here(
    store: &Store,
    settings: &Settings,
    PackageFile { file, sidecars }: PackageFile,
    consent: Consent,
) -> anyhow::Result<InstalledPackage> {
    let rules = InstallRules::from(settings).with(consent);
    let tester = SelfTester::without_stop();
    let driver = InstallDriver::standalone(store, &rules, options(settings), &tester);
    let installed = driver.install(file, &sidecars, Origin::Installed)?;
    Ok(InstalledPackage::new(&installed, &store.entries(), None))
}

impl Verify {
    async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        if self.what.is_file() {
            return self.verify_file(connection);
        }
        let id = self.what.to_string_lossy().into_owned();
        let mut access = StoreAccess::open(connection).await?;
        verify_installed(&mut access, &id).await
    }

    /// Verifies a package like an installation does, including the self-test, in a temporary store.
    fn verify_file(&self, connection: &Connection) -> anyhow::Result<()> {
        let package = PackageFile::open(&self.what)?;
        // The package is not trusted yet, so it is not parsed with the rights of root.
        let settings = owner::drop_root_if_needed(&connection.settings()?)?;
        let scratch = TempStore::create(&settings)?;
        let Installation { entry, signature, .. } = scratch.verify(package)?;
        let tester = SelfTester::without_stop();
        InstallDriver::standalone(&scratch.store, &scratch.rules, options(&settings), &tester)
            .finish(&entry.key)?;
        let signature = match signature {
            SignatureStatus::Absent => "no signature".to_owned(),
            SignatureStatus::Unchecked => {
                "signature not checked, because no key is configured".to_owned()
            }
            SignatureStatus::Valid(key) => format!("signed with key {key}"),
        };
        let name = format!("{}@{}", entry.manifest.id, entry.manifest.version);
        writeln!(
            terminal::out(),
            "ok: {name}, {} files, self-test passed, {signature}, SHA-256 {}",
            entry.manifest.files.len(),
            entry.record.package_digest
        )?;
        Ok(())
    }
}

async fn verify_installed(access: &mut StoreAccess, id: &str) -> anyhow::Result<()> {
    match access {
        StoreAccess::Daemon(client) => {
            let path = format!("/api/packages/{}/verify", segment(id));
            let _: Package = client.call(Method::POST, &path, Body::empty()).await?;
        }
        StoreAccess::Store(here) => {
            let store = &here.0;
            let (key, size) = find(store, id)?;
            let bar = progress::bytes(size, "hashing");
            store.verify(&key, |bytes| bar.set_position(bytes))?;
            bar.finish_and_clear();
        }
    }
    let package = access.package(id).await?;
    let (name, version) = (&package.id, &package.version);
    let size = crate::base::units::Bytes(package.size_bytes);
    let what = format!("ok: {name}@{version}, every file matches its digest, {size}");
    writeln!(terminal::out(), "{}", printable::line(&what))?;
    Ok(())
}

fn find(store: &Store, id: &str) -> anyhow::Result<(EntryKey, u64)> {
    let entries = store.entries();
    let entry = entries.resolve(id).ok_or_else(|| NotInstalled(id.to_owned()))?;
    Ok((entry.key.clone(), entry.manifest.total_size()))
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
        if self.json { print_json(&packages) } else { print_packages(&packages.packages) }
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

impl Export {
    async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let to_file = self.output != Path::new("-");
        let mut access = match StoreAccess::daemon(connection).await? {
            Some(client) => StoreAccess::Daemon(client),
            // The owner of the store may lack the right to write where root may.
            None if to_file && Owner::of_store(&connection.settings()?)?.is_some() => {
                return self.run_as_owner(connection);
            }
            None => StoreAccess::store(connection)?,
        };
        let package = access.package(&self.id).await?;
        let bar = progress::bytes(package.size_bytes, "writing");
        let mut output = match to_file {
            true => ExportTarget::File(OutputFile::create(&self.output)?),
            false => ExportTarget::Stdout(terminal::bytes()),
        };
        match access {
            StoreAccess::Daemon(mut client) => {
                let path = format!("/api/packages/{}/export", segment(&self.id));
                let mut body = client.send(Request::get(path), Body::empty()).await?.into_body();
                while let Some(frame) = body.frame().await {
                    let frame =
                        frame.context("the connection closed before the export was complete")?;
                    if let Some(chunk) = frame.data_ref() {
                        output.write_all(chunk).map_err(FileError::new("write", &self.output))?;
                        bar.inc(chunk.len() as u64);
                    }
                }
            }
            StoreAccess::Store(here) => {
                let store = &here.0;
                let (key, _size) = find(store, &self.id)?;
                let (manifest, contents) = store.read(&key)?;
                let done = |done, _total| bar.set_position(done);
                let out = BufWriter::new(&mut output);
                write_package(&manifest, &contents, &done, out)?;
            }
        }
        bar.finish_and_clear();
        if output.persist()? {
            writeln!(terminal::out(), "written: {}", self.output.display())?;
        }
        Ok(())
    }

    /// Runs this program again to write the package into a pipe, and copies the pipe into the file.
    /// The child changes to the owner of the store; this process keeps the rights to the file.
    fn run_as_owner(&self, connection: &Connection) -> anyhow::Result<()> {
        let mut output = OutputFile::create(&self.output)?;
        let mut program = Command::new("/proc/self/exe");
        if let Some(config) = &connection.config {
            program.arg("--config").arg(config);
        }
        let mut child = program
            .args(["model", "export", "--output", "-", "--"])
            .arg(&self.id)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start this program as the owner of the store")?;
        let pipe = child.stdout.take();
        // The pipe is closed before the wait, so that a child that still writes fails and ends.
        let copied = pipe.map(|mut pipe| io::copy(&mut pipe, &mut output.temporary)).transpose();
        let status = child.wait().context("cannot wait for the process that exports the model")?;
        if !status.success() {
            return Err(AlreadyReported(Exit::from_code(status.code())).into());
        }
        copied.map_err(FileError::new("write", &self.output))?;
        output.persist()?;
        writeln!(terminal::out(), "written: {}", self.output.display())?;
        Ok(())
    }
}
