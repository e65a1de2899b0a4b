//! `caxton model list --licenses`: the licences of all installed models.

use super::print_table;
use crate::api::wire::Package;

/// Prints the licence and the origin of each package.
pub(super) fn print_licenses(packages: &[Package]) -> anyhow::Result<()> {
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let rows = packages.iter().map(|package| {
        vec![
            package.id.clone(),
            package.version.clone(),
            package.license.clone(),
            text(&package.source),
            text(&package.source_revision),
        ]
    });
    let headings = ["MODEL", "VERSION", "LICENCE", "SOURCE", "REVISION"];
    print_table(&headings, &Vec::from_iter(rows))?;
    Ok(())
}
