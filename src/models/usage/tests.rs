//! Tests of `usage`.

use std::fs;
use std::time::UNIX_EPOCH;

use super::*;
use proptest::prelude::*;
use tempfile::TempDir;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
const ANSWERED: RequestOutcome =
    RequestOutcome { texts: 2, tokens: 30, latency: Duration::from_millis(10), is_ok: true };
const FAILED: RequestOutcome = RequestOutcome { is_ok: false, ..ANSWERED };

/// Returns Monday 2026-01-05, 00:00 UTC.
fn monday() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_767_571_200)
}

fn key(id: &str) -> EntryKey {
    format!("{id}@1+0123456789ab").parse().unwrap()
}

/// Temporary directory of a usage file.
struct Place {
    root: TempDir,
}

impl Place {
    fn new() -> Self {
        // Prefer a directory in memory: syncing to a disk is slow.
        let root = tempfile::tempdir_in("/dev/shm").or_else(|_none| tempfile::tempdir());
        Self { root: root.unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.root.path().join(FILE)
    }

    fn open(&self) -> Usage {
        Usage::open(&self.path())
    }

    fn names(&self) -> Vec<String> {
        let children = fs::read_dir(self.root.path()).unwrap();
        let names = children.map(|child| child.unwrap().file_name().into_string().unwrap());
        let mut names = Vec::from_iter(names);
        names.sort();
        names
    }
}

#[test]
fn counts_survive_restarts() {
    let place = Place::new();
    let usage = place.open();
    let model = key("a");
    usage.record_load(&model, Duration::from_millis(800), monday());
    usage.record_load(&model, Duration::from_millis(400), monday());
    (0..9).for_each(|_| usage.record(&model, ANSWERED, monday()));
    usage.record(&model, FAILED, monday() + MINUTE);
    usage.save().unwrap();
    for usage in [usage, place.open()] {
        let stats = usage.stats(monday() + MINUTE).remove(&model).unwrap();
        assert_eq!((stats.requests, stats.failures), (10, 1));
        assert_eq!((stats.texts, stats.tokens), (18, 270));
        assert_eq!((stats.loads, stats.reload_cost), (2, Some(Duration::from_millis(700))));
        assert_eq!(stats.reload_cost, usage.reload_cost(&model));
        let Percentiles { p50, p95 } = stats.latency.unwrap();
        assert!(p50 > 7 * MINUTE / 60_000 && p95 < 15 * MINUTE / 60_000, "{p50:?} {p95:?}");
        assert_eq!(stats.latency, stats.recent_latency);
        let at = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(stats.first_used_at, Some(Timestamp(at(monday()))));
        assert_eq!(stats.last_used_at, Some(Timestamp(at(monday() + MINUTE))));
    }
    assert_eq!(place.open().reload_cost(&key("b")), None);
}

#[test]
fn daily_requests_survive_restarts_and_older_files() {
    let place = Place::new();
    let usage = place.open();
    let model = key("a");
    (0..3).for_each(|_| usage.record(&model, ANSWERED, monday()));
    usage.record(&model, FAILED, monday() + 8 * DAY);
    usage.save().unwrap();
    let daily = |usage: &Usage, day| usage.stats(monday() + day * DAY)[&model].daily_requests;
    let mut expected = [0; DAYS];
    (expected[DAYS - 9], expected[DAYS - 1]) = (3, 1);
    assert_eq!(daily(&place.open(), 8), Some(expected));

    // Older versions wrote no daily counts.
    let mut file: serde_json::Value =
        serde_json::from_slice(&fs::read(place.path()).unwrap()).unwrap();
    let counts = file["models"][model.to_string()].as_object_mut().unwrap();
    counts.remove("daily").unwrap();
    fs::write(place.path(), file.to_string()).unwrap();
    let usage = place.open();
    assert_eq!((daily(&usage, 8), usage.stats(monday())[&model].requests), (None, 4));
    usage.record(&model, ANSWERED, monday() + 9 * DAY);
    assert_eq!(daily(&usage, 9).map(|days| days[DAYS - 1]), Some(1));
}

#[test]
fn only_changes_are_saved_and_failures_retried() {
    let place = Place::new();
    let usage = place.open();
    usage.save().unwrap();
    assert_eq!(place.names(), [""; 0]);
    usage.record(&key("a"), ANSWERED, monday());
    fs::create_dir(place.path()).unwrap();
    usage.save().unwrap_err();
    fs::remove_dir(place.path()).unwrap();
    usage.save().unwrap();
    assert_eq!(place.names(), [FILE]);
    fs::remove_file(place.path()).unwrap();
    usage.save().unwrap();
    assert_eq!(place.names(), [""; 0]);
}

#[test]
fn unreadable_file_is_moved_aside() {
    let place = Place::new();
    for content in ["{", r#"{"format":7}"#] {
        fs::write(place.path(), content).unwrap();
        let usage = place.open();
        assert_eq!(usage.stats(monday()).len(), 0);
        usage.record(&key("a"), ANSWERED, monday());
        usage.save().unwrap();
        assert_eq!(place.names(), [FILE, "usage.json.unreadable"]);
        let aside = place.root.path().join("usage.json.unreadable");
        assert_eq!(fs::read_to_string(aside).unwrap(), content);
        assert_eq!(place.open().stats(monday()).len(), 1);
    }
}

#[test]
fn immovable_unreadable_file_stays_and_counting_continues() {
    let place = Place::new();
    fs::write(place.path(), "{").unwrap();
    fs::create_dir_all(place.root.path().join("usage.json.unreadable/a")).unwrap();
    let usage = place.open();
    usage.record(&key("a"), ANSWERED, monday());
    usage.save().unwrap();
    assert_eq!(usage.stats(monday()).len(), 1);
    assert_eq!(fs::read_to_string(place.path()).unwrap(), "{");
}

#[test]
fn usage_is_bounded_and_forgets_oldest_first() {
    let usage = Place::new().open();
    let keys = Vec::from_iter((0..MAX_MODELS + 2).map(|index| key(&format!("m{index}"))));
    for (second, key) in keys.iter().take(MAX_MODELS).enumerate() {
        usage.record(key, ANSWERED, monday() + Duration::from_secs(second as u64));
    }
    usage.record(&keys[0], ANSWERED, monday() + HOUR);
    usage.record_load(&keys[MAX_MODELS], MINUTE, monday() + HOUR);
    usage.record(&keys[MAX_MODELS + 1], ANSWERED, monday() + HOUR);
    let stats = usage.stats(monday() + HOUR);
    let gone = keys.iter().filter(|key| !stats.contains_key(key));
    assert_eq!(Vec::from_iter(gone), [&keys[1], &keys[2]]);
}

#[test]
fn removed_models_are_forgotten_after_thirty_days() {
    let place = Place::new();
    let usage = place.open();
    let (stays, leaves) = (key("stays"), key("leaves"));
    usage.record(&stays, ANSWERED, monday());
    usage.record(&leaves, ANSWERED, monday());
    let one = BTreeSet::from([stays.clone()]);
    let both = BTreeSet::from([stays, leaves]);
    // Both models stay installed for a long time without use. Then one is removed.
    (0..100).for_each(|day| usage.keep_installed(&both, monday() + day * DAY));
    usage.keep_installed(&one, monday() + (99 + 29) * DAY);
    assert_eq!(usage.stats(monday()).len(), 2);
    usage.keep_installed(&one, monday() + (99 + 30) * DAY);
    assert_eq!(Vec::from_iter(usage.stats(monday()).into_keys()), Vec::from_iter(one.clone()));
    usage.save().unwrap();
    // A change of less than a day is not written.
    fs::remove_file(place.path()).unwrap();
    usage.keep_installed(&one, monday() + (99 + 30) * DAY + HOUR);
    usage.save().unwrap();
    assert_eq!(place.names(), [""; 0]);
}

#[test]
fn hourly_uses_come_from_recent_or_weekly_usage() {
    let usage = Place::new().open();
    let model = key("a");
    assert_eq!(usage.uses_per_hour(&model, monday()), 0.0);
    // Twelve requests an hour, for half a day.
    let steady = |index: u32| monday() + index * 5 * MINUTE;
    (0..144).for_each(|index| usage.record(&model, ANSWERED, steady(index)));
    let rate = usage.uses_per_hour(&model, steady(144));
    assert!((10.0..14.0).contains(&rate), "{rate}");
    let later = usage.uses_per_hour(&model, steady(144) + 3 * HOUR);
    assert!((later / rate - 0.125).abs() < 0.01, "{later} of {rate}");

    // Six requests every Monday at noon.
    let model = key("b");
    for week in 0..4 {
        let noon = monday() + week * WEEK + 12 * HOUR;
        (0..6).for_each(|index| usage.record(&model, ANSWERED, noon + index * MINUTE));
    }
    let rate_at = |hours| usage.uses_per_hour(&model, monday() + 4 * WEEK + hours * HOUR);
    let rates = [10, 11, 12, 13].map(rate_at);
    assert!(rates[0] < 0.001 && rates[3] < 0.001, "{rates:?}");
    assert!((rates[1] - 6.0).abs() < 1e-9 && (rates[2] - 6.0).abs() < 1e-9, "{rates:?}");
}

/// Simulates models that were used at a quarter past the given hour of the week, in the given
/// weeks.
fn simulated(uses: &[(&str, std::ops::Range<u32>, u32)]) -> Usage {
    let usage = Place::new().open();
    for week in 0..20 {
        for (id, _, hour) in uses.iter().filter(|(_, weeks, _)| weeks.contains(&week)) {
            usage.record(&key(id), ANSWERED, hour_of(week, *hour) + 15 * MINUTE);
        }
    }
    usage
}

fn hour_of(week: u32, hour: u32) -> SystemTime {
    monday() + week * WEEK + hour * HOUR
}

#[test]
fn weekly_use_is_expected_after_three_weeks() {
    for (weeks, week, expected) in [
        (0..2, 2, false),
        (0..3, 3, true),
        (0..10, 10, true),
        // The weekly use ends: the hour is expected after one week without use, not after two.
        (0..6, 7, true),
        (0..6, 8, false),
    ] {
        let usage = simulated(&[("a", weeks.clone(), 9)]);
        let before = hour_of(week, 9) - 10 * MINUTE;
        let found = usage.predict(10 * MINUTE, before);
        assert_eq!(found.len(), usize::from(expected), "{weeks:?} in week {week}");
        assert!(found.iter().all(|found| found.at == hour_of(week, 9)
            && found.key == key("a")
            && found.probability >= MIN_PROBABILITY));
        assert_eq!(usage.predict(9 * MINUTE, before), [], "{weeks:?} in week {week}");
    }
}

#[test]
fn new_weekly_hour_replaces_old_one() {
    let usage = simulated(&[("a", 0..6, 9), ("a", 6..12, 19)]);
    let next = |week| usage.predict(MAX_AHEAD, hour_of(week, 0)).pop().map(|next| next.at);
    assert_eq!(next(12), Some(hour_of(12, 19)));
    let usage = simulated(&[("a", 0..6, 9), ("a", 6..8, 19)]);
    let next = |week| usage.predict(MAX_AHEAD, hour_of(week, 0)).pop();
    assert_eq!(next(8), None, "neither is the rule");
}

#[test]
fn current_hour_is_expected_until_used() {
    let usage = simulated(&[("a", 0..5, 9), ("b", 0..5, 10), ("c", 2..5, 9)]);
    let now = hour_of(5, 9) + 5 * MINUTE;
    let expected = |within| {
        let expected = usage.predict(within, now).into_iter();
        Vec::from_iter(expected.map(|found| (found.key, found.at)))
    };
    assert_eq!(expected(MINUTE), [(key("a"), now), (key("c"), now)]);
    usage.record(&key("a"), ANSWERED, now);
    assert_eq!(expected(HOUR), [(key("c"), now), (key("b"), hour_of(5, 10))]);
    // The span is limited to a day.
    let far = usage.predict(Duration::MAX, hour_of(5, 10) + 20 * MINUTE - 7 * DAY);
    assert!(far.iter().all(|found| found.at < hour_of(5, 11) - 6 * DAY), "{far:?}");
}

#[test]
fn unset_clock_neither_predicts_nor_spoils_profile() {
    let usage = simulated(&[("a", 0..5, 9)]);
    let unset = UNIX_EPOCH + HOUR;
    usage.record(&key("a"), ANSWERED, unset);
    usage.record(&key("b"), ANSWERED, UNIX_EPOCH - HOUR);
    assert_eq!(usage.predict(MAX_AHEAD, unset), []);
    assert_eq!(usage.predict(HOUR, hour_of(5, 9)).len(), 1);
    assert_eq!(usage.stats(hour_of(5, 9))[&key("b")].requests, 1);
}

proptest! {
    #[test]
    fn counters_saturate_with_times_in_any_order(
        calls in prop::collection::vec(
            (any::<usize>(), any::<usize>(), any::<u64>(), any::<bool>(), 0_u64..1 << 40), 1..40),
    ) {
        let place = Place::new();
        let usage = place.open();
        let model = key("a");
        for (texts, tokens, micros, ok, second) in calls {
            let now = UNIX_EPOCH + Duration::from_secs(second);
            let latency = Duration::from_micros(micros);
            usage.record(&model, RequestOutcome { texts, tokens, latency, is_ok: ok }, now);
            usage.record_load(&model, latency, now);
            let stats = usage.stats(now).remove(&model).unwrap();
            prop_assert!(stats.uses_per_hour.is_finite() && stats.uses_per_hour >= 0.0);
            prop_assert!(stats.failures <= stats.requests && stats.requests == stats.loads);
        }
        usage.save().unwrap();
        // A number in JSON may lose its last bit.
        let counts = |usage: &Usage| {
            let stats = usage.stats(monday()).into_values();
            Vec::from_iter(stats.map(|stats| UsageStats { uses_per_hour: 0.0, ..stats }))
        };
        prop_assert_eq!(counts(&usage), counts(&place.open()));
    }
}
