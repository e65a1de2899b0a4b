//! Tests that a running daemon applies every complete change of its files, with the ways in which
//! programs change files: editors, `sed -i`, links, mounts.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use caxton::telemetry::log::Message;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::packages::{dropped, until_quarantined};
use crate::support::{Daemon, Root, STRANGER, is_event, skipped};

/// Returns the configuration of `daemon` with another queue size, which `/status` shows.
fn with_queue(settings: &Value, size: u64) -> String {
    let mut settings = settings.clone();
    settings["embedding"]["queue_size"] = json!(size);
    serde_json::to_string_pretty(&settings).unwrap()
}

fn settings(daemon: &Daemon) -> Value {
    serde_json::from_slice(&fs::read(daemon.config()).unwrap()).unwrap()
}

fn until_queue(daemon: &Daemon, size: u64, what: &str) {
    daemon.until(what, || (daemon.status()["queue_size"] == size).then_some(()));
}

/// Returns the records of `kind` until now.
fn records(daemon: &Daemon, kind: Message) -> Vec<String> {
    let mut log = daemon.log();
    log.retain(|line| is_event(line, kind));
    log
}

fn rejections(daemon: &Daemon) -> usize {
    records(daemon, Message::ConfigurationRefused).len()
}

/// Ways in which programs write the content of `$NEW`, with a queue of `$SIZE`, to `$FILE` in the
/// directory `$DIR`. The ways that leave a link at the path come last, because programs write
/// through links.
const EDITS: &[(&str, &str)] = &[
    ("truncated and written", r#"cat "$NEW" > "$FILE""#),
    ("sed -i", r#"sed -i "s/\"queue_size\": [0-9]*/\"queue_size\": $SIZE/" "$FILE""#),
    ("renamed over", r#"cp "$NEW" "$FILE.new"; mv "$FILE.new" "$FILE""#),
    (
        "moved away as a backup and written again, as vim does",
        r#"touch "$DIR/4913"; rm "$DIR/4913"; mv "$FILE" "$FILE~"; cat "$NEW" > "$FILE"; rm "$FILE~""#,
    ),
    (
        "copied as a backup and written in place, as vim and nano do",
        r#"cp "$FILE" "$FILE~"; cat "$NEW" > "$FILE"; rm "$FILE~""#,
    ),
    (
        "written beside a lock and an autosave, as Emacs does",
        r##"ln -s user@host.1 "$DIR/.#f"; cp "$NEW" "$DIR/#f#"; cat "$NEW" > "$FILE"; rm "$DIR/#f#" "$DIR/.#f""##,
    ),
    ("removed and created again", r#"rm "$FILE"; cat "$NEW" > "$FILE""#),
    (
        "replaced by a hard link",
        r#"rm -f "$FILE.new"; ln "$NEW" "$FILE.new"; mv "$FILE.new" "$FILE""#,
    ),
    (
        "in a directory that is removed and created again",
        r#"rm -r "$DIR"; mkdir "$DIR"; cat "$NEW" > "$FILE""#,
    ),
    (
        "in a directory that another one replaces",
        r#"mkdir "$DIR.new"; cp "$NEW" "$DIR.new/caxton.yaml"; mv "$DIR" "$DIR.old"; mv "$DIR.new" "$DIR"
           rm -r "$DIR.old""#,
    ),
    (
        "a link that is swapped",
        r#"cp "$NEW" "$DIR/v$SIZE"; ln -s "v$SIZE" "$FILE.l"; mv -T "$FILE.l" "$FILE""#,
    ),
    (
        "below ..data that is swapped, as a mounted ConfigMap is",
        r#"mkdir "$DIR/..$SIZE"; cp "$NEW" "$DIR/..$SIZE/caxton.yaml"
           ln -s "..$SIZE" "$DIR/..data_tmp"; mv -T "$DIR/..data_tmp" "$DIR/..data"
           [ "$(readlink "$FILE")" = ..data/caxton.yaml ] || ln -sf ..data/caxton.yaml "$FILE""#,
    ),
];

/// Runs `script` with the variables that it needs to set the queue to `size`.
fn edit(daemon: &Daemon, settings: &Value, size: u64, script: &str) {
    let new = daemon.path().join("new");
    // A hard link may have turned this file into the configuration itself; do not write to it.
    caxton::files::remove(&new).unwrap();
    fs::write(&new, with_queue(settings, size)).unwrap();
    let output = Command::new("sh")
        .args(["-euc", script])
        .env("FILE", daemon.config())
        .env("DIR", daemon.config().parent().unwrap())
        .env("NEW", new)
        .env("SIZE", size.to_string())
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_kind_of_edit_is_applied() {
    let root = Root::new().with_config_directory();
    let daemon = root.with("embedding", json!({ "queue_size": 1 })).start();
    let settings = settings(&daemon);
    let mut size = 1;
    for (name, script) in EDITS {
        // The second round starts with the files that the first one left.
        for round in ["first", "second"] {
            size += 1;
            edit(&daemon, &settings, size, script);
            until_queue(&daemon, size, &format!("{name}, the {round} time"));
        }
    }
    assert_eq!(daemon.status()["configuration"]["problems"], json!([]));
    daemon.stop();
}

#[test]
fn vim_edits_are_applied() {
    if Command::new("vim").arg("--version").output().is_err() {
        return skipped("vim_edits_are_applied", "vim");
    }
    let root = Root::new().with_config_directory();
    let daemon = root.with("embedding", json!({ "queue_size": 1 })).start();
    let settings = settings(&daemon);
    for (size, backup) in [(2, "no"), (3, "yes"), (4, "auto")] {
        let script = format!(
            r#"vim -Nu NONE -es -c "set backupcopy={backup} writebackup" \
                -c "%s/\"queue_size\": [0-9]*/\"queue_size\": $SIZE/" -c wq "$FILE" < /dev/null"#
        );
        edit(&daemon, &settings, size, &script);
        until_queue(&daemon, size, &format!("vim with backupcopy={backup}"));
    }
    daemon.stop();
}

#[test]
fn incomplete_file_is_not_read() {
    let daemon = Root::new().with("packages.incomplete_timeout", json!("1s")).start();
    let text = with_queue(&settings(&daemon), 7);
    // The drop directory and the configuration's directory are watched in the same way. Once this
    // file is quarantined, the scans of the start are over.
    fs::write(dropped(&daemon, "first"), b"not a package").unwrap();
    until_quarantined(&daemon, "first");
    let (half, rest) = text.as_bytes().split_at(text.len() / 2);
    // Truncate the file first, as `>` in a shell does. Read now, the empty file would mean the
    // default settings.
    let mut file = File::create(daemon.config()).unwrap();
    file.write_all(half).unwrap();
    file.flush().unwrap();
    // Once this file is quarantined, a daemon that reads incomplete files would have read the half,
    // too.
    fs::write(dropped(&daemon, "second"), b"no package either").unwrap();
    until_quarantined(&daemon, "second");
    assert_eq!(daemon.status()["configuration"]["generation"], 1);
    file.write_all(rest).unwrap();
    drop(file);
    until_queue(&daemon, 7, "the whole file");
    assert_eq!(
        (rejections(&daemon), &daemon.status()["configuration"]["generation"]),
        (0, &json!(2))
    );
    daemon.stop();
}

/// Starts the daemon as [`STRANGER`] if this process is root, because permissions do not bind root.
fn start_bound(root: Root) -> Daemon {
    if !nix::unistd::geteuid().is_root() {
        return root.start();
    }
    let owned = Command::new("chown")
        .args(["-R", &format!("{STRANGER}:{STRANGER}")])
        .arg(root.path())
        .status()
        .unwrap();
    assert!(owned.success());
    let become_stranger = format!(
        "chmod 0666 \"$NOTIFY_SOCKET\"; exec setpriv --reuid {STRANGER} --regid {STRANGER} --clear-groups {} \"$@\"",
        env!("CARGO_BIN_EXE_caxtond")
    );
    let daemon = root.spawn_with(|program| {
        *program = Command::new("sh");
        program.args(["-euc", &become_stranger, "sh"]).env_remove("STATE_DIRECTORY");
    });
    daemon.wait_notified("READY=1");
    daemon
}

#[test]
fn unreadable_file_is_reported_until_readable() {
    if nix::unistd::geteuid().is_root()
        && Command::new("setpriv").arg("--version").output().is_err()
    {
        return skipped("unreadable_file_is_reported_until_readable", "setpriv");
    }
    let daemon = start_bound(Root::new());
    let settings = settings(&daemon);
    edit(
        &daemon,
        &settings,
        5,
        r#"cp "$NEW" "$FILE.new"; chmod 0 "$FILE.new"; mv "$FILE.new" "$FILE""#,
    );
    daemon.wait_event(Message::ConfigurationRefused);
    let problems = daemon.status()["configuration"]["problems"].clone();
    let problem = problems[0].as_str().unwrap();
    assert!(problem.ends_with("failed to open: Permission denied (os error 13)"), "{problem}");
    edit(&daemon, &settings, 5, r#"chmod 644 "$FILE""#);
    until_queue(&daemon, 5, "the mode alone was changed");
    edit(&daemon, &settings, 5, r#"chmod 0 "$FILE""#);
    daemon.until("the mode alone was changed back", || (rejections(&daemon) == 2).then_some(()));
    assert_eq!(daemon.status()["queue_size"], 5);
    daemon.stop();
}

/// Returns whether a user namespace can be created in which `limit` is 0.
fn can_exhaust(limit: &str) -> bool {
    let script = format!("echo 0 > /proc/sys/user/{limit}");
    let output = Command::new("unshare").args(["-Ur", "sh", "-euc", &script]).output();
    output.is_ok_and(|output| output.status.success())
}

#[test]
fn missing_inotify_is_logged_and_sighup_works() {
    for limit in ["max_inotify_instances", "max_inotify_watches"] {
        if !can_exhaust(limit) {
            let test = "missing_inotify_is_logged_and_sighup_works";
            return skipped(test, "the right to limit inotify in a user namespace");
        }
        let script = format!(
            "echo 0 > /proc/sys/user/{limit}; exec {} \"$@\"",
            env!("CARGO_BIN_EXE_caxtond")
        );
        let daemon = Root::new().spawn_with(|program| {
            *program = Command::new("unshare");
            program.args(["-Ur", "sh", "-euc", &script, "sh"]).env_remove("STATE_DIRECTORY");
        });
        daemon.wait_notified("READY=1");
        for directory in [daemon.path().to_owned(), daemon.drop_directory(), daemon.keys()] {
            let field = format!("directory={} ", directory.display());
            let line = daemon.wait_event_with(Message::WatchFailed, &[&field]);
            assert!(line.contains("WARN") && line.contains("every 60 s"), "{line}");
        }
        let text = with_queue(&settings(&daemon), 6);
        daemon.write_config(&text);
        daemon.signal(Signal::SIGHUP);
        until_queue(&daemon, 6, limit);
        let failures = records(&daemon, Message::WatchFailed).len();
        assert_eq!(failures, 3, "not one record for each directory");
        daemon.stop();
    }
}

#[test]
fn change_lost_in_inotify_overflow_is_found() {
    let most = Path::new("/proc/sys/fs/inotify/max_queued_events");
    let most: usize = fs::read_to_string(most).unwrap().trim().parse().unwrap();
    if most > 1 << 17 {
        let test = "change_lost_in_inotify_overflow_is_found";
        return skipped(test, "a queue of at most 131072 events");
    }
    let root = Root::new().with_config_directory();
    let daemon = root.with("embedding", json!({ "queue_size": 1 })).start();
    let text = with_queue(&settings(&daemon), 8);
    let directory = daemon.config().parent().unwrap().to_owned();
    daemon.signal(Signal::SIGSTOP);
    // Each file causes at least two events, creation and removal. Different names keep the kernel
    // from merging events.
    for index in 0..=most / 2 {
        let file = directory.join(index.to_string());
        File::create(&file).unwrap();
        fs::remove_file(file).unwrap();
    }
    // This change causes no event, because the queue is full.
    daemon.write_config(&text);
    daemon.signal(Signal::SIGCONT);
    until_queue(&daemon, 8, "the change during the overflow");
    // The watch still works afterwards.
    daemon.write_config(&text.replace("\"queue_size\": 8", "\"queue_size\": 9"));
    until_queue(&daemon, 9, "the change after the rescan");
    daemon.stop();
}
