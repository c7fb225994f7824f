//! Where the log lies: two files of which one is in use, and the boot of the machine that they were written in.
//!
//! Owns the file operations, behind a trait: the simulation has a disk of its own. Deliberately absent: what is in the files.

use rustix::fs::{FallocateFlags, RenameFlags};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Room in files is taken in steps of this.
pub(crate) const STEP: u64 = 4 << 20;

/// One of the two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The one that is read at the start.
    Log,
    /// The one that the next snapshot is written to.
    Spare,
}

/// What the log needs of a disk.
pub trait Disk {
    /// The length of a file; `None`: it is not there.
    ///
    /// # Errors
    /// What the disk says.
    fn length(&mut self, which: Which) -> io::Result<Option<u64>>;

    /// The bytes from `at` on, as many as `buffer` takes.
    ///
    /// # Errors
    /// What the disk says; fewer bytes are an error too.
    fn read(&mut self, which: Which, at: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Makes the file if it is not there, and takes room for it up to this length: writes below it need no more.
    ///
    /// # Errors
    /// What the disk says; above all that it is full.
    fn reserve(&mut self, which: Which, length: u64) -> io::Result<()>;

    /// Writes within the reserved length. It survives the end of the process at once, and that of the machine some time later.
    ///
    /// # Errors
    /// What the disk says.
    fn write(&mut self, which: Which, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Each of the two takes the other's place, at once or not at all.
    ///
    /// # Errors
    /// What the disk says.
    fn swap(&mut self) -> io::Result<()>;

    /// The boot that was noted last.
    ///
    /// # Errors
    /// What the disk says.
    fn boot(&mut self) -> io::Result<Option<String>>;

    /// Notes the boot, durably: after the next one, whatever was not synced may be gone.
    ///
    /// # Errors
    /// What the disk says.
    fn note_boot(&mut self, boot: &str) -> io::Result<()>;

    /// Where a file lies, for people.
    fn name(&self, which: Which) -> String;

    /// Room is taken in steps of this many bytes; a log of a few of them is long.
    fn step(&self) -> u64 {
        STEP
    }
}

/// Files in a directory of the agent's own.
#[derive(Debug)]
pub struct Files {
    directory: PathBuf,
    log: Option<File>,
    spare: Option<File>,
}

const LOG: &str = "log";
const SPARE: &str = "log.spare";
const BOOT: &str = "boot_id";

impl Files {
    /// In this directory, which is made if it is not there, for its owner only.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(directory: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let open = |name| match File::options().read(true).write(true).open(directory.join(name)) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        };
        Ok(Self { log: open(LOG)?, spare: open(SPARE)?, directory: directory.to_owned() })
    }

    const fn file(&mut self, which: Which) -> &mut Option<File> {
        match which {
            Which::Log => &mut self.log,
            Which::Spare => &mut self.spare,
        }
    }

    fn path(&self, which: Which) -> PathBuf {
        self.directory.join(match which {
            Which::Log => LOG,
            Which::Spare => SPARE,
        })
    }

    fn there(&mut self, which: Which) -> io::Result<&File> {
        self.file(which).as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for Files {
    fn length(&mut self, which: Which) -> io::Result<Option<u64>> {
        self.file(which).as_ref().map(|file| Ok(file.metadata()?.len())).transpose()
    }

    fn read(&mut self, which: Which, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.there(which)?.read_exact_at(buffer, at)
    }

    fn reserve(&mut self, which: Which, length: u64) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        if self.file(which).is_none() {
            let path = self.path(which);
            let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
            *self.file(which) = Some(file);
        }
        let file = self.there(which)?;
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, length) {
            Ok(()) => Ok(()),
            // Without it, zeros that are written take the room.
            Err(rustix::io::Errno::OPNOTSUPP) => fill(file, length),
            Err(e) => Err(e.into()),
        }
    }

    fn write(&mut self, which: Which, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.there(which)?.write_all_at(bytes, at)
    }

    fn swap(&mut self) -> io::Result<()> {
        let (log, spare) = (self.path(Which::Log), self.path(Which::Spare));
        let cwd = rustix::fs::CWD;
        if self.log.is_none() {
            std::fs::rename(&spare, &log)?;
            self.log = self.spare.take();
            return Ok(());
        }
        match rustix::fs::renameat_with(cwd, &spare, cwd, &log, RenameFlags::EXCHANGE) {
            Ok(()) => std::mem::swap(&mut self.log, &mut self.spare),
            // The room of the old one is given up, then; the next snapshot takes new room.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                std::fs::rename(&spare, &log)?;
                self.log = self.spare.take();
            }
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    fn boot(&mut self) -> io::Result<Option<String>> {
        match std::fs::read_to_string(self.directory.join(BOOT)) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn note_boot(&mut self, boot: &str) -> io::Result<()> {
        use std::io::Write;
        let (path, partial) = (self.directory.join(BOOT), self.directory.join("boot_id.partial"));
        let mut file = File::create(&partial)?;
        writeln!(file, "{boot}")?;
        file.sync_all()?;
        std::fs::rename(&partial, &path)?;
        File::open(&self.directory)?.sync_all()
    }

    fn name(&self, which: Which) -> String {
        self.path(which).display().to_string()
    }
}

fn fill(file: &File, length: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut at = file.metadata()?.len();
    while at < length {
        let n = usize::try_from(length - at).unwrap_or(zeros.len()).min(zeros.len());
        file.write_all_at(&zeros[..n], at)?;
        at += n as u64;
    }
    Ok(())
}
