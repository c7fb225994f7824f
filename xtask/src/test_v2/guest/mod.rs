//! Process 1 of the machine: mounts what a system has, runs the plan, turns the machine off.
//!
//! It starts twice: in the kernel's first file system, where it loads modules and goes on to the root, and there.

mod leftovers;
mod setup;
mod suite;

use super::image::{INIT, PLAN};
use super::plan::{Event, Plan};
use anyhow::{Context, Result};
use std::convert::Infallible;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

/// Where the second start finds the plan.
const PLAN_IN_ROOT: &str = "/run/plan.json";

/// The serial console, by lines.
#[derive(Debug, Clone)]
struct Console(Arc<Mutex<File>>);

impl Console {
    fn open() -> Result<Self> {
        let file = File::options().write(true).open("/dev/ttyS0").context("opening the console")?;
        Ok(Self(Arc::new(Mutex::new(file))))
    }

    fn line(&self, text: &str) {
        // Nobody is left to be told that the console does not work.
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(format!("{text}\n").as_bytes());
    }

    fn event(&self, event: &Event) {
        self.line(&event.to_line());
    }
}

/// Whether this process is the machine's first, and then everything. Returns only elsewhere.
pub(crate) fn init() -> Option<ExitCode> {
    if std::process::id() != 1 {
        return None;
    }
    let second = std::env::args_os().next().is_some_and(|name| Path::new(&name).ends_with(INIT));
    let result = if second { run_plan() } else { first().map(|never| match never {}) };
    if let Err(e) = result {
        let event = Event::Broken { why: format!("{e:#}") };
        match Console::open() {
            Ok(console) => console.event(&event),
            Err(_) => println!("{}", event.to_line()),
        }
    }
    // The console is still sending its last bytes.
    std::thread::sleep(std::time::Duration::from_millis(200));
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    Some(ExitCode::FAILURE)
}

/// In the kernel's first file system.
fn first() -> Result<Infallible> {
    setup::modules()?;
    let plan = std::fs::read(Path::new("/").join(PLAN)).context("reading the plan")?;
    setup::enter_root()?;
    setup::mounts()?;
    std::fs::write(PLAN_IN_ROOT, plan).context("keeping the plan")?;
    setup::exec(&Path::new("/").join(INIT))
}

/// In the root.
fn run_plan() -> Result<()> {
    let console = Console::open()?;
    let plan: Plan = serde_json::from_slice(&std::fs::read(PLAN_IN_ROOT)?).context("the plan")?;
    setup::loopback()?;
    setup::open_files()?;
    let session = setup::delegate()?;
    console.event(&setup::ready());
    for suite in &plan.suites {
        let outcome = suite::run(suite, &plan, &session, &console)?;
        console.event(&Event::Ended(outcome));
    }
    console.event(&Event::Finished);
    Ok(())
}
