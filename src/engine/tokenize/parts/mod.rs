//! Reads the components of a tokenizer that Caxton supports: normalizers, pre-tokenizers,
//! post-processors and decoders.
//!
//! Each component is read into an enum that covers exactly the tokenizers of the supported
//! architectures. Regular expressions and their replacements are compared with lists of known ones.
//! A component that is not listed here is refused by name.
//!
//! Invariants of the accepted components:
//! 1. The time for a text is proportional to its length: each regular expression is known, and each
//!    processes a text in one pass.
//! 2. A normalizer turns a byte into at most a few characters: a replacement that expands a text
//!    occurs only once, at most one of Precompiled, NFKC and NFKD occurs, and at most one
//!    BertNormalizer puts spaces around Chinese characters.

mod decoder;
mod post_processor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{
    BertNormalizer, Lowercase, NFC, NFD, NFKC, NFKD, Nmt, Precompiled, Prepend, Replace,
    Sequence as NormalizerSequence, Strip, StripAccents,
};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizerSequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::whitespace::{Whitespace, WhitespaceSplit};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

pub(super) use decoder::decoder;
pub(super) use post_processor::{PairTemplate, PostProcessing, SurroundingTokens, post_processor};

use super::super::EngineError;
use super::super::quote::{escape, quote};
use super::{charsmap, mismatch, unreadable};

