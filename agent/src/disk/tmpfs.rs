//! Disks in memory: tmpfs with exactly the pages asked for. Its pages are charged to the memory of the executor that writes them.

use super::backend::Backend;
use super::inodes;
use super::mount::{Error, Mounted};
use smalti_types::Bytes;

/// The root and the guest's directory.
const OWN_INODES: u64 = 2;

#[derive(Debug)]
pub(super) struct Tmpfs;

impl Backend for Tmpfs {
    fn name(&self) -> &'static str {
        "tmpfs"
    }

    fn in_memory(&self) -> bool {
        true
    }

    fn make(&self, size: Bytes) -> Result<Mounted, Error> {
        let (bytes, files) = (size.0.to_string(), (inodes(size) + OWN_INODES).to_string());
        Mounted::mount("tmpfs", &[("size", Some(&bytes)), ("nr_inodes", Some(&files)), ("mode", Some("0700"))])
    }
}
