//! Decodes request bodies with a `content-encoding`: gzip (RFC 1952) and zstd (RFC 8878).
//!
//! The decoded bytes pass through the same limits as those of other bodies: the reader of the body
//! charges them to the budget before it keeps them, and stops at the limit. So a body that grows to
//! a thousand times its length takes no more memory than another one. A coding that is not accepted
//! is an error of the body, so that each dialect answers it in its format.
//!
//! Invariant: the memory of a decoder is charged to the budget of the user. At most one window of
//! [`MAX_WINDOW_LOG`] is allocated before it is charged.

use std::error::Error as _;
use std::io::{self, BufRead, Read};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, header};
use flate2::bufread::MultiGzDecoder;
use futures_util::Stream;
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

use super::App;
use super::error::ApiError;
use super::peer_credentials::PeerCredentials;
use crate::service::{BudgetCharge, BudgetExceeded};

/// Accepted codings, for the header `accept-encoding` of an answer.
pub(super) const ACCEPTED: &str = "gzip, zstd, identity";
/// Route whose body is a file that is compressed already.
const PACKAGES: &str = "/api/packages";
/// Largest window of a zstd frame, as a power of two: 8 MiB, the size that every decoder should
/// support (<https://www.rfc-editor.org/rfc/rfc8878#section-3.1.1.1.2>).
const MAX_WINDOW_LOG: u32 = 23;
/// Bytes charged for a decoder of gzip: its window of 32 KiB, and its tables.
const GZIP_BYTES: u64 = 64 << 10;
/// Size of a decoded piece.
const PIECE: usize = 16 << 10;
/// Number of pieces after which the decoder yields. Decoding them takes less than a millisecond.
const PIECES_PER_TURN: usize = 4;
/// Most characters of an unknown coding that an error quotes.
const MAX_QUOTED: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Gzip,
    Zstd,
}

