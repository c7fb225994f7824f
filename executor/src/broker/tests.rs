//! The broker against the kernel: a thread with the filter in force plays the executor, another one answers it.
//!
//! A filter belongs to a thread, so no process is made: this one hands its own descriptors to itself.

use super::*;
use crate::network::notify;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use smalti_executor_protocol::Writer;
use smalti_executor_protocol::v1::{BrokerRules, Notifications as Announce};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

fn rules(ports: &[u16], endpoints: &[SocketAddr]) -> BrokerRules {
    BrokerRules {
        ports: ports.iter().map(|p| u32::from(*p)).collect(),
        listen: "127.0.0.1".to_owned(),
        endpoints: endpoints.iter().map(ToString::to_string).collect(),
    }
}

/// Runs `guest` behind the filter, with a broker that has these rules.
fn confined<T: Send + 'static>(rules: BrokerRules, guest: impl FnOnce() -> T + Send + 'static) -> T {
    confined_with(rules, true, guest)
}

/// As [`confined`]; the agent is there, or gone before the guest begins.
fn confined_with<T: Send + 'static>(rules: BrokerRules, agent_stays: bool, guest: impl FnOnce() -> T + Send + 'static) -> T {
    let (agent, theirs) = UnixStream::pair().unwrap();
    let broker = thread::spawn(move || serve(theirs.into()));
    let mut writer = Writer::new(agent.try_clone().unwrap());
    writer.send(&ToBroker { message: Some(Message::Rules(rules)) }, &[]).unwrap();
    let (hand_over, taken) = channel();
    let (go, may_go) = channel::<()>();
    let guest = thread::spawn(move || {
        set_no_new_privs(true).unwrap();
        hand_over.send(notify::impose()).unwrap();
        may_go.recv().unwrap();
        guest()
    });
    let fd = taken.recv_timeout(Duration::from_secs(60)).unwrap().expect("a kernel with notifications");
    writer.send(&ToBroker { message: Some(Message::Notifications(Announce {})) }, &[fd.as_fd()]).unwrap();
    drop(fd);
    let agent = agent_stays.then_some((agent, writer));
    go.send(()).unwrap();
    let result = guest.join().unwrap();
    // It ends with the executor, whether the agent is there or not.
    drop(agent);
    broker.join().unwrap().expect("the broker ends well");
    result
}

fn socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)
}

#[test]
fn a_granted_port_is_served_and_no_other() {
    let ports = smalti_test_ports::take(2);
    let (granted, other) = (ports.first(), ports.first() + 1);
    let (up, is_up) = channel();
    let client = thread::spawn(move || {
        is_up.recv().unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", granted)).unwrap();
        stream.write_all(b"hello").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        said
    });
    confined(rules(&[granted], &[]), move || {
        let server = socket().unwrap();
        let at = |port: u16| SocketAddr::from(([0, 0, 0, 0], port));
        assert_eq!(rustix::net::bind(&server, &at(other)), Err(Errno::ACCESS));
        assert_eq!(rustix::net::listen(&server, 1), Err(Errno::ACCESS), "not bound");
        rustix::net::bind(&server, &at(granted)).unwrap();
        let local = SocketAddr::try_from(rustix::net::getsockname(&server).unwrap()).unwrap();
        assert_eq!(local, SocketAddr::from(([127, 0, 0, 1], granted)), "any address means the one for tasks");
        rustix::net::listen(&server, 16).unwrap();
        up.send(()).unwrap();
        rustix::io::ioctl_fionbio(&server, false).unwrap();
        // Data goes straight through: no call of these is asked about.
        let (mut stream, _) = TcpListener::from(server).accept().unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).unwrap();
        stream.write_all(heard.to_uppercase().as_bytes()).unwrap();
    });
    assert_eq!(client.join().unwrap(), "HELLO");
}

