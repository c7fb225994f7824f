//! Against the kernel: real groups where this machine lets us make them, the degraded path where not.

use super::*;
use smalti_types::Bytes;
use std::io::Write;
use std::process::{Child, Command, Stdio};

const PATIENCE: Duration = Duration::from_secs(60);

/// Groups of a name of their own, removed at the end whatever happens.
struct Scratch {
    cgroups: Cgroups,
    group: ExecutorGroup,
    children: Vec<Child>,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let removed = self.group.remove(PATIENCE).and_then(|()| self.cgroups.close());
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Err(e) = removed {
            eprintln!("NOT CLEANED UP: {e}");
        }
    }
}

impl Scratch {
    fn make(cgroups: Cgroups) -> Self {
        let group = cgroups.executor(&ExecutorId::new("e1").unwrap()).unwrap();
        Self { cgroups, group, children: Vec::new() }
    }

    fn run(&mut self, script: &str) -> i32 {
        let child = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        self.group.add_process(pid).unwrap();
        self.children.push(child);
        pid
    }
}

fn name(test: &str) -> String {
    format!("test-{test}-{}", std::process::id())
}

/// Real groups, or `None` after checking what is left without them.
fn real(test: &str) -> Option<Scratch> {
    let (cgroups, layers) = Cgroups::open(Mode::Auto, &name(test)).unwrap();
    if layers.iter().all(|l| l.on) {
        return Some(Scratch::make(cgroups));
    }
    eprintln!("THIS MACHINE GIVES NO FULL SET OF CONTROL GROUPS: {layers:?}; the degraded path is tested instead");
    let refused = Cgroups::open(Mode::Required, &name(test)).unwrap_err();
    assert!(refused.to_string().contains("Delegate=yes"), "{refused}");
    cgroups.close().unwrap();
    None
}

/// Waits for a condition on kernel state; what it waits for happens by itself or the test has failed.
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_spinning_thread_is_held_to_its_slots_quota() {
    let Some(mut scratch) = real("cpu") else { return };
    scratch.cgroups.set_total_cpus(MilliCpus(2000)).unwrap();
    scratch.group.make_slots(2).unwrap();
    scratch.group.set_slot_cpus(1, MilliCpus(250)).unwrap();
    let pid = scratch.run("while :; do :; done");
    scratch.group.place_thread(1, pid).unwrap();
    let stat = || scratch.group.slot_cpu_stat(1).unwrap().unwrap();
    wait_for("throttling", || stat().nr_throttled >= 3);
    let stat = stat();
    assert!(stat.usage_us > 0 && stat.throttled_us > 0 && stat.nr_periods >= stat.nr_throttled, "{stat:?}");
    // A quarter of a cpu: 25 ms in a period, with what the kernel lets slip at its edges.
    assert!(stat.usage_us <= (stat.nr_periods + 2) * 50_000, "{stat:?}");
    assert_eq!(scratch.group.slot_cpu_stat(0).unwrap().unwrap().nr_throttled, 0);
}

#[test]
fn quotas_go_up_and_down_in_any_order() {
    let Some(scratch) = real("quota") else { return };
    scratch.cgroups.set_total_cpus(MilliCpus(2000)).unwrap();
    scratch.group.make_slots(3).unwrap();
    for (slot, cpus) in [(0, 10), (1, 2000), (2, 4000), (1, 10), (2, 10), (0, 1500), (0, 10), (1, 500)] {
        scratch.group.set_slot_cpus(slot, MilliCpus(cpus)).unwrap();
    }
    assert!(matches!(scratch.group.set_slot_cpus(3, MilliCpus(10)), Err(Error::NoSlot { slot: 3, .. })));
    assert!(matches!(scratch.group.place_thread(0, 0), Err(Error::BadId { id: 0, .. })));
}

/// The executor's own quota was written as if its slots had none, and the kernel refused that.
#[test]
fn another_life_of_the_agent_goes_on_from_the_quotas_in_force() {
    let Some(scratch) = real("quota-again") else { return };
    scratch.cgroups.set_total_cpus(MilliCpus(2000)).unwrap();
    scratch.group.make_slots(3).unwrap();
    for slot in 0..3 {
        scratch.group.set_slot_cpus(slot, MilliCpus(500)).unwrap();
    }
    let again = scratch.cgroups.attach(scratch.group.id(), 3, &scratch.cgroups.places());
    for (slot, cpus) in [(0, 100), (1, 100), (2, 500), (2, 1500)] {
        again.set_slot_cpus(slot, MilliCpus(cpus)).unwrap();
    }
}

