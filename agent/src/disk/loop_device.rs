//! Loop devices: a file as a block device, until nothing uses it any more.
//!
//! Owns the two ioctls. The kernel detaches the file by itself with the device's last user, so nothing is left behind by a crash.

#![expect(unsafe_code, reason = "the kernel's interface to loop devices is two ioctls")]

use super::mount::Error;
use nix::libc;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

const CONTROL: &str = "/dev/loop-control";
/// From linux/loop.h.
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Somebody else may take the free device first; others do not do that for ever.
const TRIES: u32 = 64;

/// `struct loop_info64`.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// A device over a file. It must live until the device is mounted: without a user the kernel detaches the file.
#[derive(Debug)]
pub(super) struct Device {
    path: String,
    _open: File,
}

impl Device {
    /// `/dev/loop<n>`.
    pub(super) fn path(&self) -> &str {
        &self.path
    }
}

/// Puts a free device over `file`.
///
/// # Errors
/// No loop devices here, or none that this process may use.
pub(super) fn attach(file: &File) -> Result<Device, Error> {
    let control = open(CONTROL)?;
    for _ in 0..TRIES {
        // SAFETY: this request takes no argument and touches no memory of this process.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
        if number < 0 {
            return Err(Error::new("asking for a free loop device from", CONTROL, io::Error::last_os_error()));
        }
        let path = format!("/dev/loop{number}");
        let device = open(&path)?;
        match configure(&device, file) {
            Ok(()) => return Ok(Device { path, _open: device }),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
            Err(e) => return Err(Error::new("configuring", path, e)),
        }
    }
    Err(Error::new("getting a device from", CONTROL, io::Error::from(io::ErrorKind::ResourceBusy)))
}

fn configure(device: &File, file: &File) -> io::Result<()> {
    let info = Info {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: LO_FLAGS_AUTOCLEAR,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let fd = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    let config = Config { fd, block_size: 0, info, reserved: [0; 8] };
    // SAFETY: the kernel reads one `struct loop_config` from the pointer, which is one for as long as the call lasts.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn open(path: &str) -> Result<File, Error> {
    OpenOptions::new().read(true).write(true).open(path).map_err(|e| Error::new("opening", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_structures_have_the_kernels_sizes() {
        assert_eq!((size_of::<Info>(), size_of::<Config>()), (232, 304));
        assert_eq!(std::mem::offset_of!(Info, flags), 52);
    }
}
