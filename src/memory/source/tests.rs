//! Tests of `source`.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nix::sys::stat::Mode;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::super::fixture::{CapturedLog, MACHINE, Tree, V2_OWN, v1, v2};
use super::*;

/// Timeout that only a failing test reaches.
const BOUND: Duration = Duration::from_secs(20);
const PRESSURE: &str = "proc/pressure/memory";

fn environment(watch: &str, write: Option<&[u8]>) -> PressureEnvironment {
    let write = write.map(|bytes| OsString::from(BASE64_STANDARD.encode(bytes)));
    PressureEnvironment { watch: Some(watch.into()), write }
}

fn fifo(tree: &Tree, path: &str) -> PathBuf {
    let path = tree.path(path);
    nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    path
}

fn writer(path: &Path) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

async fn signal(source: &mut PressureSource, step: &str) {
    timeout(BOUND, source.next()).await.expect(step);
}

/// Links the machine's own pressure file at `path`. Prints a message and returns `false` where
/// no trigger can be armed on it.
#[expect(clippy::print_stderr, reason = "a skip is printed by name")]
fn real_pressure(tree: &Tree, path: &str, test: &str) -> bool {
    let real = Path::new("/proc/pressure/memory");
    let armed = trigger::open(real, true).map_err(SourceError::from).and_then(|file| {
        PressureTrigger::arm(file, real, "", trigger::default_payload().as_bytes())
    });
    if let Err(error) = armed {
        eprintln!("skipped: {test}, because {}", chain(&error));
        return false;
    }
    let path = tree.path(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    drop(fs::remove_file(&path));
    symlink(real, path).unwrap();
    true
}

#[tokio::test]
async fn polling_is_used_without_pressure_files() {
    let (journal, _guard) = CapturedLog::record();
    for tree in [Tree::new(&[]), Tree::new(MACHINE)] {
        let source = PressureSource::open(tree.root(), PressureEnvironment::default());
        assert_eq!(source.to_string(), "polling");
    }
    assert!(journal.text().contains("source=polling"));
}

#[tokio::test(start_paused = true)]
async fn polling_signals_every_second() {
    let tree = Tree::new(&[]);
    let mut source = PressureSource::open(tree.root(), PressureEnvironment::default());
    source.next().await;
    for _ in 0..3 {
        let before = Instant::now();
        source.next().await;
        let waited = before.elapsed();
        assert!(
            (POLL_INTERVAL..POLL_INTERVAL + Duration::from_millis(5)).contains(&waited),
            "{waited:?}"
        );
    }
}

#[tokio::test]
async fn unwaitable_files_fall_back_to_polling() {
    let (journal, _guard) = CapturedLog::record();
    let tree = v2();
    let source = PressureSource::open(tree.root(), PressureEnvironment::default());
    assert_eq!(source.to_string(), "polling");
    let text = journal.text();
    for name in [&format!("{V2_OWN}/memory.pressure"), &format!("{V2_OWN}/memory.events"), PRESSURE]
    {
        let problem = format!("cannot wait for {}", tree.path(name).display());
        assert_eq!(text.matches(&problem).count(), 1, "{text}");
    }
    let armed = fs::read(tree.path(V2_OWN).join("memory.pressure")).unwrap();
    assert!(armed.starts_with(b"some 150000 2000000\0"), "{armed:?}");
}

#[tokio::test]
async fn malformed_pressure_files_fall_back_to_polling() {
    let (journal, _guard) = CapturedLog::record();
    let tree = v2();
    tree.write(PRESSURE, "");
    tree.write(&format!("{V2_OWN}/memory.pressure"), "");
    tree.write(&format!("{V2_OWN}/memory.events"), "high");
    assert_eq!(
        PressureSource::open(tree.root(), PressureEnvironment::default()).to_string(),
        "polling"
    );
    assert_eq!(journal.text().matches("cannot parse").count(), 3, "{}", journal.text());
}

#[tokio::test]
async fn group_trigger_precedes_machine_trigger() {
    let tree = v2();
    if !real_pressure(&tree, PRESSURE, "real triggers") {
        return;
    }
    let source = PressureSource::open(tree.root(), PressureEnvironment::default());
    let machine = tree.path(PRESSURE);
    assert_eq!(source.to_string(), format!("the machine's trigger {}", machine.display()));
    let own = format!("{V2_OWN}/memory.pressure");
    assert!(real_pressure(&tree, &own, "real triggers"));
    let mut source = PressureSource::open(tree.root(), PressureEnvironment::default());
    let own = tree.path(&own);
    assert_eq!(source.to_string(), format!("the control group's trigger {}", own.display()));
    // systemd's payload is written unchanged, and the kernel accepts it.
    let wish = environment(&format!("/{PRESSURE}"), Some(b"some 200000 2000000\0"));
    let systemd = PressureSource::open(tree.root(), wish);
    assert_eq!(systemd.to_string(), format!("systemd's trigger {}", machine.display()));
    // The machine may really be under pressure now, but the trigger must not have failed.
    let (journal, _guard) = CapturedLog::record();
    tokio::select! {
        biased;
        () = source.next() => {}
        () = tokio::task::yield_now() => {}
    }
    assert_eq!(journal.text(), "");
}

#[tokio::test]
async fn dead_trigger_is_replaced() {
    let (journal, _guard) = CapturedLog::record();
    let tree = Tree::new(MACHINE);
    let path = format!("/{PRESSURE}");
    if !real_pressure(&tree, PRESSURE, "a real trigger that dies") {
        return;
    }
    // Without a written trigger, the kernel reports an error on the file, as if its group were
    // gone.
    let mut source = PressureSource::open(tree.root(), environment(&path, None));
    assert!(source.to_string().starts_with("systemd's trigger "), "{source}");
    fs::remove_file(tree.path(PRESSURE)).unwrap();
    signal(&mut source, "the clock that replaces it").await;
    assert_eq!(source.to_string(), "polling");
    let text = journal.text();
    assert_eq!(text.matches("its control group was removed").count(), 1, "{text}");
}

#[tokio::test]
async fn systemd_fifo_gets_payload_and_signals() {
    let tree = v2();
    let path = fifo(&tree, "pressure");
    let payload = b"any \0 bytes";
    let mut source = PressureSource::open(tree.root(), environment("/pressure", Some(payload)));
    assert_eq!(source.to_string(), format!("systemd's FIFO {}", path.display()));
    let mut written = [0; 11];
    OpenOptions::new().read(true).open(&path).unwrap().read_exact(&mut written).unwrap();
    assert_eq!(&written, payload);
    // A writer may close the FIFO, and another one may open it.
    for _ in 0..2 {
        writer(&path).write_all(b"x").unwrap();
        signal(&mut source, "a byte in the FIFO").await;
    }
    assert!(source.to_string().starts_with("systemd's FIFO"));
}

#[tokio::test]
async fn limit_changes_signal_beside_the_source() {
    for (tree, limit) in [
        (v2(), format!("{V2_OWN}/memory.high")),
        (v2(), format!("{V2_OWN}/memory.max")),
        (v1(), "sys/fs/cgroup/memory/a/memory.limit_in_bytes".to_owned()),
    ] {
        fifo(&tree, "pressure");
        let mut source = PressureSource::open(tree.root(), environment("/pressure", None));
        for _ in 0..2 {
            tree.write(&limit, "1000");
            signal(&mut source, &limit).await;
        }
    }
    // A group above gets its limit later than the service starts.
    let tree = v2();
    let above = "sys/fs/cgroup/system.slice/memory.max";
    tree.write(above, "max");
    fifo(&tree, "pressure");
    let mut source = PressureSource::open(tree.root(), environment("/pressure", None));
    tree.write(above, "1000");
    signal(&mut source, above).await;
}

#[tokio::test]
async fn unwatchable_limits_are_logged() {
    let (journal, _guard) = CapturedLog::record();
    let tree = v2();
    let limit = tree.path(V2_OWN).join("memory.high");
    fs::remove_file(&limit).unwrap();
    symlink(&limit, &limit).unwrap();
    PressureSource::open(tree.root(), PressureEnvironment::default());
    let text = journal.text();
    let problem = format!("polling them every 10 s error=cannot watch {}", limit.display());
    assert!(text.contains(&problem), "{text}");
}

#[tokio::test]
async fn closed_systemd_socket_is_replaced() {
    let (journal, _guard) = CapturedLog::record();
    let tree = v2();
    let path = tree.path("pressure");
    let listener = UnixListener::bind(&path).unwrap();
    let mut source = PressureSource::open(tree.root(), environment("/pressure", Some(b"hello")));
    assert_eq!(source.to_string(), format!("systemd's socket {}", path.display()));
    let manager = tokio::task::spawn_blocking(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"hello");
        stream.write_all(b"x").unwrap();
        stream
    });
    signal(&mut source, "a byte in the socket").await;
    assert!(source.to_string().starts_with("systemd's socket"));
    drop(manager.await.unwrap());
    signal(&mut source, "the clock that replaces it").await;
    assert_eq!(source.to_string(), "polling");
    let text = journal.text();
    assert_eq!(text.matches("the writer has closed ").count(), 1, "{text}");
}

