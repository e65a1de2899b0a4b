//! Limits event streams: such an answer has no end and keeps its connection for as long as the
//! client wants.
//!
//! Counts the open streams of each user. Streams have their own limits. They do not count as
//! requests in flight of a tenant.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::ApiError;
use super::peer_credentials::PeerCredentials;
use crate::telemetry::log::{self, Message};

/// Most streams of all users.
const MAX_STREAMS: usize = 16;
/// Most streams of all users while the next one is not for root or the daemon's own user.
const MAX_OTHERS: usize = 14;
/// Most streams of one user. Root and the daemon's own user may have more.
const MAX_PER_USER: usize = 2;

/// Marker for an answer without an end, in the extensions of the response.
#[derive(Clone, Copy, Debug)]
pub struct EndlessBody;

/// Open event streams, counted for each user. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Streams(Arc<Mutex<HashMap<u32, usize>>>);

impl Streams {
    /// Opens a stream of `peer`. Logs a refusal.
    ///
    /// # Errors
    /// 429 when the user has reached its limit, 503 when all users together have.
    pub(super) fn open(&self, peer: PeerCredentials) -> Result<StreamSlot, ApiError> {
        let uid = peer.uid;
        let (held, total, is_shared) = {
            let mut open = self.lock();
            let (held, total) = (open.get(&uid).copied().unwrap_or(0), open.values().sum());
            match refusal(held, total, peer.is_owner()) {
                Some(is_shared) => (held, total, is_shared),
                None => {
                    *open.entry(uid).or_default() += 1;
                    return Ok(StreamSlot { streams: self.clone(), uid });
                }
            }
        };
        if let Some(suppressed) = log::admit_refusal(Message::StreamsRefused, uid) {
            tracing::warn!(
                name: Message::StreamsRefused.name(),
                uid, held, streams = total, suppressed,
                "event stream refused: too many streams are open"
            );
        }
        Err(ApiError::too_many_streams(if is_shared { total } else { held }, is_shared))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        // Changes under the lock do not panic halfway: the values of a poisoned lock are valid.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks the limits for a user with `held` of `total` streams. Returns `None` if it may open
/// another one, `Some(true)` if the total limit refuses it, and `Some(false)` if the user's limit
/// does.
fn refusal(held: usize, total: usize, is_owner: bool) -> Option<bool> {
    if !is_owner && held >= MAX_PER_USER {
        return Some(false);
    }
    (total >= if is_owner { MAX_STREAMS } else { MAX_OTHERS }).then_some(true)
}

/// Slot of one event stream, released when this is dropped.
#[derive(Debug)]
pub(super) struct StreamSlot {
    streams: Streams,
    uid: u32,
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        let mut open = self.streams.lock();
        if let Some(held) = open.get_mut(&self.uid) {
            *held -= 1;
            if *held == 0 {
                open.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32) -> PeerCredentials {
        PeerCredentials { uid, gid: uid, pid: None }
    }

    #[test]
    fn streams_are_limited_with_reserve_for_root() {
        let streams = Streams::default();
        let code = |uid| streams.open(peer(uid)).map_err(|error| error.status().as_u16());
        let mut open: Vec<_> = (4_000_000..4_000_007)
            .flat_map(|uid| [code(uid).unwrap(), code(uid).unwrap()])
            .collect();
        assert_eq!(code(4_000_000).unwrap_err(), 429);
        assert_eq!(code(4_000_008).unwrap_err(), 503);
        open.extend([code(0).unwrap(), code(0).unwrap()]);
        assert_eq!(code(0).unwrap_err(), 503);
        // The slot of a closed stream is free for others.
        open.truncate(13);
        open.push(code(4_000_008).unwrap());
        drop(open);
        assert!(streams.lock().is_empty());
        let _many: Vec<_> = (0..MAX_STREAMS).map(|_| code(0).unwrap()).collect();
    }
}
