//! A server of S3 in this process, which checks signatures and counts what is asked of it.

use crate::Result;
use hyper::header::RANGE;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

pub(crate) const SECRET: &str = "wJalrXUtnFEMI";

/// The server; it has one bucket, called `bucket`.
pub(crate) struct S3 {
    address: String,
    root: tempfile::TempDir,
    asked: Arc<Mutex<Vec<String>>>,
    _runtime: tokio::runtime::Runtime,
}

impl S3 {
    pub(crate) fn start() -> Result<Self> {
        let root = tempfile::tempdir()?;
        std::fs::create_dir(root.path().join("bucket"))?;
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).map_err(|e| anyhow::anyhow!("{e:?}"))?);
        builder.set_auth(SimpleAuth::from_single("AKIATEST", SECRET));
        let service = builder.build();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?.to_string();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let all = asked.clone();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (service, asked) = (service.clone(), all.clone());
                let counted = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                    let part = if request.headers().contains_key(RANGE) { " part" } else { "" };
                    asked.lock().expect("not poisoned").push(format!("{} {}{part}", request.method(), request.uri()));
                    // Not its own method of this name: that takes another kind of body.
                    Service::call(&service, request)
                });
                tokio::spawn(async move {
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), counted).await;
                });
            }
        });
        Ok(Self { address, root, asked, _runtime: runtime })
    }

    /// What processes of a cluster have in their environment.
    pub(crate) fn env(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://{}", self.address);
        let all = [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "AKIATEST"),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
        ];
        all.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    pub(crate) fn path(&self, key: &str) -> PathBuf {
        self.root.path().join("bucket").join(key)
    }

    pub(crate) fn put(&self, key: &str, bytes: &[u8]) -> Result {
        let path = self.path(key);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, bytes)?;
        // This server gives no tags: what was modified a moment ago could be modified again within the same second.
        let before = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
        Ok(std::fs::File::options().write(true).open(path)?.set_modified(before)?)
    }

    /// Whole objects that were fetched since the last call.
    pub(crate) fn fetched(&self) -> Vec<String> {
        let all = std::mem::take(&mut *self.asked.lock().expect("not poisoned"));
        all.into_iter().filter(|a| a.starts_with("GET ") && !a.ends_with(" part") && !a.contains("list-type")).collect()
    }
}
