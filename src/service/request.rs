//! A request of the service, the context of its call, and its result.
//!
//! Pure: contains no step that waits.
//!
//! Invariant: a [`CheckedInput`] has 1 to [`MAX_INPUTS`] texts, and each of them has contents. So
//! the input of a request is checked exactly once, when it is created.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget::BudgetCharge;
use super::check_vectors;
use super::error::EmbedError;
use super::output_type::OutputType;
use super::tenant::InFlightGuard;
use crate::config::TenantSettings;
use crate::engine::{Output, Truncation};
use crate::models::catalog::RequestTexts;
use crate::models::{FallbackFor, Flow, ModelInfo, ModelUser, Owner, Priority, Ticket, Urgency};
use crate::package::Manifest;

/// Most texts, or lists of token ids, of a request: the same limit as OpenAI's.
pub const MAX_INPUTS: usize = 2048;

/// Number of numbers that take as much memory and text as a token in a sparse vector: its id, its
/// weight, and the names of both.
const SPARSE_NUMBERS: usize = 3;

/// One or more inputs, as texts or as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Texts.
    Texts(Vec<String>),
    /// Token ids of each text.
    Ids(Vec<Vec<u32>>),
}

impl Default for Input {
    fn default() -> Self {
        Self::Texts(Vec::new())
    }
}

impl Input {
    /// Returns the texts in the form from which an alias selects its canary.
    pub(super) fn request_texts(&self) -> RequestTexts<'_> {
        match self {
            Self::Texts(texts) => RequestTexts::Plain(texts),
            Self::Ids(lists) => RequestTexts::Ids(lists),
        }
    }
}

/// Input of a valid size without an empty text. Clones share it.
#[derive(Clone, Debug)]
pub struct CheckedInput(Arc<Input>);

impl CheckedInput {
    /// Checks the input as far as possible without a model, so that an invalid request loads
    /// nothing.
    ///
    /// # Errors
    /// When the input has no text, more than [`MAX_INPUTS`], or an empty one.
    pub fn new(input: Input) -> Result<Self, EmbedError> {
        let (count, empty) = match &input {
            Input::Texts(texts) => (texts.len(), texts.iter().position(String::is_empty)),
            Input::Ids(lists) => (lists.len(), lists.iter().position(Vec::is_empty)),
        };
        if count == 0 {
            return Err(EmbedError::NoInput);
        }
        if count > MAX_INPUTS {
            return Err(EmbedError::TooManyInputs { most: MAX_INPUTS });
        }
        match empty {
            Some(index) => Err(EmbedError::EmptyText { index }),
            None => Ok(Self(Arc::new(input))),
        }
    }

    /// Returns the texts or token ids.
    pub fn input(&self) -> &Input {
        &self.0
    }

    /// Returns the texts; an empty slice for token ids.
    pub fn texts(&self) -> &[String] {
        match &*self.0 {
            Input::Texts(texts) => texts,
            Input::Ids(_) => &[],
        }
    }
}

/// A request for vectors of texts.
#[derive(Clone, Debug)]
pub struct EmbedRequest {
    /// Texts, or their token ids.
    pub input: CheckedInput,
    /// Kind of result for each text.
    pub output: OutputKind,
    /// Prompt to put before each text.
    pub prompt: Prompt,
    /// Whether a text that is too long is an error. Otherwise it is truncated.
    pub refuse_long: bool,
    /// End at which a long text is truncated.
    pub truncation: Truncation,
    /// Length to which vectors are cut. They are scaled to length 1 again if the model normalizes.
    pub dimensions: Option<usize>,
    /// Type in which the vectors are written. The service checks their length for it and names
    /// their embedding space; the dialect converts them with [`OutputType::quantize`].
    pub output_type: OutputType,
    /// Whether the vectors are only compared with each other and not written.
    pub is_compared: bool,
}

impl EmbedRequest {
    /// Creates a request for whole vectors of `input`, with the model's default prompt.
    pub fn new(input: CheckedInput) -> Self {
        Self {
            input,
            output: OutputKind::default(),
            prompt: Prompt::default(),
            refuse_long: false,
            truncation: Truncation::default(),
            dimensions: None,
            output_type: OutputType::default(),
            is_compared: false,
        }
    }

    /// Returns the facts about the model as the answer states them: with the requested
    /// normalization, and with the embedding space of the requested types.
    pub(super) fn describe(&self, info: &ModelInfo) -> ModelInfo {
        let mut info = self.output.apply_to(info);
        if self.output_type != OutputType::Float {
            info.embedding_space = self.output_type.name_space(&info.embedding_space).into();
        }
        info
    }
}

