//! Wasmtime engines for running guests: the shared settings of `smalti-engine` with an allocator sized for this process.
//!
//! Owns the choice between pooled and on-demand allocation, and of how a used memory is reset, and the warnings about both.
//! The engine is built before the process gives up what it needs for that (`/proc`). Contains no compiler.

use crate::limits::{MAX_INSTANCES, MAX_MEMORIES, MAX_TABLE_ELEMENTS, MAX_TABLES};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::Pid;
use smalti_engine::{MEMORY_GUARD_SIZE, MEMORY_RESERVATION, base_config};
use wasmtime::{Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Bytes of a linear memory that stay in memory between two guests. Rust puts a 1 MiB stack first, so less than that does
/// nothing for it; above it, page faults and their lock are what limits the rate of fresh instances.
const KEEP_RESIDENT: usize = 2 << 20;
/// The same for a table: the function table of most programs.
const TABLE_KEEP_RESIDENT: usize = 64 << 10;
/// Most shares of one process. Each has an engine of its own for its slots: they count the users of its code, and take memory from its
/// pools, in cache lines that processors must hand to each other. Where those are far apart, two slots of one engine are not faster than
/// one. A pair of engines with one program costs about a millisecond.
const MAX_SHARES: u32 = 16;
/// Memory maps that one slot may need: its memories (image, heap, guards), stacks, tables, thread and blocking threads.
const MAPS_PER_SLOT: u64 = 8 + 4 * MAX_MEMORIES as u64;
/// Kernel default of `vm.max_map_count`.
const DEFAULT_MAX_MAPS: u64 = 65_530;
/// Address space that pools may take: a quarter of what x86-64 and aarch64 give a process.
const MAX_ADDRESS_SPACE: u64 = 32 << 40;

/// No engine could be built, whatever the allocator.
#[derive(Debug, thiserror::Error)]
#[error("cannot build the Wasm engine ({allocator} allocator, fuel {fuel}): {message}")]
pub(crate) struct EngineError {
    allocator: &'static str,
    fuel: bool,
    message: String,
}

/// What the agent is told about the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// `pooling` or `on-demand`.
    pub(crate) allocator: &'static str,
    /// `pagemap_scan` or `plain`.
    pub(crate) reset: &'static str,
    pub(crate) warnings: Vec<String>,
}

/// The engine for ordinary guests, and the one for guests with a fuel limit.
#[derive(Debug)]
struct Pair {
    plain: Engine,
    fuel: Engine,
}

impl Pair {
    fn new(slots: u32, plan: &Plan) -> Result<(Self, Facts), EngineError> {
        let (plain, facts) = build(false, slots, plan)?;
        let (fuel, _) = build(true, slots, &facts.plan())?;
        Ok((Self { plain, fuel }, facts))
    }
}

/// A pair of engines for each share of the slots; the first has room for all of them, since some code is there only. All are built at
/// once: later, behind the walls, the others could not have what the first one has.
#[derive(Debug)]
pub(crate) struct Engines {
    shares: Vec<Pair>,
    slots: u32,
    one_guest: bool,
    facts: Facts,
}

impl Facts {
    /// The same choices for a further engine: they are known to work.
    fn plan(&self) -> Plan {
        Plan { pooling: self.allocator == "pooling", pagemap_scan: self.reset == "pagemap_scan", warnings: Vec::new() }
    }
}

impl Engines {
    /// For `slots` guests at once. `swap_off`: the agent has turned swap off for this process.
    ///
    /// # Errors
    /// When not even the on-demand allocator works.
    pub(crate) fn new(slots: u32, swap_off: bool) -> Result<Self, EngineError> {
        let (plan, shares) = plan_shares(slots, processors(), &Machine::read(swap_off));
        #[cfg(any(test, feature = "fuzzing"))]
        let plan = forced::apply(plan);
        let (first, facts) = Pair::new(slots, &plan)?;
        let mut pairs = vec![first];
        for _ in 1..shares {
            pairs.push(Pair::new(slots.div_ceil(shares), &facts.plan())?.0);
        }
        Ok(Self { shares: pairs, slots, one_guest: false, facts })
    }

    /// For an executor that runs one guest in its life: nothing is allocated beforehand.
    ///
    /// # Errors
    /// When the machine has not what an engine needs.
    pub(crate) fn for_one_guest() -> Result<Self, EngineError> {
        let plan = Plan { pooling: false, pagemap_scan: false, warnings: Vec::new() };
        let (pair, facts) = Pair::new(1, &plan)?;
        Ok(Self { shares: vec![pair], slots: 1, one_guest: true, facts })
    }

