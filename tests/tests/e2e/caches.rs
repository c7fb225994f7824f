//! Caches that hold fewer bundles than are wanted: never more on the disk than they may take, and few downloads of each bundle.

use crate::{Result, eventually, guest, is_root};
use anyhow::Context;
use smalti_framework_sdk::{Event, Framework, Options};
use smalti_tests::{AgentConfig, Cluster, Config, Process};
use smalti_types::{BundleRef, Bytes, Digest, DurationMs, Filters, Launch, MilliCpus, Operation, Resources, TaskId, TaskSpec, TaskState};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Another size: tasks, bundles, bundles that fit, tasks at once, KiB of a bundle; the figures are printed.
const SIZE: &str = "SMALTI_CACHE_SIZE";
/// What a bundle takes beside its bytes and as many of its code, with some to spare: a description, whose it is, the rest of its code.
const BESIDE: u64 = 64 << 10;

/// An origin that knows versions and ranges, and keeps what it was asked for.
struct Origin {
    address: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    files: BTreeMap<String, Vec<u8>>,
    /// Path and first byte of each GET.
    asked: Mutex<Vec<(String, usize)>>,
    /// Half of each object is sent, and then nothing until the client is gone.
    stalls: AtomicBool,
}

impl Origin {
    /// Its threads end with the process.
    fn start(files: BTreeMap<String, Vec<u8>>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let shared = Arc::new(Shared { files, ..Shared::default() });
        let all = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = all.clone();
                // Who does not want an answer to its end closes the connection.
                std::thread::spawn(move || drop(shared.answer(&stream)));
            }
        });
        Ok(Self { address, shared })
    }

    fn asked(&self) -> Vec<(String, usize)> {
        self.shared.asked.lock().expect("not poisoned").clone()
    }

    fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for (path, _) in self.asked() {
            *counts.entry(path).or_default() += 1;
        }
        counts
    }
}

impl Shared {
    fn answer(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        let mut words = first.split(' ');
        let (is_head, path) = (words.next() == Some("HEAD"), words.next().unwrap_or_default());
        let mut from = 0;
        while let Some(line) = lines.next().transpose()?.filter(|line| !line.is_empty()) {
            if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                from = range.trim_end_matches('-').parse().unwrap_or(0);
            }
        }
        let Some(bytes) = self.files.get(path) else {
            return write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        };
        let (status, rest) = (if from > 0 { "206 Partial Content" } else { "200 OK" }, bytes.get(from..).unwrap_or_default());
        let (length, all, last) = (rest.len(), bytes.len(), bytes.len() - 1);
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nETag: \"1\"\r\nConnection: close\r\n")?;
        if from > 0 {
            write!(stream, "Content-Range: bytes {from}-{last}/{all}\r\n")?;
        }
        write!(stream, "\r\n")?;
        if is_head {
            return Ok(());
        }
        self.asked.lock().expect("not poisoned").push((path.to_owned(), from));
        if !self.stalls.load(Ordering::Relaxed) {
            return stream.write_all(rest);
        }
        stream.write_all(&rest[..rest.len() / 2])?;
        stream.read(&mut [0]).map(drop)
    }
}

/// A program that ends at once, with its number in this many bytes of data, which its code has, too.
fn bundle(n: usize, bytes: usize) -> Vec<u8> {
    let mut wasm = b"\0asm\x01\0\0\0".to_vec();
    // One type, one function of it, one memory, both exported, and the function's body, which is empty.
    wasm.extend(b"\x01\x04\x01\x60\0\0\x03\x02\x01\0\x05\x03\x01\0\x01\x07\x13\x02\x06memory\x02\0\x06_start\0\0\x0a\x04\x01\x02\0\x0b");
    let mut data: Vec<u8> = (0..bytes).map(|i| u8::try_from((i * 7 + n * (i / 256 + 1)) % 251).unwrap_or_default()).collect();
    data.extend(n.to_le_bytes());
    // Lengths in five bytes of seven bits.
    let leb = |n: usize| (0..5).map(move |i| u8::try_from(n >> (7 * i) & 0x7f).unwrap_or_default() | if i < 4 { 0x80 } else { 0 });
    // One piece of data that nobody copies into the memory.
    wasm.push(11);
    wasm.extend(leb(data.len() + 7));
    wasm.extend(b"\x01\x01");
    wasm.extend(leb(data.len()));
    wasm.extend(data);
    wasm
}

/// What lies in the caches, in whole blocks. Files are moved from the later directories to the earlier ones, so none is seen twice.
fn on_disk(data: &Path) -> u64 {
    let mut todo: Vec<PathBuf> = ["partial", "unpacked", "inputs", "compiled", "bundles"].map(|dir| data.join(dir)).into();
    let mut sum = 0;
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            sum += meta.len().div_ceil(4096) * 4096;
            if meta.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    sum
}

