//! Inputs: fetched once, kept in the cache, and shown to each task as read-only files in directories of its own.
//!
//! Owns `inputs/`. An input is kept under what pins it: its digest, or URI, entity tag and length. What nothing pins is
//! fetched anew for each task, because nobody could tell whether it changed.

use super::bundles::{HeldContent, blocking, room};
use super::cache::{Cache, Dirs, Pin};
use super::download::{Fetched, Fetcher, Keep, Unfetched, candidates};
use super::flight::Flights;
use super::names::{self, Held, Names};
use super::service::Shares;
use super::turns::{Turns, Waiting};
use super::{Failure, ReadyDir, Stop};
use futures::FutureExt;
use smalti_fetch::{Failed, Location, Wanted};
pub(crate) use smalti_types::grants::ASSETS_PATH;
use smalti_types::{Bytes, Digest, FrameworkId, HoldingKey, Input, LocateOutcome, Reason, Role};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, Permissions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a task's inputs lie in its directory.
pub(super) const INPUTS_DIR: &str = ".inputs";

/// An input on disk, open, verified.
#[derive(Debug, Clone)]
pub(crate) struct Fresh {
    pub(crate) file: Arc<File>,
    pub(crate) length: u64,
    pub(super) path: PathBuf,
    pub(super) kept: Kept,
}

/// What keeps the file there, and in the cache's books, as long as a task uses it.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pin: Pin,
    /// Nothing pins its content: of no use after its last user.
    once: Option<Arc<Once>>,
}

impl Kept {
    /// For as long as the task lives.
    pub(super) fn into_parts(self) -> (Pin, Option<Arc<Once>>) {
        (self.pin, self.once)
    }
}

/// A file that is fetched anew for the next one.
pub(super) struct Once {
    cache: Arc<Cache>,
    path: PathBuf,
}

impl std::fmt::Debug for Once {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Once").field(&self.path).finish()
    }
}

impl Drop for Once {
    fn drop(&mut self) {
        self.cache.forsake(&self.path);
    }
}

/// In which role an input is fetched, and on whose account.
pub(crate) type Whose<'a> = (&'a Role, &'a FrameworkId);

/// All inputs of this agent.
pub(crate) struct Inputs {
    dir: PathBuf,
    limit: Bytes,
    fetcher: Arc<Fetcher>,
    cache: Arc<Cache>,
    flights: Flights<String, Fresh>,
    /// The same for parts of them.
    pieces: Flights<String, Option<Fresh>>,
    names: Names,
    /// For laying out.
    pub(super) disk: Turns,
}

fn unfetched(error: Unfetched) -> Stop {
    match error {
        Unfetched::Failed(error) => failed(&error).into(),
        Unfetched::NoRoom(no_room) => no_room.into(),
    }
}

fn failed(error: &Failed) -> Failure {
    match error {
        Failed::Disk { full, .. } => Failure::new(Reason::LaunchFailed, format!("an input cannot be kept: {error}{}", room(*full))),
        _ => Failure::new(Reason::InputFailed, format!("an input cannot be used: {error}")),
    }
}

pub(super) fn ours(what: &str, path: &Path, e: impl std::fmt::Display) -> Failure {
    Failure::new(Reason::InputFailed, format!("cannot {what} {}: {e}", path.display()))
}

impl Inputs {
    pub(crate) fn new(dirs: &Dirs, limit: Bytes, fetcher: Arc<Fetcher>, cache: Arc<Cache>, shares: &Shares) -> Self {
        let names = Names::read(&dirs.inputs);
        Self {
            dir: dirs.inputs.clone(),
            limit,
            fetcher,
            cache,
            flights: Flights::new(shares.transfers.clone()),
            pieces: Flights::new(shares.transfers.clone()),
            names,
            disk: shares.disk.clone(),
        }
    }

