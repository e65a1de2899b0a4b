//! Accepts and serves connections up to a limit, each in its own task, and drains them when the
//! daemon stops.
//!
//! [`super::connections`] decides which connection is served when all slots are taken. A connection
//! without a slot can use the health routes and gets 503 for all others. A connection is closed if
//! it does not send a request for [`IDLE_TIMEOUT`], or if its client does not read the answer for
//! [`WRITE_TIMEOUT`]. The timeout of a request body is enforced where bodies are read. A connection
//! whose request has a body that the handler did not read stays open if a bounded rest
//! ([`super::request_body`]) ends the body. Otherwise the answer has `connection: close`, and the
//! daemon lingers ([`super::linger`]), so that the client reads the answer.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, header};
use axum::response::Response;
use futures_util::FutureExt;
use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::errno::Errno;
use nix::unistd::geteuid;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_io_timeout::TimeoutWriter;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

use super::connections::{
    AcceptDecision, CLOSE_TIMEOUT, ConnectionPhase, ConnectionSlot, Connections, RefusalSlot,
    TopUser,
};
use super::linger::{LingerSwitch, LingeringStream};
use super::request_body::RequestBody;
use crate::api::{self, ConnectionId, EndlessBody, PeerCredentials};
use crate::base::units::milliseconds;
use crate::config::Settings;
use crate::telemetry::log::{self, Message};

/// Timeout for the head of the next request on a connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout of a blocked write: the client does not read an answer that is larger than the socket's
/// buffer. The kernel wakes a writer when three quarters of the buffer are free, so a client must
/// read at least 2 to 3 KiB per second.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause before the next accept when the system has no more files or memory for connections.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// Timeout for the request of a connection beyond the limit.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Number of connections that are closed after a short pause, without an answer. The pause keeps
/// clients that reconnect at once from taking the processor from served ones. Connections beyond
/// this number are closed at once.
const MAX_DROPPED: usize = 512;
/// Pause before such a connection is closed.
const DROP_PAUSE: Duration = Duration::from_millis(50);
/// Interval at which a connection that was asked to close is checked.
const CLOSE_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Largest head of a request, in bytes. OpenAI's clients send less than 2 KiB.
const MAX_HEADER_BYTES: usize = 32 << 10;

/// Liveness check of the accept loop, which answers it in its next iteration.
pub(super) type LivenessPing = oneshot::Sender<()>;

/// Serves connections of `listener` until `cancel`, at most `max_connections` at a time. `refuse`
/// serves connections beyond the limit. Answers the liveness checks from `turns`.
///
/// After `cancel`, requests in progress may finish until the current drain timeout. Returns the
/// number of connections that were cut off.
///
/// # Errors
/// Fails if the socket fails permanently.
pub(super) async fn serve(
    listener: UnixListener,
    (router, refuse): (Router, Router),
    max_connections: usize,
    settings: watch::Receiver<Arc<Settings>>,
    mut turns: mpsc::Receiver<LivenessPing>,
    cancel: CancellationToken,
) -> io::Result<usize> {
    let places = Connections::new(max_connections, geteuid().as_raw());
    let dropped = Arc::new(Semaphore::new(MAX_DROPPED));
    let connections = TaskTracker::new();
    // Cancelled to end every connection after its request in progress.
    let drain = CancellationToken::new();
    // Cancelled to end the remaining connections when the drain timeout has passed.
    let cut = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            Some(turn) = turns.recv() => {
                answer_ping(turn);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _address)) => stream,
            Err(error) => {
                handle_accept_error(error).await?;
                continue;
            }
        };
        let Some(peer) = peer(&stream) else { continue };
        let (place, router, idle) = match places.admit(peer.uid, Instant::now()) {
            AcceptDecision::Served(entry, gives) => {
                if let Some(holder) = gives {
                    log_full(peer.uid, max_connections, holder);
                }
                (SlotOrRefusal::Served(Arc::new(entry)), router.clone(), IDLE_TIMEOUT)
            }
            AcceptDecision::Refused(refusal, holder) => {
                log_full(peer.uid, max_connections, holder);
                (SlotOrRefusal::Refused(refusal), refuse.clone(), REFUSAL_TIMEOUT)
            }
            AcceptDecision::Dropped(holder) => {
                log_full(peer.uid, max_connections, holder);
                if let Ok(permit) = Arc::clone(&dropped).try_acquire_owned() {
                    let cut = cut.clone();
                    connections.spawn(async move {
                        tokio::select! {
                            () = cut.cancelled() => {}
                            () = tokio::time::sleep(DROP_PAUSE) => {}
                        }
                        drop((stream, permit));
                    });
                }
                continue;
            }
        };
        let connection = serve_connection(stream, peer, router, idle, place, drain.clone());
        let cut = cut.clone();
        connections.spawn(async move {
            tokio::select! {
                () = cut.cancelled() => {}
                () = connection => {}
            }
        });
    }
    // Close `turns` too: the watchdog then sees that the loop has ended, and is not stuck.
    drop((listener, turns));
    connections.close();
    drain.cancel();
    let drain_timeout = settings.borrow().socket.drain_timeout;
    let drained = tokio::time::timeout(drain_timeout, connections.wait()).await;
    let left = if drained.is_ok() { 0 } else { connections.len() };
    cut.cancel();
    connections.wait().await;
    Ok(left)
}

