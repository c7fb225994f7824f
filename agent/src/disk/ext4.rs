//! Disks in files: ext4 on a loop device over a file that has no name, allocated in full so that the host's disk cannot run out under it.
//!
//! Owns how large the file must be so that the guest gets what it asked for: tables and the kernel's own reserve come on top, and what is
//! too much then is taken away again. No journal: nobody needs what is in it after a crash.
//!
//! A file in more than four pieces takes a block for the list of them, and while one is written ext4 puts such a block aside even where it
//! is not needed in the end. So there is one more than was asked for: one file of exactly that size always fits, and never more than a
//! block beyond it. Tables lie together and have no copies, so that the room is one piece and one such block is enough.

use super::backend::Backend;
use super::loop_device;
use super::mount::{Error, Mounted};
use super::{BLOCK, inodes};
use smalti_types::Bytes;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Below the data directory: where the files are made, to have no name at once.
const DIRECTORY: &str = "disks";
/// Where the program may lie beside `PATH`.
const PROGRAM: &str = "mkfs.ext4";
const SYSTEM_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];
/// Blocks beyond what can be foreseen, and that mkfs needs to make anything at all.
const MARGIN: u64 = 64;
/// For the list of a file's pieces.
const SPARE: u64 = 1;
/// Tables together at the front, no copies of the head elsewhere; no journal, and it never grows.
const FEATURES: &str = "^has_journal,^resize_inode,^sparse_super,sparse_super2";
const EXTENDED: &str = "nodiscard,lazy_itable_init=1,packed_meta_blocks=1,num_backup_sb=0";
/// Disks made at most to find the right size.
const TRIES: u32 = 3;
/// Blocks of a group, entries of a block of the table of files.
const GROUP: u64 = 32_768;
const INODES_PER_BLOCK: u64 = 16;
/// The kernel keeps this part to itself, up to so many blocks.
const RESERVE_PART: u64 = 49;
const MOST_RESERVE: u64 = 4_096;
/// Table entries that ext4 keeps for itself.
const OWN_INODES: u64 = 16;

#[derive(Debug)]
pub(super) struct Ext4 {
    directory: PathBuf,
    program: PathBuf,
}

impl Ext4 {
    /// With its files below `data_dir`.
    pub(super) fn open(data_dir: &Path) -> Result<Self, Error> {
        let directory = data_dir.join(DIRECTORY);
        crate::sandbox::make_private(&directory).map_err(|e| Error::new("making", directory.display().to_string(), e))?;
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let program = std::env::split_paths(&paths).chain(SYSTEM_DIRECTORIES.map(PathBuf::from)).map(|d| d.join(PROGRAM));
        let program = program.into_iter().find(|p| p.is_file());
        let program =
            program.ok_or_else(|| Error::new("finding", PROGRAM, std::io::Error::other("it is not installed (package e2fsprogs)")))?;
        Ok(Self { directory, program })
    }

    /// One file system over a file of `blocks` blocks.
    fn make_over(&self, blocks: u64, inodes: u64) -> Result<Mounted, Error> {
        let shown = || self.directory.display().to_string();
        let file = tempfile::tempfile_in(&self.directory).map_err(|e| Error::new("making a file in", shown(), e))?;
        allocate(&file, blocks * BLOCK).map_err(|e| Error::new("allocating a file in", shown(), e))?;
        self.format(&file, inodes)?;
        let device = loop_device::attach(&file)?;
        // Fresh space reads as zeros, so nobody has to write tables of zeros in the background. Barriers would only slow guests down that
        // ask for data to be on disk: after a crash of the machine it is thrown away.
        Mounted::mount("ext4", &[("source", Some(device.path())), ("noinit_itable", None), ("nobarrier", None)])
    }

    fn format(&self, file: &File, inodes: u64) -> Result<(), Error> {
        let failed = |e| Error::new("running", self.program.display().to_string(), e);
        let output = Command::new(&self.program)
            .args(["-F", "-q", "-b", &BLOCK.to_string(), "-I", "256", "-m", "0", "-N", &(inodes + OWN_INODES).to_string()])
            .args(["-O", FEATURES, "-E", EXTENDED, "/proc/self/fd/0"])
            .env_clear()
            .stdin(Stdio::from(file.try_clone().map_err(failed)?))
            .output()
            .map_err(failed)?;
        if output.status.success() {
            return Ok(());
        }
        let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect();
        Err(failed(std::io::Error::other(format!("{}: {said}", output.status))))
    }
}

impl Backend for Ext4 {
    fn name(&self) -> &'static str {
        "ext4 on loop devices"
    }

    fn in_memory(&self) -> bool {
        false
    }

    fn make(&self, size: Bytes) -> Result<Mounted, Error> {
        let want = size.0 / BLOCK + SPARE;
        let mut blocks = first_guess(want, inodes(size));
        for _ in 0..TRIES {
            let made = self.make_over(blocks, inodes(size))?;
            let have = made.new_room().blocks;
            if have >= want {
                return made.trim(want);
            }
            blocks += want - have + MARGIN;
        }
        Err(Error::new("finding the size of", "an ext4", std::io::Error::other(format!("{blocks} blocks are not enough for {want}"))))
    }
}

/// What a file system of so much room takes: the table of files, two maps and perhaps copies of the head in each group, the kernel's
/// reserve, and a margin.
fn first_guess(want: u64, inodes: u64) -> u64 {
    let groups = want / GROUP + 1;
    want + (inodes + OWN_INODES) / INODES_PER_BLOCK + groups * 4 + (want / RESERVE_PART).min(MOST_RESERVE) + MARGIN
}

/// In full where the file system can; else as a hole.
fn allocate(file: &File, bytes: u64) -> std::io::Result<()> {
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(bytes),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guess_has_room_for_the_tables() {
        assert!(first_guess(1, 1024) > 128, "mkfs makes none that are smaller");
        assert!(first_guess(256, 1024) > 256 + 65);
        assert_eq!(first_guess(1 << 28, 1 << 26) - first_guess((1 << 28) - GROUP, 1 << 26), GROUP + 4, "the reserve has an end");
    }
}
