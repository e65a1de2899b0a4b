//! `caxton model install`: installs packages, in the daemon or in its store.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::pack::Source;
use super::store_access::StoreAccess;
use super::temp_store::PackageFile;
use super::upload::upload;
use super::verify::{print_verified, verify_installed};
use super::{Connection, chain_lines, exit_code, print_error, print_json, terminal};
use crate::api::wire::InstalledPackage;
use crate::base::exit::Exit;
use crate::base::printable;
use crate::config::Settings;
use crate::models::ingest::install::{InstallDriver, InstallRules};
use crate::models::ingest::selftest::SelfTester;
use crate::models::residency::load::options;
use crate::package::{Consent, Origin, SUFFIX, Store};

/// Most packages of one call. Without a daemon, each of them is an open file.
const MAX_FILES: usize = 256;

/// Install packages.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("package").required(true).args(["files", "source"]))]
pub(super) struct Install {
    /// Packages to install, in this order. The sidecars FILE.sha256 and FILE.minisig of a package
    /// are checked if they exist.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Directory or GGUF file of a model to pack and install in one step, as for `caxton model
    /// pack`.
    #[arg(long, value_name = "PATH")]
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
    /// Print the result in JSON; a list of results if several files are given.
    #[arg(long)]
    json: bool,
}

/// Result of one file, for `--json`. It has either the fields of the installed package or an error.
#[derive(Debug, Serialize)]
struct InstallResult {
    /// Path of the package, as given.
    file: String,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    installed: Option<InstalledPackage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Options that apply to every package of the call.
#[derive(Clone, Copy, Debug)]
struct InstallOptions {
    consent: Consent,
    validate_checksums: bool,
    json: bool,
}

impl Install {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let Self { mut files, source, what, .. } = self;
        let consent = Consent { replace: self.replace, allow_downgrade: self.allow_downgrade };
        let options = InstallOptions {
            consent,
            validate_checksums: self.validate_checksums,
            json: self.json,
        };
        if files.len() > MAX_FILES {
            print_error(&format!(
                "caxton: {} packages are given; one call installs at most {MAX_FILES}",
                files.len()
            ));
            return Ok(Exit::Usage);
        }
        let daemon = StoreAccess::daemon(connection).await?;
        // The directory of the package that is made here; removed on drop.
        let mut scratch = None;
        if let Some(directory) = source {
            let made = tempfile::tempdir().context("cannot create a temporary directory")?;
            let file = made.path().join(format!("packed{SUFFIX}"));
            what.pack(&directory, &file)?;
            files = vec![file];
            scratch = Some(made);
        }
        let mut opened = Vec::new();
        let mut access = match daemon {
            Some(client) => StoreAccess::Daemon(client),
            None => {
                // Open the packages now: the user that this process changes to may be unable to
                // read them, and to remove the directory.
                opened.extend(files.iter().map(|file| PackageFile::open(file)));
                drop(scratch.take());
                StoreAccess::store(connection)?
            }
        };
        let mut opened = opened.into_iter();
        if let [file] = files.as_slice() {
            let installed = options.install(&mut access, file, opened.next()).await?;
            if options.json {
                print_json(&InstallResult::new(file, Ok(installed)))?;
            }
            return Ok(Exit::Ok);
        }
        let (mut worst, mut results) = (Exit::Ok, Vec::new());
        for file in &files {
            let result = options.install(&mut access, file, opened.next()).await;
            let result = match result {
                Ok(installed) => Ok(installed),
                Err(error) => {
                    let exit = exit_code(&error);
                    worst = if exit as u8 > worst as u8 { exit } else { worst };
                    let reason = chain_lines(&error);
                    print_error(&format!("caxton: {}: {reason}", file.display()));
                    // A daemon closes the connection on which it rejected an upload.
                    if matches!(access, StoreAccess::Daemon(_)) {
                        access = StoreAccess::Daemon(connection.connect().await?);
                    }
                    Err(reason)
                }
            };
            results.push(InstallResult::new(file, result));
        }
        if options.json {
            print_json(&results)?;
        }
        Ok(worst)
    }
}

impl InstallResult {
    fn new(file: &Path, result: Result<InstalledPackage, String>) -> Self {
        let file = file.display().to_string();
        match result {
            Ok(installed) => Self { file, installed: Some(installed), error: None },
            Err(error) => Self { file, installed: None, error: Some(error) },
        }
    }
}

impl InstallOptions {
    /// Installs one package and prints the result, unless JSON is wanted. `opened` is the handle of
    /// the package if this process works on the store.
    async fn install(
        self,
        access: &mut StoreAccess,
        file: &Path,
        opened: Option<anyhow::Result<PackageFile>>,
    ) -> anyhow::Result<InstalledPackage> {
        let installed = match access {
            StoreAccess::Daemon(client) => upload(client, file, self.consent).await?,
            StoreAccess::Store(here) => {
                let package = opened.unwrap_or_else(|| PackageFile::open(file))?;
                install_here(&here.0, &here.1, package, self.consent)?
            }
        };
        if !self.json {
            print_installed(&installed)?;
        }
        if self.validate_checksums {
            let name = format!("{}@{}", installed.package.id, installed.package.version);
            let package = verify_installed(access, &name).await?;
            if !self.json {
                print_verified(&package)?;
            }
        }
        Ok(installed)
    }
}

fn print_installed(installed: &InstalledPackage) -> anyhow::Result<()> {
    let package = &installed.package;
    let verb = if installed.existed { "already installed" } else { "installed" };
    let what =
        format!("{verb}: {}@{}, signature: {}", package.id, package.version, installed.signature);
    let mut out = terminal::out();
    writeln!(out, "{}", printable::line(&what))?;
    for left in &installed.removed {
        writeln!(out, "removed from the store: {}", printable::line(left))?;
    }
    if package.awaits_approval {
        let what = format!(
            "waiting for approval: the id keeps its version until `caxton model approve {}@{}`",
            package.id, package.version
        );
        writeln!(out, "{}", printable::line(&what))?;
    }
    Ok(())
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
