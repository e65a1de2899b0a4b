//! Serves HTTP/1.1: converts requests into calls of the embedding service and of the models, and
//! results and errors into answers.
//!
//! Defines the routes, the limits on requests, and the check for administrators. Opens no socket:
//! the daemon passes connections to it. The `Host` header is ignored, because the permissions of
//! the socket's path decide who may connect.
//!
//! Invariant: every answer that is not a success is JSON with a nested `error`. The dialects with
//! another error format use theirs on all of their routes.

mod cohere;
mod configuration;
mod content_encoding;
mod error;
mod events;
mod health;
mod input;
mod keep_alive;
mod keyword;
mod memory_admin;
mod metrics;
mod ollama;
mod openai;
mod packages;
mod peer_credentials;
mod rank;
mod request_context;
mod rerank;
mod response;
mod streams;
mod tei;
mod tenants;
mod text_encoding;
mod usage;
mod validation;
mod visibility;
pub mod wire;

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::models::ManagerHandle;
use crate::models::ingest::install::Installer;
use crate::models::ingest::intake::Intake;
use crate::service::{Budget, EmbeddingService};
use crate::telemetry::events::Events;
use crate::telemetry::log::{self, Message};
use crate::telemetry::metrics::Metrics;
use error::{ApiError, RetryHints};

pub use configuration::describe as describe_value;
pub use metrics::ROUTES;
pub use packages::{
    ALLOW_DOWNGRADE, MINISIG_HEADER, NAME_HEADER, REPLACE, SHA256_HEADER, describe,
    describe_with_files,
};
pub use peer_credentials::{ConnectionId, PeerCredentials};
pub use streams::{EndlessBody, Streams};
pub use tenants::Tenants;

/// Delay before a connection beyond the limit is refused. Without the delay, 2,000 clients that
/// retried at once halved the throughput of the served connections.
const REFUSAL_PAUSE: Duration = Duration::from_millis(50);

/// Shared state of all routes. Each layer of the router clones it for each request, which costs one
/// reference count.
#[derive(Clone, Debug)]
pub struct App(Arc<AppParts>);

impl From<AppParts> for App {
    fn from(parts: AppParts) -> Self {
        Self(Arc::new(parts))
    }
}

impl Deref for App {
    type Target = AppParts;

    fn deref(&self) -> &AppParts {
        &self.0
    }
}

/// Contents of an [`App`].
#[derive(Debug)]
pub struct AppParts {
    /// Computes vectors.
    pub service: EmbeddingService,
    /// Access to the state of the models.
    pub handle: ManagerHandle,
    /// Installs and removes packages.
    pub installer: Installer,
    /// Packages on their way.
    pub intake: watch::Receiver<Arc<Intake>>,
    /// Settings that apply now.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// Settings at the start of the daemon. A key that needs a restart keeps the value that it has
    /// here.
    pub initial_settings: Arc<Settings>,
    /// Files of the configuration, and their problems.
    pub configuration: watch::Receiver<wire::Configuration>,
    /// Tenants, which also know the administrators.
    pub tenants: Arc<Tenants>,
    /// Restrictions that the daemon put on itself.
    pub sandbox: wire::sandbox::Sandbox,
    /// Start of the daemon.
    pub started: Instant,
    /// Threads that compute one model.
    pub threads: usize,
    /// Counters and histograms.
    pub metrics: Metrics,
    /// Channel to which events are sent.
    pub events: Events,
    /// Limit of the bytes that requests in flight may hold.
    pub budget: Budget,
    /// Open event streams.
    pub streams: Streams,
    /// Cancelled when the daemon drains: answers without an end, such as event streams, end then.
    pub draining: CancellationToken,
}