#[test]
fn a_granted_endpoint_is_dialled_and_no_other() {
    let (server, closed) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let (granted, other) = (server.local_addr().unwrap(), closed.local_addr().unwrap());
    let said = thread::spawn(move || {
        let mut said = String::new();
        server.accept().unwrap().0.read_to_string(&mut said).unwrap();
        said
    });
    confined(rules(&[], &[granted]), move || {
        let client = socket().unwrap();
        assert_eq!(rustix::net::connect(&client, &other), Err(Errno::ACCESS));
        assert_eq!(rustix::net::bind(&client, &SocketAddr::from(([127, 0, 0, 1], 0))), Err(Errno::ACCESS));
        match rustix::net::connect(&client, &granted) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(e) => panic!("{e}"),
        }
        let mut wait = [PollFd::new(&client, PollFlags::OUT)];
        poll(&mut wait, None).unwrap();
        assert_eq!(sockopt::socket_error(&client), Ok(Ok(())));
        rustix::net::send(&client, b"dialled", rustix::net::SendFlags::NOSIGNAL).unwrap();
    });
    assert_eq!(said.join().unwrap(), "dialled");
    closed.set_nonblocking(true).unwrap();
    assert!(closed.accept().is_err(), "nobody came");
}

#[test]
fn other_sockets_and_ways_around_are_refused() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let granted = server.local_addr().unwrap();
    confined(rules(&[], &[granted]), move || {
        let make = |family, kind| rustix::net::socket_with(family, kind, SocketFlags::NONBLOCK, None).err();
        assert_eq!(make(AddressFamily::INET, SocketType::DGRAM), Some(Errno::ACCESS));
        assert_eq!(make(AddressFamily::INET, SocketType::RAW), Some(Errno::ACCESS));
        assert_eq!(make(AddressFamily::UNIX, SocketType::STREAM), Some(Errno::AFNOSUPPORT));
        assert_eq!(make(AddressFamily::NETLINK, SocketType::RAW), Some(Errno::AFNOSUPPORT));
        let waiting = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::empty(), None);
        assert_eq!(waiting.err(), Some(Errno::ACCESS), "a socket that waits");
        let client = socket().unwrap();
        let sent = rustix::net::sendto(&client, b"x", rustix::net::SendFlags::empty(), &granted);
        assert_eq!(sent, Err(Errno::PERM));
        // What the executor's descriptor names is looked at, not only its number.
        let (unix, _peer) = UnixStream::pair().unwrap();
        assert_eq!(rustix::net::connect(&unix, &granted), Err(Errno::ACCESS));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(rustix::net::connect(&file, &granted), Err(Errno::NOTSOCK));
    });
}

#[test]
fn without_rules_nothing_is_made_and_without_a_broker_calls_fail() {
    let refused = confined(rules(&[], &[]), || socket().err());
    assert_eq!(refused, Some(Errno::ACCESS));
    let alone = thread::spawn(|| {
        set_no_new_privs(true).unwrap();
        drop(notify::impose().unwrap());
        socket().err()
    });
    assert_eq!(alone.join().unwrap(), Some(Errno::NOSYS));
}

#[test]
fn its_rules_hold_on_without_the_agent() {
    let ports = smalti_test_ports::take(2);
    let (granted, other) = (ports.first(), ports.first() + 1);
    confined_with(rules(&[granted], &[]), false, move || {
        let server = socket().unwrap();
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!(rustix::net::bind(&server, &at(other)), Err(Errno::ACCESS));
        rustix::net::bind(&server, &at(granted)).unwrap();
        rustix::net::listen(&server, 16).unwrap();
    });
}

#[test]
fn it_ends_with_an_agent_that_has_told_it_of_no_executor() {
    let (agent, theirs) = UnixStream::pair().unwrap();
    let broker = thread::spawn(move || serve(theirs.into()));
    Writer::new(agent.try_clone().unwrap()).send(&ToBroker { message: Some(Message::Rules(rules(&[1], &[]))) }, &[]).unwrap();
    drop(agent);
    broker.join().unwrap().expect("nobody lives whom it could serve");
}
