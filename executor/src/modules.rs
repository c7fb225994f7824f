//! Compiled code, loaded from a descriptor and linked once for each share of the slots that runs it, so that an instance is only a copy.
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
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use wasmtime::component::Component;
use wasmtime::{Engine, ExternType, InstancePre, Linker, Module, ModuleExport, UnknownImportError};
use wasmtime_wasi::p2::bindings::CommandPre;

/// Largest compiled component in bytes: it is copied into memory.
const MAX_COMPONENT_BYTES: u64 = 1 << 30;
/// A component larger than this is loaded once, for all slots: it would have to be copied for each share.
const MAX_COPIED_BYTES: u64 = 1 << 20;
/// Where a core module begins.
const ENTRY_POINT: &str = "_start";

/// A guest that slots can run.
pub(crate) struct Loaded {
    pub(crate) request: Request,
    file: File,
    loader: Arc<Loader>,
    /// For the first share of the slots, or for all of them.
    first: Linked,
    /// For the others, each from when a slot of it is the first to run this.
    others: Vec<OnceLock<Result<Linked, Failure>>>,
}

/// A linked guest, with the engine whose memory it takes.
pub(crate) struct Linked {
    pub(crate) engine: Engine,
    pub(crate) code: Code,
}

impl Loaded {
    /// For this slot.
    ///
    /// # Errors
    /// When it cannot be loaded once more.
    pub(crate) fn on(&self, slot: u32) -> Result<&Linked, Failure> {
        let share = slot as usize % (1 + self.others.len());
        match share.checked_sub(1).and_then(|other| self.others.get(other)) {
            None => Ok(&self.first),
            Some(other) => other.get_or_init(|| self.loader.link(share, &self.request, &self.file)).as_ref().map_err(Clone::clone),
        }
    }
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

/// The linkers of a share.
#[derive(Default)]
struct Share {
    plain: Linkers,
    fuel: Linkers,
}

/// Loads modules.
pub(crate) struct Loader {
    pub(crate) engines: Arc<Engines>,
    shares: Vec<Mutex<Share>>,
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
    /// For these engines.
    pub(crate) fn new(engines: Arc<Engines>) -> Self {
        let shares = (0..engines.shares()).map(|_| Mutex::default()).collect();
        Self { engines, shares }
    }

    /// Ready for guests without sockets and without a fuel limit, in the first share.
    ///
    /// # Errors
    /// When host functions cannot be set up.
    pub(crate) fn prepared(engines: Arc<Engines>) -> wasmtime::Result<Self> {
        let loader = Self::new(engines);
        if let (Some(engine), Some(mut share)) = (loader.engines.get(0, false), loader.share(0)) {
            share.plain = Linkers { core: Some(core_linker(engine, false)?), component: Some(component_linker(engine)?) };
        }
        Ok(loader)
    }

    fn share(&self, number: usize) -> Option<MutexGuard<'_, Share>> {
        self.shares.get(number).map(|share| share.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Loads and links the code in `code`.
    ///
    /// # Errors
    /// Code of another engine (`LAUNCH_FAILED`), an import that nobody provides, no entry point.
    pub(crate) fn load(self: &Arc<Self>, request: Request, code: OwnedFd) -> Result<Loaded, Failure> {
        let file = File::from(code);
        let first = self.link(0, &request, &file)?;
        let copied = request.component && file.metadata().map_or(true, |m| m.len() > MAX_COPIED_BYTES);
        let others = (1..if copied { 1 } else { self.shares.len() }).map(|_| OnceLock::new()).collect();
        Ok(Loaded { request, file, loader: self.clone(), first, others })
    }

    fn link(&self, number: usize, request: &Request, file: &File) -> Result<Linked, Failure> {
        let (Some(engine), Some(mut share)) = (self.engines.get(number, request.fuel), self.share(number)) else {
            return Err(Failure::new(Reason::LaunchFailed, format!("there is no share {number} of the slots")));
        };
        let linkers = if request.fuel { &mut share.fuel } else { &mut share.plain };
        let code = if request.component {
            load_component(engine, linkers, file)?
        } else {
            let file = file
                .try_clone()
                .map_err(|e| Failure::new(Reason::LaunchFailed, format!("the compiled code cannot be opened again: {e}")))?;
            load_core(engine, linkers, request.network, file)?
        };
        Ok(Linked { engine: engine.clone(), code })
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
fn load_core(engine: &Engine, linkers: &mut Linkers, network: bool, code: File) -> Result<Code, Failure> {
    // SAFETY: the descriptor comes from the agent over a socket that only the agent holds, and names a file that the
    // agent's own compiler process wrote and that nobody else can write (design, guarantee 4).
    let module = unsafe { Module::deserialize_open_file(engine, code) }.map_err(|e| not_loadable(&e))?;
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
fn load_component(engine: &Engine, linkers: &mut Linkers, code: &File) -> Result<Code, Failure> {
    let bytes = read_whole(code).map_err(|e| Failure::new(Reason::LaunchFailed, format!("the compiled code cannot be read: {e}")))?;
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
