//! From flags to a job that the scheduler has.

use super::options::TaskOptions;
use super::{Link, inputs, stdin};
use crate::bundle::{Source, resolve};
use crate::cluster::{Bundles, Cluster};
use crate::failure::{Failure, NO_BUNDLE, Result};
use clap::Args;
use smalti_fetch::{Location, Pin, shown};
use smalti_proto::v1::{self, SubmitRequest, submit_request};
use smalti_types::{Bytes, Role};
use std::ffi::{OsStr, OsString};

/// Smallest split: less would be all overhead, and a mistaken unit makes millions of items.
const SMALLEST_SPLIT: Bytes = Bytes(1 << 10);

/// What makes a job a map.
#[derive(Debug, Clone, Args)]
pub(crate) struct MapOptions {
    /// One item per index, 0 to N-1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "inputs", help_heading = "Items")]
    pub(crate) items: Option<u64>,
    /// One item per split of these; an item reads its split on stdin (repeatable)
    #[arg(long, value_name = "URI|FILE|DIR|GLOB", num_args = 1, help_heading = "Items")]
    pub(crate) inputs: Vec<OsString>,
    /// About how long a split is; splits end at line ends; none: one item per object [default: the scheduler's, 4MiB]
    #[arg(long, value_name = "SIZE|none", value_parser = split, requires = "inputs", conflicts_with = "items", help_heading = "Items")]
    pub(crate) split: Option<Bytes>,
    /// Read .gz and .zst as they are; otherwise items read them unpacked, each as one split
    #[arg(long, requires = "inputs", conflicts_with = "items", help_heading = "Items")]
    pub(crate) no_unpack: bool,
    /// One last task that reads all items' stdout, in item order, on its stdin
    #[arg(long, value_name = "BUNDLE", help_heading = "Items")]
    pub(crate) reduce: Option<OsString>,
    /// An argument of the reduce (repeatable)
    #[arg(long, value_name = "ARG", requires = "reduce", allow_hyphen_values = true, help_heading = "Items")]
    pub(crate) reduce_arg: Vec<String>,
    /// Map and reduce this often; a round's result is the file /smalti/state of the next
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Items")]
    pub(crate) rounds: u32,
    /// The file /smalti/state of the first round
    #[arg(long, value_name = "FILE|URI", help_heading = "Items")]
    pub(crate) state: Option<OsString>,
}

impl MapOptions {
    /// Whether items are named at all.
    pub(crate) fn is_map(&self) -> bool {
        self.items.is_some() || !self.inputs.is_empty()
    }
}

fn split(text: &str) -> std::result::Result<Bytes, String> {
    if text == "none" {
        return Ok(Bytes(0));
    }
    let size = super::options::size(text)?;
    if size < SMALLEST_SPLIT { Err(format!("{size} is below the smallest split, {SMALLEST_SPLIT}")) } else { Ok(size) }
}

/// A job of one task.
pub(crate) async fn single(bundles: &Bundles, task: &TaskOptions, bundle: &OsStr, args: &[String]) -> Result<SubmitRequest> {
    let source = Source::parse(bundle)?;
    let mut spec = spec(bundles, task, &source, args).await?;
    spec.stdin = Some(stdin::resolve(bundles, task.stdin.as_deref(), true).await?);
    let job = v1::SingleJob { spec: Some(spec), resources: Some(task.resources()?), policy: Some(task.policy()), ports: task.ports };
    request(task, bundles.role(), &source, submit_request::Kind::Single(job))
}

