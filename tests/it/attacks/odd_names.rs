//! Attack: the drop directory has entries with a package's name that cannot be packages. Each is
//! logged once and moved away, and is not retried without end.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::support::Root;
use crate::support::packages::{dropped, file_name, names, until_looked};

#[test]
fn unusable_drop_directory_entries_are_rejected_once() {
    let root = Root::new();
    let at = |id: &str| dropped(&root, id);
    let longest = 255 - file_name("").len();
    let long = ["l".repeat(longest), "m".repeat(longest - 7)];
    for name in &long {
        fs::write(at(name), "no package").unwrap();
    }
    mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
    symlink("/etc/hostname", at("link")).unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    fs::create_dir(at("directory")).unwrap();
    fs::write(at("directory").join("file"), "precious").unwrap();

    let daemon = root.start();
    let odd = ["fifo", "link", "socket", "directory", &long[0], &long[1]];
    let told = |id: &str| {
        let name = file_name(id);
        let errors = |line: &&String| line.contains("ERROR") && line.contains(&name);
        daemon.log().iter().filter(errors).cloned().collect::<Vec<_>>()
    };
    for id in odd {
        daemon.until(&format!("a word on {id}"), || (!told(id).is_empty()).then_some(()));
    }
    // Each scan sees all of them.
    fs::write(dropped(&daemon, "directory").join("another"), "precious").unwrap();
    until_looked(&daemon, "m");
    until_looked(&daemon, "n");
    for (id, reason) in [
        ("fifo", "a FIFO"),
        ("link", "a symbolic link"),
        ("socket", "a socket"),
        ("directory", "a directory"),
        (&long[0], "its name has 255 bytes"),
        (&long[1], "its name has 248 bytes"),
    ] {
        let told = told(id);
        assert!(told.len() == 1 && told[0].contains(reason), "{told:#?}");
    }
    let left: Vec<_> =
        names(&daemon.drop_directory()).into_iter().filter(|name| *name != "quarantine").collect();
    assert_eq!(left, ["directory", "m", "n"].map(file_name));
    assert_eq!(fs::read(dropped(&daemon, "directory").join("file")).unwrap(), b"precious");
    // The quarantine has five files, each with its reason.
    assert_eq!(names(&daemon.drop_directory().join("quarantine")).len(), 10);
}
