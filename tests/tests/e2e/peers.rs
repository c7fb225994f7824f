//! Agents fetch from each other what one of them has fetched.

use crate::{Result, guest};
use anyhow::Context;
use smalti_tests::{AgentConfig, Cluster, Config};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const AGENTS: usize = 8;
const SIZE: usize = 64 << 20;

/// An origin of one object that is in no hurry, and counts the bytes that it has sent.
struct Origin {
    address: String,
    sent: Arc<AtomicU64>,
}

impl Origin {
    /// `rate`: bytes a second over each connection.
    fn start(object: Vec<u8>, rate: usize) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (address, sent, object) = (listener.local_addr()?.to_string(), Arc::<AtomicU64>::default(), Arc::new(object));
        let count = sent.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (object, count) = (object.clone(), count.clone());
                // A client that leaves ends its thread.
                std::thread::spawn(move || answer(stream, &object, rate, &count));
            }
        });
        Ok(Self { address, sent })
    }
}

fn answer(stream: TcpStream, object: &[u8], rate: usize, count: &AtomicU64) -> std::io::Result<()> {
    let (mut lines, mut out) = (BufReader::new(stream.try_clone()?), stream);
    loop {
        let (mut request, mut from) = (String::new(), 0);
        if lines.read_line(&mut request)? == 0 {
            return Ok(());
        }
        loop {
            let mut header = String::new();
            if lines.read_line(&mut header)? <= 2 {
                break;
            }
            let range = header.to_ascii_lowercase();
            if let Some(range) = range.strip_prefix("range: bytes=") {
                from = range.split('-').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            }
        }
        let rest = &object[from..];
        let head = if from == 0 {
            format!("HTTP/1.1 200 OK\r\netag: \"1\"\r\naccept-ranges: bytes\r\ncontent-length: {}\r\n\r\n", rest.len())
        } else {
            let (last, all) = (object.len() - 1, object.len());
            format!(
                "HTTP/1.1 206 Partial Content\r\netag: \"1\"\r\ncontent-range: bytes {from}-{last}/{all}\r\ncontent-length: {}\r\n\r\n",
                rest.len()
            )
        };
        out.write_all(head.as_bytes())?;
        if request.starts_with("HEAD") {
            continue;
        }
        let began = Instant::now();
        let mut done = 0;
        for chunk in rest.chunks(256 << 10) {
            out.write_all(chunk)?;
            count.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            done += chunk.len();
            std::thread::sleep(Duration::from_secs_f64(done as f64 / rate as f64).saturating_sub(began.elapsed()));
        }
    }
}

/// The guest with a section that nobody reads, so that it has `size` bytes.
fn padded(guest: &[u8], size: usize) -> Vec<u8> {
    const NAME: [u8; 7] = *b"padding";
    // Five bytes of length are allowed for any number below 2^35.
    let body = size - guest.len() - 6;
    let [a, b, c, d, ..] = body.to_le_bytes();
    let seven = |from: u32| (u32::from_le_bytes([a, b, c, d]) >> from).to_le_bytes()[0] & 0x7f;
    let mut section = vec![0, seven(0) | 0x80, seven(7) | 0x80, seven(14) | 0x80, seven(21) | 0x80, seven(28), 7];
    section.extend(NAME);
    section.extend((0..=250_u8).cycle().take(body - 1 - NAME.len()));
    [guest, &section].concat()
}

#[test]
fn eight_agents_ask_the_origin_at_most_twice() -> Result {
    let agent = AgentConfig { cpus: "1".into(), mem: "1GiB".into(), ..AgentConfig::default() };
    let c = Cluster::start(Config { agents: vec![agent; AGENTS], ..Config::default() })?;
    let object = padded(&std::fs::read(guest(&c, "hello")?)?, SIZE);
    let digest = smalti_types::Digest::of(&object).to_hex();
    let origin = Origin::start(object, 32 << 20)?;
    let uri = format!("http://{}/large.wasm#blake3={digest}", origin.address);
    let done = c.smalti(&["map", &uri, "--items", "8", "--cpus", "1"])?;
    anyhow::ensure!(done.code == 0, "{}{}\n{}", done.stdout, done.stderr, c.logs());
    let holders = |c: &Cluster| -> Result<usize> {
        let agents = c.json(&["agents"])?;
        let held = |a: &serde_json::Value| a["holdings"].to_string().contains(&digest[..16]);
        Ok(agents.as_array().context("agents")?.iter().filter(|a| held(a)).count())
    };
    crate::eventually("every agent that ran an item says that it holds the bundle", || Ok(holders(&c)? == AGENTS))?;
    let sent = origin.sent.load(Ordering::Relaxed);
    assert!(sent <= 2 * SIZE as u64, "the origin has sent {sent} bytes for {AGENTS} agents");
    // Another role has no right to what is there: it goes to the origin, once for all.
    let done = c.smalti(&["map", &uri, "--items", "8", "--cpus", "1", "--role", "other"])?;
    anyhow::ensure!(done.code == 0, "{}{}\n{}", done.stdout, done.stderr, c.logs());
    let more = origin.sent.load(Ordering::Relaxed) - sent;
    assert!(more >= SIZE as u64 && more <= 2 * SIZE as u64, "{more} bytes for another role");
    Ok(())
}