/// A job of many items.
pub(crate) async fn map(bundles: &Bundles, task: &TaskOptions, map: &MapOptions, bundle: &OsStr, args: &[String]) -> Result<SubmitRequest> {
    check_map(task, map)?;
    let source = Source::parse(bundle)?;
    let mut item = spec(bundles, task, &source, args).await?;
    let items = match map.items {
        Some(count) => {
            item.stdin = Some(stdin::resolve(bundles, task.stdin.as_deref(), false).await?);
            v1::map_job::Items::Count(count)
        }
        None => {
            item.stdin = Some(v1::Stdin { source: Some(v1::stdin::Source::Split(v1::Empty {})) });
            v1::map_job::Items::Inputs(v1::InputList { inputs: inputs::split_objects(bundles, &map.inputs, map.no_unpack).await? })
        }
    };
    let reduce = match &map.reduce {
        Some(named) => Some(reduce(bundles, task, map, named, &item).await?),
        None => None,
    };
    let initial_state = match &map.state {
        Some(file) => Some(inputs::state(bundles, file).await?),
        None => None,
    };
    let job = v1::MapJob {
        spec: Some(item),
        resources: Some(task.resources()?),
        policy: Some(task.policy()),
        items: Some(items),
        split_bytes: map.split.map(|s| s.0),
        reduce,
        rounds: map.rounds,
        initial_state,
    };
    request(task, bundles.role(), &source, submit_request::Kind::Map(job))
}

/// Combinations that mean nothing.
fn check_map(task: &TaskOptions, map: &MapOptions) -> Result<()> {
    if task.ports > 0 {
        return Err(Failure::new("--ports: items of a map cannot listen; use `smalti run` for a task with ports"));
    }
    if task.exclusive {
        return Err(Failure::new(
            "--exclusive: items of a map may run more than once when an executor is lost; submit them one by one with `smalti run --exclusive`",
        ));
    }
    if !map.inputs.is_empty() && task.stdin.as_deref().is_some_and(|s| s != "none") {
        return Err(Failure::new("--stdin: with --inputs an item reads its split on stdin; use --input for a file that all items see"));
    }
    if map.rounds > 1 && map.reduce.is_none() {
        return Err(Failure::new("--rounds needs --reduce: the result of a round's reduce is what the next round starts from"));
    }
    Ok(())
}

/// The reduce sees the same files and environment as the items, and reads their stdout.
async fn reduce(bundles: &Bundles, task: &TaskOptions, map: &MapOptions, named: &OsStr, item: &v1::TaskSpec) -> Result<v1::ReduceStep> {
    let bundle = resolve(bundles, &Source::parse(named)?).await?;
    let spec = v1::TaskSpec { bundle: Some(bundle), args: map.reduce_arg.clone(), stdin: Some(stdin::empty()), ..item.clone() };
    Ok(v1::ReduceStep { spec: Some(spec), resources: Some(task.resources()?) })
}

/// Everything but stdin.
async fn spec(bundles: &Bundles, task: &TaskOptions, source: &Source, args: &[String]) -> Result<v1::TaskSpec> {
    task.check_supported()?;
    let env = task.environment()?;
    let bundle = resolve(bundles, source).await?;
    let files = inputs::guest_files(bundles, &task.input).await?;
    Ok(v1::TaskSpec {
        bundle: Some(bundle),
        args: args.to_vec(),
        env,
        stdin: None,
        inputs: files,
        limits: Some(task.limits()),
        isolation: task.isolation().into(),
        connect: task.connect.iter().cloned().map(v1::Endpoint::from).collect(),
        disk_path: task.disk.as_ref().and_then(|d| d.path.clone()),
        exclusive: task.exclusive,
    })
}

fn request(task: &TaskOptions, role: &str, source: &Source, kind: submit_request::Kind) -> Result<SubmitRequest> {
    Ok(SubmitRequest {
        name: task.name.clone().unwrap_or_else(|| source.base_name()),
        role: role.to_owned(),
        kind: Some(kind),
        request_id: uuid::Uuid::new_v4().to_string(),
        output_store: task.outputs()?.store,
    })
}

/// The store as the job's role sees it: the one that is named, or the one that the scheduler gives a job without.
pub(crate) async fn bundles(cluster: &Cluster, link: &mut Link, task: &TaskOptions) -> Result<Bundles> {
    if let Some(role) = &task.role {
        return Ok(cluster.bundles(Some(role)));
    }
    loop {
        match link.jobs().defaults(v1::Empty {}).await {
            Ok(defaults) => return Ok(cluster.bundles(Some(&named(&defaults.into_inner())?))),
            // One of an earlier build.
            Err(status) if status.code() == tonic::Code::Unimplemented => return Ok(cluster.bundles(Some(&Role::default()))),
            Err(status) => link.again("asking the scheduler for its default role", &status).await?,
        }
    }
}

