//! Connections: served up to a limit, each by its own task, drained when the daemon stops.
//!
//! Owns those tasks. Which user's connection is served when the places are taken is decided in [`super::connections`];
//! a connection without a place gets a refusal, and the health routes. A connection that sends no request for
//! [`IDLE_TIMEOUT`] or takes nothing of its answer for [`WRITE_TIMEOUT`] is closed. How long a body may take is bounded
//! where bodies are read.

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
use axum::http::Request;
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

use super::connections::{Admission, Connections, Entry, Holder, LEAVE_TIMEOUT, Phase, Refusal};
use crate::api::{self, ConnectionId, Endless, Peer};
use crate::config::Settings;
use crate::log::{self, Message};

/// How long a connection may take to send the head of its next request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client may take nothing of an answer that is larger than the socket's buffer. The kernel wakes a writer
/// when three quarters of that are free, so that a client has to read at least 2 to 3 KiB a second.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// The system has no more files or memory for connections: try again after this long.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection beyond the limit may take to send its request.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that are closed without an answer, a little later, so that clients which come again without waiting do
/// not take the processor from those that are served. More are closed at once.
const MAX_DROPPED: usize = 512;
/// How much later.
const DROP_PAUSE: Duration = Duration::from_millis(50);
/// How often a connection that was told to leave is looked at.
const LEAVING_CHECK: Duration = Duration::from_secs(1);
/// A request's head; OpenAI's clients send under 2 KiB.
const MAX_HEADER_BYTES: usize = 32 << 10;

/// Answered when the loop that accepts connections turns.
pub(super) type Turn = oneshot::Sender<()>;

