//! Confines the daemon before it has a second thread and before it accepts connections.
//!
//! Landlock restricts the files to those that the settings name ([`paths`]). seccomp restricts the
//! system calls to those that the daemon makes ([`calls`]). Both are permanent, and apply to every
//! thread and child. They add to the restrictions of the systemd unit, and also apply without a
//! unit. A restriction that an older kernel does not support is skipped. This is reported in the
//! log and in `/status`. With `require_sandbox`, the daemon refuses to start instead.

mod calls;
mod paths;

use std::path::{Path, PathBuf};

use crate::api::wire::sandbox::Sandbox;
use crate::base::exit::Exit;
use crate::config::{ConfigSource, Settings};
use crate::telemetry::log::Message;

/// Paths that are written in addition to those that the settings name.
pub(super) struct ExtraWritePaths<'a> {
    /// Path of the last good configuration.
    pub(super) last_good: Option<&'a Path>,
    /// Whether this process binds the socket.
    pub(super) socket: bool,
}

/// Enters the sandbox. It grants access to `writes` and to the paths that `settings` name.
/// `settings` were read from `files` of `source`.
///
/// # Errors
/// Fails if the sandbox is incomplete and the settings require it.
pub(super) fn enter_sandbox(
    settings: &Settings,
    source: &ConfigSource,
    files: &[PathBuf],
    writes: &ExtraWritePaths<'_>,
) -> Result<Sandbox, Exit> {
    let watched = std::env::var_os("MEMORY_PRESSURE_WATCH").map(PathBuf::from);
    let grants = paths::Grants::new(settings, source, files, writes, watched);
    let sandbox = Sandbox { landlock: paths::restrict(&grants), seccomp: calls::restrict() };
    if sandbox.landlock.is_on() {
        for directory in grants.absent(settings) {
            tracing::warn!(
                name: Message::DirectoryNotGranted.name(),
                directory = %directory.display(),
                "the directory does not exist, so the sandbox denies it until a restart"
            );
        }
    }
    report(&sandbox, settings.require_sandbox).map(|()| sandbox)
}

/// Logs the parts of the sandbox that are active, and fails if they do not suffice.
fn report(sandbox: &Sandbox, is_required: bool) -> Result<(), Exit> {
    let Sandbox { landlock, seccomp } = sandbox;
    if landlock.is_on() && seccomp.is_on() {
        tracing::info!(
            name: Message::SandboxEntered.name(),
            landlock_abi = landlock.abi,
            "entered the sandbox"
        );
        return Ok(());
    }
    let parts = [("Landlock", landlock), ("seccomp", seccomp)];
    let missing = parts.iter().filter_map(|(name, part)| {
        part.reason.as_ref().map(|reason| format!("{name} is off: {reason}"))
    });
    let missing = Vec::from_iter(missing).join("; ");
    if is_required {
        tracing::error!(
            name: Message::StartFailed.name(),
            error = missing,
            "the sandbox is incomplete, and require_sandbox is set"
        );
        return Err(Exit::Config);
    }
    tracing::warn!(name: Message::SandboxDegraded.name(), missing, "the sandbox is incomplete");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wire::sandbox::SandboxPart;

    #[test]
    fn required_but_incomplete_sandbox_prevents_start() {
        let off = || SandboxPart::off(Some(1), "no".to_owned());
        let of = |landlock, seccomp| Sandbox { landlock, seccomp };
        let cases = [
            (of(SandboxPart::on(Some(7)), SandboxPart::on(None)), Ok(())),
            (of(off(), SandboxPart::on(None)), Err(Exit::Config)),
            (of(SandboxPart::on(Some(7)), off()), Err(Exit::Config)),
        ];
        for (sandbox, required) in cases {
            assert_eq!(report(&sandbox, true), required, "{sandbox:?}");
            assert_eq!(report(&sandbox, false), Ok(()), "{sandbox:?}");
        }
    }
}
