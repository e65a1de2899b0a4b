//! The two text formats that Prometheus reads.
//!
//! The encoder writes OpenMetrics 1.0
//! (<https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md>). The
//! older format, 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>), is read by
//! all other tools: `promtool check metrics`, node_exporter's textfile collector, and people. It
//! differs in the metadata of a counter, whose name has the suffix `_total` there too, and has
//! neither units nor an end marker.

/// Text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's text format 0.0.4.
    Classic,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// Selects the format for a client by its `Accept` header: OpenMetrics if the header names it,
    /// and otherwise [`Format::Classic`].
    pub fn accepted(accept: Option<&str>) -> Self {
        let names = |accept: &str| {
            accept.split(',').any(|range| {
                let kind = range.split(';').next().unwrap_or_default().trim();
                kind.eq_ignore_ascii_case("application/openmetrics-text")
            })
        };
        if accept.is_some_and(names) { Self::OpenMetrics } else { Self::Classic }
    }

    /// Returns the media type.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Converts `open_metrics` to this format.
    pub(super) fn of(self, open_metrics: String) -> String {
        match self {
            Self::Classic => classic(&open_metrics),
            Self::OpenMetrics => open_metrics,
        }
    }
}

fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    // A HELP line precedes the TYPE line of its family, but its counter suffix depends on the type.
    // Keep it until the type is known.
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(said) = line.strip_prefix("# HELP ") {
            help = said.split_once(' ');
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|said| said.split_once(' '))
        {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, meaning)) = help.take().filter(|(named, _)| *named == name) {
                text.extend(["# HELP ", name, suffix, " ", meaning, "\n"]);
            }
            text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            text.extend([line, "\n"]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_differ_only_in_family_metadata() {
        let open = "# HELP a_seconds Time.\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\n\
                    a_seconds_sum 1.5\n# HELP b Things.\n# TYPE b counter\nb_total{c=\"# HELP\"} 2\n\
                    # HELP d Level.\n# TYPE d gauge\nd 3\n# EOF\n";
        let classic = "# HELP a_seconds Time.\n# TYPE a_seconds histogram\na_seconds_sum 1.5\n\
                       # HELP b_total Things.\n# TYPE b_total counter\nb_total{c=\"# HELP\"} 2\n\
                       # HELP d Level.\n# TYPE d gauge\nd 3\n";
        assert_eq!(Format::Classic.of(open.to_owned()), classic);
        assert_eq!(Format::OpenMetrics.of(open.to_owned()), open);
    }

    #[test]
    fn accept_header_selects_format() {
        // The header of Prometheus 2.42.
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;\
                          version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, format) in [
            (None, Format::Classic),
            (Some("*/*"), Format::Classic),
            (Some("text/plain; version=0.0.4"), Format::Classic),
            (Some("x-application/openmetrics-text"), Format::Classic),
            (Some(prometheus), Format::OpenMetrics),
            (Some("text/html, Application/OpenMetrics-Text"), Format::OpenMetrics),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept:?}");
        }
    }
}
