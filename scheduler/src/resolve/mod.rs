//! Everything that a job names is resolved once, when it is submitted: globs and prefixes become objects, objects get their
//! length and ETag, bundles their digest, inputs are cut into splits. All tasks of the job then see the same bytes.
//!
//! Uses the cluster's credentials (the environment of this process), never the client's.

mod listing;
mod object;
mod splits;

use crate::cluster::Cluster;
use object::Object;
use smalti_types::{BundleRef, Digest, Input, Split};
use tonic::{Code, Status};

/// Stands for a digest that the client does not know.
const UNRESOLVED: [u8; 32] = [0; 32];
/// Most objects that one job's inputs may stand for.
pub(crate) const MAX_OBJECTS: usize = 200_000;
/// Largest bundle that is fetched to learn its digest, in bytes.
const MAX_BUNDLE: u64 = 1 << 30;

/// Why something cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    #[error("`{0}` is not a URI that the cluster can read: use http://, https://, s3://bucket/key or file:///path")]
    Uri(String),
    #[error("{uri}: {problem}")]
    Unsupported { uri: String, problem: &'static str },
    #[error("nothing at {uri}")]
    NotFound { uri: String },
    #[error("cannot read {uri}: {cause}")]
    Read { uri: String, cause: String },
    #[error("{uri} is larger than {limit} bytes, the limit for a bundle")]
    TooLarge { uri: String, limit: u64 },
    #[error("{uri} stands for more than {MAX_OBJECTS} objects")]
    TooMany { uri: String },
    #[error("an input without a URI needs a digest")]
    NoDigest,
    #[error("{0} is in no place that is named, and not in the cluster's bundle store")]
    NotStored(Digest),
    #[error("the inputs make more than {limit} splits; choose larger ones with --split")]
    TooManySplits { limit: usize },
    #[error(transparent)]
    Master(#[from] Status),
}

/// Resolves for one submission.
#[derive(Debug)]
pub(crate) struct Resolver {
    cluster: Cluster,
}

impl Resolver {
    pub(crate) fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }

    /// A bundle with its digest; what is said to be in the store must be there.
    pub(crate) async fn bundle(&self, bundle: BundleRef) -> Result<BundleRef, ResolveError> {
        match &bundle.uri {
            Some(uri) if *bundle.digest.as_bytes() == UNRESOLVED => {
                let digest = Object::parse(uri)?.digest(MAX_BUNDLE).await?;
                Ok(BundleRef { digest, uri: bundle.uri })
            }
            Some(uri) => {
                Object::parse(uri)?;
                Ok(bundle)
            }
            None => {
                self.stored(bundle.digest).await?;
                Ok(bundle)
            }
        }
    }

    /// An input that names one object, with its length and version.
    pub(crate) async fn pin(&self, input: Input) -> Result<Input, ResolveError> {
        match (&input.uri, input.digest) {
            (Some(uri), _) => {
                let (length, etag) = Object::parse(uri)?.head().await?;
                Ok(Input { length, etag, ..input })
            }
            (None, Some(digest)) => Ok(Input { length: self.stored(digest).await?, ..input }),
            (None, None) => Err(ResolveError::NoDigest),
        }
    }

    /// Inputs of a map: each object that they stand for, in order, pinned.
    pub(crate) async fn expand(&self, inputs: Vec<Input>) -> Result<Vec<Input>, ResolveError> {
        let mut all = Vec::new();
        for input in inputs {
            match &input.uri {
                Some(uri) => all.extend(listing::expand(uri).await?),
                None => all.push(self.pin(input).await?),
            }
            if all.len() > MAX_OBJECTS {
                return Err(ResolveError::TooMany { uri: "the list of inputs".into() });
            }
        }
        Ok(all)
    }

    /// Cuts inputs at line ends; without a size, one item per input. Empty inputs give no item and are left out.
    pub(crate) async fn splits(&self, inputs: Vec<Input>, split_bytes: Option<u64>) -> Result<(Vec<Input>, Vec<Split>), ResolveError> {
        let inputs: Vec<Input> = inputs.into_iter().filter(|i| i.length > 0).map(|i| Input { guest_path: None, ..i }).collect();
        let mut splits = Vec::new();
        for (index, input) in inputs.iter().enumerate() {
            let ends = match split_bytes.filter(|s| *s > 0 && *s < input.length) {
                Some(size) => splits::ends(&self.object(input)?, input.length, size).await?,
                None => vec![input.length],
            };
            let mut offset = 0;
            for end in ends {
                let (item, input) = (splits.len() as u64, u32::try_from(index).unwrap_or(u32::MAX));
                splits.push(Split { item, input, offset, length: end - offset });
                offset = end;
            }
            if splits.len() > smalti_scheduler_core::spec::MAX_SPLITS {
                return Err(ResolveError::TooManySplits { limit: smalti_scheduler_core::spec::MAX_SPLITS });
            }
        }
        Ok((inputs, splits))
    }

    /// Length of what is in the cluster's store under this digest.
    async fn stored(&self, digest: Digest) -> Result<u64, ResolveError> {
        match self.cluster.stored(digest).await {
            Ok(length) => Ok(length),
            Err(status) if status.code() == Code::NotFound => Err(ResolveError::NotStored(digest)),
            Err(status) => Err(status.into()),
        }
    }

    fn object(&self, input: &Input) -> Result<Object, ResolveError> {
        match (&input.uri, input.digest) {
            (Some(uri), _) => Object::parse(uri),
            (None, Some(digest)) => Object::parse(&format!("http://{}/v1/bundles/{}", self.cluster.master(), digest.to_hex())),
            (None, None) => Err(ResolveError::NoDigest),
        }
    }
}
