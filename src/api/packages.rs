//! Shows installed packages to the extent that [`Visibility`] allows, and changes them for
//! administrators.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::TryStreamExt;
use tokio_io_timeout::TimeoutReader;
use tokio_util::io::{ReaderStream, StreamReader, SyncIoBridge};

use super::App;
use super::content_encoding::check_identity;
use super::error::ApiError;
use super::input::{BODY_TIMEOUT, BodyLimit, PathName, read_optional_json};
use super::visibility::Visibility;
use super::wire::approval::ApprovalResponse;
use super::wire::validation::ValidationReport;
use super::wire::{self, Arithmetic, InstalledPackage, Package, PackageFile, PackageList};
use crate::base::errors::{chain, errno};
use crate::base::units::Bytes;
use crate::models::Residency;
use crate::models::ingest::install::{InstallError, Installation};
use crate::package::{
    Approval, Consent, Entries, EntryKey, InstallStatus, Origin, RollbackResult, RollbackTarget,
    Sidecars, SignatureStatus, StoreEntry, trained_dimensions, write_package,
};
use crate::telemetry::events::Event;
use crate::telemetry::log::Message;

/// Header with the content of the package's `.sha256` file, in base64.
pub const SHA256_HEADER: &str = "x-caxton-sha256";
/// Header with the content of the package's `.minisig` file, in base64.
pub const MINISIG_HEADER: &str = "x-caxton-minisig";
/// Parameter of an installation that lets the id change to another embedding space.
pub const REPLACE: &str = "replace";
/// Parameter of an installation that allows a version lower than one that was installed with a
/// signature.
pub const ALLOW_DOWNGRADE: &str = "allow_downgrade";
/// Longest body of a rollback.
const MAX_ROLLBACK: BodyLimit = BodyLimit::Route(Bytes(4096));
/// Header with the package's file name, which its `.sha256` file must contain.
pub const NAME_HEADER: &str = "x-caxton-file-name";

pub(super) async fn list(
    State(app): State<App>,
    visibility: Visibility,
) -> Result<Json<PackageList>, ApiError> {
    Ok(Json(PackageList { packages: describe_all(&app, &visibility).await? }))
}

pub(super) async fn show(
    State(app): State<App>,
    visibility: Visibility,
    PathName(name): PathName,
) -> Result<Json<Package>, ApiError> {
    let entries = visibility.entries(&app);
    let entry = entries.resolve(&name);
    let entry = entry.ok_or_else(|| ApiError::unknown_package(name, &entries))?;
    let residency = app.handle.residency().await?;
    Ok(Json(describe_with_files(entry, &entries, Some(&residency))))
}

pub(super) async fn install(
    State(app): State<App>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<InstalledPackage>, ApiError> {
    check_identity(&headers)?;
    let consent = consent(query.as_deref())?;
    let sidecars = sidecars(&headers)?;
    let stream = body.into_data_stream().map_err(io::Error::other);
    // Limit the wait for a client that stops sending: other changes of the store wait for this
    // installation.
    let mut reader = TimeoutReader::new(StreamReader::new(stream));
    reader.set_timeout(Some(BODY_TIMEOUT));
    let source = SyncIoBridge::new(Box::pin(reader));
    let installed = app.installer.install(source, sidecars, Origin::Installed, consent);
    let installed = installed.await.inspect_err(|error| log_failure(&app, error))?;
    let Installation { entry, existed, .. } = &installed;
    tracing::info!(
        name: Message::PackageAccepted.name(),
        model = %entry.key, existed,
        "package accepted"
    );
    let residency = app.handle.residency().await?;
    let entries = app.handle.store().entries();
    Ok(Json(InstalledPackage::new(&installed, &entries, Some(&residency))))
}

/// Logs that an uploaded package was not installed. Publishes an event only if the package itself
/// was rejected, and not after a fault of the daemon or of the machine.
fn log_failure(app: &App, error: &InstallError) {
    let reason = chain(error);
    if !error.is_fault_of_package() {
        tracing::error!(
            name: Message::PackageNotInstalled.name(),
            file = "(upload)", reason, errno = errno(error),
            "package cannot be installed now"
        );
        return;
    }
    tracing::error!(
        name: Message::PackageRefused.name(),
        reason, errno = errno(error),
        "package refused"
    );
    app.events.publish(Event::PackageRefused { file: None, reason });
}

impl InstalledPackage {
    /// Describes an installation. `entries` are all entries of the store. `residency` is `None`
    /// when no daemon runs that could have the model in memory.
    pub(crate) fn new(
        installed: &Installation,
        entries: &Entries,
        residency: Option<&BTreeMap<EntryKey, Residency>>,
    ) -> Self {
        let name = |entry: &StoreEntry| format!("{}@{}", entry.manifest.id, entry.manifest.version);
        Self {
            package: describe(&installed.entry, entries, residency),
            existed: installed.existed,
            removed: installed.removed.iter().map(name).collect(),
            signature: match installed.signature {
                SignatureStatus::Absent => "none".to_owned(),
                SignatureStatus::Unchecked => "unchecked".to_owned(),
                SignatureStatus::Valid(key) => key.to_string(),
            },
        }
    }
}

/// Parses the administrator's options for this installation: `replace=true`,
/// `allow_downgrade=true`.
fn consent(query: Option<&str>) -> Result<Consent, ApiError> {
    let mut consent = Consent::default();
    for part in query.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let flag = match name {
            REPLACE => &mut consent.replace,
            ALLOW_DOWNGRADE => &mut consent.allow_downgrade,
            _ => {
                let message = format!(
                    "the parameter {name:?} is unknown; expected {REPLACE} or {ALLOW_DOWNGRADE}"
                );
                return Err(ApiError::invalid(None, message));
            }
        };
        *flag = match value {
            "true" => true,
            "false" => false,
            _ => {
                let message = format!("{name} is {value:?}; expected true or false");
                return Err(ApiError::invalid(Some(name.to_owned()), message));
            }
        };
    }
    Ok(consent)
}

