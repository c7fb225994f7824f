//! A framework of its own beside the batch scheduler: single tasks, launched through the SDK and kept in its store, so that it can
//! be killed between any two of its steps.
//!
//! Owns what it knows of each task, committed together with the update that says so. An update that does not fit what it committed
//! is a violation, which it prints and ends with. Runs as a process of its own: `smalti-chaos framework`.

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use smalti_framework_sdk::store::{RedbStore, Store};
use smalti_framework_sdk::types::protocol::Call;
use smalti_framework_sdk::types::{
    BundleRef, Bytes, Filters, Launch, MilliCpus, Offer, Operation, Resources, Role, TaskId, TaskSpec, TaskState,
};
use smalti_framework_sdk::{Event, Framework, Handle, Options, Transaction, Update, push_bundle};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Table of its tasks, by id.
const TASKS: &str = "tasks";
/// Tasks that are under way at a time.
const AT_ONCE: usize = 4;
/// Resources are refused for this long when there is nothing to launch.
const REFUSE_MS: u64 = 500;
/// Between two attempts to upload the bundle while the master is away.
const AGAIN: Duration = Duration::from_millis(300);
/// Work of each task, in microseconds.
const TASK_US: &str = "5000";

#[derive(Debug, Clone, Args)]
pub(crate) struct FrameworkArgs {
    /// Address of the master
    #[arg(long)]
    master: String,
    /// Where it keeps what it knows
    #[arg(long)]
    store: PathBuf,
    /// What its tasks run
    #[arg(long)]
    bundle: PathBuf,
    /// End at once when standard input is closed
    #[arg(long)]
    stop_when_stdin_closes: bool,
}

/// What was committed of one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// This attempt was launched.
    Launched(u32),
    /// This attempt ended for the infrastructure's sake: the next one is due.
    Lost(u32),
    /// It has ended well, at this attempt.
    Finished(u32),
}

impl Known {
    fn encode(self) -> String {
        match self {
            Self::Launched(attempt) => format!("launched {attempt}"),
            Self::Lost(attempt) => format!("lost {attempt}"),
            Self::Finished(attempt) => format!("finished {attempt}"),
        }
    }

    fn decode(row: &[u8]) -> Result<Self> {
        let text = String::from_utf8_lossy(row);
        let (word, attempt) = text.split_once(' ').with_context(|| format!("a row says {text:?}"))?;
        let attempt = attempt.parse()?;
        Ok(match word {
            "launched" => Self::Launched(attempt),
            "lost" => Self::Lost(attempt),
            "finished" => Self::Finished(attempt),
            other => bail!("a row says {other:?}"),
        })
    }
}

/// All of its state: what the store holds, and whether it begins anything new.
#[derive(Debug)]
struct Tasks {
    known: BTreeMap<TaskId, Known>,
    spec: TaskSpec,
    wanted: Resources,
    ending: bool,
}

/// Runs it until SIGTERM, then until all of its tasks have ended.
pub(crate) fn run(args: FrameworkArgs) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?.block_on(live(args))
}

async fn live(args: FrameworkArgs) -> Result<()> {
    if args.stop_when_stdin_closes {
        std::thread::spawn(|| {
            let _ = std::io::stdin().read(&mut [0]);
            std::process::exit(1);
        });
    }
    let store: Arc<dyn Store> = Arc::new(RedbStore::open(&args.store)?);
    let role: Role = "chaos".parse()?;
    let spec = TaskSpec { args: vec!["--say".into(), "done".into(), TASK_US.into()], ..TaskSpec::new(bundle(&args, &role).await) };
    let mut tasks = Tasks::read(&*store, spec)?;
    let mut options = Options::new(args.master, "chaos").with_store(store);
    options.info.role = role;
    options.wait_for_master = true;
    let mut terminated = signal(SignalKind::terminate())?;
    let (handle, mut events) = Framework::connect(options).await?;
    println!("ready: framework");
    while !(tasks.ending && tasks.under_way() == 0) {
        tokio::select! {
            event = events.recv() => tasks.take(&handle, event.context("the subscription has ended")?).await?,
            _ = terminated.recv() => tasks.ending = true,
        }
    }
    handle.teardown().await?;
    while events.recv().await.is_some() {}
    let attempts: u64 = tasks.known.values().map(|k| if let Known::Finished(n) = k { u64::from(*n) + 1 } else { 0 }).sum();
    println!("ended: {} tasks, {attempts} attempts", tasks.known.len());
    Ok(())
}

