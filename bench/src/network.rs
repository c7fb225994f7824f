//! A task's own sockets: requests over one kept connection to an HTTP server in a task, as a preview 1 module and as a component,
//! beside the same server as a native thread of this process, all on loopback.

use crate::Effort;
use crate::figures::{Figures, percentile};
use anyhow::{Context, Result, bail, ensure};
use smalti_tests::Cluster;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Requests of one repetition, per round trip that [`Effort`] asks for.
const REQUESTS_PER_ROUND_TRIP: usize = 5;
/// How long a server may take to say where it listens.
const START_WITHIN: Duration = Duration::from_secs(30);

pub(crate) fn measure(cluster: &Cluster, effort: Effort, figures: &mut Figures) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let native = listener.local_addr()?;
    std::thread::spawn(move || while listener.accept().is_ok_and(|(stream, _)| serve(stream).is_ok()) {});
    ask(native, "native", effort, figures)?;
    for (name, bundle) in [("p1", cluster.paths.guest("http-server")?), ("p2", cluster.paths.component("http-server")?)] {
        let bundle = bundle.display().to_string();
        let job = cluster.ok(&["submit", "--cpus", "1", "--ports", "1", &bundle])?;
        let job = job.trim();
        ask(started(cluster, job)?, name, effort, figures)?;
        cluster.ok(&["kill", job])?;
        figures.ratio(&format!("http_{name}_ratio"), &format!("http_{name}_per_s"), "http_native_per_s");
    }
    Ok(())
}

/// Where a job's server says that it listens.
fn started(cluster: &Cluster, job: &str) -> Result<SocketAddr> {
    let until = Instant::now() + START_WITHIN;
    while Instant::now() < until {
        let said = cluster.smalti(&["logs", job])?.stdout;
        if let Some(port) = said.lines().next().and_then(|line| line.rsplit_once("port ")?.1.parse().ok()) {
            return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("the server of job {job} does not say where it listens")
}

/// Requests one after the other over one connection, per repetition.
fn ask(at: SocketAddr, name: &str, effort: Effort, figures: &mut Figures) -> Result<()> {
    let requests = effort.round_trips * REQUESTS_PER_ROUND_TRIP;
    let (mut rates, mut p50, mut p99) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.repetitions {
        let mut stream = TcpStream::connect(at).with_context(|| format!("connecting to the {name} server at {at}"))?;
        stream.set_nodelay(true)?;
        let mut input = BufReader::new(stream.try_clone()?);
        let mut waits = Vec::with_capacity(requests);
        let began = Instant::now();
        for _ in 0..requests {
            let asked = Instant::now();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")?;
            answer(&mut input)?;
            waits.push(asked.elapsed().as_secs_f64() * 1e6);
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        rates.push(requests as f64 / began.elapsed().as_secs_f64());
        p50.push(percentile(&mut waits, 0.5));
        p99.push(percentile(&mut waits, 0.99));
    }
    figures.add(&format!("http_{name}_per_s"), rates);
    figures.add(&format!("http_{name}_p50_us"), p50);
    figures.add(&format!("http_{name}_p99_us"), p99);
    Ok(())
}

/// Reads one answer to its end.
fn answer(input: &mut impl BufRead) -> Result<()> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        ensure!(input.read_line(&mut line)? > 0, "the server closed the connection");
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim().parse()?;
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    Ok(input.read_exact(&mut body)?)
}

/// What the guest does, natively.
fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let mut input = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            if input.read_line(&mut line)? == 0 {
                return Ok(());
            }
        }
        let body = "Hello from Smalti, you asked for /\n";
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: keep-alive\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes())?;
    }
}
