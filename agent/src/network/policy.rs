//! Where tasks of a role may connect to, by the operator's word. Pure.
//!
//! A task asks with `--connect`; this decides which of the addresses that its endpoints stand for it gets. Owns the file's form; the rules
//! themselves are `smalti_types::connect`'s. Deliberately absent: look-ups, and the check at connect time (the broker's).

use serde::Deserialize;
use smalti_types::connect::{self, Denied, Protected, Rule, RuleError};
use smalti_types::{Endpoint, Role};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

/// Most rules of one role.
const MAX_RULES: usize = 10_000;

/// Why a task does not get what it asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; the operator of this agent would have to allow it in the network policy")]
pub(crate) struct NotGranted(Denied);

/// The operator's word for all roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    default: Vec<Rule>,
    roles: BTreeMap<String, Vec<Rule>>,
}

impl Default for Policy {
    /// Public addresses, and nothing else.
    fn default() -> Self {
        Self { default: vec![Rule::Public], roles: BTreeMap::new() }
    }
}

/// Why a text is no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Not the form of the file.
    #[error("{0}")]
    Form(#[from] toml::de::Error),
    /// A rule makes no sense.
    #[error("{section}: {source}")]
    Rule {
        /// In which section.
        section: String,
        /// What is wrong.
        source: RuleError,
    },
    /// Too many of them.
    #[error("{section}: more than {MAX_RULES} rules")]
    TooMany {
        /// In which section.
        section: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default: Option<Section>,
    #[serde(default)]
    role: BTreeMap<String, Section>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    connect: Vec<String>,
}

impl FromStr for Policy {
    type Err = PolicyError;
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let file: File = toml::from_str(text)?;
        let default = match file.default {
            Some(section) => rules("[default]", &section)?,
            None => Self::default().default,
        };
        let mut roles = BTreeMap::new();
        for (role, section) in file.role {
            let rules = rules(&format!("[role.{role:?}]"), &section)?;
            roles.insert(role, rules);
        }
        Ok(Self { default, roles })
    }
}

fn rules(name: &str, section: &Section) -> Result<Vec<Rule>, PolicyError> {
    if section.connect.len() > MAX_RULES {
        return Err(PolicyError::TooMany { section: name.to_owned() });
    }
    let read = |rule: &String| rule.parse().map_err(|source| PolicyError::Rule { section: name.to_owned(), source });
    section.connect.iter().map(read).collect()
}

impl Policy {
    /// Whether a task of `role` that asked for `endpoint` may connect to `address`, one of those that it stands for.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check(&self, role: &Role, endpoint: &Endpoint, address: IpAddr, protected: &Protected) -> Result<(), NotGranted> {
        let rules = self.roles.get(role.as_str()).unwrap_or(&self.default);
        connect::check(rules, role, endpoint, address, protected).map_err(NotGranted)
    }
}

#[cfg(test)]
mod tests;
