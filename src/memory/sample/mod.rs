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
mod tests;
