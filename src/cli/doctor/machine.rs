//! Checks of the machine: memory, pressure events, sandbox, processor, journal, clock, inotify.
//!
//! Pure: they turn facts into verdicts.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::Check;
use super::facts::{DaemonAnswers, Inotify, Journal, PressureFile};
use crate::api::wire::Package;
use crate::base::units::Bytes;
use crate::engine::PrecisionReport;

/// Instances that the daemon uses: for the configuration, the drop directory, and the limits of
/// memory.
const INSTANCES: u64 = 3;
/// About twice the watches that the daemon uses: three directories of the configuration and their
/// conf.d (or the parents of missing ones), the drop directory, and two limits of each of four
/// control groups.
const WATCHES: u64 = 32;

/// Checks the limits on the daemon's memory against the least that its models take: their files.
pub(super) fn memory(answers: Option<&DaemonAnswers>) -> Check {
    const NAME: &str = "memory";
    const LIMIT: &str = "sudo systemctl edit caxton.service";
    let Some(DaemonAnswers { status, memory, .. }) = answers else {
        return Check::needs_daemon(NAME);
    };
    let resident = |package: &Package| package.residency.as_deref() == Some("resident");
    let headroom = Bytes(memory.headroom_bytes);
    let default = status.packages.iter().find(|it| it.current && it.id == status.default_model);
    if let Some(default) = default.filter(|it| !resident(it) && it.size_bytes > headroom.0) {
        let (id, size) = (&default.id, Bytes(default.size_bytes));
        let found = format!("{id} needs at least {size}, and {headroom} is available");
        return Check::fail(NAME, found, format!("raise MemoryMax=: {LIMIT}"));
    }
    if memory.shedding {
        let found = format!("memory is short, so requests are rejected; {headroom} is available");
        return Check::warn(NAME, found, "caxton memory status");
    }
    let largest = status.packages.iter().max_by_key(|package| package.size_bytes);
    let tightest = memory.limits.iter().min_by_key(|limit| limit.bytes);
    if let (Some(model), Some(limit)) = (largest, tightest)
        && model.size_bytes > limit.bytes
    {
        let (id, size, bytes) = (&model.id, Bytes(model.size_bytes), Bytes(limit.bytes));
        let found = format!("{id} needs at least {size}, and {} allows {bytes}", limit.file);
        // Above memory.high the kernel throttles the daemon if it cannot reclaim pages.
        let key = if limit.file.ends_with("memory.high") { "MemoryHigh" } else { "MemoryMax" };
        return Check::warn(NAME, found, format!("raise {key}=: {LIMIT}"));
    }
    let limit = match tightest {
        Some(limit) => format!("{} by {}", Bytes(limit.bytes), limit.file),
        None => "only the memory of the machine".to_owned(),
    };
    Check::pass(NAME, format!("limit: {limit}; headroom for models: {headroom}"))
}

/// Checks whether the daemon gets events of memory pressure, or has to poll.
pub(super) fn pressure(file: &PressureFile, source: Option<&str>) -> Check {
    const NAME: &str = "pressure";
    let polls = source.is_some_and(|source| source.starts_with("polling"));
    let kernel = match file {
        PressureFile::Counted => None,
        PressureFile::Absent => {
            Some("the kernel does not count memory pressure (CONFIG_PSI)".to_owned())
        }
        PressureFile::Disabled => Some("the kernel has memory pressure (PSI) disabled".to_owned()),
        PressureFile::Unreadable(why) => Some(why.clone()),
    };
    let action = match file {
        PressureFile::Counted => "MemoryPressureWatch=on: sudo systemctl edit caxton.service",
        _ => "add psi=1 to the command line of the kernel, then reboot",
    };
    match (source, kernel) {
        (Some(source), None) if polls => {
            Check::warn(NAME, format!("the daemon polls memory every second ({source})"), action)
        }
        (Some(_), Some(kernel)) if polls => {
            Check::warn(NAME, format!("{kernel}; the daemon polls memory every second"), action)
        }
        (Some(source), _) => Check::pass(NAME, format!("reported by {source}")),
        (None, Some(kernel)) => Check::warn(NAME, kernel, action),
        (None, None) => Check::pass(NAME, "counted by the kernel"),
    }
}