fn answer_ping(turn: LivenessPing) {
    // The watchdog may have stopped waiting.
    let (Ok(()) | Err(())) = turn.send(());
}

/// Logs that `uid` wanted a connection when all slots were taken.
fn log_full(uid: u32, limit: usize, holder: TopUser) {
    if let Some(suppressed) = log::admit_refusal(Message::ConnectionLimit, uid) {
        let TopUser { uid: holder, held } = holder;
        tracing::warn!(
            name: Message::ConnectionLimit.name(),
            limit, uid, holder, held, suppressed,
            "all connections are in use"
        );
    }
}

/// Decides whether the loop can accept again after `error`, and pauses if resources are short.
async fn handle_accept_error(error: io::Error) -> io::Result<()> {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ECONNABORTED | Errno::EINTR) => Ok(()),
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
            tracing::warn!(
                name: Message::ConnectionsExhausted.name(),
                errno = error.raw_os_error(), %error,
                "cannot accept a connection, because file descriptors or memory are exhausted"
            );
            tokio::time::sleep(EXHAUSTED_PAUSE).await;
            Ok(())
        }
        _ => Err(error),
    }
}

fn peer(stream: &UnixStream) -> Option<PeerCredentials> {
    match stream.peer_cred() {
        Ok(cred) => Some(PeerCredentials { uid: cred.uid(), gid: cred.gid(), pid: cred.pid() }),
        Err(error) => {
            tracing::warn!(
                name: Message::PeerUnknown.name(),
                errno = error.raw_os_error(), %error,
                "closed a connection, because the kernel did not report its credentials"
            );
            None
        }
    }
}

/// Slot of a connection, or its refusal.
enum SlotOrRefusal {
    /// The connection is served.
    Served(Arc<ConnectionSlot>),
    /// The connection gets a refusal.
    Refused(RefusalSlot),
}

