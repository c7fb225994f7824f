//! Plain HTTP on the same port: agents fetch bundles here, and a health check. Ranges are served, so that a fetch that
//! broke off goes on where it was. `?role=` says in which role somebody asks; without it, as the operator.

use crate::bundle_store::{BundleStore, StoreError, Stored};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use object_store::GetRange;
use smalti_types::id::IdError;
use smalti_types::{Digest, Role};

/// Adds the plain HTTP routes to those of the gRPC services.
pub(crate) fn add_routes(router: Router, store: BundleStore) -> Router {
    let plain = Router::new().route("/v1/bundles/{hex}", get(bundle)).with_state(store).route("/healthz", get(|| async { "ok\n" }));
    router.merge(plain)
}

async fn bundle(
    State(store): State<BundleStore>,
    Path(hex): Path<String>,
    RawQuery(query): RawQuery,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let Ok(digest) = Digest::from_hex(&hex) else {
        return plain(StatusCode::BAD_REQUEST, "a bundle is named by the 64 hexadecimal digits of its BLAKE3\n".to_owned());
    };
    let role = match role(query.as_deref().unwrap_or_default()) {
        Ok(role) => role,
        Err(why) => return plain(StatusCode::BAD_REQUEST, format!("{why}\n")),
    };
    answer(&store, (digest, role.as_ref()), &method, &headers).await.unwrap_or_else(|error| {
        let status = if matches!(error, StoreError::NotFound(_)) { StatusCode::NOT_FOUND } else { StatusCode::INTERNAL_SERVER_ERROR };
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(%error, "bundle store");
        }
        plain(status, format!("{error}\n"))
    })
}

/// No character of a role needs to be encoded.
fn role(query: &str) -> Result<Option<Role>, IdError> {
    query.split('&').find_map(|pair| pair.strip_prefix("role=")).map(Role::new).transpose()
}

async fn answer(
    store: &BundleStore,
    (digest, role): (Digest, Option<&Role>),
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, StoreError> {
    let stored = store.stat(digest, role).await?;
    let Stored { length, ref name, .. } = stored;
    let range = headers.get(header::RANGE).and_then(|v| v.to_str().ok()).and_then(|text| parse_range(text, length));
    let range = match range {
        None => 0..length,
        Some(Ok(range)) => range,
        Some(Err(Unsatisfiable)) => {
            let mut response = plain(StatusCode::RANGE_NOT_SATISFIABLE, format!("the bundle has {length} bytes\n"));
            set(&mut response, header::CONTENT_RANGE, &format!("bytes */{length}"));
            return Ok(response);
        }
    };
    let partial = range != (0..length);
    let body = if method == Method::HEAD || length == 0 {
        Body::empty()
    } else {
        let reading = store.read(&stored, partial.then(|| GetRange::Bounded(range.clone()))).await?;
        debug_assert!(reading.length == length && reading.range == range, "bundles do not change");
        Body::from_stream(reading.bytes)
    };
    let mut response = Response::new(body);
    if partial {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        set(&mut response, header::CONTENT_RANGE, &format!("bytes {}-{}/{length}", range.start, range.end - 1));
    }
    set(&mut response, header::CONTENT_LENGTH, &(range.end - range.start).to_string());
    set(&mut response, header::CONTENT_TYPE, "application/octet-stream");
    set(&mut response, header::ACCEPT_RANGES, "bytes");
    set(&mut response, header::ETAG, &format!("\"{}\"", digest.to_hex()));
    set(&mut response, header::CACHE_CONTROL, "private, no-cache");
    if !name.is_empty() {
        // The guest's `args[0]`, as it would be when run from the file.
        set(&mut response, header::CONTENT_DISPOSITION, &disposition(name));
    }
    Ok(response)
}

fn plain(status: StatusCode, text: String) -> Response {
    (status, text).into_response()
}

fn set(response: &mut Response, name: header::HeaderName, value: &str) {
    if let Ok(value) = header::HeaderValue::from_bytes(value.as_bytes()) {
        response.headers_mut().insert(name, value);
    }
}

/// A file name as a quoted string; it may hold any UTF-8, which HTTP passes on as it is.
fn disposition(name: &str) -> String {
    let mut quoted = String::from("attachment; filename=\"");
    for c in name.chars().filter(|c| !c.is_control()) {
        if matches!(c, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.push('"');
    quoted
}

/// A range that begins beyond the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unsatisfiable;

/// One range in bytes. `None` for what a server may ignore: other units, several ranges, nonsense.
fn parse_range(text: &str, length: u64) -> Option<Result<std::ops::Range<u64>, Unsatisfiable>> {
    let (first, last) = text.trim().strip_prefix("bytes=")?.split_once('-')?;
    let range = match (first.is_empty(), last.is_empty()) {
        (true, true) => return None,
        (true, false) => length.saturating_sub(last.parse().ok()?)..length,
        (false, true) => first.parse().ok()?..length,
        (false, false) => {
            let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            if last < first {
                return None;
            }
            first..last.saturating_add(1).min(length)
        }
    };
    Some(if range.start < range.end { Ok(range) } else { Err(Unsatisfiable) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_fits_into_the_header() {
        assert_eq!(disposition("hello.wasm"), r#"attachment; filename="hello.wasm""#);
        let odd = disposition("a \"b\\\n\u{e4}.wasm");
        assert_eq!(odd, "attachment; filename=\"a \\\"b\\\\\u{e4}.wasm\"");
        assert!(header::HeaderValue::from_bytes(odd.as_bytes()).is_ok());
    }

    #[test]
    fn the_role_is_taken_out_of_the_query() {
        assert_eq!(role("").unwrap(), None);
        assert_eq!(role("a=b&role=team-a&role=x").unwrap(), Some(Role::new("team-a").unwrap()));
        for bad in ["role=", "role=..", "role=a%2Fb"] {
            assert!(role(bad).is_err(), "{bad}: it is not taken for the operator");
        }
    }

    #[test]
    fn ranges() {
        assert_eq!(parse_range("bytes=0-9", 100), Some(Ok(0..10)));
        assert_eq!(parse_range("bytes=90-", 100), Some(Ok(90..100)));
        assert_eq!(parse_range("bytes=-5", 100), Some(Ok(95..100)));
        assert_eq!(parse_range("bytes=-500", 100), Some(Ok(0..100)));
        assert_eq!(parse_range("bytes=50-500", 100), Some(Ok(50..100)));
        assert_eq!(parse_range("bytes=100-", 100), Some(Err(Unsatisfiable)));
        for ignored in ["bytes=5-1", "bytes=-", "lines=1-2", "bytes=1-2,4-5", "bytes=a-b", "bytes=18446744073709551616-"] {
            assert_eq!(parse_range(ignored, 100), None, "{ignored}");
        }
    }
}