    /// The engine of a share that loads code compiled with or without fuel.
    pub(crate) fn get(&self, share: usize, fuel: bool) -> Option<&Engine> {
        self.shares.get(share).map(|pair| if fuel { &pair.fuel } else { &pair.plain })
    }

    /// How many shares there are. Slots belong to them in turn.
    pub(crate) const fn shares(&self) -> usize {
        self.shares.len()
    }

    /// Guests at once.
    pub(crate) const fn slots(&self) -> u32 {
        self.slots
    }

    /// Whether a guest is the only one in the life of this process.
    pub(crate) const fn for_one(&self) -> bool {
        self.one_guest
    }

    /// What to tell the agent.
    pub(crate) const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Lets running guests look at their deadline and stop level.
    pub(crate) fn increment_epoch(&self) {
        for pair in &self.shares {
            pair.plain.increment_epoch();
            pair.fuel.increment_epoch();
        }
    }
}

/// Into how many shares slots are divided: no more than can run at the same moment.
fn shares(slots: u32, processors: u32) -> u32 {
    slots.min(processors).clamp(1, MAX_SHARES)
}

/// Processors that this process may run on; one, should the kernel not say.
fn processors() -> u32 {
    let count = |set: CpuSet| (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu) == Ok(true)).count();
    sched_getaffinity(Pid::from_raw(0)).map_or(1, |set| u32::try_from(count(set)).unwrap_or(u32::MAX))
}

/// What the machine gives a process.
#[derive(Debug, Clone, Copy)]
struct Machine {
    max_maps: u64,
    /// Address space in bytes.
    address_space: u64,
    /// Whether a page of this process could be swapped out.
    swap: bool,
}

impl Machine {
    fn read(swap_off: bool) -> Self {
        let number = |path: &str| std::fs::read_to_string(path).ok().and_then(|s| s.trim().parse().ok());
        Self {
            max_maps: number("/proc/sys/vm/max_map_count").unwrap_or(DEFAULT_MAX_MAPS),
            address_space: getrlimit(Resource::RLIMIT_AS).map_or(u64::MAX, |(soft, _)| soft),
            swap: !swap_off && swap_is_possible(),
        }
    }
}

/// Unknown counts as possible.
fn swap_is_possible() -> bool {
    // One header line; every further line is an active swap area.
    std::fs::read_to_string("/proc/swaps").map_or(true, |s| s.lines().count() > 1)
}

/// What to try, decided before anything is built.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    pooling: bool,
    pagemap_scan: bool,
    warnings: Vec<String>,
}

/// A plan for engines of so many shares; of one, where there is no room for more.
fn plan_shares(slots: u32, processors: u32, machine: &Machine) -> (Plan, u32) {
    let shares = shares(slots, processors);
    let others = slots.div_ceil(shares).saturating_mul(shares - 1);
    let divided = plan(slots, slots.saturating_add(others), machine);
    if divided.pooling { (divided, shares) } else { (plan(slots, slots, machine), 1) }
}

/// For `slots` guests at once, in pools that together have room for `places`.
fn plan(slots: u32, places: u32, machine: &Machine) -> Plan {
    let mut warnings = Vec::new();
    let maps = u64::from(slots) * MAPS_PER_SLOT;
    let space = u64::from(places) * MAX_MEMORIES as u64 * (MEMORY_RESERVATION + 2 * MEMORY_GUARD_SIZE);
    let mut pooling = true;
    if maps > machine.max_maps / 2 {
        pooling = false;
        warnings.push(format!(
            "memory is allocated on demand: {slots} slots may need {maps} memory maps, and vm.max_map_count is {}",
            machine.max_maps
        ));
    } else if space > MAX_ADDRESS_SPACE.min(machine.address_space / 2) {
        pooling = false;
        warnings.push(format!("memory is allocated on demand: {slots} slots would reserve {} GiB of address space", space >> 30));
    }
    if pooling && machine.swap {
        warnings.push("used memories are reset the slow way: swap is on, and pages that were swapped out would be missed".to_owned());
    }
    Plan { pooling, pagemap_scan: pooling && !machine.swap, warnings }
}

/// Builds as planned, and falls back one step at a time.
fn build(fuel: bool, slots: u32, plan: &Plan) -> Result<(Engine, Facts), EngineError> {
    let mut warnings = plan.warnings.clone();
    if plan.pooling {
        if plan.pagemap_scan {
            match pooled(fuel, slots, true) {
                Ok(engine) => return Ok((engine, Facts { allocator: "pooling", reset: "pagemap_scan", warnings })),
                Err(e) => warnings.push(format!("used memories are reset the slow way: {e:#}")),
            }
        }
        match pooled(fuel, slots, false) {
            Ok(engine) => return Ok((engine, Facts { allocator: "pooling", reset: "plain", warnings })),
            Err(e) => warnings.push(format!("memory is allocated on demand: {e:#}")),
        }
    }
    let engine = Engine::new(&base_config(fuel)).map_err(|e| EngineError { allocator: "on-demand", fuel, message: format!("{e:#}") })?;
    Ok((engine, Facts { allocator: "on-demand", reset: "plain", warnings }))
}

