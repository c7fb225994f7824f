//! Preview 1 for guests with sockets: `sock_accept`, `sock_recv`, `sock_send` and `sock_shutdown`, which Wasmtime leaves
//! unimplemented, and the other functions that take a descriptor, because the descriptor may be a socket.
//!
//! Owns the functions' meaning for sockets. What concerns files goes to Wasmtime's own functions under the number that its own
//! table has ([`super::table`]). Functions without a descriptor are Wasmtime's.

use super::memory;
use super::poll;
use super::socket::{Errno, Kind};
use super::table::Entry;
use crate::state::State;
use rustix::net::Shutdown;
use wasmtime::{AsContextMut, Caller, Extern, Linker};
use wasmtime_wasi::p1::wasi_snapshot_preview1::{self as inner, WasiSnapshotPreview1};
use wiggle::GuestMemory;

const MODULE: &str = "wasi_snapshot_preview1";
const SUCCESS: i32 = 0;
/// `filetype`: a stream socket.
const SOCKET_STREAM: u8 = 6;
/// `fdflags` NONBLOCK.
const NONBLOCK: i32 = 1 << 2;
/// `riflags`.
const PEEK: i32 = 1;
const WAITALL: i32 = 2;
/// `sdflags`.
const SHUT_READ: i32 = 1;
const SHUT_WRITE: i32 = 2;
/// `rights`: read, set flags, write, file status, poll, shut down, accept.
const STREAM_RIGHTS: u64 = 1 << 1 | 1 << 3 | 1 << 6 | 1 << 21 | 1 << 27 | 1 << 28;
const LISTENER_RIGHTS: u64 = STREAM_RIGHTS | 1 << 29;
/// The kind of preopened descriptor that a listener is said to be. The standard knows only directories, 0; C libraries and Go's
/// runtime step over any other kind, and would stop at an error without having seen the directories behind it.
const PREOPENED_SOCKET: u8 = 1;

/// The guest's memory, and its state, at the same time.
pub(super) fn split<'a>(caller: &'a mut Caller<'_, State>) -> wasmtime::Result<(&'a mut [u8], &'a mut State)> {
    caller.data_mut().called = true;
    let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
        return Err(wasmtime::Error::msg("the module does not export its memory as `memory`"));
    };
    let fuel = caller.as_context_mut().hostcall_fuel();
    let (memory, state) = memory.data_and_store_mut(caller);
    state.wasi.set_hostcall_fuel(fuel);
    Ok((memory, state))
}

/// What a function of ours answers.
pub(super) fn answer(result: Result<(), Errno>) -> i32 {
    result.map_or_else(|e| e as i32, |()| SUCCESS)
}

/// The number in Wasmtime's table, for a function that sockets do not have.
fn file(state: &State, fd: i32, otherwise: Errno) -> Result<i32, Errno> {
    match state.sockets.get(fd)? {
        Entry::Inner(number) => Ok(number.cast_signed()),
        Entry::Socket(_) => Err(otherwise),
    }
}

/// Functions that go to Wasmtime's own with other numbers. `or` is the error for sockets.
macro_rules! files_only {
    ($linker:ident; $($name:ident($($arg:ident: $ty:ty),*) of ($($fd:ident),+) or $error:ident => {$($await:tt)*};)*) => {$(
        $linker.func_wrap_async(MODULE, stringify!($name), |mut caller: Caller<'_, State>, ($($arg,)*): ($($ty,)*)| {
            Box::new(async move {
                let (memory, state) = split(&mut caller)?;
                $(
                    let $fd = match file(state, $fd, Errno::$error) {
                        Ok(number) => number,
                        Err(e) => return Ok(e as i32),
                    };
                )+
                inner::$name(&mut state.wasi, &mut GuestMemory::Unshared(memory), $($arg),*)$($await)*
            })
        })?;
    )*};
}

