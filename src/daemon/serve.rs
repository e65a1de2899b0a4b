//! Connections: served up to a limit, each by its own task, drained when the daemon stops. One beyond the limit is told
//! to come again, so that nobody waits for an answer without end.
//!
//! Owns those tasks. A connection that sends no request for [`IDLE_TIMEOUT`] or takes nothing of its answer for
//! [`WRITE_TIMEOUT`] is closed, so that such ones cannot keep others out. How long a body may take is bounded where
//! bodies are read.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use nix::errno::Errno;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio_io_timeout::TimeoutWriter;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

use crate::api::{self, ConnectionId, Peer};
use crate::config::Settings;
use crate::log::Message;

/// How long a connection may take to send the head of its next request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client may take nothing of an answer that is larger than the socket's buffer. The kernel wakes a writer
/// when three quarters of that are free, so that a client has to read at least 2 to 3 KiB a second.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// The system has no more files or memory for connections: try again after this long.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// Connections beyond the limit that are answered at a time; more wait in the kernel's queue until their turn.
const MAX_REFUSALS: usize = 64;
/// How long a connection beyond the limit may take to send its request.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);
/// A request's head; OpenAI's clients send under 2 KiB.
const MAX_HEADER_BYTES: usize = 32 << 10;

/// Answered when the loop that accepts connections turns.
pub(super) type Turn = oneshot::Sender<()>;

/// Serves connections of `listener` until `cancel`, at most `max_connections` at a time; then lets requests in flight
/// finish for at most the drain timeout that is in force by then. Answers `turns` meanwhile.
///
/// Returns how many connections had to be cut off.
///
/// # Errors
/// When the socket fails for good.
pub(super) async fn serve(
    listener: UnixListener,
    router: Router,
    max_connections: usize,
    settings: watch::Receiver<Arc<Settings>>,
    mut turns: mpsc::Receiver<Turn>,
    cancel: CancellationToken,
) -> io::Result<usize> {
    let free = Arc::new(Semaphore::new(max_connections));
    let refusals = Arc::new(Semaphore::new(MAX_REFUSALS));
    let refuse = api::refuse_connections(max_connections);
    let graceful = GracefulShutdown::new();
    let connections = TaskTracker::new();
    // Ends every connection that is left when the drain's time is over.
    let cut = CancellationToken::new();
    let mut is_full = false;
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            Some(turn) = turns.recv() => {
                answer(turn);
                continue;
            }
            permit = either(&free, &refusals) => {
                let (permit, is_served) = permit.map_err(io::Error::other)?;
                tokio::select! {
                    () = cancel.cancelled() => break,
                    Some(turn) = turns.recv() => {
                        answer(turn);
                        continue;
                    }
                    accepted = listener.accept() => {
                        accepted.map(|(stream, _address)| (stream, permit, is_served))
                    }
                }
            },
        };
        let (stream, permit, is_served) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                survive(error).await?;
                continue;
            }
        };
        // A place may have become free while nobody came.
        let late = (!is_served).then(|| Arc::clone(&free).try_acquire_owned().ok()).flatten();
        let is_served = is_served || late.is_some();
        let permit = late.unwrap_or(permit);
        // Told once, until half of the connections are free again.
        if is_served {
            is_full &= free.available_permits() * 2 + 1 < max_connections;
        } else if !std::mem::replace(&mut is_full, true) {
            tracing::warn!(
                name: Message::ConnectionLimit.name(),
                limit = max_connections,
                "no more connections are served than this; others are told to come again"
            );
        }
        let (router, idle) = match is_served {
            true => (router.clone(), IDLE_TIMEOUT),
            false => (refuse.clone(), REFUSAL_TIMEOUT),
        };
        let connection = connection(stream, router, idle, graceful.watcher());
        let cut = cut.clone();
        connections.spawn(async move {
            tokio::select! {
                () = cut.cancelled() => {}
                () = connection => {}
            }
            drop(permit);
        });
    }
    drop((listener, turns));
    connections.close();
    let drain_timeout = settings.borrow().socket.drain_timeout;
    let drained = tokio::time::timeout(drain_timeout, graceful.shutdown()).await;
    let left = if drained.is_ok() { 0 } else { connections.len() };
    cut.cancel();
    connections.wait().await;
    Ok(left)
}

fn answer(turn: Turn) {
    // Whoever asked may have stopped waiting.
    let (Ok(()) | Err(())) = turn.send(());
}

/// A place to be served, or else one to be refused.
async fn either(
    free: &Arc<Semaphore>,
    refusals: &Arc<Semaphore>,
) -> Result<(OwnedSemaphorePermit, bool), AcquireError> {
    tokio::select! {
        biased;
        permit = Arc::clone(free).acquire_owned() => permit.map(|permit| (permit, true)),
        permit = Arc::clone(refusals).acquire_owned() => permit.map(|permit| (permit, false)),
    }
}

