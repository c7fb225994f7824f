//! The agent's end of one worker, which runs on a thread of this process, and what may come from it.
//!
//! Owns the worker, the directories that its guests see, and the checks. Descriptors are memory files: nothing here needs a disk
//! except the guests' own directories.

use super::Ending;
use super::guest::{Guest, Limit};
use crate::confine::walls::{READY, Walls};
use crate::engine::forced::{self, Mode};
use crate::worker::Worker;
use rustix::fs::{MemfdFlags, memfd_create};
use smalti_executor_protocol::supervision::ExecutorKind;
use smalti_executor_protocol::v1::{self, FromExecutor, ToExecutor, from_executor::Message as From, to_executor::Message as To};
use smalti_executor_protocol::{Reader, Writer, blocking};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;
use wasmtime::Engine;

/// Nothing here takes this long; it only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(120);
/// What a guest finds on its standard input.
const STDIN: &[u8] = &[0x5a; 3000];
/// Beside the directories of guests: none of them may see or change it.
const SECRET: &str = "not for guests";
/// More than any random guest has, so that all of every memory that it may have used is looked at.
const LOOK_PAGES: u32 = 512;

/// How an executor is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setup {
    /// The best allocator that the machine offers.
    Best,
    /// Pools, each memory reset without the kernel's help.
    PlainReset,
    /// No pools.
    OnDemand,
    /// For a task with sockets.
    Networked,
}

impl Setup {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Best, Self::PlainReset, Self::OnDemand, Self::Networked];

    const fn mode(self) -> Mode {
        match self {
            Self::Best | Self::Networked => Mode::Best,
            Self::PlainReset => Mode::PlainReset,
            Self::OnDemand => Mode::OnDemand,
        }
    }
}

/// One worker with one slot.
#[derive(Debug)]
pub struct Executor {
    reader: Reader,
    writer: Writer,
    worker: JoinHandle<()>,
    /// The supervisor's end of the worker's line, if it has walls.
    _supervisor: Option<UnixStream>,
    directory: TempDir,
    setup: Setup,
    /// Compile without and with fuel.
    compilers: [Engine; 2],
    run: u64,
    module: u32,
    /// Number of the last message that must not be missed.
    last: u64,
}

