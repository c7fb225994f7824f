//! What `run`, `map` and `submit` can say about a task: the flags, and their checks that need no cluster.
//!
//! Options of the design that nothing enforces yet are here, too, so that they are refused and never ignored.

use crate::bundle::is_uri;
use crate::failure::{Failure, Result};
use crate::time::{duration, positive_duration};
use clap::{Args, ValueEnum};
use smalti_proto::v1;
use smalti_types::grants::check_path;
use smalti_types::{Bytes, DurationMs, Endpoint, Limits, MilliCpus, MilliUnits, Resources, Role};
use std::ffi::OsString;
use std::path::PathBuf;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum IsolationClass {
    /// A fresh instance in a slot of the framework's executor.
    Instance,
    /// An executor process of its own, used once.
    Process,
}

/// `--disk`: how much, and where the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) size: Bytes,
    pub(crate) path: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct TaskOptions {
    /// Processor time in cores; the kernel limits the task to it
    #[arg(long, default_value = "0.5", value_parser = cpus, allow_hyphen_values = true, value_name = "N", help_heading = "Resources")]
    pub(crate) cpus: MilliCpus,
    /// Memory: linear memories and tables of the guest
    #[arg(long, default_value = "64MiB", value_parser = mem, allow_hyphen_values = true, value_name = "SIZE", help_heading = "Resources")]
    pub(crate) mem: Bytes,
    /// Disk space of the task or of each slot: a writable directory, at /scratch unless another path is given [default: none]
    #[arg(long, value_parser = disk, value_name = "SIZE[:/GUEST/PATH]", help_heading = "Resources")]
    pub(crate) disk: Option<Disk>,
    /// How many ports of the agent; the task finds them in $PORT0, $PORT1, … (class process)
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Resources")]
    pub(crate) ports: u32,
    /// A host and port that the task may connect to; others are closed (repeatable; class process)
    #[arg(long, value_parser = endpoint, value_name = "HOST:PORT", help_heading = "Resources")]
    pub(crate) connect: Vec<Endpoint>,
    /// Some of a custom resource of the agents (repeatable)
    #[arg(long = "resource", value_name = "NAME=AMOUNT", value_parser = custom, help_heading = "Resources")]
    pub(crate) custom: Vec<(String, MilliUnits)>,

    /// Wall time of the task or of each item, from its start [default: no limit]
    #[arg(long, value_parser = positive_duration, value_name = "TIME", help_heading = "Limits")]
    pub(crate) timeout: Option<DurationMs>,
    /// Between telling the guest to stop and stopping it
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "TIME", help_heading = "Limits")]
    pub(crate) grace: DurationMs,
    /// Instruction budget; makes the guest about a third slower [default: not counted]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), value_name = "N", help_heading = "Limits")]
    pub(crate) fuel: Option<u64>,
    /// stdout and stderr together
    #[arg(long, default_value = "64MiB", value_parser = size, value_name = "SIZE", help_heading = "Limits")]
    pub(crate) output_limit: Bytes,

    /// Environment variable; without a value it is taken from this process (repeatable)
    #[arg(long, value_name = "K=V", help_heading = "What the guest sees")]
    pub(crate) env: Vec<String>,
    /// FILE, URI, - for this process's stdin, or none [default for run: stdin, when it is a pipe or a file]
    #[arg(long, value_name = "FILE|URI|-|none", help_heading = "What the guest sees")]
    pub(crate) stdin: Option<OsString>,
    /// A read-only file for the guest, at /inputs/<name> unless another path is given (repeatable)
    #[arg(long, value_name = "[/GUEST/PATH=]URI|FILE", help_heading = "What the guest sees")]
    pub(crate) input: Vec<String>,

    /// Only agents with this attribute (repeatable: all must hold)
    #[arg(long, value_name = "NAME=VALUE", value_parser = constraint, help_heading = "Placement")]
    pub(crate) constraint: Vec<(String, String)>,
    /// Only agents of this architecture
    #[arg(long, value_parser = ["x86_64", "aarch64"], help_heading = "Placement")]
    pub(crate) arch: Option<String>,
    /// Role under which the job gets its resources, and in which its bundle and inputs are fetched [default: the scheduler's, `default`]
    #[arg(long, value_name = "ROLE", help_heading = "Placement")]
    pub(crate) role: Option<Role>,
    /// Isolation class [default: instance; process with --ports or --connect]
    #[arg(long, value_enum, help_heading = "Placement")]
    pub(crate) isolation: Option<IsolationClass>,
    /// Jobs of higher priority go first
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_name = "N", help_heading = "Placement")]
    pub(crate) priority: i32,

    /// Name of the job [default: the bundle's file name]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// How often a failed task or item is tried again
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) retries: u32,
    /// How many items run at a time at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_parallel: Option<u32>,
    /// Stop at the first failed item
    #[arg(long)]
    pub(crate) fail_fast: bool,

    /// At most one at a time, whatever fails: a retry waits until the one before has ended or its lease has run out
    #[arg(long)]
    pub(crate) exclusive: bool,

    /// Also write outputs into this directory of this machine, as JOB/ITEM.ATTEMPT.stdout and .stderr
    #[arg(long, value_name = "DIR", help_heading = "Outputs")]
    collect: Option<OsString>,
    /// Have the cluster write outputs there, as JOB/ITEM.ATTEMPT.stdout and .stderr; the job ends when all are there
    #[arg(long, value_name = "s3://BUCKET/PREFIX|file:///DIR", help_heading = "Outputs")]
    output_store: Option<String>,
}

