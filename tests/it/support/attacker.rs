//! Clients of another user: a child of the test that runs this program again as that user.
//!
//! A thread of the test cannot do it: the C library changes the user of all threads, and the kernel tells the daemon the
//! user at the moment of connecting.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;

use serde_json::{Value, json};

use super::{Connection, Root};

/// What the child is to do, as JSON.
const ORDER: &str = "CAXTON_IT_ATTACK";
/// Begins a line that the child says to the test.
const SAYS: &str = "attacker says: ";

/// A child with connections to the daemon. They are closed when this is dropped.
#[derive(Debug)]
pub(crate) struct Attacker {
    child: Child,
    /// Closed when the child is to end.
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Attacker {
    /// Opens `count` connections as `uid`, sends `bytes` over each and holds them. Returns when all are open.
    pub(crate) fn hold(root: &Root, uid: u32, count: usize, bytes: &[u8]) -> Self {
        let mut attacker = Self::start(root, uid, "hold", count, bytes);
        assert_eq!(attacker.said(), "ready");
        attacker
    }

    /// Opens `count` connections as `uid`, and asks `bytes` again and again over each until this is dropped. Returns
    /// when every connection has its first answer, or was closed.
    pub(crate) fn flood(root: &Root, uid: u32, count: usize, bytes: &[u8]) -> Self {
        let mut attacker = Self::start(root, uid, "flood", count, bytes);
        assert_eq!(attacker.said(), "ready");
        attacker
    }

    /// The status of the answer to `bytes` as `uid`; 0 when the connection was closed without one.
    pub(crate) fn status(root: &Root, uid: u32, bytes: &[u8]) -> u16 {
        let mut attacker = Self::start(root, uid, "ask", 1, bytes);
        attacker.said().parse().unwrap()
    }

    fn start(root: &Root, uid: u32, action: &str, count: usize, bytes: &[u8]) -> Self {
        // Too large for an environment.
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .unwrap();
        let order = json!({
            "socket": root.socket(), "action": action, "count": count, "bytes": file.path(),
        });
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "support::attacker::acts", "--nocapture"])
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
        assert_eq!(attacker.said(), "begun");
        attacker
    }

    /// The next word of the child.
    fn said(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.stdout.read_line(&mut line).unwrap() > 0, "the attacker has ended");
            // The test harness of the child may have begun a line.
            if let Some((_, said)) = line.trim_end().split_once(SAYS) {
                return said.to_owned();
            }
        }
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        drop(self.stdin.take());
        // One that is stuck has no more use.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn say(what: &str) {
    let mut stdout = std::io::stdout();
    stdout.write_all(format!("{SAYS}{what}\n").as_bytes()).unwrap();
    stdout.flush().unwrap();
}

/// What the child runs; nothing when it is run as a test.
#[test]
fn acts() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let order: Value = serde_json::from_str(&order).unwrap();
    let socket = order["socket"].as_str().unwrap();
    let count = usize::try_from(order["count"].as_u64().unwrap()).unwrap();
    let bytes = std::fs::read(order["bytes"].as_str().unwrap()).unwrap();
    say("begun");
    match order["action"].as_str().unwrap() {
        "hold" => {
            let connections: Vec<UnixStream> = (0..count)
                .map(|_| {
                    let mut stream = UnixStream::connect(socket).unwrap();
                    // The daemon may close it at any time.
                    drop(stream.write_all(&bytes));
                    stream
                })
                .collect();
            say("ready");
            until_told();
            drop(connections);
        }
        "ask" => {
            let mut stream = UnixStream::connect(socket).unwrap();
            stream.set_read_timeout(Some(super::BOUND)).unwrap();
            // The daemon may close it before it has read everything.
            drop(stream.write_all(&bytes));
            // The head alone: an answer may have no end.
            let mut line = String::new();
            let read = BufReader::new(stream).read_line(&mut line);
            let status = line.split(' ').nth(1).filter(|_| read.is_ok());
            say(status.unwrap_or("0"));
        }
        "flood" => {
            let (first, firsts) = std::sync::mpsc::channel();
            for _ in 0..count {
                let (first, bytes, socket) = (first.clone(), bytes.clone(), socket.to_owned());
                thread::spawn(move || {
                    let mut first = Some(first);
                    // Until the daemon or the child ends.
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
            say("ready");
            until_told();
        }
        other => panic!("{other}"),
    }
}

fn until_told() {
    // The end of the test closes it.
    drop(std::io::stdin().read_to_end(&mut Vec::new()));
}
