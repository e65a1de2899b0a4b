//! A tenant: its settings, and the count of its requests in flight.
//!
//! Invariant: a tenant never has more requests in flight than its limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::error::TenantOverloaded;
use crate::base::units::milliseconds;
use crate::config::TenantSettings;
use crate::models::MAX_RETRY_AFTER;

/// Retry time before the first request of a tenant was answered, while the duration of its requests
/// is unknown.
const UNKNOWN_RETRY_AFTER: Duration = Duration::from_secs(1);

/// One tenant.
#[derive(Debug)]
pub struct Tenant {
    /// Name of the tenant.
    pub name: Arc<str>,
    /// Settings of the tenant.
    pub settings: TenantSettings,
    /// Flow of the tenant's requests in fair scheduling, whichever connections they use.
    flow: u64,
    counts: Arc<TenantCounts>,
}

#[derive(Debug, Default)]
struct TenantCounts {
    requests: AtomicU64,
    in_flight: AtomicUsize,
    refused: AtomicU64,
    /// Smoothed duration of a request in milliseconds, with more weight on later ones; 0 before the
    /// first.
    mean_ms: AtomicU64,
}

/// Requests of a tenant since the start of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenantRequests {
    /// All requests.
    pub total: u64,
    /// Requests in flight now.
    pub in_flight: usize,
    /// Refused requests.
    pub refused: u64,
}

impl Tenant {
    /// Creates a tenant. `flow` must be different from that of every connection and of every other
    /// tenant.
    pub fn new(settings: TenantSettings, flow: u64) -> Self {
        let name = settings.name.as_str().into();
        Self { name, settings, flow, counts: Arc::default() }
    }

    /// Returns this tenant with other settings. Its counters and its flow are kept.
    #[must_use]
    pub fn with_settings(&self, settings: TenantSettings) -> Self {
        let counts = Arc::clone(&self.counts);
        Self { counts, ..Self::new(settings, self.flow) }
    }

    /// Returns the tenant's flow in fair scheduling, which replaces the flows of its connections.
    pub fn flow(&self) -> u64 {
        self.flow
    }

    /// Returns the counters of the tenant.
    pub fn requests(&self) -> TenantRequests {
        let TenantCounts { requests, in_flight, refused, .. } = &*self.counts;
        TenantRequests {
            total: requests.load(Ordering::Relaxed),
            in_flight: in_flight.load(Ordering::Relaxed),
            refused: refused.load(Ordering::Relaxed),
        }
    }

    /// Counts a request that was refused.
    pub(super) fn count_refusal(&self) {
        self.counts.refused.fetch_add(1, Ordering::Relaxed);
    }
}

/// A request of a tenant, which is in flight until this is dropped.
#[derive(Debug)]
pub struct InFlightGuard {
    tenant: Arc<Tenant>,
    began: Instant,
}

impl InFlightGuard {
    /// Begins a request of `tenant`.
    ///
    /// # Errors
    /// When it has as many requests in flight as its limit.
    pub fn begin(tenant: Arc<Tenant>) -> Result<Self, TenantOverloaded> {
        let TenantCounts { requests, in_flight, mean_ms, .. } = &*tenant.counts;
        requests.fetch_add(1, Ordering::Relaxed);
        let most = tenant.settings.max_concurrent.unwrap_or(usize::MAX);
        let more = |now: usize| (now < most).then_some(now + 1);
        if in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            tenant.count_refusal();
            let retry_after = estimate_wait(mean_ms.load(Ordering::Relaxed), most);
            return Err(TenantOverloaded { tenant: tenant.name.to_string(), most, retry_after });
        }
        Ok(Self { tenant, began: Instant::now() })
    }

    /// Returns the tenant of the request.
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        let TenantCounts { in_flight, mean_ms, .. } = &*self.tenant.counts;
        let took = milliseconds(self.began.elapsed()).max(1);
        // Two requests that end at once may overwrite each other's update. The mean is only an
        // estimate.
        let before = mean_ms.load(Ordering::Relaxed);
        mean_ms.store(smooth(before, took), Ordering::Relaxed);
        in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns the smoothed duration after a request that took `took`. One eighth of the difference is
/// added, as in TCP's smoothed round-trip time
/// (<https://www.rfc-editor.org/rfc/rfc6298#section-2>).
fn smooth(before: u64, took: u64) -> u64 {
    if before == 0 { took } else { (before - before / 8 + took / 8).max(1) }
}

/// Estimates the time until one of `most` requests is finished if each takes `mean_ms`.
fn estimate_wait(mean_ms: u64, most: usize) -> Duration {
    if mean_ms == 0 {
        return UNKNOWN_RETRY_AFTER;
    }
    let most = u64::try_from(most).unwrap_or(u64::MAX).max(1);
    Duration::from_millis(mean_ms.div_ceil(most)).min(MAX_RETRY_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_delay_is_mean_duration_over_in_flight() {
        assert_eq!(estimate_wait(0, 4), UNKNOWN_RETRY_AFTER);
        assert_eq!(estimate_wait(100, 4), Duration::from_millis(25));
        assert_eq!(estimate_wait(1, 4), Duration::from_millis(1));
        assert_eq!(estimate_wait(u64::MAX, 1), MAX_RETRY_AFTER);
        assert_eq!(smooth(0, 80), 80);
        assert_eq!(smooth(80, 160), 90);
        assert_eq!(smooth(80, 0), 70);
        let settled = (0..200).fold(1, |before, _| smooth(before, 800));
        assert!((790..=800).contains(&settled), "{settled}");
    }
}
