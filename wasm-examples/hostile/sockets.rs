//! A hostile guest: listens, dials and resolves in every way the standard library has. Exits with 0 if each is refused.

use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};

fn main() {
    let mut allowed = Vec::new();
    let mut note = |what: String, result: std::io::Result<()>| match result {
        Ok(()) => allowed.push(what),
        Err(e) => println!("{what}: {e}"),
    };
    for address in ["0.0.0.0:0", "127.0.0.1:8080", "[::]:0", "[::1]:8080"] {
        note(format!("listen on {address}"), TcpListener::bind(address).map(drop));
        note(format!("datagrams on {address}"), UdpSocket::bind(address).and_then(|s| s.send_to(b"x", "127.0.0.1:53")).map(drop));
    }
    // Loopback, the cloud's metadata, private and public addresses.
    for address in ["127.0.0.1:5050", "127.0.0.1:5051", "169.254.169.254:80", "10.0.0.1:80", "1.1.1.1:53", "[::1]:5050"] {
        note(format!("dial {address}"), TcpStream::connect(address).map(drop));
    }
    for name in ["localhost:80", "example.com:80", "metadata.google.internal:80"] {
        note(format!("resolve {name}"), name.to_socket_addrs().map(drop));
    }
    if !allowed.is_empty() {
        eprintln!("allowed: {allowed:?}");
        std::process::exit(1);
    }
}
