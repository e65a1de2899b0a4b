//! The embedding service: from texts to vectors, and from pairs of texts to scores, for every
//! dialect.
//!
//! One call of [`EmbeddingService::embed`] contains all steps of a request: the meaning of the
//! model's name, the permission of the tenant, the lease of the model, the prompt, tokenizing, the
//! queue, the computation, the counts and the timings. The dialects in [`api`](crate::api) convert
//! their JSON into an [`EmbedRequest`] and its result into their answer. This module knows no
//! dialect and no HTTP.
//!
//! Also contains the limits that requests share: the [`Budget`] of bytes, the [`Permits`] for work
//! on the processors, and the limit of each [`Tenant`].
//!
//! Invariants:
//! 1. A text gets the same vector in every dialect.
//! 2. Dropping a future of the service cancels the request at any stage.

mod budget;
mod error;
mod output_type;
mod permit;
mod request;
mod score;
mod tenant;
mod token_heads;
mod tokenize;

use std::sync::Arc;
use std::time::Instant;

pub use budget::{BODY_FACTOR, Budget, BudgetCharge};
pub use error::{
    BudgetExceeded, DRAINING, EmbedError, TenantOverloaded, WorkError, engine_error_code,
    model_error_code,
};
pub use output_type::{OutputType, QuantizedVector};
pub use permit::{Permit, PermitPool, Permits};
pub use request::{
    CallContext, CheckedInput, EmbedRequest, Embeddings, Input, MAX_INPUTS, OutputKind, Prompt,
    Timings, TokenCounts,
};
pub use score::{ScoreError, ScoreRequest};
pub use tenant::{InFlightGuard, Tenant, TenantRequests};

use crate::engine::{EngineError, TokenSpan};
use crate::models::catalog::{self, NameContext, NameError, ResolvedModel};
use crate::models::{Fallback, FallbackFor, Lease, ManagerHandle, ModelInfo};
use crate::package::{Manifest, StoreEntry, trained_dimensions};
use crate::telemetry::metrics::Metrics;
use tokenize::{
    TextRole, TokenizeContext, TokenizeJob, TokenizedTexts, acquire_permit, count, tokenize,
};

/// Most tokens for which a request may get states: as many rows as it may have vectors.
const MAX_TOKEN_STATES: usize = MAX_INPUTS;

/// Computes vectors of texts. Clones share everything and cost one reference count.
#[derive(Clone, Debug)]
pub struct EmbeddingService(Arc<ServiceParts>);

#[derive(Debug)]
struct ServiceParts {
    handle: ManagerHandle,
    permits: Permits,
    metrics: Metrics,
}

impl EmbeddingService {
    /// Creates the service of the models of `handle`.
    pub fn new(handle: ManagerHandle, permits: Permits, metrics: Metrics) -> Self {
        Self(Arc::new(ServiceParts { handle, permits, metrics }))
    }

    /// Returns the permits for work on the processors.
    pub fn permits(&self) -> &Permits {
        &self.0.permits
    }

    /// Computes the vectors of `request` with the model `model`, or with the model of the tenant or
    /// the default model. Loads the model first if necessary. A fallback may answer if the context
    /// or the settings allow it.
    ///
    /// # Errors
    /// When the caller may not use the model, the model cannot serve, the request does not fit the
    /// model, or too many other requests are queued.
    pub async fn embed(
        &self,
        context: &CallContext,
        model: Option<&str>,
        request: EmbedRequest,
    ) -> Result<Embeddings, EmbedError> {
        self.refuse_wrong_task(context, model, &request)?;
        let fallback = Fallback::Vectors(context.allow_fallback);
        let leased = self.lease(context, model, request.input.input(), fallback).await?;
        leased.embed(context, request).await
    }

    /// Checks that the model that `request` means computes its output, so that no model is loaded
    /// in vain.
    fn refuse_wrong_task(
        &self,
        context: &CallContext,
        model: Option<&str>,
        request: &EmbedRequest,
    ) -> Result<(), EmbedError> {
        let model = model.filter(|name| !name.is_empty());
        let ResolvedModel { name, .. } = self.resolve(context, model, request.input.input())?;
        match self.0.handle.catalog().find(&name) {
            Ok(entry) => request.output.check(&entry.manifest),
            // The error is reported when the model is leased.
            Err(_) => Ok(()),
        }
    }