/// What a guest is given on the network; alive as long as it runs.
struct Peer(#[expect(dead_code, reason = "only held")] TcpStream);

impl Executor {
    /// Starts one; with `walled` behind the layers that a thread can have for itself: no capabilities, Landlock, the filter.
    ///
    /// # Panics
    /// When that does not work.
    #[must_use]
    pub fn start(setup: Setup, walled: bool) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        ours.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let kind = if setup == Setup::Networked { ExecutorKind::Networked } else { ExecutorKind::Shared };
        let (supervisor, line) = UnixStream::pair().expect("a socket pair");
        let worker = std::thread::spawn(move || {
            forced::set(setup.mode());
            let mut worker = if walled { Worker::walled(Walls::new(line.into(), kind, false)) } else { Worker::new(false) };
            worker.session(theirs).expect("a session");
            worker.shutdown();
        });
        let (reader, writer) = blocking::split(ours).expect("two ends");
        let compilers = [false, true].map(|fuel| Engine::new(&smalti_engine::base_config(fuel)).expect("an engine"));
        let directory = directories();
        let mut executor = Self {
            reader,
            writer,
            worker,
            _supervisor: walled.then_some(supervisor),
            directory,
            setup,
            compilers,
            run: 0,
            module: 0,
            last: 0,
        };
        executor.send(
            To::Welcome(v1::Welcome { slots: 1, max_memory_bytes: 0, network: setup == Setup::Networked, ..Default::default() }),
            &[],
        );
        if let Some(supervisor) = &mut executor._supervisor {
            let mut ready = [0; READY.len()];
            supervisor.read_exact(&mut ready).expect("the worker is ready");
            supervisor.write_all(b"\n").expect("told");
        }
        match (executor.receive(), executor.receive()) {
            (Ok(From::Hello(_)), Ok(From::Holds(holds))) if holds == v1::Holds::default() => executor,
            other => panic!("Hello comes first, then that it holds nothing, not {other:?}"),
        }
    }

    /// Runs one guest to its end.
    ///
    /// # Errors
    /// What was not as it must be.
    pub(crate) fn run(&mut self, guest: &Guest) -> Result<Ending, String> {
        let code = match self.compile(guest) {
            Ok(code) => code,
            Err(_) if guest.doubtful => return Ok("refused by the compiler".to_owned()),
            Err(e) => return Err(format!("a valid guest is not compiled: {e:#}")),
        };
        match self.load(&code, guest)? {
            None => {}
            // A valid module with imports that all exist and an entry point may still be too large for the pools.
            Some(failure) if matches!(failure.reason.as_str(), "INSTANCE_LIMIT" | "MEMORY_LIMIT") => {
                return Ok(format!("{} when loaded", failure.reason));
            }
            Some(failure) => return Err(format!("it cannot be loaded: {} {}", failure.reason, failure.message)),
        }
        let outcome = self.outcome(guest)?;
        if guest.repeats {
            let again = self.outcome(guest)?;
            let fuel = |o: &v1::Outcome| o.usage.and_then(|u| u.fuel);
            if (outcome.exit_code, &outcome.failure, fuel(&outcome)) != (again.exit_code, &again.failure, fuel(&again)) {
                return Err(format!("it ends in two ways: {outcome:?} and {again:?}"));
            }
        }
        self.send(To::Unload(v1::UnloadModule { module: self.module }), &[]);
        Ok(outcome.failure.map_or_else(|| "FINISHED".to_owned(), |f| f.reason))
    }

    /// Runs the guest that finds bytes of those before it, and what the directories should look like.
    ///
    /// # Errors
    /// What was found.
    pub fn look_at_used_slot(&mut self) -> Result<(), String> {
        match self.look("")?.as_str() {
            "FINISHED" => self.look_at_directories(),
            other => Err(format!("a used slot shows what was there before: {other}")),
        }
    }

    /// The guest that looks, with something more in its text.
    pub(crate) fn look(&mut self, more: &str) -> Result<Ending, String> {
        let wasm = wat::parse_str(look_text(more)).map_err(|e| e.to_string())?;
        self.run(&Guest { memory: u64::from(LOOK_PAGES + 1) << 18, ..Guest::plain(wasm) })
    }

    fn look_at_directories(&self) -> Result<(), String> {
        let root = self.directory.path();
        let read = |path: &str| std::fs::read_to_string(root.join(path)).map_err(|e| format!("{path}: {e}"));
        let names = |path: &str| -> Result<Vec<_>, String> {
            let entries = std::fs::read_dir(root.join(path)).map_err(|e| format!("{path}: {e}"))?;
            let mut names: Vec<_> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            Ok(names)
        };
        let seen = (names("")?, names("in")?, names("disk")?, names("disk/disk")?, read("secret")?, read("in/f")?);
        let wanted = expected();
        if seen == wanted { Ok(()) } else { Err(format!("directories are {seen:?} and were {wanted:?}")) }
    }

    /// Ends the worker.
    ///
    /// # Errors
    /// What it still had to say.
    pub fn stop(mut self) -> Result<(), String> {
        self.send(To::Shutdown(v1::Shutdown {}), &[]);
        match self.reader.recv::<FromExecutor>() {
            Ok(None) => {}
            other => return Err(format!("a message that nobody expected: {other:?}")),
        }
        self.worker.join().map_err(|_| "the worker panicked".to_owned())
    }

    fn compile(&self, guest: &Guest) -> wasmtime::Result<Vec<u8>> {
        let engine = &self.compilers[usize::from(matches!(guest.limit, Limit::Fuel(_)))];
        if guest.component { engine.precompile_component(&guest.wasm) } else { engine.precompile_module(&guest.wasm) }
    }

    fn load(&mut self, code: &[u8], guest: &Guest) -> Result<Option<v1::Failure>, String> {
        self.module += 1;
        let load = v1::LoadModule {
            module: self.module,
            component: guest.component,
            name: "guest".to_owned(),
            fuel: matches!(guest.limit, Limit::Fuel(_)),
        };
        let code = memory_file(code);
        self.send(To::Load(load), &[&code]);
        match self.receive()? {
            From::Loaded(loaded) if loaded.module == self.module => Ok(loaded.failure),
            other => Err(format!("{other:?} instead of an answer about module {}", self.module)),
        }
    }

    fn outcome(&mut self, guest: &Guest) -> Result<v1::Outcome, String> {
        self.run += 1;
        let run = self.run;
        let outputs = [memory_file(&[]), memory_file(&[])];
        let mut fds: Vec<OwnedFd> = outputs.iter().map(|f| f.try_clone().expect("a copy")).collect();
        let open = |path: &str| OwnedFd::from(File::open(self.directory.path().join(path)).expect("opened"));
        if guest.disk {
            fds.push(open("disk"));
        }
        fds.push(open("in"));
        if guest.stdin {
            fds.push(memory_file(STDIN));
        }
        let _peer = (self.setup == Setup::Networked).then(|| self.grant(run));
        let start = v1::StartTask {
            run,
            guest: Some(self.describe(guest)),
            has_stdin: guest.stdin,
            stdin_length: if guest.stdin { STDIN.len() as u64 } else { 0 },
            ..Default::default()
        };
        self.send(To::Start(start), &fds.iter().collect::<Vec<_>>());
        loop {
            match self.receive()? {
                From::Outcome(outcome) if outcome.run == run => {
                    let written: u64 = outputs.into_iter().map(|f| File::from(f).metadata().expect("its length").len()).sum();
                    return check(guest, &outcome, written).map(|()| outcome).map_err(|why| format!("run {run}: {why}"));
                }
                From::Started(started) if started.run == run => {}
                From::Progress(progress) if progress.run == run && progress.permille <= 1000 => {}
                From::Usages(_) => {}
                other => return Err(format!("{other:?} instead of the outcome of run {run}")),
            }
        }
    }

    fn describe(&self, guest: &Guest) -> v1::Guest {
        let (timeout_us, fuel) = match guest.limit {
            Limit::Fuel(fuel) => (None, Some(fuel)),
            Limit::Time(us) => (Some(us), None),
        };
        v1::Guest {
            module: self.module,
            args: vec!["guest".to_owned(), "argument".to_owned()],
            env: vec!["NAME=value".to_owned()],
            memory_bytes: guest.memory,
            output_bytes: guest.output,
            // Whatever else limits it: a guest that waits uses no fuel.
            timeout_us: timeout_us.or(Some(WAIT_US)),
            fuel,
            dirs: vec![v1::GuestDir { guest_path: "/in".to_owned(), writable: false }],
            disk: guest.disk.then(|| v1::Disk { guest_path: "/disk".to_owned(), bytes: 1 << 20 }),
            ..Default::default()
        }
    }

    /// Gives the run a listener at which somebody knocks.
    fn grant(&mut self, run: u64) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        listener.set_nonblocking(true).expect("set");
        let at = listener.local_addr().expect("an address");
        let mut client = TcpStream::connect(at).expect("connected");
        client.write_all(b"hello").expect("written");
        let network = v1::GuestNetwork { run, ports: vec![at.port().into()], listen: "127.0.0.1".to_owned(), ..Default::default() };
        self.send(To::Network(network), &[&listener.into()]);
        Peer(client)
    }

    fn send(&mut self, message: To, fds: &[&OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        self.writer.send(&ToExecutor { message: Some(message) }, &fds).expect("sent");
    }

    fn receive(&mut self) -> Result<From, String> {
        let (number, message) = match self.reader.recv::<FromExecutor>() {
            Ok(Some((FromExecutor { number, message: Some(message) }, _))) => (number, message),
            other => return Err(format!("the worker said {other:?}")),
        };
        if number != if is_loose(&message) { 0 } else { self.last + 1 } {
            return Err(format!("number {number} comes after {}: {message:?}", self.last));
        }
        if number > 0 {
            self.last = number;
            self.send(To::Confirm(v1::Confirm { number }), &[]);
        }
        Ok(message)
    }
}

