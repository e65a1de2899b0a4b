//! Answers requests for changes that Ollama makes for every client, and Caxton only for
//! administrators: `/api/pull`, `/api/push`, `/api/create`, `/api/copy` and `/api/delete`.
//!
//! Clients pull a model to be sure that it is there. For an installed model this succeeds.
//! Everything else is refused with the way to reach the goal.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::MAX_SMALL;
use super::listing::requested_entry;
use crate::api::App;
use crate::api::error::ApiError;
use crate::api::input::{BodyLimit, read_small_json};
use crate::api::request_context::TenantContext;
use crate::api::wire::ollama::{PullProgress, PullRequest};

/// Content type of an answer with one object a line.
const NDJSON: &str = "application/x-ndjson";

pub(super) async fn pull(
    State(app): State<App>,
    viewer: TenantContext,
    body: Body,
) -> Result<Response, ApiError> {
    let limit = BodyLimit::smaller(app.settings.borrow().socket.max_body, MAX_SMALL);
    let request: PullRequest = read_small_json(body, limit).await?;
    let is_streamed = request.stream != Some(false);
    let asked = [request.model, request.name];
    let entry = requested_entry(&app, &viewer, asked, ApiError::never_downloads)?;
    let step = |status: String| PullProgress { status, ..PullProgress::default() };
    let success = step("success".to_owned());
    if !is_streamed {
        return Ok(Json(success).into_response());
    }
    let size = entry.manifest.total_size();
    let present = PullProgress {
        digest: Some(format!("sha256:{}", entry.record.package_digest)),
        total: Some(size),
        completed: Some(size),
        ..step(format!("pulling {}", entry.record.package_digest.short()))
    };
    let mut lines = Vec::new();
    for progress in [step("pulling manifest".to_owned()), present, success] {
        serde_json::to_writer(&mut lines, &progress).map_err(|_never| ApiError::lost_work())?;
        lines.push(b'\n');
    }
    Ok(([(header::CONTENT_TYPE, NDJSON)], lines).into_response())
}

pub(super) async fn push() -> ApiError {
    refused("/api/push", "the daemon never uploads; \"caxton model export\" writes a package")
}

pub(super) async fn create() -> ApiError {
    refused("/api/create", "\"caxton model pack\" makes a package of the directory of a model")
}

pub(super) async fn copy() -> ApiError {
    refused("/api/copy", "aliases in the configuration give a model another name")
}

pub(super) async fn delete() -> ApiError {
    let way = "an administrator removes a model with \"caxton model remove\"";
    refused("/api/delete", way)
}

fn refused(route: &str, way: &str) -> ApiError {
    ApiError::unsupported(format!("{route} changes nothing here: {way}"))
}
