//! Bad input gives one clear error, the documented exit code, and nothing else stops.

use crate::{Result, cluster, guest, one_agent};
use smalti_tests::{AgentConfig, Cluster, Config, Finished, Paths};
use std::io::{Read, Write};
use std::process::Command;
use std::time::Duration;

/// Runs a file with `content` as its bundle.
fn run_bytes(c: &Cluster, name: &str, content: &[u8]) -> Result<Finished> {
    let path = c.dir().join(name);
    std::fs::write(&path, content)?;
    c.smalti(&["run", &path.display().to_string()])
}

fn one_clear_error(done: &Finished, code: i32, words: &[&str]) {
    assert_eq!(done.code, code, "{}", done.stderr);
    for word in words {
        assert!(done.stderr.to_lowercase().contains(&word.to_lowercase()), "no `{word}` in: {}", done.stderr);
    }
    assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
}

#[test]
fn bundles_that_are_none() -> Result {
    let c = cluster()?;
    let hello = std::fs::read(c.paths.guest("hello")?)?;
    one_clear_error(&run_bytes(&c, "text.wasm", b"this is not wasm at all")?, 126, &["text.wasm"]);
    one_clear_error(&run_bytes(&c, "truncated.wasm", &hello[..hello.len() / 2])?, 126, &["invalid"]);
    one_clear_error(&run_bytes(&c, "empty.wasm", b"")?, 126, &["empty"]);
    let import = br#"(module (import "env" "launch_missiles" (func)) (memory (export "memory") 1) (func (export "_start")))"#;
    one_clear_error(&run_bytes(&c, "import.wat", import)?, 126, &["launch_missiles"]);
    let wasi_import = br#"(module (import "wasi_snapshot_preview1" "no_such_call" (func)) (func (export "_start")))"#;
    one_clear_error(&run_bytes(&c, "import2.wat", wasi_import)?, 126, &["no_such_call"]);
    one_clear_error(&run_bytes(&c, "nostart.wat", b"(module (func (export \"main\")))")?, 127, &["_start"]);
    one_clear_error(&run_bytes(&c, "bad.wat", b"(module (func (export \"_start\") (i32.add)))")?, 126, &[]);
    one_clear_error(&c.smalti(&["run", "/no/such/file.wasm"])?, 127, &["/no/such/file.wasm"]);
    one_clear_error(&c.smalti(&["run", "/tmp"])?, 127, &["directory"]);
    // The cluster still works.
    assert_eq!(c.smalti(&["run", &guest(&c, "hello")?])?.code, 0);
    Ok(())
}

#[test]
fn archives_that_are_bad() -> Result {
    let c = one_agent("1")?;
    let empty = tar::Builder::new(Vec::new()).into_inner()?;
    one_clear_error(&run_bytes(&c, "empty.tar", &empty)?, 126, &["archive"]);
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    let name = b"../../escaped.wasm";
    header.as_gnu_mut().expect("gnu header").name[..name.len()].copy_from_slice(name);
    header.set_size(4);
    header.set_mode(0o644);
    header.set_cksum();
    archive.append(&header, &b"\0asm"[..])?;
    one_clear_error(&run_bytes(&c, "dotdot.tar", &archive.into_inner()?)?, 126, &[".."]);
    Ok(())
}

#[test]
fn digests_that_do_not_match() -> Result {
    let c = one_agent("1")?;
    let origin = std::net::TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/app.wasm", origin.local_addr()?);
    std::thread::spawn(move || {
        for mut stream in origin.incoming().map_while(|s| s.ok()) {
            let mut buffer = [0; 1024];
            let _ = stream.read(&mut buffer);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\nconnection: close\r\n\r\n\0asm\x01\0\0\0");
        }
    });
    let wrong = "1".repeat(64);
    one_clear_error(&c.smalti(&["run", &format!("{url}#blake3={wrong}")])?, 126, &[&wrong, "blake3:"]);
    // That is found at submission, where what is not pinned by BLAKE3 is resolved.
    one_clear_error(&c.smalti(&["run", &format!("{url}?token=hush#sha256={wrong}")])?, 127, &[&wrong, "sha256:"]);
    one_clear_error(&c.smalti(&["run", &format!("{url}#sha256=zz")])?, 127, &["zz", "64 hexadecimal digits"]);
    assert_eq!(c.smalti(&["bundle", "inspect", &format!("{url}#sha256={wrong}")])?.code, 127);
    assert!(c.ok(&["bundle", "inspect", &url])?.contains("module"));
    for process in std::iter::once(&c.master).chain(&c.scheduler).chain(&c.agents) {
        assert!(!process.log().contains("hush"), "no log has what may be secret");
    }
    one_clear_error(&c.smalti(&["run", &format!("blake3:{wrong}")])?, 127, &[&wrong]);
    one_clear_error(&c.smalti(&["run", "blake3:xyz"])?, 127, &["xyz"]);
    Ok(())
}

