//! One record per finished item, 96 bytes, in `slot-<n>.ledger`: where an item's output lies in the slot's segments, and
//! what became of it.
//!
//! Owns the layout and nothing else: the executor writes the records, the agent reads them and trusts no offset. Everything is
//! little endian:
//!
//! | bytes | field | | bytes | field |
//! |---|---|---|---|---|
//! | 0..4 | magic `0x534d4c31` | | 48..56 | length of its stderr |
//! | 4..6 | version 1 | | 56..64 | cpu time, µs |
//! | 6..8 | flags (bit 0: has exit code, bit 1: failed) | | 64..72 | wall time, µs |
//! | 8..16 | item | | 72..80 | peak memory, bytes |
//! | 16..20 | attempt | | 80..88 | zero |
//! | 20..24 | exit code | | 88..96 | first 8 bytes of the BLAKE3 of bytes 0..88 |
//! | 24..32, 32..40 | offset, length of its stdout | | 40..48 | offset of its stderr |

use smalti_types::digest::Digest;

/// Length of a record.
pub const RECORD_LEN: usize = 96;
const MAGIC: u32 = 0x534d_4c31;
const VERSION: u16 = 1;
const HAS_EXIT_CODE: u16 = 1;
const FAILED: u16 = 2;
/// The checksum covers the bytes before it.
const CHECKED: usize = 88;

/// What became of one item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Record {
    /// Which.
    pub item: u64,
    /// Which execution of it.
    pub attempt: u32,
    /// The guest's, when it exited.
    pub exit_code: Option<i32>,
    /// Whether it counts as failed.
    pub failed: bool,
    /// Where its stdout begins in `slot-<n>.out`.
    pub out_offset: u64,
    /// Bytes of stdout.
    pub out_length: u64,
    /// Where its stderr begins in `slot-<n>.err`.
    pub err_offset: u64,
    /// Bytes of stderr.
    pub err_length: u64,
    /// Processor time in microseconds.
    pub cpu_us: u64,
    /// Wall time in microseconds.
    pub wall_us: u64,
    /// Most linear memory at a time, in bytes.
    pub peak_memory: u64,
}

impl Record {
    /// The 96 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_LEN] {
        let mut bytes = [0_u8; RECORD_LEN];
        let flags = if self.exit_code.is_some() { HAS_EXIT_CODE } else { 0 } | if self.failed { FAILED } else { 0 };
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&MAGIC.to_le_bytes());
        put(&VERSION.to_le_bytes());
        put(&flags.to_le_bytes());
        put(&self.item.to_le_bytes());
        put(&self.attempt.to_le_bytes());
        put(&self.exit_code.unwrap_or(0).to_le_bytes());
        let numbers = [self.out_offset, self.out_length, self.err_offset, self.err_length, self.cpu_us, self.wall_us, self.peak_memory, 0];
        for n in numbers {
            put(&n.to_le_bytes());
        }
        let sum = Digest::of(&bytes[..CHECKED]);
        bytes[CHECKED..].copy_from_slice(&sum.as_bytes()[..RECORD_LEN - CHECKED]);
        bytes
    }

    /// Reads a record back; `None` unless magic, version and checksum are right.
    #[must_use]
    pub fn decode(bytes: &[u8; RECORD_LEN]) -> Option<Self> {
        let long = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let int = |at: usize| bytes[at..at + 4].try_into().map(u32::from_le_bytes).ok();
        let flags = u16::from_le_bytes([bytes[6], bytes[7]]);
        let good = int(0)? == MAGIC
            && u16::from_le_bytes([bytes[4], bytes[5]]) == VERSION
            && Digest::of(&bytes[..CHECKED]).as_bytes()[..RECORD_LEN - CHECKED] == bytes[CHECKED..];
        good.then_some(())?;
        Some(Self {
            item: long(8)?,
            attempt: int(16)?,
            exit_code: (flags & HAS_EXIT_CODE != 0).then_some(int(20)?.cast_signed()),
            failed: flags & FAILED != 0,
            out_offset: long(24)?,
            out_length: long(32)?,
            err_offset: long(40)?,
            err_length: long(48)?,
            cpu_us: long(56)?,
            wall_us: long(64)?,
            peak_memory: long(72)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_an_earlier_build_wrote_is_read() {
        let bytes: &[u8; RECORD_LEN] = include_bytes!("../../../tests/fixtures/formats-1/slot.ledger");
        let record = Record::decode(bytes).unwrap();
        assert_eq!((record.attempt, record.exit_code, record.failed, record.out_offset), (0, Some(0), false, 0));
        assert!(record.out_length > 0 && record.wall_us > 600_000, "two lines, 300 ms after each: {record:?}");
        assert_eq!(record.encode(), *bytes);
    }

    #[test]
    fn the_layout_is_fixed_and_a_flipped_bit_is_found() {
        let record = Record {
            item: 7,
            attempt: 2,
            exit_code: Some(-3),
            failed: true,
            out_offset: 1,
            out_length: 2,
            err_offset: 3,
            err_length: 4,
            cpu_us: 5,
            wall_us: 6,
            peak_memory: 65_536,
        };
        let bytes = record.encode();
        assert_eq!(bytes[..4], [0x31, 0x4c, 0x4d, 0x53]);
        assert_eq!(bytes[6..8], [3, 0]);
        assert_eq!(bytes[8], 7);
        assert_eq!(bytes[20..24], [0xfd, 0xff, 0xff, 0xff]);
        assert_eq!(Record::decode(&bytes), Some(record));
        for at in 0..RECORD_LEN {
            let mut bad = bytes;
            bad[at] ^= 1;
            assert_eq!(Record::decode(&bad), None, "byte {at}");
        }
    }
}