fn sidecars(headers: &HeaderMap) -> Result<Sidecars, ApiError> {
    let text = |name: &str| -> Result<Option<String>, ApiError> {
        let Some(value) = headers.get(name) else { return Ok(None) };
        let bytes = STANDARD.decode(value.as_bytes()).ok();
        let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        text.map(Some).ok_or_else(|| {
            let message = format!("the header {name} is not a text in base64");
            ApiError::invalid(Some(name.to_owned()), message)
        })
    };
    let name = match headers.get(NAME_HEADER) {
        None => "",
        // Unlike other headers, a file name may have characters outside ASCII: the command line
        // sends the name of the file as UTF-8.
        Some(name) => std::str::from_utf8(name.as_bytes()).map_err(|_not_utf8| {
            let message = format!("the header {NAME_HEADER} is not UTF-8; send the name as UTF-8");
            ApiError::invalid(Some(NAME_HEADER.to_owned()), message)
        })?,
    };
    let (sha256, minisig) = (text(SHA256_HEADER)?, text(MINISIG_HEADER)?);
    Ok(Sidecars::parse(Path::new(name), sha256.as_deref(), minisig.as_deref())
        .map_err(InstallError::from)?)
}

pub(super) async fn remove(
    State(app): State<App>,
    PathName(name): PathName,
) -> Result<Json<Package>, ApiError> {
    let entry = app.installer.remove(name).await.ok_or_else(ApiError::lost_work)??;
    tracing::info!(name: Message::PackageRemoved.name(), model = %entry.key, "package removed");
    Ok(Json(describe(&entry, &Entries::default(), None)))
}

pub(super) async fn roll_back(
    State(app): State<App>,
    PathName(name): PathName,
    body: Body,
) -> Result<Json<wire::rollback::RollbackResponse>, ApiError> {
    let body: Option<wire::rollback::RollbackRequest> =
        read_optional_json(body, MAX_ROLLBACK).await?;
    let rollback = rollback(body.unwrap_or_default())?;
    let done = app.installer.roll_back(name, rollback).await.ok_or_else(ApiError::lost_work)?;
    let RollbackResult { from, to } = done?;
    tracing::info!(
        name: Message::ModelRolledBack.name(),
        from = %from.key, to = %to.key,
        "model rolled back to another version"
    );
    let residency = app.handle.residency().await?;
    let entries = app.handle.store().entries();
    let [from, to] = [from, to].map(|entry| describe(&entry, &entries, Some(&residency)));
    Ok(Json(wire::rollback::RollbackResponse { from, to }))
}

pub(super) async fn approve(
    State(app): State<App>,
    PathName(name): PathName,
) -> Result<Json<ApprovalResponse>, ApiError> {
    let done = app.installer.approve(name).await.ok_or_else(ApiError::lost_work)?;
    let Approval { from, approved, to } = done?;
    tracing::info!(
        name: Message::ModelApproved.name(),
        model = %approved.key,
        "version approved"
    );
    let residency = app.handle.residency().await?;
    let entries = app.handle.store().entries();
    let package = |entry: &StoreEntry| describe(entry, &entries, Some(&residency));
    Ok(Json(ApprovalResponse {
        approved: package(&approved),
        from: from.as_ref().map(package),
        to: package(&to),
    }))
}

