//! Everything that a job names is resolved once, when it is submitted: globs and prefixes become objects, objects get their
//! length and ETag, bundles their digest, inputs are cut into splits. All tasks of the job then see the same bytes.
//!
//! Uses the cluster's credentials (the environment of this process), never the client's, and goes only where the job's role may.

mod listing;
mod object;
mod splits;

use crate::cluster::Cluster;
use object::Object;
use smalti_fetch::{Failed, Hashing, Location, Pin, PinError, Sink, SourceError, Sources, Transfer, Wanted};
use smalti_types::{BundleRef, Bytes, Digest, Input, Packing, Role, Split};
use std::sync::Arc;
use tonic::{Code, Status};

/// Stands for a digest that the client does not know.
const UNRESOLVED: [u8; 32] = [0; 32];
/// Most objects that one job's inputs may stand for.
pub(crate) const MAX_OBJECTS: usize = smalti_proto::convert::MAX_SPLIT_INPUTS;
/// Most objects that are looked at to find them.
const MAX_LISTED: usize = 2_000_000;
/// Most bytes that the names of one job's inputs take: every agent that works for the job is sent them, in one message.
const MAX_NAMES: usize = 32 << 20;
/// Largest bundle that is fetched to learn its digest.
const MAX_BUNDLE: Bytes = Bytes::gib(1);
/// Largest input that is fetched to compare its SHA-256.
const MAX_INPUT: Bytes = Bytes::gib(64);

/// Why something cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Fetch(Failed),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error("{uri}: {problem}")]
    Unsupported { uri: String, problem: &'static str },
    #[error("nothing at {uri}")]
    NotFound { uri: String },
    #[error("cannot read {uri}: {cause}")]
    Read { uri: String, cause: String },
    #[error("{uri} stands for more than {MAX_OBJECTS} objects; name fewer at a time")]
    TooMany { uri: String },
    #[error("more than {MAX_LISTED} objects would have to be looked at for {uri}; begin the pattern with a longer prefix")]
    TooLong { uri: String },
    #[error("the names of the inputs take more than {MAX_NAMES} bytes together; name fewer at a time")]
    LongNames,
    #[error("an input without a URI needs a digest")]
    NoDigest,
    #[error("{0} is in no place that is named, and not in the cluster's bundle store for role {1}")]
    NotStored(Digest, Role),
    #[error("the inputs make more than {limit} splits; choose larger ones with --split")]
    TooManySplits { limit: usize },
    #[error(transparent)]
    Master(#[from] Status),
}

/// Inputs, cut into items.
#[derive(Debug)]
pub(crate) struct Cut {
    pub(crate) inputs: Vec<Input>,
    pub(crate) splits: Vec<Split>,
    /// What its submitter should know.
    pub(crate) notes: Vec<String>,
}

/// Resolves for one submission.
#[derive(Debug)]
pub(crate) struct Resolver {
    cluster: Cluster,
    sources: Arc<Sources>,
    role: Role,
}

impl From<Failed> for ResolveError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Source(e) => Self::Source(e),
            other => Self::Fetch(other),
        }
    }
}

impl Resolver {
    pub(crate) fn new(cluster: Cluster, sources: Arc<Sources>, role: Role) -> Self {
        Self { cluster, sources, role }
    }

    /// A bundle with its digest; what is said to be in the store must be there.
    pub(crate) async fn bundle(&self, bundle: BundleRef) -> Result<BundleRef, ResolveError> {
        let known = Some(bundle.digest).filter(|d| *d.as_bytes() != UNRESOLVED);
        let Some(uri) = &bundle.uri else {
            self.stored(bundle.digest).await?;
            return Ok(bundle);
        };
        let (location, pin) = self.place(uri, known)?;
        match known.or(if let Some(Pin::Blake3(digest)) = pin { Some(digest) } else { None }) {
            Some(digest) => Ok(BundleRef { digest, uri: Some(named(&location, uri)) }),
            None => {
                // What a tag points to may be another thing for the agents.
                let location = self.sources.exact(&self.role, &location).await?;
                let (digest, _) = self.hash(&location, pin, MAX_BUNDLE).await?;
                Ok(BundleRef { digest, uri: Some(named(&location, uri)) })
            }
        }
    }

    /// An input that names one object, with its length and version; with its digest, where somebody gave one.
    pub(crate) async fn pin(&self, input: Input) -> Result<Input, ResolveError> {
        let Some(uri) = &input.uri else {
            let digest = input.digest.ok_or(ResolveError::NoDigest)?;
            return Ok(Input { length: self.stored(digest).await?, ..input });
        };
        let (location, pin) = self.place(uri, input.digest)?;
        let location = self.sources.exact(&self.role, &location).await?;
        let uri = Some(named(&location, uri));
        match pin {
            Some(Pin::Sha256(_)) => {
                let (digest, length) = self.hash(&location, pin, MAX_INPUT).await?;
                Ok(Input { uri, digest: Some(digest), length, ..input })
            }
            Some(Pin::Blake3(_)) | None => {
                let digest = if let Some(Pin::Blake3(digest)) = pin { Some(digest) } else { input.digest };
                let (length, etag) = self.sources.head(&self.role, &location).await?;
                Ok(Input { uri, digest, length, etag, ..input })
            }
        }
    }