/// Builds the router with all routes. Requests must carry a [`PeerCredentials`] as an extension.
pub fn router(app: App) -> Router {
    let admin = Router::new()
        .route("/api/packages", post(packages::install))
        .route("/api/packages/{name}", delete(packages::remove))
        .route("/api/packages/{name}/verify", post(packages::verify))
        .route("/api/packages/{name}/validate", post(packages::validate))
        .route("/api/packages/{name}/export", get(packages::export))
        .route("/api/packages/{name}/rollback", post(packages::roll_back))
        .route("/api/packages/{name}/approve", post(packages::approve))
        .route("/api/configuration", get(configuration::active))
        .route("/api/memory/flush", post(memory_admin::flush))
        .route("/api/memory/limit", put(memory_admin::set_limit))
        .route("/api/memory/load", post(memory_admin::load_all))
        .route("/api/memory/models/{name}/load", post(memory_admin::load))
        .route("/api/memory/models/{name}", delete(memory_admin::unload))
        .route_layer(middleware::from_fn_with_state(app.clone(), only_admins));
    Router::new()
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{name}", get(openai::model))
        .route("/v1/rank", post(rank::rank))
        .route("/", tei::at_root().get(ollama::greeting))
        .route("/embeddings", post(openai::embeddings))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/status", get(health::status))
        .route("/metrics", get(metrics::scrape))
        .route("/v1/events", get(events::follow))
        .route("/api/memory/status", get(memory_admin::status))
        .route("/api/packages", get(packages::list))
        .route("/api/packages/{name}", get(packages::show))
        .route("/api/models/stats", get(usage::stats))
        .route("/api/models/recommendations", get(usage::recommendations))
        .merge(tei::routes())
        .merge(cohere::routes())
        .merge(rerank::routes())
        .merge(admin)
        .merge(ollama::router())
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(RequestObserver::new(&app), observe_request))
        .with_state(app)
}

/// Returns the answer to a request whose handler panicked.
pub fn panic_response() -> Response {
    ApiError::lost_work().into_response()
}

/// Builds the router for connections beyond the limit of `most`: it serves the health routes and
/// refuses all others with 503. Closes the connection after one answer. The refusal is delayed, so
/// that clients which retry at once do not take the processor from connections that are served.
pub fn refusal_router(app: App, most: usize) -> Router {
    let refuse = move || async move {
        tokio::time::sleep(REFUSAL_PAUSE).await;
        ApiError::too_many_connections(most)
    };
    let close = |mut response: Response| async {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    };
    Router::new()
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .merge(tei::health_routes())
        .fallback(refuse)
        .layer(middleware::map_response(close))
        .layer(middleware::from_fn_with_state(RequestObserver::new(&app), observe_request))
        .with_state(app)
}

/// State of the layer around all routes.
#[derive(Clone, Debug)]
struct RequestObserver {
    app: App,
    hints: RetryHints,
}

impl RequestObserver {
    fn new(app: &App) -> Self {
        Self { app: app.clone(), hints: RetryHints::default() }
    }
}

/// Decodes the body of each request, counts the request, gives it an id, spreads the retries of
/// refused ones, and holds its charge until the answer is written. All this is one layer, because
/// each layer is cloned with its contents for every request.
async fn observe_request(
    State(RequestObserver { app, hints }): State<RequestObserver>,
    request: Request,
    next: Next,
) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let request = content_encoding::decode_body(&app, request);
    let answer = request_context::give_request_id(request, next);
    let response = metrics::count(app.metrics.clone(), route, answer).await;
    let response = hints.apply(response, || app.settings.borrow().socket.overload_status);
    response::hold_until_written(response)
}

async fn no_route(method: Method, uri: Uri) -> ApiError {
    ApiError::no_route(method.as_str(), uri.path())
}

async fn no_method(method: Method, uri: Uri) -> ApiError {
    ApiError::no_method(method.as_str(), uri.path())
}

async fn only_admins(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    // Give a request without a peer no rights, so that a forgotten extension does no harm.
    let peer = request
        .extensions()
        .get::<PeerCredentials>()
        .copied()
        .unwrap_or(PeerCredentials::UNPRIVILEGED);
    if !app.tenants.is_admin(peer).await {
        let PeerCredentials { uid, gid, pid } = peer;
        let method = request.method();
        // Log the registered path and not the path of the request, which the client controls.
        let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
        if let Some(suppressed) = log::admit_refusal(Message::AccessRefused, uid) {
            tracing::warn!(
                name: Message::AccessRefused.name(),
                uid, gid, pid, %method, path, suppressed,
                "request refused: the user is not an administrator"
            );
        }
        return Err(ApiError::forbidden(uid));
    }
    Ok(next.run(request).await)
}
