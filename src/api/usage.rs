//! Serves usage statistics of models, and recommends models for a task.

use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{RawQuery, State};

use super::App;
use super::error::ApiError;
use super::input::parameter;
use super::request_context::TenantContext;
use super::visibility::Visibility;
use super::wire::{
    HoursUsed, ModelStats, ModelStatsList, NextUse, Percentiles, Recommendation, Recommendations,
};
use crate::base::units::Bytes;
use crate::models::Residency;
use crate::models::catalog;
use crate::models::usage::recommend::{
    self, Candidate, MemoryFit, RecommendationQuery, Suitability, TaskType, recommend,
};
use crate::models::usage::{self, UsageStats};
use crate::package::{EntryKey, StoreEntry};
use crate::service::CallContext;

/// Parameters of [`recommendations`].
const PARAMETERS: [&str; 3] = ["task_type", "complexity", "max_latency_ms"];

pub(super) async fn stats(
    State(app): State<App>,
    visibility: Visibility,
    RawQuery(query): RawQuery,
) -> Result<Json<ModelStatsList>, ApiError> {
    let order = parameter(query.as_deref(), "sort", &["name", "use"])?;
    let mut stats = app.handle.usage().stats(SystemTime::now());
    let entries = app.handle.store().entries();
    let installed = entries.iter().map(|entry| entry.key.clone());
    let installed = installed.map(|key| {
        let stats = stats.remove(&key).unwrap_or_default();
        (key, stats, true)
    });
    let mut models = Vec::from_iter(installed);
    models.extend(stats.into_iter().map(|(key, stats)| (key, stats, false)));
    models.retain(|(key, ..)| visibility.shows(key));
    models.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    if order.as_deref() == Some("use") {
        models.sort_by(|(_, a, _), (_, b, _)| {
            let rates = b.uses_per_hour.total_cmp(&a.uses_per_hour);
            rates.then(b.requests.cmp(&a.requests))
        });
    }
    let models = models.into_iter().map(|(key, stats, installed)| show(&key, stats, installed));
    Ok(Json(ModelStatsList { models: models.collect() }))
}

fn show(key: &EntryKey, stats: UsageStats, installed: bool) -> ModelStats {
    let (id, version, revision) = key.parts();
    let answered = stats.requests.saturating_sub(stats.failures);
    ModelStats {
        id: id.to_owned(),
        version: version.to_owned(),
        revision: revision.to_owned(),
        installed,
        requests: stats.requests,
        failures: stats.failures,
        success_rate: (stats.requests > 0).then(|| answered as f64 / stats.requests as f64),
        texts: stats.texts,
        tokens: stats.tokens,
        latency_ms: stats.latency.map(percentiles),
        recent_latency_ms: stats.recent_latency.map(percentiles),
        loads: stats.loads,
        load_ms: stats.reload_cost.map(millis),
        uses_per_hour: stats.uses_per_hour,
        use_by_hour: stats.use_by_hour,
        hours_used: stats.hours_used.map(|hours| HoursUsed {
            last_7_days: hours.last_7_days,
            previous_7_days: hours.previous_7_days,
        }),
        daily_requests: stats.daily_requests.map(Vec::from),
        next_use: stats.next_use.map(|expected| NextUse {
            at: expected.at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            probability: expected.probability,
        }),
        first_used_at: stats.first_used_at.map(|at| at.0),
        last_used_at: stats.last_used_at.map(|at| at.0),
    }
}

fn percentiles(percentiles: usage::Percentiles) -> Percentiles {
    Percentiles { p50: millis(percentiles.p50), p95: millis(percentiles.p95) }
}

/// Returns `duration` in milliseconds, with a resolution of a microsecond.
fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

pub(super) async fn recommendations(
    State(app): State<App>,
    viewer: TenantContext,
    RawQuery(query): RawQuery,
) -> Result<Json<Recommendations>, ApiError> {
    let query = parse(query.as_deref().unwrap_or_default())?;
    let entries = viewer.visible_models(&app);
    let approved = entries.iter().filter(|entry| !entry.record.awaits_approval);
    let found = recommend_among(&app, query, approved).await?;
    let recommendations = found.into_iter().map(|found| {
        let (id, version, _revision) = found.key.parts();
        Recommendation {
            id: id.to_owned(),
            version: version.to_owned(),
            suitability: found.suitability.name().to_owned(),
            tier: found.tier.name().to_owned(),
            measured: found.p95.is_some(),
            p95_ms: found.p95.map(millis),
            memory: found.memory.name().to_owned(),
            reason: found.reason,
        }
    });
    Ok(Json(Recommendations { recommendations: recommendations.collect() }))
}

