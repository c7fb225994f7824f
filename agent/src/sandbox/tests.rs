//! What one task sees of another, what a later life finds, and what makes room.

use super::*;
use smalti_types::{Bytes, FrameworkId, TaskId};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Duration;

fn key(n: u32) -> TaskKey {
    TaskKey { framework: FrameworkId::new("F").unwrap(), task: TaskId::new(format!("t{n}")).unwrap(), attempt: 0 }
}

fn start(dir: &Path, budget: Bytes) -> (Sandboxes, Collector) {
    Sandboxes::start(dir, budget, &BTreeMap::new()).unwrap()
}

/// A task that prints and ends, or not.
fn run(all: &Sandboxes, key: &TaskKey, out: &[u8], ends: bool) -> Vec<File> {
    all.make(key, Kind::Task, false, false).unwrap();
    let files: Vec<File> = all.begin_task(key).unwrap().iter().map(|fd| File::from(fd.try_clone().unwrap())).collect();
    (&files[0]).write_all(out).unwrap();
    if ends {
        all.ended(key);
    }
    files
}

fn output(all: &Sandboxes, key: &TaskKey, stream: usize) -> Option<String> {
    let output = all.task_output(key, stream).ok()??;
    let end = all.task_output_end(key, stream, &output.file).unwrap();
    let mut bytes = vec![0; usize::try_from(end - output.from).unwrap()];
    output.file.read_exact_at(&mut bytes, output.from).unwrap();
    Some(String::from_utf8(bytes).unwrap())
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir.join("sandboxes/F")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn one_task_after_another_uses_the_same_files_and_sees_its_own_output_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (all, _collector) = start(dir.path(), Bytes::gib(1));
    let mut first = run(&all, &key(1), b"one", true);
    let together = run(&all, &key(2), b"two", false);
    // Of the same time: files of its own.
    run(&all, &key(3), b"three", true);
    (&together[1]).write_all(b"an error").unwrap();
    all.ended(&key(2));
    run(&all, &key(4), b"", true);
    assert_eq!(files(dir.path()), ["seg-0.err", "seg-0.index", "seg-0.out", "seg-1.err", "seg-1.index", "seg-1.out"]);
    for (n, text, err) in [(1, "one", ""), (2, "two", "an error"), (3, "three", ""), (4, "", "")] {
        assert_eq!((output(&all, &key(n), 0).unwrap(), output(&all, &key(n), 1).unwrap()), (text.into(), err.into()), "{n}");
    }
    // What is written after the end is in nobody's output that has ended.
    first.remove(0).write_all(b"late").unwrap();
    assert_eq!(output(&all, &key(1), 0).unwrap(), "one");
    for name in files(dir.path()) {
        assert_eq!(std::fs::metadata(dir.path().join("sandboxes/F").join(&name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    assert!(all.has_ended(&key(4)) && all.find(&key(4)).unwrap() == Kind::Task);
}

#[test]
fn a_task_that_begins_again_has_the_output_of_its_last_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let (all, _collector) = start(dir.path(), Bytes::gib(1));
    run(&all, &key(1), b"lost", false);
    run(&all, &key(1), b"kept", true);
    assert_eq!(output(&all, &key(1), 0).unwrap(), "kept");
    // One that never begins leaves nothing.
    all.make(&key(2), Kind::Task, false, false).unwrap();
    assert!(all.task_output(&key(2), 0).unwrap().is_none());
    all.ended(&key(2));
    assert!(all.find(&key(2)).is_err());
}

#[test]
fn who_runs_alone_shares_files_with_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (all, _collector) = start(dir.path(), Bytes::gib(1));
    run(&all, &key(1), b"one", true);
    all.make(&key(2), Kind::Alone, false, false).unwrap();
    let kept = all.begin_task(&key(2)).unwrap();
    all.ended(&key(2));
    run(&all, &key(3), b"three", true);
    // Its executor should be gone. If anything still has the files, it reaches nobody else's output.
    File::from(kept[0].try_clone().unwrap()).set_len(0).unwrap();
    assert_eq!((output(&all, &key(1), 0).as_deref(), output(&all, &key(3), 0).as_deref()), (Some("one"), Some("three")));
    assert_eq!(files(dir.path()).len(), 6);
}

#[test]
fn many_tasks_at_once_have_files_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let (all, _collector) = start(dir.path(), Bytes::gib(1));
    for round in 0..3 {
        let keys: Vec<_> = (0..300).map(|n| key(round * 1000 + n)).collect();
        let open: Vec<_> = keys.iter().map(|k| run(&all, k, k.task.as_str().as_bytes(), false)).collect();
        drop(open);
        keys.iter().for_each(|k| all.ended(k));
        keys.iter().for_each(|k| assert_eq!(output(&all, k, 0).as_deref(), Some(k.task.as_str())));
    }
    assert!(files(dir.path()).len() < 3 * 3 * 300, "segments are used again");
}

#[test]
fn a_later_life_finds_what_an_earlier_one_left() {
    let dir = tempfile::tempdir().unwrap();
    let (all, _collector) = start(dir.path(), Bytes::gib(1));
    run(&all, &key(1), b"one", true);
    let mut running = run(&all, &key(2), b"tw", false);
    run(&all, &key(3), b"three", true);
    // Laid out by an earlier build: a directory with two files; and one that never began.
    std::fs::create_dir_all(dir.path().join("sandboxes/F/t4.0")).unwrap();
    std::fs::write(dir.path().join("sandboxes/F/t4.0/stdout"), "four").unwrap();
    std::fs::create_dir_all(dir.path().join("sandboxes/F/t5.0/.inputs")).unwrap();
    // The machine's disk was full in the middle of a line.
    let index = dir.path().join("sandboxes/F/seg-1.index");
    let text = std::fs::read_to_string(&index).unwrap();
    std::fs::write(&index, format!("{text}t9.0 1")).unwrap();
    drop(all);

    let attempts = BTreeMap::from([(key(2), (false, false))]);
    let (all, collector) = Sandboxes::start(dir.path(), Bytes::gib(1), &attempts).unwrap();
    running.remove(0).write_all(b"o").unwrap();
    assert!(!all.has_ended(&key(2)) && all.has_ended(&key(1)));
    for (n, text) in [(1, "one"), (2, "two"), (3, "three"), (4, "four")] {
        assert_eq!(output(&all, &key(n), 0).as_deref(), Some(text), "{n}");
    }
    assert!(all.find(&key(5)).is_err() && all.find(&key(9)).is_err());
    // New ones get new files, whatever the old ones still do.
    run(&all, &key(6), b"six", true);
    all.ended(&key(2));
    assert_eq!(output(&all, &key(6), 0).as_deref(), Some("six"));
    assert_eq!(output(&all, &key(2), 0).as_deref(), Some("two"));
    drop(all);
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(collector.run(|_| {}));
    assert!(!dir.path().join("sandboxes/F/t5.0").exists());
}

#[test]
fn slots_files_are_made_once_and_only_for_the_agent_by_name() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (all, _collector) = start(dir.path(), Bytes::gib(1));
    let path = all.make(&key(1), Kind::Part, false, false).unwrap();
    assert_eq!(all.create_slot_outputs(&key(1), 7).unwrap().len(), 3);
    for name in ["slot-7.out", "slot-7.err", "slot-7.ledger"] {
        assert_eq!(std::fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    assert!(all.create_slot_outputs(&key(1), 7).is_err());
    std::fs::write(path.join("slot-7.out"), "kept").unwrap();
    assert_eq!(all.reopen_slot_outputs(&key(1), 7).unwrap().len(), 3);
    assert_eq!(std::fs::read(path.join("slot-7.out")).unwrap(), b"kept");
    std::os::unix::fs::symlink("../../../x", path.join("slot-8.out")).unwrap();
    assert!(all.create_slot_outputs(&key(1), 8).is_err() && all.reopen_slot_outputs(&key(1), 8).is_err());
    assert!(!dir.path().join("x").exists());
}

#[test]
fn nothing_outside_of_the_sandbox_can_be_opened() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), "x").unwrap();
    let (all, _collector) = start(dir.path(), Bytes::gib(1));
    let path = all.make(&key(1), Kind::Part, false, false).unwrap();
    std::fs::write(path.join("stdout"), "hello").unwrap();
    std::os::unix::fs::symlink("../../../secret", path.join("link")).unwrap();
    std::os::unix::fs::symlink("/etc", path.join("etc")).unwrap();
    nix::unistd::mkfifo(&path.join("pipe"), Mode::S_IRUSR).unwrap();
    assert!(all.open(&key(1), "stdout", false).is_ok());
    assert!(all.open(&key(1), "/stdout", false).is_ok());
    assert!(all.open(&key(1), "", true).is_ok());
    for bad in ["../../../secret", "link", "etc/passwd", "pipe", ".", "../t1.0/stdout", "no", "a\0b"] {
        assert!(all.open(&key(1), bad, false).is_err(), "{bad:?}");
    }
    assert!(matches!(all.find(&key(2)), Err(Error::Gone(_))));
}

