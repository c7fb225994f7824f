//! The service: takes tickets, runs each as a task of its own, and answers through one bounded channel.
//!
//! A ticket that needs nothing but a warm bundle is answered inside [`Handle::prepare`], without a task and without the disk.

use super::background::Background;
use super::bundles::{Bundle, Bundles, HeldContent};
use super::cache::{Cache, Dirs, Held, Kind, NoRoom, Pin, Stock, Warm};
use super::download::Fetcher;
use super::inputs::{ASSETS_PATH, Inputs, Kept};
use super::queue::{Group, Needs, Queue, Rooms};
use super::stdin::OutputReader;
use super::turns::{Places, Turns};
use super::{Error, Failure, Options, Prepared, Ready, ReadyDir, Request, Stop};
use futures::FutureExt;
use smalti_fetch::Location;
use smalti_types::{Bytes, Digest, FrameworkId, HoldingKey, Reason, Role, Stdin, TaskSpec};
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::AbortHandle;

/// Answers that wait for the receiver; tickets wait with theirs when there are more.
const RESULTS: usize = 1_024;

/// Cost of a compilation in microseconds of processor time, until it is known: that of a small guest.
const COMPILE_ESTIMATE_US: u64 = 50_000;
/// The same for reading and writing files, in microseconds.
const DISK_ESTIMATE_US: u64 = 1_000;
/// The same for one chunk of a transfer, in bytes.
const CHUNK_ESTIMATE: u64 = 16 << 10;

/// Turns at what tenants share of the agent itself.
#[derive(Debug, Clone)]
pub(crate) struct Shares {
    /// Compilations, by processor time in microseconds.
    pub(crate) compiles: Turns,
    /// Transfers under way. A stalled one is stopped, but until then only its own tenant's others wait.
    pub(crate) transfers: Turns,
    /// Hashing and writing of what arrives, by bytes.
    pub(crate) chunks: Turns,
    /// Reading and hashing files that are there, laying out inputs, by time in microseconds.
    pub(crate) disk: Turns,
}

impl Shares {
    fn new(options: &Options) -> Self {
        let turns = |per_tenant, total, estimate| Turns::new(Places { total, per_tenant, estimate });
        let few = options.compile_parallel.max(1);
        // A place is left for somebody else, also while nobody else wants one: a turn that has begun is not taken back.
        let of_one = few.saturating_sub(1);
        Self {
            compiles: turns(of_one, few, COMPILE_ESTIMATE_US),
            // Counted by number: each is one, however long it takes.
            transfers: turns(options.downloads.0, options.downloads.1, 1),
            chunks: turns(of_one, few, CHUNK_ESTIMATE),
            disk: turns(of_one, few, DISK_ESTIMATE_US),
        }
    }
}

/// How often those who wait for room are looked after, if nobody says that there is some.
pub(super) const LOOKS_EVERY: Duration = Duration::from_millis(250);
/// How often people are told how far a transfer is.
const TOLD_EVERY: Duration = Duration::from_millis(500);
/// Places of one ticket that are looked at for that.
const PLACES_SHOWN: usize = 64;

/// What people were told last.
#[derive(Debug, Default)]
struct Told {
    at: Option<Instant>,
    words: HashMap<u64, String>,
}

/// Starts the service.
#[derive(Debug)]
pub struct Preparer;

pub(super) struct Service {
    bundles: Arc<Bundles>,
    pub(super) inputs: Arc<Inputs>,
    fetcher: Arc<Fetcher>,
    outputs: OutputReader,
    pub(super) cache: Arc<Cache>,
    /// Files of archives that tasks of an earlier life of the agent see; everything else they have open or linked.
    earlier: Mutex<BTreeMap<Digest, Pin>>,
    results: mpsc::Sender<Prepared>,
    tickets: Mutex<Tickets>,
    told: Mutex<Told>,
    queue: Queue,
    pub(super) room_timeout: Duration,
    max_tickets: (usize, usize),
    background: Background,
}