#[tokio::test]
async fn socket_without_listener_is_replaced() {
    let tree = v2();
    drop(UnixListener::bind(tree.path("pressure")).unwrap());
    let mut source = PressureSource::open(tree.root(), environment("/pressure", None));
    signal(&mut source, "the clock").await;
    assert_eq!(source.to_string(), "polling");
}

#[tokio::test]
async fn disabled_watch_uses_only_polling() {
    let tree = v2();
    real_pressure(&tree, PRESSURE, "a trigger that would be used if it were not off");
    let mut source = PressureSource::open(tree.root(), environment("/dev/null", Some(b"x")));
    assert_eq!(source.to_string(), "polling, because $MEMORY_PRESSURE_WATCH is /dev/null");
    signal(&mut source, "the clock").await;
}

#[tokio::test]
async fn invalid_watch_environment_is_logged_and_ignored() {
    let file = "sys/fs/cgroup/other/memory.pressure";
    let own = format!("/{V2_OWN}/memory.pressure");
    let wish = |watch: &str| environment(watch, Some(b"some 200000 2000000\0"));
    let not_base64 =
        PressureEnvironment { watch: Some(own.clone().into()), write: Some("c29t*ZQ".into()) };
    for (wish, problem) in [
        (wish(&format!("/{file}")), "a control group that this process is not in"),
        (wish("/sys/fs/cgroup/absent/memory.pressure"), "cannot examine"),
        (wish("relative/memory.pressure"), "not an absolute path"),
        (wish(&format!("/sys/../{file}")), "not an absolute path"),
        (wish(""), "not an absolute path"),
        (wish("/sys/fs/cgroup"), "not a pressure file, FIFO or socket"),
        // The path is right, but the file is not the kernel's.
        (wish(&own), "not a pressure file, FIFO or socket"),
        (not_base64, "$MEMORY_PRESSURE_WRITE is not base64"),
    ] {
        let (journal, _guard) = CapturedLog::record();
        let tree = v2();
        tree.write(file, "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n");
        let before = fs::read(tree.path(file)).unwrap();
        let source = PressureSource::open(tree.root(), wish.clone());
        assert_eq!(source.to_string(), "polling", "{wish:?}");
        let text = journal.text();
        let warned = text.lines().any(|l| l.contains(" WARN ") && l.contains(problem));
        assert!(warned, "{wish:?}: {text}");
        assert_eq!(fs::read(tree.path(file)).unwrap(), before, "{wish:?}");
    }
}

