//! Calls somebody who counts: `beat HOST:PORT NAME MILLISECONDS` says who it is, then every few milliseconds that it runs, then
//! `end`. Shows an observer outside of the cluster when exactly an attempt ran.
//!
//! `smalti run --exclusive --connect 127.0.0.1:4000 beat.wasm -- 127.0.0.1:4000 job-7 2000`

#[cfg(target_env = "p1")]
fn main() {
    eprintln!("preview 1 cannot connect: build it for wasm32-wasip2");
    std::process::exit(1);
}

#[cfg(not(target_env = "p1"))]
fn main() -> std::io::Result<()> {
    use std::io::Write;
    use std::time::{Duration, Instant};

    let mut args = std::env::args().skip(1);
    let (Some(to), Some(name), Some(span)) = (args.next(), args.next(), args.next().and_then(|ms| ms.parse().ok())) else {
        return Err(std::io::Error::other("usage: beat HOST:PORT NAME MILLISECONDS"));
    };
    let attempt = smalti_guest_sdk::Me::from_env().attempt.unwrap_or_default();
    let mut stream = std::net::TcpStream::connect(to)?;
    writeln!(stream, "{name} {attempt}")?;
    let until = Instant::now() + Duration::from_millis(span);
    while Instant::now() < until {
        stream.write_all(b"alive\n")?;
        std::thread::sleep(Duration::from_millis(10));
    }
    stream.write_all(b"end\n")?;
    println!("{name} has ended");
    Ok(())
}
