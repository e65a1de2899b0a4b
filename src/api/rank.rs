//! Ranks documents for a query: `POST /v1/rank`. Other dialects use the steps of it.
//!
//! The ranking uses the cosine of query and document, each embedded with the model's prompt for it;
//! or keywords; or both, with fused ranks. Vectors are compared only within one answer. Therefore
//! any model can be a fallback for the requested one. If no model can answer, documents are ranked
//! by keyword, and the answer states this mode.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use super::input::read_json;
use super::request_context::RequestContext;
use super::response::set_embedding_headers;
use super::wire::rank::{RankRequest, RankResponse, RankedDocument};
use super::wire::truncate::Truncate;
use super::{App, keyword, usage};
use crate::engine::Truncation;
use crate::models::Fallback;
use crate::models::residency::load::cosine;
use crate::models::usage::recommend::TaskType;
use crate::service::{CallContext, CheckedInput, EmbedRequest, Embeddings, Input, Prompt};

/// Header with the mode of the ranking.
const MODE: HeaderName = HeaderName::from_static("x-caxton-mode");
/// Constant that dampens the highest ranks when two rankings are fused: Cormack, Clarke and
/// Büttcher 2009, <https://doi.org/10.1145/1571941.1572114>.
const RANK_OFFSET: f32 = 60.0;
/// Most bytes of documents that are ranked by keyword. The computation takes about fifty times
/// their size.
const MAX_WORDS: usize = 2 << 20;
/// Bytes charged for each byte of a document in the answer: once for its text, once for the text as
/// JSON.
const RETURNED_FACTOR: u64 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RankMode {
    Semantic,
    Hybrid,
    Keyword,
}

impl RankMode {
    fn read(name: Option<&str>) -> Result<Self, ApiError> {
        match name {
            None | Some("semantic") => Ok(Self::Semantic),
            Some("hybrid") => Ok(Self::Hybrid),
            Some("keyword") => Ok(Self::Keyword),
            Some(other) => Err(ApiError::invalid(
                Some("mode".to_owned()),
                format!("mode is \"{other}\"; expected \"semantic\", \"hybrid\" or \"keyword\""),
            )),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Semantic => "semantic",
            Self::Hybrid => "hybrid",
            Self::Keyword => "keyword",
        }
    }
}

/// A text and the texts that it is compared with.
#[derive(Clone)]
pub(super) struct Comparison {
    pub(super) query: EmbedRequest,
    pub(super) documents: EmbedRequest,
    /// Name of the field with the query, for errors.
    pub(super) query_param: &'static str,
    /// Name of the field with the documents, for errors.
    pub(super) documents_param: &'static str,
    /// Task for which a model is selected if the request names none.
    pub(super) task_type: TaskType,
}

/// Scores in the order of the documents, with the mode that produced them.
pub(super) struct Scores {
    mode: RankMode,
    scores: Vec<f32>,
    /// Vectors of the query and of the documents; `None` for keywords.
    embedded: Option<(Embeddings, Embeddings)>,
}

pub(super) async fn rank(
    State(app): State<App>,
    caller: RequestContext,
    body: Body,
) -> Result<Response, ApiError> {
    let request: RankRequest = read_json(&app, &caller, body).await?;
    let mode = RankMode::read(request.mode.as_deref())?;
    let caller = caller.with_fallback(request.allow_fallback);
    let model = request.model.as_deref();
    let search = search_requests(request.query, request.documents, "documents", None)?;
    // Check the size before vectors are computed in vain.
    if mode == RankMode::Hybrid {
        check_words(&search)?;
    }
    if request.return_documents {
        charge_texts(&caller, &search.documents)?;
    }
    let scores = match mode {
        RankMode::Keyword => by_keyword(&app, &caller, &search).await?,
        RankMode::Semantic => compare(&app, &caller, model, &search).await?,
        RankMode::Hybrid => match compare(&app, &caller, model, &search).await? {
            cosines if cosines.mode == RankMode::Semantic => {
                let keywords = by_keyword(&app, &caller, &search).await?;
                let scores = fuse_rankings(&cosines.scores, &keywords.scores);
                Scores { mode: RankMode::Hybrid, scores, ..cosines }
            }
            keywords => keywords,
        },
    };
    let best = best_first(&scores.scores);
    let ranked =
        best.into_iter().take(request.top_n.unwrap_or(usize::MAX)).map(|index| RankedDocument {
            index,
            score: scores.scores[index],
            document: returned(request.return_documents, &search.documents, index),
        });
    let used = scores.used();
    let answer = RankResponse {
        object: "list".to_owned(),
        model: scores.model(),
        mode: scores.mode.name().to_owned(),
        results: ranked.collect(),
        usage: super::wire::Usage { prompt_tokens: used, total_tokens: used },
    };
    Ok(scores.set_headers(&caller, Json(answer).into_response()))
}

