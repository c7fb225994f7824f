//! The codec against garbage, split points and descriptor counts; and the blocking side over a real socket.

use super::*;
use crate::blocking::{self, Reader, transmit};
use crate::v1::{FromExecutor, Started, from_executor};
use proptest::prelude::*;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

fn message(run: u64) -> FromExecutor {
    FromExecutor { number: 0, message: Some(from_executor::Message::Started(Started { run })) }
}

fn fds(n: usize) -> Vec<OwnedFd> {
    (0..n).map(|_| File::open("/dev/null").unwrap().into()).collect()
}

/// Feeds a stream in chunks cut at `cuts`, descriptors with the chunk that holds their frame's first byte, as the kernel does:
/// a chunk that carries descriptors ends with the data they were sent with.
fn run(frames: &[(FromExecutor, usize)], cuts: &[usize]) -> Result<Vec<(FromExecutor, usize)>, FrameError> {
    let mut decoder = Decoder::new();
    let mut out = Vec::new();
    let mut cuts = cuts.iter().cycle();
    for (m, n) in frames {
        let bytes = encode(m, *n)?;
        let mut rest = &bytes[..];
        let mut sent = fds(*n);
        while !rest.is_empty() {
            let take = cuts.next().copied().unwrap_or(rest.len()).clamp(1, rest.len());
            decoder.push(&rest[..take], std::mem::take(&mut sent))?;
            rest = &rest[take..];
            while let Some(frame) = decoder.next()? {
                let (m, fds) = frame.decode::<FromExecutor>()?;
                out.push((m, fds.len()));
            }
        }
    }
    decoder.finish()?;
    Ok(out)
}

proptest! {
    #[test]
    fn every_frame_comes_back_with_its_descriptors(
        frames in proptest::collection::vec((any::<u64>().prop_map(message), 0_usize..5), 0..20),
        cuts in proptest::collection::vec(1_usize..20, 1..10),
    ) {
        prop_assert_eq!(run(&frames, &cuts).unwrap(), frames);
    }

    #[test]
    fn garbage_never_panics_nor_grows(
        chunks in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..200), 0_usize..3), 0..20)
    ) {
        let mut decoder = Decoder::new();
        'all: for (bytes, n) in chunks {
            if decoder.push(&bytes, fds(n)).is_err() {
                break;
            }
            loop {
                match decoder.next() {
                    Ok(Some(frame)) => drop(frame.decode::<FromExecutor>()),
                    Ok(None) => break,
                    Err(_) => break 'all,
                }
            }
            prop_assert!(decoder.batches.iter().map(|b| b.fds.len()).sum::<usize>() <= MAX_FDS);
        }
    }

    #[test]
    fn a_wrong_descriptor_count_is_refused(announced in 0_usize..6, arrived in 0_usize..6) {
        let bytes = encode(&message(1), announced).unwrap();
        let mut decoder = Decoder::new();
        decoder.push(&bytes, fds(arrived)).unwrap();
        prop_assert_eq!(decoder.next().is_ok(), announced == arrived);
    }
}

#[test]
fn limits_hold_before_anything_is_allocated() {
    let mut decoder = Decoder::new();
    decoder.push(&[0xff, 0xff, 0xff, 0xff, 0], vec![]).unwrap();
    assert!(matches!(decoder.next(), Err(FrameError::TooLong(_))));
    let mut decoder = Decoder::new();
    decoder.push(&[1, 0, 0, 0, 65], vec![]).unwrap();
    assert!(matches!(decoder.next(), Err(FrameError::TooManyFds(65))));
    assert!(matches!(Decoder::new().push(&[0; 5], fds(65)), Err(FrameError::TooManyFds(65))));
    assert!(matches!(encode(&message(1), 65), Err(FrameError::TooManyFds(65))));
    let long = crate::v1::Progress { text: "x".repeat(MAX_MESSAGE_BYTES), ..Default::default() };
    let mut buffer = BytesMut::new();
    assert!(matches!(encode_into(&long, 0, &mut buffer), Err(FrameError::TooLong(_))));
    assert!(buffer.is_empty());
}

