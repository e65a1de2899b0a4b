//! Reads the compressed layer of a package: exactly one zstd frame, under limits.
//!
//! The hashed bytes are the decompressed bytes. Does not interpret the archive inside the frame.
//!
//! Invariants: bytes before or after the one frame are rejected. A reader that reaches the end has
//! read a complete frame with a correct checksum. A stream that only ends too early is
//! distinguished from an invalid one.

use std::io::{self, Read};
use std::ops::Range;
use std::time::{Duration, Instant};

use zstd::zstd_safe::zstd_sys::ZSTD_ErrorCode;
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, get_error_name};

use super::digest::{BackgroundHashingReader, Digest};
use super::unpack_limits::UnpackLimits;

/// Magic number and frame header descriptor:
/// <https://www.rfc-editor.org/rfc/rfc8878#section-3.1.1>.
const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
const HEADER: usize = MAGIC.len() + 1;
/// Bits of the descriptor that must have a fixed value, and that value: unused and reserved bits
/// zero, no dictionary, and a checksum. The checksum is required because nothing else inside a
/// package protects the manifest.
const DESCRIPTOR_MASK: u8 = 0b0001_1111;
const DESCRIPTOR: u8 = 0b0000_0100;
/// Maximum window size of 8 MiB, as a power of two. The decoder allocates the declared window
/// before the package is checked. `zstd` stays below this limit up to level 19; the packer of this
/// crate needs 4 MiB.
pub(super) const MAX_WINDOW_LOG: u32 = 23;
/// Output size in bytes up to which the compression ratio is not checked: a few kilobytes of zeros
/// are normal.
const RATIO_FREE: u64 = 1 << 20;

/// Error of reading a frame. [`ZstdFrame::read`] returns it inside an [`io::Error`].
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    /// All bytes so far are a valid beginning of a frame.
    #[error("the stream ends after {bytes} bytes, inside the zstd frame")]
    Truncated { bytes: u64 },
    #[error("{0}")]
    Refused(String),
    #[error("the source cannot be read")]
    Source(#[source] io::Error),
    #[error("not enough memory for the zstd window")]
    Memory,
    #[error("the package was not read within {} seconds", .0.as_secs())]
    TooSlow(Duration),
}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> Self {
        Self::other(error)
    }
}

/// Reader of the content of a source that must be exactly one zstd frame.
///
/// [`Read::read`] returns 0 only after the checksum was verified and the source has ended there.
/// Its errors contain a [`FrameError`]. Needs memory for the frame's window (at most 8 MiB) and
/// less than 2 MiB of buffers.
pub(super) struct ZstdFrame<'l, R, C> {
    source: BackgroundHashingReader<R>,
    limits: &'l UnpackLimits,
    now: C,
    started: Instant,
    decoder: DCtx<'static>,
    input: Box<[u8]>,
    /// Range of `input` that the decoder has not consumed.
    pending: Range<usize>,
    consumed: u64,
    produced: u64,
    complete: bool,
}

