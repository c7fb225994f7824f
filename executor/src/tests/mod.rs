//! The worker end to end, in this process: a socket pair, real slots, guests compiled here from text.

mod arrays;
mod files;
mod guests;
mod leases;
mod modes;
mod network;
mod pooled;
mod random;
mod reconnect;
mod speed;
mod tasks;

use crate::engine::forced::{self, Mode};
use crate::fuzzing::agent::is_loose;
use crate::worker::{SessionEnd, Worker};
use smalti_executor_protocol::ledger::{RECORD_LEN, Record};
use smalti_executor_protocol::v1::{self, FromExecutor, ToExecutor, from_executor::Message as From, to_executor::Message as To};
use smalti_executor_protocol::{PROTOCOL_VERSION, Reader, Writer, blocking};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;
use wasmtime::Engine;

/// Nothing here takes this long; it only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// The agent's end, and the worker on a thread.
struct Agent {
    reader: Reader,
    writer: Writer,
    directory: TempDir,
    hello: v1::Hello,
    frames: u64,
    modules: u32,
    /// Number of the last message, of which none may be missing.
    last: u64,
    /// Whether messages are confirmed now and then, as an agent does.
    confirms: bool,
    /// What was said on this connection before `holds`.
    again: VecDeque<(u64, From)>,
    holds: v1::Holds,
    welcome: v1::Welcome,
    /// The worker takes one after another.
    connections: mpsc::Sender<UnixStream>,
    worker: Option<JoinHandle<()>>,
}

/// The test's agent confirms when the number of a message is a multiple of this.
const CONFIRM_EACH: u64 = 100;

impl Agent {
    fn start(slots: u32) -> Self {
        Self::start_in(Mode::Best, slots)
    }

    fn start_in(mode: Mode, slots: u32) -> Self {
        Self::start_as(mode, v1::Welcome { slots, ..Default::default() })
    }

    /// One slot, for a task with sockets.
    fn start_networked() -> Self {
        Self::start_as(Mode::Best, v1::Welcome { slots: 1, network: true, ..Default::default() })
    }

    /// One slot, for one task.
    fn start_pooled() -> Self {
        Self::start_with(Worker::pooled, Mode::Best, v1::Welcome { slots: 1, ..Default::default() })
    }

    fn start_as(mode: Mode, welcome: v1::Welcome) -> Self {
        Self::start_with(|| Worker::new(false), mode, welcome)
    }