/// Decides whether accepting can go on after `error`, and waits if it must.
async fn survive(error: io::Error) -> io::Result<()> {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ECONNABORTED | Errno::EINTR) => Ok(()),
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
            tracing::warn!(
                name: Message::ConnectionsExhausted.name(),
                errno = error.raw_os_error(), %error,
                "no resources for another connection"
            );
            tokio::time::sleep(EXHAUSTED_PAUSE).await;
            Ok(())
        }
        _ => Err(error),
    }
}

async fn connection(stream: UnixStream, router: Router, idle: Duration, watcher: Watcher) {
    let peer = match stream.peer_cred() {
        Ok(cred) => Peer { uid: cred.uid(), gid: cred.gid(), pid: cred.pid() },
        Err(error) => {
            return tracing::warn!(
                name: Message::PeerUnknown.name(),
                errno = error.raw_os_error(), %error,
                "a connection without credentials was closed"
            );
        }
    };
    let id = ConnectionId::next();
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(id);
        let answer = router.clone().call(request);
        async move { Ok::<_, Infallible>(caught(answer).await) }
    });
    // Only writes are timed: between requests and while one is computed there is nothing to write.
    let mut stream = TimeoutWriter::new(stream);
    stream.set_timeout(Some(WRITE_TIMEOUT));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    match watcher.watch(served).await {
        Err(error) if is_unread(&error) => tracing::warn!(
            name: Message::ClientStalled.name(),
            uid = peer.uid, pid = peer.pid,
            "closed a connection: its client has read nothing for {WRITE_TIMEOUT:?}"
        ),
        // Clients leave in the middle of things; that is theirs to know.
        Err(error) => {
            tracing::debug!(uid = peer.uid, pid = peer.pid, %error, "a connection ended early");
        }
        Ok(()) => {}
    }
}

/// Whether a write took longer than [`WRITE_TIMEOUT`]: a Unix socket has no timeout of its own.
fn is_unread(error: &hyper::Error) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    source.is_some_and(|source| source.kind() == io::ErrorKind::TimedOut)
}

/// The answer, or an internal error when the handler panicked: one request's fault must not take others along.
async fn caught(answer: impl Future<Output = Result<Response, Infallible>>) -> Response {
    match AssertUnwindSafe(answer).catch_unwind().await {
        Ok(Ok(response)) => response,
        Err(_panic) => api::lost(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Mutex;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    use super::*;

    /// More than the socket's buffers hold, and more than hyper's.
    const LARGE: usize = 4 << 20;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Log {
        /// What the current thread logs while the guard lives.
        fn capture() -> (Self, tracing::subscriber::DefaultGuard) {
            let log = Self::default();
            let writer = log.clone();
            let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
            (log, tracing::subscriber::set_default(subscriber))
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    /// Asks for `path` over a connection that is served until `read`, the rest of the client, has ended; then until
    /// the daemon closes it. How long that took.
    async fn ask(path: &str, read: impl AsyncFnOnce(&mut UnixStream)) -> Duration {
        let router = Router::new().route("/large", get(|| async { vec![b'a'; LARGE] })).route(
            "/late",
            get(|| async {
                tokio::time::sleep(2 * WRITE_TIMEOUT).await;
                "at last"
            }),
        );
        let (mut client, server) = UnixStream::pair().unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let graceful = GracefulShutdown::new();
        let start = Instant::now();
        let served = async {
            tokio::join!(
                connection(server, router, IDLE_TIMEOUT, graceful.watcher()),
                read(&mut client)
            )
        };
        tokio::time::timeout(100 * WRITE_TIMEOUT, served).await.unwrap();
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_its_answer_loses_its_connection_and_the_log_says_so() {
        let (log, _guard) = Log::capture();
        let took = ask("/large", async |_client| {}).await;
        assert!((WRITE_TIMEOUT..2 * WRITE_TIMEOUT).contains(&took), "{took:?}");
        let log = log.text();
        assert!(log.lines().count() == 1 && log.contains("has read nothing for 60s"), "{log}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_and_a_slow_answer_are_waited_for() {
        let (log, _guard) = Log::capture();
        let took = ask("/large", async |client| {
            let (mut read, mut buffer) = (0, vec![0; LARGE]);
            while read < LARGE {
                tokio::time::advance(WRITE_TIMEOUT - Duration::from_secs(1)).await;
                read += client.read(&mut buffer).await.unwrap();
            }
        });
        assert!(took.await > 5 * WRITE_TIMEOUT);
        let took = ask("/late", async |client| {
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert!(answer.ends_with(b"at last"));
        });
        // The answer, and then no other request.
        assert!(took.await >= 2 * WRITE_TIMEOUT + IDLE_TIMEOUT);
        assert_eq!(log.text(), "");
    }
}
