//! The endpoint: HTTP/1.1 requests become leases and jobs, results and failures become answers.
//!
//! Owns the routes, the limits on what a client may send, and who may change the appliance. It opens no socket: the
//! daemon hands it connections. Any `Host` header is fine, since the path to the socket decides who may ask.
//!
//! Invariant: every answer that is not a success is JSON with a nested `error`, on every route but those of a dialect
//! with a shape of its own, where it has that shape.

mod budget;
mod caller;
mod configuration;
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
mod peer;
mod rank;
mod request;
mod sight;
mod streams;
mod target;
mod tei;
mod tenants;
mod tokenize;
mod turn;
mod usage;
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
use crate::events::Events;
use crate::log::{self, Message};
use crate::metrics::Metrics;
use crate::models::Handle;
use crate::models::install::Installer;
use error::ApiError;

pub use budget::Budget;
pub use caller::ConnectionId;
pub use configuration::describe as describe_value;
pub use metrics::ROUTES;
pub use packages::{
    ALLOW_DOWNGRADE, MINISIG_HEADER, NAME_HEADER, REPLACE, SHA256_HEADER, describe,
};
pub use peer::Peer;
pub use streams::{Endless, Streams};
pub use tenants::Tenants;
pub use turn::Places;

/// How long a connection beyond the limit waits for its refusal. Of 2,000 clients that came again at once, refusals
/// without it took half of the throughput of those that were served.
const REFUSAL_PAUSE: Duration = Duration::from_millis(50);

/// What every route may use. Every layer of the router clones it for every request: that is one count.
#[derive(Clone, Debug)]
pub struct App(Arc<Parts>);

impl From<Parts> for App {
    fn from(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// What an [`App`] is made of.
#[derive(Debug)]
pub struct Parts {
    /// The way to the models.
    pub handle: Handle,
    /// The way to install and remove packages.
    pub installer: Installer,
    /// The settings that hold now.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// Those that the daemon started with: a key that needs a restart has its value of then.
    pub started_with: Arc<Settings>,
    /// Where they came from and what was wrong.
    pub configuration: watch::Receiver<wire::Configuration>,
    /// Who asks.
    pub tenants: Arc<Tenants>,
    /// What the daemon has taken from itself.
    pub sandbox: wire::sandbox::Sandbox,
    /// When the daemon started.
    pub started: Instant,
    /// Threads that compute one model.
    pub threads: usize,
    /// Where things are counted.
    pub metrics: Metrics,
    /// Where things are told.
    pub events: Events,
    /// What requests in flight may hold.
    pub budget: Budget,
    /// Whose turn it is to be worked for.
    pub places: Places,
    /// Who follows events.
    pub streams: Streams,
    /// No request is taken any more: answers that have no end of their own end now.
    pub draining: CancellationToken,
}

/// Every route. Requests must carry a [`Peer`] as an extension.
pub fn router(app: App) -> Router {
    let admin = Router::new()
        .route("/api/packages", post(packages::install))
        .route("/api/packages/{name}", delete(packages::remove))
        .route("/api/packages/{name}/verify", post(packages::verify))
        .route("/api/packages/{name}/export", get(packages::export))
        .route("/api/packages/{name}/rollback", post(packages::roll_back))
        .route("/api/configuration", get(configuration::in_force))
        .route("/api/memory/flush", post(memory_admin::flush))
        .route("/api/memory/limit", put(memory_admin::set_limit))
        .route("/api/memory/models/{name}/load", post(memory_admin::load))
        .route("/api/memory/models/{name}", delete(memory_admin::unload))
        .route_layer(middleware::from_fn_with_state(app.clone(), only_admins));
    Router::new()
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{name}", get(openai::model))
        .route("/v1/rank", post(rank::rank))
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
        .merge(admin)
        .merge(ollama::router())
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(app.metrics.clone(), around))
        .with_state(app)
}

/// The answer to a request whose handler panicked.
pub fn lost() -> Response {
    ApiError::lost().into_response()
}

/// Answers a connection for which there is no place among `most`: the health routes as ever, everything else with 503.
/// Ends the connection after one answer. The refusal comes a little later, so that clients which come again without
/// waiting do not take the processor from those that are served.
pub fn refuse_connections(app: App, most: usize) -> Router {
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
        .merge(tei::health_route())
        .fallback(refuse)
        .layer(middleware::map_response(close))
        .layer(middleware::from_fn_with_state(app.metrics.clone(), around))
        .with_state(app)
}

/// What is done about every request. One layer, since each is cloned with all that is within it for every request.
async fn around(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = metrics::count(metrics, route, caller::give_request_id(request, next)).await;
    budget::hold_until_written(response)
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
    // Whoever forgets to pass the peer on refuses everybody: the safe side.
    let peer = request.extensions().get::<Peer>().copied().unwrap_or(Peer::STRANGER);
    if !app.tenants.is_admin(peer).await {
        let Peer { uid, gid, pid } = peer;
        let method = request.method();
        // As it was registered: what a stranger sends is not written.
        let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
        if let Some(suppressed) = log::refusal(Message::AccessRefused, uid) {
            tracing::warn!(
                name: Message::AccessRefused.name(),
                uid, gid, pid, %method, path, suppressed,
                "refused: not an administrator"
            );
        }
        return Err(ApiError::forbidden(uid));
    }
    Ok(next.run(request).await)
}
