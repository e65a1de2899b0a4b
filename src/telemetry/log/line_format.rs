//! Format of the log on stderr: one line for each record.
//!
//! A line is `TIME LEVEL event-name: text field=value …`. A record without a kind has its target in
//! the place of the name. Characters that are not printable are escaped, so a value cannot begin
//! another line or a terminal escape sequence.

use std::fmt;

use tracing::field::Field;
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer, debug_fn};
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use super::message::Message;
use crate::base::printable;

/// Returns the layer that writes each record to `writer`.
pub(super) fn layer<S, W>(writer: W) -> impl Layer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + 'static,
{
    tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(false)
        .fmt_fields(debug_fn(write_field).delimited(" "))
        .event_format(LineFormat)
}

#[derive(Debug)]
struct LineFormat;

impl<S, N> FormatEvent<S, N> for LineFormat
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let name = Message::named(metadata.name()).map_or(metadata.target(), Message::name);
        SystemTime.format_time(&mut writer)?;
        write!(writer, " {:>5} {name}: ", metadata.level())?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// Writes the text of a record, which is the field `message`, or a field with its name.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let value = format!("{value:?}");
    let value = printable::line(&value);
    match field.name() {
        "message" => write!(writer, "{value}"),
        name => write!(writer, "{name}={value}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::sync::Arc;

    use tracing_subscriber::Registry;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// Returns the lines of the records that `log` writes, each without its time.
    fn lines(log: impl FnOnce()) -> Vec<String> {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("log");
        let file = Arc::new(File::create(&path).unwrap());
        let subscriber = Registry::default().with(layer::<Registry, _>(file));
        tracing::subscriber::with_default(subscriber, log);
        let text = fs::read_to_string(&path).unwrap();
        let without_time = |line: &str| {
            let (time, rest) = line.split_once(' ').unwrap();
            assert!(time.starts_with("20") && time.ends_with('Z'), "{line}");
            rest.to_owned()
        };
        text.split_terminator('\n').map(without_time).collect()
    }

    #[test]
    fn line_has_level_name_text_and_fields() {
        let found = lines(|| {
            tracing::info!(
                name: Message::ModelLoaded.name(),
                model = %"mini@1", bytes = 7, precision = "int8",
                "model loaded"
            );
            tracing::error!(name: Message::StoreFailed.name(), error = %"disk full", "no space");
            tracing::debug!(target: "caxton::api", "connection accepted");
        });
        let expected = [
            " INFO model-loaded: model loaded model=mini@1 bytes=7 precision=\"int8\"",
            "ERROR store-failed: no space error=disk full",
            "DEBUG caxton::api: connection accepted",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn values_cannot_add_lines_or_control_characters() {
        let hostile = "a\n\u{1b}[31m\u{202e}b";
        let found = lines(|| {
            tracing::warn!(
                name: Message::PackageRefused.name(),
                file = %hostile, quoted = hostile, debug = ?hostile,
                "refused {hostile}"
            );
        });
        let escaped = "a\\n\\u{1b}[31m\\u{202e}b";
        let expected = format!(
            " WARN package-refused: refused {escaped} file={escaped} quoted=\"{escaped}\" \
             debug=\"{escaped}\""
        );
        assert_eq!(found, [expected]);
    }
}
