//! Every example guest does what it says, through `smalti run`.

use crate::{Result, cluster, guest};
use smalti_tests::Cluster;

#[test]
fn hello_gets_arguments_and_environment_and_its_exit_code_is_ours() -> Result {
    let c = cluster()?;
    let done = c.smalti(&["run", "--env", "GREETING=Salve", &guest(&c, "hello")?, "--", "a b", "--exit", "7"])?;
    assert_eq!(done.code, 7, "{}", done.stderr);
    assert_eq!(done.stdout, "Salve from Smalti\nargument 0: a b\nargument 1: --exit\nargument 2: 7\n");
    assert!(done.stderr.contains("hello is done"), "{}", done.stderr);
    Ok(())
}

#[test]
fn cargo_can_use_it_as_a_runner() -> Result {
    let c = cluster()?;
    let done = c.smalti(&["run", &guest(&c, "hello")?, "x", "--exit", "3"])?;
    assert_eq!((done.code, done.stdout.as_str()), (3, "Hello from Smalti\nargument 0: x\nargument 1: --exit\nargument 2: 3\n"));
    Ok(())
}

#[test]
fn a_component_runs_like_a_module() -> Result {
    let c = cluster()?;
    let component = c.paths.component("hello")?.display().to_string();
    let done = c.smalti(&["run", &component, "--", "x"])?;
    assert_eq!((done.code, done.stdout.as_str()), (0, "Hello from Smalti\nargument 0: x\n"), "{}", done.stderr);
    // A component can only end with "ok" or "error" in WASI 0.2's run; Rust's exit code 7 arrives as 1.
    let done = c.smalti(&["run", &component, "--", "--exit", "7"])?;
    assert_ne!(done.code, 0);
    let done = c.smalti(&["run", &c.paths.component("whoami")?.display().to_string()])?;
    assert_eq!(done.code, 0, "{}", done.stderr);
    Ok(())
}

#[test]
fn a_c_program_runs() -> Result {
    let c = cluster()?;
    let done = c.smalti(&["run", &guest(&c, "primes")?, "--", "1000"])?;
    assert_eq!((done.code, done.stdout.as_str()), (0, "168 primes below 1000\n"), "{}", done.stderr);
    Ok(())
}

#[test]
fn text_format_runs() -> Result {
    let c = cluster()?;
    let path = c.dir().join("exit.wat");
    std::fs::write(
        &path,
        r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1) (func (export "_start") (call $exit (i32.const 5))))"#,
    )?;
    assert_eq!(c.smalti(&["run", &path.display().to_string()])?.code, 5);
    Ok(())
}

/// A program that prints the file `/assets/greeting.txt`.
const READS_ASSET: &str = r#"(module
  (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 100) "greeting.txt")
  (func (export "_start") (local $e i32)
    ;; descriptor 3 is the first preopened directory: /assets
    (local.set $e (call $open (i32.const 3) (i32.const 0) (i32.const 100) (i32.const 12) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 200)))
    (if (local.get $e) (then (call $exit (local.get $e))))
    (i32.store (i32.const 0) (i32.const 1000))
    (i32.store (i32.const 4) (i32.const 64))
    (if (call $read (i32.load (i32.const 200)) (i32.const 0) (i32.const 1) (i32.const 204)) (then (call $exit (i32.const 90))))
    (i32.store (i32.const 4) (i32.load (i32.const 204)))
    (if (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 204)) (then (call $exit (i32.const 91))))))"#;

#[test]
fn an_archive_brings_its_assets() -> Result {
    let c = cluster()?;
    for (name, gzip) in [("app.tar", false), ("app.tar.gz", true)] {
        let path = c.dir().join(name);
        let file = std::fs::File::create(&path)?;
        let sink: Box<dyn std::io::Write> =
            if gzip { Box::new(flate2::write::GzEncoder::new(file, flate2::Compression::fast())) } else { Box::new(file) };
        let mut archive = tar::Builder::new(sink);
        for (name, content) in [("main.wasm", READS_ASSET), ("greeting.txt", "from the archive\n")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            archive.append_data(&mut header, name, content.as_bytes())?;
        }
        drop(archive.into_inner()?);
        let done = c.smalti(&["run", &path.display().to_string()])?;
        assert_eq!((done.code, done.stdout.as_str()), (0, "from the archive\n"), "{name}: {}", done.stderr);
    }
    Ok(())
}