/// The most that lay there until `stop`, in looks of which three in a row agree: what is removed and written while one looks counts twice.
fn watch(data: &Path, stop: &AtomicBool) -> u64 {
    let mut most = 0;
    let mut last = [0; 3];
    while !stop.load(Ordering::Relaxed) {
        last = [on_disk(data), last[0], last[1]];
        most = most.max(last.into_iter().min().unwrap_or_default());
        std::thread::sleep(Duration::from_millis(1));
    }
    most
}

/// Runs so many tasks, of one bundle after the other, as many at a time as it is offered.
async fn run(master: &str, bundles: Vec<BundleRef>, tasks: usize, each: Resources) -> Result {
    let (handle, mut events) = Framework::connect(Options::new(master, "many")).await?;
    let (mut launched, mut ended) = (0, 0);
    // What ends is offered again soon.
    let filters = Filters { refuse: DurationMs(10) };
    while ended < tasks {
        match events.recv().await.context("the master ended the subscription")? {
            Event::Offers(offers) => {
                for offer in offers {
                    let n = offer.resources.times(&each, u32::try_from(tasks - launched)?) as usize;
                    let operation = |n: usize| {
                        let (task, spec) = (TaskId::new(format!("t{n}"))?, TaskSpec::new(bundles[n % bundles.len()].clone()));
                        Ok(Operation::Launch(Launch { task, attempt: 0, resources: each.clone(), spec }))
                    };
                    let operations = (launched..launched + n).map(operation).collect::<Result<Vec<_>>>()?;
                    launched += n;
                    handle.accept(vec![offer.id], operations, filters).await?;
                }
            }
            Event::Update(u) => {
                if u.update.state.is_terminal() {
                    ended += 1;
                    anyhow::ensure!(
                        u.update.state == TaskState::Finished,
                        "{}: {} {}",
                        u.update.key.task.task,
                        u.update.reason,
                        u.update.message
                    );
                }
                u.ack.done();
            }
            Event::Error(message) => anyhow::bail!("{message}"),
            _ => {}
        }
    }
    handle.teardown().await?;
    Ok(())
}

/// Copies files with `cp`, one process for all.
fn copied(files: &BTreeMap<String, Vec<u8>>, dir: &Path) -> Result<Duration> {
    let (from, to) = (dir.join("from"), dir.join("to"));
    std::fs::create_dir_all(&from)?;
    for (name, bytes) in files {
        std::fs::write(from.join(name.trim_start_matches('/')), bytes)?;
    }
    let began = Instant::now();
    anyhow::ensure!(Command::new("cp").arg("-r").args([&from, &to]).status()?.success(), "cp failed");
    Ok(began.elapsed())
}

