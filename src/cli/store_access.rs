//! Access to the installed models: through the daemon, or through its store while no daemon runs.

use anyhow::Context;

use super::client::{Client, segment};
use super::owner;
use super::{Connection, NotInstalled, print_error};
use crate::api::describe_with_files;
use crate::api::wire::Package;
use crate::base::errors::chain;
use crate::config::Settings;
use crate::models::ingest::trust;
use crate::package::{EntryKey, Store};

/// Access to the installed models.
pub(super) enum StoreAccess {
    Daemon(Client),
    Store(Box<(Store, Settings)>),
}

impl StoreAccess {
    /// Connects to the daemon, or opens its store when none runs. Files that only the caller may
    /// open must be opened before; see [`StoreAccess::store`].
    pub(super) async fn open(connection: &Connection) -> anyhow::Result<Self> {
        match Self::daemon(connection).await? {
            Some(client) => Ok(Self::Daemon(client)),
            None => Self::store(connection),
        }
    }

    /// Connects to the daemon. Returns `None` when no daemon runs, so that its store must be used.
    pub(super) async fn daemon(connection: &Connection) -> anyhow::Result<Option<Client>> {
        match Client::connect(&connection.socket()?).await {
            Ok(client) => Ok(Some(client)),
            // A missing daemon is an error if the caller named the socket.
            Err(error) if error.is_unreachable() && connection.socket.is_none() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the store of the daemon. A process of root changes to the owner of the store
    /// permanently.
    pub(super) fn store(connection: &Connection) -> anyhow::Result<Self> {
        Ok(Self::Store(Box::new(open_store_of(connection)?)))
    }

    /// Returns the description of the installed model `id`.
    pub(super) async fn package(&mut self, id: &str) -> anyhow::Result<Package> {
        match self {
            Self::Daemon(client) => {
                Ok(client.get(&format!("/api/packages/{}", segment(id))).await?)
            }
            Self::Store(here) => {
                let entries = here.0.entries();
                let entry = entries.resolve(id).ok_or_else(|| NotInstalled(id.to_owned()))?;
                Ok(describe_with_files(entry, &entries, None))
            }
        }
    }
}

/// Returns the key of the installed model `id`, and the size of its files.
pub(super) fn find(store: &Store, id: &str) -> anyhow::Result<(EntryKey, u64)> {
    let entries = store.entries();
    let entry = entries.resolve(id).ok_or_else(|| NotInstalled(id.to_owned()))?;
    Ok((entry.key.clone(), entry.manifest.total_size()))
}

/// Opens the store of the daemon, which does not run, as [`open_store`] does.
pub(super) fn open_store_of(connection: &Connection) -> anyhow::Result<(Store, Settings)> {
    open_store(&connection.settings()?).context("no daemon answers, and its store cannot be used")
}

/// Opens and locks the store of `settings`. A process of root changes to the owner of the store
/// before, permanently. Returns the store with the settings whose directories this user can reach.
/// Prints the entries that cannot be read and the keys that cannot be used.
pub(super) fn open_store(settings: &Settings) -> anyhow::Result<(Store, Settings)> {
    let settings = owner::drop_root_if_needed(settings)?;
    let (store, damaged) = Store::open(&settings.memory.model_cache.directory)?;
    for entry in damaged {
        print_error(&format!("caxton: cannot read an entry of the store: {entry}"));
    }
    for error in trust::TrustRoots::from(&settings).reevaluate(&store).1 {
        print_error(&format!("caxton: cannot use a key: {}", chain(&error)));
    }
    Ok((store, settings))
}