/// Tickets under way, and how many of them are whose.
#[derive(Default)]
struct Tickets {
    tasks: HashMap<u64, (FrameworkId, AbortHandle)>,
    /// What they may be waiting for.
    places: HashMap<u64, Vec<Location>>,
    /// Those that wait for room, and why.
    no_room: HashMap<u64, NoRoom>,
    by_tenant: HashMap<FrameworkId, usize>,
}

impl Tickets {
    fn remove(&mut self, ticket: u64) -> Option<AbortHandle> {
        let (tenant, task) = self.tasks.remove(&ticket)?;
        self.places.remove(&ticket);
        self.no_room.remove(&ticket);
        if let Some(n) = self.by_tenant.get_mut(&tenant) {
            *n -= 1;
            if *n == 0 {
                self.by_tenant.remove(&tenant);
            }
        }
        Some(task)
    }

    fn insert(&mut self, ticket: u64, tenant: FrameworkId, task: AbortHandle, places: Vec<Location>) {
        self.places.insert(ticket, places);
        *self.by_tenant.entry(tenant.clone()).or_default() += 1;
        self.tasks.insert(ticket, (tenant, task));
    }

    /// It waits for room.
    fn note(&mut self, ticket: u64, why: &NoRoom) {
        if self.tasks.contains_key(&ticket) {
            self.no_room.insert(ticket, why.clone());
        }
    }

    /// Whether one more may be taken.
    fn admit(&self, ticket: u64, tenant: &FrameworkId, (most_of_one, most): (usize, usize)) -> Result<(), Error> {
        let theirs = self.by_tenant.get(tenant).copied().unwrap_or_default();
        match self.tasks.len() {
            _ if self.tasks.contains_key(&ticket) => Err(Error::Duplicate(ticket)),
            _ if theirs >= most_of_one => Err(Error::TenantBusy(theirs)),
            n if n >= most => Err(Error::Busy(n)),
            _ => Ok(()),
        }
    }
}

/// Hands tickets to the service. Clones are the same service; it ends with its last ticket when all are dropped.
#[derive(Clone)]
pub struct Handle(Arc<Service>);

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("tickets", &self.0.tickets().tasks.len()).finish_non_exhaustive()
    }
}

impl Preparer {
    /// Makes the cache directories, takes stock of what is in them, and starts the service on threads of its own.
    ///
    /// # Errors
    /// [`Error`] when a directory cannot be used, or there is no HTTP client or no thread.
    pub fn start(options: Options) -> Result<(Handle, mpsc::Receiver<Prepared>), Error> {
        if options.compile_command.is_empty() {
            return Err(Error::NoCompiler);
        }
        let dirs = Dirs::below(&options.data_dir);
        for dir in dirs.all() {
            let failed = |operation| move |source| Error::Directory { operation, path: dir.to_owned(), source };
            fs::create_dir_all(dir).map_err(failed("make"))?;
            // Compiled code is loaded only from where nobody else can write.
            fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(failed("close"))?;
        }
        let opened = Cache::open(&dirs, options.budgets);
        let cache = Arc::new(opened.map_err(|source| Error::Directory { operation: "read", path: options.data_dir.clone(), source })?);
        let pin = |digest: &Digest| Some((*digest, cache.pin(&dirs.unpacked.join(digest.to_hex()))?));
        let earlier = options.in_use.iter().filter_map(pin).collect();
        cache.evict();
        let shares = Shares::new(&options);
        let fetcher = Arc::new(Fetcher::new(options.fetch.clone(), options.locator.clone(), &dirs, cache.clone(), shares.chunks.clone())?);
        let (results, receiver) = mpsc::channel(RESULTS);
        let bundles = Arc::new(Bundles::new(&options, &dirs, fetcher.clone(), cache.clone(), &shares));
        let warm: Weak<dyn Warm> = Arc::<Bundles>::downgrade(&bundles);
        cache.set_warm(warm);
        let service = Arc::new(Service {
            bundles,
            inputs: Arc::new(Inputs::new(&dirs, options.max_input, fetcher.clone(), cache.clone(), &shares)),
            fetcher,
            outputs: OutputReader {
                master: options.fetch.master.clone(),
                attempts: options.fetch.retries.attempts,
                backoff: options.fetch.retries.backoff,
                limit: options.max_input,
                transfers: shares.transfers.clone(),
            },
            queue: Queue::new(cache.freed()),
            room_timeout: options.room_timeout,
            cache,
            earlier: Mutex::new(earlier),
            results,
            tickets: Mutex::default(),
            told: Mutex::default(),
            max_tickets: options.max_tickets,
            background: Background::start(options.compile_parallel, options.groups.clone()).map_err(Error::Threads)?,
        });
        service.background.handle().spawn(give_out(Arc::downgrade(&service), service.cache.freed()));
        Ok((Handle(service), receiver))
    }
}