/// Serves connections of `listener` until `cancel`, at most `max_connections` at a time; then lets requests in flight
/// finish for at most the drain timeout that is in force by then. Answers `turns` meanwhile. Connections beyond the
/// limit are served by `refuse`.
///
/// Returns how many connections had to be cut off.
///
/// # Errors
/// When the socket fails for good.
pub(super) async fn serve(
    listener: UnixListener,
    (router, refuse): (Router, Router),
    max_connections: usize,
    settings: watch::Receiver<Arc<Settings>>,
    mut turns: mpsc::Receiver<Turn>,
    cancel: CancellationToken,
) -> io::Result<usize> {
    let places = Connections::new(max_connections, geteuid().as_raw());
    let dropped = Arc::new(Semaphore::new(MAX_DROPPED));
    let connections = TaskTracker::new();
    // Ends every connection after its request in flight.
    let drain = CancellationToken::new();
    // Ends every connection that is left when the drain's time is over.
    let cut = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            Some(turn) = turns.recv() => {
                answer(turn);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _address)) => stream,
            Err(error) => {
                survive(error).await?;
                continue;
            }
        };
        let Some(peer) = peer(&stream) else { continue };
        let (place, router, idle) = match places.admit(peer.uid, Instant::now()) {
            Admission::Served(entry, gives) => {
                if let Some(holder) = gives {
                    tell(peer.uid, max_connections, holder);
                }
                (Place::Served(Arc::new(entry)), router.clone(), IDLE_TIMEOUT)
            }
            Admission::Refused(refusal, holder) => {
                tell(peer.uid, max_connections, holder);
                (Place::Refused(refusal), refuse.clone(), REFUSAL_TIMEOUT)
            }
            Admission::Dropped(holder) => {
                tell(peer.uid, max_connections, holder);
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
        let connection = connection(stream, peer, router, idle, place, drain.clone());
        let cut = cut.clone();
        connections.spawn(async move {
            tokio::select! {
                () = cut.cancelled() => {}
                () = connection => {}
            }
        });
    }
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

fn answer(turn: Turn) {
    // Whoever asked may have stopped waiting.
    let (Ok(()) | Err(())) = turn.send(());
}

/// Logs that `uid` wanted a connection when all were taken.
fn tell(uid: u32, limit: usize, holder: Holder) {
    if let Some(suppressed) = log::refusal(Message::ConnectionLimit, uid) {
        let Holder { uid: holder, held } = holder;
        tracing::warn!(
            name: Message::ConnectionLimit.name(),
            limit, uid, holder, held, suppressed,
            "all {limit} connections are taken: user {uid} wanted another, user {holder} holds {held}"
        );
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

fn peer(stream: &UnixStream) -> Option<Peer> {
    match stream.peer_cred() {
        Ok(cred) => Some(Peer { uid: cred.uid(), gid: cred.gid(), pid: cred.pid() }),
        Err(error) => {
            tracing::warn!(
                name: Message::PeerUnknown.name(),
                errno = error.raw_os_error(), %error,
                "a connection without credentials was closed"
            );
            None
        }
    }
}

/// What a connection was given.
enum Place {
    /// It is one of those that are served.
    Served(Arc<Entry>),
    /// It gets a refusal.
    Refused(Refusal),
}

/// Serves one connection until its client or [`Connections`] ends it, or until `drain` and the end of its request.
async fn connection(
    stream: UnixStream,
    peer: Peer,
    router: Router,
    idle: Duration,
    place: Place,
    drain: CancellationToken,
) {
    let (entry, _refusal) = match place {
        Place::Served(entry) => (Some(entry), None),
        Place::Refused(refusal) => (None, Some(refusal)),
    };
    let id = ConnectionId::next();
    let of_request = entry.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let entry = of_request.clone();
        let mut request = request.map(|body| Body::new(Arriving::new(body, entry.clone())));
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(id);
        let answer = router.clone().call(request);
        async move {
            let response = caught(answer).await;
            if let Some(entry) = &entry {
                let is_endless = response.extensions().get::<Endless>().is_some();
                entry.set(if is_endless { Phase::Streaming } else { Phase::Writing });
            }
            Ok::<_, Infallible>(response.map(|body| Leaving { body, entry }))
        }
    });
    // Only writes are timed: between requests and while one is computed there is nothing to write.
    let mut stream = TimeoutWriter::new(stream);
    stream.set_timeout(Some(WRITE_TIMEOUT));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut served = pin!(served);
    let mut left = pin!(leave(entry.as_deref()));
    let mut overdue = pin!(overdue(entry.as_deref()));
    let (mut is_draining, mut is_leaving) = (false, false);
    let ended = loop {
        tokio::select! {
            ended = &mut served => break ended,
            () = drain.cancelled(), if !is_draining => {
                is_draining = true;
                served.as_mut().graceful_shutdown();
            }
            end = &mut left, if !is_leaving => {
                if end == End::Now {
                    return;
                }
                is_leaving = true;
                served.as_mut().graceful_shutdown();
            }
            () = &mut overdue, if is_leaving => return,
        }
    };
    match ended {
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

/// How a connection ends that was told to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It has nothing that its client could miss.
    Now,
    /// After the answer in flight.
    AfterAnswer,
}

/// Waits until the connection is told to leave; for ever when it has no place.
async fn leave(entry: Option<&Entry>) -> End {
    let Some(entry) = entry else { return std::future::pending().await };
    entry.told_to_leave().await;
    match entry.phase().0 {
        Phase::Streaming | Phase::Receiving => End::Now,
        // An answer may still lie in the buffer of a connection that seems idle.
        Phase::Idle | Phase::Writing | Phase::Computing => End::AfterAnswer,
    }
}

/// Waits until a connection that was told to leave has done nothing but write for [`LEAVE_TIMEOUT`].
async fn overdue(entry: Option<&Entry>) {
    let Some(entry) = entry else { return std::future::pending().await };
    entry.told_to_leave().await;
    let told = Instant::now();
    loop {
        tokio::time::sleep(LEAVING_CHECK).await;
        let (phase, since) = entry.phase();
        if phase != Phase::Computing && since.max(told).elapsed() >= LEAVE_TIMEOUT {
            return;
        }
    }
}

/// The body of a request. Notes when it has arrived, or when nobody reads it any more.
struct Arriving {
    body: Incoming,
    entry: Option<Arc<Entry>>,
}

impl Arriving {
    fn new(body: Incoming, entry: Option<Arc<Entry>>) -> Self {
        let has_arrived = body.is_end_stream();
        if let Some(entry) = &entry {
            entry.set(if has_arrived { Phase::Computing } else { Phase::Receiving });
        }
        Self { body, entry: entry.filter(|_| !has_arrived) }
    }

    fn arrived(&mut self) {
        if let Some(entry) = self.entry.take() {
            entry.change(Phase::Receiving, Phase::Computing);
        }
    }
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.arrived();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.arrived();
    }
}

/// The body of an answer. Notes when it was given to the connection's buffer.
struct Leaving {
    body: Body,
    entry: Option<Arc<Entry>>,
}

impl HttpBody for Leaving {
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

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(entry) = &self.entry {
            entry.set(Phase::Idle);
        }
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
        let peer = peer(&server).unwrap();
        let Admission::Served(entry, None) = Connections::new(1, 0).admit(0, Instant::now()) else {
            panic!("a free place is not given");
        };
        let (place, drain) = (Place::Served(Arc::new(entry)), CancellationToken::new());
        let start = Instant::now();
        let served = async {
            tokio::join!(
                connection(server, peer, router, IDLE_TIMEOUT, place, drain),
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
