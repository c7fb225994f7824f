//! Counts the lines of stdin that contain LETTER (any text). With `--sum` adds up such counts instead.

use std::io::{self, BufRead};
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(letter) = std::env::args().nth(1) else {
        eprintln!("usage: count-lines-with LETTER, or count-lines-with --sum");
        return ExitCode::from(2);
    };
    let result = if letter == "--sum" { sum(io::stdin().lock()) } else { count(io::stdin().lock(), &letter) };
    match result {
        Ok(n) => {
            println!("{n}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("count-lines-with: {e}");
            ExitCode::FAILURE
        }
    }
}

fn count(mut input: impl BufRead, letter: &str) -> io::Result<u64> {
    let (mut n, mut line) = (0, Vec::new());
    while input.read_until(b'\n', &mut line)? > 0 {
        n += u64::from(String::from_utf8_lossy(&line).contains(letter));
        line.clear();
    }
    Ok(n)
}

fn sum(input: impl BufRead) -> io::Result<u64> {
    input.lines().map(|line| line?.trim().parse::<u64>().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))).sum()
}
