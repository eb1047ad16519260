//! Progress bars: on a terminal, and none in a pipe.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

/// A bar over `steps` steps on standard error, hidden where that is no terminal.
pub(crate) fn bar(what: &'static str, steps: usize) -> ProgressBar {
    styled(what, steps as u64, "{msg:10} {bar:40} {pos}/{len} {elapsed}")
}

/// As [`bar`], over bytes.
pub(crate) fn bytes(what: &'static str, total: u64) -> ProgressBar {
    styled(what, total, "{msg:10} {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {elapsed}")
}

fn styled(what: &'static str, total: u64, template: &str) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(total), target).with_style(style).with_message(what)
}
