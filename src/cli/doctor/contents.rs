//! Checks of the models and their disk: models, rejected packages, drop directory, disk.
//!
//! Pure: they turn facts into verdicts.

use std::io;
use std::path::Path;

use super::super::shell::quote;
use super::Check;
use super::facts::{Caller, Disk, DropDirectory, Process};
use crate::api::wire;
use crate::api::wire::Package;
use crate::base::errors::chain;
use crate::base::units::Bytes;
use crate::package::{InstallStatus, StoreContents, StoreEntry};

/// Reason for skipping the checks of directories.
pub(super) const OTHER_SOCKET: &str = "the socket is not socket.path of this configuration; name the \
                            configuration of the daemon with --config";

/// Repair of a directory of the store that cannot be used.
const REPAIR_DIRECTORY: &str = "repair the file system, or correct the owner and mode of that \
                                directory; journalctl -k shows errors of the disk";

/// Checks the degraded parts that the running daemon reports, above all its disk.
pub(super) fn condition(status: Option<&wire::DaemonStatus>) -> Check {
    const NAME: &str = "condition";
    let Some(status) = status else { return Check::needs_daemon(NAME) };
    match &status.degraded[..] {
        [] => Check::pass(NAME, "nothing is degraded"),
        degraded => Check::warn(
            NAME,
            format!("degraded: {}", degraded.join("; ")),
            "repair the named part, usually the disk or a mount; the daemon checks it again within a minute, without \
             a restart",
        ),
    }
}

/// Checks the installed models: none may be corrupt or fail to load.
pub(super) fn models(status: Option<&wire::DaemonStatus>) -> Check {
    const NAME: &str = "models";
    let Some(status) = status else { return Check::needs_daemon(NAME) };
    let packages = &status.packages;
    if packages.is_empty() {
        return Check::fail(
            NAME,
            "no model is installed",
            "sudo caxton model install PACKAGE.model.tar.zst",
        );
    }
    let broken = |package: &&Package| package.status == "corrupt" || package.problem.is_some();
    let broken = Vec::from_iter(packages.iter().filter(broken));
    if let Some(first) = broken.first() {
        let Package { id, version, problem, .. } = first;
        let why = problem.as_deref().unwrap_or("its files are damaged");
        let more = if broken.len() > 1 {
            format!(" (and {} more)", broken.len() - 1)
        } else {
            String::new()
        };
        let name = quote(format!("{id}@{version}"));
        let action = match first.status.as_str() {
            "corrupt" if first.origin == "bundled" => {
                "the daemon installs it again from packages.bundled_directory; if that fails: \
                 journalctl -u caxton -e, then repair the file there, or install the software \
                 package that contains it again"
                    .to_owned()
            }
            "corrupt" if first.origin == "dropped" => {
                "the daemon installs it again from its file in the drop directory; if that fails: \
                 copy its package there again"
                    .to_owned()
            }
            "corrupt" => {
                "install its package again: sudo caxton model install PACKAGE.model.tar.zst"
                    .to_owned()
            }
            "disabled" => enable(first, packages),
            _ => format!("sudo caxton memory load {name}; journalctl -u caxton -e"),
        };
        let found = format!("{id}@{version}: {why}{more}");
        // An administrator may have removed a key on purpose, so that disabled models are only a
        // warning.
        let is_wanted = broken.iter().all(|package| package.status == "disabled");
        return if is_wanted {
            Check::warn(NAME, found, action)
        } else {
            Check::fail(NAME, found, action)
        };
    }
    let resident =
        packages.iter().filter(|package| package.residency.as_deref() == Some("resident")).count();
    let (count, default) = (packages.len(), &status.default_model);
    Check::pass(NAME, format!("{count} installed, {resident} in memory; {default} is the default"))
}

/// Returns the repair of a disabled package. A missing key disables a signed package only. The
/// other causes are that the id belongs to a bundled package, and a missing signature; then a key
/// does not help.
fn enable(disabled: &Package, packages: &[Package]) -> String {
    let Package { id, version, signed_by, .. } = disabled;
    let remove = format!("sudo caxton model remove {}", quote(format!("{id}@{version}")));
    let is_bundled = |other: &Package| other.id == *id && other.origin == "bundled";
    if signed_by.is_none() || packages.iter().any(is_bundled) {
        return remove;
    }
    format!(
        "correct or restore the file of its key, or install a package of another signer; or: \
         {remove}"
    )
}

