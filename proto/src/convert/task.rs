//! Bundles, limits, inputs, task specs, launches, arrays and operations.

use super::resources::item_set;
use super::{
    ConvertError, MAX_ARGS_LEN, MAX_LABEL_LEN, MAX_LIST, MAX_SHORT_LIST, MAX_SPLIT_INPUTS, MAX_TEXT_LEN, MAX_URI_LEN, Problem, Result, at,
    duration, wire,
};
use crate::v1;
use smalti_types::grants::{MAX_ENDPOINTS, check_path};
use smalti_types::task::OutputSource;
use smalti_types::{
    ArrayTemplate, BundleRef, Bytes, Endpoint, Input, Isolation, ItemBatch, Launch, LaunchArray, Limits, Operation, Packing, Split, Stdin,
    TaskSpec,
};

impl TryFrom<v1::BundleRef> for BundleRef {
    type Error = ConvertError;
    fn try_from(m: v1::BundleRef) -> Result<Self> {
        Ok(Self { digest: at("BundleRef", "digest").digest(&m.digest)?, uri: at("BundleRef", "uri").optional_text(m.uri, MAX_URI_LEN)? })
    }
}

impl From<BundleRef> for v1::BundleRef {
    fn from(b: BundleRef) -> Self {
        Self { digest: b.digest.as_bytes().to_vec().into(), uri: b.uri }
    }
}

impl TryFrom<v1::Limits> for Limits {
    type Error = ConvertError;
    fn try_from(m: v1::Limits) -> Result<Self> {
        Ok(Self {
            timeout: m.timeout_ms.map(duration),
            grace: duration(m.grace_ms),
            fuel: m.fuel,
            output: Bytes(at("Limits", "output_bytes").amount(m.output_bytes)?),
        })
    }
}

impl From<Limits> for v1::Limits {
    fn from(l: Limits) -> Self {
        Self { timeout_ms: l.timeout.map(|t| t.0), grace_ms: l.grace.0, fuel: l.fuel, output_bytes: l.output.0 }
    }
}

impl TryFrom<v1::Input> for Input {
    type Error = ConvertError;
    fn try_from(m: v1::Input) -> Result<Self> {
        if m.uri.is_none() && m.digest.is_none() {
            return Err(at("Input", "digest").fail(Problem::Missing));
        }
        Ok(Self {
            guest_path: at("Input", "guest_path").optional_text(m.guest_path, MAX_LABEL_LEN)?,
            uri: at("Input", "uri").optional_text(m.uri, MAX_URI_LEN)?,
            digest: m.digest.map(|d| at("Input", "digest").digest(&d)).transpose()?,
            length: at("Input", "length").amount(m.length)?,
            etag: at("Input", "etag").optional_text(m.etag, MAX_LABEL_LEN)?,
            packing: m.packing.map(packing).transpose()?,
        })
    }
}

impl From<Input> for v1::Input {
    fn from(i: Input) -> Self {
        Self {
            guest_path: i.guest_path,
            uri: i.uri,
            digest: i.digest.map(|d| d.as_bytes().to_vec().into()),
            length: i.length,
            etag: i.etag,
            packing: i.packing.map(|p| {
                let wire = match p {
                    Packing::Plain => v1::Packing::Plain,
                    Packing::Gzip => v1::Packing::Gzip,
                    Packing::Zstd => v1::Packing::Zstd,
                };
                wire.into()
            }),
        }
    }
}

/// What this build does not know it cannot unpack.
fn packing(wire: i32) -> Result<Packing> {
    match v1::Packing::try_from(wire) {
        Ok(v1::Packing::Plain) => Ok(Packing::Plain),
        Ok(v1::Packing::Gzip) => Ok(Packing::Gzip),
        Ok(v1::Packing::Zstd) => Ok(Packing::Zstd),
        Err(_) => Err(at("Input", "packing").fail(Problem::Invalid("is a kind that this build does not know"))),
    }
}

impl TryFrom<v1::OutputSource> for OutputSource {
    type Error = ConvertError;
    fn try_from(m: v1::OutputSource) -> Result<Self> {
        Ok(Self {
            agent: at("OutputSource", "agent").id(&m.agent)?,
            task: at("OutputSource", "task").id(&m.task)?,
            attempt: m.attempt,
            items: item_set(m.items)?,
        })
    }
}

