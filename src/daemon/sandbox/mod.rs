//! The sandbox: what the daemon takes from itself before it has a second thread and before anybody can talk to it.
//!
//! Landlock leaves it the files that its settings name ([`paths`]), seccomp the system calls that it makes
//! ([`calls`]). Both are for good, and hold for every thread and child. It comes on top of what
//! the unit does, and is there without a unit, too. What an older kernel cannot give is left out and said: in the log, in
//! `/status`, and by refusing to start when `require_sandbox` is set.

mod calls;
mod paths;

use std::path::{Path, PathBuf};

use crate::api::wire::sandbox::Sandbox;
use crate::config::{Settings, Source};
use crate::exit::Exit;
use crate::log::Message;

/// What is written beside what the settings name.
pub(super) struct Writes<'a> {
    /// Where the last good configuration is kept.
    pub(super) last_good: Option<&'a Path>,
    /// Whether the socket is made here.
    pub(super) socket: bool,
}

/// Enters the sandbox for `writes` and for what `settings` name, read from `files` of `source`.
///
/// # Errors
/// When the sandbox is not whole and the settings require it.
pub(super) fn enter(
    settings: &Settings,
    source: &Source,
    files: &[PathBuf],
    writes: &Writes<'_>,
) -> Result<Sandbox, Exit> {
    let watched = std::env::var_os("MEMORY_PRESSURE_WATCH").map(PathBuf::from);
    let grants = paths::Grants::new(settings, source, files, writes, watched);
    let sandbox = Sandbox { landlock: paths::restrict(&grants), seccomp: calls::restrict() };
    if sandbox.landlock.is_on() {
        for directory in grants.absent(settings) {
            tracing::warn!(
                name: Message::DirectoryNotGranted.name(),
                directory = %directory.display(),
                "the directory does not exist; when it is made, caxtond has to be started again to use it"
            );
        }
    }
    report(&sandbox, settings.require_sandbox).map(|()| sandbox)
}

/// Tells the log what was reached, and whether that is enough.
fn report(sandbox: &Sandbox, is_required: bool) -> Result<(), Exit> {
    let Sandbox { landlock, seccomp } = sandbox;
    if landlock.is_on() && seccomp.is_on() {
        tracing::info!(
            name: Message::SandboxEntered.name(),
            landlock_abi = landlock.abi,
            "in the sandbox"
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
            "the sandbox is not whole, and require_sandbox is set"
        );
        return Err(Exit::Config);
    }
    tracing::warn!(name: Message::SandboxDegraded.name(), missing, "the sandbox is not whole");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wire::sandbox::Part;

    #[test]
    fn a_sandbox_that_is_required_and_not_whole_ends_the_start() {
        let off = || Part::off(Some(1), "no".to_owned());
        let of = |landlock, seccomp| Sandbox { landlock, seccomp };
        let cases = [
            (of(Part::on(Some(7)), Part::on(None)), Ok(())),
            (of(off(), Part::on(None)), Err(Exit::Config)),
            (of(Part::on(Some(7)), off()), Err(Exit::Config)),
        ];
        for (sandbox, required) in cases {
            assert_eq!(report(&sandbox, true), required, "{sandbox:?}");
            assert_eq!(report(&sandbox, false), Ok(()), "{sandbox:?}");
        }
    }
}