impl<'l, R: Read, C: FnMut() -> Instant> ZstdFrame<'l, R, C> {
    /// Reads the beginning of the frame from `source`. `now` is the clock for `limits.time`.
    pub(super) fn open(
        source: R,
        limits: &'l UnpackLimits,
        mut now: C,
    ) -> Result<Self, FrameError> {
        let mut decoder = DCtx::try_create().ok_or(FrameError::Memory)?;
        decoder.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG)).map_err(decoder_error)?;
        let mut frame = Self {
            source: BackgroundHashingReader::new(source).map_err(FrameError::Source)?,
            limits,
            started: now(),
            now,
            decoder,
            input: vec![0; DCtx::in_size()].into_boxed_slice(),
            pending: 0..0,
            consumed: 0,
            produced: 0,
            complete: false,
        };
        while frame.pending.len() < HEADER && frame.fill()? {}
        frame.check_header()?;
        Ok(frame)
    }

    /// Returns the memory of the decoder in bytes. It includes the declared window after the first
    /// read.
    pub(super) fn decoder_bytes(&self) -> u64 {
        self.decoder.sizeof() as u64
    }

    /// Returns the digest and the length of the compressed bytes read so far.
    pub(super) fn finish(self) -> (Digest, u64) {
        let bytes = self.source.bytes_read();
        (self.source.finish(), bytes)
    }

    /// Reads more input into `pending`; returns false at the end of the source.
    fn fill(&mut self) -> Result<bool, FrameError> {
        if self.pending.is_empty() {
            self.pending = 0..0;
        }
        let read = loop {
            match self.source.read(&mut self.input[self.pending.end..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result.map_err(FrameError::Source)?,
            }
        };
        self.pending.end += read;
        if self.source.bytes_read() > self.limits.max_compressed {
            return Err(FrameError::Refused(format!(
                "the compressed package is longer than the limit of {} bytes",
                self.limits.max_compressed
            )));
        }
        Ok(read > 0)
    }

    fn check_header(&self) -> Result<(), FrameError> {
        let start = &self.input[self.pending.clone()];
        let refuse = |reason: &str| Err(FrameError::Refused(reason.to_owned()));
        if start.iter().zip(MAGIC).any(|(found, expected)| *found != expected) {
            return refuse("the package does not begin with a zstd frame");
        }
        match start.get(MAGIC.len()) {
            None => Err(self.truncated()),
            Some(descriptor) if descriptor & DESCRIPTOR_MASK != DESCRIPTOR => refuse(
                "the zstd frame must have a checksum, no dictionary and no reserved bit: \
                 compress it with `zstd --check`",
            ),
            Some(_) => Ok(()),
        }
    }

    fn truncated(&self) -> FrameError {
        FrameError::Truncated { bytes: self.source.bytes_read() }
    }

    fn check_limits(&mut self) -> Result<(), FrameError> {
        if is_bomb(self.consumed, self.produced, self.limits.max_ratio) {
            return Err(FrameError::Refused(format!(
                "the package unpacks to more than {} times its compressed size",
                self.limits.max_ratio
            )));
        }
        if (self.now)().saturating_duration_since(self.started) > self.limits.time {
            return Err(FrameError::TooSlow(self.limits.time));
        }
        Ok(())
    }

    fn decompress(&mut self, buffer: &mut [u8]) -> Result<usize, FrameError> {
        loop {
            if self.complete {
                return self.check_end().map(|()| 0);
            }
            // At the end of the source, the decoder is called without input, because it may still
            // hold output.
            let at_end = self.pending.is_empty() && !self.fill()?;
            let mut input = InBuffer::around(&self.input[self.pending.clone()]);
            let mut output = OutBuffer::around(&mut *buffer);
            let hint =
                self.decoder.decompress_stream(&mut output, &mut input).map_err(decoder_error)?;
            let (taken, written) = (input.pos(), output.pos());
            self.pending.start += taken;
            self.consumed += taken as u64;
            self.produced += written as u64;
            self.check_limits()?;
            // A hint of zero means that the frame has ended, its checksum is correct and all output
            // was returned.
            self.complete = hint == 0;
            if written > 0 {
                return Ok(written);
            }
            if at_end && !self.complete {
                return Err(self.truncated());
            }
        }
    }

    fn check_end(&mut self) -> Result<(), FrameError> {
        if self.pending.is_empty() && !self.fill()? {
            return Ok(());
        }
        Err(FrameError::Refused("bytes follow the end of the zstd frame".to_owned()))
    }
}

impl<R: Read, C: FnMut() -> Instant> Read for ZstdFrame<'_, R, C> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        Ok(self.decompress(buffer)?)
    }
}

fn is_bomb(consumed: u64, produced: u64, max_ratio: u32) -> bool {
    produced > RATIO_FREE && produced > consumed.saturating_mul(max_ratio.into())
}

