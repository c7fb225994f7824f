//! `URI#blake3=…` and `URI#sha256=…`: what a URI's bytes must be.
//!
//! Owns the syntax. Deliberately absent: which digest names a bundle; a SHA-256 is checked once, at submission, where the BLAKE3 is found.

use crate::location::shown;
use smalti_types::Digest;

/// A digest that a person gave with a URI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pin {
    /// What names bundles everywhere.
    Blake3(Digest),
    /// What release pages and registries publish.
    Sha256([u8; 32]),
}

/// Why the part behind `#` is no pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{uri}: `{hex}` is not a {kind} digest; a pin is #{name}= and 64 hexadecimal digits, not all of them zero")]
pub struct PinError {
    uri: String,
    hex: String,
    kind: &'static str,
    name: &'static str,
}

/// What begins a pin, and its name for people.
const KINDS: [(&str, &str, &str); 2] = [("#blake3=", "BLAKE3", "blake3"), ("#sha256=", "SHA-256", "sha256")];

impl Pin {
    /// Takes the pin off a URI. Other text behind a `#` stays: it may be part of a key or a file's name.
    ///
    /// # Errors
    /// For a pin without 64 hexadecimal digits, and for zeros: nothing has that digest, and on the wire it means "not known yet".
    pub fn split(text: &str) -> Result<(&str, Option<Self>), PinError> {
        let found = KINDS.iter().filter_map(|kind| Some((text.rfind(kind.0)?, kind))).max_by_key(|(at, _)| *at);
        let Some((at, (marker, kind, name))) = found else { return Ok((text, None)) };
        let (uri, hex) = (&text[..at], &text[at + marker.len()..]);
        // The same form for both; BLAKE3's reader also takes care of upper case.
        let read = Digest::from_hex(hex).ok().filter(|d| d.as_bytes().iter().any(|b| *b != 0));
        let digest = read.ok_or_else(|| PinError { uri: shown(uri), hex: hex.chars().take(80).collect(), kind, name })?;
        Ok((uri, Some(if *name == "blake3" { Self::Blake3(digest) } else { Self::Sha256(*digest.as_bytes()) })))
    }

    /// As it stands behind a URI.
    #[must_use]
    pub fn suffix(&self) -> String {
        match self {
            Self::Blake3(digest) => format!("#blake3={}", digest.to_hex()),
            Self::Sha256(bytes) => format!("#sha256={}", hex(bytes)),
        }
    }
}

/// 64 hexadecimal digits.
pub(crate) fn hex(bytes: &[u8; 32]) -> String {
    Digest::from_bytes(*bytes).to_hex()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_taken_off_and_written_again() {
        let digest = Digest::of(b"x");
        for pin in [Pin::Blake3(digest), Pin::Sha256(*digest.as_bytes())] {
            let text = format!("https://h/x?v=1{}", pin.suffix());
            assert_eq!(Pin::split(&text), Ok(("https://h/x?v=1", Some(pin))));
        }
        assert_eq!(Pin::split("s3://b/a#1"), Ok(("s3://b/a#1", None)));
        assert_eq!(Pin::split("file:///a#b#c"), Ok(("file:///a#b#c", None)));
    }

    #[test]
    fn what_is_no_digest_is_named() {
        for bad in ["#blake3=", "#blake3=zz", "#sha256=12", &format!("#sha256={}", "0".repeat(64)), &format!("#blake3={}", "g".repeat(64))]
        {
            let error = Pin::split(&format!("https://u:secret@h/x?t=secret{bad}")).unwrap_err().to_string();
            assert!(error.contains("64 hexadecimal digits") && !error.contains("secret"), "{error}");
        }
    }
}
