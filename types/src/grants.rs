//! What a task is granted beside cpu and memory: ports, endpoints, a writable directory. Whether its description of them makes sense.
//!
//! Owns the checks that command line, scheduler, master and agent share. Deliberately absent: whether it may have them (policy).

use crate::resources::Resources;
use crate::task::{Isolation, TaskSpec};

/// Most endpoints of one task: each is checked at every connect.
pub const MAX_ENDPOINTS: usize = 64;
/// Where a task with disk finds its writable directory unless it says otherwise.
pub const DEFAULT_DISK_PATH: &str = "/scratch";
/// Where archives' files appear; an input there would hide them.
pub const ASSETS_PATH: &str = "/assets";
/// Longest name of a file in bytes.
const MAX_FILE_NAME: usize = 255;
/// Longest path of a writable directory, and of an input, in bytes.
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
    /// Where an input is to be seen.
    #[error("the input path `{path}` {why}")]
    Input {
        /// The path.
        path: String,
        /// What is wrong with it.
        why: &'static str,
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

/// Checks the guest paths of inputs: each is that of one file, and none lies where another file or an archive's assets are.
///
/// # Errors
/// For the first that cannot be.
pub fn check_inputs<'a>(paths: impl Iterator<Item = &'a str>) -> Result<(), GrantsError> {
    let mut seen = std::collections::BTreeSet::new();
    let wrong = |path: &str, why| Err(GrantsError::Input { path: path.chars().take(MAX_DISK_PATH).collect(), why });
    for path in paths {
        if path == "/" || check_path(path).is_err() || path.rsplit('/').next().is_some_and(|name| name.len() > MAX_FILE_NAME) {
            return wrong(path, "is not the absolute path of a file without `.`, `..`, `//` and a final `/`");
        }
        if is_in(path, ASSETS_PATH) {
            return wrong(path, "lies where an archive's own files are; choose another directory");
        }
        if !seen.insert(path) {
            return wrong(path, "is given twice; give one of them another like /other/name=URI");
        }
    }
    // A path sorts before those below it, though not always directly before.
    let above = |path: &str| path.match_indices('/').skip(1).any(|(at, _)| seen.contains(&path[..at]));
    match seen.iter().find(|path| above(path)) {
        Some(path) => wrong(path, "lies below another input, which is a file"),
        None => Ok(()),
    }
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
        check_inputs(self.inputs.iter().filter_map(|i| i.guest_path.as_deref()))?;
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
            let input =
                Input { guest_path: Some(input.into()), uri: None, digest: Some(Digest::of(b"i")), length: 1, etag: None, packing: None };
            let spec = TaskSpec { inputs: vec![input], ..placed.clone() };
            assert_eq!(spec.check_grants(&resources(1)).is_err(), clash);
        }
        // Each is a directory of its own to the guest; the longest name wins.
        let input =
            Input { guest_path: Some("/inputs/a".into()), uri: None, digest: Some(Digest::of(b"i")), length: 1, etag: None, packing: None };
        let root = TaskSpec { disk_path: Some("/".into()), inputs: vec![input], ..spec() };
        assert_eq!(root.check_grants(&resources(1)), Ok(()));
        let deep = TaskSpec { disk_path: Some("/inputs/a/b".into()), ..spec() };
        let input =
            Input { guest_path: Some("/inputs/a".into()), uri: None, digest: Some(Digest::of(b"i")), length: 1, etag: None, packing: None };
        assert!(TaskSpec { inputs: vec![input], ..deep }.check_grants(&resources(1)).is_err());
    }

    #[test]
    fn each_input_has_a_path_of_its_own() {
        let check = |paths: &[&str]| check_inputs(paths.iter().copied());
        assert_eq!(check(&["/inputs/a", "/inputs/b c", "/inputs/it's \"x\"", "/inputs/\u{6587}.gz", "/in", "/a"]), Ok(()));
        for bad in ["", "a", "a/b", "/", "/a/", "/a/../b", "/./a", "//a", "/a//b", "/..", "/a\0", "/assets/x", "/assets"] {
            assert!(check(&[bad]).is_err(), "{bad:?}");
        }
        for clash in [&["/a", "/a"][..], &["/a/b", "/a"], &["/a", "/a.b", "/a/b"], &["/x/y", "/x/y/z/w"]] {
            assert!(check(clash).is_err(), "{clash:?}");
        }
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
