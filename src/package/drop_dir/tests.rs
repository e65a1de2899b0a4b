//! Tests of `drop_dir`.

use super::*;
use crate::base::units::Bytes;

const TIMEOUT: Duration = Duration::from_secs(600);
const NAME: &str = "a.model.tar.zst";

fn room() -> Capacity {
    Capacity::default()
}

fn listing(content: &str) -> BTreeMap<String, FileFingerprint> {
    BTreeMap::from([(NAME.to_owned(), FileFingerprint(content.to_owned()))])
}

fn ready(content: &str) -> ScanResult {
    ScanResult {
        ready: vec![(NAME.to_owned(), FileFingerprint(content.to_owned()))],
        ..ScanResult::default()
    }
}

#[test]
fn completed_file_is_ready_immediately() {
    let start = Instant::now();
    let mut ledger = DropScanner::default();
    let completed = || BTreeSet::from([NAME.to_owned()]);
    ledger.mark_complete(completed());
    assert_eq!(ledger.observe(listing("1"), TIMEOUT, &room(), start), ready("1"));
    ledger.record_result(NAME, &FileFingerprint("1".to_owned()), Verdict::Accepted, start);
    // The same applies to other contents, but not to the next contents or to another file.
    ledger.mark_complete(completed());
    assert_eq!(ledger.observe(listing("2"), TIMEOUT, &room(), start), ready("2"));
    let next = ledger.observe(listing("3"), TIMEOUT, &room(), start).next;
    assert_eq!(next, Some(start + QUIET));
    ledger.mark_complete(BTreeSet::from(["other".to_owned()]));
    assert_eq!(ledger.observe(listing("4"), TIMEOUT, &room(), start).ready, []);
}

#[test]
fn quiet_file_is_ready_exactly_once() {
    let start = Instant::now();
    let mut ledger = DropScanner::default();
    let growing = ledger.observe(listing("1"), TIMEOUT, &room(), start);
    assert_eq!(growing, ScanResult { next: Some(start + QUIET), ..ScanResult::default() });
    let grown = ledger.observe(listing("2"), TIMEOUT, &room(), start + QUIET);
    assert_eq!(grown, ScanResult { next: Some(start + 2 * QUIET), ..ScanResult::default() });
    let now = start + 2 * QUIET;
    assert_eq!(ledger.observe(listing("2"), TIMEOUT, &room(), now), ready("2"));
    ledger.record_result(NAME, &FileFingerprint("2".to_owned()), Verdict::Accepted, now);
    assert_eq!(
        ledger.observe(listing("2"), TIMEOUT, &room(), now + TIMEOUT),
        ScanResult::default()
    );
    let replaced = ledger.observe(listing("3"), TIMEOUT, &room(), now + TIMEOUT);
    assert!(replaced.ready.is_empty() && replaced.next.is_some());
    ledger.record_installed(NAME, FileFingerprint("3".to_owned()), now);
    let removed = ledger.observe(BTreeMap::new(), TIMEOUT, &room(), now);
    let is_gone = ScanResult { removed: vec![NAME.to_owned()], ..ScanResult::default() };
    assert_eq!(removed, is_gone);
    // The file was overwritten and then removed before it was read again.
    ledger.record_installed(NAME, FileFingerprint("3".to_owned()), now);
    ledger.observe(listing("4"), TIMEOUT, &room(), now);
    assert_eq!(ledger.observe(BTreeMap::new(), TIMEOUT, &room(), now), is_gone);
}

#[test]
fn forgotten_file_is_read_again_and_reported_gone() {
    let start = Instant::now();
    let now = start + QUIET;
    let mut ledger = DropScanner::default();
    ledger.record_installed(NAME, FileFingerprint("1".to_owned()), start);
    assert_eq!(ledger.observe(listing("1"), TIMEOUT, &room(), now), ScanResult::default());
    ledger.rescan(NAME);
    assert_eq!(ledger.observe(listing("1"), TIMEOUT, &room(), now), ready("1"));
    assert_eq!(ledger.observe(BTreeMap::new(), TIMEOUT, &room(), now).removed, [NAME]);
}

#[test]
fn incomplete_file_is_refused_after_timeout() {
    let start = Instant::now();
    let mut ledger = DropScanner::default();
    ledger.observe(listing("1"), TIMEOUT, &room(), start);
    let half = Verdict::Incomplete("it ends early".to_owned());
    ledger.record_result(NAME, &FileFingerprint("1".to_owned()), half.clone(), start + QUIET);
    let waiting = ledger.observe(listing("1"), TIMEOUT, &room(), start + QUIET);
    assert_eq!(waiting, ScanResult { next: Some(start + TIMEOUT), ..ScanResult::default() });
    // The file grows, so the timeout starts again.
    ledger.observe(listing("2"), TIMEOUT, &room(), start + TIMEOUT);
    assert_eq!(ledger.observe(listing("2"), TIMEOUT, &room(), start + TIMEOUT + QUIET), ready("2"));
    ledger.record_result(NAME, &FileFingerprint("2".to_owned()), half, start + TIMEOUT + QUIET);
    let given_up = ledger.observe(listing("2"), TIMEOUT, &room(), start + 2 * TIMEOUT);
    assert!(given_up.refused[0].2.starts_with("it ends early"), "{given_up:?}");
}