#[test]
fn places_that_are_none_or_not_for_us() -> Result {
    let c = one_agent("1")?;
    for (uri, says) in [
        ("gopher://h/x.wasm", "gopher"),
        ("s3://bucket", "s3://bucket/key"),
        ("oci://registry", "oci://registry/repository"),
        ("http://169.254.169.254/latest/meta-data/", "metadata"),
        ("http://[::ffff:10.0.0.1]/x.wasm", "private"),
        ("file:///etc", "directory"),
        ("file:///no/such \"file's\" \u{fc}.wasm", "no such file"),
    ] {
        one_clear_error(&c.smalti(&["run", uri])?, 127, &[says]);
    }
    // The cluster's own services are nobody's origin, on loopback or not.
    let master = format!("http://{}/v1/bundles/{}", c.address, "1".repeat(64));
    one_clear_error(&c.smalti(&["run", &master])?, 127, &["service of the cluster"]);
    Ok(())
}

#[test]
fn requests_that_make_no_sense() -> Result {
    let c = one_agent("2")?;
    let hello = guest(&c, "hello")?;
    for bad in ["0", "-1", "NaN", "0.001", "lots", "inf"] {
        let done = c.smalti(&["run", &format!("--cpus={bad}"), &hello])?;
        assert!(done.code == 125, "--cpus {bad}: {} {}", done.code, done.stderr);
        assert!(done.stderr.contains("cpus"), "--cpus {bad}: {}", done.stderr);
    }
    for bad in ["0", "-1MiB", "1XB"] {
        let done = c.smalti(&["run", &format!("--mem={bad}"), &hello])?;
        assert!(done.code == 125, "--mem {bad}: {} {}", done.code, done.stderr);
    }
    one_clear_error(&c.smalti(&["run", "--cpus", "64", &hello])?, 125, &["cpus", "64", "2"]);
    one_clear_error(&c.smalti(&["run", "--mem", "1TiB", &hello])?, 125, &["mem"]);
    assert_eq!(c.smalti(&["run", &hello])?.code, 0);
    Ok(())
}

#[test]
fn an_input_that_vanishes_before_its_map_begins() -> Result {
    let flags = vec!["--file-root".to_owned(), "/".to_owned()];
    let agent = AgentConfig { cpus: "1".into(), flags, ..AgentConfig::default() };
    let c = Cluster::start(Config { agents: vec![agent], ..Config::default() })?;
    let input = c.dir().join("soon-gone.txt");
    std::fs::write(&input, "some words\n")?;
    let filler = c.ok(&["submit", "--cpus", "1", &guest(&c, "misbehave")?, "--", "sleep", "3600000"])?;
    crate::eventually("the filler runs", || Ok(c.json(&["jobs"])?[0]["state"] == "RUNNING"))?;
    let uri = format!("file://{}", input.display());
    let job = c.ok(&["submit", "--cpus", "1", "--inputs", &uri, &guest(&c, "wordcount")?])?;
    std::fs::remove_file(&input)?;
    c.ok(&["kill", "--grace", "0s", filler.trim()])?;
    one_clear_error(&c.smalti(&["wait", job.trim()])?, 125, &["INPUT_FAILED", "soon-gone.txt"]);
    Ok(())
}

fn smalti(args: &[&str]) -> Result<Finished> {
    let mut c = Command::new(Paths::find()?.smalti());
    c.args(args);
    Finished::of(c, b"", Duration::from_secs(60))
}

#[test]
fn a_master_that_is_not_there() -> Result {
    let nobody = smalti_test_ports::take_one();
    let free = nobody.address().to_string();
    for args in [&["run", "--master", &free, "x.wat"][..], &["agents", "--master", &free], &["jobs", "--master", &free]] {
        let path = std::env::temp_dir().join(format!("smalti-{}-x.wat", std::process::id()));
        std::fs::write(&path, "(module (func (export \"_start\")))")?;
        let path_text = path.display().to_string();
        let args: Vec<&str> = args.iter().map(|a| if *a == "x.wat" { path_text.as_str() } else { a }).collect();
        one_clear_error(&smalti(&args)?, 125, &[&free]);
        std::fs::remove_file(&path)?;
    }
    Ok(())
}

#[test]
fn addresses_and_directories_that_cannot_be_used() -> Result {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("m").display().to_string();
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = taken.local_addr()?.to_string();
    let done = smalti(&["master", "--listen", &taken, "--data-dir", &data])?;
    one_clear_error(&done, 125, &[&taken, "in use"]);
    let done = smalti(&["master", "--listen", "0.0.0.0:0", "--data-dir", &data])?;
    one_clear_error(&done, 125, &["loopback", "--insecure-listen"]);
    let done = smalti(&["master", "--listen", "127.0.0.1:0", "--data-dir", "/proc/no/such"])?;
    one_clear_error(&done, 125, &["/proc/no/such"]);
    Ok(())
}

#[test]
fn garbage_on_the_masters_port_stops_nothing() -> Result {
    let c = one_agent("1")?;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff",
        &[0; 70_000],
    ] {
        let mut stream = std::net::TcpStream::connect(&c.address)?;
        let _ = stream.write_all(garbage);
        let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
        let _ = stream.read(&mut [0; 512]);
    }
    assert_eq!(c.smalti(&["run", &guest(&c, "hello")?])?.code, 0);
    Ok(())
}
