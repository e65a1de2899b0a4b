//! Drawing of `caxton top` into a buffer of cells. Pure.
//!
//! Everything is shown by text and position. Colour only repeats it, so that no information is lost
//! without colours.

use std::time::{Duration, UNIX_EPOCH};

use ratatui::buffer::Buffer;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{
    Cell, Paragraph, Row as TableRow, StatefulWidget, Table, TableState, Widget,
};

use super::super::bar::{bar, share};
use super::keys;
use super::state::{Rates, Row, TopState};
use crate::api::wire::memory::MemoryStatus;
use crate::base::printable::is_printable;
use crate::base::units::Bytes;

/// Lines above the table of models.
const HEAD: u16 = 6;
/// Packages on their way that are shown, if there is space.
const PACKAGES: usize = 3;
/// Lines of events, with their heading, if there is space.
const EVENTS: u16 = 7;
/// Lines from which on events are shown.
const ROOMY: u16 = 16;
/// Columns from which on the table is complete.
const WIDE: u16 = 72;
/// Columns from which on the table shows the waiting requests and the pins.
const MEDIUM: u16 = 52;

/// Abilities of the terminal.
#[derive(Clone, Copy, Debug)]
pub(super) struct TerminalStyle {
    /// Whether to use colours.
    pub(super) colour: bool,
    /// Whether to use characters other than ASCII.
    pub(super) unicode: bool,
}

impl TerminalStyle {
    fn coloured(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    /// Returns the style of a pressure level or of the state of a model.
    fn of(self, word: &str) -> Style {
        match word {
            "normal" | "resident" | "ready" => self.coloured(Color::Green),
            "moderate" | "loading" | "leaving" | "evicted" => self.coloured(Color::Yellow),
            "high" | "critical" | "failed" | "corrupt" | "not ready" => {
                self.coloured(Color::Red).add_modifier(Modifier::BOLD)
            }
            _ => Style::new(),
        }
    }
}

/// Returns the number of lines that show everything, for output that is not limited by a screen.
pub(super) fn height(state: &TopState) -> u16 {
    let rows = u16::try_from(state.rows.len()).unwrap_or(u16::MAX / 2);
    HEAD.saturating_add(rows).saturating_add(2 + EVENTS).saturating_add(packages_height(state))
}

/// Draws all of `area`.
pub(super) fn draw(state: &TopState, paint: TerminalStyle, area: Rect, buffer: &mut Buffer) {
    draw_all(state, paint, area, buffer);
    // Names and reasons may contain any character.
    for cell in &mut buffer.content {
        if !cell.symbol().chars().all(is_printable) {
            cell.set_symbol("?");
        }
    }
}

fn draw_all(state: &TopState, paint: TerminalStyle, area: Rect, buffer: &mut Buffer) {
    let foot = Layout::vertical([Constraint::Min(0), Constraint::Length(1)]);
    let [body, foot] = foot.areas(area);
    footer(state, paint).render(foot, buffer);
    if state.help {
        return help().render(body, buffer);
    }
    let events = if area.height >= ROOMY { EVENTS } else { 0 };
    let packages = if area.height >= ROOMY { packages_height(state) } else { 0 };
    let parts = [
        Constraint::Length(HEAD),
        Constraint::Min(0),
        Constraint::Length(packages),
        Constraint::Length(events),
    ];
    let [head, models, packages, events] = Layout::vertical(parts).areas(body);
    Paragraph::new(header(state, paint, area.width)).render(head, buffer);
    table(state, paint, models, buffer);
    Paragraph::new(package_lines(state)).render(packages, buffer);
    Paragraph::new(message_lines(state, events.height)).render(events, buffer);
}

/// Returns the lines of `buffer` as text, without trailing blanks and trailing empty lines.
pub(super) fn lines(buffer: &Buffer) -> Vec<String> {
    let area = buffer.area;
    let mut lines: Vec<String> = (area.top()..area.bottom())
        .map(|y| {
            let cells = (area.left()..area.right()).filter_map(|x| buffer.cell((x, y)));
            let line: String = cells.map(ratatui::buffer::Cell::symbol).collect();
            line.trim_end().to_owned()
        })
        .collect();
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines
}

/// Returns the lines of the packages on their way, with a heading and an empty line; 0 if there are
/// none.
fn packages_height(state: &TopState) -> u16 {
    u16::try_from(package_lines(state).len()).unwrap_or(0)
}

fn package_lines(state: &TopState) -> Vec<Line<'static>> {
    let packages = state.packages();
    if packages.is_empty() {
        return Vec::new();
    }
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let mut lines = vec![Line::styled("PACKAGES ON THEIR WAY", bold)];
    lines.extend(packages.into_iter().take(PACKAGES).map(Line::from));
    lines.push(Line::default());
    lines
}

