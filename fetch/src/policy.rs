//! Which places a role may fetch from, by the operator's word. Pure.
//!
//! Owns the file's form, the patterns and their matching. Which addresses a name may stand for is `smalti_types::connect`'s, by rules that
//! stand in the same file; they are asked at connect time and for every redirect. Deliberately absent: look-ups and requests. The cluster's
//! own store is always allowed here: who may use which of its digests is the store's to say.

use crate::error::SourceError;
use crate::location::Location;
use reqwest::Url;
use serde::Deserialize;
use smalti_types::Role;
use smalti_types::connect::{Rule, RuleError};
use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

/// Most patterns, and most rules, of one role.
const MAX_ENTRIES: usize = 10_000;
/// What a role may fetch from when nobody says anything.
const DEFAULT_ALLOW: [&str; 5] = ["https://*", "http://*", "s3://*", "oci://*", "file://*"];
/// To which addresses its names may lead then.
const DEFAULT_ADDRESSES: [&str; 1] = ["public"];

/// A host, or some of them.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    Any,
    /// `*.example.org`: with the dot.
    Below(String),
    One(String),
}

/// Ports of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Port {
    Any,
    One(u16),
}

/// Some places.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Http {
        scheme: String,
        hosts: Hosts,
        port: Port,
        path: String,
    },
    /// `None`: every bucket.
    S3 {
        bucket: Option<String>,
        prefix: String,
    },
    /// With its port, if it has one.
    Oci {
        registry: Hosts,
        repository: String,
    },
    File {
        below: String,
    },
}

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a pattern: write https://HOST[:PORT][/PATH], http://…, s3://BUCKET[/PREFIX], oci://REGISTRY[/REPOSITORY] or file:///DIR, \
     with * for every host or bucket and *.example.org for those below a name"
)]
pub struct PatternError(String);

/// What one role may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    allow: Vec<Pattern>,
    /// Where outputs may be written to; `None`: below the directories that the operator names for it, and nowhere else.
    store: Option<Vec<Pattern>>,
    /// Where names may lead.
    pub(crate) addresses: Vec<Rule>,
}

/// The operator's word for all roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    default: Arc<Section>,
    roles: BTreeMap<String, Arc<Section>>,
}

