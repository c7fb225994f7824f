//! A fixture for tests of the network: tries what its arguments name, and prints what came of each.
//!
//! `bind ADDRESS:PORT`, `dial ADDRESS:PORT`, `resolve NAME`, `udp ADDRESS:PORT`. It always ends well: an attempt that is refused is
//! what the tests want to see.

use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    for pair in args.chunks(2) {
        let [what, on] = pair else {
            eprintln!("usage: net-attempts WHAT ON …");
            std::process::exit(2);
        };
        let result = match what.as_str() {
            "bind" => TcpListener::bind(&**on).and_then(|l| l.local_addr()).map(|a| a.to_string()),
            "dial" => TcpStream::connect(&**on).and_then(|s| s.peer_addr()).map(|a| a.to_string()),
            "resolve" => {
                (on.as_str(), 0).to_socket_addrs().map(|all| all.map(|a: SocketAddr| a.ip().to_string()).collect::<Vec<_>>().join(" "))
            }
            "udp" => UdpSocket::bind(&**on).and_then(|u| u.local_addr()).map(|a| a.to_string()),
            other => {
                eprintln!("unknown attempt {other}");
                std::process::exit(2);
            }
        };
        match result {
            Ok(done) => println!("{what} {on}: done {done}"),
            Err(e) => println!("{what} {on}: refused {:?} ({e})", e.kind()),
        }
    }
}
