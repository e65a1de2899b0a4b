//! What systemd is told: ready, reloading, stopping, and one line of status that is always true.
//!
//! Without systemd (`$NOTIFY_SOCKET` unset) nothing is sent.

use sd_notify::NotifyState;

use crate::log::Message;

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

/// The daemon takes no more requests.
pub(super) fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("draining")]);
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
