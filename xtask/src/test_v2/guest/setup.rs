//! Making a system of a kernel: modules, mounts, loopback, and a part of the hierarchy that belongs to an ordinary user.

use super::super::image::MODULES;
use super::super::plan::Event;
use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount, mount_move};
use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The user that a part of the hierarchy is delegated to.
pub(super) const USER: u32 = 1000;
/// Where the hierarchy is mounted.
pub(super) const CGROUPS: &str = "/sys/fs/cgroup";
/// The delegated part.
const DELEGATED: &str = "/sys/fs/cgroup/delegated.service";
/// The disk that holds the root.
const DISK: &str = "/dev/vda";
/// Longest wait for it.
const DISK_LIMIT: Duration = Duration::from_secs(20);
/// How systemd mounts the hierarchy.
const CGROUP_OPTIONS: &str = "nsdelegate,memory_recursiveprot";
/// What systemd marks a delegated group with.
const DELEGATE_MARK: &str = "user.delegate";

/// Loads the modules in the order that the list names.
pub(super) fn modules() -> Result<()> {
    let dir = Path::new("/").join(MODULES);
    for name in fs::read_to_string(dir.join("order")).context("the list of modules")?.lines() {
        let file = File::open(dir.join(format!("{name}.ko"))).with_context(|| format!("opening module {name}"))?;
        rustix::system::finit_module(&file, c"", 0).with_context(|| format!("loading module {name}"))?;
    }
    Ok(())
}

/// Makes the disk's file system the root.
pub(super) fn enter_root() -> Result<()> {
    mounted("devtmpfs", "/dev", "devtmpfs", "")?;
    let until = Instant::now() + DISK_LIMIT;
    while !Path::new(DISK).exists() {
        ensure!(Instant::now() < until, "no disk {DISK}");
        std::thread::sleep(Duration::from_millis(10));
    }
    mounted(DISK, "/root", "ext4", "")?;
    mount_move("/dev", "/root/dev").context("moving /dev")?;
    std::env::set_current_dir("/root")?;
    mount_move(".", "/").context("moving the root")?;
    rustix::process::chroot(".").context("entering the root")?;
    std::env::set_current_dir("/")?;
    Ok(())
}

/// What every system has.
pub(super) fn mounts() -> Result<()> {
    mounted("proc", "/proc", "proc", "")?;
    mounted("sysfs", "/sys", "sysfs", "")?;
    mounted("cgroup2", CGROUPS, "cgroup2", CGROUP_OPTIONS)?;
    mounted("tmpfs", "/run", "tmpfs", "mode=755")?;
    for dir in ["/dev/shm", "/dev/pts"] {
        fs::create_dir_all(dir).with_context(|| format!("creating {dir}"))?;
    }
    mounted("tmpfs", "/dev/shm", "tmpfs", "mode=1777")?;
    mounted("devpts", "/dev/pts", "devpts", "")?;
    // As systemd leaves it: what is mounted in a namespace shows in those made of it, unless they turn that off.
    rustix::mount::mount_change("/", rustix::mount::MountPropagationFlags::SHARED | rustix::mount::MountPropagationFlags::REC)
        .context("sharing the root's mounts")?;
    nix::unistd::sethostname("smalti-v2").context("naming the machine")
}

fn mounted(what: &str, on: &str, kind: &str, options: &str) -> Result<()> {
    let options = CString::new(options)?;
    mount(what, on, kind, MountFlags::empty(), &*options).with_context(|| format!("mounting {kind} on {on}"))
}

/// As many open files as systemd lets every service have; the kernel's own 4096 are too few for an executor with many slots.
pub(super) fn open_files() -> Result<()> {
    let limit = rustix::process::Rlimit { current: Some(1024), maximum: Some(524_288) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).context("allowing open files")
}

/// Starts a program in place of this one.
pub(super) fn exec(program: &Path) -> Result<Infallible> {
    let error = std::process::Command::new(program).exec();
    Err(error).with_context(|| format!("starting {}", program.display()))
}

/// Turns on the interface that tests talk over.
#[expect(unsafe_code, reason = "no crate in use turns an interface on")]
pub(super) fn loopback() -> Result<()> {
    use nix::libc;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").context("a socket to set up loopback with")?;
    // SAFETY: all bytes of the plain C structure may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::try_from(*from)?;
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING)?;
    // SAFETY: the request outlives the call, which reads it.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    ensure!(result == 0, "turning loopback on: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Gives the user a part of the hierarchy, as systemd does for a service with `Delegate=yes`, with a group in it for whoever
/// starts things there. Gives that group.
pub(super) fn delegate() -> Result<PathBuf> {
    let root = Path::new(CGROUPS);
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).context("reading controllers")?;
    for controller in controllers.split_whitespace() {
        fs::write(root.join("cgroup.subtree_control"), format!("+{controller}")).with_context(|| format!("handing on {controller}"))?;
    }
    let delegated = PathBuf::from(DELEGATED);
    let session = delegated.join("session");
    for dir in [&delegated, &session] {
        fs::create_dir(dir).with_context(|| format!("creating {}", dir.display()))?;
        for file in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
            let path = dir.join(file);
            std::os::unix::fs::chown(&path, Some(USER), Some(USER)).with_context(|| format!("giving away {}", path.display()))?;
        }
    }
    rustix::fs::setxattr(&delegated, DELEGATE_MARK, b"1", rustix::fs::XattrFlags::empty()).context("marking the delegated group")?;
    Ok(session)
}

/// What the kernel says of itself.
pub(super) fn ready() -> Event {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    Event::Ready {
        kernel: read("/proc/sys/kernel/osrelease"),
        controllers: read("/sys/fs/cgroup/cgroup.controllers"),
        landlock: landlock(),
        pagemap_scan: pagemap_scan(),
    }
}

/// Version of Landlock's interface.
#[expect(unsafe_code, reason = "a system call that libraries hide behind rule sets")]
fn landlock() -> u32 {
    use nix::libc;
    const ASK_FOR_VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the call reads no memory.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, ASK_FOR_VERSION) };
    u32::try_from(version).unwrap_or(0)
}

/// Whether the kernel finds written pages fast.
#[expect(unsafe_code, reason = "no crate in use has this request")]
fn pagemap_scan() -> bool {
    use nix::libc;
    /// `_IOWR('f', 16, struct pm_scan_arg)`: twelve numbers of eight bytes.
    const REQUEST: libc::c_ulong = 0xc060_6610;
    let Ok(file) = File::open("/proc/self/pagemap") else { return false };
    let mut argument = [0_u64; 12];
    argument[0] = u64::try_from(std::mem::size_of_val(&argument)).unwrap_or_default();
    // SAFETY: the argument has the request's size; the range to scan is empty.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), REQUEST, argument.as_mut_ptr()) };
    // An empty range may be refused as such; a kernel without the request says that it is no request.
    result == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOTTY)
}
