//! `https://` and `http://`.
//!
//! Owns requests and what headers say. Redirects are followed by hand, each checked like a first request: by the policy's patterns where the
//! request is one of a task, by address always. Deliberately absent: what to make of a range (`range`), and tries.

use crate::clients::Clients;
use crate::error::{SourceError, disconnected, root_cause};
use crate::guard::Barred;
use crate::gunzip::gunzip;
use crate::hosts::{Hosts, Place};
use crate::location::{Location, clean_name};
use crate::options::Setup;
use crate::range::{Answer, Have, Packing, Request, Wrong, judge};
use crate::retry::{Meaning, meaning, retry_after};
use crate::source::{Ask, MODIFIED, Opened, OpenedPart, Part, Source, boxed, changed, same_version};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED, LOCATION, RANGE, RETRY_AFTER,
};
use reqwest::{Method, Response, Url};
use smalti_types::Role;
use std::sync::Arc;
use std::time::SystemTime;

/// Most redirects of one request.
const MOST_REDIRECTS: usize = 10;

/// The world by HTTP. Clones are the same.
#[derive(Clone)]
pub(crate) struct Http {
    setup: Arc<Setup>,
    clients: Arc<Clients>,
    hosts: Arc<Hosts>,
}

/// One request, as far as it is the same after a redirect.
pub(crate) struct Get<'a> {
    pub(crate) role: &'a Role,
    pub(crate) method: Method,
    pub(crate) headers: HeaderMap,
    /// Only for the host that was asked first.
    pub(crate) secret: Option<(HeaderName, HeaderValue)>,
    /// Whether redirects may lead only where the policy's patterns allow, not just its addresses: a registry sends to wherever its blobs are.
    pub(crate) by_pattern: bool,
    /// What messages call it.
    pub(crate) at: &'a str,
}

/// An answer, and the place at the host that it takes.
pub(crate) struct Got {
    pub(crate) response: Response,
    pub(crate) place: Place,
}

impl Http {
    pub(crate) fn new(setup: Arc<Setup>, clients: Arc<Clients>, hosts: Arc<Hosts>) -> Self {
        Self { setup, clients, hosts }
    }

    /// Sends a request and follows where it leads.
    pub(crate) async fn send(&self, url: &Url, get: &Get<'_>) -> Result<Got, SourceError> {
        let at = get.at;
        let mut url = url.clone();
        let first = url.origin();
        for _ in 0..=MOST_REDIRECTS {
            let client = self.clients.world(get.role, &url).await.map_err(|e| barred(at, &e))?;
            let place = self.hosts.place(&host_of(&url)).await;
            let mut headers = get.headers.clone();
            if let Some((name, value)) = get.secret.as_ref().filter(|_| url.origin() == first) {
                headers.insert(name.clone(), value.clone());
            }
            let request = client.request(get.method.clone(), url.clone()).headers(headers);
            let response = request.send().await.map_err(|e| from_reqwest(at, &e))?;
            if meaning(response.status().as_u16()) != Meaning::Redirect {
                return Ok(Got { response, place });
            }
            url = self.next(&url, &response, get)?;
        }
        Err(SourceError::permanent(at, format!("it is redirected more than {MOST_REDIRECTS} times, perhaps in a circle")))
    }

    fn next(&self, url: &Url, response: &Response, get: &Get<'_>) -> Result<Url, SourceError> {
        let at = get.at;
        let to = response.headers().get(LOCATION).and_then(|l| std::str::from_utf8(l.as_bytes()).ok());
        let next = to.and_then(|to| url.join(to).ok());
        let mut next = next.ok_or_else(|| SourceError::permanent(at, format!("the server says {} and not where", response.status())))?;
        next.set_fragment(None);
        if !matches!(next.scheme(), "http" | "https") || (url.scheme() == "https" && next.scheme() == "http") {
            return Err(SourceError::refused(at, format!("it is redirected from {} to {}", url.scheme(), next.scheme())));
        }
        if get.by_pattern {
            let place = Location::Http(next.clone());
            self.setup.policy.check(get.role, &place).map_err(|e| SourceError::refused(at, format!("it is redirected: {e}")))?;
        }
        Ok(next)
    }

