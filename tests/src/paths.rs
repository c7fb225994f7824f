//! Where the binaries and guests are that `cargo xtask build` made.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// The repository's root, from where this crate was compiled.
#[must_use]
pub fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// The build's results.
#[derive(Debug, Clone)]
pub struct Paths {
    target: PathBuf,
}

impl Paths {
    /// The target directory: `$CARGO_TARGET_DIR`, else that of the running program, else `target`.
    #[must_use]
    pub fn target() -> PathBuf {
        let of_exe = || {
            let exe = std::env::current_exe().ok()?;
            exe.ancestors().find(|p| p.file_name().is_some_and(|n| n == "release"))?.parent().map(Path::to_path_buf)
        };
        std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).or_else(of_exe).unwrap_or_else(|| workspace_root().join("target"))
    }

    /// Finds what was built, in [`Self::target`].
    ///
    /// # Errors
    /// When `smalti` or its executor are not built.
    pub fn find() -> Result<Self> {
        let paths = Self { target: Self::target() };
        for binary in [paths.smalti(), paths.executor()] {
            if !binary.is_file() {
                bail!("{} is not there: run `cargo xtask build` first", binary.display());
            }
        }
        Ok(paths)
    }

    /// The `smalti` binary.
    #[must_use]
    pub fn smalti(&self) -> PathBuf {
        self.target.join("release/smalti")
    }

    /// The executor binary.
    #[must_use]
    pub fn executor(&self) -> PathBuf {
        self.target.join("release/smalti-executor")
    }

    /// The same binaries as another build would be: other files at another place. Guests are not there.
    ///
    /// # Errors
    /// When they cannot be copied.
    pub fn copied_to(&self, target: &Path) -> Result<Self> {
        let copy = Self { target: target.to_owned() };
        std::fs::create_dir_all(target.join("release")).with_context(|| format!("making {}", target.display()))?;
        for (from, to) in [(self.smalti(), copy.smalti()), (self.executor(), copy.executor())] {
            std::fs::copy(&from, &to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
        }
        Ok(copy)
    }

    /// An example guest as a core module for WASI preview 1.
    ///
    /// # Errors
    /// When it is not built.
    pub fn guest(&self, name: &str) -> Result<PathBuf> {
        self.built("wasm32-wasip1", name)
    }

    /// An example guest as a component for WASI 0.2.
    ///
    /// # Errors
    /// When it is not built.
    pub fn component(&self, name: &str) -> Result<PathBuf> {
        self.built("wasm32-wasip2", name)
    }

    fn built(&self, target: &str, name: &str) -> Result<PathBuf> {
        let path = self.target.join(target).join("release").join(format!("{name}.wasm"));
        path.canonicalize().with_context(|| format!("{}: run `cargo xtask build` first", path.display()))
    }
}