/// Checks the entries of the store: each must be readable and have passed its self-test. Other
/// entries are listed with the command that removes them.
pub(super) fn store(store: Option<&Result<StoreContents, String>>, caller: &Caller) -> Check {
    const NAME: &str = "store";
    let examined = match store {
        None => return Check::skipped(NAME, OTHER_SOCKET),
        Some(Err(why)) if caller.uid != 0 => {
            return Check::skipped(NAME, format!("{why}; run it as root: sudo caxton doctor"));
        }
        Some(Err(why)) => return Check::fail(NAME, why, REPAIR_DIRECTORY),
        Some(Ok(examined)) => examined,
    };
    if let Some(error) = &examined.unlisted {
        let why = chain(error);
        return match caller.uid {
            0 => Check::fail(NAME, why, REPAIR_DIRECTORY),
            _ => Check::skipped(NAME, format!("{why}; run it as root: sudo caxton doctor")),
        };
    }
    let mut found = Vec::new();
    let mut action = Vec::new();
    for (path, reason) in &examined.unreadable {
        found.push(format!("{} cannot be read: {reason}", path.display()));
        action.push(format!("sudo rm -r {}", quote(path)));
    }
    for StoreEntry { key, record, .. } in &examined.entries {
        let state = match &record.status {
            InstallStatus::Available | InstallStatus::Corrupt(_) => continue,
            InstallStatus::Untested => "has not passed its self-test yet".to_owned(),
            InstallStatus::Quarantined(reason) => format!("is quarantined: {reason}"),
        };
        let (id, version, revision) = key.parts();
        found.push(format!("{id}@{version} {state}"));
        action.push(format!("sudo caxton model remove {}", quote(format!("{id}@{revision}"))));
    }
    if found.is_empty() {
        return Check::pass(NAME, format!("{} entries, all readable", examined.entries.len()));
    }
    Check::warn(NAME, found.join("; "), format!("to remove it: {}", action.join("; ")))
}

/// Checks for models without a signature although keys are configured.
pub(super) fn signatures(status: Option<&wire::DaemonStatus>) -> Check {
    const NAME: &str = "signatures";
    let Some(status) = status else { return Check::needs_daemon(NAME) };
    match &status.unsigned[..] {
        [] => Check::pass(NAME, "no model lacks a required signature"),
        unsigned => Check::warn(
            NAME,
            format!(
                "installed without a signature, before keys were configured: {}",
                unsigned.join(", ")
            ),
            format!(
                "install the signed package, or: sudo caxton model remove {}; \
                 packages.disable_unsigned: true ends the use of such models",
                quote(&unsigned[0])
            ),
        ),
    }
}

/// Checks for packages that were rejected.
pub(super) fn quarantine(status: Option<&wire::DaemonStatus>, drop_directory: &Path) -> Check {
    const NAME: &str = "packages";
    let Some(status) = status else { return Check::needs_daemon(NAME) };
    let Some(refused) = &status.quarantine else {
        return Check::skipped(NAME, "the daemon does not report rejected packages");
    };
    let Some(last) = refused.first() else { return Check::pass(NAME, "no package was rejected") };
    let quarantine = drop_directory.join("quarantine");
    Check::warn(
        NAME,
        format!("{} rejected, last {}: {}", refused.len(), last.file, last.reason),
        format!(
            "copy the package again; when it is installed: sudo rm {}*",
            quote(quarantine.join(&last.file))
        ),
    )
}

