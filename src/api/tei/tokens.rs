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

use super::{check, prompt};
use crate::api::App;
use crate::api::error::ApiError;
use crate::api::input::read_json;
use crate::api::request_context::RequestContext;
use crate::api::response::set_model_headers;
use crate::api::wire::tei;
use crate::engine::TokenSpan;
use crate::models::Fallback;
use crate::service::{Input, LeasedModel};

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
    let param = "inputs";
    let inputs = check(request.inputs, param)?;
    let Input::Texts(texts) = inputs.input() else {
        return Err(wrong("inputs", "token ids", "a string or a list of strings"));
    };
    // Check the size before a model is loaded, without the prompt, which only the model knows. A
    // second check follows with it.
    check_size(texts, "")?;
    let special = request.add_special_tokens.unwrap_or(true);
    let of_param = |error| ApiError::of_embed(error, param);
    let model = request.model.as_deref();
    let leased = app.service.lease(&caller.call, model, inputs.input(), SAME).await;
    let leased = leased.map_err(of_param)?;
    let prompt = leased.prompt(&prompt(request.prompt_name)).map_err(of_param)?;
    check_size(texts, &prompt)?;
    let bytes: usize = texts.iter().map(String::len).sum();
    caller.call.charge.grow((bytes as u64).saturating_mul(BYTES_PER_CHARACTER))?;
    answer(&caller, leased, param, move |leased| {
        let texts = inputs.texts().iter().enumerate().map(|(index, text)| {
            let pieces = leased.pieces(&prompt, text, special);
            let pieces = pieces.map_err(|error| about(error.into(), param, index))?;
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
    let param = "ids";
    let ids = check(request.ids, param)?;
    let Input::Ids(lists) = ids.input() else {
        return Err(wrong("ids", "text", "a list of token ids or a list of such lists"));
    };
    let found = lists.iter().map(Vec::len).sum();
    if found > MAX_IDS {
        return Err(ApiError::too_many_tokens("ids", found, MAX_IDS));
    }
    let skip_special = request.skip_special_tokens.unwrap_or(true);
    let model = request.model.as_deref();
    let leased = app.service.lease(&caller.call, model, ids.input(), SAME).await;
    let leased = leased.map_err(|error| ApiError::of_embed(error, param))?;
    caller.call.charge.grow((found as u64).saturating_mul(BYTES_PER_TOKEN))?;
    answer(&caller, leased, param, move |leased| {
        let Input::Ids(lists) = ids.input() else { return Err(ApiError::lost_work()) };
        let texts = lists.iter().enumerate().map(|(index, ids)| {
            let text = leased.decode(ids, skip_special);
            text.map_err(|error| about(error.into(), param, index))
        });
        Ok(Json(tei::DecodeResponse(texts.collect::<Result<_, ApiError>>()?)).into_response())
    })
    .await
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
    caller: &RequestContext,
    leased: LeasedModel,
    param: &str,
    work: impl FnOnce(&LeasedModel) -> Result<Response, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let charge = Arc::clone(&caller.call.charge);
    let work = move |leased: &LeasedModel| {
        let mut response = work(leased)?;
        set_model_headers(leased.info(), &mut response);
        response.extensions_mut().insert(charge);
        Ok::<_, ApiError>(response)
    };
    let answered = leased.run(&caller.call, work).await;
    answered.map_err(|error| ApiError::of_embed(error, param))?
}
