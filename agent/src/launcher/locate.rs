//! Finds the executor's binary.

use std::path::{Path, PathBuf};

/// Name of the binary.
const NAME: &str = "smalti-executor";
/// Environment variable that names it.
const VARIABLE: &str = "SMALTI_EXECUTOR";

/// The binary is nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no executor binary: {looked}. Install {NAME} beside this program, or name it with --executor PATH or ${VARIABLE}; \
     in a clone of the repository, `cargo build --release -p {NAME}` builds it"
)]
pub struct LocateError {
    looked: String,
}

/// The executor's binary: what `--executor` says, else `$SMALTI_EXECUTOR`, else beside the running program (and, for test
/// programs, in the directory above). What is named outright must be there.
///
/// # Errors
/// Where it was looked for, and how to get it.
pub fn locate_executor(flag: Option<&Path>) -> Result<PathBuf, LocateError> {
    let variable = std::env::var_os(VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from);
    choose(flag, variable.as_deref(), std::env::current_exe().ok().as_deref())
}

fn choose(flag: Option<&Path>, variable: Option<&Path>, program: Option<&Path>) -> Result<PathBuf, LocateError> {
    for (named, how) in [(flag, "--executor"), (variable, VARIABLE)] {
        if let Some(path) = named {
            let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            let missing = || LocateError { looked: format!("{how} says {}, which is not a file", path.display()) };
            return if absolute.is_file() { Ok(absolute) } else { Err(missing()) };
        }
    }
    let beside = program.and_then(Path::parent);
    let candidates: Vec<PathBuf> = beside.into_iter().chain(beside.and_then(Path::parent)).map(|dir| dir.join(NAME)).collect();
    let looked: Vec<String> = candidates.iter().map(|c| c.display().to_string()).collect();
    candidates.into_iter().find(|c| c.is_file()).ok_or_else(|| LocateError { looked: format!("{} is not there", looked.join(" or ")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_comes_first_and_must_exist() {
        let dir = tempfile::tempdir().unwrap();
        let beside = dir.path().join(NAME);
        let program = dir.path().join("smalti");
        assert!(choose(None, None, Some(&program)).unwrap_err().to_string().contains("cargo build --release -p smalti-executor"));
        std::fs::write(&beside, "").unwrap();
        assert_eq!(choose(None, None, Some(&program)), Ok(beside.clone()));
        assert_eq!(choose(None, Some(&beside), None), Ok(beside.clone()));
        assert!(choose(Some(Path::new("/nowhere")), Some(&beside), Some(&program)).is_err());
    }
}
