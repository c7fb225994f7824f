//! Hostile guests that need a writable directory: `files WHAT DIRECTORY`. Each exits with 0 if it was kept within its bounds,
//! and says what it could do otherwise.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Files that no guest may read.
const FORBIDDEN: [&str; 8] = [
    "/etc/passwd",
    "/etc/hostname",
    "/proc/self/environ",
    "/proc/1/root/etc/passwd",
    "/proc/self/maps",
    "/dev/zero",
    "/sys/kernel/uevent_seqnum",
    "/",
];
/// More files than any disk of a test has room for.
const MANY: u32 = 1_000_000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(what), Some(directory)) = (args.first(), args.get(1).map(Path::new)) else {
        eprintln!("usage: files WHAT DIRECTORY");
        std::process::exit(2);
    };
    let result = match what.as_str() {
        "escape" => escape(directory),
        "fill" => fill(directory),
        "sparse" => sparse(directory),
        "many" => many(directory),
        "hold" => hold(directory),
        "count" => count(directory),
        other => Err(format!("unknown {other}")),
    };
    if let Err(why) = result {
        eprintln!("{why}");
        std::process::exit(1);
    }
}

fn text(e: io::Error) -> String {
    e.to_string()
}

/// Reads, links and renames towards everything that lies outside, by every way a path can take.
fn escape(directory: &Path) -> Result<(), String> {
    let mut reached = Vec::new();
    let mut try_read = |path: &Path| {
        let mut byte = [0];
        if File::open(path).and_then(|mut f| f.read(&mut byte)).is_ok() {
            reached.push(path.display().to_string());
        }
    };
    let up = "../".repeat(30);
    for forbidden in FORBIDDEN {
        let inside = forbidden.trim_start_matches('/');
        try_read(Path::new(forbidden));
        try_read(&directory.join(format!("{up}{inside}")));
        try_read(&directory.join(format!("./x/../{up}{inside}")));
        try_read(&directory.join(format!("//{inside}")));
        // Links, made here: absolute, relative, through a directory, through a chain.
        for (name, target) in
            [("absolute", forbidden.to_owned()), ("relative", format!("{up}{inside}")), ("dot", format!("./././{up}{inside}"))]
        {
            let link = directory.join(name);
            let _ = fs::remove_file(&link);
            if symlink(&target, &link).is_ok() {
                try_read(&link);
                try_read(&link.join("passwd"));
                try_read(&link.join("..").join(inside));
            }
        }
        let _ = fs::remove_file(directory.join("chain0"));
        let _ = symlink(&format!("{up}{inside}"), &directory.join("chain0"));
        for i in 1..60 {
            let link = directory.join(format!("chain{i}"));
            let _ = fs::remove_file(&link);
            let _ = symlink(&format!("chain{}", i - 1), &link);
            try_read(&link);
        }
        let hard = directory.join("hard");
        if fs::hard_link(forbidden, &hard).is_ok() {
            try_read(&hard);
        }
        if fs::hard_link(directory.join("chain0"), &hard).is_ok() {
            try_read(&hard);
        }
    }
    // A loop of links, a directory moved while it is a way, and a move to the outside.
    let _ = symlink("loop", &directory.join("loop"));
    try_read(&directory.join("loop"));
    let _ = fs::create_dir_all(directory.join("a/b/c"));
    let _ = symlink("a/b/c", &directory.join("way"));
    let _ = fs::rename(directory.join("a/b"), directory.join("b"));
    try_read(&directory.join(format!("way/{up}etc/passwd")));
    let mut written = Vec::new();
    for outside in ["/escaped", "/tmp/escaped", "/assets/escaped", "/proc/escaped"] {
        let made = File::create(outside).is_ok() || fs::rename(directory.join("b"), outside).is_ok();
        // The guest's top may be the same directory as its disk: what arrives there has not left it.
        if made && !directory.join(outside.trim_start_matches('/')).exists() {
            written.push(outside);
        }
    }
    if directory.join("../escaped").parent().is_some_and(|p| File::create(p.join("escaped")).is_ok()) {
        written.push("../escaped");
    }
    if reached.is_empty() && written.is_empty() { Ok(()) } else { Err(format!("read {reached:?}, wrote {written:?}")) }
}

