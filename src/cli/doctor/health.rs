//! Checks that the daemon computes vectors, and that the files of its models were hashed lately.
//!
//! Pure: they turn facts into verdicts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::super::shell::quote;
use super::Check;
use super::facts::DaemonAnswers;
use crate::api::wire;
use crate::api::wire::Package;

/// Most models that the check of the files names.
const MOST_NAMED: usize = 5;
/// Number of intervals after which files should have been hashed. A validation of many models takes
/// time, and begins later while the daemon is busy.
const LATE_INTERVALS: u32 = 2;

/// Checks that the default model computed the vector of a text.
pub(super) fn embedding(answers: Option<&DaemonAnswers>) -> Check {
    const NAME: &str = "embedding";
    let Some(answers) = answers else { return Check::needs_daemon(NAME) };
    match &answers.embedding {
        Ok(embedding) => {
            let (model, length) = (&embedding.model, embedding.dimensions);
            let time = embedding.time.as_secs_f64() * 1e3;
            Check::pass(
                NAME,
                format!("{model} computed {length} numbers for a text in {time:.1} ms"),
            )
        }
        Err(why) => Check::fail(
            NAME,
            format!("the daemon computed no vector for a text: {why}"),
            "caxton status; journalctl -u caxton -e",
        ),
    }
}

/// Checks the times at which the files of the models were hashed. Shows the oldest ones.
pub(super) fn integrity(
    status: Option<&wire::DaemonStatus>,
    interval: Duration,
    clock: SystemTime,
) -> Check {
    const NAME: &str = "integrity";
    let Some(status) = status else { return Check::needs_daemon(NAME) };
    let now = clock.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // The check "models" reports all others.
    let sound = status.packages.iter().filter(|package| package.status == "available");
    let mut ages: Vec<(Duration, &Package)> = sound
        .map(|package| {
            (Duration::from_secs(now.saturating_sub(package.last_validated_at)), package)
        })
        .collect();
    ages.sort_by_key(|(age, package)| (std::cmp::Reverse(*age), &package.id, &package.version));
    let Some((oldest, first)) = ages.first() else {
        return Check::skipped(NAME, "no model is available");
    };
    let name = |package: &Package| format!("{}@{}", package.id, package.version);
    let named =
        ages.iter().take(MOST_NAMED).map(|(age, package)| match package.last_validated_at {
            0 => format!("{} never", name(package)),
            _ => format!("{} {} ago", name(package), coarse(*age)),
        });
    let named = Vec::from_iter(named).join(", ");
    let more = match ages.len().saturating_sub(MOST_NAMED) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let found = format!("the files were hashed: {named}{more}");
    if *oldest > interval * LATE_INTERVALS {
        let interval = humantime::format_duration(interval);
        return Check::warn(
            NAME,
            format!("{found}; memory.model_cache.validation_interval is {interval}"),
            format!("sudo caxton model verify {}", quote(name(first))),
        );
    }
    Check::pass(NAME, found)
}

/// Formats a duration in its largest unit, rounded down.
fn coarse(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let largest = units.iter().find(|(unit, _)| seconds >= *unit);
    largest.map_or_else(|| "0 s".to_owned(), |(unit, name)| format!("{} {name}", seconds / unit))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Fail, Pass, Skipped, Warn};
    use super::super::fixture::{answers, assert};
    use super::*;

    #[test]
    fn embedding_check_shows_time_or_error() {
        let mut answers = answers(&[("a", "resident", 1)]);
        assert(&embedding(Some(&answers)), Pass, "a computed 3 numbers for a text in 2.5 ms", None);
        answers.embedding = Err("the queue is full".to_owned());
        assert(&embedding(Some(&answers)), Fail, "the queue is full", Some("journalctl"));
        assert(&embedding(None), Skipped, "does not answer", None);
    }

    #[test]
    fn late_validation_is_a_warning() {
        let clock = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let day = Duration::from_secs(86_400);
        let mut status = answers(&[("a", "absent", 1), ("b", "absent", 1)]).status;
        status.packages[0].last_validated_at = 1_000_000 - 59;
        status.packages[1].last_validated_at = 1_000_000 - 2 * 86_400;
        let found = "hashed: b@1 2 d ago, a@1 59 s ago";
        assert(&integrity(Some(&status), day, clock), Pass, found, None);
        let half = day / 2;
        let check = integrity(Some(&status), half, clock);
        assert(&check, Warn, "validation_interval is 12h", Some("model verify b@1"));
        status.packages[1].last_validated_at = 0;
        assert(&integrity(Some(&status), day, clock), Warn, "b@1 never", Some("verify b@1"));
        status.packages[1].status = "corrupt".to_owned();
        assert(&integrity(Some(&status), day, clock), Pass, "hashed: a@1 59 s ago", None);
        status.packages.remove(0);
        assert(&integrity(Some(&status), day, clock), Skipped, "no model", None);
        assert(&integrity(None, day, clock), Skipped, "does not answer", None);
    }

    #[test]
    fn only_oldest_validations_are_named() {
        let ids = ["a", "b", "c", "d", "e", "f", "g"];
        let status = answers(&ids.map(|id| (id, "absent", 1))).status;
        let check = integrity(Some(&status), Duration::from_secs(1), UNIX_EPOCH);
        assert(&check, Pass, "e@1 never, and 2 more", None);
    }
}
