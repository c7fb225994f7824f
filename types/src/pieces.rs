//! Which bytes of a large object are fetched together for the splits that lie in it.
//!
//! Owns that rule: the agent names its files by it, and the executor finds them by it.

use crate::{Input, Packing, Split};
use std::ops::Range;

/// Small splits are fetched in blocks of this size, which their neighbours share, …
pub const BLOCK: u64 = 1 << 20;
/// … those from this length on by themselves, as they are, since few neighbours would share a block, and so are those that lie in two.
pub const LARGE: u64 = BLOCK / 4;
/// Shorter objects are fetched whole: they are two or three splits.
const SHORTEST: u64 = 8 << 20;
/// What can give a part of an object of a certain version.
const SCHEMES: [&str; 3] = ["http://", "https://", "s3://"];

impl Input {
    /// Whether an array's splits of this object are fetched by themselves. Only what a version pins, and not a
    /// weak tag, which different bytes may share: a digest can be checked on the whole alone, and what is packed is not split.
    #[must_use]
    pub fn is_in_pieces(&self) -> bool {
        let starts =
            |scheme: &&str| self.uri.as_ref().and_then(|uri| uri.get(..scheme.len())).is_some_and(|s| s.eq_ignore_ascii_case(scheme));
        self.digest.is_none()
            && self.etag.as_ref().is_some_and(|tag| !tag.starts_with("W/"))
            && self.packing.is_none_or(|p| p == Packing::Plain)
            && self.length >= SHORTEST
            && SCHEMES.iter().any(starts)
    }
}

impl Split {
    /// The bytes of its object that are fetched for it; they may lie behind the object's end.
    #[must_use]
    pub const fn piece(&self) -> Range<u64> {
        let end = self.offset.saturating_add(self.length);
        let block = self.offset - self.offset % BLOCK;
        let block_end = block.saturating_add(BLOCK);
        if self.length >= LARGE || end > block_end { self.offset..end } else { block..block_end }
    }
}

/// What the file is called in which a piece of an array's input lies.
#[must_use]
pub fn file_name(input: u32, piece: &Range<u64>) -> String {
    format!("{input}@{}-{}", piece.start, piece.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(offset: u64, length: u64) -> Split {
        Split { item: 0, input: 3, offset, length }
    }

    #[test]
    fn neighbours_share_a_block_and_large_splits_are_what_they_are() {
        assert_eq!(split(0, 10).piece(), 0..BLOCK);
        assert_eq!(split(BLOCK - 10, 10).piece(), 0..BLOCK);
        assert_eq!(split(BLOCK - 10, 11).piece(), BLOCK - 10..BLOCK + 1);
        assert_eq!(split(BLOCK, 0).piece(), BLOCK..2 * BLOCK, "there is a file for nothing, too");
        assert_eq!(split(7, LARGE).piece(), 7..LARGE + 7);
        assert_eq!(file_name(3, &split(7, BLOCK).piece()), "3@7-1048583");
    }

    #[test]
    fn only_large_objects_of_a_version_that_a_place_can_give_parts_of_come_in_pieces() {
        let large = Input {
            guest_path: None,
            uri: Some("S3://b/k".into()),
            digest: None,
            length: SHORTEST,
            etag: Some("\"1\"".into()),
            packing: Some(Packing::Plain),
        };
        assert!(large.is_in_pieces());
        let uri = |uri: &str| Input { uri: Some(uri.into()), ..large.clone() };
        assert!(uri("http://h/x").is_in_pieces() && uri("https://h/x").is_in_pieces());
        for other in [
            Input { length: SHORTEST - 1, ..large.clone() },
            Input { etag: None, ..large.clone() },
            Input { etag: Some("W/\"1\"".into()), ..large.clone() },
            Input { digest: Some(crate::Digest::of(b"x")), ..large.clone() },
            Input { packing: Some(Packing::Gzip), ..large.clone() },
            Input { uri: None, ..large.clone() },
            uri("file:///x"),
            uri("oci://h/x@sha256:00"),
            uri("s3"),
        ] {
            assert!(!other.is_in_pieces(), "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn a_split_lies_in_its_piece_and_no_piece_is_much_larger(
            offset in prop_oneof![0..20 * BLOCK, Just(u64::MAX), u64::MAX - 2 * BLOCK..u64::MAX],
            length in prop_oneof![0..3 * BLOCK, Just(u64::MAX)],
        ) {
            let split = split(offset, length);
            let piece = split.piece();
            prop_assert!(piece.start <= offset && offset.saturating_add(length) <= piece.end);
            prop_assert!(piece.end - piece.start <= length.max(BLOCK));
        }
    }
}
