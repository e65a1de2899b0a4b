//! Ranking documents for a query: `POST /v1/rank`, and `POST /rerank` as text-embeddings-inference has it.
//!
//! By the cosine of query and document, each with the model's prompt for it; by keywords; or by both, their ranks fused.
//! Vectors are compared within one answer alone, so that any model may stand in for the one that was asked for. When none
//! can answer, keywords do, and the answer says so.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};

use super::caller::Caller;
use super::error::ApiError;
use super::input::read_json;
use super::request::{self, EmbedRequest, Embedded, Prompt};
use super::wire::Input;
use super::wire::rank::{RankRequest, RankResponse, Ranked, RerankRequest, Reranked};
use super::{App, keyword};
use crate::models::Fallback;

/// How an answer was made.
const MODE: HeaderName = HeaderName::from_static("x-caxton-mode");
/// Dampens the first ranks when two rankings are fused, as in Cormack, Clarke and Büttcher 2009,
/// <https://doi.org/10.1145/1571941.1572114>.
const RANK_OFFSET: f32 = 60.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Semantic,
    Hybrid,
    Keyword,
}

impl Mode {
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

/// What is to be ranked.
struct Question {
    query: String,
    documents: Vec<String>,
    /// What the dialect calls the documents.
    param: &'static str,
    model: Option<String>,
    mode: Mode,
    refuse_long: bool,
}

/// Scores in the order of the documents, and how they came about.
struct Scores {
    mode: Mode,
    scores: Vec<f32>,
    /// Of the query and of the documents; `None` for keywords.
    embedded: Option<(Embedded, Embedded)>,
}

pub(super) async fn rank(
    State(app): State<App>,
    caller: Caller,
    body: Body,
) -> Result<Response, ApiError> {
    let limit = app.settings.borrow().socket.max_body;
    let request: RankRequest = read_json(body, limit).await?;
    let mode = Mode::read(request.mode.as_deref())?;
    let allow_fallback = request.allow_fallback.or(caller.allow_fallback);
    let caller = Caller { allow_fallback, ..caller };
    let question = Question {
        query: request.query,
        documents: request.documents,
        param: "documents",
        model: request.model,
        mode,
        refuse_long: false,
    };
    let (question, scores) = score(&app, &caller, question).await?;
    let best = best_first(&scores.scores);
    let ranked = best.into_iter().take(request.top_n.unwrap_or(usize::MAX)).map(|index| Ranked {
        index,
        score: scores.scores[index],
        document: request.return_documents.then(|| question.documents[index].clone()),
    });
    let used = scores.used();
    let answer = RankResponse {
        object: "list".to_owned(),
        model: scores.embedded.as_ref().map(|(query, _)| query.info.manifest.id.to_string()),
        mode: scores.mode.name().to_owned(),
        results: ranked.collect(),
        usage: super::wire::Usage { prompt_tokens: used, total_tokens: used },
    };
    Ok(scores.label(&caller, Json(answer).into_response()))
}

pub(super) async fn rerank(
    State(app): State<App>,
    caller: Caller,
    body: Body,
) -> Result<Response, ApiError> {
    let limit = app.settings.borrow().socket.max_body;
    let request: RerankRequest = read_json(body, limit).await?;
    let question = Question {
        query: request.query,
        documents: request.texts,
        param: "texts",
        model: request.model,
        mode: Mode::Semantic,
        refuse_long: request.truncate == Some(false),
    };
    let (question, scores) = score(&app, &caller, question).await?;
    let shown = |score: f32| match (request.raw_scores, scores.mode) {
        (true, _) => score,
        // A cosine, or a score of at least 0 without end: from 0 to 1 in the same order.
        (false, Mode::Semantic | Mode::Hybrid) => f32::midpoint(1.0, score),
        (false, Mode::Keyword) => score / (1.0 + score),
    };
    let answer: Vec<Reranked> = best_first(&scores.scores)
        .into_iter()
        .map(|index| Reranked {
            index,
            text: request.return_text.then(|| question.documents[index].clone()),
            score: shown(scores.scores[index]),
        })
        .collect();
    Ok(scores.label(&caller, Json(answer).into_response()))
}

async fn score(
    app: &App,
    caller: &Caller,
    question: Question,
) -> Result<(Question, Scores), ApiError> {
    if question.query.is_empty() {
        let message = "query is empty".to_owned();
        return Err(ApiError::invalid(Some("query".to_owned()), message));
    }
    let documents = Input::Texts(question.documents);
    request::check_input(&documents, question.param)?;
    let Input::Texts(documents) = documents else { return Err(ApiError::lost()) };
    let question = Question { documents, ..question };
    if question.mode == Mode::Keyword {
        return by_keyword(question).await;
    }
    let fallback = Fallback::Comparison(caller.allow_fallback);
    let embedded = by_model(app, caller, &question, fallback).await;
    let (query, documents) = match embedded {
        Ok(embedded) => embedded,
        Err(error) if error.is_degraded() && caller.allow_fallback != Some(false) => {
            return by_keyword(question).await;
        }
        Err(error) => return Err(error),
    };
    let cosines = cosines(&query, &documents);
    if question.mode == Mode::Semantic {
        let scores =
            Scores { mode: Mode::Semantic, scores: cosines, embedded: Some((query, documents)) };
        return Ok((question, scores));
    }
    let (question, keywords) = by_keyword(question).await?;
    let scores = fused(&cosines, &keywords.scores);
    Ok((question, Scores { mode: Mode::Hybrid, scores, embedded: Some((query, documents)) }))
}

async fn by_model(
    app: &App,
    caller: &Caller,
    question: &Question,
    fallback: Fallback,
) -> Result<(Embedded, Embedded), ApiError> {
    let model = question.model.as_deref();
    // A canary is drawn by the query, so that one query is answered alike whatever the documents.
    let query = Input::Texts(vec![question.query.clone()]);
    let lease = request::open(app, caller, model, &query, fallback).await?;
    let embed = |texts: Vec<String>, param, prompt| {
        let refuse_long = question.refuse_long;
        let input = Input::Texts(texts);
        let request = EmbedRequest { input, param, prompt, refuse_long, ..EmbedRequest::default() };
        request::embed_with(&lease, caller, request)
    };
    tokio::try_join!(
        embed(vec![question.query.clone()], "query", Prompt::Query),
        embed(question.documents.clone(), question.param, Prompt::Passage),
    )
}

async fn by_keyword(question: Question) -> Result<(Question, Scores), ApiError> {
    let score = move || {
        let scores = keyword::scores(&question.query, &question.documents);
        (question, Scores { mode: Mode::Keyword, scores, embedded: None })
    };
    tokio::task::spawn_blocking(score).await.map_err(request::lost)
}

/// The cosine of the first vector of `query` with each of `documents`.
fn cosines(query: &Embedded, documents: &Embedded) -> Vec<f32> {
    let Some(query) = query.rows().next() else { return Vec::new() };
    documents.rows().map(|document| cosine(query, document)).collect()
}

/// The cosine of two vectors; 0 when one has no direction.
pub(super) fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let length = (dot(a, a) * dot(b, b)).sqrt();
    if length > 0.0 {
        #[expect(clippy::cast_possible_truncation, reason = "from -1 to 1")]
        let cosine = (dot(a, b) / length) as f32;
        return cosine.clamp(-1.0, 1.0);
    }
    0.0
}

