//! Lists and describes models in Ollama's terms: `/api/tags`, `/api/ps` and `/api/show`.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Body;
use axum::extract::State;

use super::{MAX_SMALL, NEVER, model_name, ollama_name, time};
use crate::api::App;
use crate::api::error::ApiError;
use crate::api::input::{BodyLimit, read_small_json};
use crate::api::request_context::TenantContext;
use crate::api::wire::ollama::{
    Details, RunningModel, RunningModels, ShowRequest, ShowResponse, Tag, Tags,
};
use crate::models::Residency;
use crate::models::catalog::Catalog;
use crate::package::{Entries, Manifest, StoreEntry};

/// Returns the capabilities of a model, in Ollama's terms. Ollama has no word for a reranker.
fn capabilities(manifest: &Manifest) -> Vec<&'static str> {
    vec![manifest.task()]
}

pub(super) async fn tags(State(app): State<App>, viewer: TenantContext) -> Json<Tags> {
    let (catalog, entries) = (app.handle.catalog(), viewer.visible_models(&app));
    let tags = |entry: &StoreEntry| {
        let StoreEntry { manifest, record, .. } = entry;
        let tag = |name: String| Tag {
            model: name.clone(),
            name,
            modified_at: time(record.installed_at.0),
            size: manifest.total_size(),
            digest: record.package_digest.to_string(),
            details: details(manifest),
            capabilities: capabilities(manifest),
        };
        names(entry, &entries, &catalog).into_iter().map(tag).collect::<Vec<_>>()
    };
    Json(Tags { models: entries.iter().flat_map(tags).collect() })
}

pub(super) async fn running(
    State(app): State<App>,
    viewer: TenantContext,
) -> Result<Json<RunningModels>, ApiError> {
    let view = app.handle.memory().await?;
    let (catalog, entries) = (app.handle.catalog(), viewer.visible_models(&app));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut models = Vec::new();
    for model in view.models {
        let Residency::Resident { weight_bytes, .. } = model.residency else { continue };
        // Skip a model that has just left the store: it is being unloaded.
        let Some(entry) = entries.get(&model.key) else { continue };
        let StoreEntry { manifest, record, .. } = entry;
        let expires_at = time(now.saturating_add(model.expires.unwrap_or(NEVER)).as_secs());
        models.extend(names(entry, &entries, &catalog).into_iter().map(|name| RunningModel {
            model: name.clone(),
            name,
            size: weight_bytes,
            digest: record.package_digest.to_string(),
            details: details(manifest),
            expires_at: expires_at.clone(),
            size_vram: 0,
            context_length: app.handle.max_sequence_length(manifest),
        }));
    }
    Ok(Json(RunningModels { models }))
}

/// Returns the names of an entry, each of which means only this one of `entries`: `id:latest` if
/// the id alone means it, and `id:version`, or `id:revision` if the version means another entry.
/// Clients look for the name that they were given in the list.
fn names(entry: &StoreEntry, entries: &Entries, catalog: &Catalog) -> Vec<String> {
    let id = &entry.manifest.id;
    // Ask the whole catalog: the id may mean a version that the tenant may not request.
    let current = catalog.find(id.as_str());
    let is_current = current.is_ok_and(|current| current.key == entry.key);
    let latest = is_current.then(|| format!("{id}:latest"));
    let by_version = ollama_name(&entry.manifest);
    let is_meant = entries.resolve(&by_version).is_some_and(|meant| meant.key == entry.key);
    let exact = match is_meant {
        true => by_version,
        false => format!("{id}:{}", entry.record.manifest_digest.short()),
    };
    // A version may be called "latest".
    let exact = Some(exact).filter(|exact| latest.as_ref() != Some(exact));
    latest.into_iter().chain(exact).collect()
}

pub(super) async fn show(
    State(app): State<App>,
    viewer: TenantContext,
    body: Body,
) -> Result<Json<ShowResponse>, ApiError> {
    let limit = BodyLimit::smaller(app.settings.borrow().socket.max_body, MAX_SMALL);
    let request: ShowRequest = read_small_json(body, limit).await?;
    let asked = [request.model, request.name];
    let entry = requested_entry(&app, &viewer, asked, ApiError::unknown_package)?;
    let StoreEntry { manifest, record, .. } = entry;
    Ok(Json(ShowResponse {
        license: manifest.license.clone(),
        details: details(&manifest),
        model_info: model_info(
            &manifest,
            app.handle.max_sequence_length(&manifest),
            record.manifest_digest.short(),
        ),
        capabilities: capabilities(&manifest),
        modified_at: time(record.installed_at.0),
    }))
}

/// Returns the entry that the request names in one of two fields. `missing` makes the error for a
/// name that means none of the models that the tenant may request.
///
/// # Errors
/// When both fields are missing or empty, the name is ambiguous, or there is no such model.
pub(super) fn requested_entry(
    app: &App,
    viewer: &TenantContext,
    fields: [Option<String>; 2],
    missing: fn(String, &Entries) -> ApiError,
) -> Result<StoreEntry, ApiError> {
    let Some(asked) = fields.into_iter().flatten().find(|name| !name.is_empty()) else {
        let message = "model is missing; expected the name of a model".to_owned();
        return Err(ApiError::invalid(Some("model".to_owned()), message));
    };
    let meant = model_name(app, viewer.settings(), &asked)?;
    let entries = viewer.visible_models(app);
    let entry = app.handle.catalog().lookup_in(&entries, &meant).cloned();
    entry.ok_or_else(|| missing(asked, &entries))
}

/// Returns the facts that Ollama's clients read, under its names, and the embedding space and
/// revision, which are needed to compare vectors.
fn model_info(
    manifest: &Manifest,
    context_length: usize,
    revision: String,
) -> BTreeMap<String, serde_json::Value> {
    let architecture = &manifest.architecture;
    BTreeMap::from([
        ("general.architecture".to_owned(), architecture.as_str().into()),
        (format!("{architecture}.context_length"), context_length.into()),
        (format!("{architecture}.embedding_length"), manifest.dimensions.into()),
        ("caxton.embedding_space".to_owned(), manifest.embedding_space().into()),
        ("caxton.revision".to_owned(), revision.into()),
    ])
}

fn details(manifest: &Manifest) -> Details {
    Details {
        parent_model: "",
        format: "safetensors",
        family: manifest.architecture.clone(),
        families: vec![manifest.architecture.clone()],
        parameter_size: "",
        quantization_level: manifest.precision.name(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Settings;
    use crate::package::fixture::entry;

    #[test]
    fn every_entry_has_names_of_its_own() {
        let installed = [("m", "1"), ("m", "2"), ("n", "latest"), ("n", "zzz"), ("o", "latest")];
        let installed = installed.map(|(id, version)| entry(id, version, 2, id));
        let entries = Entries::from_iter(installed);
        let catalog = Catalog::new(entries.clone(), Arc::new(Settings::default()));
        let listed: Vec<_> = entries.iter().map(|entry| names(entry, &entries, &catalog)).collect();
        let of_n = entries.iter().find(|entry| entry.key.name() == "n@latest").unwrap();
        let by_revision = format!("n:{}", of_n.record.manifest_digest.short());
        let expected: [&[&str]; 5] = [
            &["m:1"],
            &["m:latest", "m:2"],
            &[&by_revision],
            &["n:latest", "n:zzz"],
            &["o:latest"],
        ];
        assert_eq!(listed, expected);
        for (entry, names) in entries.iter().zip(&listed) {
            for name in names {
                assert_eq!(catalog.lookup(name).unwrap().key, entry.key, "{name}");
            }
        }
    }
}
