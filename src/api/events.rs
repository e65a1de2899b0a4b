//! Serves `GET /v1/events`: events of the daemon as server-sent events
//! (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).
//!
//! Invariant: every answer ends when the daemon drains, so that a listening client does not delay
//! the shutdown.

use std::convert::Infallible;
use std::time::{Duration, UNIX_EPOCH};

use axum::Extension;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderName};
use axum::response::{IntoResponse, Response, Sse, sse};
use futures_util::stream;
use tokio_util::sync::CancellationToken;

use super::App;
use super::error::ApiError;
use super::peer_credentials::PeerCredentials;
use super::streams::{EndlessBody, StreamSlot};
use super::visibility::Visibility;
use super::wire;
use crate::base::units::milliseconds;
use crate::telemetry::events::{Event, EventItem, EventRecord, Subscription};
use crate::telemetry::log::Message;

/// Header with the id of the last event that the client received. Browsers send it when they
/// reconnect.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Time without an event after which a comment is sent, to detect broken connections.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Parameters of [`follow`].
const PARAMETERS: [&str; 2] = ["since", "follow"];

/// Parameters of a request for events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct EventsQuery {
    /// Id after which remembered events are sent first.
    since: Option<u64>,
    /// Whether the answer continues with new events.
    follow: bool,
}

/// Streams new events to the client. With `since=ID` or the header `Last-Event-ID`, it first sends
/// the remembered events after this id; 0 requests all. With `follow=false`, the answer ends after
/// the remembered events.
pub(super) async fn follow(
    State(app): State<App>,
    visibility: Visibility,
    RawQuery(query): RawQuery,
    peer: Option<Extension<PeerCredentials>>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let EventsQuery { since, follow } = parse(query.as_deref().unwrap_or_default())?;
    let last = headers.get(&LAST_EVENT_ID).map(|id| {
        let id = id.to_str().unwrap_or_default();
        number(LAST_EVENT_ID.as_str(), id)
    });
    let since = last.transpose()?.or(since);
    // An answer with only remembered events ends by itself and does not count as an open stream.
    let slot = match follow {
        true => Some(
            app.streams.open(peer.map_or(PeerCredentials::UNPRIVILEGED, |Extension(peer)| peer))?,
        ),
        false => None,
    };
    let draining = app.draining.clone();
    let state = EventStream {
        listener: app.events.subscribe(since),
        visibility,
        follow,
        draining,
        _slot: slot,
    };
    let events = stream::unfold(state, |mut state| async move {
        let event = state.next().await?;
        Some((Ok::<_, Infallible>(event), state))
    });
    let mut response = Sse::new(events).into_response();
    if follow {
        response.extensions_mut().insert(EndlessBody);
    }
    Ok(response)
}

/// State of one client's answer.
struct EventStream {
    listener: Subscription,
    visibility: Visibility,
    follow: bool,
    draining: CancellationToken,
    /// Slot of the stream, released with the answer.
    _slot: Option<StreamSlot>,
}

impl EventStream {
    async fn next(&mut self) -> Option<sse::Event> {
        // Hidden events do not reset this timer. Otherwise the client could wait for a long time
        // without any data.
        let mut silence = std::pin::pin!(tokio::time::sleep(KEEP_ALIVE));
        let event = loop {
            let item = if self.follow {
                tokio::select! {
                    biased;
                    () = self.draining.cancelled() => return None,
                    () = &mut silence => {
                        return Some(sse::Event::default().comment("keep-alive"));
                    }
                    item = self.listener.next() => item?,
                }
            } else {
                self.listener.next_from_history()?
            };
            if let Some(event) = self.visibility.event(to_wire(&item)) {
                break event;
            }
        };
        let mut message = sse::Event::default().event(&event.kind);
        if let Some(id) = event.id {
            message = message.id(id.to_string());
        }
        message
            .json_data(&event)
            .inspect_err(|error| {
                tracing::error!(
                    name: Message::InternalFault.name(),
                    %error,
                    "an event could not be serialized"
                )
            })
            .ok()
    }
}

