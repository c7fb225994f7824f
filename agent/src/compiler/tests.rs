//! The compiler process through its real entry: this test binary runs itself as the child.

use super::inspect::to_binary;
use super::*;
use crate::cgroup::Cgroups;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

/// The command that makes this test binary act as the compiler process: what follows `--` are the request's arguments
/// (to the test harness they are filters that match nothing).
pub(crate) fn command() -> Vec<OsString> {
    let exe = std::env::current_exe().unwrap();
    let mut command = vec![exe.into_os_string()];
    command.extend(["--exact", "compiler::tests::child_process", "--nocapture", "--"].map(OsString::from));
    command
}

#[test]
fn child_process() {
    let mut args = std::env::args_os();
    if args.by_ref().any(|a| a == "--") {
        let _ = process::run(args);
    }
}

pub(crate) fn options() -> CompilerOptions {
    CompilerOptions {
        command: command(),
        timeout: Duration::from_secs(60),
        memory: smalti_types::Bytes::gib(1),
        cgroups: Cgroups::none(),
        uid: None,
    }
}

/// The code is in the file `code` of the directory.
async fn compile(bytes: &[u8], fuel: bool) -> (tempfile::TempDir, Result<Inspection, Refusal>) {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("guest");
    std::fs::write(&input, bytes).unwrap();
    let result = Compiler::new(options()).compile(&input, &dir.path().join("code"), fuel).await.0;
    (dir, result)
}

async fn refused(bytes: &[u8]) -> Refusal {
    compile(bytes, false).await.1.expect_err("it must be refused")
}

const PROGRAM: &str = r#";; the smallest program
(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i32))) (memory (export "memory") 1) (func (export "_start")))"#;

const COMPONENT: &str = r#"(component
    (import "wasi:cli/environment@0.2.0" (instance))
    (core module $m (func (export "run") (result i32) i32.const 0))
    (core instance $i (instantiate $m))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance $run (export "run" (func $run)))
    (export "wasi:cli/run@0.2.0" (instance $run)))"#;

/// The code must say of itself that it is Wasmtime's, of the right kind; the executor's engine checks the settings.
fn kind(path: &Path) -> Option<wasmtime::Precompiled> {
    wasmtime::Engine::detect_precompiled_file(path).unwrap()
}

#[tokio::test]
async fn a_module_as_text_becomes_code_with_and_without_fuel() {
    let mut sizes = Vec::new();
    for fuel in [false, true] {
        let (dir, compiled) = compile(PROGRAM.as_bytes(), fuel).await;
        let compiled = compiled.unwrap();
        assert!(!compiled.component);
        assert_eq!(compiled.imports, ["wasi_snapshot_preview1::proc_exit"]);
        assert_eq!(compiled.exports, ["memory", "_start"]);
        let code = dir.path().join("code");
        assert!(matches!(kind(&code), Some(wasmtime::Precompiled::Module)));
        sizes.push(std::fs::read(&code).unwrap());
    }
    assert_ne!(sizes[0], sizes[1], "counting fuel is other code");
}

#[tokio::test]
async fn a_component_becomes_code() {
    let (dir, compiled) = compile(COMPONENT.as_bytes(), false).await;
    let compiled = compiled.unwrap();
    assert!(compiled.component);
    assert!(matches!(kind(&dir.path().join("code")), Some(wasmtime::Precompiled::Component)));
}

#[tokio::test]
async fn what_is_not_wasm_is_an_invalid_bundle_that_says_why() {
    let binary = wat::parse_str(PROGRAM).unwrap();
    for bytes in
        [&b""[..], b"#!/bin/sh\necho no\n", &binary[..binary.len() - 5], b"(module", b"\xff\xfe", &[binary.clone(), vec![9; 20]].concat()]
    {
        let refusal = refused(bytes).await;
        assert_eq!(refusal.reason, Reason::InvalidBundle, "{refusal}");
        assert!(!refusal.message.is_empty() && !refusal.message.contains('\n'), "{refusal}");
    }
    // Valid shape, invalid body: only the compiler sees it.
    let refusal = refused(b"(module (func (export \"_start\") i32.add drop))").await;
    assert_eq!(refusal.reason, Reason::InvalidBundle);
    assert!(refusal.message.contains("type mismatch"), "{refusal}");
    // A proposal that is off.
    let refusal = refused(b"(module (memory 1 1 shared) (func (export \"_start\")))").await;
    assert_eq!(refusal.reason, Reason::InvalidBundle);
    assert!(refusal.message.contains("thread"), "{refusal}");
}