#[test]
fn inputs_are_files_and_stdin_is_passed_through() -> Result {
    let c = cluster()?;
    let letters = guest(&c, "count-lines-with")?;
    let done = c.smalti_with_stdin(&["run", &letters, "--", "b"], b"abc\nxyz\nbbb\n")?;
    assert_eq!((done.code, done.stdout.as_str()), (0, "2\n"), "{}", done.stderr);
    let done = c.smalti_with_stdin(&["run", "--stdin", "none", &letters, "--", "b"], b"abc\n")?;
    assert_eq!(done.stdout, "0\n", "{}", done.stderr);
    Ok(())
}

#[test]
fn a_guest_knows_itself_reports_progress_and_returns_a_value() -> Result {
    let c = cluster()?;
    let job = c.ok(&["submit", "--cpus", "0.5", "--ports", "2", &guest(&c, "whoami")?])?;
    let job = job.trim();
    assert_eq!(c.smalti(&["wait", job])?.code, 0);
    let out = c.ok(&["logs", job])?;
    assert!(out.contains(job), "{out}");
    let tasks = c.json(&["ps", "--all"])?;
    let task = &tasks.as_array().expect("a list")[0];
    assert_eq!(task["state"], "FINISHED");
    assert_eq!(task["exit_code"], 0);
    assert!(task["usage"]["peak_memory"].as_u64() > Some(1 << 20), "{task}");
    assert!(out.contains("ports: [\n"), "{out}");
    assert_eq!(task["result"], "item None of None", "{task}");
    assert_eq!((&task["progress"]["permille"], &task["progress"]["text"]), (&1000.into(), &"done".into()), "{task}");
    Ok(())
}

#[test]
fn a_guest_that_only_asks_who_it_is_imports_nothing_of_smalti() -> Result {
    let c = cluster()?;
    let imports = |name: &str| -> Result<String> { Ok(c.json(&["bundle", "inspect", &guest(&c, name)?])?["imports"].to_string()) };
    let (only_who, also_host) = (imports("pi")?, imports("whoami")?);
    assert!(only_who.contains("wasi_snapshot_preview1") && !only_who.contains("smalti"), "{only_who}");
    assert!(also_host.contains("smalti"), "{also_host}");
    Ok(())
}

fn map(c: &Cluster, args: &[&str]) -> Result<String> {
    c.ok(&[&["map"], args].concat())
}

#[test]
fn pi_is_estimated_by_a_map_and_a_reduce() -> Result {
    let c = cluster()?;
    let pi = guest(&c, "pi")?;
    let out = map(&c, &[&pi, "--items", "20", "--reduce", &pi, "--reduce-arg", "--estimate", "--", "50000"])?;
    assert!(out.starts_with("pi is about 3.1"), "{out}");
    assert!(out.contains("(1000000 samples)"), "{out}");
    Ok(())
}

#[test]
fn logistic_regression_descends_over_rounds_of_one_job() -> Result {
    let c = cluster()?;
    let guest = guest(&c, "logistic-regression")?;
    let data = c.dir().join("points.csv");
    let mut rows = String::new();
    for i in 0..2_000_u32 {
        let (x, y) = (f64::from(i % 40) / 40.0, f64::from(i / 40) / 50.0);
        rows.push_str(&format!("{x},{y},{}\n", u8::from(x + y > 1.0)));
    }
    std::fs::write(&data, rows)?;
    let data = data.display().to_string();
    let fit = |rounds: &str| -> Result<Vec<f64>> {
        let args = [
            &*guest,
            "--inputs",
            &data,
            "--split",
            "4KiB",
            "--rounds",
            rounds,
            "--reduce",
            &guest,
            "--reduce-arg",
            "--step",
            "--reduce-arg",
            "5",
        ];
        Ok(map(&c, &args)?.split_whitespace().map(|w| w.parse().expect("a weight")).collect())
    };
    let (one, many) = (fit("1")?, fit("8")?);
    assert_eq!((one.len(), many.len()), (3, 3));
    assert!(many[1] > one[1] && many[2] > one[2], "the weights grow towards the labels: {one:?} {many:?}");
    Ok(())
}