/// Puts these functions into a linker that has Wasmtime's already.
///
/// # Errors
/// When a function has another type there.
pub(crate) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    files_only! { linker;
        fd_advise(fd: i32, a: i64, b: i64, c: i32) of (fd) or Spipe => {.await};
        fd_allocate(fd: i32, a: i64, b: i64) of (fd) or Spipe => {};
        fd_datasync(fd: i32) of (fd) or Inval => {.await};
        fd_fdstat_set_rights(fd: i32, a: i64, b: i64) of (fd) or Notsup => {};
        fd_filestat_set_size(fd: i32, a: i64) of (fd) or Inval => {.await};
        fd_filestat_set_times(fd: i32, a: i64, b: i64, c: i32) of (fd) or Inval => {.await};
        fd_pread(fd: i32, a: i32, b: i32, c: i64, d: i32) of (fd) or Spipe => {.await};
        fd_prestat_dir_name(fd: i32, a: i32, b: i32) of (fd) or Notdir => {};
        fd_pwrite(fd: i32, a: i32, b: i32, c: i64, d: i32) of (fd) or Spipe => {.await};
        fd_readdir(fd: i32, a: i32, b: i32, c: i64, d: i32) of (fd) or Notdir => {.await};
        fd_seek(fd: i32, a: i64, b: i32, c: i32) of (fd) or Spipe => {.await};
        fd_sync(fd: i32) of (fd) or Inval => {.await};
        fd_tell(fd: i32, a: i32) of (fd) or Spipe => {};
        path_create_directory(fd: i32, a: i32, b: i32) of (fd) or Notdir => {.await};
        path_filestat_get(fd: i32, a: i32, b: i32, c: i32, d: i32) of (fd) or Notdir => {.await};
        path_filestat_set_times(fd: i32, a: i32, b: i32, c: i32, d: i64, e: i64, f: i32) of (fd) or Notdir => {.await};
        path_link(from: i32, a: i32, b: i32, c: i32, to: i32, d: i32, e: i32) of (from, to) or Notdir => {.await};
        path_readlink(fd: i32, a: i32, b: i32, c: i32, d: i32, e: i32) of (fd) or Notdir => {.await};
        path_remove_directory(fd: i32, a: i32, b: i32) of (fd) or Notdir => {.await};
        path_rename(from: i32, a: i32, b: i32, to: i32, c: i32, d: i32) of (from, to) or Notdir => {.await};
        path_symlink(a: i32, b: i32, fd: i32, c: i32, d: i32) of (fd) or Notdir => {.await};
        path_unlink_file(fd: i32, a: i32, b: i32) of (fd) or Notdir => {.await};
    }
    descriptors(linker)?;
    reading_and_writing(linker)?;
    sockets(linker)?;
    linker.func_wrap_async(
        MODULE,
        "poll_oneoff",
        |mut caller: Caller<'_, State>, (subscriptions, events, count, out): (i32, i32, i32, i32)| {
            Box::new(async move {
                let (memory, state) = split(&mut caller)?;
                Ok(answer(poll::oneoff(memory, state, subscriptions, events, count, out).await?))
            })
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Opening, closing and asking about.
#[expect(clippy::too_many_lines, reason = "one short paragraph for each function of the interface")]
fn descriptors(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.func_wrap_async(MODULE, "fd_close", |mut caller: Caller<'_, State>, (fd,): (i32,)| {
        Box::new(async move {
            let (memory, state) = split(&mut caller)?;
            close(memory, state, fd).await
        })
    })?;
    linker.func_wrap_async(MODULE, "fd_renumber", |mut caller: Caller<'_, State>, (from, to): (i32, i32)| {
        Box::new(async move {
            let (memory, state) = split(&mut caller)?;
            if state.sockets.get(from).is_err() || state.sockets.get(to).is_err() {
                return Ok(Errno::Badf as i32);
            }
            if from == to {
                return Ok(SUCCESS);
            }
            let closed = close(memory, state, to).await?;
            if closed == SUCCESS
                && let Ok(entry) = state.sockets.remove(from)
            {
                state.sockets.put(to, entry);
            }
            Ok(closed)
        })
    })?;
    linker.func_wrap_async(MODULE, "fd_fdstat_get", |mut caller: Caller<'_, State>, (fd, out): (i32, i32)| {
        Box::new(async move {
            let (memory, state) = split(&mut caller)?;
            match state.sockets.get(fd) {
                Ok(Entry::Inner(number)) => {
                    inner::fd_fdstat_get(&mut state.wasi, &mut GuestMemory::Unshared(memory), number.cast_signed(), out).await
                }
                Ok(Entry::Socket(socket)) => {
                    let rights = if socket.kind == Kind::Listener { LISTENER_RIGHTS } else { STREAM_RIGHTS };
                    let mut stat = [0; 24];
                    stat[0] = SOCKET_STREAM;
                    stat[2] = if socket.nonblocking { NONBLOCK.to_le_bytes()[0] } else { 0 };
                    stat[8..16].copy_from_slice(&rights.to_le_bytes());
                    stat[16..24].copy_from_slice(&STREAM_RIGHTS.to_le_bytes());
                    Ok(answer(memory::write(memory, out, &stat)))
                }
                Err(e) => Ok(e as i32),
            }
        })
    })?;
    linker.func_wrap_async(MODULE, "fd_filestat_get", |mut caller: Caller<'_, State>, (fd, out): (i32, i32)| {
        Box::new(async move {
            let (memory, state) = split(&mut caller)?;
            match state.sockets.get(fd) {
                Ok(Entry::Inner(number)) => {
                    inner::fd_filestat_get(&mut state.wasi, &mut GuestMemory::Unshared(memory), number.cast_signed(), out).await
                }
                Ok(Entry::Socket(_)) => {
                    let mut stat = [0; 64];
                    stat[16] = SOCKET_STREAM;
                    Ok(answer(memory::write(memory, out, &stat)))
                }
                Err(e) => Ok(e as i32),
            }
        })
    })?;
    linker.func_wrap_async(MODULE, "fd_fdstat_set_flags", |mut caller: Caller<'_, State>, (fd, flags): (i32, i32)| {
        Box::new(async move {
            let (memory, state) = split(&mut caller)?;
            match state.sockets.get(fd) {
                Ok(Entry::Inner(number)) => {
                    let number = number.cast_signed();
                    inner::fd_fdstat_set_flags(&mut state.wasi, &mut GuestMemory::Unshared(memory), number, flags)
                }
                Ok(Entry::Socket(_)) => Ok(answer(state.sockets.set_nonblocking(fd, flags & NONBLOCK != 0))),
                Err(e) => Ok(e as i32),
            }
        })
    })?;
    linker.func_wrap_async(MODULE, "fd_prestat_get", |mut caller: Caller<'_, State>, (fd, out): (i32, i32)| {
        Box::new(async move {
            let (memory, state) = split(&mut caller)?;
            match state.sockets.get(fd) {
                Ok(Entry::Inner(number)) => {
                    inner::fd_prestat_get(&mut state.wasi, &mut GuestMemory::Unshared(memory), number.cast_signed(), out)
                }
                Ok(Entry::Socket(_)) => Ok(answer(memory::write(memory, out, &[PREOPENED_SOCKET, 0, 0, 0, 0, 0, 0, 0]))),
                Err(e) => Ok(e as i32),
            }
        })
    })?;
    linker.func_wrap_async(
        MODULE,
        "path_open",
        |mut caller: Caller<'_, State>, (fd, a, b, c, d, e, f, g, out): (i32, i32, i32, i32, i32, i64, i64, i32, i32)| {
            Box::new(async move {
                let (memory, state) = split(&mut caller)?;
                let number = match file(state, fd, Errno::Notdir) {
                    Ok(_) if !state.sockets.has_room() => return Ok(Errno::Mfile as i32),
                    Ok(number) => number,
                    Err(e) => return Ok(e as i32),
                };
                let opened =
                    inner::path_open(&mut state.wasi, &mut GuestMemory::Unshared(memory), number, a, b, c, d, e, f, g, out).await?;
                if opened != SUCCESS {
                    return Ok(opened);
                }
                let entry = memory::read_u32(memory, out, 0).map(Entry::Inner);
                let number = entry.and_then(|entry| state.sockets.insert(entry));
                Ok(answer(number.and_then(|n| memory::write(memory, out, &n.to_le_bytes()))))
            })
        },
    )?;
    Ok(())
}

