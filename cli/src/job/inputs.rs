//! Inputs that the user names: files at a guest path, and the objects that a map cuts into items.

use crate::bundle::{Source, resolve_input};
use crate::cluster::Bundles;
use crate::failure::{Failure, Result, io_text};
use smalti_fetch::shown;
use smalti_proto::v1::{self, Input};
use smalti_types::Packing;
use smalti_types::grants::check_inputs;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// Directory where inputs appear that name no guest path.
const DEFAULT_DIR: &str = "/inputs";
/// Most files that one `--inputs` may stand for.
const MAX_FILES: usize = 100_000;
/// How deep directories are read.
const MAX_DEPTH: usize = 64;

/// `--input [/guest/path=]URI|FILE`, all of them: nothing is uploaded before all names make sense.
pub(crate) async fn guest_files(bundles: &Bundles, named: &[String]) -> Result<Vec<Input>> {
    let files: Vec<(String, Source)> = named.iter().map(|text| guest_file(text)).collect::<Result<_>>()?;
    check_inputs(files.iter().map(|(path, _)| path.as_str())).map_err(|e| Failure::new(format!("--input: {e}")))?;
    let mut inputs = Vec::with_capacity(files.len());
    for (path, source) in files {
        inputs.push(resolve_input(bundles, &source, Some(path)).await?);
    }
    Ok(inputs)
}

fn guest_file(text: &str) -> Result<(String, Source)> {
    let (guest_path, named) = split_guest_path(text);
    let source = Source::parse(OsStr::new(named))?;
    if let Source::Uri { uri, .. } = &source
        && uri.starts_with("s3://")
        && uri.ends_with('/')
    {
        let uri = shown(uri);
        return Err(Failure::new(format!(
            "--input {uri}: that is a prefix, and an input is one object; `smalti map --inputs` takes prefixes"
        )));
    }
    Ok((guest_path.map_or_else(|| format!("{DEFAULT_DIR}/{}", source.base_name()), str::to_owned), source))
}

/// A guest path is absolute; everything else before a `=` belongs to the name.
fn split_guest_path(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((path, rest)) if path.starts_with('/') => (Some(path), rest),
        _ => (None, text),
    }
}

/// `--inputs URI|FILE|DIR|GLOB`: URIs go as they are, with their globs; files of the client are uploaded, in the order of their names.
/// What is packed is unpacked for the items unless `plain`.
pub(crate) async fn split_objects(bundles: &Bundles, named: &[OsString], plain: bool) -> Result<Vec<Input>> {
    let mut inputs = Vec::new();
    for name in named {
        for source in expand(name)? {
            let packing = packing(&source, plain).map(i32::from);
            inputs.push(Input { packing, ..resolve_input(bundles, &source, None).await? });
        }
    }
    Ok(inputs)
}

/// How an input is packed; `None` where the scheduler is to look at the name, which may stand for many.
fn packing(source: &Source, plain: bool) -> Option<v1::Packing> {
    match source {
        _ if plain => Some(v1::Packing::Plain),
        Source::Uri { .. } => None,
        named => Some(match Packing::of_name(&named.base_name()) {
            Packing::Plain => v1::Packing::Plain,
            Packing::Gzip => v1::Packing::Gzip,
            Packing::Zstd => v1::Packing::Zstd,
        }),
    }
}

/// What one `--inputs` stands for.
fn expand(name: &OsStr) -> Result<Vec<Source>> {
    let source = Source::parse(name)?;
    let Source::File(path) = &source else { return Ok(vec![source]) };
    let shown = path.display();
    if path.is_dir() {
        let mut files = Vec::new();
        walk(path, 0, &mut files)?;
        return non_empty(files, &format!("the directory {shown} has no files"));
    }
    // A file whose name looks like a pattern is still that file.
    if path.exists() {
        return Ok(vec![source]);
    }
    match name.to_str().filter(|text| text.contains(['*', '?', '['])) {
        Some(pattern) => non_empty(matches(pattern)?, &format!("no file matches {pattern}")),
        None => Err(Failure::new(format!("no input at {shown}: no such file or directory"))),
    }
}

fn non_empty(files: Vec<PathBuf>, otherwise: &str) -> Result<Vec<Source>> {
    if files.is_empty() {
        return Err(Failure::new(format!("--inputs: {otherwise}")));
    }
    Ok(files.into_iter().map(Source::File).collect())
}

