//! Counts the words of stdin; with `--merge` sums the counts that other instances printed.

use smalti_wasm_examples::words;
use std::io;

fn main() -> io::Result<()> {
    let input = io::BufReader::with_capacity(1 << 16, io::stdin());
    let counts = if std::env::args().any(|a| a == "--merge") { words::merge(input)? } else { words::count(input)? };
    words::print(counts, io::stdout().lock())
}