/// Reason why a body cannot be decoded. It is among the sources of an error of the decoded
/// [`Body`].
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum EncodingError {
    /// The coding is not accepted.
    #[error("the content-encoding \"{0}\" is not accepted")]
    NotAccepted(String),
    /// The bytes are not in the format of the coding.
    #[error("the request body is not valid {0}")]
    Invalid(&'static str),
    /// The body ends too early, or its connection is broken.
    #[error("the request body is incomplete")]
    Incomplete,
    /// The encoded body alone is longer than the limit.
    #[error("the encoded request body is too long")]
    TooLong,
    /// The memory of the decoder exceeds the budget of the user.
    #[error(transparent)]
    Budget(#[from] BudgetExceeded),
}

impl EncodingError {
    /// Returns the reason among the sources of the error of a body.
    pub(super) fn find(error: &axum::Error) -> Option<&Self> {
        let mut source = error.source();
        while let Some(error) = source {
            if let Some(reason) = error.downcast_ref() {
                return Some(reason);
            }
            source = error.source();
        }
        None
    }
}

/// Decodes the body of `request` if it has a `content-encoding`.
pub(super) fn decode_body(app: &App, request: Request) -> Request {
    let Some(coding) = coding(request.headers()) else { return request };
    let path = request.extensions().get::<MatchedPath>();
    if request.body().is_end_stream() || path.is_some_and(|path| path.as_str() == PACKAGES) {
        return request;
    }
    let peer = request.extensions().get::<PeerCredentials>().copied();
    let charge = app.budget.request(peer.unwrap_or(PeerCredentials::UNPRIVILEGED).uid);
    let limit = app.settings.borrow().socket.max_body.0;
    let (mut parts, body) = request.into_parts();
    // These headers describe the encoded body.
    parts.headers.remove(header::CONTENT_ENCODING);
    parts.headers.remove(header::CONTENT_LENGTH);
    let decoded = DecodedBody::new(body, coding, limit, charge);
    Request::from_parts(parts, Body::from_stream(decoded))
}

/// Checks that a body whose bytes are stored as they are has no coding.
///
/// # Errors
/// 415 when it has one.
pub(super) fn check_identity(headers: &HeaderMap) -> Result<(), ApiError> {
    match coding(headers) {
        None => Ok(()),
        Some(Ok(Coding::Gzip)) => Err(ApiError::coding_not_accepted("gzip", "identity")),
        Some(Ok(Coding::Zstd)) => Err(ApiError::coding_not_accepted("zstd", "identity")),
        Some(Err(other)) => Err(ApiError::coding_not_accepted(&other, "identity")),
    }
}

/// Returns the coding of a body, or the text of one that is not accepted; `None` without a coding.
fn coding(headers: &HeaderMap) -> Option<Result<Coding, String>> {
    let values = headers.get_all(header::CONTENT_ENCODING).iter();
    let texts = values.map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned());
    let text = texts.collect::<Vec<_>>().join(", ");
    match text.to_ascii_lowercase().as_str() {
        "" | "identity" => None,
        // The older name: https://www.rfc-editor.org/rfc/rfc9110#section-8.4.1.3
        "gzip" | "x-gzip" => Some(Ok(Coding::Gzip)),
        "zstd" => Some(Ok(Coding::Zstd)),
        _ => Some(Err(text.chars().take(MAX_QUOTED).collect())),
    }
}

/// Bytes of a body, decoded while they are read.
struct DecodedBody {
    body: Body,
    decoder: Decoder,
    charge: BudgetCharge,
    /// Bytes of memory that are charged.
    charged: u64,
    /// Most bytes of the encoded body.
    limit: u64,
    consumed: u64,
    /// Pieces since the last time that this yielded.
    pieces: usize,
    has_ended: bool,
}

enum Decoder {
    NotAccepted(String),
    Gzip(Box<MultiGzDecoder<Feed>>),
    /// `None` if its context could not be allocated.
    Zstd(Option<Box<ZstdDecoder>>),
}

/// Result of a step of a decoder.
enum Step {
    /// The beginning of the buffer has so many decoded bytes.
    Output(usize),
    /// More encoded bytes are needed.
    NeedsInput,
    /// The body has ended.
    End,
}

impl DecodedBody {
    fn new(body: Body, coding: Result<Coding, String>, limit: u64, charge: BudgetCharge) -> Self {
        let decoder = match coding {
            Err(other) => Decoder::NotAccepted(other),
            Ok(Coding::Gzip) => Decoder::Gzip(Box::new(MultiGzDecoder::new(Feed::default()))),
            Ok(Coding::Zstd) => Decoder::Zstd(ZstdDecoder::new().map(Box::new)),
        };
        let (charged, consumed, pieces) = (0, 0, 0);
        Self { body, decoder, charge, charged, limit, consumed, pieces, has_ended: false }
    }

    fn poll_piece(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, EncodingError>> {
        if self.pieces >= PIECES_PER_TURN {
            self.pieces = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut buffer = [0; PIECE];
        loop {
            self.charge_memory()?;
            match self.decoder.step(&mut buffer)? {
                Step::Output(length) => {
                    self.pieces += 1;
                    let piece = Bytes::copy_from_slice(&buffer[..length]);
                    return Poll::Ready(Ok(Some(piece)));
                }
                Step::End => return Poll::Ready(Ok(None)),
                Step::NeedsInput => {}
            }
            let data = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                None => None,
                Some(Err(_broken)) => return Poll::Ready(Err(EncodingError::Incomplete)),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => Some(data),
                    Err(_trailers) => continue,
                },
            };
            self.consumed += data.as_ref().map_or(0, |data| data.len() as u64);
            if self.consumed > self.limit {
                return Poll::Ready(Err(EncodingError::TooLong));
            }
            self.decoder.feed(data);
        }
    }

    /// Charges the memory that the decoder has allocated.
    fn charge_memory(&mut self) -> Result<(), BudgetExceeded> {
        let bytes = match &self.decoder {
            Decoder::NotAccepted(_) | Decoder::Zstd(None) => 0,
            Decoder::Gzip(_) => GZIP_BYTES,
            Decoder::Zstd(Some(decoder)) => decoder.context.sizeof() as u64,
        };
        let more = bytes.saturating_sub(self.charged);
        if more > 0 {
            self.charge.grow(more)?;
            self.charged = bytes;
        }
        Ok(())
    }
}

impl Stream for DecodedBody {
    type Item = Result<Bytes, EncodingError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.has_ended {
            return Poll::Ready(None);
        }
        let piece = ready!(this.poll_piece(context));
        this.has_ended = !matches!(piece, Ok(Some(_)));
        Poll::Ready(piece.transpose())
    }
}

