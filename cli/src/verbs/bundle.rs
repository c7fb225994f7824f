//! `smalti bundle push|ls|inspect|rm|grant|revoke`: the cluster's store.

use crate::bundle::{Source, fetch, inspect, store};
use crate::cluster::{Bundles, Cluster, ClusterOptions};
use crate::failure::{Exit, Failure, NO_BUNDLE, Result, SUCCESS, io_text};
use crate::job::submit;
use crate::output::{self, OutputOptions, or_dash};
use crate::views::BundleView;
use clap::{Args, Subcommand};
use serde_json::json;
use smalti_proto::v1::{BundleQuery, BundleRight, Empty};
use smalti_types::{Bytes, Digest, Role};
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
    /// Upload a file, unless the store has it for this role, and print its digest
    #[command(
        after_help = "Examples:\n  smalti bundle push hello.wasm\n  smalti run $(smalti bundle push hello.wasm)\n  smalti run --role team-a $(smalti bundle push --role team-a hello.wasm)"
    )]
    Push {
        #[command(flatten)]
        cluster: ClusterOptions,
        #[command(flatten)]
        output: OutputOptions,
        /// Role that may use it then, beside those that may already [default: the scheduler's, `default`]
        #[arg(long)]
        role: Option<Role>,
        /// The file
        file: PathBuf,
    },
    /// List what the store has, and which roles may use it
    #[command(after_help = "Examples:\n  smalti bundle ls\n  smalti bundle ls --role team-a\n  smalti bundle ls -o json")]
    Ls {
        #[command(flatten)]
        cluster: ClusterOptions,
        #[command(flatten)]
        output: OutputOptions,
        /// Only what this role may use [default: all, as the operator sees it]
        #[arg(long)]
        role: Option<Role>,
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
        /// Role in which a digest is looked for in the store [default: as the operator]
        #[arg(long)]
        role: Option<Role>,
        /// A file of this machine, a digest in the store, or a URI, which is fetched by this machine and with this environment's credentials
        #[arg(value_name = "FILE|DIGEST|URI")]
        bundle: OsString,
    },
    /// Remove a bundle from the store, or one role's right to it
    #[command(after_help = "Examples:\n  smalti bundle rm blake3:<hex>\n  smalti bundle rm --role team-a blake3:<hex>")]
    Rm {
        #[command(flatten)]
        cluster: ClusterOptions,
        /// Take only this role's right away; the bundle goes when no role has one any more [default: the bundle and all rights]
        #[arg(long)]
        role: Option<Role>,
        /// Its digest
        digest: Digest,
    },
    /// Let a role use a bundle of the store
    #[command(
        after_help = "A bundle that is for all roles is left to this one, and to those that are named after it.\n\nExamples:\n  smalti bundle grant blake3:<hex> --role team-b"
    )]
    Grant {
        #[command(flatten)]
        right: RightOptions,
    },
    /// Take a role's right to a bundle of the store away
    #[command(
        after_help = "What an agent has fetched for the role already it may go on using there. A bundle that is for all roles\nis then for none until one is named with `smalti bundle grant`.\n\nExamples:\n  smalti bundle revoke blake3:<hex> --role team-b"
    )]
    Revoke {
        #[command(flatten)]
        right: RightOptions,
    },
}

#[derive(Debug, Args)]
struct RightOptions {
    #[command(flatten)]
    cluster: ClusterOptions,
    #[command(flatten)]
    output: OutputOptions,
    /// Whose right it is
    #[arg(long)]
    role: Role,
    /// The bundle's digest
    digest: Digest,
}

impl Bundle {
    pub(crate) async fn run(self) -> Result<Exit> {
        match self.verb {
            BundleVerb::Push { cluster, output, role, file } => push(&cluster, &output, role, &file).await?,
            BundleVerb::Ls { cluster, output, role } => ls(&cluster, &output, role.as_ref()).await?,
            BundleVerb::Inspect { cluster, output, role, bundle } => inspect((&cluster, role.as_ref()), &output, &bundle).await?,
            BundleVerb::Rm { cluster, role, digest } => rm(&cluster, role.as_ref(), digest).await?,
            BundleVerb::Grant { right } => allow(&right, true).await?,
            BundleVerb::Revoke { right } => allow(&right, false).await?,
        }
        Ok(SUCCESS)
    }
}

