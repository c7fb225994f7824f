//! Components that do nothing but call WASI 0.2, with handles, addresses and lengths that mostly make sense.
//!
//! Owns the part of WASI 0.2 that they import, as text, with what each argument is after flattening. wasm-smith makes components,
//! too, but none that imports what a host has or exports `wasi:cli/run`: every one of them is refused before it begins.

use super::wasi;
use arbitrary::{Result, Unstructured};
use std::fmt::Write;

/// Resources: the interface that has each, and its name.
const RESOURCES: [(&str, &str); 6] = [
    ("error", "error"),
    ("poll", "pollable"),
    ("streams", "input-stream"),
    ("streams", "output-stream"),
    ("types", "descriptor"),
    ("types", "directory-entry-stream"),
];

/// Interfaces in the order in which they need each other: short name, full name, and the types that its functions need.
const INTERFACES: [(&str, &str, &str); 12] = [
    ("error", "wasi:io/error@0.2.0", r#"(export "error" (type $error (sub resource)))"#),
    ("poll", "wasi:io/poll@0.2.0", r#"(export "pollable" (type $pollable (sub resource)))"#),
    (
        "streams",
        "wasi:io/streams@0.2.0",
        r#"(alias outer 1 $error (type $e)) (alias outer 1 $pollable (type $pollable))
           (export "input-stream" (type $input-stream (sub resource))) (export "output-stream" (type $output-stream (sub resource)))
           (type $se (variant (case "last-operation-failed" (own $e)) (case "closed")))
           (export "stream-error" (type $stream-error (eq $se)))"#,
    ),
    ("in", "wasi:cli/stdin@0.2.0", r#"(alias outer 1 $input-stream (type $input-stream))"#),
    ("out", "wasi:cli/stdout@0.2.0", r#"(alias outer 1 $output-stream (type $output-stream))"#),
    ("environment", "wasi:cli/environment@0.2.0", ""),
    ("exit", "wasi:cli/exit@0.2.0", ""),
    ("random", "wasi:random/random@0.2.0", ""),
    ("clock", "wasi:clocks/monotonic-clock@0.2.0", r#"(alias outer 1 $pollable (type $pollable))"#),
    (
        "types",
        "wasi:filesystem/types@0.2.0",
        r#"(alias outer 1 $input-stream (type $input-stream)) (alias outer 1 $output-stream (type $output-stream))
           (export "descriptor" (type $descriptor (sub resource)))
           (export "directory-entry-stream" (type $directory-entry-stream (sub resource)))
           (type $ec (enum "access" "would-block" "already" "bad-descriptor" "busy" "deadlock" "quota" "exist" "file-too-large"
             "illegal-byte-sequence" "in-progress" "interrupted" "invalid" "io" "is-directory" "loop" "too-many-links" "message-size"
             "name-too-long" "no-device" "no-entry" "no-lock" "insufficient-memory" "insufficient-space" "not-directory" "not-empty"
             "not-recoverable" "unsupported" "no-tty" "no-such-device" "overflow" "not-permitted" "pipe" "read-only" "invalid-seek"
             "text-file-busy" "cross-device"))
           (export "error-code" (type $error-code (eq $ec)))
           (type $dt (enum "unknown" "block-device" "character-device" "directory" "fifo" "symbolic-link" "regular-file" "socket"))
           (export "descriptor-type" (type $descriptor-type (eq $dt)))
           (type $de (record (field "type" $descriptor-type) (field "name" string)))
           (export "directory-entry" (type $directory-entry (eq $de)))
           (type $df (flags "read" "write" "file-integrity-sync" "data-integrity-sync" "requested-write-sync" "mutate-directory"))
           (export "descriptor-flags" (type $descriptor-flags (eq $df)))
           (type $pf (flags "symlink-follow")) (export "path-flags" (type $path-flags (eq $pf)))
           (type $of (flags "create" "directory" "exclusive" "truncate")) (export "open-flags" (type $open-flags (eq $of)))"#,
    ),
    ("preopens", "wasi:filesystem/preopens@0.2.0", r#"(alias outer 1 $descriptor (type $descriptor))"#),
    ("task", "smalti:guest/task@0.1.0", ""),
];

/// A function: its interface, its name, its type, its flat arguments and its flat result. Kinds of arguments as in [`wasi`], and
/// `h` for a handle.
type Function = (&'static str, &'static str, &'static str, &'static str, &'static str);

const FUNCTIONS: [Function; 44] = [
    ("poll", "[method]pollable.ready", r#"(param "self" (borrow $pollable)) (result bool)"#, "h", "i32"),
    ("poll", "[method]pollable.block", r#"(param "self" (borrow $pollable))"#, "h", ""),
    ("poll", "poll", r#"(param "in" (list (borrow $pollable))) (result (list u32))"#, "ana", ""),
    ("streams", "[method]input-stream.read", READ, "hwa", ""),
    ("streams", "[method]input-stream.blocking-read", READ, "hwa", ""),
    ("streams", "[method]input-stream.subscribe", r#"(param "self" (borrow $input-stream)) (result (own $pollable))"#, "h", "i32"),
    (
        "streams",
        "[method]output-stream.check-write",
        r#"(param "self" (borrow $output-stream)) (result (result u64 (error $stream-error)))"#,
        "ha",
        "",
    ),
    ("streams", "[method]output-stream.write", WRITE, "hana", ""),
    ("streams", "[method]output-stream.blocking-write-and-flush", WRITE, "hana", ""),
    (
        "streams",
        "[method]output-stream.blocking-flush",
        r#"(param "self" (borrow $output-stream)) (result (result (error $stream-error)))"#,
        "ha",
        "",
    ),
    ("streams", "[method]output-stream.subscribe", r#"(param "self" (borrow $output-stream)) (result (own $pollable))"#, "h", "i32"),
    ("streams", "[method]output-stream.write-zeroes", ZEROES, "hwa", ""),
    ("streams", "[method]output-stream.blocking-write-zeroes-and-flush", ZEROES, "hwa", ""),
    ("streams", "[method]output-stream.splice", SPLICE, "hhwa", ""),
    ("streams", "[method]output-stream.blocking-splice", SPLICE, "hhwa", ""),
    ("in", "get-stdin", "(result (own $input-stream))", "", "i32"),
    ("out", "get-stdout", "(result (own $output-stream))", "", "i32"),
    ("environment", "get-environment", "(result (list (tuple string string)))", "a", ""),
    ("environment", "get-arguments", "(result (list string))", "a", ""),
    ("exit", "exit", r#"(param "status" (result))"#, "f", ""),
    ("random", "get-random-bytes", r#"(param "len" u64) (result (list u8))"#, "wa", ""),
    ("random", "get-random-u64", "(result u64)", "", "i64"),
    ("clock", "now", "(result u64)", "", "i64"),
    ("clock", "subscribe-duration", r#"(param "when" u64) (result (own $pollable))"#, "w", "i32"),
    (
        "types",
        "[method]descriptor.read-via-stream",
        r#"(param "self" (borrow $descriptor)) (param "offset" u64) (result (result (own $input-stream) (error $error-code)))"#,
        "hwa",
        "",
    ),
    (
        "types",
        "[method]descriptor.write-via-stream",
        r#"(param "self" (borrow $descriptor)) (param "offset" u64) (result (result (own $output-stream) (error $error-code)))"#,
        "hwa",
        "",
    ),
    (
        "types",
        "[method]descriptor.append-via-stream",
        r#"(param "self" (borrow $descriptor)) (result (result (own $output-stream) (error $error-code)))"#,
        "ha",
        "",
    ),
    ("types", "[method]descriptor.sync", r#"(param "self" (borrow $descriptor)) (result (result (error $error-code)))"#, "ha", ""),
    (
        "types",
        "[method]descriptor.get-type",
        r#"(param "self" (borrow $descriptor)) (result (result $descriptor-type (error $error-code)))"#,
        "ha",
        "",
    ),
    (
        "types",
        "[method]descriptor.set-size",
        r#"(param "self" (borrow $descriptor)) (param "size" u64) (result (result (error $error-code)))"#,
        "hwa",
        "",
    ),
    (
        "types",
        "[method]descriptor.read",
        r#"(param "self" (borrow $descriptor)) (param "length" u64) (param "offset" u64) (result (result (tuple (list u8) bool) (error $error-code)))"#,
        "hwwa",
        "",
    ),
    (
        "types",
        "[method]descriptor.write",
        r#"(param "self" (borrow $descriptor)) (param "buffer" (list u8)) (param "offset" u64) (result (result u64 (error $error-code)))"#,
        "hanwa",
        "",
    ),
    (
        "types",
        "[method]descriptor.read-directory",
        r#"(param "self" (borrow $descriptor)) (result (result (own $directory-entry-stream) (error $error-code)))"#,
        "ha",
        "",
    ),
    ("types", "[method]descriptor.create-directory-at", AT, "hpa", ""),
    (
        "types",
        "[method]descriptor.open-at",
        r#"(param "self" (borrow $descriptor)) (param "path-flags" $path-flags) (param "path" string) (param "open-flags" $open-flags) (param "flags" $descriptor-flags) (result (result (own $descriptor) (error $error-code)))"#,
        "hfpffa",
        "",
    ),
    (
        "types",
        "[method]descriptor.readlink-at",
        r#"(param "self" (borrow $descriptor)) (param "path" string) (result (result string (error $error-code)))"#,
        "hpa",
        "",
    ),
    ("types", "[method]descriptor.remove-directory-at", AT, "hpa", ""),
    (
        "types",
        "[method]descriptor.rename-at",
        r#"(param "self" (borrow $descriptor)) (param "old-path" string) (param "new-descriptor" (borrow $descriptor)) (param "new-path" string) (result (result (error $error-code)))"#,
        "hphpa",
        "",
    ),
    (
        "types",
        "[method]descriptor.symlink-at",
        r#"(param "self" (borrow $descriptor)) (param "old-path" string) (param "new-path" string) (result (result (error $error-code)))"#,
        "hppa",
        "",
    ),
    ("types", "[method]descriptor.unlink-file-at", AT, "hpa", ""),
    (
        "types",
        "[method]directory-entry-stream.read-directory-entry",
        r#"(param "self" (borrow $directory-entry-stream)) (result (result (option $directory-entry) (error $error-code)))"#,
        "ha",
        "",
    ),
    ("preopens", "get-directories", "(result (list (tuple (own $descriptor) string)))", "a", ""),
    ("task", "should-stop", "(result bool)", "", "i32"),
    ("task", "return-value", r#"(param "value" (list u8)) (result (result (error string)))"#, "ana", ""),
];
const READ: &str = r#"(param "self" (borrow $input-stream)) (param "len" u64) (result (result (list u8) (error $stream-error)))"#;
const WRITE: &str = r#"(param "self" (borrow $output-stream)) (param "contents" (list u8)) (result (result (error $stream-error)))"#;
const ZEROES: &str = r#"(param "self" (borrow $output-stream)) (param "len" u64) (result (result (error $stream-error)))"#;
const SPLICE: &str = r#"(param "self" (borrow $output-stream)) (param "src" (borrow $input-stream)) (param "len" u64)
  (result (result u64 (error $stream-error)))"#;
const AT: &str = r#"(param "self" (borrow $descriptor)) (param "path" string) (result (result (error $error-code)))"#;

/// Most calls of one guest; it may make them several times.
const MAX_CALLS: usize = 40;

/// A random component.
pub(super) fn calls(u: &mut Unstructured<'_>) -> Result<String> {
    let pages = *u.choose(&[1, 1, 17])?;
    let rounds = *u.choose(&[1, 3, 100])?;
    // Where handles come from; the first are 1, 2, 3 and so on.
    let mut body = String::from("(drop (call $f15)) (drop (call $f16)) (call $f41 (i32.const 16))\n");
    for _ in 0..u.int_in_range(1..=MAX_CALLS)? {
        let n = u.choose_index(FUNCTIONS.len() + RESOURCES.len())?;
        let (arguments, result) = FUNCTIONS.get(n).map_or(("h", ""), |f| (f.3, f.4));
        // Nothing comes after it.
        if FUNCTIONS.get(n).is_some_and(|f| f.1 == "exit") && !u.ratio(1, 8)? {
            continue;
        }
        let mut call = format!("(call $f{n}");
        for kind in arguments.chars() {
            wasi::argument(u, if kind == 'h' { 'd' } else { kind }, pages, &mut call)?;
        }
        let _ = if result.is_empty() { writeln!(body, "{call})") } else { writeln!(body, "(drop {call}))") };
    }
    Ok(format!(
        r#"(component {}
          (core module $libc (memory (export "memory") {pages}) (global $at (mut i32) (i32.const 32768))
            (func (export "realloc") (param i32 i32 i32 i32) (result i32) (local $here i32)
              (local.set $here (i32.and (i32.add (global.get $at) (i32.const 7)) (i32.const -8)))
              (global.set $at (i32.add (local.get $here) (local.get 3)))
              (if (i32.gt_u (global.get $at) (i32.shl (memory.size) (i32.const 16)))
                (then (drop (memory.grow (i32.add (i32.shr_u (local.get 3) (i32.const 16)) (i32.const 1))))))
              (local.get $here)))
          (core instance $libc (instantiate $libc))
          {}
          (core module $main (import "" "memory" (memory {pages})) {} {}
            (func (export "run") (result i32) (local $n i32)
              (loop $again {body}
                (br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const {rounds}))))
              (i32.const 0)))
          (core instance $main (instantiate $main (with "" (instance (export "memory" (memory $libc "memory")) {}))))
          (func $run (result (result)) (canon lift (core func $main "run")))
          (instance $run (export "run" (func $run)))
          (export "wasi:cli/run@0.2.0" (instance $run)))"#,
        imports(),
        lowered(),
        core_imports(),
        wasi::data(),
        core_exports(),
    ))
}

fn imports() -> String {
    let mut text = String::new();
    for (short, name, types) in INTERFACES {
        let _ = writeln!(text, r#"(import "{name}" (instance ${short} {types}"#);
        for (_, name, ty, ..) in FUNCTIONS.iter().filter(|f| f.0 == short) {
            let _ = writeln!(text, r#"(export "{name}" (func {ty}))"#);
        }
        text.push_str("))\n");
        for (_, resource) in RESOURCES.iter().filter(|r| r.0 == short) {
            let _ = writeln!(text, r#"(alias export ${short} "{resource}" (type ${resource}))"#);
        }
    }
    text
}

/// The functions as core functions, then what drops each resource.
fn lowered() -> String {
    let mut text = String::new();
    for (n, (interface, name, ..)) in FUNCTIONS.iter().enumerate() {
        let memory = r#"(memory $libc "memory") (realloc (func $libc "realloc"))"#;
        let _ = writeln!(text, r#"(core func $f{n} (canon lower (func ${interface} "{name}") {memory}))"#);
    }
    for (n, (_, resource)) in (FUNCTIONS.len()..).zip(RESOURCES) {
        let _ = writeln!(text, "(core func $f{n} (canon resource.drop ${resource}))");
    }
    text
}

fn core_imports() -> String {
    let mut text = String::new();
    let drops = RESOURCES.iter().map(|_| ("h", ""));
    for (n, (arguments, result)) in FUNCTIONS.iter().map(|f| (f.3, f.4)).chain(drops).enumerate() {
        let _ = writeln!(text, r#"(import "" "f{n}" (func $f{n} (param {}) (result {result})))"#, wasi::types(arguments));
    }
    text
}

fn core_exports() -> String {
    (0..FUNCTIONS.len() + RESOURCES.len()).fold(String::new(), |mut all, n| {
        let _ = write!(all, r#"(export "f{n}" (func $f{n}))"#);
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_every_guest_calls_first_make_handles() {
        for (n, name) in [(15, "get-stdin"), (16, "get-stdout"), (41, "get-directories")] {
            assert_eq!(FUNCTIONS[n].1, name);
        }
    }
}