impl Handle {
    /// Takes one ticket; its answer comes through the receiver. Never waits.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::TenantBusy`], [`Error::Duplicate`] or [`Error::Closed`]; the ticket then gets no answer.
    pub fn prepare(&self, request: Request) -> Result<(), Error> {
        if let Some(ready) = self.0.warm(&request) {
            let answer = Prepared { ticket: request.ticket, result: Ok(ready) };
            return match self.0.results.try_send(answer) {
                Ok(()) => Ok(()),
                Err(TrySendError::Closed(_)) => Err(Error::Closed),
                Err(TrySendError::Full(answer)) => {
                    self.spawn(answer.ticket, request.framework, Vec::new(), move |_| async move { answer.result })
                }
            };
        }
        let places = places(&request);
        self.spawn(request.ticket, request.framework.clone(), places, move |service| async move { service.through(request).await })
    }

    /// Of the bundles that tasks of an earlier life ran, only these are still in use.
    pub fn release(&self, in_use: &BTreeSet<Digest>) {
        self.0.earlier.lock().unwrap_or_else(PoisonError::into_inner).retain(|digest, _| in_use.contains(digest));
    }

    /// The disk is too full: so many bytes of what nobody uses go, what was not used for the longest time first. Touches the disk.
    pub fn give_up(&self, bytes: Bytes) {
        self.0.cache.give_up(bytes.0);
    }

    /// Gives a ticket up: stops its transfers and its compilation unless other tickets wait for them too. Unknown tickets
    /// are ignored.
    pub fn cancel(&self, ticket: u64) {
        if let Some(task) = self.0.tickets().remove(ticket) {
            task.abort();
        }
    }

    /// Bytes on the disk now.
    #[cfg(test)]
    pub(crate) fn on_disk(&self) -> u64 {
        self.0.cache.on_disk()
    }

    /// Keeps the budgets.
    #[cfg(test)]
    pub(crate) fn evict(&self) {
        self.0.cache.evict();
    }

    /// What the caches have.
    pub fn stock(&self) -> Vec<Stock> {
        self.0.cache.stock()
    }

    /// What roles hold here, what was used last first.
    pub(crate) fn holdings(&self) -> Vec<(Role, HoldingKey)> {
        let mut held = self.0.bundles.holdings();
        held.extend(self.0.inputs.holdings());
        held.sort_by(|a, b| b.cmp(a));
        held.into_iter().map(|(_, role, key)| (role, key)).collect()
    }

    /// When it is the same, so are the holdings; which were used last may not be.
    pub(crate) fn generation(&self) -> u64 {
        self.0.cache.generation().wrapping_add(self.0.bundles.generation())
    }

    /// What a role holds here, to be given to another agent.
    pub(crate) async fn held(&self, role: &Role, digest: Digest) -> Option<HeldContent> {
        let (service, role) = (self.0.clone(), role.clone());
        let look = move || service.bundles.held(digest, &role).or_else(|| service.inputs.held(digest, &role));
        self.0.background.handle().spawn_blocking(look).await.ok().flatten()
    }