#[test]
fn many_tasks_over_more_bundles_than_fit_take_few_downloads_and_never_more_than_the_budget() -> Result {
    let asked = std::env::var(SIZE).ok();
    let size: Vec<usize> = asked.as_deref().unwrap_or("200,10,3,50,256").split(',').filter_map(|n| n.parse().ok()).collect();
    let [tasks, bundles, fit, at_once, kib] = size[..] else { anyhow::bail!("{SIZE} has five numbers") };
    let files: BTreeMap<String, Vec<u8>> = (0..bundles).map(|n| (format!("/{n}.wasm"), bundle(n, kib << 10))).collect();
    let origin = Origin::start(files.clone())?;
    let named = |n: usize| {
        let path = format!("/{n}.wasm");
        BundleRef { digest: Digest::of(&files[&path]), uri: Some(format!("http://{}{path}", origin.address)) }
    };
    let budget = fit as u64 * (2 * (kib as u64) * 1024 + BESIDE);
    let cpus = format!("{}.{:02}", at_once / 100, at_once % 100);
    let flags = vec!["--cache-budget".into(), budget.to_string()];
    let config = AgentConfig { cpus, mem: format!("{at_once}MiB"), flags, ..AgentConfig::default() };
    let c = Cluster::start(Config { agents: vec![config], scheduler: false, ..Config::default() })?;
    let (data, stop) = (c.dir().join("agent-0"), Arc::new(AtomicBool::new(false)));
    let watched = {
        let (data, stop) = (data.clone(), stop.clone());
        std::thread::spawn(move || watch(&data, &stop))
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let began = Instant::now();
    let each = Resources::new(MilliCpus(10), Bytes::mib(1));
    let done = runtime.block_on(run(&c.address, (0..bundles).map(named).collect(), tasks, each));
    let took = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    let most = watched.join().map_err(|_| anyhow::anyhow!("the watch failed"))?;
    done.with_context(|| c.logs())?;
    let counts = origin.counts();
    let (uses, all) = ((tasks / bundles) as u64, counts.values().sum::<u64>());
    if asked.is_some() {
        let (least, greatest) = (counts.values().min(), counts.values().max());
        println!(
            "{tasks} tasks over {bundles} bundles of {kib} KiB, {fit} fit, {at_once} at once: {took:?}; {all} downloads, {least:?} to {greatest:?} of each bundle"
        );
        println!("most on the disk: {most} of {budget} bytes; cp of all bundles: {:?}", copied(&files, c.dir())?);
    }
    assert!(most <= budget && most > budget / 2, "{most} of {budget}");
    // One in which the length is found out, and one for about two rounds of those that wait.
    let most_downloads = 3 + uses * bundles as u64 / at_once as u64;
    assert!(counts.len() == bundles && counts.values().all(|n| *n <= most_downloads), "{most_downloads}: {counts:?}");
    Ok(())
}

#[test]
fn an_input_that_was_half_there_when_its_agent_was_killed_is_gone_on_with() -> Result {
    let text = b"some words and more words\n".repeat(80_000);
    let origin = Origin::start(BTreeMap::from([("/words".to_owned(), text.clone())]))?;
    origin.shared.stalls.store(true, Ordering::Relaxed);
    let config = AgentConfig::default();
    let mut c = Cluster::start(Config { agents: vec![config.clone()], ..Config::default() })?;
    let uri = format!("http://{}/words", origin.address);
    let job = c.ok(&["submit", "--stdin", &uri, &guest(&c, "hello")?, "--", "cat"])?.trim().to_owned();
    let half = text.len() / 2;
    eventually("half of it is on the agent's disk", || {
        let files = std::fs::read_dir(c.dir().join("agent-0/partial"))?.flatten();
        Ok(files.into_iter().any(|file| file.metadata().is_ok_and(|meta| meta.len() == half as u64)))
    })?;
    c.kill_agent(0)?;
    origin.shared.stalls.store(false, Ordering::Relaxed);
    c.restart_agent(0, &config)?;
    let done = c.smalti(&["wait", &job])?;
    assert_eq!(done.code, 0, "{}{}", done.stderr, c.logs());
    assert_eq!(c.ok(&["logs", &job])?.into_bytes(), text);
    assert_eq!(origin.asked().last(), Some(&("/words".to_owned(), half)), "{:?}", origin.asked());
    Ok(())
}

/// An agent whose data lie on a small disk of its own, which goes with it: a file system in memory that only its mount namespace has.
fn on_a_small_disk(c: &Cluster, flags: &[&str]) -> Result<(Process, PathBuf)> {
    let data = c.dir().join("small");
    std::fs::create_dir(&data)?;
    let script = "mount -t tmpfs -o size=128m none \"$0\" && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(&data).arg(c.paths.smalti());
    command.args(["agent", "--master", &c.address, "--data-dir"]).arg(&data);
    command.args(["--cpus", "2", "--mem", "1GiB", "--disk", "1MiB", "--ports", "", "--isolation", "auto", "--drain-timeout", "0s"]);
    command.args(flags).env("RUST_LOG", "info");
    let mut process = Process::spawn_role("small", command, c.dir())?;
    process.wait_for_line("ready: agent")?;
    let seen = PathBuf::from(format!("/proc/{}/root", process.pid())).join(data.strip_prefix("/")?);
    Ok((process, seen))
}

#[test]
fn on_a_full_disk_the_oldest_outputs_of_ended_tasks_go_and_tasks_are_taken_again() -> Result {
    if !is_root() {
        eprintln!("NOT TESTED: a disk of its own needs root");
        return Ok(());
    }
    let mut c = Cluster::start(Config { agents: vec![], ..Config::default() })?;
    let (small, data) = on_a_small_disk(&c, &["--disk-reserve", "32MiB", "--cache-budget", "20MiB", "--sandbox-grace", "0s"])?;
    c.agents.push(small);
    let hello = guest(&c, "hello")?;
    let text = c.dir().join("text");
    std::fs::write(&text, "twelve megabytes\n".repeat(740_000))?;
    let print = || -> Result<String> {
        let job = c.ok(&["submit", "--stdin", &text.display().to_string(), &hello, "--", "cat"])?.trim().to_owned();
        assert_eq!(c.smalti(&["wait", &job])?.code, 0, "{}", c.logs());
        Ok(job)
    };
    let runs = c.ok(&["submit", &guest(&c, "misbehave")?, "--", "until-stopped"])?.trim().to_owned();
    let (first, second) = (print()?, print()?);
    let free = || nix::sys::statvfs::statvfs(&data).map(|s| s.blocks_available() * s.fragment_size());
    // Down to a MiB below the reserve: nine are missing until there is a quarter more, and an output has twelve.
    let filler = std::fs::File::create(data.join("filler"))?;
    let room = free()?;
    assert!(room > 32 << 20, "{room}");
    nix::fcntl::fallocate(&filler, nix::fcntl::FallocateFlags::empty(), 0, i64::try_from(room - (31 << 20))?)?;
    eventually("the oldest output is gone", || Ok(c.smalti(&["logs", &first])?.stderr.contains("removed to make room")))?;
    eventually("there is room again", || Ok(free()? >= 40 << 20))?;
    assert_eq!(c.ok(&["logs", &second])?.len(), 17 * 740_000, "the other one stays");
    assert_eq!(c.smalti(&["run", &hello])?.code, 0, "tasks are taken again");
    let tasks = c.json(&["ps"])?;
    assert!(tasks.as_array().is_some_and(|all| all.iter().any(|t| t["job_id"] == *runs && t["state"] == "RUNNING")), "{tasks}");
    Ok(())
}
