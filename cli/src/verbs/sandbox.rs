//! `smalti sandbox ls|cat|cp`: the files of a task, read from its agent through the master.

use crate::cluster::{Cluster, ClusterOptions, Jobs};
use crate::failure::{Exit, Failure, Result, SUCCESS, io_text};
use crate::output::{self, OutputOptions};
use clap::{Args, Subcommand};
use serde_json::{Map, Value};
use smalti_proto::v1::{SandboxRequest, read_reply, sandbox_request};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use tokio_stream::StreamExt;

/// Longest listing that is read, in bytes.
const MAX_LISTING: usize = 64 << 20;

#[derive(Debug, Args)]
pub(crate) struct Sandbox {
    #[command(subcommand)]
    verb: SandboxVerb,
}

#[derive(Debug, Args)]
struct Where {
    #[command(flatten)]
    cluster: ClusterOptions,
    /// Of this item of an array
    #[arg(long, value_name = "I")]
    item: Option<u64>,
    /// The task, and a path below its directory
    #[arg(value_name = "TASK[:PATH]")]
    path: String,
}

#[derive(Debug, Subcommand)]
enum SandboxVerb {
    /// List a directory
    #[command(after_help = "Examples:\n  smalti sandbox ls $task\n  smalti sandbox ls -o json $task:some/dir")]
    Ls {
        #[command(flatten)]
        at: Where,
        #[command(flatten)]
        output: OutputOptions,
    },
    /// Print a file
    #[command(after_help = "Examples:\n  smalti sandbox cat $task:stdout")]
    Cat {
        #[command(flatten)]
        at: Where,
    },
    /// Copy a file to this machine
    #[command(after_help = "Examples:\n  smalti sandbox cp $task:stdout\n  smalti sandbox cp $task:stdout /tmp/out.txt")]
    Cp {
        #[command(flatten)]
        at: Where,
        /// A file or directory of this machine [default: the file's own name, here]
        to: Option<PathBuf>,
    },
}

impl Sandbox {
    pub(crate) async fn run(self) -> Result<Exit> {
        match self.verb {
            SandboxVerb::Ls { at, output } => ls(&at, &output).await?,
            SandboxVerb::Cat { at } => {
                let file = at.file()?.to_owned();
                at.read(sandbox_request::What::File(file), output::write).await?;
            }
            SandboxVerb::Cp { at, to } => cp(&at, to).await?,
        }
        Ok(SUCCESS)
    }
}

impl Where {
    /// Task and path; ids have no colon, paths may.
    fn split(&self) -> (&str, &str) {
        let (task, path) = self.path.split_once(':').unwrap_or((&self.path, ""));
        (task, path.trim_start_matches('/'))
    }

    fn file(&self) -> Result<&str> {
        match self.split() {
            (task, "") => {
                Err(Failure::new(format!("{task}: name a file of the task, like {task}:stdout; `smalti sandbox ls {task}` lists them")))
            }
            (_, file) => Ok(file),
        }
    }

    /// Reads what is asked for, piece by piece.
    async fn read(&self, what: sandbox_request::What, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut jobs: Jobs = Cluster::connect(&self.cluster).await?.jobs().await?;
        let doing = format!("reading {}", self.path);
        let request = SandboxRequest { task: self.split().0.to_owned(), item: self.item, what: Some(what) };
        let mut stream = jobs.sandbox(request).await.map_err(|s| Failure::rpc(&doing, &s))?.into_inner();
        while let Some(reply) = stream.next().await {
            match reply.map_err(|s| Failure::rpc(&doing, &s))?.message {
                Some(read_reply::Message::Chunk(chunk)) => take(&chunk.data)?,
                Some(read_reply::Message::Error(text)) => return Err(Failure::new(format!("{doing}: {}", output::printable(&text)))),
                Some(read_reply::Message::ReadId(_)) | None => {}
            }
        }
        Ok(())
    }
}

async fn ls(at: &Where, output: &OutputOptions) -> Result<()> {
    let mut bytes = Vec::new();
    let (_, dir) = at.split();
    at.read(sandbox_request::What::List(dir.to_owned()), |part| {
        if bytes.len() + part.len() > MAX_LISTING {
            return Err(Failure::new(format!("the listing of {} is longer than {MAX_LISTING} bytes", at.path)));
        }
        bytes.extend_from_slice(part);
        Ok(())
    })
    .await?;
    let entries: Vec<Map<String, Value>> =
        serde_json::from_slice(&bytes).map_err(|e| Failure::new(format!("the listing of {} cannot be read: {e}", at.path)))?;
    let columns = columns(&entries);
    let header: Vec<_> = columns.iter().map(|c| c.to_uppercase()).collect();
    let header: Vec<_> = header.iter().map(String::as_str).collect();
    output::list(output, &entries, &header, |entry| columns.iter().map(|c| cell(entry.get(*c))).collect())
}

/// The name first, then what else the agent says about files.
fn columns(entries: &[Map<String, Value>]) -> Vec<&str> {
    let all: BTreeSet<&str> = entries.iter().flat_map(Map::keys).map(String::as_str).collect();
    let first = ["name", "path"].into_iter().filter(|c| all.contains(c));
    first.chain(all.iter().copied().filter(|c| !matches!(*c, "name" | "path"))).collect()
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".into(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// Into a temporary file beside the target first: a copy that breaks off leaves nothing.
async fn cp(at: &Where, to: Option<PathBuf>) -> Result<()> {
    let file = at.file()?.to_owned();
    let target = target(&file, to)?;
    let dir = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |e: &std::io::Error| Failure::new(format!("writing {}: {}", target.display(), io_text(e)));
    let mut copy = tempfile::NamedTempFile::new_in(dir).map_err(|e| failed(&e))?;
    at.read(sandbox_request::What::File(file), |part| copy.write_all(part).map_err(|e| failed(&e))).await?;
    copy.persist(&target).map_err(|e| failed(&e.error))?;
    Ok(())
}

fn target(file: &str, to: Option<PathBuf>) -> Result<PathBuf> {
    let name = Path::new(file).file_name().ok_or_else(|| Failure::new(format!("{file} is not the name of a file")))?;
    Ok(match to {
        None => name.into(),
        Some(dir) if dir.is_dir() => dir.join(name),
        Some(path) => path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        at: Where,
    }

    #[test]
    fn a_path_begins_behind_the_first_colon() {
        let at = |text: &str| Command::try_parse_from(["x", text]).unwrap().at;
        assert_eq!(at("job-1.0:/a:b").split(), ("job-1.0", "a:b"));
        assert_eq!(at("job-1").split(), ("job-1", ""));
        assert!(at("job-1").file().is_err());
        assert_eq!(at("j:stdout").file().unwrap(), "stdout");
    }

    #[test]
    fn a_copy_keeps_its_name_in_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(target("a/stdout", None).unwrap(), Path::new("stdout"));
        assert_eq!(target("a/stdout", Some(dir.path().into())).unwrap(), dir.path().join("stdout"));
        assert_eq!(target("a/stdout", Some("x".into())).unwrap(), Path::new("x"));
        assert!(target("..", None).is_err());
    }

    #[test]
    fn the_name_is_the_first_column() {
        let entry = |text: &str| serde_json::from_str::<Map<String, Value>>(text).unwrap();
        let entries = [entry(r#"{"size":3,"name":"x"}"#), entry(r#"{"name":"y","kind":"dir"}"#)];
        assert_eq!(columns(&entries), ["name", "kind", "size"]);
    }
}