#[test]
fn bad_file_is_refused_after_confirmation_time() {
    let start = Instant::now();
    let mut ledger = DropScanner::default();
    ledger.observe(listing("1"), TIMEOUT, &room(), start);
    let wrong = Verdict::Refused("a bad digest".to_owned());
    ledger.record_result(NAME, &FileFingerprint("1".to_owned()), wrong, start + QUIET);
    let early = ledger.observe(listing("1"), TIMEOUT, &room(), start + QUIET);
    assert_eq!(early, ScanResult { next: Some(start + CONFIRM), ..ScanResult::default() });
    let late = ledger.observe(listing("1"), TIMEOUT, &room(), start + CONFIRM);
    let fingerprint = FileFingerprint("1".to_owned());
    assert_eq!(late.refused, [(NAME.to_owned(), fingerprint, "a bad digest".to_owned())]);
    ledger.give_up(NAME, "a bad digest".to_owned());
    assert_eq!(
        ledger.observe(listing("1"), TIMEOUT, &room(), start + TIMEOUT),
        ScanResult::default()
    );
}

#[test]
fn verdict_on_older_content_is_ignored() {
    let start = Instant::now();
    let mut ledger = DropScanner::default();
    ledger.observe(listing("1"), TIMEOUT, &room(), start);
    ledger.observe(listing("2"), TIMEOUT, &room(), start);
    ledger.record_result(NAME, &FileFingerprint("1".to_owned()), Verdict::Accepted, start);
    assert_eq!(ledger.observe(listing("2"), TIMEOUT, &room(), start + QUIET), ready("2"));
}

fn failed(lack: MissingResource) -> Verdict {
    Verdict::Failed { reason: "why".to_owned(), lack }
}

#[test]
fn failure_is_retried_with_exponential_backoff() {
    let start = Instant::now();
    let mut ledger = DropScanner::default();
    ledger.observe(listing("1"), TIMEOUT, &room(), start);
    let mut now = start + QUIET;
    let mut attempts = Vec::new();
    while now < start + 7 * LAST_RETRY {
        assert_eq!(ledger.observe(listing("1"), TIMEOUT, &room(), now), ready("1"));
        attempts.push(now.duration_since(start).as_secs());
        let fingerprint = FileFingerprint("1".to_owned());
        assert!(ledger.record_result(NAME, &fingerprint, failed(MissingResource::Other), now));
        let round = ledger.observe(listing("1"), TIMEOUT, &room(), now);
        assert_eq!(round.ready, []);
        now = round.next.unwrap();
        let early = now - Duration::from_millis(1);
        assert_eq!(ledger.observe(listing("1"), TIMEOUT, &room(), early).ready, []);
    }
    let minutes = [0, 10, 30, 70, 150, 310, 630, 1270];
    assert_eq!(attempts[..8], minutes.map(|minutes| 60 * minutes));
    assert_eq!(attempts[9] - attempts[8], LAST_RETRY.as_secs());
    assert_eq!(attempts.len(), 14);
    // Other contents start with the first wait again.
    ledger.observe(listing("2"), TIMEOUT, &room(), now);
    assert_eq!(ledger.observe(listing("2"), TIMEOUT, &room(), now + QUIET), ready("2"));
    ledger.record_result(
        NAME,
        &FileFingerprint("2".to_owned()),
        failed(MissingResource::Other),
        now,
    );
    let next = ledger.observe(listing("2"), TIMEOUT, &room(), now).next;
    assert_eq!(next, Some(now + FIRST_RETRY));
}

#[test]
fn failed_files_are_retried_when_disk_is_back() {
    let start = Instant::now();
    let mut ledger = DropScanner::default();
    ledger.observe(listing("1"), TIMEOUT, &room(), start);
    let fingerprint = FileFingerprint("1".to_owned());
    ledger.record_result(NAME, &fingerprint, failed(MissingResource::Other), start);
    let now = start + QUIET;
    assert_eq!(ledger.observe(listing("1"), TIMEOUT, &room(), now).ready, []);
    ledger.retry_failed();
    assert_eq!(ledger.observe(listing("1"), TIMEOUT, &room(), now), ready("1"));
    ledger.record_result(NAME, &fingerprint, Verdict::Accepted, now);
    ledger.retry_failed();
    assert_eq!(ledger.observe(listing("1"), TIMEOUT, &room(), now + QUIET), ScanResult::default());
}

#[test]
fn unusable_keys_are_retried_every_ten_minutes() {
    let start = Instant::now();
    let mut ledger = DropScanner::default();
    ledger.observe(listing("1"), TIMEOUT, &room(), start);
    for attempt in 1..9 {
        let now = start + attempt * FIRST_RETRY;
        assert_eq!(ledger.observe(listing("1"), TIMEOUT, &room(), now), ready("1"));
        ledger.record_result(
            NAME,
            &FileFingerprint("1".to_owned()),
            failed(MissingResource::Keys),
            now,
        );
    }
}