fn header(state: &TopState, paint: TerminalStyle, width: u16) -> Vec<Line<'static>> {
    let Some(look) = &state.look else { return vec![Line::from("no data yet")] };
    let status = &look.status;
    let ready = if status.ready { "ready" } else { "not ready" };
    let uptime = humantime::format_duration(Duration::from_secs(status.uptime_seconds));
    let title = Line::from(vec![
        Span::styled(
            format!("caxton {}", status.version),
            Style::new().add_modifier(Modifier::BOLD),
        ),
        Span::raw(format!("  {} ", status.default_model)),
        Span::styled(ready, paint.of(ready)),
        Span::raw(format!("  pid {}  up {uptime}", status.pid)),
    ]);
    let bars = usize::from(width / 4).min(24);
    let level = look.memory.level.clone();
    let style = paint.of(&level);
    let memory = match state.memory() {
        Some((used, most, file)) => vec![
            Span::raw("memory   "),
            Span::styled(bar(share(used, most), bars, paint.unicode), style),
            Span::raw(format!("  {} of {} ({file})", Bytes(used), Bytes(most))),
        ],
        None => vec![Span::raw("memory   unknown")],
    };
    let shedding = if look.memory.shedding { ", requests are rejected" } else { "" };
    let headroom = Bytes(look.memory.headroom_bytes);
    let pressure = Line::from(vec![
        Span::raw("pressure "),
        Span::styled(level, style),
        Span::raw(format!("{shedding}  free {headroom}  {}", stalls(&look.memory))),
    ]);
    let queue = state.queue().map_or_else(String::new, |(waiting, limit, model)| {
        let full = bar(share(waiting as u64, limit as u64), bars, paint.unicode);
        let of = if waiting == 0 { String::new() } else { format!(" for {model}") };
        format!("queue    {full}  {waiting} of {limit} waiting{of}")
    });
    vec![
        title,
        Line::from(memory),
        pressure,
        Line::from(queue),
        Line::from(rates(state.rates)),
        Line::default(),
    ]
}

/// Formats the share of time lost to memory stalls in the control group, or else in the machine.
fn stalls(memory: &MemoryStatus) -> String {
    match memory.measured.pressure.or(memory.system.pressure) {
        Some(psi) => format!(
            "stalls {:.1} %/10s {:.1} %/60s",
            psi.some_avg10_percent, psi.some_avg60_percent
        ),
        None => "stalls not counted".to_owned(),
    }
}

fn rates(rates: Option<Rates>) -> String {
    let Some(Rates { requests, failures, texts, tokens }) = rates else {
        return "rate     -".to_owned();
    };
    let mut line = format!(
        "rate     {} requests/s  {} texts/s  {} tokens/s",
        number(requests),
        number(texts),
        number(tokens)
    );
    if failures > 0.0 {
        line.push_str(&format!("  {} failed/s", number(failures)));
    }
    line
}

/// Formats a number with about three digits.
fn number(value: f64) -> String {
    match value {
        _ if value >= 1e6 => format!("{:.1}M", value / 1e6),
        _ if value >= 1e4 => format!("{:.1}k", value / 1e3),
        _ if value >= 10.0 || value == 0.0 => format!("{value:.0}"),
        _ => format!("{value:.1}"),
    }
}

