//! One scenario of a pure core, so many rounds: what `cargo xtask instructions` runs under valgrind.

use anyhow::{Context, Result};
use smalti_bench::cores;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let Some(name) = args.next() else {
        for (name, what, _) in cores::SCENARIOS {
            println!("{name}\t{what}");
        }
        return Ok(());
    };
    let rounds = args.next().context("usage: smalti-instructions [SCENARIO ROUNDS]")?.parse().context("ROUNDS is a number")?;
    println!("{}", cores::run(&name, rounds)?);
    Ok(())
}
