//! Runs one guest: a fresh store with its own memory, WASI context and limits, from instantiation to the outcome.
//!
//! Owns the mapping from how a guest ended to a reason. A guest that computes is ended by the epoch (checked every tick), one
//! that waits in a host call by dropping its future. Threads, queues and files are others' business.

use crate::clock::Stopwatch;
use crate::control::Control;
use crate::directories::View;
use crate::failure::Failure;
use crate::gauge::{Cell, Gauge};
use crate::limits::{HOSTCALL_BYTES, Limiter, MAX_COMPONENT_HANDLES, MAX_RANDOM_BYTES, limit_in};
use crate::modules::{Code, Loaded};
use crate::network::Table;
use crate::output::{Channel, Sink};
use crate::preview1::NO_MEMORY;
use crate::state::{Common, State};
use crate::streams::{Meters, Output, Source, Stdin};
use smalti_types::task_state::Reason;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wasmtime::{CallHook, Engine, Store, Trap, UpdateDeadline, WasmBacktrace};
use wasmtime_wasi::filesystem::WasiFilesystemCtx;
use wasmtime_wasi::{I32Exit, WasiCtxBuilder, WasiView};

/// Frames of a guest's stack that a message names.
const MAX_FRAMES: usize = 8;

/// What all runs of one task or array part have in common.
pub(crate) struct Template {
    pub(crate) module: Arc<Loaded>,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// Memories, tables, and what the host keeps for the guest: together, in bytes.
    pub(crate) memory_bytes: u64,
    /// Host resources that it may hold.
    pub(crate) handles: usize,
    pub(crate) timeout: Option<Duration>,
    pub(crate) fuel: Option<u64>,
    pub(crate) output_bytes: u64,
    /// What they see of the file system.
    pub(crate) view: View,
    /// The guest is the only one in this process's life, and what it holds is nobody else's afterwards.
    pub(crate) only: bool,
    pub(crate) common: Common,
    pub(crate) gauge: Arc<Gauge>,
}

/// What a slot has of a template: its own of all that slots would else hand to each other with each run.
pub(crate) struct Seat {
    slot: u32,
    common: Arc<Common>,
    gauge: Arc<Cell>,
}

impl Seat {
    /// Of the slot with this number.
    pub(crate) fn new(template: &Template, slot: u32) -> Self {
        // Loaded now if it was not: a run would else have to pay for it. What goes wrong, each run says.
        let _ = template.module.on(slot);
        Self { slot, common: Arc::new(template.common.clone()), gauge: template.gauge.cell(slot) }
    }
}

/// What is different for each run.
pub(crate) struct Run<'a> {
    /// Environment after the template's.
    pub(crate) env: Vec<(&'static str, String)>,
    pub(crate) stdin: Option<Source>,
    pub(crate) sink: Arc<dyn Sink>,
    /// The preopened directories.
    pub(crate) directories: WasiFilesystemCtx,
    /// Began with the run.
    pub(crate) watch: &'a Stopwatch,
    pub(crate) seat: &'a Seat,
}

/// How a run ended.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    pub(crate) exit_code: Option<i32>,
    pub(crate) failure: Option<Failure>,
    pub(crate) peak_memory: u64,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_written: u64,
    pub(crate) fuel: Option<u64>,
    pub(crate) result: Option<Vec<u8>>,
}

impl Ended {
    /// A run that never began.
    pub(crate) fn failed(failure: Failure) -> Self {
        Self { failure: Some(failure), ..Self::default() }
    }
}

/// Ends a guest from the epoch callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Stop {
    #[error("killed")]
    Killed,
    #[error("the time limit was reached")]
    TimeLimit,
    #[error("its lease has run out: the agent could not renew it in time")]
    LeaseExpired,
}

impl Stop {
    /// Why a run that was stopped from outside was.
    fn of(control: &Control) -> Self {
        if control.is_expired() { Self::LeaseExpired } else { Self::Killed }
    }
}

