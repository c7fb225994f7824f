//! Checked conversions between wire messages (`v1`) and domain types (`smalti-types`), both ways.
//!
//! What comes off the wire is hostile until it has passed here: ids have allowed characters, digests 32 bytes, lists
//! are sorted and bounded, texts are bounded, enumerations known. Owns the bounds. Does not judge meaning (whether a
//! task fits its offer, whether an item was handed out): that is for the cores. Does not check protocol versions:
//! see [`crate::version`].

mod agent;
mod framework;
mod holdings;
mod ids;
mod info;
mod resources;
mod status;
#[cfg(test)]
pub(crate) mod strategies;
mod task;

pub use framework::HEARTBEAT_INTERVAL_MS;
pub use holdings::peer_address;
pub use info::DEFAULT_FAILOVER_TIMEOUT;

use smalti_types::id::IdError;
use smalti_types::{Digest, DurationMs};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;

/// Largest gRPC message in bytes that a peer accepts (`max_decoding_message_size`): a registration with every task of
/// a large agent fits, and one connection cannot make the receiver hold more.
pub const MAX_FRAME_LEN: usize = 64 << 20;
/// Longest single text in bytes.
pub const MAX_TEXT_LEN: usize = 1 << 20;
/// Longest name, host name, attribute or reason in bytes.
pub const MAX_LABEL_LEN: usize = 4 << 10;
/// Longest URI in bytes: what web servers commonly accept.
pub const MAX_URI_LEN: usize = 16 << 10;
/// Arguments and environment of one task together in bytes; the guest receives them as one block.
pub const MAX_ARGS_LEN: usize = 1 << 20;
/// Most entries of a list of small things (offers, ranges, splits, updates).
pub const MAX_LIST: usize = 1 << 20;
/// Most entries of a list of large things (arguments, inputs, operations, attributes).
pub const MAX_SHORT_LIST: usize = 1 << 16;
/// Most objects that one array's splits refer to: as many as a listing may bring.
pub const MAX_SPLIT_INPUTS: usize = 200_000;
/// One past the highest item index: numbers up to 2⁵³ survive JSON, and sums of them stay far from overflow.
pub const MAX_ITEM_END: u64 = 1 << 53;
/// Longest span of time in milliseconds (a hundred years); longer ones are cut, so that adding to a clock never overflows.
pub const MAX_DURATION_MS: u64 = 100 * 366 * 24 * 3_600_000;

/// Why a wire message is not the domain value that it should be. Names the message and the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}.{field}: {problem}")]
pub struct ConvertError {
    /// The message of package `smalti.v1`.
    pub message: &'static str,
    /// Its field.
    pub field: &'static str,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A required field is absent.
    #[error("is missing")]
    Missing,
    /// Not a valid id.
    #[error(transparent)]
    Id(#[from] IdError),
    /// A digest that is not 32 bytes long.
    #[error("a digest has 32 bytes, this one {0}")]
    DigestLength(usize),
    /// A number or name that stands for nothing.
    #[error("unknown value {0}")]
    UnknownEnum(String),
    /// A text or byte string beyond its bound.
    #[error("{len} bytes are more than {max}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// A list beyond its bound.
    #[error("{len} entries are more than {max}")]
    TooMany {
        /// Its length.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// A list that must be sorted and free of overlaps, and is not.
    #[error("not sorted, or entries overlap or are empty")]
    Unsorted,
    /// A number beyond its bound.
    #[error("{value} is more than {max}")]
    TooLarge {
        /// The number.
        value: u64,
        /// The bound.
        max: u64,
    },
    /// Anything else.
    #[error("{0}")]
    Invalid(&'static str),
}

/// Result of a conversion from the wire.
pub type Result<T> = std::result::Result<T, ConvertError>;

/// Where in a message we are.
#[derive(Clone, Copy)]
struct At {
    message: &'static str,
    field: &'static str,
}

const fn at(message: &'static str, field: &'static str) -> At {
    At { message, field }
}

impl At {
    fn fail(self, problem: Problem) -> ConvertError {
        ConvertError { message: self.message, field: self.field, problem }
    }

    fn need<T>(self, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.fail(Problem::Missing))
    }

    /// A required message, converted.
    fn get<A, B: TryFrom<A, Error = ConvertError>>(self, value: Option<A>) -> Result<B> {
        B::try_from(self.need(value)?)
    }

    fn id<T: FromStr<Err = IdError>>(self, text: &str) -> Result<T> {
        text.parse().map_err(|e: IdError| self.fail(Problem::Id(e)))
    }

    fn optional_id<T: FromStr<Err = IdError>>(self, text: Option<&str>) -> Result<Option<T>> {
        text.map(|t| self.id(t)).transpose()
    }

    fn text(self, text: String, max: usize) -> Result<String> {
        if text.len() > max {
            return Err(self.fail(Problem::TooLong { len: text.len(), max }));
        }
        if text.as_bytes().contains(&0) {
            return Err(self.fail(Problem::Invalid("contains a NUL byte")));
        }
        Ok(text)
    }

    fn optional_text(self, text: Option<String>, max: usize) -> Result<Option<String>> {
        text.map(|t| self.text(t, max)).transpose()
    }

    fn bytes(self, bytes: &[u8], max: usize) -> Result<Vec<u8>> {
        if bytes.len() > max {
            return Err(self.fail(Problem::TooLong { len: bytes.len(), max }));
        }
        Ok(bytes.to_vec())
    }

    fn digest(self, bytes: &[u8]) -> Result<Digest> {
        let bytes = <[u8; 32]>::try_from(bytes).map_err(|_| self.fail(Problem::DigestLength(bytes.len())))?;
        Ok(Digest::from_bytes(bytes))
    }

    fn bound(self, value: u64, max: u64) -> Result<u64> {
        if value > max { Err(self.fail(Problem::TooLarge { value, max })) } else { Ok(value) }
    }

    /// Amounts stay within 63 bits, as those read from text do.
    fn amount(self, value: u64) -> Result<u64> {
        self.bound(value, i64::MAX as u64)
    }

    fn item(self, item: u64) -> Result<u64> {
        self.bound(item, MAX_ITEM_END - 1)
    }

    fn count(self, len: usize, max: usize) -> Result<()> {
        if len > max { Err(self.fail(Problem::TooMany { len, max })) } else { Ok(()) }
    }

    fn list<A, B: TryFrom<A, Error = ConvertError>>(self, list: Vec<A>, max: usize) -> Result<Vec<B>> {
        self.count(list.len(), max)?;
        list.into_iter().map(B::try_from).collect()
    }

    /// A map of labels, bounded in number and length.
    fn labels(self, map: HashMap<String, String>) -> Result<BTreeMap<String, String>> {
        self.count(map.len(), MAX_SHORT_LIST)?;
        map.into_iter().map(|(k, v)| Ok((self.text(k, MAX_LABEL_LEN)?, self.text(v, MAX_LABEL_LEN)?))).collect()
    }
}

impl fmt::Debug for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.message, self.field)
    }
}

fn duration(ms: u64) -> DurationMs {
    DurationMs(ms.min(MAX_DURATION_MS))
}

/// Converts a whole list for the wire.
fn wire<A, B: From<A>>(list: Vec<A>) -> Vec<B> {
    list.into_iter().map(B::from).collect()
}