    /// Opens what a client that is not the world's gets, as it is asked for.
    pub(crate) async fn open_with(&self, client: &reqwest::Client, url: &str, ask: &Ask<'_>, at: String) -> Result<Opened, SourceError> {
        let (request, headers) = wanted(ask);
        let response = client.get(url).headers(headers).send().await.map_err(|e| from_reqwest(&at, &e))?;
        opened(Got { response, place: None }, ask, &request, at)
    }
}

/// The headers that ask for what is missing.
pub(crate) fn wanted(ask: &Ask<'_>) -> (Request, HeaderMap) {
    let request = ask.have.request(ask.digest_is_known);
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let mut set = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            headers.insert(name, value);
        }
    };
    match &request {
        Request::Whole => {}
        Request::From(from) => set(RANGE, &format!("bytes={from}-")),
        Request::FromIf(from, tag) => {
            set(RANGE, &format!("bytes={from}-"));
            // If-Match says the same, and no server has to be asked both.
            if ask.version.is_none() {
                set(IF_RANGE, tag);
            }
        }
    }
    headers.extend(ask.version.and_then(condition));
    (request, headers)
}

/// The header with which a server gives this version or none. If-Match compares strongly: a weak tag would never match.
fn condition(version: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = match version.strip_prefix(MODIFIED) {
        Some(date) => (IF_UNMODIFIED_SINCE, date),
        None if version.starts_with("W/") => return None,
        None => (IF_MATCH, version),
    };
    Some((name, HeaderValue::from_bytes(value.as_bytes()).ok()?))
}

/// Which version a server sends: its tag, or when it was modified last.
fn version(headers: &HeaderMap) -> Option<String> {
    let modified = || text(headers, &LAST_MODIFIED).map(|date| format!("{MODIFIED}{}", date.trim()));
    text(headers, &ETAG).map(str::to_owned).or_else(modified)
}

/// The same, if it tells this version from the next one: not a date that a server makes up for each answer, or within whose second
/// there may be another version.
fn lasting_version(headers: &HeaderMap) -> Option<String> {
    let date = |name| text(headers, name).and_then(|d| httpdate::parse_http_date(d.trim()).ok());
    let settled = || date(&DATE).zip(date(&LAST_MODIFIED)).is_some_and(|(now, modified)| modified < now);
    version(headers).filter(|v| !v.starts_with(MODIFIED) || settled())
}

/// What an answer is, before its bytes are read.
pub(crate) fn opened(got: Got, ask: &Ask<'_>, request: &Request, at: String) -> Result<Opened, SourceError> {
    let Got { response, place } = got;
    let response = usable(response, &at)?;
    let headers = response.headers();
    if response.status().as_u16() == 416 && request.from() == 0 {
        return Err(SourceError::permanent(&at, format!("the server says {}", response.status())));
    }
    let body = judge(ask.have, request, &answer(&response)).map_err(|wrong| match wrong {
        Wrong::Discontinued(why) => SourceError::Discontinued { at: at.clone(), why },
        Wrong::Unusable(why) => SourceError::permanent(&at, why),
    })?;
    let etag = version(headers);
    if body.from > 0
        && let (Some(before), Some(now)) = (&ask.have.etag, &etag)
        && before != now
    {
        return Err(SourceError::Discontinued { at, why: format!("its version was {before} and is {now} now") });
    }
    // Names may be more than ASCII.
    let name = headers.get(CONTENT_DISPOSITION).and_then(|v| std::str::from_utf8(v.as_bytes()).ok()).and_then(disposition_name);
    let stream = if body.is_complete { futures::stream::empty().boxed() } else { stream(response, place, at.clone()) };
    let stream = if body.packing == Packing::Gzip { gunzip(stream, at) } else { stream };
    // What is packed anew each time cannot be gone on with.
    let etag = etag.filter(|_| body.packing == Packing::Plain);
    Ok(Opened { stream, from: body.from, total: body.total, etag, name, sha256: None })
}

/// The bytes; the place at the host is given back with their end.
pub(crate) fn stream(response: Response, place: Place, at: String) -> BoxStream<'static, Result<Bytes, SourceError>> {
    let bytes = response.bytes_stream();
    bytes
        .map(move |chunk| {
            let _place = &place;
            chunk.map_err(|e| from_reqwest(&at, &e))
        })
        .boxed()
}

