//! A slot's disk in directories that stand for mounts: seeding, emptying, what the guest is told about its limit.

use super::*;
use smalti_executor_protocol::v1::{Disk, GuestDir};
use std::fs;
use std::path::Path;

fn directory(path: &Path) -> OwnedFd {
    fs::File::open(path).expect("opened").into()
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).expect("a directory").map(|e| e.expect("there").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

#[test]
fn trees_are_removed_however_deep_and_links_are_not_followed() {
    let temp = tempfile::tempdir().expect("a directory");
    let outside = temp.path().join("outside");
    fs::create_dir(&outside).expect("made");
    fs::write(outside.join("keep"), "x").expect("written");
    let root = temp.path().join("root");
    fs::create_dir_all(root.join("disk/a/b/c")).expect("made");
    std::os::unix::fs::symlink(&outside, root.join("disk/a/link")).expect("made");
    fs::hard_link(outside.join("keep"), root.join("disk/hard")).expect("made");
    for n in 0..3_000 {
        fs::write(root.join(format!("disk/a/b/{n}")), "").expect("written");
    }
    // Deeper than a path, a stack or the open files of a process.
    let mut at = directory(&root.join("disk"));
    for _ in 0..10_000 {
        mkdirat(&at, "d", Mode::RWXU).expect("made");
        at = open_directory(&at, "d").expect("opened");
    }
    drop(at);
    tree::remove(directory(&root), "disk").expect("removed");
    assert!(names(&root).is_empty(), "{:?}", names(&root));
    assert_eq!(names(&outside), ["keep"]);
}

#[test]
fn read_only_files_below_the_disk_are_copied_and_come_back_for_the_next_guest() {
    let temp = tempfile::tempdir().expect("a directory");
    let (root, source) = (temp.path().join("root"), temp.path().join("source"));
    fs::create_dir_all(root.join("disk")).expect("made");
    fs::create_dir_all(source.join("sub")).expect("made");
    fs::write(source.join("sub/f"), vec![b'a'; 100_000]).expect("written");
    fs::write(source.join("g"), "asset").expect("written");
    let dirs = vec![GuestDir { guest_path: "/scratch/in/deep".to_owned(), writable: false }];
    let disk = Disk { guest_path: "/scratch".to_owned(), bytes: 1 << 20 };
    let view = View::new(dirs, Some(disk), vec![directory(&source)]).expect("a view");
    let scratch = Scratch::new(directory(&root)).expect("a disk");
    for _ in 0..2 {
        scratch.open(&view).expect("opened");
        let copy = root.join("disk/in/deep");
        assert_eq!(fs::read(copy.join("sub/f")).expect("there"), vec![b'a'; 100_000]);
        // As large as before, and of another content.
        fs::write(copy.join("g"), "ASSET").expect("written");
        scratch.clear(&view);
        assert_eq!(names(&root), ["disk"]);
        assert!(names(&root.join("disk")).is_empty());
    }
    assert_eq!(fs::read(source.join("g")).expect("there"), b"asset");
}

#[test]
fn a_disk_that_nobody_touched_is_not_made_again() {
    let temp = tempfile::tempdir().expect("a directory");
    fs::create_dir(temp.path().join("disk")).expect("made");
    let view = View::new(Vec::new(), Some(Disk { guest_path: "/scratch".to_owned(), bytes: 1 << 20 }), Vec::new()).expect("a view");
    let scratch = Scratch::new(directory(temp.path())).expect("a disk");
    let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(temp.path().join("disk")).expect("there"));
    let first = inode();
    scratch.open(&view).expect("opened");
    fs::write(temp.path().join("disk/x"), "x").expect("written");
    fs::remove_file(temp.path().join("disk/x")).expect("removed");
    scratch.clear(&view);
    assert_ne!(inode(), first, "even a file that is gone again has left a time behind");
}
