//! Runs a daemon process and collects its log and its notifications.

use std::io::{BufRead, BufReader, Read};
use std::ops::Deref;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use caxton::telemetry::log::Message;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{Answer, BOUND, Connection, EMBEDDINGS, Root, STRANGER, cli};

/// Interval of polling for a state that the daemon neither logs nor notifies.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Returns whether a line of the log is a record of `kind`.
///
/// The log on stderr has the form `TIME LEVEL event-name: text fields`.
pub(crate) fn is_event(line: &str, kind: Message) -> bool {
    let head = line.split_once(": ").map_or("", |(head, _)| head);
    head.rsplit([' ', '>']).next() == Some(kind.name())
}

/// A running daemon. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    output: Arc<SharedOutput>,
    notify: UnixDatagram,
    listeners: Vec<JoinHandle<()>>,
    /// `None` only after [`Daemon::end`].
    root: Option<Root>,
}

impl Deref for Daemon {
    type Target = Root;

    fn deref(&self) -> &Root {
        self.root.as_ref().expect("a daemon has its root until it has ended")
    }
}

impl Daemon {
    /// Starts `program`, which becomes the daemon, in `root`.
    pub(crate) fn spawn(root: Root, program: Command) -> Self {
        Self::spawn_with(root, program, Stdio::null())
    }

    /// Starts `program` in `root` with the given standard input.
    pub(crate) fn spawn_with(root: Root, mut program: Command, stdin: impl Into<Stdio>) -> Self {
        let notify_path = root.path().join("notify");
        // Remove the socket of an earlier daemon.
        caxton::files::remove(&notify_path).unwrap();
        let notify = UnixDatagram::bind(&notify_path).unwrap();
        let mut child = program
            .arg("--config")
            .arg(root.config())
            .env("NOTIFY_SOCKET", &notify_path)
            .env_remove("JOURNAL_STREAM")
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_PID")
            .env_remove("LISTEN_FDNAMES")
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = Arc::new(SharedOutput::default());
        let (log, listener) = (Arc::clone(&output), notify.try_clone().unwrap());
        let stderr = child.stderr.take().unwrap();
        let notified = Arc::clone(&output);
        let listeners = vec![
            thread::spawn(move || log.follow_log(stderr)),
            thread::spawn(move || notified.follow_notifications(&listener)),
        ];
        Self { child, output, notify, listeners, root: Some(root) }
    }