/// An answer that brings what was asked for, or why it does not.
pub(crate) fn usable(response: Response, at: &str) -> Result<Response, SourceError> {
    let status = response.status();
    let (at, why) = (at.to_owned(), format!("the server says {status}"));
    match meaning(status.as_u16()) {
        Meaning::Bytes => Ok(response),
        Meaning::NotFound => Err(SourceError::NotFound { at, why }),
        Meaning::Refused => Err(SourceError::Refused { at, why }),
        Meaning::Changed => Err(SourceError::Changed { at, why }),
        Meaning::Transient => {
            let wait = text(response.headers(), &RETRY_AFTER).and_then(|t| retry_after(t, SystemTime::now()));
            Err(SourceError::Transient { at, why, wait })
        }
        Meaning::Permanent | Meaning::Redirect => Err(SourceError::Permanent { at, why }),
    }
}

fn answer(response: &Response) -> Answer {
    let headers = response.headers();
    let owned = |name| text(headers, name).map(str::to_owned);
    Answer {
        status: response.status().as_u16(),
        length: text(headers, &CONTENT_LENGTH).and_then(|l| l.trim().parse().ok()),
        content_range: owned(&CONTENT_RANGE),
        encoding: owned(&CONTENT_ENCODING),
    }
}

pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}

fn host_of(url: &Url) -> String {
    format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default())
}

impl Source for Http {
    fn open<'a>(&'a self, ask: Ask<'a>) -> BoxFuture<'a, Result<Opened, SourceError>> {
        boxed(async move {
            let (url, at) = (url_of(ask.location)?, ask.location.to_string());
            let (request, headers) = wanted(&ask);
            let get = Get { role: ask.role, method: Method::GET, headers, secret: None, by_pattern: true, at: &at };
            let got = self.send(url, &get).await?;
            opened(got, &ask, &request, at)
        })
    }

    fn head<'a>(&'a self, role: &'a Role, location: &'a Location) -> BoxFuture<'a, Result<(u64, Option<String>), SourceError>> {
        boxed(async move {
            let (url, at) = (url_of(location)?, location.to_string());
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]);
            let mut get = Get { role, method: Method::HEAD, headers, secret: None, by_pattern: true, at: &at };
            let mut got = self.send(url, &get).await?;
            // Not every server knows this method; what a GET says is the same, and its bytes are not read.
            if !got.response.status().is_success() || got.response.headers().get(CONTENT_LENGTH).is_none() {
                get.method = Method::GET;
                got = self.send(url, &get).await?;
            }
            let response = usable(got.response, &at)?;
            let answer = answer(&response);
            let body = judge(&Have::default(), &Request::Whole, &answer).map_err(|_| SourceError::permanent(&at, "it is compressed"))?;
            let length = body.total.ok_or_else(|| SourceError::permanent(&at, "the server does not say how long it is"))?;
            Ok((length, lasting_version(response.headers())))
        })
    }

    fn part<'a>(&'a self, role: &'a Role, location: &'a Location, part: Part<'a>) -> BoxFuture<'a, Result<OpenedPart, SourceError>> {
        boxed(async move {
            let (url, at) = (url_of(location)?, location.to_string());
            let mut headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]);
            let value = HeaderValue::from_str(&part.header()).map_err(|e| SourceError::permanent(&at, e.to_string()))?;
            headers.insert(RANGE, value);
            headers.extend(part.version.and_then(condition));
            let get = Get { role, method: Method::GET, headers, secret: None, by_pattern: true, at: &at };
            let Got { response, place } = self.send(url, &get).await?;
            let response = usable(response, &at)?;
            if let (Some(expected), Some(found)) = (part.version, version(response.headers()))
                && !same_version(expected, &found)
            {
                return Err(changed(&at, expected, &found));
            }
            let start = part.range.start;
            let body = judge(&Have::default(), &Request::From(start), &answer(&response))
                .map_err(|_| SourceError::permanent(&at, "the server sends another part than it was asked for"))?;
            Ok(OpenedPart { stream: stream(response, place, at), from: body.from })
        })
    }
}

fn url_of(location: &Location) -> Result<&Url, SourceError> {
    match location {
        Location::Http(url) => Ok(url),
        other => Err(SourceError::permanent(&other.to_string(), "it is not behind HTTP")),
    }
}

