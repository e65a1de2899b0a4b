//! Lists settings key by key: the value, the position where it was written, and the default.
//!
//! This is the inverse of loading: from [`Settings`] back to the table of keys. Pure.
//!
//! Invariant: a file of these values, written by [`super::document`], loads as the same settings.

use std::collections::BTreeMap;

use figment::value::Value as Checked;

use super::key_value::{KeyValue, ValueOrigin};
use super::keys::{self, ALIAS, ConfigKey, KEYS, MODEL};
use super::merge::MergedConfig;
use super::{AliasSettings, ModelSettings, Settings, find, yaml};

/// Name of a model and of an alias that do not exist; their values are the defaults.
const NOBODY: &str = "nobody";

/// Returns every key of `settings`, in the order of the shipped file.
pub fn values(settings: &Settings) -> Vec<KeyValue> {
    rows(settings, |_| None)
}

/// Returns every key of `settings`, with its origin from `merged`.
pub(super) fn with_origins(settings: &Settings, merged: &MergedConfig) -> Vec<KeyValue> {
    rows(settings, |setting| {
        let (file, position) = merged.origin(setting)?;
        Some(ValueOrigin { file: file.to_owned(), position })
    })
}

/// Returns the effective values of a daemon that started with `started` and applied `applied`
/// since. Keys that need a restart have the value of the start.
pub fn running_values(started: &Settings, applied: &Settings) -> Vec<KeyValue> {
    let mut values = values(applied);
    let waiting = rows(started, |_| None).into_iter().filter(|value| value.restart);
    let mut waiting: BTreeMap<_, _> = waiting.map(|value| (value.path, value.value)).collect();
    for value in &mut values {
        if let Some(at_start) = waiting.remove(&value.path) {
            value.value = at_start;
        }
    }
    values
}

fn rows(settings: &Settings, origin: impl Fn(&[String]) -> Option<ValueOrigin>) -> Vec<KeyValue> {
    let mut defaults = Settings::default();
    defaults.models.insert(NOBODY.to_owned(), ModelSettings::default());
    defaults.aliases.insert(NOBODY.to_owned(), AliasSettings::default());
    // Serializing cannot fail, because figment deserialized these settings.
    let (held, default) = (Checked::serialize(settings).ok(), Checked::serialize(defaults).ok());
    let mut rows = Vec::new();
    for key in KEYS.iter().filter(|key| !key.alias) {
        for given in given(key, settings) {
            let setting = key.setting.unwrap_or(key.name);
            let said = |held, given| match key.setting {
                Some(setting) => yaml::value(&key.kind, find(held, setting, given)?),
                None => key.kind.only().map(str::to_owned),
            };
            let (Some(value), Some(default)) = (said(&held, given), said(&default, NOBODY)) else {
                continue;
            };
            let setting: Vec<_> = keys::path(setting, given).map(str::to_owned).collect();
            rows.push(KeyValue {
                path: keys::path(key.name, given).map(str::to_owned).collect(),
                value,
                default,
                restart: key.restart,
                fixed: key.setting.is_none(),
                origin: origin(&setting),
            });
        }
    }
    rows
}

/// Returns the operator's names for the placeholder of `key`; one empty text when the key has none.
fn given<'a>(key: &ConfigKey, settings: &'a Settings) -> Vec<&'a str> {
    if key.name.contains(MODEL) {
        settings.models.keys().map(String::as_str).collect()
    } else if key.name.contains(ALIAS) {
        settings.aliases.keys().map(String::as_str).collect()
    } else {
        vec![""]
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    fn settings(yaml: &str) -> Settings {
        parse("f".as_ref(), yaml.as_bytes().to_vec()).expect(yaml)
    }

    fn value<'a>(values: &'a [KeyValue], key: &str) -> &'a KeyValue {
        values.iter().find(|value| value.key() == key).expect(key)
    }

    #[test]
    fn every_key_has_its_default_value() {
        let values = values(&Settings::default());
        let single = KEYS.iter().filter(|key| !key.alias && !key.name.contains('<'));
        let names: Vec<_> = values.iter().map(KeyValue::key).collect();
        assert_eq!(names, single.map(|key| key.name).collect::<Vec<_>>());
        assert!(values.iter().all(|value| value.value == value.default), "{values:?}");
        assert!(values.iter().all(|value| value.origin.is_none()));
    }

    #[test]
    fn dotted_model_name_is_one_path_element() {
        let values = values(&settings("models: { a.1@2: { pinned: true } }"));
        let pinned = value(&values, "models.a.1@2.pinned");
        assert_eq!(pinned.path, ["models", "a.1@2", "pinned"]);
        assert_eq!((pinned.value.as_str(), pinned.default.as_str()), ("true", "false"));
        assert_eq!(value(&values, "models.a.1@2.max_idle_time").value, "default");
    }

    #[test]
    fn pending_restart_keeps_old_value() {
        let started = settings("socket: { mode: \"0600\" }\nembedding: { queue_size: 1 }");
        let applied = settings("socket: { mode: \"0660\" }\nembedding: { queue_size: 2 }");
        let values = running_values(&started, &applied);
        assert_eq!(value(&values, "socket.mode").value, "\"0600\"");
        assert_eq!(value(&values, "embedding.queue_size").value, "2");
        assert!(value(&values, "socket.mode").restart);
        assert_eq!(running_values(&applied, &applied), super::values(&applied));
    }
}
