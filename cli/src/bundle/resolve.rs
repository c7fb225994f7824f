//! From what the user named to what a job refers to: uploaded, looked up, or passed on.

use super::kind::{HEAD, Kind};
use super::{Source, store};
use crate::cluster::Bundles;
use crate::failure::{BAD_BUNDLE, Failure, NO_BUNDLE, Result};
use smalti_fetch::Pin;
use smalti_proto::v1::{BundleRef, Input};
use smalti_types::Digest;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// A digest of only zeros in a bundle reference with a URI: "resolve it once, at submission".
const UNRESOLVED: [u8; 32] = [0; 32];

/// Makes a bundle available to the cluster.
///
/// # Errors
/// Exit code 127 for what is not there, 126 for a file that is not Wasm.
pub(crate) async fn resolve(bundles: &Bundles, source: &Source) -> Result<BundleRef> {
    match source {
        Source::File(path) => {
            let file = open_bundle(path)?;
            let stored = store::put(bundles, file, &source.base_name()).await?;
            Ok(BundleRef { digest: bytes(stored.digest), uri: None })
        }
        Source::Stored(digest) => match store::stat(bundles, *digest, &digest.to_string()).await? {
            Some(_) => Ok(BundleRef { digest: bytes(*digest), uri: None }),
            None => Err(not_stored(*digest, bundles.role())),
        },
        Source::Uri { uri, pin } => {
            let (uri, digest) = named(uri, *pin);
            Ok(BundleRef { digest: digest.map_or_else(|| UNRESOLVED.to_vec().into(), bytes), uri: Some(uri) })
        }
    }
}

/// Makes an input available to the cluster. The length of a URI is unknown here (0): the scheduler resolves and pins it.
pub(crate) async fn resolve_input(bundles: &Bundles, source: &Source, guest_path: Option<String>) -> Result<Input> {
    let input = |uri: Option<&String>, digest: Option<Digest>, length| Input {
        guest_path: guest_path.clone(),
        uri: uri.cloned(),
        digest: digest.map(bytes),
        length,
        etag: None,
        packing: None,
    };
    match source {
        Source::File(path) => {
            let (file, _) = store::open(path).map_err(|why| Failure::new(format!("reading the input {}: {why}", path.display())))?;
            let stored = store::put(bundles, file, &source.base_name()).await?;
            Ok(input(None, Some(stored.digest), stored.length))
        }
        Source::Stored(digest) => match store::stat(bundles, *digest, &digest.to_string()).await? {
            Some(length) => Ok(input(None, Some(*digest), length)),
            None => Err(Failure::new(format!(
                "the input {digest} is not in the bundle store for role {0}; `smalti bundle push --role {0} FILE` puts it there",
                bundles.role()
            ))),
        },
        Source::Uri { uri, pin } => {
            let (uri, digest) = named(uri, *pin);
            Ok(input(Some(&uri), digest, 0))
        }
    }
}

/// A URI as the scheduler gets it: a BLAKE3 has a place of its own, a SHA-256 stays with it for the scheduler to check.
fn named(uri: &str, pin: Option<Pin>) -> (String, Option<Digest>) {
    match pin {
        Some(Pin::Blake3(digest)) => (uri.to_owned(), Some(digest)),
        Some(sha256) => (format!("{uri}{}", sha256.suffix()), None),
        None => (uri.to_owned(), None),
    }
}

/// Opens a bundle of the client and looks at its first bytes, so that what is no Wasm is not even uploaded.
pub(crate) fn open_bundle(path: &Path) -> Result<File> {
    let (mut file, _) = store::open(path).map_err(|why| {
        Failure::with_code(
            NO_BUNDLE,
            format!("no bundle at {}: {why}; name a .wasm, .wat or .tar file, a blake3: digest or a URI", path.display()),
        )
    })?;
    let mut head = Vec::with_capacity(HEAD);
    (&mut file)
        .take(HEAD as u64)
        .read_to_end(&mut head)
        .and_then(|_| file.seek(SeekFrom::Start(0)))
        .map_err(|e| Failure { code: NO_BUNDLE, ..Failure::io("reading the bundle", path, &e) })?;
    Kind::of(&head).map_err(|what| Failure::with_code(BAD_BUNDLE, format!("{} cannot be run: it is {what}", path.display())))?;
    Ok(file)
}

/// Nothing in the store under this name.
pub(crate) fn not_stored(digest: Digest, role: &str) -> Failure {
    let (of, flag, and) = match role {
        "" => (String::new(), String::new(), ""),
        role => (
            format!(" for role {role}"),
            format!(" --role {role}"),
            ", and of what other roles have `smalti bundle grant` lets it use more",
        ),
    };
    Failure::with_code(
        NO_BUNDLE,
        format!(
            "no bundle {digest} in the store{of}; `smalti bundle push{flag} FILE` puts it there, `smalti bundle ls{flag}` lists what is there{and}"
        ),
    )
}

fn bytes(digest: Digest) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(digest.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_127_and_what_is_not_wasm_is_126() {
        let dir = tempfile::tempdir().unwrap();
        let code = |path: &Path| open_bundle(path).unwrap_err().code;
        assert_eq!(code(&dir.path().join("none.wasm")), NO_BUNDLE);
        assert_eq!(code(dir.path()), NO_BUNDLE);
        let text = dir.path().join("a.wasm");
        std::fs::write(&text, "hello").unwrap();
        let failure = open_bundle(&text).unwrap_err();
        assert_eq!(failure.code, BAD_BUNDLE);
        assert!(failure.to_string().ends_with("cannot be run: it is some other text"), "{failure}");
        std::fs::write(&text, b"\0asm\x01\0\0\0").unwrap();
        let mut back = Vec::new();
        open_bundle(&text).unwrap().read_to_end(&mut back).unwrap();
        assert_eq!(back.len(), 8, "the file is read from its start again");
    }
}