impl From<OutputSource> for v1::OutputSource {
    fn from(s: OutputSource) -> Self {
        Self { agent: s.agent.into(), task: s.task.into(), attempt: s.attempt, items: Some(s.items.into()) }
    }
}

impl TryFrom<v1::Stdin> for Stdin {
    type Error = ConvertError;
    fn try_from(m: v1::Stdin) -> Result<Self> {
        use v1::stdin::Source;
        Ok(match at("Stdin", "source").need(m.source)? {
            Source::Empty(_) => Self::Empty,
            Source::Object(input) => Self::Object(input.try_into()?),
            Source::Split(_) => Self::Split,
            Source::Outputs(o) => Self::Outputs(at("OutputSources", "sources").list(o.sources, MAX_LIST)?),
        })
    }
}

impl From<Stdin> for v1::Stdin {
    fn from(s: Stdin) -> Self {
        use v1::stdin::Source;
        Self {
            source: Some(match s {
                Stdin::Empty => Source::Empty(v1::Empty {}),
                Stdin::Object(input) => Source::Object(input.into()),
                Stdin::Split => Source::Split(v1::Empty {}),
                Stdin::Outputs(sources) => Source::Outputs(v1::OutputSources { sources: wire(sources) }),
            }),
        }
    }
}

impl From<Isolation> for v1::Isolation {
    fn from(i: Isolation) -> Self {
        match i {
            Isolation::Instance => Self::Instance,
            Isolation::Process => Self::Process,
        }
    }
}

impl From<v1::Isolation> for Isolation {
    fn from(m: v1::Isolation) -> Self {
        match m {
            v1::Isolation::Instance => Self::Instance,
            v1::Isolation::Process => Self::Process,
        }
    }
}

impl TryFrom<v1::Endpoint> for Endpoint {
    type Error = ConvertError;
    fn try_from(m: v1::Endpoint) -> Result<Self> {
        let port = u16::try_from(m.port)
            .map_err(|_| at("Endpoint", "port").fail(Problem::TooLarge { value: m.port.into(), max: u16::MAX.into() }))?;
        Self::new(&m.host, port).map_err(|_| at("Endpoint", "host").fail(Problem::Invalid("not a host and a port")))
    }
}

impl From<Endpoint> for v1::Endpoint {
    fn from(e: Endpoint) -> Self {
        Self { host: e.host, port: e.port.into() }
    }
}

/// The guest sees `NAME=VALUE`: a name with `=` would become another variable than the one that was asked for.
fn variable(v: v1::EnvVar) -> Result<(String, String)> {
    let here = at("EnvVar", "name");
    let name = here.text(v.name, MAX_TEXT_LEN)?;
    if name.is_empty() || name.contains('=') {
        return Err(here.fail(Problem::Invalid("empty, or contains `=`")));
    }
    Ok((name, at("EnvVar", "value").text(v.value, MAX_TEXT_LEN)?))
}

fn disk_path(path: String) -> Result<String> {
    let here = at("TaskSpec", "disk_path");
    check_path(&path).map_err(|_| here.fail(Problem::Invalid("not an absolute, normalised path")))?;
    here.text(path, MAX_LABEL_LEN)
}

impl TryFrom<v1::TaskSpec> for TaskSpec {
    type Error = ConvertError;
    fn try_from(m: v1::TaskSpec) -> Result<Self> {
        let isolation = v1::Isolation::try_from(m.isolation)
            .map_err(|_| at("TaskSpec", "isolation").fail(Problem::UnknownEnum(m.isolation.to_string())))?;
        let here = at("TaskSpec", "args");
        here.count(m.args.len(), MAX_SHORT_LIST)?;
        at("TaskSpec", "env").count(m.env.len(), MAX_SHORT_LIST)?;
        // One more byte each: the NUL or `=` that the guest's block has between them.
        let args: usize = m.args.iter().map(|a| a.len() + 1).sum();
        let len = m.env.iter().fold(args, |sum, e| sum + e.name.len() + e.value.len() + 2);
        if len > MAX_ARGS_LEN {
            return Err(here.fail(Problem::TooLong { len, max: MAX_ARGS_LEN }));
        }
        Ok(Self {
            bundle: at("TaskSpec", "bundle").get(m.bundle)?,
            args: m.args.into_iter().map(|a| here.text(a, MAX_TEXT_LEN)).collect::<Result<_>>()?,
            env: m.env.into_iter().map(variable).collect::<Result<_>>()?,
            stdin: m.stdin.map(Stdin::try_from).transpose()?.unwrap_or_default(),
            inputs: at("TaskSpec", "inputs").list(m.inputs, MAX_SHORT_LIST)?,
            limits: m.limits.map(Limits::try_from).transpose()?.unwrap_or_default(),
            isolation: isolation.into(),
            connect: at("TaskSpec", "connect").list(m.connect, MAX_ENDPOINTS)?,
            disk_path: m.disk_path.map(disk_path).transpose()?,
            exclusive: m.exclusive,
        })
    }
}

