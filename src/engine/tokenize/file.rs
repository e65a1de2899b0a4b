//! Reads `tokenizer.json` part by part into the library's tokenizer.
//!
//! The library's own reader is unsuitable: it accepts every component of the library, parses the
//! words twice, and panics on some files. Here each part is read into its own type, which covers
//! only the components of the supported architectures ([`super::parts`], [`super::model`]). A file
//! cannot create any other component.
//!
//! The truncation and padding settings of the file are ignored.

use std::fmt;

use serde::de::{Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokenizers::AddedToken;

use super::super::EngineError;
use super::super::quote::quote;
use super::parts::{self, PairTemplate, PostProcessing, SurroundingTokens};
use super::{mismatch, model, unreadable};

/// The only version of the format.
const VERSION: &str = "1.0";
/// Maximum number of added tokens, which are found in a text before it is split into words. Gemma
/// has 6,414.
const MOST_ADDED: usize = 16_384;
/// Maximum length of one added token in bytes. ModernBERT has one of 24 spaces, Gemma one of 31
/// characters in 93 bytes.
const MOST_ADDED_BYTES: usize = 128;
/// Maximum total length of all added tokens in bytes.
const MOST_ALL_ADDED_BYTES: usize = 256 << 10;

/// Contents of a tokenizer file.
pub(super) struct TokenizerFile {
    pub(super) library: tokenizers::Tokenizer,
    /// Special tokens around a text.
    pub(super) around: SurroundingTokens,
    /// Special tokens of a pair of texts, or the reason why the tokenizer does not take pairs.
    pub(super) pair: Result<PairTemplate, EngineError>,
    /// Number of ids; every id is smaller.
    pub(super) ids: usize,
    /// Length of the longest added token in bytes.
    pub(super) longest_added: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTokenizerFile<'a> {
    version: Option<String>,
    #[serde(default, rename = "truncation")]
    _truncation: Option<IgnoredAny>,
    #[serde(default, rename = "padding")]
    _padding: Option<IgnoredAny>,
    #[serde(default)]
    added_tokens: AddedTokens,
    #[serde(borrow)]
    normalizer: Option<&'a RawValue>,
    #[serde(borrow)]
    pre_tokenizer: Option<&'a RawValue>,
    #[serde(borrow)]
    post_processor: Option<&'a RawValue>,
    #[serde(borrow)]
    decoder: Option<&'a RawValue>,
    #[serde(borrow)]
    model: &'a RawValue,
}

/// Reads the tokenizer in `bytes` for a table of `rows` word embeddings.
///
/// The memory is proportional to `rows` and to the bytes of the words that are kept.
///
/// # Errors
/// Returns an error if the bytes are malformed, have more tokens than `rows`, or require an
/// unsupported component. The message names the component.
pub(super) fn read(bytes: &[u8], rows: usize) -> Result<TokenizerFile, EngineError> {
    let written: RawTokenizerFile<'_> = serde_json::from_slice(bytes).map_err(unreadable)?;
    if let Some(version) = written.version.filter(|version| version != VERSION) {
        let version = quote(&version);
        return Err(mismatch(format!("the version is {version}; only {VERSION} is supported")));
    }
    let PostProcessing { around, pair } = parts::post_processor(written.post_processor)?;
    let normalizer = written.normalizer.map(parts::normalizer).transpose()?.flatten();
    let pre_tokenizer = written.pre_tokenizer.map(parts::pre_tokenizer).transpose()?.flatten();
    let decoder = written.decoder.map(parts::decoder).transpose()?;
    let model = model::read(written.model, rows)?;

    let mut library = tokenizers::Tokenizer::new(model.library);
    library.with_normalizer(normalizer).map_err(unreadable)?;
    library.with_pre_tokenizer(pre_tokenizer);
    library.with_decoder(decoder);
    let added = written.added_tokens.0;
    let longest_added = added.iter().map(|token| token.content.len()).max().unwrap_or(0);
    library.add_tokens(added).map_err(unreadable)?;
    let ids = library.get_added_vocabulary().get_added_tokens_decoder().keys().max();
    let ids = ids.map_or(model.ids, |&id| model.ids.max(id as usize + 1));
    model::too_many(ids, rows)?;
    Ok(TokenizerFile { library, around, pair, ids, longest_added })
}

/// Tokens that are found in a text before it is split into words.
#[derive(Default)]
pub(super) struct AddedTokens(pub(super) Vec<AddedToken>);

impl AddedTokens {
    /// Returns the total length of the added tokens in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|token| token.content.len() as u64).sum()
    }
}

/// An added token as written in the file. The library ignores the written id and assigns its own,
/// which equals the written one if the tokens are in order.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAddedToken {
    #[serde(rename = "id")]
    _id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

impl<'de> Deserialize<'de> for AddedTokens {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_seq(AddedTokensVisitor)
    }
}

struct AddedTokensVisitor;

impl<'de> Visitor<'de> for AddedTokensVisitor {
    type Value = AddedTokens;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of added tokens")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<AddedTokens, A::Error> {
        let (mut tokens, mut bytes) = (Vec::new(), 0);
        while let Some(token) = list.next_element::<RawAddedToken>()? {
            let length = token.content.len();
            if length > MOST_ADDED_BYTES {
                let content = quote(&token.content);
                return Err(A::Error::custom(format!(
                    "an added token has {length} bytes, more than {MOST_ADDED_BYTES}: {content}"
                )));
            }
            bytes += length;
            if tokens.len() == MOST_ADDED || bytes > MOST_ALL_ADDED_BYTES {
                return Err(A::Error::custom(format!(
                    "there are more than {MOST_ADDED} added tokens, or they have more than \
                     {MOST_ALL_ADDED_BYTES} bytes"
                )));
            }
            tokens.push(AddedToken {
                content: token.content,
                single_word: token.single_word,
                lstrip: token.lstrip,
                rstrip: token.rstrip,
                normalized: token.normalized,
                special: token.special,
            });
        }
        Ok(AddedTokens(tokens))
    }
}