fn matches(pattern: &str) -> Result<Vec<PathBuf>> {
    let bad = |why: String| Failure::new(format!("--inputs {pattern}: {why}"));
    let mut files = Vec::new();
    for entry in glob::glob(pattern).map_err(|e| bad(e.to_string()))? {
        let path = entry.map_err(|e| bad(e.to_string()))?;
        if path.is_file() {
            add(&mut files, path)?;
        }
    }
    Ok(files)
}

/// Files below a directory, sorted by path; names that begin with a dot are left out, links to directories not followed.
fn walk(dir: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    let failed = |e: std::io::Error| Failure::new(format!("reading the directory {}: {}", dir.display(), io_text(&e)));
    if depth > MAX_DEPTH {
        return Err(Failure::new(format!("the directory {} is nested more than {MAX_DEPTH} deep", dir.display())));
    }
    let mut entries = std::fs::read_dir(dir).map_err(failed)?.collect::<std::io::Result<Vec<_>>>().map_err(failed)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if entry.file_type().map_err(failed)?.is_dir() {
            walk(&entry.path(), depth + 1, files)?;
        } else if entry.path().is_file() {
            add(files, entry.path())?;
        }
    }
    Ok(())
}

fn add(files: &mut Vec<PathBuf>, path: PathBuf) -> Result<()> {
    if files.len() == MAX_FILES {
        return Err(Failure::new(format!("--inputs stands for more than {MAX_FILES} files; name fewer, or use an s3:// prefix")));
    }
    files.push(path);
    Ok(())
}

/// One object, for `--state`.
pub(crate) async fn state(bundles: &Bundles, file: &OsStr) -> Result<Input> {
    resolve_input(bundles, &Source::parse(file)?, None).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_absolute_path_before_the_sign_is_a_guest_path() {
        assert_eq!(split_guest_path("/data/x=s3://b/k"), (Some("/data/x"), "s3://b/k"));
        assert_eq!(split_guest_path("a=b.txt"), (None, "a=b.txt"));
        assert_eq!(split_guest_path("http://h/?q=1"), (None, "http://h/?q=1"));
    }

    #[test]
    fn files_appear_under_their_own_names_or_where_they_are_asked_for() {
        let path = |text: &str| guest_file(text).map(|(path, _)| path);
        for (text, at) in [
            ("s3://b/dir/with space.csv", "/inputs/with space.csv"),
            ("s3://b/q?x#y", "/inputs/q?x#y"),
            ("https://h/dir/a%20b.csv?token=hush", "/inputs/a b.csv"),
            ("https://h/", "/inputs/input"),
            ("file:///srv/it's \"x\".csv", "/inputs/it's \"x\".csv"),
            ("dir/\u{6587}.csv", "/inputs/\u{6587}.csv"),
            ("/data/x=s3://b/k=v", "/data/x"),
        ] {
            assert_eq!(path(text).unwrap(), at, "{text}");
        }
        assert!(path("s3://b/dir/").unwrap_err().to_string().contains("prefix"));
        assert_eq!(packing(&Source::parse(OsStr::new("logs/a.gz")).unwrap(), false), Some(v1::Packing::Gzip));
        assert_eq!(packing(&Source::parse(OsStr::new("logs/a.gz")).unwrap(), true), Some(v1::Packing::Plain));
        assert_eq!(packing(&Source::parse(OsStr::new("s3://b/*.gz")).unwrap(), false), None);
    }

    #[test]
    fn directories_and_patterns_stand_for_their_files_in_order() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        for name in ["b.txt", "a.txt", ".hidden", "sub/c.txt", "odd[1].txt"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let names = |arg: &Path| -> Vec<String> { expand(arg.as_os_str()).unwrap().iter().map(Source::base_name).collect() };
        assert_eq!(names(dir.path()), ["a.txt", "b.txt", "odd[1].txt", "c.txt"]);
        assert_eq!(names(&dir.path().join("?.txt")), ["a.txt", "b.txt"]);
        assert_eq!(names(&dir.path().join("odd[1].txt")), ["odd[1].txt"]);
        assert!(expand(dir.path().join("*.csv").as_os_str()).unwrap_err().to_string().contains("no file matches"));
        assert!(expand(dir.path().join("none").as_os_str()).is_err());
        assert_eq!(expand(OsStr::new("s3://b/*.txt")).unwrap().len(), 1);
    }
}