impl From<TaskSpec> for v1::TaskSpec {
    fn from(s: TaskSpec) -> Self {
        Self {
            bundle: Some(s.bundle.into()),
            args: s.args,
            env: s.env.into_iter().map(|(name, value)| v1::EnvVar { name, value }).collect(),
            stdin: Some(s.stdin.into()),
            inputs: wire(s.inputs),
            limits: Some(s.limits.into()),
            isolation: v1::Isolation::from(s.isolation).into(),
            connect: wire(s.connect),
            disk_path: s.disk_path,
            exclusive: s.exclusive,
        }
    }
}

impl TryFrom<v1::Launch> for Launch {
    type Error = ConvertError;
    fn try_from(m: v1::Launch) -> Result<Self> {
        Ok(Self {
            task: at("Launch", "task").id(&m.task)?,
            attempt: m.attempt,
            resources: at("Launch", "resources").get(m.resources)?,
            spec: at("Launch", "spec").get(m.spec)?,
        })
    }
}

impl From<Launch> for v1::Launch {
    fn from(l: Launch) -> Self {
        Self { task: l.task.into(), attempt: l.attempt, resources: Some(l.resources.into()), spec: Some(l.spec.into()) }
    }
}

impl TryFrom<v1::ArrayTemplate> for ArrayTemplate {
    type Error = ConvertError;
    fn try_from(m: v1::ArrayTemplate) -> Result<Self> {
        Ok(Self {
            spec: at("ArrayTemplate", "spec").get(m.spec)?,
            total_items: at("ArrayTemplate", "total_items").bound(m.total_items, super::MAX_ITEM_END)?,
            split_inputs: at("ArrayTemplate", "split_inputs").list(m.split_inputs, MAX_SPLIT_INPUTS)?,
        })
    }
}

impl From<ArrayTemplate> for v1::ArrayTemplate {
    fn from(t: ArrayTemplate) -> Self {
        Self { spec: Some(t.spec.into()), total_items: t.total_items, split_inputs: wire(t.split_inputs) }
    }
}

impl TryFrom<v1::Split> for Split {
    type Error = ConvertError;
    fn try_from(m: v1::Split) -> Result<Self> {
        Ok(Self {
            item: at("Split", "item").item(m.item)?,
            input: m.input,
            offset: at("Split", "offset").amount(m.offset)?,
            length: at("Split", "length").amount(m.length)?,
        })
    }
}

impl From<Split> for v1::Split {
    fn from(s: Split) -> Self {
        Self { item: s.item, input: s.input, offset: s.offset, length: s.length }
    }
}

impl TryFrom<v1::ItemBatch> for ItemBatch {
    type Error = ConvertError;
    fn try_from(m: v1::ItemBatch) -> Result<Self> {
        let items = item_set(m.items)?;
        let here = at("ItemBatch", "splits");
        let splits: Vec<Split> = here.list(m.splits, MAX_LIST)?;
        if splits.windows(2).any(|w| w[1].item <= w[0].item) {
            return Err(here.fail(Problem::Unsorted));
        }
        // Both ascend, so equal length and equal members are one walk.
        if !splits.is_empty() && (splits.len() as u64 != items.len() || !items.iter().eq(splits.iter().map(|s| s.item))) {
            return Err(here.fail(Problem::Invalid("must name exactly the batch's items")));
        }
        Ok(Self { items, attempt: m.attempt, splits })
    }
}

impl From<ItemBatch> for v1::ItemBatch {
    fn from(b: ItemBatch) -> Self {
        Self { items: Some(b.items.into()), attempt: b.attempt, splits: wire(b.splits) }
    }
}

