//! `smalti-executor`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    smalti_executor::main()
}
