//! The floor of the benchmarks: the same compiled guest, engine settings and limits as a slot has, instantiated, run and
//! dropped in a plain loop, without queue, output, accounting or agent.
//!
//! Not a role in a cluster; `cargo xtask bench` starts it (`smalti-executor floor --code FILE --threads N --seconds S`).

use crate::engine::Engines;
use crate::limits::Limiter;
use crate::modules::{Code, Linked, Loader, Request};
use crate::network::Table;
use crate::state::{Common, State};
use crate::streams::Meters;
use std::ffi::OsString;
use std::fs::File;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi::WasiCtxBuilder;

/// What a task of the array benchmark may use.
const MEMORY_BYTES: u64 = 64 << 20;

struct Options {
    code: OsString,
    threads: u32,
    seconds: f64,
}

pub(crate) fn main(args: Vec<OsString>) -> ExitCode {
    let result = parse(args).and_then(|options| measure(&options));
    match result {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("smalti-executor floor: {message}");
            ExitCode::FAILURE
        }
    }
}

fn parse(args: Vec<OsString>) -> Result<Options, String> {
    let mut options = Options { code: OsString::new(), threads: 1, seconds: 1.0 };
    let mut args = args.into_iter().skip(1);
    while let Some(flag) = args.next() {
        let value = args.next().ok_or_else(|| format!("{} needs a value", flag.display()))?;
        let text = value.to_string_lossy();
        match flag.to_str() {
            Some("--code") => options.code = value,
            Some("--threads") => options.threads = text.parse().map_err(|e| format!("--threads {text}: {e}"))?,
            Some("--seconds") => options.seconds = text.parse().map_err(|e| format!("--seconds {text}: {e}"))?,
            _ => return Err(format!("unknown flag {}", flag.display())),
        }
    }
    Ok(options)
}

fn measure(options: &Options) -> Result<String, String> {
    let engines = Arc::new(Engines::new(options.threads, false).map_err(|e| e.to_string())?);
    let code = File::open(&options.code).map_err(|e| format!("opening {}: {e}", options.code.display()))?;
    let request = Request { name: "floor".into(), component: false, fuel: false, network: false };
    let loaded = Arc::new(Loader::new(engines.clone())).load(request, code.into()).map_err(|e| e.message)?;
    let linked = (0..options.threads).map(|slot| loaded.on(slot)).collect::<Result<Vec<_>, _>>().map_err(|e| e.message)?;
    let until = Instant::now() + Duration::from_secs_f64(options.seconds);
    let start = Instant::now();
    let counts: Vec<Result<u64, String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = linked.into_iter().map(|linked| scope.spawn(move || turn(linked, until))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a thread panicked".into()))).collect()
    });
    let items: u64 = counts.into_iter().sum::<Result<u64, String>>()?;
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = items as f64 / start.elapsed().as_secs_f64();
    let facts = engines.facts();
    Ok(format!(r#"{{"items_per_s": {rate:.0}, "allocator": "{}", "reset": "{}"}}"#, facts.allocator, facts.reset))
}

/// One thread's loop; returns how often it went round.
fn turn(linked: &Linked, until: Instant) -> Result<u64, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(|e| e.to_string())?;
    let common = Arc::new(Common::default());
    let mut items = 0;
    while Instant::now() < until {
        runtime.block_on(once(linked, &common)).map_err(|e| format!("{e:#}"))?;
        items += 1;
    }
    Ok(items)
}

async fn once(linked: &Linked, common: &Arc<Common>) -> wasmtime::Result<()> {
    let Code::Core { pre, start } = &linked.code else { return Err(wasmtime::Error::msg("the floor is measured with core modules")) };
    let wasi = WasiCtxBuilder::new().args(&["floor"]).env("SMALTI_ITEM", "0").build_p1();
    let state = State {
        wasi,
        limiter: Limiter::new(MEMORY_BYTES),
        common: common.clone(),
        sockets: Table::default(),
        meters: Arc::new(Meters::new(0)),
        listings: Vec::new(),
        result: None,
        called: false,
    };
    let mut store = Store::new(&linked.engine, state);
    store.limiter(|state| &mut state.limiter);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|_| Ok(UpdateDeadline::Continue(1)));
    let instance = pre.instantiate_async(&mut store).await?;
    let entry = instance.get_module_export(&mut store, start).and_then(wasmtime::Extern::into_func);
    let entry = entry.ok_or_else(|| wasmtime::Error::msg("`_start` is not there"))?.typed::<(), ()>(&store)?;
    entry.call_async(&mut store, ()).await
}
