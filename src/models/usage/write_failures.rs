//! Limits the logging of failed writes of the usage file. It is written every minute, and only the
//! first of several failures in a row is logged.

use std::sync::atomic::{AtomicBool, Ordering};

/// Result of the last write.
#[derive(Debug, Default)]
pub(in crate::models) struct WriteFailures {
    failed: AtomicBool,
}

impl WriteFailures {
    /// Records the result of a write. Returns its error if the previous write succeeded.
    pub(in crate::models) fn record<E>(&self, written: Result<(), E>) -> Option<E> {
        let had_failed = self.failed.swap(written.is_err(), Ordering::Relaxed);
        written.err().filter(|_error| !had_failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_failure_is_reported_once_until_recovery() {
        let kept = WriteFailures::default();
        assert_eq!(kept.record::<&str>(Ok(())), None);
        assert_eq!(kept.record(Err("read-only")), Some("read-only"));
        for _minute in 0..60 {
            assert_eq!(kept.record(Err("read-only")), None);
        }
        assert_eq!(kept.record::<&str>(Ok(())), None);
        assert_eq!(kept.record(Err("full")), Some("full"));
    }
}
