//! A cable between a process and the master that can be pulled: bytes in both directions until it is cut, silence while it is.
//!
//! Owns a listening socket and a thread for each direction of each connection. A cut does not close anything: bytes stay where they
//! are, as when a switch fails, and go on when the cable is back, unless an end has given up meanwhile. What it cannot show: packets that
//! are lost, connections of which only one end knows (see `lab`).

use anyhow::{Context, Result};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

const CHUNK: usize = 64 << 10;

/// Whether bytes pass.
#[derive(Debug, Default)]
struct Cable {
    cut: Mutex<bool>,
    changed: Condvar,
    over: AtomicBool,
}

impl Cable {
    /// Waits while it is cut. False: the relay is over.
    fn pass(&self) -> bool {
        let mut cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        while *cut && !self.over.load(Ordering::SeqCst) {
            cut = self.changed.wait(cut).unwrap_or_else(PoisonError::into_inner);
        }
        !self.over.load(Ordering::SeqCst)
    }
}

/// A relay to one address.
#[derive(Debug)]
pub(crate) struct Relay {
    address: SocketAddr,
    cable: Arc<Cable>,
}

impl Relay {
    /// Relays to `to`.
    pub(crate) fn to(to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("listening for a relay")?;
        let address = listener.local_addr().context("the relay's address")?;
        let cable = Arc::new(Cable::default());
        let shared = cable.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.over.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(stream) = stream {
                    let cable = shared.clone();
                    std::thread::spawn(move || connect(stream, to, &cable));
                }
            }
        });
        Ok(Self { address, cable })
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Pulls the cable, or puts it back.
    pub(crate) fn set_cut(&self, cut: bool) {
        *self.cable.cut.lock().unwrap_or_else(PoisonError::into_inner) = cut;
        self.cable.changed.notify_all();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.cable.over.store(true, Ordering::SeqCst);
        self.cable.changed.notify_all();
        // Wakes the listening thread, which then ends.
        drop(TcpStream::connect(self.address));
    }
}

/// Both directions of one connection.
fn connect(near: TcpStream, to: SocketAddr, cable: &Arc<Cable>) {
    // A cut cable answers no connection either.
    if !cable.pass() {
        return;
    }
    let Ok(far) = TcpStream::connect(to) else {
        let _ = near.shutdown(Shutdown::Both);
        return;
    };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else { return };
    let cable_too = cable.clone();
    std::thread::spawn(move || copy(near_too, far_too, &cable_too));
    copy(far, near, cable);
}

fn copy(mut from: TcpStream, mut to: TcpStream, cable: &Cable) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if !cable.pass() || to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    // A cut cable hides also that an end has gone.
    cable.pass();
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn what_was_said_while_it_was_cut_arrives_later() {
        let echo = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let relay = Relay::to(echo.local_addr().unwrap()).unwrap();
        let (tx, rx) = mpsc::channel();
        std::thread::spawn(move || {
            let (mut stream, _) = echo.accept().unwrap();
            let mut byte = [0];
            while let Ok(1) = stream.read(&mut byte) {
                tx.send(byte[0]).unwrap();
            }
        });
        let mut client = TcpStream::connect(relay.address()).unwrap();
        client.write_all(b"a").unwrap();
        assert_eq!(rx.recv_timeout(Duration::from_secs(60)), Ok(b'a'));
        relay.set_cut(true);
        client.write_all(b"b").unwrap();
        assert!(rx.recv_timeout(Duration::from_millis(50)).is_err());
        relay.set_cut(false);
        assert_eq!(rx.recv_timeout(Duration::from_secs(60)), Ok(b'b'));
        drop(client);
        assert!(rx.recv_timeout(Duration::from_secs(60)).is_err(), "the end passes, too");
    }
}