#[tokio::test]
async fn a_flood_of_outputs_takes_its_own_frameworks_room() {
    let dir = tempfile::tempdir().unwrap();
    let (all, collector) = start(dir.path(), Bytes(8 << 20));
    let quiet = TaskKey { framework: FrameworkId::new("quiet").unwrap(), ..key(0) };
    run(&all, &quiet, &vec![b'q'; 2_000_000], true);
    for n in 1..20 {
        run(&all, &key(n), &vec![b'x'; 1_200_000], true);
    }
    let shared = all.shared.clone();
    drop(all);
    collector.run(|_| {}).await;
    let left: Vec<_> = shared.lock().live.keys().cloned().collect();
    assert!(left.contains(&quiet), "{left:?}");
    assert_eq!(left.len(), 6, "{left:?}");
}

#[tokio::test]
async fn the_oldest_ended_outputs_make_room() {
    let dir = tempfile::tempdir().unwrap();
    let (all, collector) = start(dir.path(), Bytes(2 << 20));
    for n in 0..4 {
        let path = all.make(&key(n), Kind::Part, false, false).unwrap();
        std::fs::write(path.join("slot-0.out"), vec![b'x'; 900_000]).unwrap();
    }
    // Larger than a segment may be: each has its own.
    for n in 4..7 {
        run(&all, &key(n), &vec![b'x'; 1_200_000], n != 6);
    }
    // An input that is still in the cache, of an attempt that keeps its outputs.
    let kept = all.task_directory(&key(3)).join(LAID_OUT[0]);
    std::fs::create_dir(&kept).unwrap();
    std::fs::write(dir.path().join("cached"), vec![b'x'; 200_000]).unwrap();
    std::fs::hard_link(dir.path().join("cached"), kept.join("in")).unwrap();
    for n in [1, 2, 3] {
        all.ended(&key(n));
    }
    let shared = all.shared.clone();
    drop(all);
    collector.run(|_| {}).await;
    let left: Vec<_> = shared.lock().live.keys().cloned().collect();
    assert_eq!(left, [key(0), key(2), key(3), key(6)]);
    assert!(!kept.exists() && dir.path().join("cached").exists());
    assert!(!dir.path().join("sandboxes/F/t1.0").exists() && dir.path().join("sandboxes/F/t0.0").exists());
    assert!(!dir.path().join("sandboxes/F/seg-1.out").exists() && dir.path().join("sandboxes/F/seg-2.out").exists());
}

