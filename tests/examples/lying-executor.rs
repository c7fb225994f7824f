//! An executor that was taken over: it speaks the protocol well enough to be given work, and then does what the task's first argument
//! names. Started by an agent in the place of `smalti-executor`; see `tests/e2e/lying_executor.rs`.
//!
//! Owns nothing that outlives it. Deliberately absent: running guests.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test's fixture: a panic is its end")]

use smalti_executor_protocol::supervision::{Forged, Launched, MAX_FORGE_BYTES, SOCKET_NAME};
use smalti_executor_protocol::v1::{self, FromExecutor, ToExecutor, from_executor::Message as From, to_executor::Message as To};
use smalti_executor_protocol::{PROTOCOL_VERSION, Reader, Writer, blocking};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Spoken by the honest end of every lie that is to be survived.
const RUNS_OF_OTHERS: std::ops::Range<u64> = 0..200;

fn main() {
    let mut args = std::env::args_os().skip(1);
    let verb = args.next();
    let mut directory = PathBuf::new();
    while let Some(arg) = args.next() {
        if arg == "--dir" {
            directory = args.next().unwrap().into();
        }
    }
    match verb.as_ref().and_then(|v| v.to_str()) {
        Some("forge") => forge(),
        Some("launch") => launch(&directory),
        Some("supervise") => supervise(&directory),
        Some("lie") => lie(),
        other => panic!("{other:?}"),
    }
}

/// Starts a launcher for each request of the agent.
fn forge() {
    let agent = std::io::stdin();
    let mut packet = vec![0; MAX_FORGE_BYTES];
    loop {
        let chunk = blocking::receive(&agent, &mut packet).unwrap();
        if chunk.bytes == 0 {
            return;
        }
        let words = packet[..chunk.bytes - 1].split(|b| *b == 0).map(OsStr::from_bytes);
        let [stdin, stdout] = <[OwnedFd; 2]>::try_from(chunk.fds).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap()).args(words).stdin(stdin).stdout(stdout).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        blocking::transmit(&agent, Forged::Started { pid }.to_line().as_bytes(), &[]).unwrap();
        blocking::receive(&agent, &mut [0; 16]).unwrap();
        std::thread::spawn(move || child.wait());
    }
}

