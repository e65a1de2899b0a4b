//! `caxton model verify`: verifies a package, or an installed model.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::PathBuf;

use anyhow::Context;
use axum::body::Body;
use axum::http::Method;
use clap::Args;

use super::client::segment;
use super::owner;
use super::store_access::{StoreAccess, find};
use super::temp_store::{PackageFile, TempStore};
use super::{Connection, exit_code, print_error, print_json, progress, terminal};
use crate::api::wire::Package;
use crate::api::wire::validation::ValidationReport;
use crate::base::exit::Exit;
use crate::base::printable;
use crate::base::units::Bytes;
use crate::models::ingest::install::{
    InstallDriver, InstallError, InstallRules, Installation, Validation,
};
use crate::models::ingest::selftest::SelfTester;
use crate::models::residency::load::options;
use crate::package::{PackageBytes, SignatureStatus, UnpackError, check_package};

/// Verify a package or an installed model.
#[derive(Debug, Args)]
pub(super) struct Verify {
    /// Package file, or installed model as `id`, `id@version` or `id@revision`.
    #[arg(value_name = "FILE|ID")]
    what: PathBuf,
    /// Print a report in JSON: every file with its size and digest, whether the model can be
    /// loaded, the cosine of its self-test, the time of the load, the memory, and all faults. An
    /// installed model is loaded, too.
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        if self.what.is_file() {
            return self.verify_file(connection);
        }
        let id = self.what.to_string_lossy().into_owned();
        let mut access = StoreAccess::open(connection).await?;
        if self.json {
            return print_report(&report_installed(&mut access, &id).await?);
        }
        match verify_installed(&mut access, &id).await {
            Ok(package) => print_verified(&package).map(|()| Exit::Ok),
            Err(error) => {
                if exit_code(&error) == Exit::Data
                    && let Ok(report) = report_installed(&mut access, &id).await
                {
                    print_all_faults(&report);
                }
                Err(error)
            }
        }
    }

    /// Verifies a package like an installation does, including the self-test, in a temporary store.
    fn verify_file(&self, connection: &Connection) -> anyhow::Result<Exit> {
        let package = PackageFile::open(&self.what)?;
        let again = second_handle(&package)?;
        // The package is not trusted yet, so it is not parsed with the rights of root.
        let settings = owner::drop_root_if_needed(&connection.settings()?)?;
        let scratch = TempStore::create(&settings)?;
        let installation = match scratch.verify(package) {
            Ok(installation) => installation,
            Err(error) if exit_code(&error) == Exit::Data => {
                return self.reject(error.downcast::<InstallError>()?, again, &scratch);
            }
            Err(error) => return Err(error),
        };
        let tester = SelfTester::without_stop();
        let driver =
            InstallDriver::standalone(&scratch.store, &scratch.rules, options(&settings), &tester);
        let validation = driver.validate_unpacked(&installation);
        let Installation { entry, signature, .. } = installation;
        if self.json {
            let mut report = ValidationReport::new(Some(&entry.manifest), &validation);
            report.revision = Some(entry.record.manifest_digest.short());
            report.package_sha256 = Some(entry.record.package_digest.to_string());
            report.signature = Some(match signature {
                SignatureStatus::Absent => "none".to_owned(),
                SignatureStatus::Unchecked => "unchecked".to_owned(),
                SignatureStatus::Valid(key) => key.to_string(),
            });
            return print_report(&report);
        }
        if let Some(Err(error)) = validation.tested {
            return Err(error.into());
        }
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
        Ok(Exit::Ok)
    }

    /// Reports a package that was rejected with `fault`. Reads its files once more, unless its
    /// signature is wrong.
    fn reject(
        &self,
        fault: InstallError,
        mut package: File,
        scratch: &TempStore,
    ) -> anyhow::Result<Exit> {
        let mut check = None;
        if let InstallError::Unpack(UnpackError::Refused { .. } | UnpackError::Truncated { .. }) =
            fault
        {
            package.rewind().context("cannot read the package once more")?;
            check = Some(check_package(package, &scratch.rules.limits));
        }
        let manifest = check.as_mut().and_then(|check| check.manifest.take());
        if self.json {
            let validation = Validation::rejected(fault, check);
            return print_report(&ValidationReport::new(manifest.as_ref(), &validation));
        }
        let files = check.iter().flat_map(|check| &check.files);
        let faults = Vec::from_iter(files.filter_map(|file| file.fault.as_deref()));
        print_faults(&faults);
        Err(fault.into())
    }
}

/// Opens a second handle of the package, since the first one is used up.
fn second_handle(package: &PackageFile) -> anyhow::Result<File> {
    match &package.file {
        PackageBytes::File(file) | PackageBytes::Stream(file) => {
            file.try_clone().context("cannot open a second handle of the package")
        }
    }
}

/// Prints the report. The exit code says whether the model is valid.
fn print_report(report: &ValidationReport) -> anyhow::Result<Exit> {
    print_json(report)?;
    Ok(if report.valid { Exit::Ok } else { Exit::Data })
}

/// Prints the faults of a report, unless there is only one, which the error names.
fn print_all_faults(report: &ValidationReport) {
    print_faults(&Vec::from_iter(report.faults.iter().map(String::as_str)));
}

fn print_faults(faults: &[&str]) {
    if faults.len() > 1 {
        faults.iter().for_each(|fault| print_error(&format!("caxton: {}", printable::line(fault))));
    }
}

/// Validates the installed model `id` completely.
async fn report_installed(access: &mut StoreAccess, id: &str) -> anyhow::Result<ValidationReport> {
    match access {
        StoreAccess::Daemon(client) => {
            let path = format!("/api/packages/{}/validate", segment(id));
            Ok(client.call(Method::POST, &path, Body::empty()).await?)
        }
        StoreAccess::Store(here) => {
            let (store, settings) = &**here;
            let (key, size) = find(store, id)?;
            let (rules, tester) = (InstallRules::from(settings), SelfTester::without_stop());
            let bar = progress::bytes(size, "hashing");
            let validation = InstallDriver::standalone(store, &rules, options(settings), &tester)
                .validate(&key, |bytes| bar.set_position(bytes))?;
            bar.finish_and_clear();
            if !validation.has_valid_files() {
                // The report has the error already.
                drop(store.record_checks(&key, &validation.files));
            }
            let entries = store.entries();
            let entry = entries.get(&key);
            let manifest = entry.map(|entry| &*entry.manifest);
            let mut report = ValidationReport::new(manifest, &validation);
            report.revision = entry.map(|entry| entry.record.manifest_digest.short());
            report.package_sha256 = entry.map(|entry| entry.record.package_digest.to_string());
            Ok(report)
        }
    }
}

/// Compares every file of the installed model `id` with its digest, and returns its description.
pub(super) async fn verify_installed(
    access: &mut StoreAccess,
    id: &str,
) -> anyhow::Result<Package> {
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
    access.package(id).await
}

/// Prints that an installed model is intact.
pub(super) fn print_verified(package: &Package) -> anyhow::Result<()> {
    let (name, version, size) = (&package.id, &package.version, Bytes(package.size_bytes));
    let what = format!("ok: {name}@{version}, every file matches its digest, {size}");
    writeln!(terminal::out(), "{}", printable::line(&what))?;
    Ok(())
}
