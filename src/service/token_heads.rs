//! Results of the heads for tokens: sparse vectors, and the scores of documents by late interaction
//! (MaxSim).
//!
//! The scores need the vectors of all tokens. They are computed in groups of documents, so that
//! their memory does not grow with the number of documents.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::request::{EmbedRequest, Embeddings, Timings, TokenCounts};
use super::tokenize::{TextRole, TokenizeJob, TokenizedTexts, count, tokenize};
use super::{
    CallContext, EmbedError, LeasedModel, MAX_TOKEN_STATES, OutputType, ScoreError, check_space,
    check_vectors,
};
use crate::engine::{Output, max_sim};
use crate::package::{Manifest, MultiVectorHead};

/// Most tokens of a query that is compared by late interaction. The work for a document grows with
/// the product of both lengths.
const MAX_QUERY_TOKENS: usize = 512;

impl Embeddings {
    /// Returns the rows of the tokens of each text. A multi-vector head has none for the first
    /// token of a text, which is the one that stands for the whole text.
    pub fn token_rows(&self) -> impl Iterator<Item = Vec<&[f32]>> {
        let skipped = usize::from(self.info.manifest.multi_vector.is_some());
        let mut rows = self.rows();
        let counts = self.tokens.iter().map(|tokens| tokens.used);
        counts.map(move |count| rows.by_ref().take(count).skip(skipped).collect())
    }

    /// Returns the sparse vector of each text: the largest weight of each token that has one, by
    /// token id.
    pub fn sparse_rows(&self) -> impl Iterator<Item = BTreeMap<u32, f32>> {
        let sparse = self.info.manifest.sparse.as_ref();
        let ignored = sparse.map_or(&[][..], |head| &head.ignored_tokens);
        let mut weights = self.vectors.iter();
        self.ids.iter().map(move |ids| {
            let weights = ids.iter().zip(weights.by_ref().take(ids.len()));
            sparse_vector(weights, ignored)
        })
    }
}

/// Returns the largest weight of each token by its id, without weights of 0 and without the tokens
/// in `ignored`.
fn sparse_vector<'a>(
    weights: impl Iterator<Item = (&'a u32, &'a f32)>,
    ignored: &[u32],
) -> BTreeMap<u32, f32> {
    let mut vector = BTreeMap::new();
    for (id, &weight) in weights {
        if weight > 0.0 && !ignored.contains(id) {
            let largest = vector.entry(*id).or_insert(weight);
            *largest = weight.max(*largest);
        }
    }
    vector
}

/// Returns the length of the vectors of the multi-vector head.
fn vector_length(manifest: &Manifest) -> Result<usize, EmbedError> {
    match manifest.multi_vector {
        Some(MultiVectorHead { dimensions }) => Ok(dimensions),
        None => Err(EmbedError::NoHead { model: manifest.id.to_string(), head: "multi-vector" }),
    }
}

impl LeasedModel {
    /// Computes the score of each document for the query by late interaction: the largest cosine of
    /// each vector of the query with one of the document, averaged over the query.
    ///
    /// The result has one score for each document, as a vector of length 1, and the token counts of
    /// each document, then of the query. The lease is returned while the request waits for a permit
    /// to tokenize.
    ///
    /// # Errors
    /// When the model has no multi-vector head, the request does not fit it, or too many other
    /// requests are queued.
    pub async fn max_sim(
        self,
        context: &CallContext,
        query: EmbedRequest,
        documents: EmbedRequest,
    ) -> Result<Embeddings, ScoreError> {
        let Self { service, lease } = self;
        let info = lease.info.clone();
        check_vectors(&info.manifest)?;
        let length = vector_length(&info.manifest)?;
        check_space(context, &info)?;
        lease.check_queue(&context.ticket()).map_err(EmbedError::from)?;
        let began = Instant::now();
        let tokenizing = service.tokenize_context(context);
        let refuse_long = documents.refuse_long;
        let job = |EmbedRequest { prompt, input, truncation, .. }| {
            let prompt = prompt.text(&info.manifest)?.into();
            Ok::<_, EmbedError>(TokenizeJob { prompt, input, truncation, role: TextRole::Whole })
        };
        let of_query = job(query).map_err(ScoreError::Query)?;
        let of_documents = job(documents)?;
        let tokenized = tokenize(tokenizing, lease, of_query.clone()).await;
        let (lease, query) = tokenized.map_err(ScoreError::Query)?;
        let most = lease.max_sequence_length();
        if refuse_long {
            check_long(&query, most).map_err(ScoreError::Query)?;
        }
        let query_tokens: usize = query.ids.iter().map(Vec::len).sum();
        check_query(query_tokens).map_err(ScoreError::Query)?;
        let (lease, documents) = tokenize(tokenizing, lease, of_documents.clone()).await?;
        let tokenization = began.elapsed();
        if refuse_long {
            check_long(&documents, most)?;
        }
        let used: Vec<usize> = documents.ids.iter().map(Vec::len).collect();
        let groups = groups(&used);
        let most_rows = groups.iter().map(|(_, tokens)| *tokens).max().unwrap_or_default();
        let numbers = most_rows.saturating_add(query_tokens).saturating_mul(length);
        let numbers = numbers.saturating_add(used.len());
        context.charge.grow_numbers(numbers, true).map_err(EmbedError::from)?;
        let (query_ids, mut ids) = (query.ids, documents.ids.into_iter());
        let compute = async {
            let computed = lease.embed(query_ids, Output::TokenVectors, context.ticket()).await?;
            let (mut queue, mut inference) = (computed.queue, computed.inference);
            let query: Arc<[f32]> = computed.vectors.get(length..).unwrap_or_default().into();
            let mut scores = Vec::with_capacity(used.len());
            for (texts, _) in groups {
                let texts: Vec<Vec<u32>> = ids.by_ref().take(texts).collect();
                let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
                let computed = lease.embed(texts, Output::TokenVectors, context.ticket()).await?;
                queue += computed.queue;
                inference += computed.inference;
                let query = Arc::clone(&query);
                let work = move || compare(&query, &computed.vectors, &lengths, length);
                let permits = &service.0.permits.work;
                scores.extend(permits.run(context.uid, context.deadline, work).await?);
            }
            Ok::<_, EmbedError>((scores, queue, inference))
        };
        // Count the tokens of truncated texts while the scores are computed.
        let ((vectors, queue, inference), of_query, of_documents) = tokio::try_join!(
            compute,
            count(tokenizing, lease.clone(), of_query, query.whole),
            count(tokenizing, lease.clone(), of_documents, documents.whole),
        )?;
        let provided = of_documents.into_iter().chain(of_query);
        let tokens = provided.zip(used.into_iter().chain([query_tokens]));
        let tokens = tokens.map(|(provided, used)| TokenCounts { provided, used }).collect();
        Ok(Embeddings {
            info,
            vectors,
            dimensions: 1,
            output_type: OutputType::default(),
            tokens,
            ids: Vec::new(),
            characters: query.characters + documents.characters,
            fallback_for: lease.fallback_for.clone(),
            timings: Timings { tokenization, queue, inference },
        })
    }
}