/// Why a run must not begin any more, if so.
pub(crate) fn forbidden(control: &Control) -> Option<Failure> {
    if control.lease_is_over() {
        control.expire();
    }
    if !control.is_stopped() {
        return None;
    }
    Some(match Stop::of(control) {
        Stop::LeaseExpired => Failure::new(Reason::LeaseExpired, "its lease had run out before it began"),
        Stop::Killed | Stop::TimeLimit => Failure::new(Reason::KilledByRequest, "killed before it began"),
    })
}

/// Runs one guest to its end. Never fails: what goes wrong is the outcome.
pub(crate) async fn run(template: &Template, run: Run<'_>) -> Ended {
    let meters = Arc::new(Meters::new(template.output_bytes));
    let watch = run.watch;
    let deadline = template.timeout.and_then(|t| watch.began().checked_add(t));
    let seat = run.seat;
    let linked = match template.module.on(seat.slot) {
        Ok(linked) => linked,
        Err(failure) => return Ended::failed(failure),
    };
    let mut store = match new_store(template, &linked.engine, run, &meters, deadline) {
        Ok(store) => store,
        Err(e) => return Ended::failed(Failure::new(Reason::LaunchFailed, format!("the store cannot be set up: {e:#}"))),
    };
    let _running = seat.gauge.begin(&meters, &store.data().limiter.budget, watch);
    let how = until_end(template, &linked.code, &mut store, deadline).await;
    let fuel = template.fuel.map(|limit| limit.saturating_sub(store.get_fuel().unwrap_or(0)));
    let state = store.data_mut();
    let (exit_code, failure) = classify(how, &meters, state, template.fuel);
    let ended = Ended {
        exit_code,
        failure,
        peak_memory: state.limiter.budget.peak(),
        bytes_read: meters.read(),
        bytes_written: meters.written(),
        fuel,
        result: state.result.take(),
    };
    if template.only {
        // The kernel takes its memory back with the process, when nobody waits any more.
        std::mem::forget(store);
    }
    ended
}

fn new_store(
    template: &Template,
    engine: &Engine,
    run: Run<'_>,
    meters: &Arc<Meters>,
    deadline: Option<Instant>,
) -> wasmtime::Result<Store<State>> {
    let mut builder = WasiCtxBuilder::new();
    builder.args(&template.args).envs(&template.env).max_random_size(MAX_RANDOM_BYTES);
    // Nothing of the network, names least of all. File operations go to the slot's own blocking thread, so that the
    // future can be dropped meanwhile.
    builder.allow_tcp(false).allow_udp(false).allow_ip_name_lookup(false).allow_blocking_current_thread(false);
    for (name, value) in run.env {
        builder.env(name, value);
    }
    let limiter = Limiter::new(template.memory_bytes);
    builder.stdin(Stdin::new(run.stdin, meters.clone(), &limiter.budget));
    builder.stdout(Output::new(Channel::Out, run.sink.clone(), meters.clone()));
    builder.stderr(Output::new(Channel::Err, run.sink, meters.clone()));
    let mut listeners = Vec::new();
    if let Some(grants) = &template.common.network {
        grants.apply(&mut builder);
        listeners = grants.take_listeners();
    }
    let mut wasi = builder.build_p1();
    let view = wasi.ctx();
    *view.ctx.filesystem() = run.directories;
    view.table.set_max_capacity(template.handles);
    let state = State {
        wasi,
        limiter,
        common: run.seat.common.clone(),
        sockets: if template.module.request.network { Table::new(listeners, template.view.count())? } else { Table::default() },
        meters: meters.clone(),
        listings: Vec::new(),
        result: None,
        called: false,
    };
    let mut store = Store::new(engine, state);
    store.limiter(|state| &mut state.limiter);
    store.set_hostcall_fuel(HOSTCALL_BYTES);
    store.set_max_component_handles(MAX_COMPONENT_HANDLES);
    if template.module.request.fuel {
        store.set_fuel(template.fuel.unwrap_or(u64::MAX))?;
    }
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(move |context| {
        let control = &context.data().common.control;
        if control.lease_is_over() {
            control.expire();
        }
        if control.is_stopped() {
            return Err(Stop::of(control).into());
        }
        if deadline.is_some_and(|at| Instant::now() >= at) {
            return Err(Stop::TimeLimit.into());
        }
        Ok(UpdateDeadline::Continue(1))
    });
    if template.common.control.lease_until().is_some() {
        // A process that was stopped and goes on runs its guests before any timer can. What a guest does outside, it does by a call.
        store.call_hook(|context, hook| {
            let control = &context.data().common.control;
            if matches!(hook, CallHook::CallingHost) && control.lease_is_over() {
                control.expire();
                return Err(Stop::of(control).into());
            }
            Ok(())
        });
    }
    Ok(store)
}

