//! Body of a request, and the rest of it that the handler did not read.
//!
//! hyper closes a connection when a body is dropped before it has arrived: its client gets EPIPE or
//! ECONNRESET, often before it reads the answer, and loses the next request on the connection. So a
//! body that is dropped unread is returned to its connection, which reads and drops a bounded rest
//! before it writes the answer.
//!
//! Invariant: at most one chunk of a rest is in memory.

use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::{Request, header};
use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint};

use super::connections::{ConnectionPhase, ConnectionSlot};

/// Most bytes of a rest that are read and dropped.
const MAX_REST: u64 = 64 << 10;
/// Timeout for a rest.
const REST_TIMEOUT: Duration = Duration::from_secs(1);

/// State of a body, which its handler and its connection share.
#[derive(Debug)]
enum BodyState {
    /// The handler holds the body.
    InUse,
    /// The body has arrived completely, or its connection is broken.
    Ended,
    /// The handler dropped the body before its end. `is_begun` if it had read a part.
    Returned { body: Incoming, is_begun: bool },
}

#[derive(Debug)]
struct SharedState(Mutex<BodyState>);

impl SharedState {
    fn lock(&self) -> MutexGuard<'_, BodyState> {
        // Each change is one assignment: the state is valid even after a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Body of a request for its handler. It changes the phase of the connection when the body has
/// arrived or is dropped unread.
pub(super) struct RequestBody {
    /// `None` only while this is dropped.
    body: Option<Incoming>,
    entry: Option<Arc<ConnectionSlot>>,
    /// `None` when the body has arrived.
    state: Option<Arc<SharedState>>,
    is_begun: bool,
}

/// Rest of a body for its connection.
pub(super) struct BodyRest {
    /// `None` for a request without a body.
    state: Option<Arc<SharedState>>,
    entry: Option<Arc<ConnectionSlot>>,
    /// Whether the client sends the body only after a `100 Continue`, which a read causes.
    expects_continue: bool,
}

impl RequestBody {
    /// Splits the body of `request` into the part for the handler and the rest for the connection
    /// of `entry`.
    pub(super) fn split(
        request: Request<Incoming>,
        entry: Option<Arc<ConnectionSlot>>,
    ) -> (Request<Self>, BodyRest) {
        let has_arrived = request.body().is_end_stream();
        if let Some(entry) = &entry {
            entry.set_phase(if has_arrived {
                ConnectionPhase::Computing
            } else {
                ConnectionPhase::Receiving
            });
        }
        let state = (!has_arrived).then(|| Arc::new(SharedState(Mutex::new(BodyState::InUse))));
        let rest = BodyRest {
            state: state.clone(),
            entry: entry.clone(),
            expects_continue: request.headers().contains_key(header::EXPECT),
        };
        let request = request.map(|body| Self { body: Some(body), entry, state, is_begun: false });
        (request, rest)
    }

    fn end(&mut self, end: BodyState) {
        let Some(state) = self.state.take() else { return };
        *state.lock() = end;
        if let Some(entry) = self.entry.take() {
            entry.change_phase(ConnectionPhase::Receiving, ConnectionPhase::Computing);
        }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = Pin::new(&mut *body).poll_frame(context);
        let has_ended = matches!(frame, Poll::Ready(None | Some(Err(_)))) || body.is_end_stream();
        self.is_begun = true;
        if has_ended {
            self.end(BodyState::Ended);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(body) = self.body.take() {
            let is_begun = self.is_begun;
            self.end(BodyState::Returned { body, is_begun });
        }
    }
}

impl BodyRest {
    /// Reads and drops the rest of the body, up to [`MAX_REST`] bytes and until [`REST_TIMEOUT`].
    /// Call it when the handler has answered. Returns whether the body has ended; otherwise the
    /// connection cannot carry another request.
    pub(super) async fn discard(self) -> bool {
        let Some(state) = self.state else { return true };
        let state = mem::replace(&mut *state.lock(), BodyState::Ended);
        let (mut body, is_begun) = match state {
            BodyState::Ended => return true,
            // Another task of the handler still reads it.
            BodyState::InUse => return false,
            BodyState::Returned { body, is_begun } => (body, is_begun),
        };
        let is_long = body.size_hint().lower() > MAX_REST;
        // After an error instead of `100 Continue`, the client may send the body or not
        // (<https://www.rfc-editor.org/rfc/rfc9110#section-10.1.1>).
        if is_long || (self.expects_continue && !is_begun) {
            return false;
        }
        if let Some(entry) = &self.entry {
            entry.set_phase(ConnectionPhase::Receiving);
        }
        tokio::time::timeout(REST_TIMEOUT, discard(&mut body)).await.unwrap_or(false)
    }
}

/// Reads `body` to its end. Returns false if it is longer than [`MAX_REST`], or broken.
async fn discard(body: &mut Incoming) -> bool {
    let mut read = 0_u64;
    while read <= MAX_REST {
        let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await;
        match frame {
            None => return true,
            Some(Err(_broken)) => return false,
            Some(Ok(frame)) => {
                read = read.saturating_add(frame.data_ref().map_or(0, |data| data.len() as u64));
            }
        }
        if body.is_end_stream() {
            return true;
        }
    }
    false
}