impl TryFrom<v1::LaunchArray> for LaunchArray {
    type Error = ConvertError;
    fn try_from(m: v1::LaunchArray) -> Result<Self> {
        Ok(Self {
            task: at("LaunchArray", "task").id(&m.task)?,
            attempt: m.attempt,
            slot_resources: at("LaunchArray", "slot_resources").get(m.slot_resources)?,
            slots: m.slots,
            template: at("LaunchArray", "template").get(m.template)?,
            batch: at("LaunchArray", "batch").get(m.batch)?,
            open: m.open,
        })
    }
}

impl From<LaunchArray> for v1::LaunchArray {
    fn from(l: LaunchArray) -> Self {
        Self {
            task: l.task.into(),
            attempt: l.attempt,
            slot_resources: Some(l.slot_resources.into()),
            slots: l.slots,
            template: Some(l.template.into()),
            batch: Some(l.batch.into()),
            open: l.open,
        }
    }
}

impl TryFrom<v1::Operation> for Operation {
    type Error = ConvertError;
    fn try_from(m: v1::Operation) -> Result<Self> {
        use v1::operation::Operation as Wire;
        Ok(match at("Operation", "operation").need(m.operation)? {
            Wire::Launch(l) => Self::Launch(l.try_into()?),
            Wire::LaunchArray(l) => Self::LaunchArray(l.try_into()?),
        })
    }
}

impl From<Operation> for v1::Operation {
    fn from(o: Operation) -> Self {
        use v1::operation::Operation as Wire;
        Self {
            operation: Some(match o {
                Operation::Launch(l) => Wire::Launch(l.into()),
                Operation::LaunchArray(l) => Wire::LaunchArray(l.into()),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::strategies::{bundle_ref, item_batch, operation, task_spec};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_sent_is_what_arrives(o in operation(), b in item_batch()) {
            prop_assert_eq!(Operation::try_from(v1::Operation::from(o.clone())), Ok(o));
            prop_assert_eq!(ItemBatch::try_from(v1::ItemBatch::from(b.clone())), Ok(b));
        }

        #[test]
        fn arguments_beyond_their_bound_are_refused(spec in task_spec(), bundle in bundle_ref()) {
            let long = v1::TaskSpec { bundle: Some(bundle.into()), args: vec!["x".repeat(MAX_ARGS_LEN)], ..spec.into() };
            let error = TaskSpec::try_from(long).unwrap_err();
            prop_assert!(matches!(error.problem, Problem::TooLong { .. }), "{error}");
        }
    }

    #[test]
    fn names_of_variables_cannot_be_other_names() {
        let var = |name: &str, value: &str| variable(v1::EnvVar { name: name.into(), value: value.into() });
        assert_eq!(var("A", "x=y").unwrap(), ("A".into(), "x=y".into()));
        for (name, value) in [("", "x"), ("A=B", "x"), ("=", ""), ("A\0", ""), ("A", "\0")] {
            assert!(var(name, value).is_err(), "{name:?}={value:?}");
        }
    }

    #[test]
    fn bad_messages_are_refused_by_name() {
        let error = BundleRef::try_from(v1::BundleRef { digest: vec![0; 31].into(), uri: None }).unwrap_err();
        assert_eq!(error.to_string(), "BundleRef.digest: a digest has 32 bytes, this one 31");
        let error = Launch::try_from(v1::Launch { task: "../x".into(), ..Default::default() }).unwrap_err();
        assert!(matches!(error.problem, Problem::Id(_)), "{error}");
        let error = Launch::try_from(v1::Launch { task: "x".into(), ..Default::default() }).unwrap_err();
        assert_eq!(error.to_string(), "Launch.resources: is missing");
        let error = TaskSpec::try_from(v1::TaskSpec { isolation: 9, ..Default::default() }).unwrap_err();
        assert_eq!(error.to_string(), "TaskSpec.isolation: unknown value 9");
        for (host, port) in [("", 1), ("h", 0), ("h", 65_536), ("h/..", 1), ("::g", 1)] {
            assert!(Endpoint::try_from(v1::Endpoint { host: host.into(), port }).is_err(), "{host} {port}");
        }
        for path in ["", "scratch", "/a/../b", "/a//b", "/a/"] {
            assert!(disk_path(path.into()).is_err(), "{path}");
        }
        let splits = vec![v1::Split { item: 3, ..Default::default() }];
        let error = ItemBatch::try_from(v1::ItemBatch { splits, ..Default::default() }).unwrap_err();
        assert!(error.to_string().starts_with("ItemBatch.splits"), "{error}");
    }
}
