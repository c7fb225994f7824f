//! What happened, line by line: a running hash of all of it, the last lines, and all lines for whoever takes them.

use std::collections::VecDeque;
use std::fmt::{self, Write};

/// Lines that a failure shows.
const TAIL: usize = 60;
/// Bytes of one line; a launch with its whole description would drown the rest.
const MOST_LINE: usize = 900;

/// Takes every line as it is written.
pub type Sink = Box<dyn FnMut(&str)>;

/// The log of one run.
pub(crate) struct Log {
    hash: u64,
    lines: u64,
    tail: VecDeque<String>,
    sink: Option<Sink>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("lines", &self.lines).finish_non_exhaustive()
    }
}

/// Stops formatting once the line is full: cheaper than cutting afterwards.
struct Line(String);

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let room = MOST_LINE.saturating_sub(self.0.len());
        if s.len() <= room {
            self.0.push_str(s);
            return Ok(());
        }
        let mut end = room;
        while !s.is_char_boundary(end) {
            end -= 1;
        }
        self.0.push_str(&s[..end]);
        Err(fmt::Error)
    }
}

impl Log {
    /// A log whose lines go to `sink` as they are written.
    pub(crate) fn new(sink: Option<Sink>) -> Self {
        // FNV-1a, 64 bits: offset basis.
        Self { hash: 0xcbf2_9ce4_8422_2325, lines: 0, tail: VecDeque::with_capacity(TAIL), sink }
    }

    pub(crate) fn add(&mut self, line: fmt::Arguments<'_>) {
        let mut text = match self.tail.pop_front() {
            Some(oldest) if self.tail.len() + 1 == TAIL => {
                let mut text = Line(oldest);
                text.0.clear();
                text
            }
            Some(oldest) => {
                self.tail.push_front(oldest);
                Line(String::with_capacity(128))
            }
            None => Line(String::with_capacity(128)),
        };
        // An error only says that the line is full.
        let _ = text.write_fmt(line);
        for byte in text.0.bytes().chain(std::iter::once(b'\n')) {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.lines += 1;
        if let Some(sink) = &mut self.sink {
            sink(&text.0);
        }
        self.tail.push_back(text.0);
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn lines(&self) -> u64 {
        self.lines
    }

    pub(crate) fn tail(&self) -> Vec<String> {
        self.tail.iter().cloned().collect()
    }
}
