//! Serves `/api/generate` and `/api/chat` as far as embedding models can: Ollama's clients load and
//! unload a model with a request that has no prompt.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Body;
use axum::extract::State;

use super::{answer, answered_name, model_name, time};
use crate::api::App;
use crate::api::error::ApiError;
use crate::api::input::read_json;
use crate::api::request_context::RequestContext;
use crate::api::wire::ollama::{
    ChatResponse, Contents, EmptyMessage, GenerateRequest, GenerateResponse,
};
use crate::models::{KeepAlive, KeepAliveRequest};
use crate::service::Input;

/// Model that a request loaded or unloaded.
struct Changed {
    /// Name of the model for the answer.
    model: String,
    created_at: String,
    /// Kind of the change in Ollama's terms.
    reason: &'static str,
}

pub(super) async fn generate(
    State(app): State<App>,
    caller: RequestContext,
    body: Body,
) -> Result<Json<GenerateResponse>, ApiError> {
    let Changed { model, created_at, reason } = change(&app, &caller, body).await?;
    Ok(Json(GenerateResponse { model, created_at, response: "", done: true, done_reason: reason }))
}

pub(super) async fn chat(
    State(app): State<App>,
    caller: RequestContext,
    body: Body,
) -> Result<Json<ChatResponse>, ApiError> {
    let Changed { model, created_at, reason } = change(&app, &caller, body).await?;
    let message = EmptyMessage { role: "assistant", content: "" };
    Ok(Json(ChatResponse { model, created_at, message, done: true, done_reason: reason }))
}

/// Loads the model of a request without a prompt, or unloads it if `keep_alive` is zero.
async fn change(app: &App, caller: &RequestContext, body: Body) -> Result<Changed, ApiError> {
    let request: GenerateRequest = read_json(app, caller, body).await?;
    for (contents, param) in [(request.prompt, "prompt"), (request.messages, "messages")] {
        if contents.is_some_and(|Contents { is_empty }| !is_empty) {
            let message = "no installed model generates text; /api/embed gives the embeddings of a \
                           text";
            return Err(ApiError::unsupported(message.to_owned()).with_param(param.to_owned()));
        }
    }
    let asked = request.model.as_deref().filter(|name| !name.is_empty());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let created_at = time(now.as_secs());
    let keep_alive = request.keep_alive;
    if keep_alive != Some(KeepAlive::For(Duration::ZERO)) {
        let model = answer(app, caller, asked, keep_alive, None, "prompt").await?.model;
        return Ok(Changed { model, created_at, reason: "load" });
    }
    // Do not load a model to unload it.
    let tenant = caller.call.tenant_settings();
    let named = asked.map(|name| model_name(app, tenant, name)).transpose()?;
    let resolved = app.service.resolve(&caller.call, named.as_deref(), &Input::default());
    let resolved = resolved.map_err(|error| ApiError::of_embed(error, "model"))?;
    let is_admin = caller.sender.is_admin(app).await;
    let wish = KeepAliveRequest {
        user: caller.call.user,
        is_admin,
        keep_alive: KeepAlive::For(Duration::ZERO),
    };
    let catalog = app.handle.catalog();
    let unloaded = app.handle.keep_alive(&resolved.name, wish).await;
    unloaded.map_err(|error| catalog.hide_models(error, tenant))?;
    let manifest = catalog.lookup(&resolved.name).map(|entry| &entry.manifest);
    let model = match manifest {
        Some(manifest) => answered_name(asked, named.as_deref(), manifest),
        None => resolved.name,
    };
    Ok(Changed { model, created_at, reason: "unload" })
}