    /// What a URI means, if the role may fetch from there; with the pin that stands behind it.
    fn place(&self, uri: &str, digest: Option<Digest>) -> Result<(Location, Option<Pin>), ResolveError> {
        let (plain, pin) = Pin::split(uri)?;
        let location = Location::parse(Some(plain), digest)?;
        self.sources.setup().policy.check(&self.role, &location)?;
        Ok((location, pin))
    }

    /// The digest of an object that is what its pin says, and its length.
    async fn hash(&self, location: &Location, pin: Option<Pin>, limit: Bytes) -> Result<(Digest, u64), ResolveError> {
        let sha256 = if let Some(Pin::Sha256(sum)) = pin { Some(sum) } else { None };
        let (role, location) = (self.role.clone(), location.clone());
        let wanted = Wanted { role, location, digest: None, sha256, length: None, etag: None, limit };
        let mut hashing = Hashing::default();
        Transfer { sources: &self.sources, wanted: &wanted }.run(&mut hashing).await?;
        Ok((hashing.digests().0, hashing.bytes()))
    }

    /// Inputs of a map: each object that they stand for, in order, pinned.
    pub(crate) async fn expand(&self, inputs: Vec<Input>) -> Result<Vec<Input>, ResolveError> {
        let mut all = Vec::new();
        for input in inputs {
            match &input.uri {
                Some(uri) if Pin::split(uri)?.1.is_some() || input.digest.is_some() => all.push(self.pin(input).await?),
                Some(uri) => {
                    let found = listing::expand((&self.sources, &self.role), uri).await?;
                    all.extend(found.into_iter().map(|object| Input { packing: input.packing, ..object }));
                }
                None => all.push(self.pin(input).await?),
            }
            if all.len() > MAX_OBJECTS {
                return Err(ResolveError::TooMany { uri: "the list of inputs".into() });
            }
        }
        let names: usize = all.iter().map(|i| i.uri.as_ref().map_or(0, String::len) + i.etag.as_ref().map_or(0, String::len)).sum();
        if names > MAX_NAMES {
            return Err(ResolveError::LongNames);
        }
        Ok(all)
    }

    /// Cuts inputs at line ends; without a size, one item per input. Empty inputs give no item and are left out. What is packed is read
    /// from its beginning, so it is one item.
    pub(crate) async fn splits(&self, inputs: Vec<Input>, split_bytes: Option<u64>) -> Result<Cut, ResolveError> {
        let inputs = inputs.into_iter().filter(|i| i.length > 0).map(|i| Input { guest_path: None, packing: packing(&i), ..i });
        let inputs: Vec<Input> = inputs.collect();
        let (mut splits, mut whole) = (Vec::new(), 0);
        for (index, input) in inputs.iter().enumerate() {
            let ends = match split_bytes.filter(|s| *s > 0 && *s < input.length) {
                Some(_) if input.packing.is_some() => {
                    whole += 1;
                    vec![input.length]
                }
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
        let notes = match whole {
            0 => Vec::new(),
            1 => vec!["one input is compressed (.gz, .zst) and cannot be split: it is one item".to_owned()],
            n => vec![format!("{n} inputs are compressed (.gz, .zst) and cannot be split: each is one item")],
        };
        Ok(Cut { inputs, splits, notes })
    }

    /// Length of what is in the cluster's store under this digest for the job's role.
    async fn stored(&self, digest: Digest) -> Result<u64, ResolveError> {
        match self.cluster.stored(&self.role, digest).await {
            Ok(length) => Ok(length),
            Err(status) if status.code() == Code::NotFound => Err(ResolveError::NotStored(digest, self.role.clone())),
            Err(status) => Err(status.into()),
        }
    }

    fn object(&self, input: &Input) -> Result<Object, ResolveError> {
        let location = Location::parse(input.uri.as_deref(), input.digest)?;
        let version = input.etag.clone().filter(|_| !matches!(location, Location::Store(_)));
        Ok(Object { sources: self.sources.clone(), role: self.role.clone(), location, version })
    }
}

/// How an input is packed, if it is: as its client says, or as its name does.
fn packing(input: &Input) -> Option<Packing> {
    let by_name = || {
        let location = Location::parse(input.uri.as_deref(), input.digest).ok()?;
        Some(Packing::of_name(&location.file_name()?))
    };
    input.packing.or_else(by_name).filter(|p| *p != Packing::Plain)
}

/// The URI that agents are given: as it was written where that says it all, without its pin.
fn named(location: &Location, uri: &str) -> String {
    match location {
        Location::Oci(_) => location.to_string(),
        _ => Pin::split(uri).map_or(uri, |(plain, _)| plain).to_owned(),
    }
}
