//! A server of S3 in the test's own process: checks signatures, counts what is asked of it, and ends with the test.
//!
//! Owns a directory with one bucket, called `bucket`. Deliberately absent: tags and times of versions that change within a second; what a
//! test needs of those comes from another server.

use hyper::header::{HOST, RANGE};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use s3s::auth::SimpleAuth;
use s3s::host::SingleDomain;
use s3s::service::S3ServiceBuilder;
use s3s::{Body, HttpResponse};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// Who may ask.
pub const KEY_ID: &str = "AKIATEST";
/// With what.
pub const SECRET: &str = "wJalrXUtnFEMI";
/// The domain below which each bucket has a host of its own, for [`S3::with_hosts`].
pub const DOMAIN: &str = "s3.test";

/// The session token that requests must bring, if any.
type Token = Arc<Mutex<Option<String>>>;

/// The server.
#[derive(Debug)]
pub struct S3 {
    address: String,
    root: tempfile::TempDir,
    asked: Arc<Mutex<Vec<String>>>,
    token: Token,
    runtime: Option<tokio::runtime::Runtime>,
}

impl S3 {
    /// Listens on a free port.
    ///
    /// # Errors
    /// When it cannot.
    pub fn start() -> io::Result<Self> {
        Self::start_as(false)
    }

    /// The same for requests to `http://bucket.s3.test/key`, which come through it as their proxy.
    ///
    /// # Errors
    /// When it cannot.
    pub fn with_hosts() -> io::Result<Self> {
        Self::start_as(true)
    }

    fn start_as(hosts: bool) -> io::Result<Self> {
        let root = tempfile::tempdir()?;
        std::fs::create_dir(root.path().join("bucket"))?;
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).map_err(|e| io::Error::other(format!("{e:?}")))?);
        builder.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        if hosts {
            builder.set_host(SingleDomain::new(DOMAIN).map_err(|e| io::Error::other(format!("{e:?}")))?);
        }
        let service = builder.build();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (asked, token) = (Arc::<Mutex<Vec<String>>>::default(), Token::default());
        let (all, wanted) = (asked.clone(), token.clone());
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?.to_string();
        runtime.spawn(async move {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                let (service, asked, wanted) = (service.clone(), all.clone(), wanted.clone());
                let counted = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                    let range = request.headers().get(RANGE).and_then(|range| range.to_str().ok());
                    let part = range.map(|range| format!(" part {range}")).unwrap_or_default();
                    lock(&asked).push(format!("{} {}{part}", request.method(), request.uri()));
                    let has_token = has_token(&request, lock(&wanted).as_deref());
                    // Not its own method of this name: that takes another kind of body.
                    let answer = Service::call(&service, at_its_host(request));
                    async move { if has_token { answer.await } else { Ok(expired()) } }
                });
                tokio::spawn(async move {
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), counted).await;
                });
            }
        });
        Ok(Self { address, root, asked, token, runtime: Some(runtime) })
    }

    /// Where it listens, as `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What whoever uses it has in the environment.
    #[must_use]
    pub fn env(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://{}", self.address);
        let all = [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", KEY_ID),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
        ];
        all.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    /// From now on only requests with this session token are answered; the others have an expired one.
    pub fn expect_token(&self, token: &str) {
        *lock(&self.token) = Some(token.to_owned());
    }

    /// The file that an object is.
    #[must_use]
    pub fn path(&self, key: &str) -> PathBuf {
        self.root.path().join("bucket").join(key)
    }

    /// Makes an object. It has not been modified for a while: this server gives no tags, and what was modified a moment ago could be again
    /// within the same second.
    ///
    /// # Errors
    /// When it cannot.
    pub fn put(&self, key: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(key);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, bytes)?;
        std::fs::File::options().write(true).open(path)?.set_modified(SystemTime::now() - Duration::from_secs(60))
    }

    /// Everything that was asked since the last call: method and URI, ` part bytes=1-2` behind those with a range.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.asked))
    }

    /// Whole objects that were fetched since the last call.
    #[must_use]
    pub fn fetched(&self) -> Vec<String> {
        self.asked().into_iter().filter(|a| a.starts_with("GET ") && !a.contains(" part ") && !a.contains("list-type")).collect()
    }
}

/// What one of the words of [`S3::asked`] says how many bytes of an object were asked for; `None`: all, or an open range.
#[must_use]
pub fn part_length(asked: &str) -> Option<u64> {
    let (first, last) = asked.rsplit_once(" part bytes=")?.1.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    Some(last.saturating_sub(first) + 1)
}

impl Drop for S3 {
    fn drop(&mut self) {
        // Tests of both kinds end here, those within a runtime, too.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn has_token<B>(request: &hyper::Request<B>, wanted: Option<&str>) -> bool {
    wanted.is_none_or(|wanted| request.headers().get("x-amz-security-token").is_some_and(|token| token.as_bytes() == wanted.as_bytes()))
}

/// A request as a proxy gets it, as the server behind it would.
fn at_its_host<B>(mut request: hyper::Request<B>) -> hyper::Request<B> {
    if let Some(host) = request.uri().authority().and_then(|a| a.as_str().parse().ok()) {
        request.headers_mut().insert(HOST, host);
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str()).parse();
        *request.uri_mut() = path.unwrap_or_default();
    }
    request
}

/// What the real one says to whom it knew once.
fn expired() -> HttpResponse {
    let said = "<?xml version=\"1.0\"?><Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>";
    let mut response = HttpResponse::new(Body::from(bytes::Bytes::from_static(said.as_bytes())));
    *response.status_mut() = hyper::StatusCode::BAD_REQUEST;
    response
}
