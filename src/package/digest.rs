//! SHA-256 digests: parsing, printing, and hashing while reading or writing.

use std::fmt;
use std::io::{self, Read, Write};
use std::mem;
use std::panic::resume_unwind;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// Total bytes hashed by this process.
static HASHED: AtomicU64 = AtomicU64::new(0);

/// Returns the total number of bytes hashed by this process.
///
/// Callers use the count as a progress counter, to distinguish a slow operation from a stuck one.
pub fn hashed_bytes() -> u64 {
    HASHED.load(Ordering::Relaxed)
}

fn count(bytes: usize) {
    HASHED.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Computes the digest of `bytes`. These bytes are not added to [`hashed_bytes`].
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Returns the first 8 bytes as a big-endian number, which is as evenly distributed as the
    /// digest.
    pub fn leading(&self) -> u64 {
        let (first, _rest) = self.0.split_first_chunk().unwrap_or((&[0; 8], &[]));
        u64::from_be_bytes(*first)
    }

    /// Number of hexadecimal digits of a digest.
    pub(super) const DIGITS: usize = 64;

    /// Number of digits of [`Digest::short`].
    pub(super) const SHORT: usize = 12;

    /// Returns the first 12 hexadecimal digits: enough to name an object, not to verify it.
    pub fn short(&self) -> String {
        self.to_string()[..Self::SHORT].to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{self}")
    }
}

/// Error of parsing a text that is not 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a SHA-256 digest of 64 lower-case hexadecimal digits")]
pub struct ParseDigestError;

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Upper case is rejected so that a digest has exactly one spelling.
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut digest = [0; 32];
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != digest.len() || !rest.is_empty() {
            return Err(ParseDigestError);
        }
        for (byte, [high, low]) in digest.iter_mut().zip(pairs) {
            *byte =
                digit(*high).ok_or(ParseDigestError)? << 4 | digit(*low).ok_or(ParseDigestError)?;
        }
        Ok(Self(digest))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Incremental hasher.
#[derive(Debug, Default)]
pub(super) struct Hasher(Sha256);

impl Hasher {
    /// Hashes the next part.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
        count(bytes.len());
    }

    /// Returns the digest of all parts.
    pub(super) fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// Reader that hashes and counts every byte that passes through it.
#[derive(Debug)]
pub struct HashingReader<R> {
    inner: R,
    hasher: Sha256,
    bytes_read: u64,
}

impl<R: Read> HashingReader<R> {
    /// Wraps `inner` and hashes all bytes that are read from its current position.
    pub fn new(inner: R) -> Self {
        Self { inner, hasher: Sha256::new(), bytes_read: 0 }
    }

    /// Returns the number of bytes read so far.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Returns the digest of all bytes read so far.
    pub fn finish(self) -> Digest {
        self.into_parts().1
    }

    /// Returns the inner reader, and the digest of all bytes read so far.
    pub(super) fn into_parts(self) -> (R, Digest) {
        (self.inner, Digest(self.hasher.finalize().into()))
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        count(read);
        self.bytes_read += read as u64;
        Ok(read)
    }
}

/// Size in bytes of a part for the hashing thread: large enough that waking the thread is cheap in
/// comparison, small enough to stay in the cache.
const PART: usize = 256 << 10;

/// Reader whose bytes are hashed by a separate thread, in parallel with the work of the reader's
/// caller.
///
/// Holds at most three parts: one is being filled, one is queued, and one is being hashed.
#[derive(Debug)]
pub(super) struct BackgroundHashingReader<R> {
    inner: R,
    /// Bytes read since the last part was sent.
    part: Vec<u8>,
    full: SyncSender<Vec<u8>>,
    /// Hashed parts, returned for reuse.
    hashed: Receiver<Vec<u8>>,
    thread: JoinHandle<Digest>,
    bytes_read: u64,
}

