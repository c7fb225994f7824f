//! Fetching from servers that misbehave, from real S3, and from where nobody may.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod authority;
mod broken;
mod credentials;
mod moto;
mod origin;
mod pieces;
mod proxy;
mod refused;
mod registry;
mod s3;
mod tls;

use origin::Origin;
use smalti_fetch::{Facts, Failed, Hashing, Location, Setup, Sources, Transfer, Wanted};
use smalti_types::{Bytes, Digest, Role};
use std::time::Duration;

/// Longer than the buffers of sockets, and nowhere the same.
fn content() -> Vec<u8> {
    (0..200_000_u32).flat_map(u32::to_le_bytes).collect()
}

/// Quick tries, and only this origin's address.
fn setup(address: &str) -> Setup {
    let mut setup = Setup::new("127.0.0.1:1");
    setup.s3.clear();
    setup.proxy = None;
    setup.retries.backoff = Duration::from_millis(1);
    setup.stall = Duration::from_secs(30);
    setup.policy = format!("[default]\naddresses = [\"{address}\"]").parse().unwrap();
    setup
}

fn wanted(uri: &str) -> Wanted {
    Wanted {
        role: Role::default(),
        location: Location::parse(Some(uri), None).unwrap(),
        digest: None,
        sha256: None,
        length: None,
        etag: None,
        limit: Bytes::mib(16),
    }
}

/// What one transfer brings: its digest and facts.
async fn fetch_with(setup: Setup, wanted: &Wanted) -> Result<(Digest, Facts), Failed> {
    let sources = Sources::new(setup).unwrap();
    let mut sink = Hashing::default();
    let facts = Transfer { sources: &sources, wanted }.run(&mut sink).await?;
    Ok((smalti_fetch::Sink::digests(&mut sink).0, facts))
}

/// The same from this origin, for something of this content.
async fn fetch(origin: &Origin, path: &str, content: &[u8]) -> Result<(Digest, Facts), Failed> {
    let wanted = Wanted { digest: Some(Digest::of(content)), ..wanted(&origin.url(path)) };
    fetch_with(setup(&origin.address), &wanted).await
}
