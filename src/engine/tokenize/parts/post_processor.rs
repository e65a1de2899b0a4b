//! Reads post-processors: the special tokens around a single text.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::mismatch;
use super::parse_known;
use crate::engine::EngineError;
use crate::engine::quote::quote;

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
        /// Template for pairs of texts, which Caxton does not accept.
        #[serde(rename = "pair")]
        _pair: serde::de::IgnoredAny,
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

#[derive(Deserialize, PartialEq, Eq)]
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

/// Reads the special tokens that a post-processor adds around a single text.
///
/// # Errors
/// Returns an error if the post-processor is not supported, or does not use a single text exactly
/// once.
pub(in crate::engine::tokenize) fn post_processor(
    section: &RawValue,
) -> Result<SurroundingTokens, EngineError> {
    let around = surrounding_tokens(parse_known("post-processor", section)?)?;
    if around.prefix.len().max(around.suffix.len()) > MOST_AROUND {
        return Err(mismatch(format!(
            "more than {MOST_AROUND} special tokens on a side of a text"
        )));
    }
    Ok(around)
}

fn surrounding_tokens(processor: PostProcessor) -> Result<SurroundingTokens, EngineError> {
    match processor {
        PostProcessor::BertProcessing { sep, cls }
        | PostProcessor::RobertaProcessing { sep, cls, .. } => {
            Ok(SurroundingTokens { prefix: vec![cls.1], suffix: vec![sep.1] })
        }
        PostProcessor::ByteLevel { .. } => Ok(SurroundingTokens::default()),
        PostProcessor::TemplateProcessing { single, special_tokens, .. } => {
            template(&single, &special_tokens)
        }
        PostProcessor::Sequence { processors } => {
            let mut all = SurroundingTokens::default();
            // Later processors in a sequence add their tokens outside of those of the earlier ones.
            for processor in processors {
                let outer = surrounding_tokens(processor)?;
                all.prefix.splice(0..0, outer.prefix);
                all.suffix.extend(outer.suffix);
            }
            Ok(all)
        }
    }
}

fn template(
    single: &[TemplatePiece],
    special_tokens: &BTreeMap<String, SpecialToken>,
) -> Result<SurroundingTokens, EngineError> {
    for (name, token) in special_tokens {
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
                let token = special_tokens.get(id).ok_or_else(|| {
                    let id = quote(id);
                    mismatch(format!("the post-processor does not define its special token {id}"))
                })?;
                let side = if taken { &mut suffix } else { &mut prefix };
                side.extend(&token.ids);
                *type_id
            }
        };
        // The encoders here use token type 0 for every token.
        if type_id != 0 {
            return Err(mismatch(
                "the post-processor gives a single text token types other than 0",
            ));
        }
    }
    if taken { Ok(SurroundingTokens { prefix, suffix }) } else { Err(once()) }
}