/// Any file may be pushed, not only Wasm: inputs live in the same store.
async fn push(cluster: &ClusterOptions, output: &OutputOptions, role: Option<Role>, file: &Path) -> Result<()> {
    let (opened, _) = store::open(file).map_err(|why| Failure::with_code(NO_BUNDLE, format!("no file at {}: {why}", file.display())))?;
    let cluster = Cluster::connect(cluster).await?;
    let role = match role {
        Some(role) => role,
        None => default_role(&cluster).await?,
    };
    let bundles = cluster.bundles(Some(&role));
    let name = Source::File(file.into()).base_name();
    let stored = store::put(&bundles, opened, &name).await?;
    if output.is_json() {
        return output::json(
            &json!({ "digest": stored.digest, "size": stored.length, "name": name, "role": role.as_str(), "existed": stored.existed }),
        );
    }
    output::line(&stored.digest.to_string())
}

/// The role of jobs that name none; without a scheduler, the one that frameworks have that name none.
async fn default_role(cluster: &Cluster) -> Result<Role> {
    let Ok(mut jobs) = cluster.jobs().await else { return Ok(Role::default()) };
    match jobs.defaults(Empty {}).await {
        Ok(defaults) => submit::named(&defaults.into_inner()),
        Err(status) if status.code() == tonic::Code::Unimplemented => Ok(Role::default()),
        Err(status) => Err(Failure::rpc("asking the scheduler for its default role", &status)),
    }
}

async fn ls(cluster: &ClusterOptions, output: &OutputOptions, role: Option<&Role>) -> Result<()> {
    let bundles = Cluster::connect(cluster).await?.bundles(role);
    let query = BundleQuery { role: bundles.role().to_owned() };
    let list = bundles.client().list(query).await.map_err(|s| Failure::rpc("listing bundles", &s))?.into_inner();
    let views: Vec<_> = list.bundles.into_iter().map(BundleView::from).collect();
    let row = |b: &BundleView| {
        vec![b.digest.clone(), Bytes(b.size).to_string(), or_dash(b.created_at.as_deref().unwrap_or_default()), b.name.clone()]
    };
    if role.is_some() {
        return output::list(output, &views, &["DIGEST", "SIZE", "CREATED", "NAME"], row);
    }
    output::list(output, &views, &["DIGEST", "SIZE", "CREATED", "ROLES", "NAME"], |b| {
        let mut cells = row(b);
        cells.insert(3, b.who());
        cells
    })
}

async fn rm(cluster: &ClusterOptions, role: Option<&Role>, digest: Digest) -> Result<()> {
    let bundles = Cluster::connect(cluster).await?.bundles(role);
    match bundles.client().remove(bundles.named(digest)).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == tonic::Code::NotFound => Err(crate::bundle::not_stored(digest, bundles.role())),
        Err(status) => Err(Failure::rpc(&format!("removing {digest}"), &status)),
    }
}

/// Grants or revokes, and says who may use the bundle then.
async fn allow(right: &RightOptions, may: bool) -> Result<()> {
    let RightOptions { cluster, output, role, digest } = right;
    let bundles = Cluster::connect(cluster).await?.bundles(None);
    let wire = BundleRight { digest: digest.as_bytes().to_vec().into(), role: role.to_string() };
    let mut client = bundles.client();
    let answer = if may { client.grant(wire).await } else { client.revoke(wire).await };
    let info = answer.map_err(|status| match status.code() {
        tonic::Code::NotFound => crate::bundle::not_stored(*digest, ""),
        _ => Failure::rpc(
            &format!("{} {digest} {} {role}", if may { "granting" } else { "revoking" }, if may { "to" } else { "from" }),
            &status,
        ),
    })?;
    let view = BundleView::from(info.into_inner());
    if output.is_json() { output::json(&view) } else { output::line(&format!("{digest} is for: {}", view.who())) }
}

async fn inspect((cluster, role): (&ClusterOptions, Option<&Role>), output: &OutputOptions, named: &OsString) -> Result<()> {
    let bytes = match Source::parse(named)? {
        Source::File(path) => read_file(&path)?,
        Source::Stored(digest) => download(&Cluster::connect(cluster).await?.bundles(role), digest).await?,
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
        tonic::Code::NotFound => crate::bundle::not_stored(digest, bundles.role()),
        _ => Failure::rpc(&format!("reading {digest}"), status),
    };
    let mut stream = bundles.client().get(bundles.named(digest)).await.map_err(|s| failed(&s))?.into_inner();
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
