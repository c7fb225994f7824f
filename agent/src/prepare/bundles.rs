//! Bundles from digest to compiled code: warm in memory, else compiled on disk, else compiled now, else fetched first.
//!
//! Owns `bundles/`, `compiled/` and `unpacked/`. One download per digest and one compilation per (digest, fuel) at a time,
//! and for each role only what that has fetched itself. Code is loaded only from files that this agent wrote and nobody else can, and only if they are what was
//! written; each time that it is handed on, its file must be as it was then.

use super::archive::{self, ASSETS_DIR, GUEST_DIR};
use super::cache::{BLOCK, Cache, Dirs, Idle, PARTIAL_PREFIX, Pin, Warm, size_of};
use super::download::{Fetched, Fetcher, Keep, Unfetched, candidates};
use super::flight::Flights;
use super::own_file::{Stamp, hash, open_own};
use super::refused::Refused;
use super::rights::Rights;
use super::service::Shares;
use super::turns::Waiting;
use super::{Failure, Options, Stop};
use crate::compiler::{Compiler, CompilerOptions};
use futures::FutureExt;
use serde::{Deserialize, Serialize};
use smalti_fetch::{Failed, Location, Wanted, clean_name};
use smalti_types::{BundleRef, Digest, FrameworkId, HoldingKey, LocateOutcome, Reason, Role};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Format of [`Meta`]; raised on every change.
const META_FORMAT: u32 = 2;
/// Hexadecimal digits of the settings key in a directory's name.
const SETTINGS_DIGITS: usize = 16;

/// A bundle that can run.
#[derive(Debug)]
pub(crate) struct Bundle {
    pub(crate) digest: Digest,
    /// The guest's name in an archive, or as the store calls it; a URI's own file name comes before the latter.
    pub(crate) name: String,
    pub(crate) component: bool,
    pub(crate) code: Arc<File>,
    /// Whether it mentions the variables that tell a task who it is.
    pub(crate) asks_who_it_is: bool,
    /// The archive's other files.
    pub(crate) assets: Option<Arc<File>>,
    /// What the code's file was like when its bytes were those that were written.
    stamp: Stamp,
    used: AtomicU64,
    pins: Vec<(PathBuf, Pin)>,
}

impl Bundle {
    /// Whether nobody has written into its code.
    fn is_sound(&self) -> bool {
        Stamp::of(&self.code).is_ok_and(|now| self.stamp.agrees(&now))
    }
}

/// Describes the code beside it.
#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    format: u32,
    name: String,
    component: bool,
    archive: bool,
    asks_who_it_is: bool,
    code: Digest,
}

/// A bundle's bytes on disk, verified.
#[derive(Debug, Clone)]
struct Stored {
    path: PathBuf,
    name: Option<String>,
    _pin: Pin,
}

/// What is given to another agent.
pub(crate) struct HeldContent {
    pub(crate) file: File,
    pub(crate) length: u64,
    pub(crate) name: Option<String>,
    pub(crate) pin: Pin,
}

/// How long somebody waits for another's download of the same bytes, who named another place: that one may be as slow as its owner likes.
const OTHERS_DOWNLOAD: Duration = Duration::from_secs(30);

/// Bundles of which is remembered how much room they took.
const MOST_FOOTPRINTS: usize = 65_536;

/// Digest and whether the code counts fuel.
type Key = (Digest, bool);

/// All bundles of this agent.
pub(crate) struct Bundles {
    dirs: Dirs,
    settings: String,
    limit: smalti_types::Bytes,
    fetcher: Arc<Fetcher>,
    compiler: Compiler,
    cache: Arc<Cache>,
    warm: Mutex<HashMap<Key, Arc<Bundle>>>,
    loads: Flights<Key, Option<Arc<Bundle>>>,
    fetches: Flights<(BundleRef, Role), Stored>,
    /// Digests that are being downloaded.
    downloads: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    rights: Rights,
    compiles: Flights<Key, Arc<Bundle>>,
    refused: Refused<Key>,
    /// Bytes that bundles take until they are ready: fetched, unpacked and compiled.
    footprints: Mutex<HashMap<Key, u64>>,
}

fn ours(what: &str, path: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::new(Reason::LaunchFailed, format!("cannot {what} {}: {why}", path.display()))
}

