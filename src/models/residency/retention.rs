//! The time for which the users of a model need it in memory.
//!
//! Each user has a need of their own, which lasts for a time after their last use. The model may be
//! unloaded when the needs of all users are over. So a user who wants it unloaded does not take it
//! from the others, and a user who wants it to stay keeps it no longer than [`MAX_KEEP_ALIVE`].
//! Memory pressure ignores needs.
//!
//! Pure, apart from the lock of [`LastUses`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Users of one model that are distinguished. Further ones count as one user without a wish.
const MAX_USERS: usize = 64;
/// Longest need of a user who is not an administrator, after their last use.
const MAX_KEEP_ALIVE: Duration = Duration::from_secs(24 * 60 * 60);

/// Identity of a user of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModelUser(u64);

impl ModelUser {
    /// Returns the user of a process.
    pub fn of_uid(uid: u32) -> Self {
        Self(u64::from(uid))
    }

    /// Returns the user for a tenant of a trusted client, by a number that belongs to this tenant
    /// alone.
    pub fn of_tenant(number: u64) -> Self {
        Self(1 << 63 | number)
    }
}

/// Time for which a client wants a model to stay after each use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    /// This time; zero unloads the model at once.
    For(Duration),
    /// No limit: the model stays until its memory is needed.
    Forever,
}

/// Time for which a user wants a model to stay after each use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAliveRequest {
    /// User who sent the wish.
    pub user: ModelUser,
    /// Whether the user is an administrator. The wish of an administrator applies to all users.
    pub is_admin: bool,
    /// Requested time.
    pub keep_alive: KeepAlive,
}

/// Time of each user's last use of a model since it was loaded.
#[derive(Debug, Default)]
pub(in crate::models) struct LastUses(Mutex<LastUseTimes>);

#[derive(Debug, Default)]
struct LastUseTimes {
    /// Last use by anybody, with or without a known user.
    any: Option<Instant>,
    last: BTreeMap<ModelUser, Instant>,
    /// Whether there were more users than are distinguished.
    has_other_users: bool,
}

impl LastUses {
    /// Records that the model is used at `now`. Leases call this, and the manager.
    pub(in crate::models) fn touch(&self, now: Instant) {
        let mut used = self.lock();
        used.any = used.any.max(Some(now));
    }

    /// Returns the time of the last recorded use.
    pub(in crate::models) fn last_use(&self) -> Option<Instant> {
        self.lock().any
    }

    /// Records that `user` uses the model at `now`.
    pub(in crate::models) fn record(&self, user: ModelUser, now: Instant) {
        let mut used = self.lock();
        if used.last.len() >= MAX_USERS && !used.last.contains_key(&user) {
            used.has_other_users = true;
            let oldest = used.last.iter().min_by_key(|(_, last)| **last).map(|(user, _)| *user);
            oldest.and_then(|oldest| used.last.remove(&oldest));
        }
        used.last.insert(user, now);
    }

    fn lock(&self) -> MutexGuard<'_, LastUseTimes> {
        // Each change leaves the times consistent, so that a poisoned lock can be used.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Last need of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::models) struct Retention {
    /// End of the need.
    pub(in crate::models) until: Instant,
    /// Duration after a use.
    pub(in crate::models) time: Duration,
    /// Whether a user set it; otherwise it is from the settings.
    pub(in crate::models) is_requested: bool,
    /// Whether it is shorter than the time in the settings or of an administrator.
    pub(in crate::models) is_shortened: bool,
}

/// Needs of the users of a resident model; dropped when it is unloaded.
#[derive(Debug, Default)]
pub(in crate::models) struct RetentionTracker {
    uses: Arc<LastUses>,
    /// Last `keep_alive` of an administrator; applies to all users.
    keep_alive_of_all: Option<KeepAlive>,
    /// Last `keep_alive` of each other user.
    keep_alive_by_user: BTreeMap<ModelUser, KeepAlive>,
}

impl RetentionTracker {
    /// Returns the record of uses.
    pub(in crate::models) fn uses(&self) -> &Arc<LastUses> {
        &self.uses
    }

    /// Replaces the previous wish of the same user. The wish of an administrator replaces all
    /// wishes.
    pub(in crate::models) fn set_keep_alive(&mut self, wish: KeepAliveRequest) {
        if wish.is_admin {
            self.keep_alive_of_all = Some(wish.keep_alive);
            self.keep_alive_by_user.clear();
        } else if self.keep_alive_by_user.len() < MAX_USERS
            || self.keep_alive_by_user.contains_key(&wish.user)
        {
            self.keep_alive_by_user.insert(wish.user, wish.keep_alive);
        }
    }

    /// Returns the need that ends last. `max_idle_time` is that of the settings, and `used` is the
    /// last use of the model by any user. Returns `None` when a need does not end.
    pub(in crate::models) fn latest(
        &self,
        used: Instant,
        max_idle_time: Option<Duration>,
    ) -> Option<Retention> {
        let rule = match self.keep_alive_of_all {
            None => max_idle_time,
            Some(KeepAlive::For(time)) => Some(time),
            Some(KeepAlive::Forever) => None,
        };
        if rule.is_none() && self.keep_alive_by_user.is_empty() {
            return None;
        }
        let by_rule = |last| {
            rule.map(|time| Retention {
                until: after(last, time),
                time,
                is_requested: self.keep_alive_of_all.is_some(),
                is_shortened: false,
            })
        };
        let by_wish = |last, wish: &KeepAlive| {
            let time = match wish {
                KeepAlive::For(time) => (*time).min(MAX_KEEP_ALIVE),
                KeepAlive::Forever => MAX_KEEP_ALIVE,
            };
            let is_cut_short = rule.is_none_or(|rule| time < rule);
            Some(Retention {
                until: after(last, time),
                time,
                is_requested: true,
                is_shortened: is_cut_short,
            })
        };
        let known = self.uses.lock();
        // A long request counts as use until it ends. Only `used` shows its end, and it belongs to
        // the latest user.
        let latest = known.last.iter().max_by_key(|(_, last)| **last).map(|(user, _)| *user);
        let unknown = (known.last.is_empty() || known.has_other_users).then(|| by_rule(used));
        let needs = known.last.iter().map(|(user, last)| {
            let last = if latest == Some(*user) { used.max(*last) } else { *last };
            self.keep_alive_by_user
                .get(user)
                .map_or_else(|| by_rule(last), |wish| by_wish(last, wish))
        });
        let mut latest: Option<Retention> = None;
        for need in unknown.into_iter().chain(needs) {
            // A need that does not end outlasts all others.
            let need = need?;
            latest = latest.filter(|latest| latest.until >= need.until).or(Some(need));
        }
        latest
    }
}

