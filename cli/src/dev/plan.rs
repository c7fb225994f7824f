//! What `smalti dev` starts: resources divided between agents, and each role's arguments. Pure.

use smalti_types::{Bytes, MilliCpus, PortRange, PortSet};
use std::ffi::OsString;
use std::path::Path;

/// What all agents together have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Total {
    pub(crate) agents: u32,
    pub(crate) cpus: MilliCpus,
    pub(crate) mem: Bytes,
    pub(crate) disk: Bytes,
    pub(crate) ports: PortSet,
}

/// What one agent has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) cpus: MilliCpus,
    pub(crate) mem: Bytes,
    pub(crate) disk: Bytes,
    pub(crate) ports: PortSet,
}

/// Divides everything, so that the sum of the shares is the total and no port is in two shares.
///
/// # Errors
/// When a share would have less than the smallest cpu request or no memory.
pub(crate) fn divide(total: &Total) -> Result<Vec<Share>, String> {
    let n = u64::from(total.agents.max(1));
    // The first ones get what does not divide evenly.
    let part = |amount: u64, i: u64| amount / n + u64::from(i < amount % n);
    let mut ports = total.ports.clone();
    let mut shares = Vec::new();
    for i in 0..n {
        let count = u32::try_from(part(u64::from(total.ports.len()), i)).unwrap_or(0);
        let mine = first_ports(&ports, count);
        ports = ports.difference(&mine);
        let share = Share {
            cpus: MilliCpus(part(total.cpus.0, i)),
            mem: Bytes(part(total.mem.0, i)),
            disk: Bytes(part(total.disk.0, i)),
            ports: mine,
        };
        if share.cpus < MilliCpus::SMALLEST || share.mem.0 == 0 {
            return Err(format!("cpus {} and mem {} are too little for {n} agents", total.cpus, total.mem));
        }
        shares.push(share);
    }
    Ok(shares)
}

/// The lowest `n` ports as ranges, without a range per port on the way.
fn first_ports(ports: &PortSet, n: u32) -> PortSet {
    let mut left = n;
    let mut taken = Vec::new();
    for range in ports.ranges() {
        if left == 0 {
            break;
        }
        let length = u32::from(range.last) - u32::from(range.first) + 1;
        let take = length.min(left);
        let last = u32::from(range.first) + take - 1;
        taken.push(PortRange { first: range.first, last: u16::try_from(last).unwrap_or(u16::MAX) });
        left -= take;
    }
    taken.into_iter().collect()
}

/// One process to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Role {
    /// Before each line that it writes.
    pub(crate) name: String,
    pub(crate) args: Vec<OsString>,
}

fn role(name: String, verb: &str, args: &[(&str, OsString)]) -> Role {
    let mut all: Vec<OsString> = vec![verb.into(), "--stop-when-stdin-closes".into()];
    for (flag, value) in args {
        // One word each: a value that begins with a dash stays a value.
        let mut word = OsString::from(format!("--{flag}="));
        word.push(value);
        all.push(word);
    }
    Role { name, args: all }
}

pub(crate) fn master(listen: &str, dir: &Path) -> Role {
    role("master".into(), "master", &[("listen", listen.into()), ("data-dir", dir.join("master").into())])
}

/// Below `files` lie the `file://` inputs that jobs may name.
pub(crate) fn scheduler(master: &str, dir: &Path, files: &Path, further: &[(&str, OsString)]) -> Role {
    let mut args = vec![
        ("master", master.into()),
        ("listen", "127.0.0.1:0".into()),
        ("data-dir", dir.join("scheduler").into()),
        ("file-root", files.into()),
    ];
    args.extend_from_slice(further);
    role("scheduler".into(), "scheduler", &args)
}

/// Name of the file with [`NETWORK_POLICY`] below the cluster's directory.
pub(crate) const POLICY_NAME: &str = "network-policy.toml";
/// Where tasks of a cluster on one's own machine may connect to: also to what runs there, but for the cluster itself.
pub(crate) const NETWORK_POLICY: &str = "[default]\nconnect = [\"public\", \"127.0.0.0/8:*\", \"[::1]:*\"]\n";

