//! `caxton top`: shows models, memory, queue and events on one screen, and refreshes it.
//!
//! This module controls the terminal and the clock. The data is in [`state`], the drawing in
//! [`view`], the keys in [`keys`]; these are pure.
//!
//! Invariant: the terminal is restored on every exit: by key, signal, error and panic.

mod keys;
mod state;
mod view;

use std::env;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::body::Body;
use axum::http::{Method, Request};
use clap::Args;
use crossterm::event::EventStream;
use futures_util::StreamExt;
use ratatui::DefaultTerminal;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::bar::supports_unicode;
use super::client::{Client, broken, collect, segment};
use super::{Connection, chain_lines, terminal};
use crate::api::wire;
use crate::api::wire::events::Event;
use crate::api::wire::memory::{LoadModelRequest, MemoryStatus, ResidencyChange};
use crate::base::exit::Exit;
use state::{Snapshot, TopCommand, TopState};
use view::TerminalStyle;

/// Interval at which the daemon is polled.
const REFRESH: Duration = Duration::from_secs(1);
/// Width of the output without a terminal, in columns.
const WIDTH: u16 = 80;

/// Watch models, memory, queue, throughput and events, and load, unload and pin models by key.
///
/// Without a terminal, or with TERM=dumb, the command prints its screen once. It uses no colours
/// when NO_COLOR is set, and ASCII instead of lines and blocks when the locale is not UTF-8.
#[derive(Debug, Args)]
pub(super) struct Top {}

impl Top {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let socket = connection.socket()?;
        let mut state = TopState::default();
        // Connect before the screen is taken, so that a missing daemon is reported like in other
        // commands.
        state.update(poll(&socket, state.last_event()).await?);
        let set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
        let paint = TerminalStyle { colour: !set("NO_COLOR"), unicode: supports_unicode() };
        if dumb || !io::stdin().is_terminal() || !terminal::is_interactive() {
            print(&state, TerminalStyle { colour: false, ..paint })?;
            return Ok(Exit::Ok);
        }
        let mut screen = Screen::take()?;
        watch(&mut screen, &socket, state, paint).await?;
        Ok(Exit::Ok)
    }
}

/// The terminal in full-screen mode; dropping it restores the terminal.
struct Screen(DefaultTerminal);

impl Screen {
    fn take() -> anyhow::Result<Self> {
        // Undo the changes that were made before the failure.
        let taken = ratatui::try_init().inspect_err(|_error| drop(ratatui::try_restore()));
        Ok(Self(taken.context("cannot use the terminal")?))
    }

    fn draw(&mut self, state: &TopState, paint: TerminalStyle) -> anyhow::Result<()> {
        let drawn = self.0.draw(|frame| {
            let area = frame.area();
            view::draw(state, paint, area, frame.buffer_mut());
        });
        drawn.context("cannot write to the terminal")?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone does not need to be restored, so that errors are ignored.
        drop(ratatui::try_restore());
    }
}

async fn watch(
    screen: &mut Screen,
    socket: &Path,
    mut state: TopState,
    paint: TerminalStyle,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut events = EventStream::new();
    let mut ticks = tokio::time::interval(REFRESH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // One poll and one order run at a time in the background, so that keys work while the daemon is
    // slow.
    let mut looks = JoinSet::new();
    let mut orders = JoinSet::new();
    loop {
        screen.draw(&state, paint)?;
        tokio::select! {
            event = events.next() => {
                let Some(event) = event else { return Ok(()) };
                let event = event.context("cannot read from the terminal")?;
                match keys::key(&event).and_then(|key| state.on_key(key)) {
                    None => {}
                    Some(TopCommand::Quit) => return Ok(()),
                    Some(order) if orders.is_empty() => {
                        state.show_message(format!("{order}…"));
                        let socket = socket.to_owned();
                        orders.spawn(async move { execute(&socket, &order).await });
                    }
                    Some(_) => state.show_message("wait for the previous command".to_owned()),
                }
            }
            _ = ticks.tick(), if looks.is_empty() => {
                let (socket, since) = (socket.to_owned(), state.last_event());
                looks.spawn(async move { poll(&socket, since).await });
            }
            Some(looked) = looks.join_next() => match looked? {
                Ok(poll) => state.update(poll),
                Err(error) => state.on_disconnect(one_line(&error)),
            },
            Some(said) = orders.join_next() => match said? {
                Ok(said) => state.show_message(said),
                Err(error) => state.show_message(one_line(&error)),
            },
            _ = terminate.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
        }
    }
}

fn one_line(error: &anyhow::Error) -> String {
    chain_lines(error).replace("\n  cause: ", ": ")
}

/// Fetches everything that is shown, with the events after the id `since`.
async fn poll(socket: &Path, since: u64) -> anyhow::Result<Snapshot> {
    let mut client = Client::connect(socket).await?;
    let status: wire::DaemonStatus = client.get("/status").await?;
    let memory: MemoryStatus = client.get("/api/memory/status").await?;
    let stats: wire::ModelStatsList = client.get("/api/models/stats").await?;
    let path = format!("/v1/events?follow=false&since={since}");
    let answer = client.send(Request::get(path), Body::empty()).await?;
    let answer = collect(answer).await?;
    let mut events: Vec<Event> = Vec::new();
    for line in String::from_utf8_lossy(&answer).lines() {
        if let Some(json) = line.strip_prefix("data:") {
            events.push(serde_json::from_str(json).map_err(broken)?);
        }
    }
    Ok(Snapshot { at: Instant::now(), status, memory, stats: stats.models, events })
}

/// Executes an order. Returns the result as a message.
async fn execute(socket: &Path, order: &TopCommand) -> anyhow::Result<String> {
    let mut client = Client::connect(socket).await?;
    let path = |model: &str| format!("/api/memory/models/{}", segment(model));
    Ok(match order {
        TopCommand::Quit => String::new(),
        TopCommand::Load { model, pinned } => {
            let path = format!("{}/load", path(model));
            let request = LoadModelRequest { pinned: *pinned, wait: None };
            let moved: ResidencyChange = client.post(&path, &request).await?;
            let is = match pinned {
                None => "is loaded",
                Some(true) => "is pinned",
                Some(false) => "is unpinned",
            };
            format!("{} {is}, {} ms", moved.model, moved.duration_ms)
        }
        TopCommand::Unload { model } => {
            let moved: ResidencyChange =
                client.call(Method::DELETE, &path(model), Body::empty()).await?;
            format!("{} is unloaded, {} ms", moved.model, moved.duration_ms)
        }
    })
}

/// Prints the state once, as lines of text.
fn print(state: &TopState, paint: TerminalStyle) -> io::Result<()> {
    let area = Rect::new(0, 0, WIDTH, view::height(state));
    let mut buffer = Buffer::empty(area);
    view::draw(state, paint, area, &mut buffer);
    let mut out = terminal::out();
    for line in view::lines(&buffer) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}
