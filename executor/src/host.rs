//! What a guest can call beyond WASI: the import module `smalti` of core modules, and the interface `smalti:guest/task` of
//! components (`wit/smalti.wit`). Both do the same.
//!
//! Owns the bounds of what a guest says through them. Progress is only stored here; [`crate::ticker`] sends the last one now
//! and then, so a guest that calls it in a loop costs nobody anything.

use crate::state::State;
use smalti_types::status::{MAX_RESULT_LEN, truncate};
use std::sync::{Mutex, PoisonError};
use wasmtime::component::HasSelf;
use wasmtime::{Caller, Extern, Linker};

/// Longest progress text in bytes; the rest is cut.
const MAX_PROGRESS_LEN: u32 = 256;
/// 1000 thousandths are all.
const MAX_PERMILLE: u32 = 1000;
/// What `result` answers.
const OK: i32 = 0;
const TOO_LONG: i32 = 1;

/// The bindings of `wit/smalti.wit`.
#[allow(missing_debug_implementations, unreachable_pub, clippy::all, reason = "generated code")]
mod bindings {
    wasmtime::component::bindgen!({ path: "wit", world: "guest" });
}

/// The last progress that a guest reported and nobody has sent yet.
#[derive(Debug, Default)]
pub(crate) struct Progress(Mutex<Option<(u32, String)>>);

impl Progress {
    fn set(&self, permille: u32, mut text: String) {
        truncate(&mut text, MAX_PROGRESS_LEN as usize);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((permille.min(MAX_PERMILLE), text));
    }
    /// What is to be sent, once.
    pub(crate) fn take(&self) -> Option<(u32, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Adds the functions for core modules.
///
/// # Errors
/// When one is defined already.
pub(crate) fn add_to_core(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.func_wrap("smalti", "should_stop", |caller: Caller<'_, State>| i32::from(caller.data().common.control.is_asked()))?;
    linker.func_wrap("smalti", "progress", |mut caller: Caller<'_, State>, permille: i32, ptr: i32, len: i32| {
        // Only so much is looked at as is kept (a character may be cut: it becomes a replacement character).
        let text = read(&mut caller, ptr, len.cast_unsigned().min(MAX_PROGRESS_LEN))?;
        caller.data().common.progress.set(permille.cast_unsigned(), String::from_utf8_lossy(&text).into_owned());
        Ok(())
    })?;
    linker.func_wrap("smalti", "result", |mut caller: Caller<'_, State>, ptr: i32, len: i32| {
        let len = len.cast_unsigned();
        if len as usize > MAX_RESULT_LEN {
            return Ok(TOO_LONG);
        }
        let value = read(&mut caller, ptr, len)?;
        caller.data_mut().result = Some(value);
        Ok::<_, wasmtime::Error>(OK)
    })?;
    Ok(())
}

/// Copies bytes out of the guest's memory; out of bounds is a trap.
fn read(caller: &mut Caller<'_, State>, ptr: i32, len: u32) -> wasmtime::Result<Vec<u8>> {
    caller.data_mut().called = true;
    let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
        return Err(wasmtime::Error::msg("the module does not export its memory as `memory`"));
    };
    let first = ptr.cast_unsigned() as usize;
    let end = first.saturating_add(len as usize);
    let bytes = memory.data(&caller).get(first..end);
    bytes.map(<[u8]>::to_vec).ok_or_else(|| wasmtime::Trap::MemoryOutOfBounds.into())
}

/// Adds the interface for components.
///
/// # Errors
/// When it is defined already.
pub(crate) fn add_to_component(linker: &mut wasmtime::component::Linker<State>) -> wasmtime::Result<()> {
    bindings::Guest::add_to_linker::<State, HasSelf<State>>(linker, |state| state)
}

impl bindings::smalti::guest::task::Host for State {
    fn should_stop(&mut self) -> bool {
        self.common.control.is_asked()
    }
    fn progress(&mut self, permille: u32, text: String) {
        self.common.progress.set(permille, text);
    }
    fn return_value(&mut self, value: Vec<u8>) -> Result<(), String> {
        if value.len() > MAX_RESULT_LEN {
            return Err(format!("{} bytes are more than the {MAX_RESULT_LEN} that a result may have", value.len()));
        }
        self.result = Some(value);
        Ok(())
    }
}
