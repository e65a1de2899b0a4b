//! Limits the bytes that requests and answers in flight hold, with fair shares for users.
//!
//! A request is charged before its body is read and again before its vectors are computed. It holds
//! its charge until the last byte of its answer was written. A request that does not fit is
//! refused. It never waits, because requests that wait while they hold a charge could block each
//! other.
//!
//! The budget is one eighth of the current memory limit. A user may hold as many bytes as then
//! remain for the others: a single user gets half, two users get a third each. So some bytes are
//! always free for a new user (dynamic thresholds, Choudhury and Hahne 1998,
//! <https://doi.org/10.1109/90.664262>).
//!
//! Invariant: requests hold at most the budget. The exceptions are requests that are the only one
//! of their user: a small one is always admitted, and a large one while the other users hold almost
//! nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::error::BudgetExceeded;
use crate::base::units::Bytes;
use crate::config::Settings;
use crate::memory::monitor::Reading;
use crate::telemetry::log::{self, Message};

/// Divisor of the memory limit that gives the budget.
const SHARE_OF_LIMIT: u64 = 8;
/// Factor for the length of a body that gives its charge: once for the bytes that arrive and once
/// for the parsed values. Later the first part covers the tokens.
pub const BODY_FACTOR: u64 = 2;
/// Bytes charged for each number of a vector: 4 as it is computed, 4 in its row, and 14 as text.
const NUMBER_BYTES: u64 = 22;
/// Bytes charged for each number of a vector that is only compared and not written.
const COMPARED_NUMBER_BYTES: u64 = 8;
/// Number of largest bodies, with their parsed values, that the smallest budget can hold: one for
/// each of two users.
const MIN_BODIES: u64 = 2;
/// Length of a request that is always admitted if it is the only one of its user.
const SMALL_REQUEST: u64 = 64 << 10;
/// Divisor of the budget: a large request that is the only one of its user is admitted while the
/// other users hold at most this part.
const IDLE_DIVISOR: u64 = 8;

/// The budget. Clones share it.
#[derive(Clone, Debug)]
pub struct Budget(Arc<SharedBudget>);

#[derive(Debug)]
struct SharedBudget {
    readings: watch::Receiver<Reading>,
    settings: watch::Receiver<Arc<Settings>>,
    held_bytes: Mutex<HeldBytes>,
}

#[derive(Debug, Default)]
struct HeldBytes {
    held: HashMap<u32, u64>,
    total: u64,
}

impl HeldBytes {
    fn held(&self, uid: u32) -> u64 {
        self.held.get(&uid).copied().unwrap_or(0)
    }

    /// Returns whether a request of `uid` that holds `own` bytes may hold `more` bytes of a budget
    /// of `size` bytes.
    fn has_space(&self, uid: u32, own: u64, more: u64, size: u64) -> bool {
        let held = self.held(uid);
        let (after, total) = (held.saturating_add(more), self.total.saturating_add(more));
        // Dynamic threshold: a user may hold at most as many bytes as then remain free.
        if after <= size.saturating_sub(total) {
            return true;
        }
        // The user's only bytes are those of this request.
        let is_only = held == own;
        is_only && (after <= SMALL_REQUEST || self.total - held <= size / IDLE_DIVISOR)
    }

    fn add(&mut self, uid: u32, bytes: u64) {
        if bytes > 0 {
            *self.held.entry(uid).or_default() += bytes;
            self.total += bytes;
        }
    }

    fn subtract(&mut self, uid: u32, bytes: u64) {
        if let Some(held) = self.held.get_mut(&uid) {
            *held = held.saturating_sub(bytes);
            self.total = self.total.saturating_sub(bytes);
            if *held == 0 {
                self.held.remove(&uid);
            }
        }
    }
}

impl Budget {
    /// Creates a budget that follows the memory limits of `readings` and the largest body of
    /// `settings`.
    pub fn new(
        readings: watch::Receiver<Reading>,
        settings: watch::Receiver<Arc<Settings>>,
    ) -> Self {
        Self(Arc::new(SharedBudget { readings, settings, held_bytes: Mutex::default() }))
    }

    /// Returns the size of the budget in bytes, for all requests in flight.
    pub fn size(&self) -> u64 {
        let reading = self.0.readings.borrow();
        let limits = reading.sample.limits.iter().map(|limit| limit.bytes.0);
        let limit = limits.fold(reading.sample.machine.total.0, u64::min);
        let largest = self.0.settings.borrow().socket.max_body.0.saturating_mul(BODY_FACTOR);
        (limit / SHARE_OF_LIMIT).max(largest.saturating_mul(MIN_BODIES))
    }

    /// Returns the bytes that all requests in flight hold.
    pub fn held(&self) -> u64 {
        self.lock().total
    }

