//! v1: the agent's group in each of the separate hierarchies.

use super::tree::{Controller, Tree, Version, agent_group};
use super::{cpu, files};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Makes the agent's group below its own in every hierarchy where that works. A controller whose limit file is missing (the
/// kernel was built without it) counts as missing.
pub(super) fn open(own: &BTreeMap<Controller, PathBuf>, agent: &str) -> (Tree, Vec<(Controller, String)>) {
    let mut made = BTreeMap::new();
    let mut missing = Vec::new();
    for controller in Controller::V1 {
        let Some(parent) = own.get(&controller) else {
            missing.push((controller, format!("cgroup v1 controller {} is not mounted", controller.name())));
            continue;
        };
        let dir = parent.join(agent_group(agent));
        match make(controller, &dir) {
            Ok(()) => drop(made.insert(controller, dir)),
            Err(e) => {
                missing.push((controller, e.to_string()));
                let _ = files::remove_dir(&dir);
            }
        }
    }
    (Tree::new(Version::V1, made), missing)
}

/// The group, and a write to its limit of what is there, to see that it may be written.
fn make(controller: Controller, dir: &Path) -> Result<(), super::Error> {
    files::make_dir(dir)?;
    let limit = match controller {
        Controller::Cpu => cpu::V1_QUOTA,
        Controller::Memory => super::memory::V1_LIMIT,
        Controller::Pids => "pids.max",
        Controller::CpuAcct | Controller::Core => return files::read(&dir.join("cpuacct.usage")).map(drop),
    };
    let path = dir.join(limit);
    let value = files::read(&path)?;
    files::write(&path, value.trim())
}