    /// How far the transfers of tickets are, where that is news: ticket, thousandths, words.
    pub fn progress(&self) -> Vec<(u64, u16, String)> {
        let mut told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let nothing = self.0.fetcher.meters.is_empty() && self.0.tickets().no_room.is_empty();
        if nothing || told.at.is_some_and(|at| now.saturating_duration_since(at) < TOLD_EVERY) {
            return Vec::new();
        }
        told.at = Some(now);
        let tickets = self.0.tickets();
        told.words.retain(|ticket, _| tickets.tasks.contains_key(ticket));
        let read = |(ticket, places): (&u64, &Vec<Location>)| {
            let waits = tickets.no_room.get(ticket).map(|why| (0, format!("waiting for room in this agent's caches: {why}")));
            let (permille, words) = waits.or_else(|| self.0.fetcher.meters.read(places))?;
            Some((*ticket, permille, words))
        };
        let mut news: Vec<_> = tickets.places.iter().filter_map(read).collect();
        news.retain(|(ticket, _, words)| told.words.insert(*ticket, words.clone()).as_ref() != Some(words));
        news
    }

    pub(super) fn service(&self) -> &Service {
        &self.0
    }

    /// Where what prepares runs.
    pub(crate) fn runtime(&self) -> tokio::runtime::Handle {
        self.0.background.handle()
    }

    fn spawn<F>(&self, ticket: u64, tenant: FrameworkId, places: Vec<Location>, work: impl FnOnce(Arc<Service>) -> F) -> Result<(), Error>
    where
        F: Future<Output = Result<Ready, Failure>> + Send + 'static,
    {
        // Held until the ticket is entered, so that its task cannot end before.
        let mut tickets = self.0.tickets();
        tickets.admit(ticket, &tenant, self.0.max_tickets)?;
        let (service, work) = (self.0.clone(), Box::pin(work(self.0.clone())));
        let task = self.0.background.handle().spawn(async move {
            // A bug in here must not leave a task waiting for ever.
            let result = AssertUnwindSafe(work)
                .catch_unwind()
                .await
                .unwrap_or_else(|_| Err(Failure::new(Reason::LaunchFailed, "preparation failed inside the agent (see its log)")));
            let Ok(place) = service.results.reserve().await else { return };
            if service.tickets().remove(ticket).is_none() {
                return; // cancelled
            }
            place.send(Prepared { ticket, result });
        });
        tickets.insert(ticket, tenant, task.abort_handle(), places);
        Ok(())
    }
}

impl Service {
    fn tickets(&self) -> std::sync::MutexGuard<'_, Tickets> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer, if the bundle is all that the task needs and it is ready.
    fn warm(&self, request: &Request) -> Option<Ready> {
        let spec = &request.spec;
        if !is_plain(request) {
            return None;
        }
        let bundle = self.bundles.warm(spec.bundle.digest, request.fuel, &request.role)?;
        if !self.queue.may_pass(spec.bundle.digest) {
            return None;
        }
        Some(self.ready(&bundle, spec, Vec::new()))
    }

