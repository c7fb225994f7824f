//! What a file is, told from its first bytes, before anything is uploaded.
//!
//! Only tells kinds apart: whether the rest is well-formed is checked where the bundle is compiled.

/// How many first bytes [`Kind::of`] wants to see. A tar header is 512 bytes.
pub(crate) const HEAD: usize = 4096;

/// What can be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A core module.
    Module,
    /// A component.
    Component,
    /// A tar archive, plain or compressed.
    Archive(Compression),
    /// WebAssembly text.
    Text,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Kind {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Module => "module",
            Self::Component => "component",
            Self::Archive(_) => "archive",
            Self::Text => "text",
        }
    }

    /// Tells the kind of a file that begins with `head`.
    ///
    /// # Errors
    /// What it is instead, as the end of the sentence "it is …".
    pub(crate) fn of(head: &[u8]) -> Result<Self, String> {
        if head.is_empty() {
            return Err("an empty file".into());
        }
        if head.starts_with(b"\0asm") {
            return wasm_kind(head);
        }
        if head.len() < 4 && b"\0asm".starts_with(head) {
            return Err(format!("truncated Wasm: only {} bytes long", head.len()));
        }
        if head.starts_with(&[0x1f, 0x8b]) {
            return Ok(Self::Archive(Compression::Gzip));
        }
        if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            return Ok(Self::Archive(Compression::Zstd));
        }
        // An archive without entries is its end mark alone: zeros. It is refused with that reason where it is unpacked.
        let empty_tar = head.len() >= 1024 && head.iter().all(|b| *b == 0);
        if empty_tar || head.get(257..262) == Some(b"ustar") {
            return Ok(Self::Archive(Compression::None));
        }
        if is_wat(head) { Ok(Self::Text) } else { Err(other(head)) }
    }
}

/// The version field also tells modules (1, layer 0) and components (13, layer 1) apart.
fn wasm_kind(head: &[u8]) -> Result<Kind, String> {
    match head.get(4..8) {
        Some([1, 0, 0, 0]) => Ok(Kind::Module),
        Some([0x0d, 0, 1, 0]) => Ok(Kind::Component),
        Some(version) => Err(format!("Wasm of a version that is not known here ({version:02x?})")),
        None => Err(format!("truncated Wasm: only {} bytes long", head.len())),
    }
}

/// WebAssembly text: after white space and comments comes a parenthesis.
fn is_wat(head: &[u8]) -> bool {
    let mut rest = head;
    loop {
        rest = rest.trim_ascii_start();
        if rest.starts_with(b";;") {
            match rest.iter().position(|b| *b == b'\n') {
                Some(end) => rest = &rest[end..],
                // A comment longer than what we see.
                None => return head.len() == HEAD,
            }
        } else if rest.starts_with(b"(;") {
            match rest.windows(2).position(|w| w == b";)") {
                Some(end) => rest = &rest[end + 2..],
                None => return head.len() == HEAD,
            }
        } else {
            return rest.starts_with(b"(") && !head.contains(&0);
        }
    }
}

/// Names what people pass by mistake.
fn other(head: &[u8]) -> String {
    const KNOWN: &[(&[u8], &str)] = &[
        (b"\x7fELF", "a native program (ELF): compile it for wasm32-wasip1 or wasm32-wasip2"),
        (b"MZ", "a Windows program: compile it for wasm32-wasip1 or wasm32-wasip2"),
        (b"\xcf\xfa\xed\xfe", "a native program (Mach-O): compile it for wasm32-wasip1 or wasm32-wasip2"),
        (b"#!", "a script"),
        (b"PK\x03\x04", "a ZIP file: archives must be .tar, .tar.gz or .tar.zst"),
        (b"\xfd7zXZ", "an xz file: archives must be .tar, .tar.gz or .tar.zst"),
        (b"BZh", "a bzip2 file: archives must be .tar, .tar.gz or .tar.zst"),
    ];
    if let Some((_, name)) = KNOWN.iter().find(|(magic, _)| head.starts_with(magic)) {
        return (*name).to_owned();
    }
    // A character may be cut at the end of what we see.
    let text = std::str::from_utf8(head).map_or_else(|e| e.error_len().is_none(), |_| true);
    if text && !head.contains(&0) { "some other text".into() } else { "some other binary file".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_run_is_recognised() {
        assert_eq!(Kind::of(b"\0asm\x01\0\0\0rest"), Ok(Kind::Module));
        assert_eq!(Kind::of(b"\0asm\x0d\0\x01\0"), Ok(Kind::Component));
        assert_eq!(Kind::of(&[0x1f, 0x8b, 8]), Ok(Kind::Archive(Compression::Gzip)));
        assert_eq!(Kind::of(&[0x28, 0xb5, 0x2f, 0xfd]), Ok(Kind::Archive(Compression::Zstd)));
        let mut tar = [0_u8; 512];
        tar[257..262].copy_from_slice(b"ustar");
        assert_eq!(Kind::of(&tar), Ok(Kind::Archive(Compression::None)));
        for text in ["(module)", "\n ;; a comment\n(module)", "(; a ;) (component)", "(func)"] {
            assert_eq!(Kind::of(text.as_bytes()), Ok(Kind::Text), "{text}");
        }
    }

    #[test]
    fn what_cannot_is_named() {
        for (bytes, what) in [
            (&b""[..], "an empty file"),
            (b"\0as", "truncated Wasm: only 3 bytes long"),
            (b"\0asm\x01\0", "truncated Wasm: only 6 bytes long"),
            (b"\x7fELF\x02", "a native program (ELF): compile it for wasm32-wasip1 or wasm32-wasip2"),
            (b"#!/bin/sh\n", "a script"),
            (b"hello", "some other text"),
            (b"\xff\x00\x01", "some other binary file"),
        ] {
            assert_eq!(Kind::of(bytes), Err(what.to_owned()));
        }
        assert!(Kind::of(b"\0asm\x02\0\0\0").unwrap_err().contains("version"));
    }
}
