//! State of `caxton top`. Pure: polls and keys change it and may return an order.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use super::super::events::describe;
use super::super::intake;
use super::super::memory::nearest_limit;
use super::keys::KeyAction;
use crate::api::wire::events::Event;
use crate::api::wire::memory::{MemoryStatus, ModelMemory};
use crate::api::wire::{DaemonStatus, ModelStats, Package};

/// Number of events that are kept: more than any screen shows.
const EVENTS: usize = 64;

/// Answers of the daemon to one poll.
pub(super) struct Snapshot {
    /// Time of the last answer.
    pub(super) at: Instant,
    /// Answer of `/status`.
    pub(super) status: DaemonStatus,
    /// Answer of `/api/memory/status`.
    pub(super) memory: MemoryStatus,
    /// Answer of `/api/models/stats`.
    pub(super) stats: Vec<ModelStats>,
    /// Events since the previous poll.
    pub(super) events: Vec<Event>,
}

/// Order from a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TopCommand {
    /// Quit the program.
    Quit,
    /// Load a model; `pinned` also pins or unpins it.
    Load {
        /// Model as `id@version`.
        model: String,
        /// Whether to pin or to unpin it; `None` changes nothing.
        pinned: Option<bool>,
    },
    /// Unload a model.
    Unload {
        /// Model as `id@version`.
        model: String,
    },
}

impl fmt::Display for TopCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quit => f.write_str("quit"),
            Self::Load { model, pinned: None } => write!(f, "loading {model}"),
            Self::Load { model, pinned: Some(true) } => write!(f, "pinning {model}"),
            Self::Load { model, pinned: Some(false) } => write!(f, "unpinning {model}"),
            Self::Unload { model } => write!(f, "unloading {model}"),
        }
    }
}

/// An installed model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: String,
    pub(super) version: String,
    /// State of the model in one word.
    pub(super) residency: String,
    /// Bytes of the weights, while the model is in memory.
    pub(super) bytes: u64,
    /// Number of waiting requests.
    pub(super) waiting: usize,
    pub(super) pinned: bool,
    /// Seconds since the last use, while the model is in memory.
    pub(super) idle: Option<u64>,
}

impl Row {
    fn new(package: &Package, memory: Option<&ModelMemory>) -> Self {
        let residency = match package.status.as_str() {
            "available" => package.residency.clone().unwrap_or_default(),
            wrong => wrong.to_owned(),
        };
        Self {
            id: package.id.clone(),
            version: package.version.clone(),
            residency,
            bytes: package.resident_bytes,
            waiting: package.waiting,
            pinned: memory.is_some_and(|model| model.pinned),
            idle: memory.and_then(|model| model.idle_seconds),
        }
    }

    /// Returns the name of the model for a request.
    pub(super) fn name(&self) -> String {
        format!("{}@{}", self.id, self.version)
    }
}

/// Rates per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rates {
    pub(super) requests: f64,
    pub(super) failures: f64,
    pub(super) texts: f64,
    pub(super) tokens: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    requests: u64,
    failures: u64,
    texts: u64,
    tokens: u64,
}

impl Totals {
    fn of(stats: &[ModelStats]) -> Self {
        let sum = |of: fn(&ModelStats) -> u64| stats.iter().map(of).fold(0, u64::saturating_add);
        Self {
            requests: sum(|model| model.requests),
            failures: sum(|model| model.failures),
            texts: sum(|model| model.texts),
            tokens: sum(|model| model.tokens),
        }
    }

    /// Returns the rates since `before`, which were the totals `elapsed` ago.
    fn since(self, before: Self, elapsed: Duration) -> Option<Rates> {
        let seconds = elapsed.as_secs_f64();
        if seconds <= 0.0 {
            return None;
        }
        // The counts of models that were forgotten disappear, so that a total may fall.
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        Some(Rates {
            requests: rate(self.requests, before.requests),
            failures: rate(self.failures, before.failures),
            texts: rate(self.texts, before.texts),
            tokens: rate(self.tokens, before.tokens),
        })
    }
}

