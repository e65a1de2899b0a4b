//! Tests of `sample`.

use std::fs;

use proptest::prelude::*;

use super::super::fixture::{CapturedLog, MACHINE, Tree, V2_MOUNT, V2_OWN, v1, v2};
use super::*;

const GIB: u64 = 1 << 30;

/// Returns the bytes that can be allocated before a limit or the end of the machine's memory is
/// reached.
fn headroom(sample: &Sample) -> Bytes {
    let left = |limit: &GroupLimit| Bytes(limit.bytes.0.saturating_sub(limit.unreclaimable.0));
    sample.limits.iter().map(left).fold(sample.machine.available, Bytes::min)
}

fn sample(tree: &Tree) -> Sample {
    SampleReader::new(tree.root()).sample()
}

/// Returns the log of one reader that takes three samples.
fn told(tree: &Tree) -> String {
    let (journal, _guard) = CapturedLog::record();
    let mut reader = SampleReader::new(tree.root());
    for _ in 0..3 {
        reader.sample();
    }
    journal.text()
}

#[test]
fn cgroup_v2_fills_every_field() {
    let tree = v2();
    let file = tree.path(V2_OWN).join("memory.max");
    let expected = Sample {
        unreclaimable: Bytes(1000 + 30 + 4 + 500 - 200),
        process: Bytes(120 << 10),
        mapped: Bytes(77),
        swap: Bytes(5),
        limits: vec![GroupLimit { bytes: Bytes::mib(256), unreclaimable: Bytes(1334), file }],
        psi: Some(Psi { some_avg10: 1.0, some_avg60: 2.0, full_avg10: 0.5, some_total_us: 3 }),
        events: Some(LimitEvents { low: 1, high: 2, max: 3, oom: 4, oom_kill: 5 }),
        machine: MachineMemory {
            total: Bytes(4 * GIB),
            available: Bytes(2 * GIB),
            swap_total: Bytes::mib(1),
            swap_free: Bytes(512 << 10),
            psi: Some(Psi { some_avg10: 9.0, some_avg60: 8.0, full_avg10: 0.0, some_total_us: 7 }),
        },
    };
    assert_eq!(sample(&tree), expected);
    assert_eq!(told(&tree), "");
}

#[test]
fn kernel_memory_is_summed_when_kernel_is_absent() {
    let tree = v2();
    let stat = "anon 1\nshmem 2\nkernel_stack 4\npagetables 8\npercpu 16\n\
                    slab_unreclaimable 32\nslab_reclaimable 64\n";
    tree.write(&format!("{V2_OWN}/memory.stat"), stat);
    assert_eq!(sample(&tree).unreclaimable, Bytes(63));
}

#[test]
fn hybrid_hierarchy_has_limits_and_pressure() {
    let tree = v1();
    let sample = sample(&tree);
    assert_eq!(sample.unreclaimable, Bytes(600 + 40 + 60));
    assert_eq!((sample.mapped, sample.swap), (Bytes(9), Bytes(8)));
    let file = tree.path("sys/fs/cgroup/memory/a/memory.limit_in_bytes");
    let limit = GroupLimit { bytes: Bytes(1_000_000), unreclaimable: Bytes(700), file };
    assert_eq!(sample.limits, [limit]);
    assert_eq!(sample.psi.map(|psi| psi.some_avg10), Some(4.0));
    assert_eq!((sample.events, told(&tree).as_str()), (None, ""));
}

#[test]
fn ancestor_limits_are_compared_with_their_usage() {
    let tree = v2();
    tree.write(&format!("{V2_OWN}/memory.high"), "200000000");
    tree.write("sys/fs/cgroup/system.slice/memory.max", "400000000");
    tree.write("sys/fs/cgroup/system.slice/memory.high", "max");
    tree.write("sys/fs/cgroup/system.slice/memory.stat", "anon 390000000\nkernel 0\n");
    let sample = sample(&tree);
    let limits: Vec<_> = sample.limits.iter().map(|l| (l.bytes.0, l.unreclaimable.0)).collect();
    assert_eq!(limits, [(268_435_456, 1334), (200_000_000, 1334), (400_000_000, 390_000_000)]);
    assert_eq!(sample.limits.iter().map(|limit| limit.bytes).min(), Some(Bytes(200_000_000)));
    let tightest = sample.tightest().unwrap();
    assert_eq!(tightest.file, tree.path("sys/fs/cgroup/system.slice/memory.max"));
    assert_eq!(headroom(&sample), Bytes(10_000_000));
}

