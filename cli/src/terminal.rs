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

/// One line of smalti's own on stderr, apart from what guests write there.
pub(crate) fn note(text: &str) {
    use std::io::Write;
    // Nobody reads stderr: nothing to be done about it.
    let _ = writeln!(std::io::stderr().lock(), "smalti: {text}");
}
