//! What the host has: mounted hierarchies and the agent's own place in them, read from /proc/self.
//!
//! Parsing is pure; [`open`] reads the two files and tries v2 first, then v1.

use super::tree::{Controller, Tree};
use super::{files, v1, v2};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The agent's own group in each hierarchy, as directories.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Own {
    /// v1 hierarchies by controller.
    pub(super) v1: BTreeMap<Controller, PathBuf>,
    /// The v2 hierarchy: mount point and own group.
    pub(super) v2: Option<(PathBuf, PathBuf)>,
}

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    /// What of the hierarchy is mounted.
    root: String,
    point: PathBuf,
    /// Controllers; `None` for v2.
    controllers: Option<Vec<String>>,
}

/// Makes the agent's group wherever that works, and says what is missing and why.
pub(super) fn open(agent: &str) -> (Tree, Vec<(Controller, String)>) {
    let read = |path: &str| files::read(Path::new(path));
    let own = match (read("/proc/self/mountinfo"), read("/proc/self/cgroup")) {
        (Ok(mounts), Ok(groups)) => own(&mounts, &groups),
        (Err(e), _) | (_, Err(e)) => return (Tree::none(), vec![(Controller::Cpu, e.to_string())]),
    };
    let mut why_not = Vec::new();
    if let Some((mount, group)) = &own.v2 {
        match v2::open(mount, group, agent) {
            Ok((tree, missing)) if tree.agent_dir(Controller::Cpu).is_some() || own.v1.is_empty() => return (tree, missing),
            Ok((tree, missing)) => {
                tree.remove_quietly();
                why_not = missing;
            }
            Err(e) => why_not.push((Controller::Cpu, e.to_string())),
        }
    }
    if own.v1.is_empty() {
        if why_not.is_empty() {
            why_not.push((Controller::Cpu, "no control group file system is mounted".into()));
        }
        return (Tree::none(), why_not);
    }
    v1::open(&own.v1, agent)
}

/// Directories of the groups that this process is in: v1 by controller, and v2. Empty where there are none.
#[must_use]
pub fn own_groups() -> (BTreeMap<Controller, PathBuf>, Option<PathBuf>) {
    let read = |path: &str| files::read(Path::new(path)).unwrap_or_default();
    let own = own(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
    (own.v1, own.v2.map(|(_, group)| group))
}

/// Pure: `mountinfo` and `cgroup` of /proc/self.
pub(super) fn own(mountinfo: &str, cgroup: &str) -> Own {
    let mounts: Vec<Mount> = mountinfo.lines().filter_map(parse_mount).collect();
    let mut own = Own::default();
    for line in cgroup.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(number), Some(names), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        if number == "0" && names.is_empty() {
            let mount = mounts.iter().find(|m| m.controllers.is_none());
            own.v2 = mount.and_then(|m| Some((m.point.clone(), below(m, path)?)));
            continue;
        }
        for controller in Controller::V1 {
            let is = |name: &str| name == controller.name();
            if !names.split(',').any(is) {
                continue;
            }
            let mount = mounts.iter().find(|m| m.controllers.as_ref().is_some_and(|c| c.iter().any(|n| is(n))));
            if let Some(dir) = mount.and_then(|m| below(m, path)) {
                own.v1.insert(controller, dir);
            }
        }
    }
    own
}

/// The directory of a group: its path is relative to the hierarchy's root, of which perhaps only a part is mounted.
fn below(mount: &Mount, path: &str) -> Option<PathBuf> {
    let rest = if mount.root == "/" { path } else { path.strip_prefix(mount.root.as_str())? };
    let outside = Path::new(rest).components().any(|c| matches!(c, std::path::Component::ParentDir));
    (!outside).then(|| mount.point.join(rest.trim_start_matches('/')))
}

/// One line of mountinfo: `36 35 98:0 /root /mount/point opts [optional]… - type source superoptions`.
fn parse_mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, point) = (unescape(left.next()?), PathBuf::from(unescape(left.next()?)));
    let mut right = right.split(' ');
    let controllers = match right.next()? {
        "cgroup2" => None,
        "cgroup" => Some(right.nth(1)?.split(',').map(str::to_owned).collect()),
        _ => return None,
    };
    Some(Mount { root, point, controllers })
}

/// mountinfo writes space, tab, line end and backslash as three octal digits.
fn unescape(text: &str) -> String {
    let mut out = text.to_owned();
    for (code, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        out = out.replace(code, plain);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_v2_host() {
        let own = own(
            "25 21 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n30 21 0:9 / /tmp rw - tmpfs tmpfs rw\n",
            "0::/system.slice/smalti-agent.service\n",
        );
        let mount = PathBuf::from("/sys/fs/cgroup");
        assert_eq!(own, Own { v1: BTreeMap::new(), v2: Some((mount.clone(), mount.join("system.slice/smalti-agent.service"))) });
    }

    #[test]
    fn a_v1_host_with_controllers_mounted_together() {
        let own = own(
            "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n34 31 0:3 / /c\\040g/memory rw shared:7 - cgroup cgroup rw,memory\n",
            "4:memory:/a\n2:cpu,cpuacct:/\n1:name=systemd:/x\n",
        );
        assert_eq!(own.v1[&Controller::Cpu], PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/"));
        assert_eq!(own.v1[&Controller::Cpu], own.v1[&Controller::CpuAcct]);
        assert_eq!(own.v1[&Controller::Memory], PathBuf::from("/c g/memory/a"));
        assert_eq!((own.v1.len(), own.v2), (3, None));
    }

    #[test]
    fn a_container_sees_only_its_part() {
        let mounts = "33 31 0:30 /docker/x /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n40 31 0:31 / /u rw - cgroup2 none rw\n";
        assert_eq!(own(mounts, "1:cpu:/docker/x/y\n").v1[&Controller::Cpu], PathBuf::from("/sys/fs/cgroup/cpu/y"));
        assert!(own(mounts, "1:cpu:/elsewhere\n0::/../..\n").v1.is_empty());
        assert_eq!(own(mounts, "0::/../..\n").v2, None);
        assert_eq!(own("garbage", "garbage\n:\n::"), Own::default());
    }
}
