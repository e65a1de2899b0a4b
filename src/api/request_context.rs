//! Identifies the caller of a request, and reads the headers that all dialects accept.
//!
//! Defines the names of these headers and the id of a request. Checks the form of their values.
//! Other modules use the values.

use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

use super::App;
use super::error::{ApiError, EXPECTED_SPACE};
use super::peer_credentials::{ConnectionId, PeerCredentials};
use super::visibility::Visibility;
use crate::config::TenantSettings;
use crate::models::{ModelUser, Priority, REQUEST_TIMEOUT};
use crate::package::Entries;
use crate::service::{CallContext, InFlightGuard, Tenant};

/// Header with the id of a request, which the answer returns.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Header with the class of the request: `interactive` or `bulk`. If absent, the number of tokens
/// decides.
const PRIORITY: HeaderName = HeaderName::from_static("x-caxton-priority");
/// Header that allows or forbids a fallback: `true` or `false`. If absent, the settings decide.
const ALLOW_FALLBACK: HeaderName = HeaderName::from_static("x-caxton-allow-fallback");
/// Header with the timeout of the request in milliseconds, at most [`REQUEST_TIMEOUT`].
const TIMEOUT: HeaderName = HeaderName::from_static("x-caxton-timeout-ms");
/// Header with the tenant for which an administrator sends the request. If absent, the user of the
/// connection determines the tenant.
pub(super) const TENANT: HeaderName = HeaderName::from_static("x-caxton-tenant");
/// Longest name of an embedding space that a request expects.
const MAX_SPACE: usize = 256;
/// Longest id of a request that is returned.
const MAX_REQUEST_ID: usize = 128;

/// Peer of a connection, and whether the request acts for a named tenant.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestSender {
    pub(super) peer: PeerCredentials,
    /// Whether the request names a tenant. It then has only the rights of that tenant, even if its
    /// sender is an administrator.
    pub(super) names_tenant: bool,
}

impl RequestSender {
    fn of(parts: &Parts) -> Self {
        // Give a request without a peer no rights, so that a forgotten extension does no harm.
        let peer = parts
            .extensions
            .get::<PeerCredentials>()
            .copied()
            .unwrap_or(PeerCredentials::UNPRIVILEGED);
        Self { peer, names_tenant: parts.headers.contains_key(&TENANT) }
    }

    /// Returns whether the sender is an administrator that does not act for a tenant. May read the
    /// user database on the blocking pool.
    pub(super) async fn is_admin(self, app: &App) -> bool {
        !self.names_tenant && app.tenants.is_admin(self.peer).await
    }
}

/// Caller of a request, with the options from its headers.
#[derive(Clone, Debug)]
pub(super) struct RequestContext {
    /// Context for the calls of the embedding service.
    pub(super) call: CallContext,
    /// Peer that sent the request, and whether it acts for a tenant.
    pub(super) sender: RequestSender,
    /// Time when the request was received.
    pub(super) began: Instant,
}

impl RequestContext {
    /// Returns the context with the option `allow_fallback` of the body, which overrides the
    /// header.
    pub(super) fn with_fallback(self, allow_fallback: Option<bool>) -> Self {
        let allow_fallback = allow_fallback.or(self.call.allow_fallback);
        Self { call: CallContext { allow_fallback, ..self.call }, ..self }
    }
}

/// Id of a request, for dialects that have it in the body of the answer.
#[derive(Debug)]
pub(super) struct RequestId(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for RequestId {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        let id = parts.headers.get(&REQUEST_ID).and_then(|id| id.to_str().ok());
        Ok(Self(id.unwrap_or_default().to_owned()))
    }
}

