//! A file that is not whole yet, with what is needed to go on with it later.
//!
//! Owns `partial/`: each file has a note beside it that says from where it comes and which version it is of. It is an entry of the cache like
//! others: pinned while it grows, and removed when the room is needed. Deliberately absent: whether a part still fits; a tag or the digest of
//! the whole says so.

use super::cache::{Cache, Pin};
use super::meters::Meter;
use super::turns::Turns;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smalti_fetch::range::Have;
use smalti_fetch::{Facts, Location, Sink};
use smalti_types::{Digest, FrameworkId};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

/// Bytes read at a time of what an earlier try left.
const BUFFER: usize = 256 << 10;
/// How much of a file whose length nobody says is entered into the cache's books at a time.
const STEP: u64 = 8 << 20;

/// Beside the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// Digest of the place's name: the name may have secrets in it.
    place: String,
    etag: Option<String>,
    total: Option<u64>,
}

/// A file that grows.
pub(crate) struct Partial {
    path: PathBuf,
    file: File,
    hasher: blake3::Hasher,
    bytes: u64,
    note: Note,
    cache: Arc<Cache>,
    pin: Option<Pin>,
    booked: u64,
    turns: (Turns, FrameworkId),
    meter: Arc<Meter>,
}

fn note_path(path: &Path) -> PathBuf {
    path.with_extension("json")
}

impl Partial {
    /// Opens what an earlier try left, or begins. `turns` are for hashing and writing, counted in bytes.
    pub(crate) async fn open(path: PathBuf, cache: Arc<Cache>, turns: (Turns, FrameworkId), meter: Arc<Meter>) -> io::Result<Self> {
        let note = match tokio::fs::read(note_path(&path)).await {
            Ok(text) => serde_json::from_slice::<Note>(&text).ok(),
            Err(_) => None,
        };
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(note.is_none()).mode(0o600).open(&path).await?;
        let pin = Some(cache.add(&path, 0));
        let note = note.unwrap_or_default();
        let mut partial = Self { path, file, hasher: blake3::Hasher::new(), bytes: 0, note, cache, pin, booked: 0, turns, meter };
        partial.take_up().await?;
        Ok(partial)
    }

    /// Hashes what is there.
    async fn take_up(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let n = self.file.read(&mut buffer).await?;
            if n == 0 {
                break;
            }
            let mut turn = self.turns.0.take(&self.turns.1).await;
            turn.charge(n as u64);
            self.hasher.update(&buffer[..n]);
            self.bytes += n as u64;
        }
        if self.bytes > 0 {
            tracing::debug!(path = %self.path.display(), bytes = self.bytes, "going on with what an earlier transfer left");
        }
        self.book(self.bytes);
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

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// It is whole: makes sure that it is on the disk, and gives its length.
    pub(crate) async fn close(&mut self) -> io::Result<u64> {
        self.file.flush().await?;
        self.file.sync_data().await?;
        Ok(self.bytes)
    }

    /// Moves it into place and enters it there.
    pub(crate) fn persist(mut self, target: &Path) -> io::Result<Pin> {
        let pin = self.cache.moved(&self.path, target, self.bytes)?;
        self.pin = None;
        self.cache.discard(&note_path(&self.path));
        Ok(pin)
    }

    /// Takes it out of the cache's books: it belongs to whoever has its path now.
    pub(crate) fn release(mut self) -> io::Result<tempfile::TempPath> {
        self.cache.forget(&self.path);
        self.cache.discard(&note_path(&self.path));
        self.pin = None;
        tempfile::TempPath::try_from_path(&self.path)
    }

    /// Nobody will go on with it.
    pub(crate) fn discard(mut self) {
        self.pin = None;
        self.cache.discard(&self.path);
        self.cache.discard(&note_path(&self.path));
    }

    /// Enters so many bytes into the cache's books.
    fn book(&mut self, bytes: u64) {
        self.booked = bytes;
        self.pin = Some(self.cache.add(&self.path, bytes));
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
            } else {
                drop(self.cache.add(&self.path, self.bytes));
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
        let (path, text) = (note_path(&self.path), serde_json::to_vec(&self.note)?);
        tokio::fs::write(&path, &text).await?;
        drop(self.cache.add(&path, text.len() as u64));
        // Room is made before the bytes come.
        self.book(facts.total.unwrap_or(self.bytes).max(self.bytes));
        let cache = self.cache.clone();
        if cache.is_over() {
            let _ = tokio::task::spawn_blocking(move || cache.evict()).await;
        }
        self.tell();
        Ok(())
    }

    async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        let mut turn = self.turns.0.take(&self.turns.1).await;
        turn.charge(bytes.len() as u64);
        self.hasher.update(&bytes);
        // Told to the system at once: else a full disk would be heard of in the next write, or never.
        self.file.write_all(&bytes).await?;
        self.file.flush().await?;
        self.bytes += bytes.len() as u64;
        if self.bytes > self.booked {
            self.book(self.bytes + STEP);
        }
        self.tell();
        Ok(())
    }

    async fn restart(&mut self) -> io::Result<()> {
        self.file.seek(io::SeekFrom::Start(0)).await?;
        self.file.set_len(0).await?;
        self.hasher.reset();
        self.bytes = 0;
        self.note = Note { place: std::mem::take(&mut self.note.place), ..Note::default() };
        self.tell();
        Ok(())
    }

    fn digests(&mut self) -> (Digest, Option<[u8; 32]>) {
        (self.hasher.finalize().into(), None)
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }
}
