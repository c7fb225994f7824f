//! Protocol versions: what this build speaks, and whether a peer fits. N and N−1 work together in both directions.
//!
//! Owns the numbers and the words of the refusal. Does not know what a feature does: whoever uses one asks [`has`].

use crate::v1;

/// The protocol this build speaks.
pub const PROTOCOL: u32 = 1;
/// The oldest protocol this build understands (N−1; there is no version before the first).
pub const OLDEST: u32 = 1;
/// Agents tell what their caches hold, and ask where to fetch from.
pub const HOLDINGS: &str = "holdings";
/// Optional parts of the protocol that this build understands.
pub const FEATURES: &[&str] = &[HOLDINGS];

/// What this build says of itself in Register and Subscribe.
#[must_use]
pub fn current() -> v1::Version {
    v1::Version {
        protocol: PROTOCOL,
        features: FEATURES.iter().map(|f| (*f).to_owned()).collect(),
        build: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Whether a peer understands `feature`.
#[must_use]
pub fn has(peer: &v1::Version, feature: &str) -> bool {
    peer.features.iter().any(|f| f == feature)
}

/// Whether the peer and this build can talk. A newer peer is welcome: it decides itself whether we are too old for it.
///
/// # Errors
/// A sentence for people that names both versions.
#[expect(clippy::needless_pass_by_value, reason = "messages are taken apart when they arrive")]
pub fn check(peer: v1::Version) -> Result<(), String> {
    if peer.protocol >= OLDEST {
        return Ok(());
    }
    let build: String = peer.build.chars().take(64).collect();
    Err(format!(
        "protocol {} (smalti {}) is too old: this side speaks {PROTOCOL} (smalti {}) and understands {OLDEST} and later; upgrade the older one",
        peer.protocol,
        if build.is_empty() { "of unknown version" } else { &build },
        env!("CARGO_PKG_VERSION"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_peer_is_refused_with_both_versions() {
        assert_eq!(check(current()), Ok(()));
        let refusal = check(v1::Version { protocol: 0, build: "0.0.1".into(), ..Default::default() }).unwrap_err();
        assert!(refusal.contains("protocol 0 (smalti 0.0.1)") && refusal.contains("speaks 1"), "{refusal}");
    }
}
