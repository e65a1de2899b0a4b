//! Closes a connection so that its client reads the last answer.
//!
//! A client that is still sending gets EPIPE or ECONNRESET when the daemon closes the connection,
//! and most clients then do not read the answer. So the daemon closes only its own direction, and
//! reads and drops the bytes of the client until the client closes the connection
//! (<https://www.rfc-editor.org/rfc/rfc9112#section-9.6>). Bytes and time are bounded.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Instant, Sleep};

/// Most bytes that are read and dropped: four times the default of `socket.max_body`.
const MAX_BYTES: usize = 64 << 20;
/// Time without a byte after which the connection is closed.
const SILENCE: Duration = Duration::from_secs(1);
/// Longest time for all bytes.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Size of the buffer for dropped bytes.
const BUFFER: usize = 16 << 10;

/// Switch that makes a [`LingeringStream`] linger when it is shut down. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct LingerSwitch(Arc<AtomicBool>);

impl LingerSwitch {
    /// Makes the stream linger.
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Stream of a connection. Its shutdown ends when the client has closed the connection, if its
/// [`LingerSwitch`] is set.
pub(super) struct LingeringStream {
    stream: UnixStream,
    switch: LingerSwitch,
    /// `None` before the shutdown.
    linger: Option<Linger>,
}

struct Linger {
    /// Bytes that may still be dropped.
    left: usize,
    deadline: Instant,
    silence: Pin<Box<Sleep>>,
}

impl LingeringStream {
    /// Wraps `stream`.
    pub(super) fn new(stream: UnixStream, switch: LingerSwitch) -> Self {
        Self { stream, switch, linger: None }
    }
}

impl Linger {
    fn new() -> Self {
        let now = Instant::now();
        let silence = Box::pin(tokio::time::sleep_until(now + SILENCE));
        Self { left: MAX_BYTES, deadline: now + TIMEOUT, silence }
    }

    /// Reads and drops bytes until the client closes the connection or a bound is reached.
    fn poll_discard(&mut self, stream: &mut UnixStream, context: &mut Context<'_>) -> Poll<()> {
        let mut bytes = [0; BUFFER];
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut *stream).poll_read(context, &mut buffer) {
                Poll::Pending => return self.silence.as_mut().poll(context),
                Poll::Ready(Err(_broken)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) => {}
            }
            let read = buffer.filled().len();
            let now = Instant::now();
            self.left = self.left.saturating_sub(read);
            if read == 0 || self.left == 0 || now >= self.deadline {
                return Poll::Ready(());
            }
            self.silence.as_mut().reset(self.deadline.min(now + SILENCE));
        }
    }
}

impl AsyncRead for LingeringStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for LingeringStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, switch, linger } = self.get_mut();
        let linger = match linger {
            Some(linger) => linger,
            None => {
                ready!(Pin::new(&mut *stream).poll_shutdown(context))?;
                if !switch.is_set() {
                    return Poll::Ready(Ok(()));
                }
                linger.insert(Linger::new())
            }
        };
        linger.poll_discard(stream, context).map(Ok)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Returns a client and the stream of the daemon's end of its connection.
    fn pair(lingers: bool) -> (UnixStream, LingeringStream) {
        let (client, server) = UnixStream::pair().unwrap();
        let switch = LingerSwitch::default();
        if lingers {
            switch.set();
        }
        (client, LingeringStream::new(server, switch))
    }

    #[tokio::test]
    async fn sending_client_reads_answer_before_close() {
        let (mut client, mut server) = pair(true);
        let serve = async {
            server.write_all(b"answer").await.unwrap();
            server.shutdown().await.unwrap();
            drop(server);
        };
        let ask = async {
            // More than the buffers of the socket.
            client.write_all(&vec![0; 8 << 20]).await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            drop(client);
            answer
        };
        let ((), answer) = tokio::join!(serve, ask);
        assert_eq!(answer, b"answer");
    }

    #[tokio::test(start_paused = true)]
    async fn lingering_ends_after_silence() {
        for (lingers, expected) in [(true, SILENCE), (false, Duration::ZERO)] {
            let (_client, mut server) = pair(lingers);
            let start = Instant::now();
            server.shutdown().await.unwrap();
            let took = start.elapsed();
            assert!((expected..expected + SILENCE / 2).contains(&took), "{lingers}: {took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn lingering_ends_at_timeout_of_dripping_client() {
        let (mut client, mut server) = pair(true);
        let start = Instant::now();
        let drip = async {
            loop {
                tokio::time::sleep(SILENCE / 2).await;
                client.write_all(b"a").await.unwrap();
            }
        };
        tokio::select! {
            () = drip => {}
            closed = server.shutdown() => closed.unwrap(),
        }
        let took = start.elapsed();
        assert!((TIMEOUT..TIMEOUT + SILENCE).contains(&took), "{took:?}");
    }
}
