//! `caxton model rollback`: changes the version that an id resolves to, in the daemon or in its
//! store.

use std::io::Write;

use clap::Args;

use super::client::segment;
use super::store_access::StoreAccess;
use super::{Connection, terminal};
use crate::api::describe;
use crate::api::wire::rollback::{RollbackRequest, RollbackResponse};
use crate::base::printable;
use crate::package;

/// Make an id resolve to another version.
#[derive(Debug, Args)]
pub(super) struct Rollback {
    /// Model id, without a version.
    id: String,
    /// Version, or the beginning of a revision, to which the id resolves [default: the version
    /// before].
    #[arg(long, value_name = "VERSION")]
    to: Option<String>,
    /// Make the id resolve to its highest version again.
    #[arg(long, conflicts_with = "to")]
    clear: bool,
}

impl Rollback {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let RollbackResponse { from, to } = match StoreAccess::open(connection).await? {
            StoreAccess::Daemon(mut client) => {
                let path = format!("/api/packages/{}/rollback", segment(&self.id));
                client.post(&path, &RollbackRequest { to: self.to, clear: self.clear }).await?
            }
            StoreAccess::Store(here) => {
                let rollback = match self.to {
                    Some(version) => package::RollbackTarget::To(version),
                    None if self.clear => package::RollbackTarget::Clear,
                    None => package::RollbackTarget::Previous,
                };
                let store = &here.0;
                let package::RollbackResult { from, to } = store.roll_back(&self.id, &rollback)?;
                let entries = store.entries();
                let [from, to] = [from, to].map(|entry| describe(&entry, &entries, None));
                RollbackResponse { from, to }
            }
        };
        let what = format!(
            "{} resolves to version {}, revision {}; before: version {}, revision {}",
            to.id, to.version, to.revision, from.version, from.revision
        );
        writeln!(terminal::out(), "{}", printable::line(&what))?;
        Ok(())
    }
}