/// Checks the sandbox of the daemon. The outer `None` means that the daemon does not answer, the
/// inner one that it does not report the sandbox.
pub(super) fn sandbox(answers: Option<Option<&Value>>) -> Check {
    const NAME: &str = "sandbox";
    match answers {
        None => Check::needs_daemon(NAME),
        Some(None) => Check::skipped(NAME, "this daemon does not report its sandbox"),
        Some(Some(parts)) => {
            let parts = Vec::from_iter(parts.as_object().into_iter().flatten());
            let word = |part: &Value, key: &str| part[key].as_str().map(str::to_owned);
            let off =
                parts.iter().filter(|(_, part)| part["state"] == "off").map(|(name, part)| {
                    format!("{name} is off: {}", word(part, "reason").unwrap_or_default())
                });
            let off = Vec::from_iter(off);
            if !off.is_empty() {
                let action =
                    "use Linux 5.19 or later, with landlock listed in /sys/kernel/security/lsm";
                return Check::warn(NAME, off.join("; "), action);
            }
            let on = parts.iter().map(|(name, part)| {
                let abi = part["abi"].as_u64().map(|abi| format!(" {abi}")).unwrap_or_default();
                format!("{name}{abi} {}", word(part, "state").unwrap_or_default())
            });
            Check::pass(NAME, Vec::from_iter(on).join(", "))
        }
    }
}

/// Checks the arithmetic of models with floating-point weights and of models with integer weights.
pub(super) fn processor([values, integers]: &[PrecisionReport; 2], extensions: &[&str]) -> Check {
    const NAME: &str = "processor";
    let text = |report: &PrecisionReport| format!("{} with {}", report.precision, report.isa);
    let found = format!(
        "{}; int8 packages: {}; extensions: {}",
        text(values),
        text(integers),
        if extensions.is_empty() {
            "none that Caxton uses".to_owned()
        } else {
            extensions.join(" ")
        }
    );
    if values.isa == "scalar" {
        return Check::warn(
            NAME,
            format!("slow, without AVX2: {found}"),
            "in a virtual machine, give it the processor of the host (QEMU: -cpu host)",
        );
    }
    Check::pass(NAME, found)
}

/// Checks that the log of the daemon is kept.
pub(super) fn journal(journal: &Journal) -> Check {
    const NAME: &str = "journal";
    if !journal.runs {
        return Check::skipped(NAME, "journald does not run here, so the daemon logs to stderr");
    }
    if journal.heard == Some(false) {
        return Check::warn(
            NAME,
            "the running daemon does not log to the journal",
            "run it as a service: sudo systemctl restart caxton",
        );
    }
    if !journal.persistent {
        return Check::warn(
            NAME,
            "the journal is in memory and is lost at a reboot",
            "sudo mkdir -p /var/log/journal && sudo systemctl restart systemd-journald",
        );
    }
    Check::pass(NAME, "stored on disk: journalctl -u caxton")
}

/// Checks that the clock is not earlier than the installation of this program. Times in the store,
/// the hours of use and the journal depend on it; durations do not.
pub(super) fn clock(now: SystemTime, built: Option<SystemTime>) -> Check {
    const NAME: &str = "clock";
    let date = humantime::format_rfc3339_seconds(now);
    // Some file systems round times.
    let since = built.map(|built| built - Duration::from_secs(2));
    if since.is_some_and(|since| now < since) {
        let found = format!("the clock shows {date}, before the installation of this program");
        return Check::warn(NAME, found, "sudo timedatectl set-time 'YYYY-MM-DD HH:MM:SS'");
    }
    Check::pass(NAME, date.to_string())
}