/// What `--collect` and `--output-store` ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Outputs {
    /// A directory of this machine.
    pub(crate) collect: Option<PathBuf>,
    /// A store of the cluster.
    pub(crate) store: Option<String>,
}

impl TaskOptions {
    /// Refuses what nothing enforces yet, and classes that cannot be.
    pub(crate) fn check_supported(&self) -> Result<()> {
        let networked = [(self.ports > 0, "--ports"), (!self.connect.is_empty(), "--connect")].into_iter().find(|(given, _)| *given);
        if let (Some((_, option)), Some(IsolationClass::Instance)) = (networked, self.isolation) {
            let why = "executors of class instance have no network; leave --isolation out or use --isolation process";
            return Err(Failure::new(format!("{option} with --isolation instance: {why}")));
        }
        self.outputs().map(drop)
    }

    /// Where outputs are to be written to.
    pub(crate) fn outputs(&self) -> Result<Outputs> {
        let mut outputs = Outputs { collect: None, store: self.output_store.clone() };
        let Some(named) = &self.collect else { return Ok(outputs) };
        match named.to_str() {
            // Whoever names a store means that.
            Some(uri) if is_uri(uri) => {
                if outputs.store.replace(uri.to_owned()).is_some() {
                    return Err(Failure::new("--collect with a URI is --output-store, which is given, too: leave one of them out"));
                }
            }
            Some(text) if text.starts_with('/') && text.contains('=') => {
                return Err(Failure::not_yet("--collect /guest/path=URI", "write to stdout, which --collect DIR and --output-store keep"));
            }
            _ => outputs.collect = Some(named.into()),
        }
        Ok(outputs)
    }

    /// What one task or slot takes, without ports.
    pub(crate) fn resources(&self) -> Result<v1::Resources> {
        let mut resources = Resources::new(self.cpus, self.mem);
        resources.disk = self.disk.as_ref().map_or(Bytes(0), |d| d.size);
        for (name, amount) in &self.custom {
            resources.set_custom(name, *amount);
        }
        resources.check_request().map_err(|e| Failure::new(e.to_string()))?;
        Ok(resources.into())
    }

    /// The class that is asked for, or that ports and endpoints need.
    pub(crate) fn isolation(&self) -> v1::Isolation {
        let networked = self.ports > 0 || !self.connect.is_empty();
        match self.isolation {
            Some(IsolationClass::Process) => v1::Isolation::Process,
            None if networked => v1::Isolation::Process,
            Some(IsolationClass::Instance) | None => v1::Isolation::Instance,
        }
    }

    pub(crate) fn limits(&self) -> v1::Limits {
        let limits = Limits { timeout: self.timeout, grace: self.grace, fuel: self.fuel, output: self.output_limit };
        v1::Limits { timeout_ms: limits.timeout.map(|t| t.0), grace_ms: limits.grace.0, fuel: limits.fuel, output_bytes: limits.output.0 }
    }

    pub(crate) fn policy(&self) -> v1::Policy {
        let arch = self.arch.iter().map(|a| ("arch".to_owned(), a.clone()));
        let constraints = self.constraint.iter().cloned().chain(arch);
        v1::Policy {
            retries: self.retries,
            max_parallel: self.max_parallel,
            fail_fast: self.fail_fast,
            constraints: constraints.map(|(attribute, value)| v1::Constraint { attribute, value }).collect(),
            priority: self.priority,
        }
    }

