//! Determines the model that a request means, and checks whether its tenant may request and see it.
//!
//! The model is the one that the request names, or else that of its tenant, or else the default. An
//! alias may select its canary. All this is decided before a model is loaded, so that a refused
//! request loads nothing.

use super::App;
use super::error::ApiError;
use super::request_context::{RequestContext, TenantContext};
use super::tenants::InFlightGuard;
use super::visibility::TenantModels;
use super::wire::Input;
use crate::models::alias::{self, RequestTexts, ResolvedModel};
use crate::package::{StoreEntry, resolve};

/// Returns the models that can be requested. A restricted tenant gets only its models.
pub(super) fn visible_models(app: &App, TenantContext(tenant): &TenantContext) -> Vec<StoreEntry> {
    let mut entries = app.handle.store().entries();
    let settings = app.settings.borrow().clone();
    let bundled_only = settings.memory.model_cache.bundled_only;
    entries
        .retain(|entry| entry.is_usable() && (!bundled_only || entry.record.origin.is_bundled()));
    let tenant = tenant.as_deref().map(|tenant| &tenant.settings);
    if let Some(held) = TenantModels::of(&settings, &entries, tenant) {
        entries.retain(|entry| held.allows(entry));
    }
    entries
}

/// Returns the name of the model for requests without a model name. Canaries are ignored.
pub(super) fn default_model(app: &App, TenantContext(tenant): &TenantContext) -> String {
    let settings = app.settings.borrow().clone();
    let own = tenant.as_deref().and_then(|tenant| tenant.settings.model.as_deref());
    alias::resolve_without_canary(
        &settings.aliases,
        own.unwrap_or_else(|| settings.default_model()),
    )
}

/// Returns whether `entry` may be a fallback for this caller. A restricted tenant gets only its
/// models.
pub(super) fn is_allowed_fallback(caller: &RequestContext, entry: &StoreEntry) -> bool {
    let tenant = caller.tenant.as_deref().map(InFlightGuard::tenant);
    let allowed = tenant.and_then(|tenant| tenant.settings.allowed_models.as_ref());
    allowed.is_none_or(|allowed| allowed.iter().any(|allowed| entry.is_named(allowed)))
}

/// Determines the model that `model` means for a request with this input.
pub(super) fn select_model(
    app: &App,
    caller: &RequestContext,
    model: Option<&str>,
    input: &Input,
) -> Result<ResolvedModel, ApiError> {
    let settings = app.settings.borrow().clone();
    let tenant = caller.tenant.as_deref().map(InFlightGuard::tenant);
    let own = tenant.and_then(|tenant| tenant.settings.model.as_deref());
    let name = model.or(own).unwrap_or_else(|| settings.default_model());
    let texts = match input {
        Input::Texts(texts) => RequestTexts::Plain(texts),
        Input::Ids(lists) => RequestTexts::Ids(lists),
    };
    let target = alias::resolve(&settings.aliases, name, texts);
    if let Some(tenant) = tenant
        && let Some(allowed) = &tenant.settings.allowed_models
        && own != Some(name)
        && !allowed.iter().any(|allowed| allowed == name)
    {
        let entries = app.handle.store().entries();
        let entry = resolve(&entries, &target.name);
        if !entry.is_some_and(|entry| allowed.iter().any(|allowed| entry.is_named(allowed))) {
            tenant.count_refusal();
            return Err(ApiError::model_not_allowed(&tenant.name, name));
        }
    }
    // Report an unknown model here and not when it is leased: the error lists models, and here it
    // can list only those that the tenant may see.
    if let Some(tenant) = tenant {
        let mut entries = app.handle.store().entries();
        if let Some(held) = TenantModels::of(&settings, &entries, Some(&tenant.settings))
            && resolve(&entries, &target.name).is_none()
            && model.is_some()
        {
            entries.retain(|entry| held.allows(entry));
            return Err(ApiError::unknown_package(target.name, &entries));
        }
    }
    Ok(target)
}
