//! Answers the master's read requests: output streams, single files, directory listings, each in a stream of its own.
//!
//! Owns the number of reads at a time and their pace. Each runs on a thread that may block, hands chunks to a small queue, and ends when
//! the reader goes. Deliberately absent: the layout of outputs (see `outputs`).

use crate::outputs::{CHUNK, Error, PartOutput, Stream, TaskOutput};
use crate::sandbox::{Kind, Sandboxes};
use smalti_proto::v1::{self, agent_service_client::AgentServiceClient, read_reply, sandbox_read};
use smalti_types::{ItemRange, ItemSet, TaskKey};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Reads at a time; more are refused.
const MOST_READS: usize = 64;
/// Chunks that wait for the network.
const QUEUE: usize = 8;
/// How often a reader that follows looks for more. The end of the task wakes nobody earlier than this.
const FOLLOW_EVERY: Duration = Duration::from_millis(50);
/// Entries of one listing.
const MOST_ENTRIES: usize = 10_000;

/// Serves reads. Clones share the bound.
#[derive(Debug, Clone)]
pub(crate) struct Reads {
    sandboxes: Sandboxes,
    slots: Arc<Semaphore>,
}

/// One entry of a listing.
#[derive(Debug, serde::Serialize)]
struct ListEntry {
    name: String,
    /// `file`, `dir` or `other`.
    #[serde(rename = "type")]
    kind: &'static str,
    size: u64,
}

impl Reads {
    pub(crate) fn new(sandboxes: Sandboxes) -> Self {
        Self { sandboxes, slots: Arc::new(Semaphore::new(MOST_READS)) }
    }

    /// Starts one read, or says why not.
    ///
    /// # Errors
    /// A sentence for the reader.
    pub(crate) fn start(&self, request: v1::ReadRequest, mut client: AgentServiceClient<Channel>) -> Result<(), String> {
        let slot =
            self.slots.clone().try_acquire_owned().map_err(|_| format!("{MOST_READS} reads run on this agent already: try again"))?;
        let read = request.read.ok_or("a read of nothing")?;
        let key = TaskKey::try_from(read.task.ok_or("a read of no task")?).map_err(|e| e.to_string())?;
        let what = read.what.ok_or("a read of nothing in particular")?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let first = v1::ReadReply { message: Some(read_reply::Message::ReadId(request.read_id)) };
        sender.try_send(first).map_err(|e| e.to_string())?;
        let sandboxes = self.sandboxes.clone();
        tokio::task::spawn_blocking(move || {
            let _slot = slot;
            match serve(&sandboxes, &key, what, &sender) {
                Ok(()) | Err(Error::Closed) => {}
                Err(e) => {
                    let _ = sender.blocking_send(v1::ReadReply { message: Some(read_reply::Message::Error(e.to_string())) });
                }
            }
        });
        tokio::spawn(async move {
            if let Err(status) = client.serve_read(ReceiverStream::new(receiver)).await {
                tracing::debug!(read = request.read_id, "a read ended early: {}", status.message());
            }
        });
        Ok(())
    }
}

fn serve(sandboxes: &Sandboxes, key: &TaskKey, what: sandbox_read::What, to: &mpsc::Sender<v1::ReadReply>) -> Result<(), Error> {
    match what {
        sandbox_read::What::Output(read) => output(sandboxes, key, &read, to),
        sandbox_read::What::File(path) => file(sandboxes, key, &path, to),
        sandbox_read::What::List(path) => list(sandboxes, key, &path, to),
    }
}