/// The bundle, uploaded as soon as the master is there.
async fn bundle(args: &FrameworkArgs, role: &Role) -> BundleRef {
    loop {
        match push_bundle(&args.master, role, &args.bundle).await {
            Ok(bundle) => return bundle,
            Err(error) => eprintln!("the bundle is not uploaded yet: {error}"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

impl Tasks {
    fn read(store: &dyn Store, spec: TaskSpec) -> Result<Self> {
        let mut known = BTreeMap::new();
        for (key, value) in store.read(TASKS)? {
            known.insert(TaskId::new(String::from_utf8(key)?)?, Known::decode(&value)?);
        }
        Ok(Self { known, spec, wanted: Resources::new(MilliCpus(100), Bytes::mib(64)), ending: false })
    }

    /// Tasks that have not ended.
    fn under_way(&self) -> usize {
        self.known.values().filter(|k| !matches!(k, Known::Finished(_))).count()
    }

    async fn take(&mut self, handle: &Handle, event: Event) -> Result<()> {
        match event {
            Event::Offers(offers) => {
                for offer in offers {
                    self.use_offer(handle, offer).await?;
                }
            }
            Event::Update(update) => self.take_update(handle, update).await?,
            Event::Refused { call, message } => bail!("the master refused {call}: {message}"),
            Event::Error(message) => bail!("{message}"),
            Event::Subscribed { .. } | Event::Disconnected | Event::Rescind(_) | Event::AgentLost { .. } => {}
        }
        Ok(())
    }

    /// Launches what was lost, then new tasks.
    async fn use_offer(&mut self, handle: &Handle, offer: Offer) -> Result<()> {
        let fit = usize::try_from(offer.resources.times(&self.wanted, u32::try_from(AT_ONCE)?))?;
        let lost = self.known.iter().filter_map(|(task, k)| if let Known::Lost(n) = k { Some((task.clone(), n + 1)) } else { None });
        let mut due: Vec<(TaskId, u32)> = lost.take(fit).collect();
        if !self.ending {
            let new = fit.saturating_sub(due.len()).min(AT_ONCE.saturating_sub(self.under_way()));
            for n in (self.known.len()..).take(new) {
                due.push((TaskId::new(format!("own-{n:06}"))?, 0));
            }
        }
        if due.is_empty() {
            return Ok(handle.decline_all(&[offer], REFUSE_MS).await?);
        }
        let (mut operations, mut transaction) = (Vec::new(), Transaction::new());
        for (task, attempt) in due {
            transaction.put(TASKS, task.as_str(), Known::Launched(attempt).encode());
            self.known.insert(task.clone(), Known::Launched(attempt));
            operations.push(Operation::Launch(Launch { task, attempt, resources: self.wanted.clone(), spec: self.spec.clone() }));
        }
        transaction.call(Call::Accept { offers: vec![offer.id], operations, filters: Filters::default() });
        Ok(handle.commit(transaction).await?)
    }

    async fn take_update(&mut self, handle: &Handle, update: Update) -> Result<()> {
        let Update { update, ack, .. } = update;
        let (task, attempt, state) = (&update.key.task.task, update.key.task.attempt, update.state);
        let known = self.known.get(task).copied();
        ensure!(known == Some(Known::Launched(attempt)), "violation: {task}#{attempt} is {state}, and known as {known:?}");
        let mut transaction = Transaction::new();
        if state.is_terminal() {
            let now = if state == TaskState::Finished {
                Known::Finished(attempt)
            } else {
                let blame = update.reason.is_infrastructure();
                ensure!(blame, "violation: {task}#{attempt} is {state}: {} {}", update.reason, update.message);
                Known::Lost(attempt)
            };
            transaction.put(TASKS, task.as_str(), now.encode());
            self.known.insert(task.clone(), now);
        }
        transaction.take(ack);
        Ok(handle.commit(transaction).await?)
    }
}