#[test]
fn headroom_is_bounded_by_machine_and_zero() {
    let limit = |bytes, unreclaimable| GroupLimit {
        bytes: Bytes(bytes),
        unreclaimable: Bytes(unreclaimable),
        file: PathBuf::new(),
    };
    let machine = MachineMemory { available: Bytes(50), ..MachineMemory::default() };
    for (limits, expected, tightest) in [
        (vec![], 50, None),
        (vec![limit(1000, 10)], 50, Some(1000)),
        (vec![limit(60, 20), limit(100, 90)], 10, Some(100)),
        (vec![limit(60, 70)], 0, Some(60)),
        (vec![limit(0, 1), limit(60, 70)], 0, Some(60)),
        (vec![limit(0, 70), limit(60, 70)], 0, Some(0)),
    ] {
        let sample = Sample { limits, machine: machine.clone(), ..Sample::default() };
        assert_eq!(headroom(&sample), Bytes(expected), "{sample:?}");
        assert_eq!(sample.tightest().map(|l| l.bytes.0), tightest, "{sample:?}");
    }
    assert_eq!(headroom(&Sample::default()), Bytes(u64::MAX));
}

#[test]
fn process_counts_without_own_memory_group() {
    let nowhere = Tree::new(MACHINE);
    let topmost_of_v2 = v2();
    topmost_of_v2.write("proc/self/cgroup", "0::/\n");
    topmost_of_v2.write("sys/fs/cgroup/memory.stat", "anon 99999999\nkernel 1\n");
    let topmost_of_v1 = v1();
    topmost_of_v1.write("proc/self/cgroup", "4:memory:/\n");
    topmost_of_v1.write("sys/fs/cgroup/memory/memory.stat", "total_rss 99999999\n");
    let without_controller = v2();
    fs::remove_file(without_controller.path(V2_OWN).join("memory.stat")).unwrap();
    fs::remove_file(without_controller.path(V2_OWN).join("memory.max")).unwrap();
    let gone = v2();
    fs::remove_dir_all(gone.path(V2_OWN)).unwrap();
    for (name, tree) in [
        ("no group", nowhere),
        ("the topmost group of version 2", topmost_of_v2),
        ("the topmost group of version 1", topmost_of_v1),
        ("a group without the controller", without_controller),
        ("a group that is gone", gone),
    ] {
        let sample = sample(&tree);
        assert_eq!(sample.unreclaimable, Bytes(120 << 10), "{name}");
        assert_eq!((sample.mapped, sample.swap), (Bytes(50 << 10), Bytes(3 << 10)), "{name}");
        assert_eq!(sample.limits, [], "{name}");
        assert_eq!(headroom(&sample), Bytes(2 * GIB), "{name}");
        assert_eq!(told(&tree), "", "{name}");
    }
}

#[test]
fn invisible_group_is_logged_once() {
    let tree = v2();
    tree.write("proc/self/cgroup", "0::/../elsewhere\n");
    assert_eq!(sample(&tree).unreclaimable, Bytes(120 << 10));
    assert_eq!(told(&tree).matches("its limits are unknown").count(), 1);
}

#[test]
fn limit_without_group_usage_uses_process_usage() {
    let tree = v2();
    tree.write(&format!("{V2_OWN}/memory.stat"), "");
    assert_eq!(sample(&tree).limits[0].unreclaimable, Bytes(120 << 10));
    assert!(told(&tree).contains("memory.stat: anon is missing"));
}

#[test]
fn malformed_files_are_omitted_and_logged_once() {
    for (path, content, problem) in [
        (format!("{V2_OWN}/memory.max"), "lots", "memory.max: its content is not a number"),
        (format!("{V2_OWN}/memory.stat"), "anon x", "memory.stat: anon is not a number"),
        (format!("{V2_OWN}/memory.swap.current"), "", "its content is not a number"),
        (format!("{V2_OWN}/memory.pressure"), "some", "does not have the format of a pressure"),
        (format!("{V2_OWN}/memory.events"), "low 0", "memory.events: max is missing"),
        ("proc/pressure/memory".to_owned(), "", "does not have the format of a pressure"),
        ("proc/meminfo".to_owned(), "MemTotal: 1", "meminfo: MemAvailable: is missing"),
    ] {
        let tree = v2();
        tree.write(&path, content);
        let told = told(&tree);
        assert_eq!(told.matches(problem).count(), 1, "{path}: {told}");
        sample(&tree);
    }
}

