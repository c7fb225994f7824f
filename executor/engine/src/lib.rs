//! The Wasmtime settings on which compiled code depends, shared by the compiler process and the executor.
//!
//! Wasmtime refuses to load code that was compiled under other settings, so both sides start from [`base_config`]. The
//! compiling side adds Cranelift's own settings (optimisation level), the executing side what only matters at run time
//! (allocator, pool sizes). What compiled code depends on is set here explicitly, never left to a default, because
//! Wasmtime's defaults vary with the Cargo features of the build, and the two sides are built with different ones.
//!
//! Deliberately absent: a compiler, a runtime, I/O.

use std::time::Duration;
use wasmtime::{Config, WasmBacktraceDetails, WasmFeatures};

/// The Wasmtime release. Code of another release does not load, so it is part of every cache key.
pub const WASMTIME_VERSION: &str = "48.0.8";

/// Raised whenever this file changes in a way that compiled code depends on: it makes earlier caches miss.
pub const SETTINGS_VERSION: u32 = 1;

/// Most native stack, in bytes, that a guest may use. Rust and C guests keep large values on their own stack in linear
/// memory; this bounds recursion depth. Overflow is a trap of the guest, not of the executor.
pub const MAX_WASM_STACK: usize = 1 << 20;

/// Size in bytes of the stack that a guest and the host functions it calls run on: the guest's part, and as much again
/// for host calls. Only address space until touched.
pub const ASYNC_STACK_SIZE: usize = 2 * MAX_WASM_STACK;

/// How often the executor advances the engine's epoch: the granularity of time limits and kills of a guest that computes.
pub const EPOCH_TICK: Duration = Duration::from_millis(10);

/// Address space reserved for each linear memory: all that a 32-bit guest can address, so no access needs a bounds check.
pub const MEMORY_RESERVATION: u64 = 4 << 30;

/// Unmapped bytes after (and before) each linear memory: constant offsets below this need no check either.
pub const MEMORY_GUARD_SIZE: u64 = 32 << 20;

/// Most linear memories of one guest. The executor's pool has this many per slot.
pub const MAX_MEMORIES: usize = 4;

/// Most tables of one guest. The executor's pool has this many per slot.
pub const MAX_TABLES: usize = 16;

/// Most elements of one table: larger than the function tables of large programs.
pub const MAX_TABLE_ELEMENTS: usize = 100_000;

/// The Wasm proposals that guests may use. All others are off, whatever Wasmtime's defaults are: each is host code that a
/// hostile guest could reach, and none of them is emitted by Rust or clang for `wasm32-wasip1` and `wasm32-wasip2`.
/// (`WASM2` without the types that need a garbage collector; `externref` is one of them. Several memories are used by the
/// adapters between the parts of a composed component.)
pub const FEATURES: WasmFeatures = WasmFeatures::WASM2
    .difference(WasmFeatures::GC_TYPES)
    .union(WasmFeatures::RELAXED_SIMD)
    .union(WasmFeatures::TAIL_CALL)
    .union(WasmFeatures::EXTENDED_CONST)
    .union(WasmFeatures::MULTI_MEMORY)
    .union(WasmFeatures::COMPONENT_MODEL);

/// The configuration that the compiling and the executing side have in common.
///
/// `fuel`: whether the code counts instructions. It costs about a third of a tight loop, so it is compiled in only for
/// tasks that have a fuel limit; the executor keeps a second engine for those.
#[must_use]
pub fn base_config(fuel: bool) -> Config {
    let mut config = Config::new();
    config
        .wasm_features(WasmFeatures::all().difference(FEATURES), false)
        .wasm_features(FEATURES, true)
        // The same bits on every CPU: a retry on another agent must not change a result.
        .relaxed_simd_deterministic(true)
        // Preview 3 and its per-store tables are off; the default follows a Cargo feature.
        .concurrency_support(false)
        .shared_memory(false)
        .epoch_interruption(true)
        .consume_fuel(fuel)
        .signals_based_traps(true)
        .memory_reservation(MEMORY_RESERVATION)
        .memory_guard_size(MEMORY_GUARD_SIZE)
        .guard_before_linear_memory(true)
        // With all of a 32-bit address space reserved, growth never moves a memory.
        .memory_may_move(false)
        .memory_init_cow(true)
        .table_lazy_init(true)
        .max_wasm_stack(MAX_WASM_STACK)
        .async_stack_size(ASYNC_STACK_SIZE)
        // Backtraces name functions. Source lines would need DWARF in memory and a parser fed by the guest; naming
        // `Disable` also keeps an environment variable from changing the settings of one side.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .debug_info(false)
        .debug_symbols(false)
        .generate_address_map(true)
        // For debuggers only, and registering it makes loading slow.
        .native_unwind_info(false);
    config
}

/// Names everything that compiled code depends on beside the bundle itself and the fuel flag: release, settings, and
/// this machine's architecture and CPU features. Equal keys: code compiled once can be loaded.
#[must_use]
pub fn settings_key() -> String {
    let mut key = format!(
        "wasmtime-{WASMTIME_VERSION};settings-{SETTINGS_VERSION};features-{:x};reservation-{MEMORY_RESERVATION};guard-{MEMORY_GUARD_SIZE};{}-{}",
        FEATURES.bits(),
        std::env::consts::ARCH,
        std::env::consts::OS,
    );
    for feature in cpu_features() {
        key.push('+');
        key.push_str(feature);
    }
    key
}

/// The names of those features of the list that the CPU has.
macro_rules! detected {
    ($($name:tt)*) => {
        [$(($name, detect!($name))),*].into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
    };
}
#[cfg(target_arch = "aarch64")]
use std::arch::is_aarch64_feature_detected as detect;
#[cfg(target_arch = "x86_64")]
use std::is_x86_feature_detected as detect;

/// The CPU features that Cranelift makes use of (the list that Wasmtime checks when it loads code), as far as this
/// machine has them.
#[must_use]
pub fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    return detected!("cmpxchg16b" "sse3" "ssse3" "sse4.1" "sse4.2" "popcnt" "avx" "avx2" "fma" "avxvnni" "bmi1" "bmi2" "lzcnt"
        "avx512bitalg" "avx512dq" "avx512f" "avx512vl" "avx512vbmi" "avx512vnni");
    #[cfg(target_arch = "aarch64")]
    return detected!("lse" "paca" "fp16" "dotprod" "i8mm");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasmtime::Engine;

    #[test]
    fn the_settings_are_consistent_with_and_without_fuel() {
        for fuel in [false, true] {
            let engine = Engine::new(&base_config(fuel)).expect("an engine");
            assert_eq!(engine.get_consume_fuel(), fuel);
            assert!(engine.get_epoch_interruption());
            assert_eq!(engine.get_memory_reservation(), MEMORY_RESERVATION);
            assert_eq!(engine.get_wasm_features(), FEATURES);
        }
    }

    #[test]
    fn what_needs_a_collector_threads_or_64_bits_is_off() {
        for off in [WasmFeatures::GC, WasmFeatures::GC_TYPES, WasmFeatures::THREADS, WasmFeatures::MEMORY64, WasmFeatures::EXCEPTIONS] {
            assert!(!FEATURES.intersects(off), "{off:?}");
        }
    }

    #[test]
    fn the_release_in_the_key_is_the_one_that_is_linked() {
        let manifest = include_str!("../../../Cargo.toml");
        assert!(manifest.contains(&format!("wasmtime = {{ version = \"={WASMTIME_VERSION}\"")));
        assert_eq!(settings_key(), settings_key());
    }
}