/// Checks that no text was truncated to `most` tokens.
fn check_long(texts: &TokenizedTexts, most: usize) -> Result<(), EmbedError> {
    let TokenizedTexts { ids, whole, .. } = texts;
    match ids.iter().zip(whole).position(|(ids, whole)| *whole != Some(ids.len())) {
        Some(index) => Err(EmbedError::TooLong { index, found: whole[index], most }),
        None => Ok(()),
    }
}

/// Checks that a query of `tokens` tokens is short enough for late interaction.
fn check_query(tokens: usize) -> Result<(), EmbedError> {
    match tokens <= MAX_QUERY_TOKENS {
        true => Ok(()),
        false => Err(EmbedError::TooManyTokens { found: tokens, most: MAX_QUERY_TOKENS }),
    }
}

/// Divides texts of `lengths` tokens into groups that are computed one after another. Returns the
/// number of texts and of tokens of each group. A group has at most [`MAX_TOKEN_STATES`] tokens, or
/// a single text.
fn groups(lengths: &[usize]) -> Vec<(usize, usize)> {
    let mut groups: Vec<(usize, usize)> = Vec::new();
    for &length in lengths {
        match groups.last_mut() {
            Some((texts, tokens)) if *tokens + length <= MAX_TOKEN_STATES => {
                *texts += 1;
                *tokens += length;
            }
            _ => groups.push((1, length)),
        }
    }
    groups
}

/// Returns the score of each document. `vectors` contains the vectors of all tokens of documents of
/// `lengths` tokens, and `query` those of the query without its first token.
fn compare(query: &[f32], vectors: &[f32], lengths: &[usize], length: usize) -> Vec<f32> {
    let mut rest = vectors;
    let scores = lengths.iter().map(|tokens| {
        let (document, others) = rest.split_at((tokens * length).min(rest.len()));
        rest = others;
        max_sim(query, document.get(length..).unwrap_or_default(), length)
    });
    scores.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_vector_has_largest_weight_of_each_token() {
        let ids = [0, 7, 5, 7, 9, 3, 2];
        let weights = [9.0, 0.5, 0.25, 0.75, 0.0, 8.0, 7.0];
        let vector = sparse_vector(ids.iter().zip(&weights), &[0, 2, 3]);
        assert_eq!(vector, BTreeMap::from([(5, 0.25), (7, 0.75)]));
    }

    #[test]
    fn long_query_is_refused() {
        assert!(check_query(MAX_QUERY_TOKENS).is_ok());
        let error = check_query(513).unwrap_err();
        assert!(matches!(error, EmbedError::TooManyTokens { found: 513, most: 512 }), "{error}");
    }

    #[test]
    fn groups_are_bounded_unless_a_text_is_alone() {
        let most = MAX_TOKEN_STATES;
        assert_eq!(
            groups(&[most - 5, 5, 1, most + 1, 2]),
            [(2, most), (1, 1), (1, most + 1), (1, 2)]
        );
        assert_eq!(groups(&[]), []);
    }

    #[test]
    fn first_token_of_document_is_not_compared() {
        let query = [1.0, 0.0];
        let vectors = [1.0, 0.0, 0.6, 0.8, 1.0, 0.0, 0.0, 1.0, -1.0, 0.0, 1.0, 0.0];
        assert_eq!(compare(&query, &vectors, &[2, 3, 1], 2), [0.6, 0.0, 0.0]);
    }
}
