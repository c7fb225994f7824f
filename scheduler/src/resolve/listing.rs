//! What one input URI stands for: an object, the files below a directory, the keys below a prefix, or what a pattern matches.

use super::{MAX_LISTED, MAX_OBJECTS, ResolveError};
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path as Key;
use smalti_fetch::{Location, SourceError, Sources};
use smalti_types::{Input, Role};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How deep directories are read.
const MAX_DEPTH: usize = 64;

/// Who asks, and whom.
type Asking<'a> = (&'a Sources, &'a Role);

/// The objects in the order of their names, each with length and version.
pub(crate) async fn expand(asking: Asking<'_>, uri: &str) -> Result<Vec<Input>, ResolveError> {
    let (sources, role) = asking;
    // A prefix is no object: its key may be empty.
    if let Some((bucket, key)) = uri.strip_prefix("s3://").and_then(|rest| rest.split_once('/'))
        && (key.is_empty() || key.ends_with('/') || is_pattern(key))
    {
        return keys(asking, uri, bucket, key).await;
    }
    let location = Location::parse(Some(uri), None)?;
    if let Location::File(path) = &location {
        // As far as no wildcard is in it, it must be the role's to read; each file is checked again when it is.
        let fixed = path.ancestors().find(|p| p.to_str().is_some_and(|t| !is_pattern(t)) || p.exists()).unwrap_or(path);
        sources.local(role, fixed)?;
        let (owned, shown) = (path.clone(), uri.to_owned());
        let files = tokio::task::spawn_blocking(move || files(&owned, &shown)).await;
        return files.map_err(|e| ResolveError::Read { uri: uri.into(), cause: e.to_string() })?;
    }
    let location = sources.exact(role, &location).await?;
    let (length, etag) = sources.head(role, &location).await.map_err(|e| hint(e, &location))?;
    Ok(vec![Input { uri: Some(super::named(&location, uri)), ..object(length, etag) }])
}

/// An object of a map, as far as a listing tells.
fn object(length: u64, etag: Option<String>) -> Input {
    Input { guest_path: None, uri: None, digest: None, length, etag, packing: None }
}

/// What somebody may have meant who named something that is not there.
fn hint(error: SourceError, location: &Location) -> SourceError {
    let advice = match location {
        Location::S3 { .. } => "; for everything below it, end it with a slash",
        Location::Http(url) if is_pattern(url.path()) || url.path().ends_with('/') => {
            "; HTTP has no listing: name each object, or use s3:// or file://"
        }
        _ => return error,
    };
    match error {
        SourceError::NotFound { at, why } => SourceError::NotFound { at, why: why + advice },
        other => other,
    }
}

fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// Keys below the part of the pattern that has no wildcard.
async fn keys((sources, role): Asking<'_>, uri: &str, bucket: &str, key: &str) -> Result<Vec<Input>, ResolveError> {
    let pattern = is_pattern(key).then(|| glob::Pattern::new(key)).transpose();
    let pattern = pattern.map_err(|e| ResolveError::Read { uri: uri.into(), cause: e.to_string() })?;
    let fixed = key.split(['*', '?', '[']).next().unwrap_or_default();
    let prefix = fixed.rsplit_once('/').map_or("", |(prefix, _)| prefix);
    let store = sources.bucket(role, bucket, prefix)?;
    let options = glob::MatchOptions { require_literal_separator: true, ..Default::default() };
    let mut inputs = list(uri, store, prefix, |name| pattern.as_ref().is_none_or(|p| p.matches_with(name, options))).await?;
    if inputs.is_empty() {
        return Err(ResolveError::NotFound { uri: uri.into() });
    }
    inputs.sort_by(|(a, _), (b, _)| a.cmp(b));
    let named = |(name, input): (String, Input)| Input { uri: Some(format!("s3://{bucket}/{name}")), ..input };
    Ok(inputs.into_iter().map(named).collect())
}