fn to_wire(item: &EventItem) -> wire::events::Event {
    let of = |kind: &str| wire::events::Event { kind: kind.to_owned(), ..Default::default() };
    let of_model = |kind: &str, model, reason| wire::events::Event {
        model: Some(model),
        reason: Some(reason),
        ..of(kind)
    };
    let record = match item {
        EventItem::Record(record) => record,
        EventItem::Lagged(missed) => {
            return wire::events::Event { missed: Some(*missed), ..of("lagged") };
        }
    };
    let EventRecord { id, at, event } = &**record;
    let at = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let event = event.clone();
    let shown = match event {
        Event::ModelLoaded { model, bytes, duration } => wire::events::Event {
            model: Some(model),
            bytes: Some(bytes),
            duration_ms: Some(milliseconds(duration)),
            ..of("model_loaded")
        },
        Event::ModelUnloaded { model, reason, bytes } => wire::events::Event {
            model: Some(model),
            reason: Some(reason),
            bytes,
            ..of("model_unloaded")
        },
        Event::ModelEvicted { model, reason, bytes } => wire::events::Event {
            model: Some(model),
            reason: Some(reason),
            bytes,
            ..of("model_evicted")
        },
        Event::ModelFailed { model, reason } => of_model("model_failed", model, reason),
        Event::PressureChanged { level, before, reason } => wire::events::Event {
            level: Some(level.to_owned()),
            level_before: Some(before.to_owned()),
            reason,
            ..of("pressure_changed")
        },
        Event::PackageAccepted { model, file } => {
            wire::events::Event { model: Some(model), file, ..of("package_accepted") }
        }
        Event::PackageRefused { file, reason } => {
            wire::events::Event { file, reason: Some(reason), ..of("package_refused") }
        }
        Event::PackageWaiting { file, state, reason } => wire::events::Event {
            file: Some(file),
            state: Some(state.to_owned()),
            reason,
            ..of("package_waiting")
        },
        Event::PackageFailed { file, reason, retry_in } => wire::events::Event {
            file: Some(file),
            reason: Some(reason),
            retry_in_seconds: retry_in.map(|time| time.as_secs()),
            ..of("package_failed")
        },
        Event::PackageRemoved { model, reason } => of_model("package_removed", model, reason),
        Event::StoreLimit { model, reason } => of_model("store_limit", model, reason),
        Event::ModelCorrupt { model, reason } => of_model("model_corrupt", model, reason),
        Event::ModelRolledBack { model, from, to } => wire::events::Event {
            model: Some(model),
            version_before: Some(from),
            version: Some(to),
            ..of("model_rolled_back")
        },
        Event::UpdateWaiting { model } => {
            wire::events::Event { model: Some(model), ..of("update_waiting") }
        }
        Event::ModelApproved { model } => {
            wire::events::Event { model: Some(model), ..of("model_approved") }
        }
        Event::MemoryFlushed { models, freed_bytes } => {
            wire::events::Event { models, bytes: Some(freed_bytes), ..of("memory_flushed") }
        }
        Event::ConfigurationApplied { generation } => {
            wire::events::Event { generation: Some(generation), ..of("configuration_applied") }
        }
        Event::ConfigurationRefused { problems } => {
            wire::events::Event { problems, ..of("configuration_refused") }
        }
        Event::Fallback { model, answered_by, reason } => wire::events::Event {
            model: Some(model),
            answered_by: Some(answered_by),
            reason: Some(reason),
            ..of("fallback")
        },
    };
    wire::events::Event { id: Some(*id), at: Some(at), ..shown }
}

/// Parses the query. Every parameter is optional.
fn parse(text: &str) -> Result<EventsQuery, ApiError> {
    let mut query = EventsQuery { since: None, follow: true };
    for (name, value) in form_urlencoded::parse(text.as_bytes()) {
        let invalid = |message| ApiError::invalid(Some(name.to_string()), message);
        match (name.as_ref(), value.as_ref()) {
            ("since", value) => query.since = Some(number("since", value)?),
            ("follow", "true") => query.follow = true,
            ("follow", "false") => query.follow = false,
            ("follow", value) => {
                let message = format!("follow is {value:?}; expected \"true\" or \"false\"");
                return Err(invalid(message));
            }
            _ => {
                let known = PARAMETERS.join(", ");
                return Err(invalid(format!(
                    "the parameter {name:?} is unknown; expected {known}"
                )));
            }
        }
    }
    Ok(query)
}

fn number(name: &str, value: &str) -> Result<u64, ApiError> {
    value.parse().map_err(|_no_number| {
        let message = format!("{name} is {value:?}; expected the id of an event, or 0");
        ApiError::invalid(Some(name.to_owned()), message)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn query_parameters_are_parsed_and_optional() {
        let all = |since, follow| Ok(EventsQuery { since, follow });
        assert_eq!(parse(""), all(None, true));
        assert_eq!(parse("since=12&follow=false"), all(Some(12), false));
        for wrong in ["since=", "since=-1", "follow=", "follow=no", "until=3"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn absent_event_fields_are_omitted() {
        let event = Event::PackageRefused { file: None, reason: "no".to_owned() };
        let record = EventRecord { id: 7, at: UNIX_EPOCH + Duration::from_secs(9), event };
        let shown = serde_json::to_string(&to_wire(&EventItem::Record(Arc::new(record)))).unwrap();
        assert_eq!(shown, r#"{"id":7,"at":9,"type":"package_refused","reason":"no"}"#);
        let shown = serde_json::to_string(&to_wire(&EventItem::Lagged(3))).unwrap();
        assert_eq!(shown, r#"{"type":"lagged","missed":3}"#);
    }

    proptest! {
        #[test]
        fn arbitrary_query_never_panics(text in "[a-z_=&%+0-9]{0,60}") {
            drop(parse(&text));
        }
    }
}
