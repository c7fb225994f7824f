//! The service: takes tickets, runs each as a task of its own, and answers through one bounded channel.
//!
//! A ticket that needs nothing but a warm bundle is answered inside [`Handle::prepare`], without a task and without the disk.

use super::bundles::{Bundle, Bundles, blocking};
use super::cache::{Cache, Dirs};
use super::download::Fetcher;
use super::inputs::{ASSETS_PATH, Inputs};
use super::source::Location;
use super::stdin::OutputReader;
use super::{Error, Failure, Options, Prepared, Ready, ReadyDir, Request};
use futures::FutureExt;
use smalti_types::{Reason, Stdin, TaskSpec};
use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::AbortHandle;

/// Answers that wait for the receiver; tickets wait with theirs when there are more.
const RESULTS: usize = 1_024;

/// Starts the service.
#[derive(Debug)]
pub struct Preparer;

struct Service {
    bundles: Arc<Bundles>,
    inputs: Arc<Inputs>,
    outputs: OutputReader,
    cache: Arc<Cache>,
    results: mpsc::Sender<Prepared>,
    tickets: Mutex<HashMap<u64, AbortHandle>>,
    max_tickets: usize,
    runtime: tokio::runtime::Handle,
}

/// Hands tickets to the service. Clones are the same service; it ends with its last ticket when all are dropped.
#[derive(Clone)]
pub struct Handle(Arc<Service>);

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("tickets", &self.0.tickets().len()).finish_non_exhaustive()
    }
}

impl Preparer {
    /// Makes the cache directories, takes stock of what is in them, and starts the service on the current runtime.
    ///
    /// # Errors
    /// [`Error`] when a directory cannot be used or there is no HTTP client.
    ///
    /// # Panics
    /// Outside a tokio runtime.
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
        let opened = Cache::open(&dirs, options.cache_budget.0);
        let cache = Arc::new(opened.map_err(|source| Error::Directory { operation: "read", path: options.data_dir.clone(), source })?);
        let fetcher = Arc::new(Fetcher::new(&options)?);
        let (results, receiver) = mpsc::channel(RESULTS);
        let service = Service {
            bundles: Arc::new(Bundles::new(&options, &dirs, fetcher.clone(), cache.clone())),
            inputs: Arc::new(Inputs::new(&dirs, options.max_input, fetcher, cache.clone())),
            outputs: OutputReader {
                master: options.master.clone(),
                attempts: options.fetch_attempts,
                backoff: options.fetch_backoff,
                limit: options.max_input,
            },
            cache,
            results,
            tickets: Mutex::default(),
            max_tickets: options.max_tickets,
            runtime: tokio::runtime::Handle::current(),
        };
        Ok((Handle(Arc::new(service)), receiver))
    }
}

impl Handle {
    /// Takes one ticket; its answer comes through the receiver. Never waits.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Duplicate`] or [`Error::Closed`]; the ticket then gets no answer.
    pub fn prepare(&self, request: Request) -> Result<(), Error> {
        if let Some(ready) = self.0.warm(&request) {
            let answer = Prepared { ticket: request.ticket, result: Ok(ready) };
            return match self.0.results.try_send(answer) {
                Ok(()) => Ok(()),
                Err(TrySendError::Closed(_)) => Err(Error::Closed),
                Err(TrySendError::Full(answer)) => self.spawn(answer.ticket, move |_| async move { answer.result }),
            };
        }
        self.spawn(request.ticket, move |service| async move { service.run(request).await })
    }

    /// Gives a ticket up: stops its transfers and its compilation unless other tickets wait for them too. Unknown tickets
    /// are ignored.
    pub fn cancel(&self, ticket: u64) {
        if let Some(task) = self.0.tickets().remove(&ticket) {
            task.abort();
        }
    }

    fn spawn<F>(&self, ticket: u64, work: impl FnOnce(Arc<Service>) -> F) -> Result<(), Error>
    where
        F: Future<Output = Result<Ready, Failure>> + Send + 'static,
    {
        // Held until the ticket is entered, so that its task cannot end before.
        let mut tickets = self.0.tickets();
        if tickets.contains_key(&ticket) {
            return Err(Error::Duplicate(ticket));
        }
        if tickets.len() >= self.0.max_tickets {
            return Err(Error::Busy(tickets.len()));
        }
        let (service, work) = (self.0.clone(), Box::pin(work(self.0.clone())));
        let task = self.0.runtime.spawn(async move {
            // A bug in here must not leave a task waiting for ever.
            let result = AssertUnwindSafe(work)
                .catch_unwind()
                .await
                .unwrap_or_else(|_| Err(Failure::new(Reason::LaunchFailed, "preparation failed inside the agent (see its log)")));
            let Ok(place) = service.results.reserve().await else { return };
            if service.tickets().remove(&ticket).is_none() {
                return; // cancelled
            }
            place.send(Prepared { ticket, result });
            service.tidy().await;
        });
        tickets.insert(ticket, task.abort_handle());
        Ok(())
    }
}

impl Service {
    fn tickets(&self) -> std::sync::MutexGuard<'_, HashMap<u64, AbortHandle>> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer, if the bundle is all that the task needs and it is ready.
    fn warm(&self, request: &Request) -> Option<Ready> {
        let spec = &request.spec;
        let plain = spec.inputs.is_empty() && request.split_inputs.is_empty() && matches!(spec.stdin, Stdin::Empty | Stdin::Split);
        if !plain {
            return None;
        }
        Some(ready(&*self.bundles.warm(spec.bundle.digest, request.fuel)?, spec))
    }

    async fn run(&self, request: Request) -> Result<Ready, Failure> {
        let Request { framework, spec, split_inputs, directory, fuel, .. } = &request;
        let bundle = self.bundles.get(&spec.bundle, *fuel);
        let inputs = self.inputs.lay_out(&spec.inputs, directory);
        let splits = self.inputs.lay_out_splits(split_inputs, directory);
        let stdin = self.outputs.prepare(&spec.stdin, framework, directory, &self.inputs);
        let (bundle, dirs, splits, stdin) = tokio::try_join!(bundle, inputs, splits, stdin)?;
        let mut ready = ready(&bundle, spec);
        ready.dirs.extend(dirs);
        ready.stdin = stdin;
        ready.split_inputs = splits;
        Ok(ready)
    }

    /// Keeps the budget, after what was just added.
    async fn tidy(&self) {
        if self.cache.is_over() {
            self.bundles.release_idle();
            let cache = self.cache.clone();
            let _ = blocking(move || {
                cache.evict();
                Ok(())
            })
            .await;
        }
    }
}

/// What the bundle alone gives.
fn ready(bundle: &Bundle, spec: &TaskSpec) -> Ready {
    let own_name = || Location::parse(spec.bundle.uri.as_deref(), Some(spec.bundle.digest)).ok().and_then(|l| l.file_name());
    let name = if bundle.assets.is_some() { None } else { own_name() };
    let dirs = bundle.assets.iter().map(|dir| ReadyDir { guest_path: ASSETS_PATH.into(), dir: dir.clone(), writable: false });
    Ready {
        digest: bundle.digest,
        name: name.unwrap_or_else(|| bundle.name.clone()),
        component: bundle.component,
        code: bundle.code.clone(),
        dirs: dirs.collect(),
        stdin: None,
        split_inputs: None,
    }
}