fn table(state: &TopState, paint: TerminalStyle, area: Rect, buffer: &mut Buffer) {
    let (constraints, headings): (Vec<Constraint>, Vec<Cell<'static>>) =
        columns(area.width).iter().map(|column| (column.constraint(), column.heading())).unzip();
    let rows = state
        .rows
        .iter()
        .map(|row| TableRow::new(columns(area.width).iter().map(|column| column.cell(row, paint))));
    let headings = TableRow::new(headings).style(Style::new().add_modifier(Modifier::BOLD));
    let table = Table::new(rows, constraints)
        .header(headings)
        .highlight_symbol("> ")
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut selected = TableState::new().with_selected(state.selected());
    StatefulWidget::render(table, area, buffer, &mut selected);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Column {
    Model,
    Version,
    State,
    Memory,
    Queue,
    Pinned,
    Idle,
}

fn columns(width: u16) -> &'static [Column] {
    use Column::{Idle, Memory, Model, Pinned, Queue, State, Version};
    match width {
        WIDE.. => &[Model, Version, State, Memory, Queue, Pinned, Idle],
        MEDIUM.. => &[Model, State, Memory, Queue, Pinned],
        _ => &[Model, State, Memory],
    }
}

impl Column {
    fn constraint(self) -> Constraint {
        match self {
            Self::Model => Constraint::Min(12),
            Self::Version => Constraint::Length(9),
            Self::State => Constraint::Length(9),
            Self::Memory => Constraint::Length(10),
            Self::Queue => Constraint::Length(5),
            Self::Pinned => Constraint::Length(6),
            Self::Idle => Constraint::Length(8),
        }
    }

    fn alignment(self) -> Alignment {
        match self {
            Self::Memory | Self::Queue | Self::Idle => Alignment::Right,
            Self::Model | Self::Version | Self::State | Self::Pinned => Alignment::Left,
        }
    }

    fn heading(self) -> Cell<'static> {
        let heading = match self {
            Self::Model => "MODEL",
            Self::Version => "VERSION",
            Self::State => "STATE",
            Self::Memory => "MEMORY",
            Self::Queue => "QUEUE",
            Self::Pinned => "PINNED",
            Self::Idle => "IDLE",
        };
        Cell::from(Line::from(heading).alignment(self.alignment()))
    }

    fn cell(self, row: &Row, paint: TerminalStyle) -> Cell<'static> {
        let text = match self {
            Self::Model => row.id.clone(),
            Self::Version => row.version.clone(),
            Self::State => row.residency.clone(),
            Self::Memory if row.bytes == 0 => "-".to_owned(),
            Self::Memory => Bytes(row.bytes).to_string(),
            Self::Queue => row.waiting.to_string(),
            Self::Pinned if row.pinned => "pinned".to_owned(),
            Self::Pinned => String::new(),
            Self::Idle => row.idle.map_or_else(|| "-".to_owned(), short),
        };
        let style = if self == Self::State { paint.of(&text) } else { Style::new() };
        Cell::from(Line::from(text).alignment(self.alignment())).style(style)
    }
}

/// Formats a duration with its two largest units.
fn short(seconds: u64) -> String {
    let all = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    Vec::from_iter(all.split(' ').take(2)).join(" ")
}

fn message_lines(state: &TopState, height: u16) -> Vec<Line<'static>> {
    if height == 0 {
        return Vec::new();
    }
    let heading = Line::styled("EVENTS", Style::new().add_modifier(Modifier::BOLD));
    let lines = state.messages().take(usize::from(height) - 1).map(|(at, what)| {
        let time = at.and_then(|at| UNIX_EPOCH.checked_add(Duration::from_secs(at)));
        let time = time.map(|at| humantime::format_rfc3339_seconds(at).to_string());
        // The time of day in 2026-11-21T14:31:13Z.
        let time = time.as_deref().and_then(|time| time.get(11..19)).unwrap_or("-");
        Line::from(format!("{time}  {what}"))
    });
    std::iter::once(heading).chain(lines).collect()
}

