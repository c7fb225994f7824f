//! A file that is not whole yet, with what is needed to go on with it later.
//!
//! Owns `partial/`: each file has a note beside it that says from where it comes and which version it is of. It is an entry of the cache like
//! others: pinned while it grows, and removed when the room is needed. One at a time writes it, until its last write has really ended: a
//! transfer that is given up leaves nothing behind that could still write into the next one's bytes. Nothing is written before its room is
//! in the cache's books. Deliberately absent: whether a part still fits; a tag or the digest of
//! the whole says so.

use super::cache::{BLOCK, Cache, NoRoom, Pin};
use super::meters::Meter;
use super::turns::Turns;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smalti_fetch::range::Have;
use smalti_fetch::{Facts, Location, Sink};
use smalti_types::{Digest, FrameworkId};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::OwnedMutexGuard;
use tokio::task::spawn_blocking;

/// Bytes of what an earlier try left that are hashed in one turn.
const TURN: u64 = 8 << 20;
/// Bytes read at a time.
const BUFFER: usize = 256 << 10;
/// How much room is taken at a time for a file whose length nobody says, a quarter of what there is at least: it must fit into small caches too.
const STEP: u64 = 8 << 20;

/// Beside the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// Digest of the place's name: the name may have secrets in it.
    place: String,
    etag: Option<String>,
    total: Option<u64>,
}

/// What a thread that writes has with it.
struct Open {
    file: File,
    hasher: blake3::Hasher,
    _alone: OwnedMutexGuard<()>,
}

/// A file that grows.
pub(crate) struct Partial {
    path: PathBuf,
    /// `None` while a thread has it, and for good when that was given up.
    open: Option<Open>,
    bytes: u64,
    note: Note,
    cache: Arc<Cache>,
    pin: Option<Pin>,
    booked: u64,
    /// Why it cannot grow now.
    no_room: Option<NoRoom>,
    turns: (Turns, FrameworkId),
    meter: Arc<Meter>,
}

fn note_path(path: &Path) -> PathBuf {
    path.with_extension("json")
}

impl Partial {
    /// Opens what an earlier try left, or begins. `turns` are for hashing and writing, counted in bytes; `alone` is held until the last
    /// write has ended.
    pub(crate) async fn open(
        path: PathBuf,
        alone: OwnedMutexGuard<()>,
        cache: Arc<Cache>,
        turns: (Turns, FrameworkId),
        meter: Arc<Meter>,
    ) -> io::Result<Self> {
        let note = match tokio::fs::read(note_path(&path)).await {
            Ok(text) => serde_json::from_slice::<Note>(&text).ok(),
            Err(_) => None,
        };
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(note.is_none()).mode(0o600).open(&path)?;
        let pin = Some(cache.reserve(&path, 0).map_err(io::Error::other)?);
        let (note, open) = (note.unwrap_or_default(), Some(Open { file, hasher: blake3::Hasher::new(), _alone: alone }));
        let mut partial = Self { path, open, bytes: 0, note, cache, pin, booked: 0, no_room: None, turns, meter };
        partial.take_up().await?;
        Ok(partial)
    }