/// Returns the text of a document for the answer if `is_wanted`.
pub(super) fn returned(is_wanted: bool, documents: &EmbedRequest, index: usize) -> Option<String> {
    documents.input.texts().get(index).filter(|_| is_wanted).cloned()
}

/// Charges the documents, which the answer contains.
pub(super) fn charge_texts(
    caller: &RequestContext,
    documents: &EmbedRequest,
) -> Result<(), ApiError> {
    let bytes = total_bytes(documents.input.texts());
    Ok(caller.call.charge.grow((bytes as u64).saturating_mul(RETURNED_FACTOR))?)
}

fn total_bytes(texts: &[String]) -> usize {
    texts.iter().map(String::len).sum()
}

/// Builds the requests for the query and the documents, each with the model's prompt for it.
pub(super) fn search_requests(
    query: String,
    documents: Vec<String>,
    documents_param: &'static str,
    truncate: Option<Truncate>,
) -> Result<Comparison, ApiError> {
    let query_param = "query";
    if query.is_empty() {
        return Err(ApiError::empty(query_param.to_owned()));
    }
    let embed = |texts, param, prompt| {
        let input = CheckedInput::new(Input::Texts(texts));
        let input = input.map_err(|error| ApiError::of_embed(error, param))?;
        Ok::<_, ApiError>(EmbedRequest {
            prompt,
            refuse_long: truncate.is_some_and(Truncate::refuses_long),
            truncation: truncate.map_or_else(Truncation::default, Truncate::truncation),
            is_compared: true,
            ..EmbedRequest::new(input)
        })
    };
    Ok(Comparison {
        query: embed(vec![query], query_param, Prompt::Query)?,
        documents: embed(documents, documents_param, Prompt::Passage)?,
        query_param,
        documents_param,
        task_type: TaskType::Search,
    })
}

/// Compares the query with each document: by the cosines of their vectors, or by keywords if no
/// model can answer and the caller allows it.
pub(super) async fn compare(
    app: &App,
    caller: &RequestContext,
    model: Option<&str>,
    comparison: &Comparison,
) -> Result<Scores, ApiError> {
    match by_model(app, caller, model, comparison.clone()).await {
        Ok((query, documents)) => {
            let scores = cosines(&query, &documents);
            Ok(Scores { mode: RankMode::Semantic, scores, embedded: Some((query, documents)) })
        }
        Err(error) if error.is_degraded() && allows_keywords(&caller.call) => {
            by_keyword(app, caller, comparison).await
        }
        Err(error) => Err(error),
    }
}

/// Returns whether documents may be ranked by keyword if no model can answer. A caller that expects
/// an embedding space wants the scores of its vectors.
fn allows_keywords(call: &CallContext) -> bool {
    call.allow_fallback != Some(false) && call.expected_space.is_none()
}

async fn by_model(
    app: &App,
    caller: &RequestContext,
    model: Option<&str>,
    Comparison { query, documents, query_param, documents_param, task_type }: Comparison,
) -> Result<(Embeddings, Embeddings), ApiError> {
    let of_query = |error| ApiError::of_embed(error, query_param);
    let of_documents = |error| ApiError::of_embed(error, documents_param);
    let call = &caller.call;
    let fallback = Fallback::Comparison(call.allow_fallback);
    let selected = match model {
        // An empty name means that the field was left out.
        None | Some("") => usage::select_model(app, call, task_type).await?,
        Some(_) => None,
    };
    let model = selected.as_deref().or(model);
    // The query alone selects between an alias's model and its canary, so that the same query
    // always gets the same model.
    let leased = app.service.lease(call, model, query.input.input(), fallback).await;
    let leased = leased.map_err(of_query)?;
    let of_same_model = leased.clone();
    tokio::try_join!(async { of_same_model.embed(call, query).await.map_err(of_query) }, async {
        leased.embed(call, documents).await.map_err(of_documents)
    },)
}

/// Checks that the documents are not too long to be ranked by keyword.
fn check_words(comparison: &Comparison) -> Result<(), ApiError> {
    let found = total_bytes(comparison.documents.input.texts());
    if found > MAX_WORDS {
        return Err(ApiError::too_much_text(comparison.documents_param, found, MAX_WORDS));
    }
    Ok(())
}

async fn by_keyword(
    app: &App,
    caller: &RequestContext,
    comparison: &Comparison,
) -> Result<Scores, ApiError> {
    check_words(comparison)?;
    let query = comparison.query.input.clone();
    let documents = comparison.documents.input.clone();
    let score = move || keyword::scores(&query.texts().concat(), documents.texts());
    let permits = &app.service.permits().keywords;
    let scores = permits.run(caller.call.uid, caller.call.deadline, score).await?;
    Ok(Scores { mode: RankMode::Keyword, scores, embedded: None })
}

