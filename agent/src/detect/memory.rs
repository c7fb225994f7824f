//! How much memory this process and its children may use: the machine's, or what a control group leaves of it.

use crate::cgroup::{Controller, own_groups};
use smalti_types::Bytes;
use std::io;
use std::path::{Path, PathBuf};

/// The smallest of the machine's memory and the limits of all control groups around this process.
pub(super) fn available() -> io::Result<Bytes> {
    let machine = total(&std::fs::read_to_string("/proc/meminfo")?).ok_or_else(|| io::Error::other("no MemTotal line"))?;
    let (v1, v2) = own_groups();
    let v1 = v1.get(&Controller::Memory).map(|dir| limits(dir, "memory.limit_in_bytes")).unwrap_or_default();
    let v2 = v2.map(|dir| limits(&dir, "memory.max")).unwrap_or_default();
    Ok(Bytes(v1.into_iter().chain(v2).fold(machine, u64::min)))
}

/// `MemTotal:       24682904 kB`
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The limits of a group and of those above it, as far as the file system shows them.
fn limits(group: &Path, file: &str) -> Vec<u64> {
    let mut out = Vec::new();
    let mut dir: Option<PathBuf> = Some(group.to_owned());
    while let Some(d) = dir {
        match std::fs::read_to_string(d.join(file)) {
            // `max` is no number: no limit.
            Ok(text) => out.extend(text.trim().parse::<u64>().ok()),
            Err(_) if d != group => break,
            Err(_) => {}
        }
        dir = d.parent().map(Path::to_owned);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_all_groups_above_count() {
        assert_eq!(total("MemTotal:       24682904 kB\nMemFree: 1 kB\n"), Some(24_682_904 << 10));
        assert_eq!(total("garbage"), None);
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        for (d, text) in [(dir.path(), "100\n"), (&dir.path().join("a"), "max\n"), (&inner, "200\n")] {
            std::fs::write(d.join("memory.max"), text).unwrap();
        }
        assert_eq!(limits(&inner, "memory.max"), [200, 100]);
    }
}
