//! Whether there is something to serve and room for more: models, refused packages, the drop directory, the disk.
//!
//! Pure: facts to verdicts.

use std::io;
use std::path::Path;

use super::Check;
use super::facts::{Disk, DropDirectory, Process};
use crate::api::wire::{Package, Status};
use crate::units::Bytes;

/// Why directories are not looked at.
const ANOTHER: &str = "the socket is not that of this configuration; --config names another one";

/// The installed models: none damaged, none that does not load.
pub(super) fn models(status: Option<&Status>, drop_directory: &Path) -> Check {
    const NAME: &str = "models";
    let Some(status) = status else { return Check::needs_daemon(NAME) };
    let packages = &status.packages;
    if packages.is_empty() {
        let mend = format!("sudo cp PACKAGE.model.tar.zst {}", drop_directory.display());
        return Check::fail(NAME, "none is installed", mend);
    }
    let broken = |package: &&Package| package.status == "corrupt" || package.problem.is_some();
    let broken = Vec::from_iter(packages.iter().filter(broken));
    if let Some(first) = broken.first() {
        let Package { id, version, problem, .. } = first;
        let why = problem.as_deref().unwrap_or("it is damaged");
        let more = if broken.len() > 1 {
            format!(" (and {} more)", broken.len() - 1)
        } else {
            String::new()
        };
        let mend = match first.status.as_str() {
            "corrupt" => format!(
                "sudo caxton model remove {id}@{version}; then put its package into {} again",
                drop_directory.display()
            ),
            _ => format!("sudo caxton memory load {id}@{version}; journalctl -u caxton -e"),
        };
        return Check::fail(NAME, format!("{id}@{version}: {why}{more}"), mend);
    }
    let resident =
        packages.iter().filter(|package| package.residency.as_deref() == Some("resident")).count();
    let (count, default) = (packages.len(), &status.default_model);
    Check::pass(NAME, format!("{count} installed, {resident} in memory; {default} is the default"))
}

/// The packages that were refused.
pub(super) fn quarantine(status: Option<&Status>, drop_directory: &Path) -> Check {
    const NAME: &str = "packages";
    let Some(status) = status else { return Check::needs_daemon(NAME) };
    let Some(refused) = &status.quarantine else {
        return Check::skipped(NAME, "the daemon does not tell which it has refused");
    };
    let Some(last) = refused.first() else { return Check::pass(NAME, "none was refused") };
    let quarantine = drop_directory.join("quarantine");
    Check::warn(
        NAME,
        format!("{} refused, lastly {}: {}", refused.len(), last.file, last.reason),
        format!(
            "copy it once more; when it is right: sudo rm {}/{}*",
            quarantine.display(),
            last.file
        ),
    )
}

/// The drop directory: the daemon has to read it, and to move what it refuses.
pub(super) fn drop_directory(directory: Option<&DropDirectory>, daemon: Option<&Process>) -> Check {
    const NAME: &str = "drop directory";
    let Some(directory) = directory else { return Check::skipped(NAME, ANOTHER) };
    let path = directory.path.display();
    let owned = match &directory.found {
        Ok(owned) => owned,
        Err(io::ErrorKind::NotFound) => {
            return match daemon {
                Some(_) => Check::fail(
                    NAME,
                    format!("{path} is not there"),
                    "sudo systemctl restart caxton  (makes it)",
                ),
                None => Check::skipped(NAME, format!("{path} is made when the daemon starts")),
            };
        }
        Err(io::ErrorKind::PermissionDenied) => {
            return Check::skipped(NAME, format!("{path} may be seen by root: sudo caxton doctor"));
        }
        Err(kind) => {
            return Check::fail(
                NAME,
                format!("{path} cannot be seen: {kind}"),
                "mend its file system",
            );
        }
    };
    let Some(daemon) = daemon else { return Check::pass(NAME, format!("{path} is there")) };
    let bits = owned.bits(daemon);
    let uid = daemon.uid;
    let mend = format!("sudo chown {uid} {path} && sudo chmod u+rwx {path}");
    if bits & 0o5 != 0o5 {
        return Check::fail(
            NAME,
            format!("{path} cannot be read by the daemon (user {uid})"),
            mend,
        );
    }
    if bits & 0o2 == 0 {
        let found = format!("{path} cannot be written by the daemon, which moves what it refuses");
        return Check::warn(NAME, found, mend);
    }
    Check::pass(NAME, format!("{path}, read and written by the daemon"))
}