/// Kind of result for each text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutputKind {
    /// Vector of the text, as the model's manifest describes it.
    #[default]
    Vector,
    /// Vector of the text, scaled to length 1 (`true`) or not (`false`), whatever the manifest
    /// declares.
    Normalized(bool),
    /// States of all tokens of the text after the last layer, or their vectors if the model has a
    /// multi-vector head.
    TokenStates,
    /// Weights of all tokens of the text, for its sparse vector.
    Sparse,
}

impl OutputKind {
    /// Checks that a model computes this result.
    pub(super) fn check(self, manifest: &Manifest) -> Result<(), EmbedError> {
        check_vectors(manifest)?;
        match self {
            Self::Sparse => check_sparse(manifest),
            Self::Vector | Self::Normalized(_) | Self::TokenStates => Ok(()),
        }
    }

    /// Returns the output of the engine that gives a model's result of this kind.
    pub(super) fn output(self, manifest: &Manifest) -> Output {
        match self {
            Self::Normalized(false) if manifest.normalize => Output::Unnormalized,
            Self::Vector | Self::Normalized(_) => Output::Vector,
            Self::TokenStates if manifest.multi_vector.is_some() => Output::TokenVectors,
            Self::TokenStates => Output::TokenStates,
            Self::Sparse => Output::TokenWeights,
        }
    }

    /// Returns the numbers of the answer for each text, or for each token of results that have rows
    /// for tokens.
    pub(super) fn row_numbers(self, manifest: &Manifest) -> usize {
        match self {
            Self::Vector | Self::Normalized(_) => manifest.dimensions,
            Self::TokenStates => {
                let head = manifest.multi_vector.as_ref();
                head.map_or(manifest.dimensions, |head| head.dimensions)
            }
            Self::Sparse => SPARSE_NUMBERS,
        }
    }

    /// Returns the model as if its manifest declared the requested normalization. The result has
    /// the embedding space of such a model.
    pub(super) fn apply_to(self, info: &ModelInfo) -> ModelInfo {
        let mut info = info.clone();
        if let Self::Normalized(normalize) = self
            && normalize != info.manifest.normalize
        {
            let manifest = Manifest { normalize, ..Manifest::clone(&info.manifest) };
            info.embedding_space = manifest.embedding_space().into();
            info.manifest = Arc::new(manifest);
        }
        info
    }
}

/// Prompt to put before each text.
#[derive(Clone, Debug, Default)]
pub enum Prompt {
    /// Default prompt of the model, if it has one.
    #[default]
    Default,
    /// Prompt of the model with this name.
    Named(String),
    /// Prompt for a query in a search: the model's `query`, or else its default.
    Query,
    /// Prompt for a document in a search: the model's `passage` or `document`, or else its default.
    Passage,
}

impl Prompt {
    /// Returns the text of this prompt in a model; the empty text if the model has none for it.
    ///
    /// # Errors
    /// When the model has no prompt with the name.
    pub(super) fn text(&self, manifest: &Manifest) -> Result<String, EmbedError> {
        let usual: &[&str] = match self {
            Self::Default => &[],
            Self::Query => &["query"],
            Self::Passage => &["passage", "document"],
            Self::Named(name) => {
                return manifest.prompts.get(name).cloned().ok_or_else(|| {
                    EmbedError::UnknownPrompt {
                        model: manifest.id.to_string(),
                        prompt: name.clone(),
                        known: manifest.prompts.keys().cloned().collect(),
                    }
                });
            }
        };
        let names = usual.iter().copied().chain(manifest.default_prompt.as_deref());
        let found = names.into_iter().find_map(|name| manifest.prompts.get(name));
        Ok(found.cloned().unwrap_or_default())
    }
}

/// Facts about a call of the service that do not depend on the request: the caller, its rights and
/// its patience.
#[derive(Clone, Debug)]
pub struct CallContext {
    /// Connection, for fair scheduling among the connections of a user.
    pub connection: u64,
    /// User id, for fair scheduling among users.
    pub uid: u32,
    /// User on whose account the use of a model is counted.
    pub user: ModelUser,
    /// Bytes that the request holds of the budget. They are released when the last copy is dropped
    /// and the answer is written.
    pub charge: Arc<BudgetCharge>,
    /// Whether a fallback may answer; `None` leaves the decision to the settings.
    pub allow_fallback: Option<bool>,
    /// Embedding space that the vectors must have; `None` if any will do.
    pub expected_space: Option<Arc<str>>,
    /// Class of the request; `None` if the number of tokens decides.
    pub priority: Option<Priority>,
    /// Tenant of the request. The request counts as in flight until the last copy is dropped.
    pub tenant: Option<Arc<InFlightGuard>>,
    /// Instant at which the request times out.
    pub deadline: Instant,
}