/// Checks the drop directory: the daemon must be able to read it, and to move rejected packages.
pub(super) fn drop_directory(directory: Option<&DropDirectory>, daemon: Option<&Process>) -> Check {
    const NAME: &str = "drop directory";
    let Some(directory) = directory else { return Check::skipped(NAME, OTHER_SOCKET) };
    let path = directory.path.display();
    let owned = match &directory.found {
        Ok(owned) => owned,
        Err(io::ErrorKind::NotFound) => {
            return match daemon {
                Some(_) => Check::fail(
                    NAME,
                    format!("{path} does not exist"),
                    "sudo systemctl restart caxton  (creates it)",
                ),
                None => Check::skipped(NAME, format!("the daemon creates {path} when it starts")),
            };
        }
        Err(io::ErrorKind::PermissionDenied) => {
            let why = format!("only root may examine {path}: sudo caxton doctor");
            return Check::skipped(NAME, why);
        }
        Err(kind) => {
            return Check::fail(
                NAME,
                format!("cannot examine {path}: {kind}"),
                "repair its file system",
            );
        }
    };
    let Some(daemon) = daemon else { return Check::pass(NAME, format!("{path} exists")) };
    let bits = owned.bits(daemon);
    let uid = daemon.uid;
    let quoted = quote(&directory.path);
    let action = format!("sudo chown {uid} {quoted} && sudo chmod u+rwx {quoted}");
    if bits & 0o5 != 0o5 {
        return Check::fail(NAME, format!("the daemon (user {uid}) cannot read {path}"), action);
    }
    if bits & 0o2 == 0 {
        let found = format!("the daemon cannot write {path}, so it cannot move rejected packages");
        return Check::warn(NAME, found, action);
    }
    Check::pass(NAME, format!("the daemon can read and write {path}"))
}