#[test]
fn descriptors_on_other_than_first_bytes_are_refused() {
    let bytes = encode(&message(1), 1).unwrap();
    let mut decoder = Decoder::new();
    decoder.push(&bytes[..3], vec![]).unwrap();
    decoder.push(&bytes[3..], fds(1)).unwrap();
    assert!(matches!(decoder.next(), Err(FrameError::FdCount { announced: 1, arrived: 0 })));
    let mut decoder = Decoder::new();
    decoder.push(&encode(&message(1), 0).unwrap(), fds(1)).unwrap();
    assert!(matches!(decoder.next(), Err(FrameError::StrayFds(1))));
}

#[test]
fn small_frames_before_one_with_descriptors_arrive_in_one_read() {
    let (a, b) = UnixStream::pair().unwrap();
    let file = File::open("/proc/self/exe").unwrap();
    let mut writer = blocking::Writer::new(a);
    for run in 0..10 {
        writer.send(&message(run), &[]).unwrap();
    }
    writer.send(&message(10), &[file.as_fd(), file.as_fd()]).unwrap();
    writer.send(&message(11), &[]).unwrap();
    writer.send(&message(12), &[file.as_fd()]).unwrap();
    drop(writer);
    let mut reader = Reader::new(b);
    for run in 0..13 {
        let (m, fds) = reader.recv::<FromExecutor>().unwrap().unwrap();
        assert_eq!(m, message(run));
        assert_eq!(
            fds.len(),
            match run {
                10 => 2,
                12 => 1,
                _ => 0,
            }
        );
        for fd in fds {
            let fd = File::from(fd);
            assert_eq!(fd.metadata().unwrap().ino(), file.metadata().unwrap().ino());
            assert!(rustix::io::fcntl_getfd(&fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        }
    }
    assert!(reader.recv::<FromExecutor>().unwrap().is_none());
}

#[test]
fn a_large_frame_with_descriptors_crosses_a_small_socket_buffer() {
    let (a, b) = UnixStream::pair().unwrap();
    let big = crate::v1::Progress { text: "y".repeat(5 << 20), ..Default::default() };
    let sent = big.clone();
    let file = File::open("/dev/null").unwrap();
    let thread = std::thread::spawn(move || blocking::Writer::new(a).send(&sent, &[file.as_fd()]).unwrap());
    let (m, fds) = Reader::new(b).recv::<crate::v1::Progress>().unwrap().unwrap();
    thread.join().unwrap();
    assert!(m == big && fds.len() == 1);
}

#[test]
fn an_end_inside_a_frame_is_an_error_and_too_many_descriptors_are_closed() {
    let (a, b) = UnixStream::pair().unwrap();
    transmit(&a, &encode(&message(1), 0).unwrap()[..4], &[]).unwrap();
    drop(a);
    assert!(matches!(Reader::new(b).recv::<FromExecutor>(), Err(FrameError::Cut { have: 4, .. })));
}

#[test]
fn a_draft_gets_its_number_afterwards() {
    for number in [1, 127, 128, u64::MAX] {
        let body = crate::v1::from_executor::Message::Started(crate::v1::Started { run: 7 });
        let bytes = Draft::new(body.clone()).unwrap().numbered(number);
        let mut decoder = Decoder::new();
        decoder.push(&bytes, Vec::new()).unwrap();
        let (decoded, _) = decoder.next().unwrap().unwrap().decode::<FromExecutor>().unwrap();
        assert_eq!(decoded, FromExecutor { number, message: Some(body.clone()) });
        assert!(decoder.finish().is_ok());
        assert_eq!(Draft::new(body.clone()).unwrap().unnumbered(), encode(&FromExecutor { number: 0, message: Some(body) }, 0).unwrap());
    }
    let long = crate::v1::Progress { text: "x".repeat(MAX_MESSAGE_BYTES), ..Default::default() };
    assert!(matches!(Draft::new(crate::v1::from_executor::Message::Progress(long)), Err(FrameError::TooLong(_))));
}