#[test]
fn memory_is_limited_and_a_kill_for_it_is_counted() {
    let Some(mut scratch) = real("memory") else { return };
    let wanted = Bytes::mib(48);
    assert_eq!(scratch.group.set_memory(wanted).unwrap(), Some(wanted));
    assert_eq!(scratch.group.set_memory(Bytes::mib(64)).unwrap(), Some(Bytes::mib(64)));
    assert_eq!(scratch.group.oom_kills().unwrap(), 0);
    // tail keeps its last line, which never ends here.
    scratch.run("read go; exec tail -n 1 /dev/zero");
    assert!(scratch.group.memory_usage().unwrap().is_some());
    drop(scratch.children[0].stdin.take());
    let mut status = None;
    wait_for("the kill", || {
        status = scratch.children[0].try_wait().unwrap();
        status.is_some()
    });
    assert!(scratch.group.oom_kills().unwrap() >= 1, "{status:?}");
    assert!(scratch.group.memory_peak().unwrap().is_none_or(|p| p > Bytes::mib(48)));
}

#[test]
fn a_limit_is_never_set_below_what_is_in_use() {
    let Some(mut scratch) = real("inuse") else { return };
    let held = Bytes::mib(40);
    // tail keeps its last line, which does not end before its input does. It starts when the shell is in the group: a process that was
    // there before would stay outside, and its memory with it.
    scratch.run("read go; (head -c 44040192 /dev/zero; cat) | tail -n 1");
    writeln!(scratch.children[0].stdin.as_ref().unwrap(), "go").unwrap();
    wait_for("the allocation", || scratch.group.memory_usage().unwrap() > Some(held));
    let got = scratch.group.set_memory(Bytes::mib(1)).unwrap().unwrap();
    assert!(got >= held, "{got}");
    assert!(scratch.children[0].try_wait().unwrap().is_none());
}

#[test]
fn threads_are_counted() {
    let Some(mut scratch) = real("pids") else { return };
    scratch.group.set_max_threads(1).unwrap();
    scratch.run("read go; (true) || exit 7; exit 0");
    drop(scratch.children[0].stdin.take());
    assert!(!scratch.children[0].wait().unwrap().success(), "a second process could be started");
}

#[test]
fn leftovers_of_an_earlier_life_are_removed_but_for_those_to_keep() {
    let Some(mut scratch) = real("stale") else { return };
    scratch.group.make_slots(2).unwrap();
    let pid = scratch.run("read forever");
    scratch.group.place_thread(0, pid).unwrap();
    let keep = ExecutorId::new("kept").unwrap();
    let kept = scratch.cgroups.executor(&keep).unwrap();
    let (again, _) = Cgroups::open(Mode::Required, &name("stale")).unwrap();
    assert_eq!(again.cleanup_stale(std::slice::from_ref(&keep), PATIENCE).unwrap(), 1);
    assert!(!scratch.children[0].wait().unwrap().success());
    assert!(scratch.cgroups.close().is_err(), "the kept group is still there");
    kept.remove(PATIENCE).unwrap();
    assert_eq!(again.cleanup_stale(&[], PATIENCE).unwrap(), 0);
}

#[test]
fn without_groups_everything_is_a_no_op_and_said() {
    let (cgroups, layers) = Cgroups::open(Mode::None, "x").unwrap();
    assert!(layers.iter().all(|l| !l.on && l.state().contains("--isolation none")), "{layers:?}");
    let group = cgroups.executor(&ExecutorId::new("e").unwrap()).unwrap();
    group.make_slots(1).unwrap();
    group.add_process(1).unwrap();
    group.place_thread(0, 1).unwrap();
    group.set_slot_cpus(0, MilliCpus(10)).unwrap();
    assert_eq!(group.set_memory(Bytes::mib(1)).unwrap(), None);
    assert_eq!((group.slot_cpu_stat(0).unwrap(), group.exists()), (None, false));
    group.kill().unwrap();
    group.remove(Duration::ZERO).unwrap();
    cgroups.close().unwrap();
}