/// Checks the disk of the store: there must be space to replace the largest package, and for the
/// configured size of the store.
pub(super) fn disk(
    disk: Option<&Result<Disk, String>>,
    max_size: Bytes,
    packages: Option<&[Package]>,
) -> Check {
    const NAME: &str = "disk";
    let Disk { path, free_bytes, read_only } = match disk {
        None => return Check::skipped(NAME, OTHER_SOCKET),
        Some(Ok(disk)) => disk,
        Some(Err(why)) => return Check::fail(NAME, why, "repair that file system"),
    };
    let (path, free) = (path.display(), Bytes(*free_bytes));
    if *read_only {
        let action = format!("sudo mount -o remount,rw the file system of {path}");
        return Check::fail(NAME, format!("{path} is read-only"), action);
    }
    if *free_bytes == 0 {
        let action =
            format!("free space on the disk of {path}: nothing can be installed or recorded");
        return Check::fail(NAME, format!("{path} is full"), action);
    }
    let packages = || packages.unwrap_or_default().iter();
    let largest = packages().map(|package| package.size_bytes).max().unwrap_or(0);
    // The limit of the store does not count bundled packages.
    let counted = packages().filter(|package| package.origin != "bundled");
    let stored = counted.map(|package| package.size_bytes).fold(0, u64::saturating_add);
    let grows = Bytes(max_size.0.saturating_sub(stored));
    let action =
        format!("free space on the disk of {path}, or lower memory.model_cache.max_size_gb");
    if *free_bytes < largest {
        let found =
            format!("{free} free on {path}, but a model of {} must be replaceable", Bytes(largest));
        return Check::fail(NAME, found, action);
    }
    if free < grows {
        let found = format!("{free} free on {path}, but the store may grow by {grows}");
        return Check::warn(NAME, found, action);
    }
    Check::pass(NAME, format!("{free} free on {path}; the store may grow by {grows}"))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Fail, Pass, Skipped, Warn};
    use super::super::facts::Ownership;
    use super::super::fixture::{answers, assert};
    use super::*;
    use crate::api::wire::QuarantinedPackage;

    const DROP: &str = "/drop";

    #[test]
    fn models_are_installed_and_healthy() {
        let judge = |status: &wire::DaemonStatus| models(Some(status));
        assert(&models(None), Skipped, "does not answer", None);
        assert(&judge(&answers(&[]).status), Fail, "no model", Some("caxton model install"));
        let mut status = answers(&[("a", "resident", 1), ("b", "absent", 1)]).status;
        assert(&judge(&status), Pass, "2 installed, 1 in memory; a", None);
        status.packages[1].problem = Some("its weights cannot be read".to_owned());
        assert(&judge(&status), Fail, "b@1: its weights", Some("memory load b@1"));
        status.packages[0].status = "corrupt".to_owned();
        let check = judge(&status);
        let found = "a@1: its files are damaged (and 1 more)";
        assert(&check, Fail, found, Some("its file in the drop directory"));
        for (origin, action) in
            [("bundled", "packages.bundled_directory"), ("installed", "caxton model install ")]
        {
            status.packages[0].origin = origin.to_owned();
            assert(&judge(&status), Fail, found, Some(action));
        }
    }

    #[test]
    fn degraded_daemon_is_a_warning() {
        let mut status = answers(&[("a", "resident", 1)]).status;
        assert(&condition(None), Skipped, "does not answer", None);
        assert(&condition(Some(&status)), Pass, "nothing is degraded", None);
        status.degraded = vec!["the store cannot be written".to_owned(), "other".to_owned()];
        let found = "degraded: the store cannot be written; other";
        assert(&condition(Some(&status)), Warn, found, Some("the disk"));
    }

    #[test]
    fn store_check_covers_listing_records_and_self_tests() {
        use crate::files::FileError;
        use crate::package::fixture::package;
        use crate::package::{CleanupRule, Origin, Quota, Store, UnpackLimits};

        let user = |uid| Caller { uid, name: None, groups: Vec::new(), database: Vec::new() };
        let (root, stranger) = (user(0), user(1000));
        let judge = |examined, caller| store(Some(&Ok(examined)), caller);
        assert(&store(None, &root), Skipped, "--config", None);
        let closed = Err("cannot open /store".to_owned());
        assert(&store(Some(&closed), &root), Fail, "/store", Some("owner and mode"));
        assert(&store(Some(&closed), &stranger), Skipped, "sudo caxton doctor", None);
        let unlisted = || {
            let error = FileError::new("list", "/models")(io::Error::from_raw_os_error(5));
            StoreContents { unlisted: Some(error), ..StoreContents::default() }
        };
        assert(&judge(unlisted(), &root), Fail, "cannot list /models: Input/output", Some("disk"));
        assert(&judge(unlisted(), &stranger), Skipped, "as root", None);

        let place = tempfile::tempdir().unwrap();
        let installed = Store::volatile(place.path()).unwrap();
        assert(&judge(Store::examine(place.path()), &root), Pass, "0 entries", None);
        let quota = Quota { max_size: Bytes::mib(9), max_models: 9, cleanup: CleanupRule::Manual };
        let bytes = package("m", "1");
        let staged = installed.stage(&bytes[..], &UnpackLimits::for_size(Bytes::mib(8))).unwrap();
        let key = installed.install(staged, Origin::Installed, quota, |_| false).unwrap().entry.key;
        let check = judge(Store::examine(place.path()), &root);
        assert(&check, Warn, "m@1 has not passed", Some("caxton model remove m@"));
        installed.activate(&key, quota, |_| false).unwrap();
        assert(&judge(Store::examine(place.path()), &root), Pass, "1 entries", None);
        std::fs::write(Store::directory_of(place.path(), &key).join("record.json"), "{").unwrap();
        let check = judge(Store::examine(place.path()), &root);
        assert(&check, Warn, "cannot be read", Some("sudo rm -r "));
    }

    #[test]
    fn unsigned_and_disabled_models_are_named() {
        let mut status = answers(&[("a", "absent", 1), ("b", "absent", 1)]).status;
        assert(&signatures(Some(&status)), Pass, "no model lacks", None);
        assert(&signatures(None), Skipped, "does not answer", None);
        status.unsigned = vec!["a@1".to_owned(), "b@1".to_owned()];
        assert(&signatures(Some(&status)), Warn, "a@1, b@1", Some("remove a@1"));
        assert(&signatures(Some(&status)), Warn, "b@1", Some("packages.disable_unsigned: true"));
        status.packages[1].status = "disabled".to_owned();
        status.packages[1].problem = Some("its key was removed".to_owned());
        status.packages[1].signed_by = Some("KEY (site.pub)".to_owned());
        let judge = |status: &wire::DaemonStatus| models(Some(status));
        assert(&judge(&status), Warn, "b@1: its key was removed", Some("remove b@1"));
        assert(&judge(&status), Warn, "b@1", Some("restore the file of its key"));
        status.packages[0].status = "corrupt".to_owned();
        let check = judge(&status);
        assert(&check, Fail, "a@1: its files are damaged (and 1 more)", Some("drop directory"));
    }

    #[test]
    fn reserved_id_is_not_enabled_by_a_key() {
        let mut status = answers(&[("b", "absent", 1), ("b", "absent", 1)]).status;
        status.packages[0].status = "disabled".to_owned();
        status.packages[0].problem = Some("a bundled package has its id".to_owned());
        status.packages[1].origin = "bundled".to_owned();
        let removal = Some("sudo caxton model remove b@1");
        for signer in [None, Some("KEY (site.pub)".to_owned())] {
            status.packages[0].signed_by = signer;
            let check = models(Some(&status));
            assert(&check, Warn, "b@1: a bundled package has its id", removal);
            assert_eq!(check.action.as_deref(), removal);
        }
    }

    #[test]
    fn quarantine_check_shows_last_reason() {
        let mut status = answers(&[]).status;
        let judge = |status: &wire::DaemonStatus| quarantine(Some(status), Path::new(DROP));
        assert(&judge(&status), Pass, "no package", None);
        let refused =
            |file: &str| QuarantinedPackage { file: file.to_owned(), reason: "half".to_owned() };
        status.quarantine = Some(vec![refused("b"), refused("a")]);
        assert(&judge(&status), Warn, "2 rejected, last b: half", Some("/drop/quarantine/b*"));
        status.quarantine = Some(vec![refused("x;touch pwned;.model.tar.zst")]);
        let quoted = Some("sudo rm '/drop/quarantine/x;touch pwned;.model.tar.zst'*");
        assert(&judge(&status), Warn, "1 rejected", quoted);
        status.quarantine = None;
        assert(&judge(&status), Skipped, "does not report", None);
        assert(&quarantine(None, Path::new(DROP)), Skipped, "does not answer", None);
    }

    #[test]
    fn daemon_needs_access_to_drop_directory() {
        let daemon = Process { uid: 7, groups: vec![8], cgroup: String::new() };
        let found = |mode| Ok(Ownership { mode, uid: 1, gid: 8 });
        let cases = [
            (found(0o775), Some(&daemon), Pass, "read and write", None),
            (found(0o755), Some(&daemon), Warn, "cannot write", Some("chown 7 /drop")),
            (found(0o707), Some(&daemon), Fail, "cannot read", Some("chmod")),
            (found(0o700), None, Pass, "exists", None),
            (Err(io::ErrorKind::NotFound), Some(&daemon), Fail, "does not exist", Some("restart")),
            (Err(io::ErrorKind::NotFound), None, Skipped, "creates", None),
            (Err(io::ErrorKind::PermissionDenied), Some(&daemon), Skipped, "only root", None),
            (Err(io::ErrorKind::TimedOut), None, Fail, "timed out", Some("file system")),
        ];
        for (found, daemon, verdict, word, action) in cases {
            let directory = DropDirectory { path: DROP.into(), found };
            assert(&drop_directory(Some(&directory), daemon), verdict, word, action);
        }
        assert(&drop_directory(None, Some(&daemon)), Skipped, "--config", None);
    }

    #[test]
    fn disk_check_covers_package_and_store_size() {
        let found = |free_bytes, read_only| Ok(Disk { path: "/var".into(), free_bytes, read_only });
        let packages = answers(&[("a", "absent", 30), ("b", "absent", 10)]).status.packages;
        let cases = [
            (found(60, false), Pass, "may grow by 60 B", None),
            (found(59, false), Warn, "59 B free on /var", Some("max_size_gb")),
            (found(29, false), Fail, "a model of 30 B", Some("free space")),
            (found(0, false), Fail, "/var is full", Some("free space")),
            (found(60, true), Fail, "read-only", Some("remount")),
            (Err("gone".to_owned()), Fail, "gone", Some("repair")),
        ];
        for (found, verdict, word, action) in cases {
            assert(&disk(Some(&found), Bytes(100), Some(&packages)), verdict, word, action);
        }
        let mut bundled = answers(&[("a", "absent", 30), ("b", "absent", 10)]).status.packages;
        bundled[0].origin = "bundled".to_owned();
        let check = disk(Some(&found(90, false)), Bytes(100), Some(&bundled));
        assert(&check, Pass, "may grow by 90 B", None);
        assert(&disk(None, Bytes(100), None), Skipped, "--config", None);
        let check = disk(Some(&found(99, false)), Bytes(100), None);
        assert(&check, Warn, "grow by 100 B", Some("free"));
    }
}