#[tokio::test]
async fn what_fits_into_no_slot_is_refused_before_it_gets_there() {
    for (text, why) in [
        ("(module (table 100001 funcref) (func (export \"_start\")))", "elements of a table is 100001, at most 100000"),
        ("(module (memory 1) (memory 1) (memory 1) (memory 1) (memory 1) (func (export \"_start\")))", "memories is 5, at most 4"),
        ("(component (core module (table 100001 funcref)))", "elements of a table is 100001"),
    ] {
        let refusal = refused(text.as_bytes()).await;
        assert_eq!(refusal.reason, Reason::InvalidBundle, "{text}");
        assert!(refusal.message.contains(why), "{}", refusal.message);
    }
}

#[tokio::test]
async fn what_the_host_does_not_give_is_named() {
    let refusal = refused(b"(module (import \"env\" \"launch_missiles\" (func)) (func (export \"_start\")))").await;
    assert_eq!(refusal.reason, Reason::MissingImport);
    assert!(refusal.message.contains("env::launch_missiles"), "{refusal}");
    let refusal = refused(b"(module (import \"smalti\" \"reboot\" (func)) (func (export \"_start\")))").await;
    assert_eq!(refusal.reason, Reason::MissingImport);
    let refusal = refused(b"(component (import \"acme:db/query@1.0.0\" (instance)))").await;
    assert_eq!(refusal.reason, Reason::MissingImport);
    assert!(refusal.message.contains("acme:db/query"), "{refusal}");
}

#[tokio::test]
async fn a_library_has_no_entry_point() {
    for text in ["(module (func (export \"main\")))", "(module (global (export \"_start\") i32 i32.const 0))", "(component)"] {
        assert_eq!(refused(text.as_bytes()).await.reason, Reason::NoEntryPoint, "{text}");
    }
}

#[tokio::test]
async fn a_compiler_that_hangs_dies_or_is_not_there_is_reported() {
    let run = |command: &[&str], timeout| {
        let options = CompilerOptions { command: command.iter().map(OsString::from).collect(), timeout, ..self::options() };
        async move { Compiler::new(options).compile(Path::new("/nowhere"), Path::new("/nowhere"), false).await.0.unwrap_err() }
    };
    let long = Duration::from_secs(60);
    assert!(run(&["/bin/sh", "-c", "exec sleep 1000"], Duration::from_millis(50)).await.message.contains("longer than"));
    assert_eq!(run(&["/nonexistent/compiler"], long).await.reason, Reason::LaunchFailed);
    assert_eq!(run(&["/bin/sh", "-c", "kill -9 $$"], long).await.reason, Reason::LaunchFailed);
    let crashed = run(&["/bin/sh", "-c", "echo boom >&2; kill -SEGV $$"], long).await;
    assert_eq!(crashed.reason, Reason::InvalidBundle);
    assert!(crashed.message.contains("boom"), "{crashed}");
}

/// Groups that are gone at the end, whatever happens.
struct Groups(Cgroups);

impl Drop for Groups {
    fn drop(&mut self) {
        let removed = self.0.was_beside().cleanup_stale(&[], Duration::from_secs(10)).and_then(|_| self.0.was_beside().close());
        if let Err(e) = removed.and_then(|()| self.0.close()) {
            eprintln!("NOT CLEANED UP: {e}");
        }
    }
}

/// A compiler with all its walls, as the agent has it.
fn guarded(test: &str, change: impl FnOnce(&mut CompilerOptions)) -> (Groups, Compiler) {
    let (cgroups, layers) = Cgroups::open(crate::cgroup::Mode::Auto, &format!("test-{test}-{}", std::process::id())).unwrap();
    if layers.iter().any(|l| !l.on) {
        eprintln!("NOT ALL LIMITS ARE TESTED HERE: {layers:?}");
    }
    let mut options = CompilerOptions { cgroups: cgroups.beside(smalti_types::MilliCpus(1_000)).unwrap(), ..options() };
    if nix::unistd::geteuid().is_root() {
        options.uid = Some(2_000_065_536);
    } else {
        eprintln!("NOT TESTED: another user needs root");
    }
    change(&mut options);
    (Groups(cgroups), Compiler::new(options))
}

