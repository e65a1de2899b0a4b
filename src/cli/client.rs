//! HTTP client over the Unix socket of the daemon. The command line uses no other connection.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::api::wire::{ErrorBody, ErrorResponse};

/// Largest answer, since answers are read into memory: that of 2,048 vectors of 65,536 numbers as
/// text.
const MAX_ANSWER: usize = 4 << 30;
/// Retries of a request that a busy daemon rejects.
const RETRIES: usize = 50;
/// Time before such a retry.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// Error of a request to the daemon.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// Cannot connect to the socket.
    #[error(
        "cannot connect to {}; `caxton doctor` checks the daemon, the socket and your groups",
        path.display()
    )]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Cause of the failure.
        source: io::Error,
    },
    /// The daemon rejected the request.
    #[error("{}", .body.message)]
    Refused {
        /// HTTP status of the answer.
        status: StatusCode,
        /// Error in the answer.
        body: ErrorBody,
    },
    /// The connection broke, or the answer is not one of a daemon.
    #[error("the connection to the daemon failed, or its answer is invalid")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ClientError {
    /// Returns whether no daemon is running; false when a daemon rejected the request.
    pub(super) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { source, .. }
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused))
    }

    /// Returns whether the daemon rejected the request because it is busy, so that a later attempt
    /// can succeed.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self, Self::Refused { status, body }
            if *status == StatusCode::TOO_MANY_REQUESTS || body.code == "overloaded")
    }
}

/// Returns the error for an answer that is not one of a daemon.
pub(super) fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
    ClientError::Broken(error.into())
}

/// Connection to the daemon.
pub(super) struct Client {
    sender: http1::SendRequest<Body>,
    /// Task that moves the bytes; ends with the client.
    _connection: JoinSet<()>,
}

impl Client {
    /// Connects to the daemon at `socket`.
    pub(super) async fn connect(socket: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|source| ClientError::Unreachable { path: socket.to_owned(), source })?;
        Self::over(stream).await
    }

    /// Creates a client over a connected stream.
    async fn over(stream: UnixStream) -> Result<Self, ClientError> {
        let (sender, connection) =
            http1::handshake(TokioIo::new(LenientStream(stream))).await.map_err(broken)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // The sender reports the same failure.
            drop(connection.await);
        });
        Ok(Self { sender, _connection: tasks })
    }

    /// Sends a request. An answer without a success status is an error.
    pub(super) async fn send(
        &mut self,
        request: axum::http::request::Builder,
        body: Body,
    ) -> Result<Response<Incoming>, ClientError> {
        let request = request.header(header::HOST, "caxton").body(body).map_err(broken)?;
        self.sender.ready().await.map_err(broken)?;
        let response = self.sender.send_request(request).await.map_err(broken)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = collect(response).await?;
        let ErrorResponse { error } = serde_json::from_slice(&bytes).map_err(broken)?;
        Err(ClientError::Refused { status, body: error })
    }

    /// Sends `GET path` and parses the JSON answer.
    pub(super) async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, Body::empty()).await
    }

    /// Sends `method path` with `body` and parses the JSON answer.
    pub(super) async fn call<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<T, ClientError> {
        let response = self.send(Request::builder().method(method).uri(path), body).await?;
        serde_json::from_slice(&collect(response).await?).map_err(broken)
    }

    /// Sends `POST path` with `body` as JSON and parses the JSON answer.
    pub(super) async fn post<T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.send_json(Method::POST, path, body).await
    }

    /// Does the same as [`post`](Self::post), and retries for ten seconds while the daemon is busy.
    pub(super) async fn post_patiently<T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let mut retries = 0;
        loop {
            match self.post(path, body).await {
                Err(error) if error.is_busy() && retries < RETRIES => {
                    retries += 1;
                    tokio::time::sleep(RETRY_DELAY).await;
                }
                done => return done,
            }
        }
    }

    /// Sends `method path` with `body` as JSON and parses the JSON answer.
    pub(super) async fn send_json<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(broken)?;
        self.call(method, path, body.into()).await
    }
}

/// A stream whose writes succeed even if the daemon has closed the connection. A daemon that
/// rejects an upload answers and closes at once. The answer can still be read, but hyper does not
/// read it after a failed write.
struct LenientStream(UnixStream);

impl AsyncRead for LenientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for LenientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.0).poll_write(context, buffer) {
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                Poll::Ready(Ok(buffer.len()))
            }
            other => other,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// Reads the whole body of an answer.
pub(super) async fn collect(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = http_body_util::Limited::new(response.into_body(), MAX_ANSWER);
    Ok(body.collect().await.map_err(broken)?.to_bytes())
}

/// Encodes `name` as one segment of a path. Ids and versions need only `@` besides letters, digits,
/// dots, dashes and underscores; all other bytes are escaped.
pub(super) fn segment(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'@' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn early_response_is_read_after_disconnect() {
        let (near, far) = UnixStream::pair().unwrap();
        far.try_write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").unwrap();
        drop(far);
        let mut client = Client::over(near).await.unwrap();
        let body = Body::from(vec![0; 1 << 20]);
        let request = client.sender.send_request(Request::post("/").body(body).unwrap());
        assert_eq!(request.await.unwrap().status(), StatusCode::FORBIDDEN);
    }

    #[test]
    fn path_segment_is_percent_encoded() {
        assert_eq!(segment("all-MiniLM-L6-v2@2.0.0"), "all-MiniLM-L6-v2@2.0.0");
        assert_eq!(segment("../a b?#é"), "..%2Fa%20b%3F%23%C3%A9");
    }
}
