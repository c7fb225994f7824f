//! What the inputs in the cache are to the rest of the cluster: in which role each is held, and under which short name.
//!
//! Owns that knowledge in memory, and beside each file as an extended attribute where the file system has them: without, it is told again
//! when the input is used again.

use smalti_types::{HoldingKey, Role};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The attribute: the short name in hexadecimal, a space, the role.
const ATTRIBUTE: &str = "user.smalti.held";
/// Its longest value.
const LONGEST: usize = 512;

/// In which role, under which name.
pub(super) type Held = (Role, HoldingKey);

/// By path.
#[derive(Debug, Default)]
pub(super) struct Names(Mutex<HashMap<PathBuf, Held>>);

impl Names {
    /// What an earlier life of the agent left.
    pub(super) fn read(dir: &Path) -> Self {
        let files = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        Self(Mutex::new(files.filter_map(|path| Some((path.clone(), read(&path)?))).collect()))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn keep(&self, path: &Path, held: Option<&Held>) {
        if let Some(held) = held {
            self.lock().insert(path.to_owned(), held.clone());
        }
    }

    /// Those of the files that are there, with when each was used; the others are forgotten.
    pub(super) fn of(&self, there: &HashMap<PathBuf, u64>) -> Vec<(u64, Role, HoldingKey)> {
        let mut names = self.lock();
        names.retain(|path, _| there.contains_key(path));
        names.iter().filter_map(|(path, (role, key))| Some((*there.get(path)?, role.clone(), *key))).collect()
    }
}

/// Before the file is made read-only: its owner could not any more.
pub(super) fn write(path: &Path, (role, key): &Held) {
    let value = format!("{:016x} {role}", key.0);
    let _ = rustix::fs::setxattr(path, ATTRIBUTE, value.as_bytes(), rustix::fs::XattrFlags::empty());
}

fn read(path: &Path) -> Option<Held> {
    let mut value = [0_u8; LONGEST];
    let length = rustix::fs::getxattr(path, ATTRIBUTE, &mut value[..]).ok()?;
    let (key, role) = std::str::from_utf8(value.get(..length)?).ok()?.split_once(' ')?;
    Some((Role::new(role).ok()?, HoldingKey(u64::from_str_radix(key, 16).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_forgotten_and_what_is_there_outlives_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let (path, held) = (dir.path().join("x"), (Role::new("r").unwrap(), HoldingKey(7)));
        std::fs::write(&path, "x").unwrap();
        write(&path, &held);
        let names = Names::default();
        names.keep(&path, Some(&held));
        let there = HashMap::from([(path.clone(), 3)]);
        let expected = vec![(3, held.0.clone(), held.1)];
        assert_eq!(names.of(&there), expected);
        if read(&path).is_some() {
            assert_eq!(Names::read(dir.path()).of(&there), expected);
        } else {
            eprintln!("the file system has no extended attributes for users");
        }
        assert_eq!(names.of(&HashMap::new()), []);
        assert_eq!(names.of(&there), [], "it was forgotten");
    }
}
