//! Whether the file system of the data directory has room for more work.
//!
//! Owns the look at it, about once a second. Below the reserve no tasks are taken, until there is a quarter more than it: an agent does not
//! change its mind with every block. Deliberately absent: making room (the sandboxes' and the cache's).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// Without another word: this part of the file system…
const RESERVE_PART: u64 = 100;
/// … but no more than this.
const MAX_RESERVE: u64 = 256 << 20;

/// What it saw last.
#[derive(Debug)]
pub(crate) struct Watermark {
    dir: PathBuf,
    reserve: u64,
    is_low: bool,
    looked: Option<Instant>,
}

/// Bytes that an ordinary user may still write, and the size of the file system.
pub(crate) fn room(dir: &Path) -> std::io::Result<(u64, u64)> {
    let stat = nix::sys::statvfs::statvfs(dir)?;
    Ok((stat.blocks_available().saturating_mul(stat.fragment_size()), stat.blocks().saturating_mul(stat.fragment_size())))
}

/// How much stays free if nobody says how much.
pub(crate) fn default_reserve(dir: &Path) -> u64 {
    room(dir).map_or(0, |(_, size)| (size / RESERVE_PART).min(MAX_RESERVE))
}

/// Free bytes from which on there is enough again.
const fn enough(reserve: u64) -> u64 {
    reserve / 4 * 5
}

/// How much is to be freed when this much is free; 0 when that is enough.
pub(crate) const fn missing(free: u64, reserve: u64) -> u64 {
    if free < reserve { enough(reserve).saturating_sub(free) } else { 0 }
}

impl Watermark {
    pub(crate) fn new(dir: &Path, reserve: u64) -> Self {
        Self { dir: dir.to_owned(), reserve, is_low: false, looked: None }
    }

    /// Whether there is too little. A file system that cannot be asked is not taken for full: writing will tell.
    pub(crate) fn is_low(&mut self, now: Instant) -> bool {
        if self.looked.is_none_or(|at| now.saturating_duration_since(at) >= PAUSE) {
            self.looked = Some(now);
            if let Ok((free, _)) = room(&self.dir) {
                self.take(free);
            }
        }
        self.is_low
    }

    fn take(&mut self, free: u64) {
        let enough = if self.is_low { enough(self.reserve) } else { self.reserve };
        let was_low = std::mem::replace(&mut self.is_low, free < enough);
        let (free, dir) = (smalti_types::Bytes(free), self.dir.display());
        if self.is_low && !was_low {
            tracing::error!("{free} are left on the disk of {dir}: no more tasks are taken until there is more (--disk-reserve)");
        } else if was_low && !self.is_low {
            tracing::warn!("{free} are free on the disk of {dir}: tasks are taken again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_low_below_the_reserve_and_until_there_is_a_quarter_more() {
        let mut mark = Watermark::new(Path::new("/"), 400);
        let seen = [400, 399, 450, 499, 500, 450, 10].map(|free| {
            mark.take(free);
            mark.is_low
        });
        assert_eq!(seen, [false, true, true, true, false, false, true]);
        assert_eq!([400, 399, 0].map(|free| missing(free, 400)), [0, 101, 500]);
    }

    #[test]
    fn it_looks_at_the_file_system_now_and_then() {
        let dir = tempfile::tempdir().unwrap();
        let now = Instant::now();
        let mut mark = Watermark::new(dir.path(), u64::MAX);
        assert!(mark.is_low(now), "nothing has so much");
        mark.reserve = 0;
        assert!(mark.is_low(now + PAUSE / 2) && !mark.is_low(now + PAUSE));
        assert!(default_reserve(dir.path()) <= MAX_RESERVE);
        assert!(!Watermark::new(Path::new("/nowhere"), u64::MAX).is_low(now));
    }
}
