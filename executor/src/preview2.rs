//! WASI 0.2's file operations that move data, each a shell around Wasmtime's own: they count bytes, and charge what a stream
//! buffers or a listing takes to the guest's memory.
//!
//! Owns the wrappers of streams over files. Standard streams count themselves ([`crate::streams`]).

use crate::limits::{Charge, STREAM_BYTES};
use crate::listing;
use crate::state::State;
use crate::streams::Meters;
use bytes::Bytes;
use std::sync::Arc;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::filesystem::types::{ErrorCode, HostDescriptor};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, FsError, InputStream, OutputStream, Pollable, ReaddirIterator, StreamError, StreamResult,
};
use wasmtime_wasi::{WasiView, async_trait};

/// The interface, in the version that Wasmtime defines; guests of all compatible versions find it.
const INTERFACE: &str = "wasi:filesystem/types@0.2.12";

/// What a function of the interface returns.
type Answer<T> = wasmtime::Result<(Result<T, ErrorCode>,)>;

/// Replaces the functions in a linker that has Wasmtime's WASI 0.2.
///
/// # Errors
/// When one cannot be defined.
pub(crate) fn replace(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut types = linker.instance(INTERFACE)?;
    types.func_wrap("[method]descriptor.read-via-stream", |store, (fd, offset): (Resource<Descriptor>, u64)| {
        input_stream(store, |state| state.filesystem().read_via_stream(fd, offset))
    })?;
    types.func_wrap("[method]descriptor.write-via-stream", |store, (fd, offset): (Resource<Descriptor>, u64)| {
        output_stream(store, |state| state.filesystem().write_via_stream(fd, offset))
    })?;
    types.func_wrap("[method]descriptor.append-via-stream", |store, (fd,): (Resource<Descriptor>,)| {
        output_stream(store, |state| state.filesystem().append_via_stream(fd))
    })?;
    types.func_wrap_async("[method]descriptor.read", |store, (fd, length, offset): (Resource<Descriptor>, u64, u64)| {
        Box::new(read(store, fd, length, offset))
    })?;
    types.func_wrap_async("[method]descriptor.write", |store, (fd, bytes, offset): (Resource<Descriptor>, Vec<u8>, u64)| {
        Box::new(write(store, fd, bytes, offset))
    })?;
    types.func_wrap_async("[method]descriptor.read-directory", |store, (fd,): (Resource<Descriptor>,)| {
        Box::new(read_directory(store, fd))
    })?;
    linker.allow_shadowing(false);
    Ok(())
}

/// The guest's errors stay its own; a trap ends it.
fn answer<T>(result: Result<T, FsError>) -> Answer<T> {
    match result {
        Ok(value) => Ok((Ok(value),)),
        Err(e) => Ok((Err(e.downcast()?),)),
    }
}

fn input_stream(
    mut store: StoreContextMut<'_, State>,
    open: impl FnOnce(&mut State) -> Result<Resource<DynInputStream>, FsError>,
) -> Answer<Resource<DynInputStream>> {
    let state = store.data_mut();
    let Some(charge) = state.limiter.budget.charge(STREAM_BYTES) else { return Ok((Err(ErrorCode::InsufficientMemory),)) };
    answer(open(state).and_then(|stream| {
        let meters = state.meters.clone();
        let table = state.ctx().table;
        let inner = table.delete(stream)?;
        let counted: DynInputStream = Box::new(Counted { inner, meters, _charge: charge });
        Ok(table.push(counted)?)
    }))
}

fn output_stream(
    mut store: StoreContextMut<'_, State>,
    open: impl FnOnce(&mut State) -> Result<Resource<DynOutputStream>, FsError>,
) -> Answer<Resource<DynOutputStream>> {
    let state = store.data_mut();
    let Some(charge) = state.limiter.budget.charge(STREAM_BYTES) else { return Ok((Err(ErrorCode::InsufficientMemory),)) };
    answer(open(state).and_then(|stream| {
        let meters = state.meters.clone();
        let table = state.ctx().table;
        let inner = table.delete(stream)?;
        let counted: DynOutputStream = Box::new(Counted { inner, meters, _charge: charge });
        Ok(table.push(counted)?)
    }))
}

