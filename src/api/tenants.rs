//! Determines the tenant of a caller.
//!
//! The result for a user is cached for a minute, because it comes from the system's user database.
//! The embedding service enforces which models a [`Tenant`] may request, and how many requests it
//! may have in flight. The queues of the models enforce its share of the batches.
//!
//! Invariant: a reload applies from the next request. Counters of tenants that still exist are
//! kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::error::ApiError;
use super::peer_credentials::{ConnectionId, PeerCredentials};
use super::wire;
use crate::config::{Admins, Settings, TenantSettings};
use crate::service::{Tenant, TenantRequests};

/// Entry in a list of users that means all users except administrators. Only the last tenant may
/// have it.
const ALL_USERS: &str = "*";
/// Time for which the tenant of a user is cached. Groups of users can change.
const LOOKUP_TTL: Duration = Duration::from_secs(60);
/// Most users in the cache. A device has a few dozen.
const MAX_LOOKUPS: usize = 1024;

/// Tenants of the current settings.
#[derive(Debug)]
pub struct Tenants {
    settings: watch::Receiver<Arc<Settings>>,
    current: Mutex<CurrentTenants>,
}

#[derive(Debug)]
struct CurrentTenants {
    /// Settings from which `tenants` was made.
    settings: Arc<Settings>,
    tenants: Arc<[Arc<Tenant>]>,
    /// Cache of the tenants, by user id and group id.
    lookups: HashMap<(u32, u32), CachedLookup>,
}

#[derive(Debug)]
struct CachedLookup {
    tenant: Option<Arc<Tenant>>,
    until: Instant,
}

impl Tenants {
    /// Creates the tenants of `settings`, and follows its changes.
    pub fn new(settings: watch::Receiver<Arc<Settings>>) -> Self {
        let now = settings.borrow().clone();
        let current = CurrentTenants::new(now, &[]);
        Self { settings, current: Mutex::new(current) }
    }

    /// Returns whether `peer` is an administrator: root, the daemon's own user, or an administrator
    /// in the settings. Reads the user database on the blocking pool.
    pub(super) async fn is_admin(&self, peer: PeerCredentials) -> bool {
        let admins = self.settings.borrow().socket.admins.clone();
        is_admin(peer, admins).await
    }

    /// Returns the tenant of a caller: the named one if the caller is an administrator, or else the
    /// first tenant with its user or group.
    ///
    /// # Errors
    /// 403 when the caller names a tenant and is not an administrator, 400 when the named tenant
    /// does not exist.
    pub(super) async fn find(
        &self,
        peer: PeerCredentials,
        named: Option<&str>,
    ) -> Result<Option<Arc<Tenant>>, ApiError> {
        let (settings, tenants) = {
            let current = self.current();
            (Arc::clone(&current.settings), Arc::clone(&current.tenants))
        };
        if let Some(name) = named {
            if !is_admin(peer, settings.socket.admins.clone()).await {
                return Err(ApiError::tenant_not_yours(peer.uid));
            }
            let names = || Vec::from_iter(tenants.iter().map(|tenant| &*tenant.name));
            let tenant = tenants.iter().find(|tenant| &*tenant.name == name);
            return match tenant {
                Some(tenant) => Ok(Some(Arc::clone(tenant))),
                None => Err(ApiError::unknown_tenant(name, &names())),
            };
        }
        if tenants.is_empty() {
            return Ok(None);
        }
        let user = (peer.uid, peer.gid);
        let now = Instant::now();
        if let Some(known) = self.current().lookups.get(&user)
            && now < known.until
        {
            return Ok(known.tenant.clone());
        }
        let admins = settings.socket.admins.clone();
        // The user database may be slow: read it on the blocking pool.
        let tenant = tokio::task::spawn_blocking(move || {
            let is_admin = peer.is_owner() || peer.is_one_of(&admins);
            let fits = |tenant: &&Arc<Tenant>| {
                has_all_users(tenant) && !is_admin || peer.is_one_of(&members(tenant))
            };
            tenants.iter().find(fits).cloned()
        })
        .await?;
        let mut current = self.current();
        // Do not cache a tenant of settings that were replaced meanwhile.
        if Arc::ptr_eq(&current.settings, &settings) {
            if current.lookups.len() >= MAX_LOOKUPS {
                current.lookups.clear();
            }
            let known = CachedLookup { tenant: tenant.clone(), until: now + LOOKUP_TTL };
            current.lookups.insert(user, known);
        }
        Ok(tenant)
    }