/// The threaded layout of v2, with whatever controllers the kernel has left for it (perhaps none: the layout is the same).
#[test]
fn v2_slots_are_threaded_children() {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let Some((mount, own)) = detect::own(&mounts, &groups).v2 else {
        eprintln!("NO CGROUP V2 HERE: its layout is not tested");
        return;
    };
    let tree = match v2::open(&mount, &own, &name("v2")) {
        Ok((tree, missing)) => {
            eprintln!("v2 without {missing:?}");
            tree
        }
        Err(e) => {
            eprintln!("CGROUP V2 MAY NOT BE WRITTEN HERE ({e}): its layout is not tested");
            return;
        }
    };
    let dir = tree.agent_dir(Controller::Core).unwrap();
    let cgroups = Cgroups { shared: Arc::new(Shared::new(tree)) };
    let mut scratch = Scratch::make(cgroups);
    scratch.group.make_slots(2).unwrap();
    let pid = scratch.run("while :; do :; done");
    scratch.group.place_thread(1, pid).unwrap();
    let slot = dir.join("e1/slot-1");
    assert_eq!(std::fs::read_to_string(slot.join("cgroup.type")).unwrap().trim(), "threaded");
    assert_eq!(std::fs::read_to_string(slot.join("cgroup.threads")).unwrap().trim(), pid.to_string());
    assert_eq!(scratch.group.processes().unwrap(), [pid]);
    scratch.group.kill().unwrap();
    assert!(!scratch.children[0].wait().unwrap().success());
}

#[test]
fn groups_of_an_earlier_life_are_found_elsewhere() {
    let base = tempfile::tempdir().unwrap();
    let at = |place: &str| base.path().join(place).join("smalti-a");
    std::fs::create_dir_all(at("memory/before").join("e1")).unwrap();
    std::fs::create_dir_all(at("cpu").join("e2")).unwrap();
    let cgroups = |memory: &str| {
        let dirs = [(Controller::Cpu, at("cpu")), (Controller::Memory, at(memory))];
        let tree = Tree::new(Version::V1, dirs.into_iter().collect());
        Cgroups { shared: Arc::new(Shared::new(tree)) }
    };
    let (before, now) = (cgroups("memory/before"), cgroups("memory/now"));
    assert!(now.elsewhere(&before.places(), "b").shared.tree.executors().unwrap().is_empty(), "another agent's");
    assert!(
        now.elsewhere("garbage\nv1 memory\nv3 memory /x/smalti-a\nv1 memory smalti-a", "a")
            .shared
            .tree
            .agent_dir(Controller::Memory)
            .is_none()
    );
    let earlier = now.elsewhere(&before.places(), "a");
    assert_eq!(earlier.shared.tree.executors().unwrap(), [ExecutorId::new("e1").unwrap()]);
    std::fs::remove_dir(at("memory/before").join("e1")).unwrap();
    earlier.close().unwrap();
    assert!(!at("memory/before").exists() && at("cpu").join("e2").exists(), "the groups in use stay");
}

/// A process that wants all of processor 0, in slot 0 of `group`.
fn spin(group: &ExecutorGroup) -> Child {
    let child = Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let mut first = nix::sched::CpuSet::new();
    first.set(0).unwrap();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(pid), &first).unwrap();
    group.add_process(pid).unwrap();
    group.place_thread(0, pid).unwrap();
    child
}

fn used_us(group: &ExecutorGroup) -> u64 {
    group.slot_cpu_stat(0).unwrap().unwrap().usage_us
}

#[test]
fn lent_cpu_time_comes_back_in_proportion_when_its_owner_wants_it() {
    let Some(mut s) = real("lend") else { return };
    let cores = std::thread::available_parallelism().unwrap().get();
    s.cgroups.lend_cpus(MilliCpus(cores as u64 * 1000), cores).unwrap();
    let other = s.cgroups.executor(&ExecutorId::new("e2").unwrap()).unwrap();
    for (group, cpus) in [(&s.group, 200), (&other, 600)] {
        group.make_slots(2).unwrap();
        // A slot that ran something else before and runs nothing now does not count.
        group.set_slot_cpus(1, MilliCpus(1_000)).unwrap();
        group.set_busy(&[1], true).unwrap();
        group.set_slot_cpus(0, MilliCpus(cpus)).unwrap();
        group.set_busy(&[0], true).unwrap();
        group.set_busy(&[1], false).unwrap();
    }
    let (small, large) = (spin(&s.group), spin(&other));
    s.children.extend([small, large]);
    let until = Instant::now() + PATIENCE;
    let wait_for_other = |used: u64| {
        while used_us(&other) < used && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        (used_us(&s.group), used_us(&other))
    };
    // From when both run: the first one was alone while the second was started.
    let (alone, began) = wait_for_other(100_000);
    let (mine, theirs) = wait_for_other(began + 1_500_000);
    let (mine, theirs) = (mine - alone, theirs - began);
    let ratio = theirs as f64 / mine as f64;
    assert!((2.5..3.5).contains(&ratio), "{theirs} us to {mine} us, asked for 3 to 1");
    // Its neighbour ends: nothing holds the small one to its 0.2 of a core.
    other.remove(PATIENCE).unwrap();
    let (began, before) = (Instant::now(), used_us(&s.group));
    while used_us(&s.group) - before < 500_000 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    let stat = s.group.slot_cpu_stat(0).unwrap().unwrap();
    assert_eq!(stat.nr_throttled, 0, "after {:?}", began.elapsed());
}