    /// Leases a model as [`embed`](Self::embed) does, for several requests whose vectors are of one
    /// embedding space. The texts of `input` decide whether an alias selects its canary.
    ///
    /// # Errors
    /// When the caller may not use the model, or the model cannot serve.
    pub async fn lease(
        &self,
        context: &CallContext,
        model: Option<&str>,
        input: &Input,
        fallback: Fallback,
    ) -> Result<LeasedModel, EmbedError> {
        let ServiceParts { handle, metrics, .. } = &*self.0;
        // Some clients send an empty text instead of leaving the field out.
        let model = model.filter(|name| !name.is_empty());
        let ResolvedModel { name, alias } = self.resolve(context, model, input)?;
        // A missing model that comes from an alias or from the settings may have a fallback,
        // because it is the operator's choice. A missing model that the client names is the
        // client's error.
        let named = model.is_some() && alias.is_none();
        let is_allowed = |entry: &StoreEntry| catalog::permits(context.tenant_settings(), entry);
        match handle.lease_for(&name, named, fallback, is_allowed, context.urgency()).await {
            Ok(mut lease) => {
                lease.record_use(context.user);
                lease.info.alias = alias;
                if let Some(fallback_for) = &lease.fallback_for {
                    metrics.count_fallback(model_error_code(&fallback_for.error));
                }
                Ok(LeasedModel { service: self.clone(), lease })
            }
            Err(error) => {
                let error = handle.catalog().hide_models(error, context.tenant_settings());
                Err(EmbedError::Lease { alias, source: Box::new(error) })
            }
        }
    }

    /// Determines the model that `model` means for a request with this input, and checks whether
    /// the tenant may request it. Loads nothing.
    ///
    /// # Errors
    /// When the tenant may not request the model, or it is not installed.
    pub fn resolve(
        &self,
        context: &CallContext,
        model: Option<&str>,
        input: &Input,
    ) -> Result<ResolvedModel, EmbedError> {
        let name_context =
            NameContext { tenant: context.tenant_settings(), texts: input.request_texts() };
        let resolved = self.0.handle.catalog().resolve(model, name_context);
        resolved.map_err(|error| match error {
            NameError::NotAllowed(model) => {
                let tenant = context.tenant.as_deref().map(InFlightGuard::tenant);
                if let Some(tenant) = tenant {
                    tenant.count_refusal();
                }
                let tenant = tenant.map_or_else(String::new, |tenant| tenant.name.to_string());
                EmbedError::ModelNotAllowed { tenant, model }
            }
            NameError::Unknown(error) => EmbedError::Model(error),
        })
    }

    fn tokenize_context(&self, context: &CallContext) -> TokenizeContext<'_> {
        let ServiceParts { handle, permits, .. } = &*self.0;
        TokenizeContext { handle, permits, uid: context.uid, urgency: context.urgency() }
    }
}

/// A model that is leased for the requests of one caller. It stays in memory until this is dropped,
/// except while a request waits for a permit to tokenize. Clones hold the same lease.
#[derive(Clone, Debug)]
pub struct LeasedModel {
    service: EmbeddingService,
    lease: Lease,
}

impl LeasedModel {
    /// Returns the facts about the model.
    pub fn info(&self) -> &ModelInfo {
        &self.lease.info
    }

    /// Returns the model that was requested, and its error, if this model is its fallback.
    pub fn fallback_for(&self) -> Option<&FallbackFor> {
        self.lease.fallback_for.as_deref()
    }

    /// Returns the text that `prompt` puts before every input.
    ///
    /// # Errors
    /// When the model has no prompt with the name.
    pub fn prompt(&self, prompt: &Prompt) -> Result<String, EmbedError> {
        prompt.text(&self.lease.info.manifest)
    }

    /// Returns all tokens of a text with their positions in it; with `special`, also the special
    /// tokens around it. Takes a hundred times the memory of the text, and milliseconds: call it in
    /// [`run`](Self::run).
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn pieces(
        &self,
        prompt: &str,
        text: &str,
        special: bool,
    ) -> Result<Vec<TokenSpan>, EngineError> {
        self.lease.pieces(prompt, text, special)
    }

    /// Converts token ids into text. Call it in [`run`](Self::run).
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, EngineError> {
        self.lease.decode(ids, skip_special)
    }