    /// Returns the root, to change its configuration.
    pub(crate) fn root_mut(&mut self) -> &mut Root {
        self.root.as_mut().expect("a daemon has its root until it has ended")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().try_into().unwrap()), signal).unwrap();
    }

    /// Stops the daemon as systemd would; fails unless it ends with exit code 0.
    pub(crate) fn stop(self) -> Root {
        self.signal(Signal::SIGTERM);
        let (code, root) = self.wait_exit();
        assert_eq!(code, 0, "exit code after SIGTERM");
        root
    }

    /// Kills the daemon, as a power failure would.
    pub(crate) fn kill(mut self) -> Root {
        self.child.kill().unwrap();
        self.end().1
    }

    /// Waits until the daemon ends. Returns its exit code, or 128 plus the signal that ended it.
    pub(crate) fn wait_exit(mut self) -> (i32, Root) {
        self.output.wait("the end of the daemon", |captured| captured.ended.then_some(()));
        self.end()
    }

    fn end(&mut self) -> (i32, Root) {
        let status = self.child.wait().unwrap();
        // Wake the listener with an empty message, which no daemon sends.
        self.notify.send_to_addr(&[], &self.notify.local_addr().unwrap()).unwrap();
        for listener in self.listeners.drain(..) {
            listener.join().unwrap();
        }
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap();
        (code, self.root.take().unwrap())
    }

    /// Returns the log until now, one record per item.
    pub(crate) fn log(&self) -> Vec<String> {
        self.output.captured.lock().unwrap().log.clone()
    }

    /// Returns the notifications until now. Each consists of lines with assignments.
    pub(crate) fn notifications(&self) -> Vec<String> {
        self.output.captured.lock().unwrap().notified.clone()
    }

    /// Waits for a record of `kind`, old or new, and returns its line.
    pub(crate) fn wait_event(&self, kind: Message) -> String {
        self.wait_event_after(0, kind, &[])
    }

    /// Waits for a record of `kind`, old or new, whose line contains every one of `fragments`.
    pub(crate) fn wait_event_with(&self, kind: Message, fragments: &[&str]) -> String {
        self.wait_event_after(0, kind, fragments)
    }

    /// Waits for a record of `kind` after the first `count` lines of the log, whose line contains
    /// every one of `fragments`.
    pub(crate) fn wait_event_after(
        &self,
        count: usize,
        kind: Message,
        fragments: &[&str],
    ) -> String {
        self.output.wait(&format!("a record {} with {fragments:?}", kind.name()), |captured| {
            let mut later = captured.log.iter().skip(count);
            let is_meant = |line: &&String| {
                is_event(line, kind) && fragments.iter().all(|fragment| line.contains(fragment))
            };
            later.find(is_meant).cloned()
        })
    }

    /// Waits for a line of the log that contains `text`, old or new. Only for debug records, which
    /// have no kind.
    pub(crate) fn wait_line(&self, text: &str) -> String {
        self.output.wait(&format!("a line with \"{text}\""), |captured| {
            captured.log.iter().find(|line| line.contains(text)).cloned()
        })
    }

    /// Waits for a notification that contains `text`, old or new.
    pub(crate) fn wait_notified(&self, text: &str) -> String {
        self.wait_notified_after(0, text)
    }

    /// Waits for a notification that contains `text`, after the first `count` ones.
    pub(crate) fn wait_notified_after(&self, count: usize, text: &str) -> String {
        self.output.wait(&format!("the notification \"{text}\""), |captured| {
            captured.notified.iter().skip(count).find(|message| message.contains(text)).cloned()
        })
    }

    /// Calls `look` until it finds something: after every log line and notification, and at short
    /// intervals.
    pub(crate) fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + BOUND;
        loop {
            let size = self.output.captured.lock().unwrap().size();
            if let Some(found) = look() {
                return found;
            }
            let captured = self.output.captured.lock().unwrap();
            if Instant::now() >= deadline {
                fail(captured, what);
            }
            drop(
                self.output
                    .changed
                    .wait_timeout_while(captured, POLL_INTERVAL, |captured| captured.size() == size)
                    .unwrap(),
            );
        }
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::open(&self.socket())
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.connect().request("GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.connect().request("POST", path, &[], body.to_string().as_bytes())
    }

    /// Sends `bytes` on a new connection and returns the answer.
    pub(crate) fn send(&self, bytes: &[u8]) -> Answer {
        let mut connection = self.connect();
        connection.send(bytes);
        connection.answer()
    }

    /// Runs `caxton` with `arguments` as [`STRANGER`]. Requires root.
    pub(crate) fn cli_as_stranger(&self, arguments: &[&str]) -> Output {
        cli()
            .args(arguments)
            .arg("--socket")
            .arg(self.socket())
            .current_dir("/")
            .uid(STRANGER)
            .gid(STRANGER)
            .output()
            .unwrap()
    }

    /// Returns the answer of `/v1/embeddings` to `body`.
    pub(crate) fn embeddings(&self, body: &Value) -> Answer {
        self.post(EMBEDDINGS, body)
    }

    /// Returns the vectors of `input` from the default model.
    pub(crate) fn embed(&self, input: Value) -> Vec<Vec<f32>> {
        let answer = self.embeddings(&json!({ "input": input }));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.vectors()
    }

    /// Returns the answer of `/status`.
    pub(crate) fn status(&self) -> Value {
        let answer = self.get("/status");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// Returns whether Landlock is on. Fails if it is off for another reason than the kernel.
    pub(crate) fn has_landlock(&self) -> bool {
        let landlock = self.status()["sandbox"]["landlock"].clone();
        let is_on = landlock["state"] == "on";
        let reason = landlock["reason"].as_str().unwrap_or_default();
        assert!(is_on || reason.contains("the kernel"), "{landlock}");
        is_on
    }

    /// Returns the package of model `id` in `/status`; `Null` when it is not installed.
    pub(crate) fn package(&self, id: &str) -> Value {
        let status = self.status();
        let packages = status["packages"].as_array().unwrap();
        packages.iter().find(|package| package["id"] == id).cloned().unwrap_or(Value::Null)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.root.is_some() {
            // The daemon may have ended already, for example when a test fails.
            drop(self.child.kill());
            self.end();
        }
    }
}

/// Output of a daemon, shared with the threads that read it.
#[derive(Debug, Default)]
struct SharedOutput {
    captured: Mutex<CapturedOutput>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct CapturedOutput {
    log: Vec<String>,
    notified: Vec<String>,
    /// The log's pipe is closed, so no process is left that could write to it.
    ended: bool,
}

impl CapturedOutput {
    /// Returns a value that differs after each change.
    fn size(&self) -> (usize, bool) {
        (self.log.len() + self.notified.len(), self.ended)
    }
}

fn fail(captured: MutexGuard<'_, CapturedOutput>, what: &str) -> ! {
    let (log, notified) = (captured.log.join("\n"), captured.notified.join("\n"));
    // Unlock before the panic, because the listener threads still need the mutex and a panic would
    // poison it.
    drop(captured);
    panic!("timed out waiting for {what}; the log:\n{log}\nthe notifications:\n{notified}");
}

impl SharedOutput {
    /// Waits until `look` finds something in the output. Fails when the output has ended or the
    /// time is over.
    fn wait<T>(&self, what: &str, mut look: impl FnMut(&CapturedOutput) -> Option<T>) -> T {
        let deadline = Instant::now() + BOUND;
        let mut captured = self.captured.lock().unwrap();
        loop {
            if let Some(found) = look(&captured) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if captured.ended || left.is_zero() {
                fail(captured, what);
            }
            captured = self.changed.wait_timeout(captured, left).unwrap().0;
        }
    }

    fn update(&self, change: impl FnOnce(&mut CapturedOutput)) {
        change(&mut self.captured.lock().unwrap());
        self.changed.notify_all();
    }

    fn follow_log(&self, pipe: impl Read) {
        for line in BufReader::new(pipe).lines() {
            let line = line.unwrap();
            self.update(|captured| captured.log.push(line));
        }
        self.update(|captured| captured.ended = true);
    }

    fn follow_notifications(&self, socket: &UnixDatagram) {
        let mut message = [0; 4096];
        loop {
            let length = socket.recv(&mut message).unwrap();
            if length == 0 {
                return;
            }
            let text = String::from_utf8(message[..length].to_vec()).unwrap();
            self.update(|captured| captured.notified.push(text));
        }
    }
}