/// Looks at what ended, at this time, with so much free.
fn look(collector: &mut Collector, kept: &mut super::collect::Kept, now: SystemTime, free: u64) -> u64 {
    let mut batch = std::mem::take(&mut collector.over);
    while let Ok(over) = collector.inbox.try_recv() {
        batch.push(over);
    }
    kept.step(&collector.shared.clone(), batch, collector.limits, now, Some(&|| free))
}

fn live(all: &Sandboxes) -> Vec<u32> {
    all.shared.lock().live.keys().map(|key| key.task.as_str()[1..].parse().unwrap()).collect()
}

const DAY: Duration = Duration::from_secs(86_400);

fn limits(reserve: u64) -> Limits {
    Limits { budget: Bytes::gib(1), age: DAY, reserve: Bytes(reserve), grace: Duration::ZERO }
}

#[test]
fn outputs_go_after_their_age_also_those_of_an_earlier_life_and_never_those_of_running_tasks() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let (all, mut collector) = Sandboxes::start(dir.path(), limits(0), &BTreeMap::new()).unwrap();
    let mut kept = super::collect::Kept::default();
    all.make(&key(1), Kind::Part, false, false).unwrap();
    all.make(&key(2), Kind::Part, false, false).unwrap();
    // Written long before its end.
    for n in [1, 2] {
        all.create_slot_outputs(&key(n), 0).unwrap();
    }
    all.ended(&key(1));
    run(&all, &key(3), b"three", true);
    run(&all, &key(4), b"four", false);
    look(&mut collector, &mut kept, now + DAY / 2, 0);
    assert_eq!(live(&all), [1, 2, 3, 4]);
    // Task 3's segment was taken over by task 4, or is retired: whichever, task 4 runs.
    look(&mut collector, &mut kept, now + 2 * DAY, 0);
    assert!(live(&all).contains(&2) && live(&all).contains(&4) && !live(&all).contains(&1), "{:?}", live(&all));
    all.ended(&key(4));
    look(&mut collector, &mut kept, now + 2 * DAY, 0);
    all.ended(&key(2));
    look(&mut collector, &mut kept, now + DAY / 2, 0);
    drop(all);
    // The times of what is left say when it ended.
    let (all, mut collector) = Sandboxes::start(dir.path(), limits(0), &BTreeMap::new()).unwrap();
    let mut kept = super::collect::Kept::default();
    look(&mut collector, &mut kept, now + DAY - DAY / 4, 0);
    assert!(live(&all).contains(&2), "{:?}", live(&all));
    look(&mut collector, &mut kept, now + DAY + DAY / 4, 0);
    assert_eq!(live(&all), Vec::<u32>::new());
    assert_eq!(files(dir.path()), Vec::<String>::new());
}

