//! `caxton model unused`: lists models without a use for some time.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde::Serialize;

use super::stats::time;
use super::store_access::StoreAccess;
use super::{Connection, print_json, print_table, terminal};
use crate::api::describe;
use crate::api::wire::{Package, PackageList};
use crate::base::units::{Bytes, ParseUnitError, parse_duration};

/// List models without a use for some time.
#[derive(Debug, Args)]
pub(super) struct Unused {
    /// Time without a use, such as 12h or 90d.
    #[arg(long = "for", value_name = "TIME", default_value = "30d", value_parser = duration)]
    unused_for: Duration,
    /// Print the list in JSON.
    #[arg(long)]
    json: bool,
}

fn duration(text: &str) -> Result<Duration, ParseUnitError> {
    parse_duration(text)
}

/// Output of `--json`.
#[derive(Debug, Serialize)]
struct UnusedList<'a> {
    /// Models without a use in this time.
    unused_for_seconds: u64,
    /// Sum of the sizes of the models.
    size_bytes: u64,
    models: Vec<UnusedModel<'a>>,
}

#[derive(Debug, Serialize)]
struct UnusedModel<'a> {
    id: &'a str,
    version: &'a str,
    revision: &'a str,
    /// `bundled` models cannot be removed.
    origin: &'a str,
    size_bytes: u64,
    /// Time of the last use, in seconds since 1970; `null` if there was none.
    last_used_at: Option<u64>,
    /// Time of the installation, in seconds since 1970.
    installed_at: u64,
}

impl Unused {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let PackageList { packages } = match StoreAccess::open(connection).await? {
            StoreAccess::Daemon(mut client) => client.get("/api/packages").await?,
            StoreAccess::Store(here) => {
                let entries = here.0.entries();
                let package = |entry| describe(entry, &entries, None);
                PackageList { packages: entries.iter().map(package).collect() }
            }
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let unused = unused(&packages, now, self.unused_for);
        let size_bytes = unused.iter().map(|package| package.size_bytes).sum();
        if self.json {
            return print_json(&UnusedList {
                unused_for_seconds: self.unused_for.as_secs(),
                size_bytes,
                models: unused.into_iter().map(UnusedModel::from).collect(),
            });
        }
        let rows = Vec::from_iter(unused.iter().map(|package| {
            vec![
                package.id.clone(),
                package.version.clone(),
                package.origin.clone(),
                Bytes(package.size_bytes).to_string(),
                package.last_access_at.map_or_else(|| "never".to_owned(), time),
                time(package.installed_at),
            ]
        }));
        print_table(&["MODEL", "VERSION", "ORIGIN", "SIZE", "LAST USE", "INSTALLED"], &rows)?;
        writeln!(terminal::out(), "{} models, {}", rows.len(), Bytes(size_bytes))?;
        Ok(())
    }
}

/// Returns the packages that were neither used nor installed in the time `unused_for` before `now`,
/// the longest unused ones first.
fn unused(packages: &[Package], now: u64, unused_for: Duration) -> Vec<&Package> {
    let since = now.saturating_sub(unused_for.as_secs());
    let last = |package: &Package| package.last_access_at.unwrap_or(0).max(package.installed_at);
    let mut unused = Vec::from_iter(packages.iter().filter(|package| last(package) < since));
    unused.sort_by_key(|package| last(package));
    unused
}

impl<'a> From<&'a Package> for UnusedModel<'a> {
    fn from(package: &'a Package) -> Self {
        Self {
            id: &package.id,
            version: &package.version,
            revision: &package.revision,
            origin: &package.origin,
            size_bytes: package.size_bytes,
            last_used_at: package.last_access_at,
            installed_at: package.installed_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::{Entries, Timestamp};

    #[test]
    fn uses_and_installations_in_the_time_count() {
        let package = |id: &str, installed_at, last_access_at| {
            let entry = crate::package::fixture::entry(id, "1", 2, "w");
            let mut package = describe(&entry, &Entries::default(), None);
            (package.installed_at, package.last_access_at) = (installed_at, last_access_at);
            assert_eq!(entry.record.installed_at, Timestamp(0));
            package
        };
        let packages = [
            package("used", 10, Some(95)),
            package("old-use", 10, Some(40)),
            package("new", 95, None),
            package("never", 20, None),
        ];
        let unused = unused(&packages, 100, Duration::from_secs(50));
        let ids = Vec::from_iter(unused.iter().map(|package| package.id.as_str()));
        assert_eq!(ids, ["never", "old-use"]);
    }
}
