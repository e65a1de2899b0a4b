//! Takes a sample: how much memory this process may use, how much it uses, and how hard the kernel
//! works for it.
//!
//! The reader reads the kernel's files below a root directory (`/`, except in tests). It finds its
//! control group again when the process was moved. It decides nothing.
//!
//! An absent file is normal, because kernels and setups differ. A file that cannot be read or
//! parsed is logged once. The missing part is left out of the sample and limits nothing.

use std::collections::HashSet;
use std::error::Error;
use std::path::{Path, PathBuf};

use super::cached_files::CachedFiles;
use super::cgroup::{self, CgroupVersion, Hierarchy, ProcessGroups};
use super::flat_keyed::{
    KernelTextError, find_number, kibibytes, parse_limit, parse_number, require_number, sum_numbers,
};
pub use super::psi::Psi;
use crate::base::errors::chain;
use crate::base::units::Bytes;
use crate::files::FileError;
use crate::telemetry::log::Message;

/// One reading of the memory counters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Bytes of this process's control group that the kernel cannot free without killing or
    /// swapping. They are anonymous and shared memory, and kernel memory for the group, including
    /// socket buffers but without reclaimable slabs.
    ///
    /// Without a memory control group: the anonymous and shared memory of this process. In version
    /// 1 all kernel memory counts, because that version does not report the reclaimable part.
    pub unreclaimable: Bytes,
    /// Anonymous and shared memory of this process alone.
    pub process: Bytes,
    /// Mapped pages of files, such as weights. The kernel can reclaim them and reads them again on
    /// access.
    pub mapped: Bytes,
    /// Swapped bytes. Limits on swap are not read.
    pub swap: Bytes,
    /// Limits of this process's control group, followed by those of every visible group above it.
    pub limits: Vec<GroupLimit>,
    /// Stalls of this process's control group; `None` where they are not counted.
    pub psi: Option<Psi>,
    /// Events at the limits of this process's control group since its creation; `None` in version
    /// 1.
    pub events: Option<LimitEvents>,
    /// The whole machine.
    pub machine: MachineMemory,
}

/// Limit on the memory of a control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupLimit {
    /// The limit.
    pub bytes: Bytes,
    /// Bytes of the limited group that the kernel cannot reclaim, those of other processes
    /// included.
    pub unreclaimable: Bytes,
    /// File that contains the limit.
    pub file: PathBuf,
}

/// Numbers of events at the limits of a control group and the groups below it, since its creation.
///
/// <https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files>
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitEvents {
    /// Reclaims below the protection of `memory.low`.
    pub low: u64,
    /// Tasks throttled at `memory.high`.
    pub high: u64,
    /// Allocations that reached `memory.max`.
    pub max: u64,
    /// Allocations that were about to fail.
    pub oom: u64,
    /// Processes killed.
    pub oom_kill: u64,
}

impl LimitEvents {
    pub(super) fn parse(text: &str) -> Result<Self, KernelTextError> {
        Ok(Self {
            // Kernels before 4.20 report fewer keys.
            low: sum_numbers(text, &["low"])?,
            high: sum_numbers(text, &["high"])?,
            max: require_number(text, "max")?,
            oom: sum_numbers(text, &["oom"])?,
            oom_kill: sum_numbers(text, &["oom_kill"])?,
        })
    }
}

/// Memory of the whole machine.
///
/// When `/proc/meminfo` is hidden (`ProcSubset=pid`), the available memory is not known. It then
/// equals the total memory, so that only the limits of control groups count.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineMemory {
    /// Total memory; [`u64::MAX`] when it is not known.
    pub total: Bytes,
    /// Memory that programs can get without swapping, as estimated by the kernel.
    pub available: Bytes,
    /// Total swap.
    pub swap_total: Bytes,
    /// Free swap.
    pub swap_free: Bytes,
    /// Stalls of the machine; `None` where they are not counted.
    pub psi: Option<Psi>,
}

impl Default for MachineMemory {
    /// Returns an unknown machine, which limits nothing.
    fn default() -> Self {
        let (unknown, none) = (Bytes(u64::MAX), Bytes(0));
        Self { total: unknown, available: unknown, swap_total: none, swap_free: none, psi: None }
    }
}

impl Sample {
    /// Returns the limit with the greatest share in use. A limit of a group above may be larger and
    /// still be nearer.
    pub fn tightest(&self) -> Option<&GroupLimit> {
        // A limit of 0 counts as fully used.
        #[expect(clippy::cast_precision_loss, reason = "a share need not be exact")]
        let share = |limit: &GroupLimit| limit.unreclaimable.0 as f64 / limit.bytes.0.max(1) as f64;
        self.limits.iter().max_by(|a, b| share(a).total_cmp(&share(b)))
    }
}

impl MachineMemory {
    fn parse(text: &str) -> Result<Self, KernelTextError> {
        let bytes = |kibi| Bytes(kibibytes(kibi));
        Ok(Self {
            total: bytes(require_number(text, "MemTotal:")?),
            available: bytes(require_number(text, "MemAvailable:")?),
            swap_total: bytes(sum_numbers(text, &["SwapTotal:"])?),
            swap_free: bytes(sum_numbers(text, &["SwapFree:"])?),
            psi: None,
        })
    }