async fn close(memory: &mut [u8], state: &mut State, fd: i32) -> wasmtime::Result<i32> {
    match state.sockets.remove(fd) {
        Ok(Entry::Inner(number)) => inner::fd_close(&mut state.wasi, &mut GuestMemory::Unshared(memory), number.cast_signed()).await,
        Ok(Entry::Socket(_)) => Ok(SUCCESS),
        Err(e) => Ok(e as i32),
    }
}

fn reading_and_writing(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.func_wrap_async(MODULE, "fd_read", |mut caller: Caller<'_, State>, (fd, buffers, count, out): (i32, i32, i32, i32)| {
        Box::new(async move {
            let (memory, state) = split(&mut caller)?;
            match state.sockets.get(fd) {
                Ok(Entry::Inner(number)) => {
                    let number = number.cast_signed();
                    inner::fd_read(&mut state.wasi, &mut GuestMemory::Unshared(memory), number, buffers, count, out).await
                }
                Ok(Entry::Socket(_)) => Ok(answer(receive(memory, state, fd, buffers, count, 0, out).await)),
                Err(e) => Ok(e as i32),
            }
        })
    })?;
    linker.func_wrap_async(MODULE, "fd_write", |mut caller: Caller<'_, State>, (fd, buffers, count, out): (i32, i32, i32, i32)| {
        Box::new(async move {
            let (memory, state) = split(&mut caller)?;
            match state.sockets.get(fd) {
                Ok(Entry::Inner(number)) => {
                    let number = number.cast_signed();
                    inner::fd_write(&mut state.wasi, &mut GuestMemory::Unshared(memory), number, buffers, count, out).await
                }
                Ok(Entry::Socket(_)) => Ok(answer(send(memory, state, fd, buffers, count, out).await)),
                Err(e) => Ok(e as i32),
            }
        })
    })?;
    Ok(())
}

