//! Where an input is cut: after the first line end at or behind each multiple of the split size.
//!
//! The cuts do not depend on each other, so they are looked for at the same time; a line longer than a split swallows cuts.

use super::ResolveError;
use super::object::Object;
use futures::{StreamExt, TryStreamExt};
use smalti_scheduler_core::spec::MAX_SPLITS;

/// Bytes read at a time in search of a line end: longer than nearly all lines.
const CHUNK: u64 = 64 << 10;
/// Cuts looked for at a time.
const CONCURRENT: usize = 16;

/// One past the last byte of each split, ascending; the last is `length`.
pub(crate) async fn ends(object: &Object, length: u64, size: u64) -> Result<Vec<u64>, ResolveError> {
    let cuts = (length - 1) / size;
    if cuts >= MAX_SPLITS as u64 {
        return Err(ResolveError::TooManySplits { limit: MAX_SPLITS });
    }
    let found = (1..=cuts).map(|k| cut(object, k * size, (k + 1) * size, length));
    let mut ends: Vec<u64> =
        futures::stream::iter(found).buffered(CONCURRENT).try_filter_map(|end| async move { Ok(end) }).try_collect().await?;
    ends.dedup();
    if ends.last() != Some(&length) {
        ends.push(length);
    }
    Ok(ends)
}

/// One past the first line end at or behind `at - 1`: a line that ends just before the cut is not given to the next split.
/// `None` when it lies behind the next cut, which will find it.
async fn cut(object: &Object, at: u64, next: u64, length: u64) -> Result<Option<u64>, ResolveError> {
    let mut from = at - 1;
    let until = next.min(length);
    while from < until {
        let to = (from + CHUNK).min(until);
        let bytes = object.range(from..to).await?;
        if bytes.len() as u64 != to - from {
            return Err(object.failed("it became shorter while it was being read"));
        }
        if let Some(i) = bytes.iter().position(|b| *b == b'\n') {
            return Ok(Some(from + i as u64 + 1));
        }
        from = to;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pieces(text: &str, size: u64) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, text).unwrap();
        let location = smalti_fetch::Location::File(path);
        let sources = crate::resolve::object::everything();
        let object = Object { sources, role: smalti_types::Role::default(), location, version: None };
        let mut from = 0;
        let mut out = Vec::new();
        for end in ends(&object, text.len() as u64, size).await.unwrap() {
            let end = usize::try_from(end).unwrap();
            out.push(text[from..end].to_owned());
            from = end;
        }
        out
    }

    #[tokio::test]
    async fn cuts_lie_at_line_ends_and_nothing_is_lost() {
        assert_eq!(pieces("ab\ncd\nef\n", 3).await, ["ab\n", "cd\n", "ef\n"]);
        assert_eq!(pieces("ab\ncd\nef", 4).await, ["ab\ncd\n", "ef"]);
        assert_eq!(pieces("abcdefghij\nk\n", 2).await, ["abcdefghij\n", "k\n"]);
        assert_eq!(pieces("abcdefghij", 2).await, ["abcdefghij"]);
        assert_eq!(pieces("\n\n\n\n", 1).await, ["\n", "\n", "\n", "\n"]);
        assert_eq!(pieces("a\r\nbc\r\nd", 2).await, ["a\r\n", "bc\r\n", "d"], "a line ends behind its line feed");
        assert_eq!(pieces("ab\ncd\n", 3).await, ["ab\n", "cd\n"], "a line that ends at the cut is not read twice");
        assert_eq!(pieces("abc\nd\n", 3).await, ["abc\n", "d\n"], "the line that contains the cut belongs to the split before");
        let long = format!("{}\n{}\n", "x".repeat(200_000), "y".repeat(10));
        assert_eq!(pieces(&long, 1000).await.concat(), long);
        for size in 1..40 {
            let text = "one two\nthree\n\nfour five six seven\neight\n";
            let cut = pieces(text, size).await;
            assert_eq!(cut.concat(), text);
            assert!(cut.iter().all(|p| p.ends_with('\n') && !p.is_empty()), "{size}: {cut:?}");
        }
    }

    #[tokio::test]
    async fn an_object_that_changes_meanwhile_is_not_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "ab\ncd\nef\n").unwrap();
        let location = smalti_fetch::Location::File(path);
        let sources = crate::resolve::object::everything();
        let object = Object { sources, role: smalti_types::Role::default(), location, version: Some("\"0.0-9\"".into()) };
        let said = ends(&object, 9, 3).await.unwrap_err().to_string();
        assert!(said.contains("changed"), "{said}");
    }
}
