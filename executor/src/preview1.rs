//! Preview 1's reads, writes and directory listings, each a shell around Wasmtime's own: they count the bytes of files, and
//! keep what the host allocates for one call small without changing what the guest sees.
//!
//! Owns the splitting of large transfers. Standard streams count themselves ([`crate::streams`]). Wasmtime copies file data
//! through a buffer as large as the guest's, so a transfer larger than [`TRANSFER_BYTES`] is made in pieces: the guest's own
//! record of where its buffer lies is changed for each piece and put back (the guest does not run meanwhile, and nobody else
//! sees its memory).

use crate::limits::{HOSTCALL_BYTES, TRANSFER_BYTES};
use crate::listing;
use crate::state::State;
use std::ops::Range;
use wasmtime::{Caller, Extern, Linker, Memory};
use wasmtime_wasi::p1::wasi_snapshot_preview1 as wasi;
use wasmtime_wasi::p1::wasi_snapshot_preview1::WasiSnapshotPreview1;
use wiggle::GuestMemory;

/// The name under which guests import preview 1.
const MODULE: &str = "wasi_snapshot_preview1";
/// Bytes of one record of a buffer: its address and its length.
const RECORD_BYTES: u32 = 8;
/// Most records that are looked at for the first one with a length; Linux takes 1024.
const MAX_RECORDS: u32 = 64 << 10;
/// What Wasmtime's functions say to a module that does not export its memory, before any code of ours runs; ours say the same.
pub(crate) const NO_MEMORY: &str = "missing required memory export";
/// `ESUCCESS` and `ENOMEM` of preview 1.
const SUCCESS: i32 = 0;
const NOMEM: i32 = 48;

/// Replaces the functions in a linker that has Wasmtime's preview 1.
///
/// # Errors
/// When one cannot be defined.
pub(crate) fn replace(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    linker.func_wrap_async(MODULE, "fd_read", |mut caller: Caller<'_, State>, (fd, list, count, out): (i32, i32, i32, i32)| {
        Box::new(async move { transfer(&mut caller, Call { what: What::Read, fd, list, count, out }).await })
    })?;
    linker.func_wrap_async(MODULE, "fd_write", |mut caller: Caller<'_, State>, (fd, list, count, out): (i32, i32, i32, i32)| {
        Box::new(async move { transfer(&mut caller, Call { what: What::Write, fd, list, count, out }).await })
    })?;
    linker.func_wrap_async(
        MODULE,
        "fd_pread",
        |mut caller: Caller<'_, State>, (fd, list, count, at, out): (i32, i32, i32, i64, i32)| {
            Box::new(async move { transfer(&mut caller, Call { what: What::ReadAt(at), fd, list, count, out }).await })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "fd_pwrite",
        |mut caller: Caller<'_, State>, (fd, list, count, at, out): (i32, i32, i32, i64, i32)| {
            Box::new(async move { transfer(&mut caller, Call { what: What::WriteAt(at), fd, list, count, out }).await })
        },
    )?;
    linker.func_wrap_async(MODULE, "fd_readdir", |mut caller: Caller<'_, State>, args: (i32, i32, i32, i64, i32)| {
        Box::new(async move { read_directory(&mut caller, args).await })
    })?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Which of the four, and where in the file if the guest says so.
#[derive(Debug, Clone, Copy)]
enum What {
    Read,
    Write,
    ReadAt(i64),
    WriteAt(i64),
}

impl What {
    const fn is_read(self) -> bool {
        matches!(self, Self::Read | Self::ReadAt(_))
    }
    /// The same, `by` bytes further on.
    const fn advanced(self, by: u32) -> Self {
        match self {
            Self::ReadAt(at) => Self::ReadAt(at.wrapping_add(by as i64)),
            Self::WriteAt(at) => Self::WriteAt(at.wrapping_add(by as i64)),
            cursor => cursor,
        }
    }
}

/// One call of the guest's.
#[derive(Debug, Clone, Copy)]
struct Call {
    what: What,
    fd: i32,
    /// Address and number of the records.
    list: i32,
    count: i32,
    /// Where the number of bytes goes.
    out: i32,
}