fn output(sandboxes: &Sandboxes, key: &TaskKey, read: &v1::OutputRead, to: &mpsc::Sender<v1::ReadReply>) -> Result<(), Error> {
    let kind = sandboxes.find(key)?;
    let streams = match read.stream() {
        v1::OutputStream::Stdout => vec![Stream::Out],
        v1::OutputStream::Stderr => vec![Stream::Err],
        v1::OutputStream::Both => vec![Stream::Out, Stream::Err],
    };
    let mut sink = |item: Option<u64>, stream: Stream, bytes: &[u8]| {
        let stream = if stream == Stream::Out { v1::OutputStream::Stdout } else { v1::OutputStream::Stderr };
        send(to, item, stream, bytes)
    };
    let mut part = (kind == Kind::Part).then(|| {
        let wanted =
            read.items.as_ref().map(|set| set.ranges.iter().map(|r| ItemRange { first: r.first, end: r.end }).collect::<ItemSet>());
        PartOutput::new(key.clone(), wanted, streams.clone())
    });
    let mut files: Vec<TaskOutput> = streams.iter().map(|stream| TaskOutput::new(key.clone(), *stream, read.tail_lines)).collect();
    loop {
        // Looked at before reading: what was written until the end is then read.
        let ended = sandboxes.has_ended(key);
        match &mut part {
            Some(part) => part.poll(sandboxes, &mut sink)?,
            None => files.iter_mut().try_for_each(|f| f.poll(sandboxes, &mut sink))?,
        }
        if ended || !read.follow || part.as_ref().is_some_and(PartOutput::is_complete) {
            return part.map_or(Ok(()), |part| part.verdict());
        }
        if to.is_closed() {
            return Err(Error::Closed);
        }
        std::thread::sleep(FOLLOW_EVERY);
    }
}

fn file(sandboxes: &Sandboxes, key: &TaskKey, path: &str, to: &mpsc::Sender<v1::ReadReply>) -> Result<(), Error> {
    if sandboxes.find(key)? == Kind::Task
        && let Some(stream) = [Stream::Out, Stream::Err].into_iter().find(|s| path.trim_start_matches('/') == s.task_file())
    {
        let mut sink = |_: Option<u64>, _: Stream, bytes: &[u8]| send(to, None, v1::OutputStream::Stdout, bytes);
        return TaskOutput::new(key.clone(), stream, None).poll(sandboxes, &mut sink);
    }
    let mut file = sandboxes.open(key, path, false)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = file.read(&mut buffer).map_err(|source| Error::Io { key: key.clone(), file: path.to_owned(), source })?;
        if n == 0 {
            return Ok(());
        }
        send(to, None, v1::OutputStream::Stdout, &buffer[..n])?;
    }
}