/// Name of the file with [`FETCH_POLICY`] below the cluster's directory.
pub(crate) const FETCH_POLICY_NAME: &str = "fetch-policy.toml";
/// What tasks of a cluster on one's own machine may fetch: also from what runs there, but for the cluster itself. Their outputs may go to
/// buckets, for whose keys these are is who runs it, and below the directory that was named for them.
pub(crate) const FETCH_POLICY: &str =
    "[default]\naddresses = [\"public\", \"127.0.0.0/8:*\", \"[::1]:*\"]\nstore = [\"s3://*\", \"file:///\"]\n";

/// `number` from 1.
///
/// Below `files` lie the `file://` bundles and inputs that tasks may name.
pub(crate) fn agent(number: usize, master: &str, dir: &Path, share: &Share, files: &Path, further: &[(&str, String)]) -> Role {
    let name = format!("agent-{number}");
    let mut args = vec![
        ("master", master.into()),
        ("data-dir", dir.join(&name).into()),
        ("cpus", share.cpus.to_string().into()),
        ("mem", share.mem.0.to_string().into()),
        ("disk", share.disk.0.to_string().into()),
        ("ports", share.ports.to_string().into()),
        ("file-root", files.into()),
        // Whoever stops a cluster of one machine wants it to be gone.
        ("drain-timeout", "0s".into()),
    ];
    args.extend(further.iter().map(|(flag, value)| (*flag, value.into())));
    role(name, "agent", &args)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn total(agents: u32, cpus: u64, mem: u64, ports: &str) -> Total {
        Total { agents, cpus: MilliCpus(cpus), mem: Bytes(mem), disk: Bytes(1001), ports: ports.parse().unwrap() }
    }

    proptest! {
        #[test]
        fn the_shares_add_up_to_the_total(agents in 1_u32..20, cpus in 200_u64..100_000, mem in 100_u64..1_000_000, first in 1_u16..2000, n in 0_u16..1500) {
            let total = Total {
                ports: [PortRange { first, last: first + n }, PortRange { first: 40_000, last: 40_003 }].into_iter().collect(),
                ..total(agents, cpus, mem, "")
            };
            let shares = divide(&total).unwrap();
            prop_assert_eq!(shares.len(), agents as usize);
            prop_assert_eq!(shares.iter().map(|s| s.cpus.0).sum::<u64>(), cpus);
            prop_assert_eq!(shares.iter().map(|s| s.mem.0).sum::<u64>(), mem);
            prop_assert_eq!(shares.iter().map(|s| s.disk.0).sum::<u64>(), 1001);
            let mut ports = PortSet::default();
            for share in &shares {
                prop_assert!(ports.is_disjoint(&share.ports));
                ports = ports.union(&share.ports);
            }
            prop_assert_eq!(ports, total.ports);
        }
    }

    #[test]
    fn ports_go_in_ranges_and_too_little_is_refused() {
        let shares = divide(&total(2, 2000, 4 << 30, "31000-32000")).unwrap();
        assert_eq!(shares.iter().map(|s| s.ports.to_string()).collect::<Vec<_>>(), ["31000-31500", "31501-32000"]);
        assert!(divide(&total(2, 19, 4 << 30, "")).is_err());
        assert!(divide(&total(2, 2000, 1, "")).is_err());
    }

    #[test]
    fn every_role_ends_with_its_parent() {
        let share = divide(&total(1, 2000, 4096, "5-9")).unwrap().remove(0);
        let dir = Path::new("/d");
        for role in [master("a", dir), scheduler("a", dir, dir, &[]), agent(1, "a", dir, &share, dir, &[])] {
            assert!(role.args.contains(&"--stop-when-stdin-closes".into()), "{role:?}");
        }
        let second = agent(2, "a", dir, &share, dir, &[("isolation", "auto".into())]);
        assert!(second.args.contains(&"--data-dir=/d/agent-2".into()) && second.args.contains(&"--isolation=auto".into()));
    }
}
