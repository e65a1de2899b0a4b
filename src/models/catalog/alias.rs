//! Aliases: additional names of models, and the choice between a model and its canary.
//!
//! Pure: this module does not know the installed models or the callers.
//!
//! Invariants:
//! 1. The result is not an alias: the configuration does not allow an alias of an alias.
//! 2. All texts of one request get the same model, so that an answer never mixes embedding spaces.
//!    The same texts get the same model in every release.
//! 3. A larger share of the canary only adds requests to those that it already answers.

use std::collections::BTreeMap;
use std::fmt;

use crate::config::{AliasSettings, Settings};
use crate::package::Digest;

/// Number of texts that are hashed for the choice. Together with [`SAMPLED_BYTES`] it limits the
/// time of the choice to about 50 µs.
const SAMPLED_TEXTS: usize = 64;
/// Number of bytes of each text that are hashed.
const SAMPLED_BYTES: usize = 256;

/// Texts of a request.
#[derive(Clone, Copy, Debug)]
pub enum RequestTexts<'a> {
    /// Plain texts.
    Plain(&'a [String]),
    /// Token ids of each text.
    Ids(&'a [Vec<u32>]),
}

/// Model that a request resolves to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedModel {
    /// Name of the model: `id`, `id@version` or `id@revision`.
    pub name: String,
    /// Alias in the request, if it used one.
    pub alias: Option<Alias>,
}

/// Alias that a request used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// Name of the alias.
    pub name: String,
    /// Whether the canary was chosen.
    pub canary: bool,
}

/// Formats the alias as in the header `x-caxton-alias`.
impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.canary { f.write_str("; canary") } else { Ok(()) }
    }
}

/// Resolves `name`, of a model or an alias, for a request with these texts.
pub(super) fn resolve(
    aliases: &BTreeMap<String, AliasSettings>,
    name: &str,
    texts: RequestTexts<'_>,
) -> ResolvedModel {
    let Some(AliasSettings { model, revision, canary }) = aliases.get(name) else {
        return ResolvedModel { name: name.to_owned(), alias: None };
    };
    let alias = |canary| Some(Alias { name: name.to_owned(), canary });
    match &canary.model {
        // Skip the hash if it cannot change the result.
        Some(model)
            if canary.percent > 0
                && (canary.percent >= 100 || hash_bucket(texts) < canary.percent) =>
        {
            ResolvedModel { name: join_name(model, canary.revision.as_deref()), alias: alias(true) }
        }
        _ => ResolvedModel { name: join_name(model, revision.as_deref()), alias: alias(false) },
    }
}

/// Resolves `name` without regard to canaries.
pub(super) fn resolve_without_canary(
    aliases: &BTreeMap<String, AliasSettings>,
    name: &str,
) -> String {
    match aliases.get(name) {
        Some(alias) => join_name(&alias.model, alias.revision.as_deref()),
        None => name.to_owned(),
    }
}

/// Returns the canary of an alias, which may answer some of its requests.
pub(super) fn canary(AliasSettings { canary, .. }: &AliasSettings) -> Option<String> {
    canary.model.as_ref().map(|model| join_name(model, canary.revision.as_deref()))
}

/// Returns every model that requests may resolve to without naming it.
pub fn implicit_models(settings: &Settings) -> Vec<String> {
    let tenants = settings.tenants.iter().filter_map(|tenant| tenant.model.as_deref());
    let reranker = settings.memory.rerank_model.as_deref();
    let defaults = std::iter::once(settings.default_model()).chain(reranker).chain(tenants);
    let mut names: Vec<_> =
        defaults.map(|name| resolve_without_canary(&settings.aliases, name)).collect();
    for (name, alias) in &settings.aliases {
        names.push(resolve_without_canary(&settings.aliases, name));
        names.extend(canary(alias));
    }
    names
}

fn join_name(id: &str, revision: Option<&str>) -> String {
    revision.map_or_else(|| id.to_owned(), |revision| format!("{id}@{revision}"))
}

