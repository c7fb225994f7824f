//! Counts what must be complete: as item of an array it works for some microseconds and prints its index; with `--merge` it reads
//! what all items printed and says how many there were, their sum, and whether they came in order, each once. `--say TEXT` prints that.
//!
//! `smalti map tally.wasm --items 20000 --reduce tally.wasm --reduce-arg --merge -- 500`

use std::io::BufRead;
use std::time::{Duration, Instant};

fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("--merge") => merge(),
        Some("--say") => {
            work(args.get(2));
            println!("{}", args.get(1).map_or("", String::as_str));
            Ok(())
        }
        micros => {
            work(micros.map(str::to_owned).as_ref());
            println!("{}", smalti_guest_sdk::Me::from_env().item.unwrap_or_default());
            Ok(())
        }
    }
}

fn work(micros: Option<&String>) {
    let span = Duration::from_micros(micros.and_then(|us| us.parse().ok()).unwrap_or(0));
    let start = Instant::now();
    while start.elapsed() < span {
        std::hint::spin_loop();
    }
}

fn merge() -> std::io::Result<()> {
    let (mut count, mut sum, mut ordered) = (0_u64, 0_u64, true);
    for line in std::io::stdin().lock().lines() {
        let item: u64 = line?.parse().map_err(std::io::Error::other)?;
        ordered &= item == count;
        count += 1;
        sum += item;
    }
    println!("count {count} sum {sum} {}", if ordered { "in order" } else { "NOT IN ORDER" });
    Ok(())
}