    /// Fetches an input, or finds what the same role fetched before.
    pub(crate) async fn get(self: &Arc<Self>, input: &Input, (role, tenant): Whose<'_>) -> Result<Fresh, Stop> {
        let location = Location::parse(input.uri.as_deref(), input.digest).map_err(|e| failed(&e.into()))?;
        let kept_under = key(input, &location, role);
        // Unpinned inputs share a flight too: those who ask at the same time may have the same bytes.
        let flight_key = kept_under.clone().unwrap_or_else(|| format!("{role} {location:?}#{}", input.length));
        let wanted = candidates(location, input.digest).into_iter().map(|location| Wanted {
            role: role.clone(),
            // A tag is one server's own.
            etag: input.etag.clone().filter(|_| !matches!(location, Location::Store(_))),
            location,
            digest: input.digest,
            sha256: None,
            length: Some(input.length),
            limit: self.limit,
        });
        let (this, wanted, asked, length) = (self.clone(), wanted.collect::<Vec<_>>(), tenant.clone(), input.length);
        let kept_under = kept_under.map(|key| (key, HoldingKey::of_input(input).map(|name| (role.clone(), name))));
        let fetch = move |waiting| async move { this.fetch((wanted, length), kept_under, waiting, asked).await }.boxed();
        self.flights.join(flight_key, tenant, fetch).await
    }

    /// Some bytes of an input that a version pins, as [`Inputs::get`]; `None`: its place gives the whole or nothing.
    pub(super) async fn get_piece(
        self: &Arc<Self>,
        input: &Input,
        range: Range<u64>,
        (role, tenant): Whose<'_>,
    ) -> Result<Option<Fresh>, Stop> {
        let location = Location::parse(input.uri.as_deref(), None).map_err(|e| failed(&e.into()))?;
        if range.end.saturating_sub(range.start) > self.limit.0 {
            return Err(failed(&Failed::TooLarge { at: location.to_string(), limit: self.limit }).into());
        }
        let whole = key(input, &location, role).ok_or_else(|| Failure::new(Reason::InputFailed, "nothing pins the version of an input"))?;
        let kept_under = format!("p{}", Digest::of(format!("{whole} {}-{}", range.start, range.end).as_bytes()).to_hex());
        let held = HoldingKey::of_input(input).map(|name| (role.clone(), name));
        let wanted =
            Wanted { role: role.clone(), etag: input.etag.clone(), location, digest: None, sha256: None, length: None, limit: self.limit };
        let (this, asked, at) = (self.clone(), tenant.clone(), self.dir.join(&kept_under));
        let fetch = move |waiting: Waiting| async move { this.fetch_piece((wanted, range), (at, held), waiting, asked).await }.boxed();
        self.pieces.join(kept_under, tenant, fetch).await
    }

    async fn fetch_piece(
        self: Arc<Self>,
        (wanted, range): (Wanted, Range<u64>),
        (path, held): (PathBuf, Option<Held>),
        waiting: Waiting,
        asked: FrameworkId,
    ) -> Result<Option<Fresh>, Stop> {
        if let Some(fresh) = self.find(&path, range.end.saturating_sub(range.start), held.as_ref()) {
            return Ok(Some(fresh));
        }
        let turn = waiting.turn().await;
        let fetched = self.fetcher.fetch_piece(&wanted, range, &turn.tenant(&asked)).await.map_err(unfetched)?;
        drop(turn);
        fetched.map(|fetched| self.keep(fetched, &path, held.as_ref())).transpose()
    }

    async fn fetch(
        self: Arc<Self>,
        (wanted, length): (Vec<Wanted>, u64),
        key: Option<(String, Option<Held>)>,
        waiting: Waiting,
        asked: FrameworkId,
    ) -> Result<Fresh, Stop> {
        let (path, held) = key.map(|(key, held)| (self.dir.join(key), held)).unzip();
        let held = held.flatten();
        if let Some(fresh) = path.as_ref().and_then(|path| self.find(path, length, held.as_ref())) {
            return Ok(fresh);
        }
        let turn = waiting.turn().await;
        let keep = if path.is_some() { Keep::Input } else { Keep::Nothing };
        let fetched = self.fetcher.fetch_shared(&wanted, keep, &turn.tenant(&asked)).await.map_err(unfetched)?;
        drop(turn);
        match path {
            Some(path) => self.keep(fetched, &path, held.as_ref()),
            None => self.take_once(fetched),
        }
    }

    /// What is in the cache, if it is whole.
    fn find(&self, path: &Path, length: u64, held: Option<&Held>) -> Option<Fresh> {
        let pin = self.cache.pin(path)?;
        match File::open(path).and_then(|f| f.metadata().map(|m| (f, m.len()))) {
            Ok((file, found)) if found == length => {
                self.names.keep(path, held);
                Some(Fresh { file: Arc::new(file), length, path: path.to_owned(), kept: Kept { pin, once: None } })
            }
            _ => {
                self.cache.discard(path);
                None
            }
        }
    }

