//! Reads `tokenizer.json` into the library's tokenizer, part by part.
//!
//! The library's own reader is not used: it takes whatever the library has, parses the words twice, and panics on some
//! files. Here each part is read into a type of its own that has what the models of the supported architectures have
//! ([`super::parts`], [`super::model`]); nothing else can be made of a file.
//!
//! What the file says of truncation and padding is passed over.

use std::fmt;

use serde::de::{Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokenizers::AddedToken;

use super::super::EngineError;
use super::super::quote::quoted;
use super::parts::{self, Around};
use super::{mismatch, model, unreadable};

/// The only version of the format.
const VERSION: &str = "1.0";
/// Tokens that are found in a text before it is cut into words. Gemma has 6,414.
const MOST_ADDED: usize = 16_384;
/// Bytes of one of them. ModernBERT has one of 24 spaces, Gemma one of 31 characters in 93 bytes.
const MOST_ADDED_BYTES: usize = 128;
/// Bytes of all of them.
const MOST_ALL_ADDED_BYTES: usize = 256 << 10;

/// What a file says.
pub(super) struct TokenizerFile {
    pub(super) library: tokenizers::Tokenizer,
    /// The special tokens around a text.
    pub(super) around: Around,
    /// Every id is below.
    pub(super) ids: usize,
    /// Bytes of the longest added token.
    pub(super) longest_added: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    version: Option<String>,
    #[serde(default, rename = "truncation")]
    _truncation: Option<IgnoredAny>,
    #[serde(default, rename = "padding")]
    _padding: Option<IgnoredAny>,
    #[serde(default)]
    added_tokens: Added,
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
/// Takes memory in proportion to `rows` and the bytes of the words that are kept.
///
/// # Errors
/// When the bytes are no tokenizer, have more tokens than `rows`, or ask for a part that is not run: by its name.
pub(super) fn read(bytes: &[u8], rows: usize) -> Result<TokenizerFile, EngineError> {
    let written: Written<'_> = serde_json::from_slice(bytes).map_err(unreadable)?;
    if let Some(version) = written.version.filter(|version| version != VERSION) {
        return Err(mismatch(format!("version {}, Caxton reads {VERSION}", quoted(&version))));
    }
    let around = written.post_processor.map(parts::around).transpose()?.unwrap_or_default();
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
    Ok(TokenizerFile { library, around, ids, longest_added })
}

/// Tokens that are found in a text before it is cut into words.
#[derive(Default)]
pub(super) struct Added(pub(super) Vec<AddedToken>);

impl Added {
    /// Returns the bytes of all of them.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|token| token.content.len() as u64).sum()
    }
}

/// One of them as written. The library gives its own ids; they are the file's where the tokens are in order.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenAdded {
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

impl<'de> Deserialize<'de> for Added {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_seq(AddedVisitor)
    }
}

struct AddedVisitor;

impl<'de> Visitor<'de> for AddedVisitor {
    type Value = Added;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of added tokens")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Added, A::Error> {
        let (mut tokens, mut bytes) = (Vec::new(), 0);
        while let Some(token) = list.next_element::<WrittenAdded>()? {
            let length = token.content.len();
            if length > MOST_ADDED_BYTES {
                let content = quoted(&token.content);
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
        Ok(Added(tokens))
    }
}
