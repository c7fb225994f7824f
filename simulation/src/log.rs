//! What happened, line by line: a running hash of all of it, the last lines, and all lines when asked for.

use std::collections::VecDeque;
use std::fmt::{self, Write};

/// Lines that a failure shows.
const TAIL: usize = 60;
/// Bytes of one line; a launch with its whole description would drown the rest.
const MOST_LINE: usize = 900;

/// The log of one run.
#[derive(Debug)]
pub(crate) struct Log {
    hash: u64,
    lines: u64,
    tail: VecDeque<String>,
    all: Option<Vec<String>>,
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
    pub(crate) fn new(keep_all: bool) -> Self {
        // FNV-1a, 64 bits: offset basis.
        Self { hash: 0xcbf2_9ce4_8422_2325, lines: 0, tail: VecDeque::with_capacity(TAIL), all: keep_all.then(Vec::new) }
    }

    pub(crate) fn add(&mut self, line: fmt::Arguments<'_>) {
        let mut text = Line(String::with_capacity(128));
        // An error only says that the line is full.
        let _ = text.write_fmt(line);
        for byte in text.0.bytes().chain(std::iter::once(b'\n')) {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.lines += 1;
        if let Some(all) = &mut self.all {
            all.push(text.0.clone());
        }
        if self.tail.len() == TAIL {
            self.tail.pop_front();
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

    pub(crate) fn take_all(&mut self) -> Vec<String> {
        self.all.take().unwrap_or_default()
    }
}
