//! Who asks: the connection, and what a request says of itself in headers that every dialect takes.
//!
//! Owns the names of these headers and the id of a request. What they say is checked here; what follows from it is
//! decided elsewhere.

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
use super::budget::Charge;
use super::error::ApiError;
use super::peer::Peer;
use super::sight::Sight;
use super::tenants::{Tenant, Visit};
use crate::config::TenantSettings;
use crate::models::{Flow, Owner, Priority, REQUEST_TIMEOUT, Ticket, User};

/// The id of a request, given back with its answer.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// `interactive` or `bulk`; by the number of tokens when absent.
const PRIORITY: HeaderName = HeaderName::from_static("x-caxton-priority");
/// `true` or `false`: whether another model may answer. As the settings say when absent.
const ALLOW_FALLBACK: HeaderName = HeaderName::from_static("x-caxton-allow-fallback");
/// After how many milliseconds nobody waits for the answer any more.
const TIMEOUT: HeaderName = HeaderName::from_static("x-caxton-timeout-ms");
/// The tenant that a trusted user asks for; by the connection's user when absent.
pub(super) const TENANT: HeaderName = HeaderName::from_static("x-caxton-tenant");
/// Longest id of a request that is given back.
const MAX_REQUEST_ID: usize = 128;

/// A connection, for as long as the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionId(u64);

impl ConnectionId {
    /// One that no other connection has.
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Who is on the other end of a connection, and whether a request of theirs is in another's name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sender {
    pub(super) peer: Peer,
    /// Whether the request names a tenant: it may what that tenant may, and no more.
    pub(super) names_tenant: bool,
}

impl Sender {
    fn of(parts: &Parts) -> Self {
        // Without a peer the request sees nothing: the safe side.
        let peer = parts.extensions.get::<Peer>().copied().unwrap_or(Peer::STRANGER);
        Self { peer, names_tenant: parts.headers.contains_key(&TENANT) }
    }

    /// Returns whether this is an administrator who speaks for themselves. May ask the user database, off the runtime.
    pub(super) async fn is_admin(self, app: &App) -> bool {
        !self.names_tenant && app.tenants.is_admin(self.peer).await
    }
}

/// Who asks, and how.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// Its connection: requests of one do not take the turns of others.
    pub(super) connection: u64,
    /// Its user: requests of one do not take the turns of other users.
    pub(super) uid: u32,
    /// What the request holds of the budget of bytes, until the last copy of this is dropped and its answer written.
    pub(super) charge: Arc<Charge>,
    /// Whether another model than the one asked for may answer; as the settings say when absent.
    pub(super) allow_fallback: Option<bool>,
    /// Before or after others; by the number of tokens when absent.
    pub(super) priority: Option<Priority>,
    /// Who is on the other end, and in whose name.
    pub(super) sender: Sender,
    /// The tenant whose request it is. It counts as in flight until the last copy of this is dropped.
    pub(super) tenant: Option<Arc<Visit>>,
    /// When the request was read.
    pub(super) began: Instant,
    /// When nobody waits for the answer any more.
    pub(super) deadline: Instant,
}

impl Caller {
    /// Returns the user that the request is counted for.
    pub(super) fn user(&self) -> User {
        let tenant = self.tenant.as_deref().filter(|_| self.sender.names_tenant);
        tenant.map_or_else(
            || User::of_uid(self.sender.peer.uid),
            |visit| User::of_tenant(visit.tenant().flow().0),
        )
    }

    /// What the request brings along to a model's queue.
    pub(super) fn ticket(&self) -> Ticket {
        let tenant = self.tenant.as_deref().map(Visit::tenant);
        let own_queue = tenant.filter(|tenant| tenant.settings.dedicated_queue);
        Ticket {
            flow: Flow {
                owner: tenant
                    .map_or(Owner::User(self.uid), |tenant| Owner::Tenant(tenant.flow().0)),
                connection: self.connection,
            },
            priority: self.priority,
            deadline: self.deadline,
            tenant: own_queue.map(|tenant| Arc::clone(&tenant.name)),
            weight: tenant.map_or(TenantSettings::PRIORITY, |tenant| tenant.settings.priority),
        }
    }
}

impl FromRequestParts<App> for Caller {
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
        let timeout = match header(headers, &TIMEOUT)? {
            None => REQUEST_TIMEOUT,
            Some(text) => match text.parse() {
                Ok(millis) => Duration::from_millis(millis).min(REQUEST_TIMEOUT),
                Err(_no_number) => return Err(wrong(&TIMEOUT, text, "whole milliseconds")),
            },
        };
        let began = Instant::now();
        let deadline = began + timeout;
        let sender = Sender::of(parts);
        let tenant = tenant(parts, app).await?;
        let tenant = tenant.map(Visit::begin).transpose()?.map(Arc::new);
        let uid = parts.extensions.get::<Peer>().unwrap_or(&Peer::STRANGER).uid;
        let charge = Arc::new(app.budget.request(uid));
        Ok(Self {
            connection,
            uid,
            charge,
            allow_fallback,
            priority,
            sender,
            tenant,
            began,
            deadline,
        })
    }
}

/// Who asks what there is: the tenant, of which this is no request in flight.
#[derive(Debug)]
pub(super) struct Viewer(pub(super) Option<Arc<Tenant>>);

impl FromRequestParts<App> for Viewer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        tenant(parts, app).await.map(Self)
    }
}

impl FromRequestParts<App> for Sight {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let is_admin = Sender::of(parts).is_admin(app).await;
        let tenant = tenant(parts, app).await?;
        Ok(Self::new(app, tenant, is_admin))
    }
}

async fn tenant(parts: &Parts, app: &App) -> Result<Option<Arc<Tenant>>, ApiError> {
    let Sender { peer, .. } = Sender::of(parts);
    app.tenants.find(peer, header(&parts.headers, &TENANT)?).await
}

fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, ApiError> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let value = value.to_str().map_err(|error| {
        ApiError::invalid(Some(name.to_string()), format!("the header {name}: {error}"))
    })?;
    Ok(Some(value))
}

fn wrong(name: &HeaderName, found: &str, expected: &str) -> ApiError {
    let message = format!("the header {name} is \"{found}\"; expected {expected}");
    ApiError::invalid(Some(name.to_string()), message)
}

/// Gives every answer the id of its request: the client's own, or a new one.
pub(super) async fn give_request_id(request: Request, next: Next) -> Response {
    let id = request.headers().get(&REQUEST_ID).filter(|id| id.len() <= MAX_REQUEST_ID);
    let id = id.cloned().unwrap_or_else(new_request_id);
    let mut response = next.run(request).await;
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

fn new_request_id() -> HeaderValue {
    static RUN: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0));
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let id = format!("{:016x}-{}", *RUN, NEXT.fetch_add(1, Ordering::Relaxed));
    // Hexadecimal digits and a hyphen are no other than visible ASCII.
    HeaderValue::try_from(id).unwrap_or_else(|_never| HeaderValue::from_static("none"))
}