async fn read(mut store: StoreContextMut<'_, State>, fd: Resource<Descriptor>, length: u64, offset: u64) -> Answer<(Vec<u8>, bool)> {
    let state = store.data_mut();
    let result = state.filesystem().read(fd, length, offset).await;
    if let Ok((bytes, _)) = &result {
        state.meters.add_read(bytes.len() as u64);
    }
    answer(result)
}

async fn write(mut store: StoreContextMut<'_, State>, fd: Resource<Descriptor>, bytes: Vec<u8>, offset: u64) -> Answer<u64> {
    let state = store.data_mut();
    let result = state.filesystem().write(fd, bytes, offset).await;
    if let Ok(written) = &result {
        state.meters.add_written(*written);
    }
    answer(result)
}

/// The entries stay in the host's memory as long as the guest holds the stream. Wasmtime's type for it cannot carry the
/// charge, so all charges are kept until the guest holds no such stream.
async fn read_directory(mut store: StoreContextMut<'_, State>, fd: Resource<Descriptor>) -> Answer<Resource<ReaddirIterator>> {
    let state = store.data_mut();
    let table = state.ctx().table;
    let directory = match table.get(&fd)? {
        Descriptor::Dir(dir) => dir.dir.clone(),
        Descriptor::File(_) => return Ok((Err(ErrorCode::NotDirectory),)),
    };
    if !table.iter_mut().any(|entry| entry.is::<ReaddirIterator>()) {
        state.listings.clear();
    }
    let Some(charge) = listing::charge(state.limiter.budget.clone(), directory).await else {
        return Ok((Err(ErrorCode::InsufficientMemory),));
    };
    let result = state.filesystem().read_directory(fd).await;
    if result.is_ok() && !charge.is_free() {
        state.listings.push(charge);
    }
    answer(result)
}

/// A stream over a file that counts, and charges what it may buffer as long as it lives.
struct Counted<S> {
    inner: S,
    meters: Arc<Meters>,
    _charge: Charge,
}

impl<S> Counted<S> {
    fn has_read<T>(&self, result: StreamResult<T>, length: impl FnOnce(&T) -> usize) -> StreamResult<T> {
        if let Ok(value) = &result {
            self.meters.add_read(length(value) as u64);
        }
        result
    }
}

#[async_trait]
impl Pollable for Counted<DynInputStream> {
    async fn ready(&mut self) {
        self.inner.ready().await;
    }
}

#[async_trait]
impl InputStream for Counted<DynInputStream> {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        let result = self.inner.read(size);
        self.has_read(result, Bytes::len)
    }
    async fn blocking_read(&mut self, size: usize) -> StreamResult<Bytes> {
        let result = self.inner.blocking_read(size).await;
        self.has_read(result, Bytes::len)
    }
    fn skip(&mut self, count: usize) -> StreamResult<usize> {
        let result = self.inner.skip(count);
        self.has_read(result, |n| *n)
    }
    async fn blocking_skip(&mut self, count: usize) -> StreamResult<usize> {
        let result = self.inner.blocking_skip(count).await;
        self.has_read(result, |n| *n)
    }
    async fn cancel(&mut self) {
        self.inner.cancel().await;
    }
}

#[async_trait]
impl Pollable for Counted<DynOutputStream> {
    async fn ready(&mut self) {
        self.inner.ready().await;
    }
}

/// Bytes count when they are handed over; whether the file took them shows later.
#[async_trait]
impl OutputStream for Counted<DynOutputStream> {
    /// Wasmtime keeps whatever it is given; the interface lets the guest give no more than it was allowed.
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let length = bytes.len() as u64;
        if length > STREAM_BYTES {
            return Err(StreamError::trap("more bytes were written than `check-write` allows"));
        }
        self.inner.write(bytes).inspect(|()| self.meters.add_written(length))
    }
    fn flush(&mut self) -> StreamResult<()> {
        self.inner.flush()
    }
    fn check_write(&mut self) -> StreamResult<usize> {
        self.inner.check_write()
    }
    async fn blocking_write_and_flush(&mut self, bytes: Bytes) -> StreamResult<()> {
        let length = bytes.len() as u64;
        self.inner.blocking_write_and_flush(bytes).await.inspect(|()| self.meters.add_written(length))
    }
    async fn cancel(&mut self) {
        self.inner.cancel().await;
    }
}
