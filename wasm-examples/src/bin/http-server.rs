//! A small HTTP server: answers every request with a greeting, one connection after the other.
//!
//! `smalti run --ports 1 http-server.wasm -- [REQUESTS]` ends after so many requests, or never. As a preview 1 module it finds its
//! port listening already, as descriptor 3; as a component (`wasm32-wasip2`) it binds `$PORT0` itself.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

/// Longest header line that is read.
const MAX_LINE_BYTES: u64 = 8 << 10;

#[cfg(target_env = "p1")]
fn listener() -> std::io::Result<TcpListener> {
    use std::os::fd::FromRawFd;
    let fd = std::env::var("SMALTI_LISTEN_FD0").ok().and_then(|fd| fd.parse().ok());
    let fd = fd.ok_or_else(|| std::io::Error::other("there is no listener: run it with --ports 1"))?;
    #[expect(unsafe_code, reason = "preview 1 cannot make a listener, only inherit one")]
    // SAFETY: the number is that of a listening socket which nothing else in this program uses.
    Ok(unsafe { TcpListener::from_raw_fd(fd) })
}

#[cfg(not(target_env = "p1"))]
fn listener() -> std::io::Result<TcpListener> {
    let port = std::env::var("PORT0").ok().and_then(|port| port.parse().ok());
    let port: u16 = port.ok_or_else(|| std::io::Error::other("there is no port: run it with --ports 1"))?;
    TcpListener::bind(("0.0.0.0", port))
}

fn main() -> std::io::Result<()> {
    let mut left = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(u64::MAX);
    let listener = listener()?;
    println!("listening on port {}", std::env::var("PORT0").unwrap_or_default());
    while left > 0 {
        let (stream, _) = listener.accept()?;
        // A client that goes away in the middle harms nobody.
        if let Err(e) = serve(stream, &mut left) {
            eprintln!("a connection ended: {e}");
        }
    }
    println!("that was the last request");
    Ok(())
}

/// Answers the requests of one connection until the client closes it or asks for that.
fn serve(stream: TcpStream, left: &mut u64) -> std::io::Result<()> {
    // Not a clone: preview 1 cannot duplicate descriptors.
    let mut input = BufReader::new(&stream);
    while *left > 0 {
        let Some((path, keep)) = request(&mut input)? else { return Ok(()) };
        *left -= 1;
        let body = format!("Hello from Smalti, you asked for {path}\n");
        let connection = if keep { "keep-alive" } else { "close" };
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n", body.len());
        (&stream).write_all(format!("{head}{body}").as_bytes())?;
        if !keep {
            break;
        }
    }
    stream.shutdown(std::net::Shutdown::Write)
}

/// The path of the next request, and whether the connection stays open; nothing at its end.
fn request(input: &mut impl BufRead) -> std::io::Result<Option<(String, bool)>> {
    let Some(first) = line(input)? else { return Ok(None) };
    let path = first.split(' ').nth(1).unwrap_or("/").to_owned();
    let mut keep = first.ends_with("HTTP/1.1");
    while let Some(header) = line(input)? {
        if header.is_empty() {
            return Ok(Some((path, keep)));
        }
        if header.eq_ignore_ascii_case("connection: close") {
            keep = false;
        }
    }
    Ok(None)
}

fn line(input: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut line = String::new();
    let length = std::io::Read::take(input, MAX_LINE_BYTES).read_line(&mut line)?;
    Ok((length > 0).then(|| line.trim_end().to_owned()))
}
