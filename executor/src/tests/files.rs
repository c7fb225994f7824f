//! Disks, and that no path leads out of what a guest was given: guests made of single WASI calls, so that nothing of a C library
//! stands between them and the host.

use super::*;
use std::fmt::Write as _;
use std::path::Path;

/// Text of a module that makes calls one after the other and exits with the number of those that worked.
#[derive(Default)]
struct Calls {
    data: String,
    body: String,
    end: u32,
}

impl Calls {
    /// Puts a text into memory; gives address and length.
    fn text(&mut self, text: &str) -> String {
        let at = 1_000 + self.end;
        let bytes: String = text.bytes().fold(String::new(), |mut all, b| {
            let _ = write!(all, "\\{b:02x}");
            all
        });
        let _ = writeln!(self.data, "(data (i32.const {at}) \"{bytes}\")");
        self.end += u32::try_from(text.len()).expect("short");
        format!("(i32.const {at}) (i32.const {})", text.len())
    }

    fn count(&mut self, call: &str) -> &mut Self {
        let _ = writeln!(self.body, "(local.set $n (i32.add (local.get $n) (i32.eqz {call})))");
        self
    }

    /// Opens for reading, or creates for writing; follows links at the end.
    fn open(&mut self, path: &str, create: bool) -> &mut Self {
        let path = self.text(path);
        let (flags, rights) = if create { (1, 64) } else { (0, 2) };
        let rest = format!("(i32.const {flags}) (i64.const {rights}) (i64.const {rights}) (i32.const 0) (i32.const 40)");
        self.count(&format!("(call $open (i32.const 3) (i32.const 1) {path} {rest})"))
    }

    fn symlink(&mut self, target: &str, path: &str) -> &mut Self {
        let (target, path) = (self.text(target), self.text(path));
        self.count(&format!("(call $symlink {target} (i32.const 3) {path})"))
    }

    fn link(&mut self, from: &str, to: &str) -> &mut Self {
        let (from, to) = (self.text(from), self.text(to));
        self.count(&format!("(call $link (i32.const 3) (i32.const 0) {from} (i32.const 3) {to})"))
    }

    fn rename(&mut self, from: &str, to: &str) -> &mut Self {
        let (from, to) = (self.text(from), self.text(to));
        self.count(&format!("(call $rename (i32.const 3) {from} (i32.const 3) {to})"))
    }

    fn mkdir(&mut self, path: &str) -> &mut Self {
        let path = self.text(path);
        self.count(&format!("(call $mkdir (i32.const 3) {path})"))
    }

    /// From here on only what follows counts.
    fn forget(&mut self) -> &mut Self {
        self.body.push_str("(local.set $n (i32.const 0))\n");
        self
    }

