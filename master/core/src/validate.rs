//! Whether the description of a task can be run at all. Pure text and arithmetic: each refusal names the field.
//!
//! Deliberately absent: whether it fits an offer (`accept`), and whether its bundle is valid (the agent).

use crate::limits::{
    MAX_ARGS, MAX_ARGS_ENV_BYTES, MAX_CUSTOM, MAX_ENV, MAX_INPUTS, MAX_ITEMS, MAX_OUTPUT_SOURCES, MAX_SLOTS, MAX_SPAN_MS, MAX_SPLIT_INPUTS,
    MAX_TEXT,
};
use smalti_types::{Input, ItemBatch, Launch, LaunchArray, Limits, Operation, Resources, Stdin, TaskSpec};

type Checked = Result<(), String>;

fn at_most(field: &str, have: usize, most: usize) -> Checked {
    if have > most { Err(format!("{field} has {have} entries, at most {most} are allowed")) } else { Ok(()) }
}

fn short(field: &str, text: &str) -> Checked {
    if text.len() > MAX_TEXT { Err(format!("{field} has {} bytes, at most {MAX_TEXT} are allowed", text.len())) } else { Ok(()) }
}

/// Checks one operation of an accept.
pub(crate) fn check_operation(operation: &Operation) -> Checked {
    match operation {
        Operation::Launch(launch) => check_launch(launch),
        Operation::LaunchArray(launch) => check_array(launch),
    }
}

fn check_launch(launch: &Launch) -> Checked {
    check_resources("resources", &launch.resources)?;
    if launch.spec.stdin == Stdin::Split {
        return Err("spec.stdin: only the items of an array read splits".to_owned());
    }
    check_spec("spec", &launch.spec, &launch.resources)
}

fn check_array(launch: &LaunchArray) -> Checked {
    check_resources("slot_resources", &launch.slot_resources)?;
    if !launch.slot_resources.ports.is_empty() {
        return Err("slot_resources.ports: items of an array cannot have ports".to_owned());
    }
    if launch.slots == 0 || launch.slots > MAX_SLOTS {
        return Err(format!("slots is {}, but must be from 1 to {MAX_SLOTS}", launch.slots));
    }
    launch.slot_resources.checked_mul(launch.slots).map_err(|e| format!("slots times slot_resources: {e}"))?;
    let template = &launch.template;
    if template.total_items == 0 || template.total_items > MAX_ITEMS {
        return Err(format!("template.total_items is {}, but must be from 1 to {MAX_ITEMS}", template.total_items));
    }
    at_most("template.split_inputs", template.split_inputs.len(), MAX_SPLIT_INPUTS)?;
    template.split_inputs.iter().try_for_each(|input| check_input("template.split_inputs", input))?;
    if template.spec.exclusive {
        return Err("template.spec.exclusive: items of an array may run more than once; launch exclusive tasks one by one".to_owned());
    }
    check_spec("template.spec", &template.spec, &launch.slot_resources)?;
    if launch.batch.items.end() > template.total_items {
        return Err(format!("batch.items ends at {}, beyond template.total_items {}", launch.batch.items.end(), template.total_items));
    }
    check_batch_splits(&launch.batch)?;
    let wants_splits = template.spec.stdin == Stdin::Split;
    if wants_splits != (launch.batch.splits.len() as u64 == launch.batch.items.len() && !launch.batch.splits.is_empty())
        && !launch.batch.items.is_empty()
    {
        return Err("batch.splits: one split per item is needed exactly when template.spec.stdin is split".to_owned());
    }
    if launch.batch.splits.iter().any(|s| s.input as usize >= template.split_inputs.len()) {
        return Err("batch.splits: a split names an input that template.split_inputs does not have".to_owned());
    }
    Ok(())
}

