//! Counters of the requests that used an entry.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::install_record::{InstallRecord, Timestamp};

/// Accesses of one entry: how often requests used it, and the time of the last use.
///
/// Clones share the counters. So an access changes no snapshot of the store, and every snapshot
/// shows the current numbers.
#[derive(Clone, Debug, Default)]
pub struct AccessStats(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    count: AtomicU64,
    /// Time of the last access in seconds since 1970, plus one; zero before the first access.
    last: AtomicU64,
    /// Whether there were accesses since the record of the entry was written.
    is_unwritten: AtomicBool,
}

impl AccessStats {
    /// Returns the counters of an entry whose record was read from the disk.
    pub(super) fn of(record: &InstallRecord) -> Self {
        let last = record.last_access_at.map_or(0, |at| at.0.saturating_add(1));
        Self(Arc::new(Counters {
            count: record.access_count.into(),
            last: last.into(),
            is_unwritten: false.into(),
        }))
    }

    /// Returns the number of accesses.
    pub fn count(&self) -> u64 {
        self.0.count.load(Ordering::Relaxed)
    }

    /// Returns the time of the last access.
    pub fn last_access_at(&self) -> Option<Timestamp> {
        self.0.last.load(Ordering::Relaxed).checked_sub(1).map(Timestamp)
    }

    /// Counts one access at `now`.
    pub(super) fn record_access(&self, now: Timestamp) {
        self.0.count.fetch_add(1, Ordering::Relaxed);
        self.0.last.store(now.0.saturating_add(1), Ordering::Relaxed);
        // Release: a thread that takes the mark must see the count above, or it would write a
        // record without this access.
        self.0.is_unwritten.store(true, Ordering::Release);
    }

    /// Returns whether there were accesses since the last call, and clears the mark.
    pub(super) fn take_unwritten(&self) -> bool {
        self.0.is_unwritten.swap(false, Ordering::Acquire)
    }

    /// Sets the mark again after a failed write.
    pub(super) fn mark_unwritten(&self) {
        self.0.is_unwritten.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_counts() {
        let stats = AccessStats::default();
        let other = stats.clone();
        assert_eq!((other.count(), other.last_access_at()), (0, None));
        assert!(!other.take_unwritten());
        stats.record_access(Timestamp(0));
        assert_eq!((other.count(), other.last_access_at()), (1, Some(Timestamp(0))));
        assert_eq!((other.take_unwritten(), stats.take_unwritten()), (true, false));
        other.mark_unwritten();
        assert!(stats.take_unwritten());
    }
}