/// The role of jobs that name none.
pub(crate) fn named(defaults: &v1::JobDefaults) -> Result<Role> {
    Role::new(&defaults.role).map_err(|e| Failure::new(format!("the scheduler's default role: {e}")))
}

/// Hands the job to the scheduler. Repeated when the answer is lost: the request's id makes that safe.
pub(crate) async fn send(link: &mut Link, request: SubmitRequest) -> Result<String> {
    loop {
        match link.jobs().submit(request.clone()).await {
            Ok(reply) => {
                let reply = reply.into_inner();
                reply.notes.iter().for_each(|note| crate::terminal::note(&crate::output::printable(note)));
                return Ok(reply.job);
            }
            Err(status) if is_no_bundle(&request, &status) => {
                return Err(Failure { code: NO_BUNDLE, ..Failure::rpc("submitting the job", &status) });
            }
            Err(status) => link.again("submitting the job", &status).await?,
        }
    }
}

/// Whether a refusal of the scheduler speaks of a bundle's URI, and not of an input's.
fn is_no_bundle(request: &SubmitRequest, status: &tonic::Status) -> bool {
    if !matches!(status.code(), tonic::Code::NotFound | tonic::Code::FailedPrecondition | tonic::Code::PermissionDenied) {
        return false;
    }
    let specs = match &request.kind {
        Some(submit_request::Kind::Single(job)) => [job.spec.as_ref(), None],
        Some(submit_request::Kind::Map(job)) => [job.spec.as_ref(), job.reduce.as_ref().and_then(|r| r.spec.as_ref())],
        None => [None, None],
    };
    specs.into_iter().flatten().filter_map(|s| s.bundle.as_ref()?.uri.as_deref()).any(|uri| status.message().contains(&in_messages(uri)))
}

/// How messages call what is behind a URI.
fn in_messages(uri: &str) -> String {
    let plain = Pin::split(uri).map_or(uri, |(plain, _)| plain);
    Location::parse(Some(plain), None).map_or_else(|_| shown(plain), |location| location.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        task: TaskOptions,
        #[command(flatten)]
        map: MapOptions,
    }

    fn parse(args: &[&str]) -> std::result::Result<Command, clap::Error> {
        Command::try_parse_from(std::iter::once(&"x").chain(args))
    }

    #[test]
    fn items_and_inputs_exclude_each_other() {
        assert!(parse(&["--items", "3", "--inputs", "x"]).is_err());
        assert!(parse(&["--items", "0"]).is_err());
        assert!(parse(&["--inputs", "x", "--split", "3"]).is_err());
        assert!(parse(&["--items", "3", "--split", "4MiB"]).is_err());
        let both = parse(&["--inputs", "a", "--inputs", "b", "--split", "4MiB"]).unwrap().map;
        assert!(both.is_map() && both.inputs.len() == 2 && both.split == Some(Bytes::mib(4)));
        assert!(!parse(&[]).unwrap().map.is_map());
        assert_eq!(parse(&["--inputs", "a", "--split", "none", "--no-unpack"]).unwrap().map.split, Some(Bytes(0)));
    }

    #[test]
    fn combinations_that_mean_nothing_are_refused() {
        for args in [
            &["--items", "1", "--ports", "1"][..],
            &["--inputs", "x", "--stdin", "y"],
            &["--items", "1", "--rounds", "2"],
            &["--items", "1", "--exclusive"],
        ] {
            let command = parse(args).unwrap();
            assert_eq!(check_map(&command.task, &command.map).unwrap_err().code, 125, "{args:?}");
        }
        let fine = parse(&["--inputs", "x", "--stdin", "none", "--reduce", "r", "--rounds", "2", "--reduce-arg", "--merge"]).unwrap();
        assert!(check_map(&fine.task, &fine.map).is_ok());
        assert_eq!(fine.map.reduce_arg, ["--merge"]);
    }
}
