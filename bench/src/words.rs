//! A word count of a large text beside the same program compiled natively, over the same splits with as many processes.

use crate::Effort;
use crate::figures::Figures;
use anyhow::{Context, Result, bail};
use smalti_tests::{AgentConfig, Cluster, Config, Paths, workspace_root};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Bytes of a split.
const SPLIT: usize = 4 << 20;
/// Processes at once, here and there.
const PROCESSES: usize = 2;

pub(crate) fn measure(effort: Effort, figures: &mut Figures) -> Result<()> {
    let agent = AgentConfig { cpus: PROCESSES.to_string(), mem: "4GiB".into(), ..AgentConfig::default() };
    let cluster = Cluster::start(Config { agents: vec![agent], env: vec![("RUST_LOG".into(), "warn".into())], ..Config::default() })?;
    let text = std::fs::read(workspace_root().join("wasm-examples/data/kjv.txt")).context("reading the text")?;
    let large: Vec<u8> = text.iter().copied().cycle().take(effort.text_bytes).collect();
    let splits = splits(&large);
    let dir = cluster.dir().join("words");
    std::fs::create_dir(&dir).context("making a directory")?;
    let files: Vec<PathBuf> = splits
        .iter()
        .enumerate()
        .map(|(n, split)| {
            let path = dir.join(format!("split-{n:04}"));
            std::fs::write(&path, split).with_context(|| format!("writing {}", path.display()))?;
            Ok(path)
        })
        .collect::<Result<_>>()?;
    let input = dir.join("text");
    std::fs::write(&input, &large).with_context(|| format!("writing {}", input.display()))?;

    let native = Paths::target().join("release/wordcount");
    let guest = cluster.paths.guest("wordcount")?.display().to_string();
    let (input, split) = (input.display().to_string(), SPLIT.to_string());
    let args = ["map", "--cpus", "1", &guest, "--inputs", &input, "--split", &split, "--reduce", &guest, "--reduce-arg", "--merge"];
    // The text lies in the cluster's store, the code is compiled, the executor is there.
    let expected = cluster.ok(&args)?;
    let (mut here, mut there) = (Vec::new(), Vec::new());
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let megabytes = large.len() as f64 / 1e6;
    for _ in 0..effort.repetitions {
        let start = Instant::now();
        let output = natively(&native, &files, &dir)?;
        there.push(megabytes / start.elapsed().as_secs_f64());
        if output != expected {
            bail!("the native program counted something else");
        }
        let start = Instant::now();
        let output = cluster.ok(&args)?;
        here.push(megabytes / start.elapsed().as_secs_f64());
        if output != expected {
            bail!("the cluster counted something else");
        }
    }
    figures.add("wordcount_native_mb_per_s", there);
    figures.add("wordcount_mb_per_s", here);
    figures.ratio("wordcount_ratio", "wordcount_mb_per_s", "wordcount_native_mb_per_s");
    Ok(())
}

/// Cut as the cluster cuts: behind the line in which a split's length is reached.
fn splits(text: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut all) = (text, Vec::new());
    while rest.len() > SPLIT {
        let end = rest[SPLIT..].iter().position(|b| *b == b'\n').map_or(rest.len(), |n| SPLIT + n + 1);
        let (split, later) = rest.split_at(end);
        all.push(split);
        rest = later;
    }
    all.push(rest);
    all
}

/// Some processes at a time, each with a split on its stdin and a file behind its stdout; then one that merges.
fn natively(program: &Path, splits: &[PathBuf], dir: &Path) -> Result<String> {
    let next = AtomicUsize::new(0);
    let count = |n: usize| -> Result<()> {
        let output = File::create(dir.join(format!("counts-{n:04}"))).context("making an output")?;
        let status = Command::new(program).stdin(File::open(&splits[n])?).stdout(output).status();
        let status = status.with_context(|| format!("running {}", program.display()))?;
        anyhow::ensure!(status.success(), "{} failed: {status}", program.display());
        Ok(())
    };
    std::thread::scope(|scope| {
        let work = || loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= splits.len() {
                return Ok::<_, anyhow::Error>(());
            }
            count(n)?;
        };
        let threads: Vec<_> = (0..PROCESSES).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|t| t.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })?;
    let mut merge = Command::new(program).arg("--merge").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("merging")?;
    let mut stdin = merge.stdin.take().context("no stdin")?;
    let (files, dir) = (splits.len(), dir.to_owned());
    let feed = std::thread::spawn(move || -> Result<()> {
        for n in 0..files {
            stdin.write_all(&std::fs::read(dir.join(format!("counts-{n:04}")))?)?;
        }
        Ok(())
    });
    let output = merge.wait_with_output().context("merging")?;
    feed.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    Ok(String::from_utf8(output.stdout)?)
}