fn sockets(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.func_wrap_async(MODULE, "sock_accept", |mut caller: Caller<'_, State>, (fd, flags, out): (i32, i32, i32)| {
        Box::new(async move {
            let (memory, state) = split(&mut caller)?;
            Ok(answer(accept(memory, state, fd, flags, out).await))
        })
    })?;
    linker.func_wrap_async(
        MODULE,
        "sock_recv",
        |mut caller: Caller<'_, State>, (fd, buffers, count, flags, out, flags_out): (i32, i32, i32, i32, i32, i32)| {
            Box::new(async move {
                let (memory, state) = split(&mut caller)?;
                let received = receive(memory, state, fd, buffers, count, flags, out).await;
                Ok(answer(received.and_then(|()| memory::write(memory, flags_out, &[0; 2]))))
            })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "sock_send",
        |mut caller: Caller<'_, State>, (fd, buffers, count, flags, out): (i32, i32, i32, i32, i32)| {
            Box::new(async move {
                let (memory, state) = split(&mut caller)?;
                Ok(match flags {
                    0 => answer(send(memory, state, fd, buffers, count, out).await),
                    _ => Errno::Notsup as i32,
                })
            })
        },
    )?;
    linker.func_wrap_async(MODULE, "sock_shutdown", |mut caller: Caller<'_, State>, (fd, how): (i32, i32)| {
        Box::new(async move {
            let (_, state) = split(&mut caller)?;
            let how = match how {
                SHUT_READ => Shutdown::Read,
                SHUT_WRITE => Shutdown::Write,
                both if both == SHUT_READ | SHUT_WRITE => Shutdown::Both,
                _ => return Ok(Errno::Inval as i32),
            };
            Ok(answer(state.sockets.socket(fd).and_then(|socket| socket.shut_down(how))))
        })
    })?;
    Ok(())
}

async fn accept(memory: &mut [u8], state: &mut State, fd: i32, flags: i32, out: i32) -> Result<(), Errno> {
    let socket = state.sockets.socket(fd)?;
    // Before a connection is taken that could not be handed over.
    memory::read_u32(memory, out, 0)?;
    if socket.kind != Kind::Listener || flags & !NONBLOCK != 0 {
        return Err(Errno::Inval);
    }
    if !state.sockets.has_room() {
        return Err(Errno::Mfile);
    }
    let connection = socket.accept(flags & NONBLOCK != 0).await?;
    let number = state.sockets.insert(Entry::Socket(std::sync::Arc::new(connection)))?;
    memory::write(memory, out, &number.to_le_bytes())
}

/// The kind of socket that bytes go through.
fn stream(state: &State, fd: i32) -> Result<std::sync::Arc<super::socket::Socket>, Errno> {
    state.sockets.socket(fd).and_then(|s| if s.kind == Kind::Stream { Ok(s) } else { Err(Errno::Notconn) })
}

async fn receive(memory: &mut [u8], state: &mut State, fd: i32, buffers: i32, count: i32, flags: i32, out: i32) -> Result<(), Errno> {
    let socket = stream(state, fd)?;
    let (buffers, most) = memory::buffers(memory, buffers, count)?;
    memory::read_u32(memory, out, 0)?;
    if flags & !(PEEK | WAITALL) != 0 || flags == PEEK | WAITALL {
        return Err(Errno::Notsup);
    }
    let mut data = socket.receive(most, flags & PEEK != 0).await?;
    while flags & WAITALL != 0 && !data.is_empty() && data.len() < most {
        match socket.receive(most - data.len(), false).await {
            Ok(more) if more.is_empty() => break,
            Ok(more) => data.extend(more),
            // What came already must not be lost.
            Err(_) => break,
        }
    }
    memory::scatter(memory, &buffers, &data)?;
    let length = u32::try_from(data.len()).map_err(|_| Errno::Io)?;
    memory::write(memory, out, &length.to_le_bytes())
}

async fn send(memory: &mut [u8], state: &mut State, fd: i32, buffers: i32, count: i32, out: i32) -> Result<(), Errno> {
    let socket = stream(state, fd)?;
    let (buffers, sum) = memory::buffers(memory, buffers, count)?;
    memory::read_u32(memory, out, 0)?;
    let data = memory::gather(memory, &buffers, sum)?;
    let sent = u32::try_from(socket.send(&data).await?).map_err(|_| Errno::Io)?;
    memory::write(memory, out, &sent.to_le_bytes())
}