#[test]
fn more_capacity_triggers_immediate_retry() {
    let use_of = |models| StoreUse {
        quota: crate::package::Quota {
            max_size: Bytes::mib(1),
            max_models: 1,
            cleanup: crate::package::CleanupRule::Manual,
        },
        models,
        size: Bytes(0),
    };
    let full = Capacity {
        store: Some(use_of(1)),
        space: Some(FreeSpace { free: Bytes::mib(1), ..FreeSpace::default() }),
        memory: "small".to_owned(),
        kept: Vec::new(),
    };
    let no_space = NoSpace::for_test(Bytes::mib(2));
    let with_store = Capacity { store: Some(use_of(0)), ..full.clone() };
    let with_other_kept = Capacity { kept: vec!["m".to_owned()], ..full.clone() };
    let with_memory = Capacity { memory: "large".to_owned(), ..full.clone() };
    let space = |mib| Some(FreeSpace { free: Bytes::mib(mib), ..FreeSpace::default() });
    let with_space = Capacity { space: space(2), ..full.clone() };
    let with_some_space = Capacity { space: space(1), ..full.clone() };
    let cases = [
        (MissingResource::Quota, vec![&with_store, &with_other_kept]),
        (MissingResource::Memory, vec![&with_memory]),
        (MissingResource::Space(no_space), vec![&with_space]),
        (MissingResource::Other, vec![]),
        (MissingResource::Keys, vec![]),
    ];
    let all = [&with_store, &with_other_kept, &with_memory, &with_space, &with_some_space];
    for (lack, helps) in cases {
        for capacity in all {
            let start = Instant::now();
            let mut ledger = DropScanner::default();
            let fingerprint = FileFingerprint("1".to_owned());
            ledger.observe(listing("1"), TIMEOUT, &full, start);
            let now = start + QUIET;
            assert_eq!(ledger.observe(listing("1"), TIMEOUT, &full, now), ready("1"));
            assert!(ledger.record_result(NAME, &fingerprint, failed(lack.clone()), now));
            let now = now + QUIET;
            assert_eq!(ledger.observe(listing("1"), TIMEOUT, &full, now).ready, []);
            let ready_now = ledger.observe(listing("1"), TIMEOUT, capacity, now).ready;
            let helps = helps.contains(&capacity);
            assert_eq!(ready_now.len(), usize::from(helps), "{lack:?} {capacity:?}");
            if !helps {
                continue;
            }
            // The same failure is not worth another record; another reason is.
            assert!(!ledger.record_result(NAME, &fingerprint, failed(lack.clone()), now));
            let next = ledger.observe(listing("1"), TIMEOUT, &full, now).next.unwrap();
            if !matches!(lack, MissingResource::Space(_)) {
                // The earlier capacity is a change, too.
                assert_eq!(next, now + QUIET);
                ledger.observe(listing("1"), TIMEOUT, &full, now + QUIET);
                assert!(ledger.record_result(
                    NAME,
                    &fingerprint,
                    failed(MissingResource::Other),
                    now
                ));
            } else {
                assert_eq!(next, now + 2 * FIRST_RETRY);
                // An attempt caused by the wait is logged again.
                ledger.observe(listing("1"), TIMEOUT, &full, next);
                assert!(ledger.record_result(NAME, &fingerprint, failed(lack.clone()), next));
            }
        }
    }
}

#[test]
fn pending_files_are_bounded_and_urgent_ones_first() {
    let start = Instant::now();
    let mut ledger = DropScanner::default();
    let fingerprint = |number: usize| FileFingerprint(format!("{number}:{number}:0.0:0.0"));
    let listing: BTreeMap<_, _> =
        (0..9).map(|number| (format!("{number}"), fingerprint(number))).collect();
    ledger.observe(listing, TIMEOUT, &room(), start);
    let mut judge = |number: usize, verdict: Verdict| {
        ledger.record_result(&number.to_string(), &fingerprint(number), verdict, start);
    };
    judge(4, Verdict::Accepted);
    judge(5, Verdict::Incomplete("half".to_owned()));
    judge(6, Verdict::Refused("wrong".to_owned()));
    judge(7, Verdict::Ignored("stays".to_owned()));
    judge(8, failed(MissingResource::Other));
    let (files, count) = ledger.pending(5);
    assert_eq!(count, 8);
    let names = Vec::from_iter(files.iter().map(|file| file.name.as_str()));
    assert_eq!(names, ["8", "6", "7", "5", "0"]);
    assert_eq!(
        files[0],
        PendingFile {
            name: "8".to_owned(),
            state: PendingState::Failed,
            bytes: Some(8),
            reason: Some("why".to_owned()),
            retry_at: Some(start + FIRST_RETRY),
        }
    );
    assert_eq!((files[2].reason.as_deref(), files[2].retry_at), (Some("stays"), None));
    assert_eq!((files[4].state, files[4].retry_at), (PendingState::Settling, Some(start + QUIET)));
}