/// What the real one does, without walls.
fn launch(directory: &Path) {
    if std::io::stdin().read(&mut [0]).unwrap() == 0 {
        return;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("supervise").arg("--dir").arg(directory).stdin(Stdio::null()).stdout(Stdio::null());
    let pid = i32::try_from(command.spawn().unwrap().id()).unwrap();
    while !directory.join(SOCKET_NAME).exists() {
        std::thread::yield_now();
    }
    print!("{}", Launched::Started { pid, pid_namespace: false, warnings: Vec::new() }.to_line());
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// Listens, and lets its child speak.
fn supervise(directory: &Path) {
    nix::unistd::setsid().unwrap();
    std::env::set_current_dir(directory).unwrap();
    let listener = UnixListener::bind(SOCKET_NAME).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut worker = command.arg("lie").stdin(OwnedFd::from(listener)).stdout(Stdio::null()).spawn().unwrap();
    worker.wait().unwrap();
}

/// The worker: its stdin is the listening socket.
fn lie() {
    let listener = UnixListener::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let (stream, _) = listener.accept().unwrap();
    let raw = stream.try_clone().unwrap();
    let (mut reader, writer) = blocking::split(stream).unwrap();
    let mut liar = Liar { writer, raw, slots: 0 };
    while let Ok(Some((message, _))) = reader.recv::<ToExecutor>() {
        match message.message.unwrap() {
            To::Welcome(welcome) => {
                liar.hello(welcome.slots);
                liar.say(From::Holds(v1::Holds::default()));
            }
            To::Load(load) => liar.say(From::Loaded(v1::ModuleLoaded { module: load.module, failure: None })),
            To::Start(start) => liar.start(&start, &mut reader),
            To::Shutdown(_) => return,
            _ => {}
        }
    }
}

struct Liar {
    writer: Writer,
    raw: UnixStream,
    slots: u32,
}

impl Liar {
    /// Says it, unless nobody listens any more.
    fn say(&mut self, message: From) {
        if self.writer.send(&FromExecutor { number: 0, message: Some(message) }, &[]).is_err() {
            std::process::exit(0);
        }
    }

    fn hello(&mut self, slots: u32) {
        self.slots = slots;
        let slots = (0..slots).map(|slot| v1::SlotThread { slot, tid: 1_000 + slot.cast_signed() }).collect();
        self.say(From::Hello(v1::Hello {
            protocol: PROTOCOL_VERSION,
            pid: std::process::id().cast_signed(),
            slots,
            allocator: format!("\u{1b}[2J{}", "x".repeat(1 << 20)),
            reset: "what\nyou want".to_owned(),
            warnings: vec!["w".repeat(1 << 16); 100],
            layers: [("landlock".to_owned(), format!("on\u{1b}[2J{}", "x".repeat(1 << 20)))].into(),
            pieces: true,
            several: false,
        }));
    }

    fn finish(&mut self, run: u64, usage: v1::Usage) {
        self.say(From::Outcome(v1::Outcome { run, exit_code: Some(0), failure: None, usage: Some(usage), result: None }));
    }

    fn start(&mut self, start: &v1::StartTask, reader: &mut Reader) {
        let run = start.run;
        self.say(From::Started(v1::Started { run }));
        match start.guest.as_ref().and_then(|g| g.args.get(1)).map(String::as_str) {
            Some("honest") => self.finish(run, v1::Usage::default()),
            Some("about-others") => self.about_others(run),
            Some("absurd-usage") => {
                let usage =
                    v1::Usage { cpu_us: u64::MAX, wall_us: u64::MAX, peak_memory: u64::MAX, fuel: Some(u64::MAX), ..Default::default() };
                self.say(From::Usages(v1::RunningUsage { runs: vec![v1::RunUsage { run, usage: Some(usage) }] }));
                self.finish(run, usage);
            }
            Some("unknown-reason") => {
                let failure = v1::Failure { reason: "AGENT_REMOVED\u{0}".repeat(10_000), message: "m".repeat(1 << 20) };
                let usage = Some(v1::Usage::default());
                self.say(From::Outcome(v1::Outcome {
                    run,
                    exit_code: None,
                    failure: Some(failure),
                    usage,
                    result: Some(vec![7; 1 << 20].into()),
                }));
            }
            Some("keeps-lying") => loop {
                self.finish(run + 77, v1::Usage::default());
            },
            Some("floods") => loop {
                self.say(From::Progress(v1::Progress { run, permille: 1, text: "z".repeat(200) }));
            },
            Some("waits") => {}
            Some("bomb") => self.bomb(),
            Some("descriptors") => {
                let file = File::open("/dev/null").unwrap();
                let message = FromExecutor { number: 0, message: Some(From::Started(v1::Started { run })) };
                let _ = self.writer.send(&message, &vec![file.as_fd(); 60]);
            }
            Some("garbage") => drop(self.raw.write_all(&[0xfe; 1 << 16])),
            Some("endless-frame") => drop(self.raw.write_all(&[0xff, 0xff, 0xff, 0xff, 0x00, 0x0a])),
            Some("hello-again") => self.hello(self.slots),
            Some("closes") => drop(self.raw.shutdown(std::net::Shutdown::Both)),
            other => panic!("{other:?}"),
        }
        let _ = reader;
    }

    /// Sixteen megabytes of empty elements, which would decode to a gigabyte.
    fn bomb(&mut self) {
        let (report, failed) = (5 << 3 | 2, 3 << 3 | 2);
        let elements = [failed, 0].repeat(8_000_000);
        let mut length = elements.len();
        let mut message = vec![report];
        while length > 0x7f {
            message.push((length & 0x7f | 0x80) as u8);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend(elements);
        let header = u32::try_from(message.len()).unwrap().to_le_bytes();
        let _ = self.raw.write_all(&[&header[..], &[0], &message].concat());
    }

    /// Statements about runs, slots, items and code that it does not hold; then the truth.
    fn about_others(&mut self, run: u64) {
        for other in RUNS_OF_OTHERS.filter(|other| *other != run) {
            self.finish(other, v1::Usage::default());
            self.say(From::Started(v1::Started { run: other }));
            self.say(From::ArrayEnded(v1::ArrayEnded { run: other, slots: (0..1_000).collect() }));
        }
        let everything = v1::ItemRange { first: 0, end: u64::MAX };
        self.say(From::Report(v1::ArrayReport { run, finished: vec![everything], returned: vec![everything], ..Default::default() }));
        self.say(From::Loaded(v1::ModuleLoaded { module: u32::MAX, failure: None }));
        self.finish(run, v1::Usage::default());
    }
}