impl Decoder {
    /// Decodes the next bytes into `buffer`.
    fn step(&mut self, buffer: &mut [u8]) -> Result<Step, EncodingError> {
        match self {
            Self::NotAccepted(coding) => Err(EncodingError::NotAccepted(std::mem::take(coding))),
            Self::Gzip(decoder) => match decoder.read(buffer) {
                Ok(0) => Ok(Step::End),
                Ok(length) => Ok(Step::Output(length)),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => Ok(Step::NeedsInput),
                    io::ErrorKind::UnexpectedEof => Err(EncodingError::Incomplete),
                    _ => Err(EncodingError::Invalid("gzip")),
                },
            },
            Self::Zstd(None) => Err(EncodingError::Invalid("zstd")),
            Self::Zstd(Some(decoder)) => decoder.step(buffer),
        }
    }

    /// Passes encoded bytes to the decoder, after it needed input; `None` at their end.
    fn feed(&mut self, data: Option<Bytes>) {
        let feed = match self {
            Self::NotAccepted(_) | Self::Zstd(None) => return,
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Zstd(Some(decoder)) => &mut decoder.feed,
        };
        match data {
            Some(data) => feed.bytes = data,
            None => feed.is_over = true,
        }
    }
}

/// Encoded bytes that the decoder has not consumed. Reads fail with `WouldBlock` when there are
/// none.
#[derive(Debug, Default)]
struct Feed {
    bytes: Bytes,
    /// Whether no more bytes follow.
    is_over: bool,
}

