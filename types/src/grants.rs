//! What a task is granted beside cpu and memory: ports, endpoints, a writable directory. Whether its description of them makes sense.
//!
//! Owns the checks that command line, scheduler, master and agent share. Deliberately absent: whether it may have them (policy).

use crate::resources::Resources;
use crate::task::{Isolation, TaskSpec};

/// Most endpoints of one task: each is checked at every connect.
pub const MAX_ENDPOINTS: usize = 64;
/// Where a task with disk finds its writable directory unless it says otherwise.
pub const DEFAULT_DISK_PATH: &str = "/scratch";
/// Longest path of a writable directory in bytes.
pub const MAX_DISK_PATH: usize = 1024;

/// Why a description makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantsError {
    /// The path of the writable directory.
    #[error("disk path `{0}`: it must be `/`, or absolute without `.`, `..`, `//` and a final `/`, and have at most {MAX_DISK_PATH} bytes")]
    Path(String),
    /// A directory of no size.
    #[error("disk path `{0}` without disk: say how much, like --disk 1GiB:{0}")]
    PathWithoutDisk(String),
    /// An input would lie in the writable directory or hide it.
    #[error("the input at `{input}` and the writable directory at `{disk}` are in each other's way")]
    Overlap {
        /// The input's path.
        input: String,
        /// The directory's path.
        disk: String,
    },
    /// Too many endpoints.
    #[error("{0} endpoints, at most {MAX_ENDPOINTS} are allowed")]
    TooManyEndpoints(usize),
}

/// Checks the guest path of a writable directory: there is one way to write it, and it cannot lead elsewhere.
///
/// # Errors
/// When it is anything but absolute and normalised.
pub fn check_path(path: &str) -> Result<(), GrantsError> {
    let normal = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    let fine = path == "/" || path.len() <= MAX_DISK_PATH && path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(normal));
    if fine { Ok(()) } else { Err(GrantsError::Path(path.chars().take(MAX_DISK_PATH).collect())) }
}

/// Whether `path` is `directory` or below it.
fn is_in(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl TaskSpec {
    /// Guest path of the writable directory, if the task has disk.
    #[must_use]
    pub fn disk_path(&self) -> &str {
        self.disk_path.as_deref().unwrap_or(DEFAULT_DISK_PATH)
    }

    /// Whether it needs a network, and with it an executor process of its own.
    #[must_use]
    pub fn is_networked(&self, resources: &Resources) -> bool {
        !resources.ports.is_empty() || !self.connect.is_empty()
    }

    /// The class it runs in as far as its description decides.
    #[must_use]
    pub fn class(&self, resources: &Resources) -> Isolation {
        if self.is_networked(resources) { Isolation::Process } else { self.isolation }
    }

    /// Checks what it asks for beside cpu and memory. `resources` are the task's, or those of one slot.
    ///
    /// # Errors
    /// The first thing that makes no sense.
    pub fn check_grants(&self, resources: &Resources) -> Result<(), GrantsError> {
        if self.connect.len() > MAX_ENDPOINTS {
            return Err(GrantsError::TooManyEndpoints(self.connect.len()));
        }
        if let Some(path) = &self.disk_path {
            check_path(path)?;
            if resources.disk.0 == 0 {
                return Err(GrantsError::PathWithoutDisk(path.clone()));
            }
        }
        if resources.disk.0 == 0 {
            return Ok(());
        }
        let disk = self.disk_path();
        let paths = self.inputs.iter().filter_map(|i| i.guest_path.as_deref());
        match paths.into_iter().find(|input| is_in(disk, input)) {
            Some(input) => Err(GrantsError::Overlap { input: input.into(), disk: disk.into() }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amount::{Bytes, MilliCpus};
    use crate::digest::Digest;
    use crate::task::{BundleRef, Input};

    fn spec() -> TaskSpec {
        TaskSpec::new(BundleRef { digest: Digest::of(b"x"), uri: None })
    }

    fn resources(disk: u64) -> Resources {
        Resources { disk: Bytes(disk), ..Resources::new(MilliCpus(100), Bytes(1)) }
    }

    #[test]
    fn only_normal_absolute_paths_are_taken() {
        for good in ["/", "/scratch", "/a/b", "/.hidden", "/a..b"] {
            assert_eq!(check_path(good), Ok(()), "{good}");
        }
        for bad in ["", "a", "a/b", "/a/", "//a", "/a//b", "/.", "/a/..", "/../a", "/a/./b", "/a\0", &format!("/{}", "x".repeat(2000))] {
            assert!(matches!(check_path(bad), Err(GrantsError::Path(_))), "{bad}");
        }
    }

    #[test]
    fn a_path_needs_disk_and_room_of_its_own() {
        let placed = TaskSpec { disk_path: Some("/data".into()), ..spec() };
        assert_eq!(placed.check_grants(&resources(1)), Ok(()));
        assert!(matches!(placed.check_grants(&resources(0)), Err(GrantsError::PathWithoutDisk(_))));
        for (input, clash) in [("/data", true), ("/data/x", false), ("/data2", false), ("/inputs/data", false)] {
            let input = Input { guest_path: Some(input.into()), uri: None, digest: Some(Digest::of(b"i")), length: 1, etag: None };
            let spec = TaskSpec { inputs: vec![input], ..placed.clone() };
            assert_eq!(spec.check_grants(&resources(1)).is_err(), clash);
        }
        // Each is a directory of its own to the guest; the longest name wins.
        let input = Input { guest_path: Some("/inputs/a".into()), uri: None, digest: Some(Digest::of(b"i")), length: 1, etag: None };
        let root = TaskSpec { disk_path: Some("/".into()), inputs: vec![input], ..spec() };
        assert_eq!(root.check_grants(&resources(1)), Ok(()));
        let deep = TaskSpec { disk_path: Some("/inputs/a/b".into()), ..spec() };
        let input = Input { guest_path: Some("/inputs/a".into()), uri: None, digest: Some(Digest::of(b"i")), length: 1, etag: None };
        assert!(TaskSpec { inputs: vec![input], ..deep }.check_grants(&resources(1)).is_err());
    }

    #[test]
    fn a_network_means_a_process_of_its_own() {
        assert_eq!(spec().class(&resources(0)), Isolation::Instance);
        assert_eq!(TaskSpec { isolation: Isolation::Process, ..spec() }.class(&resources(0)), Isolation::Process);
        let dialling = TaskSpec { connect: vec!["h:1".parse().unwrap()], ..spec() };
        assert_eq!(dialling.class(&resources(0)), Isolation::Process);
        let listening = Resources { ports: "1000".parse().unwrap(), ..resources(0) };
        assert_eq!(spec().class(&listening), Isolation::Process);
        let many = TaskSpec { connect: vec!["h:1".parse().unwrap(); MAX_ENDPOINTS + 1], ..spec() };
        assert!(matches!(many.check_grants(&resources(0)), Err(GrantsError::TooManyEndpoints(_))));
    }
}