impl Bundles {
    pub(crate) fn new(options: &Options, dirs: &Dirs, fetcher: Arc<Fetcher>, cache: Arc<Cache>, shares: &Shares) -> Self {
        let compiler = Compiler::new(CompilerOptions {
            command: options.compile_command.clone(),
            timeout: options.compile_timeout,
            memory: options.compile_memory,
            cgroups: options.groups.clone(),
            uid: options.compile_uid,
        });
        let rights = Rights::new(&dirs.bundles);
        rights.read_all();
        let settings = Digest::of(smalti_engine::settings_key().as_bytes()).to_hex()[..SETTINGS_DIGITS].to_owned();
        Self {
            dirs: dirs.clone(),
            settings,
            limit: options.max_bundle,
            fetcher,
            compiler,
            cache,
            warm: Mutex::default(),
            loads: Flights::new(shares.disk.clone()),
            fetches: Flights::new(shares.transfers.clone()),
            downloads: Mutex::default(),
            rights,
            compiles: Flights::new(shares.compiles.clone()),
            refused: Refused::default(),
            footprints: Mutex::default(),
        }
    }

    /// The hot path: a bundle that is ready in memory, and that the role may use.
    pub(crate) fn warm(&self, digest: Digest, fuel: bool, role: &Role) -> Option<Arc<Bundle>> {
        if self.rights.has(digest, role) { self.ready((digest, fuel)) } else { None }
    }

