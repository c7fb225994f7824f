//! Fetches a page over HTTP and prints it: `smalti run --connect example.org:80 http-get.wasm -- example.org:80 /`.
//!
//! A component only: preview 1 has no way to connect.

use std::io::{Read, Write};
use std::net::TcpStream;

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let endpoint = args.next().ok_or_else(|| std::io::Error::other("usage: http-get HOST:PORT [PATH]"))?;
    let path = args.next().unwrap_or_else(|| "/".to_owned());
    let mut stream = match TcpStream::connect(&*endpoint) {
        Ok(stream) => stream,
        Err(e) => {
            eprintln!("cannot connect to {endpoint}: {e}");
            std::process::exit(1);
        }
    };
    let host = endpoint.rsplit_once(':').map_or(&*endpoint, |(host, _)| host);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    let body = text.split_once("\r\n\r\n").map_or(&*text, |(_, body)| body);
    print!("{body}");
    Ok(())
}
