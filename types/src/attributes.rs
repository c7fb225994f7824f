//! Facts about an agent that are not amounts: architecture, zone, rack, cpu features.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Named facts of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attributes(pub BTreeMap<String, String>);

/// Why a text is not a list of attributes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a list of attributes: write it like zone=eu;rack=r1")]
pub struct AttributesError(pub String);

impl FromStr for Attributes {
    type Err = AttributesError;

    /// Reads `zone=eu;rack=r1`; the last of equal names wins.
    fn from_str(s: &str) -> Result<Self, AttributesError> {
        s.split(';')
            .map(str::trim)
            .filter(|p| !p.is_empty())
            .map(|p| match p.split_once('=') {
                Some((k, v)) if !k.trim().is_empty() => Ok((k.trim().to_owned(), v.trim().to_owned())),
                _ => Err(AttributesError(s.into())),
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (k, v)) in self.0.iter().enumerate() {
            write!(f, "{}{k}={v}", if i == 0 { "" } else { ";" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_and_printed() {
        let a: Attributes = "zone=eu; rack=r1;".parse().unwrap();
        assert_eq!(a.to_string(), "rack=r1;zone=eu");
        assert!("zone".parse::<Attributes>().is_err());
        assert!("=x".parse::<Attributes>().is_err());
    }
}
