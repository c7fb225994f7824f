//! One transfer of a part of an object, of one version of it.
//!
//! Owns the loop: from where the last try broke off, until all is there. A digest can say nothing about a part, so the version must: every
//! request asks for it, and every answer is compared with it. Deliberately absent: how servers are asked (`source`).

use crate::error::SourceError;
use crate::retry::Tries;
use crate::source::{Part, Sources};
use crate::transfer::{Facts, Failed, Pace, Sink, Wanted, disk, stalled, trickles};
use futures::StreamExt;
use std::ops::Range;
use tokio::time::{Instant, timeout};

/// One transfer of a part.
#[derive(Debug, Clone)]
pub struct PieceTransfer<'a> {
    /// From where.
    pub sources: &'a Sources,
    /// Of what: its entity tag is what the part is of, its digest and length count for nothing.
    pub wanted: &'a Wanted,
    /// Which bytes of it, none behind its end.
    pub range: Range<u64>,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Got {
    /// All bytes.
    Piece,
    /// None: the place gives the whole object or nothing.
    NoPieces,
}

impl PieceTransfer<'_> {
    fn at(&self) -> String {
        self.wanted.location.to_string()
    }

    /// Takes it through. After a failure `sink` has what came so far.
    ///
    /// # Errors
    /// [`Failed`], when no further try makes sense.
    pub async fn run<S: Sink>(&self, sink: &mut S) -> Result<Got, Failed> {
        let length = self.range.end.saturating_sub(self.range.start);
        let have = sink.have();
        if have.bytes > length || (have.bytes > 0 && have.etag != self.wanted.etag) {
            sink.restart().await.map_err(|e| disk(sink, &e))?;
        }
        let facts = Facts { etag: self.wanted.etag.clone(), total: Some(length), name: None };
        sink.note(&facts).await.map_err(|e| disk(sink, &e))?;
        let mut tries = Tries::new(self.sources.setup().retries);
        loop {
            let before = sink.have().bytes;
            let failure = match self.once(sink, length).await {
                Ok(got) => return Ok(got),
                Err(failure) => failure,
            };
            let Failed::Source(SourceError::Transient { wait, .. }) = &failure else { return Err(failure) };
            let gained = sink.have().bytes.saturating_sub(before);
            let Some(pause) = tries.failed(gained, *wait, fastrand::u64(..)) else { return Err(failure) };
            tracing::debug!(error = %failure, have = sink.have().bytes, ?pause, "transfer of a part broke, trying again");
            tokio::time::sleep(pause).await;
        }
    }

    /// One try.
    async fn once<S: Sink>(&self, sink: &mut S, length: u64) -> Result<Got, Failed> {
        let (wanted, stall) = (self.wanted, self.sources.setup().stall);
        let mut left = length - sink.have().bytes.min(length);
        if left == 0 {
            return Ok(Got::Piece);
        }
        let start = self.range.end - left;
        let part = Part { range: start..self.range.end, version: wanted.etag.as_deref() };
        let opened = self.sources.part(&wanted.role, &wanted.location, part).await?;
        if opened.from < start {
            return Ok(Got::NoPieces);
        }
        let (mut stream, mut pace) = (opened.stream, Pace::new(stall));
        while left > 0 {
            let chunk = timeout(stall, stream.next()).await.map_err(|_| stalled(&self.at(), stall))?;
            let Some(mut chunk) = chunk.transpose()? else {
                let have = length - left;
                return Err(SourceError::transient(&self.at(), format!("the transfer ended after {have} of {length} bytes")).into());
            };
            chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            let came = chunk.len() as u64;
            left -= came;
            sink.write(chunk).await.map_err(|e| disk(sink, &e))?;
            self.sources.rate.take(came).await;
            if left > 0 && pace.is_too_slow(Instant::now(), came) {
                return Err(trickles(&self.at()).into());
            }
        }
        Ok(Got::Piece)
    }
}