    /// Returns the tenants for which `is_shown` returns true, in the order of the settings.
    pub(super) fn view(&self, is_shown: impl Fn(&Tenant) -> bool) -> Vec<wire::tenants::Tenant> {
        let current = self.current();
        let default = current.settings.default_model();
        let shown = current.tenants.iter().filter(|tenant| is_shown(tenant));
        shown.map(|tenant| describe(tenant, default)).collect()
    }

    /// Locks and returns the current state. Rebuilds it first if the settings were reloaded.
    fn current(&self) -> MutexGuard<'_, CurrentTenants> {
        // A panic under the lock leaves either the old state or the complete new one.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // Read the settings under the lock. Otherwise a slow thread could replace the state with an
        // older one.
        let settings = self.settings.borrow().clone();
        if !Arc::ptr_eq(&current.settings, &settings) {
            *current = CurrentTenants::new(settings, &current.tenants);
        }
        current
    }
}

async fn is_admin(peer: PeerCredentials, admins: Admins) -> bool {
    if peer.is_owner() {
        return true;
    }
    if admins.users.is_empty() && admins.groups.is_empty() {
        return false;
    }
    let lookup = tokio::task::spawn_blocking(move || peer.is_one_of(&admins)).await;
    // If the lookup fails, the caller is not an administrator. The conversion logs the failure.
    lookup.map_err(ApiError::from).is_ok_and(|is_admin| is_admin)
}

impl CurrentTenants {
    fn new(settings: Arc<Settings>, before: &[Arc<Tenant>]) -> Self {
        let tenant = |settings: &TenantSettings| {
            let same = before.iter().find(|tenant| tenant.settings.name == settings.name);
            // The flow of a tenant must be different from the flow of every connection.
            Arc::new(match same {
                Some(tenant) => tenant.with_settings(settings.clone()),
                None => Tenant::new(settings.clone(), ConnectionId::next().0),
            })
        };
        let tenants = settings.tenants.iter().map(tenant).collect();
        Self { settings, tenants, lookups: HashMap::new() }
    }
}

/// Returns whether all users except administrators belong to this tenant.
fn has_all_users(tenant: &Tenant) -> bool {
    tenant.settings.users.iter().any(|user| user == ALL_USERS)
}

fn members(tenant: &Tenant) -> Admins {
    let TenantSettings { users, groups, .. } = &tenant.settings;
    Admins { users: users.clone(), groups: groups.clone() }
}