/// The keys below a prefix that are wanted. Those that end with a slash are what some programs make for a directory, and no objects.
async fn list(
    uri: &str,
    store: Arc<dyn ObjectStore>,
    prefix: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<(String, Input)>, ResolveError> {
    let prefix = Key::parse(prefix).map_err(|e| SourceError::Uri { uri: uri.into(), why: e.to_string() })?;
    let mut stream = store.list((!prefix.as_ref().is_empty()).then_some(&prefix));
    let (mut found, mut seen) = (Vec::new(), 0_usize);
    while let Some(meta) = stream.try_next().await.map_err(|e| smalti_fetch::from_store(uri, &e))? {
        seen += 1;
        if seen > MAX_LISTED {
            return Err(ResolveError::TooLong { uri: uri.into() });
        }
        if !wanted(meta.location.as_ref()) {
            continue;
        }
        found.push((meta.location.to_string(), object(meta.size, smalti_fetch::object_version(&meta))));
        if found.len() > MAX_OBJECTS {
            return Err(ResolveError::TooMany { uri: uri.into() });
        }
    }
    Ok(found)
}

fn files(path: &Path, uri: &str) -> Result<Vec<Input>, ResolveError> {
    let failed = |e: &dyn std::fmt::Display| ResolveError::Read { uri: uri.into(), cause: e.to_string() };
    let mut found = Vec::new();
    if path.is_dir() {
        walk(path, 0, uri, &mut found)?;
    } else if path.is_file() {
        found.push(path.to_owned());
    } else if let Some(pattern) = path.to_str().filter(|p| is_pattern(p)) {
        for entry in glob::glob(pattern).map_err(|e| failed(&e))? {
            let entry = entry.map_err(|e| failed(&e))?;
            if entry.is_file() {
                add(&mut found, entry, uri)?;
            }
        }
    }
    if found.is_empty() {
        return Err(ResolveError::NotFound { uri: uri.into() });
    }
    let input = |path: PathBuf| {
        let meta = path.metadata().map_err(|e| failed(&e))?;
        let name = path.to_str().ok_or_else(|| failed(&format!("{} is not UTF-8", path.display())))?;
        Ok(Input { uri: Some(format!("file://{name}")), ..object(meta.len(), Some(smalti_fetch::file_version(&meta))) })
    };
    found.into_iter().map(input).collect()
}

/// Files below a directory by name; those that begin with a dot are left out, links to directories not followed.
fn walk(dir: &Path, depth: usize, uri: &str, found: &mut Vec<PathBuf>) -> Result<(), ResolveError> {
    let failed = |e: std::io::Error| ResolveError::Read { uri: uri.into(), cause: format!("{}: {e}", dir.display()) };
    if depth > MAX_DEPTH {
        return Err(ResolveError::Unsupported { uri: uri.into(), problem: "directories are nested too deep" });
    }
    let mut entries = std::fs::read_dir(dir).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if entry.file_type().map_err(failed)?.is_dir() {
            walk(&entry.path(), depth + 1, uri, found)?;
        } else if entry.path().is_file() {
            add(found, entry.path(), uri)?;
        }
    }
    Ok(())
}

fn add(found: &mut Vec<PathBuf>, path: PathBuf, uri: &str) -> Result<(), ResolveError> {
    if found.len() == MAX_OBJECTS {
        return Err(ResolveError::TooMany { uri: uri.into() });
    }
    found.push(path);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn directories_patterns_and_files_stand_for_their_files_in_order() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        for name in ["b.txt", "a.txt", ".hidden", "sub/c.txt"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let root = dir.path().to_str().unwrap();
        let (sources, role) = (crate::resolve::object::everything(), Role::default());
        let expand = async |uri: &str| expand((&sources, &role), uri).await;
        let names = |found: Vec<Input>| -> Vec<String> {
            found.into_iter().map(|i| i.uri.unwrap().strip_prefix(&format!("file://{root}/")).unwrap().to_owned()).collect()
        };
        assert_eq!(names(expand(&format!("file://{root}")).await.unwrap()), ["a.txt", "b.txt", "sub/c.txt"]);
        assert_eq!(names(expand(&format!("file://{root}/?.txt")).await.unwrap()), ["a.txt", "b.txt"]);
        let one = expand(&format!("file://{root}/sub/c.txt")).await.unwrap();
        assert_eq!((one.len(), one[0].length), (1, 9));
        assert!(matches!(expand(&format!("file://{root}/none")).await, Err(ResolveError::Source(SourceError::NotFound { .. }))));
        assert!(matches!(expand("ftp://x/y").await, Err(ResolveError::Source(SourceError::Uri { .. }))));
    }
}
