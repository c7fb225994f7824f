//! What random guests may import, and guests that do nothing but call it.
//!
//! Owns the list of preview 1's functions with what each argument is, and the memory that the calls' arguments point into.
//! Deliberately absent: what a call should answer.

use arbitrary::{Result, Unstructured};
use std::fmt::Write;

/// Kinds of arguments: `d` descriptor, `a` address, `n` length or count, `f` any small number, a digit: a number up to it, `m` four
/// flags, `g` five, `r` rights, `w` 64 bits, `p` a path (address and length), `l` a list of buffers (address and count). All but `r`
/// and `w` are 32 bits each.
type Signature = (&'static str, &'static str);

/// Preview 1. All but `proc_exit` answer with an error number.
const PREVIEW1: [Signature; 46] = [
    ("args_get", "aa"),
    ("args_sizes_get", "aa"),
    ("environ_get", "aa"),
    ("environ_sizes_get", "aa"),
    ("clock_res_get", "3a"),
    ("clock_time_get", "3wa"),
    ("fd_advise", "dww5"),
    ("fd_allocate", "dww"),
    ("fd_close", "d"),
    ("fd_datasync", "d"),
    ("fd_fdstat_get", "da"),
    ("fd_fdstat_set_flags", "dg"),
    ("fd_fdstat_set_rights", "drr"),
    ("fd_filestat_get", "da"),
    ("fd_filestat_set_size", "dw"),
    ("fd_filestat_set_times", "dwwm"),
    ("fd_pread", "dlwa"),
    ("fd_prestat_get", "da"),
    ("fd_prestat_dir_name", "dan"),
    ("fd_pwrite", "dlwa"),
    ("fd_read", "dla"),
    ("fd_readdir", "danwa"),
    ("fd_renumber", "dd"),
    ("fd_seek", "dw2a"),
    ("fd_sync", "d"),
    ("fd_tell", "da"),
    ("fd_write", "dla"),
    ("path_create_directory", "dp"),
    ("path_filestat_get", "d1pa"),
    ("path_filestat_set_times", "d1pwwm"),
    ("path_link", "d1pdp"),
    ("path_open", "d1pmrrga"),
    ("path_readlink", "dpana"),
    ("path_remove_directory", "dp"),
    ("path_rename", "dpdp"),
    ("path_symlink", "pdp"),
    ("path_unlink_file", "dp"),
    ("poll_oneoff", "aana"),
    ("proc_exit", "f"),
    ("proc_raise", "f"),
    ("sched_yield", ""),
    ("random_get", "an"),
    ("sock_accept", "dga"),
    ("sock_recv", "dl3aa"),
    ("sock_send", "dl0a"),
    ("sock_shutdown", "d3"),
];

/// Imports of all of these, and of the host's own functions, as text.
pub(super) fn imports() -> String {
    let mut text = String::new();
    for (name, arguments) in PREVIEW1 {
        let result = if name == "proc_exit" { "" } else { "(result i32)" };
        let _ = writeln!(text, r#"(import "wasi_snapshot_preview1" "{name}" (func ${name} (param {}) {result}))"#, types(arguments));
    }
    text + r#"(import "smalti" "should_stop" (func $should_stop (result i32)))
      (import "smalti" "progress" (func $progress (param i32 i32 i32)))
      (import "smalti" "result" (func $result (param i32 i32) (result i32)))"#
}

pub(super) fn types(arguments: &str) -> String {
    let each = arguments.chars().map(|kind| match kind {
        'r' | 'w' => "i64",
        'p' | 'l' => "i32 i32",
        _ => "i32",
    });
    each.collect::<Vec<_>>().join(" ")
}

/// All rights of preview 1.
const RIGHTS: i64 = (1 << 30) - 1;
/// How often a call has an argument that makes no sense, in 64: the first ends most guests.
pub(super) const WILD: [u8; 4] = [0, 0, 1, 8];

/// Names in a guest's memory, each at a multiple of [`PATH_STEP`] from [`PATHS`] on.
const NAMES: [&str; 16] =
    ["f", "g", "d", "d/f", ".", "..", "../secret", "/", "/etc/passwd", "out", "out/x", "d/../..", "f/", "\\ff\\fe", "a\\00b", "loop"];
const PATHS: u32 = 1024;
const PATH_STEP: u32 = 64;
/// Lists of two buffers each; every list differs in where they lie and how long they are.
const LISTS: u32 = 4096;
const LIST_STEP: u32 = 16;
const BUFFERS: [[u32; 4]; 8] = [
    [8192, 100, 8400, 0],
    [8192, 0, 8400, 50],
    [8192, 57_344, 0, 0],
    // From here on over itself, over all, beyond the end, around it.
    [LISTS, 200, LISTS, 8],
    [0, 1 << 20, 0, 1 << 20],
    [65_536, 100, u32::MAX, 1],
    [0, u32::MAX, 1, 1],
    [0x8000_0000, 0x8000_0000, 0, 0],
];
const SOUND_LISTS: usize = 3;
/// Where handles lie.
const HANDLES: u32 = 512;
/// Most calls of one guest; it may make them several times.
const MAX_CALLS: usize = 40;

/// A guest that makes random calls whose arguments mostly make sense, so that they get further than the first check.
pub(super) fn calls(u: &mut Unstructured<'_>) -> Result<String> {
    let pages = *u.choose(&[1, 1, 17, 40])?;
    let rounds = *u.choose(&[1, 3, 100])?;
    let wild = *u.choose(&WILD)?;
    let mut body = String::new();
    for _ in 0..u.int_in_range(1..=MAX_CALLS)? {
        let (name, arguments) = *u.choose(&PREVIEW1)?;
        // Nothing comes after it.
        if name == "proc_exit" && !u.ratio(1, 8)? {
            continue;
        }
        let mut call = format!("(call ${name}");
        let wild = wild > 0 && u.ratio(wild, 64)?;
        for kind in arguments.chars() {
            argument(u, kind, pages, wild, &mut call)?;
        }
        let _ = if name == "proc_exit" { writeln!(body, "{call})") } else { writeln!(body, "(drop {call}))") };
    }
    Ok(format!(
        r#"(module {} (memory (export "memory") {pages}) {}
           (func (export "_start") (local $n i32)
             (loop $again {body}
               (br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const {rounds}))))))"#,
        imports(),
        data()
    ))
}