    /// Returns the figures that the kernel gives without `/proc/meminfo`: total memory, but not the
    /// available part.
    fn without_meminfo(root: &Path) -> Self {
        // The system call describes the real machine, not the tree of a test.
        match nix::sys::sysinfo::sysinfo() {
            Ok(info) if root == Path::new("/") => Self {
                total: Bytes(info.ram_total()),
                available: Bytes(info.ram_total()),
                swap_total: Bytes(info.swap_total()),
                swap_free: Bytes(info.swap_free()),
                psi: None,
            },
            _ => Self::default(),
        }
    }
}

/// Memory charged to one group, or held by this process.
#[derive(Clone, Copy, Default)]
struct ChargedMemory {
    unreclaimable: Bytes,
    mapped: Bytes,
    swap: Bytes,
}

impl ChargedMemory {
    /// Parses `memory.stat` of version 2. Swap is in another file.
    fn of_version_2(text: &str) -> Result<Self, KernelTextError> {
        let kernel = match find_number(text, "kernel")? {
            Some(kernel) => kernel.saturating_sub(sum_numbers(text, &["slab_reclaimable"])?),
            // Kernels before 5.18 report only the parts of `kernel`.
            None => {
                sum_numbers(text, &["kernel_stack", "pagetables", "percpu", "slab_unreclaimable"])?
            }
        };
        let others = sum_numbers(text, &["shmem", "sock"])?.saturating_add(kernel);
        Ok(Self {
            unreclaimable: Bytes(require_number(text, "anon")?.saturating_add(others)),
            mapped: Bytes(sum_numbers(text, &["file_mapped"])?),
            swap: Bytes(0),
        })
    }

    /// Parses `memory.stat` of version 1. Kernel memory is in another file.
    fn of_version_1(text: &str) -> Result<Self, KernelTextError> {
        let anonymous = require_number(text, "total_rss")?;
        Ok(Self {
            unreclaimable: Bytes(anonymous.saturating_add(sum_numbers(text, &["total_shmem"])?)),
            mapped: Bytes(sum_numbers(text, &["total_mapped_file"])?),
            swap: Bytes(sum_numbers(text, &["total_swap"])?),
        })
    }

    /// Parses `/proc/self/status`.
    fn of_process(text: &str) -> Result<Self, KernelTextError> {
        let bytes = |kibi| Bytes(kibibytes(kibi));
        let anonymous = require_number(text, "RssAnon:")?;
        Ok(Self {
            unreclaimable: bytes(anonymous.saturating_add(sum_numbers(text, &["RssShmem:"])?)),
            mapped: bytes(sum_numbers(text, &["RssFile:"])?),
            swap: bytes(sum_numbers(text, &["VmSwap:"])?),
        })
    }
}

/// Reader of samples.
///
/// One sample takes about 0.2 ms: it reads a dozen small files that the kernel generates, without
/// any disk access. While the kernel reclaims memory, reading may block.
#[derive(Debug)]
pub struct SampleReader {
    kernel: KernelFiles,
    /// Content of `/proc/self/cgroup` from which `groups` was found.
    membership: String,
    groups: ProcessGroups,
}

impl SampleReader {
    /// Creates a reader for the files below `root` (`/`, except in tests).
    pub fn new(root: &Path) -> Self {
        let kernel = KernelFiles {
            root: root.to_owned(),
            files: CachedFiles::default(),
            logged: HashSet::new(),
        };
        Self { kernel, membership: String::new(), groups: ProcessGroups::default() }
    }

    /// Takes a sample. Blocks.
    pub fn sample(&mut self) -> Sample {
        self.locate();
        let Self { kernel, groups, .. } = self;
        let memory = groups.memory.as_ref();
        let own = memory
            .filter(|memory| !memory.is_topmost())
            .and_then(|memory| kernel.charge(memory.version, memory.own()));
        let process = kernel.process().unwrap_or_default();
        let charge = own.unwrap_or(process);
        let in_own = |name| groups.unified.as_ref().map(|unified| unified.own().join(name));
        let sample = Sample {
            unreclaimable: charge.unreclaimable,
            process: process.unreclaimable,
            mapped: charge.mapped,
            swap: charge.swap,
            limits: memory.map(|memory| kernel.limits(memory, own, charge)).unwrap_or_default(),
            psi: in_own("memory.pressure").and_then(|path| kernel.read_parsed(&path, Psi::parse)),
            events: in_own("memory.events")
                .and_then(|path| kernel.read_parsed(&path, LimitEvents::parse)),
            machine: kernel.machine(),
        };
        if memory.is_some() && own.is_none() {
            // The group may have vanished with its mount, which `membership` does not show. Search
            // again next time.
            self.membership.clear();
        }
        sample
    }

