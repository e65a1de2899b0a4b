//! Test fixtures: file trees in place of the kernel's, and a log that tests can read.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};

use tempfile::TempDir;
use tracing::Dispatch;
use tracing::subscriber::DefaultGuard;

/// File tree used in place of `/`.
pub(super) struct Tree(TempDir);

impl Tree {
    pub(super) fn new(files: &[(&str, &str)]) -> Self {
        let tree = Self(TempDir::new().unwrap());
        for (path, content) in files {
            tree.write(path, content);
        }
        tree
    }

    pub(super) fn root(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    pub(super) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// Log records of this thread.
#[derive(Clone, Default)]
pub(super) struct CapturedLog(Arc<Mutex<Vec<u8>>>);

impl CapturedLog {
    /// Records the log until the guard is dropped.
    pub(super) fn record() -> (Self, DefaultGuard) {
        // tracing caches for each call site whether it is enabled. With a single subscriber, the
        // first thread that reaches the site decides; a test without a subscriber would disable the
        // record for this one. With a second dispatcher, tracing asks all dispatchers instead of
        // the thread's own.
        static ANOTHER: LazyLock<Dispatch> =
            LazyLock::new(|| Dispatch::new(tracing_subscriber::registry()));
        LazyLock::force(&ANOTHER);
        let journal = Self::default();
        let writer = journal.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(move || writer.clone())
            .with_ansi(false);
        (journal, tracing::subscriber::set_default(subscriber.finish()))
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for CapturedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Files of a process on a machine without control groups.
pub(super) const MACHINE: &[(&str, &str)] = &[
    (
        "proc/meminfo",
        "MemTotal: 4194304 kB\nMemFree: 1 kB\nMemAvailable: 2097152 kB\n\
         SwapTotal: 1024 kB\nSwapFree: 512 kB\n",
    ),
    ("proc/pressure/memory", "some avg10=9.00 avg60=8.00 avg300=0.00 total=7\n"),
    ("proc/self/status", "RssAnon: 100 kB\nRssFile: 50 kB\nRssShmem: 20 kB\nVmSwap: 3 kB\n"),
];

/// Mount of version 2.
pub(super) const V2_MOUNT: (&str, &str) =
    ("proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
/// Group of the process in [`v2`].
pub(super) const V2_OWN: &str = "sys/fs/cgroup/system.slice/caxton.service";

/// Creates a tree with version 2: a service with a limit.
pub(super) fn v2() -> Tree {
    let tree = Tree::new(MACHINE);
    tree.write(V2_MOUNT.0, V2_MOUNT.1);
    tree.write("proc/self/cgroup", "0::/system.slice/caxton.service\n");
    for (name, content) in [
        ("cgroup.events", "populated 1\nfrozen 0\n"),
        ("memory.max", "268435456\n"),
        ("memory.high", "max\n"),
        (
            "memory.stat",
            "anon 1000\nfile 9\nkernel 500\nshmem 30\nsock 4\nfile_mapped 77\nslab_reclaimable 200\n",
        ),
        ("memory.swap.current", "5\n"),
        (
            "memory.pressure",
            "some avg10=1.00 avg60=2.00 avg300=0.00 total=3\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=1\n",
        ),
        ("memory.events", "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n"),
    ] {
        tree.write(&format!("{V2_OWN}/{name}"), content);
    }
    tree
}

/// Creates a hybrid tree: version 1 with a limit, version 2 with pressure.
pub(super) fn v1() -> Tree {
    let tree = Tree::new(MACHINE);
    tree.write(
        "proc/self/mountinfo",
        "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
         41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
    );
    tree.write("proc/self/cgroup", "4:memory:/a\n0::/b\n");
    for (path, content) in [
        ("memory/cgroup.sane_behavior", "0\n"),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory/a/memory.limit_in_bytes", "1000000\n"),
        (
            "memory/a/memory.stat",
            "cache 1\nrss 2\ntotal_rss 600\ntotal_shmem 40\ntotal_mapped_file 9\ntotal_swap 8\n",
        ),
        ("memory/a/memory.kmem.usage_in_bytes", "60\n"),
        ("unified/b/memory.pressure", "some avg10=4.00 avg60=2.00 avg300=0.00 total=3\n"),
    ] {
        tree.write(&format!("sys/fs/cgroup/{path}"), content);
    }
    tree
}