/// What the arguments point to.
pub(super) fn data() -> String {
    let mut data = String::new();
    for (at, name) in (PATHS..).step_by(PATH_STEP as usize).zip(NAMES) {
        let _ = writeln!(data, r#"(data (i32.const {at}) "{name}")"#);
    }
    for (at, list) in (LISTS..).step_by(LIST_STEP as usize).zip(BUFFERS) {
        let bytes: String = list.iter().flat_map(|n| n.to_le_bytes()).map(|b| format!("\\{b:02x}")).collect();
        let _ = writeln!(data, r#"(data (i32.const {at}) "{bytes}")"#);
    }
    let handles: String = (1..9_u32).flat_map(u32::to_le_bytes).map(|b| format!("\\{b:02x}")).collect();
    let _ = writeln!(data, r#"(data (i32.const {HANDLES}) "{handles}")"#);
    data
}

/// Appends one argument.
pub(super) fn argument(u: &mut Unstructured<'_>, kind: char, pages: u32, wild: bool, call: &mut String) -> Result<()> {
    if wild && u.ratio(1, 4)? {
        // Anything at all.
        let (a, b, c) = (u.arbitrary::<i32>()?, u.arbitrary::<i32>()?, u.arbitrary::<i64>()?);
        let _ = match kind {
            'r' | 'w' => write!(call, " (i64.const {c})"),
            'p' | 'l' => write!(call, " (i32.const {a}) (i32.const {b})"),
            _ => write!(call, " (i32.const {a})"),
        };
        return Ok(());
    }
    let text = match kind {
        'a' if !wild => format!(" (i32.const {})", u.choose(&[0, 16, HANDLES, 8192, 60_000])?),
        'n' if !wild => format!(" (i32.const {})", u.choose(&[0, 1, 2, 8, 24, 100, 1000])?),
        // Standard streams, two directories or a listener, and what was opened.
        'd' => format!(" (i32.const {})", u.int_in_range(0..=9)?),
        'a' => format!(" (i32.const {})", u.choose(&[0, 16, 40, 512, 8192, 8193, 60_000, pages * 65_536 - 8, pages * 65_536])?),
        'n' => format!(" (i32.const {})", u.choose(&[0, 1, 2, 23, 24, 25, 100, 4096, 65_536, 2_000_000])?),
        'f' => format!(" (i32.const {})", u.int_in_range(0..=17)?),
        'm' => format!(" (i32.const {})", u.int_in_range(0..=15)?),
        'g' => format!(" (i32.const {})", u.int_in_range(0..=31)?),
        'r' => format!(" (i64.const {})", u.choose(&[RIGHTS, RIGHTS, 0, 2, 64, RIGHTS / 2])?),
        '0'..='9' => format!(" (i32.const {})", u.int_in_range(0..=kind.to_digit(10).unwrap_or(0) + u32::from(wild))?),
        'w' => format!(" (i64.const {})", u.choose(&[0, 1, 2, 63, 100, 4096, 1 << 20, 1 << 40, i64::MAX, i64::MIN, -1])?),
        'p' => {
            let n = u.choose_index(NAMES.len())?;
            let length = NAMES[n].replace("\\ff\\fe", "..").replace("\\00", ".").len();
            let at = u32::try_from(n).unwrap_or(0) * PATH_STEP + PATHS;
            format!(" (i32.const {at}) (i32.const {length})")
        }
        'l' => {
            let n = u.choose_index(if wild { BUFFERS.len() } else { SOUND_LISTS })?;
            let count = if wild { *u.choose(&[0, 1, 2, 3, 1000])? } else { u.int_in_range(0..=2)? };
            format!(" (i32.const {}) (i32.const {count})", LISTS + u32::try_from(n).unwrap_or(0) * LIST_STEP)
        }
        other => unreachable!("{other} is no kind of argument"),
    };
    call.push_str(&text);
    Ok(())
}
