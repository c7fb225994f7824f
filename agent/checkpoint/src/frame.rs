//! Frames: what is written at once is read whole or not at all, and damage shows.
//!
//! A file is a header and then frames up to the first that is none. Both carry the file's generation: a file is used again for a later
//! snapshot, and what is left of the earlier one must not be taken for the later. Owns the layout, which is little-endian:
//! header: magic (8), version (4), generation (8), checksum (8). Frame: mark (4), length (4), checksum (8), bytes. Pure.

/// Bytes of a header.
pub(crate) const HEADER_LEN: usize = 28;
/// Bytes of a frame before what it carries.
pub(crate) const FRAME_HEAD: usize = 16;
/// Zeros behind the last frame: whoever reads on sees that nothing was torn there.
pub(crate) const END_LEN: usize = FRAME_HEAD;
/// Longest frame: a batch of the event loop has far less.
pub(crate) const MAX_FRAME: usize = 1 << 30;
/// Version of header and frames.
pub(crate) const FILE_VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"SMALTICK";

/// What a file begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Header {
    /// Of this generation.
    Good(u64),
    /// Written by a later version of this program.
    Later(u32),
    /// Nothing, or damaged.
    Bad,
}

/// The header of a file.
pub(crate) fn header(generation: u64) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&FILE_VERSION.to_le_bytes());
    bytes[12..20].copy_from_slice(&generation.to_le_bytes());
    let sum = checksum(generation, 0, &bytes[..20]);
    bytes[20..].copy_from_slice(&sum);
    bytes
}

/// Reads a header.
pub(crate) fn read_header(bytes: &[u8]) -> Header {
    let (Some(magic), Some(version), Some(generation), Some(sum)) =
        (bytes.get(..8), u32_at(bytes, 8), u64_at(bytes, 12), bytes.get(20..28))
    else {
        return Header::Bad;
    };
    if magic != MAGIC || sum != checksum(generation, 0, &bytes[..20]) {
        return Header::Bad;
    }
    if version > FILE_VERSION { Header::Later(version) } else { Header::Good(generation) }
}

/// Writes a frame's head into the room that was left for it at `start` of `buffer`, for a frame that lies at `at` of its file.
pub(crate) fn seal(buffer: &mut [u8], start: usize, generation: u64, at: u64) {
    let carried = &buffer[start + FRAME_HEAD..];
    let length = u32::try_from(carried.len()).unwrap_or(u32::MAX);
    let sum = checksum(generation, at, carried);
    buffer[start..start + 4].copy_from_slice(&mark(generation));
    buffer[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
    buffer[start + 8..start + FRAME_HEAD].copy_from_slice(&sum);
}

/// What the frame at `at` carries, if there is a good one.
pub(crate) fn frame_at(bytes: &[u8], generation: u64, at: usize) -> Option<&[u8]> {
    let head = bytes.get(at..at.checked_add(FRAME_HEAD)?)?;
    if head[..4] != mark(generation) {
        return None;
    }
    let length = usize::try_from(u32_at(head, 4)?).ok()?;
    let start = at + FRAME_HEAD;
    let carried = bytes.get(start..start.checked_add(length)?)?;
    (length > 0 && head[8..] == checksum(generation, at as u64, carried)).then_some(carried)
}

/// Whether nothing was ever begun at `at`.
pub(crate) fn is_end(bytes: &[u8], at: usize) -> bool {
    bytes.get(at..).is_none_or(|rest| rest.iter().take(END_LEN).all(|b| *b == 0))
}

/// The first good frame behind `at`.
pub(crate) fn next_good(bytes: &[u8], generation: u64, at: usize) -> Option<usize> {
    let mark = mark(generation);
    let mut from = at;
    while let Some(found) = bytes.get(from..).and_then(|rest| rest.windows(4).position(|w| w == mark)) {
        let here = from + found;
        if frame_at(bytes, generation, here).is_some() {
            return Some(here);
        }
        from = here + 1;
    }
    None
}

/// Frames of a generation begin with this.
fn mark(generation: u64) -> [u8; 4] {
    let hash = blake3::hash(&generation.to_le_bytes());
    let bytes = hash.as_bytes();
    // The highest bit keeps it from being zeros.
    [bytes[0] | 0x80, bytes[1], bytes[2], bytes[3]]
}

/// Of bytes at one place of one generation of a file: the same bytes elsewhere have another.
fn checksum(generation: u64, at: u64, bytes: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&generation.to_le_bytes()).update(&at.to_le_bytes()).update(bytes);
    let mut sum = [0; 8];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    sum
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
