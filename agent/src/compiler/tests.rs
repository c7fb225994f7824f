//! The compiler process through its real entry: this test binary runs itself as the child.

use super::*;
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
    CompilerOptions { command: command(), timeout: Duration::from_secs(60), memory: smalti_types::Bytes::gib(4), parallel: 1 }
}

async fn compile(bytes: &[u8], fuel: bool) -> (tempfile::TempDir, Result<Compiled, Refusal>) {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("guest");
    std::fs::write(&input, bytes).unwrap();
    let result = Compiler::new(options()).compile(&input, dir.path(), fuel).await;
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
        let (_dir, compiled) = compile(PROGRAM.as_bytes(), fuel).await;
        let compiled = compiled.unwrap();
        assert!(!compiled.inspection.component);
        assert_eq!(compiled.inspection.imports, ["wasi_snapshot_preview1::proc_exit"]);
        assert_eq!(compiled.inspection.exports, ["memory", "_start"]);
        assert!(matches!(kind(&compiled.code), Some(wasmtime::Precompiled::Module)));
        sizes.push(std::fs::read(&compiled.code).unwrap());
    }
    assert_ne!(sizes[0], sizes[1], "counting fuel is other code");
}

#[tokio::test]
async fn a_component_becomes_code() {
    let (_dir, compiled) = compile(COMPONENT.as_bytes(), false).await;
    let compiled = compiled.unwrap();
    assert!(compiled.inspection.component);
    assert!(matches!(kind(&compiled.code), Some(wasmtime::Precompiled::Component)));
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
        let options = CompilerOptions {
            command: command.iter().map(OsString::from).collect(),
            timeout,
            memory: smalti_types::Bytes::gib(1),
            parallel: 1,
        };
        async move { Compiler::new(options).compile(Path::new("/nowhere"), Path::new("/nowhere"), false).await.unwrap_err() }
    };
    let long = Duration::from_secs(60);
    assert!(run(&["/bin/sh", "-c", "sleep 1000"], Duration::from_millis(50)).await.message.contains("longer than"));
    assert_eq!(run(&["/nonexistent/compiler"], long).await.reason, Reason::LaunchFailed);
    assert_eq!(run(&["/bin/sh", "-c", "kill -9 $$"], long).await.reason, Reason::LaunchFailed);
    let crashed = run(&["/bin/sh", "-c", "echo boom >&2; kill -SEGV $$"], long).await;
    assert_eq!(crashed.reason, Reason::InvalidBundle);
    assert!(crashed.message.contains("boom"), "{crashed}");
}

#[tokio::test]
async fn the_process_keeps_its_memory_limit() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("guest");
    std::fs::write(&input, PROGRAM).unwrap();
    let tight = CompilerOptions { memory: smalti_types::Bytes::mib(1), ..options() };
    let refusal = Compiler::new(tight).compile(&input, dir.path(), false).await.unwrap_err();
    assert!(matches!(refusal.reason, Reason::InvalidBundle | Reason::LaunchFailed), "{refusal}");
    assert!(!dir.path().join("code").exists());
}

#[test]
fn the_request_survives_its_way_through_arguments() {
    let request = CompileRequest { input: "/a b".into(), output: "o".into(), fuel: true, memory: 7, cpu_seconds: 9 };
    assert_eq!(CompileRequest::from_args(request.to_args()), Ok(request));
    assert!(CompileRequest::from_args(["--input".into()]).is_err());
    assert!(CompileRequest::from_args(["--verbose".into(), "x".into()]).is_err());
}