fn exported_memory(caller: &mut Caller<'_, State>) -> wasmtime::Result<Memory> {
    caller.data_mut().called = true;
    match caller.get_export("memory") {
        Some(Extern::Memory(memory)) => Ok(memory),
        _ => Err(wasmtime::Error::msg(NO_MEMORY)),
    }
}

async fn transfer(caller: &mut Caller<'_, State>, call: Call) -> wasmtime::Result<i32> {
    let memory = exported_memory(caller)?;
    let (bytes, state) = memory.data_and_store_mut(caller);
    let Some(large) = find_large(bytes, call) else {
        return Ok(piece(bytes, state, call).await?.unwrap_or_else(|errno| errno));
    };
    let mut done = 0_u32;
    let result = loop {
        let length = (large.length - done).min(TRANSFER_BYTES);
        large.point(bytes, large.address + done, length);
        let here = Call { what: call.what.advanced(done), list: large.record.cast_signed(), count: 1, ..call };
        match piece(bytes, state, here).await? {
            Ok(_) => {
                let moved = number_at(bytes, call.out).min(length);
                done += moved;
                if moved < length || done == large.length {
                    break SUCCESS;
                }
            }
            // What was moved before the error counts, as in POSIX; the error comes with the next call.
            Err(_) if done > 0 => break SUCCESS,
            Err(errno) => break errno,
        }
    };
    large.point(bytes, large.address, large.length);
    if result == SUCCESS {
        put_number(bytes, call.out, done);
    }
    Ok(result)
}

/// One call of Wasmtime's own function, counted. `Err`: its error number.
async fn piece(bytes: &mut [u8], state: &mut State, call: Call) -> wasmtime::Result<Result<i32, i32>> {
    let Call { what, fd, list, count, out } = call;
    let (ctx, meters) = (&mut state.wasi, &state.meters);
    let standard_calls = meters.standard_calls();
    ctx.set_hostcall_fuel(HOSTCALL_BYTES);
    let mut memory = GuestMemory::Unshared(bytes);
    let errno = match what {
        What::Read => wasi::fd_read(ctx, &mut memory, fd, list, count, out).await?,
        What::Write => wasi::fd_write(ctx, &mut memory, fd, list, count, out).await?,
        What::ReadAt(at) => wasi::fd_pread(ctx, &mut memory, fd, list, count, at, out).await?,
        What::WriteAt(at) => wasi::fd_pwrite(ctx, &mut memory, fd, list, count, at, out).await?,
    };
    if errno != SUCCESS {
        return Ok(Err(errno));
    }
    if meters.standard_calls() == standard_calls {
        let moved = u64::from(number_at(bytes, out));
        if what.is_read() { meters.add_read(moved) } else { meters.add_written(moved) }
    }
    Ok(Ok(SUCCESS))
}

/// A record whose buffer is too large for one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Large {
    record: u32,
    address: u32,
    length: u32,
}

impl Large {
    fn point(self, bytes: &mut [u8], address: u32, length: u32) {
        put_number(bytes, self.record.cast_signed(), address);
        put_number(bytes, self.record.wrapping_add(4).cast_signed(), length);
    }
}

/// Wasmtime serves the first record with a length. `None`: it is small, or something is wrong with it; Wasmtime then says what.
fn find_large(bytes: &[u8], call: Call) -> Option<Large> {
    let (list, count) = (call.list.cast_unsigned(), call.count.cast_unsigned().min(MAX_RECORDS));
    for i in 0..count {
        let record = list.checked_add(i.checked_mul(RECORD_BYTES)?)?;
        let length = checked_number(bytes, record.checked_add(4)?)?;
        if length == 0 {
            continue;
        }
        let address = checked_number(bytes, record)?;
        let large = Large { record, address, length };
        let buffer = range(address, length)?;
        // A buffer that overlaps what describes it, or takes the result, must be seen by the guest as if in one piece.
        let apart = |other: Range<usize>| other.end <= buffer.start || buffer.end <= other.start;
        let fits = bytes.get(buffer.clone()).is_some() && record.is_multiple_of(4) && call.out.cast_unsigned().is_multiple_of(4);
        return (length > TRANSFER_BYTES && fits && apart(range(record, RECORD_BYTES)?) && apart(range(call.out.cast_unsigned(), 4)?))
            .then_some(large);
    }
    None
}

