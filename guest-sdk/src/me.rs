//! What a task knows of itself, from its environment.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

/// Who this task is. Every field is `None` (or empty) where the program does not run under Smalti.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Me {
    /// The task's id (for items: the array part's).
    pub task_id: Option<String>,
    /// Which attempt, from 0.
    pub attempt: Option<u32>,
    /// Grows with every attempt of this task or item. A store that keeps the highest one that it has seen, and refuses what comes with a
    /// lower one, is safe from an earlier attempt that nobody could reach any more and that still runs.
    pub fencing_token: Option<u64>,
    /// For items of a task array: the index, from 0.
    pub item: Option<u64>,
    /// For items: how many items the array has.
    pub items: Option<u64>,
    /// For jobs with rounds: which round, from 0.
    pub round: Option<u32>,
    /// Cores this task may use.
    pub cpus: Option<String>,
    /// Bytes of memory this task may use.
    pub mem_bytes: Option<u64>,
    /// When the time limit ends it.
    pub deadline: Option<SystemTime>,
    /// Host ports that were given to it.
    pub ports: Vec<u16>,
}

impl Me {
    /// Reads the environment.
    #[must_use]
    pub fn from_env() -> Self {
        Self::read(|name| std::env::var(name).ok())
    }

    fn read(get: impl Fn(&str) -> Option<String>) -> Self {
        fn number<T: FromStr>(text: Option<String>) -> Option<T> {
            text.and_then(|t| t.parse().ok())
        }
        Self {
            task_id: get("SMALTI_TASK_ID"),
            attempt: number(get("SMALTI_ATTEMPT")),
            fencing_token: number(get("SMALTI_FENCING_TOKEN")),
            item: number(get("SMALTI_ITEM")),
            items: number(get("SMALTI_ITEMS")),
            round: number(get("SMALTI_ROUND")),
            cpus: get("SMALTI_CPUS"),
            mem_bytes: number(get("SMALTI_MEM")),
            deadline: number(get("SMALTI_DEADLINE_US")).map(|us| SystemTime::UNIX_EPOCH + Duration::from_micros(us)),
            ports: (0..).map_while(|n| number(get(&format!("PORT{n}")))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_says_who_i_am() {
        let vars = [
            ("SMALTI_TASK_ID", "j1.m0.0"),
            ("SMALTI_FENCING_TOKEN", "3"),
            ("SMALTI_ITEM", "7"),
            ("SMALTI_ITEMS", "9"),
            ("PORT0", "31000"),
            ("PORT1", "31001"),
        ];
        let me = Me::read(|name| vars.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned()));
        assert_eq!(me.task_id.as_deref(), Some("j1.m0.0"));
        assert_eq!((me.item, me.items), (Some(7), Some(9)));
        assert_eq!((me.attempt, me.fencing_token), (None, Some(3)));
        assert_eq!(me.ports, [31000, 31001]);
    }

    #[test]
    fn outside_smalti_nothing_is_known() {
        assert_eq!(Me::read(|_| None), Me::default());
    }
}