/// Character that represents a space in the words of SentencePiece.
const SPACE: &str = "▁";
/// Maximum number of normalizers of one tokenizer. model2vec has one for each of 32 punctuation
/// marks, and a few more.
const MOST_NORMALIZERS: usize = 48;
/// Regular expressions that split a text into words, with the models that use them.
const WORDS: [&str; 3] = [
    // GPT-2, RoBERTa, ModernBERT.
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    // Qwen 2 and 3.
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // Llama 3, EuroBERT.
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// Regular expressions that a normalizer may replace, with their replacements.
const REPLACED_EXPRESSIONS: [(&str, &str); 4] =
    [(" {2,}", SPACE), (" {2,}", " "), (r"\s+", " "), (r"\s{2,}", " ")];
/// Texts that a normalizer may replace, with their replacements.
const REPLACED_TEXTS: [(&str, &str); 5] =
    [(" ", SPACE), ("\t", " "), ("\n", " "), ("\r", " "), (SPACE, " ")];

/// Search pattern: a text or a regular expression.
#[derive(Debug, Deserialize)]
enum Pattern {
    String(String),
    Regex(String),
}

impl Pattern {
    fn describe(&self) -> String {
        match self {
            Self::String(text) => format!("the text {}", quote(text)),
            Self::Regex(expression) => format!("the regular expression {}", quote(expression)),
        }
    }
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum Normalizer {
    #[serde(rename = "BertNormalizer")]
    Bert {
        clean_text: bool,
        handle_chinese_chars: bool,
        strip_accents: Option<bool>,
        lowercase: bool,
    },
    #[serde(rename = "NFC")]
    Nfc,
    #[serde(rename = "NFD")]
    Nfd,
    #[serde(rename = "NFKC")]
    Nfkc,
    #[serde(rename = "NFKD")]
    Nfkd,
    Nmt,
    Lowercase,
    StripAccents,
    Strip {
        strip_left: bool,
        strip_right: bool,
    },
    Precompiled {
        precompiled_charsmap: Option<String>,
    },
    Replace {
        pattern: Pattern,
        content: String,
    },
    Prepend {
        prepend: String,
    },
    Sequence {
        normalizers: Vec<Normalizer>,
    },
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Scheme {
    First,
    Never,
    Always,
}

/// Fields of the pre-tokenizer and of the decoder, which have the same format.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ByteLevelFields {
    add_prefix_space: bool,
    trim_offsets: bool,
    use_regex: Option<bool>,
}

impl ByteLevelFields {
    fn build(self) -> ByteLevel {
        ByteLevel::new(self.add_prefix_space, self.trim_offsets, self.use_regex.unwrap_or(true))
    }
}

/// Fields of the pre-tokenizer and of the decoder, which have the same format.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MetaspaceFields {
    replacement: char,
    prepend_scheme: Option<Scheme>,
    split: Option<bool>,
    add_prefix_space: Option<bool>,
    #[serde(rename = "str_rep")]
    _str_rep: Option<String>,
}

impl MetaspaceFields {
    fn build(self) -> Result<Metaspace, EngineError> {
        if !SPACE.contains(self.replacement) {
            let replacement = quote(&self.replacement.to_string());
            return Err(unsupported(&format!("Metaspace with {replacement} for a space")));
        }
        let scheme = match (self.prepend_scheme, self.add_prefix_space) {
            (None | Some(Scheme::Never), Some(false)) | (Some(Scheme::Never), _) => {
                PrependScheme::Never
            }
            (Some(Scheme::First), Some(true) | None) => PrependScheme::First,
            (None | Some(Scheme::Always), Some(true) | None) => PrependScheme::Always,
            (Some(_), Some(false)) => {
                return Err(mismatch("add_prefix_space contradicts prepend_scheme"));
            }
        };
        Ok(Metaspace::new(self.replacement, scheme, self.split.unwrap_or(true)))
    }
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum PreTokenizer {
    #[serde(rename = "BertPreTokenizer")]
    Bert,
    ByteLevel(ByteLevelFields),
    Metaspace(MetaspaceFields),
    Split {
        pattern: Pattern,
        behavior: SplitDelimiterBehavior,
        invert: bool,
    },
    Whitespace,
    WhitespaceSplit,
    Sequence {
        pretokenizers: Vec<PreTokenizer>,
    },
}

/// Reads a component; error messages call its kind `kind`.
fn parse_known<T: DeserializeOwned>(kind: &str, section: &RawValue) -> Result<T, EngineError> {
    #[derive(Deserialize)]
    struct Tag {
        r#type: Option<String>,
    }
    serde_json::from_str(section.get()).map_err(|error| {
        let tag = serde_json::from_str::<Tag>(section.get()).ok().and_then(|tag| tag.r#type);
        let name = tag.map_or_else(|| "without a type".to_owned(), |tag| quote(&tag));
        mismatch(format!("the {kind} {name} is not supported: {}", escape(error)))
    })
}

fn unsupported(what: &str) -> EngineError {
    mismatch(format!("{what} is not supported; caxton-package(5) lists the supported tokenizers"))
}

/// Reads a normalizer; returns `None` if it has no steps.
///
/// # Errors
/// Returns an error that names the normalizer if it is not supported.
pub(super) fn normalizer(section: &RawValue) -> Result<Option<NormalizerWrapper>, EngineError> {
    let mut steps = Vec::new();
    flatten(parse_known("normalizer", section)?, &mut steps);
    if steps.len() > MOST_NORMALIZERS {
        return Err(unsupported(&format!("a sequence of {} normalizers", steps.len())));
    }
    let charsmaps = steps.iter().filter(|step| matches!(step, Normalizer::Precompiled { .. }));
    let compositions =
        steps.iter().filter(|step| matches!(step, Normalizer::Nfkc | Normalizer::Nfkd));
    if charsmaps.count() + compositions.count() > 1 {
        return Err(unsupported(
            "a sequence of normalizers with more than one of Precompiled, NFKC, NFKD",
        ));
    }
    let spacing =
        |step: &&Normalizer| matches!(step, Normalizer::Bert { handle_chinese_chars: true, .. });
    if steps.iter().filter(spacing).count() > 1 {
        return Err(unsupported(
            "a sequence of normalizers with more than one BertNormalizer with \
             handle_chinese_chars",
        ));
    }
    let mut replaced = Vec::new();
    let mut built = Vec::with_capacity(steps.len());
    for step in steps {
        built.extend(build_normalizer(step, &mut replaced)?);
    }
    // A sequence of one normalizer would be equivalent but slower.
    match built.len() {
        0 => Ok(None),
        1 => Ok(built.pop()),
        _ => Ok(Some(NormalizerSequence::new(built).into())),
    }
}

fn flatten(normalizer: Normalizer, steps: &mut Vec<Normalizer>) {
    match normalizer {
        Normalizer::Sequence { normalizers } => {
            normalizers.into_iter().for_each(|step| flatten(step, steps));
        }
        step => steps.push(step),
    }
}

/// Builds one step, or returns `None` for a step without effect. `replaced` collects the patterns
/// of the steps before.
fn build_normalizer(
    step: Normalizer,
    replaced: &mut Vec<String>,
) -> Result<Option<NormalizerWrapper>, EngineError> {
    Ok(Some(match step {
        Normalizer::Bert { clean_text, handle_chinese_chars, strip_accents, lowercase } => {
            BertNormalizer::new(clean_text, handle_chinese_chars, strip_accents, lowercase).into()
        }
        Normalizer::Nfc => NFC.into(),
        Normalizer::Nfd => NFD.into(),
        Normalizer::Nfkc => NFKC.into(),
        Normalizer::Nfkd => NFKD.into(),
        Normalizer::Nmt => Nmt.into(),
        Normalizer::Lowercase => Lowercase.into(),
        Normalizer::StripAccents => StripAccents.into(),
        Normalizer::Strip { strip_left, strip_right } => Strip::new(strip_left, strip_right).into(),
        // SentencePiece writes no charsmap if it does not normalize.
        Normalizer::Precompiled { precompiled_charsmap } => {
            match precompiled_charsmap.as_deref().unwrap_or_default() {
                "" => return Ok(None),
                written => build_charsmap(written)?.into(),
            }
        }
        Normalizer::Replace { pattern, content } => {
            let told = pattern.describe();
            if !is_replaced(&pattern, &content) {
                let content = quote(&content);
                return Err(unsupported(&format!(
                    "the normalizer Replace with {told} and the content {content}"
                )));
            }
            if replaced.contains(&told) {
                return Err(unsupported(&format!("the normalizer Replace with {told} twice")));
            }
            replaced.push(told);
            let pattern = match pattern {
                Pattern::String(text) => ReplacePattern::String(text),
                Pattern::Regex(expression) => ReplacePattern::Regex(expression),
            };
            Replace::new(pattern, content).map_err(unreadable)?.into()
        }
        Normalizer::Prepend { prepend } if prepend == SPACE => Prepend::new(prepend).into(),
        Normalizer::Prepend { prepend } => {
            return Err(unsupported(&format!("the normalizer Prepend with {}", quote(&prepend))));
        }
        Normalizer::Sequence { .. } => return Ok(None),
    }))
}

fn is_replaced(pattern: &Pattern, content: &str) -> bool {
    match pattern {
        Pattern::Regex(expression) => {
            REPLACED_EXPRESSIONS.contains(&(expression.as_str(), content))
        }
        Pattern::String(text) => {
            // model2vec adds spaces around punctuation.
            let mut characters = text.chars();
            let spaced = characters.next().is_some_and(|mark| mark.is_ascii_punctuation())
                && characters.next().is_none()
                && content.strip_prefix(' ').and_then(|rest| rest.strip_suffix(' ')) == Some(text);
            spaced || REPLACED_TEXTS.contains(&(text.as_str(), content))
        }
    }
}

fn build_charsmap(written: &str) -> Result<Precompiled, EngineError> {
    let bytes = STANDARD
        .decode(written)
        .map_err(|error| mismatch(format!("the charsmap is not base64: {error}")))?;
    charsmap::check(&bytes).map_err(|what| mismatch(format!("the charsmap {what}")))?;
    Precompiled::from(&bytes).map_err(|error| unreadable(error.to_string()))
}

/// Reads a pre-tokenizer; returns `None` if it has no steps.
///
/// # Errors
/// Returns an error that names the pre-tokenizer if it is not supported.
pub(super) fn pre_tokenizer(
    section: &RawValue,
) -> Result<Option<PreTokenizerWrapper>, EngineError> {
    match parse_known("pre-tokenizer", section)? {
        PreTokenizer::Sequence { pretokenizers } => {
            use PreTokenizer::{ByteLevel, Metaspace, Split, WhitespaceSplit};
            match pretokenizers.as_slice() {
                // ByteLevel writes each byte as a character. So at most one is allowed: a second
                // one would double the length of a text.
                [] | [_] | [Split { .. }, ByteLevel(_)] | [WhitespaceSplit, Metaspace(_)] => {}
                _ => {
                    let count = pretokenizers.len();
                    return Err(unsupported(&format!(
                        "this sequence of {count} pre-tokenizers, neither Split and ByteLevel nor \
                         WhitespaceSplit and Metaspace,"
                    )));
                }
            }
            let mut built: Vec<PreTokenizerWrapper> =
                pretokenizers.into_iter().map(build_pre_tokenizer).collect::<Result<_, _>>()?;
            match built.len() {
                0 | 1 => Ok(built.pop()),
                _ => Ok(Some(PreTokenizerSequence::new(built).into())),
            }
        }
        one => build_pre_tokenizer(one).map(Some),
    }
}

fn build_pre_tokenizer(one: PreTokenizer) -> Result<PreTokenizerWrapper, EngineError> {
    Ok(match one {
        PreTokenizer::Bert => BertPreTokenizer.into(),
        PreTokenizer::ByteLevel(written) => written.build().into(),
        PreTokenizer::Metaspace(written) => written.build()?.into(),
        PreTokenizer::Split { pattern, behavior, invert } => {
            let known = match &pattern {
                Pattern::Regex(expression) => WORDS.contains(&expression.as_str()),
                Pattern::String(text) => text == " ",
            };
            if !known || invert {
                let (told, inverted) =
                    (pattern.describe(), if invert { ", inverted," } else { "" });
                return Err(unsupported(&format!("the pre-tokenizer Split with {told}{inverted}")));
            }
            let pattern = match pattern {
                Pattern::String(text) => SplitPattern::String(text),
                Pattern::Regex(expression) => SplitPattern::Regex(expression),
            };
            Split::new(pattern, behavior, false).map_err(unreadable)?.into()
        }
        PreTokenizer::Whitespace => Whitespace {}.into(),
        PreTokenizer::WhitespaceSplit => WhitespaceSplit.into(),
        PreTokenizer::Sequence { .. } => {
            return Err(unsupported("a sequence of pre-tokenizers in another"));
        }
    })
}
