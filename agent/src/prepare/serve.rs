//! Gives other agents what this one holds, over HTTP: `GET /v1/content/<64 hexadecimal digits>?role=ROLE`.
//!
//! A role gets what it holds here itself, that is what it has shown its right to; of everything else nothing is said, not even that it is
//! there. Who fetches checks the bytes. Only bundles and inputs as they were fetched are given away, never machine code. Owns how many are
//! served at a time.

use super::service::Handle;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::StreamExt;
use percent_encoding::percent_decode_str;
use smalti_types::{Digest, Role};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::Semaphore;
use tokio_util::io::ReaderStream;

/// Transfers to others at a time. The master sends a few for each content.
const MOST: usize = 32;
/// Bytes read at a time.
const CHUNK: usize = 256 << 10;

#[derive(Clone)]
struct Shared {
    holdings: Handle,
    places: Arc<Semaphore>,
}

/// Serves until its listener fails or it is dropped.
pub(crate) async fn serve(listener: tokio::net::TcpListener, holdings: Handle) -> std::io::Result<()> {
    let shared = Shared { holdings, places: Arc::new(Semaphore::new(MOST)) };
    axum::serve(listener, Router::new().route("/v1/content/{hex}", get(content)).with_state(shared)).await
}

fn plain(status: StatusCode, text: &'static str) -> Response {
    (status, text).into_response()
}

async fn content(State(shared): State<Shared>, Path(hex): Path<String>, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    let (Ok(digest), Some(role)) = (Digest::from_hex(&hex), query.as_deref().and_then(role)) else {
        return plain(StatusCode::BAD_REQUEST, "content is named by the 64 hexadecimal digits of its BLAKE3, and asked for in a role\n");
    };
    let Ok(place) = shared.places.try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], "enough others are fetching\n").into_response();
    };
    let Some(held) = shared.holdings.held(&role, digest).await else {
        return plain(StatusCode::NOT_FOUND, "this role does not hold it here\n");
    };
    let from = headers.get(header::RANGE).and_then(|v| v.to_str().ok()).and_then(rest_from).filter(|from| *from < held.length).unwrap_or(0);
    let mut file = tokio::fs::File::from_std(held.file);
    if let Err(error) = file.seek(std::io::SeekFrom::Start(from)).await {
        tracing::warn!(%digest, %error, "cannot be read for another agent");
        return plain(StatusCode::INTERNAL_SERVER_ERROR, "it cannot be read\n");
    }
    let length = held.length - from;
    // What keeps the entry there, and the place, go with the last byte.
    let keeps = (held.pin, place);
    let bytes = ReaderStream::with_capacity(file.take(length), CHUNK).map(move |chunk| {
        let _ = &keeps;
        chunk
    });
    let mut response = Response::new(Body::from_stream(bytes));
    if from > 0 {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        set(&mut response, header::CONTENT_RANGE, &format!("bytes {from}-{}/{}", held.length - 1, held.length));
    }
    set(&mut response, header::CONTENT_LENGTH, &length.to_string());
    set(&mut response, header::CONTENT_TYPE, "application/octet-stream");
    set(&mut response, header::ACCEPT_RANGES, "bytes");
    set(&mut response, header::ETAG, &format!("\"{hex}\""));
    if let Some(name) = held.name {
        let quoted = name.replace('\\', "\\\\").replace('"', "\\\"");
        set(&mut response, header::CONTENT_DISPOSITION, &format!("attachment; filename=\"{quoted}\""));
    }
    response
}

/// The role that is asked in.
fn role(query: &str) -> Option<Role> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("role="))?;
    Role::new(percent_decode_str(value).decode_utf8().ok()?).ok()
}

fn set(response: &mut Response, name: header::HeaderName, value: &str) {
    if let Ok(value) = header::HeaderValue::from_bytes(value.as_bytes()) {
        response.headers_mut().insert(name, value);
    }
}

/// Of a range that goes to the end, its first byte. Others are answered with the whole, as a server may.
fn rest_from(range: &str) -> Option<u64> {
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}