#[tokio::test]
async fn behind_all_walls_it_still_compiles_and_says_what_it_used() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("guest");
    std::fs::write(&input, PROGRAM).unwrap();
    let (_groups, compiler) = guarded("walls", |_| {});
    let (compiled, used_us) = compiler.compile(&input, &dir.path().join("code"), false).await;
    assert!(matches!(kind(&compiled.map(|_| dir.path().join("code")).unwrap()), Some(wasmtime::Precompiled::Module)));
    if _groups.0.version().is_some() {
        assert!(used_us.is_some_and(|us| us > 0), "{used_us:?}");
    }
}

/// Long functions, whose representation in the compiler takes hundreds of times their size.
fn large(functions: usize, length: usize) -> Vec<u8> {
    let mut text = String::from("(module (func (export \"_start\"))");
    for _ in 0..functions {
        text.push_str("(func (param i64) (result i64) (local i64 i64 i64) local.get 0");
        for n in 0..length {
            text.push_str(&format!(" local.get {} i64.add local.tee {} local.get {} i64.mul", n % 4, (n + 1) % 4, (n + 2) % 4));
        }
        text.push(')');
    }
    text.push(')');
    wat::parse_str(text).unwrap()
}

#[tokio::test]
async fn what_takes_more_memory_than_a_compiler_has_is_refused_with_that_reason() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("guest");
    std::fs::write(&input, large(2, 80_000)).unwrap();
    let (groups, compiler) = guarded("memory", |o| o.memory = smalti_types::Bytes::mib(96));
    if groups.0.version().is_none() {
        eprintln!("NOT TESTED: the limit of memory needs groups");
        return;
    }
    let refusal = compiler.compile(&input, &dir.path().join("code"), false).await.0.unwrap_err();
    assert_eq!(refusal.reason, Reason::InvalidBundle, "{refusal}");
    assert!(refusal.message.contains("more than 96MiB of memory"), "{refusal}");
}

#[test]
fn the_signals_of_the_limits_have_messages_that_name_them() {
    let run = |script: &str| {
        let command = ["/bin/sh", "-c", script].iter().map(OsString::from).collect();
        let compiler = Compiler::new(CompilerOptions { command, ..options() });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(compiler.compile(Path::new("/nowhere"), Path::new("/nowhere"), false)).0.unwrap_err()
    };
    for (script, named) in [
        ("kill -XCPU $$", "more than 30 s of processor time"),
        ("kill -SEGV $$", "stack"),
        ("echo 'memory allocation of 9 bytes failed' >&2; kill -ABRT $$", "of memory"),
    ] {
        let refusal = run(script);
        assert_eq!(refusal.reason, Reason::InvalidBundle);
        assert!(refusal.message.contains(named), "{refusal}");
    }
}

#[tokio::test]
async fn amounts_that_a_compiler_should_not_be_given_are_refused_before() {
    let many = |what: &str, n: usize| format!("(module {} (func (export \"_start\")))", what.repeat(n));
    let deep = format!("{}{}", "(component ".repeat(12), ")".repeat(12));
    assert!(to_binary(&b"(".repeat((8 << 20) + 1)).unwrap_err().message.contains("convert it to binary"));
    for (text, why) in [
        (many("(import \"wasi_snapshot_preview1\" \"x\" (func))", 1_001), "imports is 1001, at most 1000"),
        (many("(func)", 200_000), "functions is 200001, at most 200000"),
        (many("(global i32 i32.const 0)", 100_001), "globals is 100001"),
        (format!("(component {})", "(core module)".repeat(101)), "modules and components in it is 101"),
        (deep, "depth of components in components is 11"),
        (format!("(module (func (export \"_start\") {}))", "nop ".repeat(2 << 20)), "length of a function in bytes"),
    ] {
        let refusal = inspect(&wat::parse_str(&text).unwrap()).unwrap_err();
        assert_eq!(refusal.reason, Reason::InvalidBundle, "{why}");
        assert!(refusal.message.contains(why), "{}", refusal.message);
    }
}

#[test]
fn the_request_survives_its_way_through_arguments() {
    let request = CompileRequest { input: "/a b".into(), output: "o".into(), fuel: true, memory: 7, cpu_seconds: 9, uid: Some(11) };
    assert_eq!(CompileRequest::from_args(request.to_args()), Ok(request));
    assert!(CompileRequest::from_args(["--input".into()]).is_err());
    assert!(CompileRequest::from_args(["--verbose".into(), "x".into()]).is_err());
}
