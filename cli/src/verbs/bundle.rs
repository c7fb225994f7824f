//! `smalti bundle push|ls|inspect|rm`: the cluster's store.

use crate::bundle::{Source, fetch, inspect, store};
use crate::cluster::{Bundles, Cluster, ClusterOptions};
use crate::failure::{Exit, Failure, NO_BUNDLE, Result, SUCCESS, io_text};
use crate::output::{self, OutputOptions, or_dash};
use crate::views::BundleView;
use clap::{Args, Subcommand};
use serde_json::json;
use smalti_proto::v1::{BundleDigest, Empty};
use smalti_types::{Bytes, Digest};
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use tokio_stream::StreamExt;

/// Largest bundle that is read to be inspected, in bytes.
const MAX_INSPECTED: u64 = 1 << 30;

#[derive(Debug, Args)]
pub(crate) struct Bundle {
    #[command(subcommand)]
    verb: BundleVerb,
}

#[derive(Debug, Subcommand)]
enum BundleVerb {
    /// Upload a file, unless the store has it, and print its digest
    #[command(after_help = "Examples:\n  smalti bundle push hello.wasm\n  smalti run $(smalti bundle push hello.wasm)")]
    Push {
        #[command(flatten)]
        cluster: ClusterOptions,
        #[command(flatten)]
        output: OutputOptions,
        /// The file
        file: PathBuf,
    },
    /// List what the store has
    #[command(after_help = "Examples:\n  smalti bundle ls\n  smalti bundle ls -o json")]
    Ls {
        #[command(flatten)]
        cluster: ClusterOptions,
        #[command(flatten)]
        output: OutputOptions,
    },
    /// Show what is inside a bundle
    #[command(
        after_help = "Examples:\n  smalti bundle inspect hello.wasm\n  smalti bundle inspect -o json blake3:<hex>\n  smalti bundle inspect https://example.org/tool.wasm#sha256=<hex>"
    )]
    Inspect {
        #[command(flatten)]
        cluster: ClusterOptions,
        #[command(flatten)]
        output: OutputOptions,
        /// A file of this machine, a digest in the store, or a URI, which is fetched by this machine and with this environment's credentials
        #[arg(value_name = "FILE|DIGEST|URI")]
        bundle: OsString,
    },
    /// Remove a bundle from the store
    #[command(after_help = "Examples:\n  smalti bundle rm blake3:<hex>")]
    Rm {
        #[command(flatten)]
        cluster: ClusterOptions,
        /// Its digest
        digest: Digest,
    },
}

impl Bundle {
    pub(crate) async fn run(self) -> Result<Exit> {
        match self.verb {
            BundleVerb::Push { cluster, output, file } => push(&cluster, &output, &file).await?,
            BundleVerb::Ls { cluster, output } => ls(&cluster, &output).await?,
            BundleVerb::Inspect { cluster, output, bundle } => inspect(&cluster, &output, &bundle).await?,
            BundleVerb::Rm { cluster, digest } => rm(&cluster, digest).await?,
        }
        Ok(SUCCESS)
    }
}

/// Any file may be pushed, not only Wasm: inputs live in the same store.
async fn push(cluster: &ClusterOptions, output: &OutputOptions, file: &Path) -> Result<()> {
    let (opened, _) = store::open(file).map_err(|why| Failure::with_code(NO_BUNDLE, format!("no file at {}: {why}", file.display())))?;
    let bundles = Cluster::connect(cluster).await?.bundles();
    let name = Source::File(file.into()).base_name();
    let stored = store::put(&bundles, opened, &name).await?;
    if output.is_json() {
        return output::json(&json!({ "digest": stored.digest, "size": stored.length, "name": name, "existed": stored.existed }));
    }
    output::line(&stored.digest.to_string())
}

async fn ls(cluster: &ClusterOptions, output: &OutputOptions) -> Result<()> {
    let mut bundles = Cluster::connect(cluster).await?.bundles();
    let list = bundles.list(Empty {}).await.map_err(|s| Failure::rpc("listing bundles", &s))?.into_inner();
    let views: Vec<_> = list.bundles.into_iter().map(BundleView::from).collect();
    output::list(output, &views, &["DIGEST", "SIZE", "CREATED", "NAME"], |b| {
        vec![b.digest.clone(), Bytes(b.size).to_string(), or_dash(b.created_at.as_deref().unwrap_or_default()), b.name.clone()]
    })
}