    /// Runs `work` with the model on the blocking pool, with a permit for the caller. The lease is
    /// returned while the request waits for the permit.
    ///
    /// # Errors
    /// When too many other requests are queued, the model cannot be loaded again, or `work` panics.
    pub async fn run<T: Send + 'static>(
        self,
        context: &CallContext,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, EmbedError> {
        let Self { service, lease } = self;
        let tokenizing = service.tokenize_context(context);
        let (permit, lease) = acquire_permit(tokenizing, &tokenizing.permits.work, lease).await?;
        let leased = Self { service, lease };
        let work = move || {
            let _permit = permit;
            work(&leased)
        };
        Ok(tokio::task::spawn_blocking(work).await?)
    }

    /// Computes the vectors of `request`. The lease is returned while the request waits for a
    /// permit to tokenize.
    ///
    /// # Errors
    /// When the request does not fit the model, or too many other requests are queued.
    pub async fn embed(
        self,
        context: &CallContext,
        request: EmbedRequest,
    ) -> Result<Embeddings, EmbedError> {
        let Self { service, lease } = self;
        request.output.check(&lease.info.manifest)?;
        let may_be_any = || service.0.handle.allows_any_dimensions();
        let dimensions = dimensions(request.dimensions, &lease.info.manifest, may_be_any)?;
        request.output_type.check_length(dimensions)?;
        // Name the embedding space before anything is computed. A renewed lease is on the same
        // contents, so this does not change.
        let info = request.describe(&lease.info);
        check_space(context, &info)?;
        let prompt = request.prompt.text(&lease.info.manifest)?.into();
        // Refuse early: with a full queue, tokenizing would be wasted.
        lease.check_queue(&context.ticket())?;
        let began = Instant::now();
        let EmbedRequest { input, truncation, output, .. } = request;
        let job = TokenizeJob { prompt, input, truncation, role: TextRole::Whole };
        let tokenizing = service.tokenize_context(context);
        let (lease, tokenized) = tokenize(tokenizing, lease, job.clone()).await?;
        let tokenization = began.elapsed();
        let TokenizedTexts { ids, whole, characters } = tokenized;
        let used: Vec<usize> = ids.iter().map(Vec::len).collect();
        let long = used.iter().zip(&whole).position(|(used, whole)| *whole != Some(*used));
        if let Some(index) = long
            && request.refuse_long
        {
            let most = lease.max_sequence_length();
            return Err(EmbedError::TooLong { index, found: whole[index], most });
        }
        let total: usize = used.iter().sum();
        if output == OutputKind::TokenStates && total > MAX_TOKEN_STATES {
            return Err(EmbedError::TooManyTokens { found: total, most: MAX_TOKEN_STATES });
        }
        let engine_output = output.output(&lease.info.manifest);
        let rows = if engine_output.is_per_token() { total } else { used.len() };
        let numbers = rows.saturating_mul(output.row_numbers(&lease.info.manifest));
        context.charge.grow_numbers(numbers, request.is_compared)?;
        let kept_ids = if output == OutputKind::Sparse { ids.clone() } else { Vec::new() };
        // Count the tokens of truncated texts while the vectors are computed.
        let (computed, provided) = tokio::try_join!(
            async { Ok(lease.embed(ids, engine_output, context.ticket()).await?) },
            count(tokenizing, lease.clone(), job, whole),
        )?;
        let tokens = provided.into_iter().zip(used);
        let tokens = tokens.map(|(provided, used)| TokenCounts { provided, used }).collect();
        let timings =
            Timings { tokenization, queue: computed.queue, inference: computed.inference };
        let mut vectors = computed.vectors;
        let dimensions = match output {
            OutputKind::TokenStates | OutputKind::Sparse => vectors.len() / total.max(1),
            OutputKind::Vector | OutputKind::Normalized(_) => {
                let (own, wanted) = (&lease.info.manifest, &info.manifest);
                if dimensions < own.dimensions || (wanted.normalize && !own.normalize) {
                    vectors = shorten(&vectors, own.dimensions, dimensions, wanted.normalize);
                }
                dimensions
            }
        };
        Ok(Embeddings {
            info,
            vectors,
            dimensions,
            output_type: request.output_type,
            tokens,
            ids: kept_ids,
            characters,
            fallback_for: lease.fallback_for.clone(),
            timings,
        })
    }
}

