//! One peer's outbound queue: bounded in frames and in bytes. The event loop never waits for a peer; a peer that does not
//! read loses its connection, and the last thing it is told is why.

use crate::frames::Frame;
use futures::Stream;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Frames that wait for one peer.
const MAX_FRAMES: usize = 8_192;
/// Bytes, about, that wait for one peer: all offers of a large cluster fit, a reader that stopped does not cost more.
const MAX_BYTES: usize = 128 << 20;

#[derive(Debug, Default)]
struct Shared {
    bytes: AtomicUsize,
    end: OnceLock<Status>,
}

/// The event loop's end.
#[derive(Debug)]
pub(crate) struct Queue<F> {
    frames: mpsc::Sender<F>,
    shared: Arc<Shared>,
    stop_reading: CancellationToken,
}

/// The connection's end: the response stream of the call.
#[derive(Debug)]
pub(crate) struct Outbound<F> {
    frames: mpsc::Receiver<F>,
    shared: Arc<Shared>,
    over: bool,
}

/// Why a frame was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotQueued {
    /// The peer does not read fast enough.
    TooSlow,
    /// The connection is gone.
    Gone,
}

/// A queue for one connection, and the token that tells its reader to stop.
pub(crate) fn queue<F>() -> (Queue<F>, Outbound<F>, CancellationToken) {
    let (tx, rx) = mpsc::channel(MAX_FRAMES);
    let shared = Arc::new(Shared::default());
    let stop_reading = CancellationToken::new();
    let queue = Queue { frames: tx, shared: shared.clone(), stop_reading: stop_reading.clone() };
    (queue, Outbound { frames: rx, shared, over: false }, stop_reading)
}

impl<F: Frame> Queue<F> {
    pub(crate) fn push(&self, frame: F) -> Result<(), NotQueued> {
        let weight = frame.weight();
        let before = self.shared.bytes.fetch_add(weight, Ordering::Relaxed);
        if before > 0 && before.saturating_add(weight) > MAX_BYTES {
            return Err(NotQueued::TooSlow);
        }
        self.frames.try_send(frame).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => NotQueued::TooSlow,
            mpsc::error::TrySendError::Closed(_) => NotQueued::Gone,
        })
    }
}

impl<F> Queue<F> {
    /// Ends the connection with this status after what is queued.
    pub(crate) fn end(self, status: Status) {
        let _ = self.shared.end.set(status);
    }
}

impl<F> Drop for Queue<F> {
    fn drop(&mut self) {
        self.stop_reading.cancel();
    }
}

impl<F: Frame> Stream for Outbound<F> {
    type Item = Result<F::Wire, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        match self.frames.poll_recv(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(frame)) => {
                self.shared.bytes.fetch_sub(frame.weight(), Ordering::Relaxed);
                Poll::Ready(Some(Ok(frame.into_wire())))
            }
            Poll::Ready(None) => {
                self.over = true;
                Poll::Ready(self.shared.end.get().cloned().map(Err))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::AgentFrame;
    use futures::StreamExt;
    use smalti_types::Time;

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_cut_off_and_told() {
        let (queue, mut outbound, stop) = queue::<AgentFrame>();
        for n in 0..MAX_FRAMES {
            assert_eq!(queue.push(AgentFrame::Heartbeat(Time(n as u64))), Ok(()));
        }
        assert_eq!(queue.push(AgentFrame::Heartbeat(Time(0))), Err(NotQueued::TooSlow));
        queue.end(Status::resource_exhausted("too slow"));
        assert!(stop.is_cancelled());
        let mut read = 0;
        let last = loop {
            match outbound.next().await.unwrap() {
                Ok(_) => read += 1,
                Err(status) => break status,
            }
        };
        assert_eq!((read, last.message()), (MAX_FRAMES, "too slow"));
        assert!(outbound.next().await.is_none());
    }
}
