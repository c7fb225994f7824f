//! Where things lie in a worker's memory: not where they lie in any other executor's.
//!
//! A copy of a process has its layout, and all executors of an agent are copies of one. What counts is mapped after the copy was
//! made: memories, stacks and code of guests, stacks of threads. The kernel puts one mapping below the other, so a hole of random
//! length moves all of them. The program itself and its libraries lie where they lie in every copy (`docs/threat-model.md`).

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;

/// The hole has at most 2 to this number of pages: a TiB.
const PAGES_BITS: u32 = 28;

/// What decides about the hole; read while there are paths.
pub(crate) type Seed = Result<[u8; 8], String>;

/// A new one, for one worker.
pub(crate) fn seed() -> Seed {
    let mut bytes = [0; 8];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).map_err(|e| format!("reading /dev/urandom: {e}"))?;
    Ok(bytes)
}

/// Moves whatever is mapped from now on, or says why it lies where the kernel would have put it in every copy.
pub(crate) fn scatter_or_say(seed: Seed) {
    if let Err(e) = scatter(seed) {
        eprintln!("smalti-executor: memory lies where it lies in other executors: {e}");
    }
}

fn scatter(seed: Seed) -> Result<(), String> {
    let bytes = seed?;
    let pages = (u64::from_ne_bytes(bytes) >> (u64::BITS - PAGES_BITS)) + 1;
    let length = usize::try_from(pages).unwrap_or(1).saturating_mul(rustix::param::page_size());
    let Some(length) = NonZeroUsize::new(length) else { return Ok(()) };
    #[expect(unsafe_code, reason = "address space is not to be had otherwise")]
    // SAFETY: new memory that nobody can use, at an address that the kernel chooses.
    let hole = unsafe { mmap_anonymous(None, length, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE) };
    hole.map(drop).map_err(|e| format!("reserving {length} bytes of address space: {e}"))
}
