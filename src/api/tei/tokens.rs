//! Serves `POST /tokenize` and `POST /decode`: converts texts to tokens and back with the model's
//! tokenizer.
//!
//! No vectors are computed. Texts longer than the model's limit are not truncated. The tokenizer is
//! loaded with the model, if the model is not in memory.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::{check_not_empty, prompt};
use crate::api::App;
use crate::api::error::ApiError;
use crate::api::input::read_json;
use crate::api::request;
use crate::api::request_context::RequestContext;
use crate::api::tokenize::acquire_permit;
use crate::api::wire::{Input, tei};
use crate::engine::TokenSpan;
use crate::models::{Fallback, Lease};

/// No fallback: token ids are only valid for the vocabulary of the requested model.
const SAME: Fallback = Fallback::Vectors(Some(false));
/// Most text of one request in bytes. The tokenizer allocates a hundred times the size of its
/// input, and the answer takes about as much.
const MAX_TEXT: usize = 64 << 10;
/// Most token ids of one request.
const MAX_IDS: usize = 64 << 10;
/// Bytes charged for the answer for each byte of text: a byte can be a token of its own, with its
/// position in the text.
const BYTES_PER_CHARACTER: u64 = 64;
/// Bytes charged for the text of each token.
const BYTES_PER_TOKEN: u64 = 16;

pub(super) async fn tokenize(
    State(app): State<App>,
    caller: RequestContext,
    body: Body,
) -> Result<Response, ApiError> {
    let request: tei::TokenizeRequest = read_json(&app, &caller, body).await?;
    check(&request.inputs, "inputs")?;
    let Input::Texts(texts) = request.inputs else {
        return Err(wrong("inputs", "token ids", "a string or a list of strings"));
    };
    // Check the size before a model is loaded, without the prompt, which only the model knows. A
    // second check follows with it.
    check_size(&texts, "")?;
    let special = request.add_special_tokens.unwrap_or(true);
    let input = Input::Texts(texts);
    let lease = request::lease_model(&app, &caller, request.model.as_deref(), &input, SAME).await?;
    let Input::Texts(texts) = input else { return Err(ApiError::lost_work()) };
    let prompt = request::prompt(&prompt(request.prompt_name), &lease)?;
    check_size(&texts, &prompt)?;
    let bytes: usize = texts.iter().map(String::len).sum();
    caller.charge.grow((bytes as u64).saturating_mul(BYTES_PER_CHARACTER))?;
    answer(&app, &caller, lease, move |lease| {
        let texts = texts.iter().enumerate().map(|(index, text)| {
            let pieces = lease.pieces(&prompt, text, special);
            let pieces = pieces.map_err(|error| about(error.into(), "inputs", index))?;
            Ok(pieces.into_iter().map(token).collect())
        });
        Ok(Json(tei::TokenizeResponse(texts.collect::<Result<_, ApiError>>()?)).into_response())
    })
    .await
}

pub(super) async fn decode(
    State(app): State<App>,
    caller: RequestContext,
    body: Body,
) -> Result<Response, ApiError> {
    let request: tei::DecodeRequest = read_json(&app, &caller, body).await?;
    check(&request.ids, "ids")?;
    let Input::Ids(lists) = request.ids else {
        return Err(wrong("ids", "text", "a list of token ids or a list of such lists"));
    };
    let found = lists.iter().map(Vec::len).sum();
    if found > MAX_IDS {
        return Err(ApiError::too_many_tokens("ids", found, MAX_IDS));
    }
    let skip_special = request.skip_special_tokens.unwrap_or(true);
    let input = Input::Ids(lists);
    let lease = request::lease_model(&app, &caller, request.model.as_deref(), &input, SAME).await?;
    let Input::Ids(lists) = input else { return Err(ApiError::lost_work()) };
    caller.charge.grow((found as u64).saturating_mul(BYTES_PER_TOKEN))?;
    answer(&app, &caller, lease, move |lease| {
        let texts = lists.iter().enumerate().map(|(index, ids)| {
            let text = lease.decode(ids, skip_special);
            text.map_err(|error| about(error.into(), "ids", index))
        });
        Ok(Json(tei::DecodeResponse(texts.collect::<Result<_, ApiError>>()?)).into_response())
    })
    .await
}

fn check(input: &Input, param: &str) -> Result<(), ApiError> {
    check_not_empty(input, param)?;
    request::check_input(input, param)
}

fn check_size(texts: &[String], prompt: &str) -> Result<(), ApiError> {
    let found = texts.iter().map(|text| prompt.len() + text.len()).sum();
    if found > MAX_TEXT {
        return Err(ApiError::too_much_text("inputs", found, MAX_TEXT));
    }
    Ok(())
}

fn wrong(param: &str, found: &str, expected: &str) -> ApiError {
    ApiError::invalid(Some(param.to_owned()), format!("{param} is {found}; expected {expected}"))
}

fn about(error: ApiError, param: &str, index: usize) -> ApiError {
    error.with_param(format!("{param}[{index}]"))
}

fn token(piece: TokenSpan) -> tei::Token {
    let TokenSpan { id, text, characters } = piece;
    let (start, stop) = characters.map(|range| (range.start, range.end)).unzip();
    tei::Token { id, text, special: start.is_none(), start, stop }
}

/// Makes an answer on the blocking pool with a permit for the user, and sets the headers that name
/// the model.
async fn answer(
    app: &App,
    caller: &RequestContext,
    lease: Lease,
    work: impl FnOnce(&Lease) -> Result<Response, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let (place, lease) = acquire_permit(app, caller, &app.permits.work, lease).await?;
    let charge = Arc::clone(&caller.charge);
    let work = move || {
        let _place = place;
        let mut response = work(&lease)?;
        request::set_model_headers(&lease.info, &mut response);
        response.extensions_mut().insert(charge);
        Ok(response)
    };
    tokio::task::spawn_blocking(work).await.map_err(request::log_lost)?
}
