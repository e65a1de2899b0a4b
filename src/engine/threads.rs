//! Starts the thread pool of a model, and detects processors of unequal speed.
//!
//! A pool has a fixed number of threads, which are parked while idle.

use std::fs;
use std::path::Path;

use super::EngineError;

/// Directory in which the kernel describes the processors:
/// <https://github.com/torvalds/linux/blob/v6.12/Documentation/ABI/testing/sysfs-devices-system-cpu>.
const PROCESSORS: &str = "/sys/devices/system/cpu";
/// Files with the speed of a processor: its capacity relative to the others, and its maximum
/// frequency.
const SPEEDS: [&str; 2] = ["cpu_capacity", "cpufreq/cpuinfo_max_freq"];

/// Starts a pool of `count` threads; 0 counts as 1.
///
/// # Errors
/// Returns [`EngineError::Threads`] if the operating system refuses to start them.
pub(super) fn start_pool(count: usize) -> Result<rayon::ThreadPool, EngineError> {
    let count = count.max(1);
    rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .thread_name(|index| format!("engine-{index}"))
        .build()
        .map_err(|source| EngineError::Threads { threads: count, source: source.into() })
}

/// Returns whether some processors of this machine are much slower than others, as on big.LITTLE.
/// Returns `false` if the kernel reports no speeds.
pub(super) fn has_unequal_processors() -> bool {
    has_unequal_speeds(Path::new(PROCESSORS))
}

fn has_unequal_speeds(processors: &Path) -> bool {
    SPEEDS.iter().any(|file| {
        let speeds = speeds(processors, file);
        let (slowest, fastest) = (speeds.iter().min(), speeds.iter().max());
        // Preferred cores of the same kind differ by a few percent, so a processor counts as slow
        // only below four fifths of the fastest.
        slowest.zip(fastest).is_some_and(|(slowest, fastest)| slowest * 5 < fastest * 4)
    })
}

/// Reads `file` of each processor and skips the processors that lack it.
fn speeds(processors: &Path, file: &str) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(processors) else { return Vec::new() };
    let is_processor =
        |name: &str| name.strip_prefix("cpu").is_some_and(|number| number.parse::<u32>().is_ok());
    let speeds = entries.flatten().filter_map(|entry| {
        let named = entry.file_name().to_str().is_some_and(is_processor);
        let text = named.then(|| fs::read_to_string(entry.path().join(file)).ok())??;
        text.trim().parse().ok()
    });
    speeds.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_core_types_are_unequal() {
        let cases: [(&str, &[&str], bool); 5] = [
            ("cpu_capacity", &["1024", "1024"], false),
            ("cpu_capacity", &["430", "430", "1024", "1024"], true),
            // Preferred cores of one kind.
            ("cpufreq/cpuinfo_max_freq", &["5100000", "4900000"], false),
            ("cpufreq/cpuinfo_max_freq", &["3800000", "5000000"], true),
            ("cpu_capacity", &["?", "1024"], false),
        ];
        for (file, speeds, expected) in cases {
            let root = tempfile::tempdir().unwrap();
            for (index, speed) in speeds.iter().enumerate() {
                let path = root.path().join(format!("cpu{index}")).join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, format!("{speed}\n")).unwrap();
            }
            // This directory does not belong to a processor.
            fs::create_dir(root.path().join("cpufreq")).unwrap();
            assert_eq!(has_unequal_speeds(root.path()), expected, "{file} {speeds:?}");
        }
        assert!(!has_unequal_speeds(Path::new("/nonexistent")));
    }
}
