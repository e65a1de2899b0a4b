//! Reads post-processors: the special tokens around a single text, and those of a pair of texts.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::mismatch;
use super::parse_known;
use crate::engine::EngineError;
use crate::engine::quote::quote;
use crate::engine::token_type::with_type;

/// Maximum number of special tokens on one side of a text.
const MOST_AROUND: usize = 16;

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum PostProcessor {
    BertProcessing {
        sep: (String, u32),
        cls: (String, u32),
    },
    RobertaProcessing {
        sep: (String, u32),
        cls: (String, u32),
        #[serde(rename = "trim_offsets")]
        _trim_offsets: Option<bool>,
        #[serde(rename = "add_prefix_space")]
        _add_prefix_space: Option<bool>,
    },
    ByteLevel {
        #[serde(rename = "add_prefix_space")]
        _add_prefix_space: Option<bool>,
        #[serde(rename = "trim_offsets")]
        _trim_offsets: Option<bool>,
        #[serde(rename = "use_regex")]
        _use_regex: Option<bool>,
    },
    TemplateProcessing {
        single: Vec<TemplatePiece>,
        pair: Vec<TemplatePiece>,
        special_tokens: BTreeMap<String, SpecialToken>,
    },
    Sequence {
        processors: Vec<PostProcessor>,
    },
}

#[derive(Deserialize)]
enum TemplatePiece {
    Sequence { id: SequenceId, type_id: u32 },
    SpecialToken { id: String, type_id: u32 },
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
enum SequenceId {
    A,
    B,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SpecialToken {
    id: String,
    ids: Vec<u32>,
    tokens: Vec<String>,
}

/// Token ids before and after a text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::engine::tokenize) struct SurroundingTokens {
    pub(in crate::engine::tokenize) prefix: Vec<u32>,
    pub(in crate::engine::tokenize) suffix: Vec<u32>,
}

/// Special tokens of a pair of texts, as ids with their [token types](crate::engine::token_type),
/// and the token types of the two texts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::engine::tokenize) struct PairTemplate {
    /// Tokens before the first text.
    pub(in crate::engine::tokenize) before: Vec<u32>,
    /// Token type of the first text.
    pub(in crate::engine::tokenize) first_type: u32,
    /// Tokens between the two texts.
    pub(in crate::engine::tokenize) between: Vec<u32>,
    /// Token type of the second text.
    pub(in crate::engine::tokenize) second_type: u32,
    /// Tokens after the second text.
    pub(in crate::engine::tokenize) after: Vec<u32>,
}

impl PairTemplate {
    /// Returns the special tokens in their order.
    pub(in crate::engine::tokenize) fn specials(&self) -> impl Iterator<Item = u32> {
        [&self.before, &self.between, &self.after].into_iter().flatten().copied()
    }
}

/// Special tokens that a post-processor adds.
pub(in crate::engine::tokenize) struct PostProcessing {
    /// Tokens around a single text.
    pub(in crate::engine::tokenize) around: SurroundingTokens,
    /// Tokens of a pair of texts, or the reason why the tokenizer does not take pairs. Most models
    /// never read a pair, so this reason is not an error of the file.
    pub(in crate::engine::tokenize) pair: Result<PairTemplate, EngineError>,
}

/// Reads the special tokens that a post-processor adds.
///
/// # Errors
/// Returns an error if the post-processor is not supported, or does not use a single text exactly
/// once.
pub(in crate::engine::tokenize) fn post_processor(
    section: Option<&RawValue>,
) -> Result<PostProcessing, EngineError> {
    let Some(section) = section else {
        return Ok(PostProcessing { around: SurroundingTokens::default(), pair: Err(no_pair()) });
    };
    let processor = parse_known("post-processor", section)?;
    let pair = pair_template(&processor).and_then(|pair| pair.ok_or_else(no_pair));
    Ok(PostProcessing { around: surrounding_tokens(processor)?, pair })
}

fn no_pair() -> EngineError {
    mismatch("the post-processor has no template for a pair of texts")
}

/// Adds `ids` to the special tokens on one side of a text. Checks their number with each addition,
/// because a template may name a token with many ids any number of times.
fn extend(side: &mut Vec<u32>, ids: impl ExactSizeIterator<Item = u32>) -> Result<(), EngineError> {
    if side.len() + ids.len() > MOST_AROUND {
        return Err(mismatch(format!(
            "more than {MOST_AROUND} special tokens on a side of a text"
        )));
    }
    side.extend(ids);
    Ok(())
}

fn surrounding_tokens(processor: PostProcessor) -> Result<SurroundingTokens, EngineError> {
    match processor {
        PostProcessor::BertProcessing { sep, cls }
        | PostProcessor::RobertaProcessing { sep, cls, .. } => {
            Ok(SurroundingTokens { prefix: vec![cls.1], suffix: vec![sep.1] })
        }
        PostProcessor::ByteLevel { .. } => Ok(SurroundingTokens::default()),
        PostProcessor::TemplateProcessing { single, special_tokens, .. } => {
            single_template(&single, &special_tokens)
        }
        PostProcessor::Sequence { processors } => {
            let mut all = SurroundingTokens::default();
            // Later processors in a sequence add their tokens outside of those of the earlier ones.
            for processor in processors {
                let SurroundingTokens { mut prefix, suffix } = surrounding_tokens(processor)?;
                extend(&mut prefix, all.prefix.into_iter())?;
                all.prefix = prefix;
                extend(&mut all.suffix, suffix.into_iter())?;
            }
            Ok(all)
        }
    }
}

