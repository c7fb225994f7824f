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

/// A letter for each, and the handles that guests have of it when they begin, or may get.
const HANDLES: [(char, [u8; 2]); 6] = [('h', [1, 9]), ('q', [3, 3]), ('i', [1, 1]), ('o', [2, 2]), ('x', [4, 4]), ('y', [5, 9])];

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

/// A function: its interface, its name, its type, its flat arguments and its flat result; a method's own handle goes without saying.
/// Kinds of arguments as in [`wasi`], and those of [`HANDLES`].
type Function = (&'static str, &'static str, &'static str, &'static str, &'static str);

const FUNCTIONS: [Function; 44] = [
    ("poll", "[method]pollable.ready", "(result bool)", "", "i32"),
    ("poll", "[method]pollable.block", "", "", ""),
    ("poll", "poll", r#"(param "in" (list (borrow $pollable))) (result (list u32))"#, "ana", ""),
    ("streams", "[method]input-stream.read", READ, "wa", ""),
    ("streams", "[method]input-stream.blocking-read", READ, "wa", ""),
    ("streams", "[method]input-stream.subscribe", "(result (own $pollable))", "", "i32"),
    ("streams", "[method]output-stream.check-write", "(result (result u64 (error $stream-error)))", "a", ""),
    ("streams", "[method]output-stream.write", WRITE, "ana", ""),
    ("streams", "[method]output-stream.blocking-write-and-flush", WRITE, "ana", ""),
    ("streams", "[method]output-stream.blocking-flush", "(result (result (error $stream-error)))", "a", ""),
    ("streams", "[method]output-stream.subscribe", "(result (own $pollable))", "", "i32"),
    ("streams", "[method]output-stream.write-zeroes", ZEROES, "wa", ""),
    ("streams", "[method]output-stream.blocking-write-zeroes-and-flush", ZEROES, "wa", ""),
    ("streams", "[method]output-stream.splice", SPLICE, "iwa", ""),
    ("streams", "[method]output-stream.blocking-splice", SPLICE, "iwa", ""),
    ("in", GET_STDIN, "(result (own $input-stream))", "", "i32"),
    ("out", GET_STDOUT, "(result (own $output-stream))", "", "i32"),
    ("environment", "get-environment", "(result (list (tuple string string)))", "a", ""),
    ("environment", "get-arguments", "(result (list string))", "a", ""),
    ("exit", EXIT, r#"(param "status" (result))"#, "1", ""),
    ("random", "get-random-bytes", r#"(param "len" u64) (result (list u8))"#, "wa", ""),
    ("random", "get-random-u64", "(result u64)", "", "i64"),
    ("clock", "now", "(result u64)", "", "i64"),
    ("clock", SUBSCRIBE, r#"(param "when" u64) (result (own $pollable))"#, "w", "i32"),
    ("types", "[method]descriptor.read-via-stream", r#"(param "offset" u64) (result (result (own $input-stream) ERROR))"#, "wa", ""),
    ("types", "[method]descriptor.write-via-stream", r#"(param "offset" u64) (result (result (own $output-stream) ERROR))"#, "wa", ""),
    ("types", "[method]descriptor.append-via-stream", "(result (result (own $output-stream) ERROR))", "a", ""),
    ("types", "[method]descriptor.sync", "(result (result ERROR))", "a", ""),
    ("types", "[method]descriptor.get-type", "(result (result $descriptor-type ERROR))", "a", ""),
    ("types", "[method]descriptor.set-size", r#"(param "size" u64) (result (result ERROR))"#, "wa", ""),
    ("types", "[method]descriptor.read", READ_AT, "wwa", ""),
    ("types", "[method]descriptor.write", WRITE_AT, "anwa", ""),
    ("types", "[method]descriptor.read-directory", "(result (result (own $directory-entry-stream) ERROR))", "a", ""),
    ("types", "[method]descriptor.create-directory-at", AT, "pa", ""),
    ("types", "[method]descriptor.open-at", OPEN_AT, "1pmma", ""),
    ("types", "[method]descriptor.readlink-at", r#"(param "path" string) (result (result string ERROR))"#, "pa", ""),
    ("types", "[method]descriptor.remove-directory-at", AT, "pa", ""),
    ("types", "[method]descriptor.rename-at", RENAME_AT, "pxpa", ""),
    ("types", "[method]descriptor.symlink-at", SYMLINK_AT, "ppa", ""),
    ("types", "[method]descriptor.unlink-file-at", AT, "pa", ""),
    ("types", "[method]directory-entry-stream.read-directory-entry", "(result (result (option $directory-entry) ERROR))", "a", ""),
    ("preopens", GET_DIRECTORIES, "(result (list (tuple (own $descriptor) string)))", "a", ""),
    ("task", "should-stop", "(result bool)", "", "i32"),
    ("task", "return-value", r#"(param "value" (list u8)) (result (result (error string)))"#, "ana", ""),
];
const GET_STDIN: &str = "get-stdin";
const GET_STDOUT: &str = "get-stdout";
const GET_DIRECTORIES: &str = "get-directories";
const SUBSCRIBE: &str = "subscribe-duration";
const EXIT: &str = "exit";
const READ: &str = r#"(param "len" u64) (result (result (list u8) (error $stream-error)))"#;
const WRITE: &str = r#"(param "contents" (list u8)) (result (result (error $stream-error)))"#;
const ZEROES: &str = r#"(param "len" u64) (result (result (error $stream-error)))"#;
const SPLICE: &str = r#"(param "src" (borrow $input-stream)) (param "len" u64) (result (result u64 (error $stream-error)))"#;
const READ_AT: &str = r#"(param "length" u64) (param "offset" u64) (result (result (tuple (list u8) bool) ERROR))"#;
const WRITE_AT: &str = r#"(param "buffer" (list u8)) (param "offset" u64) (result (result u64 ERROR))"#;
const AT: &str = r#"(param "path" string) (result (result ERROR))"#;
const OPEN_AT: &str = r#"(param "path-flags" $path-flags) (param "path" string) (param "open-flags" $open-flags)
  (param "flags" $descriptor-flags) (result (result (own $descriptor) ERROR))"#;
const RENAME_AT: &str = r#"(param "old-path" string) (param "new-descriptor" (borrow $descriptor)) (param "new-path" string)
  (result (result ERROR))"#;
const SYMLINK_AT: &str = r#"(param "old-path" string) (param "new-path" string) (result (result ERROR))"#;
/// What stands for it above.
const ERROR: &str = "(error $error-code)";

/// The resource whose method a name is.
fn resource(name: &str) -> Option<&str> {
    name.strip_prefix("[method]")?.split('.').next()
}

/// A handle of this resource, as one of [`HANDLES`].
fn kind(resource: &str) -> char {
    RESOURCES.iter().zip(HANDLES).find(|(r, _)| r.1 == resource).map_or('h', |(_, (kind, _))| kind)
}

/// Flat arguments with the handle of a method, and flat result, of every core function: those of the table, then one that drops each
/// resource.
fn core_types() -> impl Iterator<Item = (String, &'static str)> {
    let own = FUNCTIONS.iter().map(|f| (resource(f.1).map(kind).into_iter().collect::<String>() + f.3, f.4));
    own.chain(RESOURCES.iter().map(|_| ("h".to_owned(), "")))
}

/// The number of a function.
fn number(name: &str) -> usize {
    FUNCTIONS.iter().position(|f| f.1 == name).unwrap_or_else(|| unreachable!("{name} is in the table"))
}

/// Most calls of one guest; it may make them several times.
const MAX_CALLS: usize = 40;

/// A random component.
pub(super) fn calls(u: &mut Unstructured<'_>) -> Result<String> {
    let pages = *u.choose(&[1, 1, 17])?;
    let rounds = *u.choose(&[1, 3, 100])?;
    let wild = *u.choose(&wasi::WILD)?;
    // Where handles come from; they are 1, 2, 3 and so on.
    let (stdin, stdout, directories) = (number(GET_STDIN), number(GET_STDOUT), number(GET_DIRECTORIES));
    let mut body = format!(
        "(drop (call $f{stdin})) (drop (call $f{stdout})) (call $f{directories} (i32.const 16))
"
    );
    let types: Vec<_> = core_types().collect();
    for _ in 0..u.int_in_range(1..=MAX_CALLS)? {
        let n = u.choose_index(types.len())?;
        let (arguments, result) = &types[n];
        // Not much comes after these.
        if (n == number(EXIT) || n >= FUNCTIONS.len()) && !u.ratio(1, 8)? {
            continue;
        }
        let mut call = format!("(call $f{n}");
        let wild = wild > 0 && u.ratio(wild, 64)?;
        for kind in arguments.chars() {
            match HANDLES.iter().find(|h| h.0 == kind) {
                Some((_, [first, last])) if !wild => _ = write!(call, " (i32.const {})", u.int_in_range(*first..=*last)?),
                Some(_) => wasi::argument(u, 'd', pages, wild, &mut call)?,
                None => wasi::argument(u, kind, pages, wild, &mut call)?,
            }
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
            let own = resource(name).map_or_else(String::new, |r| format!(r#"(param "self" (borrow ${r}))"#));
            let _ = writeln!(text, r#"(export "{name}" (func {own} {}))"#, ty.replace("ERROR", ERROR));
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
    for (n, (arguments, result)) in core_types().enumerate() {
        let _ = writeln!(text, r#"(import "" "f{n}" (func $f{n} (param {}) (result {result})))"#, wasi::types(&arguments));
    }
    text
}

fn core_exports() -> String {
    (0..FUNCTIONS.len() + RESOURCES.len()).fold(String::new(), |mut all, n| {
        let _ = write!(all, r#"(export "f{n}" (func $f{n}))"#);
        all
    })
}
