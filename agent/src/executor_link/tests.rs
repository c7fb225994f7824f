//! The async side against the blocking side.

use super::*;
use smalti_executor_protocol::v1::{Lease, LoadModule, Progress, Shutdown, Split};
use smalti_executor_protocol::{Reader, Writer};
use std::os::fd::OwnedFd;

fn pair() -> (ExecutorLink, std::os::unix::net::UnixStream) {
    let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
    a.set_nonblocking(true).unwrap();
    (ExecutorLink::new(UnixStream::from_std(a).unwrap()), b)
}

fn progress(run: u64) -> from_executor::Message {
    from_executor::Message::Progress(Progress { run, permille: 1, text: "x".repeat(3000) })
}

/// As [`progress`], with the run's number as the message's.
fn said(run: u64) -> Said {
    Said { number: run, message: progress(run) }
}

#[tokio::test]
async fn messages_and_descriptors_cross_both_ways() {
    let (link, executor) = pair();
    let counts = link.counts();
    let other = std::thread::spawn(move || {
        let mut writer = Writer::new(executor.try_clone().unwrap());
        let mut reader = Reader::new(executor);
        let mut fds = 0;
        while let Some((m, more)) = reader.recv::<ToExecutor>().unwrap() {
            fds += more.len();
            if let Some(to_executor::Message::Lease(lease)) = m.message {
                writer.send(&FromExecutor { number: lease.run, message: Some(progress(lease.run)) }, &[]).unwrap();
            }
        }
        fds
    });
    let (mut reader, writer) = link.split();
    let queue = writer.into_queue(8);
    let file: Arc<OwnedFd> = Arc::new(File::open("/dev/null").unwrap().into());
    let feeder = tokio::spawn(async move {
        for run in 0..500 {
            let load = to_executor::Message::Load(LoadModule::default());
            queue.send(Outgoing { message: load, fds: vec![file.clone(), file.clone()] }).await.unwrap();
            queue.send(to_executor::Message::Lease(Lease { run, ..Lease::default() })).await.unwrap();
        }
        queue
    });
    for run in 0..500 {
        assert_eq!(reader.recv().await.unwrap(), Some(said(run)));
    }
    drop(feeder.await.unwrap());
    drop(reader);
    // Not joined here: the queue's task must run to end the connection.
    assert_eq!(tokio::task::spawn_blocking(move || other.join().unwrap()).await.unwrap(), 1000);
    assert_eq!((counts.sent(), counts.received()), (1000, 500));
}

#[tokio::test]
async fn what_has_gone_out_in_part_is_finished_before_the_next() {
    const MESSAGES: u64 = 60;
    let (link, executor) = pair();
    let queue = link.split().1.into_queue(64);
    let file: Arc<OwnedFd> = Arc::new(File::open("/dev/null").unwrap().into());
    // Nobody reads yet, and some of them are more than a socket holds.
    let splits = |run: u64| if run % 20 == 3 { 20_000 } else { 0 };
    for run in 0..MESSAGES {
        let split = Split { item: u64::MAX, input: 1, offset: u64::MAX, length: run };
        let lease = Lease { run, splits: vec![split; splits(run)], ..Lease::default() };
        queue.try_send(Outgoing { message: to_executor::Message::Lease(lease), fds: vec![file.clone()] }).unwrap();
    }
    let other = std::thread::spawn(move || {
        let mut reader = Reader::new(executor);
        for run in 0..MESSAGES {
            let (message, fds) = reader.recv::<ToExecutor>().unwrap().unwrap();
            let Some(to_executor::Message::Lease(lease)) = message.message else { panic!("no lease") };
            assert_eq!((lease.run, lease.splits.len(), fds.len()), (run, splits(run), 1));
        }
    });
    tokio::task::spawn_blocking(move || other.join().unwrap()).await.unwrap();
}

#[tokio::test]
async fn an_executor_that_sends_descriptors_or_garbage_is_cut_off() {
    let (mut link, executor) = pair();
    let file = File::open("/dev/null").unwrap();
    Writer::new(executor).send(&FromExecutor { number: 0, message: Some(progress(1)) }, &[file.as_fd()]).unwrap();
    assert!(matches!(link.recv().await, Err(FrameError::FdCount { announced: 1, arrived: 0 })));
    let (mut link, executor) = pair();
    std::io::Write::write_all(&mut &executor, &[0xff; 64]).unwrap();
    assert!(matches!(link.recv().await, Err(FrameError::TooLong(_))));
}

#[tokio::test]
async fn an_executor_that_does_not_read_fills_a_bounded_queue() {
    let (link, executor) = pair();
    let queue = link.split().1.into_queue(4);
    let lease = || to_executor::Message::Load(LoadModule { name: "x".repeat(1 << 20), ..LoadModule::default() });
    let refused = loop {
        // The queue's task runs between two attempts, until the socket's buffer is full.
        tokio::task::yield_now().await;
        if let Err(e) = queue.try_send(lease()) {
            break e;
        }
    };
    assert_eq!(refused, SendError::Full);
    drop(executor);
    while queue.send(to_executor::Message::Shutdown(Shutdown {})).await.is_ok() {}
}

#[tokio::test]
async fn a_long_path_can_be_connected_to() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("x".repeat(200));
    std::fs::create_dir(&long).unwrap();
    let handle = File::open(&long).unwrap();
    let short = format!("/proc/self/fd/{}/socket", handle.as_raw_fd());
    let listener = std::os::unix::net::UnixListener::bind(short).unwrap();
    let link = ExecutorLink::connect(&long.join("socket")).await.unwrap();
    assert_eq!(link.peer().unwrap().0, i32::try_from(std::process::id()).unwrap());
    drop(listener);
}

#[tokio::test]
async fn first_words_may_come_with_a_descriptor() {
    let (mut link, executor) = pair();
    let file = File::open("/dev/null").unwrap();
    let mut writer = Writer::new(executor);
    writer.send(&FromExecutor { number: 1, message: Some(progress(1)) }, &[file.as_fd()]).unwrap();
    let (message, fds) = link.recv_with_fds().await.unwrap().unwrap();
    assert_eq!((message, fds.len()), (said(1), 1));
    writer.send(&FromExecutor { number: 2, message: Some(progress(2)) }, &[]).unwrap();
    assert_eq!(link.recv().await.unwrap(), Some(said(2)), "afterwards as ever");
    drop(writer);
    assert_eq!(link.recv_with_fds().await.unwrap().map(|_| ()), None);
}
