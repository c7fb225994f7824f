//! Where the output of tasks goes: through to our own stdout and stderr, or into a value.

use indicatif::ProgressBar;
use smalti_proto::v1::{OutputChunk, OutputStream};
use std::io::{self, Write};

/// Most that is kept of each stream for `-o json`, in bytes.
const MAX_CAPTURED: usize = 4 << 20;

/// Takes output in the order in which it comes.
pub(crate) trait Sink: Send {
    /// Takes one chunk. An error means that nobody reads any more.
    fn take(&mut self, chunk: &OutputChunk) -> io::Result<()>;
}

/// Our own stdout and stderr; stderr of items with the item before each line.
pub(crate) struct PassThrough {
    bar: ProgressBar,
    prefixes: Prefixes,
    /// `logs --stderr`: what was asked for is data, so it goes to stdout.
    all_to_stdout: bool,
    /// Whether anything came.
    any: bool,
}

impl PassThrough {
    /// `bar` is moved out of the way while something is written.
    pub(crate) fn new(bar: ProgressBar) -> Self {
        Self { bar, prefixes: Prefixes::default(), all_to_stdout: false, any: false }
    }

    pub(crate) fn all_to_stdout() -> Self {
        Self { all_to_stdout: true, ..Self::new(ProgressBar::hidden()) }
    }

    /// Whether nothing at all was written.
    pub(crate) const fn is_empty(&self) -> bool {
        !self.any
    }
}

impl Sink for PassThrough {
    fn take(&mut self, chunk: &OutputChunk) -> io::Result<()> {
        self.any |= !chunk.data.is_empty();
        let is_stderr = chunk.stream() == OutputStream::Stderr;
        let prefixed;
        let data = match chunk.item {
            Some(item) if is_stderr => {
                prefixed = self.prefixes.apply(item, &chunk.data);
                &prefixed[..]
            }
            _ => &chunk.data[..],
        };
        let to_stderr = is_stderr && !self.all_to_stdout;
        self.bar.suspend(|| {
            if to_stderr {
                // Nobody reads stderr: the job's result is still wanted.
                let mut err = io::stderr().lock();
                let _ = err.write_all(data).and_then(|()| err.flush());
                return Ok(());
            }
            let mut out = io::stdout().lock();
            out.write_all(data)?;
            out.flush()
        })
    }
}

/// Puts `[item N] ` before each line. A line that an item left open is ended before another item's begins.
#[derive(Debug, Default)]
struct Prefixes {
    /// Whose line has begun and not ended.
    open: Option<u64>,
}

impl Prefixes {
    fn apply(&mut self, item: u64, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(data.len() + 16);
        for line in data.split_inclusive(|b| *b == b'\n') {
            if self.open.is_some_and(|open| open != item) {
                out.push(b'\n');
                self.open = None;
            }
            if self.open.is_none() {
                out.extend_from_slice(format!("[item {item}] ").as_bytes());
            }
            out.extend_from_slice(line);
            self.open = (!line.ends_with(b"\n")).then_some(item);
        }
        out
    }
}

/// Keeps the first part of each stream.
#[derive(Debug, Default)]
pub(crate) struct Capture {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Whether something was left out.
    pub(crate) truncated: bool,
}

impl Sink for Capture {
    fn take(&mut self, chunk: &OutputChunk) -> io::Result<()> {
        let kept = if chunk.stream() == OutputStream::Stderr { &mut self.stderr } else { &mut self.stdout };
        let room = MAX_CAPTURED.saturating_sub(kept.len());
        self.truncated |= chunk.data.len() > room;
        kept.extend_from_slice(&chunk.data[..chunk.data.len().min(room)]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn apply(chunks: &[(u64, &str)]) -> String {
        let mut prefixes = Prefixes::default();
        chunks.iter().map(|(item, data)| String::from_utf8(prefixes.apply(*item, data.as_bytes())).unwrap()).collect()
    }

    #[test]
    fn each_line_of_stderr_says_whose_it_is() {
        assert_eq!(apply(&[(0, "a\nb\n"), (1, "c\n")]), "[item 0] a\n[item 0] b\n[item 1] c\n");
        assert_eq!(apply(&[(0, "a"), (0, "b\n")]), "[item 0] ab\n");
        assert_eq!(apply(&[(0, "open"), (1, "c\n")]), "[item 0] open\n[item 1] c\n");
        assert_eq!(apply(&[(0, "\n\n")]), "[item 0] \n[item 0] \n");
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_cut_makes_no_difference(text in "[ab\n]{0,40}", cuts in proptest::collection::vec(0_usize..40, 0..5)) {
            let mut prefixes = Prefixes::default();
            let whole = prefixes.apply(7, text.as_bytes());
            let mut cuts: Vec<_> = cuts.into_iter().filter(|c| *c <= text.len()).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let mut prefixes = Prefixes::default();
            let parts: Vec<u8> = cuts.windows(2).flat_map(|w| prefixes.apply(7, &text.as_bytes()[w[0]..w[1]])).collect();
            prop_assert_eq!(parts, whole);
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut capture = Capture::default();
        let chunk = OutputChunk { data: vec![b'x'; MAX_CAPTURED / 2 + 1].into(), ..Default::default() };
        capture.take(&chunk).unwrap();
        assert!(!capture.truncated);
        capture.take(&chunk).unwrap();
        assert_eq!((capture.truncated, capture.stdout.len()), (true, MAX_CAPTURED));
    }
}
