//! Unpacks what a server compressed on its way although it was asked not to.
//!
//! Owns the bound on memory: input is taken in small pieces, so that what a piece becomes is small, too. Deliberately absent: archives that
//! are compressed themselves; those are content.

use crate::error::SourceError;
use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use futures::stream::{BoxStream, StreamExt};
use std::collections::VecDeque;
use std::io::Write;

/// Bytes taken at a time: gzip makes at most about a thousand of one.
const PIECE: usize = 1 << 10;

struct State {
    packed: BoxStream<'static, Result<Bytes, SourceError>>,
    pieces: VecDeque<Bytes>,
    decoder: MultiGzDecoder<Vec<u8>>,
    at: String,
    ended: bool,
}

/// The stream as it was before it was compressed.
pub(crate) fn gunzip(packed: BoxStream<'static, Result<Bytes, SourceError>>, at: String) -> BoxStream<'static, Result<Bytes, SourceError>> {
    let state = State { packed, pieces: VecDeque::new(), decoder: MultiGzDecoder::new(Vec::new()), at, ended: false };
    futures::stream::try_unfold(state, |mut state| async move {
        let damaged = |at: &str, e: std::io::Error| SourceError::permanent(at, format!("the server sends damaged gzip data: {e}"));
        while !state.ended {
            if let Some(piece) = state.pieces.pop_front() {
                state.decoder.write_all(&piece).map_err(|e| damaged(&state.at, e))?;
            } else if let Some(chunk) = state.packed.next().await {
                let mut chunk = chunk?;
                while !chunk.is_empty() {
                    state.pieces.push_back(chunk.split_to(PIECE.min(chunk.len())));
                }
            } else {
                state.ended = true;
                state.decoder.try_finish().map_err(|e| damaged(&state.at, e))?;
            }
            let out = std::mem::take(state.decoder.get_mut());
            if !out.is_empty() {
                return Ok(Some((Bytes::from(out), state)));
            }
        }
        Ok(None)
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt;

    async fn unpacked(chunks: Vec<Vec<u8>>) -> Result<Vec<u8>, SourceError> {
        let stream = futures::stream::iter(chunks.into_iter().map(|c| Ok(Bytes::from(c)))).boxed();
        gunzip(stream, "it".into()).try_fold(Vec::new(), |all, b| async move { Ok([all, b.to_vec()].concat()) }).await
    }

    #[tokio::test]
    async fn what_was_packed_comes_out_in_pieces_of_a_bounded_size() {
        let bytes = vec![0_u8; 8 << 20];
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        packer.write_all(&bytes).unwrap();
        let packed = packer.finish().unwrap();
        let stream = futures::stream::iter([Ok(Bytes::from(packed.clone()))]).boxed();
        let sizes: Vec<usize> = gunzip(stream, "it".into()).map_ok(|b| b.len()).try_collect().await.unwrap();
        assert!(sizes.iter().all(|s| *s <= 2 << 20), "{sizes:?}");
        assert_eq!(sizes.iter().sum::<usize>(), bytes.len());
        assert_eq!(unpacked(packed.chunks(7).map(<[u8]>::to_vec).collect()).await.unwrap(), bytes);
        assert!(unpacked(vec![packed[..packed.len() - 9].to_vec()]).await.is_err(), "cut off");
        assert!(unpacked(vec![b"not gzip at all".to_vec()]).await.is_err());
    }
}