/// Returns the template of a pair; `None` if the processor adds no tokens.
fn pair_template(processor: &PostProcessor) -> Result<Option<PairTemplate>, EngineError> {
    match processor {
        PostProcessor::BertProcessing { sep, cls } => Ok(Some(PairTemplate {
            before: vec![cls.1],
            first_type: 0,
            between: vec![sep.1],
            second_type: 1,
            after: vec![with_type(sep.1, 1)],
        })),
        PostProcessor::RobertaProcessing { sep, cls, .. } => Ok(Some(PairTemplate {
            before: vec![cls.1],
            between: vec![sep.1, sep.1],
            after: vec![sep.1],
            ..PairTemplate::default()
        })),
        PostProcessor::ByteLevel { .. } => Ok(None),
        PostProcessor::TemplateProcessing { pair, special_tokens, .. } => {
            template_of_pair(pair, special_tokens).map(Some)
        }
        PostProcessor::Sequence { processors } => {
            let mut found = None;
            for processor in processors {
                let Some(template) = pair_template(processor)? else { continue };
                if found.replace(template).is_some() {
                    return Err(mismatch("several post-processors add tokens to a pair of texts"));
                }
            }
            Ok(found)
        }
    }
}

fn check_special_tokens(tokens: &BTreeMap<String, SpecialToken>) -> Result<(), EngineError> {
    for (name, token) in tokens {
        if *name != token.id {
            return Err(mismatch(format!(
                "the special token {} of the post-processor has another id, {}",
                quote(name),
                quote(&token.id)
            )));
        }
        if token.ids.len() != token.tokens.len() || token.ids.is_empty() {
            return Err(mismatch(format!(
                "the special token {} of the post-processor has {} ids and {} tokens",
                quote(name),
                token.ids.len(),
                token.tokens.len()
            )));
        }
    }
    Ok(())
}

/// Returns the ids of the special token `name`.
fn ids_of<'a>(
    name: &str,
    tokens: &'a BTreeMap<String, SpecialToken>,
) -> Result<&'a [u32], EngineError> {
    let token = tokens.get(name).ok_or_else(|| {
        let name = quote(name);
        mismatch(format!("the post-processor does not define its special token {name}"))
    })?;
    Ok(&token.ids)
}

fn single_template(
    single: &[TemplatePiece],
    special_tokens: &BTreeMap<String, SpecialToken>,
) -> Result<SurroundingTokens, EngineError> {
    check_special_tokens(special_tokens)?;
    let once = || mismatch("the post-processor does not take a single text exactly once");
    let (mut prefix, mut suffix, mut taken) = (Vec::new(), Vec::new(), false);
    for piece in single {
        let type_id = match piece {
            TemplatePiece::Sequence { id: SequenceId::A, type_id } if !taken => {
                taken = true;
                *type_id
            }
            TemplatePiece::Sequence { .. } => return Err(once()),
            TemplatePiece::SpecialToken { id, type_id } => {
                let side = if taken { &mut suffix } else { &mut prefix };
                extend(side, ids_of(id, special_tokens)?.iter().copied())?;
                *type_id
            }
        };
        // The encoders here use token type 0 for every token of a single text.
        if type_id != 0 {
            return Err(mismatch(
                "the post-processor gives a single text token types other than 0",
            ));
        }
    }
    if taken { Ok(SurroundingTokens { prefix, suffix }) } else { Err(once()) }
}

fn template_of_pair(
    pieces: &[TemplatePiece],
    special_tokens: &BTreeMap<String, SpecialToken>,
) -> Result<PairTemplate, EngineError> {
    check_special_tokens(special_tokens)?;
    let mut pair = PairTemplate::default();
    let mut texts = Vec::new();
    for piece in pieces {
        let (TemplatePiece::Sequence { type_id, .. } | TemplatePiece::SpecialToken { type_id, .. }) =
            *piece;
        if type_id > 1 {
            return Err(mismatch(format!(
                "the post-processor gives a pair of texts the token type {type_id}; expected 0 or 1"
            )));
        }
        match piece {
            TemplatePiece::Sequence { id, .. } => {
                texts.push(*id);
                let of_text = match id {
                    SequenceId::A => &mut pair.first_type,
                    SequenceId::B => &mut pair.second_type,
                };
                *of_text = type_id;
            }
            TemplatePiece::SpecialToken { id, .. } => {
                let side = match texts.len() {
                    0 => &mut pair.before,
                    1 => &mut pair.between,
                    _ => &mut pair.after,
                };
                let ids = ids_of(id, special_tokens)?.iter();
                extend(side, ids.map(|&id| with_type(id, type_id)))?;
            }
        }
    }
    if texts == [SequenceId::A, SequenceId::B] {
        return Ok(pair);
    }
    Err(mismatch("the post-processor does not take each text of a pair once, in their order"))
}
