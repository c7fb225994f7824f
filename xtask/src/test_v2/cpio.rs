//! Archives in cpio's `newc` form, which the kernel unpacks as its first file system. Pure.

/// Marks a file's type in its mode.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
/// Names and contents begin at multiples of this.
const ALIGNMENT: usize = 4;
/// The last entry's name.
const TRAILER: &str = "TRAILER!!!";

/// An archive that grows.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    directories: std::collections::BTreeSet<String>,
    inodes: u32,
}

impl Archive {
    /// Adds a file with the directories above it. `path` is relative.
    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.parents(path);
        self.entry(path, REGULAR | mode, content);
    }

    /// Adds an empty directory with those above it.
    pub(super) fn directory(&mut self, path: &str) {
        self.parents(&format!("{path}/"));
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, b"");
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        for (end, _) in path.match_indices('/') {
            let parent = &path[..end];
            if !parent.is_empty() && self.directories.insert(parent.to_owned()) {
                self.entry(parent, DIRECTORY | 0o755, b"");
            }
        }
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inodes += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        // inode, mode, uid, gid, links, time, size, device (2), device of a node (2), length of the name, checksum (none).
        let fields = [self.inodes, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_directories_come_once_and_first() {
        let mut archive = Archive::default();
        archive.file("a/b/c", 0o755, b"12345");
        archive.file("a/b/d", 0o644, b"");
        archive.directory("e");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % ALIGNMENT, 0);
        let starts: Vec<usize> = bytes.windows(6).enumerate().filter(|(_, w)| w == b"070701").map(|(i, _)| i).collect();
        let name = |at: &usize| {
            let text = &bytes[at + 110..];
            String::from_utf8_lossy(&text[..text.iter().position(|b| *b == 0).unwrap()]).into_owned()
        };
        assert!(starts.iter().all(|s| s % ALIGNMENT == 0), "{starts:?}");
        assert_eq!(starts.iter().map(name).collect::<Vec<_>>(), ["a", "a/b", "a/b/c", "a/b/d", "e", TRAILER]);
        let field = |at: usize, n: usize| u32::from_str_radix(std::str::from_utf8(&bytes[at + 6 + 8 * n..][..8]).unwrap(), 16).unwrap();
        assert_eq!((field(starts[0], 1), field(starts[2], 1), field(starts[2], 6)), (0o040_755, 0o100_755, 5));
    }
}
