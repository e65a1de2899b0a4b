//! Minimal HTTP/1.1 client for tests. It can send any bytes, also malformed ones.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::BOUND;

/// Connection to the daemon. It can carry several requests, one after the other.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    pub(crate) fn open(socket: &Path) -> Self {
        Self::try_open(socket).unwrap()
    }

    /// Opens a connection; fails when the daemon does not listen any more.
    pub(crate) fn try_open(socket: &Path) -> io::Result<Self> {
        Self::over(UnixStream::connect(socket)?)
    }

    /// Uses an open connection.
    pub(crate) fn over(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(BOUND))?;
        stream.set_write_timeout(Some(BOUND))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a request with a `host` and a `content-length`, and reads the answer.
    pub(crate) fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        self.ask(method, path, headers, body);
        self.answer()
    }

    /// Sends a request without reading the answer.
    pub(crate) fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: caxton\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        self.send(head.as_bytes());
        self.send(body);
    }

    /// Sends any bytes. A closed connection is noticed when the answer is read.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        match self.stream.get_mut().write_all(bytes) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => panic!("{error}"),
            _ => {}
        }
    }

    /// Reads one answer.
    pub(crate) fn answer(&mut self) -> Answer {
        self.try_answer().unwrap()
    }

    /// Reads one answer, or returns the error of the connection.
    pub(crate) fn try_answer(&mut self) -> io::Result<Answer> {
        let mut lines = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        let status = lines[0].split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines[1..].iter().map(|line| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim().to_owned())
        });
        let mut answer = Answer { status, headers: headers.collect(), body: Vec::new() };
        if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                let length = u64::from_str_radix(&self.line()?, 16).unwrap();
                (&mut self.stream).take(length).read_to_end(&mut answer.body)?;
                self.line()?;
                if length == 0 {
                    break;
                }
            }
        } else {
            let length = answer.header("content-length").unwrap_or("0").parse().unwrap();
            answer.body.resize(length, 0);
            self.stream.read_exact(&mut answer.body)?;
        }
        Ok(answer)
    }

    /// Closes the connection for writing.
    pub(crate) fn finish(&self) {
        match self.stream.get_ref().shutdown(Shutdown::Write) {
            Err(error) if error.kind() != ErrorKind::NotConnected => panic!("{error}"),
            _ => {}
        }
    }

    /// Returns whether a byte of an answer is available now.
    pub(crate) fn has_answer(&mut self) -> bool {
        self.stream.get_ref().set_nonblocking(true).unwrap();
        let there = self.stream.fill_buf().map(|bytes| !bytes.is_empty());
        self.stream.get_ref().set_nonblocking(false).unwrap();
        match there {
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            there => there.unwrap(),
        }
    }

    /// Waits until the daemon closes the connection, and returns the bytes that it sent before.
    pub(crate) fn until_closed(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
            _ => rest,
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

/// Answer to a request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Returns the value of the header `name`, which is in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// Checks that an error has OpenAI's shape, nested, complete and JSON, and returns its inner
    /// object.
    pub(crate) fn error(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        let body = self.json();
        let fields = |value: &Value| {
            let mut names: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
            names.sort();
            names
        };
        assert_eq!(fields(&body), ["error"], "{body}");
        let error = &body["error"];
        let mut expected = vec!["code", "message", "param", "type"];
        if error["code"] == "model_loading" {
            expected.insert(1, "loading");
        }
        assert_eq!(fields(error), expected, "{body}");
        for field in ["code", "message", "type"] {
            assert!(error[field].as_str().is_some_and(|text| !text.is_empty()), "{body}");
        }
        error.clone()
    }

    /// Returns the vectors in an answer of `/v1/embeddings`, in either encoding.
    pub(crate) fn vectors(&self) -> Vec<Vec<f32>> {
        let body = self.json();
        let rows = body["data"].as_array().unwrap_or_else(|| panic!("{body}"));
        for (index, row) in rows.iter().enumerate() {
            assert_eq!(row["index"], index);
        }
        rows.iter().map(|row| vector(&row["embedding"])).collect()
    }
}

/// Checks that the answer is an error with `status` and `code`, whose message and param contain the
/// given parts.
pub(crate) fn refused(
    answer: &Answer,
    status: u16,
    code: &str,
    param: Option<&str>,
    messages: &[&str],
) {
    let error = answer.error();
    assert_eq!(answer.status, status, "{error}");
    assert_eq!(error["code"], code, "{error}");
    assert_eq!(error["param"].as_str(), param, "{error}");
    for message in messages {
        assert!(error["message"].as_str().unwrap().contains(message), "{message}: {error}");
    }
}

fn vector(embedding: &Value) -> Vec<f32> {
    if let Some(text) = embedding.as_str() {
        let bytes = STANDARD.decode(text).unwrap();
        return bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
    }
    serde_json::from_value(embedding.clone()).unwrap()
}
