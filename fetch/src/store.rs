//! The cluster's own store, at the master, and other agents.
//!
//! Both are named by address, never behind a proxy, and what they send is checked against the digest like everything else. Each request says in
//! which role it is made: for a role, what it has no right to is not there.

use crate::error::SourceError;
use crate::http::{Http, from_reqwest, text, usable};
use crate::location::Location;
use crate::source::{Ask, Opened, OpenedPart, Part, Source, boxed};
use futures::future::BoxFuture;
use reqwest::header::{CONTENT_LENGTH, RANGE};
use smalti_types::{Digest, Role};

/// The master's store.
pub(crate) struct Store {
    pub(crate) http: Http,
    pub(crate) client: reqwest::Client,
    pub(crate) master: String,
}

impl Store {
    fn url(&self, role: &Role, location: &Location) -> Result<(String, String), SourceError> {
        match location {
            // No character of a role needs to be encoded.
            Location::Store(digest) => {
                let url = self.of(digest);
                Ok((format!("{url}?role={role}"), format!("{location} ({url})")))
            }
            Location::Peer(at, digest) => Ok((format!("http://{at}/v1/content/{}?role={role}", digest.to_hex()), location.to_string())),
            other => Err(SourceError::permanent(&other.to_string(), "it is not in the cluster's store")),
        }
    }

    fn of(&self, digest: &Digest) -> String {
        format!("http://{}/v1/bundles/{}", self.master, digest.to_hex())
    }
}

impl Source for Store {
    fn open<'a>(&'a self, ask: Ask<'a>) -> BoxFuture<'a, Result<Opened, SourceError>> {
        boxed(async move {
            let (url, at) = self.url(ask.role, ask.location)?;
            self.http.open_with(&self.client, &url, &ask, at).await
        })
    }

    fn head<'a>(&'a self, role: &'a Role, location: &'a Location) -> BoxFuture<'a, Result<(u64, Option<String>), SourceError>> {
        boxed(async move {
            let (url, at) = self.url(role, location)?;
            let response = usable(self.client.head(url).send().await.map_err(|e| from_reqwest(&at, &e))?, &at)?;
            let length = text(response.headers(), &CONTENT_LENGTH).and_then(|l| l.parse().ok());
            Ok((length.ok_or_else(|| SourceError::permanent(&at, "the master does not say how long it is"))?, None))
        })
    }

    fn part<'a>(&'a self, role: &'a Role, location: &'a Location, part: Part<'a>) -> BoxFuture<'a, Result<OpenedPart, SourceError>> {
        boxed(async move {
            let (url, at) = self.url(role, location)?;
            let request = self.client.get(url).header(RANGE, part.header());
            let response = usable(request.send().await.map_err(|e| from_reqwest(&at, &e))?, &at)?;
            let from = if response.status().as_u16() == 206 { part.range.start } else { 0 };
            Ok(OpenedPart { stream: crate::http::stream(response, None, at), from })
        })
    }
}
