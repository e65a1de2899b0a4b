//! Clients of another user: a child process that runs this test program again as that user.
//!
//! A thread of the test cannot do it: the C library changes the user of all threads, and the kernel
//! reports the user at the moment of connecting.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;

use serde_json::{Value, json};

use super::{Connection, Root};

/// Environment variable with the child's order as JSON.
const ORDER: &str = "CAXTON_IT_ATTACK";
/// Prefix of the messages that the child sends to the test.
const PREFIX: &str = "attacker: ";

/// Child with connections to the daemon. Dropping it closes them.
#[derive(Debug)]
pub(crate) struct Attacker {
    child: Child,
    /// Closed to end the child.
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Attacker {
    /// Opens `count` connections as `uid`, sends `bytes` on each and holds them. Returns when all
    /// are open.
    pub(crate) fn hold(root: &Root, uid: u32, count: usize, bytes: &[u8]) -> Self {
        let mut attacker = Self::start(root, uid, "hold", count, bytes);
        assert_eq!(attacker.message(), "ready");
        attacker
    }

    /// Opens `count` connections as `uid`, and sends `bytes` as a request on each again and again
    /// until this is dropped. Returns when every connection has its first answer or was closed.
    pub(crate) fn flood(root: &Root, uid: u32, count: usize, bytes: &[u8]) -> Self {
        let mut attacker = Self::start(root, uid, "flood", count, bytes);
        assert_eq!(attacker.message(), "ready");
        attacker
    }

    /// Returns the status of the answer to `bytes`, sent as `uid`; 0 when the connection was closed
    /// without an answer.
    pub(crate) fn status(root: &Root, uid: u32, bytes: &[u8]) -> u16 {
        let mut attacker = Self::start(root, uid, "ask", 1, bytes);
        attacker.message().parse().unwrap()
    }

    fn start(root: &Root, uid: u32, action: &str, count: usize, bytes: &[u8]) -> Self {
        // The bytes can be too long for an environment variable.
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .unwrap();
        let order = json!({
            "socket": root.socket(), "action": action, "count": count, "bytes": file.path(),
        });
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "support::attacker::child_runs_its_order", "--nocapture"])
            .env(ORDER, order.to_string())
            .current_dir("/")
            .uid(uid)
            .gid(uid)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut attacker = Self { child, stdin, stdout };
        assert_eq!(attacker.message(), "begun");
        attacker
    }

    /// Returns the next message of the child.
    fn message(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.stdout.read_line(&mut line).unwrap() > 0, "the attacker has ended");
            // The test harness of the child may have begun the line.
            if let Some((_, message)) = line.trim_end().split_once(PREFIX) {
                return message.to_owned();
            }
        }
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        drop(self.stdin.take());
        // Kill the child in case it is stuck.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Sends a message from the child to the test.
fn send_message(text: &str) {
    let mut stdout = std::io::stdout();
    stdout.write_all(format!("{PREFIX}{text}\n").as_bytes()).unwrap();
    stdout.flush().unwrap();
}

/// Runs the child's order. Does nothing when it runs as an ordinary test.
#[test]
fn child_runs_its_order() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let order: Value = serde_json::from_str(&order).unwrap();
    let socket = order["socket"].as_str().unwrap();
    let count = usize::try_from(order["count"].as_u64().unwrap()).unwrap();
    let bytes = std::fs::read(order["bytes"].as_str().unwrap()).unwrap();
    send_message("begun");
    match order["action"].as_str().unwrap() {
        "hold" => {
            let connections: Vec<UnixStream> = (0..count)
                .map(|_| {
                    let mut stream = UnixStream::connect(socket).unwrap();
                    // The daemon may close the connection at any time.
                    drop(stream.write_all(&bytes));
                    stream
                })
                .collect();
            send_message("ready");
            wait_for_test();
            drop(connections);
        }
        "ask" => {
            let mut stream = UnixStream::connect(socket).unwrap();
            stream.set_read_timeout(Some(super::BOUND)).unwrap();
            // The daemon may close the connection before it has read everything.
            drop(stream.write_all(&bytes));
            // Read the first line only, because the answer may be endless.
            let mut line = String::new();
            let read = BufReader::new(stream).read_line(&mut line);
            let status = line.split(' ').nth(1).filter(|_| read.is_ok());
            send_message(status.unwrap_or("0"));
        }
        "flood" => {
            let (first, firsts) = std::sync::mpsc::channel();
            for _ in 0..count {
                let (first, bytes, socket) = (first.clone(), bytes.clone(), socket.to_owned());
                thread::spawn(move || {
                    let mut first = Some(first);
                    // Repeat until the daemon or the child ends.
                    while let Ok(mut connection) = Connection::try_open(socket.as_ref()) {
                        loop {
                            connection.send(&bytes);
                            let answer = connection.try_answer();
                            if let Some(first) = first.take() {
                                first.send(()).unwrap();
                            }
                            let Ok(answer) = answer else { break };
                            if answer.header("connection") == Some("close") {
                                break;
                            }
                        }
                    }
                });
            }
            drop(first);
            assert_eq!(firsts.iter().take(count).count(), count);
            send_message("ready");
            wait_for_test();
        }
        other => panic!("{other}"),
    }
}

/// Waits until the test ends this child.
fn wait_for_test() {
    // Stdin is closed when the test ends.
    drop(std::io::stdin().read_to_end(&mut Vec::new()));
}
