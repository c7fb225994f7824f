//! Bringing bytes of the client to the cluster's content-addressed store.
//!
//! Owns hashing and the upload. What the store has for the role that asks is not sent again.

use crate::cluster::Bundles;
use crate::failure::{Failure, Result, io_text};
use crate::terminal;
use indicatif::ProgressBar;
use smalti_proto::v1::{PushChunk, PushStart, push_chunk};
use smalti_types::Digest;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};

/// Bytes of one message of an upload: well below the limit for messages, large enough that framing costs nothing.
const CHUNK: usize = 256 << 10;
/// Chunks read ahead of the network.
const READ_AHEAD: usize = 4;
/// Uploads from this size on show a progress bar, on a terminal.
const PROGRESS_FROM: u64 = 1 << 20;

/// Something the store has now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) digest: Digest,
    /// Bytes.
    pub(crate) length: u64,
    /// Whether it was there before.
    pub(crate) existed: bool,
}

/// Opens a regular file; anything else is refused with what it is.
pub(crate) fn open(path: &Path) -> std::result::Result<(File, u64), String> {
    // Asked before opening: opening a named pipe waits for its writer.
    let metadata = std::fs::metadata(path).map_err(|e| io_text(&e))?;
    if metadata.is_dir() {
        return Err("it is a directory".into());
    }
    if !metadata.is_file() {
        return Err("it is not a regular file".into());
    }
    let file = File::open(path).map_err(|e| io_text(&e))?;
    Ok((file, metadata.len()))
}

/// Hashes `file` and uploads it unless the store has it. `name` is for people.
pub(crate) async fn put<F: Read + Seek + Send + 'static>(bundles: &Bundles, mut file: F, name: &str) -> Result<Stored> {
    let read_failed = |e: &std::io::Error| Failure::new(format!("reading {name}: {}", io_text(e)));
    let hashed = tokio::task::block_in_place(|| {
        file.seek(SeekFrom::Start(0))?;
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(&mut file)?;
        file.seek(SeekFrom::Start(0))?;
        Ok::<_, std::io::Error>((hasher.count(), Digest::from(hasher.finalize())))
    });
    let (length, digest) = hashed.map_err(|e| read_failed(&e))?;
    if stat(bundles, digest, name).await?.is_some() {
        return Ok(Stored { digest, length, existed: true });
    }
    let bar = progress(length, name);
    let start = PushStart { digest: digest.as_bytes().to_vec().into(), length, name: name.to_owned(), role: bundles.role().to_owned() };
    let pushed = bundles.client().push(chunks(file, start, bar.clone())).await;
    bar.finish_and_clear();
    let info = pushed.map_err(|status| Failure::rpc(&format!("uploading {name} to the bundle store"), &status))?.into_inner();
    Ok(Stored { digest, length, existed: info.existed })
}

/// Length of what the store has under `digest`; `None` when it has nothing.
pub(crate) async fn stat(bundles: &Bundles, digest: Digest, name: &str) -> Result<Option<u64>> {
    match bundles.client().stat(bundles.named(digest)).await {
        Ok(info) => Ok(Some(info.into_inner().length)),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(status) => Err(Failure::rpc(&format!("looking for {name} in the bundle store"), &status)),
    }
}

/// The messages of one upload. A file that cannot be read any more ends the stream early: the store refuses what is too short.
fn chunks<F: Read + Send + 'static>(mut file: F, start: PushStart, bar: ProgressBar) -> impl Stream<Item = PushChunk> + Send + 'static {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    let left = start.length;
    tokio::task::spawn_blocking(move || {
        let mut left = left;
        while left > 0 {
            let mut data = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
            if file.read_exact(&mut data).is_err() {
                break;
            }
            left -= data.len() as u64;
            bar.inc(data.len() as u64);
            if sender.blocking_send(push_chunk::Message::Data(data.into())).is_err() {
                break;
            }
        }
    });
    tokio_stream::once(push_chunk::Message::Start(start))
        .chain(ReceiverStream::new(receiver))
        .map(|message| PushChunk { message: Some(message) })
}

fn progress(length: u64, name: &str) -> ProgressBar {
    if length <= PROGRESS_FROM {
        return ProgressBar::hidden();
    }
    terminal::bar(length, &format!("uploading {} {{wide_bar}} {{bytes}}/{{total_bytes}} {{eta}}", crate::output::printable(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn an_upload_is_a_start_and_then_the_bytes() {
        let bytes: Vec<u8> = (0..u8::MAX).cycle().take(CHUNK * 2 + 17).collect();
        let start = PushStart { length: bytes.len() as u64, name: "x".into(), ..Default::default() };
        let all: Vec<_> = chunks(std::io::Cursor::new(bytes.clone()), start, ProgressBar::hidden()).collect().await;
        assert!(matches!(all[0].message, Some(push_chunk::Message::Start(_))));
        let data: Vec<u8> = all[1..]
            .iter()
            .flat_map(|c| match &c.message {
                Some(push_chunk::Message::Data(d)) => d.to_vec(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!((all.len(), data), (4, bytes));
    }

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(open(dir.path()).unwrap_err(), "it is a directory");
        assert_eq!(open(Path::new("/dev/null")).unwrap_err(), "it is not a regular file");
        assert_eq!(open(&dir.path().join("none")).unwrap_err(), "no such file or directory");
    }
}
