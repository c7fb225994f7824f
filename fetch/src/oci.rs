//! `oci://`: artifacts in OCI registries, by the Wasm OCI artifact layout: a manifest with one layer that is the Wasm.
//!
//! Speaks the distribution API over the checked HTTP of this crate: the crate `oci-client` builds an HTTP client of its own, which follows
//! redirects and looks names up where no policy can have a say. A registry names everything by SHA-256: manifests are checked against it
//! here, the layer where its bytes are hashed anyway. Deliberately absent: pushing, and images for machines.

use crate::error::SourceError;
use crate::http::{Get, Got, Http, opened, stream, text, usable, wanted};
use crate::location::{Location, OciReference};
use crate::pin::hex;
use crate::source::{Ask, Opened, OpenedPart, Part, Source, boxed, collect};
use bytes::Bytes;
use futures::future::BoxFuture;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RANGE, WWW_AUTHENTICATE};
use reqwest::{Method, Url};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use smalti_types::{Digest, Role};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Largest manifest that registries take.
const MAX_MANIFEST: usize = 4 << 20;
/// What a manifest may be.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
                         application/vnd.docker.distribution.manifest.v2+json";
/// What a layer with Wasm is called: by the current layout, and by its predecessor.
const WASM_LAYERS: [&str; 2] = ["application/wasm", "application/vnd.wasm.content.layer.v1+wasm"];

/// All registries.
pub(crate) struct Oci {
    http: Http,
    /// Basic credentials by registry.
    auth: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: u64,
    platform: Option<Platform>,
}

#[derive(Deserialize, Clone)]
struct Platform {
    architecture: String,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// The layer to fetch, and with what.
struct Layer {
    url: Url,
    sha256: [u8; 32],
    size: u64,
    secret: Option<HeaderValue>,
}

impl Oci {
    pub(crate) fn new(http: Http, auth: BTreeMap<String, String>) -> Self {
        Self { http, auth }
    }

    /// The same artifact by the digest of its manifest.
    pub(crate) async fn exact(&self, role: &Role, reference: &OciReference) -> Result<OciReference, SourceError> {
        let (manifest, _) = self.manifest(role, reference).await?;
        let sum: [u8; 32] = Sha256::digest(&manifest).into();
        Ok(reference.at(&format!("sha256:{}", hex(&sum))))
    }

    async fn layer(&self, role: &Role, reference: &OciReference) -> Result<Layer, SourceError> {
        let at = format!("oci://{reference}");
        let (mut bytes, mut secret) = self.manifest(role, reference).await?;
        let mut manifest = read(&bytes, &at)?;
        if manifest.layers.is_empty() && !manifest.manifests.is_empty() {
            let chosen = for_wasm(&manifest.manifests).ok_or_else(|| SourceError::permanent(&at, "it has no manifest for wasm"))?;
            (bytes, secret) = self.manifest(role, &reference.at(&chosen.digest)).await?;
            manifest = read(&bytes, &at)?;
        }
        let mut wasm = manifest.layers.iter().filter(|l| WASM_LAYERS.contains(&l.media_type.as_str()));
        let (Some(layer), None) = (wasm.next(), wasm.next()) else {
            let found: Vec<&str> = manifest.layers.iter().map(|l| l.media_type.as_str()).collect();
            return Err(SourceError::permanent(&at, format!("it is no Wasm artifact: one layer must be application/wasm, not {found:?}")));
        };
        let sha256 = sha256_of(&layer.digest).ok_or_else(|| SourceError::permanent(&at, "its layer is not named by SHA-256"))?;
        let url = address(reference, &format!("blobs/{}", layer.digest))?;
        Ok(Layer { url, sha256, size: layer.size, secret })
    }