fn footer(state: &TopState, paint: TerminalStyle) -> Line<'static> {
    if let Some(why) = &state.lost {
        return Line::styled(format!("the daemon does not answer: {why}"), paint.of("failed"));
    }
    Line::from(state.said.clone().unwrap_or_else(|| keys::SUMMARY.to_owned()))
}

fn help() -> Paragraph<'static> {
    let keys = keys::HELP.iter().map(|(key, meaning)| Line::from(format!("  {key:<16}{meaning}")));
    let heading = [Line::from("caxton top: keys"), Line::default()];
    let foot = [
        Line::default(),
        Line::from(
            "Only administrators may load, unload and pin. A pin lasts until the next start.",
        ),
    ];
    Paragraph::new(Vec::from_iter(heading.into_iter().chain(keys).chain(foot)))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::super::keys::KeyAction;
    use super::super::state::{Snapshot, TopCommand};
    use super::*;
    use crate::api::wire::intake::IncomingPackage;

    const PLAIN: TerminalStyle = TerminalStyle { colour: false, unicode: false };
    const COLOURED: TerminalStyle = TerminalStyle { colour: true, unicode: true };
    const GIB: u64 = 1 << 30;

    fn package(id: &str, residency: &str, bytes: u64, waiting: usize) -> serde_json::Value {
        json!({
            "id": id, "version": "1.0.0", "revision": "0123456789ab", "current": true,
            "origin": "dropped", "status": "available", "residency": residency, "resident_bytes": bytes,
            "arithmetic": null, "waiting": waiting, "dimensions": 384, "max_sequence_length": 256,
            "precision": "int8", "architecture": "bert", "embedding_space": "x", "prompts": {},
            "languages": [], "license": "Apache-2.0", "source": null, "size_bytes": bytes,
            "package_sha256": "x", "installed_at": 0, "last_validated_at": 0, "access_count": 0,
            "last_access_at": null,
        })
    }

    fn look(at: Instant, requests: u64) -> Snapshot {
        let status = json!({
            "version": "0.1.0", "pid": 4711, "uptime_seconds": 11_531, "ready": true,
            "default_model": "bundled-mini", "threads": 4, "resident_memory_bytes": GIB / 8,
            "memory_level": "high", "memory_pressure_source": "memory.pressure", "queue_size": 1000,
            "machine_memory_bytes": 8 * GIB, "machine_memory_available_bytes": 4 * GIB,
            "configuration": { "files": [], "generation": 1, "problems": [], "restart_needed": [] },
            "tenants": [],
            "packages": [
                package("all-mpnet-base-v2", "resident", 438 << 20, 700),
                package("bundled-mini", "resident", 23 << 20, 0),
                package("paraphrase-multilingual-MiniLM-L12-v2", "evicted", 0, 0),
            ],
        });
        let model = |id: &str, pinned: bool, idle: u64| {
            json!({
                "id": id, "version": "1.0.0", "residency": "resident", "problem": null,
                "weight_bytes": 1, "peak_bytes": 2, "priority": 3, "pinned": pinned,
                "idle_seconds": idle, "expires_in_seconds": null,
            })
        };
        let psi = json!({
            "some_avg10_percent": 12.25, "some_avg60_percent": 3.0, "full_avg10_percent": 1.0,
        });
        let memory = json!({
            "level": "high", "cause": "x", "source": "memory.pressure", "shedding": true,
            "headroom_bytes": 96 << 20, "unreclaimable_bytes": GIB, "process_bytes": GIB / 2,
            "mapped_bytes": 0, "swap_bytes": 0, "pressure": psi, "configured_limit_bytes": null,
            "limits": [
                { "bytes": 8 * GIB, "unreclaimable_bytes": GIB, "file": "/sys/fs/cgroup/memory.max" },
                { "bytes": GIB, "unreclaimable_bytes": 900 << 20, "file": "/sys/fs/cgroup/c/memory.high" },
            ],
            "system": {
                "total_bytes": 8 * GIB, "available_bytes": 4 * GIB, "swap_total_bytes": 0,
                "swap_free_bytes": 0, "pressure": null,
            },
            "models": [model("all-mpnet-base-v2", true, 0), model("bundled-mini", false, 3700)],
            "actions": [],
        });
        let stats = json!([{
            "id": "bundled-mini", "version": "1.0.0", "revision": "x", "installed": true,
            "requests": requests, "failures": 0, "success_rate": 1.0, "texts": 4 * requests,
            "tokens": 100 * requests, "latency_ms": null, "recent_latency_ms": null, "loads": 1,
            "load_ms": 1.0, "uses_per_hour": 1.0, "use_by_hour": null, "next_use": null,
            "first_used_at": null, "last_used_at": null,
        }]);
        let events = json!([
            { "id": 7, "at": 1_795_271_473, "type": "model_loaded", "model": "bundled-mini@1.0.0",
              "bytes": 23 << 20, "duration_ms": 31 },
            { "id": 8, "at": 1_795_271_480, "type": "pressure_changed", "level": "high",
              "level_before": "normal", "reason": "900.0 MiB of the 1.0 GiB of memory.high" },
        ]);
        Snapshot {
            at,
            status: serde_json::from_value(status).unwrap(),
            memory: serde_json::from_value(memory).unwrap(),
            stats: serde_json::from_value(stats).unwrap(),
            events: serde_json::from_value(events).unwrap(),
        }
    }

    fn state() -> TopState {
        let mut state = TopState::default();
        let began = Instant::now();
        state.update(look(began, 1000));
        let mut later = look(began + Duration::from_secs(2), 1500);
        later.events.clear();
        state.update(later);
        state
    }

    fn screen(state: &TopState, paint: TerminalStyle, width: u16, height: u16) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(state, paint, frame.area(), frame.buffer_mut())).unwrap();
        terminal.backend().buffer().clone()
    }

    fn text(state: &TopState, paint: TerminalStyle, width: u16, height: u16) -> String {
        lines(&screen(state, paint, width, height)).join("\n")
    }

    #[test]
    fn plain_80_by_24_screen_is_ascii() {
        let expected = "\
caxton 0.1.0  bundled-mini ready  pid 4711  up 3h 12m 11s
memory   [################--]  900.0 MiB of 1.0 GiB (memory.high)
pressure high, requests are rejected  free 96.0 MiB  stalls 12.2 %/10s 3.0 %/60s
queue    [#############-----]  700 of 1000 waiting for all-mpnet-base-v2
rate     250 requests/s  1000 texts/s  25.0k tokens/s

  MODEL                     VERSION   STATE         MEMORY QUEUE PINNED     IDLE
> all-mpnet-base-v2         1.0.0     resident   438.0 MiB   700 pinned       0s
  bundled-mini              1.0.0     resident    23.0 MiB     0           1h 1m
  paraphrase-multilingual-M 1.0.0     evicted            -     0               -






EVENTS
14:31:20  pressure changed high (was normal): 900.0 MiB of the 1.0 GiB of memory
14:31:13  model loaded bundled-mini@1.0.0 23.0 MiB in 31 ms




arrows select  l load  u unload  p pin  ? help  q quit";
        assert_eq!(text(&state(), PLAIN, 80, 24), expected);
        let buffer = screen(&state(), PLAIN, 80, 24);
        assert!(
            buffer.content.iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset)
        );
        assert!(expected.is_ascii());
    }

    #[test]
    fn packages_on_their_way_are_shown_above_events() {
        let mut state = state();
        let mut later = look(Instant::now(), 2000);
        later.events.clear();
        later.status.intake = ["a", "b", "c", "d"]
            .map(|file| IncomingPackage {
                file: file.to_owned(),
                directory: "/drop".to_owned(),
                state: "reading".to_owned(),
                ..IncomingPackage::default()
            })
            .into();
        state.update(later);
        let shown = text(&state, PLAIN, 80, 24);
        let expected = "\
PACKAGES ON THEIR WAY
a: reading, in /drop
b: reading, in /drop
c: reading, in /drop

EVENTS";
        assert!(shown.contains(expected), "{shown}");
        assert!(!text(&state, PLAIN, 80, ROOMY - 1).contains("PACKAGES"));
    }

    #[test]
    fn colour_adds_no_information() {
        let (plain, coloured) = (text(&state(), PLAIN, 80, 24), text(&state(), COLOURED, 80, 24));
        let ascii = coloured.replace('█', "#").replace('░', "-");
        assert_eq!(ascii, plain);
        let buffer = screen(&state(), COLOURED, 80, 24);
        let colour = |x, y| buffer.cell((x, y)).unwrap().fg;
        assert_eq!((colour(9, 2), colour(27, 0)), (Color::Red, Color::Green));
    }

    #[test]
    fn small_screen_keeps_essentials() {
        let expected = "\
caxton 0.1.0  bundled-mini ready  pid 47
memory   [#######-]  900.0 MiB of 1.0 Gi
pressure high, requests are rejected  fr
queue    [######--]  700 of 1000 waiting
rate     250 requests/s  1000 texts/s  2

  MODEL             STATE         MEMORY
> all-mpnet-base-v2 resident   438.0 MiB
  bundled-mini      resident    23.0 MiB
  paraphrase-multil evicted            -

arrows select  l load  u unload  p pin";
        assert_eq!(text(&state(), PLAIN, 40, 12), expected);
        // Drawing must not panic at any size.
        for (width, height) in [(1, 1), (3, 2), (500, 3), (10, 200)] {
            screen(&state(), COLOURED, width, height);
            screen(&TopState::default(), PLAIN, width, height);
        }
    }

    #[test]
    fn keys_act_on_selected_model() {
        let mut state = state();
        assert_eq!(state.on_key(KeyAction::Up), None);
        assert_eq!(state.on_key(KeyAction::Down), None);
        let model = "bundled-mini@1.0.0".to_owned();
        assert_eq!(
            state.on_key(KeyAction::Unload),
            Some(TopCommand::Unload { model: model.clone() })
        );
        let pin = TopCommand::Load { model: model.clone(), pinned: Some(true) };
        assert_eq!(state.on_key(KeyAction::Pin), Some(pin));
        assert_eq!(state.on_key(KeyAction::Load), Some(TopCommand::Load { model, pinned: None }));
        for _ in 0..5 {
            state.on_key(KeyAction::Down);
        }
        assert_eq!(state.selected(), Some(2));
        // The selected model is gone.
        let mut fewer = look(Instant::now(), 1500);
        fewer.status.packages.pop();
        state.update(fewer);
        assert_eq!(state.selected(), Some(1));

        assert_eq!(state.on_key(KeyAction::Help), None);
        assert!(text(&state, PLAIN, 80, 24).starts_with("caxton top: keys"));
        // Any key closes the help, and does nothing else.
        assert_eq!(state.on_key(KeyAction::Quit), None);
        assert_eq!(state.on_key(KeyAction::Quit), Some(TopCommand::Quit));
        assert_eq!(TopState::default().on_key(KeyAction::Load), None);
    }

    #[test]
    fn lost_connection_is_shown() {
        let mut state = state();
        state.on_disconnect("cannot connect".to_owned());
        let shown = text(&state, PLAIN, 80, 24);
        assert!(shown.ends_with("the daemon does not answer: cannot connect"), "{shown}");
        assert!(shown.contains("rate     -"), "{shown}");
        state.update(look(Instant::now(), 2000));
        assert!(text(&state, PLAIN, 80, 24).ends_with("q quit"));
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 0.25, 9.9, 10.0, 9_999.0, 12_345.0, 3.2e6].map(number);
        assert_eq!(shown, ["0", "0.2", "9.9", "10", "9999", "12.3k", "3.2M"]);
    }
}
