//! Notifies systemd of the daemon's state: ready, reloading, stopping, and a line of status.
//!
//! Sends nothing if `$NOTIFY_SOCKET` is not set.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::telemetry::log::Message;

/// Interval at which the progress of a start is checked.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);
/// Least time between two requests for more time.
const MIN_REQUEST_INTERVAL: Duration = Duration::from_secs(10);
/// Extension of the start timeout, counted from the last progress. It must cover the packing of a
/// large model's weights, which follows the hashing without visible progress.
const EXTENSION: Duration = Duration::from_secs(120);

/// Notifies systemd that the daemon is ready.
pub(super) fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Sends a new status.
pub(super) fn status(status: &str) {
    send(&[NotifyState::Status(status)]);
}

/// Notifies systemd that the configuration is being reloaded. A call of [`ready`] must follow.
pub(super) fn reloading() {
    // systemd ignores the message for `Type=notify-reload` if it lacks the time of sending.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => {
            tracing::warn!(
                name: Message::SystemdUnreachable.name(),
                %error,
                "cannot notify systemd of the reload"
            )
        }
    }
}

/// Notifies systemd that the daemon drains and ends within `longest`.
pub(super) fn stopping(longest: Duration) {
    send(&[NotifyState::Stopping, NotifyState::Status("draining"), extension(longest)]);
}

/// Sends a keep-alive for the watchdog.
pub(super) fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// Asks systemd for more time to start, as long as `done`, a count of bytes, grows. Never returns:
/// drop the future when the daemon is ready.
pub(super) async fn extend_start(done: impl Fn() -> u64) {
    let mut asking = ExtensionRequests::default();
    loop {
        if asking.is_due(done(), Instant::now()) {
            send(&[extension(EXTENSION)]);
        }
        tokio::time::sleep(PROGRESS_INTERVAL).await;
    }
}

/// Rate limit of the requests for more time.
#[derive(Debug, Default)]
struct ExtensionRequests {
    /// Progress at the last request.
    done: u64,
    asked: Option<Instant>,
}

impl ExtensionRequests {
    /// Returns whether there was progress since the last request, and that request is old enough.
    /// If so, records a request at `now`.
    fn is_due(&mut self, done: u64, now: Instant) -> bool {
        let is_due =
            done > self.done && self.asked.is_none_or(|asked| now - asked >= MIN_REQUEST_INTERVAL);
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
            "cannot notify systemd"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeout_is_extended_on_progress_at_intervals() {
        let mut asking = ExtensionRequests::default();
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
    fn timeout_extension_saturates() {
        assert_eq!(extension(Duration::from_secs(3)).to_string(), "EXTEND_TIMEOUT_USEC=3000000");
        let longest = extension(Duration::from_secs(1 << 20)).to_string();
        assert_eq!(longest, format!("EXTEND_TIMEOUT_USEC={}", u32::MAX));
    }
}
