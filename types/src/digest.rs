//! The name of a bundle: the BLAKE3 of its bytes, written `blake3:<64 hex digits>`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// BLAKE3 of a bundle's or blob's bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a digest: expected blake3: and 64 hexadecimal digits")]
pub struct DigestError(pub String);

impl Digest {
    /// Hashes `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
    /// From 32 raw bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
    /// The 32 raw bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
    /// The 64 hexadecimal digits without the prefix: the file name in a store.
    #[must_use]
    pub fn to_hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }
    /// Reads 64 hexadecimal digits without the prefix.
    ///
    /// # Errors
    /// [`DigestError`] for any other text.
    pub fn from_hex(hex: &str) -> Result<Self, DigestError> {
        blake3::Hash::from_hex(hex).map(|h| Self(*h.as_bytes())).map_err(|_| DigestError(hex.chars().take(80).collect()))
    }
}

impl From<blake3::Hash> for Digest {
    fn from(h: blake3::Hash) -> Self {
        Self(*h.as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("blake3:{}", self.to_hex()))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3:{}", self.to_hex())
    }
}

impl FromStr for Digest {
    type Err = DigestError;
    fn from_str(s: &str) -> Result<Self, DigestError> {
        let hex = s.strip_prefix("blake3:").ok_or_else(|| DigestError(s.chars().take(80).collect()))?;
        Self::from_hex(hex).map_err(|_| DigestError(s.chars().take(80).collect()))
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;
    fn try_from(s: String) -> Result<Self, DigestError> {
        s.parse()
    }
}

impl From<Digest> for String {
    fn from(d: Digest) -> Self {
        d.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_everything_else_is_refused() {
        let d = Digest::of(b"smalti");
        assert_eq!(d.to_string().parse(), Ok(d));
        for bad in ["", "blake3:", "blake3:zz", "sha256:00", &d.to_hex()] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
