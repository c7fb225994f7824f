//! Reading a job's output stream, across restarts of the scheduler, without a byte twice.

use super::Link;
use super::sink::Sink;
use crate::failure::Failure;
use smalti_proto::v1::{OutputChunk, OutputRequest, OutputStream, read_reply};
use std::time::Duration;
use tokio::sync::watch;
use tokio_stream::StreamExt;

/// Once the job has ended: longest silence of the output stream before the rest is given up.
const SILENCE: Duration = Duration::from_secs(30);

/// Why reading ended early.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// Nobody reads our stdout any more.
    Sink(std::io::Error),
    /// The output, or its rest, cannot be had.
    Lost(Failure),
}

/// Counts what was delivered per stream, so that a stream read again from its start goes on where the last one broke off.
/// Each attempt of a task writes streams of its own.
#[derive(Debug, Default, PartialEq, Eq)]
struct Position {
    /// Which attempt of the task is counted.
    attempt: u32,
    /// Bytes of stdout and of stderr that the sink has.
    delivered: [u64; 2],
    /// Bytes of each in the current stream.
    seen: [u64; 2],
}

impl Position {
    /// A new stream begins at the first byte.
    fn restart(&mut self) {
        self.seen = [0, 0];
    }

    /// The part of a chunk that the sink does not have.
    fn fresh(&mut self, chunk: &mut OutputChunk) {
        if chunk.attempt != self.attempt {
            *self = Self { attempt: chunk.attempt, ..Self::default() };
        }
        let i = usize::from(chunk.stream() == OutputStream::Stderr);
        let length = chunk.data.len() as u64;
        let known = self.delivered[i].saturating_sub(self.seen[i]).min(length);
        self.seen[i] += length;
        self.delivered[i] = self.delivered[i].max(self.seen[i]);
        chunk.data = chunk.data.split_off(usize::try_from(known).unwrap_or(usize::MAX));
    }
}

/// Reads to the end of the stream. `ended` turns true when the job has ended. To be run as a task of its own: writing to
/// a slow reader blocks it.
pub(crate) async fn read<S: Sink>(
    link: Link,
    request: OutputRequest,
    mut sink: S,
    ended: watch::Receiver<bool>,
) -> (S, Result<(), Stopped>) {
    let result = read_into(link, request, &mut sink, ended).await;
    (sink, result)
}

async fn read_into<S: Sink>(mut link: Link, request: OutputRequest, sink: &mut S, mut ended: watch::Receiver<bool>) -> Result<(), Stopped> {
    // Where the last lines begin is known only to the stream that began there: another would begin elsewhere.
    let can_go_on = request.tail_lines.is_none();
    let mut position = Position::default();
    let what = format!("reading the output of {}", request.job_or_task);
    loop {
        position.restart();
        let broken = match link.jobs().output(request.clone()).await {
            Ok(stream) => match drain(stream.into_inner(), &mut link, &mut position, sink, &mut ended).await? {
                None => return Ok(()),
                Some(status) => status,
            },
            Err(status) => status,
        };
        if !can_go_on && position != Position::default() {
            let why = "the last lines cannot be continued where they broke off; leave --tail out to follow through restarts";
            return Err(Stopped::Lost(Failure::new(format!("{what}: {}; {why}", crate::failure::status_text(&broken)))));
        }
        link.again(&what, &broken).await.map_err(Stopped::Lost)?;
    }
}

/// Reads one stream: `None` at its end, or what broke it.
async fn drain<S: Sink>(
    mut stream: tonic::Streaming<smalti_proto::v1::ReadReply>,
    link: &mut Link,
    position: &mut Position,
    sink: &mut S,
    ended: &mut watch::Receiver<bool>,
) -> Result<Option<tonic::Status>, Stopped> {
    loop {
        let next = tokio::select! {
            next = stream.next() => next,
            () = silence_after(ended) => return Err(Stopped::Lost(Failure::new("the rest of the output did not come"))),
        };
        let reply = match next {
            None => return Ok(None),
            Some(Err(status)) => return Ok(Some(status)),
            Some(Ok(reply)) => reply,
        };
        link.works();
        match reply.message {
            Some(read_reply::Message::Chunk(mut chunk)) => {
                position.fresh(&mut chunk);
                if !chunk.data.is_empty() {
                    // The reader of our stdout may be slow: other work of this process must not wait for it.
                    tokio::task::block_in_place(|| sink.take(&chunk)).map_err(Stopped::Sink)?;
                }
            }
            Some(read_reply::Message::Error(text)) => {
                return Err(Stopped::Lost(Failure::new(format!("reading the output: {}", crate::output::printable(&text)))));
            }
            Some(read_reply::Message::ReadId(_)) | None => {}
        }
    }
}

/// Ends [`SILENCE`] after the job has ended; never before.
async fn silence_after(ended: &mut watch::Receiver<bool>) {
    if ended.wait_for(|ended| *ended).await.is_err() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(SILENCE).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(position: &mut Position, stream: OutputStream, data: &'static str) -> String {
        of_attempt(position, 0, stream, data)
    }

    fn of_attempt(position: &mut Position, attempt: u32, stream: OutputStream, data: &'static str) -> String {
        let mut chunk = OutputChunk { item: None, stream: stream.into(), data: data.into(), attempt };
        position.fresh(&mut chunk);
        String::from_utf8(chunk.data.to_vec()).unwrap()
    }

    #[test]
    fn a_stream_read_again_goes_on_where_it_broke_off() {
        let mut position = Position::default();
        assert_eq!(fresh(&mut position, OutputStream::Stdout, "abc"), "abc");
        assert_eq!(fresh(&mut position, OutputStream::Stderr, "x"), "x");
        position.restart();
        assert_eq!(fresh(&mut position, OutputStream::Stdout, "ab"), "");
        assert_eq!(fresh(&mut position, OutputStream::Stderr, "xy"), "y");
        assert_eq!(fresh(&mut position, OutputStream::Stdout, "cde"), "de");
        position.restart();
        assert_eq!(fresh(&mut position, OutputStream::Stdout, "abcdef"), "f");
    }

    #[test]
    fn another_attempt_begins_at_its_own_first_byte() {
        let mut position = Position::default();
        assert_eq!(fresh(&mut position, OutputStream::Stdout, "abc"), "abc");
        assert_eq!(of_attempt(&mut position, 1, OutputStream::Stdout, "ab"), "ab");
        position.restart();
        assert_eq!(of_attempt(&mut position, 1, OutputStream::Stdout, "abcd"), "cd");
    }
}
