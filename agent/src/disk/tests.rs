//! With real file systems, where this machine lets us make some; what it lacks is said.

use super::backend::{Backend, open};
use super::keeper::{Disks, Lent};
use super::mount::GUEST_DIRECTORY;
use super::{BLOCK, Choice, inodes};
use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, renameat, unlinkat};
use smalti_types::{Bytes, FrameworkId};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// The backends that work here.
fn backends(data_dir: &std::path::Path) -> Vec<Arc<dyn Backend>> {
    let mut all = Vec::new();
    for choice in [Choice::Loop, Choice::Tmpfs] {
        match open(choice, data_dir) {
            Ok(Ok(backend)) => all.push(backend),
            Ok(Err(why)) => panic!("{choice:?} was asked for by name: {why}"),
            Err(e) => eprintln!("NOT TESTED HERE: {choice:?}: {e}"),
        }
    }
    all
}

fn create(at: impl AsFd, path: &str) -> std::io::Result<File> {
    Ok(File::from(openat(at, path, OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?))
}

#[test]
fn a_disk_has_the_room_that_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    for backend in backends(dir.path()) {
        for size in [Bytes(4 << 10), Bytes(64 << 10), Bytes::mib(1), Bytes::mib(16), Bytes::mib(200)] {
            let began = Instant::now();
            let disk = backend.make(size).unwrap();
            let first = began.elapsed();
            let began = Instant::now();
            drop(backend.make(size).unwrap());
            eprintln!("{} {size}: made in {first:?}, then in {:?}; room {:?}", backend.name(), began.elapsed(), disk.new_room());
            let room = disk.new_room().blocks * BLOCK;
            assert_eq!(room, size.0 + most_beyond(&*backend), "{size}");
        }
    }
}

/// What fits beyond what was asked for: on ext4 the block for a list of pieces, where none is needed.
fn most_beyond(backend: &dyn Backend) -> u64 {
    if backend.in_memory() { 0 } else { BLOCK }
}

#[test]
fn one_file_of_exactly_the_size_fits_and_no_more_than_a_block_beyond() {
    let dir = tempfile::tempdir().unwrap();
    // Sizes at which an ext4 of the usual layout, or without a spare block, has room for less, too.
    let blocks = [1, 2, 16, 64, 162, 255, 256, 259, 550, 938, 1_617, 1_792, 2_304, 4_096, 10_000];
    for backend in backends(dir.path()) {
        for size in blocks.map(|n| n * BLOCK) {
            for chunk in [500, 4_096, 65_536, 100_000, 1 << 20] {
                let disk = backend.make(Bytes(size)).unwrap();
                let bytes = vec![7; chunk];
                let mut file = create(disk.root(), "disk/f").unwrap();
                let mut left = usize::try_from(size).unwrap();
                while left > 0 {
                    left -= file.write(&bytes[..left.min(chunk)]).unwrap_or_else(|e| panic!("{size}, {chunk}: {left} bytes left: {e}"));
                }
                let mut more = 0;
                let error = loop {
                    match file.write(b"x") {
                        Ok(n) => more += n as u64,
                        Err(e) => break e,
                    }
                    assert!(more <= most_beyond(&*backend), "{}: {more} bytes more than {size}", backend.name());
                };
                assert_eq!(error.raw_os_error(), Some(nix::libc::ENOSPC), "{error}");
            }
        }
    }
}

#[test]
fn the_number_of_files_is_bounded_too() {
    let dir = tempfile::tempdir().unwrap();
    for backend in backends(dir.path()) {
        let size = Bytes::mib(4);
        let disk = backend.make(size).unwrap();
        let mut made = 0;
        let error = loop {
            match create(disk.root(), &format!("disk/{made}")) {
                Ok(_) => made += 1,
                Err(e) => break e,
            }
        };
        assert_eq!(error.raw_os_error(), Some(nix::libc::ENOSPC));
        let most = inodes(size);
        assert!(made <= most + 64 && made + 64 >= most.min(1024), "{} files: {made} of {most}", backend.name());
    }
}

