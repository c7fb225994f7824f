//! Facts that tasks can be placed by.

use smalti_types::Attributes;
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Processor features worth choosing an agent by, under the names that /proc/cpuinfo uses. Not the whole flags line: every
/// attribute of every agent is kept by the master and sent with every offer.
const FEATURES: &[&str] = &[
    "sse3",
    "pni",
    "ssse3",
    "sse4_1",
    "sse4_2",
    "popcnt",
    "abm",
    "avx",
    "avx2",
    "fma",
    "bmi1",
    "bmi2",
    "f16c",
    "aes",
    "sha_ni",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512_vnni",
    "amx_tile",
    "asimd",
    "atomics",
    "crc32",
    "sha2",
    "sve",
    "sve2",
    "asimddp",
];

/// Attributes of this node, with `more` on top: what the operator says wins.
#[must_use]
pub fn attributes(more: &Attributes) -> Attributes {
    let mut all = BTreeMap::from([
        ("arch".to_owned(), std::env::consts::ARCH.to_owned()),
        ("os".to_owned(), std::env::consts::OS.to_owned()),
        ("hostname".to_owned(), hostname()),
    ]);
    if let Ok(name) = nix::sys::utsname::uname() {
        all.insert("kernel".to_owned(), name.release().to_string_lossy().into_owned());
    }
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let features = features(&cpuinfo);
    if !features.is_empty() {
        all.insert("cpu_features".to_owned(), features);
    }
    all.extend(more.0.clone());
    Attributes(all)
}

/// This node's name, `unknown` when it has none.
#[must_use]
pub fn hostname() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).filter(|n| !n.is_empty());
    name.unwrap_or_else(|| "unknown".to_owned())
}

/// Changes when the machine is started again.
#[must_use]
pub fn boot_id() -> String {
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(|| std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()).clone()
}

/// Features of the first processor, sorted, separated by commas.
fn features(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find(|l| l.starts_with("flags") || l.starts_with("Features"));
    let words = line.and_then(|l| l.split_once(':')).map_or("", |(_, w)| w);
    let mut found: Vec<&str> = words.split_whitespace().filter(|w| FEATURES.contains(w)).collect();
    found.sort_unstable();
    found.dedup();
    found.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_a_bounded_list() {
        assert_eq!(features("processor: 0\nflags\t\t: fpu avx2 vme avx\nflags : sse4_2"), "avx,avx2");
        assert_eq!(features("Features\t: fp asimd evtstrm"), "asimd");
        assert_eq!(features(""), "");
    }

    #[test]
    fn what_the_operator_says_wins() {
        let a = attributes(&"zone=eu;hostname=x".parse().unwrap());
        assert_eq!((a.0["zone"].as_str(), a.0["hostname"].as_str(), a.0["os"].as_str()), ("eu", "x", "linux"));
        assert!(!boot_id().is_empty());
    }
}
