//! Which model a request means: the one it names, or that of its tenant, or the default; behind an alias, perhaps the
//! canary. And whether its tenant may ask for it.
//!
//! Owns the order of these. Decided before anything is loaded, so that nothing is loaded for a request that is refused.

use super::App;
use super::caller::Caller;
use super::error::ApiError;
use super::tenants::Visit;
use super::wire::Input;
use crate::models::ModelInfo;
use crate::models::alias::{self, Target, Texts};
use crate::package::choose;

/// Whether a tenant that is held to some models may be answered by this one in place of its own.
pub(super) fn may_stand_in(app: &App, caller: &Caller, info: &ModelInfo) -> bool {
    let tenant = caller.tenant.as_deref().map(Visit::tenant);
    let Some(allowed) = tenant.and_then(|tenant| tenant.settings.allowed_models.as_ref()) else {
        return true;
    };
    let entries = app.handle.store().entries();
    let entry = entries.iter().find(|entry| {
        entry.manifest.id == info.manifest.id
            && entry.record.manifest_digest.short() == info.revision
    });
    entry.is_some_and(|entry| allowed.iter().any(|allowed| entry.is_named(allowed)))
}

/// What `model` means for a request with this input.
pub(super) fn find(
    app: &App,
    caller: &Caller,
    model: Option<&str>,
    input: &Input,
) -> Result<Target, ApiError> {
    let settings = app.settings.borrow().clone();
    let tenant = caller.tenant.as_deref().map(Visit::tenant);
    let own = tenant.and_then(|tenant| tenant.settings.model.as_deref());
    let name = model.or(own).unwrap_or_else(|| settings.default_model());
    let texts = match input {
        Input::Texts(texts) => Texts::Plain(texts),
        Input::Ids(lists) => Texts::Ids(lists),
    };
    let target = alias::resolve(&settings.aliases, name, texts);
    if let Some(tenant) = tenant
        && let Some(allowed) = &tenant.settings.allowed_models
        && own != Some(name)
        && !allowed.iter().any(|allowed| allowed == name)
    {
        let entries = app.handle.store().entries();
        let entry = choose(&entries, &target.name);
        if !entry.is_some_and(|entry| allowed.iter().any(|allowed| entry.is_named(allowed))) {
            tenant.refuse();
            return Err(ApiError::model_not_allowed(&tenant.name, name));
        }
    }
    Ok(target)
}