    /// Does something with the file on a thread that may wait for the disk.
    async fn with<T: Send + 'static>(&mut self, work: impl FnOnce(&mut Open) -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let mut open = self.open.take().ok_or_else(|| io::Error::other("the file was given up"))?;
        let done = spawn_blocking(move || {
            let result = work(&mut open);
            (open, result)
        });
        let (open, result) = done.await.map_err(io::Error::other)?;
        self.open = Some(open);
        result
    }

    /// Hashes what is there.
    async fn take_up(&mut self) -> io::Result<()> {
        loop {
            let mut turn = self.turns.0.take(&self.turns.1).await;
            let hashed = self.with(|open| {
                let (mut buffer, mut hashed) = (vec![0; BUFFER], 0);
                while hashed < TURN {
                    let n = open.file.read(&mut buffer)?;
                    if n == 0 {
                        break;
                    }
                    open.hasher.update(&buffer[..n]);
                    hashed += n as u64;
                }
                Ok(hashed)
            });
            let hashed = hashed.await?;
            turn.charge(hashed);
            self.bytes += hashed;
            if hashed < TURN {
                break;
            }
        }
        if self.bytes > 0 {
            tracing::debug!(path = %self.path.display(), bytes = self.bytes, "going on with what an earlier transfer left");
        }
        self.booked = self.bytes;
        self.tell();
        Ok(())
    }

    /// What comes next is from there: what another place said about versions counts for nothing.
    pub(crate) fn comes_from(&mut self, location: &Location) {
        let place = Digest::of(format!("{location:?}").as_bytes()).to_hex();
        if self.note.place != place {
            self.note = Note { place, ..Note::default() };
        }
    }

    /// How long it will be, as far as that is known.
    pub(crate) fn total(&self) -> Option<u64> {
        self.note.total
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// It is whole: makes sure that it is on the disk, and gives its length.
    pub(crate) async fn close(&mut self) -> io::Result<u64> {
        self.with(|open| open.file.sync_data()).await?;
        Ok(self.bytes)
    }

    /// Moves it into place and enters it there.
    pub(crate) fn persist(mut self, target: &Path) -> io::Result<Pin> {
        self.cache.settle(&self.path, self.bytes);
        let pin = self.cache.moved(&self.path, target)?;
        self.pin = None;
        self.cache.discard(&note_path(&self.path));
        Ok(pin)
    }

    /// Leaves it where it is, for who has the pin.
    pub(crate) fn leave(mut self) -> Option<(PathBuf, Pin)> {
        self.cache.settle(&self.path, self.bytes);
        self.cache.discard(&note_path(&self.path));
        Some((self.path.clone(), self.pin.take()?))
    }

    /// Why it could not grow.
    pub(crate) fn no_room(&self) -> Option<&NoRoom> {
        self.no_room.as_ref()
    }

    /// Takes room for so many bytes in all.
    pub(crate) async fn reserve(&mut self, bytes: u64) -> Result<(), NoRoom> {
        if bytes <= self.booked {
            return Ok(());
        }
        let (cache, path) = (self.cache.clone(), self.path.clone());
        let reserved = match spawn_blocking(move || cache.reserve(&path, bytes)).await {
            Ok(reserved) => reserved,
            // Only at the agent's end.
            Err(_) => self.cache.reserve(&self.path, bytes),
        };
        match reserved {
            Ok(_) => self.booked = bytes,
            Err(no_room) => {
                self.no_room = Some(no_room.clone());
                return Err(no_room);
            }
        }
        Ok(())
    }

    /// Takes room for bytes of which nobody says how many they are.
    async fn grow(&mut self, bytes: u64) -> io::Result<()> {
        let step = STEP.min(self.cache.smallest_budget() / 4);
        match self.reserve(bytes.saturating_add(step)).await {
            Ok(()) => Ok(()),
            Err(_) => self.reserve(bytes).await.map_err(|e| io::Error::new(io::ErrorKind::StorageFull, e)),
        }
        .inspect(|()| self.no_room = None)
    }

    /// Nobody will go on with it.
    pub(crate) fn discard(mut self) {
        self.pin = None;
        self.cache.discard(&self.path);
        self.cache.discard(&note_path(&self.path));
    }

    fn tell(&self) {
        self.meter.done.store(self.bytes, Ordering::Relaxed);
        self.meter.total.store(self.note.total.unwrap_or_default(), Ordering::Relaxed);
    }
}

impl Drop for Partial {
    /// What came so far stays for the next try, as long as nobody needs the room.
    fn drop(&mut self) {
        if self.pin.is_some() {
            if self.bytes == 0 {
                self.cache.discard(&self.path);
                self.cache.discard(&note_path(&self.path));
            } else if self.open.is_some() {
                self.cache.settle(&self.path, self.bytes);
            }
        }
    }
}

impl Sink for Partial {
    fn have(&self) -> Have {
        Have { bytes: self.bytes, etag: self.note.etag.clone(), total: self.note.total }
    }

    async fn note(&mut self, facts: &Facts) -> io::Result<()> {
        self.note = Note { place: std::mem::take(&mut self.note.place), etag: facts.etag.clone(), total: facts.total };
        match facts.total {
            Some(total) => self.reserve(total).await.map_err(|e| io::Error::new(io::ErrorKind::StorageFull, e))?,
            None => self.grow(self.bytes).await?,
        }
        let (path, text) = (note_path(&self.path), serde_json::to_vec(&self.note)?);
        // Without it, the next try begins anew.
        if let Ok(_pin) = self.cache.reserve(&path, BLOCK) {
            tokio::fs::write(&path, &text).await?;
        }
        self.tell();
        Ok(())
    }

    async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        let mut turn = self.turns.0.take(&self.turns.1).await;
        let length = bytes.len() as u64;
        turn.charge(length);
        if self.bytes + length > self.booked {
            self.grow(self.bytes + length).await?;
        }
        self.with(move |open| {
            open.hasher.update(&bytes);
            open.file.write_all(&bytes)
        })
        .await?;
        self.bytes += length;
        self.tell();
        Ok(())
    }

    async fn restart(&mut self) -> io::Result<()> {
        self.with(|open| {
            open.hasher.reset();
            open.file.set_len(0)?;
            open.file.seek(SeekFrom::Start(0)).map(drop)
        })
        .await?;
        self.bytes = 0;
        self.note = Note { place: std::mem::take(&mut self.note.place), ..Note::default() };
        self.tell();
        Ok(())
    }

    fn digests(&mut self) -> (Digest, Option<[u8; 32]>) {
        // Without its file, it is nothing that anybody asks for.
        (self.open.as_ref().map_or_else(|| Digest::of(b""), |open| open.hasher.finalize().into()), None)
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }
}
