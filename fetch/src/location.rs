//! Where one object lies, read from a URI; and how messages call it.
//!
//! Owns the syntax of all schemes, and that no message carries what may be secret in a URI: user names, passwords, and queries (signatures
//! of presigned URLs, tokens). Deliberately absent: who may go there (the policy), and what is there.

use crate::error::SourceError;
use percent_encoding::percent_decode_str;
use reqwest::Url;
use smalti_types::Digest;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Most characters of a URI that cannot be read in a message.
const MOST_SHOWN: usize = 200;
/// The schemes that can be read, as messages list them.
const SCHEMES: &str = "https://…, http://…, s3://bucket/key, oci://registry/repository:tag or file:///path";
/// Longest name of a repository in a registry (the distribution specification's).
const MAX_REPOSITORY: usize = 255;

/// Where one object lies.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Location {
    /// The cluster's own store, at the master.
    Store(Digest),
    /// Any HTTP or HTTPS address.
    Http(Url),
    /// An object in a bucket; the key is taken as it is written.
    S3 {
        /// Bucket.
        bucket: String,
        /// Key.
        key: String,
    },
    /// An artifact in a registry.
    Oci(OciReference),
    /// A file of the machine that fetches.
    File(PathBuf),
    /// At another agent. No URI says so: only the master tells which agents have it.
    Peer(SocketAddr, Digest),
}

/// `registry/repository:tag@digest`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OciReference {
    /// Host, with a port where it has one.
    pub registry: String,
    /// Lower case, with slashes.
    pub repository: String,
    /// A tag, or the digest of a manifest (`sha256:…`): the latter wins where both are given.
    pub reference: String,
}

impl Location {
    /// Reads a URI without a pin; `None` and `store:` are the cluster's store, which needs a digest.
    ///
    /// # Errors
    /// [`SourceError::Uri`] with what to write instead.
    pub fn parse(uri: Option<&str>, digest: Option<Digest>) -> Result<Self, SourceError> {
        let bad = |why: String| SourceError::Uri { uri: shown(uri.unwrap_or("store:")), why };
        let Some(uri) = uri.filter(|u| *u != "store:") else {
            return digest.map(Self::Store).ok_or_else(|| bad("an object in the cluster's store is named by its digest".into()));
        };
        if uri.contains('\0') {
            return Err(bad("it has a zero byte".into()));
        }
        let Some((scheme, rest)) = uri.split_once("://") else { return Err(bad(format!("write it like {SCHEMES}"))) };
        match scheme.to_ascii_lowercase().as_str() {
            "http" | "https" => Self::http(uri).map_err(bad),
            "s3" => Self::s3(rest).ok_or_else(|| bad("write it like s3://bucket/key".into())),
            "oci" => OciReference::parse(rest)
                .map(Self::Oci)
                .ok_or_else(|| bad("write it like oci://registry/repository:tag or oci://registry/repository@sha256:<64 digits>".into())),
            "file" => match rest.strip_prefix("localhost").unwrap_or(rest) {
                path if path.starts_with('/') => Ok(Self::File(path.into())),
                _ => Err(bad("write it like file:///path".into())),
            },
            other => Err(bad(format!("the scheme `{other}` is not known; use {SCHEMES}"))),
        }
    }

    fn http(uri: &str) -> Result<Self, String> {
        let mut url = Url::parse(uri).map_err(|e| e.to_string())?;
        if url.host_str().is_none_or(str::is_empty) {
            return Err("it has no host".into());
        }
        url.set_fragment(None);
        Ok(Self::Http(url))
    }

    fn s3(rest: &str) -> Option<Self> {
        let (bucket, key) = rest.split_once('/')?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let ok = !bucket.is_empty() && bucket.len() <= 255 && bucket.bytes().all(plain) && !key.is_empty();
        ok.then(|| Self::S3 { bucket: bucket.to_owned(), key: key.to_owned() })
    }