/// Checks that splits, where there are any, belong to the batch's items in their order.
pub(crate) fn check_batch_splits(batch: &ItemBatch) -> Checked {
    if batch.items.end() > MAX_ITEMS {
        return Err(format!("batch.items ends at {}, at most {MAX_ITEMS} is allowed", batch.items.end()));
    }
    if batch.splits.is_empty() {
        return Ok(());
    }
    if batch.splits.len() as u64 != batch.items.len() {
        return Err(format!("batch.splits has {} entries for {} items", batch.splits.len(), batch.items.len()));
    }
    if !batch.splits.iter().map(|s| s.item).eq(batch.items.iter()) {
        return Err("batch.splits is not in the order of batch.items".to_owned());
    }
    if batch.splits.iter().any(|s| s.offset.checked_add(s.length).is_none()) {
        return Err("batch.splits: an offset and a length overflow".to_owned());
    }
    Ok(())
}

fn check_resources(field: &str, resources: &Resources) -> Checked {
    resources.check_request().map_err(|e| format!("{field}: {e}"))?;
    at_most(&format!("{field}.custom"), resources.custom.len(), MAX_CUSTOM)
}

fn check_spec(field: &str, spec: &TaskSpec, resources: &Resources) -> Checked {
    at_most(&format!("{field}.args"), spec.args.len(), MAX_ARGS)?;
    at_most(&format!("{field}.env"), spec.env.len(), MAX_ENV)?;
    let bytes: usize = spec.args.iter().map(String::len).chain(spec.env.iter().map(|(k, v)| k.len() + v.len())).sum();
    if bytes > MAX_ARGS_ENV_BYTES {
        return Err(format!("{field}.args and {field}.env have {bytes} bytes together, at most {MAX_ARGS_ENV_BYTES} are allowed"));
    }
    if spec.args.iter().any(|a| a.contains('\0')) {
        return Err(format!("{field}.args: a zero byte is not allowed"));
    }
    if let Some((name, _)) = spec.env.iter().find(|(k, v)| k.is_empty() || k.contains(['=', '\0']) || v.contains('\0')) {
        return Err(format!("{field}.env: {name:?} is not a valid variable"));
    }
    at_most(&format!("{field}.inputs"), spec.inputs.len(), MAX_INPUTS)?;
    for input in &spec.inputs {
        check_input(&format!("{field}.inputs"), input)?;
        if input.guest_path.as_ref().is_none_or(|p| !p.starts_with('/')) {
            return Err(format!("{field}.inputs: guest_path must be an absolute path"));
        }
    }
    match &spec.stdin {
        Stdin::Object(input) => check_input(&format!("{field}.stdin"), input)?,
        Stdin::Outputs(sources) => at_most(&format!("{field}.stdin.outputs"), sources.len(), MAX_OUTPUT_SOURCES)?,
        Stdin::Empty | Stdin::Split => {}
    }
    if let Some(uri) = &spec.bundle.uri {
        short(&format!("{field}.bundle.uri"), uri)?;
    }
    spec.check_grants(resources).map_err(|e| format!("{field}: {e}"))?;
    check_limits(field, &spec.limits)
}

fn check_input(field: &str, input: &Input) -> Checked {
    for (name, text) in [("guest_path", &input.guest_path), ("uri", &input.uri), ("etag", &input.etag)] {
        short(&format!("{field}.{name}"), text.as_deref().unwrap_or_default())?;
    }
    if input.uri.is_none() && input.digest.is_none() {
        return Err(format!("{field}: an input needs a uri or a digest"));
    }
    Ok(())
}

fn check_limits(field: &str, limits: &Limits) -> Checked {
    for (name, span) in [("timeout", limits.timeout.unwrap_or_default()), ("grace", limits.grace)] {
        if span.0 > MAX_SPAN_MS {
            return Err(format!("{field}.limits.{name} of {} ms is above {MAX_SPAN_MS}", span.0));
        }
    }
    if limits.timeout.is_some_and(|t| t.0 == 0) {
        return Err(format!("{field}.limits.timeout must be more than zero"));
    }
    Ok(())
}
