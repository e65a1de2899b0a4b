//! Attack: the drop directory has entries with a package's name that cannot be packages. Each is
//! logged once and moved away, and is not retried without end.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use caxton::telemetry::log::Message;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::support::packages::{dropped, file_name, names, until_looked};
use crate::support::{Daemon, Root, is_event};

/// Returns two ids of packages whose file names are too long: 255 and 248 bytes.
fn long_ids() -> [String; 2] {
    let longest = 255 - file_name("").len();
    ["l".repeat(longest), "m".repeat(longest - 7)]
}

/// Starts a daemon whose drop directory has entries that cannot be packages, and waits until it has
/// logged each of them.
fn with_odd_entries() -> Daemon {
    let root = Root::new();
    let at = |id: &str| dropped(&root, id);
    let long = long_ids();
    for id in &long {
        fs::write(at(id), "no package").unwrap();
    }
    mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
    symlink("/etc/hostname", at("link")).unwrap();
    // The file of the socket stays when the socket is closed.
    drop(UnixListener::bind(at("socket")).unwrap());
    fs::create_dir(at("directory")).unwrap();
    fs::write(at("directory").join("file"), "precious").unwrap();

    let daemon = root.start();
    for id in ["fifo", "link", "socket", "directory", &long[0], &long[1]] {
        daemon.wait_event_with(Message::PackageRefused, &[&file_name(id)]);
    }
    daemon
}

#[test]
fn unusable_drop_directory_entries_are_rejected_once() {
    let daemon = with_odd_entries();
    // Each scan sees all of them.
    fs::write(dropped(&daemon, "directory").join("another"), "precious").unwrap();
    until_looked(&daemon, "m");
    until_looked(&daemon, "n");
    let long = long_ids();
    for (id, reason) in [
        ("fifo", "a FIFO"),
        ("link", "a symbolic link"),
        ("socket", "a socket"),
        ("directory", "a directory"),
        (&long[0], "name has 255 bytes"),
        (&long[1], "name has 248 bytes"),
    ] {
        let name = file_name(id);
        let is_error = |line: &String| line.contains("ERROR") && line.contains(&name);
        let errors: Vec<_> = daemon.log().into_iter().filter(is_error).collect();
        assert_eq!(errors.len(), 1, "{errors:#?}");
        let is_expected = is_event(&errors[0], Message::PackageRefused);
        assert!(is_expected && errors[0].contains(reason), "{errors:#?}");
    }
}

#[test]
fn unusable_entries_except_directories_are_quarantined() {
    let daemon = with_odd_entries();
    until_looked(&daemon, "m");
    let left: Vec<_> =
        names(&daemon.drop_directory()).into_iter().filter(|name| *name != "quarantine").collect();
    assert_eq!(left, ["directory", "m"].map(file_name));
    assert_eq!(fs::read(dropped(&daemon, "directory").join("file")).unwrap(), b"precious");
    // The quarantine has five files, each with its reason.
    assert_eq!(names(&daemon.drop_directory().join("quarantine")).len(), 10);
}