impl Read for Feed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let length = bytes.len().min(buffer.len());
        buffer[..length].copy_from_slice(&bytes[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for Feed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.bytes.is_empty() && !self.is_over {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(&self.bytes)
    }

    fn consume(&mut self, length: usize) {
        drop(self.bytes.split_to(length.min(self.bytes.len())));
    }
}

struct ZstdDecoder {
    context: DCtx<'static>,
    feed: Feed,
    /// Whether the last byte of a frame was decoded, and no byte after it.
    is_complete: bool,
}

impl ZstdDecoder {
    fn new() -> Option<Self> {
        let mut context = DCtx::try_create()?;
        context.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG)).ok()?;
        Some(Self { context, feed: Feed::default(), is_complete: false })
    }

    fn step(&mut self, buffer: &mut [u8]) -> Result<Step, EncodingError> {
        loop {
            let has_input = !self.feed.bytes.is_empty();
            // Without input, the decoder may still hold output of an incomplete frame. After a
            // frame, it would expect another one.
            if !has_input && self.is_complete {
                return Ok(if self.feed.is_over { Step::End } else { Step::NeedsInput });
            }
            let mut input = InBuffer::around(&self.feed.bytes[..]);
            let mut output = OutBuffer::around(&mut *buffer);
            let hint = self.context.decompress_stream(&mut output, &mut input);
            let hint = hint.map_err(|_code| EncodingError::Invalid("zstd"))?;
            let (taken, written) = (input.pos(), output.pos());
            self.feed.consume(taken);
            // A hint of zero means that the frame has ended and all output was returned.
            self.is_complete = hint == 0;
            if written > 0 {
                return Ok(Step::Output(written));
            }
            if !has_input {
                return match self.feed.is_over {
                    true => Err(EncodingError::Incomplete),
                    false => Ok(Step::NeedsInput),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::io::Write;
    use std::sync::Arc;

    use axum::http::HeaderValue;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use futures_util::{StreamExt as _, TryStreamExt as _, stream};
    use tokio::sync::watch;

    use super::*;
    use crate::base::units;
    use crate::config::Settings;
    use crate::memory::monitor::Reading;
    use crate::service::Budget;

    const LIMIT: u64 = 1 << 20;

    fn budget() -> Budget {
        let readings = watch::channel(Reading::default()).1;
        let mut settings = Settings::default();
        settings.socket.max_body = units::Bytes::mib(16);
        Budget::new(readings, watch::channel(Arc::new(settings)).1)
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(content: &[u8]) -> Vec<u8> {
        zstd::encode_all(content, 3).unwrap()
    }

    /// Returns the body that decodes `encoded`, which arrives in chunks of `chunk` bytes.
    fn decoded(budget: &Budget, coding: Coding, encoded: &[u8], chunk: usize) -> DecodedBody {
        let chunks = encoded.chunks(chunk).map(|chunk| Ok::<_, Infallible>(chunk.to_vec()));
        let body = Body::from_stream(stream::iter(Vec::from_iter(chunks)));
        DecodedBody::new(body, Ok(coding), LIMIT, budget.request(1))
    }

    async fn decode(coding: Coding, encoded: &[u8], chunk: usize) -> Result<Vec<u8>, String> {
        let pieces = decoded(&budget(), coding, encoded, chunk).try_collect::<Vec<_>>().await;
        pieces.map(|pieces| pieces.concat()).map_err(|error| error.to_string())
    }

    fn content() -> Vec<u8> {
        (0..100_000_u32).flat_map(|number| (number % 251).pow(2).to_le_bytes()).collect()
    }

    #[tokio::test]
    async fn both_codings_are_decoded_in_any_chunks() {
        for content in [content(), b"{}".to_vec(), Vec::new()] {
            for chunk in [1, 7, 1 << 20] {
                let found = decode(Coding::Gzip, &gzip(&content), chunk).await;
                assert!(found.as_ref() == Ok(&content), "gzip {chunk}");
                let found = decode(Coding::Zstd, &zstd(&content), chunk).await;
                assert!(found.as_ref() == Ok(&content), "zstd {chunk}");
            }
        }
        // Both formats permit several parts.
        let parts = [gzip(b"one "), gzip(b"two")].concat();
        assert_eq!(decode(Coding::Gzip, &parts, 3).await.unwrap(), b"one two");
        let parts = [zstd(b"one "), zstd(b"two")].concat();
        assert_eq!(decode(Coding::Zstd, &parts, 3).await.unwrap(), b"one two");
    }

    #[tokio::test]
    async fn invalid_and_incomplete_bodies_are_errors() {
        for (coding, encoded, name) in
            [(Coding::Gzip, gzip(&content()), "gzip"), (Coding::Zstd, zstd(&content()), "zstd")]
        {
            for length in [0, 1, 5, encoded.len() / 2, encoded.len() - 1] {
                let error = decode(coding, &encoded[..length], 100).await.unwrap_err();
                assert!(error.contains("incomplete"), "{name} {length}: {error}");
            }
            let error = decode(coding, b"{\"input\":\"a text\"}", 100).await.unwrap_err();
            assert!(error.contains(&format!("not valid {name}")), "{error}");
            let trailing = [&encoded[..], b"garbage after the end"].concat();
            let error = decode(coding, &trailing, 100).await.unwrap_err();
            assert!(error.contains(&format!("not valid {name}")), "{error}");
        }
    }

    #[tokio::test]
    async fn bomb_is_decoded_in_small_pieces() {
        let zeros = vec![0; 64 << 20];
        for (coding, encoded) in [(Coding::Gzip, gzip(&zeros)), (Coding::Zstd, zstd(&zeros))] {
            let budget = budget();
            let mut body = decoded(&budget, coding, &encoded, encoded.len());
            let piece = body.next().await.unwrap().unwrap();
            assert!(piece.len() <= PIECE, "{coding:?}: {}", piece.len());
            let held = budget.held();
            assert!((GZIP_BYTES..10 << 20).contains(&held), "{coding:?}: {held}");
            drop(body);
            assert_eq!(budget.held(), 0);
        }
    }

    #[tokio::test]
    async fn large_zstd_window_is_refused() {
        let encode = |window| {
            let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
            encoder.window_log(window).unwrap();
            encoder.write_all(b"content").unwrap();
            encoder.finish().unwrap()
        };
        assert_eq!(decode(Coding::Zstd, &encode(23), 100).await.unwrap(), b"content");
        assert!(decode(Coding::Zstd, &encode(24), 100).await.is_err());
    }

    #[tokio::test]
    async fn encoded_body_without_content_is_limited() {
        // A skippable frame of zstd decodes to nothing.
        let frame = [&0x184D_2A50_u32.to_le_bytes()[..], &8_u32.to_le_bytes(), &[0; 8]].concat();
        let length = usize::try_from(LIMIT).unwrap() + 1;
        let endless: Vec<u8> = frame.iter().copied().cycle().take(length).collect();
        let error = decode(Coding::Zstd, &endless, 1 << 16).await.unwrap_err();
        assert!(error.contains("too long"), "{error}");
    }

    #[test]
    fn codings_are_read_from_the_header() {
        let read = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            coding(&headers)
        };
        for none in [&[][..], &[""], &["identity"], &[" Identity "]] {
            assert_eq!(read(none), None, "{none:?}");
        }
        assert_eq!(read(&["GZIP"]), Some(Ok(Coding::Gzip)));
        assert_eq!(read(&["x-gzip"]), Some(Ok(Coding::Gzip)));
        assert_eq!(read(&["zstd"]), Some(Ok(Coding::Zstd)));
        for other in [&["br"][..], &["deflate"], &["gzip, zstd"], &["gzip", "zstd"]] {
            assert_eq!(read(other), Some(Err(other.join(", "))));
        }
    }
}