/// The disk of the store: room for the largest package once more, and for what the store may grow to.
pub(super) fn disk(
    disk: Option<&Result<Disk, String>>,
    max_size: Bytes,
    packages: Option<&[Package]>,
) -> Check {
    const NAME: &str = "disk";
    let Disk { path, free_bytes, read_only } = match disk {
        None => return Check::skipped(NAME, ANOTHER),
        Some(Ok(disk)) => disk,
        Some(Err(why)) => return Check::fail(NAME, why, "mend that file system"),
    };
    let (path, free) = (path.display(), Bytes(*free_bytes));
    if *read_only {
        let mend = format!("sudo mount -o remount,rw the file system of {path}");
        return Check::fail(NAME, format!("{path} is read-only"), mend);
    }
    let sizes = || packages.unwrap_or_default().iter().map(|package| package.size_bytes);
    let (stored, largest) = (sizes().fold(0, u64::saturating_add), sizes().max().unwrap_or(0));
    let grows = Bytes(max_size.0.saturating_sub(stored));
    let mend = format!("free space on the disk of {path}, or lower memory.model_cache.max_size_gb");
    if *free_bytes < largest {
        let found =
            format!("{free} free on {path}: not enough to replace a model of {}", Bytes(largest));
        return Check::fail(NAME, found, mend);
    }
    if free < grows {
        let found = format!("{free} free on {path}, and the store may take {grows} more");
        return Check::warn(NAME, found, mend);
    }
    Check::pass(NAME, format!("{free} free on {path}; the store may take {grows} more"))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Fail, Pass, Skipped, Warn};
    use super::super::facts::Owned;
    use super::super::fixture::{assert, told};
    use super::*;
    use crate::api::wire::Quarantined;

    const DROP: &str = "/drop";

    #[test]
    fn models_are_there_and_right() {
        let judge = |status: &Status| models(Some(status), Path::new(DROP));
        assert(&models(None, Path::new(DROP)), Skipped, "does not answer", None);
        assert(&judge(&told(&[]).status), Fail, "none", Some("/drop"));
        let mut status = told(&[("a", "resident", 1), ("b", "absent", 1)]).status;
        assert(&judge(&status), Pass, "2 installed, 1 in memory; a", None);
        status.packages[1].problem = Some("its weights cannot be read".to_owned());
        assert(&judge(&status), Fail, "b@1: its weights", Some("memory load b@1"));
        status.packages[0].status = "corrupt".to_owned();
        assert(&judge(&status), Fail, "a@1: it is damaged (and 1 more)", Some("remove a@1"));
    }

    #[test]
    fn refused_packages_are_shown_with_the_last_reason() {
        let mut status = told(&[]).status;
        let judge = |status: &Status| quarantine(Some(status), Path::new(DROP));
        assert(&judge(&status), Pass, "none", None);
        let refused = |file: &str| Quarantined { file: file.to_owned(), reason: "half".to_owned() };
        status.quarantine = Some(vec![refused("b"), refused("a")]);
        assert(&judge(&status), Warn, "2 refused, lastly b: half", Some("/drop/quarantine/b*"));
        status.quarantine = None;
        assert(&judge(&status), Skipped, "does not tell", None);
        assert(&quarantine(None, Path::new(DROP)), Skipped, "does not answer", None);
    }

    #[test]
    fn the_drop_directory_is_read_and_written_by_the_daemon() {
        let daemon = Process { uid: 7, groups: vec![8], cgroup: String::new() };
        let found = |mode| Ok(Owned { mode, uid: 1, gid: 8 });
        let cases = [
            (found(0o775), Some(&daemon), Pass, "read and written", None),
            (found(0o755), Some(&daemon), Warn, "cannot be written", Some("chown 7 /drop")),
            (found(0o707), Some(&daemon), Fail, "cannot be read", Some("chmod")),
            (found(0o700), None, Pass, "is there", None),
            (Err(io::ErrorKind::NotFound), Some(&daemon), Fail, "not there", Some("restart")),
            (Err(io::ErrorKind::NotFound), None, Skipped, "is made", None),
            (Err(io::ErrorKind::PermissionDenied), Some(&daemon), Skipped, "root", None),
            (Err(io::ErrorKind::TimedOut), None, Fail, "timed out", Some("file system")),
        ];
        for (found, daemon, verdict, word, mend) in cases {
            let directory = DropDirectory { path: DROP.into(), found };
            assert(&drop_directory(Some(&directory), daemon), verdict, word, mend);
        }
        assert(&drop_directory(None, Some(&daemon)), Skipped, "--config", None);
    }

    #[test]
    fn the_disk_has_room_for_a_package_and_for_the_store() {
        let found = |free_bytes, read_only| Ok(Disk { path: "/var".into(), free_bytes, read_only });
        let packages = told(&[("a", "absent", 30), ("b", "absent", 10)]).status.packages;
        let cases = [
            (found(60, false), Pass, "may take 60 B more", None),
            (found(59, false), Warn, "59 B free on /var", Some("max_size_gb")),
            (found(29, false), Fail, "a model of 30 B", Some("free space")),
            (found(60, true), Fail, "read-only", Some("remount")),
            (Err("gone".to_owned()), Fail, "gone", Some("mend")),
        ];
        for (found, verdict, word, mend) in cases {
            assert(&disk(Some(&found), Bytes(100), Some(&packages)), verdict, word, mend);
        }
        assert(&disk(None, Bytes(100), None), Skipped, "--config", None);
        assert(&disk(Some(&found(99, false)), Bytes(100), None), Warn, "100 B more", Some("free"));
    }
}