#[test]
fn on_a_full_disk_the_oldest_of_all_go_until_there_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let (all, mut collector) = Sandboxes::start(dir.path(), Limits { grace: DAY / 4, ..limits(4 << 20) }, &BTreeMap::new()).unwrap();
    let mut kept = super::collect::Kept::default();
    let began = SystemTime::now();
    for n in 1..=6 {
        // Two frameworks' in turn.
        let whose = FrameworkId::new(if n % 2 == 0 { "A" } else { "B" }).unwrap();
        let key = TaskKey { framework: whose, ..key(n) };
        let path = all.make(&key, Kind::Part, false, false).unwrap();
        std::fs::write(path.join("slot-0.out"), vec![b'x'; 1 << 20]).unwrap();
        if n != 1 {
            all.ended(&key);
        }
    }
    run(&all, &key(7), b"idle", true);
    let sorted = |all: &Sandboxes| {
        let mut live = live(all);
        live.sort_unstable();
        live
    };
    assert_eq!(look(&mut collector, &mut kept, began + DAY / 2, 4 << 20), 0);
    assert_eq!(sorted(&all), [1, 2, 3, 4, 5, 6, 7], "there is enough");
    assert!(look(&mut collector, &mut kept, began + DAY / 8, 0) > 0);
    assert_eq!(sorted(&all), [1, 2, 3, 4, 5, 6, 7], "somebody may be about to read them");
    // Two MiB are missing until there is a quarter more than the reserve.
    assert_eq!(look(&mut collector, &mut kept, began + DAY / 2, 3 << 20), 0);
    assert_eq!(sorted(&all), [1, 4, 5, 6, 7]);
    let missing = look(&mut collector, &mut kept, began + DAY / 2, 0);
    assert_eq!(sorted(&all), [1], "what runs stays");
    assert!(missing > 0, "the rest is for others to give");
}

#[test]
fn files_in_which_a_task_of_class_process_wrote_nothing_are_anothers_when_its_executor_is_dead() {
    let dir = tempfile::tempdir().unwrap();
    let (all, _collector) = start(dir.path(), Bytes::gib(1));
    let begin = |n| {
        all.make(&key(n), Kind::Alone, false, false).unwrap();
        let files: Vec<_> = all.begin_task(&key(n)).unwrap().iter().map(|fd| File::from(fd.try_clone().unwrap())).collect();
        all.has_executor(&key(n));
        files
    };
    let segments = || files(dir.path()).iter().filter(|name| name.ends_with(".index")).count();
    let held = begin(1);
    all.ended(&key(1));
    // Its executor lives: it could still write.
    begin(2);
    assert_eq!(segments(), 2);
    all.executor_is_gone(&key(1));
    (&begin(3)[0]).write_all(b"three").unwrap();
    assert_eq!(segments(), 2);
    all.ended(&key(3));
    all.executor_is_gone(&key(3));
    // The executor died before its task's end was known, and wrote after that was said; neither are its files another's.
    all.executor_is_gone(&key(2));
    all.ended(&key(2));
    let late = begin(4);
    all.ended(&key(4));
    (&late[1]).write_all(b"late").unwrap();
    all.executor_is_gone(&key(4));
    begin(5);
    assert_eq!(segments(), 3, "that of the third has bytes, that of the second was the fourth's, which wrote late");
    for (n, text) in [(1, ""), (2, ""), (3, "three"), (4, ""), (5, "")] {
        assert_eq!((output(&all, &key(n), 0).as_deref(), output(&all, &key(n), 1).as_deref()), (Some(text), Some("")), "{n}");
    }
    drop(held);
    let (again, _collector) = start(dir.path(), Bytes::gib(1));
    assert_eq!((output(&again, &key(1), 0).as_deref(), output(&again, &key(3), 0).as_deref()), (Some(""), Some("three")));
}