/// Checks that the model computes vectors.
fn check_vectors(manifest: &Manifest) -> Result<(), EmbedError> {
    match manifest.is_reranker() {
        false => Ok(()),
        true => Err(EmbedError::Reranker { model: manifest.id.to_string() }),
    }
}

/// Checks that vectors of the model `info` are of the embedding space that the caller expects.
fn check_space(context: &CallContext, info: &ModelInfo) -> Result<(), EmbedError> {
    match &context.expected_space {
        Some(expected) if !OutputType::accepts_space(expected, &info.embedding_space) => {
            Err(EmbedError::SpaceMismatch {
                model: info.manifest.id.to_string(),
                expected: Arc::clone(expected),
                actual: Arc::clone(&info.embedding_space),
            })
        }
        _ => Ok(()),
    }
}

/// Returns the length of the vectors. `may_be_any` returns whether a model may be asked for lengths
/// that it was not trained for.
fn dimensions(
    requested: Option<usize>,
    manifest: &Manifest,
    may_be_any: impl FnOnce() -> bool,
) -> Result<usize, EmbedError> {
    let available = manifest.dimensions;
    let requested = match requested {
        None => return Ok(available),
        Some(requested) if requested == available => return Ok(available),
        Some(requested) => requested,
    };
    if !(1..available).contains(&requested) {
        return Err(EmbedError::WrongDimensions { requested, available });
    }
    let trained = trained_dimensions(manifest);
    if trained.contains(&requested) || may_be_any() {
        return Ok(requested);
    }
    Err(EmbedError::DimensionsNotTrained {
        model: manifest.id.to_string(),
        requested,
        trained: trained.iter().copied().chain([available]).collect(),
    })
}

/// Cuts each vector of `from` numbers to its first `to`, and scales them to length 1 if
/// `normalize`.
fn shorten(vectors: &[f32], from: usize, to: usize, normalize: bool) -> Vec<f32> {
    let mut short = Vec::with_capacity(vectors.len() / from * to);
    for vector in vectors.chunks_exact(from) {
        let begin = short.len();
        short.extend_from_slice(&vector[..to]);
        if normalize {
            scale_to_one(&mut short[begin..]);
        }
    }
    short
}

fn scale_to_one(vector: &mut [f32]) {
    let square: f64 = vector.iter().map(|value| f64::from(*value).powi(2)).sum();
    let length = square.sqrt();
    if length > 0.0 {
        // The components of a unit vector are at most 1: each quotient fits into an f32.
        #[expect(clippy::cast_possible_truncation, reason = "a quotient of at most 1")]
        vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::fixture;

    #[test]
    fn vectors_are_cut_and_scaled_to_length_one() {
        let vectors = [3.0, 4.0, 9.0, 0.0, 0.0, 1.0];
        assert_eq!(shorten(&vectors, 3, 2, true), [0.6, 0.8, 0.0, 0.0]);
        assert_eq!(shorten(&vectors, 3, 1, false), [3.0, 0.0]);
    }

    /// Returns a manifest of a model with vectors of 4 numbers that was trained for 2.
    fn manifest() -> Manifest {
        let entry = fixture::entry("m", "1", 4, "w");
        Manifest { matryoshka_dimensions: vec![2], ..Manifest::clone(&entry.manifest) }
    }

    #[test]
    fn dimensions_are_at_most_those_of_the_model() {
        for may_be_any in [false, true] {
            let manifest = manifest();
            for (requested, expected) in [(None, 4), (Some(2), 2), (Some(4), 4)] {
                let found = dimensions(requested, &manifest, || may_be_any).unwrap();
                assert_eq!(found, expected, "{requested:?}");
            }
            for requested in [0, 5] {
                let error = dimensions(Some(requested), &manifest, || may_be_any).unwrap_err();
                let expected = format!("vectors of length {requested} are not available");
                assert!(error.to_string().starts_with(&expected), "{error}");
            }
        }
    }

    #[test]
    fn untrained_dimensions_need_permission() {
        for requested in [1, 3] {
            let found = dimensions(Some(requested), &manifest(), || true).unwrap();
            assert_eq!(found, requested);
            let error = dimensions(Some(requested), &manifest(), || false).unwrap_err();
            let EmbedError::DimensionsNotTrained { trained, .. } = error else {
                panic!("{error}");
            };
            assert_eq!(trained, [2, 4]);
        }
    }
}
