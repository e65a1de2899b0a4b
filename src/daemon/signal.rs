//! The signals that the daemon follows: SIGTERM and SIGINT stop it, SIGHUP has it look at its configuration.
//!
//! Owns their handlers, from the first one on for as long as the process lives.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that the daemon follows.
pub(super) struct Signals {
    pub(super) stop: Stop,
    pub(super) reload: Signal,
}

/// The orders to stop.
pub(super) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Signals from now on.
    ///
    /// # Errors
    /// When the system does not let them be caught.
    pub(super) fn listen() -> io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        let reload = signal(SignalKind::hangup())?;
        Ok(Self { stop: Stop { terminate, interrupt }, reload })
    }
}

impl Stop {
    /// Waits for a signal to stop; cancelling loses none.
    pub(super) async fn recv(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