    /// The environment in the order given; `K` alone is taken from this process.
    pub(crate) fn environment(&self) -> Result<Vec<v1::EnvVar>> {
        self.env.iter().map(|text| env_var(text, |name| std::env::var(name).ok())).collect()
    }
}

fn env_var(text: &str, from_here: impl Fn(&str) -> Option<String>) -> Result<v1::EnvVar> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, from_here(text)),
    };
    if name.is_empty() {
        return Err(Failure::new(format!("--env {text}: the name is empty; write it like --env NAME=VALUE")));
    }
    let value =
        value.ok_or_else(|| Failure::new(format!("--env {name}: not set in this environment (or not UTF-8); write --env {name}=VALUE")))?;
    Ok(v1::EnvVar { name: name.to_owned(), value })
}

fn cpus(text: &str) -> std::result::Result<MilliCpus, String> {
    let cpus: MilliCpus = text.parse().map_err(|e: smalti_types::amount::AmountError| e.to_string())?;
    // With some memory, so that only the cpus are judged.
    Resources::new(cpus, Bytes(1)).check_request().map(|()| cpus).map_err(|e| e.to_string())
}

fn mem(text: &str) -> std::result::Result<Bytes, String> {
    let mem = size(text)?;
    Resources::new(MilliCpus::SMALLEST, mem).check_request().map(|()| mem).map_err(|e| e.to_string())
}

/// A size such as `64MiB`.
pub(crate) fn size(text: &str) -> std::result::Result<Bytes, String> {
    text.parse().map_err(|e: smalti_types::amount::AmountError| e.to_string())
}

fn disk(text: &str) -> std::result::Result<Disk, String> {
    let (size, path) = match text.split_once(':') {
        Some((size, path)) => (size, Some(path.to_owned())),
        None => (text, None),
    };
    let size = self::size(size)?;
    if size.0 == 0 {
        return Err("disk must be more than zero; leave the option out for none".into());
    }
    if let Some(path) = &path {
        check_path(path).map_err(|e| e.to_string())?;
    }
    Ok(Disk { size, path })
}

fn endpoint(text: &str) -> std::result::Result<Endpoint, String> {
    text.parse().map_err(|e: smalti_types::endpoint::EndpointError| e.to_string())
}

fn custom(text: &str) -> std::result::Result<(String, MilliUnits), String> {
    let (name, amount) = text.split_once('=').ok_or("write it like gpus=1")?;
    if name.is_empty() || matches!(name, "cpus" | "mem" | "disk" | "ports") {
        return Err(format!("`{name}` is not the name of a custom resource; cpus, mem and ports have options of their own"));
    }
    let amount: MilliUnits = amount.parse().map_err(|e: smalti_types::amount::AmountError| e.to_string())?;
    if amount.0 == 0 {
        return Err(format!("{name} must be more than zero"));
    }
    Ok((name.to_owned(), amount))
}