    /// A manifest, checked against its digest if it is named by that; and what opens the door to the rest.
    async fn manifest(&self, role: &Role, reference: &OciReference) -> Result<(Bytes, Option<HeaderValue>), SourceError> {
        let at = format!("oci://{reference}");
        let url = address(reference, &format!("manifests/{}", reference.reference))?;
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(MANIFESTS))]);
        let mut secret = None;
        let mut got = self.get(role, &url, headers.clone(), secret.clone(), &at).await?;
        if got.response.status().as_u16() == 401 {
            let asked = text(got.response.headers(), &WWW_AUTHENTICATE).unwrap_or_default().to_owned();
            drop(got);
            secret = self.sign_in(role, reference, &asked, &at).await?;
            got = self.get(role, &url, headers, secret.clone(), &at).await?;
        }
        let Got { response, place } = got;
        let bytes = collect(stream(usable(response, &at)?, place, at.clone()), (0, MAX_MANIFEST + 1), &at).await?;
        if bytes.len() > MAX_MANIFEST {
            return Err(SourceError::permanent(&at, "its manifest is larger than manifests can be"));
        }
        let sum: [u8; 32] = Sha256::digest(&bytes).into();
        if sha256_of(&reference.reference).is_some_and(|wanted| wanted != sum) {
            return Err(SourceError::permanent(&at, format!("the registry sends another manifest (sha256:{})", hex(&sum))));
        }
        Ok((bytes, secret))
    }

    async fn get(&self, role: &Role, url: &Url, headers: HeaderMap, secret: Option<HeaderValue>, at: &str) -> Result<Got, SourceError> {
        let secret = secret.map(|value| (AUTHORIZATION, value));
        self.http.send(url, &Get { role, method: Method::GET, headers, secret, by_pattern: false, at }).await
    }

    /// Gets a token, as the registry says, or gives the credentials themselves.
    async fn sign_in(&self, role: &Role, reference: &OciReference, asked: &str, at: &str) -> Result<Option<HeaderValue>, SourceError> {
        let basic = self
            .auth
            .get(&reference.registry)
            .map(|auth| sensitive(&format!("Basic {auth}")))
            .transpose()
            .map_err(|()| SourceError::permanent(at, "the credentials for this registry are not usable"))?;
        if !asked.get(..7).is_some_and(|s| s.eq_ignore_ascii_case("bearer ")) {
            return Ok(basic);
        }
        let parameters = challenge(&asked[7..]);
        let realm =
            parameters.get("realm").and_then(|r| Url::parse(r).ok()).filter(|u| u.scheme() == "https" || is_local(&reference.registry));
        let mut realm = realm.ok_or_else(|| SourceError::permanent(at, "the registry does not say where tokens come from"))?;
        let scope = format!("repository:{}:pull", reference.repository);
        if let Some(service) = parameters.get("service") {
            realm.query_pairs_mut().append_pair("service", service);
        }
        realm.query_pairs_mut().append_pair("scope", parameters.get("scope").unwrap_or(&scope));
        let Got { response, place } = self.get(role, &realm, HeaderMap::new(), basic, at).await?;
        let bytes = collect(stream(usable(response, at)?, place, at.to_owned()), (0, MAX_MANIFEST), at).await?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|_| SourceError::permanent(at, "the registry's token cannot be read"))?;
        let token = token.token.or(token.access_token).ok_or_else(|| SourceError::refused(at, "the registry gives no token"))?;
        sensitive(&format!("Bearer {token}")).map(Some).map_err(|()| SourceError::permanent(at, "the registry's token cannot be used"))
    }
}

fn sensitive(text: &str) -> Result<HeaderValue, ()> {
    let mut value = HeaderValue::from_str(text).map_err(|_| ())?;
    value.set_sensitive(true);
    Ok(value)
}

fn read(bytes: &[u8], at: &str) -> Result<Manifest, SourceError> {
    serde_json::from_slice(bytes).map_err(|e| SourceError::permanent(at, format!("its manifest cannot be read: {e}")))
}

