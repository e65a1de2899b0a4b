//! Receives signals: SIGTERM and SIGINT stop the daemon, SIGHUP reloads the configuration.
//!
//! The handlers stay installed until the process ends.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Streams of the signals that the daemon handles.
pub(super) struct Signals {
    pub(super) stop: StopSignals,
    pub(super) reload: Signal,
}

/// Streams of the signals that stop the daemon.
pub(super) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Installs the handlers. Signals that arrive later are received.
    ///
    /// # Errors
    /// Fails if the system rejects a handler.
    pub(super) fn listen() -> io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        let reload = signal(SignalKind::hangup())?;
        Ok(Self { stop: StopSignals { terminate, interrupt }, reload })
    }
}

impl StopSignals {
    /// Waits for a signal that stops the daemon, and returns its name. Cancel safe: no signal is
    /// lost.
    pub(super) async fn recv(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
