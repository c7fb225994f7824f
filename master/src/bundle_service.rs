//! The bundle store's gRPC service: push, look up, list, read, remove, each in a role or as the operator; grant and revoke.

use crate::bundle_store::{BundleStore, Roles, StoreError, Stored};
use futures::StreamExt;
use futures::stream::BoxStream;
use smalti_proto::v1;
use smalti_types::{Digest, Role};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};
use v1::push_chunk::Message;

/// Pushes at the same time: each holds up to one part of an upload in memory.
const MAX_PUSHES: usize = 32;
/// How long a client may send nothing in the middle of a push.
const IDLE: Duration = Duration::from_secs(60);

/// The service.
#[derive(Debug)]
pub(crate) struct Bundles {
    store: BundleStore,
    pushes: Arc<Semaphore>,
}

impl Bundles {
    pub(crate) fn new(store: BundleStore) -> Self {
        Self { store, pushes: Arc::new(Semaphore::new(MAX_PUSHES)) }
    }
}

#[tonic::async_trait]
impl v1::bundle_service_server::BundleService for Bundles {
    type GetStream = BoxStream<'static, Result<v1::BundleData, Status>>;

    async fn push(&self, request: Request<Streaming<v1::PushChunk>>) -> Result<Response<v1::BundleInfo>, Status> {
        let mut chunks = request.into_inner();
        let Some(Message::Start(start)) = next(&mut chunks).await? else {
            return Err(Status::invalid_argument("the first message must say what is pushed"));
        };
        let (wanted, role) = (digest(&start.digest)?, role(&start.role)?);
        match self.store.stat(wanted, role.as_ref()).await {
            Ok(stored) => return Ok(Response::new(info(stored, true))),
            Err(StoreError::NotFound(_)) => {}
            Err(e) => return Err(e.into()),
        }
        let _permit = self.pushes.acquire().await.map_err(|_| Status::unavailable("the master is shutting down"))?;
        let mut incoming = self.store.begin(wanted, start.length, &start.name, role)?;
        while let Some(message) = next(&mut chunks).await? {
            let Message::Data(data) = message else { return Err(Status::invalid_argument("a second start in one push")) };
            incoming.take(&data).await?;
        }
        let stored = incoming.finish().await?;
        tracing::info!(digest = %stored.digest, length = stored.length, name = stored.name, role = start.role, "bundle stored");
        Ok(Response::new(info(stored, false)))
    }

    async fn stat(&self, request: Request<v1::BundleDigest>) -> Result<Response<v1::BundleInfo>, Status> {
        let (digest, role) = named(request.get_ref())?;
        let stored = self.store.stat(digest, role.as_ref()).await?;
        Ok(Response::new(match role {
            Some(_) => info(stored, true),
            None => to_operator(stored, self.store.roles(digest).await?),
        }))
    }

    async fn list(&self, request: Request<v1::BundleQuery>) -> Result<Response<v1::BundleList>, Status> {
        let role = role(&request.get_ref().role)?;
        let list = self.store.list(role.as_ref()).await?.into_iter();
        let bundles = list.map(|(stored, roles)| if role.is_some() { info(stored, true) } else { to_operator(stored, roles) }).collect();
        Ok(Response::new(v1::BundleList { bundles }))
    }

    async fn get(&self, request: Request<v1::BundleDigest>) -> Result<Response<Self::GetStream>, Status> {
        let (digest, role) = named(request.get_ref())?;
        let stored = self.store.stat(digest, role.as_ref()).await?;
        let reading = self.store.read(&stored, None).await?;
        let data = |chunk: Result<bytes::Bytes, object_store::Error>| {
            chunk.map(|data| v1::BundleData { data }).map_err(|e| Status::internal(format!("reading the bundle broke off: {e}")))
        };
        Ok(Response::new(reading.bytes.map(data).boxed()))
    }

    async fn remove(&self, request: Request<v1::BundleDigest>) -> Result<Response<v1::Empty>, Status> {
        let (digest, role) = named(request.get_ref())?;
        self.store.remove(digest, role.as_ref()).await?;
        Ok(Response::new(v1::Empty {}))
    }

    async fn grant(&self, request: Request<v1::BundleRight>) -> Result<Response<v1::BundleInfo>, Status> {
        self.allow(request.get_ref(), true).await
    }

    async fn revoke(&self, request: Request<v1::BundleRight>) -> Result<Response<v1::BundleInfo>, Status> {
        self.allow(request.get_ref(), false).await
    }
}

impl Bundles {
    async fn allow(&self, right: &v1::BundleRight, may: bool) -> Result<Response<v1::BundleInfo>, Status> {
        let digest = digest(&right.digest)?;
        let role = role(&right.role)?.ok_or_else(|| Status::invalid_argument("no role is named: whose right is it about?"))?;
        let (stored, roles) = self.store.allow(digest, &role, may).await?;
        tracing::info!(%digest, %role, may, "rights to a bundle changed");
        Ok(Response::new(to_operator(stored, roles)))
    }
}

async fn next(chunks: &mut Streaming<v1::PushChunk>) -> Result<Option<Message>, Status> {
    let chunk = tokio::time::timeout(IDLE, chunks.message()).await;
    let chunk = chunk.map_err(|_| Status::deadline_exceeded(format!("nothing arrived for {} s", IDLE.as_secs())))??;
    match chunk.map(|c| c.message) {
        None => Ok(None),
        Some(Some(message)) => Ok(Some(message)),
        Some(None) => Err(Status::invalid_argument("an empty message in a push")),
    }
}

fn digest(bytes: &[u8]) -> Result<Digest, Status> {
    let bytes = bytes.try_into().map_err(|_| Status::invalid_argument(format!("digest: has {} bytes, not 32", bytes.len())))?;
    Ok(Digest::from_bytes(bytes))
}

/// In which role somebody asks; without one, as the operator.
fn role(text: &str) -> Result<Option<Role>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    Role::new(text).map(Some).map_err(|e| Status::invalid_argument(e.to_string()))
}

fn named(request: &v1::BundleDigest) -> Result<(Digest, Option<Role>), Status> {
    Ok((digest(&request.digest)?, role(&request.role)?))
}

fn to_operator(stored: Stored, roles: Roles) -> v1::BundleInfo {
    let roles = roles.map(|roles| v1::BundleRoles { roles: roles.into_iter().map(String::from).collect() });
    v1::BundleInfo { roles, ..info(stored, true) }
}

fn info(stored: Stored, existed: bool) -> v1::BundleInfo {
    v1::BundleInfo {
        digest: bytes::Bytes::copy_from_slice(stored.digest.as_bytes()),
        length: stored.length,
        name: stored.name,
        created_us: stored.created_us,
        existed,
        roles: None,
    }
}

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Self {
        let text = error.to_string();
        match error {
            StoreError::NotFound(_) => Self::not_found(text),
            StoreError::Everybodys(_) => Self::failed_precondition(text),
            StoreError::TooLarge { .. } => Self::resource_exhausted(text),
            StoreError::Mismatch { .. } => Self::invalid_argument(text),
            StoreError::Store { .. } | StoreError::List(_) => {
                tracing::error!(error = text, "bundle store");
                Self::internal(text)
            }
        }
    }
}
