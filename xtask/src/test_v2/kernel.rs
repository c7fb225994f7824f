//! Kernels, from Debian's packages: found, downloaded and unpacked below `target/v2`, never installed.
//!
//! Where packages come from is taken from the machine's own apt sources. A private list of sources and private apt state
//! are used, so that the machine's own are as they were.

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The package whose dependency names the newest kernel package of a series.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
/// The release that has both kernels.
const RELEASE: &str = "bookworm";
/// Who signs it.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A series of kernels that the tests run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Series {
    /// From bookworm-backports: has the fast reset's `PAGEMAP_SCAN`
    #[value(name = "6.12")]
    V6_12,
    /// Bookworm's own
    #[value(name = "6.1")]
    V6_1,
}

impl Series {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V6_12 => "6.12",
            Self::V6_1 => "6.1",
        }
    }
}

/// An unpacked kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) series: Series,
    /// The compressed image to boot.
    pub(super) image: PathBuf,
    /// Its modules.
    pub(super) modules: PathBuf,
}

/// A version of a package, and what it depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    package: String,
    version: String,
}

/// The kernel of a series, from the cache or from the machine's Debian mirror.
pub(super) fn get(series: Series, cache: &Path, mirror: Option<&str>) -> Result<Kernel> {
    let dir = cache.join("kernels").join(series.name());
    if !dir.join("boot").is_dir() {
        download(series, cache, &dir, mirror).with_context(|| {
            format!(
                "getting kernel {} from Debian's packages. It needs a Debian mirror with {RELEASE} and {RELEASE}-backports: the one in the \
                 machine's apt sources is used, or name one with --mirror URL. Or unpack a package {META_PACKAGE} depends on, so that {} \
                 and its lib/modules are there",
                series.name(),
                dir.join("boot/vmlinuz-*").display(),
            )
        })?;
    }
    let image = only_child(&dir.join("boot"), "vmlinuz-")?;
    let modules = only_child(&dir.join("lib/modules"), "")?;
    Ok(Kernel { series, image, modules })
}

fn only_child(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))?;
    let names = entries.filter_map(|e| e.ok()).filter(|e| e.file_name().to_string_lossy().starts_with(prefix));
    let found: Vec<PathBuf> = names.map(|e| e.path()).collect();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        _ => bail!("{} has {} entries {prefix}*: remove it to have it made again", dir.display(), found.len()),
    }
}

fn download(series: Series, cache: &Path, dir: &Path, mirror: Option<&str>) -> Result<()> {
    let apt = Apt::prepare(&cache.join("apt"), mirror)?;
    let candidates = candidates(&apt.show(META_PACKAGE)?, series);
    ensure!(!candidates.is_empty(), "the mirror has no package {META_PACKAGE} of series {}", series.name());
    let mut last = None;
    // A mirror may list a version that it has no longer: then the next one.
    for candidate in candidates {
        match apt.download(&candidate) {
            Ok(package) => return unpack(&package, dir),
            Err(e) => last = Some(e),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("no version could be downloaded")))
}

/// Unpacks beside the place and renames, so that the place is there only when it is whole.
fn unpack(package: &Path, dir: &Path) -> Result<()> {
    let partial = dir.with_extension("partial");
    let _ = std::fs::remove_dir_all(&partial);
    std::fs::create_dir_all(&partial).with_context(|| format!("creating {}", partial.display()))?;
    let mut c = Command::new("dpkg-deb");
    c.arg("--extract").arg(package).arg(&partial);
    crate::build::run(c)?;
    let _ = std::fs::remove_dir_all(dir);
    std::fs::rename(&partial, dir).with_context(|| format!("naming {}", dir.display()))
}

/// Pure: from what `apt-cache show` prints, newest first as it prints them.
fn candidates(shown: &str, series: Series) -> Vec<Candidate> {
    let field = |paragraph: &str, name: &str| {
        paragraph.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned)).unwrap_or_default()
    };
    shown
        .split("\n\n")
        .filter(|p| field(p, "Version").starts_with(&format!("{}.", series.name())))
        .filter_map(|p| {
            // `linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)`
            let depends = field(p, "Depends");
            let (package, rest) = depends.split(',').find(|d| d.trim().starts_with("linux-image-"))?.trim().split_once(' ')?;
            let version = rest.strip_prefix("(= ")?.strip_suffix(')')?;
            Some(Candidate { package: package.to_owned(), version: version.to_owned() })
        })
        .collect()
}