fn constraint(text: &str) -> std::result::Result<(String, String), String> {
    let hint = "write it like zone=eu; only equality is supported yet";
    let (name, value) = text.split_once('=').ok_or(hint)?;
    let (name, value) = (name.trim(), value.trim());
    // `!=`, `==`, `<=`, … are not equality.
    if name.is_empty() || value.is_empty() || value.starts_with('=') || name.ends_with(['!', '<', '>', '~']) {
        return Err(hint.into());
    }
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        task: TaskOptions,
    }

    fn parse(args: &[&str]) -> std::result::Result<TaskOptions, clap::Error> {
        Command::try_parse_from(std::iter::once(&"x").chain(args)).map(|c| c.task)
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let task = parse(&[]).unwrap();
        let limits = task.limits();
        assert_eq!((task.cpus, task.mem), (MilliCpus(500), Bytes::mib(64)));
        assert_eq!((limits.timeout_ms, limits.grace_ms, limits.fuel, limits.output_bytes), (None, 5_000, None, 64 << 20));
        assert!(task.check_supported().is_ok());
    }

    #[test]
    fn impossible_amounts_are_refused_with_their_reason() {
        for (args, why) in [
            (["--cpus", "0"], "cpus must be more than zero"),
            (["--cpus", "-1"], "negative"),
            (["--cpus", "NaN"], "not a number"),
            (["--cpus", "0.001"], "below the smallest request"),
            (["--mem", "0"], "mem must be more than zero"),
            (["--mem", "-5MiB"], "negative"),
            (["--mem", "5XB"], "unknown unit"),
            (["--timeout", "0s"], "more than zero"),
            (["--constraint", "zone!=eu"], "only equality"),
            (["--resource", "mem=5"], "not the name"),
            (["--disk", "0"], "more than zero"),
            (["--disk", "1GiB:data"], "absolute without"),
            (["--disk", "1GiB:/a/../b"], "absolute without"),
            (["--disk", ":/a"], "not a"),
            (["--connect", "example.org"], "write it like"),
            (["--connect", "::1:80"], "write it like"),
            (["--connect", "h:0"], "write it like"),
        ] {
            let error = parse(&args).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{args:?}");
            assert!(error.to_string().contains(why), "{args:?}: {error}");
        }
    }

    #[test]
    fn what_is_not_enforced_is_refused_and_never_ignored() {
        let failure = parse(&["--collect", "/x=s3://b/k"]).unwrap().check_supported().unwrap_err();
        assert!(failure.code == 125 && failure.to_string().contains("is not supported yet"), "{failure}");
    }

    #[test]
    fn outputs_go_to_a_directory_here_or_to_a_store_of_the_cluster() {
        let outputs = |args: &[&str]| parse(args).unwrap().outputs();
        let (dir, store) = (|d: &str| Some(PathBuf::from(d)), |s: &str| Some(s.to_owned()));
        assert_eq!(outputs(&[]).unwrap(), Outputs::default());
        assert_eq!(outputs(&["--collect", "out"]).unwrap(), Outputs { collect: dir("out"), store: None });
        assert_eq!(outputs(&["--collect", "s3://b/p"]).unwrap(), Outputs { collect: None, store: store("s3://b/p") });
        let both = outputs(&["--collect", "/tmp/out", "--output-store", "s3://b"]).unwrap();
        assert_eq!(both, Outputs { collect: dir("/tmp/out"), store: store("s3://b") });
        assert!(outputs(&["--collect", "s3://b/p", "--output-store", "s3://b"]).is_err());
    }

    #[test]
    fn a_network_and_class_instance_exclude_each_other() {
        for args in [["--ports", "1"], ["--connect", "example.org:443"]] {
            let task = parse(&args).unwrap();
            assert!(task.check_supported().is_ok());
            assert_eq!(task.isolation(), v1::Isolation::Process, "{args:?}");
            let failure = parse(&[args[0], args[1], "--isolation", "instance"]).unwrap().check_supported().unwrap_err();
            assert!(failure.to_string().contains("--isolation process"), "{failure}");
            let task = parse(&[args[0], args[1], "--isolation", "process"]).unwrap();
            assert!(task.check_supported().is_ok() && task.isolation() == v1::Isolation::Process);
        }
        assert_eq!(parse(&[]).unwrap().isolation(), v1::Isolation::Instance);
        assert_eq!(parse(&["--isolation", "process"]).unwrap().isolation(), v1::Isolation::Process);
    }

    #[test]
    fn disk_and_endpoints_are_passed_on() {
        let task = parse(&["--disk", "1GiB:/data", "--connect", "Example.org:443", "--connect", "[::1]:80"]).unwrap();
        assert_eq!(task.resources().unwrap().disk_bytes, 1 << 30);
        assert_eq!(task.disk, Some(Disk { size: Bytes::gib(1), path: Some("/data".into()) }));
        assert_eq!(task.connect.iter().map(ToString::to_string).collect::<Vec<_>>(), ["example.org:443", "[::1]:80"]);
        assert_eq!(parse(&["--disk", "5MiB"]).unwrap().disk, Some(Disk { size: Bytes::mib(5), path: None }));
    }

    #[test]
    fn constraints_and_architecture_become_one_list() {
        let policy = parse(&["--constraint", "zone=eu", "--arch", "x86_64", "--priority", "-3"]).unwrap().policy();
        let pairs: Vec<_> = policy.constraints.iter().map(|c| (c.attribute.as_str(), c.value.as_str())).collect();
        assert_eq!((pairs, policy.priority), (vec![("zone", "eu"), ("arch", "x86_64")], -3));
    }

    #[test]
    fn a_variable_without_a_value_is_taken_from_here() {
        let here = |name: &str| (name == "A").then(|| "1".to_owned());
        assert_eq!(env_var("A", here).unwrap().value, "1");
        assert_eq!(env_var("A=x=y", here).unwrap().value, "x=y");
        assert!(env_var("B", here).is_err() && env_var("=x", here).is_err());
    }
}
