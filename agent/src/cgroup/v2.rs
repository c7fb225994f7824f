//! v2: the agent's group in the one hierarchy, and which controllers its children get.
//!
//! A group with processes cannot hand memory on to children, so the agent's group must not lie in a group with processes. Where
//! it lies, by what is found:
//!
//! | the agent is in | it uses |
//! |---|---|
//! | the hierarchy's root, which may have both | the root |
//! | its own leaf of an earlier start, or a group below one that is delegated (systemd's `DelegateSubgroup=`) | the group above |
//! | a group for itself alone (a service with `Delegate=yes`) | that group, and moves into a leaf `agent-<id>` until its end |
//! | a group with others | the group above, beside its own |
//!
//! Nobody else's process is ever moved.

use super::tree::{Controller, Tree, Version, agent_group};
use super::{Error, files};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The file that hands controllers on to children.
pub(super) const SUBTREE: &str = "cgroup.subtree_control";
/// The file that lists processes, and moves them.
const PROCESSES: &str = "cgroup.procs";
const LIMITS: [Controller; 3] = [Controller::Cpu, Controller::Memory, Controller::Pids];
/// What systemd marks a group with whose inside it leaves to whoever runs there.
const DELEGATED: [&str; 2] = ["user.delegate", "trusted.delegate"];

/// What [`open`] gives: the tree, and what is missing.
type Opened = (Tree, Vec<(Controller, String)>);

/// Makes the agent's group at the best place there is.
pub(super) fn open(mount: &Path, own: &Path, agent: &str) -> Result<Opened, Error> {
    let place = place(mount, own, agent)?;
    let moved = match &place {
        Place::At(_) => None,
        Place::Leaf { own, leaf } => Some(Moved::into(own, leaf)?),
    };
    let base = place.base();
    hand_on(base);
    let dir = base.join(agent_group(agent));
    if let Err(e) = files::make_dir(&dir) {
        if let Some(moved) = moved {
            let _ = moved.back();
        }
        return Err(e);
    }
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
    Ok((Tree::new(Version::V2, map).with_moved(moved), missing))
}

/// Where the agent's group goes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// Into this group.
    At(PathBuf),
    /// Into the agent's own group, once the agent is in a leaf of it.
    Leaf { own: PathBuf, leaf: PathBuf },
}

impl Place {
    fn base(&self) -> &Path {
        match self {
            Self::At(base) | Self::Leaf { own: base, .. } => base,
        }
    }
}

/// Decides by the table above; changes nothing.
fn place(mount: &Path, own: &Path, agent: &str) -> Result<Place, Error> {
    let leaf = format!("agent-{agent}");
    let parent = own.parent().filter(|_| own != mount);
    let beside = || Place::At(parent.unwrap_or(own).to_owned());
    if own.file_name().is_some_and(|n| n == leaf.as_str()) {
        return Ok(beside());
    }
    // The root has no `cgroup.type`.
    if !own.join("cgroup.type").exists() {
        return Ok(Place::At(own.to_owned()));
    }
    if !is_delegated(own) && parent.is_some_and(is_delegated) {
        return Ok(beside());
    }
    if files::ids(&own.join(PROCESSES))? == [this_process()] {
        return Ok(Place::Leaf { own: own.to_owned(), leaf: own.join(leaf) });
    }
    Ok(beside())
}

fn is_delegated(group: &Path) -> bool {
    DELEGATED.iter().any(|mark| {
        let mut value = [0_u8; 1];
        rustix::fs::getxattr(group, *mark, &mut value).is_ok() && value == *b"1"
    })
}

fn this_process() -> i32 {
    i32::try_from(std::process::id()).unwrap_or_default()
}

/// This process in a leaf of the group that it was in, so that the group can hand controllers on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Moved {
    own: PathBuf,
    leaf: PathBuf,
}

impl Moved {
    fn into(own: &Path, leaf: &Path) -> Result<Self, Error> {
        files::make_dir(leaf)?;
        files::write(&leaf.join(PROCESSES), &this_process().to_string())?;
        Ok(Self { own: own.to_owned(), leaf: leaf.to_owned() })
    }

    /// Puts everything back: whoever starts this program in that group again finds it as it was. A group that hands controllers
    /// on takes no process.
    pub(super) fn back(&self) -> Result<(), Error> {
        let on = words(&files::read(&self.own.join(SUBTREE))?);
        let off: Vec<String> = LIMITS.iter().filter(|c| on.iter().any(|w| w == c.name())).map(|c| format!("-{}", c.name())).collect();
        if !off.is_empty() {
            files::write(&self.own.join(SUBTREE), &off.join(" "))?;
        }
        files::write(&self.own.join(PROCESSES), &this_process().to_string())?;
        files::remove_dir(&self.leaf)
    }
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

/// Hands on what `wanted` says to the children of a group, all of it or an error.
pub(super) fn hand_on_all(dir: &Path, wanted: impl Iterator<Item = Controller>) -> Result<(), Error> {
    for controller in wanted.filter(|c| LIMITS.contains(c)) {
        files::write(&dir.join(SUBTREE), &format!("+{}", controller.name()))?;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A group as a directory with the two files that are read.
    fn group(path: &Path, processes: &str) -> PathBuf {
        std::fs::create_dir_all(path).unwrap();
        std::fs::write(path.join("cgroup.type"), "domain\n").unwrap();
        std::fs::write(path.join(PROCESSES), processes).unwrap();
        path.to_owned()
    }

    #[test]
    fn the_place_follows_from_what_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let at = |path: &Path| place(root, path, "a").unwrap();
        assert_eq!(at(root), Place::At(root.to_owned()), "the root has no type");
        let me = format!("{}\n", this_process());
        let alone = group(&root.join("x.service"), &me);
        let leaf = group(&alone.join("agent-a"), &me);
        assert_eq!(at(&alone), Place::Leaf { own: alone.clone(), leaf: leaf.clone() });
        assert_eq!(at(&leaf), Place::At(alone.clone()), "where an earlier start went");
        let shared = group(&root.join("session"), &format!("1\n{me}"));
        assert_eq!(at(&shared), Place::At(root.to_owned()), "beside its own");
        // A container that sees its own group as the root of what is mounted.
        assert_eq!(place(&shared, &shared, "a").unwrap(), Place::At(shared));
    }

    #[test]
    fn a_delegated_group_is_used_from_below() {
        let dir = tempfile::tempdir().unwrap();
        let me = format!("{}\n", this_process());
        let service = group(&dir.path().join("x.service"), "");
        let below = group(&service.join("main"), &me);
        if rustix::fs::setxattr(&service, DELEGATED[0], b"1", rustix::fs::XattrFlags::empty()).is_err() {
            eprintln!("NOT TESTED: {} takes no attributes", service.display());
            return;
        }
        assert_eq!(place(dir.path(), &below, "a").unwrap(), Place::At(service.clone()), "systemd's DelegateSubgroup=");
        std::fs::write(service.join(PROCESSES), &me).unwrap();
        let leaf = service.join("agent-a");
        assert_eq!(place(dir.path(), &service, "a").unwrap(), Place::Leaf { own: service, leaf }, "Delegate=yes");
    }
}