/// State of the program.
#[derive(Default)]
pub(super) struct TopState {
    /// Answers of the last successful poll.
    pub(super) look: Option<Snapshot>,
    /// Error of the last poll, if it failed.
    pub(super) lost: Option<String>,
    /// Models in the order of the status.
    pub(super) rows: Vec<Row>,
    /// Rates between the last two polls.
    pub(super) rates: Option<Rates>,
    /// Events, the latest last.
    pub(super) events: VecDeque<Event>,
    /// Message about the last key.
    pub(super) said: Option<String>,
    /// Whether the help page is shown.
    pub(super) help: bool,
    selected: Option<String>,
    totals: Totals,
    last_event: u64,
}

impl TopState {
    /// Returns the id of the last known event; 0 before the first.
    pub(super) fn last_event(&self) -> u64 {
        self.last_event
    }

    /// Returns the index of the selected row.
    pub(super) fn selected(&self) -> Option<usize> {
        let name = self.selected.as_ref()?;
        self.rows.iter().position(|row| row.name() == *name)
    }

    /// Applies the answers of a poll.
    pub(super) fn update(&mut self, mut look: Snapshot) {
        let totals = Totals::of(&look.stats);
        if let Some(before) = &self.look {
            self.rates = totals.since(self.totals, look.at.duration_since(before.at));
        }
        self.totals = totals;
        let memory = &look.memory.models;
        let of = |package: &Package| {
            let same =
                |model: &&ModelMemory| model.id == package.id && model.version == package.version;
            Row::new(package, memory.iter().find(same))
        };
        let place = self.selected();
        self.rows = look.status.packages.iter().map(of).collect();
        // If the selected model is gone, select the model that is now in its row.
        if self.selected().is_none() {
            let place = place.unwrap_or(0).min(self.rows.len().saturating_sub(1));
            self.selected = self.rows.get(place).map(Row::name);
        }
        for event in look.events.drain(..) {
            self.last_event = event.id.unwrap_or(0).max(self.last_event);
            if self.events.len() == EVENTS {
                self.events.pop_front();
            }
            self.events.push_back(event);
        }
        self.lost = None;
        self.look = Some(look);
    }

    /// Records that a poll failed.
    pub(super) fn on_disconnect(&mut self, why: String) {
        self.lost = Some(why);
        self.rates = None;
    }

    /// Shows a message at the bottom of the screen.
    pub(super) fn show_message(&mut self, said: String) {
        self.said = Some(said);
    }

    /// Handles a key.
    pub(super) fn on_key(&mut self, key: KeyAction) -> Option<TopCommand> {
        self.said = None;
        if self.help {
            self.help = false;
            return None;
        }
        let row = self.selected().and_then(|selected| self.rows.get(selected));
        let model = row.map(Row::name);
        match key {
            KeyAction::Quit => return Some(TopCommand::Quit),
            KeyAction::Help => self.help = true,
            KeyAction::Other => {}
            KeyAction::Up => self.select(|place| place.saturating_sub(1)),
            KeyAction::Down => self.select(|place| place + 1),
            KeyAction::Load => return Some(TopCommand::Load { model: model?, pinned: None }),
            KeyAction::Unload => return Some(TopCommand::Unload { model: model? }),
            KeyAction::Pin => {
                let pinned = !row?.pinned;
                return Some(TopCommand::Load { model: model?, pinned: Some(pinned) });
            }
        }
        None
    }

    fn select(&mut self, to: impl Fn(usize) -> usize) {
        let last = self.rows.len().saturating_sub(1);
        let place = self.selected().map_or(0, |place| to(place).min(last));
        self.selected = self.rows.get(place).map(Row::name);
    }

    /// Returns the last events as text, the latest first.
    pub(super) fn messages(&self) -> impl Iterator<Item = (Option<u64>, String)> {
        self.events.iter().rev().map(|event| (event.at, describe(event)))
    }

    /// Returns the packages on their way as text, those that need an operator first.
    pub(super) fn packages(&self) -> Vec<String> {
        self.look.as_ref().map_or_else(Vec::new, |look| intake::lines(&look.status))
    }

    /// Returns the longest queue: its waiting requests, its limit, and its model.
    pub(super) fn queue(&self) -> Option<(usize, usize, &str)> {
        let limit = self.look.as_ref()?.status.queue_size;
        let longest = self.rows.iter().max_by_key(|row| row.waiting)?;
        Some((longest.waiting, limit, &longest.id))
    }

    /// Returns the limit with the largest used share; see [`nearest_limit`].
    pub(super) fn memory(&self) -> Option<(u64, u64, &str)> {
        nearest_limit(&self.look.as_ref()?.memory)
    }
}
