//! An HTTP server that misbehaves on command, byte by byte: nothing between it and the client mends what it does.
//!
//! Owns what it was asked. One behaviour a path; each may depend on how often the path was asked before.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// One request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) path: String,
    /// By lower-case name.
    pub(crate) headers: HashMap<String, String>,
}

impl Asked {
    /// The first byte that it asks for.
    pub(crate) fn from(&self) -> Option<usize> {
        self.headers.get("range")?.strip_prefix("bytes=")?.split('-').next()?.parse().ok()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What is sent, and whether the connection then stays open with nothing coming.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    bytes: Vec<u8>,
    stays: bool,
    /// Sent over and over after `bytes`.
    endless: Option<Vec<u8>>,
}

impl Reply {
    /// Any status and headers, any body, as they are.
    pub(crate) fn raw(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut head = format!("HTTP/1.1 {status}\r\n");
        for (name, value) in headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        head.push_str("connection: close\r\n\r\n");
        Self { bytes: [head.as_bytes(), body].concat(), ..Self::default() }
    }

    /// A whole object, as honest servers send it.
    pub(crate) fn whole(body: &[u8]) -> Self {
        Self::raw("200 OK", &[("content-length", &body.len().to_string())], body)
    }

    /// The rest of an object, or all of it.
    pub(crate) fn rest(body: &[u8], from: Option<usize>, more: &[(&str, &str)]) -> Self {
        let Some(from) = from.filter(|f| *f < body.len()) else {
            let length = body.len().to_string();
            let headers = [&[("content-length", length.as_str())], more].concat();
            return Self::raw("200 OK", &headers, body);
        };
        let (length, range) = ((body.len() - from).to_string(), format!("bytes {from}-{}/{}", body.len() - 1, body.len()));
        let headers = [&[("content-length", length.as_str()), ("content-range", range.as_str())], more].concat();
        Self::raw("206 Partial Content", &headers, &body[from..])
    }

    /// Only the beginning of it, up to so many bytes of its body.
    pub(crate) fn cut(mut self, body_bytes: usize) -> Self {
        let head = self.bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        self.bytes.truncate(head + body_bytes);
        self
    }

    /// And then nothing, on a connection that stays.
    pub(crate) fn stays(mut self) -> Self {
        self.stays = true;
        self
    }

    /// And then this for ever.
    pub(crate) fn and_for_ever(mut self, bytes: &[u8]) -> Self {
        self.endless = Some(bytes.to_vec());
        self
    }
}

type Behaviour = Arc<dyn Fn(&Asked, usize) -> Reply + Send + Sync>;

#[derive(Default)]
struct State {
    behaviours: HashMap<String, Behaviour>,
    asked: Vec<Asked>,
}

/// The server. It ends with the test's runtime.
pub(crate) struct Origin {
    pub(crate) address: String,
    state: Arc<Mutex<State>>,
}

impl Origin {
    pub(crate) async fn start() -> Self {
        Self::start_as(None).await
    }

    /// The same behind TLS.
    pub(crate) async fn certified(by: TlsAcceptor) -> Self {
        Self::start_as(Some(by)).await
    }

    async fn start_as(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, state) = (listener.local_addr().unwrap().to_string(), Arc::<Mutex<State>>::default());
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, shared) = (tls.clone(), shared.clone());
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => serve(tls.accept(stream).await.ok()?, shared).await,
                        None => serve(stream, shared).await,
                    }
                });
            }
        });
        Self { address, state }
    }

    /// What it does when it is asked for `path`, with a query that is given or with any if there is none; the number says how often it was asked before.
    pub(crate) fn on(&self, path: &str, behaviour: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) {
        self.state.lock().unwrap().behaviours.insert(path.into(), Arc::new(behaviour));
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.lock().unwrap().asked.clone()
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, state: Arc<Mutex<State>>) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.lines();
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let header = |line: &str| line.split_once(':').map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned()));
    let asked = Asked { path: path.clone(), headers: lines.filter_map(header).collect() };
    let (behaviour, before) = {
        let mut state = state.lock().unwrap();
        let before = state.asked.iter().filter(|a| a.path == path).count();
        state.asked.push(asked.clone());
        let plain = path.split('?').next().unwrap_or_default();
        (state.behaviours.get(&path).or_else(|| state.behaviours.get(plain)).cloned(), before)
    };
    let reply = behaviour.map_or_else(|| Reply::raw("404 Not Found", &[("content-length", "0")], b""), |b| b(&asked, before));
    stream.write_all(&reply.bytes).await.ok()?;
    while let Some(more) = &reply.endless {
        stream.write_all(more).await.ok()?;
    }
    if reply.stays {
        // Until the client leaves.
        let _ = stream.read_u8().await;
    }
    stream.shutdown().await.ok()
}
