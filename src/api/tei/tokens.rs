//! `POST /tokenize` and `POST /decode`: texts to tokens and back, by the model's own tokenizer.
//!
//! Nothing is computed, and nothing is truncated: what is too long for the model is shown whole. The tokenizer comes
//! with the model, which is loaded first if need be.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::{check_not_empty, prompt};
use crate::api::App;
use crate::api::caller::Caller;
use crate::api::error::ApiError;
use crate::api::input::read_json;
use crate::api::request;
use crate::api::tokenize::turn;
use crate::api::wire::{Input, tei};
use crate::engine::Piece;
use crate::models::{Fallback, Lease};

/// The tokens of a model are its own: only one of the same embedding space has them, too.
const SAME: Fallback = Fallback::Vectors(Some(false));
/// Text of one request, in bytes: the tokenizer takes a hundred times the memory of what it tokenizes, and the answer
/// about as much.
const MAX_TEXT: usize = 64 << 10;
/// Token ids of one request.
const MAX_IDS: usize = 64 << 10;
/// What a byte of text is charged for the tokens of the answer: one may be a token, with its place in the text.
const BYTES_PER_CHARACTER: u64 = 64;
/// What a token is charged for its text.
const BYTES_PER_TOKEN: u64 = 16;

pub(super) async fn tokenize(
    State(app): State<App>,
    caller: Caller,
    body: Body,
) -> Result<Response, ApiError> {
    let request: tei::TokenizeRequest = read_json(&app, &caller, body).await?;
    check(&request.inputs, "inputs")?;
    let Input::Texts(texts) = request.inputs else {
        return Err(wrong("inputs", "token ids", "a string or a list of strings"));
    };
    // Before a model is loaded for it.
    check_size(&texts, "")?;
    let special = request.add_special_tokens.unwrap_or(true);
    let input = Input::Texts(texts);
    let lease = request::open(&app, &caller, request.model.as_deref(), &input, SAME).await?;
    let Input::Texts(texts) = input else { return Err(ApiError::lost()) };
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
        Ok(Json(tei::Tokenized(texts.collect::<Result<_, ApiError>>()?)).into_response())
    })
    .await
}

pub(super) async fn decode(
    State(app): State<App>,
    caller: Caller,
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
    let lease = request::open(&app, &caller, request.model.as_deref(), &input, SAME).await?;
    let Input::Ids(lists) = input else { return Err(ApiError::lost()) };
    caller.charge.grow((found as u64).saturating_mul(BYTES_PER_TOKEN))?;
    answer(&app, &caller, lease, move |lease| {
        let texts = lists.iter().enumerate().map(|(index, ids)| {
            let text = lease.decode(ids, skip_special);
            text.map_err(|error| about(error.into(), "ids", index))
        });
        Ok(Json(tei::Decoded(texts.collect::<Result<_, ApiError>>()?)).into_response())
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
    error.about(format!("{param}[{index}]"))
}

fn token(piece: Piece) -> tei::Token {
    let Piece { id, text, characters } = piece;
    let (start, stop) = characters.map(|range| (range.start, range.end)).unzip();
    tei::Token { id, text, special: start.is_none(), start, stop }
}

/// Makes an answer on the blocking pool, in turns of the users. It says of which model it is.
async fn answer(
    app: &App,
    caller: &Caller,
    lease: Lease,
    work: impl FnOnce(&Lease) -> Result<Response, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let (place, lease) = turn(app, caller, &app.places.work, lease).await?;
    let charge = Arc::clone(&caller.charge);
    let work = move || {
        let _place = place;
        let mut response = work(&lease)?;
        request::label_model(&lease.info, &mut response);
        response.extensions_mut().insert(charge);
        Ok(response)
    };
    tokio::task::spawn_blocking(work).await.map_err(request::lost)?
}
