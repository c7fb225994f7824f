//! Uploading bundles to the cluster's store.

use crate::error::Error;
use smalti_proto::client;
use smalti_proto::v1::bundle_service_client::BundleServiceClient;
use smalti_proto::v1::{BundleDigest, PushChunk, PushStart, push_chunk};
use smalti_types::{BundleRef, Digest, Role};
use std::path::Path;

/// Bytes of one message of an upload.
const CHUNK_LEN: usize = 256 << 10;

/// Uploads the bundle at `path` to the cluster's store, unless it is there already for `role`, and returns its reference.
///
/// `role` is that of the framework whose tasks run it ([`crate::Options::info`]): agents fetch it in that role, and for other roles it is not
/// there unless they push it, too, or an operator grants it to them.
///
/// # Errors
/// When the file cannot be read, the master is not there, or it does not take the bundle.
pub async fn push_bundle(master: &str, role: &Role, path: impl AsRef<Path>) -> Result<BundleRef, Error> {
    let path = path.as_ref();
    let bytes = tokio::fs::read(path).await.map_err(|source| Error::ReadBundle { path: path.to_owned(), source })?;
    let name = path.file_name().map_or_else(|| "bundle".into(), |n| n.to_string_lossy().into_owned());
    push_bytes(master, role, &name, bytes).await
}

/// As [`push_bundle`], for bytes in memory.
///
/// # Errors
/// When the master is not there, or does not take the bundle.
pub async fn push_bytes(master: &str, role: &Role, name: &str, bytes: Vec<u8>) -> Result<BundleRef, Error> {
    let digest = Digest::of(&bytes);
    let wire = bytes::Bytes::copy_from_slice(digest.as_bytes());
    let mut store = BundleServiceClient::new(client::connect(master).await?);
    let failed = |status: tonic::Status| Error::PushBundle { name: name.to_owned(), reason: status.message().to_owned() };
    match store.stat(BundleDigest { digest: wire.clone(), role: role.to_string() }).await {
        Ok(_) => return Ok(BundleRef { digest, uri: None }),
        Err(status) if status.code() == tonic::Code::NotFound => {}
        Err(status) => return Err(failed(status)),
    }
    let start = PushStart { digest: wire, length: bytes.len() as u64, name: name.to_owned(), role: role.to_string() };
    let start = std::iter::once(push_chunk::Message::Start(start));
    let bytes = bytes::Bytes::from(bytes);
    let data = (0..bytes.len()).step_by(CHUNK_LEN).map(move |at| bytes.slice(at..bytes.len().min(at + CHUNK_LEN)));
    let chunks = start.chain(data.map(push_chunk::Message::Data)).map(|m| PushChunk { message: Some(m) });
    store.push(tokio_stream::iter(chunks)).await.map_err(failed)?;
    Ok(BundleRef { digest, uri: None })
}
