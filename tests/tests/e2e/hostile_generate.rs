//! Hostile guests that are too large to be kept as text: each is made by a function of this module when a test needs it.
//!
//! Owns the table of their names. What is small enough to be read by people is in `wasm-examples/hostile`.

use std::fmt::Write;

/// Makes a guest: text or bytes, as `smalti run` takes either.
type Make = fn() -> Vec<u8>;

/// All of them.
pub(crate) const GENERATED: &[(&str, Make)] = &[
    ("functions-100000", functions_100000),
    ("functions-100000-in-a-table", functions_100000_in_a_table),
    ("imports-10000", || imports_10000("fd_close", "(param i32) (result i32)")),
    ("imports-10000-unknown", || imports_10000("no_such_function_", "")),
    ("data-48-mib", data_48_mib),
    ("data-10000-segments", data_10000_segments),
    ("custom-section-100-mib", custom_section_100_mib),
    ("compiler-bomb", compiler_bomb),
    ("blocks-50000-deep", blocks_50000_deep),
    ("br-table-60000", br_table_60000),
    ("br-table-too-large", || br_table(200_000)),
    ("locals-40000", locals_40000),
    ("locals-too-many", || locals(60_000)),
    ("name-of-90-kib", name_of_90_kib),
    ("types-nested-component", types_nested_component),
    ("component-200-instances", component_200_instances),
    ("tables-17", || repeated("(table 1 funcref)", 17)),
    ("memories-5", || repeated("(memory 1)", 5)),
    ("table-200000-elements", || repeated("(table 200000 funcref)", 1)),
    ("exports-100000", exports_100000),
    ("iovecs-buffer-beyond-memory", || iovecs(&[(0, 65_530, 100)], 0, 1, 20)),
    ("iovecs-buffer-wraps", || iovecs(&[(0, -16, 64)], 0, 1, 20)),
    ("iovecs-length-of-all", || iovecs(&[(0, 16, -1)], 0, 1, 20)),
    ("iovecs-list-beyond-memory", || iovecs(&[], 65_532, 1, 20)),
    ("iovecs-list-wraps", || iovecs(&[], -8, 3, 20)),
    ("iovecs-two-thousand-million", || iovecs(&[], 0, i32::MAX, 20)),
    ("iovecs-four-thousand-million", || iovecs(&[], 0, -1, 20)),
    ("iovecs-not-aligned", || iovecs(&[], 3, 1, 20)),
    ("iovecs-result-beyond-memory", || iovecs(&[(0, 100, 1)], 0, 1, 65_534)),
    ("iovecs-over-themselves", || iovecs(&[(0, 0, 65_536)], 0, 1, 0)),
    ("globals-100000", || repeated("(global (mut i64) (i64.const 1))", 100_000)),
];

fn module(body: &str) -> Vec<u8> {
    format!("(module {body})").into_bytes()
}

