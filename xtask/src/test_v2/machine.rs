//! The machine itself: qemu with a kernel, a console and two time limits. It never outlives its owner.

use super::kernel::Kernel;
use super::plan::{Event, Outcome};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Longest time of a whole run: idle hosts take some minutes, busy ones several times as long.
const LIMIT: Duration = Duration::from_secs(2400);
/// Longest time until the machine is up: emulated it takes some five seconds on an idle host, on a busy one a minute.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// Longest time that a machine on hardware support takes: where that works it is up within two seconds.
const PROBE_LIMIT: Duration = Duration::from_secs(8);
/// All that qemu can emulate, less what it does wrongly: qemu 7.2 destroys the flags in cmpxchg16b, which kernel 6.12 allocates with
/// and dies of. Five levels of page tables only cost time.
const EMULATED_CPU: &str = "max,la57=off,cx16=off";
const MEMORY: &str = "4096";
const CPUS: &str = "2";
/// Quiet and fast under emulation: no search for what is not there, no guard against what cannot happen in it.
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=4 panic=-1 cgroup_no_v1=all systemd.unified_cgroup_hierarchy=1 nokaslr \
                            mitigations=off tsc=reliable no_timer_check rcupdate.rcu_expedited=1 swiotlb=noforce";
/// Console lines of a suite that are kept for the case that it fails.
const MAX_LINES: usize = 4000;

/// How instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accelerator {
    Kvm,
    Emulation,
}

impl Accelerator {
    fn args(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Emulation => ["-accel", "tcg,thread=multi", "-cpu", EMULATED_CPU],
        }
    }
}

/// What is started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setup<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) first: &'a Path,
    pub(super) root: &'a Path,
    pub(super) accelerator: Accelerator,
}

/// A running qemu, killed when dropped.
struct Machine {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // Not waited for without end: what hangs in the kernel's own hardware support does not die.
        let until = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Machine {
    fn start(setup: Setup<'_>, stderr: Stdio) -> Result<Self> {
        let mut c = Command::new("qemu-system-x86_64");
        c.args(["-M", "pc", "-m", MEMORY, "-smp", CPUS, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        c.args(["-monitor", "none", "-serial", "stdio"]).args(setup.accelerator.args());
        c.arg("-kernel").arg(&setup.kernel.image).arg("-initrd").arg(setup.first).args(["-append", COMMAND_LINE]);
        // What is written goes to a temporary file: the image stays as it is.
        c.arg("-drive").arg(format!("file={},if=virtio,format=raw,snapshot=on,cache=unsafe", setup.root.display()));
        let mut child = c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).spawn().context("starting qemu")?;
        let stdout = child.stdout.take().context("qemu has no stdout")?;
        let (tx, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                if tx.send(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned()).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// The next line; `None` at the end.
    fn line(&self, until: Instant) -> Result<Option<String>> {
        match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => Ok(Some(line)),
            Err(mpsc::RecvTimeoutError::Disconnected) => Ok(None),
            Err(mpsc::RecvTimeoutError::Timeout) => bail!("the machine took too long"),
        }
    }
}

/// Whether the machine comes up with hardware support. `/dev/kvm` may be there and hang, so it is tried, with a time limit.
pub(super) fn kvm_works(setup: Setup<'_>) -> bool {
    if std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return false;
    }
    // Only the answer counts: what qemu says where the hardware does not work would look like a failure.
    let Ok(machine) = Machine::start(Setup { accelerator: Accelerator::Kvm, ..setup }, Stdio::null()) else { return false };
    let until = Instant::now() + PROBE_LIMIT;
    while let Ok(Some(line)) = machine.line(until) {
        if matches!(Event::of_line(&line), Some(Event::Ready { .. })) {
            return true;
        }
    }
    false
}

/// Starts the machine, follows it to its end and says what is going on. Gives the suites' outcomes; the whole console goes to
/// `log`.
pub(super) fn run(setup: Setup<'_>, log: &Path) -> Result<Vec<Outcome>> {
    let start = Instant::now();
    let machine = Machine::start(setup, Stdio::inherit())?;
    let mut log_file = std::fs::File::create(log).with_context(|| log.display().to_string())?;
    let mut outcomes = Vec::new();
    let mut until = start + BOOT_LIMIT;
    let mut since_last: Vec<String> = Vec::new();
    let failed = |why: &str, lines: &[String]| {
        let tail = lines.len().saturating_sub(60);
        anyhow::anyhow!("{why}; its whole console is in {}; it ended with:\n{}", log.display(), lines[tail..].join("\n"))
    };
    loop {
        let line = match machine.line(until) {
            Ok(Some(line)) => line,
            Ok(None) => return Err(failed("the machine ended early", &since_last)),
            Err(e) => return Err(failed(&e.to_string(), &since_last)),
        };
        writeln!(log_file, "[{:7.2}] {line}", start.elapsed().as_secs_f64())?;
        match Event::of_line(&line) {
            None => {
                if since_last.len() < MAX_LINES {
                    since_last.push(line);
                }
            }
            Some(Event::Ready { kernel, controllers, landlock, pagemap_scan }) => {
                until = start + LIMIT;
                let scan = if pagemap_scan { "has" } else { "lacks" };
                println!(
                    "{kernel} is up after {:.1} s: controllers {controllers}; Landlock ABI {landlock}; {scan} PAGEMAP_SCAN",
                    start.elapsed().as_secs_f64()
                );
            }
            Some(Event::Ended(outcome)) => {
                say(&outcome, &since_last);
                since_last.clear();
                outcomes.push(outcome);
            }
            Some(Event::Finished) => {
                println!("{} took {:.0} s", setup.kernel.series.name(), start.elapsed().as_secs_f64());
                return Ok(outcomes);
            }
            Some(Event::Broken { why }) => return Err(failed(&why, &since_last)),
        }
    }
}

fn say(outcome: &Outcome, lines: &[String]) {
    let verdict = if outcome.is_good() { "ok" } else { "FAILED" };
    println!("  {}: {verdict}, {} passed, {} failed, {} s", outcome.suite, outcome.passed, outcome.failed.len(), outcome.seconds);
    // What a test could not test for lack of something on the machine is never silent.
    let not_tested = lines.iter().filter(|l| l.contains("NOT TESTED") || l.contains("NOT CLEANED UP"));
    let shown: Vec<&String> = if outcome.is_good() { not_tested.collect() } else { lines.iter().collect() };
    for line in shown {
        println!("    {line}");
    }
    for wrong in &outcome.wrong {
        println!("    WRONG: {wrong}");
    }
}