/// Returns the time `time` after `last`, at most ten years later so that the clock does not
/// overflow.
fn after(last: Instant, time: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
    last.checked_add(time.min(FAR)).unwrap_or(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);
    const DAY: Duration = MAX_KEEP_ALIVE;

    fn member(uid: u32, keep_alive: KeepAlive) -> KeepAliveRequest {
        KeepAliveRequest { user: ModelUser::of_uid(uid), is_admin: false, keep_alive }
    }

    /// Returns the time from `used` until the model may be unloaded.
    fn stays(needs: &RetentionTracker, used: Instant, rule: Option<Duration>) -> Option<Duration> {
        needs.latest(used, rule).map(|need| need.until.saturating_duration_since(used))
    }

    #[test]
    fn keep_alive_affects_only_its_user() {
        let (mut needs, now) = (RetentionTracker::default(), Instant::now());
        needs.uses().record(ModelUser::of_uid(1), now);
        let nothing = KeepAlive::For(Duration::ZERO);
        needs.set_keep_alive(member(1, nothing));
        let alone = needs.latest(now, Some(HOUR)).unwrap();
        assert_eq!((alone.until, alone.is_requested, alone.is_shortened), (now, true, true));
        // Another user uses it, and has the need of the settings.
        needs.uses().record(ModelUser::of_uid(2), now);
        assert_eq!(stays(&needs, now, Some(HOUR)), Some(HOUR));
        assert_eq!(stays(&needs, now, None), None);
        // The need ends with the wish of the second user, not with that of the first.
        needs.set_keep_alive(member(2, KeepAlive::For(HOUR * 2)));
        assert_eq!(stays(&needs, now, None), Some(HOUR * 2));
    }

    #[test]
    fn endless_keep_alive_lasts_one_day() {
        let (mut needs, start) = (RetentionTracker::default(), Instant::now());
        needs.uses().record(ModelUser::of_uid(1), start);
        needs.set_keep_alive(member(1, KeepAlive::Forever));
        assert_eq!(stays(&needs, start, Some(HOUR)), Some(DAY));
        needs.uses().record(ModelUser::of_uid(2), start + HOUR * 23);
        assert_eq!(stays(&needs, start + HOUR * 23, Some(HOUR / 2)), Some(HOUR));
        needs.set_keep_alive(member(1, KeepAlive::For(Duration::MAX)));
        assert_eq!(stays(&needs, start + HOUR * 23, Some(HOUR / 2)), Some(HOUR));
    }

    #[test]
    fn admin_keep_alive_applies_until_user_overrides() {
        let (mut needs, now) = (RetentionTracker::default(), Instant::now());
        needs.uses().record(ModelUser::of_uid(1), now);
        needs.set_keep_alive(member(1, KeepAlive::For(HOUR)));
        let of_all = |keep_alive| KeepAliveRequest {
            user: ModelUser::of_uid(0),
            is_admin: true,
            keep_alive,
        };
        needs.set_keep_alive(of_all(KeepAlive::For(Duration::ZERO)));
        let need = needs.latest(now, None).unwrap();
        assert_eq!((need.until, need.is_requested, need.is_shortened), (now, true, false));
        needs.set_keep_alive(of_all(KeepAlive::Forever));
        assert_eq!(stays(&needs, now, Some(HOUR)), None);
        needs.set_keep_alive(member(1, KeepAlive::For(HOUR)));
        assert_eq!(stays(&needs, now, Some(HOUR * 9)), Some(HOUR));
    }

    #[test]
    fn unused_model_stays_for_configured_time() {
        let (mut needs, now) = (RetentionTracker::default(), Instant::now());
        needs.set_keep_alive(member(1, KeepAlive::For(Duration::ZERO)));
        assert_eq!(stays(&needs, now, Some(HOUR)), Some(HOUR));
    }

    #[test]
    fn last_use_never_goes_back() {
        let (uses, now) = (LastUses::default(), Instant::now());
        assert_eq!(uses.last_use(), None);
        uses.touch(now + HOUR);
        uses.touch(now);
        assert_eq!(uses.last_use(), Some(now + HOUR));
    }

    #[test]
    fn users_and_keep_alives_are_bounded() {
        let (mut needs, now) = (RetentionTracker::default(), Instant::now());
        for uid in 0..1_000 {
            needs.uses().record(ModelUser::of_uid(uid), now + Duration::from_secs(uid.into()));
            needs.set_keep_alive(member(uid, KeepAlive::For(Duration::ZERO)));
        }
        assert_eq!(needs.keep_alive_by_user.len(), MAX_USERS);
        assert_eq!(needs.uses.0.lock().unwrap().last.len(), MAX_USERS);
        assert_eq!(stays(&needs, now + HOUR, Some(HOUR)), Some(HOUR));
    }
}