/// apt with sources and state of its own.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn prepare(dir: &Path, mirror: Option<&str>) -> Result<Self> {
        for sub in ["lists/partial", "cache/archives/partial", "packages"] {
            std::fs::create_dir_all(dir.join(sub)).with_context(|| format!("creating {}", dir.join(sub).display()))?;
        }
        let sources = match mirror {
            Some(mirror) => sources(mirror, None),
            None => own_sources()?,
        };
        std::fs::write(dir.join("sources.list"), sources)?;
        let apt = Self { dir: dir.to_owned() };
        println!("reading the package lists of {RELEASE} and {RELEASE}-backports");
        apt.run("apt-get", &["update"])?;
        Ok(apt)
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let dir = self.dir.display();
        let mut c = Command::new(program);
        for option in [
            format!("Dir::Etc::SourceList={dir}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".into(),
            format!("Dir::State::Lists={dir}/lists"),
            format!("Dir::Cache={dir}/cache"),
            // Hooks of the machine's own apt have nothing to do here, and as another user it could not write below `target`.
            "APT::Update::Post-Invoke-Success=".into(),
            "APT::Sandbox::User=".into(),
            "Acquire::Languages=none".into(),
            "Acquire::Retries=3".into(),
        ] {
            c.args(["-o", &option]);
        }
        let output =
            c.arg("-q").args(args).current_dir(self.dir.join("packages")).output().with_context(|| format!("starting {program}"))?;
        let err = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {}: {}", args.join(" "), err.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn show(&self, package: &str) -> Result<String> {
        self.run("apt-cache", &["show", package])
    }

    fn download(&self, candidate: &Candidate) -> Result<PathBuf> {
        println!("downloading {} {}", candidate.package, candidate.version);
        self.run("apt-get", &["download", &format!("{}={}", candidate.package, candidate.version)])?;
        // In the file's name apt writes a colon as %3a; no kernel has an epoch.
        Ok(self.dir.join("packages").join(format!("{}_{}_amd64.deb", candidate.package, candidate.version)))
    }
}

/// Sources from what the machine's apt says of its own, without asking anybody.
fn own_sources() -> Result<String> {
    let format = "$(REPO_URI) $(RELEASE) $(COMPONENT)";
    let output = Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let id = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    ensure!(id.lines().any(|l| l == "ID=debian"), "this is not Debian, so its apt sources are of no use here");
    let (main, security) = debian_mirrors(&text).context("no Debian mirror is among the machine's apt sources")?;
    Ok(sources(&main, security.as_deref()))
}

/// Pure: the repositories of a Debian release and of its security updates, in lines of address, release and component.
fn debian_mirrors(targets: &str) -> Option<(String, Option<String>)> {
    let rows: Vec<Vec<&str>> = targets.lines().map(|l| l.split(' ').collect()).collect();
    // A Debian mirror has updates of a release beside the release; no other repository is laid out so.
    let updates = rows.iter().find_map(|r| r.get(1)?.strip_suffix("-updates"))?;
    let of = |release: &str| rows.iter().find(|r| r.len() == 3 && r[1] == release && r[2] == "main").map(|r| r[0].to_owned());
    Some((of(updates)?, of(&format!("{updates}-security"))))
}

/// Pure: an apt source list.
fn sources(mirror: &str, security: Option<&str>) -> String {
    let signed = if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
    let security = security.map(|s| (s, format!("{RELEASE}-security")));
    let all = [(mirror, RELEASE.to_owned()), (mirror, format!("{RELEASE}-backports"))].into_iter().chain(security);
    all.map(|(uri, suite)| format!("deb {signed}{uri} {suite} main\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_of_a_series_is_what_the_meta_package_depends_on() {
        let shown = "Package: m\nVersion: 6.12.95-1~bpo12+1\nDepends: linux-image-6.12.95+deb12-cloud-amd64 (= 6.12.95-1~bpo12+1)\n\n\
                     Package: m\nVersion: 6.1.192-2\nDepends: x, linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n\n\
                     Package: m\nVersion: 6.1.176-1\nDepends: linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1)\n";
        let names = |s| candidates(shown, s).into_iter().map(|c| (c.package, c.version)).collect::<Vec<_>>();
        assert_eq!(names(Series::V6_12), [("linux-image-6.12.95+deb12-cloud-amd64".to_owned(), "6.12.95-1~bpo12+1".to_owned())]);
        assert_eq!(names(Series::V6_1).len(), 2);
        assert_eq!(names(Series::V6_1)[0].1, "6.1.192-2");
    }

    #[test]
    fn mirrors_are_those_of_the_machine() {
        let text = "https://other/ stable main\nhttp://m/debian/ trixie main\nhttp://m/debian/ trixie-updates main\nhttp://m/s/ trixie-security main\n";
        assert_eq!(debian_mirrors(text), Some(("http://m/debian/".into(), Some("http://m/s/".into()))));
        assert_eq!(debian_mirrors("https://other/ stable main\n"), None);
        let list = sources("http://m/debian", None);
        assert_eq!(list.lines().count(), 2);
        assert!(list.lines().nth(1).unwrap().ends_with("http://m/debian bookworm-backports main"), "{list}");
    }
}
