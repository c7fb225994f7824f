//! Preview 1 guests with sockets, through the worker's real entry.

use super::*;
use smalti_executor_protocol::v1::GuestNetwork;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

/// A guest with the socket functions, a memory, and `$is`, which ends it with the number of what is not as it should be.
fn guest_with(body: &str) -> String {
    format!(
        r#"(module
  (import "wasi_snapshot_preview1" "sock_accept" (func $accept (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sock_recv" (func $recv (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sock_send" (func $send (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sock_shutdown" (func $shutdown (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_renumber" (func $renumber (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_seek" (func $seek (param i32 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_fdstat_get" (func $stat (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_fdstat_set_flags" (func $flags (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "smalti" "progress" (func $progress (param i32 i32 i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  ;; Ends with `code` unless `got` is `want`.
  (func $is (param $code i32) (param $got i32) (param $want i32)
    (if (i32.ne (local.get $got) (local.get $want)) (then (call $exit (local.get $code)))))
  ;; One buffer of 1000 bytes at 1000, described at 0.
  (func $buffer (param $length i32)
    (i32.store (i32.const 0) (i32.const 1000))
    (i32.store (i32.const 4) (local.get $length)))
  (func (export "_start") {body}))"#
    )
}

/// Starts a guest with a listener as descriptor 3; where that listens.
fn start(agent: &mut Agent, run: u64, text: &str) -> SocketAddr {
    let module = agent.load(text);
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    listener.set_nonblocking(true).expect("set");
    let at = listener.local_addr().expect("an address");
    let network = GuestNetwork { run, ports: vec![at.port().into()], listen: "127.0.0.1".to_owned(), ..Default::default() };
    agent.send(To::Network(network), &[&listener.into()]);
    agent.start_task(run, guest(module));
    agent.await_started(run);
    at
}

fn ended(agent: &mut Agent, run: u64) -> Option<i32> {
    let outcome = agent.await_outcome(run);
    assert!(outcome.exit_code.is_some(), "{outcome:?}");
    outcome.exit_code
}

/// Accepts, echoes what comes with `fd_read` and `fd_write`, and ends at the end of the stream.
const ECHO: &str = r#"(local $n i32)
    (call $is (i32.const 1) (call $accept (i32.const 3) (i32.const 0) (i32.const 16)) (i32.const 0))
    (call $is (i32.const 2) (i32.load (i32.const 16)) (i32.const 4))
    (loop $next
      (call $buffer (i32.const 1000))
      (call $is (i32.const 3) (call $read (i32.const 4) (i32.const 0) (i32.const 1) (i32.const 20)) (i32.const 0))
      (local.set $n (i32.load (i32.const 20)))
      (if (local.get $n) (then
        (call $buffer (local.get $n))
        (call $is (i32.const 4) (call $write (i32.const 4) (i32.const 0) (i32.const 1) (i32.const 20)) (i32.const 0))
        (call $is (i32.const 5) (i32.load (i32.const 20)) (local.get $n))
        (br $next))))
    (call $is (i32.const 6) (call $close (i32.const 4)) (i32.const 0))
    (call $is (i32.const 7) (call $close (i32.const 4)) (i32.const 8))"#;

#[test]
fn a_guest_serves_a_connection() {
    let mut agent = Agent::start_networked();
    let at = start(&mut agent, 1, &guest_with(ECHO));
    let mut client = TcpStream::connect(at).expect("connected");
    client.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut heard = [0; 5];
    for said in [b"first", b"again"] {
        client.write_all(said).expect("sent");
        client.read_exact(&mut heard).expect("received");
        assert_eq!(&heard, said);
    }
    client.shutdown(std::net::Shutdown::Write).expect("shut down");
    assert_eq!(ended(&mut agent, 1), Some(0));
    assert_eq!(client.read(&mut heard).expect("the end"), 0);
    drop(TcpListener::bind(at).expect("the port is free again"));
    agent.stop();
}

/// `sock_recv` with PEEK, `sock_send`, half a shutdown, and calls with the wrong kind of descriptor.
const CAREFUL: &str = r#"
    (call $is (i32.const 1) (call $accept (i32.const 4) (i32.const 0) (i32.const 16)) (i32.const 8))
    (call $is (i32.const 2) (call $accept (i32.const 1) (i32.const 0) (i32.const 16)) (i32.const 57))
    (call $is (i32.const 3) (call $accept (i32.const 3) (i32.const 1) (i32.const 16)) (i32.const 28))
    (call $is (i32.const 4) (call $accept (i32.const 3) (i32.const 0) (i32.const -1)) (i32.const 21))
    (call $is (i32.const 5) (call $accept (i32.const 3) (i32.const 0) (i32.const 16)) (i32.const 0))
    (call $buffer (i32.const 2))
    (call $is (i32.const 6) (call $recv (i32.const 4) (i32.const 0) (i32.const 1) (i32.const 1) (i32.const 20) (i32.const 24)) (i32.const 0))
    (call $is (i32.const 7) (i32.load (i32.const 20)) (i32.const 2))
    (call $buffer (i32.const 5))
    (call $is (i32.const 8) (call $recv (i32.const 4) (i32.const 0) (i32.const 1) (i32.const 2) (i32.const 20) (i32.const 24)) (i32.const 0))
    (call $is (i32.const 9) (i32.load (i32.const 20)) (i32.const 5))
    (call $is (i32.const 10) (call $send (i32.const 4) (i32.const 0) (i32.const 1) (i32.const 1) (i32.const 20)) (i32.const 58))
    (call $is (i32.const 11) (call $send (i32.const 4) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 20)) (i32.const 0))
    (call $is (i32.const 12) (call $shutdown (i32.const 4) (i32.const 2)) (i32.const 0))
    (call $is (i32.const 13) (call $send (i32.const 4) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 20)) (i32.const 64))
    (call $is (i32.const 14) (call $seek (i32.const 4) (i64.const 0) (i32.const 0) (i32.const 32)) (i32.const 70))
    (call $is (i32.const 15) (call $open (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0) (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 40)) (i32.const 54))
    (call $is (i32.const 16) (call $read (i32.const 3) (i32.const 0) (i32.const 1) (i32.const 20)) (i32.const 53))
    (call $is (i32.const 17) (call $stat (i32.const 3) (i32.const 64)) (i32.const 0))
    (call $is (i32.const 18) (i32.load8_u (i32.const 64)) (i32.const 6))
    (call $is (i32.const 19) (call $prestat (i32.const 3) (i32.const 64)) (i32.const 0))
    (call $is (i32.const 20) (i32.load8_u (i32.const 64)) (i32.const 1))
    (call $is (i32.const 21) (call $prestat (i32.const 5) (i32.const 64)) (i32.const 8))
    (call $is (i32.const 22) (call $renumber (i32.const 4) (i32.const 3)) (i32.const 0))
    (call $is (i32.const 23) (call $close (i32.const 4)) (i32.const 8))
    (i32.store (i32.const 4) (i32.const -1))
    (call $is (i32.const 24) (call $read (i32.const 3) (i32.const 0) (i32.const 1) (i32.const 20)) (i32.const 21))"#;

#[test]
fn each_function_answers_as_the_standard_has_it() {
    let mut agent = Agent::start_networked();
    let at = start(&mut agent, 1, &guest_with(CAREFUL));
    let mut client = TcpStream::connect(at).expect("connected");
    client.write_all(b"hello").expect("sent");
    let mut heard = String::new();
    client.set_read_timeout(Some(PATIENCE)).expect("set");
    client.read_to_string(&mut heard).expect("received");
    assert_eq!(heard, "hello");
    assert_eq!(ended(&mut agent, 1), Some(0));
    agent.stop();
}

/// Non-blocking: nobody there, a poll that times out, one that finds a connection, one that finds data; and a clock beside.
const POLLS: &str = r#"
    (call $is (i32.const 1) (call $flags (i32.const 3) (i32.const 4)) (i32.const 0))
    (call $is (i32.const 2) (call $accept (i32.const 3) (i32.const 4) (i32.const 16)) (i32.const 6))
    ;; Subscriptions at 200: a read of 3 (userdata 7), a clock of 1 ms (userdata 8).
    (i64.store (i32.const 200) (i64.const 7))
    (i32.store8 (i32.const 208) (i32.const 1))
    (i32.store (i32.const 216) (i32.const 3))
    (i64.store (i32.const 248) (i64.const 8))
    (i32.store (i32.const 264) (i32.const 1))
    (i64.store (i32.const 272) (i64.const 1000000))
    (call $is (i32.const 3) (call $poll (i32.const 200) (i32.const 400) (i32.const 2) (i32.const 20)) (i32.const 0))
    (call $is (i32.const 4) (i32.load (i32.const 20)) (i32.const 1))
    (call $is (i32.const 5) (i32.load (i32.const 400)) (i32.const 8))
    ;; Now the client may come. Files work as ever beside sockets.
    (call $progress (i32.const 1) (i32.const 0) (i32.const 0))
    (call $buffer (i32.const 4))
    (call $is (i32.const 6) (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20)) (i32.const 0))
    (call $is (i32.const 7) (call $poll (i32.const 200) (i32.const 400) (i32.const 1) (i32.const 20)) (i32.const 0))
    (call $is (i32.const 8) (i32.load (i32.const 400)) (i32.const 7))
    (call $is (i32.const 9) (i32.load8_u (i32.const 410)) (i32.const 1))
    (call $is (i32.const 10) (call $accept (i32.const 3) (i32.const 4) (i32.const 16)) (i32.const 0))
    (i32.store (i32.const 216) (i32.const 4))
    (call $is (i32.const 11) (call $poll (i32.const 200) (i32.const 400) (i32.const 1) (i32.const 20)) (i32.const 0))
    (call $buffer (i32.const 10))
    (call $is (i32.const 12) (call $read (i32.const 4) (i32.const 0) (i32.const 1) (i32.const 20)) (i32.const 0))
    (call $is (i32.const 13) (i32.load (i32.const 20)) (i32.const 3))
    (call $is (i32.const 14) (call $read (i32.const 4) (i32.const 0) (i32.const 1) (i32.const 20)) (i32.const 6))
    ;; A descriptor that is not there is an event with an error, a call without subscriptions an error.
    (i32.store (i32.const 216) (i32.const 99))
    (call $is (i32.const 15) (call $poll (i32.const 200) (i32.const 400) (i32.const 1) (i32.const 20)) (i32.const 0))
    (call $is (i32.const 16) (i32.load16_u (i32.const 408)) (i32.const 8))
    (call $is (i32.const 17) (call $poll (i32.const 200) (i32.const 400) (i32.const 0) (i32.const 20)) (i32.const 28))
    (call $is (i32.const 18) (call $poll (i32.const 200) (i32.const 400) (i32.const -1) (i32.const 20)) (i32.const 28))
    (call $is (i32.const 19) (call $poll (i32.const 65500) (i32.const 400) (i32.const 1) (i32.const 20)) (i32.const 21))"#;

#[test]
fn a_guest_polls_instead_of_waiting() {
    let mut agent = Agent::start_networked();
    let at = start(&mut agent, 1, &guest_with(POLLS));
    match agent.receive() {
        From::Progress(progress) if progress.run == 1 => {}
        other => panic!("{other:?}"),
    }
    let mut client = TcpStream::connect(at).expect("connected");
    client.write_all(b"abc").expect("sent");
    assert_eq!(ended(&mut agent, 1), Some(0));
    agent.stop();
}

/// Tries a non-blocking accept for ever.
const SPINS: &str = r#"
    (call $is (i32.const 1) (call $flags (i32.const 3) (i32.const 4)) (i32.const 0))
    (loop $again (br_if $again (i32.eq (call $accept (i32.const 3) (i32.const 0) (i32.const 16)) (i32.const 6))))
    (call $buffer (i32.const 1))
    (loop $again (br_if $again (i32.eq (call $read (i32.const 4) (i32.const 0) (i32.const 1) (i32.const 20)) (i32.const 6))))
    (call $is (i32.const 2) (i32.load (i32.const 20)) (i32.const 1))"#;

#[test]
fn a_guest_that_tries_without_pause_sees_what_comes() {
    let mut agent = Agent::start_networked();
    // The accepted socket blocks unless the guest says otherwise.
    let at = start(&mut agent, 1, &guest_with(SPINS));
    let mut client = TcpStream::connect(at).expect("connected");
    client.write_all(b"x").expect("sent");
    assert_eq!(ended(&mut agent, 1), Some(0));
    agent.stop();
}

#[test]
fn a_guest_that_waits_for_a_connection_is_killed_at_once() {
    let accept = guest_with("(call $exit (call $accept (i32.const 3) (i32.const 0) (i32.const 16)))");
    let receive = guest_with(
        "(call $is (i32.const 1) (call $accept (i32.const 3) (i32.const 0) (i32.const 16)) (i32.const 0)) (call $buffer (i32.const 9))
         (call $exit (call $read (i32.const 4) (i32.const 0) (i32.const 1) (i32.const 20)))",
    );
    let mut agent = Agent::start_networked();
    let mut fastest = Duration::MAX;
    for (run, text) in (1..).zip([&accept, &receive, &accept]) {
        let at = start(&mut agent, run, text);
        // Into the backlog, or accepted: then it waits for a byte.
        let client = (*text == receive).then(|| TcpStream::connect(at).expect("connected"));
        std::thread::sleep(Duration::from_millis(50));
        let asked = Instant::now();
        agent.send(To::Kill(v1::Kill { run, grace_us: 0 }), &[]);
        let outcome = agent.await_outcome(run);
        fastest = fastest.min(asked.elapsed());
        assert_eq!(reason(&outcome), "KILLED_BY_REQUEST");
        drop(client);
        drop(TcpListener::bind(at).expect("the port is free again"));
    }
    eprintln!("killed in accept or receive after {fastest:?} at best");
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
    agent.stop();
}

#[test]
fn without_a_network_there_is_no_socket() {
    let text = guest_with("(call $exit (call $accept (i32.const 3) (i32.const 0) (i32.const 16)))");
    let mut plain = Agent::start(1);
    let module = plain.load(&text);
    assert_ne!(plain.outcome(1, guest(module)).exit_code, Some(0));
    // Said to an executor that has none: its task is refused.
    let network = GuestNetwork { run: 2, listen: "127.0.0.1".to_owned(), ..Default::default() };
    plain.send(To::Network(network), &[]);
    let outcome = plain.outcome(2, guest(module));
    assert_eq!((outcome.exit_code, reason(&outcome)), (None, "LAUNCH_FAILED"));
    plain.stop();
    let mut networked = Agent::start_networked();
    let module = networked.load(&text);
    assert_eq!(networked.outcome(1, guest(module)).exit_code, Some(8), "it was granted nothing");
    networked.stop();
}