/// Returns the name of the model that is recommended for a request of `task_type` without a model
/// name. Returns `None` if the default model is to answer: the settings do not want a selection,
/// the request expects the embedding space of the default model, or no model is known to suit the
/// task and fits into memory.
pub(super) async fn select_model(
    app: &App,
    call: &CallContext,
    task_type: TaskType,
) -> Result<Option<String>, ApiError> {
    if !app.settings.borrow().memory.dynamic_selection || call.expected_space.is_some() {
        return Ok(None);
    }
    let tenant = call.tenant_settings();
    let entries = app.handle.catalog().servable(tenant);
    // Of each id, only the version that the id means: not an older one, and not one that waits for
    // approval.
    let current = entries.iter().filter(|entry| {
        let meant = entries.resolve(entry.key.id());
        meant.is_some_and(|meant| meant.key == entry.key) && catalog::permits(tenant, entry)
    });
    let query = RecommendationQuery { task_type, ..RecommendationQuery::default() };
    let best = recommend_among(app, query, current).await?.into_iter().next();
    let best = best.filter(|best| {
        best.suitability == Suitability::Intended && best.memory != MemoryFit::DoesNotFit
    });
    Ok(best.map(|best| best.key.name().to_owned()))
}

/// Returns those of `entries` that `query` allows, the best first.
async fn recommend_among<'a>(
    app: &App,
    query: RecommendationQuery,
    entries: impl Iterator<Item = &'a StoreEntry>,
) -> Result<Vec<recommend::Recommendation>, ApiError> {
    let residency = app.handle.residency().await?;
    let headroom = app.handle.memory().await?.headroom;
    let usage = app.handle.usage();
    let candidates = entries.map(|entry| Candidate {
        key: &entry.key,
        manifest: &entry.manifest,
        p95: usage.recent_latency(&entry.key).map(|latency| latency.p95),
        memory: match residency.get(&entry.key) {
            Some(Residency::Resident { .. }) => MemoryFit::Resident,
            _ if fits(entry, headroom) => MemoryFit::Fits,
            _ => MemoryFit::DoesNotFit,
        },
    });
    Ok(recommend(query, &Vec::from_iter(candidates)))
}

/// Returns whether the model fits into memory beside the resident models. The total size of its
/// files approximates the size of its weights.
fn fits(entry: &StoreEntry, headroom: Bytes) -> bool {
    entry.manifest.total_size() <= headroom.0
}

/// Parses the query of [`recommendations`]. Every parameter is optional.
fn parse(text: &str) -> Result<RecommendationQuery, ApiError> {
    let mut query = RecommendationQuery::default();
    let mut seen = Vec::new();
    for (name, value) in form_urlencoded::parse(text.as_bytes()) {
        let invalid = |message| ApiError::invalid(Some(name.to_string()), message);
        if seen.contains(&name) {
            return Err(invalid(format!("the parameter {name} is given twice; give it once")));
        }
        match name.as_ref() {
            "task_type" => query.task_type = word(&name, &value)?,
            "complexity" => query.complexity = Some(word(&name, &value)?),
            "max_latency_ms" => {
                let millis = value.parse().ok().filter(|millis| *millis > 0).ok_or_else(|| {
                    invalid(format!("{name} is {value:?}; expected a whole number of at least 1"))
                })?;
                query.max_latency = Some(Duration::from_millis(millis));
            }
            _ => {
                let known = PARAMETERS.join(", ");
                return Err(invalid(format!(
                    "the parameter {name:?} is unknown; expected {known}"
                )));
            }
        }
        seen.push(name);
    }
    Ok(query)
}

fn word<T: FromStr<Err: std::fmt::Display>>(name: &str, value: &str) -> Result<T, ApiError> {
    value.parse().map_err(|error| {
        ApiError::invalid(Some(name.to_owned()), format!("{name} is {value:?}; {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::usage::recommend::Complexity;
    use proptest::prelude::*;

    #[test]
    fn query_parameters_are_parsed_and_optional() {
        assert_eq!(parse(""), Ok(RecommendationQuery::default()));
        assert_eq!(
            parse("task_type=retrieval&complexity=%68igh&max_latency_ms=50"),
            Ok(RecommendationQuery {
                task_type: TaskType::Search,
                complexity: Some(Complexity::High),
                max_latency: Some(Duration::from_millis(50)),
            })
        );
    }

    proptest! {
        #[test]
        fn arbitrary_query_never_panics(text in "[a-z_=&%+0-9]{0,60}") {
            drop(parse(&text));
        }
    }
}