fn list(sandboxes: &Sandboxes, key: &TaskKey, path: &str, to: &mpsc::Sender<v1::ReadReply>) -> Result<(), Error> {
    let failed = |source: std::io::Error| Error::Io { key: key.clone(), file: path.to_owned(), source };
    let mut entries = Vec::new();
    if sandboxes.find(key)? == Kind::Task && path.trim_matches(['/', '.']).is_empty() {
        // They lie elsewhere, and nothing else need be there.
        for stream in [Stream::Out, Stream::Err] {
            let Some(output) = sandboxes.task_output(key, stream.number())? else { continue };
            let end = sandboxes.task_output_end(key, stream.number(), &output.file).map_err(failed)?;
            entries.push(ListEntry { name: stream.task_file().into(), kind: "file", size: end.saturating_sub(output.from) });
        }
        match sandboxes.open(key, path, true) {
            Ok(directory) => list_directory(&directory, &mut entries).map_err(failed)?,
            Err(e) => tracing::debug!(%key, "it has no directory: {e}"),
        }
    } else {
        list_directory(&sandboxes.open(key, path, true)?, &mut entries).map_err(failed)?;
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    entries.dedup_by(|a, b| a.name == b.name);
    let json = serde_json::to_vec(&entries).map_err(|e| failed(e.into()))?;
    json.chunks(CHUNK).try_for_each(|chunk| send(to, None, v1::OutputStream::Stdout, chunk))
}

fn list_directory(directory: &std::fs::File, entries: &mut Vec<ListEntry>) -> std::io::Result<()> {
    // By its descriptor, so that nothing can be put in the path's place meanwhile.
    let listing = std::fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
    for entry in listing.take(MOST_ENTRIES) {
        // Neither follows links. What has gone meanwhile is left out.
        let Ok((entry, meta)) = entry.and_then(|e| e.metadata().map(|m| (e, m))) else { continue };
        let kind = if meta.is_file() {
            "file"
        } else if meta.is_dir() {
            "dir"
        } else {
            "other"
        };
        entries.push(ListEntry { name: entry.file_name().to_string_lossy().into_owned(), kind, size: meta.len() });
    }
    Ok(())
}

fn send(to: &mpsc::Sender<v1::ReadReply>, item: Option<u64>, stream: v1::OutputStream, bytes: &[u8]) -> Result<(), Error> {
    let chunk = v1::OutputChunk { item, stream: stream.into(), data: bytes::Bytes::copy_from_slice(bytes), attempt: 0 };
    to.blocking_send(v1::ReadReply { message: Some(read_reply::Message::Chunk(chunk)) }).map_err(|_| Error::Closed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_types::{Bytes, FrameworkId, TaskId};
    use std::io::Write;

    fn key() -> TaskKey {
        TaskKey { framework: FrameworkId::new("F").unwrap(), task: TaskId::new("t").unwrap(), attempt: 0 }
    }

    fn data(mut from: mpsc::Receiver<v1::ReadReply>) -> String {
        let mut all = Vec::new();
        while let Some(reply) = from.blocking_recv() {
            if let Some(read_reply::Message::Chunk(chunk)) = reply.message {
                all.extend(chunk.data);
            }
        }
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn a_reader_that_follows_gets_everything_until_the_end_of_the_task() {
        let dir = tempfile::tempdir().unwrap();
        let (all, _collector) = Sandboxes::start(dir.path(), Bytes::gib(1), &std::collections::BTreeMap::new()).unwrap();
        all.make(&key(), Kind::Task, false, false).unwrap();
        let (to, from) = mpsc::channel(QUEUE);
        let reader = std::thread::spawn({
            let all = all.clone();
            move || output(&all, &key(), &v1::OutputRead { follow: true, ..Default::default() }, &to)
        });
        let mut stdout = std::fs::File::from(all.begin_task(&key()).unwrap()[0].try_clone().unwrap());
        stdout.write_all(b"first\n").unwrap();
        std::thread::sleep(FOLLOW_EVERY);
        stdout.write_all(b"second\n").unwrap();
        all.ended(&key());
        // The next one in the same files.
        let next = TaskKey { attempt: 1, ..key() };
        all.make(&next, Kind::Task, false, false).unwrap();
        std::fs::File::from(all.begin_task(&next).unwrap()[0].try_clone().unwrap()).write_all(b"not its own\n").unwrap();
        assert_eq!(data(from), "first\nsecond\n");
        reader.join().unwrap().unwrap();
    }

    #[test]
    fn a_directory_is_listed() {
        let dir = tempfile::tempdir().unwrap();
        let (all, _collector) = Sandboxes::start(dir.path(), Bytes::gib(1), &std::collections::BTreeMap::new()).unwrap();
        let path = all.make(&key(), Kind::Part, false, false).unwrap();
        std::fs::write(path.join("b"), "12").unwrap();
        std::fs::create_dir(path.join("a")).unwrap();
        let (to, from) = mpsc::channel(QUEUE);
        list(&all, &key(), "/", &to).unwrap();
        drop(to);
        let entries: serde_json::Value = serde_json::from_str(&data(from)).unwrap();
        assert_eq!((entries[0]["name"].as_str(), entries[0]["type"].as_str()), (Some("a"), Some("dir")));
        assert_eq!((entries[1]["name"].as_str(), entries[1]["size"].as_u64()), (Some("b"), Some(2)));
        assert!(list(&all, &key(), "../..", &mpsc::channel(1).0).is_err());
    }
}