    fn module(&self) -> String {
        format!(
            r#"(module
  (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_symlink" (func $symlink (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_link" (func $link (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_rename" (func $rename (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_create_directory" (func $mkdir (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  {}
  (func (export "_start") (local $n i32) {} (call $exit (local.get $n))))"#,
            self.data, self.body
        )
    }
}

/// The root of a disk as the agent makes it, here an ordinary directory.
fn disk_root(at: &Path) -> OwnedFd {
    std::fs::create_dir_all(at.join("disk")).expect("made");
    File::open(at).expect("opened").into()
}

fn with_disk(module: u32) -> v1::Guest {
    v1::Guest { disk: Some(v1::Disk { guest_path: "/scratch".to_owned(), bytes: 1 << 20 }), ..guest(module) }
}

#[test]
fn no_call_leads_out_of_a_disk() {
    let temp = tempfile::tempdir().expect("a directory");
    std::fs::write(temp.path().join("secret"), "x").expect("written");
    let root = disk_root(&temp.path().join("root"));
    std::fs::write(temp.path().join("root/beside"), "x").expect("written");

    let mut calls = Calls::default();
    // What is allowed within, as a check that the calls are right.
    calls.mkdir("a").mkdir("a/b").open("a/f", true).symlink("a/f", "inside").open("inside", false).link("a/f", "hard").rename("hard", "h");
    let fine = calls.module();
    calls.forget();
    for path in
        ["..", "../beside", "../../secret", "a/../../beside", "a/b/../../../beside", "/etc/passwd", "/", "/proc/self/status", "/dev/null"]
    {
        calls.open(path, false).open(path, true);
    }
    calls.open("../new", true).open("/tmp/smalti-new", true).mkdir("../d").mkdir("/tmp/smalti-d");
    // Links that point out. Making one is harmless; going through one must not work.
    let targets = ["../beside", "../../secret", "..", "./../", "a/../..", "a/b/../../.."];
    for (n, target) in targets.iter().enumerate() {
        let (target, path) = (calls.text(target), calls.text(&format!("l{n}")));
        let _ = writeln!(calls.body, "(drop (call $symlink {target} (i32.const 3) {path}))");
        for path in [format!("l{n}"), format!("l{n}/beside"), format!("l{n}/secret"), format!("l{n}/../beside"), format!("l{n}/etc/passwd")]
        {
            calls.open(&path, false).open(&path, true);
        }
        calls.link(&format!("l{n}/beside"), &format!("x{n}")).rename(&format!("l{n}/beside"), &format!("y{n}")).mkdir(&format!("l{n}/d"));
        calls.rename("h", &format!("l{n}/h"));
    }
    calls.symlink("/etc/passwd", "absolute").symlink("/", "top");
    calls.link("../beside", "x").link("/etc/passwd", "x").rename("../beside", "x").rename("a", "../a").rename("a", "/tmp/smalti-a");
    let evil = calls.module();

    let mut agent = Agent::start(1);
    for (run, text, works) in [(1, fine, 7), (2, evil, 0)] {
        let module = agent.load(&text);
        agent.send_task(v1::StartTask { run, guest: Some(with_disk(module)), ..Default::default() }, &[&root]);
        let outcome = agent.await_outcome(run);
        assert_eq!(outcome.exit_code, Some(works), "{outcome:?}");
    }
    agent.stop();
    let names = |path: &str| {
        let mut all: Vec<_> = std::fs::read_dir(temp.path().join(path)).expect("there").map(|e| e.expect("there").file_name()).collect();
        all.sort();
        all
    };
    assert_eq!(names("."), ["root", "secret"]);
    // Emptied after each guest, and nothing beside it was touched.
    assert_eq!(names("root"), ["beside", "disk"]);
    assert!(names("root/disk").is_empty());
    for path in ["/tmp/smalti-new", "/tmp/smalti-d", "/tmp/smalti-a"] {
        assert!(!Path::new(path).exists(), "{path}");
    }
}

#[test]
fn each_item_finds_its_disk_empty_and_slots_have_one_each() {
    let mut calls = Calls::default();
    // Two things that work only where nobody was before.
    calls.mkdir("d").link("f", "g").open("f", true).open("d/f", true).symlink("f", "l");
    let text = calls.module().replace("(call $exit (local.get $n))", "(if (i32.ne (local.get $n) (i32.const 4)) (then unreachable))");
    let temp = tempfile::tempdir().expect("a directory");
    let mut agent = Agent::start(2);
    let module = agent.load(&text);
    let mut fds = agent.output_files("a1", &["slot-0.out", "slot-0.err", "slot-0.ledger"]);
    fds.push(disk_root(&temp.path().join("0")));
    fds.extend(agent.output_files("a1", &["slot-1.out", "slot-1.err", "slot-1.ledger"]));
    fds.push(disk_root(&temp.path().join("1")));
    agent.send(To::SlotFiles(v1::SlotFiles { run: 1, slots: vec![0, 1], disks: true }), &fds.iter().collect::<Vec<_>>());
    let start = v1::StartArray { run: 1, slots: vec![0, 1], guest: Some(with_disk(module)), total_items: 50, ..Default::default() };
    agent.send(To::StartArray(start), &[]);
    agent.await_started(1);
    let items = vec![v1::ItemRange { first: 0, end: 50 }];
    agent.send(To::Lease(v1::Lease { run: 1, items, report_interval_us: 60_000_000, ..Default::default() }), &[]);
    let mut finished = 0;
    while finished < 50 {
        let From::Report(report) = agent.receive() else { panic!("a report") };
        assert!(report.failed.is_empty(), "{:?}", report.failed[0]);
        finished += report.finished.iter().map(|r| r.end - r.first).sum::<u64>();
    }
    agent.send(To::EndArray(v1::EndArray { run: 1, slots: Vec::new() }), &[]);
    let mut ended = 0;
    while ended < 2 {
        if let From::ArrayEnded(e) = agent.receive() {
            ended += e.slots.len();
        }
    }
    // A part that says it has disks, and brings none.
    let fds = agent.output_files("a2", &["slot-0.out", "slot-0.err", "slot-0.ledger"]);
    agent.send(To::SlotFiles(v1::SlotFiles { run: 2, slots: vec![0], disks: false }), &fds.iter().collect::<Vec<_>>());
    let start = v1::StartArray { run: 2, slots: vec![0], guest: Some(with_disk(module)), total_items: 1, ..Default::default() };
    agent.send(To::StartArray(start), &[]);
    agent.await_started(2);
    agent.send(To::Lease(v1::Lease { run: 2, items: vec![v1::ItemRange { first: 0, end: 1 }], ..Default::default() }), &[]);
    let From::Report(report) = agent.receive() else { panic!("a report") };
    assert_eq!(report.failed.len(), 1);
    agent.send(To::EndArray(v1::EndArray { run: 2, slots: Vec::new() }), &[]);
    assert!(matches!(agent.receive(), From::ArrayEnded(_)));
    agent.stop();
}

#[test]
fn read_only_directories_refuse_every_change() {
    let shared = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(shared.path().join("a")).expect("made");
    std::fs::write(shared.path().join("f"), "content").expect("written");
    let fd = OwnedFd::from(File::open(shared.path()).expect("opened"));
    let mut calls = Calls::default();
    calls
        .open("f", true)
        .open("new", true)
        .mkdir("d")
        .symlink("f", "l")
        .link("f", "g")
        .rename("f", "g")
        .rename("a", "b")
        .open("a/new", true);
    let mut agent = Agent::start(1);
    let module = agent.load(&calls.module());
    let dirs = vec![v1::GuestDir { guest_path: "/data".to_owned(), writable: false }];
    agent.send_task(v1::StartTask { run: 1, guest: Some(v1::Guest { dirs, ..guest(module) }), ..Default::default() }, &[&fd]);
    let outcome = agent.await_outcome(1);
    assert_eq!(outcome.exit_code, Some(0), "{outcome:?}");
    agent.stop();
    assert_eq!(std::fs::read(shared.path().join("f")).expect("there"), b"content");
    assert_eq!(std::fs::read_dir(shared.path()).expect("there").count(), 2);
}