    /// Whether it takes neither a download nor a compilation nor room: ready in memory, or compiled on the disk, and the role's to use.
    pub(crate) fn is_at_hand(&self, key: Key, role: &Role) -> bool {
        let is_ready = || self.warm.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&key);
        self.rights.has(key.0, role) && (is_ready() || self.cache.has(&self.compiled_dir(key)))
    }

    /// Bytes that a bundle took until it was ready, or would have taken, if that was found out before.
    pub(crate) fn footprint(&self, key: Key) -> Option<u64> {
        self.footprints.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied()
    }

    fn note_footprint(&self, key: Key, code: u64) {
        let bytes = [self.dirs.bundles.join(key.0.to_hex()), self.dirs.unpacked.join(key.0.to_hex())]
            .iter()
            .map(|path| self.cache.size(path))
            .sum::<u64>();
        let mut all = self.footprints.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST_FOOTPRINTS {
            all.clear();
        }
        all.insert(key, bytes.saturating_add(code));
    }

    fn ready(&self, key: Key) -> Option<Arc<Bundle>> {
        let mut warm = self.warm.lock().unwrap_or_else(PoisonError::into_inner);
        let bundle = warm.get(&key)?;
        if !bundle.is_sound() {
            // Who loads it next finds out what is wrong with it.
            warm.remove(&key);
            return None;
        }
        bundle.used.store(self.cache.now(), Ordering::Relaxed);
        Some(bundle.clone())
    }

    /// Makes a bundle ready, by whatever is the shortest way. Each step that costs something waits for its turn. A role that has not fetched
    /// it yet does so first, whatever is in the cache.
    pub(crate) async fn get(
        self: &Arc<Self>,
        (reference, fuel): (&BundleRef, bool),
        role: &Role,
        tenant: &FrameworkId,
    ) -> Result<Arc<Bundle>, Stop> {
        let key = (reference.digest, fuel);
        let (this, asks) = (self.clone(), role.clone());
        let is_entitled = blocking(move || Ok::<_, Stop>(this.rights.recalls(key.0, &asks))).await?;
        let shown = if is_entitled { None } else { Some(self.bring(reference, role, tenant).await?) };
        if let Some(bundle) = self.ready(key) {
            return Ok(bundle);
        }
        if let Some(failure) = self.refused.get(key, Instant::now()) {
            return Err(failure.into());
        }
        let this = self.clone();
        let load = move |waiting: Waiting| {
            async move {
                let mut turn = waiting.turn().await;
                let began = Instant::now();
                let loaded = blocking(move || Ok(this.load(key))).await;
                turn.charge(micros(began));
                loaded
            }
            .boxed()
        };
        if let Some(bundle) = self.loads.join(key, tenant, load).await? {
            return Ok(bundle);
        }
        let stored = match shown {
            Some(stored) => stored,
            None => self.bring(reference, role, tenant).await?,
        };
        let this = self.clone();
        self.compiles.join(key, tenant, move |waiting| async move { this.compile(key, stored, waiting).await }.boxed()).await
    }

    /// The bundle's bytes, shown to be the role's to use.
    async fn bring(self: &Arc<Self>, reference: &BundleRef, role: &Role, tenant: &FrameworkId) -> Result<Stored, Stop> {
        let (this, from, asks, asked) = (self.clone(), reference.clone(), role.clone(), tenant.clone());
        let fetch = move |waiting: Waiting| async move { this.fetch(from, asks, waiting, asked).await }.boxed();
        self.fetches.join((reference.clone(), role.clone()), tenant, fetch).await
    }

    fn compiled_dir(&self, (digest, fuel): Key) -> PathBuf {
        self.dirs.compiled.join(format!("{}-{}{}", digest.to_hex(), self.settings, if fuel { "-fuel" } else { "" }))
    }

    /// Loads what was compiled before, if it is there and unharmed.
    fn load(&self, key: Key) -> Option<Arc<Bundle>> {
        if let Some(bundle) = self.ready(key) {
            return Some(bundle);
        }
        let dir = self.compiled_dir(key);
        let mut pins = vec![(dir.clone(), self.cache.pin(&dir)?)];
        match self.open(key, &dir, &mut pins) {
            Ok(bundle) => Some(self.keep(key, bundle)),
            Err(why) => {
                tracing::warn!(path = %dir.display(), why, "compiled code is not usable, it is made again");
                self.cache.discard(&dir);
                None
            }
        }
    }

    fn open(&self, (digest, _): Key, dir: &Path, pins: &mut Vec<(PathBuf, Pin)>) -> Result<Bundle, String> {
        let meta = fs::read(dir.join("meta.json")).map_err(|e| e.to_string())?;
        let meta: Meta = serde_json::from_slice(&meta).map_err(|e| e.to_string())?;
        if meta.format != META_FORMAT {
            return Err(format!("it has format {}", meta.format));
        }
        let code = open_own(&dir.join("code"))?;
        let stamp = Stamp::of(&code).map_err(|e| e.to_string())?;
        if hash(&code).map_err(|e| e.to_string())? != meta.code {
            return Err("its bytes are not those that were written".into());
        }
        let mut assets = None;
        if meta.archive {
            let unpacked = self.dirs.unpacked.join(digest.to_hex());
            let pin = self.cache.pin(&unpacked).ok_or("the archive's files are gone")?;
            assets = Some(Arc::new(File::open(unpacked.join(ASSETS_DIR)).map_err(|e| e.to_string())?));
            pins.push((unpacked, pin));
        }
        Ok(Bundle {
            digest,
            name: meta.name,
            component: meta.component,
            asks_who_it_is: meta.asks_who_it_is,
            code: Arc::new(code),
            assets,
            stamp,
            used: AtomicU64::new(self.cache.now()),
            pins: std::mem::take(pins),
        })
    }

    fn keep(&self, key: Key, bundle: Bundle) -> Arc<Bundle> {
        let bundle = Arc::new(bundle);
        self.warm.lock().unwrap_or_else(PoisonError::into_inner).insert(key, bundle.clone());
        bundle
    }

    /// The bundle's bytes: on disk from before if that is the role's to use, or fetched now.
    async fn fetch(self: Arc<Self>, reference: BundleRef, role: Role, waiting: Waiting, asked: FrameworkId) -> Result<Stored, Stop> {
        let digest = reference.digest;
        let location = Location::parse(reference.uri.as_deref(), Some(digest)).map_err(|e| bundle_failure(&e.into()))?;
        let path = self.dirs.bundles.join(digest.to_hex());
        let turn = waiting.turn().await;
        let alone = self.alone(digest).await;
        // Of what the store has, its word is enough; elsewhere only the bytes themselves tell that the role can have them.
        let is_entitled = self.rights.recalls(digest, &role)
            || (location == Location::Store(digest) && path.exists() && self.fetcher.sources.head(&role, &location).await.is_ok());
        let this = self.clone();
        if is_entitled && let Some(stored) = blocking(move || Ok::<_, Stop>(this.stored(digest))).await? {
            self.grant(digest, role).await?;
            return Ok(stored);
        }
        let wanted = candidates(location, Some(digest)).into_iter().map(|location| Wanted {
            role: role.clone(),
            location,
            digest: Some(digest),
            sha256: None,
            length: None,
            etag: None,
            limit: self.limit,
        });
        let keep = if alone.is_some() { Keep::Bundle } else { Keep::Nothing };
        let fetched = self.fetcher.fetch_shared(&wanted.collect::<Vec<_>>(), keep, &turn.tenant(&asked)).await;
        let Fetched { file, name, place, .. } = fetched.map_err(|e| match e {
            Unfetched::Failed(error) => bundle_failure(&error).into(),
            Unfetched::NoRoom(no_room) => Stop::NoRoom(no_room),
        })?;
        let pin = file.persist(&path).map_err(|e| ours("move the bundle to", &path, e))?;
        if let Some(name) = &name {
            // Only a nicer args[0]; without it the digest stands in.
            let named = name_path(&path);
            if let Ok(_pin) = self.cache.reserve(&named, name.len() as u64) {
                let _ = fs::write(&named, name);
            }
        }
        self.grant(digest, role).await?;
        if let Some(place) = place {
            place.end(LocateOutcome::Held);
        }
        Ok(Stored { path, name, _pin: pin })
    }

    /// What roles hold, those used last first: bytes that others could fetch, too.
    pub(crate) fn holdings(&self) -> Vec<(u64, Role, HoldingKey)> {
        let digest = |path: &Path| Digest::from_hex(path.file_name()?.to_str()?).ok();
        let held = self.cache.used(&self.dirs.bundles).into_iter().filter_map(|(used, path)| Some((used, digest(&path)?)));
        held.flat_map(|(used, digest)| {
            let key = HoldingKey::of_digest(&digest);
            self.rights.roles(digest).into_iter().map(move |role| (used, role, key))
        })
        .collect()
    }

    /// Counts changes of what roles hold.
    pub(crate) fn generation(&self) -> u64 {
        self.rights.generation()
    }

    /// What a role holds, to be given to another agent. Touches the disk.
    pub(crate) fn held(&self, digest: Digest, role: &Role) -> Option<HeldContent> {
        let path = self.dirs.bundles.join(digest.to_hex());
        let pin = if self.rights.recalls(digest, role) { self.cache.pin(&path)? } else { return None };
        let file = File::open(&path).ok()?;
        let length = file.metadata().ok()?.len();
        let name = fs::read_to_string(name_path(&path)).ok().as_deref().and_then(clean_name);
        Some(HeldContent { file, length, name, pin })
    }

    async fn grant(self: &Arc<Self>, digest: Digest, role: Role) -> Result<(), Stop> {
        let this = self.clone();
        blocking(move || {
            this.rights.grant(digest, &role, &this.cache);
            Ok(())
        })
        .await
    }

    /// Waits until nobody else downloads the same bytes, but not for ever; `None` when somebody still does.
    async fn alone(&self, digest: Digest) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        let download = {
            let mut all = self.downloads.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, download| download.strong_count() > 0);
            let under_way = all.get(&digest).and_then(Weak::upgrade);
            under_way.unwrap_or_else(|| {
                let download = Arc::default();
                all.insert(digest, Arc::downgrade(&download));
                download
            })
        };
        tokio::time::timeout(OTHERS_DOWNLOAD, download.lock_owned()).await.ok()
    }

    /// The bytes that an earlier task left, hashed again: they become code now.
    fn stored(&self, digest: Digest) -> Option<Stored> {
        let path = self.dirs.bundles.join(digest.to_hex());
        let pin = self.cache.pin(&path)?;
        let found = File::open(&path).and_then(|f| hash(&f));
        if found.is_ok_and(|found| found == digest) {
            let name = fs::read_to_string(name_path(&path)).ok().as_deref().and_then(clean_name);
            return Some(Stored { path, name, _pin: pin });
        }
        tracing::warn!(path = %path.display(), "a stored bundle does not match its digest any more, it is fetched again");
        self.cache.discard(&path);
        None
    }

    async fn compile(self: Arc<Self>, key: Key, stored: Stored, waiting: Waiting) -> Result<Arc<Bundle>, Stop> {
        let mut turn = waiting.turn().await;
        let began = Instant::now();
        let mut compiler_us = None;
        let result = self.compile_now(key, &stored, &mut compiler_us).await;
        // Processor time where it is known: a tenant does not pay for waiting while others are busy.
        turn.charge(compiler_us.unwrap_or_else(|| micros(began)));
        if let Err(Stop::Failed(failure)) = &result {
            self.refused.keep(key, failure, Instant::now());
        }
        result
    }

    async fn compile_now(self: &Arc<Self>, key: Key, stored: &Stored, compiler_us: &mut Option<u64>) -> Result<Arc<Bundle>, Stop> {
        // Somebody may have been quicker between two flights.
        if let Some(bundle) = self.ready(key) {
            return Ok(bundle);
        }
        let (this, path) = (self.clone(), stored.path.clone());
        // A ticket that is cancelled drops this, and the thread ends with its next read.
        let waiter = archive::Waiter::default();
        let wanted = waiter.wanted();
        let unpacked = blocking(move || this.unpack(key.0, &path, &wanted)).await?;
        let (input, name) = match &unpacked {
            Some((guest, name, _)) => (guest.clone(), name.clone()),
            None => (stored.path.clone(), stored.name.clone().unwrap_or_else(|| format!("{}.wasm", &key.0.to_hex()[..12]))),
        };
        // Into memory: how much room the code needs on the disk is known when it is there.
        let code = memory_file().map_err(|e| ours("make a file in memory for the code of", &input, e))?;
        let output = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), code.as_raw_fd()));
        let (compiled, used_us) = self.compiler.compile(&input, &output, key.1).await;
        *compiler_us = used_us;
        let compiled = compiled.map_err(|r| {
            let shown = if name.ends_with(".wasm") || name.ends_with(".wat") { format!("{name} ({})", key.0) } else { key.0.to_string() };
            Failure::new(r.reason, format!("the bundle {shown} cannot run: {}", r.message))
        })?;
        let (inspection, archive) = (compiled, unpacked.is_some());
        let meta = move |code| Meta {
            format: META_FORMAT,
            name,
            component: inspection.component,
            archive,
            asks_who_it_is: inspection.asks_who_it_is,
            code,
        };
        let this = self.clone();
        blocking(move || this.finish(key, &code, meta)).await
    }

    /// Describes the code, moves it into place and opens it.
    fn finish(&self, key: Key, mut code: &File, meta: impl FnOnce(Digest) -> Meta) -> Result<Arc<Bundle>, Stop> {
        let target = self.compiled_dir(key);
        let failed = |e: io::Error| ours("keep compiled code at", &target, e);
        let meta = meta(hash(code).map_err(failed)?);
        let length = code.metadata().map_err(failed)?.len();
        // The directory and the description take a block each.
        let room = length.saturating_add(3 * BLOCK);
        self.note_footprint(key, room);
        let work = Work::make(&self.cache, &self.dirs.compiled, room)?;
        let mut written = || -> io::Result<()> {
            let create = |name| fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(work.path.join(name));
            let mut file = create("code")?;
            io::copy(&mut code, &mut file)?;
            // What has its final name is whole, also after a crash of the machine.
            file.sync_data()?;
            let mut file = create("meta.json")?;
            serde_json::to_writer(&mut file, &meta)?;
            file.sync_data()
        };
        written().map_err(failed)?;
        let mut pins = vec![(target.clone(), work.keep(&target).map_err(failed)?)];
        let bundle = self.open(key, &target, &mut pins).map_err(|e| ours("open compiled code at", &target, e))?;
        Ok(self.keep(key, bundle))
    }

    /// Unpacks an archive, unless it is unpacked: the guest's path, its name, and a pin. `None` for plain guests.
    fn unpack(&self, digest: Digest, bundle: &Path, wanted: &archive::Wanted) -> Result<Option<(PathBuf, String, Pin)>, Stop> {
        let packing = File::open(bundle).and_then(|mut f| archive::detect(&mut f)).map_err(|e| ours("read", bundle, e))?;
        let Some(packing) = packing else { return Ok(None) };
        let target = self.dirs.unpacked.join(digest.to_hex());
        if let Some(pin) = self.cache.pin(&target)
            && let Some((guest, name)) = find_guest(&target)
        {
            return Ok(Some((guest, name, pin)));
        }
        let surveyed = archive::look_at(bundle, packing, wanted)?;
        let work = Work::make(&self.cache, &self.dirs.unpacked, surveyed.room)?;
        archive::unpack(bundle, surveyed, &work.path, wanted)?;
        let pin = work.keep(&target).map_err(|e| ours("move the archive's files to", &target, e))?;
        let (guest, name) = find_guest(&target).ok_or_else(|| ours("find the guest in", &target, "it is gone"))?;
        Ok(Some((guest, name, pin)))
    }
}

