//! Ranks documents for a query: `POST /v1/rank`. Other dialects use the steps of it.
//!
//! A ranking is by one of these scores, or by the fused ranks of one of the first two and keywords:
//!
//! - the cosine of query and document, each embedded with the model's prompt for it;
//! - the score of a reranker, which reads both together;
//! - the vectors of their tokens (MaxSim);
//! - keywords.
//!
//! Scores are compared only within one answer. Therefore any model of vectors can be a fallback for
//! the requested one, except for the vectors of tokens. If no model can answer, documents are
//! ranked by keyword, and the answer states this mode.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use super::input::read_json;
use super::request_context::RequestContext;
use super::response::{EMBEDDING_SPACE, set_embedding_headers};
use super::wire::rank::{RankRequest, RankResponse, RankedDocument};
use super::wire::truncate::Truncate;
use super::{App, keyword, usage};
use crate::engine::Truncation;
use crate::models::Fallback;
use crate::models::catalog;
use crate::models::residency::load::cosine;
use crate::models::usage::recommend::TaskType;
use crate::package::ScoreActivation;
use crate::service::{
    CallContext, CheckedInput, EmbedRequest, Embeddings, Input, LeasedModel, Prompt, ScoreError,
    ScoreRequest,
};

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
    /// The model was a reranker. A request selects this mode by its model.
    CrossEncoder,
    /// The vectors of the tokens are compared.
    MultiVector,
    Hybrid,
    Keyword,
}

