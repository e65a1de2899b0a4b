//! Serves the active configuration key by key, to compare it with the files.
//!
//! Only administrators may read it, because it names the users and groups of every tenant.

use axum::Json;
use axum::extract::State;

use super::App;
use super::wire::configuration::{ActiveConfiguration, ConfigValue};
use crate::config::{self, KeyValue, Settings, ValueOrigin};

pub(super) async fn active(State(app): State<App>) -> Json<ActiveConfiguration> {
    let mut applied = Settings::clone(&app.settings.borrow());
    // `PUT /api/memory/limit` may have set another limit.
    applied.memory.memory_limit = app.handle.memory_limit();
    let values = config::running_values(&app.initial_settings, &applied);
    Json(ActiveConfiguration { values: values.iter().map(describe).collect() })
}

/// Converts a key to its wire type.
pub fn describe(value: &KeyValue) -> ConfigValue {
    let origin = value.origin.as_ref();
    ConfigValue {
        key: value.key(),
        value: value.value.clone(),
        default: value.default.clone(),
        restart: value.restart,
        file: origin.map(|ValueOrigin { file, .. }| file.display().to_string()),
        line: origin.map(|ValueOrigin { position, .. }| position.line),
        column: origin.map(|ValueOrigin { position, .. }| position.column),
    }
}
