//! Builds what users install and what tests need. One profile, two calls: the executor by itself, because Cargo unifies
//! features inside one call and the executor must not contain a compiler.

use anyhow::{Context, Result, bail};
use smalti_tests::workspace_root;
use std::process::{Command, Stdio};

/// Where the rules for guests come from: preview 1 core modules and WASI 0.2 components.
const TARGETS: [&str; 2] = ["wasm32-wasip1", "wasm32-wasip2"];

/// A `cargo` call in the repository, with the profile that everything uses.
pub(crate) fn cargo(verb: &str) -> Command {
    let mut c = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    c.arg(verb).arg("--release").current_dir(workspace_root());
    c
}

/// Runs `command` and fails with its name if it fails.
pub(crate) fn run(mut command: Command) -> Result<()> {
    let shown =
        format!("{} {}", command.get_program().display(), command.get_args().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" "));
    let status = command.status().with_context(|| format!("starting `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed: {status}");
    }
    Ok(())
}

/// Everything: targets, binaries, guests.
pub(crate) fn everything() -> Result<()> {
    targets()?;
    binaries()?;
    guests()?;
    c_guests()
}

/// Adds the Wasm targets to the toolchain in use. `rust-toolchain.toml` names them, but does not add them to a toolchain
/// that was there before.
fn targets() -> Result<()> {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).current_dir(workspace_root()).output().context("running rustc")?;
    let sysroot = std::path::PathBuf::from(String::from_utf8_lossy(&sysroot.stdout).trim());
    let missing: Vec<_> = TARGETS.into_iter().filter(|t| !sysroot.join("lib/rustlib").join(t).is_dir()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("adding the Rust targets {}", missing.join(", "));
    let mut c = Command::new("rustup");
    c.args(["target", "add"]).args(&missing).current_dir(workspace_root());
    run(c).with_context(|| format!("the Rust targets {} are missing and rustup could not add them", missing.join(", ")))
}

/// `smalti-executor`, then `smalti`.
pub(crate) fn binaries() -> Result<()> {
    for package in ["smalti-executor", "smalti"] {
        let mut c = cargo("build");
        c.args(["--package", package, "--bins"]);
        run(c)?;
    }
    Ok(())
}

/// The Rust guests, for both targets.
fn guests() -> Result<()> {
    for target in TARGETS {
        let mut c = cargo("build");
        c.args(["--package", "smalti-wasm-examples", "--bins", "--target", target]);
        run(c)?;
    }
    Ok(())
}

/// The C guests.
const C_GUESTS: [&str; 2] = ["primes", "http-poll"];

/// The C guests, with clang and the C library that comes with Rust's own target. Without clang: installed where this runs
/// as root on Debian, else said; the tests that need them then fail and say the same.
fn c_guests() -> Result<()> {
    let root = workspace_root();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), std::path::PathBuf::from);
    for name in C_GUESTS {
        let (source, output) = (root.join(format!("wasm-examples/c/{name}.c")), target.join(format!("wasm32-wasip1/release/{name}.wasm")));
        let modified = |p: &std::path::Path| p.metadata().and_then(|m| m.modified()).ok();
        if modified(&output) > modified(&source) {
            continue;
        }
        if !has_clang() && !install(&["clang", "lld", "wasi-libc", "libclang-rt-14-dev-wasm32"])? {
            eprintln!(
                "warning: no clang with wasi-libc: the C examples are not built. On Debian: apt install clang lld wasi-libc libclang-rt-14-dev-wasm32"
            );
            return Ok(());
        }
        let mut c = Command::new("clang");
        c.args(["--target=wasm32-wasi", "-O2", "-o"]).arg(&output).arg(&source);
        run(c)?;
    }
    Ok(())
}

fn has_clang() -> bool {
    let works = |c: &mut Command| c.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    works(Command::new("clang").arg("--version")) && std::path::Path::new("/usr/include/wasm32-wasi/stdio.h").exists()
}

/// Installs Debian packages where this is root and apt is there. Returns whether it did.
pub(crate) fn install(packages: &[&str]) -> Result<bool> {
    if !nix::unistd::geteuid().is_root() || !std::path::Path::new("/usr/bin/apt-get").exists() {
        return Ok(false);
    }
    eprintln!("installing {}", packages.join(", "));
    let apt = |args: &[&str]| {
        let mut c = Command::new("apt-get");
        c.args(["-qq", "-o", "Dpkg::Use-Pty=0"]).args(args).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
        run(c)
    };
    if apt(&[&["install", "--yes", "--no-install-recommends"], packages].concat()).is_err() {
        let again = apt(&["update"]).and_then(|()| apt(&[&["install", "--yes", "--no-install-recommends"], packages].concat()));
        again
            .with_context(|| format!("{} could not be installed: do it by hand, or see to it that apt works here", packages.join(", ")))?;
    }
    Ok(true)
}