/// Why a text is no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Not the form of the file.
    #[error("{0}")]
    Form(#[from] toml::de::Error),
    /// A pattern makes no sense.
    #[error("{section}: {source}")]
    Pattern {
        /// In which section.
        section: String,
        /// What is wrong.
        source: PatternError,
    },
    /// A rule for addresses makes no sense.
    #[error("{section}: {source}")]
    Rule {
        /// In which section.
        section: String,
        /// What is wrong.
        source: RuleError,
    },
    /// Outputs cannot be written there at all.
    #[error("{section}: store: `{text}` is no place for outputs; write s3://BUCKET[/PREFIX] or file:///DIR")]
    Store {
        /// In which section.
        section: String,
        /// The pattern.
        text: String,
    },
    /// Too many of them.
    #[error("{section}: more than {MAX_ENTRIES} entries")]
    TooMany {
        /// In which section.
        section: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileForm {
    default: Option<SectionForm>,
    #[serde(default)]
    role: BTreeMap<String, SectionForm>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct SectionForm {
    allow: Option<Vec<String>>,
    store: Option<Vec<String>>,
    addresses: Option<Vec<String>>,
}

impl FromStr for Hosts {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let text = text.to_ascii_lowercase();
        match text.strip_prefix('*') {
            Some("") => Ok(Self::Any),
            Some(below) if below.len() > 1 && below.starts_with('.') && !below.contains('*') => Ok(Self::Below(below.to_owned())),
            None if !text.is_empty() && !text.contains(['*', '@', ' ']) => Ok(Self::One(text)),
            _ => Err(()),
        }
    }
}

impl Hosts {
    fn contains(&self, host: &str) -> bool {
        // A name with its final dot is the same name.
        let host = host.trim_end_matches('.');
        match self {
            Self::Any => true,
            Self::Below(suffix) => host.ends_with(suffix) && host.len() > suffix.len(),
            Self::One(name) => host == name.trim_end_matches('.'),
        }
    }
}

/// Whether `path` is `prefix` or below it. A prefix without a slash at its end does not end in the middle of a name.
fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| prefix.is_empty() || prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/'))
}

/// Some servers read these as a slash, and then the path is another one.
fn hides_a_slash(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    path.contains("%2f") || path.contains("%5c") || path.contains("%2e")
}

impl FromStr for Pattern {
    type Err = PatternError;
    fn from_str(text: &str) -> Result<Self, PatternError> {
        let error = || PatternError(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(error)?;
        let (first, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if path.contains('*') && path != "/*" {
            return Err(error());
        }
        let path = path.trim_end_matches('*');
        let below = path.trim_start_matches('/').to_owned();
        match scheme {
            "http" | "https" => {
                let default = if scheme == "https" { 443 } else { 80 };
                let bracketed = first.rfind(']').map_or(0, |at| at + 1);
                let (host, port) = match first[bracketed..].rfind(':') {
                    Some(at) => (&first[..bracketed + at], Some(&first[bracketed + at + 1..])),
                    None => (first, None),
                };
                let hosts: Hosts = host.parse().map_err(|()| error())?;
                let port = match port {
                    Some("*") => Port::Any,
                    Some(port) => Port::One(port.parse().map_err(|_| error())?),
                    None if hosts == Hosts::Any => Port::Any,
                    None => Port::One(default),
                };
                // In the form in which paths are compared.
                let path = if path.is_empty() { String::new() } else { encoded(path).ok_or_else(error)? };
                Ok(Self::Http { scheme: scheme.to_owned(), hosts, port, path })
            }
            "s3" if first == "*" && below.is_empty() => Ok(Self::S3 { bucket: None, prefix: String::new() }),
            "s3" if !first.is_empty() && !first.contains('*') => Ok(Self::S3 { bucket: Some(first.to_owned()), prefix: below }),
            "oci" => Ok(Self::Oci { registry: first.parse().map_err(|()| error())?, repository: below }),
            "file" if first == "*" && path.is_empty() => Ok(Self::File { below: "/".into() }),
            "file" if first.is_empty() && !path.is_empty() => Ok(Self::File { below: path.to_owned() }),
            _ => Err(error()),
        }
    }
}

fn encoded(path: &str) -> Option<String> {
    Some(Url::parse(&format!("http://h{path}")).ok()?.path().to_owned())
}

impl Pattern {
    fn contains(&self, location: &Location) -> bool {
        match (self, location) {
            (Self::Http { scheme, hosts, port, path }, Location::Http(url)) => {
                let same_port = match port {
                    Port::Any => true,
                    Port::One(port) => url.port_or_known_default() == Some(*port),
                };
                let below = path.is_empty() || (is_below(url.path(), path) && (path == "/" || !hides_a_slash(url.path())));
                url.scheme() == scheme && same_port && url.host_str().is_some_and(|h| hosts.contains(h)) && below
            }
            (Self::S3 { bucket: wanted, prefix }, Location::S3 { bucket, key }) => {
                wanted.as_ref().is_none_or(|w| w == bucket) && is_below(key, prefix)
            }
            (Self::Oci { registry, repository }, Location::Oci(oci)) => {
                registry.contains(&oci.registry) && is_below(&oci.repository, repository)
            }
            // Links are resolved where the file is opened; what stands here must not lead back up.
            (Self::File { below }, Location::File(path)) => {
                let up = path.components().any(|c| c == std::path::Component::ParentDir);
                below == "/" || (!up && path.starts_with(below))
            }
            _ => false,
        }
    }
}

impl Default for Policy {
    /// Every scheme, and names that lead to public addresses.
    fn default() -> Self {
        let patterns = DEFAULT_ALLOW.iter().filter_map(|p| p.parse().ok()).collect();
        Self { default: Arc::new(Section { allow: patterns, store: None, addresses: vec![Rule::Public] }), roles: BTreeMap::new() }
    }
}

impl FromStr for Policy {
    type Err = PolicyError;
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let file: FileForm = toml::from_str(text)?;
        let default = Arc::new(section("[default]", file.default.unwrap_or_default())?);
        let mut roles = BTreeMap::new();
        for (role, form) in file.role {
            let section = section(&format!("[role.{role:?}]"), form)?;
            roles.insert(role, Arc::new(section));
        }
        Ok(Self { default, roles })
    }
}

fn section(name: &str, form: SectionForm) -> Result<Section, PolicyError> {
    let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    let allow: Vec<String> = form.allow.unwrap_or_else(|| owned(&DEFAULT_ALLOW));
    let addresses: Vec<String> = form.addresses.unwrap_or_else(|| owned(&DEFAULT_ADDRESSES));
    let stores = form.store.as_deref().unwrap_or_default();
    if allow.len() > MAX_ENTRIES || addresses.len() > MAX_ENTRIES || stores.len() > MAX_ENTRIES {
        return Err(PolicyError::TooMany { section: name.to_owned() });
    }
    let pattern = |text: &String| text.parse().map_err(|source| PolicyError::Pattern { section: name.to_owned(), source });
    let rule = |text: &String| text.parse().map_err(|source| PolicyError::Rule { section: name.to_owned(), source });
    let store = |text: &String| match pattern(text)? {
        Pattern::Http { .. } | Pattern::Oci { .. } => Err(PolicyError::Store { section: name.to_owned(), text: text.clone() }),
        fine => Ok(fine),
    };
    Ok(Section {
        store: form.store.as_ref().map(|list| list.iter().map(store).collect::<Result<_, _>>()).transpose()?,
        allow: allow.iter().map(pattern).collect::<Result<_, _>>()?,
        addresses: addresses.iter().map(rule).collect::<Result<_, _>>()?,
    })
}

impl Policy {
    /// Whoever uses it is its own operator: every place, and every address that can be dialled. For the client's own command line.
    #[must_use]
    pub fn open() -> Self {
        let rules = [
            "public",
            "127.0.0.0/8:*",
            "[::1]:*",
            "10.0.0.0/8:*",
            "172.16.0.0/12:*",
            "192.168.0.0/16:*",
            "100.64.0.0/10:*",
            "[fc00::/7]:*",
        ];
        let section = Section { addresses: rules.iter().filter_map(|r| r.parse().ok()).collect(), ..(*Self::default().default).clone() };
        Self { default: Arc::new(section), roles: BTreeMap::new() }
    }

    /// What a role may do.
    pub(crate) fn section(&self, role: &Role) -> &Arc<Section> {
        self.roles.get(role.as_str()).unwrap_or(&self.default)
    }

    /// Whether `role` may fetch from there, as far as the place's name goes.
    ///
    /// # Errors
    /// [`SourceError::Refused`] with what would help.
    pub fn check(&self, role: &Role, location: &Location) -> Result<(), SourceError> {
        if matches!(location, Location::Store(_) | Location::Peer(..)) || self.section(role).allow.iter().any(|p| p.contains(location)) {
            return Ok(());
        }
        let why = format!("role {} may not fetch from there; the operator would have to allow it in the fetch policy", named(role));
        Err(SourceError::refused(&location.to_string(), why))
    }
}

impl Policy {
    /// Whether outputs of `role` may be written there. Nothing may, where nobody said so.
    ///
    /// # Errors
    /// [`SourceError::Refused`] with what would help.
    pub(crate) fn check_store(&self, role: &Role, location: &Location) -> Result<(), SourceError> {
        let allowed = match &self.section(role).store {
            Some(patterns) => patterns.iter().any(|p| p.contains(location)),
            // Below which directories is looked at where it is opened.
            None => matches!(location, Location::File(_)),
        };
        if allowed {
            return Ok(());
        }
        let why = format!("role {} may not write there; the operator would have to allow it with `store` in the fetch policy", named(role));
        Err(SourceError::refused(&location.to_string(), why))
    }
}

/// A role in a message.
pub(crate) fn named(role: &Role) -> String {
    if role.as_str().is_empty() { "(none)".to_owned() } else { format!("`{}`", role.as_str()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn may(allow: &[&str], uri: &str) -> bool {
        let policy: Policy = format!("[default]\nallow = {allow:?}").parse().unwrap();
        policy.check(&Role::default(), &Location::parse(Some(uri), None).unwrap()).is_ok()
    }

    #[test]
    fn places_are_allowed_by_scheme_host_port_and_prefix() {
        for (allow, uri, expected) in [
            ("https://*", "https://h:8443/x", true),
            ("https://*", "http://h/x", false),
            ("https://example.org", "https://example.org/x", true),
            ("https://example.org", "https://EXAMPLE.org./x", true),
            ("https://example.org", "https://example.org:8443/x", false),
            ("https://example.org:*", "https://example.org:8443/x", true),
            ("https://example.org", "https://evil-example.org/x", false),
            ("https://example.org", "https://example.org.evil/x", false),
            ("https://example.org", "https://example.org@evil/x", false),
            ("https://*.example.org", "https://a.b.example.org/x", true),
            ("https://*.example.org", "https://example.org/x", false),
            ("https://*.example.org", "https://aexample.org/x", false),
            ("https://h/a", "https://h/a/x", true),
            ("https://h/a", "https://h/ab", false),
            ("https://h/a/", "https://h/a/../b", false),
            ("https://h/a/", "https://h/a/%2e%2e/b", false),
            ("https://h/a/", "https://h/a/..%2fb", false),
            ("https://h/a b/", "https://h/a%20b/x", true),
            ("http://[::1]:80", "http://[::1]/x", true),
            ("s3://*", "s3://any/k", true),
            ("s3://b", "s3://b/k", true),
            ("s3://b", "s3://bb/k", false),
            ("s3://b/team-a/", "s3://b/team-a/k", true),
            ("s3://b/team-a", "s3://b/team-ab/k", false),
            ("s3://b/team-a/", "s3://b/team-b/k", false),
            ("oci://ghcr.io/org", "oci://ghcr.io/org/x:v1", true),
            ("oci://ghcr.io/org", "oci://ghcr.io/organ/x:v1", false),
            ("oci://ghcr.io", "oci://docker.io/x", false),
            ("file:///data", "file:///data/x", true),
            ("file:///data", "file:///data/../etc/x", false),
            ("file:///data", "file:///database", false),
        ] {
            assert_eq!(may(&[allow], uri), expected, "{uri} by {allow}");
        }
        assert!(!may(&[], "https://h/x"));
    }

    #[test]
    fn a_role_without_a_section_has_the_default_and_the_store_is_everybodys() {
        let policy: Policy = "[default]\nallow = []\n[role.\"web\"]\nallow = [\"https://*\"]\n".parse().unwrap();
        let (web, other) = (Role::new("web").unwrap(), Role::new("other").unwrap());
        let place = Location::parse(Some("https://h/x?token=hush"), None).unwrap();
        assert!(policy.check(&web, &place).is_ok());
        let refused = policy.check(&other, &place).unwrap_err().to_string();
        assert!(refused.contains("`other`") && refused.contains("fetch policy") && !refused.contains("hush"), "{refused}");
        assert!(policy.check(&other, &Location::Store(smalti_types::Digest::of(b"x"))).is_ok());
    }

    #[test]
    fn nonsense_is_named() {
        for bad in
            ["h", "ftp://h", "https://", "https://*x", "https://h/*.wasm", "https://h:p", "s3://", "s3://a*", "file://h/x", "file://"]
        {
            let error = format!("[default]\nallow = [{bad:?}]").parse::<Policy>().expect_err(bad).to_string();
            assert!(error.contains("[default]") && error.contains(bad), "{error}");
        }
        assert!("[default]\naddresses = [\"everything\"]".parse::<Policy>().is_err());
        assert!("[default]\nconnect = []".parse::<Policy>().is_err(), "a word that is not known");
    }

    proptest! {
        #[test]
        fn a_prefix_never_ends_inside_a_name(prefix in "[a-z/]{0,8}", path in "[a-z/]{0,12}") {
            if is_below(&path, &prefix) {
                let rest = &path[prefix.len()..];
                prop_assert!(path.starts_with(&prefix));
                prop_assert!(prefix.is_empty() || prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/'));
            }
        }
    }
}