/// Converts an error code of zstd. zstd returns its error codes negated:
/// <https://github.com/facebook/zstd/blob/v1.5.7/lib/common/error_private.h#L46-L49>.
fn decoder_error(code: usize) -> FrameError {
    if code.wrapping_neg() == ZSTD_ErrorCode::ZSTD_error_memory_allocation as usize {
        return FrameError::Memory;
    }
    FrameError::Refused(format!("cannot decompress the zstd frame: {}", get_error_name(code)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::Bytes;
    use crate::package::fixture::compress;

    fn read(frame: &[u8]) -> Result<Vec<u8>, String> {
        let limits = UnpackLimits::for_size(Bytes::mib(1));
        let mut content = Vec::new();
        let mut reader =
            ZstdFrame::open(frame, &limits, Instant::now).map_err(|e| e.to_string())?;
        reader.read_to_end(&mut content).map_err(|error| error.to_string())?;
        assert_eq!(reader.finish(), (Digest::of(frame), frame.len() as u64));
        Ok(content)
    }

    #[test]
    fn exactly_one_frame_is_accepted() {
        let good = compress(b"content");
        assert_eq!(read(&good).as_deref(), Ok(&b"content"[..]));
        let skippable = [0x50, 0x2A, 0x4D, 0x18, 1, 0, 0, 0, 7];
        let unchecked = zstd::encode_all(&b"content"[..], 3).unwrap();
        let with_descriptor = |descriptor| [&good[..4], &[descriptor], &good[5..]].concat();
        for (bad, reason) in [
            ([&good[..], &good].concat(), "bytes follow"),
            ([&good[..], b"\0"].concat(), "bytes follow"),
            ([&good[..], &skippable].concat(), "bytes follow"),
            ([&skippable, &good[..]].concat(), "does not begin with a zstd frame"),
            (b"garbage".to_vec(), "does not begin with a zstd frame"),
            (b"g".to_vec(), "does not begin with a zstd frame"),
            (unchecked, "must have a checksum"),
            (with_descriptor(good[4] | 0b0000_0001), "no dictionary"),
            (with_descriptor(good[4] | 0b0000_1000), "no reserved bit"),
            (with_descriptor(good[4] | 0b0001_0000), "no reserved bit"),
            (Vec::new(), "ends after 0 bytes"),
            (good[..4].to_vec(), "ends after 4 bytes"),
            (good[..good.len() - 1].to_vec(), "inside the zstd frame"),
        ] {
            let error = read(&bad).unwrap_err();
            assert!(error.contains(reason), "{error:?} is not about {reason:?}");
        }
    }

    #[test]
    fn a_window_over_8_mib_is_refused() {
        // The window descriptor has five bits for the exponent less 10, and three bits for the
        // mantissa.
        let frame = |descriptor| {
            let mut frame = compress(b"content");
            assert_eq!(frame[4] & 0b0010_0000, 0, "this frame has a window descriptor");
            frame[5] = descriptor;
            read(&frame)
        };
        assert_eq!(frame((23 - 10) << 3).as_deref(), Ok(&b"content"[..]));
        for over in [(23 - 10) << 3 | 1, (24 - 10) << 3, (27 - 10) << 3] {
            assert_eq!(
                frame(over),
                Err(
                    "cannot decompress the zstd frame: Frame requires too much memory for decoding"
                        .into()
                )
            );
        }
    }

    #[test]
    fn bomb_exceeds_ratio_and_free_allowance() {
        const LARGE: u64 = 64 << 20;
        for (consumed, produced, ratio, expected) in [
            (1, RATIO_FREE, 100, false),
            (1, RATIO_FREE + 1, 100, true),
            (LARGE / 128, LARGE, 128, false),
            (LARGE / 128, LARGE, 127, true),
            (LARGE / 128, LARGE + 1, 128, true),
            (u64::MAX, u64::MAX, u32::MAX, false),
        ] {
            assert_eq!(
                is_bomb(consumed, produced, ratio),
                expected,
                "{consumed} {produced} {ratio}"
            );
        }
    }

    #[test]
    fn oom_is_not_reported_as_corruption() {
        let code = ZSTD_ErrorCode::ZSTD_error_memory_allocation as usize;
        assert!(matches!(decoder_error(code.wrapping_neg()), FrameError::Memory));
        let code = ZSTD_ErrorCode::ZSTD_error_corruption_detected as usize;
        assert!(matches!(decoder_error(code.wrapping_neg()), FrameError::Refused(_)));
    }
}