    /// Finds the groups again when this process was moved.
    fn locate(&mut self) {
        let kernel = &mut self.kernel;
        let membership = kernel.files.read(&kernel.root.join(cgroup::MEMBERSHIP));
        let found = membership.and_then(|membership| {
            if membership != self.membership {
                // The handles belong to files of other groups, so drop them.
                kernel.files = CachedFiles::default();
                self.groups = cgroup::find(&kernel.root, &membership)?;
                self.membership = membership;
            }
            if self.groups.memory.is_none() {
                let problem =
                    "no mount shows the control group of this process, so its limits are unknown";
                kernel.log_once(problem.to_owned());
            }
            Ok(())
        });
        if kernel.value_or_log(found).is_none() {
            self.groups = ProcessGroups::default();
            self.membership.clear();
        }
    }
}

/// Kernel files, and the problems already logged about them.
#[derive(Debug)]
struct KernelFiles {
    root: PathBuf,
    files: CachedFiles,
    /// Logged problems. Their texts contain file names but no file content, so the set stays small.
    logged: HashSet<String>,
}

impl KernelFiles {
    fn log_once(&mut self, problem: String) {
        if !self.logged.contains(&problem) {
            tracing::warn!(
                name: Message::MemoryUnknown.name(),
                error = %problem,
                "a memory counter of the kernel is not available"
            );
            self.logged.insert(problem);
        }
    }

    /// Returns the value that was read. Logs every error but absence.
    fn value_or_log<T>(&mut self, read: Result<T, FileError>) -> Option<T> {
        match read {
            Ok(read) => Some(read),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                self.log_once(chain(&error));
                None
            }
        }
    }

    /// Reads and parses a file; returns `None` if it is absent or unusable.
    fn read_parsed<T, E: Error + 'static>(
        &mut self,
        path: &Path,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let read = self.files.read(path);
        let text = self.value_or_log(read)?;
        match parse(&text) {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.log_once(format!("{}: {}", path.display(), chain(&error)));
                None
            }
        }
    }

    /// Returns the memory charged to the group in `directory` and the groups below it.
    fn charge(&mut self, version: CgroupVersion, directory: &Path) -> Option<ChargedMemory> {
        let stat = directory.join("memory.stat");
        match version {
            CgroupVersion::Two => {
                let charge = self.read_parsed(&stat, ChargedMemory::of_version_2)?;
                let swap = self.read_parsed(&directory.join("memory.swap.current"), parse_number);
                Some(ChargedMemory { swap: Bytes(swap.unwrap_or_default()), ..charge })
            }
            CgroupVersion::One => {
                let ChargedMemory { unreclaimable, mapped, swap } =
                    self.read_parsed(&stat, ChargedMemory::of_version_1)?;
                let kernel =
                    self.read_parsed(&directory.join("memory.kmem.usage_in_bytes"), parse_number);
                let kernel = kernel.unwrap_or_default();
                let unreclaimable = Bytes(unreclaimable.0.saturating_add(kernel));
                Some(ChargedMemory { unreclaimable, mapped, swap })
            }
        }
    }

    /// Returns the limits of every group from this process's own upwards.
    ///
    /// A group that does not report its memory is assumed to hold `least`, the known memory of this
    /// process.
    fn limits(
        &mut self,
        memory: &Hierarchy,
        own: Option<ChargedMemory>,
        least: ChargedMemory,
    ) -> Vec<GroupLimit> {
        let mut limits = Vec::new();
        for directory in memory.limited() {
            let mut charge = own.filter(|_| directory == memory.own());
            for file in memory.limits(directory) {
                let Some(Some(bytes)) = self.read_parsed(&file, parse_limit) else { continue };
                // Measure only groups that have a limit: reading memory.stat makes the kernel sum
                // up the whole subtree.
                charge = charge.or_else(|| self.charge(memory.version, directory));
                let unreclaimable = charge.unwrap_or(least).unreclaimable;
                limits.push(GroupLimit { bytes: Bytes(bytes), unreclaimable, file });
            }
        }
        limits
    }

    /// Returns the memory of this process, independent of its group.
    fn process(&mut self) -> Option<ChargedMemory> {
        let path = self.root.join("proc/self/status");
        self.read_parsed(&path, ChargedMemory::of_process)
    }

    fn machine(&mut self) -> MachineMemory {
        let path = self.root.join("proc/meminfo");
        let machine = self.read_parsed(&path, MachineMemory::parse).unwrap_or_else(|| {
            self.log_once(format!(
                "{} does not show the available memory of the machine; \
                 if ProcSubset=pid hides the file, remove that setting from the unit",
                path.display()
            ));
            MachineMemory::without_meminfo(&self.root)
        });
        let psi = self.read_parsed(&self.root.join("proc/pressure/memory"), Psi::parse);
        MachineMemory { psi, ..machine }
    }
}

#[cfg(test)]
mod tests {
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
                psi: Some(Psi {
                    some_avg10: 9.0,
                    some_avg60: 8.0,
                    full_avg10: 0.0,
                    some_total_us: 7,
                }),
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
        assert_eq!(told(&tree).matches("take that out of the unit").count(), 1);
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
}