fn repeated(what: &str, times: usize) -> Vec<u8> {
    module(&(what.repeat(times) + r#"(func (export "_start"))"#))
}

/// Reads and writes with a list of `count` buffers at `list`, of which the first are (place, address, length), and the number
/// of bytes at `out`. Exits with the errors, if it gets that far: 10 × the one of reading + the one of writing, at most 125.
fn iovecs(records: &[(u32, i32, i32)], list: i32, count: i32, out: i32) -> Vec<u8> {
    let mut stores = String::new();
    for (place, address, length) in records {
        let _ = write!(
            stores,
            "(i32.store (i32.const {place}) (i32.const {address})) (i32.store (i32.const {}) (i32.const {length}))",
            place + 4
        );
    }
    module(&format!(
        r#"(import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1)
        (func (export "_start") (local $read i32) (local $write i32)
          {stores}
          (local.set $read (call $read (i32.const 0) (i32.const {list}) (i32.const {count}) (i32.const {out})))
          {stores}
          (local.set $write (call $write (i32.const 1) (i32.const {list}) (i32.const {count}) (i32.const {out})))
          (call $exit (i32.rem_u (i32.add (i32.mul (local.get $read) (i32.const 10)) (local.get $write)) (i32.const 126))))"#
    ))
}

fn functions_100000() -> Vec<u8> {
    repeated("(func)", 100_000)
}

/// Each of them can be reached through the table, so the instance has a record of each.
fn functions_100000_in_a_table() -> Vec<u8> {
    let mut body = String::from(r#"(func (export "_start"))"#) + &"(func)".repeat(99_999) + "(table 100000 funcref) (elem (i32.const 0)";
    for i in 0..99_999 {
        let _ = write!(body, " {i}");
    }
    module(&(body + ")"))
}

fn imports_10000(name: &str, ty: &str) -> Vec<u8> {
    let mut body = String::new();
    let unknown = ty.is_empty();
    for i in 0..10_000 {
        let suffix = if unknown { i.to_string() } else { String::new() };
        let _ = write!(body, r#"(import "wasi_snapshot_preview1" "{name}{suffix}" (func {ty}))"#);
    }
    module(&(body + r#"(memory (export "memory") 1) (func (export "_start"))"#))
}

/// A binary, since text of this size is refused. The pattern is not zero, so that nothing can leave it out.
fn data_48_mib() -> Vec<u8> {
    const SIZE: usize = 48 << 20;
    // type, function, memory (800 pages), export and code section of `(func (export "_start"))`
    let mut bytes = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x05\x04\x01\0\xa0\x06".to_vec();
    bytes.extend(b"\x07\x13\x02\x06memory\x02\0\x06_start\0\0\x0a\x04\x01\x02\0\x0b");
    let mut content = b"\x01\0\x41\0\x0b".to_vec();
    leb(&mut content, SIZE);
    content.resize(content.len() + SIZE, b'x');
    bytes.push(0x0b);
    leb(&mut bytes, content.len());
    bytes.extend(content);
    bytes
}

fn data_10000_segments() -> Vec<u8> {
    let mut body = String::from(r#"(memory (export "memory") 200) (func (export "_start"))"#);
    for i in 0..10_000 {
        let _ = write!(body, r#"(data (i32.const {}) "y")"#, i * 1024);
    }
    module(&body)
}

/// An empty program and a section that means nothing.
fn custom_section_100_mib() -> Vec<u8> {
    const SIZE: usize = 100 << 20;
    // type, function, export and code section of `(func (export "_start"))`
    let mut bytes = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x07\x0a\x01\x06_start\0\0\x0a\x04\x01\x02\0\x0b".to_vec();
    let mut content = b"\x04junk".to_vec();
    content.resize(SIZE, 0xaa);
    bytes.push(0);
    leb(&mut bytes, content.len());
    bytes.extend(content);
    bytes
}

fn leb(bytes: &mut Vec<u8>, mut n: usize) {
    loop {
        let low = u8::try_from(n & 0x7f).unwrap_or(0);
        n >>= 7;
        bytes.push(if n == 0 { low } else { low | 0x80 });
        if n == 0 {
            break;
        }
    }
}

/// One function of nearly the largest size, all whose values live at once across many branches: what register allocation
/// likes least.
fn compiler_bomb() -> Vec<u8> {
    const LOCALS: usize = 2_000;
    const STATEMENTS: usize = 350_000;
    let mut body = format!(r#"(memory (export "memory") 1) (func (export "_start") (local {}) "#, "i64 ".repeat(LOCALS));
    for i in 0..STATEMENTS {
        let (a, b, c) = (i * 7 % LOCALS, i * 13 % LOCALS, i * 31 % LOCALS);
        let _ = write!(body, "(local.set {a} (i64.mul (local.get {b}) (i64.rotl (local.get {c}) (local.get {a}))))");
        if i % 11 == 0 {
            let _ = write!(body, "(if (i64.eqz (local.get {b})) (then (local.set {c} (i64.load (i32.wrap_i64 (local.get {a}))))))");
        }
    }
    module(&(body + ")"))
}

fn blocks_50000_deep() -> Vec<u8> {
    const DEPTH: usize = 50_000;
    module(&format!(r#"(func (export "_start") {} br {} {})"#, "block ".repeat(DEPTH), DEPTH - 1, "end ".repeat(DEPTH)))
}

fn br_table_60000() -> Vec<u8> {
    br_table(60_000)
}

fn br_table(targets: usize) -> Vec<u8> {
    module(&format!(r#"(func (export "_start") block i32.const 5 br_table {} end)"#, "0 ".repeat(targets)))
}

fn locals_40000() -> Vec<u8> {
    locals(40_000)
}

/// All of them are in use, so they need a frame; the function calls itself with it.
fn locals(count: usize) -> Vec<u8> {
    let mut body = format!(r#"(func $f (export "_start") (local {}) "#, "i64 ".repeat(count));
    for i in 0..count {
        let _ = write!(body, "(local.set {i} (i64.const {i}))");
    }
    body += "(call $f)";
    for i in 0..count {
        let _ = write!(body, "(drop (local.get {i}))");
    }
    module(&(body + ")"))
}

fn name_of_90_kib() -> Vec<u8> {
    module(&format!(r#"(func ${0} unreachable) (func (export "_start") (call ${0}))"#, "n".repeat(90 << 10)))
}

/// Types of types of types: each names the one before twice.
fn types_nested_component() -> Vec<u8> {
    let mut text = String::from("(component (type $t0 (tuple u8 u8))");
    for i in 1..60 {
        let _ = write!(text, "(type $t{i} (tuple $t{0} $t{0}))", i - 1);
    }
    text += "(core module $m (func (export \"run\") (result i32) (i32.const 0))) (core instance $i (instantiate $m))
        (func $run (result (result)) (canon lift (core func $i \"run\"))) (instance $inst (export \"run\" (func $run)))
        (export \"wasi:cli/run@0.2.0\" (instance $inst)))";
    text.into_bytes()
}

fn component_200_instances() -> Vec<u8> {
    let mut text = String::from(r#"(component (core module $m (func (export "run") (result i32) (i32.const 0)))"#);
    for i in 0..200 {
        let _ = write!(text, "(core instance $i{i} (instantiate $m))");
    }
    text += "(func $run (result (result)) (canon lift (core func $i0 \"run\"))) (instance $inst (export \"run\" (func $run)))
        (export \"wasi:cli/run@0.2.0\" (instance $inst)))";
    text.into_bytes()
}

fn exports_100000() -> Vec<u8> {
    let mut body = String::from(r#"(func $f (export "_start"))"#);
    for i in 0..100_000 {
        let _ = write!(body, r#"(export "{i}" (func $f))"#);
    }
    module(&body)
}