    /// Prepares, and comes back as often as there is no room.
    async fn through(&self, request: Request) -> Result<Ready, Failure> {
        let (began, mut alone) = (Instant::now(), 0);
        let key = (request.spec.bundle.digest, request.fuel);
        let group = Group { bundle: request.spec.bundle.clone(), fuel: request.fuel, role: request.role.clone() };
        let _wanted = self.cache.want(key.0);
        let ticket = self.queue.ticket(request.framework.clone(), group, is_plain(&request), began);
        // Of what was here before is known how much it takes, and nobody is asked for it in vain.
        let mut needs = self.bundles.footprint(key).map(|bytes| self.needs(Kind::Bundles, bytes));
        loop {
            let left = self.room_timeout.saturating_sub(began.elapsed());
            let view = View::of(self);
            let place = self.queue.wait(&ticket, needs, &view);
            let place = match needs {
                None => place.await.ok(),
                Some(needs) => {
                    if !view.could_have(needs) {
                        self.tickets().note(request.ticket, &self.no_room(needs));
                    }
                    match tokio::time::timeout(left.max(LOOKS_EVERY), place).await {
                        Ok(place) => place.ok(),
                        // There is room: it waits for another to fetch what both need.
                        Err(_) if self.cache.could_have(needs.kind) >= needs.bytes => None,
                        Err(_) => return Err(too_late(self.room_timeout, &self.no_room(needs))),
                    }
                }
            };
            let Some(place) = place else { continue };
            let no_room = match self.run(&request).await {
                Ok(ready) => {
                    place.got_through();
                    return Ok(ready);
                }
                Err(Stop::Failed(failure)) => return Err(failure),
                Err(Stop::NoRoom(no_room)) => no_room,
            };
            // By now everything that it held is given up.
            let (could_have, budget) = (self.cache.could_have(no_room.kind), self.cache.budget(no_room.kind));
            alone = if place.found_none() && could_have == budget { alone + 1 } else { 0 };
            if no_room.wanted > budget || alone == 2 {
                return Err(too_much(&no_room));
            }
            if left.is_zero() {
                return Err(too_late(self.room_timeout, &no_room));
            }
            tracing::debug!(ticket = request.ticket, %no_room, "waits for room");
            // What it held itself comes on top of what was missing.
            let held = could_have.saturating_sub(budget.saturating_sub(no_room.in_use));
            let all = self.bundles.footprint(key).unwrap_or_default();
            needs = Some(self.needs(no_room.kind, no_room.wanted.saturating_add(held).max(all)));
            self.tickets().note(request.ticket, &no_room);
        }
    }

    /// Nobody can have more than all.
    fn needs(&self, kind: Kind, bytes: u64) -> Needs {
        Needs { kind, bytes: bytes.min(self.cache.budget(kind)) }
    }

    /// What stands in the way of it.
    fn no_room(&self, Needs { kind, bytes }: Needs) -> NoRoom {
        let budget = self.cache.budget(kind);
        NoRoom { kind, wanted: bytes, budget, in_use: budget.saturating_sub(self.cache.could_have(kind)) }
    }

    async fn run(&self, request: &Request) -> Result<Ready, Stop> {
        let Request { framework, role, spec, split_inputs, directory, fuel, .. } = request;
        let whose = (role, framework);
        let bundle = self.bundles.get((&spec.bundle, *fuel), role, framework);
        let inputs = self.inputs.lay_out(&spec.inputs, directory, whose);
        let splits = self.inputs.lay_out_splits(split_inputs, directory, whose);
        let stdin = self.outputs.prepare(&spec.stdin, whose, directory, &self.inputs);
        let (bundle, (dirs, mut kept), (splits, of_splits), (stdin, of_stdin)) = tokio::try_join!(bundle, inputs, splits, stdin)?;
        kept.extend(of_splits);
        kept.extend(of_stdin);
        let mut ready = self.ready(&bundle, spec, kept);
        ready.dirs.extend(dirs);
        ready.stdin = stdin;
        ready.split_inputs = splits;
        Ok(ready)
    }

    /// What the bundle alone gives, with what is kept for the task beside it.
    fn ready(&self, bundle: &Arc<Bundle>, spec: &TaskSpec, kept: Vec<Kept>) -> Ready {
        let mut others: Vec<Arc<dyn std::fmt::Debug + Send + Sync>> = vec![bundle.clone()];
        let mut pins = Vec::with_capacity(kept.len());
        for kept in kept {
            let (pin, once) = kept.into_parts();
            pins.push(pin);
            others.extend(once.map(|once| once as Arc<dyn std::fmt::Debug + Send + Sync>));
        }
        ready(bundle, spec, Arc::new(self.cache.hold(pins, others)))
    }
}

