//! What is shown on a terminal and nowhere else: progress bars on stderr.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

/// Redraws per second: enough for the eye.
const REDRAWS: u8 = 10;

/// A bar on stderr when that is a terminal, else one that draws nothing.
pub(crate) fn bar(length: u64, template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr_with_hz(REDRAWS));
    // A template that cannot be read (a `{` in a file name) is no reason to fail.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// The scale of [`show`].
const THOUSAND: u64 = 1_000;

/// A bar that is drawn only between [`show`] and [`hide`].
pub(crate) fn quiet_bar() -> ProgressBar {
    ProgressBar::with_draw_target(Some(THOUSAND), ProgressDrawTarget::hidden())
}

/// Draws a bar of [`quiet_bar`] on stderr, when that is a terminal.
pub(crate) fn show(bar: &ProgressBar, permille: u64, text: &str) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    if bar.is_hidden() {
        bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(REDRAWS));
        if let Ok(style) = ProgressStyle::with_template("{wide_msg} {bar:30} {percent}%") {
            bar.set_style(style);
        }
    }
    bar.set_message(text.to_owned());
    bar.set_position(permille.min(THOUSAND));
}

/// Takes it away again.
pub(crate) fn hide(bar: &ProgressBar) {
    if !bar.is_hidden() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
}

/// One line of smalti's own on stderr, apart from what guests write there.
pub(crate) fn note(text: &str) {
    use std::io::Write;
    // Nobody reads stderr: nothing to be done about it.
    let _ = writeln!(std::io::stderr().lock(), "smalti: {text}");
}
