//! What systemd is told: ready, reloading, stopping, and one line of status that is always true.
//!
//! Without systemd (`$NOTIFY_SOCKET` unset) nothing is sent.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::log::Message;

/// How often it is looked whether a start goes on.
const LOOK: Duration = Duration::from_millis(50);
/// How often systemd is asked for more time, while it does.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// How long a start may take from a moment on at which it went on: what follows the hashing of a large model, the
/// packing of its weights, included.
const EXTENSION: Duration = Duration::from_secs(120);

/// The daemon answers.
pub(super) fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The status has changed.
pub(super) fn status(status: &str) {
    send(&[NotifyState::Status(status)]);
}

/// The configuration is being read again; [`ready`] must follow.
pub(super) fn reloading() {
    // With Type=notify-reload systemd ignores the message without the time it was sent.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => {
            tracing::warn!(
                name: Message::SystemdUnreachable.name(),
                %error,
                "systemd is not told of the reload"
            )
        }
    }
}

/// The daemon takes no more requests, and ends within `longest`.
pub(super) fn stopping(longest: Duration) {
    send(&[NotifyState::Stopping, NotifyState::Status("draining"), extension(longest)]);
}

/// The daemon lives.
pub(super) fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// Asks for more time to start for as long as `done`, a count of bytes, grows. Never ends: to be dropped when the daemon
/// is ready.
pub(super) async fn extend_start(done: impl Fn() -> u64) {
    let mut asking = Asking::default();
    loop {
        if asking.is_due(done(), Instant::now()) {
            send(&[extension(EXTENSION)]);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// When to ask for more time.
#[derive(Debug, Default)]
struct Asking {
    /// How much was done when it was asked last.
    done: u64,
    asked: Option<Instant>,
}

impl Asking {
    /// Whether something was done since it was asked last, and that is some time ago.
    fn is_due(&mut self, done: u64, now: Instant) -> bool {
        let is_due = done > self.done && self.asked.is_none_or(|asked| now - asked >= ASK_AGAIN);
        if is_due {
            *self = Self { done, asked: Some(now) };
        }
        is_due
    }
}

fn extension(time: Duration) -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(
            name: Message::SystemdUnreachable.name(),
            errno = error.raw_os_error(), %error,
            "systemd cannot be told"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_time_is_asked_for_while_something_is_done_and_not_too_often() {
        let mut asking = Asking::default();
        let start = Instant::now();
        let mut is_due = |done, seconds| asking.is_due(done, start + Duration::from_secs(seconds));
        assert!(!is_due(0, 0), "nothing was done");
        assert!(is_due(1, 1));
        assert!(!is_due(2, 10), "just asked");
        assert!(is_due(2, 11));
        assert!(!is_due(2, 100), "nothing was done since");
        assert!(is_due(3, 101));
    }

    #[test]
    fn a_time_beyond_what_the_message_holds_is_the_longest_that_it_holds() {
        assert_eq!(extension(Duration::from_secs(3)).to_string(), "EXTEND_TIMEOUT_USEC=3000000");
        let longest = extension(Duration::from_secs(1 << 20)).to_string();
        assert_eq!(longest, format!("EXTEND_TIMEOUT_USEC={}", u32::MAX));
    }
}
