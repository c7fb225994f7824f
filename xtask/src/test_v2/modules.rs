//! Kernel modules that the machine needs, unpacked, in the order of their loading.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the cloud kernels have as modules and tests need; what is built in is not found, and that is right.
const WANTED: [&str; 4] = ["virtio_pci", "virtio_blk", "loop", "overlay"];

/// A module's name and bytes.
pub(super) type Module = (String, Vec<u8>);

/// Reads the wanted modules below `directory`, what they depend on before them.
pub(super) fn load_order(directory: &Path) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    find(directory, &mut files).with_context(|| format!("listing modules in {}", directory.display()))?;
    let mut order = Vec::new();
    for name in WANTED {
        add(name, &files, &mut order)?;
    }
    Ok(order)
}

fn add(name: &str, files: &BTreeMap<String, PathBuf>, order: &mut Vec<Module>) -> Result<()> {
    let Some(path) = files.get(name).filter(|_| order.iter().all(|(there, _)| there != name)) else { return Ok(()) };
    let bytes = unpacked(path)?;
    for needed in depends(&bytes) {
        add(&needed, files, order)?;
    }
    order.push((name.to_owned(), bytes));
    Ok(())
}

fn find(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find(&entry.path(), files)?;
        } else if let Some(name) = entry.file_name().to_str().and_then(module_name) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// Pure: `virtio-blk.ko.xz` is the module `virtio_blk`.
fn module_name(file: &str) -> Option<String> {
    let (name, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".xz").then(|| name.replace('-', "_"))
}

fn unpacked(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|e| e != "xz") {
        return std::fs::read(path).with_context(|| path.display().to_string());
    }
    let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(path).output().context("running xz")?;
    anyhow::ensure!(output.status.success(), "xz {}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// Pure: names in a module's own `depends=` record.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|w| w == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|b| *b == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|n| !n.is_empty()).map(|n| n.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_dependencies() {
        assert_eq!(module_name("virtio-blk.ko.xz").as_deref(), Some("virtio_blk"));
        assert_eq!(module_name("loop.ko").as_deref(), Some("loop"));
        assert_eq!((module_name("modules.dep"), module_name("x.ko.zst")), (None, None));
        assert_eq!(depends(b"license=GPL\0depends=virtio,virtio-ring\0x"), ["virtio", "virtio_ring"]);
        assert_eq!((depends(b"a\0depends=\0"), depends(b"nothing")), (vec![], vec![]));
    }

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("deep")).unwrap();
        let write = |name: &str, needs: &str| std::fs::write(dir.path().join(name), format!("x\0depends={needs}\0")).unwrap();
        write("deep/virtio.ko", "");
        write("virtio_pci.ko", "virtio,built_in");
        write("virtio-blk.ko", "virtio");
        write("unwanted.ko", "");
        let names: Vec<String> = load_order(dir.path()).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["virtio", "virtio_pci", "virtio_blk"]);
    }
}
