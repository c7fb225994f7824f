//! Says hello, prints its arguments and the environment variable `GREETING`, and exits with `--exit CODE` if given.
//! `cat` as the first argument copies stdin to stdout.

use std::io::{self, Read, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "cat") {
        let mut bytes = Vec::new();
        if io::stdin().read_to_end(&mut bytes).and_then(|_| io::stdout().write_all(&bytes)).is_err() {
            return ExitCode::FAILURE;
        }
        return ExitCode::SUCCESS;
    }
    let greeting = std::env::var("GREETING").unwrap_or_else(|_| "Hello".into());
    println!("{greeting} from Smalti");
    for (i, arg) in args.iter().enumerate() {
        println!("argument {i}: {arg}");
    }
    eprintln!("hello is done");
    args.iter().position(|a| a == "--exit").and_then(|i| args.get(i + 1)?.parse().ok()).map_or(ExitCode::SUCCESS, |code: u8| code.into())
}
