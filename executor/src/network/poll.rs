//! `poll_oneoff` for preview 1 guests with sockets.
//!
//! Owns the layouts of subscriptions and events. Files, stdin, stdout and stderr are always ready: a read or write of them waits
//! for nothing that an event could announce. A subscription that makes no sense gives an event with its error, as the standard
//! has it, and the others count.

use super::memory;
use super::socket::{Errno, Socket, is_ready};
use super::table::Entry;
use crate::state::State;
use rustix::event::PollFlags;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;
use wasmtime_wasi::p1::wasi_snapshot_preview1 as inner;
use wiggle::GuestMemory;

/// Most subscriptions of one call.
const MAX_SUBSCRIPTIONS: u32 = 4096;
/// Sizes of the structures in memory, in bytes.
const SUBSCRIPTION: u32 = 48;
const EVENT: u32 = 32;
/// `eventtype`.
const CLOCK: u8 = 0;
const READ: u8 = 1;
const WRITE: u8 = 2;
/// `subclockflags`: the time-out is a point in time.
const ABSOLUTE: u16 = 1;
/// `clockid`.
const REALTIME: u32 = 0;
const MONOTONIC: u32 = 1;
/// `eventrwflags`: the peer is gone.
const HANGUP: u16 = 1;
/// A sleep beyond this is one for ever.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// What one subscription waits for.
enum Wait {
    At(Instant),
    Socket(Arc<Socket>),
    /// It is there, or cannot be.
    Now(Result<(), Errno>),
}

struct Subscription {
    userdata: [u8; 8],
    kind: u8,
    wait: Wait,
}

/// Waits for one of the subscriptions, and writes an event for each that is there. A trap is an error outside.
pub(super) async fn oneoff(
    memory: &mut [u8],
    state: &mut State,
    subscriptions: i32,
    events: i32,
    count: i32,
    out: i32,
) -> wasmtime::Result<Result<(), Errno>> {
    let count = count.cast_unsigned();
    if count == 0 || count > MAX_SUBSCRIPTIONS {
        return Ok(Err(Errno::Inval));
    }
    // All memory is there before anybody waits.
    let room = memory::bytes(memory, events, count * EVENT).and_then(|_| memory::read_u32(memory, out, 0));
    if let Err(e) = room {
        return Ok(Err(e));
    }
    let mut all = Vec::with_capacity(count as usize);
    for i in 0..count {
        match read(memory, state, subscriptions, i * SUBSCRIPTION)? {
            Ok(subscription) => all.push(subscription),
            Err(e) => return Ok(Err(e)),
        }
    }
    let there = wait(&all).await;
    let mut written = 0;
    for (subscription, happened) in all.iter().zip(there) {
        let Some((error, flags)) = happened else { continue };
        let mut event = [0; EVENT as usize];
        event[..8].copy_from_slice(&subscription.userdata);
        event[8..10].copy_from_slice(&error.to_le_bytes());
        event[10] = subscription.kind;
        event[16] = u8::from(subscription.kind != CLOCK);
        event[24..26].copy_from_slice(&flags.to_le_bytes());
        let at = events.cast_unsigned().wrapping_add(written * EVENT).cast_signed();
        if let Err(e) = memory::write(memory, at, &event) {
            return Ok(Err(e));
        }
        written += 1;
    }
    Ok(memory::write(memory, out, &written.to_le_bytes()))
}

/// Whether each subscription is there: its error number and its flags.
type There = Vec<Option<(u16, u16)>>;

async fn wait(all: &[Subscription]) -> There {
    let deadline = all.iter().filter_map(|s| if let Wait::At(at) = s.wait { Some(at) } else { None }).min();
    let first = look(all);
    if first.iter().any(Option::is_some) {
        return first;
    }
    let mut sleep = std::pin::pin!(async {
        match deadline {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    });
    loop {
        poll_fn(|cx| {
            let mut ready = sleep.as_mut().poll(cx).is_ready();
            for subscription in all {
                if let Wait::Socket(socket) = &subscription.wait {
                    ready |= socket.poll_ready(cx, subscription.kind == WRITE).is_ready();
                }
            }
            if ready { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let there = look(all);
        // Nothing: two waited for the same socket, say, and it changed in between.
        if there.iter().any(Option::is_some) {
            return there;
        }
    }
}

fn look(all: &[Subscription]) -> There {
    let now = Instant::now();
    all.iter()
        .map(|subscription| match &subscription.wait {
            Wait::At(at) => (*at <= now).then_some((0, 0)),
            Wait::Now(Ok(())) => Some((0, 0)),
            Wait::Now(Err(e)) => Some((u16::try_from(*e as i32).unwrap_or(u16::MAX), 0)),
            Wait::Socket(socket) => {
                let flags = socket.readiness();
                let hangup = if flags.contains(PollFlags::HUP) { HANGUP } else { 0 };
                is_ready(flags, subscription.kind == WRITE).then_some((0, hangup))
            }
        })
        .collect()
}

/// One subscription. The inner error is one of the whole call.
fn read(memory: &[u8], state: &mut State, at: i32, offset: u32) -> wasmtime::Result<Result<Subscription, Errno>> {
    let parts = || -> Result<_, Errno> {
        let (userdata, [kind]) = (memory::array::<8>(memory, at, offset)?, memory::array::<1>(memory, at, offset + 8)?);
        let first = memory::read_u32(memory, at, offset + 16)?;
        let timeout = memory::array(memory, at, offset + 24).map(u64::from_le_bytes)?;
        let flags = memory::array(memory, at, offset + 40).map(u16::from_le_bytes)?;
        Ok((userdata, kind, first, timeout, flags))
    };
    let (userdata, kind, first, timeout, flags) = match parts() {
        Ok(parts) => parts,
        Err(e) => return Ok(Err(e)),
    };
    let wait = match kind {
        CLOCK => match clock(state, first, timeout, flags & ABSOLUTE != 0)? {
            Ok(at) => Wait::At(at),
            Err(e) => Wait::Now(Err(e)),
        },
        READ | WRITE => match state.sockets.get(first.cast_signed()) {
            Ok(Entry::Socket(socket)) => Wait::Socket(socket.clone()),
            Ok(Entry::Inner(_)) => Wait::Now(Ok(())),
            Err(e) => Wait::Now(Err(e)),
        },
        _ => return Ok(Err(Errno::Inval)),
    };
    Ok(Ok(Subscription { userdata, kind, wait }))
}

/// When a clock's time has come. Points in time are on the guest's own clocks.
fn clock(state: &mut State, id: u32, timeout: u64, absolute: bool) -> wasmtime::Result<Result<Instant, Errno>> {
    if !matches!(id, REALTIME | MONOTONIC) {
        return Ok(Err(Errno::Inval));
    }
    let mut span = timeout;
    if absolute {
        let mut now = [0; 8];
        let asked = inner::clock_time_get(&mut state.wasi, &mut GuestMemory::Unshared(&mut now), id.cast_signed(), 0, 0)?;
        if asked != 0 {
            return Ok(Err(Errno::Inval));
        }
        span = timeout.saturating_sub(u64::from_le_bytes(now));
    }
    Ok(Ok(Instant::now() + Duration::from_nanos(span).min(LONGEST)))
}
