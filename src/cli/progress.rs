//! Progress bars of long work on standard error, shown only on a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Fewest bytes (or texts) for a bar. Less work is over before the bar could be read.
const WORTH_SHOWING: u64 = 64;

/// Creates a bar over `total` bytes; invisible unless standard error is a terminal.
pub(super) fn bytes(total: u64, what: &str) -> ProgressBar {
    bar(total, what, "{msg} {wide_bar} {bytes}/{total_bytes} {eta}")
}

/// Creates a bar over `total` texts; invisible unless standard error is a terminal.
pub(super) fn texts(total: u64, what: &str) -> ProgressBar {
    bar(total, what, "{msg} {wide_bar} {pos}/{len} {eta}")
}

/// Creates a counter of texts whose number is unknown; invisible unless standard error is a
/// terminal.
pub(super) fn counted(what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {pos} texts, {per_sec}");
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
        .with_style(style.unwrap_or_else(|_malformed| ProgressStyle::default_bar()))
        .with_message(what.to_owned())
}

fn bar(total: u64, what: &str, template: &str) -> ProgressBar {
    // indicatif draws nothing unless standard error is a terminal.
    let target = match total {
        0..WORTH_SHOWING => ProgressDrawTarget::hidden(),
        _ => ProgressDrawTarget::stderr(),
    };
    let style = ProgressStyle::with_template(template);
    ProgressBar::with_draw_target(Some(total), target)
        .with_style(style.unwrap_or_else(|_malformed| ProgressStyle::default_bar()))
        .with_message(what.to_owned())
}
