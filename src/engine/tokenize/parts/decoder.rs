//! Reads decoders, which convert tokens back to text.

use serde::Deserialize;
use serde_json::value::RawValue;
use tokenizers::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::decoders::wordpiece::WordPiece;
use tokenizers::normalizers::Replace;

use super::super::unreadable;
use super::{ByteLevelFields, MetaspaceFields, Pattern, SPACE, parse_known, unsupported};
use crate::engine::EngineError;
use crate::engine::quote::quote;

/// Maximum number of decoders in a sequence.
const MOST_DECODERS: usize = 16;

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum Decoder {
    WordPiece { prefix: String, cleanup: bool },
    ByteLevel(ByteLevelFields),
    Metaspace(MetaspaceFields),
    ByteFallback,
    Fuse,
    Strip { content: char, start: usize, stop: usize },
    Replace { pattern: Pattern, content: String },
    Sequence { decoders: Vec<Decoder> },
}

/// Reads a decoder.
///
/// # Errors
/// Returns an error that names the decoder if it is not supported.
pub(in crate::engine::tokenize) fn decoder(
    section: &RawValue,
) -> Result<DecoderWrapper, EngineError> {
    match parse_known("decoder", section)? {
        Decoder::Sequence { decoders } if decoders.len() <= MOST_DECODERS => {
            let built = decoders.into_iter().map(build_decoder).collect::<Result<_, _>>()?;
            Ok(Sequence::new(built).into())
        }
        one => build_decoder(one),
    }
}

fn build_decoder(one: Decoder) -> Result<DecoderWrapper, EngineError> {
    Ok(match one {
        Decoder::WordPiece { prefix, cleanup } if prefix == "##" => {
            WordPiece::new(prefix, cleanup).into()
        }
        Decoder::WordPiece { prefix, .. } => {
            return Err(unsupported(&format!("the decoder WordPiece with {}", quote(&prefix))));
        }
        Decoder::ByteLevel(written) => written.build().into(),
        Decoder::Metaspace(written) => written.build()?.into(),
        Decoder::ByteFallback => ByteFallback::new().into(),
        Decoder::Fuse => Fuse::new().into(),
        // The library panics on tokens that are shorter than the part to strip from their end, so
        // require `stop: 0`.
        Decoder::Strip { content: ' ', start: start @ 0..=1, stop: 0 } => {
            Strip::new(' ', start, 0).into()
        }
        Decoder::Strip { .. } => return Err(unsupported("this decoder Strip")),
        Decoder::Replace { pattern: Pattern::String(text), content }
            if text == SPACE && content == " " =>
        {
            Replace::new(text, content).map_err(unreadable)?.into()
        }
        Decoder::Replace { pattern, content } => {
            let (told, content) = (pattern.describe(), quote(&content));
            return Err(unsupported(&format!("the decoder Replace with {told} and {content}")));
        }
        Decoder::Sequence { .. } => return Err(unsupported("this sequence of decoders")),
    })
}