#[test]
fn the_agents_own_work_lies_beside_the_executors_with_little_weight() {
    let Some(s) = real("work") else { return };
    s.cgroups.set_total_cpus(MilliCpus(2000)).unwrap();
    let work = s.cgroups.beside(MilliCpus(2000)).unwrap();
    let weight = |groups: &Cgroups| {
        let dir = groups.shared.tree().agent_dir(Controller::Cpu).unwrap();
        let file = dir.join(if groups.shared.tree().is_v2() { "cpu.weight" } else { "cpu.shares" });
        std::fs::read_to_string(file).unwrap().trim().parse::<u64>().unwrap()
    };
    assert!(weight(&s.cgroups) >= 16 * weight(&work), "{} to {}", weight(&s.cgroups), weight(&work));
    let thread = std::thread::spawn({
        let work = work.clone();
        move || {
            work.add_own_thread().unwrap();
            std::fs::read_to_string("/proc/thread-self/cgroup").unwrap()
        }
    });
    let groups = thread.join().unwrap();
    assert!(s.cgroups.version() == Some(Version::V2) || groups.contains("-work"), "{groups}");
    // Threads that are still there do not keep it from being removed.
    let (ready, held) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            work.add_own_thread().unwrap();
            ready.wait();
            held.wait();
        });
        ready.wait();
        let closed = work.close();
        held.wait();
        closed.unwrap();
    });
}

#[test]
fn groups_of_an_executor_that_is_over_are_anothers_if_nothing_is_left_in_them() {
    let (cgroups, _) = Cgroups::open(Mode::Auto, &name("again")).unwrap();
    if cgroups.version() != Some(Version::V1) {
        eprintln!("NOT TESTED: groups can be renamed on v1 only");
        return cgroups.close().unwrap();
    }
    cgroups.set_total_cpus(MilliCpus(2000)).unwrap();
    let id = |id: &str| ExecutorId::new(id).unwrap();
    let first = cgroups.executor_of_one_slot(&id("a")).unwrap();
    first.set_slot_cpus(0, MilliCpus(50)).unwrap();
    let run = |script: &str| Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut child = run("read x; i=0; while [ $i -lt 9999 ]; do i=$((i+1)); done");
    first.add_process(child.id().cast_signed()).unwrap();
    assert!(first.hand_on());
    let other = cgroups.executor_of_one_slot(&id("b")).unwrap();
    assert!(first.exists() && cgroups.executors().unwrap() == [id("a"), id("b")], "something lives in the first one's");
    drop(child.stdin.take());
    child.wait().unwrap();
    assert!(first.cpu_usage_us().unwrap() > Some(0));
    let deadline = Instant::now() + PATIENCE;
    let again = loop {
        let again = cgroups.executor_of_one_slot(&id("c")).unwrap();
        if cgroups.executors().unwrap() == [id("b"), id("c")] {
            break again;
        }
        assert!(Instant::now() < deadline, "{:?}", cgroups.executors());
        again.remove(PATIENCE).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!((again.cpu_usage_us().unwrap(), again.slot_cpu_stat(0).unwrap().unwrap().usage_us), (Some(0), 0));
    let cpu = cgroups.shared.tree.executor_dir(Controller::Cpu, &id("c")).unwrap();
    assert_eq!((cpu::quota_in_force(&cpu, false), cpu::quota_in_force(&cpu.join("slot-0"), false)), (None, None));
    again.set_slot_cpus(0, MilliCpus(50)).unwrap();
    assert_eq!(cpu::quota_in_force(&cpu, false), Some(30_000));
    // Of one that was killed for memory, or holds some, nothing is used again: it would be taken for the next one's.
    other.set_memory(Bytes::mib(64)).unwrap();
    let mut greedy = run("read x; exec dd if=/dev/zero of=/dev/null bs=100M count=1 2>/dev/null");
    other.add_process(greedy.id().cast_signed()).unwrap();
    drop(greedy.stdin.take());
    greedy.wait().unwrap();
    assert!(other.oom_kills().unwrap() > 0 && other.hand_on());
    let fresh = cgroups.executor_of_one_slot(&id("d")).unwrap();
    assert_eq!(fresh.oom_kills().unwrap(), 0);
    for group in [again, fresh] {
        group.remove(PATIENCE).unwrap();
    }
    cgroups.close().unwrap();
}
