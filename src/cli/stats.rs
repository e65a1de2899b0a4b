//! `caxton model stats`: shows the use and speed of each model, and its next expected use.

use std::time::{Duration, UNIX_EPOCH};

use clap::Args;

use super::{Connection, print_json, print_table};
use crate::api::wire::{ModelStats, ModelStatsList};

/// Factor of the latency from which a change is shown.
const SLOWER: f64 = std::f64::consts::SQRT_2 + 0.01;

/// Show the use and the speed of each model.
#[derive(Debug, Args)]
pub(super) struct Stats {
    /// Order of the models: by name, or the most used first.
    #[arg(long, value_name = "ORDER", default_value = "name", value_parser = ["name", "use"])]
    sort: String,
    /// Print the complete answer of the daemon in JSON.
    #[arg(long)]
    json: bool,
}

impl Stats {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        let path = format!("/api/models/stats?sort={}", self.sort);
        let stats: ModelStatsList = connection.connect().await?.get(&path).await?;
        if self.json {
            return print_json(&stats);
        }
        let rows: Vec<Vec<String>> = stats.models.iter().map(row).collect();
        let headings = [
            "MODEL",
            "VERSION",
            "REQUESTS",
            "FAILED",
            "TEXTS",
            "TOKENS",
            "LATENCY",
            "LOADS",
            "LOADING",
            "USES/H",
            "WEEK",
            "REQ/WEEK",
            "TREND",
            "PEAK HOURS",
            "LAST USE",
            "NEXT USE",
        ];
        Ok(print_table(&headings, &rows)?)
    }
}

fn row(model: &ModelStats) -> Vec<String> {
    let latency = model.recent_latency_ms.as_ref();
    let loading = model.load_ms.map(|load| format!("{load:.0} ms"));
    vec![
        model.id.clone(),
        // The counts of a removed model remain.
        if model.installed {
            model.version.clone()
        } else {
            format!("{} (removed)", model.version)
        },
        model.requests.to_string(),
        model.failures.to_string(),
        model.texts.to_string(),
        model.tokens.to_string(),
        or_dash(latency.map(|latency| format!("{:.1}, {:.1} ms", latency.p50, latency.p95))),
        model.loads.to_string(),
        or_dash(loading),
        format!("{:.1}", model.uses_per_hour),
        // Hours with a use in the last seven days, and in the seven days before.
        or_dash(
            model.hours_used.as_ref().map(|hours| {
                format!("{} h (before: {} h)", hours.last_7_days, hours.previous_7_days)
            }),
        ),
        or_dash(model.daily_requests.as_deref().map(weekly_requests)),
        or_dash(trend(model).map(str::to_owned)),
        or_dash(model.use_by_hour.as_deref().and_then(peak_hours)),
        or_dash(model.last_used_at.map(time)),
        or_dash(
            model
                .next_use
                .as_ref()
                .map(|next| format!("{} ({:.0} %)", time(next.at), next.probability * 100.0)),
        ),
    ]
}

/// Returns the requests of the last seven days, and of the days before. `daily` has the requests of
/// each day, the last day at the end.
fn weekly_requests(daily: &[u64]) -> String {
    let (before, last) = daily.split_at(daily.len().saturating_sub(7));
    let total = |days: &[u64]| days.iter().copied().fold(0, u64::saturating_add);
    format!("{} (before: {})", total(last), total(before))
}

/// Compares the recent latency with that of all answers. The percentiles are exact to a factor of
/// √2, so that a smaller change is none.
fn trend(model: &ModelStats) -> Option<&'static str> {
    let change = model.recent_latency_ms.as_ref()?.p95 / model.latency_ms.as_ref()?.p95;
    Some(match change {
        change if change > SLOWER => "slower",
        change if change < 1.0 / SLOWER => "faster",
        _ => "steady",
    })
}

/// Returns the hours of the day (UTC) in which the model is used most: up to three, each with at
/// least half of the use of the first. `by_hour` has the share of use of each hour of the week.
fn peak_hours(by_hour: &[f64]) -> Option<String> {
    let mut hours = Vec::from_iter((0..24_usize).map(|hour| {
        let days = by_hour.iter().skip(hour).step_by(24);
        (hour, days.sum::<f64>())
    }));
    hours.sort_by(|a, b| b.1.total_cmp(&a.1));
    let most = hours.first().map(|(_, use_)| *use_).filter(|most| *most > 0.0)?;
    let mut peak = Vec::from_iter(
        hours.into_iter().take(3).filter(|(_, use_)| *use_ >= most / 2.0).map(|(hour, _)| hour),
    );
    peak.sort_unstable();
    Some(Vec::from_iter(peak.iter().map(|hour| format!("{hour:02}"))).join(", "))
}

fn or_dash(cell: Option<String>) -> String {
    cell.unwrap_or_else(|| "-".to_owned())
}

/// Formats a time in RFC 3339, in UTC; a number that is out of range is printed unchanged.
pub(super) fn time(at: u64) -> String {
    match UNIX_EPOCH.checked_add(Duration::from_secs(at)) {
        // Later times are beyond the year 9999, which humantime cannot format.
        Some(time) if at < 253_402_300_800 => humantime::format_rfc3339_seconds(time).to_string(),
        _ => at.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weekly_requests_compare_two_weeks() {
        assert_eq!(weekly_requests(&[1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 5, 6]), "11 (before: 7)");
        // Another version of the daemon may send fewer days.
        assert_eq!(weekly_requests(&[2, u64::MAX]), format!("{} (before: 0)", u64::MAX));
    }

    #[test]
    fn peak_hours_are_the_most_used_ones() {
        let mut by_hour = vec![0.0; 168];
        assert_eq!(peak_hours(&by_hour), None);
        // Monday and Tuesday at 9, Monday at 14 and 20, and rarely at 3.
        for (hour, share) in [(9, 1.0), (33, 0.5), (14, 0.8), (20, 0.8), (3, 0.1)] {
            by_hour[hour] = share;
        }
        assert_eq!(peak_hours(&by_hour).unwrap(), "09, 14, 20");
        by_hour[20] = 0.7;
        assert_eq!(peak_hours(&by_hour).unwrap(), "09, 14");
    }
}