#[tokio::test]
async fn cancelled_wait_loses_no_signal() {
    let tree = v2();
    let path = fifo(&tree, "pressure");
    let mut source = PressureSource::open(tree.root(), environment("/pressure", None));
    writer(&path).write_all(b"x").unwrap();
    for _ in 0..3 {
        tokio::select! {
            biased;
            () = source.next() => panic!("readiness comes with the runtime's next turn"),
            () = std::future::ready(()) => {}
        }
    }
    signal(&mut source, "the byte from before").await;
}

#[tokio::test]
async fn event_storm_is_limited_to_two_per_second() {
    const SIGNALS: u32 = 4;
    let tree = v2();
    let path = fifo(&tree, "pressure");
    let mut source = PressureSource::open(tree.root(), environment("/pressure", None));
    let (mut storm, written) = (writer(&path), Arc::new(AtomicU64::new(0)));
    let counter = Arc::clone(&written);
    // The thread ends when the source is dropped, because it is the last reader of the FIFO.
    let storm = thread::spawn(move || {
        while storm.write_all(b"x").is_ok() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    let metrics = Handle::current().metrics();
    signal(&mut source, "the first").await;
    let (before, parked) = (Instant::now(), metrics.worker_park_count(0));
    for _ in 0..SIGNALS {
        signal(&mut source, "the storm").await;
    }
    let (waited, parked) = (before.elapsed(), metrics.worker_park_count(0) - parked);
    drop(source);
    storm.join().unwrap();
    // The bound is not computed from HOLD_OFF, because the assertion would then hold for any
    // value of it.
    assert!(waited >= Duration::from_millis(500) * SIGNALS, "{waited:?}");
    assert!(parked <= u64::from(SIGNALS) * 10, "{parked}");
    let written = written.load(Ordering::Relaxed);
    assert!(written > parked * 100, "no storm: {written}");
}