fn range(first: u32, length: u32) -> Option<Range<usize>> {
    let first = first as usize;
    Some(first..first.checked_add(length as usize)?)
}

fn checked_number(bytes: &[u8], at: u32) -> Option<u32> {
    let slice = bytes.get(range(at, 4)?)?;
    Some(u32::from_le_bytes(slice.try_into().ok()?))
}

/// Wasmtime wrote there before.
fn number_at(bytes: &[u8], at: i32) -> u32 {
    checked_number(bytes, at.cast_unsigned()).unwrap_or(0)
}

fn put_number(bytes: &mut [u8], at: i32, number: u32) {
    if let Some(slice) = range(at.cast_unsigned(), 4).and_then(|r| bytes.get_mut(r)) {
        slice.copy_from_slice(&number.to_le_bytes());
    }
}

/// Wasmtime lists a whole directory in memory for each call.
async fn read_directory(caller: &mut Caller<'_, State>, args: (i32, i32, i32, i64, i32)) -> wasmtime::Result<i32> {
    let memory = exported_memory(caller)?;
    let (bytes, state) = memory.data_and_store_mut(caller);
    let Some(_charge) = listing::charge_largest(state).await else { return Ok(NOMEM) };
    let ctx = &mut state.wasi;
    ctx.set_hostcall_fuel(HOSTCALL_BYTES);
    let (fd, buffer, length, cookie, out) = args;
    wasi::fd_readdir(ctx, &mut GuestMemory::Unshared(bytes), fd, buffer, length, cookie, out).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 4 << 20;

    fn call(list: u32, count: i32) -> Call {
        Call { what: What::Read, fd: 3, list: list.cast_signed(), count, out: 64 }
    }
    fn with_records(records: &[(u32, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; SIZE];
        for (i, (address, length)) in (0_u32..).zip(records) {
            put_number(&mut bytes, (i * RECORD_BYTES).cast_signed(), *address);
            put_number(&mut bytes, (i * RECORD_BYTES + 4).cast_signed(), *length);
        }
        bytes
    }

    #[test]
    fn only_a_large_sound_buffer_is_split() {
        let large = TRANSFER_BYTES + 1;
        let bytes = with_records(&[(128, 0), (4096, large)]);
        assert_eq!(find_large(&bytes, call(0, 2)), Some(Large { record: 8, address: 4096, length: large }));
        assert_eq!(find_large(&bytes, call(0, 1)), None, "nothing to move");
        assert_eq!(find_large(&with_records(&[(4096, TRANSFER_BYTES)]), call(0, 1)), None, "small");
        assert_eq!(find_large(&with_records(&[(0, large)]), call(0, 1)), None, "over its own record");
        assert_eq!(find_large(&with_records(&[(u32::MAX - 10, large)]), call(0, 1)), None, "wraps");
        assert_eq!(find_large(&with_records(&[(3 << 20, 2 << 20)]), call(0, 1)), None, "leaves the memory");
        assert_eq!(find_large(&bytes, call(u32::MAX - 3, i32::MAX)), None, "records outside");
        assert_eq!(find_large(&bytes, call(u32::try_from(SIZE).unwrap() - 4, -1)), None, "records at the edge");
    }

    #[test]
    fn a_piece_further_on_reads_further_on() {
        assert!(matches!(What::ReadAt(10).advanced(5), What::ReadAt(15)));
        assert!(matches!(What::WriteAt(i64::MAX).advanced(1), What::WriteAt(i64::MIN)));
        assert!(matches!(What::Write.advanced(5), What::Write));
    }
}