/// Whether a message has no number: it may be missed, or comes with every connection.
pub(crate) const fn is_loose(message: &From) -> bool {
    matches!(message, From::Hello(_) | From::Holds(_) | From::Progress(_) | From::Usages(_))
}

/// A guest with fuel that only waits is ended after so many microseconds.
const WAIT_US: u64 = 100_000;

/// What stands in the directories before and after each guest: the root, what it may read, its disk's root, its disk, and two files.
type Listing = (Vec<String>, Vec<String>, Vec<String>, Vec<String>, String, String);

fn expected() -> Listing {
    let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    (names(&["disk", "in", "secret"]), names(&["d", "f", "loop", "out"]), names(&["disk"]), Vec::new(), SECRET.to_owned(), "f".to_owned())
}

fn directories() -> TempDir {
    fn make(root: &Path) -> std::io::Result<()> {
        std::fs::write(root.join("secret"), SECRET)?;
        std::fs::create_dir_all(root.join("in/d"))?;
        std::fs::create_dir_all(root.join("disk/disk"))?;
        std::fs::write(root.join("in/f"), "f")?;
        std::os::unix::fs::symlink("../secret", root.join("in/out"))?;
        std::os::unix::fs::symlink("loop", root.join("in/loop"))
    }
    let directory = tempfile::tempdir().expect("a directory");
    make(directory.path()).expect("made");
    directory
}

