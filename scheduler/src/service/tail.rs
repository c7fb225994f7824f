//! The last lines of what items have written (`--tail`). A single task's are found by its agent; those of items lie in
//! several files on several agents, so here the stream is read and only its end is kept.

use smalti_proto::v1::OutputChunk;
use std::collections::VecDeque;

/// Most bytes that are kept, however few lines they are.
const MOST: usize = 16 << 20;

/// Keeps the last lines of what it is given.
#[derive(Debug)]
pub(super) struct Tail {
    lines: u64,
    kept: VecDeque<OutputChunk>,
    bytes: usize,
    /// Line ends in what is kept.
    ends: u64,
}

impl Tail {
    pub(super) const fn new(lines: u64) -> Self {
        Self { lines, kept: VecDeque::new(), bytes: 0, ends: 0 }
    }

    /// Takes what comes next.
    pub(super) fn take(&mut self, chunk: OutputChunk) {
        if chunk.data.is_empty() {
            return;
        }
        self.bytes += chunk.data.len();
        self.ends += ends(&chunk.data);
        self.kept.push_back(chunk);
        while self.bytes > MOST || self.held() > self.lines {
            self.drop_first_line();
        }
    }

    /// What is kept, in order.
    pub(super) fn into_chunks(self) -> VecDeque<OutputChunk> {
        self.kept
    }

    /// Lines that are kept; an unfinished last one counts.
    fn held(&self) -> u64 {
        let open = self.kept.back().is_some_and(|chunk| !chunk.data.ends_with(b"\n"));
        self.ends + u64::from(open)
    }

    fn drop_first_line(&mut self) {
        while let Some(first) = self.kept.front_mut() {
            let end = first.data.iter().position(|b| *b == b'\n');
            let cut = end.map_or(first.data.len(), |end| end + 1);
            self.bytes -= cut;
            self.ends -= u64::from(end.is_some());
            if cut == first.data.len() {
                self.kept.pop_front();
            } else {
                first.data = first.data.split_off(cut);
            }
            if end.is_some() {
                return;
            }
        }
    }
}

fn ends(data: &[u8]) -> u64 {
    data.iter().filter(|b| **b == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(lines: u64, chunks: &[&'static str]) -> String {
        let mut tail = Tail::new(lines);
        for data in chunks {
            tail.take(OutputChunk { data: (*data).into(), ..OutputChunk::default() });
            assert_eq!(tail.bytes, tail.kept.iter().map(|c| c.data.len()).sum::<usize>());
            assert_eq!(tail.ends, tail.kept.iter().map(|c| ends(&c.data)).sum::<u64>());
        }
        tail.into_chunks().iter().map(|c| String::from_utf8_lossy(&c.data).into_owned()).collect()
    }

    #[test]
    fn the_last_lines_are_kept_however_they_are_cut() {
        assert_eq!(last(2, &["a\nb\nc\n"]), "b\nc\n");
        assert_eq!(last(2, &["a\nb", "b\n", "c\n"]), "bb\nc\n");
        assert_eq!(last(1, &["a\n", "open"]), "open");
        assert_eq!(last(2, &["a\nop", "en", ""]), "a\nopen");
        assert_eq!(last(0, &["a\nb"]), "");
        assert_eq!(last(9, &["a\n", "b\n"]), "a\nb\n");
    }

    #[test]
    fn one_endless_line_is_not_kept_for_ever() {
        let mut tail = Tail::new(1);
        for _ in 0..40 {
            tail.take(OutputChunk { data: vec![b'x'; 1 << 20].into(), ..OutputChunk::default() });
            assert!(tail.bytes <= MOST);
        }
    }
}