/// Checks that the kernel lets the daemon watch its directories.
pub(super) fn inotify(inotify: &Inotify) -> Check {
    const NAME: &str = "inotify";
    let (Some(instances), Some(watches)) = (inotify.instances, inotify.watches) else {
        return Check::skipped(NAME, "cannot read the limits of the kernel");
    };
    let found = format!("{instances} instances and {watches} watches for each user");
    let keys = [
        (instances < INSTANCES, format!("fs.inotify.max_user_instances={}", 64 * INSTANCES)),
        (watches < WATCHES, format!("fs.inotify.max_user_watches={}", 512 * WATCHES)),
    ];
    let keys = Vec::from_iter(keys.into_iter().filter(|(low, _)| *low).map(|(_, key)| key));
    if keys.is_empty() {
        return Check::pass(NAME, found);
    }
    Check::warn(
        NAME,
        format!("{found}: too few, so changes are polled once a minute"),
        format!("sudo sysctl -w {}", keys.join(" ")),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Verdict::{Fail, Pass, Skipped, Warn};
    use super::super::fixture::{answers, assert};
    use super::*;
    use crate::api::wire::memory::MemoryLimit;
    use crate::engine::Precision;

    #[test]
    fn memory_limit_is_compared_with_largest_model() {
        let limit = |file: &str, bytes| MemoryLimit {
            bytes,
            unreclaimable_bytes: 0,
            file: format!("/sys/fs/cgroup/{file}"),
        };
        assert(&memory(None), Skipped, "does not answer", None);
        let mut facts = answers(&[("a", "absent", 1001)]);
        assert(&memory(Some(&facts)), Fail, "a needs at least 1001 B", Some("MemoryMax="));
        facts.memory.headroom_bytes = 2048;
        assert(&memory(Some(&facts)), Pass, "only the memory", None);
        facts.memory.limits = vec![limit("memory.max", 4096), limit("memory.high", 1002)];
        assert(&memory(Some(&facts)), Pass, "1002 B by /sys/fs/cgroup/memory.high", None);
        facts.memory.limits[1].bytes = 1000;
        assert(&memory(Some(&facts)), Warn, "memory.high allows 1000 B", Some("MemoryHigh="));
        facts.memory.limits[0].bytes = 999;
        assert(&memory(Some(&facts)), Warn, "memory.max allows 999 B", Some("MemoryMax="));
        facts.memory.shedding = true;
        assert(&memory(Some(&facts)), Warn, "rejected", Some("caxton memory status"));
        // A resident model needs no further memory.
        let facts = answers(&[("a", "resident", 1001)]);
        assert(&memory(Some(&facts)), Pass, "1000 B", None);
    }

    #[test]
    fn pressure_source_is_reported() {
        use PressureFile::{Absent, Counted, Disabled, Unreadable};
        let trigger = Some("systemd's trigger /x");
        let cases = [
            (Counted, trigger, Pass, "systemd's trigger", None),
            (Absent, trigger, Pass, "systemd's trigger", None),
            (Counted, Some("polling"), Warn, "every second", Some("MemoryPressureWatch")),
            (Disabled, Some("polling"), Warn, "PSI) disabled", Some("psi=1")),
            (Absent, None, Warn, "CONFIG_PSI", Some("psi=1")),
            (Unreadable("cannot read".to_owned()), None, Warn, "cannot read", Some("psi=1")),
            (Counted, None, Pass, "counted", None),
        ];
        for (file, source, verdict, found, action) in cases {
            assert(&pressure(&file, source), verdict, found, action);
        }
    }

    #[test]
    fn sandbox_state_is_reported() {
        assert(&sandbox(None), Skipped, "does not answer", None);
        assert(&sandbox(Some(None)), Skipped, "does not report", None);
        let mut parts = json!({
            "landlock": { "state": "on", "abi": 7 },
            "seccomp": { "state": "on" },
        });
        assert(&sandbox(Some(Some(&parts))), Pass, "landlock 7 on, seccomp on", None);
        parts["landlock"] = json!({ "state": "off", "reason": "too old" });
        let check = sandbox(Some(Some(&parts)));
        assert(&check, Warn, "landlock is off: too old", Some("kernel"));
    }

    #[test]
    fn processor_without_vectors_is_a_warning() {
        let report = |precision, isa| PrecisionReport { precision, isa, reason: String::new() };
        let fast = [report(Precision::F32, "avx2"), report(Precision::Int8, "avx-vnni")];
        let check = processor(&fast, &["avx2", "avxvnni"]);
        assert(&check, Pass, "f32 with avx2; int8 packages: int8 with avx-vnni", None);
        let slow = [report(Precision::F32, "scalar"), report(Precision::F32, "scalar")];
        assert(&processor(&slow, &[]), Warn, "slow, without AVX2", Some("-cpu host"));
    }

    #[test]
    fn journal_is_persistent_and_receives_logs() {
        let facts = |runs, persistent, heard| Journal { runs, persistent, heard };
        let cases = [
            (facts(false, true, None), Skipped, "stderr", None),
            (facts(true, true, Some(false)), Warn, "does not log", Some("restart caxton")),
            (facts(true, false, Some(true)), Warn, "in memory", Some("mkdir")),
            (facts(true, true, None), Pass, "journalctl -u caxton", None),
        ];
        for (facts, verdict, found, action) in cases {
            assert(&journal(&facts), verdict, found, action);
        }
    }

    #[test]
    fn clock_before_build_time_is_a_warning() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert(&clock(at(100), Some(at(2000))), Warn, "1970-01-01T00:01:40Z", Some("set-time"));
        assert(&clock(at(2000), Some(at(2001))), Pass, "1970-01-01T00:33:20Z", None);
        assert(&clock(at(100), None), Pass, "1970", None);
        // A file with the time zero is not later than any clock.
        assert(&clock(at(0), Some(at(0))), Pass, "1970", None);
    }

    #[test]
    fn low_inotify_limits_get_a_remedy() {
        let facts = |instances, watches| Inotify { instances, watches };
        assert(&inotify(&facts(Some(128), Some(8192))), Pass, "128 instances", None);
        assert(&inotify(&facts(Some(1), Some(8192))), Warn, "once a minute", Some("instances=192"));
        assert(&inotify(&facts(Some(3), Some(4))), Warn, "4 watches", Some("watches=16384"));
        assert(&inotify(&facts(None, Some(4))), Skipped, "cannot read", None);
    }
}
