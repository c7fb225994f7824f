//! v2: the agent's group in the one hierarchy, and which controllers its children get.
//!
//! A group with processes cannot hand memory on to children, so the agent's group must not lie in a group with processes.
//! If the agent is alone in its own group (a service with `Delegate=yes`), it moves into a leaf `agent-<id>` and uses its group;
//! otherwise it uses the parent, beside its own group. Nobody else's process is ever moved.

use super::tree::{Controller, Tree, Version, agent_group};
use super::{Error, files};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The file that hands controllers on to children.
pub(super) const SUBTREE: &str = "cgroup.subtree_control";
const LIMITS: [Controller; 3] = [Controller::Cpu, Controller::Memory, Controller::Pids];

/// What [`open`] gives: the tree, and what is missing.
type Opened = (Tree, Vec<(Controller, String)>);

/// Makes the agent's group at the best place there is.
pub(super) fn open(mount: &Path, own: &Path, agent: &str) -> Result<Opened, Error> {
    let base = base(mount, own, agent)?;
    hand_on(&base);
    let dir = base.join(agent_group(agent));
    files::make_dir(&dir)?;
    let missing_here = hand_on(&dir);
    let usable = words(&files::read(&dir.join(SUBTREE))?);
    let mut map = BTreeMap::from([(Controller::Core, dir.clone())]);
    let mut missing = Vec::new();
    for controller in LIMITS {
        if usable.iter().any(|w| w == controller.name()) {
            map.insert(controller, dir.clone());
            if controller == Controller::Cpu {
                map.insert(Controller::CpuAcct, dir.clone());
            }
        } else {
            let why = missing_here.iter().find(|(c, _)| *c == controller).map(|(_, why)| why.clone());
            missing.push((controller, why.unwrap_or_else(|| "not handed on".into())));
        }
    }
    Ok((Tree::new(Version::V2, map), missing))
}

/// The group below which the agent's group goes.
fn base(mount: &Path, own: &Path, agent: &str) -> Result<PathBuf, Error> {
    let leaf = format!("agent-{agent}");
    let parent = own.parent().filter(|_| own != mount).map(Path::to_owned);
    if own.file_name().is_some_and(|n| n == leaf.as_str()) {
        return Ok(parent.unwrap_or_else(|| own.to_owned()));
    }
    // The root has no `cgroup.type`: it may have both processes and children.
    if !own.join("cgroup.type").exists() {
        return Ok(own.to_owned());
    }
    let me = i32::try_from(std::process::id()).unwrap_or_default();
    if files::ids(&own.join("cgroup.procs"))? == [me] {
        let leaf = own.join(leaf);
        files::make_dir(&leaf)?;
        files::write(&leaf.join("cgroup.procs"), &me.to_string())?;
        return Ok(own.to_owned());
    }
    Ok(parent.unwrap_or_else(|| own.to_owned()))
}

/// Hands cpu, memory and pids on to the children of a group, as far as it has them; gives what did not work.
fn hand_on(dir: &Path) -> Vec<(Controller, String)> {
    let there = files::read(&dir.join("cgroup.controllers")).map(|t| words(&t)).unwrap_or_default();
    let mut missing = Vec::new();
    for controller in LIMITS {
        if !there.iter().any(|w| w == controller.name()) {
            missing.push((controller, format!("{} has no {} controller", dir.display(), controller.name())));
        } else if let Err(e) = files::write(&dir.join(SUBTREE), &format!("+{}", controller.name())) {
            missing.push((controller, e.to_string()));
        }
    }
    missing
}

/// Makes a slot's group a threaded child, and hands the controllers that know threads on to it.
pub(super) fn make_slot(executor: &Path, slot: &Path, cpu: bool, pids: bool) -> Result<(), Error> {
    files::make_dir(slot)?;
    let kind = slot.join("cgroup.type");
    if files::read(&kind)?.trim() != "threaded" {
        files::write(&kind, "threaded")?;
    }
    for (wanted, name) in [(cpu, "cpu"), (pids, "pids")] {
        if wanted && !words(&files::read(&executor.join(SUBTREE))?).iter().any(|w| w == name) {
            files::write(&executor.join(SUBTREE), &format!("+{name}"))?;
        }
    }
    Ok(())
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}
