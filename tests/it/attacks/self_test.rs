//! Attack: a package aborts, hangs or exhausts its self-test. The daemon still serves, and the next
//! start is not delayed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::packages::{
    ask, dropped, entry, stored, until_answers, until_looked, until_quarantined,
    until_staging_is_empty,
};
use crate::support::selftest::SelfTest;
use crate::support::{Daemon, Root, pack};

fn record(root: &Root, id: &str) -> serde_json::Value {
    serde_json::from_slice(&fs::read(entry(root, id).join("record.json")).unwrap()).unwrap()
}

/// Ends a self-test by `signal`. Returns the reason from the quarantine.
fn refused_after(daemon: &Daemon, id: &str, signal: Signal) -> String {
    let (id, test) = SelfTest::catch(daemon, id);
    // Other requests are answered meanwhile: they do not wait for the test.
    assert_eq!(daemon.embed(json!("a text")).len(), 1);
    test.end(signal);
    let reason = until_quarantined(daemon, &id);
    assert_eq!(ask(daemon, &id).status, 404);
    assert!(!stored(daemon).iter().any(|name| name.starts_with(&id)), "{id} is in the store");
    reason
}

/// Checks the effect of a charsmap with a length of 8 GiB on a board of 4 GB.
#[test]
fn crashing_self_test_rejects_its_package() {
    let daemon = Root::new().start();
    let reason = refused_after(&daemon, "abort", Signal::SIGABRT);
    let expected = "the self-test of the model was ended by signal 6 (SIGABRT)";
    assert!(reason.contains(expected), "{reason}");
    // Do not use SIGSEGV: the handler of the standard library ignores one that no memory access has
    // caused.
    let reason = refused_after(&daemon, "crash", Signal::SIGILL);
    assert!(reason.contains("SIGILL"), "{reason}");
    until_looked(&daemon, "good");
    daemon.stop();
}

/// Checks the signals with which the kernel ends a child that takes too much memory or processor
/// time.
#[test]
fn self_test_exceeding_resources_rejects_its_package() {
    let daemon = Root::new().start();
    let reason = refused_after(&daemon, "memory", Signal::SIGKILL);
    assert!(reason.contains("because memory is short"), "{reason}");
    let reason = refused_after(&daemon, "processor", Signal::SIGXCPU);
    assert!(reason.contains("of processor time"), "{reason}");
    until_looked(&daemon, "good");
    daemon.stop();
}

/// Runs the child itself, with little address space and with enough.
#[test]
fn self_test_fails_without_enough_address_space() {
    let daemon = Root::new().start();
    until_looked(&daemon, "good");
    let root = daemon.stop();
    let key = format!("good@1+{}", record(&root, "good")["manifest_digest"].as_str().unwrap());
    let test = |megabytes: u64| {
        let task = json!({
            "key": key,
            "parent": std::process::id(), "threads": 1, "batch_tokens": 512, "precision": "f32",
            "address_space": megabytes << 20, "processor_seconds": 60,
        });
        let mut child = Command::new(env!("CARGO_BIN_EXE_caxton"));
        child
            .args(["--self-test-of-an-entry", &task.to_string()])
            .stdin(fs::File::open(root.state()).unwrap())
            .output()
            .unwrap()
    };
    let enough = test(256);
    assert!(enough.stdout.starts_with(b"{\"passed\":{"), "{enough:?}");
    let little = test(1);
    assert!(!String::from_utf8_lossy(&little.stdout).contains("passed"), "{little:?}");
}

/// Checks the effect of a regular expression that backtracks without end: the child never answers.
#[test]
fn hanging_self_test_delays_neither_serving_nor_stop() {
    let daemon = Root::new().start();
    let (id, hanging) = SelfTest::catch(&daemon, "hang");
    assert_eq!(daemon.get("/livez").status, 200);
    assert_eq!(daemon.embed(json!("a text")).len(), 1);
    assert_eq!(record(&daemon, &id)["attempts"], 1);
    // A stop on purpose does not count against the package.
    let root = daemon.stop();
    drop(hanging);
    assert_eq!(record(&root, &id).get("attempts"), None);

    let daemon = root.start();
    until_answers(&daemon, &id);
}

#[test]
fn self_test_is_confined() {
    let daemon = Root::new().start();
    let (_id, test) = SelfTest::catch(&daemon, "confined");
    let status = test.read("status");
    let of = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_default().trim().to_owned()
    };
    assert_eq!((of("Seccomp:").as_str(), of("NoNewPrivs:").as_str()), ("2", "1"));
    assert_eq!(test.read("oom_score_adj").trim(), "1000");
    // The daemon has the child's score only while it starts the child.
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    daemon.until("the daemon's own score", || {
        let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", daemon.pid())).unwrap();
        (score == own).then_some(())
    });
    for descriptor in test.descriptors() {
        let known = ["/dev/null", "pipe:", "/proc/"].iter().any(|kind| descriptor.starts_with(kind))
                || descriptor.starts_with(daemon.state().to_str().unwrap())
                || descriptor.starts_with("/sys/devices/system/cpu")
                // The child was caught while the dynamic loader opens this file.
                || descriptor.contains(".so");
        assert!(known, "the child holds {descriptor}");
    }
    assert!(test.read("environ").starts_with("MALLOC_ARENA_MAX=1"));
}

/// Kills the daemon twice, as a power cut would. The third start does not repeat the test.
#[test]
fn self_test_killed_twice_is_not_repeated() {
    let mut daemon = Root::new().start();
    let (id, first) = SelfTest::catch(&daemon, "cut");
    // The tests of packages before this one have passed.
    let others: Vec<_> =
        stored(&daemon).into_iter().filter(|name| !name.starts_with(&format!("{id}@"))).collect();
    let root = daemon.kill();
    drop(first);
    assert_eq!(record(&root, &id)["attempts"], 1);
    assert!(dropped(&root, &id).exists());

    daemon = root.spawn();
    let second = SelfTest::wait(&daemon, || ask(&daemon, &id).status == 200);
    let Some(second) = second else { panic!("the second self-test was not caught") };
    daemon.wait_notified("READY=1");
    let root = daemon.kill();
    drop(second);
    assert_eq!(record(&root, &id)["attempts"], 2);

    let daemon = root.start();
    assert_eq!(daemon.embed(json!("a text")).len(), 1);
    let expected = "the daemon ended repeatedly during the self-test of the model\n";
    assert_eq!(until_quarantined(&daemon, &id), expected);
    daemon.until("the entry to leave", || (stored(&daemon) == others).then_some(()));
    until_staging_is_empty(&daemon);
    fs::write(dropped(&daemon, &id), pack("tiny-bert-mean", &id, "1")).unwrap();
    until_answers(&daemon, &id);
}