    /// Moves what was fetched into the cache.
    fn keep(&self, Fetched { file, length, place, .. }: Fetched, path: &Path, held: Option<&Held>) -> Result<Fresh, Stop> {
        if let Some(held) = held {
            names::write(file.path(), held);
        }
        open_up(file.path())?;
        let pin = file.persist(path).map_err(|e| ours("move an input to", path, e))?;
        self.names.keep(path, held);
        if let Some(place) = place {
            place.end(LocateOutcome::Held);
        }
        let file = File::open(path).map_err(|e| ours("open", path, e))?;
        Ok(Fresh { file: Arc::new(file), length, path: path.to_owned(), kept: Kept { pin, once: None } })
    }

    /// Leaves what was fetched where it is, for its one user.
    fn take_once(&self, Fetched { file, length, .. }: Fetched) -> Result<Fresh, Stop> {
        open_up(file.path())?;
        let (path, pin) = file.leave().ok_or_else(|| ours("take over an input in", &self.dir, "it was given up"))?;
        let once = Some(Arc::new(Once { cache: self.cache.clone(), path: path.clone() }));
        let file = File::open(&path).map_err(|e| ours("open", &path, e))?;
        Ok(Fresh { file: Arc::new(file), length, path, kept: Kept { pin, once } })
    }

    /// What roles hold: see [`super::bundles::Bundles::holdings`].
    pub(crate) fn holdings(&self) -> Vec<(u64, Role, HoldingKey)> {
        let there: HashMap<PathBuf, u64> = self.cache.used(&self.dir).into_iter().map(|(used, path)| (path, used)).collect();
        self.names.of(&there)
    }

    /// What a role holds, to be given to another agent. Touches the disk.
    pub(crate) fn held(&self, digest: Digest, role: &Role) -> Option<HeldContent> {
        // Each role's own: that it is there shows the right.
        let path = self.dir.join(key_of_digest(&digest, role));
        let pin = self.cache.pin(&path)?;
        let file = File::open(&path).ok()?;
        let length = file.metadata().ok()?.len();
        Some(HeldContent { file, length, name: None, pin })
    }

    /// Fetches all inputs that are files of the guest and lays them out below `directory`, one directory per distinct
    /// parent of their guest paths.
    pub(crate) async fn lay_out(
        self: &Arc<Self>,
        inputs: &[Input],
        directory: &Path,
        whose: Whose<'_>,
    ) -> Result<(Vec<ReadyDir>, Vec<Kept>), Stop> {
        if inputs.is_empty() {
            return Ok(Default::default());
        }
        let places = places(inputs)?;
        let fresh = futures::future::try_join_all(inputs.iter().map(|i| self.get(i, whose))).await?;
        let base = directory.join(INPUTS_DIR);
        let _turn = self.disk.take(whose.1).await;
        blocking(move || {
            // What an earlier life of the agent left.
            let _ = fs::remove_dir_all(&base);
            let mut dirs = Vec::new();
            for (n, (parent, names)) in places.into_iter().enumerate() {
                let dir = base.join(n.to_string());
                fs::create_dir_all(&dir).map_err(|e| ours("make", &dir, e))?;
                for (name, index) in names {
                    place(&fresh[index].path, &dir.join(name))?;
                }
                for open_up in [&base, &dir] {
                    fs::set_permissions(open_up, Permissions::from_mode(0o755)).map_err(|e| ours("open up", open_up, e))?;
                }
                let opened = File::open(&dir).map_err(|e| ours("open", &dir, e))?;
                dirs.push(ReadyDir { guest_path: parent, dir: Arc::new(opened), writable: false });
            }
            Ok((dirs, fresh.into_iter().map(|f| f.kept).collect()))
        })
        .await
    }
}

/// Readable by the executor's user, who reaches it only through the directory that was opened for it.
fn open_up(path: &Path) -> Result<(), Failure> {
    fs::set_permissions(path, Permissions::from_mode(0o444)).map_err(|e| ours("open up", path, e))
}

