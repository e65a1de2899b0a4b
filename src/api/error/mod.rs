//! Maps every error to a status, a code and a retry time for clients.
//!
//! Invariant: no match over an error of this crate has a `_` arm, so that a new error cannot get a
//! status by accident. Clients see the whole chain of an error that they can correct. Failures of
//! the appliance are logged, too.

mod models;
mod packages;
mod retry_hint;
mod service;

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::wire::{ErrorBody, ErrorResponse, LoadProgress};
use crate::base::errors::chain;
use crate::base::units::{Bytes, milliseconds};
use crate::models::catalog::Alias;
use crate::models::{MAX_RETRY_AFTER, ModelError};
use crate::package::Entries;
use crate::service::DRAINING;
use retry_hint::{MIN_DELAY, Overload};

pub(super) use retry_hint::RetryHints;
pub(super) use service::EXPECTED_SPACE;

/// Code of a request that exceeds the budget of bytes.
const TOO_MANY_BYTES: &str = "too_many_bytes";
/// Retry time for a limit that all requests or connections of a user share, if no other request was
/// refused.
const SHARED_LIMIT_RETRY_AFTER: Duration = Duration::from_millis(500);
/// Estimated time in which such a limit becomes free for one more request.
const SHARED_LIMIT_INTERVAL: Duration = Duration::from_millis(10);
/// Estimated time of one piece of work that waits for a permit.
const WORK_INTERVAL: Duration = Duration::from_millis(1);

