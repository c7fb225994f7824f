//! One file per verb: its options, its examples, what it does.

pub(crate) mod agent;
pub(crate) mod agents;
pub(crate) mod bundle;
pub(crate) mod completion;
pub(crate) mod dev;
pub(crate) mod explain;
pub(crate) mod frameworks;
pub(crate) mod jobs;
pub(crate) mod kill;
pub(crate) mod logs;
pub(crate) mod map;
pub(crate) mod master;
pub(crate) mod offers;
pub(crate) mod ps;
pub(crate) mod roles;
pub(crate) mod run;
pub(crate) mod sandbox;
pub(crate) mod scheduler;
pub(crate) mod submit;
pub(crate) mod wait;

use crate::command::Verb;
use crate::failure::{Exit, Failure, Result, io_text};

/// Threads of a client verb: one that waits for the network, one that may block on stdout.
const CLIENT_THREADS: usize = 2;

/// Runs a verb to its end.
pub(crate) fn run(verb: Verb) -> Result<Exit> {
    match verb {
        Verb::Completion(completion) => completion.run(),
        Verb::Quota => Err(Failure::not_yet("quota", "roles share by dominant-resource fairness")),
        Verb::Master(master) => block_on(server_threads(), master.run()),
        Verb::Scheduler(scheduler) => block_on(server_threads(), scheduler.run()),
        Verb::Agent(agent) => block_on(server_threads(), agent.run()),
        client => block_on(CLIENT_THREADS, Box::pin(run_client(client))),
    }
}

async fn run_client(verb: Verb) -> Result<Exit> {
    match verb {
        Verb::Dev(verb) => verb.run().await,
        Verb::Run(verb) => verb.run().await,
        Verb::Map(verb) => verb.run().await,
        Verb::Submit(verb) => verb.run().await,
        Verb::Wait(verb) => verb.run().await,
        Verb::Jobs(verb) => verb.run().await,
        Verb::Ps(verb) => verb.run().await,
        Verb::Logs(verb) => verb.run().await,
        Verb::Kill(verb) => verb.run().await,
        Verb::Explain(verb) => verb.run().await,
        Verb::Sandbox(verb) => verb.run().await,
        Verb::Agents(verb) => verb.run().await,
        Verb::Frameworks(verb) => verb.run().await,
        Verb::Offers(verb) => verb.run().await,
        Verb::Roles(verb) => verb.run().await,
        Verb::Bundle(verb) => verb.run().await,
        Verb::Completion(_) | Verb::Quota | Verb::Master(_) | Verb::Scheduler(_) | Verb::Agent(_) => {
            Err(Failure::new("this verb is not one of the client's"))
        }
    }
}

/// Threads of a server: one for two processors, at most eight. What passes from a connection to the loop that decides and back should not
/// have to wake another thread each time, and a master shares its machine with others.
fn server_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| (n.get() / 2).clamp(1, 8))
}

/// Runs a future on a runtime of its own with this many threads.
fn block_on(threads: usize, future: impl Future<Output = Result<Exit>>) -> Result<Exit> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime =
        builder.worker_threads(threads).enable_all().build().map_err(|e| Failure::new(format!("starting threads: {}", io_text(&e))))?;
    let result = runtime.block_on(future);
    // A thread that still waits for a reader of stdout must not keep us.
    runtime.shutdown_background();
    result
}
