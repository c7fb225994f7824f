//! Word counts: a word is what Unicode white space separates.

use std::collections::HashMap;
use std::io::{self, BufRead, Write};

/// How often each word occurs in what `input` gives. Bytes that are not UTF-8 are replaced, so every text has a count.
///
/// # Errors
/// When `input` cannot be read.
pub fn count(mut input: impl BufRead) -> io::Result<HashMap<String, u64>> {
    let mut counts: HashMap<String, u64> = HashMap::new();
    let mut line = Vec::new();
    while input.read_until(b'\n', &mut line)? > 0 {
        for word in String::from_utf8_lossy(&line).split_whitespace() {
            add(&mut counts, word, 1);
        }
        line.clear();
    }
    Ok(counts)
}

/// Sums lines of `word<TAB>count`; other lines are errors.
///
/// # Errors
/// When `input` cannot be read or a line has another form.
pub fn merge(mut input: impl BufRead) -> io::Result<HashMap<String, u64>> {
    let mut counts = HashMap::new();
    let mut line = String::new();
    while input.read_line(&mut line)? > 0 {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, format!("not `word<TAB>count`: {:?}", line.trim_end()));
        let (word, n) = line.trim_end_matches('\n').rsplit_once('\t').ok_or_else(bad)?;
        add(&mut counts, word, n.parse().map_err(|_| bad())?);
        line.clear();
    }
    Ok(counts)
}

fn add(counts: &mut HashMap<String, u64>, word: &str, n: u64) {
    match counts.get_mut(word) {
        Some(c) => *c += n,
        None => {
            counts.insert(word.to_owned(), n);
        }
    }
}

/// Writes `word<TAB>count` lines: highest count first, then by word.
///
/// # Errors
/// When `output` cannot be written.
pub fn print(counts: HashMap<String, u64>, output: impl Write) -> io::Result<()> {
    let mut sorted: Vec<_> = counts.into_iter().collect();
    sorted.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let mut output = io::BufWriter::new(output);
    for (word, n) in sorted {
        writeln!(output, "{word}\t{n}")?;
    }
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(counts: HashMap<String, u64>) -> String {
        let mut out = Vec::new();
        print(counts, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn counting_parts_and_merging_is_counting_the_whole() {
        let (a, b) = ("b a\u{2003}a\n", "a\tc ä\n");
        let whole = printed(count(format!("{a}{b}").as_bytes()).unwrap());
        let parts = printed(count(a.as_bytes()).unwrap()) + &printed(count(b.as_bytes()).unwrap());
        assert_eq!(printed(merge(parts.as_bytes()).unwrap()), whole);
        assert_eq!(whole, "a\t3\nb\t1\nc\t1\nä\t1\n");
    }

    #[test]
    fn a_line_without_a_count_is_an_error() {
        assert!(merge("word\n".as_bytes()).is_err());
        assert!(merge("word\tmany\n".as_bytes()).is_err());
    }
}