/// The sum of the reciprocal ranks in two rankings; a document without any word of the query has no rank by keywords.
fn fused(cosines: &[f32], keywords: &[f32]) -> Vec<f32> {
    let mut fused = vec![0.0; cosines.len()];
    for scores in [cosines, keywords] {
        let ranked = best_first(scores);
        let is_keyword = std::ptr::eq(scores, keywords);
        for (rank, index) in ranked.into_iter().enumerate() {
            if is_keyword && scores[index] <= 0.0 {
                continue;
            }
            // At most 2048 documents.
            #[expect(clippy::cast_precision_loss, reason = "a small number")]
            let rank = (rank + 1) as f32;
            fused[index] += 1.0 / (RANK_OFFSET + rank);
        }
    }
    fused
}

/// Positions by score, the highest first; of equal ones the first.
fn best_first(scores: &[f32]) -> Vec<usize> {
    let mut positions: Vec<usize> = (0..scores.len()).collect();
    positions.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    positions
}

impl Scores {
    fn used(&self) -> usize {
        self.embedded.as_ref().map_or(0, |(query, documents)| query.used() + documents.used())
    }

    fn label(&self, caller: &Caller, mut response: Response) -> Response {
        if let Some((_, documents)) = &self.embedded {
            documents.label(caller, &mut response);
        }
        response.headers_mut().insert(MODE, HeaderValue::from_static(self.mode.name()));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_come_first_and_of_equal_ones_the_first() {
        assert_eq!(best_first(&[0.1, 0.9, f32::NEG_INFINITY, 0.9]), [1, 3, 0, 2]);
        assert_eq!(best_first(&[]), [0_usize; 0]);
    }

    #[test]
    fn a_document_that_both_rankings_like_beats_one_that_only_one_likes_best() {
        let fused = fused(&[0.9, 0.8, 0.1], &[0.0, 3.0, 2.0]);
        assert_eq!(best_first(&fused), [1, 2, 0]);
        assert!((fused[1] - (1.0 / 62.0 + 1.0 / 61.0)).abs() < 1e-6);
        assert!((fused[0] - 1.0 / 61.0).abs() < 1e-6, "no word in common is no rank");
    }

    #[test]
    fn cosines_need_no_length_and_a_vector_of_zeros_is_like_nothing() {
        assert!((cosine(&[3.0, 0.0], &[0.5, 0.0]) - 1.0).abs() < 1e-6);
        assert!(cosine(&[1.0, 0.0], &[0.0, 2.0]).abs() < 1e-6);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 1.0]), 0.0);
    }
}
