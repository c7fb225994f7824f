//! The host's programs that the machine is made with, and where they come from.

use crate::build;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

/// Programs needed, and the Debian packages that have them.
const NEEDED: [(&str, &str); 6] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("mkfs.ext4", "e2fsprogs"),
    ("xz", "xz-utils"),
    ("dpkg-deb", "dpkg"),
    ("apt-get", "apt"),
    ("ldd", "libc-bin"),
];
/// Where system programs lie that an ordinary user's `PATH` lacks.
const SYSTEM_DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// The path of a program.
pub(super) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let of_user: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let system = SYSTEM_DIRECTORIES.iter().map(PathBuf::from);
    of_user.into_iter().chain(system).map(|dir| dir.join(program)).find(|p| p.is_file())
}

/// Installs what is missing where this is root on Debian; elsewhere says what to install.
pub(super) fn ensure() -> Result<()> {
    let missing = || NEEDED.iter().filter(|(program, _)| which(program).is_none()).map(|(_, package)| *package).collect::<Vec<_>>();
    let packages = missing();
    if packages.is_empty() || (build::install(&packages)? && missing().is_empty()) {
        return Ok(());
    }
    bail!("the v2 machine needs programs that are not here. On Debian: apt install {}", missing().join(" "))
}

/// Libraries that a program needs, by `ldd`, its loader included. Empty for what is statically linked or a script.
pub(super) fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = std::process::Command::new("ldd").arg(program).output()?;
    Ok(parse_ldd(&String::from_utf8_lossy(&output.stdout)))
}

/// Pure: lines are `name => /path (address)`, `/path (address)` or something without a file.
fn parse_ldd(text: &str) -> Vec<PathBuf> {
    text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_a_program() {
        let text = "\tlinux-vdso.so.1 (0x7ff)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x7f)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n\tlost.so => not found\n";
        assert_eq!(parse_ldd(text), [PathBuf::from("/lib/x/libc.so.6"), PathBuf::from("/lib64/ld-linux-x86-64.so.2")]);
        assert_eq!(parse_ldd("\tnot a dynamic executable\n"), Vec::<PathBuf>::new());
    }
}
