//! What becomes of each hostile guest: state, reason and exit code, the same in both isolation classes.

use Input::{Dir, None as Nothing, Stdin};

/// What a guest is given beside its flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    None,
    /// An archive, so that it has one preopened directory with a file and a link in it.
    Dir,
    /// So many bytes on stdin.
    Stdin(usize),
}

/// One guest and its due end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) guest: &'static str,
    pub(crate) flags: &'static [&'static str],
    pub(crate) input: Input,
    pub(crate) state: &'static str,
    pub(crate) reason: &'static str,
    /// What `smalti run` exits with.
    pub(crate) code: i32,
    /// Must be in the message.
    pub(crate) message: &'static str,
}

const fn case(guest: &'static str, flags: &'static [&'static str], input: Input, end: End, message: &'static str) -> Case {
    Case { guest, flags, input, state: end.0, reason: end.1, code: end.2, message }
}

type End = (&'static str, &'static str, i32);
const FINE: End = ("FINISHED", "", 0);
const TRAP: End = ("FAILED", "TRAP", 134);
const TIME: End = ("FAILED", "TIME_LIMIT", 124);
const MEMORY: End = ("FAILED", "MEMORY_LIMIT", 137);
const OUTPUT: End = ("FAILED", "OUTPUT_LIMIT", 137);
const HANDLES: End = ("FAILED", "HANDLE_LIMIT", 137);
const INSTANCES: End = ("FAILED", "INSTANCE_LIMIT", 137);
const INVALID: End = ("FAILED", "INVALID_BUNDLE", 126);

const fn exits(code: i32) -> End {
    ("FAILED", "EXIT_CODE", code)
}

/// Long enough that it surely runs, short enough for a test.
const SHORT: &[&str] = &["--timeout", "200ms"];
/// Time that no guest uses up which is given it.
pub(crate) const AMPLE: &str = "60s";
/// The same as a number.
pub(crate) const AMPLE_TIME: std::time::Duration = std::time::Duration::from_secs(60);
const MIB_32: &[&str] = &["--mem", "32MiB", "--timeout", AMPLE];
const PLAIN: &[&str] = &["--timeout", AMPLE];
const LITTLE_OUTPUT: &[&str] = &["--output-limit", "1MiB", "--timeout", AMPLE];

/// Guests that compute, recurse, grow.
pub(crate) const COMPUTE: &[Case] = &[
    case("infinite-loop", SHORT, Nothing, TIME, ""),
    case("loop-in-start-function", SHORT, Nothing, TIME, ""),
    case("exit-in-start-function", PLAIN, Nothing, exits(7), "exit code 7"),
    case("trap-in-start-function", PLAIN, Nothing, TRAP, "unreachable"),
    case("tail-call-loop", SHORT, Nothing, TIME, ""),
    case("call-indirect-storm", SHORT, Nothing, TIME, ""),
    case("deep-recursion", PLAIN, Nothing, TRAP, "stack"),
    case("deep-recursion-indirect", PLAIN, Nothing, TRAP, "stack"),
    case("memory-to-the-limit", MIB_32, Nothing, FINE, ""),
    case("memory-one-beyond", MIB_32, Nothing, MEMORY, "33554432"),
    case("memory-refused-then-exit", MIB_32, Nothing, exits(3), "memory limit of 33554432"),
    case("memory-in-many", MIB_32, Nothing, MEMORY, "33554432"),
    case("memory-2gib-declared", MIB_32, Nothing, MEMORY, "33554432"),
    case("memory-grow-zero", SHORT, Nothing, TIME, ""),
    case("memory-fill", &["--mem", "64MiB", "--timeout", "200ms"], Nothing, TIME, ""),
    case("memory-dirty", MIB_32, Nothing, TRAP, ""),
    case("memory-held", &["--mem", "64MiB", "--timeout", "500ms"], Nothing, TIME, ""),
    case("table-growth", &["--mem", "8MiB", "--timeout", AMPLE], Nothing, MEMORY, "8388608"),
];

/// Guests that ask the host for too much.
pub(crate) const HOST_CALLS: &[Case] = &[
    case("iovecs-buffer-beyond-memory", PLAIN, Nothing, TRAP, "out of bounds"),
    case("iovecs-buffer-wraps", PLAIN, Nothing, TRAP, "out of bounds"),
    // More than the host copies in one call: both are refused with ENOMEM (48).
    case("iovecs-length-of-all", PLAIN, Nothing, exits((48 * 10 + 48) % 126), ""),
    case("iovecs-list-beyond-memory", PLAIN, Nothing, TRAP, "out of bounds"),
    case("iovecs-list-wraps", PLAIN, Nothing, TRAP, "out of bounds"),
    case("iovecs-two-thousand-million", PLAIN, Nothing, exits((48 * 10 + 48) % 126), ""),
    case("iovecs-four-thousand-million", PLAIN, Nothing, exits((48 * 10 + 48) % 126), ""),
    case("iovecs-not-aligned", PLAIN, Nothing, TRAP, "aligned"),
    case("iovecs-result-beyond-memory", PLAIN, Nothing, TRAP, "out of bounds"),
    case("iovecs-over-themselves", PLAIN, Nothing, FINE, ""),
    case("iovecs-many", SHORT, Nothing, TIME, ""),
    case("sleep-for-ever", SHORT, Nothing, TIME, ""),
    case("poll-2-31", PLAIN, Nothing, FINE, ""),
    case("poll-many-clocks", PLAIN, Nothing, HANDLES, ""),
    case("poll-storm", SHORT, Nothing, TIME, ""),
    case("random-4gib", PLAIN, Nothing, TRAP, "exceeds limit"),
    case("random-flood", SHORT, Nothing, TIME, ""),
    case("clock-flood", SHORT, Nothing, TIME, ""),
    case("stdout-flood", LITTLE_OUTPUT, Nothing, OUTPUT, "1048576"),
    case("stderr-one-byte-flood", LITTLE_OUTPUT, Nothing, OUTPUT, "1048576"),
    case("stdout-large-write", &["--mem", "64MiB", "--output-limit", "1MiB"], Nothing, OUTPUT, "1048576"),
    case("stdin-never-read", PLAIN, Stdin(8 << 20), FINE, ""),
    case("stdin-polled", SHORT, Stdin(1 << 20), TIME, ""),
    case("descriptors-renumbered", PLAIN, Nothing, FINE, ""),
    case("sockets-preview1", PLAIN, Nothing, FINE, ""),
    case("exit-code-256", PLAIN, Nothing, TRAP, "exit"),
    case("exit-code-negative", PLAIN, Nothing, TRAP, "exit"),
    case("exit-code-min", PLAIN, Nothing, TRAP, "exit"),
    case("progress-flood", SHORT, Nothing, TIME, ""),
    case("result-flood", SHORT, Nothing, TIME, ""),
    case("result-outside-memory", PLAIN, Nothing, TRAP, ""),
    case("memory-not-exported", PLAIN, Nothing, TRAP, "memory export"),
    case("sockets", PLAIN, Nothing, FINE, ""),
    case("p2:sockets", PLAIN, Nothing, FINE, ""),
    case("handles-10000", PLAIN, Dir, HANDLES, ""),
    case("names-not-utf8", PLAIN, Dir, FINE, ""),
    case("path-outside-memory", PLAIN, Dir, TRAP, "out of bounds"),
    case("clock-that-is-none", PLAIN, Nothing, TRAP, "Clockid"),
    case("readdir-tiny-buffers", SHORT, Dir, TIME, ""),
    case("paths-of-a-mebibyte", SHORT, Dir, TIME, ""),
    case("read-large", SHORT, Dir, TIME, ""),
];

/// Components.
pub(crate) const COMPONENTS: &[Case] = &[
    case("component-infinite-loop", SHORT, Nothing, TIME, ""),
    case("component-loop-in-start-function", SHORT, Nothing, TIME, ""),
    case("component-memory-beyond", MIB_32, Nothing, MEMORY, "33554432"),
    case("component-resource-leak", PLAIN, Nothing, HANDLES, ""),
    case("component-pollable-leak", PLAIN, Nothing, HANDLES, ""),
    case("component-stream-leak", PLAIN, Nothing, HANDLES, ""),
    case("component-pollables-held", SHORT, Nothing, TIME, ""),
    case("component-file-streams", &["--mem", "16MiB", "--timeout", AMPLE], Dir, exits(1), "memory limit of 16777216"),
    case("component-file-streams", &["--mem", "256MiB", "--timeout", AMPLE], Dir, FINE, ""),
    case("component-file-streams-held", SHORT, Dir, TIME, ""),
    case("component-huge-list", PLAIN, Nothing, TRAP, ""),
    case("component-list-outside-memory", PLAIN, Nothing, TRAP, ""),
    case("component-stdout-flood", LITTLE_OUTPUT, Nothing, OUTPUT, "1048576"),
    case("component-impossible-result", PLAIN, Nothing, TRAP, ""),
    case("component-200-instances", PLAIN, Nothing, INSTANCES, ""),
    case("types-nested-component", PLAIN, Nothing, INVALID, ""),
];

/// Bundles that need a proposal which is off, or are built to trouble the compiler.
pub(crate) const BUNDLES: &[Case] = &[
    case("proposal-threads", PLAIN, Nothing, INVALID, "threads"),
    case("proposal-memory64", PLAIN, Nothing, INVALID, "64"),
    case("proposal-custom-page-sizes", PLAIN, Nothing, INVALID, "page"),
    case("proposal-gc", PLAIN, Nothing, INVALID, ""),
    case("proposal-exceptions", PLAIN, Nothing, INVALID, "exception"),
    case("proposal-function-references", PLAIN, Nothing, INVALID, ""),
    case("proposal-stack-switching", PLAIN, Nothing, INVALID, ""),
    case("proposal-wide-arithmetic", PLAIN, Nothing, INVALID, ""),
    case("functions-100000", PLAIN, Nothing, FINE, ""),
    case("functions-100000-in-a-table", PLAIN, Nothing, INSTANCES, ""),
    case("imports-10000", PLAIN, Nothing, INVALID, "imports"),
    case("imports-10000-unknown", PLAIN, Nothing, INVALID, "imports"),
    case("data-48-mib", &["--mem", "32MiB"], Nothing, MEMORY, "33554432"),
    case("data-48-mib", &["--mem", "64MiB"], Nothing, FINE, ""),
    case("data-10000-segments", PLAIN, Nothing, FINE, ""),
    case("custom-section-100-mib", PLAIN, Nothing, FINE, ""),
    case("compiler-bomb", PLAIN, Nothing, INVALID, "compil"),
    case("blocks-50000-deep", PLAIN, Nothing, FINE, ""),
    case("br-table-60000", PLAIN, Nothing, FINE, ""),
    case("br-table-too-large", PLAIN, Nothing, INVALID, ""),
    case("locals-40000", PLAIN, Nothing, TRAP, "stack"),
    case("locals-too-many", PLAIN, Nothing, INVALID, "locals"),
    case("name-of-90-kib", PLAIN, Nothing, TRAP, "unreachable"),
    case("tables-17", PLAIN, Nothing, INVALID, "tables"),
    case("memories-5", PLAIN, Nothing, INVALID, "memories"),
    case("table-200000-elements", PLAIN, Nothing, INVALID, "elements"),
    case("exports-100000", PLAIN, Nothing, FINE, ""),
    case("globals-100000", PLAIN, Nothing, INSTANCES, ""),
];

const DISK: &[&str] = &["--disk", "8MiB", "--timeout", AMPLE];

/// Guests with a writable directory of 8 MiB.
pub(crate) const DISKS: &[Case] = &[
    case("files escape /scratch", DISK, Nothing, FINE, ""),
    case("files fill /scratch", DISK, Nothing, FINE, ""),
    case("files sparse /scratch", DISK, Nothing, FINE, ""),
    case("files many /scratch", DISK, Nothing, FINE, ""),
    case("files hold /scratch", DISK, Nothing, HANDLES, ""),
    case("files count /scratch", DISK, Nothing, FINE, ""),
    case("p2:files escape /scratch", DISK, Nothing, FINE, ""),
    case("p2:files fill /scratch", DISK, Nothing, FINE, ""),
    case("p2:files sparse /scratch", DISK, Nothing, FINE, ""),
    case("p2:files many /scratch", DISK, Nothing, FINE, ""),
    case("p2:files hold /scratch", DISK, Nothing, HANDLES, ""),
    case("p2:files count /scratch", DISK, Nothing, FINE, ""),
];

/// All of them.
pub(crate) fn all() -> impl Iterator<Item = &'static Case> {
    [COMPUTE, HOST_CALLS, COMPONENTS, BUNDLES, DISKS].into_iter().flatten()
}
