//! Serves the dialects of rerankers: `POST /v1/rerank` and `/v2/rerank` of Cohere and Jina, and
//! `POST /rerank`, which text-embeddings-inference (TEI) and vLLM have in common.
//!
//! The field of the documents decides which dialect a request to `/rerank` has: TEI's is `texts`,
//! and the one of the others is `documents`. The scores are the same: those of a reranker, or those
//! of a model whose vectors are compared, as in [`rank`].

use axum::body::Body;
use axum::extract::{MatchedPath, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router, middleware};

use super::error::ApiError;
use super::input::read_json;
use super::request_context::{RequestContext, RequestId};
use super::wire::Usage;
use super::wire::rank::{
    ApiVersion, BilledUnits, Document, DocumentText, DocumentsResponse, Meta, RelevantDocument,
    RerankFailure, RerankRequest, RerankedText,
};
use super::{App, rank};

/// Model in an answer that was ranked by keywords. Clients expect a text.
const KEYWORD: &str = "keyword";

/// Most characters of the messages that precede the error in OpenAI's format.
const MAX_MESSAGE: usize = 500;

/// Mark of a failure that is in the format of this dialect already.
#[derive(Clone, Copy, Debug)]
pub(super) struct FailureWritten;

/// Texts to rank, and the dialect of their field.
enum Texts {
    Tei(Vec<String>),
    Documents(Vec<String>),
}

/// Builds the routes of Cohere and Jina, with errors in the format of this dialect.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/rerank", post(documents))
        .route("/v2/rerank", post(documents))
        .method_not_allowed_fallback(super::no_method)
        .layer(middleware::map_response(write_failure))
}

/// Answers a request to `/rerank` in the dialect that it has. A request without texts is one of
/// TEI.
pub(super) async fn of_either_dialect(
    State(app): State<App>,
    id: RequestId,
    caller: RequestContext,
    body: Body,
) -> Result<Response, ApiError> {
    let mut request: RerankRequest = read_json(&app, &caller, body).await?;
    match take_texts(&mut request) {
        Some(Texts::Tei(texts)) => rank_texts(&app, &caller, request, texts).await,
        Some(Texts::Documents(documents)) => {
            // Return no documents: clients of Infinity expect a text here and those of vLLM an
            // object, and their requests are equal. Both take the text from the request instead.
            request.return_documents = None;
            let ranked = rank_documents(&app, &caller, request, documents, (id, "1")).await;
            Ok(write_failure(ranked.into_response()).await)
        }
        None => Err(missing("texts")),
    }
}

async fn documents(
    State(app): State<App>,
    path: MatchedPath,
    id: RequestId,
    caller: RequestContext,
    body: Body,
) -> Result<Response, ApiError> {
    let mut request: RerankRequest = read_json(&app, &caller, body).await?;
    let version = if path.as_str().starts_with("/v2/") { "2" } else { "1" };
    match take_texts(&mut request) {
        Some(Texts::Tei(texts) | Texts::Documents(texts)) => {
            rank_documents(&app, &caller, request, texts, (id, version)).await
        }
        None => Err(missing("documents")),
    }
}

fn take_texts(request: &mut RerankRequest) -> Option<Texts> {
    let texts = request.texts.take().map(Texts::Tei);
    texts.or_else(|| request.documents.take().map(Texts::Documents))
}

fn missing(param: &str) -> ApiError {
    let message = format!("{param} is missing; expected a list of the texts to rank");
    ApiError::invalid(Some(param.to_owned()), message)
}

/// Ranks texts in TEI's dialect.
async fn rank_texts(
    app: &App,
    caller: &RequestContext,
    request: RerankRequest,
    texts: Vec<String>,
) -> Result<Response, ApiError> {
    let Document(query) = request.query;
    let search = rank::search_requests(query, texts, "texts", request.truncate)?;
    let search = search.with_mode(request.mode.as_deref())?;
    if request.return_text {
        rank::charge_texts(caller, &search.documents)?;
    }
    let scores = rank::compare(app, caller, request.model.as_deref(), &search).await?;
    let shown = scores.relevance(request.raw_scores);
    let answer: Vec<RerankedText> = scores
        .best_first()
        .into_iter()
        .map(|index| RerankedText {
            index,
            text: rank::returned(request.return_text, &search.documents, index),
            score: shown[index],
        })
        .collect();
    Ok(scores.set_headers(caller, Json(answer).into_response()))
}

/// Ranks documents in the dialect of Cohere, Jina and vLLM.
async fn rank_documents(
    app: &App,
    caller: &RequestContext,
    request: RerankRequest,
    documents: Vec<String>,
    (RequestId(id), version): (RequestId, &'static str),
) -> Result<Response, ApiError> {
    let Document(query) = request.query;
    let search = rank::search_requests(query, documents, "documents", request.truncate)?;
    let search = search.with_mode(request.mode.as_deref())?;
    let returns = request.return_documents.unwrap_or(false);
    if returns {
        rank::charge_texts(caller, &search.documents)?;
    }
    let scores = rank::compare(app, caller, request.model.as_deref(), &search).await?;
    let shown = scores.relevance(request.raw_scores);
    let best = scores.best_first().into_iter().take(request.top_n.unwrap_or(usize::MAX));
    let results = best.map(|index| RelevantDocument {
        index,
        relevance_score: shown[index],
        document: rank::returned(returns, &search.documents, index)
            .map(|text| DocumentText { text }),
    });
    let used = scores.used();
    let answer = DocumentsResponse {
        id,
        model: scores.model().unwrap_or_else(|| KEYWORD.to_owned()),
        results: results.collect(),
        usage: Usage { prompt_tokens: used, total_tokens: used },
        meta: Meta {
            api_version: ApiVersion { version },
            billed_units: BilledUnits { search_units: Some(1), input_tokens: used },
        },
    };
    Ok(scores.set_headers(caller, Json(answer).into_response()))
}

/// Rewrites an answer that is a failure. All other answers stay unchanged.
pub(super) async fn write_failure(response: Response) -> Response {
    let Some(error) = response.extensions().get::<ApiError>() else { return response };
    // The message may quote a text of the client, and the body contains it three times.
    let message: String = error.full_message().chars().take(MAX_MESSAGE).collect();
    let body = RerankFailure { detail: message.clone(), message, error: error.to_body() };
    let (mut parts, _nested) = response.into_parts();
    // Remove the length of the old body.
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.extensions.insert(FailureWritten);
    Response::from_parts(parts, Json(body).into_response().into_body())
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    #[tokio::test]
    async fn failure_has_the_message_for_every_client() {
        let error = ApiError::invalid(Some("documents[1]".to_owned()), "a bad text".to_owned());
        let response = write_failure(error.into_response()).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert!(response.extensions().get::<FailureWritten>().is_some());
        let body = axum::body::to_bytes(response.into_body(), 1024).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["message"], "documents[1]: a bad text");
        assert_eq!(body["detail"], body["message"]);
        assert_eq!(body["error"]["param"], "documents[1]");
        assert_eq!(body["error"]["code"], "invalid_request");
        let long = ApiError::invalid(None, "ä".repeat(9_000));
        let body = write_failure(long.into_response()).await.into_body();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["detail"].as_str().unwrap().chars().count(), MAX_MESSAGE);
        let success = write_failure("ok".into_response()).await;
        assert!(success.extensions().get::<FailureWritten>().is_none());
    }
}