impl CallContext {
    /// Returns the scheduling data of the request for the queue of a model.
    pub(super) fn ticket(&self) -> Ticket {
        let tenant = self.tenant.as_deref().map(InFlightGuard::tenant);
        let own_queue = tenant.filter(|tenant| tenant.settings.dedicated_queue);
        Ticket {
            flow: Flow {
                owner: tenant.map_or(Owner::User(self.uid), |tenant| Owner::Tenant(tenant.flow())),
                connection: self.connection,
            },
            priority: self.priority,
            deadline: self.deadline,
            tenant: own_queue.map(|tenant| Arc::clone(&tenant.name)),
            weight: tenant.map_or(TenantSettings::PRIORITY, |tenant| tenant.settings.priority),
        }
    }

    /// Returns the urgency of the request while its model is loading. The tokens are not counted
    /// yet, so a request without a class is interactive.
    pub(super) fn urgency(&self) -> Urgency {
        let priority = self.priority.unwrap_or(Priority::Interactive);
        Urgency { priority, deadline: self.deadline }
    }

    /// Returns the settings of the tenant.
    pub fn tenant_settings(&self) -> Option<&TenantSettings> {
        self.tenant.as_deref().map(|guard| &guard.tenant().settings)
    }
}

/// Tokens of one text, special tokens included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenCounts {
    /// Tokens of the text before truncation.
    pub provided: usize,
    /// Tokens from which the vector is computed.
    pub used: usize,
}

/// Durations of the stages of a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Time to convert texts to token ids.
    pub tokenization: Duration,
    /// Time in the queue.
    pub queue: Duration,
    /// Time to convert token ids to vectors.
    pub inference: Duration,
}

/// Vectors with facts about their origin.
#[derive(Debug)]
pub struct Embeddings {
    /// Model that answered.
    pub info: ModelInfo,
    /// Vectors `[texts, dimensions]`, or states or weights of tokens `[tokens of all texts,
    /// dimensions]`; row-major.
    pub vectors: Vec<f32>,
    /// Length of one row.
    pub dimensions: usize,
    /// Requested type, to which the dialect converts the rows.
    pub output_type: OutputType,
    /// Token counts of each text.
    pub tokens: Vec<TokenCounts>,
    /// Token ids of each text, from which the weights are computed; empty for other results.
    pub ids: Vec<Vec<u32>>,
    /// Number of characters of all texts; 0 for token ids.
    pub characters: usize,
    /// Model that was requested, and its error, if the answer comes from a fallback.
    pub fallback_for: Option<Arc<FallbackFor>>,
    /// Durations of the stages.
    pub timings: Timings,
}

impl Embeddings {
    /// Returns the vectors or token states one by one.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.vectors.chunks_exact(self.dimensions)
    }

    /// Returns the number of tokens that were computed.
    pub fn used(&self) -> usize {
        self.tokens.iter().map(|tokens| tokens.used).sum()
    }
}

/// Checks that the model has the head for sparse vectors.
fn check_sparse(manifest: &Manifest) -> Result<(), EmbedError> {
    match manifest.sparse {
        Some(_) => Ok(()),
        None => Err(EmbedError::NoHead { model: manifest.id.to_string(), head: "sparse" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_is_checked_for_size_and_empty_texts() {
        let texts = |texts: &[&str]| Input::Texts(texts.iter().map(ToString::to_string).collect());
        assert!(matches!(CheckedInput::new(Input::default()), Err(EmbedError::NoInput)));
        for most in [Input::Texts(vec!["a".to_owned(); MAX_INPUTS]), Input::Ids(vec![vec![1]])] {
            assert_eq!(CheckedInput::new(most.clone()).unwrap().input(), &most);
        }
        let more = CheckedInput::new(Input::Ids(vec![vec![]; MAX_INPUTS + 1]));
        assert!(matches!(more, Err(EmbedError::TooManyInputs { most: MAX_INPUTS })));
        for input in [texts(&["a", "", ""]), Input::Ids(vec![vec![7], vec![]])] {
            assert!(matches!(CheckedInput::new(input), Err(EmbedError::EmptyText { index: 1 })));
        }
    }
}