fn rollback(body: wire::rollback::RollbackRequest) -> Result<RollbackTarget, ApiError> {
    match body {
        wire::rollback::RollbackRequest { to: None, clear: false } => Ok(RollbackTarget::Previous),
        wire::rollback::RollbackRequest { to: Some(version), clear: false } => {
            Ok(RollbackTarget::To(version))
        }
        wire::rollback::RollbackRequest { to: None, clear: true } => Ok(RollbackTarget::Clear),
        wire::rollback::RollbackRequest { to: Some(_), clear: true } => {
            let message = "\"to\" and \"clear\" exclude each other; send only one".to_owned();
            Err(ApiError::invalid(Some("clear".to_owned()), message))
        }
    }
}

pub(super) async fn verify(
    State(app): State<App>,
    visibility: Visibility,
    PathName(name): PathName,
) -> Result<Json<Package>, ApiError> {
    let entry = find(&app, &name)?;
    app.installer.verify(entry.key).await.ok_or_else(ApiError::lost_work)??;
    show(State(app), visibility, PathName(name)).await
}

/// Answers with a report about every file, the load and the self-test. A faulty model is no error.
pub(super) async fn validate(
    State(app): State<App>,
    PathName(name): PathName,
) -> Result<Json<ValidationReport>, ApiError> {
    let entry = find(&app, &name)?;
    let validation = app.installer.validate(entry.key.clone()).await?;
    let mut report = ValidationReport::new(Some(&entry.manifest), &validation);
    report.revision = Some(entry.record.manifest_digest.short());
    report.package_sha256 = Some(entry.record.package_digest.to_string());
    Ok(Json(report))
}

/// Streams the package, which is packed again from its verified contents.
pub(super) async fn export(
    State(app): State<App>,
    PathName(name): PathName,
) -> Result<Response, ApiError> {
    let entry = find(&app, &name)?;
    let store = std::sync::Arc::clone(app.handle.store());
    let key = entry.key.clone();
    let (manifest, contents) = tokio::task::spawn_blocking(move || store.read(&key)).await??;
    let (reader, writer) = tokio::io::duplex(64 << 10);
    // The task ends after the last byte, or when the client disconnects and the pipe breaks.
    tokio::task::spawn_blocking(move || {
        let written = write_package(&manifest, &contents, &|_, _| {}, SyncIoBridge::new(writer));
        if let Err(error) = written {
            tracing::warn!(
                name: Message::ExportFailed.name(),
                model = %entry.key, error = chain(&error),
                "package export ended before its last byte"
            );
        }
    });
    let body = Body::from_stream(ReaderStream::new(reader));
    Ok(([(header::CONTENT_TYPE, "application/zstd")], body).into_response())
}

fn find(app: &App, name: &str) -> Result<StoreEntry, ApiError> {
    let entries = app.handle.store().entries();
    entries
        .resolve(name)
        .cloned()
        .ok_or_else(|| ApiError::unknown_package(name.to_owned(), &entries))
}

pub(super) async fn describe_all(
    app: &App,
    visibility: &Visibility,
) -> Result<Vec<Package>, ApiError> {
    let residency = app.handle.residency().await?;
    let entries = visibility.entries(app);
    Ok(entries.iter().map(|entry| describe(entry, &entries, Some(&residency))).collect())
}

/// Returns the packages without a signature, as `id@version`, if keys are configured. They were
/// installed before there were keys. Bundled packages are not listed.
pub(super) fn unsigned(app: &App) -> Vec<String> {
    let store = app.handle.store();
    if !store.wants_signatures() {
        return Vec::new();
    }
    let entries = store.entries();
    let unsigned = entries
        .iter()
        .filter(|entry| entry.record.signer.is_none() && !entry.record.origin.is_bundled());
    unsigned.map(|entry| entry.key.name().to_owned()).collect()
}

/// Describes an installed package as [`describe`] does, with its files.
pub fn describe_with_files(
    entry: &StoreEntry,
    entries: &Entries,
    residency: Option<&BTreeMap<EntryKey, Residency>>,
) -> Package {
    let files = entry.manifest.files.iter().map(|member| PackageFile {
        name: member.path.to_string(),
        size: member.size,
        sha256: member.sha256.to_string(),
    });
    Package { files: files.collect(), ..describe(entry, entries, residency) }
}

