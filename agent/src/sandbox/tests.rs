//! Directories of tasks through their life: made, read, used again, removed.

use super::collector::BLOCK;
use super::*;

fn key(n: u32) -> TaskKey {
    TaskKey { framework: FrameworkId::new("F").unwrap(), task: TaskId::new(format!("t{n}")).unwrap(), attempt: 0 }
}

#[test]
fn outputs_are_made_once_and_only_for_the_agent_by_name() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (all, _collector) = Sandboxes::start(dir.path(), Bytes::gib(1), &BTreeMap::new()).unwrap();
    assert!(all.create_task_outputs(&key(1)).is_err(), "there is no directory yet");
    let path = all.make(&key(1), Kind::Single, false).unwrap();
    assert_eq!(all.create_task_outputs(&key(1)).unwrap().len(), 2);
    assert!(all.create_task_outputs(&key(1)).is_err());
    assert_eq!(all.create_slot_outputs(&key(1), 7).unwrap().len(), 3);
    for name in ["stdout", "stderr", "slot-7.out", "slot-7.err", "slot-7.ledger"] {
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
    let (all, _collector) = Sandboxes::start(dir.path(), Bytes::gib(1), &BTreeMap::new()).unwrap();
    let path = all.make(&key(1), Kind::Single, false).unwrap();
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

/// Ends tasks and waits until the collector has seen them; gives what is known then.
async fn collected(all: Sandboxes, collector: impl Future<Output = ()>, keys: &[TaskKey]) -> Arc<Mutex<State>> {
    keys.iter().for_each(|key| all.ended(key));
    let state = all.state.clone();
    drop(all);
    collector.await;
    state
}

#[tokio::test]
async fn what_a_task_left_empty_is_used_again_by_its_framework_only() {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let inode = |key: &TaskKey, name: &str| std::fs::metadata(dir.path().join("sandboxes").join(relative(key)).join(name)).unwrap().ino();
    let (all, collector) = Sandboxes::start(dir.path(), Bytes::gib(1), &BTreeMap::new()).unwrap();
    let other = TaskKey { framework: FrameworkId::new("G").unwrap(), ..key(1) };
    let running = tokio::spawn(collector);
    // A task that writes nothing, one that writes, one that runs alone, and one that is being read.
    let mut kept: Option<OwnedFd> = None;
    for (n, kind) in [(1, Kind::Single), (2, Kind::Single), (3, Kind::Alone), (4, Kind::Single)] {
        all.make(&key(n), kind, false).unwrap();
        let mut outputs = all.create_task_outputs(&key(n)).unwrap();
        match n {
            1 => kept = outputs.pop(),
            2 => File::from(outputs.remove(0)).write_all(b"x").unwrap(),
            _ => {}
        }
    }
    let before = (inode(&key(1), "stdout"), inode(&key(1), "stderr"));
    let reader = all.find(&key(4)).unwrap();
    (1..=4).for_each(|n| all.ended(&key(n)));
    while lock(&all.state).ended.get(&key(1).framework).is_none_or(|theirs| theirs.order.len() < 4) {
        tokio::task::yield_now().await;
    }
    let empty: Vec<bool> = (1..=4).map(|n| all.find(&key(n)).unwrap().empty).collect();
    assert_eq!(empty, [true, false, false, false]);
    assert!(all.open(&key(1), "stdout", false).is_err() && all.open(&key(4), "stdout", false).is_ok());
    drop(reader);
    // Who kept a descriptor may write; the next task's output begins empty all the same.
    File::from(kept.unwrap()).write_all(b"late").unwrap();
    all.make(&other, Kind::Single, false).unwrap();
    assert_eq!(all.create_task_outputs(&other).unwrap().len(), 2);
    all.make(&key(5), Kind::Single, false).unwrap();
    assert_eq!(all.create_task_outputs(&key(5)).unwrap().len(), 2);
    assert!(all.create_task_outputs(&key(5)).is_err(), "once");
    assert_eq!((inode(&key(5), "stdout"), inode(&key(5), "stderr")), before);
    assert!(inode(&other, "stdout") != before.0);
    assert_eq!(std::fs::read(all.task_directory(&key(5)).join("stderr")).unwrap(), b"");
    // The same attempt once more.
    all.make(&key(1), Kind::Single, false).unwrap();
    assert_eq!(all.create_task_outputs(&key(1)).unwrap().len(), 2);
    drop(all);
    running.await.unwrap();
}

#[tokio::test]
async fn after_a_restart_what_was_nothing_still_is() {
    let dir = tempfile::tempdir().unwrap();
    let (all, collector) = Sandboxes::start(dir.path(), Bytes::gib(1), &BTreeMap::new()).unwrap();
    for n in 1..=2 {
        all.make(&key(n), Kind::Single, false).unwrap();
        all.create_task_outputs(&key(n)).unwrap();
    }
    collected(all, collector, &[key(1), key(2)]).await;
    let (all, collector) = Sandboxes::start(dir.path(), Bytes(0), &BTreeMap::new()).unwrap();
    assert!([1, 2].iter().all(|n| all.find(&key(*n)).is_ok_and(|found| found.empty && *found.ended.borrow())));
    let state = collected(all, collector, &[]).await;
    assert!(lock(&state).live.is_empty());
    let left: Vec<_> = std::fs::read_dir(dir.path().join("sandboxes/F")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [".nothing"]);
}

#[tokio::test]
async fn a_flood_takes_its_own_room_and_uses_it_again() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let (all, collector) = Sandboxes::start(dir.path(), Bytes(40 * BLOCK), &BTreeMap::new()).unwrap();
    let collector = tokio::spawn(collector);
    let victim = TaskKey { framework: FrameworkId::new("V").unwrap(), ..key(0) };
    let mut inodes = std::collections::BTreeSet::new();
    for key in std::iter::once(victim.clone()).chain((1..=100).map(key)) {
        let path = all.make(&key, Kind::Single, false).unwrap();
        drop(all.create_task_outputs(&key).unwrap());
        assert_eq!(std::fs::read(path.join("stdout")).unwrap(), b"", "{key}");
        std::fs::write(path.join("stdout"), "something").unwrap();
        inodes.insert(std::fs::metadata(path.join("stdout")).unwrap().ino());
        all.ended(&key);
        let counted = |state: &State| state.ended.values().any(|theirs| theirs.order.iter().any(|(k, _)| *k == key));
        while !counted(&lock(&all.state)) || lock(&all.state).total > 40 * BLOCK {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(std::fs::read(all.task_directory(&victim).join("stdout")).unwrap(), b"something");
    assert!(all.find(&key(100)).is_ok() && matches!(all.find(&key(1)), Err(Error::Gone(_))));
    assert!(inodes.len() <= 20, "{} files were made", inodes.len());
    drop(all);
    collector.await.unwrap();
}

#[tokio::test]
async fn the_oldest_ended_sandboxes_make_room() {
    let dir = tempfile::tempdir().unwrap();
    let (all, collector) = Sandboxes::start(dir.path(), Bytes(100_000), &BTreeMap::new()).unwrap();
    for n in 0..4 {
        let path = all.make(&key(n), Kind::Single, false).unwrap();
        std::fs::write(path.join("stdout"), vec![b'x'; 40_000]).unwrap();
    }
    // An input that is still in the cache, of a task that keeps its outputs.
    let kept = all.task_directory(&key(3)).join(LAID_OUT[0]);
    std::fs::create_dir(&kept).unwrap();
    std::fs::write(dir.path().join("cached"), vec![b'x'; 200_000]).unwrap();
    std::fs::hard_link(dir.path().join("cached"), kept.join("in")).unwrap();
    let state = collected(all, collector, &[key(1), key(2), key(3)]).await;
    let left: Vec<_> = lock(&state).live.keys().cloned().collect();
    assert_eq!(left, [key(0), key(2), key(3)]);
    assert!(!kept.exists() && dir.path().join("cached").exists());
    assert!(!dir.path().join("sandboxes/F/t1.0").exists() && dir.path().join("sandboxes/F/t0.0").exists());
}