#[test]
fn unreadable_files_are_logged_once() {
    for name in ["memory.max", "memory.stat", "memory.pressure", "memory.events"] {
        let tree = v2();
        let path = tree.path(V2_OWN).join(name);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let told = told(&tree);
        let problem = format!("cannot read {}", path.display());
        assert_eq!(told.matches(&problem).count(), 1, "{told}");
    }
}

#[test]
fn repeated_read_errors_are_logged_once() {
    // The kernel returns these errors from the read, which an ordinary file cannot imitate.
    for errno in [nix::errno::Errno::EOPNOTSUPP, nix::errno::Errno::ENODEV] {
        let mut kernel = KernelFiles {
            root: PathBuf::new(),
            files: CachedFiles::default(),
            logged: HashSet::new(),
        };
        for _ in 0..3 {
            let failed = FileError::new("read", "memory.pressure")(errno.into());
            assert_eq!(kernel.value_or_log::<()>(Err(failed)), None);
        }
        assert_eq!(kernel.logged.len(), 1, "{errno}");
    }
}

#[test]
fn hidden_meminfo_is_logged_and_limits_nothing() {
    let tree = v2();
    fs::remove_file(tree.path("proc/meminfo")).unwrap();
    let sample = sample(&tree);
    assert_eq!(sample.machine.available, sample.machine.total);
    assert_eq!(headroom(&sample), Bytes((256 << 20) - 1334));
    assert_eq!(told(&tree).matches("remove that setting from the unit").count(), 1);
}

#[test]
fn total_memory_is_known_without_meminfo() {
    let machine = MachineMemory::without_meminfo(Path::new("/"));
    assert!(machine.total > Bytes::mib(16) && machine.total < Bytes(u64::MAX), "{machine:?}");
    assert_eq!(machine.available, machine.total);
}

#[test]
fn moved_process_and_changed_limit_are_noticed() {
    let tree = v2();
    let mut reader = SampleReader::new(tree.root());
    assert_eq!(reader.sample().limits[0].bytes, Bytes::mib(256));
    tree.write(&format!("{V2_OWN}/memory.max"), "1048576");
    assert_eq!(reader.sample().limits[0].bytes, Bytes::mib(1));
    let other = "sys/fs/cgroup/other";
    tree.write(&format!("{other}/memory.max"), "2097152");
    tree.write(&format!("{other}/memory.stat"), "anon 9");
    tree.write(&format!("{other}/cgroup.events"), "");
    tree.write("proc/self/cgroup", "0::/other");
    let sample = reader.sample();
    assert_eq!((sample.limits[0].bytes, sample.unreclaimable), (Bytes::mib(2), Bytes(9)));
    // The hierarchy is mounted at another path.
    tree.write("proc/self/mountinfo", V2_MOUNT.1.replace("/sys/fs/cgroup", "/moved"));
    fs::rename(tree.path("sys/fs/cgroup"), tree.path("moved")).unwrap();
    reader.sample();
    assert_eq!(reader.sample().unreclaimable, Bytes(9));
}

#[test]
#[expect(clippy::print_stderr, reason = "a skip is printed by name")]
fn this_machine_can_be_sampled() {
    let root = Path::new("/");
    if !root.join("proc/meminfo").exists() {
        eprintln!("skipped: a sample of this machine, because /proc/meminfo is not there");
        return;
    }
    let sample = SampleReader::new(root).sample();
    assert!(sample.machine.total < Bytes(u64::MAX), "{sample:?}");
    assert!(sample.unreclaimable > Bytes(0), "{sample:?}");
    assert!(headroom(&sample) <= sample.machine.available, "{sample:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn arbitrary_file_content_never_panics(
        which in 0_usize..11,
        bytes in prop_oneof![
            any::<Vec<u8>>(),
            "(anon|kernel|max|some avg10=|MemTotal:|RssAnon:|0::)? ?[0-9.-]{0,22}\n?"
                .prop_map(String::into_bytes),
        ],
    ) {
        let tree = v2();
        let in_own = |name| format!("{V2_OWN}/{name}");
        let files = [
            "proc/self/cgroup".to_owned(),
            "proc/self/mountinfo".to_owned(),
            "proc/self/status".to_owned(),
            "proc/meminfo".to_owned(),
            "proc/pressure/memory".to_owned(),
            in_own("memory.max"),
            in_own("memory.high"),
            in_own("memory.stat"),
            in_own("memory.swap.current"),
            in_own("memory.pressure"),
            in_own("memory.events"),
        ];
        tree.write(&files[which], bytes);
        let sample = sample(&tree);
        prop_assert!(headroom(&sample) <= sample.machine.available);
    }
}
