//! Scores of documents for a query, by a reranker.
//!
//! The steps are those of a request for vectors, with pairs in the place of texts: the query is
//! tokenized once, and each document becomes a pair with it.

use std::sync::Arc;
use std::time::Instant;

use super::request::{CheckedInput, Embeddings, Timings, TokenCounts};
use super::tokenize::{TextRole, TokenizeJob, TokenizedTexts, count, tokenize};
use super::{CallContext, EmbedError, LeasedModel, OutputType, check_space};
use crate::engine::{Output, Tokens, Truncation};

/// A request for the scores of documents for a query. Both are texts.
#[derive(Clone, Debug)]
pub struct ScoreRequest {
    /// The query.
    pub query: CheckedInput,
    /// The documents.
    pub documents: CheckedInput,
    /// Whether a pair that is too long is an error. Otherwise it is truncated, the longer text
    /// first.
    pub refuse_long: bool,
    /// End at which both texts of a long pair are truncated.
    pub truncation: Truncation,
}

/// Reason why a request got no scores. The variant states which texts the index of the error
/// counts.
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    /// The query is at fault.
    #[error(transparent)]
    Query(EmbedError),
    /// A document is at fault, or the request as a whole.
    #[error(transparent)]
    Documents(#[from] EmbedError),
}

impl LeasedModel {
    /// Returns whether the model scores pairs of texts and computes no vectors.
    pub fn is_reranker(&self) -> bool {
        self.info().manifest.is_reranker()
    }

    /// Computes the scores of `request`. The result has one raw score for each document, as a
    /// vector of length 1, and the token counts of each pair. The lease is returned while the
    /// request waits for a permit to tokenize.
    ///
    /// # Errors
    /// When the model is not a reranker, the request does not fit it, or too many other requests
    /// are queued.
    pub async fn score(
        self,
        context: &CallContext,
        request: ScoreRequest,
    ) -> Result<Embeddings, ScoreError> {
        let Self { service, lease } = self;
        let ScoreRequest { query, documents, refuse_long, truncation } = request;
        let info = lease.info.clone();
        check_space(context, &info)?;
        lease.check_queue(&context.ticket()).map_err(EmbedError::from)?;
        let began = Instant::now();
        let job = |input, role| TokenizeJob { prompt: "".into(), input, truncation, role };
        let tokenizing = service.tokenize_context(context);
        let of_query = job(query, TextRole::Query);
        let tokenized = tokenize(tokenizing, lease, of_query.clone()).await;
        let (lease, TokenizedTexts { mut ids, whole, characters: of_query_text }) =
            tokenized.map_err(ScoreError::Query)?;
        let counted = count(tokenizing, lease.clone(), of_query, whole).await;
        let counted = counted.map_err(ScoreError::Query)?;
        let query = Tokens { ids: ids.pop().unwrap_or_default(), whole: counted.last().copied() };
        let of_documents = job(documents, TextRole::Document(Arc::new(query)));
        // Each pair has a copy of the query, so a small body can have many tokens.
        let bytes = of_documents.copied_ids().saturating_mul(size_of::<u32>()) as u64;
        context.charge.grow(bytes).map_err(EmbedError::from)?;
        let (lease, tokenized) = tokenize(tokenizing, lease, of_documents.clone()).await?;
        let tokenization = began.elapsed();
        let TokenizedTexts { ids, whole, characters } = tokenized;
        let used: Vec<usize> = ids.iter().map(Vec::len).collect();
        let long = used.iter().zip(&whole).position(|(used, whole)| *whole != Some(*used));
        if let Some(index) = long
            && refuse_long
        {
            let (found, most) = (whole[index], lease.max_sequence_length());
            return Err(EmbedError::TooLong { index, found, most }.into());
        }
        context.charge.grow_numbers(used.len(), true).map_err(EmbedError::from)?;
        // Count the tokens of truncated pairs while the scores are computed.
        let (computed, provided) = tokio::try_join!(
            async { Ok(lease.embed(ids, Output::Logits, context.ticket()).await?) },
            count(tokenizing, lease.clone(), of_documents, whole),
        )?;
        let tokens = provided.into_iter().zip(used);
        let tokens = tokens.map(|(provided, used)| TokenCounts { provided, used }).collect();
        Ok(Embeddings {
            info,
            vectors: computed.vectors,
            dimensions: 1,
            output_type: OutputType::default(),
            tokens,
            ids: Vec::new(),
            characters: of_query_text + characters,
            fallback_for: lease.fallback_for.clone(),
            timings: Timings { tokenization, queue: computed.queue, inference: computed.inference },
        })
    }
}
