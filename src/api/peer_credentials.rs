//! Identifies connections and the processes at their other ends, and checks whether a process is
//! an administrator.
//!
//! The identity comes from the kernel (SO_PEERCRED) and never from the client. Every process that
//! can open the socket may request embeddings. Only root, the daemon's own user and the configured
//! administrators may change the models and the memory, read the active configuration, and export
//! packages.

use std::ffi::CString;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use crate::config::Admins;

/// Id of a connection, unique while the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionId(pub(super) u64);

impl ConnectionId {
    /// Returns an id that no other connection has.
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The process at the other end of a connection, as it was when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id, if the kernel reports it.
    pub pid: Option<i32>,
}

impl PeerCredentials {
    /// A peer without any rights.
    pub(super) const UNPRIVILEGED: Self = Self { uid: u32::MAX, gid: u32::MAX, pid: None };

    /// Returns whether the peer is root or the daemon's own user.
    pub(super) fn is_owner(&self) -> bool {
        self.uid == 0 || Uid::from_raw(self.uid) == nix::unistd::geteuid()
    }

    /// Returns whether the peer is one of `admins`, which are given as names or numbers. Blocks:
    /// reads the system's user database.
    pub(super) fn is_one_of(&self, admins: &Admins) -> bool {
        let user = User::from_uid(Uid::from_raw(self.uid)).ok().flatten();
        let is_user = |admin: &String| {
            *admin == self.uid.to_string() || user.as_ref().is_some_and(|user| user.name == *admin)
        };
        admins.users.iter().any(is_user) || self.is_in_one_of(&admins.groups, user.as_ref())
    }

    fn is_in_one_of(&self, groups: &[String], user: Option<&User>) -> bool {
        if groups.is_empty() {
            return false;
        }
        let mut member_of = vec![Gid::from_raw(self.gid)];
        if let Some(user) = user
            && let Ok(name) = CString::new(user.name.as_str())
            && let Ok(more) = getgrouplist(&name, user.gid)
        {
            member_of.extend(more);
        }
        groups.iter().any(|group| {
            let gid = match group.parse() {
                Ok(number) => Some(Gid::from_raw(number)),
                Err(_not_a_number) => Group::from_name(group).ok().flatten().map(|found| found.gid),
            };
            gid.is_some_and(|gid| member_of.contains(&gid))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admins(users: &[&str], groups: &[&str]) -> Admins {
        let own = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Admins { users: own(users), groups: own(groups) }
    }

    #[test]
    fn admins_match_by_name_id_or_group() {
        let nobody = PeerCredentials { uid: 65_534, gid: 65_534, pid: None };
        let stranger = PeerCredentials { uid: 4_000_000, gid: 4_000_000, pid: None };
        assert!(!nobody.is_owner() || nix::unistd::geteuid().as_raw() == nobody.uid);
        for (admins, nobody_is, stranger_is) in [
            (admins(&[], &[]), false, false),
            (admins(&["nobody"], &[]), true, false),
            (admins(&["65534"], &[]), true, false),
            (admins(&["4000000"], &[]), false, true),
            (admins(&[], &["nogroup"]), true, false),
            (admins(&[], &["4000000"]), false, true),
            (admins(&["root"], &["no-such-group"]), false, false),
        ] {
            assert_eq!(nobody.is_one_of(&admins), nobody_is, "{admins:?}");
            assert_eq!(stranger.is_one_of(&admins), stranger_is, "{admins:?}");
        }
    }
}
