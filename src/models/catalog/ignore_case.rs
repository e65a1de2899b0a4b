//! Names whose case differs from the case of the installed model or alias.
//!
//! Ollama ignores case, and only its dialect does so here: the ids of packages and the names of
//! aliases are case-sensitive.

use std::collections::BTreeSet;

use super::{Catalog, NameContext, RequestTexts};
use crate::config::TenantSettings;
use crate::package::canonical_name;

/// A name that equals several others if case is ignored, and none of them exactly.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{name}\" means {} if case is ignored; write one of them", matches.join(" or "))]
pub struct AmbiguousName {
    /// Name in the request.
    pub name: String,
    /// Names that differ from it only in case.
    pub matches: Vec<String>,
}

impl Catalog {
    /// Returns the name of a model or an alias that `tenant` may request and that equals `name` if
    /// case is ignored. An exact match wins. Returns `name` itself, with a tag converted to a
    /// version, if there is no match.
    ///
    /// # Errors
    /// When several names match. The error contains only names that the tenant may request.
    pub fn match_ignoring_case(
        &self,
        name: &str,
        tenant: Option<&TenantSettings>,
    ) -> Result<String, AmbiguousName> {
        let name = canonical_name(name);
        let context = NameContext { tenant, texts: RequestTexts::Plain(&[]) };
        let resolved = self.resolve(Some(&name), context);
        if resolved.is_ok_and(|resolved| self.entries.resolve(&resolved.name).is_some()) {
            return Ok(name.into_owned());
        }
        // Only names that the tenant may request count: otherwise it could find out the others.
        let entries = self.servable(tenant);
        let (id, version) = name.split_once('@').map_or((&*name, None), |(id, v)| (id, Some(v)));
        let ids = entries.iter().map(|entry| entry.manifest.id.as_str());
        let aliases = self.aliases(&entries);
        let aliases = aliases.iter().filter(|alias| alias.model.is_some()).map(|alias| alias.name);
        let id = select(&name, id, ids.chain(aliases))?;
        let Some(version) = version else { return Ok(id) };
        let of_id = entries.iter().filter(|entry| entry.manifest.id.as_str() == id);
        let versions = of_id.map(|entry| entry.manifest.version.as_str());
        let version = select(&name, version, versions)?;
        Ok(format!("{id}@{version}"))
    }
}

/// Returns the one of `known` that equals `part`, a part of `name`: exactly, or else if case is
/// ignored. Returns `part` itself if there is none.
fn select<'a>(
    name: &str,
    part: &str,
    known: impl Iterator<Item = &'a str>,
) -> Result<String, AmbiguousName> {
    let matches: BTreeSet<&str> = known.filter(|known| known.eq_ignore_ascii_case(part)).collect();
    match matches.len() {
        0 => Ok(part.to_owned()),
        _ if matches.contains(part) => Ok(part.to_owned()),
        1 => Ok(matches.into_iter().collect()),
        _ => Err(AmbiguousName {
            name: name.to_owned(),
            matches: matches.into_iter().map(str::to_owned).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::config::{AliasSettings, CanarySettings, Settings};
    use crate::package::Entries;
    use crate::package::fixture::entry;

    fn catalog() -> Catalog {
        let installed =
            [("Mini", "1"), ("Mini", "2-RC"), ("MINI", "1"), ("other", "V2"), ("other", "v2")];
        let entries = installed.map(|(id, version)| entry(id, version, 2, id));
        let model = "other".to_owned();
        let alias = AliasSettings { model, revision: None, canary: CanarySettings::default() };
        let aliases = BTreeMap::from([("Fast".to_owned(), alias)]);
        let settings = Settings { aliases, ..Settings::default() };
        Catalog::new(Entries::from_iter(entries), Arc::new(settings))
    }

    fn tenant(allowed: &[&str]) -> TenantSettings {
        TenantSettings {
            allowed_models: Some(allowed.iter().map(ToString::to_string).collect()),
            ..TenantSettings::default()
        }
    }

    #[test]
    fn unique_match_ignores_case() {
        let catalog = catalog();
        for (name, expected) in [
            ("Mini", "Mini"),
            ("MINI:latest", "MINI"),
            ("OTHER", "other"),
            ("fast:latest", "Fast"),
            ("FAST", "Fast"),
            ("Mini:2-rc", "Mini@2-RC"),
            ("OTHER:V2", "other@V2"),
            ("OTHER@3", "other@3"),
            ("nowhere:1", "nowhere@1"),
            ("", ""),
        ] {
            assert_eq!(catalog.match_ignoring_case(name, None).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn ambiguous_name_is_refused() {
        let error = catalog().match_ignoring_case("mini:1", None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"mini@1\" means MINI or Mini if case is ignored; write one of them"
        );
    }

    #[test]
    fn names_of_other_tenants_never_match() {
        let catalog = catalog();
        let held = tenant(&["Mini"]);
        for (name, expected) in [("mini", "Mini"), ("MINI", "Mini"), ("OTHER", "OTHER")] {
            let found = catalog.match_ignoring_case(name, Some(&held)).unwrap();
            assert_eq!(found, expected, "{name}");
        }
        let held = tenant(&["Fast"]);
        assert_eq!(catalog.match_ignoring_case("fAsT", Some(&held)).unwrap(), "Fast");
    }
}