/// Returns the cosine of the first vector of `query` with each vector of `documents`.
fn cosines(query: &Embeddings, documents: &Embeddings) -> Vec<f32> {
    let Some(query) = query.rows().next() else { return Vec::new() };
    documents.rows().map(|document| cosine_f32(query, document)).collect()
}

/// Returns the cosine of two vectors from -1 to 1, or 0 if one of them is zero.
fn cosine_f32(a: &[f32], b: &[f32]) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "from -1 to 1")]
    let cosine = cosine(a, b) as f32;
    cosine.clamp(-1.0, 1.0)
}

/// Fuses two rankings: returns for each document the sum of its reciprocal ranks. A document with
/// no word of the query does not have a keyword rank.
fn fuse_rankings(cosines: &[f32], keywords: &[f32]) -> Vec<f32> {
    let mut fused = vec![0.0; cosines.len()];
    for scores in [cosines, keywords] {
        let ranked = best_first(scores);
        // The loop runs twice; the second slice is `keywords`. Compare addresses, because the
        // contents may be equal.
        let is_keyword = std::ptr::eq(scores, keywords);
        for (rank, index) in ranked.into_iter().enumerate() {
            if is_keyword && scores[index] <= 0.0 {
                continue;
            }
            // There are at most 2048 documents.
            #[expect(clippy::cast_precision_loss, reason = "a small number")]
            let rank = (rank + 1) as f32;
            fused[index] += 1.0 / (RANK_OFFSET + rank);
        }
    }
    fused
}

/// Returns the indices sorted by descending score. Equal scores keep their order.
pub(super) fn best_first(scores: &[f32]) -> Vec<usize> {
    let mut positions: Vec<usize> = (0..scores.len()).collect();
    positions.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    positions
}

impl Scores {
    /// Returns scores of at most 1 in the order of the documents. Keyword scores have no upper
    /// bound and are mapped to `score / (1 + score)`, which keeps their order.
    pub(super) fn similarities(&self) -> Vec<f32> {
        match self.mode {
            RankMode::Semantic | RankMode::Hybrid => self.scores.clone(),
            RankMode::Keyword => self.scores.iter().map(|score| score / (1.0 + score)).collect(),
        }
    }

    /// Returns the scores of rerankers in the order of the documents: cosines or keyword scores if
    /// `raw`, otherwise the same mapped to 0 to 1, which keeps their order.
    pub(super) fn relevance(&self, raw: bool) -> Vec<f32> {
        match (raw, self.mode) {
            (true, _) => self.scores.clone(),
            (false, RankMode::Keyword) => self.similarities(),
            (false, RankMode::Semantic | RankMode::Hybrid) => {
                self.scores.iter().map(|cosine| f32::midpoint(1.0, *cosine)).collect()
            }
        }
    }

    /// Returns the id of the model that computed the vectors; `None` for keywords.
    pub(super) fn model(&self) -> Option<String> {
        self.embedded.as_ref().map(|(query, _)| query.info.manifest.id.to_string())
    }

    /// Returns the tokens computed, special tokens included.
    pub(super) fn used(&self) -> usize {
        self.embedded.as_ref().map_or(0, |(query, documents)| query.used() + documents.used())
    }

    pub(super) fn set_headers(
        mut self,
        caller: &RequestContext,
        mut response: Response,
    ) -> Response {
        if let Some((query, documents)) = &mut self.embedded {
            // The answer consists of both requests: count the query, too.
            documents.tokens.extend(&query.tokens);
            documents.characters += query.characters;
            set_embedding_headers(documents, caller, &mut response);
        }
        response.extensions_mut().insert(Arc::clone(&caller.call.charge));
        response.headers_mut().insert(MODE, HeaderValue::from_static(self.mode.name()));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranking_is_descending_and_stable() {
        assert_eq!(best_first(&[0.1, 0.9, f32::NEG_INFINITY, 0.9]), [1, 3, 0, 2]);
        assert_eq!(best_first(&[]), [0_usize; 0]);
    }

    #[test]
    fn document_good_in_both_rankings_wins() {
        let fused = fuse_rankings(&[0.9, 0.8, 0.1], &[0.0, 3.0, 2.0]);
        assert_eq!(best_first(&fused), [1, 2, 0]);
        assert!((fused[1] - (1.0 / 62.0 + 1.0 / 61.0)).abs() < 1e-6);
        assert!((fused[0] - 1.0 / 61.0).abs() < 1e-6, "no word in common is no rank");
    }

    #[test]
    fn cosine_ignores_length_and_zero_vector_scores_zero() {
        assert!((cosine_f32(&[3.0, 0.0], &[0.5, 0.0]) - 1.0).abs() < 1e-6);
        assert!(cosine_f32(&[1.0, 0.0], &[0.0, 2.0]).abs() < 1e-6);
        assert_eq!(cosine_f32(&[0.0, 0.0], &[1.0, 1.0]), 0.0);
    }
}
