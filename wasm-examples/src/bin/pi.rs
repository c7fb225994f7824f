//! Estimates pi: `pi SAMPLES` prints how many of this item's points were inside, `pi --estimate` adds up all items' lines.

use smalti_guest_sdk::Me;
use smalti_wasm_examples::pi;
use std::io::{self, BufRead};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arg = std::env::args().nth(1).ok_or("usage: pi SAMPLES, or pi --estimate")?;
    if arg == "--estimate" {
        let (mut inside, mut samples) = (0_u64, 0_u64);
        for line in io::stdin().lock().lines() {
            let line = line?;
            let (a, b) = line.split_once(' ').ok_or_else(|| format!("not `inside samples`: {line:?}"))?;
            inside += a.parse::<u64>()?;
            samples += b.parse::<u64>()?;
        }
        println!("pi is about {:.6} ({samples} samples)", pi::estimate(inside, samples));
        return Ok(());
    }
    let samples: u64 = arg.parse()?;
    let seed = Me::from_env().item.unwrap_or(0);
    println!("{} {samples}", pi::inside(seed, samples));
    Ok(())
}
