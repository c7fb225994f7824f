//! What a task can do with its disk, and what it cannot: `smalti run --disk 16MiB scratch.wasm -- VERB …`.
//!
//! Verbs: `list` prints what is in the disk; `keep NAME TEXT` writes a file, by a relative path; `fill` and `files` write until the disk
//! or its number of files is used up, and print how far that was; `need BYTES` fails like a program that cannot do without; `escape` tries
//! to reach something outside and says what it reached; `change PATH` tries to change a file.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[expect(unsafe_code, reason = "the standard library has no stable function for links on WASI")]
mod links {
    use std::ffi::CString;
    use std::io;

    unsafe extern "C" {
        fn symlink(target: *const std::ffi::c_char, path: *const std::ffi::c_char) -> i32;
    }

    /// Makes `path` a symbolic link to `target`.
    pub(crate) fn make(target: &str, path: &str) -> io::Result<()> {
        let (target, path) = (CString::new(target)?, CString::new(path)?);
        // SAFETY: both are texts with a zero at the end that live until the call is over.
        if unsafe { symlink(target.as_ptr(), path.as_ptr()) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let disk = PathBuf::from(std::env::var("SMALTI_SCRATCH").unwrap_or_else(|_| "/scratch".into()));
    let done = match args[..] {
        ["list"] => list(&disk),
        ["keep", name, text] => fs::write(name, text).and_then(|()| list(&disk)),
        ["fill"] => fill(&disk).map(|bytes| println!("{bytes} bytes")),
        ["files"] => files(&disk).map(|files| println!("{files} files")),
        ["need", bytes] => need(&disk, bytes.parse().unwrap_or(0)),
        ["escape"] => {
            escape(&disk);
            Ok(())
        }
        ["change", path] => change(path),
        _ => Err(io::Error::other("no such verb")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("scratch: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Prints each file with its first bytes, sorted; and says where the disk is.
fn list(disk: &Path) -> io::Result<()> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(disk)? {
        let entry = entry?;
        let text = fs::read(entry.path()).map(|b| String::from_utf8_lossy(&b[..b.len().min(32)]).into_owned()).unwrap_or_default();
        lines.push(format!("{} {text}", entry.file_name().to_string_lossy()));
    }
    lines.sort();
    println!("{} of {} bytes: {}", disk.display(), std::env::var("SMALTI_DISK").unwrap_or_default(), lines.join(", "));
    Ok(())
}

/// The C library of WASI 0.2 has one error for all that a stream of a file can say.
const STREAM_FAILED: i32 = 29;

fn is_full(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::StorageFull || cfg!(target_env = "p2") && e.raw_os_error() == Some(STREAM_FAILED)
}

fn fill(disk: &Path) -> io::Result<u64> {
    let mut file = fs::File::create(disk.join("fill"))?;
    let mut written = 0;
    loop {
        match file.write(&[b'x'; 65_536]) {
            Ok(n) => written += n as u64,
            Err(e) if is_full(&e) => return Ok(written),
            Err(e) => return Err(e),
        }
    }
}

fn files(disk: &Path) -> io::Result<u64> {
    let mut made = 0;
    loop {
        match fs::File::create(disk.join(made.to_string())) {
            Ok(_) => made += 1,
            Err(e) if is_full(&e) => return Ok(made),
            Err(e) => return Err(e),
        }
    }
}

fn need(disk: &Path, bytes: usize) -> io::Result<()> {
    let mut file = fs::File::create(disk.join("need"))?;
    for _ in 0..bytes.div_ceil(65_536) {
        file.write_all(&[b'x'; 65_536])?;
    }
    Ok(())
}

/// Paths that could lead out, and what they reached. Exits well whatever it finds: the output is the verdict.
fn escape(disk: &Path) {
    let at = |name: &str| disk.join(name).display().to_string();
    let mut reached = Vec::new();
    let mut tried = 0;
    let mut look = |path: &str| {
        tried += 1;
        // `..` of the disk's own directory, as seen from inside it, may be the disk again: that is no escape.
        let outside = |p: &Path| fs::read_dir(p).is_ok_and(|mut all| all.any(|e| e.is_ok_and(|e| !disk.join(e.file_name()).exists())));
        if fs::read(path).is_ok() || outside(Path::new(path)) {
            reached.push(path.to_owned());
        }
    };
    for up in 1..6 {
        let up = "../".repeat(up);
        for goal in ["etc/passwd", "proc/self/status", "dev/null", "disk", "", "root"] {
            look(&format!("{up}{goal}"));
            look(&at(&format!("{up}{goal}")));
        }
    }
    for path in
        ["/etc/passwd", "/proc/self/environ", "/proc/1/root/etc/passwd", "/dev/zero", "/sys/kernel", "//etc/passwd", "/./../etc/passwd"]
    {
        look(path);
    }
    // Links: absolute, relative, in chains, through a directory, over each other.
    let links = [
        ("absolute", "/etc/passwd"),
        ("up", "../../../../etc/passwd"),
        ("top", "/"),
        ("above", ".."),
        ("chain-1", "above"),
        ("chain-2", "chain-1/.."),
        ("self", "self"),
        ("proc", "/proc/self/root"),
        ("dots", "above/above/above"),
    ];
    for (name, target) in links {
        // Wherever a link may be made, it must not lead anywhere.
        let _ = links::make(target, &at(name));
    }
    for (name, _) in links {
        look(&at(name));
        for goal in ["etc/passwd", "../etc/passwd", "proc/self/status", "disk"] {
            look(&at(&format!("{name}/{goal}")));
        }
    }
    // A directory with a link in it, moved to where the link points elsewhere.
    let deep = disk.join("a/b/c");
    let _ = fs::create_dir_all(&deep);
    let _ = links::make("../../..", &at("a/b/c/out"));
    let _ = fs::rename(&deep, disk.join("moved"));
    look(&at("moved/out"));
    look(&at("moved/out/etc/passwd"));
    // Files made, linked or moved outside.
    let _ = fs::write(disk.join("file"), "x");
    for outside in ["/", "/tmp/", "/assets/", "../", "../../", "../../../tmp/"] {
        for path in [format!("{outside}smalti-escape"), at(&format!("{outside}smalti-escape")), at("above/smalti-escape")] {
            tried += 4;
            let inside = || disk.join("smalti-escape").exists();
            let made = fs::write(&path, "x").is_ok() && !inside();
            let linked = fs::hard_link(disk.join("file"), &path).is_ok() && !inside();
            let moved = fs::rename(disk.join("file"), &path).is_ok() && !inside();
            let taken = fs::hard_link("/etc/passwd", disk.join("taken")).is_ok() || fs::rename("/etc/hostname", disk.join("taken")).is_ok();
            if made || linked || moved || taken {
                reached.push(path);
            }
            let _ = fs::remove_file(disk.join("smalti-escape"));
            let _ = fs::write(disk.join("file"), "x");
        }
    }
    println!("{tried} tries, reached {reached:?}");
}

/// Every way to change a file or its directory; prints those that worked.
fn change(path: &str) -> io::Result<()> {
    let path = Path::new(path);
    let before = fs::read(path)?;
    let mut worked = Vec::new();
    let mut note = |what: &'static str, ok: bool| {
        if ok {
            worked.push(what)
        }
    };
    note("write", fs::write(path, "changed").is_ok());
    note("append", fs::OpenOptions::new().append(true).open(path).is_ok_and(|mut f| f.write_all(b"x").is_ok()));
    note("truncate", fs::OpenOptions::new().write(true).truncate(true).open(path).is_ok());
    note("beside", fs::write(path.with_extension("new"), "x").is_ok());
    note("rename", fs::rename(path, path.with_extension("moved")).is_ok());
    note("link", fs::hard_link(path, path.with_extension("link")).is_ok());
    note("directory", fs::create_dir(path.with_extension("dir")).is_ok());
    note("remove", fs::remove_file(path).is_ok());
    note("content", fs::read(path).ok().as_ref() != Some(&before));
    println!("changed {worked:?}");
    Ok(())
}