fn pooled(fuel: bool, slots: u32, pagemap_scan: bool) -> wasmtime::Result<Engine> {
    let per_slot = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).saturating_mul(slots);
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(slots)
        .total_core_instances(per_slot(MAX_INSTANCES))
        .total_memories(per_slot(MAX_MEMORIES))
        .total_tables(per_slot(MAX_TABLES))
        // One guest runs at a time on a slot, on one stack.
        .total_stacks(slots.saturating_add(1))
        .max_core_instances_per_component(u32::try_from(MAX_INSTANCES).unwrap_or(u32::MAX))
        .max_memories_per_module(u32::try_from(MAX_MEMORIES).unwrap_or(u32::MAX))
        .max_tables_per_module(u32::try_from(MAX_TABLES).unwrap_or(u32::MAX))
        .table_elements(MAX_TABLE_ELEMENTS)
        .max_memory_size(usize::try_from(MEMORY_RESERVATION).unwrap_or(usize::MAX))
        // Bounds what memories of modules that are not running keep resident.
        .max_unused_warm_slots(slots)
        .linear_memory_keep_resident(KEEP_RESIDENT)
        .table_keep_resident(TABLE_KEEP_RESIDENT)
        // Asked for outright: `Auto` would fall back in silence.
        .pagemap_scan(if pagemap_scan { Enabled::Yes } else { Enabled::No });
    let mut config = base_config(fuel);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config)
}

/// Tests run guests in each of the ways in which memory can be allocated and reset, whatever the machine offers.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod forced {
    use super::Plan;
    use std::cell::Cell;

    /// What engines built on this thread use.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Mode {
        /// What the machine offers.
        Best,
        /// Pools, each memory reset without the kernel's help.
        PlainReset,
        /// No pools.
        OnDemand,
    }

    thread_local! {
        static MODE: Cell<Mode> = const { Cell::new(Mode::Best) };
    }

    /// For engines that this thread builds from now on.
    pub(crate) fn set(mode: Mode) {
        MODE.set(mode);
    }

    pub(super) fn apply(plan: Plan) -> Plan {
        match MODE.get() {
            Mode::Best => plan,
            Mode::PlainReset => Plan { pagemap_scan: false, ..plan },
            Mode::OnDemand => Plan { pooling: false, pagemap_scan: false, ..plan },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Machine = Machine { max_maps: 65_530, address_space: u64::MAX, swap: false };

    #[test]
    fn small_nodes_fall_back_with_a_reason() {
        assert_eq!(plan(64, 64, &GOOD), Plan { pooling: true, pagemap_scan: true, warnings: Vec::new() });
        let few_maps = plan(64, 64, &Machine { max_maps: 1_000, ..GOOD });
        assert!(!few_maps.pooling && few_maps.warnings[0].contains("max_map_count"));
        let little_space = plan(64, 64, &Machine { address_space: 1 << 40, ..GOOD });
        assert!(!little_space.pooling && little_space.warnings[0].contains("address space"));
        let swap = plan(64, 64, &Machine { swap: true, ..GOOD });
        assert!(swap.pooling && !swap.pagemap_scan && swap.warnings[0].contains("swap"));
    }

    #[test]
    fn both_engines_are_built_alike() {
        let engines = Engines::new(2, false).expect("an engine");
        eprintln!("{:?}", engines.facts());
        for share in 0..engines.shares() {
            assert!(engines.get(share, true).is_some_and(Engine::get_consume_fuel));
            assert!(engines.get(share, false).is_some_and(|e| !e.get_consume_fuel()));
        }
        assert!(engines.get(engines.shares(), false).is_none());
        engines.increment_epoch();
    }

    #[test]
    fn there_are_as_many_shares_as_slots_that_can_run_at_once() {
        assert!(processors() > 0);
        for (slots, processors, wanted) in [(32, 2, 2), (1, 64, 1), (4, 64, 4), (128, 64, MAX_SHARES), (0, 0, 1), (32, 0, 1)] {
            assert_eq!(shares(slots, processors), wanted, "{slots} {processors}");
        }
        assert_eq!(plan_shares(128, 64, &GOOD), (plan(128, 128, &GOOD), MAX_SHARES));
        // Room for the slots of one share, not for more.
        let narrow = Machine { address_space: 3 << 40, ..GOOD };
        assert_eq!(plan_shares(64, 64, &narrow), (plan(64, 64, &GOOD), 1));
    }
}