impl RankMode {
    fn read(name: Option<&str>) -> Result<Self, ApiError> {
        match name {
            None | Some("semantic") => Ok(Self::Semantic),
            Some("multi-vector") => Ok(Self::MultiVector),
            Some("hybrid") => Ok(Self::Hybrid),
            Some("keyword") => Ok(Self::Keyword),
            Some(other) => Err(ApiError::invalid(
                Some("mode".to_owned()),
                format!(
                    "mode is \"{other}\"; expected \"semantic\", \"multi-vector\", \"hybrid\" or \
                     \"keyword\""
                ),
            )),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Semantic => "semantic",
            Self::CrossEncoder => "cross-encoder",
            Self::MultiVector => "multi-vector",
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
    /// Whether a reranker may compute the scores. Otherwise they are similarities of vectors.
    pub(super) may_rerank: bool,
    /// Whether the vectors of the tokens are compared, which needs a multi-vector head.
    pub(super) by_tokens: bool,
}

impl Comparison {
    /// Selects the comparison that the field `mode` of a rerank request names.
    pub(super) fn with_mode(self, mode: Option<&str>) -> Result<Self, ApiError> {
        match RankMode::read(mode)? {
            RankMode::MultiVector => Ok(Self { by_tokens: true, ..self }),
            RankMode::Semantic | RankMode::CrossEncoder => Ok(self),
            mode @ (RankMode::Hybrid | RankMode::Keyword) => Err(ApiError::invalid(
                Some("mode".to_owned()),
                format!(
                    "mode is \"{}\", which only /v1/rank has; expected \"semantic\" or \
                     \"multi-vector\"",
                    mode.name()
                ),
            )),
        }
    }
}

/// Scores in the order of the documents, with the mode that produced them.
pub(super) struct Scores {
    mode: RankMode,
    /// Cosines, means of the best cosines of tokens, fused ranks, keyword scores, or the raw scores
    /// of a reranker.
    raw: Vec<f32>,
    /// Function that makes the scores of a reranker of its raw scores.
    activation: ScoreActivation,
    /// Results of the model; `None` for keywords.
    computed: Option<Computed>,
}

/// Results of a model.
struct Computed {
    /// Vector of the query; `None` if the model computed scores.
    query: Option<Embeddings>,
    /// Vectors of the documents, or their scores.
    documents: Embeddings,
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
    let search = Comparison { by_tokens: mode == RankMode::MultiVector, ..search };
    // Check the size before vectors are computed in vain.
    if mode == RankMode::Hybrid {
        check_words(&search)?;
    }
    if request.return_documents {
        charge_texts(&caller, &search.documents)?;
    }
    let scores = match mode {
        RankMode::Keyword => by_keyword(&app, &caller, &search).await?,
        RankMode::Semantic | RankMode::CrossEncoder | RankMode::MultiVector => {
            compare(&app, &caller, model, &search).await?
        }
        RankMode::Hybrid => match compare(&app, &caller, model, &search).await? {
            keywords if keywords.mode == RankMode::Keyword => keywords,
            by_model => {
                let keywords = by_keyword(&app, &caller, &search).await?;
                let raw = fuse_rankings(&by_model.raw, &keywords.raw);
                Scores { mode: RankMode::Hybrid, raw, ..by_model }
            }
        },
    };
    let shown = scores.activated();
    let best = scores.best_first().into_iter().take(request.top_n.unwrap_or(usize::MAX));
    let ranked = best.map(|index| RankedDocument {
        index,
        score: shown[index],
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
        may_rerank: true,
        by_tokens: false,
    })
}

/// Compares the query with each document: by the cosines of their vectors, by a reranker, or by
/// keywords if no model can answer and the caller allows it.
pub(super) async fn compare(
    app: &App,
    caller: &RequestContext,
    model: Option<&str>,
    comparison: &Comparison,
) -> Result<Scores, ApiError> {
    match by_model(app, caller, model, comparison.clone()).await {
        Ok(scores) => Ok(scores),
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
    comparison: Comparison,
) -> Result<Scores, ApiError> {
    let call = &caller.call;
    // Another model may have no multi-vector head.
    let fallback = match comparison.by_tokens {
        true => Fallback::Vectors(call.allow_fallback),
        false => Fallback::Comparison(call.allow_fallback),
    };
    let selected = match model {
        // An empty name means that the field was left out. The selected model could lack the head.
        None | Some("") if !comparison.by_tokens => select_model(app, call, &comparison).await?,
        None | Some(_) => None,
    };
    let Comparison {
        query, documents, query_param, documents_param, may_rerank, by_tokens, ..
    } = comparison;
    let of_query = |error| ApiError::of_embed(error, query_param);
    let of_documents = |error| ApiError::of_embed(error, documents_param);
    let model = selected.as_deref().or(model);
    // The query alone selects between an alias's model and its canary, so that the same query
    // always gets the same model.
    let leased = app.service.lease(call, model, query.input.input(), fallback).await;
    let leased = leased.map_err(of_query)?;
    if by_tokens || (may_rerank && leased.is_reranker()) {
        let scores = match by_tokens {
            true => compare_tokens(call, leased, query, documents).await,
            false => rerank(call, leased, query, documents).await,
        };
        return scores.map_err(|error| match error {
            ScoreError::Query(error) => of_query(error),
            ScoreError::Documents(error) => of_documents(error),
        });
    }
    let of_same_model = leased.clone();
    let (query, documents) = tokio::try_join!(
        async { of_same_model.embed(call, query).await.map_err(of_query) },
        async { leased.embed(call, documents).await.map_err(of_documents) },
    )?;
    Ok(Scores {
        mode: RankMode::Semantic,
        raw: cosines(&query, &documents),
        activation: ScoreActivation::Identity,
        computed: Some(Computed { query: Some(query), documents }),
    })
}

/// Selects a model for a request without a model name: the reranker of the settings, or a model
/// that suits the task. Returns `None` if the default model is to answer.
async fn select_model(
    app: &App,
    call: &CallContext,
    comparison: &Comparison,
) -> Result<Option<String>, ApiError> {
    // A caller that expects an embedding space wants the scores of its vectors.
    if comparison.may_rerank && call.expected_space.is_none() {
        let configured = app.settings.borrow().memory.rerank_model.clone();
        if let Some(name) = configured
            && may_use(app, call, &name)
        {
            return Ok(Some(name));
        }
        if let Some(reranker) = usage::select_model(app, call, TaskType::Rerank).await? {
            return Ok(Some(reranker));
        }
    }
    usage::select_model(app, call, comparison.task_type).await
}

/// Returns whether the model `name` is installed, and the caller may request it.
fn may_use(app: &App, call: &CallContext, name: &str) -> bool {
    let catalog = app.handle.catalog();
    let tenant = call.tenant_settings();
    catalog.find(name).is_ok_and(|entry| catalog::permits(tenant, entry))
}

/// Scores each document for the query with a reranker.
async fn rerank(
    call: &CallContext,
    leased: LeasedModel,
    query: EmbedRequest,
    documents: EmbedRequest,
) -> Result<Scores, ScoreError> {
    let classifier = leased.info().manifest.classifier.as_ref();
    let activation = classifier.map_or(ScoreActivation::Identity, |it| it.activation);
    let request = ScoreRequest {
        query: query.input,
        documents: documents.input,
        refuse_long: documents.refuse_long,
        truncation: documents.truncation,
    };
    let scored = leased.score(call, request).await?;
    Ok(Scores {
        mode: RankMode::CrossEncoder,
        raw: scored.vectors.clone(),
        activation,
        computed: Some(Computed { query: None, documents: scored }),
    })
}

/// Scores each document for the query by the vectors of their tokens.
async fn compare_tokens(
    call: &CallContext,
    leased: LeasedModel,
    query: EmbedRequest,
    documents: EmbedRequest,
) -> Result<Scores, ScoreError> {
    let scored = leased.max_sim(call, query, documents).await?;
    Ok(Scores {
        mode: RankMode::MultiVector,
        raw: scored.vectors.clone(),
        activation: ScoreActivation::Identity,
        computed: Some(Computed { query: None, documents: scored }),
    })
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
    let activation = ScoreActivation::Identity;
    Ok(Scores { mode: RankMode::Keyword, raw: scores, activation, computed: None })
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
fn best_first(scores: &[f32]) -> Vec<usize> {
    let mut positions: Vec<usize> = (0..scores.len()).collect();
    positions.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    positions
}

impl Scores {
    /// Returns the indices of the documents, the best first. The raw scores decide, because the
    /// activation of a reranker makes large ones equal.
    pub(super) fn best_first(&self) -> Vec<usize> {
        best_first(&self.raw)
    }

    /// Returns the scores in the order of the documents: those of a reranker after its activation,
    /// all others unchanged.
    fn activated(&self) -> Vec<f32> {
        match self.mode {
            RankMode::CrossEncoder => {
                self.raw.iter().map(|logit| self.activation.apply(*logit)).collect()
            }
            RankMode::Semantic | RankMode::MultiVector | RankMode::Hybrid | RankMode::Keyword => {
                self.raw.clone()
            }
        }
    }

    /// Returns scores of at most 1 in the order of the documents. Keyword scores have no upper
    /// bound and are mapped to `score / (1 + score)`, which keeps their order.
    pub(super) fn similarities(&self) -> Vec<f32> {
        match self.mode {
            RankMode::Semantic
            | RankMode::CrossEncoder
            | RankMode::MultiVector
            | RankMode::Hybrid => self.activated(),
            RankMode::Keyword => self.raw.iter().map(|score| score / (1.0 + score)).collect(),
        }
    }

    /// Returns the scores of a rerank request in the order of the documents. `raw` selects the raw
    /// scores of a reranker, cosines or keyword scores. Otherwise a reranker applies its
    /// activation, and the others are mapped to 0 to 1, which keeps their order.
    pub(super) fn relevance(&self, raw: bool) -> Vec<f32> {
        match (raw, self.mode) {
            (true, _) => self.raw.clone(),
            (false, RankMode::Keyword) => self.similarities(),
            (false, RankMode::CrossEncoder) => self.activated(),
            (false, RankMode::Semantic | RankMode::MultiVector | RankMode::Hybrid) => {
                self.raw.iter().map(|cosine| f32::midpoint(1.0, *cosine)).collect()
            }
        }
    }

    /// Returns the id of the model that computed the scores; `None` for keywords.
    pub(super) fn model(&self) -> Option<String> {
        self.computed.as_ref().map(|computed| computed.documents.info.manifest.id.to_string())
    }

    /// Returns the tokens computed, special tokens included.
    pub(super) fn used(&self) -> usize {
        self.computed.as_ref().map_or(0, |Computed { query, documents }| {
            query.as_ref().map_or(0, Embeddings::used) + documents.used()
        })
    }

    pub(super) fn set_headers(
        mut self,
        caller: &RequestContext,
        mut response: Response,
    ) -> Response {
        if let Some(Computed { query, documents }) = &mut self.computed {
            // The answer consists of both requests: count the query, too.
            if let Some(query) = query {
                documents.tokens.extend(&query.tokens);
                documents.characters += query.characters;
            }
            set_embedding_headers(documents, caller, &mut response);
            // Scores do not belong to an embedding space.
            if documents.info.manifest.is_reranker() || self.mode == RankMode::MultiVector {
                response.headers_mut().remove(EMBEDDING_SPACE);
            }
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