/// A directory that is not finished, with the room it will take.
struct Work {
    cache: Arc<Cache>,
    path: PathBuf,
    pin: Option<Pin>,
}

impl Work {
    fn make(cache: &Arc<Cache>, dir: &Path, room: u64) -> Result<Self, Stop> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = dir.join(format!("{PARTIAL_PREFIX}{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let work = Self { cache: cache.clone(), pin: Some(cache.reserve(&path, room)?), path };
        fs::DirBuilder::new().mode(0o700).create(&work.path).map_err(|e| ours("make", &work.path, e))?;
        Ok(work)
    }

    /// Moves it into place; what was not needed of its room goes back.
    fn keep(mut self, target: &Path) -> io::Result<Pin> {
        self.cache.settle(&self.path, size_of(&self.path));
        let pin = self.cache.moved(&self.path, target)?;
        self.pin = None;
        Ok(pin)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if self.pin.is_some() {
            self.cache.discard(&self.path);
        }
    }
}

/// A file that takes no room on the disk.
fn memory_file() -> io::Result<File> {
    Ok(rustix::fs::memfd_create("code", rustix::fs::MemfdFlags::CLOEXEC)?.into())
}

impl Warm for Bundles {
    fn idle(&self) -> Vec<Idle> {
        let warm = self.warm.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |(key, bundle): (&Key, &Arc<Bundle>)| {
            let paths = || bundle.pins.iter().map(|(path, _)| path.clone()).collect();
            is_idle(bundle).then(|| Idle { used: bundle.used.load(Ordering::Relaxed), key: *key, paths: paths() })
        };
        warm.iter().filter_map(idle).collect()
    }

