//! Upload of a package to the daemon.

use std::path::{Path, PathBuf};

use anyhow::Context;
use axum::body::{Body, Bytes};
use axum::http::Request;
use base64::Engine;
use base64::prelude::BASE64_STANDARD as STANDARD;
use futures_util::TryStreamExt;
use tokio_util::io::ReaderStream;

use super::client::Client;
use super::{file_name, progress};
use crate::api::wire::InstalledPackage;
use crate::api::{ALLOW_DOWNGRADE, MINISIG_HEADER, NAME_HEADER, REPLACE, SHA256_HEADER};
use crate::files::{self, FileError};
use crate::package::{Consent, SIDECARS};

/// Sends a package and its sidecars to the daemon.
pub(super) async fn upload(
    client: &mut Client,
    path: &Path,
    consent: Consent,
) -> anyhow::Result<InstalledPackage> {
    // The same rule as in the drop directory: symbolic links are not followed, and a FIFO is
    // rejected.
    let file = files::open_regular(path)?;
    let length = file.metadata().map_err(FileError::new("examine", path))?.len();
    let bar = progress::bytes(length, "sending");
    let sent = bar.clone();
    let stream = ReaderStream::new(tokio::fs::File::from_std(file))
        .inspect_ok(move |chunk: &Bytes| sent.inc(chunk.len() as u64));
    let Consent { replace, allow_downgrade } = consent;
    let to = format!("/api/packages?{REPLACE}={replace}&{ALLOW_DOWNGRADE}={allow_downgrade}");
    let mut request = Request::post(to).header(NAME_HEADER, file_name(path));
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
    serde_json::from_slice(&body).context("the daemon's answer to the upload is not valid")
}
