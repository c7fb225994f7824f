//! The records of the master's registry as bytes, and back. Each says in which format it is: what a later version wrote is refused with
//! a word that says so, never guessed at.
//!
//! Owns the formats. Does not know where the bytes are kept.

use crate::convert::ConvertError;
use crate::v1;
use prost::Message;
use smalti_types::protocol::Claim;
use smalti_types::{AgentInfo, FrameworkInfo, Time};

/// The format that this build writes, and the latest that it reads.
pub const FORMAT: u32 = 1;

/// Why bytes are not the record that they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A later version wrote it.
    #[error("has format {found}, this build reads up to {FORMAT}")]
    Later {
        /// Its format.
        found: u32,
    },
    /// No version wrote this.
    #[error("is no record: {0}")]
    Garbage(String),
}

impl From<ConvertError> for RecordError {
    fn from(error: ConvertError) -> Self {
        Self::Garbage(error.to_string())
    }
}

fn read<M: Message + Default>(bytes: &[u8], format: impl Fn(&M) -> u32) -> Result<M, RecordError> {
    let record = M::decode(bytes).map_err(|e| RecordError::Garbage(e.to_string()))?;
    match format(&record) {
        0 => Err(RecordError::Garbage("its format is missing".to_owned())),
        1..=FORMAT => Ok(record),
        found => Err(RecordError::Later { found }),
    }
}

fn missing(field: &str) -> RecordError {
    RecordError::Garbage(format!("its {field} is missing"))
}

/// An agent.
#[must_use]
pub fn write_agent(info: AgentInfo) -> Vec<u8> {
    v1::AgentRecord { format: FORMAT, agent: Some(info.into()) }.encode_to_vec()
}

/// An agent, read back.
///
/// # Errors
/// [`RecordError`].
pub fn read_agent(bytes: &[u8]) -> Result<AgentInfo, RecordError> {
    let record: v1::AgentRecord = read(bytes, |r: &v1::AgentRecord| r.format)?;
    Ok(record.agent.ok_or_else(|| missing("agent"))?.try_into()?)
}

/// A framework, which of its schedulers subscribed last, and when it is removed if that is away.
#[must_use]
pub fn write_framework(info: FrameworkInfo, claim: Claim, away_until: Option<Time>) -> Vec<u8> {
    let away_until_us = away_until.map(|t| t.0);
    v1::FrameworkRecord { format: FORMAT, framework: Some(info.into()), away_until_us, life: claim.life, turn: claim.turn }.encode_to_vec()
}

/// A framework, read back.
///
/// # Errors
/// [`RecordError`].
pub fn read_framework(bytes: &[u8]) -> Result<(FrameworkInfo, Claim, Option<Time>), RecordError> {
    let record: v1::FrameworkRecord = read(bytes, |r: &v1::FrameworkRecord| r.format)?;
    let info = record.framework.ok_or_else(|| missing("framework"))?.try_into()?;
    Ok((info, Claim { life: record.life, turn: record.turn }, record.away_until_us.map(Time)))
}

/// When a framework was removed.
#[must_use]
pub fn write_removed(at: Time) -> Vec<u8> {
    v1::RemovedRecord { format: FORMAT, at_us: at.0 }.encode_to_vec()
}

/// When a framework was removed, read back.
///
/// # Errors
/// [`RecordError`].
pub fn read_removed(bytes: &[u8]) -> Result<Time, RecordError> {
    Ok(Time(read(bytes, |r: &v1::RemovedRecord| r.format)?.at_us))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::strategies::{agent_info, framework_info};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(agent in agent_info(), framework in framework_info(), at: Option<u64>, life: u64, turn: u64) {
            prop_assert_eq!(read_agent(&write_agent(agent.clone())), Ok(agent));
            let (until, claim) = (at.map(Time), Claim { life, turn });
            prop_assert_eq!(read_framework(&write_framework(framework.clone(), claim, until)), Ok((framework, claim, until)));
        }

        #[test]
        fn any_bytes_are_refused_or_understood_but_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (read_agent(&bytes), read_framework(&bytes), read_removed(&bytes));
        }
    }

    #[test]
    fn what_a_later_version_wrote_is_named_as_that() {
        let later = v1::RemovedRecord { format: FORMAT + 1, at_us: 7 }.encode_to_vec();
        assert_eq!(read_removed(&later), Err(RecordError::Later { found: FORMAT + 1 }));
        assert_eq!(read_removed(&write_removed(Time(7))), Ok(Time(7)));
        assert!(matches!(read_removed(&[]), Err(RecordError::Garbage(_))));
    }
}