/// How the guest's code ended.
enum How {
    Returned,
    /// A component's `run` returned an error.
    ReturnedError,
    Stopped(Stop),
    /// Before its first instruction.
    NotStarted(wasmtime::Error),
    Failed(wasmtime::Error),
}

async fn until_end(template: &Template, code: &Code, store: &mut Store<State>, deadline: Option<Instant>) -> How {
    let time_limit = async {
        match deadline {
            Some(at) => tokio::time::sleep_until(at.into()).await,
            None => std::future::pending().await,
        }
    };
    // In this order: as long as the guest does not wait, nothing else is looked at here.
    tokio::select! {
        biased;
        how = execute(code, store) => how,
        () = template.common.control.until_stopped() => How::Stopped(Stop::of(&template.common.control)),
        () = time_limit => How::Stopped(Stop::TimeLimit),
    }
}

async fn execute(code: &Code, store: &mut Store<State>) -> How {
    let result = match code {
        Code::Core { pre, start } => {
            let instance = match pre.instantiate_async(&mut *store).await {
                Ok(instance) => instance,
                Err(e) => return How::NotStarted(e),
            };
            let start = instance.get_module_export(&mut *store, start).and_then(wasmtime::Extern::into_func);
            match start.map(|f| f.typed::<(), ()>(&*store)) {
                Some(Ok(start)) => start.call_async(&mut *store, ()).await.map(Ok),
                Some(Err(e)) => return How::NotStarted(e),
                None => return How::NotStarted(wasmtime::Error::msg("`_start` is not there")),
            }
        }
        Code::Component(pre) => match pre.instantiate_async(&mut *store).await {
            Ok(command) => command.wasi_cli_run().call_run(&mut *store).await,
            Err(e) => return How::NotStarted(e),
        },
    };
    match result {
        Ok(Ok(())) => How::Returned,
        Ok(Err(())) => How::ReturnedError,
        Err(e) => How::Failed(e),
    }
}