#[test]
fn a_process_in_another_mount_namespace_works_in_it_with_the_descriptor_alone() {
    let dir = tempfile::tempdir().unwrap();
    for backend in backends(dir.path()) {
        let disk = backend.make(Bytes::mib(1)).unwrap();
        let root = disk.descriptor();
        // The shell's stdin is the directory; unshare gives it a mount namespace of its own.
        let script = "cd /proc/self/fd/0 && cd disk && echo hello > f && cat f && ls ../..";
        let output = std::process::Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script])
            .stdin(std::process::Stdio::from(OwnedFd::try_clone(&root).unwrap()))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{output:?}");
        // `..` of its root is its root.
        assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["hello", GUEST_DIRECTORY]);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&dir.path().display().to_string()), "{mounts}");
    }
}

#[test]
fn what_the_last_guest_left_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    for backend in backends(dir.path()) {
        let disk = backend.make(Bytes::mib(1)).unwrap();
        assert!(disk.is_like_new());
        drop(create(disk.root(), "disk/empty").unwrap());
        assert!(!disk.is_like_new());
        unlinkat(disk.root(), "disk/empty", AtFlags::empty()).unwrap();
        assert!(disk.is_like_new(), "{}", backend.name());
        // A directory that was large stays large, until it is replaced.
        for n in 0..500 {
            drop(create(disk.root(), &format!("disk/a-rather-long-name-{n}")).unwrap());
        }
        renameat(disk.root(), "disk", disk.root(), "old").unwrap();
        mkdirat(disk.root(), "disk", Mode::RWXU).unwrap();
        for n in 0..500 {
            unlinkat(disk.root(), format!("old/a-rather-long-name-{n}"), AtFlags::empty()).unwrap();
        }
        assert!(!disk.is_like_new());
        unlinkat(disk.root(), "old", AtFlags::REMOVEDIR).unwrap();
        assert!(disk.is_like_new(), "{}", backend.name());
        unlinkat(disk.root(), "disk", AtFlags::REMOVEDIR).unwrap();
        assert!(!disk.is_like_new());
    }
}

fn inode_of(lent: &Lent) -> (u64, u64) {
    let stat = rustix::fs::fstat(lent.give_to(0, 0).unwrap()).unwrap();
    (stat.st_dev, stat.st_ino)
}

#[test]
fn a_clean_disk_is_used_again_and_a_dirty_one_never() {
    let dir = tempfile::tempdir().unwrap();
    for choice in [Choice::Loop, Choice::Tmpfs] {
        let Ok(disks) = Disks::open(choice, dir.path()).inspect_err(|e| eprintln!("NOT TESTED HERE: {e}")) else { continue };
        disks.set_limit(Bytes::mib(4));
        let framework = FrameworkId::new("F").unwrap();
        let lend = || disks.lend(&framework, Bytes::mib(1), 1).unwrap().remove(0);
        let lent = lend();
        let first = inode_of(&lent);
        drop(lent);
        // It comes back behind our back.
        let deadline = Instant::now() + PATIENCE;
        let mut again = lend();
        while inode_of(&again) != first {
            assert!(Instant::now() < deadline, "it was never used again");
            std::thread::sleep(Duration::from_millis(5));
            again = lend();
        }
        let root = again.give_to(0, 0).unwrap();
        create(&root, "disk/secret").unwrap().write_all(b"of the last guest").unwrap();
        drop((root, again));
        for _ in 0..8 {
            let root = lend().give_to(0, 0).unwrap();
            assert!(openat(&root, "disk/secret", OFlags::RDONLY, Mode::empty()).is_err());
        }
        assert!(disks.lend(&framework, Bytes(100), 1).unwrap_err().contains("too small"));
    }
    let none = Disks::open(Choice::None, dir.path()).unwrap();
    let error = none.lend(&FrameworkId::new("F").unwrap(), Bytes::mib(1), 1).unwrap_err();
    assert!(error.contains("no disk for tasks") && error.contains("--disk-backend none"), "{error}");
}

#[test]
fn a_disk_belongs_to_its_executors_user_alone() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    for backend in backends(dir.path()) {
        let disk = backend.make(Bytes::mib(1)).unwrap();
        disk.give_to(2_000_000_001, 2_000_000_001).unwrap();
        for path in [".", "disk"] {
            let fd = openat(disk.root(), path, OFlags::RDONLY, Mode::empty()).unwrap();
            let meta = File::from(fd).metadata().unwrap();
            assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (2_000_000_001, 2_000_000_001, 0o700), "{path}");
        }
        assert!(disk.is_like_new());
    }
}