    fn start_with(worker: fn() -> Worker, mode: Mode, welcome: v1::Welcome) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let (connections, streams) = mpsc::channel::<UnixStream>();
        let worker = std::thread::spawn(move || {
            forced::set(mode);
            let mut worker = worker();
            for stream in streams {
                if worker.session(stream).expect("a session") == SessionEnd::Shutdown {
                    break;
                }
            }
            worker.shutdown();
        });
        let (reader, writer) = connect(&connections);
        let mut agent = Self {
            reader,
            writer,
            directory,
            hello: v1::Hello::default(),
            frames: 0,
            modules: 0,
            last: 0,
            confirms: true,
            again: VecDeque::new(),
            holds: v1::Holds::default(),
            welcome,
            connections,
            worker: Some(worker),
        };
        agent.greet(0);
        assert!(agent.again.is_empty() && agent.holds == v1::Holds::default(), "a new worker has nothing");
        agent
    }

    /// The first words of a connection, up to what the worker holds.
    fn greet(&mut self, confirmed: u64) {
        self.last = confirmed;
        self.send(To::Welcome(v1::Welcome { confirmed, ..self.welcome }), &[]);
        let From::Hello(hello) = self.receive() else { panic!("Hello comes first") };
        assert_eq!(hello.protocol, PROTOCOL_VERSION);
        assert_eq!(hello.slots.len(), self.welcome.slots as usize);
        self.hello = hello;
        self.again.clear();
        loop {
            match self.receive_numbered() {
                (0, From::Holds(holds)) => break self.holds = holds,
                said => self.again.push_back(said),
            }
        }
    }

    /// This agent is gone, unread messages and all.
    fn cut(&mut self) {
        self.reader.stream().shutdown(std::net::Shutdown::Both).expect("shut down");
    }

    /// The next agent, which knows of the messages up to `confirmed`.
    fn come_back(&mut self, confirmed: u64) {
        (self.reader, self.writer) = connect(&self.connections);
        self.greet(confirmed);
    }

    fn send(&mut self, message: To, fds: &[&OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        self.writer.send(&ToExecutor { message: Some(message) }, &fds).expect("sent");
    }

    fn receive(&mut self) -> From {
        self.receive_numbered().1
    }

    fn receive_numbered(&mut self) -> (u64, From) {
        let (message, fds) = self.reader.recv::<FromExecutor>().expect("a frame").expect("the connection stands");
        assert!(fds.is_empty());
        self.frames += 1;
        let number = message.number;
        let message = message.message.expect("a known message");
        assert_eq!(number == 0, is_loose(&message), "{message:?}");
        if number > 0 {
            assert_eq!(number, self.last + 1, "{message:?}");
            self.last = number;
            if self.confirms && number.is_multiple_of(CONFIRM_EACH) {
                self.send(To::Confirm(v1::Confirm { number }), &[]);
            }
        }
        (number, message)
    }

    fn load_code(&mut self, code: &[u8], component: bool, fuel: bool) -> Result<u32, v1::Failure> {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(code).expect("written");
        file.rewind().expect("rewound");
        self.modules += 1;
        let module = self.modules;
        self.send(To::Load(v1::LoadModule { module, component, name: "guest".to_owned(), fuel }), &[&file.into()]);
        match self.receive() {
            From::Loaded(v1::ModuleLoaded { module: m, failure: None }) if m == module => Ok(module),
            From::Loaded(v1::ModuleLoaded { failure: Some(failure), .. }) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    fn load(&mut self, text: &str) -> u32 {
        self.load_code(&compile(text, false), false, false).expect("loaded")
    }

    /// Makes a task's directory and files in it, as the agent does.
    fn output_files(&self, directory: &str, names: &[&str]) -> Vec<OwnedFd> {
        let path = self.directory.path().join(directory);
        std::fs::create_dir_all(&path).expect("made");
        names.iter().map(|name| File::create_new(path.join(name)).expect("made").into()).collect()
    }

    /// Sends a task with its two outputs in `t<run>`, and with what else it has.
    fn send_task(&mut self, start: v1::StartTask, more: &[&OwnedFd]) {
        let outputs = self.output_files(&format!("t{}", start.run), &["stdout", "stderr"]);
        let fds: Vec<&OwnedFd> = outputs.iter().chain(more.iter().copied()).collect();
        self.send(To::Start(start), &fds);
    }

    /// Sends an array part with the files of its slots in `a<run>`, and with what else it has.
    fn send_array(&mut self, start: v1::StartArray, more: &[&OwnedFd]) {
        for slots in start.slots.chunks(smalti_executor_protocol::MAX_FDS / 3) {
            let names: Vec<String> = slots.iter().flat_map(|s| ["out", "err", "ledger"].map(|kind| format!("slot-{s}.{kind}"))).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let files = self.output_files(&format!("a{}", start.run), &names);
            self.send(
                To::SlotFiles(v1::SlotFiles { run: start.run, slots: slots.to_vec(), disks: false }),
                &files.iter().collect::<Vec<_>>(),
            );
        }
        self.send(To::StartArray(start), more);
    }

    fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.directory.path().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    fn start_task(&mut self, run: u64, guest: v1::Guest) {
        self.send_task(v1::StartTask { run, guest: Some(guest), ..Default::default() }, &[]);
    }

    /// Runs one task to its end.
    fn outcome(&mut self, run: u64, guest: v1::Guest) -> v1::Outcome {
        self.start_task(run, guest);
        self.await_outcome(run)
    }

    fn await_outcome(&mut self, run: u64) -> v1::Outcome {
        loop {
            match self.receive() {
                From::Outcome(o) if o.run == run => return o,
                From::Started(_) | From::Progress(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn await_started(&mut self, run: u64) {
        match self.receive() {
            From::Started(s) if s.run == run => {}
            other => panic!("{other:?}"),
        }
    }

    /// All ledgers of an array part on these slots, every record whole.
    fn ledger(&self, directory: &str, slots: &[u32]) -> Vec<(u32, Record)> {
        let mut all = Vec::new();
        for slot in slots {
            let bytes = self.read(&format!("{directory}/slot-{slot}.ledger"));
            assert_eq!(bytes.len() % RECORD_LEN, 0);
            for record in bytes.chunks(RECORD_LEN) {
                all.push((*slot, Record::decode(record.try_into().expect("96 bytes")).expect("a whole record")));
            }
        }
        all
    }

    /// Ends the worker and checks that it has nothing more to say.
    fn stop(mut self) {
        self.send(To::Shutdown(v1::Shutdown {}), &[]);
        match self.reader.recv::<FromExecutor>() {
            Ok(None) => {}
            other => panic!("a message that nobody expected: {other:?}"),
        }
        self.worker.take().map(JoinHandle::join).expect("a worker").expect("no panic");
    }
}

/// A connection to the worker.
fn connect(connections: &mpsc::Sender<UnixStream>) -> (Reader, Writer) {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    ours.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    connections.send(theirs).expect("the worker runs");
    blocking::split(ours).expect("two ends")
}

/// What the agent's compiler process does.
fn compile(text: &str, fuel: bool) -> Vec<u8> {
    let bytes = wat::parse_str(text).expect("valid text");
    let engine = Engine::new(&smalti_engine::base_config(fuel)).expect("an engine");
    if text.trim_start().starts_with("(component") {
        engine.precompile_component(&bytes).expect("compiled")
    } else {
        engine.precompile_module(&bytes).expect("compiled")
    }
}

fn guest(module: u32) -> v1::Guest {
    v1::Guest { module, args: vec!["guest".to_owned()], output_bytes: 1 << 20, memory_bytes: 64 << 20, ..Default::default() }
}

fn reason(outcome: &v1::Outcome) -> &str {
    outcome.failure.as_ref().map_or("", |f| f.reason.as_str())
}
