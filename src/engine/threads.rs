//! The threads that a model computes on: a fixed number, parked while there is nothing to do.

use std::fs;
use std::path::Path;

use super::EngineError;

/// Where the kernel describes the processors:
/// <https://github.com/torvalds/linux/blob/v6.12/Documentation/ABI/testing/sysfs-devices-system-cpu>.
const PROCESSORS: &str = "/sys/devices/system/cpu";
/// Files with the speed of a processor, the better one first: its capacity relative to the others, and its highest
/// frequency.
const SPEEDS: [&str; 2] = ["cpu_capacity", "cpufreq/cpuinfo_max_freq"];

/// Starts a pool of `count` threads; 0 is taken as 1.
///
/// # Errors
/// [`EngineError::Threads`] when the operating system refuses them.
pub(super) fn start(count: usize) -> Result<rayon::ThreadPool, EngineError> {
    let count = count.max(1);
    rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .thread_name(|index| format!("engine-{index}"))
        .build()
        .map_err(|source| EngineError::Threads { threads: count, source: source.into() })
}

/// Returns whether some processors of this machine are much slower than others, as on big.LITTLE; `false` when
/// the kernel has no figures.
pub(super) fn processors_are_unequal() -> bool {
    are_unequal(Path::new(PROCESSORS))
}

fn are_unequal(processors: &Path) -> bool {
    SPEEDS.iter().any(|file| {
        let speeds = speeds(processors, file);
        let (slowest, fastest) = (speeds.iter().min(), speeds.iter().max());
        // Favoured cores of one kind differ by some percent.
        slowest.zip(fastest).is_some_and(|(slowest, fastest)| slowest * 5 < fastest * 4)
    })
}

/// Reads `file` of each processor that has it.
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
    fn processors_of_two_kinds_are_unequal() {
        let cases: [(&str, &[&str], bool); 5] = [
            ("cpu_capacity", &["1024", "1024"], false),
            ("cpu_capacity", &["430", "430", "1024", "1024"], true),
            // Favoured cores.
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
            // A directory that belongs to no processor.
            fs::create_dir(root.path().join("cpufreq")).unwrap();
            assert_eq!(are_unequal(root.path()), expected, "{file} {speeds:?}");
        }
        assert!(!are_unequal(Path::new("/nonexistent")));
    }
}