    /// The last part of its path, if it has one: what the object would be called as a file.
    #[must_use]
    pub fn file_name(&self) -> Option<String> {
        match self {
            Self::Store(_) | Self::Peer(..) => None,
            Self::Http(url) => clean_name(&percent_decode_str(url.path().rsplit('/').next()?).decode_utf8_lossy()),
            Self::S3 { key, .. } => clean_name(key.rsplit('/').next()?),
            Self::Oci(oci) => clean_name(&format!("{}.wasm", oci.repository.rsplit('/').next()?)),
            Self::File(path) => clean_name(path.to_str()?.rsplit('/').next()?),
        }
    }
}

impl std::fmt::Display for Location {
    /// For messages: without what may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Store(digest) => write!(f, "{digest} in the cluster's store"),
            Self::Http(url) => f.write_str(&shown(url.as_str())),
            Self::S3 { bucket, key } => write!(f, "s3://{bucket}/{key}"),
            Self::Oci(oci) => write!(f, "oci://{oci}"),
            Self::File(path) => write!(f, "file://{}", path.display()),
            Self::Peer(at, digest) => write!(f, "{digest} at the agent {at}"),
        }
    }
}

impl OciReference {
    fn parse(text: &str) -> Option<Self> {
        let (registry, rest) = text.split_once('/')?;
        let (named, digest) = match rest.split_once('@') {
            Some((named, digest)) => (named, Some(digest)),
            None => (rest, None),
        };
        let (repository, tag) = named.split_once(':').map_or((named, "latest"), |(r, t)| (r, t));
        let host = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
        let part = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        let parts = |p: &str| !p.is_empty() && p.bytes().all(part) && p.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let is_tag = !tag.is_empty() && tag.len() <= 128 && tag.bytes().all(word) && !tag.starts_with(['.', '-']);
        let is_digest = |d: &str| d.strip_prefix("sha256:").is_some_and(|hex| Digest::from_hex(hex).is_ok());
        let ok = !registry.is_empty()
            && registry.bytes().all(host)
            && repository.len() <= MAX_REPOSITORY
            && repository.split('/').all(parts)
            && is_tag
            && digest.is_none_or(is_digest);
        let reference = digest.map_or_else(|| tag.to_owned(), str::to_ascii_lowercase);
        ok.then(|| Self { registry: registry.to_ascii_lowercase(), repository: repository.to_owned(), reference })
    }

    /// The same repository at this manifest.
    #[must_use]
    pub fn at(&self, digest: &str) -> Self {
        Self { reference: digest.to_owned(), ..self.clone() }
    }

    /// Whether it names a manifest by its digest.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.reference.contains(':')
    }
}

impl std::fmt::Display for OciReference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mark = if self.is_exact() { '@' } else { ':' };
        write!(f, "{}/{}{mark}{}", self.registry, self.repository, self.reference)
    }
}

/// A URI as messages show it: without user, password and query, which may be secrets, and not longer than a line.
#[must_use]
pub fn shown(uri: &str) -> String {
    let cut = |text: &str| text.chars().take(MOST_SHOWN).collect::<String>();
    let Some((scheme, rest)) = uri.split_once("://") else { return cut(uri) };
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return cut(uri);
    }
    let (plain, query) = rest.split_once('?').map_or((rest, ""), |(plain, _)| (plain, "?…"));
    let host_ends = plain.find('/').unwrap_or(plain.len());
    let (authority, path) = plain.split_at(host_ends);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    cut(&format!("{scheme}://{host}{path}{query}"))
}