#[cfg(target_os = "wasi")]
fn symlink(target: &str, link: &Path) -> io::Result<()> {
    #[cfg(target_env = "p1")]
    {
        // The standard library's own is not stable for WASI; the C library's is the same call.
        use std::ffi::CString;
        use std::os::raw::{c_char, c_int};
        #[allow(unsafe_code, reason = "one call of the C library")]
        unsafe extern "C" {
            fn symlink(target: *const c_char, link: *const c_char) -> c_int;
        }
        let text = |s: &str| CString::new(s).map_err(|_| io::Error::from(ErrorKind::InvalidInput));
        let (target, link) = (text(target)?, text(&link.display().to_string())?);
        // SAFETY: both are strings that end in a zero and live until the call returns.
        #[allow(unsafe_code, reason = "see above")]
        let result = unsafe { symlink(target.as_ptr(), link.as_ptr()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
    #[cfg(not(target_env = "p1"))]
    {
        let _ = (target, link);
        Err(ErrorKind::Unsupported.into())
    }
}

#[cfg(not(target_os = "wasi"))]
fn symlink(target: &str, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Writes until there is no room, and says how much there was.
fn fill(directory: &Path) -> Result<(), String> {
    let block = vec![0xa5_u8; 64 << 10];
    let mut file = File::create(directory.join("full")).map_err(text)?;
    let mut bytes = 0_u64;
    let error = loop {
        match file.write(&block) {
            Ok(n) => bytes += n as u64,
            Err(e) => break e,
        }
    };
    println!("{bytes}");
    let last = file.sync_all();
    // Streams of WASI 0.2 carry no code: its C library makes an I/O error of whatever ended one.
    let full = error.kind() == ErrorKind::StorageFull || cfg!(target_env = "p2") && error.to_string().contains("os error 29");
    if full { Ok(()) } else { Err(format!("after {bytes} bytes: {error}; {last:?}")) }
}

/// Files that are long and have nothing in them.
fn sparse(directory: &Path) -> Result<(), String> {
    let path = directory.join("sparse");
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).read(true).open(&path).map_err(text)?;
    for exponent in 30..63 {
        let length = 1_u64 << exponent;
        let grown = file.set_len(length);
        let written = file.seek(SeekFrom::Start(length)).and_then(|_| file.write(b"x"));
        println!("2^{exponent}: {grown:?} {written:?}");
    }
    fs::remove_file(&path).map_err(text)
}

/// Small files until there is no room for another; then lists them.
fn many(directory: &Path) -> Result<(), String> {
    let mut made = 0;
    let error = (0..MANY).find_map(|n| match File::create(directory.join(format!("{n:0200}"))).and_then(|mut f| f.write_all(b"x")) {
        Ok(()) => {
            made += 1;
            None
        }
        Err(e) => Some(e),
    });
    println!("{made}");
    let listed = fs::read_dir(directory).map(Iterator::count);
    match (error, listed) {
        (Some(e), _) if e.kind() == ErrorKind::StorageFull => Ok(()),
        (error, listed) => Err(format!("after {made} files: {error:?}; listed {listed:?}")),
    }
}

/// Opens one file ten thousand times and closes none: ends only by being ended.
fn hold(directory: &Path) -> Result<(), String> {
    let path = directory.join("held");
    fs::write(&path, b"x").map_err(text)?;
    let held: Vec<_> = (0..10_000).map_while(|_| File::open(&path).ok()).collect();
    Err(format!("{} are open", held.len()))
}

/// Writes 3,000,000 bytes and reads them back: for those who count.
fn count(directory: &Path) -> Result<(), String> {
    let path = directory.join("counted");
    let bytes = vec![7_u8; 3_000_000];
    fs::write(&path, &bytes).map_err(text)?;
    if fs::read(&path).map_err(text)? == bytes { Ok(()) } else { Err("other bytes came back".to_owned()) }
}
