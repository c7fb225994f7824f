//! What the user named as a bundle or input: a file of the client, a digest, or a URI.

use crate::failure::{Failure, NO_BUNDLE, Result};
use smalti_fetch::{Location, Pin, shown};
use smalti_types::Digest;
use std::ffi::OsStr;
use std::path::PathBuf;

/// Schemes that agents fetch from.
const SCHEMES: [&str; 5] = ["http", "https", "s3", "oci", "file"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A path on this machine: hashed and uploaded.
    File(PathBuf),
    /// Something that the cluster's store has.
    Stored(Digest),
    /// Passed on as it is. Without a BLAKE3 it is resolved once, when the job is submitted, and not here.
    Uri { uri: String, pin: Option<Pin> },
}

/// Whether `text` begins with a scheme that agents fetch from.
pub(crate) fn is_uri(text: &str) -> bool {
    scheme(text).is_some_and(|s| SCHEMES.contains(&s))
}

/// The part before `://`, when it could be a scheme.
fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once("://")?;
    let ok = !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    ok.then_some(scheme)
}

impl Source {
    /// Reads what the user wrote, without looking at any file.
    ///
    /// # Errors
    /// A `blake3:` without 64 digits, an unknown scheme, a URI with a pin that is none.
    pub(crate) fn parse(text: &OsStr) -> Result<Self> {
        let Some(utf8) = text.to_str() else { return Ok(Self::File(text.into())) };
        if utf8.starts_with("blake3:") {
            return utf8.parse().map(Self::Stored).map_err(|e| Failure::with_code(NO_BUNDLE, format!("{e}")));
        }
        let Some(scheme) = scheme(utf8) else { return Ok(Self::File(text.into())) };
        if !SCHEMES.contains(&scheme) {
            return Err(Failure::with_code(
                NO_BUNDLE,
                format!(
                    "{}: the scheme `{scheme}` is not known; use a path, blake3:<hex>, or http://, https://, s3://, oci://, file://",
                    shown(utf8)
                ),
            ));
        }
        let (uri, pin) = Pin::split(utf8).map_err(|e| Failure::with_code(NO_BUNDLE, e.to_string()))?;
        Ok(Self::Uri { uri: uri.to_owned(), pin })
    }

    /// Last part of a path or URI: what the guest file or the job is called.
    pub(crate) fn base_name(&self) -> String {
        match self {
            Self::File(path) => path.file_name().map_or_else(|| "input".into(), |n| n.to_string_lossy().into_owned()),
            Self::Stored(digest) => digest.to_hex()[..16].to_owned(),
            Self::Uri { uri, .. } => Location::parse(Some(uri), None).ok().and_then(|l| l.file_name()).unwrap_or_else(|| "input".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Source> {
        Source::parse(OsStr::new(text))
    }

    #[test]
    fn paths_digests_and_uris_are_told_apart() {
        let digest = Digest::of(b"x");
        assert_eq!(parse("a/b.wasm").unwrap(), Source::File("a/b.wasm".into()));
        assert_eq!(parse("a:b").unwrap(), Source::File("a:b".into()));
        assert_eq!(parse(&digest.to_string()).unwrap(), Source::Stored(digest));
        assert_eq!(parse("s3://b/k").unwrap(), Source::Uri { uri: "s3://b/k".into(), pin: None });
        let pinned = parse(&format!("https://h/x.wasm?v=1#blake3={}", digest.to_hex())).unwrap();
        assert_eq!(pinned, Source::Uri { uri: "https://h/x.wasm?v=1".into(), pin: Some(Pin::Blake3(digest)) });
        assert_eq!(pinned.base_name(), "x.wasm");
        let sha256 = format!("oci://h/x:v1#sha256={}", digest.to_hex());
        assert_eq!(parse(&sha256).unwrap(), Source::Uri { uri: "oci://h/x:v1".into(), pin: Some(Pin::Sha256(*digest.as_bytes())) });
        assert!(is_uri("file:///x") && !is_uri("ftp://x") && !is_uri("/x"));
    }

    #[test]
    fn a_pin_of_zeros_is_not_taken_for_no_pin() {
        assert_eq!(parse(&format!("file:///x#blake3={}", "0".repeat(64))).unwrap_err().code, NO_BUNDLE);
    }

    #[test]
    fn what_names_nothing_exits_with_127() {
        for bad in ["blake3:12", "ftp://h/x", "http://h/x#blake3=zz", "http://h/x#sha256=12"] {
            assert_eq!(parse(bad).unwrap_err().code, NO_BUNDLE, "{bad}");
        }
    }
}