/// Serves one connection until its client or [`Connections`] ends it. After `drain`, the connection
/// ends with its current request.
async fn serve_connection(
    stream: UnixStream,
    peer: PeerCredentials,
    router: Router,
    idle: Duration,
    place: SlotOrRefusal,
    drain: CancellationToken,
) {
    let (entry, _refusal) = match place {
        SlotOrRefusal::Served(entry) => (Some(entry), None),
        SlotOrRefusal::Refused(refusal) => (None, Some(refusal)),
    };
    let id = ConnectionId::next();
    let of_request = entry.clone();
    let switch = LingerSwitch::default();
    let of_service = switch.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (entry, switch) = (of_request.clone(), of_service.clone());
        let (request, rest) = RequestBody::split(request, entry.clone());
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(id);
        let answer = router.clone().call(request);
        async move {
            let mut response = catch_panic(answer).await;
            if !rest.discard().await {
                // The rest of the body would be taken for the next request.
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
                switch.set();
            }
            if let Some(entry) = &entry {
                let is_endless = response.extensions().get::<EndlessBody>().is_some();
                entry.set_phase(if is_endless {
                    ConnectionPhase::Streaming
                } else {
                    ConnectionPhase::Writing
                });
            }
            Ok::<_, Infallible>(response.map(|body| ResponseBody { body, entry }))
        }
    });
    // Only writes have this timeout: between requests, and while an answer is computed, there is
    // nothing to write.
    let mut stream = TimeoutWriter::new(LingeringStream::new(stream, switch));
    stream.set_timeout(Some(WRITE_TIMEOUT));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut served = pin!(served);
    let mut left = pin!(wait_for_close(entry.as_deref()));
    let mut overdue = pin!(wait_for_close_timeout(entry.as_deref()));
    let (mut is_draining, mut is_leaving) = (false, false);
    let ended = loop {
        tokio::select! {
            ended = &mut served => break ended,
            () = drain.cancelled(), if !is_draining => {
                is_draining = true;
                served.as_mut().graceful_shutdown();
            }
            end = &mut left, if !is_leaving => {
                if end == CloseMode::Now {
                    return;
                }
                is_leaving = true;
                served.as_mut().graceful_shutdown();
            }
            () = &mut overdue, if is_leaving => return,
        }
    };
    match ended {
        Err(error) if is_write_timeout(&error) => tracing::warn!(
            name: Message::ClientStalled.name(),
            uid = peer.uid, pid = peer.pid, timeout_ms = milliseconds(WRITE_TIMEOUT),
            "closed a connection, because its client did not read the response"
        ),
        // Clients may disconnect at any time, which is not a fault of the daemon.
        Err(error) => {
            tracing::debug!(uid = peer.uid, pid = peer.pid, %error, "a connection ended early");
        }
        Ok(()) => {}
    }
}

/// Way to end a connection that was asked to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CloseMode {
    /// The connection ends at once: its client loses no answer.
    Now,
    /// The connection ends after the current answer.
    AfterAnswer,
}

/// Waits until the connection is asked to close. Never returns for a connection without a slot.
async fn wait_for_close(entry: Option<&ConnectionSlot>) -> CloseMode {
    let Some(entry) = entry else { return std::future::pending().await };
    entry.close_requested().await;
    match entry.phase().0 {
        ConnectionPhase::Streaming | ConnectionPhase::Receiving => CloseMode::Now,
        // A connection that seems idle may still have a part of its answer in the buffer.
        ConnectionPhase::Idle | ConnectionPhase::Writing | ConnectionPhase::Computing => {
            CloseMode::AfterAnswer
        }
    }
}

/// Waits until a connection that was asked to close has exceeded [`CLOSE_TIMEOUT`]. Time for
/// computing an answer does not count.
async fn wait_for_close_timeout(entry: Option<&ConnectionSlot>) {
    let Some(entry) = entry else { return std::future::pending().await };
    entry.close_requested().await;
    let requested = Instant::now();
    loop {
        tokio::time::sleep(CLOSE_CHECK_INTERVAL).await;
        let (phase, since) = entry.phase();
        if phase != ConnectionPhase::Computing && since.max(requested).elapsed() >= CLOSE_TIMEOUT {
            return;
        }
    }
}

/// Body of an answer. It sets the phase of the connection to idle when it is dropped, after its
/// last frame was moved to the connection's buffer.
struct ResponseBody {
    body: Body,
    entry: Option<Arc<ConnectionSlot>>,
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let Some(entry) = &self.entry {
            entry.set_phase(ConnectionPhase::Idle);
        }
    }
}

/// Returns whether a write took longer than [`WRITE_TIMEOUT`]. Unix sockets never report `TimedOut`
/// themselves, so the error comes from [`TimeoutWriter`].
fn is_write_timeout(error: &hyper::Error) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    source.is_some_and(|source| source.kind() == io::ErrorKind::TimedOut)
}