/// Describes an installed package, one of `entries`. `residency` is `None` when no daemon runs that
/// could have the model in memory.
pub fn describe(
    entry: &StoreEntry,
    entries: &Entries,
    residency: Option<&BTreeMap<EntryKey, Residency>>,
) -> Package {
    let StoreEntry { key, manifest, record, accesses, disabled } = entry;
    let current = entries.resolve(manifest.id.as_str());
    let answered = entries.answered_by(entry);
    let mut problem = match &record.status {
        InstallStatus::Corrupt(reason) | InstallStatus::Quarantined(reason) => Some(reason.clone()),
        InstallStatus::Untested | InstallStatus::Available => None,
    };
    if let Some(disabled) = disabled {
        problem = Some(disabled.to_string());
    }
    let (mut resident_bytes, mut queued, mut arithmetic) = (0, 0, None);
    let residency = residency.map(|residency| match residency.get(key) {
        None => "absent",
        Some(Residency::Resident { weight_bytes, report, waiting, .. }) => {
            (resident_bytes, queued) = (*weight_bytes, *waiting);
            arithmetic = Some(Arithmetic {
                precision: report.precision.to_string(),
                isa: report.isa.to_owned(),
                reason: report.reason.clone(),
            });
            "resident"
        }
        Some(Residency::Failed(reason)) => {
            problem.get_or_insert_with(|| reason.clone());
            "failed"
        }
        Some(other) => other.name(),
    });
    Package {
        id: manifest.id.to_string(),
        version: manifest.version.to_string(),
        revision: record.manifest_digest.short(),
        current: current.is_some_and(|current| current.key == *key),
        awaits_approval: entries.is_waiting(entry),
        answers_for: answered.map(|corrupt| corrupt.manifest.version.to_string()),
        origin: match record.origin {
            Origin::Bundled { .. } => "bundled",
            Origin::Dropped { .. } => "dropped",
            Origin::Installed => "installed",
        }
        .to_owned(),
        status: match record.status {
            InstallStatus::Available if disabled.is_some() => "disabled",
            InstallStatus::Untested => "untested",
            InstallStatus::Available => "available",
            InstallStatus::Corrupt(_) => "corrupt",
            InstallStatus::Quarantined(_) => "quarantined",
        }
        .to_owned(),
        problem,
        residency: residency.map(str::to_owned),
        resident_bytes,
        arithmetic,
        waiting: queued,
        task: manifest.task().to_owned(),
        token_heads: manifest.token_heads(),
        dimensions: manifest.dimensions,
        matryoshka_dimensions: trained_dimensions(manifest).to_vec(),
        max_sequence_length: manifest.max_sequence_length,
        precision: manifest.precision.name().to_owned(),
        architecture: manifest.architecture.clone(),
        embedding_space: manifest.embedding_space(),
        prompts: manifest.prompts.clone(),
        languages: manifest.languages.clone(),
        license: manifest.license.clone(),
        source: manifest.source.clone(),
        source_revision: manifest.revision.clone(),
        files: Vec::new(),
        size_bytes: manifest.total_size(),
        package_sha256: record.package_digest.to_string(),
        manifest_sha256: record.manifest_digest.to_string(),
        signed_by: record.signer.as_ref().map(ToString::to_string),
        installed_at: record.installed_at.0,
        last_validated_at: record.last_validated_at.0,
        access_count: accesses.count(),
        last_access_at: accesses.last_access_at().map(|at| at.0),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn checksum_of_file_name_outside_ascii_is_accepted() {
        let name = "größe.model.tar.zst";
        let line = |file: &str| STANDARD.encode(format!("{}  {file}\n", "0".repeat(64)));
        let headers = |file: &str| {
            let name = HeaderValue::from_str(name).unwrap();
            let sum = HeaderValue::from_str(&line(file)).unwrap();
            let names = [NAME_HEADER, SHA256_HEADER].map(header::HeaderName::from_static);
            HeaderMap::from_iter(names.into_iter().zip([name, sum]))
        };
        assert!(sidecars(&headers(name)).is_ok());
        assert!(sidecars(&headers("other.model.tar.zst")).is_err());
    }

    #[test]
    fn file_name_that_is_not_utf8_is_rejected() {
        let mut headers = HeaderMap::new();
        headers.insert(NAME_HEADER, HeaderValue::from_bytes(b"gr\xf6\xdfe").unwrap());
        let error = sidecars(&headers).err().unwrap();
        assert_eq!(error.code(), "invalid_request");
        assert!(error.message().contains("the header x-caxton-file-name"), "{}", error.message());
    }
}
