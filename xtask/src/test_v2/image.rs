//! The machine's file systems: a small first one that the kernel unpacks, and the root, an ext4 image.
//!
//! Tests know their fixtures by absolute paths in the workspace, so everything lies at the path that it has here.

use super::cpio::Archive;
use super::modules::Module;
use super::plan::Plan;
use super::tools;
use anyhow::{Context, Result, ensure};
use smalti_tests::workspace_root;
use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the machine's own init lies in the root.
pub(super) const INIT: &str = "v2/init";
/// Where the plan lies in the first file system.
pub(super) const PLAN: &str = "v2/plan.json";
/// Modules in the first file system, and the list that says in which order they are loaded.
pub(super) const MODULES: &str = "v2/modules";
/// Programs of the host that tests run.
const PROGRAMS: &[&str] = &[
    "sh",
    "cat",
    "cp",
    "cut",
    "dd",
    "df",
    "echo",
    "env",
    "false",
    "find",
    "grep",
    "head",
    "id",
    "kill",
    "ln",
    "ls",
    "mkdir",
    "mkfs.ext4",
    "mount",
    "mv",
    "nproc",
    "ps",
    "rm",
    "sed",
    "seq",
    "sleep",
    "sort",
    "stat",
    "tail",
    "test",
    "timeout",
    "touch",
    "tr",
    "true",
    "umount",
    "unshare",
    "wc",
    "curl",
    "bash",
    "setpriv",
];
/// Directories that must be there to be mounted on or written into.
const DIRECTORIES: &[&str] = &["dev", "proc", "sys", "tmp", "run", "root", "etc", "var/tmp", "v2"];
/// Room for what the tests write, beside what the image holds.
const FREE: u64 = 2 << 30;
/// Authorities whose certificates the agent trusts when it fetches; without any it does not start.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Files that programs read: names, addresses, and how mkfs makes its file systems.
const ETC: &[(&str, &str)] = &[
    ("passwd", "root:x:0:0::/root:/bin/sh\nsmalti:x:1000:1000::/tmp:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"),
    ("group", "root:x:0:\nsmalti:x:1000:\nnogroup:x:65534:\n"),
    ("hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
];

/// The first file system: init with its libraries, modules, and the plan.
pub(super) fn first(init: &Path, modules: &[Module], plan: &Plan) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    let read = |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
    archive.file("init", 0o755, &read(init)?);
    for library in tools::libraries(init)? {
        archive.file(library.to_string_lossy().trim_start_matches('/'), 0o755, &read(&library)?);
    }
    for directory in ["dev", "root"] {
        archive.directory(directory);
    }
    let mut order = String::new();
    for (name, bytes) in modules {
        archive.file(&format!("{MODULES}/{name}.ko"), 0o644, bytes);
        order.push_str(&format!("{name}\n"));
    }
    archive.file(&format!("{MODULES}/order"), 0o644, order.as_bytes());
    archive.file(PLAN, 0o644, &serde_json::to_vec(plan)?);
    Ok(archive.finish())
}

/// Makes the root's image at `image`, by way of the directory `staging`, which is removed again.
pub(super) fn root(image: &Path, staging: &Path, init: &Path, built: &[PathBuf]) -> Result<()> {
    let _ = std::fs::remove_dir_all(staging);
    let mut root = Root { staging: staging.to_owned(), there: BTreeSet::new(), bytes: 0 };
    root.layout()?;
    for name in PROGRAMS {
        let path = tools::which(name).with_context(|| format!("tests run {name}, which is not on this machine"))?;
        root.add(&path)?;
        root.add_libraries(&path)?;
    }
    for path in built {
        root.add(path)?;
        // Programs, not guests.
        if path.extension().is_none() {
            root.add_libraries(path)?;
        }
    }
    root.add(Path::new(CERTIFICATES)).context("the agent needs certificates of authorities (Debian's package ca-certificates)")?;
    for path in tracked()? {
        root.add(&path)?;
    }
    root.add_as(init, &staging.join(INIT))?;
    root.add_libraries(init)?;
    make(image, staging, root.bytes)?;
    std::fs::remove_dir_all(staging).with_context(|| format!("removing {}", staging.display()))
}

/// The directory from which the image is made.
struct Root {
    staging: PathBuf,
    there: BTreeSet<PathBuf>,
    bytes: u64,
}

impl Root {
    fn layout(&self) -> Result<()> {
        let make = |path: &str| std::fs::create_dir_all(self.staging.join(path)).with_context(|| format!("creating {path}"));
        for directory in DIRECTORIES {
            make(directory)?;
        }
        // On most systems these are links into /usr.
        for name in ["bin", "sbin", "lib", "lib64"] {
            match std::fs::read_link(Path::new("/").join(name)) {
                Ok(to) => {
                    make(to.to_string_lossy().trim_start_matches('/'))?;
                    symlink(to, self.staging.join(name))?;
                }
                Err(_) => make(name)?,
            }
        }
        for (name, text) in ETC {
            std::fs::write(self.staging.join("etc").join(name), text)?;
        }
        for open in ["tmp", "var/tmp"] {
            std::fs::set_permissions(self.staging.join(open), std::fs::Permissions::from_mode(0o1777))?;
        }
        Ok(())
    }

    /// The file at the same path.
    fn add(&mut self, path: &Path) -> Result<()> {
        ensure!(path.is_absolute(), "{} is not absolute", path.display());
        let to = self.staging.join(path.strip_prefix("/")?);
        self.add_as(path, &to)
    }

    fn add_as(&mut self, path: &Path, to: &Path) -> Result<()> {
        if !self.there.insert(to.to_owned()) {
            return Ok(());
        }
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        }
        let from = path.canonicalize().with_context(|| path.display().to_string())?;
        // By its other name it may be there already.
        if to.exists() {
            return Ok(());
        }
        self.bytes += from.metadata()?.len();
        // A link costs nothing where both are on one file system; mkfs only reads it.
        if std::fs::hard_link(&from, to).is_err() {
            std::fs::copy(&from, to).with_context(|| format!("copying {}", from.display()))?;
        }
        Ok(())
    }

    fn add_libraries(&mut self, program: &Path) -> Result<()> {
        for library in tools::libraries(program)? {
            self.add(&library)?;
        }
        Ok(())
    }
}

/// Files of the repository: tests read some of them.
fn tracked() -> Result<Vec<PathBuf>> {
    let root = workspace_root();
    let output = Command::new("git").args(["ls-files", "-z"]).current_dir(&root).output().context("running git ls-files")?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(names.split('\0').filter(|n| !n.is_empty()).map(|n| root.join(n)).filter(|p| p.is_file()).collect())
}

fn make(image: &Path, staging: &Path, bytes: u64) -> Result<()> {
    let _ = std::fs::remove_file(image);
    let mut c = Command::new(tools::which("mkfs.ext4").context("no mkfs.ext4")?);
    // No journal, no check of what never was used: the image lives for one start.
    c.args(["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,root_owner=0:0", "-d"]).arg(staging).arg(image);
    c.arg(format!("{}k", (bytes + bytes / 4 + FREE) >> 10)).stdout(std::process::Stdio::null());
    crate::build::run(c)
}
