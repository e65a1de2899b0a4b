//! Tests of `caxton top` and `caxton status` with a real daemon and without a terminal.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support::{Daemon, Root};

fn shown(daemon: &Daemon, command: &str, locale: &str) -> String {
    let output = daemon
        .cli()
        .arg(command)
        .env("LC_ALL", locale)
        .env("TERM", "xterm-256color")
        .env_remove("NO_COLOR")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn piped_top_is_plain_text_in_80_columns() {
    let daemon = Root::with_other().start();
    let plain = shown(&daemon, "top", "C");
    assert!(plain.is_ascii() && !plain.contains('\u{1b}'), "{plain}");
    assert!(plain.lines().all(|line| line.len() <= 80), "{plain}");
    for part in ["bundled-mini ready", "normal", "0 of 1000 wait", "MODEL", "resident", "absent"] {
        assert!(plain.contains(part), "{part}: {plain}");
    }
    assert!(plain.contains("model loaded bundled-mini@1"), "{plain}");
    let unicode = shown(&daemon, "top", "C.UTF-8");
    assert!(unicode.contains('░') && !unicode.contains('\u{1b}'), "{unicode}");
    daemon.stop();
}

#[test]
fn status_has_memory_and_queue_bars() {
    let daemon = Root::new().start();
    let plain = shown(&daemon, "status", "C");
    let bars: Vec<&str> = plain.lines().filter(|line| line.contains("-]")).collect();
    assert!(plain.is_ascii() && bars.len() == 2 && bars[1].contains("0 of 1000 wait"), "{plain}");
    assert!(shown(&daemon, "status", "en_US.UTF-8").contains("░]"));
    daemon.stop();
}

#[test]
fn top_without_daemon_fails_with_hint() {
    let root = Root::new();
    let output = root.cli().arg("top").output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&output.stderr).contains("`caxton doctor` checks"));
}