impl FromRequestParts<App> for RequestContext {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let connection = parts.extensions.get::<ConnectionId>().map_or(0, |id| id.0);
        let headers = &parts.headers;
        let allow_fallback = match header(headers, &ALLOW_FALLBACK)? {
            None => None,
            Some("true") => Some(true),
            Some("false") => Some(false),
            Some(other) => return Err(wrong(&ALLOW_FALLBACK, other, "\"true\" or \"false\"")),
        };
        let priority = match header(headers, &PRIORITY)? {
            None => None,
            Some("interactive") => Some(Priority::Interactive),
            Some("bulk") => Some(Priority::Bulk),
            Some(other) => return Err(wrong(&PRIORITY, other, "\"interactive\" or \"bulk\"")),
        };
        let expected_space = match header(headers, &HeaderName::from_static(EXPECTED_SPACE))? {
            None => None,
            Some(space) if (1..=MAX_SPACE).contains(&space.len()) => Some(space.into()),
            Some(space) => {
                let name = HeaderName::from_static(EXPECTED_SPACE);
                let found: String = space.chars().take(MAX_SPACE).collect();
                return Err(wrong(&name, &found, "the name of an embedding space"));
            }
        };
        let timeout = match header(headers, &TIMEOUT)? {
            None => REQUEST_TIMEOUT,
            Some(text) => match text.parse() {
                Ok(millis) => Duration::from_millis(millis).min(REQUEST_TIMEOUT),
                Err(_no_number) => return Err(wrong(&TIMEOUT, text, "whole milliseconds")),
            },
        };
        let began = Instant::now();
        let deadline = began + timeout;
        let sender = RequestSender::of(parts);
        let tenant = tenant(parts, app).await?;
        let tenant = tenant.map(InFlightGuard::begin).transpose()?.map(Arc::new);
        let uid = sender.peer.uid;
        // Count a request for a named tenant as the tenant's own, and not as its sender's.
        let user = match tenant.as_deref().filter(|_| sender.names_tenant) {
            Some(guard) => ModelUser::of_tenant(guard.tenant().flow()),
            None => ModelUser::of_uid(uid),
        };
        let charge = Arc::new(app.budget.request(uid));
        let call = CallContext {
            connection,
            uid,
            user,
            charge,
            allow_fallback,
            expected_space,
            priority,
            tenant,
            deadline,
        };
        Ok(Self { call, sender, began })
    }
}

/// Tenant of a caller that lists models. Such a request does not count as in flight.
#[derive(Debug)]
pub(super) struct TenantContext(pub(super) Option<Arc<Tenant>>);

impl TenantContext {
    /// Returns the models that can be requested. A restricted tenant gets only its models.
    pub(super) fn visible_models(&self, app: &App) -> Entries {
        app.handle.catalog().servable(self.settings())
    }

    /// Returns the name of the model for requests without a model name. Canaries are ignored.
    pub(super) fn default_model(&self, app: &App) -> String {
        app.handle.catalog().default_model(self.settings())
    }

    /// Returns the settings of the tenant.
    pub(super) fn settings(&self) -> Option<&TenantSettings> {
        self.0.as_deref().map(|tenant| &tenant.settings)
    }
}

impl FromRequestParts<App> for TenantContext {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        tenant(parts, app).await.map(Self)
    }
}

impl FromRequestParts<App> for Visibility {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let is_admin = RequestSender::of(parts).is_admin(app).await;
        let tenant = tenant(parts, app).await?;
        Ok(Self::new(app, tenant, is_admin))
    }
}

async fn tenant(parts: &Parts, app: &App) -> Result<Option<Arc<Tenant>>, ApiError> {
    let RequestSender { peer, .. } = RequestSender::of(parts);
    app.tenants.find(peer, header(&parts.headers, &TENANT)?).await
}

fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, ApiError> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let value = value.to_str().map_err(|_not_ascii| {
        let message = format!(
            "the header {name} has a character that is not visible ASCII; send only visible ASCII"
        );
        ApiError::invalid(Some(name.to_string()), message)
    })?;
    Ok(Some(value))
}

fn wrong(name: &HeaderName, found: &str, expected: &str) -> ApiError {
    let message = format!("the header {name} is \"{found}\"; expected {expected}");
    ApiError::invalid(Some(name.to_string()), message)
}

/// Adds the id of the request to the request and to its answer: the client's own id, or a new one.
pub(super) async fn give_request_id(mut request: Request, next: Next) -> Response {
    let id = request.headers().get(&REQUEST_ID).filter(|id| id.len() <= MAX_REQUEST_ID);
    let id = id.cloned().unwrap_or_else(new_request_id);
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let mut response = next.run(request).await;
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

fn new_request_id() -> HeaderValue {
    static RUN: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0));
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let id = format!("{:016x}-{}", *RUN, NEXT.fetch_add(1, Ordering::Relaxed));
    // The id contains only hexadecimal digits and a hyphen: the conversion cannot fail.
    HeaderValue::try_from(id).unwrap_or_else(|_never| HeaderValue::from_static("none"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_outside_ascii_is_named_in_the_error() {
        let mut headers = HeaderMap::new();
        assert_eq!(header(&headers, &TENANT), Ok(None));
        headers.insert(TENANT, HeaderValue::from_static("a"));
        assert_eq!(header(&headers, &TENANT), Ok(Some("a")));
        headers.insert(TENANT, HeaderValue::from_bytes("größe".as_bytes()).unwrap());
        let error = header(&headers, &TENANT).unwrap_err();
        assert_eq!(error.code(), "invalid_request");
        assert!(error.message().contains("the header x-caxton-tenant"), "{}", error.message());
        assert!(error.message().contains("ASCII"), "{}", error.message());
    }
}
