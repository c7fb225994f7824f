//! A task's standard input as a part of a file: one object, or the outputs of earlier array items merged in item order.

use super::inputs::{Inputs, Kept, Whose};
use super::turns::Turns;
use super::{Failure, ReadyStdin, Stop};
use futures::StreamExt;
use smalti_proto::client::outputs::{OutputsError, merged_outputs};
use smalti_proto::v1::OutputStream;
use smalti_types::task::OutputSource;
use smalti_types::{Bytes, FrameworkId, Reason, Stdin};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// The merged outputs in a task's directory.
pub(super) const STDIN_FILE: &str = ".stdin";
/// Bytes written at a time.
const BUFFER: usize = 256 << 10;

/// How outputs are read.
#[derive(Debug, Clone)]
pub(crate) struct OutputReader {
    /// `host:port`.
    pub(crate) master: String,
    /// Tries in all.
    pub(crate) attempts: u32,
    /// Pause before the second try, doubled for each further one.
    pub(crate) backoff: Duration,
    /// Most bytes of a merged input.
    pub(crate) limit: Bytes,
    /// Merging is a transfer like others.
    pub(crate) transfers: Turns,
}

impl OutputReader {
    /// Makes a standard input ready; `None` where there is nothing to read.
    pub(crate) async fn prepare(
        &self,
        stdin: &Stdin,
        whose: Whose<'_>,
        directory: &Path,
        inputs: &Arc<Inputs>,
    ) -> Result<(Option<ReadyStdin>, Option<Kept>), Stop> {
        match stdin {
            Stdin::Empty | Stdin::Split => Ok((None, None)),
            Stdin::Object(input) => {
                let fresh = inputs.get(input, whose).await?;
                Ok((Some(ReadyStdin { file: fresh.file, offset: 0, length: fresh.length }), Some(fresh.kept)))
            }
            Stdin::Outputs(sources) => {
                let _turn = self.transfers.take(whose.1).await;
                Ok((Some(self.merge(whose.1, sources, directory).await?), None))
            }
        }
    }

    async fn merge(&self, framework: &FrameworkId, sources: &[OutputSource], directory: &Path) -> Result<ReadyStdin, Failure> {
        let mut pause = self.backoff;
        let mut attempt = 1;
        loop {
            match self.merge_once(framework, sources, directory).await {
                Ok(stdin) => return Ok(stdin),
                Err((failure, true)) if attempt < self.attempts => {
                    tracing::debug!(error = %failure, attempt, "reading outputs broke, trying again");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                    attempt += 1;
                }
                Err((failure, _)) => return Err(failure),
            }
        }
    }

    /// One try; an error says whether another may help.
    async fn merge_once(&self, framework: &FrameworkId, sources: &[OutputSource], directory: &Path) -> Result<ReadyStdin, (Failure, bool)> {
        let failed = |why: String| Failure::new(Reason::InputFailed, format!("the outputs of earlier items cannot be read: {why}"));
        let path = directory.join(STDIN_FILE);
        let disk = |e: std::io::Error| (failed(format!("cannot write {}: {e}", path.display())), false);
        tokio::fs::create_dir_all(directory).await.map_err(disk)?;
        let file = tokio::fs::File::create(&path).await.map_err(disk)?;
        let mut file = tokio::io::BufWriter::with_capacity(BUFFER, file);
        let channel = smalti_proto::client::connect(&self.master).await.map_err(|e| (failed(e.to_string()), true))?;
        let mut merged = Box::pin(merged_outputs(channel, framework.clone(), sources.to_vec(), OutputStream::Stdout));
        let mut length = 0_u64;
        while let Some(chunk) = merged.next().await {
            let chunk = chunk.map_err(|e| (failed(e.to_string()), matches!(e, OutputsError::Transport { .. })))?;
            length += chunk.data.len() as u64;
            if length > self.limit.0 {
                return Err((failed(format!("together they are larger than {}", self.limit)), false));
            }
            file.write_all(&chunk.data).await.map_err(disk)?;
        }
        file.flush().await.map_err(disk)?;
        let file = File::open(&path).map_err(disk)?;
        Ok(ReadyStdin { file: Arc::new(file), offset: 0, length })
    }
}

#[cfg(test)]
mod tests;