impl<R: Read> BackgroundHashingReader<R> {
    /// Wraps `inner` and hashes all bytes that are read from its current position.
    ///
    /// # Errors
    /// When the system cannot start a thread.
    pub(super) fn new(inner: R) -> io::Result<Self> {
        let (full, parts) = sync_channel::<Vec<u8>>(1);
        // The channel has a slot for each of the three parts, so returning a part never blocks the
        // thread.
        let (done, hashed) = sync_channel(3);
        let thread = Builder::new().name("digest".to_owned()).spawn(move || {
            let mut hasher = Hasher::default();
            for mut part in parts {
                hasher.update(&part);
                part.clear();
                // The send fails once the reader has dropped its end. The part is then not needed.
                drop(done.send(part));
            }
            hasher.finish()
        })?;
        let part = Vec::with_capacity(PART);
        Ok(Self { inner, part, full, hashed, thread, bytes_read: 0 })
    }

    /// Returns the number of bytes read so far.
    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Returns the digest of all bytes read so far. Waits for the thread; a panic of the thread
    /// continues here.
    pub(super) fn finish(self) -> Digest {
        let Self { part, full, hashed, thread, .. } = self;
        // Drop the receiver, so that the thread never blocks while it returns a part.
        drop(hashed);
        // A failed send means that the thread has panicked. The join below reports the panic.
        drop(full.send(part));
        // Closing the channel signals the end of the input to the thread.
        drop(full);
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl<R: Read> Read for BackgroundHashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if self.part.len() + read > self.part.capacity() {
            // Blocks while another part is queued, so that memory stays bounded.
            let sent = self.full.send(mem::take(&mut self.part));
            sent.map_err(|_closed| io::Error::other("the hashing thread ended unexpectedly"))?;
            let empty = self.hashed.try_recv();
            self.part = empty.unwrap_or_else(|_none| Vec::with_capacity(PART));
        }
        self.part.extend_from_slice(&buffer[..read]);
        self.bytes_read += read as u64;
        Ok(read)
    }
}

/// Writer that hashes and counts every byte that passes through it.
#[derive(Debug)]
pub(super) struct HashingWriter<W> {
    inner: W,
    hasher: Sha256,
    bytes_written: u64,
}

impl<W: Write> HashingWriter<W> {
    /// Wraps `inner` and hashes all bytes that are written from now on.
    pub(super) fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), bytes_written: 0 }
    }

    /// Returns the number of bytes written so far.
    pub(super) fn bytes_written(&self) -> u64 {
        self.bytes_written
    }

    /// Returns the digest of all bytes written so far.
    pub(super) fn finish(self) -> Digest {
        Digest(self.hasher.finalize().into())
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..written]);
        count(written);
        self.bytes_written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_matches_standard_example() {
        // FIPS 180-4, example "abc".
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of(b"abc").to_string(), text);
        assert_eq!(text.parse(), Ok(Digest::of(b"abc")));
        for bad in ["", "ba78", &text.to_uppercase(), &format!("{text}0"), &text.replace('b', "é")]
        {
            assert_eq!(bad.parse::<Digest>(), Err(ParseDigestError), "{bad}");
        }
    }

    #[test]
    fn reader_hashes_all_bytes() {
        let mut reader = HashingReader::new(&b"abc"[..]);
        io::copy(&mut reader, &mut io::sink()).unwrap();
        assert_eq!(reader.bytes_read(), 3);
        assert_eq!(reader.finish(), Digest::of(b"abc"));
    }

    #[test]
    fn background_reader_hashes_all_bytes() {
        for length in [0, 1, PART - 1, PART, PART + 1, 5 * PART + 7] {
            let content: Vec<u8> = (0..=250).cycle().take(length).collect();
            for at_a_time in [1000, PART, 2 * PART] {
                let mut reader = BackgroundHashingReader::new(&content[..]).unwrap();
                let mut buffer = vec![0; at_a_time];
                while reader.read(&mut buffer).unwrap() > 0 {}
                assert_eq!(reader.bytes_read(), length as u64);
                assert_eq!(reader.finish(), Digest::of(&content), "{length} {at_a_time}");
            }
        }
    }

    #[test]
    fn writer_hashes_only_accepted_bytes() {
        // The writer accepts fewer bytes than it gets. The rest must not be hashed.
        let mut room = [0_u8; 3];
        let mut writer = HashingWriter::new(&mut room[..]);
        assert_eq!(writer.write(b"abcdef").unwrap(), 3);
        assert_eq!(writer.bytes_written(), 3);
        assert_eq!(writer.finish(), Digest::of(b"abc"));
    }
}