/// Returns the answer, or an internal error if the handler panicked: a fault of one request must
/// not affect others.
async fn catch_panic(answer: impl Future<Output = Result<Response, Infallible>>) -> Response {
    match AssertUnwindSafe(answer).catch_unwind().await {
        Ok(Ok(response)) => response,
        Err(_panic) => api::panic_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Mutex;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Larger than the buffers of the socket and of hyper together.
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
        /// Captures the log records of the current thread while the guard lives.
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

    /// Requests `path` over a connection as [`send`] does.
    async fn ask(path: &str, read: impl AsyncFnOnce(&mut UnixStream)) -> Duration {
        send(&format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"), read).await
    }

    /// Sends `request` over a connection. The connection is served until `read`, the rest of the
    /// client, has ended and the daemon has closed it. Returns the elapsed time.
    async fn send(request: &str, read: impl AsyncFnOnce(&mut UnixStream)) -> Duration {
        let router = Router::new().route("/large", get(|| async { vec![b'a'; LARGE] })).route(
            "/late",
            get(|| async {
                tokio::time::sleep(2 * WRITE_TIMEOUT).await;
                "at last"
            }),
        );
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let peer = peer(&server).unwrap();
        let AcceptDecision::Served(entry, None) = Connections::new(1, 0).admit(0, Instant::now())
        else {
            panic!("a free place is not given");
        };
        let (place, drain) = (SlotOrRefusal::Served(Arc::new(entry)), CancellationToken::new());
        let start = Instant::now();
        let served = async {
            tokio::join!(
                serve_connection(server, peer, router, IDLE_TIMEOUT, place, drain),
                read(&mut client)
            )
        };
        tokio::time::timeout(100 * WRITE_TIMEOUT, served).await.unwrap();
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn unread_response_times_out_and_is_logged() {
        let (log, _guard) = Log::capture();
        let took = ask("/large", async |_client| {}).await;
        assert!((WRITE_TIMEOUT..2 * WRITE_TIMEOUT).contains(&took), "{took:?}");
        let log = log.text();
        assert!(log.contains("timeout_ms=60000"), "{log}");
        assert!(log.lines().count() == 1 && log.contains("did not read the response"), "{log}");
    }

    #[tokio::test(start_paused = true)]
    async fn slow_client_and_slow_response_are_tolerated() {
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
        // The answer is received, and then the idle timeout passes without another request.
        assert!(took.await >= 2 * WRITE_TIMEOUT + IDLE_TIMEOUT);
        assert_eq!(log.text(), "");
    }

    /// Sends `request`, reads until the daemon closes the connection, and returns the text and the
    /// elapsed time.
    async fn answers(request: &str) -> (String, Duration) {
        let mut answers = String::new();
        let took = send(request, async |client| {
            client.read_to_string(&mut answers).await.unwrap();
            client.shutdown().await.unwrap();
        });
        let took = took.await;
        (answers, took)
    }

    #[tokio::test(start_paused = true)]
    async fn unread_body_is_dropped_before_next_request() {
        let next = "GET /nope HTTP/1.1\r\nconnection: close\r\n\r\n";
        for head in [
            "content-length: 5\r\n\r\nhello",
            "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ] {
            let request = format!("POST /nope HTTP/1.1\r\n{head}{next}");
            let (answers, _) = answers(&request).await;
            assert_eq!(answers.matches("HTTP/1.1 404").count(), 2, "{head}: {answers}");
            assert_eq!(answers.matches("connection: close").count(), 1, "{head}: {answers}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn body_that_does_not_end_closes_the_connection() {
        let second = Duration::from_secs(1);
        for (head, waits) in [
            // The body stops.
            ("content-length: 5\r\n\r\nhell", true),
            ("transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", true),
            // The body is too long to be dropped.
            ("content-length: 65537\r\n\r\n", false),
            // The client waits for the answer.
            ("expect: 100-continue\r\ncontent-length: 5\r\n\r\n", false),
        ] {
            let (answers, took) = answers(&format!("POST /nope HTTP/1.1\r\n{head}")).await;
            assert!(answers.starts_with("HTTP/1.1 404"), "{head}: {answers}");
            assert!(answers.contains("connection: close"), "{head}: {answers}");
            assert_eq!(took >= second, waits, "{head}: {took:?}");
            assert!(took < 2 * second, "{head}: {took:?}");
        }
    }
}