/// A failed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    param: Option<String>,
    retry_after: Option<Duration>,
    /// Resource whose overload is the cause, so that retries are spread.
    overload: Option<Box<Overload>>,
    loading: Option<Box<LoadProgress>>,
    /// Accepted content-encodings, for a body with another one.
    accept_encoding: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: String) -> Self {
        Self {
            status,
            code,
            message,
            param: None,
            retry_after: None,
            overload: None,
            loading: None,
            accept_encoding: None,
        }
    }

    fn of(
        status: StatusCode,
        code: &'static str,
        error: &(dyn std::error::Error + 'static),
    ) -> Self {
        Self::new(status, code, chain(error))
    }

    fn with_retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait.clamp(MIN_DELAY, MAX_RETRY_AFTER)), ..self }
    }

    /// Adds the resource that refused the request. It holds `capacity` requests, and serves one in
    /// `interval`.
    fn with_overload(self, resource: &str, interval: Duration, capacity: usize) -> Self {
        let overload = Overload { resource: resource.to_owned(), interval, capacity };
        Self { overload: Some(Box::new(overload)), ..self }
    }

    /// Returns the error of a request with a wrong `param`.
    pub(super) fn invalid(param: Option<String>, message: String) -> Self {
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, "invalid_request", message) }
    }

    /// Returns the error of a body longer than `limit`. The limit is the value of `setting`, or a
    /// fixed limit of the route if `setting` is `None`.
    pub(super) fn body_too_large(limit: Bytes, setting: Option<&str>) -> Self {
        let message = match setting {
            Some(setting) => format!("the request body is longer than the {limit} of {setting}"),
            None => format!(
                "the request body is longer than the {limit} that this route accepts; send a \
                 shorter body"
            ),
        };
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    }

    /// Returns the error of a body that did not arrive completely within `waited`.
    pub(super) fn body_timeout(waited: Duration) -> Self {
        let message = format!(
            "the request body did not arrive within {} s; send the request again",
            waited.as_secs()
        );
        Self::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message)
    }

    /// Returns the error of a body with the content-encoding `found`. `accepted` are those that the
    /// route accepts.
    pub(super) fn coding_not_accepted(found: &str, accepted: &'static str) -> Self {
        let message = format!(
            "the request body has the content-encoding \"{found}\"; this route accepts {accepted}"
        );
        let error = Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "coding_not_accepted", message);
        Self { accept_encoding: Some(accepted), ..error }
    }

    /// Returns the error of a request with more than `max` inputs.
    pub(super) fn too_many_inputs(max: usize) -> Self {
        let message = format!("more than the {max} inputs that a request may have");
        let error = Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_inputs", message);
        Self { param: Some("input".to_owned()), ..error }
    }

    /// Returns the error of a request without text, for dialects that distinguish it from other
    /// invalid requests.
    pub(super) fn empty(param: String) -> Self {
        let message =
            format!("{param} is empty; expected at least one text, and none without characters");
        Self::new(StatusCode::BAD_REQUEST, "empty_input", message).with_param(param)
    }

    /// Returns the error of a request for the states or the text of too many tokens.
    pub(super) fn too_many_tokens(param: &str, found: usize, max: usize) -> Self {
        let message =
            format!("{param} has {found} tokens; this route takes at most {max} a request");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_tokens", message)
            .with_param(param.to_owned())
    }

    /// Returns the error of a request with too much text to show as tokens or to rank by keyword.
    /// `found` and `max` are in bytes.
    pub(super) fn too_much_text(param: &str, found: usize, max: usize) -> Self {
        let (found, max) = (Bytes(found as u64), Bytes(max as u64));
        let message = format!(
            "{param} has {found} of text, and a request to this route may have at most {max}; send \
             less text in a request"
        );
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_much_text", message)
            .with_param(param.to_owned())
    }

    /// Returns the error of a request for a task that no installed model can do.
    pub(super) fn wrong_task(message: String) -> Self {
        Self::new(StatusCode::FAILED_DEPENDENCY, "wrong_task", message)
    }

    /// Returns the error of a request that the daemon never serves, on a route that it has for the
    /// clients of a dialect. The message says how to reach the goal.
    pub(super) fn unsupported(message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "unsupported", message)
    }

    /// Returns the error of a request to download `name`, which is not among `entries`. Its
    /// beginning is the message of Ollama for a model that does not exist.
    pub(super) fn never_downloads(name: String, entries: &Entries) -> Self {
        let error = Self::unknown_package(name, entries);
        let message = format!(
            "pull model manifest: file does not exist: {}; the daemon never downloads: an \
             administrator copies the package of the model into packages.drop_directory, or runs \
             \"caxton model install\"",
            error.message
        );
        Self { message, ..error }
    }

    /// Returns the error of a text with more than `most` tokens, for clients that forbid
    /// truncation.
    pub(super) fn too_long(param: String, found: Option<usize>, most: usize) -> Self {
        let found = found.map_or_else(|| format!("more than {most}"), |found| found.to_string());
        let message = format!(
            "{param} has {found} tokens, and the model takes {most}; send less, or let its end be left out"
        );
        Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message).with_param(param)
    }

    /// Returns the error of a connection beyond the limit of `most`.
    pub(super) fn too_many_connections(most: usize) -> Self {
        let message = format!(
            "the daemon serves {most} connections already, the limit of socket.max_connections; \
             close idle connections, or retry later"
        );
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_connections", message)
            .with_retry_after(SHARED_LIMIT_RETRY_AFTER)
            .with_overload("connections", SHARED_LIMIT_INTERVAL, 1)
    }

    /// Returns the error of an event stream beyond the limit of the user or, with `is_shared`,
    /// beyond the limit of all users together. `held` streams count towards the limit.
    pub(super) fn too_many_streams(held: usize, is_shared: bool) -> Self {
        let (status, whose) = match is_shared {
            true => (StatusCode::SERVICE_UNAVAILABLE, "of all users"),
            false => (StatusCode::TOO_MANY_REQUESTS, "of this user"),
        };
        let message = format!(
            "{held} event streams {whose} are open already, which is the limit; close one, or poll \
             with follow=false"
        );
        Self::new(status, "too_many_event_streams", message)
            .with_retry_after(Duration::from_secs(10))
    }

    /// Returns the error of a request that exceeds the budget of `size` bytes. The user's requests
    /// in flight hold `held` bytes.
    pub(super) fn too_many_bytes(held: Bytes, size: Bytes) -> Self {
        let message = format!(
            "the requests in flight of this user hold {held} of the {size} for all users; send \
             smaller or fewer requests at a time, and read each answer completely"
        );
        Self::new(StatusCode::SERVICE_UNAVAILABLE, TOO_MANY_BYTES, message)
            .with_retry_after(SHARED_LIMIT_RETRY_AFTER)
            .with_overload("bytes", SHARED_LIMIT_INTERVAL, 1)
    }

    /// Returns the error of a user with too many requests that wait for a permit.
    pub(super) fn too_much_work(waiting: usize) -> Self {
        let message = format!(
            "{waiting} requests of this user are queued for a processor already; send fewer \
             requests at a time"
        );
        Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", message)
            .with_retry_after(Duration::from_secs(1))
            .with_overload("permits", WORK_INTERVAL, waiting)
    }

    /// Returns the error of an unknown route.
    pub(super) fn no_route(method: &str, path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "route_not_found", format!("there is no {method} {path}"))
    }

    /// Returns the error of a route that exists only for other methods.
    pub(super) fn no_method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not take {method}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
    }

    /// Returns the error of a caller that is not an administrator.
    pub(super) fn forbidden(uid: u32) -> Self {
        let message = format!(
            "user {uid} is not an administrator, and this route requires one; send the request as \
             root or as the daemon's own user, or add the user to socket.admins"
        );
        Self::new(StatusCode::FORBIDDEN, "not_an_admin", message)
    }

    /// Returns the error of a caller that names a tenant and is not an administrator.
    pub(super) fn tenant_not_yours(uid: u32) -> Self {
        let message = format!(
            "user {uid} is not an administrator and may not name a tenant in the header \
             x-caxton-tenant; omit the header to use the tenant of the user, or add the user to \
             socket.admins"
        );
        Self::new(StatusCode::FORBIDDEN, "tenant_not_allowed", message)
    }

    /// Returns the error of an administrator that names an unknown tenant.
    pub(super) fn unknown_tenant(name: &str, known: &[&str]) -> Self {
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let message = format!(
            "the header x-caxton-tenant names the tenant \"{name}\", which is not configured; \
             configured: {known}"
        );
        Self::invalid(Some("x-caxton-tenant".to_owned()), message)
    }

    /// Returns the error of a tenant that may not request `model`.
    pub(super) fn model_not_allowed(tenant: &str, model: &str) -> Self {
        let message = format!(
            "the tenant \"{tenant}\" may not request the model \"{model}\"; tenants.allowed_models \
             lists the models that it may request"
        );
        Self::new(StatusCode::FORBIDDEN, "model_not_allowed", message)
            .with_param("model".to_owned())
    }

    /// Returns the error of a tenant with `most` requests in flight. One of them should be finished
    /// after `wait`.
    pub(super) fn tenant_overloaded(tenant: &str, most: usize, wait: Duration) -> Self {
        let message = format!(
            "{most} requests of the tenant \"{tenant}\" are in flight already, the limit of \
             tenants.max_concurrent; retry when one of them has ended"
        );
        Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", message)
            .with_retry_after(wait)
            .with_overload(&format!("tenant {tenant}"), wait, most)
    }

    /// Adds to the error the entry of `additional_models` that it concerns.
    pub(super) fn with_additional_model(self, index: usize, name: &str) -> Self {
        let message = format!("the additional model \"{name}\": {}", self.message);
        Self { message, ..self }.with_param(format!("additional_models[{index}]"))
    }

    /// Adds to the message the alias by which the model was requested.
    pub(super) fn with_alias(self, alias: Option<&Alias>) -> Self {
        match alias {
            Some(alias) => {
                Self { message: format!("the alias \"{alias}\": {}", self.message), ..self }
            }
            None => self,
        }
    }

    /// Returns the error of a default model that is not ready.
    pub(super) fn not_ready(model: &str) -> Self {
        let message = format!("the default model \"{model}\" is not ready");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", message)
            .with_retry_after(Duration::from_secs(1))
    }

    /// Adds the degraded parts of the daemon to the message.
    pub(super) fn with_degraded(mut self, degraded: &[String]) -> Self {
        for part in degraded {
            self.message.push_str("; degraded: ");
            self.message.push_str(part);
        }
        self
    }

    /// Returns the error of a request whose work panicked, or was cancelled because the daemon is
    /// stopping.
    pub(super) fn lost_work() -> Self {
        let message = "the daemon did not finish the request because of an internal fault, or \
                       because it is stopping; the journal has the cause"
            .to_owned();
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }

    /// Returns the error of a package that is not among `entries`.
    pub(super) fn unknown_package(name: String, entries: &Entries) -> Self {
        ModelError::unknown(name, entries).into()
    }

    /// Returns the code of the error, for programs.
    pub(super) fn code(&self) -> &'static str {
        self.code
    }

    /// Sets the field of the request that the error concerns.
    pub(super) fn with_param(self, param: String) -> Self {
        Self { param: Some(param), ..self }
    }

    /// Returns the status. A dialect may replace it.
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns whether the request is valid but no model can answer it now. Ranking can then use
    /// keywords.
    pub(super) fn is_degraded(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE
            && ![DRAINING, TOO_MANY_BYTES].contains(&self.code)
    }

    /// Returns the message, preceded by the name of the field if the message does not contain it.
    /// For dialects whose errors are a single text.
    pub(super) fn full_message(&self) -> String {
        let Self { param, message, .. } = self;
        match param {
            // Search only for the name before the bracket: for `input[1]` the message may contain
            // `input 1`.
            Some(param) if !param.split('[').take(1).any(|name| message.contains(name)) => {
                format!("{param}: {message}")
            }
            _ => message.clone(),
        }
    }

    /// Returns the message, for people.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// Returns the error in OpenAI's format.
    pub(super) fn to_body(&self) -> ErrorBody {
        ErrorBody {
            message: self.message.clone(),
            kind: self.kind().to_owned(),
            param: self.param.clone(),
            code: self.code.to_owned(),
            loading: self.loading.as_deref().cloned(),
        }
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }
}

