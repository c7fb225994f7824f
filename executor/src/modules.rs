//! Compiled code, loaded from a descriptor and linked once, so that an instance of it is only a copy.
//!
//! Owns the linkers and the mapping from what can be wrong with a module to a reason. The code comes from the agent, which
//! made it itself (or its compiler process did); code of any other origin must never get here.

use crate::engine::Engines;
use crate::failure::Failure;
use crate::host;
use crate::limits::limit_in;
use crate::preview1;
use crate::preview2;
use crate::state::State;
use smalti_types::task_state::Reason;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use wasmtime::component::Component;
use wasmtime::{Engine, ExternType, InstancePre, Linker, Module, ModuleExport, UnknownImportError};
use wasmtime_wasi::p2::bindings::CommandPre;

/// Largest compiled component in bytes: it is copied into memory.
const MAX_COMPONENT_BYTES: u64 = 1 << 30;
/// Where a core module begins.
const ENTRY_POINT: &str = "_start";

/// A linked guest.
pub(crate) struct Loaded {
    pub(crate) name: String,
    /// Whether its code counts fuel.
    pub(crate) fuel: bool,
    /// Whether its functions know sockets.
    pub(crate) network: bool,
    pub(crate) engine: Engine,
    pub(crate) code: Code,
}

/// The two kinds of guests.
pub(crate) enum Code {
    Core { pre: InstancePre<State>, start: ModuleExport },
    Component(CommandPre<State>),
}

/// The linkers of one engine, each made when first needed.
#[derive(Default)]
struct Linkers {
    core: Option<Linker<State>>,
    component: Option<wasmtime::component::Linker<State>>,
}

/// Loads modules.
#[derive(Default)]
pub(crate) struct Loader {
    plain: Linkers,
    fuel: Linkers,
}

/// What to load.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) name: String,
    pub(crate) component: bool,
    pub(crate) fuel: bool,
    /// Whether it may have sockets.
    pub(crate) network: bool,
}

impl Loader {
    /// Ready for guests without sockets and without a fuel limit.
    ///
    /// # Errors
    /// When host functions cannot be set up.
    pub(crate) fn prepared(engines: &Engines) -> wasmtime::Result<Self> {
        let engine = engines.get(false);
        let plain = Linkers { core: Some(core_linker(engine, false)?), component: Some(component_linker(engine)?) };
        Ok(Self { plain, fuel: Linkers::default() })
    }

    /// Loads and links the code in `code`.
    ///
    /// # Errors
    /// Code of another engine (`LAUNCH_FAILED`), an import that nobody provides, no entry point.
    pub(crate) fn load(&mut self, engines: &Engines, request: Request, code: OwnedFd) -> Result<Loaded, Failure> {
        let engine = engines.get(request.fuel);
        let linkers = if request.fuel { &mut self.fuel } else { &mut self.plain };
        let code =
            if request.component { load_component(engine, linkers, code)? } else { load_core(engine, linkers, request.network, code)? };
        Ok(Loaded { name: request.name, fuel: request.fuel, network: request.network, engine: engine.clone(), code })
    }
}

/// Either it is beyond a limit of this executor's, or the agent compiled something that this engine does not take.
fn not_loadable(error: &wasmtime::Error) -> Failure {
    match limit_in(error) {
        Some(reason) => Failure::new(reason, format!("it needs more than a guest may have: {error:#}")),
        None => Failure::new(Reason::LaunchFailed, format!("the compiled code cannot be loaded: {error:#}")),
    }
}

fn host_broken(error: &wasmtime::Error) -> Failure {
    Failure::new(Reason::LaunchFailed, format!("the host functions cannot be set up: {error:#}"))
}

#[expect(unsafe_code, reason = "loading compiled code is unsafe by nature; see the comment")]
fn load_core(engine: &Engine, linkers: &mut Linkers, network: bool, code: OwnedFd) -> Result<Code, Failure> {
    // SAFETY: the descriptor comes from the agent over a socket that only the agent holds, and names a file that the
    // agent's own compiler process wrote and that nobody else can write (design, guarantee 4).
    let module = unsafe { Module::deserialize_open_file(engine, File::from(code)) }.map_err(|e| not_loadable(&e))?;
    let linker = match &mut linkers.core {
        Some(linker) => linker,
        none => none.insert(core_linker(engine, network).map_err(|e| host_broken(&e))?),
    };
    let start = module.get_export(ENTRY_POINT).zip(module.get_export_index(ENTRY_POINT));
    let Some((ExternType::Func(ty), start)) = start else {
        return Err(Failure::new(Reason::NoEntryPoint, "the module exports no function `_start`: is it a library?"));
    };
    if ty.params().len() + ty.results().len() != 0 {
        return Err(Failure::new(Reason::NoEntryPoint, format!("`_start` is {ty}, and should take and return nothing")));
    }
    let pre = linker.instantiate_pre(&module).map_err(|e| match e.downcast_ref::<UnknownImportError>() {
        Some(unknown) => Failure::new(
            Reason::MissingImport,
            format!("the module imports `{}::{}`, which the host does not give", unknown.module(), unknown.name()),
        ),
        None => Failure::new(Reason::MissingImport, format!("the module's imports do not fit: {e:#}")),
    })?;
    Ok(Code::Core { pre, start })
}

fn core_linker(engine: &Engine, network: bool) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p1::add_to_linker_async(&mut linker, |state: &mut State| {
        state.called = true;
        &mut state.wasi
    })?;
    preview1::replace(&mut linker)?;
    if network {
        crate::network::add_sockets_to_core(&mut linker)?;
    }
    host::add_to_core(&mut linker)?;
    Ok(linker)
}

#[expect(unsafe_code, reason = "loading compiled code is unsafe by nature; see the comment")]
fn load_component(engine: &Engine, linkers: &mut Linkers, code: OwnedFd) -> Result<Code, Failure> {
    let bytes =
        read_whole(&File::from(code)).map_err(|e| Failure::new(Reason::LaunchFailed, format!("the compiled code cannot be read: {e}")))?;
    // SAFETY: as in `load_core`.
    let component = unsafe { Component::deserialize(engine, &bytes) }.map_err(|e| not_loadable(&e))?;
    let linker = match &mut linkers.component {
        Some(linker) => linker,
        none => none.insert(component_linker(engine).map_err(|e| host_broken(&e))?),
    };
    let pre = linker
        .instantiate_pre(&component)
        .map_err(|e| Failure::new(Reason::MissingImport, format!("the component imports what the host does not give: {e:#}")))?;
    let pre =
        CommandPre::new(pre).map_err(|e| Failure::new(Reason::NoEntryPoint, format!("the component exports no `wasi:cli/run`: {e:#}")))?;
    Ok(Code::Component(pre))
}

/// From the first byte, whatever the descriptor's cursor says: every executor that gets this file shares it.
fn read_whole(file: &File) -> std::io::Result<Vec<u8>> {
    let length = file.metadata()?.len().min(MAX_COMPONENT_BYTES);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn component_linker(engine: &Engine) -> wasmtime::Result<wasmtime::component::Linker<State>> {
    let mut linker = wasmtime::component::Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    preview2::replace(&mut linker)?;
    crate::network::add_lookup_to_component(&mut linker)?;
    host::add_to_component(&mut linker)?;
    Ok(linker)
}