fn classify(how: How, meters: &Meters, state: &State, fuel: Option<u64>) -> (Option<i32>, Option<Failure>) {
    let failed = |reason, message: String| (None, Some(Failure::new(reason, message)));
    let budget = &state.limiter.budget;
    match how {
        How::Stopped(stop) => stopped(stop),
        How::Returned => exited(0, state),
        How::ReturnedError => exited(1, state),
        How::NotStarted(e) if !ran(&e, state) && budget.was_hit() => failed(
            Reason::MemoryLimit,
            format!("the memory limit of {} bytes is too small to start it: {}", budget.limit(), e.root_cause()),
        ),
        How::NotStarted(e) if !ran(&e, state) => match limit_in(&e) {
            Some(reason) => failed(reason, format!("it needs more than a guest may have: {e:#}")),
            None => failed(Reason::LaunchFailed, format!("the module cannot be instantiated: {e:#}")),
        },
        How::NotStarted(e) | How::Failed(e) => {
            if let Some(I32Exit(code)) = e.downcast_ref() {
                return exited(*code, state);
            }
            if let Some(stop) = e.downcast_ref::<Stop>() {
                return stopped(*stop);
            }
            if let Some(why) = meters.input_failed() {
                return failed(Reason::InputFailed, why.to_owned());
            }
            if let Some(why) = meters.output_failed() {
                return failed(Reason::OutputFailed, why.to_owned());
            }
            if let Some(limit) = meters.output_limit_hit() {
                return failed(Reason::OutputLimit, format!("the output limit of {limit} bytes was reached"));
            }
            if matches!(e.downcast_ref(), Some(Trap::OutOfFuel)) {
                return failed(Reason::FuelLimit, format!("the fuel limit of {} was reached", fuel.unwrap_or(0)));
            }
            if let Some(Reason::HandleLimit) = limit_in(&e) {
                return failed(Reason::HandleLimit, format!("the limit on open handles was reached: {}", e.root_cause()));
            }
            if budget.was_hit() {
                return failed(Reason::MemoryLimit, format!("the memory limit of {} bytes was reached", budget.limit()));
            }
            failed(Reason::Trap, describe_trap(&e))
        }
    }
}

/// Whether code of the guest's is behind this error: a module may have a start function, which runs while it is instantiated, and
/// errors of host functions that it called have no type. They have a trace, unless it made its last call a tail call; then our
/// functions have said that they were called, and of Wasmtime's all but those that found no memory.
fn ran(error: &wasmtime::Error, state: &State) -> bool {
    let called = state.called || error.root_cause().to_string() == NO_MEMORY;
    called || error.is::<Trap>() || error.is::<I32Exit>() || error.is::<Stop>() || error.downcast_ref::<WasmBacktrace>().is_some()
}

fn stopped(stop: Stop) -> (Option<i32>, Option<Failure>) {
    let reason = match stop {
        Stop::Killed => Reason::KilledByRequest,
        Stop::TimeLimit => Reason::TimeLimit,
        Stop::LeaseExpired => Reason::LeaseExpired,
    };
    (None, Some(Failure::new(reason, stop.to_string())))
}

fn exited(code: i32, state: &State) -> (Option<i32>, Option<Failure>) {
    match code {
        0 => (Some(0), None),
        // What a shell cannot tell from a signal or from our own codes (design, section 8).
        code if !(0..=125).contains(&code) => {
            (None, Some(Failure::new(Reason::Trap, format!("the exit code {code} is not within 0 to 125"))))
        }
        code if state.common.control.is_expired() => (Some(code), Some(Failure::new(Reason::LeaseExpired, Stop::LeaseExpired.to_string()))),
        code if state.common.control.is_asked() => {
            (Some(code), Some(Failure::new(Reason::KilledByRequest, format!("ended with exit code {code} after it was asked to stop"))))
        }
        // The exit code stays the guest's own word; what probably brought it there is said beside it.
        code if state.limiter.budget.was_hit() => {
            let limit = state.limiter.budget.limit();
            let message = format!("ended with exit code {code}, after the memory limit of {limit} bytes was reached");
            (Some(code), Some(Failure::new(Reason::ExitCode, message)))
        }
        code => (Some(code), Some(Failure::new(Reason::ExitCode, format!("ended with exit code {code}")))),
    }
}

/// The cause, and where in the guest it happened.
fn describe_trap(error: &wasmtime::Error) -> String {
    let mut text = error.root_cause().to_string();
    if let Some(trace) = error.downcast_ref::<WasmBacktrace>() {
        for (i, frame) in trace.frames().iter().take(MAX_FRAMES).enumerate() {
            let name = frame.func_name().map_or_else(|| format!("function {}", frame.func_index()), printable);
            let _ = write!(text, "{} {name}", if i == 0 { "; in" } else { " <" });
        }
    }
    text
}

/// Function names come from the bundle: cut to a length, and without control characters.
fn printable(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(100).collect()
}
