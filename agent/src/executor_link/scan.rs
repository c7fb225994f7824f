//! How many elements the lists of a frame have, found out before it is decoded.
//!
//! On the wire an empty element of a list takes two bytes, decoded it takes up to a hundred: without this, a frame within its length
//! could become most of the agent's memory. Walks two levels (the frame, the message in it), where all lists of `FromExecutor` are,
//! without building anything. Owns nothing. What is not valid is left to the decoder to refuse.

use smalti_executor_protocol::FrameError;

/// Most fields of one message. An honest report has 20,000 outcomes at most, each an entry in up to three lists.
pub(crate) const MOST_FIELDS: usize = 100_000;

/// Kinds of fields on the wire.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// Whether `frame` has no more than [`MOST_FIELDS`].
///
/// # Errors
/// [`FrameError::TooManyFields`].
pub(crate) fn check(frame: &[u8]) -> Result<(), FrameError> {
    let mut left = MOST_FIELDS;
    let mut outer = Fields(frame);
    while let Some(message) = outer.next() {
        let mut inner = Fields(message);
        left = left.checked_sub(1).ok_or(FrameError::TooManyFields(MOST_FIELDS))?;
        while inner.next().is_some() {
            left = left.checked_sub(1).ok_or(FrameError::TooManyFields(MOST_FIELDS))?;
        }
    }
    Ok(())
}

/// The fields of one message, as the bytes of those that have bytes (empty for numbers).
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Option<&'a [u8]> {
        let length = match self.varint()? & 7 {
            VARINT => return self.varint().map(|_| &[][..]),
            FIXED64 => 8,
            FIXED32 => 4,
            BYTES => usize::try_from(self.varint()?).ok()?,
            _ => return None,
        };
        let (field, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(field)
    }

    /// The next number; `None` at the end or when it is none.
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for (i, byte) in self.0.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * i).min(63);
            if byte & 0x80 == 0 {
                self.0 = &self.0[i + 1..];
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_executor_protocol::codec::HEADER_BYTES;
    use smalti_executor_protocol::v1::{ArrayReport, FailedItem, FromExecutor, ItemRange, ItemResult, from_executor::Message};

    fn bytes(report: ArrayReport) -> Vec<u8> {
        smalti_executor_protocol::encode(&FromExecutor { number: 0, message: Some(Message::Report(report)) }, 0).unwrap()[HEADER_BYTES..]
            .to_vec()
    }

    #[test]
    fn what_a_report_may_have_passes_whatever_its_bytes_are() {
        let value = vec![0x08; 16 << 10];
        let results = (0..500).map(|item| ItemResult { item, value: value.clone().into() }).collect();
        let failed = (0..20_000).map(|item| FailedItem { item, ..FailedItem::default() }).collect();
        let finished = (0..20_000).map(|i| ItemRange { first: 2 * i, end: 2 * i + 1 }).collect();
        check(&bytes(ArrayReport { results, failed, finished, ..ArrayReport::default() })).unwrap();
        check(&[]).unwrap();
    }

    #[test]
    fn many_empty_elements_do_not() {
        let bomb = bytes(ArrayReport { failed: vec![FailedItem::default(); MOST_FIELDS], ..ArrayReport::default() });
        assert!(bomb.len() < 3 * MOST_FIELDS);
        assert!(matches!(check(&bomb), Err(FrameError::TooManyFields(_))));
        // Also in many small pieces of the same message, which the decoder joins.
        let piece = bytes(ArrayReport { failed: vec![FailedItem::default(); 10], ..ArrayReport::default() });
        assert!(check(&piece.repeat(MOST_FIELDS / 10)).is_err());
        assert!(check(&[0x08, 0x01].repeat(MOST_FIELDS + 1)).is_err());
    }

    #[test]
    fn garbage_is_left_to_the_decoder() {
        for garbage in [&[0xff; 64][..], &[0x2a, 0x05, 0x00], &[0x2a, 0xff, 0xff, 0xff, 0xff, 0x0f], &[0x07], &[0x0b; 5]] {
            check(garbage).unwrap();
        }
    }
}