/// Sets both headers with a retry time.
fn set_retry_after(headers: &mut HeaderMap, wait: Duration) {
    // Round up to whole seconds: a client that retries too early is refused again.
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    let millis = milliseconds(wait);
    headers.insert(HeaderName::from_static("retry-after-ms"), HeaderValue::from(millis));
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error = self.to_body();
        let mut response = (self.status, Json(ErrorResponse { error })).into_response();
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after {
            set_retry_after(headers, wait);
        } else if self.status.is_server_error() {
            // OpenAI's clients retry after every 5xx. An error without a retry time is not
            // temporary.
            let name = HeaderName::from_static("x-should-retry");
            headers.insert(name, HeaderValue::from_static("false"));
        }
        if let Some(accepted) = self.accept_encoding {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(accepted));
        }
        // Dialects with another error format, and the metrics, read the error from here.
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_rounded_up() {
        let wait = Duration::from_millis(1_200);
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", String::new());
        let response = error.with_retry_after(wait).into_response();
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["retry-after-ms"], "1200");
    }

    #[test]
    fn route_limit_error_does_not_name_the_setting() {
        let fixed = ApiError::body_too_large(Bytes(4096), None).message;
        assert!(fixed.contains("4.0 KiB") && !fixed.contains("socket.max_body"), "{fixed}");
        let setting = ApiError::body_too_large(Bytes(4096), Some("socket.max_body")).message;
        assert!(setting.contains("4.0 KiB of socket.max_body"), "{setting}");
    }

    #[test]
    fn forbidden_error_fits_reads_and_changes() {
        let message = ApiError::forbidden(7).message;
        assert!(message.starts_with("user 7 is not an administrator"), "{message}");
        assert!(message.contains("socket.admins") && !message.contains("change"), "{message}");
    }

    #[test]
    fn server_error_without_delay_forbids_retry() {
        let response = ApiError::lost_work().into_response();
        assert_eq!(response.headers()["x-should-retry"], "false");
    }
}