async fn rm(cluster: &ClusterOptions, digest: Digest) -> Result<()> {
    let mut bundles = Cluster::connect(cluster).await?.bundles();
    let request = BundleDigest { digest: digest.as_bytes().to_vec().into() };
    match bundles.remove(request).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == tonic::Code::NotFound => {
            Err(Failure::with_code(NO_BUNDLE, format!("no bundle {digest} in the store; `smalti bundle ls` lists all")))
        }
        Err(status) => Err(Failure::rpc(&format!("removing {digest}"), &status)),
    }
}

async fn inspect(cluster: &ClusterOptions, output: &OutputOptions, named: &OsString) -> Result<()> {
    let bytes = match Source::parse(named)? {
        Source::File(path) => read_file(&path)?,
        Source::Stored(digest) => download(&Cluster::connect(cluster).await?.bundles(), digest).await?,
        Source::Uri { uri, pin } => fetch::read(&uri, pin, MAX_INSPECTED).await?,
    };
    let found = inspect::inspect(&smalti_fetch::shown(&named.to_string_lossy()), &bytes)?;
    if output.is_json() { output::json(&found) } else { output::line(&describe(&found)) }
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    let no_bundle = |why: String| Failure::with_code(NO_BUNDLE, format!("no bundle at {}: {why}", path.display()));
    let (file, length) = store::open(path).map_err(no_bundle)?;
    check_size(length, &path.display().to_string())?;
    let mut bytes = Vec::new();
    file.take(MAX_INSPECTED).read_to_end(&mut bytes).map_err(|e| no_bundle(io_text(&e)))?;
    Ok(bytes)
}

fn check_size(length: u64, name: &str) -> Result<()> {
    if length > MAX_INSPECTED {
        return Err(Failure::new(format!("{name} has {}: bundles above {} are not inspected", Bytes(length), Bytes(MAX_INSPECTED))));
    }
    Ok(())
}

async fn download(bundles: &Bundles, digest: Digest) -> Result<Vec<u8>> {
    let failed = |status: &tonic::Status| match status.code() {
        tonic::Code::NotFound => crate::bundle::not_stored(digest),
        _ => Failure::rpc(&format!("reading {digest}"), status),
    };
    let request = BundleDigest { digest: digest.as_bytes().to_vec().into() };
    let mut stream = bundles.clone().get(request).await.map_err(|s| failed(&s))?.into_inner();
    let mut bytes = Vec::new();
    while let Some(part) = stream.next().await {
        bytes.extend_from_slice(&part.map_err(|s| failed(&s))?.data);
        check_size(bytes.len() as u64, &digest.to_string())?;
    }
    if Digest::of(&bytes) != digest {
        return Err(Failure::new(format!("what the store sent is not {digest}: it is damaged on the way or in the store")));
    }
    Ok(bytes)
}

fn describe(found: &inspect::Inspection) -> String {
    let named = |list: &[inspect::Extern]| -> Vec<String> {
        list.iter().map(|e| e.module.as_ref().map_or_else(|| e.name.clone(), |m| format!("{m}.{}", e.name))).collect()
    };
    let memory = found.memory.iter().map(|m| match m.maximum {
        Some(most) => format!("{} at the start, {} at most", Bytes(m.initial), Bytes(most)),
        None => format!("{} at the start, no maximum", Bytes(m.initial)),
    });
    let producers = found.producers.iter().map(|(field, values)| format!("{field}: {}", values.join(", ")));
    let rows: Vec<(&str, Vec<String>)> = vec![
        ("digest", vec![found.digest.clone()]),
        ("size", vec![format!("{} ({} bytes)", Bytes(found.size), found.size)]),
        ("kind", vec![found.kind.to_owned()]),
        ("guest", found.guest.iter().cloned().collect()),
        ("imports", named(&found.imports)),
        ("exports", named(&found.exports)),
        ("memory", memory.collect()),
        ("custom sections", found.custom_sections.iter().map(|s| format!("{} ({})", s.name, Bytes(s.size as u64))).collect()),
        ("producers", producers.collect()),
        ("needs", found.needs.clone()),
        ("files", found.files.iter().map(|f| format!("{} ({})", f.path, Bytes(f.size))).collect()),
    ];
    let is_archive = found.kind == "archive";
    let lines = rows.into_iter().filter(|(name, _)| is_archive || !matches!(*name, "guest" | "files")).flat_map(|(name, values)| {
        let values = if values.is_empty() { vec!["none".to_owned()] } else { values };
        values.into_iter().enumerate().map(move |(i, value)| vec![if i == 0 { name.to_owned() } else { String::new() }, value])
    });
    output::table(None, lines)
}
