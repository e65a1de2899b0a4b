//! `caxton model approve`: lets an id resolve to an update that waits, in the daemon or in its
//! store.

use std::io::Write;

use axum::body::Body;
use axum::http::Method;
use clap::Args;

use super::client::segment;
use super::store_access::StoreAccess;
use super::{Connection, terminal};
use crate::api::describe;
use crate::api::wire::Package;
use crate::api::wire::approval::ApprovalResponse;
use crate::base::printable;
use crate::package::{Approval, StoreEntry};

/// Approve an update that waits.
#[derive(Debug, Args)]
pub(super) struct Approve {
    /// Model, as `id`, `id@version` or `id@revision`. An id alone means its highest version that
    /// waits.
    id: String,
}

impl Approve {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let ApprovalResponse { approved, from, to } = match StoreAccess::open(connection).await? {
            StoreAccess::Daemon(mut client) => {
                let path = format!("/api/packages/{}/approve", segment(&self.id));
                client.call(Method::POST, &path, Body::empty()).await?
            }
            StoreAccess::Store(here) => {
                let store = &here.0;
                let Approval { from, approved, to } = store.approve(&self.id)?;
                let entries = store.entries();
                let package = |entry: &StoreEntry| describe(entry, &entries, None);
                ApprovalResponse {
                    approved: package(&approved),
                    from: from.as_ref().map(package),
                    to: package(&to),
                }
            }
        };
        let version = |it: &Package| format!("version {}, revision {}", it.version, it.revision);
        let before = from.as_ref().map_or_else(|| "no version".to_owned(), version);
        let what = format!(
            "approved: {}@{}; {} resolves to {}; before: {before}",
            approved.id,
            approved.version,
            to.id,
            version(&to)
        );
        writeln!(terminal::out(), "{}", printable::line(&what))?;
        Ok(())
    }
}