fn memory_file(content: &[u8]) -> OwnedFd {
    let mut file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memory file"));
    file.write_all(content).expect("written");
    std::io::Seek::rewind(&mut file).expect("rewound");
    file.into()
}

/// Whether a guest can have ended so.
fn check(guest: &Guest, outcome: &v1::Outcome, written: u64) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("{why}: {outcome:?} of {}", guest.summary()));
    let Some(usage) = &outcome.usage else { return wrong("it used nothing at all") };
    if usage.peak_memory > guest.memory {
        return wrong("it had more memory than its limit");
    }
    if written > guest.output {
        return wrong("it printed more than its limit");
    }
    let fuel = if let Limit::Fuel(limit) = guest.limit { Some(limit) } else { None };
    if usage.fuel.is_some() != fuel.is_some() || usage.fuel > fuel {
        return wrong("its fuel is not within its limit");
    }
    let Some(failure) = &outcome.failure else {
        return if outcome.exit_code == Some(0) { Ok(()) } else { wrong("it says neither how it ended nor why") };
    };
    let timeout = if let Limit::Time(us) = guest.limit { us } else { WAIT_US };
    let possible = match (failure.reason.as_str(), outcome.exit_code) {
        ("EXIT_CODE", Some(1..=125)) | ("TRAP" | "MEMORY_LIMIT" | "HANDLE_LIMIT" | "OUTPUT_LIMIT", None) => true,
        ("INSTANCE_LIMIT", None) => true,
        ("FUEL_LIMIT", None) => fuel.is_some(),
        ("TIME_LIMIT", None) => usage.wall_us >= timeout,
        ("DISK_LIMIT", _) => guest.disk,
        _ => false,
    };
    if possible { Ok(()) } else { wrong("it cannot have ended so") }
}

/// A guest with as many memories and tables as a slot has, which traps unless all of them are empty; then it leaves something in each.
fn look_text(more: &str) -> String {
    let (memories, tables) = (smalti_engine::MAX_MEMORIES, smalti_engine::MAX_TABLES);
    let mut text = String::from("(module (elem declare func $f) (func $f)\n");
    for n in 0..memories {
        let name = if n == 0 { r#"(export "memory")"# } else { "" };
        text += &format!("(memory $m{n} {name} {LOOK_PAGES})\n");
    }
    for n in 0..tables {
        text += &format!("(table $t{n} 100 funcref)\n");
    }
    text += "(func (export \"_start\") (local $at i32)\n";
    for n in 0..tables {
        text += &format!(
            "(local.set $at (i32.const 0))
             (loop (if (i32.eqz (ref.is_null (table.get $t{n} (local.get $at)))) (then unreachable))
               (table.set $t{n} (local.get $at) (ref.func $f))
               (br_if 0 (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 1))) (i32.const 100))))\n"
        );
    }
    let bytes = LOOK_PAGES << 16;
    for n in 0..memories {
        text += &format!(
            "(local.set $at (i32.const 0))
             (loop (if (v128.any_true (v128.load $m{n} (local.get $at))) (then unreachable))
               (br_if 0 (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 16))) (i32.const {bytes}))))
             (local.set $at (i32.const 0))
             (loop (i64.store $m{n} (local.get $at) (i64.const -1))
               (br_if 0 (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 200000))) (i32.const {bytes}))))\n"
        );
    }
    text + ")" + more + ")"
}