/// Describes a tenant and the counts of its requests.
fn describe(tenant: &Tenant, default_model: &str) -> wire::tenants::Tenant {
    let TenantSettings { model, allowed_models, priority, max_concurrent, .. } = &tenant.settings;
    let TenantRequests { total, in_flight, refused } = tenant.requests();
    wire::tenants::Tenant {
        name: tenant.settings.name.clone(),
        model: model.as_deref().unwrap_or(default_model).to_owned(),
        allowed_models: allowed_models.clone(),
        priority: *priority,
        dedicated_queue: tenant.settings.dedicated_queue,
        max_concurrent: *max_concurrent,
        requests: total,
        in_flight,
        refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::InFlightGuard;

    fn settings(tenants: Vec<TenantSettings>) -> Arc<Settings> {
        Arc::new(Settings { tenants, ..Settings::default() })
    }

    fn tenant(name: &str, users: &[u32], max_concurrent: Option<usize>) -> TenantSettings {
        let users = users.iter().map(ToString::to_string).collect();
        TenantSettings { name: name.to_owned(), users, max_concurrent, ..Default::default() }
    }

    /// Returns a user without a name in a group without a name.
    fn peer(uid: u32) -> PeerCredentials {
        PeerCredentials { uid, gid: 4_000_000, pid: None }
    }

    async fn name(
        tenants: &Tenants,
        uid: u32,
        named: Option<&str>,
    ) -> Result<Option<String>, ApiError> {
        let found = tenants.find(peer(uid), named).await?;
        Ok(found.map(|tenant| tenant.settings.name.clone()))
    }

    #[tokio::test]
    async fn first_matching_tenant_applies_until_reload() {
        let by_group =
            TenantSettings { groups: vec!["4000000".to_owned()], ..tenant("c", &[], None) };
        let list =
            vec![tenant("a", &[4_000_001], None), tenant("b", &[4_000_001, 4_000_002], None)];
        let (send, receive) = watch::channel(settings(list.clone()));
        let tenants = Tenants::new(receive);
        // The second round reads the cache.
        for _ in 0..2 {
            for (uid, expected) in
                [(4_000_001, Some("a")), (4_000_002, Some("b")), (4_000_003, None)]
            {
                assert_eq!(name(&tenants, uid, None).await.unwrap().as_deref(), expected, "{uid}");
            }
        }
        send.send_replace(settings([list, vec![by_group]].concat()));
        assert_eq!(name(&tenants, 4_000_003, None).await.unwrap().as_deref(), Some("c"));
        send.send_replace(settings(Vec::new()));
        assert_eq!(name(&tenants, 4_000_001, None).await, Ok(None));
    }

    #[tokio::test]
    async fn star_matches_unlisted_users_except_admins() {
        let everybody = TenantSettings {
            name: "rest".to_owned(),
            users: vec![ALL_USERS.to_owned()],
            ..Default::default()
        };
        let mut settings = Settings {
            tenants: vec![tenant("a", &[4_000_001], None), everybody],
            ..Settings::default()
        };
        settings.socket.admins.users = vec!["4000003".to_owned()];
        let (_send, receive) = watch::channel(Arc::new(settings));
        let tenants = Tenants::new(receive);
        for (uid, expected) in
            [(4_000_001, Some("a")), (4_000_002, Some("rest")), (4_000_003, None), (0, None)]
        {
            assert_eq!(name(&tenants, uid, None).await.unwrap().as_deref(), expected, "{uid}");
        }
    }

    #[tokio::test]
    async fn only_admins_may_name_a_tenant() {
        let mut with_admin =
            Settings { tenants: vec![tenant("a", &[], None)], ..Settings::default() };
        with_admin.socket.admins.users = vec!["4000001".to_owned()];
        let (_send, receive) = watch::channel(Arc::new(with_admin));
        let tenants = Tenants::new(receive);
        for trusted in [0, 4_000_001] {
            assert_eq!(name(&tenants, trusted, Some("a")).await.unwrap().as_deref(), Some("a"));
            let unknown = name(&tenants, trusted, Some("b")).await;
            assert_eq!(unknown, Err(ApiError::unknown_tenant("b", &["a"])));
        }
        let refused = name(&tenants, 4_000_002, Some("a")).await;
        assert_eq!(refused, Err(ApiError::tenant_not_yours(4_000_002)));
    }

    #[tokio::test]
    async fn in_flight_limit_survives_reload() {
        let (send, receive) = watch::channel(settings(vec![tenant("a", &[7], Some(2))]));
        let tenants = Tenants::new(receive);
        let find = || async { tenants.find(peer(7), None).await.unwrap().unwrap() };
        let first = InFlightGuard::begin(find().await).unwrap();
        let second = InFlightGuard::begin(find().await).unwrap();
        InFlightGuard::begin(find().await).unwrap_err();
        drop(first);
        let third = InFlightGuard::begin(find().await).unwrap();
        let view = || tenants.view(|_| true).remove(0);
        assert_eq!((view().requests, view().in_flight, view().refused), (4, 2, 1));
        send.send_replace(settings(vec![tenant("b", &[8], None), tenant("a", &[7], Some(1))]));
        InFlightGuard::begin(find().await).unwrap_err();
        drop((second, third));
        let last = InFlightGuard::begin(find().await).unwrap();
        let seen = tenants.view(|_| true);
        let seen: Vec<_> =
            seen.iter().map(|t| (t.name.as_str(), t.requests, t.in_flight, t.refused)).collect();
        assert_eq!(seen, [("b", 0, 0, 0), ("a", 6, 1, 2)]);
        drop(last);
    }

    #[test]
    fn user_cache_is_bounded() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (_send, receive) = watch::channel(settings(vec![tenant("a", &[7], None)]));
        let tenants = Tenants::new(receive);
        let most = u32::try_from(MAX_LOOKUPS).unwrap();
        let now = Instant::now();
        for uid in 0..most {
            let known = CachedLookup { tenant: None, until: now };
            tenants.current().lookups.insert((uid, 0), known);
        }
        runtime.block_on(async { tenants.find(peer(7), None).await.unwrap().unwrap() });
        assert_eq!(tenants.current().lookups.len(), 1);
    }
}