/// The file name of `attachment; filename="hello.wasm"`.
fn disposition_name(header: &str) -> Option<String> {
    let (_, rest) = header.split_once("filename=")?;
    match rest.strip_prefix('"') {
        Some(quoted) => clean_name(&unquoted(quoted)),
        None => clean_name(rest.split(';').next()?.trim()),
    }
}

/// A quoted string of HTTP up to its end, without the escapes.
fn unquoted(text: &str) -> String {
    let (mut out, mut chars) = (String::new(), text.chars());
    loop {
        match chars.next() {
            None | Some('"') => return out,
            Some('\\') => out.extend(chars.next()),
            Some(c) => out.push(c),
        }
    }
}

fn barred(at: &str, barred: &Barred) -> SourceError {
    match barred {
        Barred::Policy(_) => SourceError::refused(at, barred.to_string()),
        Barred::NoSuchHost(_) => SourceError::permanent(at, barred.to_string()),
        Barred::Trouble(_) => SourceError::transient(at, barred.to_string()),
    }
}

/// What went wrong with a request, without its URL: that may have secrets in it.
pub(crate) fn from_reqwest(at: &str, error: &reqwest::Error) -> SourceError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        // What our own resolver said comes back through all layers.
        if let Some(said) = inner.downcast_ref::<Barred>() {
            return barred(at, said);
        }
        cause = inner.source();
    }
    if error.is_timeout() {
        return SourceError::transient(at, "nothing arrives any more (time limit of the transfer)");
    }
    let why = if std::error::Error::source(error).is_some() { root_cause(error) } else { "the request cannot be sent".to_owned() };
    if error.is_builder() { SourceError::permanent(at, why) } else { disconnected(at, why) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_may_say_how_a_file_is_called() {
        assert_eq!(disposition_name("attachment; filename=\"hello.wasm\"").as_deref(), Some("hello.wasm"));
        assert_eq!(disposition_name("attachment; filename=a/../b; x=y").as_deref(), Some("a..b"));
        assert_eq!(disposition_name("attachment; filename=\"a \\\"b\\\\ \u{e4}.wasm\"; x=y").as_deref(), Some("a \"b\\ \u{e4}.wasm"));
    }

    #[test]
    fn what_is_missing_is_asked_for_with_its_condition() {
        let (role, location) = (Role::default(), Location::parse(Some("http://h/x"), None).unwrap());
        let have = Have { bytes: 5, etag: Some("\"a\"".into()), total: None };
        let ask = |version| Ask { role: &role, location: &location, have: &have, version, digest_is_known: false };
        let headers = |version| wanted(&ask(version)).1;
        assert_eq!(headers(None)[RANGE], "bytes=5-");
        assert_eq!(headers(None)[IF_RANGE], "\"a\"");
        assert_eq!(headers(None)[ACCEPT_ENCODING], "identity");
        let pinned = headers(Some("\"a\""));
        assert!(pinned[IF_MATCH] == "\"a\"" && !pinned.contains_key(IF_RANGE));
        assert!(!headers(Some("W/\"a\"")).contains_key(IF_MATCH));
        let dated = headers(Some("modified Sun, 06 Nov 1994 08:49:37 GMT"));
        assert!(dated[IF_UNMODIFIED_SINCE] == "Sun, 06 Nov 1994 08:49:37 GMT" && !dated.contains_key(IF_MATCH));
    }

    #[test]
    fn a_date_is_a_version_only_if_the_next_one_would_have_another() {
        let (modified, later) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:38 GMT");
        let headers = |date: &'static str| {
            HeaderMap::from_iter([(DATE, date), (LAST_MODIFIED, modified)].map(|(n, v)| (n, HeaderValue::from_static(v))))
        };
        assert_eq!(lasting_version(&headers(later)), Some(format!("modified {modified}")));
        assert_eq!(lasting_version(&headers(modified)), None);
        assert_eq!(version(&headers(modified)), Some(format!("modified {modified}")), "what was pinned is compared with it all the same");
        let mut tagged = headers(modified);
        tagged.insert(ETAG, HeaderValue::from_static("\"a\""));
        assert_eq!(lasting_version(&tagged).as_deref(), Some("\"a\""));
    }
}