    /// Creates the charge of a request of `uid`, with 0 bytes at first.
    pub fn request(&self, uid: u32) -> BudgetCharge {
        BudgetCharge { budget: self.clone(), uid, bytes: AtomicU64::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, HeldBytes> {
        // Changes under the lock do not panic halfway: the values of a poisoned lock are valid.
        self.0.held_bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that one request holds of the budget, released when this is dropped.
#[derive(Debug)]
pub struct BudgetCharge {
    budget: Budget,
    uid: u32,
    /// Changed only under the lock of the budget.
    bytes: AtomicU64,
}

impl BudgetCharge {
    /// Charges `more` bytes. Logs a refusal.
    ///
    /// # Errors
    /// When they do not fit. The charge then stays as it was.
    pub fn grow(&self, more: u64) -> Result<(), BudgetExceeded> {
        let size = self.budget.size();
        let mut held_bytes = self.budget.lock();
        let own = self.bytes.load(Ordering::Relaxed);
        if held_bytes.has_space(self.uid, own, more, size) {
            held_bytes.add(self.uid, more);
            self.bytes.store(own.saturating_add(more), Ordering::Relaxed);
            return Ok(());
        }
        let held = held_bytes.held(self.uid);
        drop(held_bytes);
        let uid = self.uid;
        if let Some(suppressed) = log::admit_refusal(Message::BytesRefused, uid) {
            tracing::warn!(
                name: Message::BytesRefused.name(),
                uid, held_bytes = held, limit_bytes = size, asked_bytes = more, suppressed,
                "request refused: the requests in flight of the user hold too many bytes"
            );
        }
        Err(BudgetExceeded { held: Bytes(held), size: Bytes(size) })
    }

    /// Charges `numbers` numbers of vectors, and their text in JSON unless they are only
    /// `compared`.
    ///
    /// # Errors
    /// As [`Self::grow`].
    pub fn grow_numbers(&self, numbers: usize, compared: bool) -> Result<(), BudgetExceeded> {
        let each = if compared { COMPARED_NUMBER_BYTES } else { NUMBER_BYTES };
        self.grow(u64::try_from(numbers).unwrap_or(u64::MAX).saturating_mul(each))
    }
}

impl Drop for BudgetCharge {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        if bytes > 0 {
            self.budget.lock().subtract(self.uid, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::sample::{GroupLimit, Sample};

    fn budget(limit: u64, max_body: u64) -> Budget {
        let limit =
            GroupLimit { bytes: Bytes(limit), unreclaimable: Bytes(0), file: "a limit".into() };
        let sample = Sample { limits: vec![limit], ..Sample::default() };
        let (_, readings) = watch::channel(Reading { sample, ..Reading::default() });
        let mut settings = Settings::default();
        settings.socket.max_body = Bytes(max_body);
        Budget::new(readings, watch::channel(Arc::new(settings)).1)
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn budget_is_eighth_or_four_largest_bodies() {
        assert_eq!(budget(512 * MIB, 16 * MIB).size(), 64 * MIB);
        assert_eq!(budget(64 * MIB, 16 * MIB).size(), 64 * MIB);
        assert_eq!(budget(8192 * MIB, 16 * MIB).size(), 1024 * MIB);
        // One user sends the largest body, and another does so at the same time.
        let budget = budget(64 * MIB, 16 * MIB);
        let (first, second) = (budget.request(1), budget.request(2));
        first.grow(32 * MIB).unwrap();
        second.grow(16 * MIB).unwrap();
        let refused = first.grow(MIB).unwrap_err();
        assert_eq!(refused, BudgetExceeded { held: Bytes(32 * MIB), size: Bytes(64 * MIB) });
        drop(first);
        second.grow(8 * MIB).unwrap();
        drop(second);
        assert_eq!((budget.held(), budget.lock().held.len()), (0, 0));
    }

    #[test]
    fn compared_numbers_are_charged_without_text() {
        let budget = budget(512 * MIB, MIB);
        let (written, compared) = (budget.request(1), budget.request(2));
        written.grow_numbers(1000, false).unwrap();
        assert_eq!(budget.held(), 22_000);
        compared.grow_numbers(1000, true).unwrap();
        assert_eq!(budget.held(), 22_000 + 8_000);
    }

    #[test]
    fn one_user_gets_half_of_the_budget() {
        let budget = budget(512 * MIB, 16 * MIB);
        let all = Vec::from_iter((0..200).map(|_| budget.request(1)));
        let fine = all.iter().filter(|request| request.grow(4 * MIB).is_ok()).count();
        assert_eq!(fine, 8, "half of the budget");
        let other = budget.request(2);
        other.grow(16 * MIB).unwrap();
        // A third user gets half of the remaining bytes, and a small request always fits.
        budget.request(3).grow(8 * MIB).unwrap();
        for uid in 4..100 {
            budget.request(uid).grow(SMALL_REQUEST).unwrap();
        }
    }

    #[test]
    fn oversized_request_is_admitted_alone() {
        let budget = budget(512 * MIB, 16 * MIB);
        let (large, small) = (budget.request(1), budget.request(2));
        small.grow(8 * MIB).unwrap();
        large.grow(200 * MIB).unwrap();
        assert!(budget.request(1).grow(1).is_err(), "it is not alone then");
        assert!(budget.request(3).grow(SMALL_REQUEST + 1).is_err());
        budget.request(3).grow(SMALL_REQUEST).unwrap();
        drop((large, small));
        let busy = budget.request(2);
        busy.grow(9 * MIB).unwrap();
        assert!(budget.request(1).grow(200 * MIB).is_err());
    }

    proptest! {
        #[test]
        fn charges_are_bounded_and_returned(
            steps in prop::collection::vec((0_u32..4, 0_u64..40, any::<bool>()), 0..100),
        ) {
            let budget = budget(512 * MIB, 16 * MIB);
            let size = budget.size();
            let mut requests: Vec<BudgetCharge> = Vec::new();
            for (uid, mib, drops) in steps {
                if drops && !requests.is_empty() {
                    requests.remove(uid as usize % requests.len());
                    continue;
                }
                let request = budget.request(uid);
                let is_only = budget.lock().held(uid) == 0;
                if request.grow(mib * MIB).is_ok() {
                    let total = budget.held();
                    let free = size.saturating_sub(total);
                    prop_assert!(is_only || budget.lock().held(uid) <= free);
                    requests.push(request);
                }
            }
            drop(requests);
            prop_assert_eq!((budget.held(), budget.lock().held.len()), (0, 0));
        }
    }
}