/// A hard link to the cached file: no copy, and it stays when the cache removes its own name. A copy where that is not possible.
pub(super) fn place(cached: &Path, at: &Path) -> Result<(), Failure> {
    if fs::hard_link(cached, at).is_ok() {
        return Ok(());
    }
    fs::copy(cached, at).map(|_| ()).map_err(|e: io::Error| ours("copy an input to", at, e))
}

/// Guest directory → (file name, index of the input).
type Places = BTreeMap<String, BTreeMap<String, usize>>;

fn places(inputs: &[Input]) -> Result<Places, Failure> {
    let mut places = Places::new();
    for (index, input) in inputs.iter().enumerate() {
        let path = input.guest_path.as_deref().unwrap_or_default();
        let wrong = |why: &str| Failure::new(Reason::InputFailed, format!("the input path `{path}` {why}"));
        let (parent, name) = path.rsplit_once('/').filter(|_| path.starts_with('/')).ok_or_else(|| wrong("is not absolute"))?;
        let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
        if path.len() > 1_024 || name.len() > 255 || !plain(name) || !parent.split('/').skip(1).all(plain) {
            return Err(wrong("is not a plain absolute path of a file"));
        }
        let parent = if parent.is_empty() { "/" } else { parent };
        if parent == ASSETS_PATH {
            return Err(wrong("lies where an archive's own files are; choose another directory"));
        }
        if places.entry(parent.to_owned()).or_default().insert(name.to_owned(), index).is_some() {
            return Err(wrong("is given twice"));
        }
    }
    Ok(places)
}

/// The name under which an input with a digest is kept, for this role.
fn key_of_digest(digest: &Digest, role: &Role) -> String {
    Digest::of(format!("{role}\0{digest}").as_bytes()).to_hex()
}

/// The name under which an input is kept, for this role; `None` when nothing pins its content.
fn key(input: &Input, location: &Location, role: &Role) -> Option<String> {
    if let Some(digest) = input.digest {
        return Some(key_of_digest(&digest, role));
    }
    let version = match location {
        // The file's own identity on this agent, beside the time and length that every copy has in common.
        Location::File(path) => {
            let meta = fs::metadata(path).ok()?;
            let pinned = input.etag.as_deref().unwrap_or_default();
            format!("{}-{}-{}.{}-{} {pinned}", meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len())
        }
        _ => input.etag.clone()?,
    };
    let pinned = format!("{role}\0{}\0{version}\0{}", input.uri.as_deref().unwrap_or_default(), input.length);
    Some(format!("u{}", Digest::of(pinned.as_bytes()).to_hex()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str) -> Input {
        Input { guest_path: Some(path.into()), uri: Some("http://h/x".into()), digest: None, length: 1, etag: None, packing: None }
    }

    #[test]
    fn inputs_are_grouped_by_their_guest_directory() {
        let places = places(&[at("/data/a"), at("/top"), at("/data/b"), at("/smalti/state")]).unwrap();
        assert_eq!(places.keys().collect::<Vec<_>>(), ["/", "/data", "/smalti"]);
        assert_eq!(places["/data"].len(), 2);
    }

    #[test]
    fn paths_that_could_leave_their_directory_are_refused() {
        for bad in ["", "a", "a/b", "/", "/a/", "/a/../b", "/./a", "//a", "/a//b", "/..", "/a\0", "/assets/x"] {
            assert_eq!(places(&[at(bad)]).unwrap_err().reason, Reason::InputFailed, "{bad:?}");
        }
        assert!(places(&[at("/a"), at("/a")]).is_err());
    }

    #[test]
    fn only_what_pins_the_content_makes_a_key() {
        let plain = at("/x");
        let location = Location::parse(plain.uri.as_deref(), None).unwrap();
        let role = Role::default();
        let key = |input: &Input, location: &Location| super::key(input, location, &role);
        assert_eq!(key(&plain, &location), None);
        let tagged = Input { etag: Some("\"1\"".into()), ..plain.clone() };
        let other = Input { etag: Some("\"2\"".into()), ..plain.clone() };
        assert_ne!(key(&tagged, &location).unwrap(), key(&other, &location).unwrap());
        let digest = Digest::of(b"x");
        let pinned = Input { digest: Some(digest), ..plain };
        assert!(key(&pinned, &location).is_some());
        assert_ne!(key(&pinned, &location), super::key(&pinned, &location, &Role::new("other").unwrap()), "each role fetches for itself");
    }
}