/// Returns the hundredth, from 0 to 99, that these texts belong to. The hash is SHA-256 of the
/// number of texts, the length of each of the first [`SAMPLED_TEXTS`], and their beginnings.
/// Numbers are 8 bytes and token ids 4 bytes, in little-endian order.
fn hash_bucket(texts: RequestTexts<'_>) -> u8 {
    let mut sample = Vec::with_capacity(4096);
    let length = |length: usize| u64::try_from(length).unwrap_or(u64::MAX).to_le_bytes();
    match texts {
        RequestTexts::Plain(texts) => {
            sample.push(b't');
            sample.extend(length(texts.len()));
            for text in texts.iter().take(SAMPLED_TEXTS) {
                sample.extend(length(text.len()));
                sample.extend(text.bytes().take(SAMPLED_BYTES));
            }
        }
        RequestTexts::Ids(lists) => {
            sample.push(b'i');
            sample.extend(length(lists.len()));
            for ids in lists.iter().take(SAMPLED_TEXTS) {
                sample.extend(length(ids.len()));
                sample.extend(ids.iter().flat_map(|id| id.to_le_bytes()).take(SAMPLED_BYTES));
            }
        }
    }
    // The remainder is below 100, so the conversion cannot fail.
    u8::try_from(Digest::of(&sample).leading() % 100).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::CanarySettings;

    fn aliases(revision: Option<&str>, canary: CanarySettings) -> BTreeMap<String, AliasSettings> {
        let revision = revision.map(str::to_owned);
        let alias = AliasSettings { model: "m".to_owned(), revision, canary };
        BTreeMap::from([("a".to_owned(), alias)])
    }

    fn canary(percent: u8) -> CanarySettings {
        CanarySettings { model: Some("n".to_owned()), revision: Some("2".to_owned()), percent }
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn alias_resolves_to_its_model() {
        let none = texts(&["x"]);
        for (aliases, name, meaning, alias) in [
            (aliases(None, CanarySettings::default()), "a", "m", Some("a")),
            (aliases(Some("1.2"), CanarySettings::default()), "a", "m@1.2", Some("a")),
            (aliases(Some("1.2"), canary(0)), "a", "m@1.2", Some("a")),
            (aliases(Some("1.2"), canary(100)), "a", "n@2", Some("a; canary")),
            (aliases(None, canary(100)), "m", "m", None),
            (aliases(None, canary(100)), "a@1", "a@1", None),
            (BTreeMap::new(), "a", "a", None),
        ] {
            let target = resolve(&aliases, name, RequestTexts::Plain(&none));
            let found = (target.name.as_str(), target.alias.map(|alias| alias.to_string()));
            assert_eq!(found, (meaning, alias.map(str::to_owned)), "{name}");
        }
        assert_eq!(resolve_without_canary(&aliases(Some("1.2"), canary(100)), "a"), "m@1.2");
        assert_eq!(resolve_without_canary(&BTreeMap::new(), "a"), "a");
    }

    #[test]
    fn default_tenant_and_alias_models_are_listed() {
        let mut settings =
            Settings { aliases: aliases(Some("1"), canary(0)), ..Settings::default() };
        let model = Some("t".to_owned());
        settings.tenants = vec![crate::config::TenantSettings { model, ..Default::default() }];
        assert_eq!(implicit_models(&settings), ["bundled-mini", "t", "m@1", "n@2"]);
        settings.memory.rerank_model = Some("a".to_owned());
        assert_eq!(implicit_models(&settings), ["bundled-mini", "m@1", "t", "m@1", "n@2"]);
    }

    /// Checks the hash against values that another program computed. Requests keep their model
    /// after an upgrade only if these values stay.
    #[test]
    fn canary_hash_is_stable_across_releases() {
        let plain = |of: &[&str]| hash_bucket(RequestTexts::Plain(&texts(of)));
        assert_eq!(plain(&["The pump runs hot."]), 46);
        assert_eq!(plain(&["The pump runs hot.", "日本語"]), 71);
        assert_eq!(plain(&["a".repeat(1000).as_str()]), 65);
        assert_eq!(hash_bucket(RequestTexts::Ids(&[vec![101, 7592, 102]])), 38);
        assert_eq!(hash_bucket(RequestTexts::Ids(&[vec![7; 100], vec![]])), 47);
    }

    #[test]
    fn canary_share_matches_percentage() {
        let drawn: Vec<u8> =
            (0..10_000).map(|n| hash_bucket(RequestTexts::Plain(&[format!("text {n}")]))).collect();
        for percent in [1_u8, 10, 50, 90] {
            let share = drawn.iter().filter(|drawn| **drawn < percent).count();
            let expected = usize::from(percent) * 100;
            // Five standard deviations of 10,000 draws are at most 250.
            assert!(share.abs_diff(expected) < 250, "{percent} %: {share}");
        }
    }

    #[test]
    fn canary_hash_covers_only_the_first_texts() {
        let many = |n: usize| vec!["text".to_owned(); n];
        let mut other = many(100);
        other[99] = "more".to_owned();
        let of = |texts: &[String]| hash_bucket(RequestTexts::Plain(texts));
        assert_eq!(of(&many(100)), of(&other));
        let differ = (1..64).filter(|n| of(&many(*n)) != of(&many(64))).count();
        assert!(differ > 55, "{differ}");
    }

    proptest! {
        #[test]
        fn canary_grows_monotonically_with_percentage(
            of in prop::collection::vec(".{0,300}", 0..80),
            small in 0_u8..=100,
            large in 0_u8..=100,
        ) {
            let (small, large) = (small.min(large), small.max(large));
            let of_canary = |percent| {
                let target = resolve(&aliases(None, canary(percent)), "a", RequestTexts::Plain(&of));
                target.alias.unwrap().canary
            };
            prop_assert!(!of_canary(small) || of_canary(large));
            prop_assert_eq!(of_canary(small), of_canary(small));
        }
    }
}