/// The one for Wasm, or the only one.
fn for_wasm(manifests: &[Descriptor]) -> Option<&Descriptor> {
    let wasm = |m: &&Descriptor| m.platform.as_ref().is_some_and(|p| p.architecture == "wasm");
    manifests.iter().find(wasm).or(if let [only] = manifests { Some(only) } else { None })
}

fn sha256_of(digest: &str) -> Option<[u8; 32]> {
    Some(*Digest::from_hex(digest.strip_prefix("sha256:")?).ok()?.as_bytes())
}

/// Registries of this machine speak plain HTTP, as everybody's tools have it.
fn is_local(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, port)| if port.ends_with(']') { registry } else { host });
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|a| a.is_loopback())
}

fn address(reference: &OciReference, what: &str) -> Result<Url, SourceError> {
    let scheme = if is_local(&reference.registry) { "http" } else { "https" };
    let text = format!("{scheme}://{}/v2/{}/{what}", reference.registry, reference.repository);
    Url::parse(&text).map_err(|e| SourceError::Uri { uri: format!("oci://{reference}"), why: e.to_string() })
}

/// `realm="…",service="…"`.
fn challenge(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([' ', ',']).to_ascii_lowercase();
        let (value, left) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        found.insert(name, value.to_owned());
        rest = left;
    }
    found
}

fn reference_of(location: &Location) -> Result<&OciReference, SourceError> {
    match location {
        Location::Oci(reference) => Ok(reference),
        other => Err(SourceError::permanent(&other.to_string(), "it is not in a registry")),
    }
}

impl Source for Oci {
    fn open<'a>(&'a self, ask: Ask<'a>) -> BoxFuture<'a, Result<Opened, SourceError>> {
        boxed(async move {
            let at = ask.location.to_string();
            let layer = self.layer(ask.role, reference_of(ask.location)?).await?;
            // Blobs never change: whatever part is there goes on.
            let ask = Ask { digest_is_known: true, version: None, ..ask };
            let (request, headers) = wanted(&ask);
            let got = self.get(ask.role, &layer.url, headers, layer.secret, &at).await?;
            let found = opened(got, &ask, &request, at)?;
            Ok(Opened { sha256: Some(layer.sha256), ..found })
        })
    }

    fn head<'a>(&'a self, role: &'a Role, location: &'a Location) -> BoxFuture<'a, Result<(u64, Option<String>), SourceError>> {
        boxed(async move {
            let layer = self.layer(role, reference_of(location)?).await?;
            Ok((layer.size, None))
        })
    }

    fn part<'a>(&'a self, role: &'a Role, location: &'a Location, part: Part<'a>) -> BoxFuture<'a, Result<OpenedPart, SourceError>> {
        boxed(async move {
            let at = location.to_string();
            let layer = self.layer(role, reference_of(location)?).await?;
            let value = HeaderValue::from_str(&part.header()).map_err(|e| SourceError::permanent(&at, e.to_string()))?;
            let Got { response, place } = self.get(role, &layer.url, HeaderMap::from_iter([(RANGE, value)]), layer.secret, &at).await?;
            let response = usable(response, &at)?;
            let from = if response.status().as_u16() == 206 { part.range.start } else { 0 };
            Ok(OpenedPart { stream: stream(response, place, at), from })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_read() {
        let found = challenge("realm=\"https://auth/token\", service=\"r\",scope=\"repository:a/b:pull,push\"");
        assert_eq!(found["realm"], "https://auth/token");
        assert_eq!((found["service"].as_str(), found["scope"].as_str()), ("r", "repository:a/b:pull,push"));
        assert!(challenge("nonsense").is_empty());
    }

    #[test]
    fn only_this_machines_registries_are_spoken_to_in_plain() {
        for local in ["localhost", "localhost:5000", "127.0.0.1:5000", "[::1]:5000", "[::1]"] {
            assert!(is_local(local), "{local}");
        }
        for other in ["ghcr.io", "localhost.evil.org", "10.0.0.1:5000", "127.0.0.1.nip.io"] {
            assert!(!is_local(other), "{other}");
        }
    }
}