    fn release(&self, key: Key) -> bool {
        let mut warm = self.warm.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = warm.get(&key).is_some_and(is_idle);
        idle && warm.remove(&key).is_some()
    }
}

/// Whether no ticket and no task uses it.
fn is_idle(bundle: &Arc<Bundle>) -> bool {
    Arc::strong_count(bundle) == 1
        && Arc::strong_count(&bundle.code) == 1
        && bundle.assets.as_ref().is_none_or(|a| Arc::strong_count(a) == 1)
}

fn bundle_failure(error: &Failed) -> Failure {
    match error {
        Failed::Digest { .. } => Failure::new(Reason::DigestMismatch, format!("the bundle {error}")),
        // This agent's trouble and nobody else's: another one may have room.
        Failed::Disk { full, .. } => Failure::new(Reason::LaunchFailed, format!("the bundle cannot be kept: {error}{}", room(*full))),
        _ => Failure::new(Reason::FetchFailed, format!("the bundle cannot be fetched: {error}")),
    }
}

/// What helps against a full disk.
pub(super) fn room(full: bool) -> &'static str {
    if full { "; this agent's disk is full: make room, or lower its --cache-budget" } else { "" }
}

/// Writes a small file so that it is there as a whole or not at all.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(PARTIAL_PREFIX).tempfile_in(dir)?;
    io::Write::write_all(&mut file, bytes)?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

fn micros(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn name_path(bundle: &Path) -> PathBuf {
    bundle.with_extension("name")
}

fn find_guest(unpacked: &Path) -> Option<(PathBuf, String)> {
    let entry = fs::read_dir(unpacked.join(GUEST_DIR)).ok()?.next()?.ok()?;
    Some((entry.path(), entry.file_name().into_string().ok()?))
}

/// Runs what touches the disk off the event loop's threads.
pub(crate) async fn blocking<T: Send + 'static, E: From<Failure> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Failure::new(Reason::LaunchFailed, format!("preparation failed inside the agent: {e}")).into()),
    }
}
