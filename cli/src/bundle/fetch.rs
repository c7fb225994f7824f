//! Fetches what is behind a URI to look into it: on this machine, with this environment's settings and credentials, as `curl` would.

use crate::failure::{Failure, NO_BUNDLE, Result};
use crate::terminal;
use bytes::Bytes as Chunk;
use indicatif::ProgressBar;
use smalti_fetch::range::Have;
use smalti_fetch::{Facts, Failed, Hashing, Location, Pin, Policy, Setup, Sink, SourceError, Sources, Transfer, Wanted};
use smalti_types::{Bytes, Digest, Role};
use std::io;

/// Keeps what comes.
struct Keeping {
    bytes: Vec<u8>,
    hashing: Hashing,
    bar: ProgressBar,
}

impl Sink for Keeping {
    fn have(&self) -> Have {
        self.hashing.have()
    }

    async fn note(&mut self, facts: &Facts) -> io::Result<()> {
        self.bar.set_length(facts.total.unwrap_or_default());
        self.hashing.note(facts).await
    }

    async fn write(&mut self, bytes: Chunk) -> io::Result<()> {
        self.bytes.extend_from_slice(&bytes);
        self.bar.set_position(self.bytes.len() as u64);
        self.hashing.write(bytes).await
    }

    async fn restart(&mut self) -> io::Result<()> {
        self.bytes.clear();
        self.hashing.restart().await
    }

    fn digests(&mut self) -> (Digest, Option<[u8; 32]>) {
        self.hashing.digests()
    }

    fn describe(&self) -> String {
        "memory".into()
    }
}

/// The bytes behind a URI, which are what its pin says.
///
/// # Errors
/// Exit code 127 when they cannot be had.
pub(crate) async fn read(uri: &str, pin: Option<Pin>, limit: u64) -> Result<Vec<u8>> {
    let failed = |e: &dyn std::fmt::Display| Failure::with_code(NO_BUNDLE, e.to_string());
    let location = Location::parse(Some(uri), None).map_err(|e: SourceError| failed(&e))?;
    let setup = Setup { policy: Policy::open(), services: Vec::new(), file_roots: vec!["/".into()], ..Setup::new("") };
    let sources = Sources::new(setup).map_err(|e| failed(&e))?;
    let (digest, sha256) = match pin {
        Some(Pin::Blake3(digest)) => (Some(digest), None),
        Some(Pin::Sha256(sum)) => (None, Some(sum)),
        None => (None, None),
    };
    let wanted = Wanted { role: Role::default(), location, digest, sha256, length: None, etag: None, limit: Bytes(limit) };
    let bar = terminal::bar(0, "fetching {wide_bar} {bytes}/{total_bytes} {eta}");
    let mut kept = Keeping { bytes: Vec::new(), hashing: Hashing::default(), bar };
    let done = Transfer { sources: &sources, wanted: &wanted }.run(&mut kept).await;
    kept.bar.finish_and_clear();
    done.map_err(|e: Failed| failed(&e))?;
    Ok(kept.bytes)
}
