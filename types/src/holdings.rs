//! What agents hold in their caches, in as few bytes as will do: so that work is placed where its bundle and its inputs are, and agents
//! fetch from each other.
//!
//! Owns the short names of content and how an agent tells of changes. A short name is a hint and opens nothing: whoever acts on it checks the
//! content itself and the right to it. Holdings are told by role, since a role is shown only what it holds itself.

use crate::digest::Digest;
use crate::id::Role;
use crate::task::Input;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Most short names that one agent tells of: those that it used last.
pub const MAX_HOLDINGS: usize = 512;

/// Content in eight bytes: the first ones of its BLAKE3 as a little-endian number, or of the BLAKE3 of what else pins it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HoldingKey(pub u64);

impl HoldingKey {
    /// Of a bundle, or of an input whose digest is known.
    #[must_use]
    pub fn of_digest(digest: &Digest) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = *digest.as_bytes();
        Self(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }

    /// Of an input: by its digest, else by URI, version and length (BLAKE3 of the three with a zero byte between them, the length in decimal).
    /// `None` when nothing pins its content: it is fetched anew each time.
    #[must_use]
    pub fn of_input(input: &Input) -> Option<Self> {
        if let Some(digest) = &input.digest {
            return Some(Self::of_digest(digest));
        }
        let (uri, version) = (input.uri.as_deref()?, input.etag.as_deref()?);
        Some(Self::of_digest(&Digest::of(format!("{uri}\0{version}\0{}", input.length).as_bytes())))
    }
}

impl fmt::Debug for HoldingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0.swap_bytes())
    }
}

/// Under which other agents reach one: an address with a port. A value like others; nobody dials it here.
pub type PeerAddress = std::net::SocketAddr;

/// News of what one agent holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HoldingsNews {
    /// What was told before on this connection is void.
    pub all: bool,
    /// Under which other agents can fetch from it; `None`: they cannot.
    pub address: Option<PeerAddress>,
    /// By role.
    pub changes: BTreeMap<Role, HoldingsChange>,
}

/// What has changed for one role.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HoldingsChange {
    /// Held from now on.
    pub added: Vec<HoldingKey>,
    /// Not any more.
    pub removed: Vec<HoldingKey>,
}

/// How a fetch ended that the master was asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocateOutcome {
    /// Nobody wants it here any more.
    GivenUp,
    /// The agent has it; others may fetch from it.
    Held,
    /// It could not be had from there, or was not what it should be.
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_is_the_beginning_of_the_digest() {
        let digest = Digest::of(b"x");
        assert!(digest.to_hex().starts_with(&format!("{:?}", HoldingKey::of_digest(&digest))));
    }

    #[test]
    fn inputs_are_named_by_what_pins_them() {
        let named = |uri: &str| Input {
            guest_path: None,
            uri: Some(uri.into()),
            digest: None,
            length: 1,
            etag: Some("\"1\"".into()),
            packing: None,
        };
        let key = |input: &Input| HoldingKey::of_input(input);
        let one = named("http://h/1");
        assert_eq!(key(&one), key(&Input { guest_path: Some("/x".into()), ..one.clone() }), "wherever the guest sees it");
        assert_ne!(key(&one), key(&named("http://h/2")));
        assert_ne!(key(&one), key(&Input { etag: Some("\"2\"".into()), ..one.clone() }));
        assert_ne!(key(&one), key(&Input { length: 2, ..one.clone() }));
        assert_eq!(key(&Input { etag: None, ..one.clone() }), None);
        let digest = Digest::of(b"x");
        assert_eq!(key(&Input { digest: Some(digest), ..one }), Some(HoldingKey::of_digest(&digest)), "the same content anywhere");
    }
}