/// A file name that may become an argument and part of messages.
#[must_use]
pub fn clean_name(name: &str) -> Option<String> {
    let name: String = name.chars().filter(|c| !c.is_control() && *c != '/').take(128).collect();
    (!name.is_empty() && name != "." && name != "..").then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(uri: &str) -> Result<Location, SourceError> {
        Location::parse(Some(uri), None)
    }

    #[test]
    fn places_are_read_and_the_rest_is_refused_with_what_to_write() {
        let digest = Digest::of(b"x");
        assert_eq!(Location::parse(None, Some(digest)).unwrap(), Location::Store(digest));
        assert_eq!(Location::parse(Some("store:"), Some(digest)).unwrap(), Location::Store(digest));
        assert_eq!(parse("s3://b/k/l.wasm").unwrap(), Location::S3 { bucket: "b".into(), key: "k/l.wasm".into() });
        assert_eq!(parse("s3://b/a b'\"?#ä").unwrap(), Location::S3 { bucket: "b".into(), key: "a b'\"?#ä".into() });
        assert_eq!(parse("file:///a#b").unwrap(), Location::File("/a#b".into()));
        assert_eq!(parse("file://localhost/a").unwrap(), Location::File("/a".into()));
        for bad in [
            "",
            "x",
            "ftp://h/x",
            "s3://b",
            "s3:///k",
            "s3://u@h/k",
            "file://host/x",
            "store:",
            "http://",
            "https://[::",
            "http://h:99999/x",
        ] {
            assert!(matches!(parse(bad), Err(SourceError::Uri { .. })), "{bad}");
        }
    }

    #[test]
    fn any_name_may_be_part_of_an_address() {
        let Location::Http(url) = parse("https://h/a b/\u{e4}'\".wasm?q=a b#x").unwrap() else { panic!("not HTTP") };
        assert_eq!(url.as_str(), "https://h/a%20b/%C3%A4'%22.wasm?q=a%20b");
    }

    #[test]
    fn artifacts_are_named_as_registries_name_them() {
        let hex = "a".repeat(64);
        for (text, shown, exact) in [
            ("oci://ghcr.io/o/r:v1", "oci://ghcr.io/o/r:v1".to_owned(), false),
            ("oci://localhost:5000/r", "oci://localhost:5000/r:latest".to_owned(), false),
            (&format!("oci://h/r:v1@sha256:{hex}"), format!("oci://h/r@sha256:{hex}"), true),
            (&format!("oci://h/r@sha256:{hex}"), format!("oci://h/r@sha256:{hex}"), true),
        ] {
            let Location::Oci(oci) = parse(text).unwrap() else { panic!("{text}") };
            assert_eq!((Location::Oci(oci.clone()).to_string(), oci.is_exact()), (shown, exact));
        }
        for bad in
            ["oci://h", "oci://h/", "oci://h/R:v", "oci://h/../r", "oci://h/r:", "oci://h/r@sha256:12", "oci://h/r@md5:12", "oci://u@h/r"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_object_is_called_by_the_last_part_of_its_path() {
        for (uri, name) in [
            ("http://h/a/b.wasm?x=/y", Some("b.wasm")),
            ("http://h/a%20b.wasm", Some("a b.wasm")),
            ("http://h", None),
            ("http://h/", None),
            ("s3://b/k/l.tar.gz", Some("l.tar.gz")),
            ("oci://h/o/tool:v1", Some("tool.wasm")),
            ("file:///x/y", Some("y")),
        ] {
            assert_eq!(parse(uri).unwrap().file_name().as_deref(), name, "{uri}");
        }
    }

    #[test]
    fn no_message_has_what_may_be_secret() {
        for uri in ["https://user:hush@h/x?X-Amz-Signature=hush", "http://hush@h/x?hush", "HTTPS://a:b@hush@h/x?t=hush"] {
            assert!(!shown(uri).contains("hush"), "{}", shown(uri));
            assert!(!parse(uri).unwrap().to_string().contains("hush"));
            assert!(shown(uri).contains("h/x?…"));
        }
        assert!(!parse("https://u:hush@[::/x?hush").unwrap_err().to_string().contains("hush"));
        assert_eq!(shown("s3://b/what?is@this"), "s3://b/what?is@this");
    }
}
