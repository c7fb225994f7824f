//! Prints what the task knows of itself, reports progress and returns a value. Its global counter shows that every item
//! has a fresh instance: it always prints 1.

use smalti_guest_sdk::{Me, progress, return_value};
use std::sync::atomic::{AtomicU64, Ordering};

static COUNTER: AtomicU64 = AtomicU64::new(0);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let me = Me::from_env();
    progress(0.5, "half way");
    if std::env::args().any(|a| a == "--counter") {
        println!("{}", COUNTER.fetch_add(1, Ordering::Relaxed) + 1);
    } else {
        println!("{me:#?}");
    }
    return_value(format!("item {:?} of {:?}", me.item, me.items).as_bytes())?;
    progress(1.0, "done");
    Ok(())
}