/// What the caches have at one moment, looked at when it is asked for.
struct View<'a> {
    service: &'a Service,
    could_have: OnceCell<[u64; 3]>,
}

impl<'a> View<'a> {
    const fn of(service: &'a Service) -> Self {
        Self { service, could_have: OnceCell::new() }
    }
}

impl Rooms for View<'_> {
    fn could_have(&self, needs: Needs) -> bool {
        let could_have = self.could_have.get_or_init(|| Kind::ALL.map(|kind| self.service.cache.could_have(kind)));
        could_have[needs.kind as usize] >= needs.bytes
    }

    fn is_at_hand(&self, group: &Group) -> bool {
        self.service.bundles.is_at_hand((group.bundle.digest, group.fuel), &group.role)
    }
}

/// Whether it needs nothing but its bundle.
fn is_plain(request: &Request) -> bool {
    let spec = &request.spec;
    spec.inputs.is_empty() && request.split_inputs.is_empty() && matches!(spec.stdin, Stdin::Empty | Stdin::Split)
}

/// Who waits for room goes on when something may be free: when somebody has ended, and now and then, since the links of a task's inputs go
/// without a word.
async fn give_out(service: Weak<Service>, freed: Arc<tokio::sync::Notify>) {
    loop {
        let _ = tokio::time::timeout(LOOKS_EVERY, freed.notified()).await;
        let Some(service) = service.upgrade() else { return };
        if service.queue.is_waited_for() {
            service.queue.give_out(Instant::now(), &View::of(&service));
        }
    }
}

pub(super) fn too_late(after: Duration, why: &NoRoom) -> Failure {
    Failure::new(Reason::LaunchFailed, format!("this agent's caches have had no room for {} s: {why}", after.as_secs()))
}

/// It would not fit if nothing else was there.
pub(super) fn too_much(no_room: &NoRoom) -> Failure {
    let kind = no_room.kind.name();
    let text = format!(
        "it does not fit into this agent's caches, even if nothing else is in them: {} more of {kind} are needed beside what it has, the budget is \
         {}. Raise --cache-budget or --{kind}-budget of the agent, or use less",
        Bytes(no_room.wanted),
        Bytes(no_room.budget)
    );
    Failure::new(Reason::LaunchFailed, text)
}

/// Where what a ticket needs comes from, as far as people are told.
fn places(request: &Request) -> Vec<Location> {
    let spec = &request.spec;
    let stdin = if let Stdin::Object(input) = &spec.stdin { Some(input) } else { None };
    let inputs = spec.inputs.iter().chain(stdin).chain(&request.split_inputs).map(|i| (i.uri.as_deref(), i.digest));
    let all = std::iter::once((spec.bundle.uri.as_deref(), Some(spec.bundle.digest))).chain(inputs);
    all.filter_map(|(uri, digest)| Location::parse(uri, digest).ok()).take(PLACES_SHOWN).collect()
}

/// What the bundle alone gives.
fn ready(bundle: &Bundle, spec: &TaskSpec, held: Arc<Held>) -> Ready {
    let own_name = || Location::parse(spec.bundle.uri.as_deref(), Some(spec.bundle.digest)).ok().and_then(|l| l.file_name());
    let name = if bundle.assets.is_some() { None } else { own_name() };
    let dirs = bundle.assets.iter().map(|dir| ReadyDir { guest_path: ASSETS_PATH.into(), dir: dir.clone(), writable: false });
    Ready {
        digest: bundle.digest,
        name: name.unwrap_or_else(|| bundle.name.clone()),
        component: bundle.component,
        // An interpreter's script may ask where the interpreter does not.
        asks_who_it_is: bundle.asks_who_it_is || bundle.assets.is_some(),
        code: bundle.code.clone(),
        dirs: dirs.collect(),
        stdin: None,
        split_inputs: None,
        held,
    }
}
