//! Data on stdout: tables for people, JSON for programs.
//!
//! Owns the choice between both and how a table looks. Deliberately absent: what the rows are (see `views`).

use crate::failure::{Failure, Result};
use clap::{Args, ValueEnum};
use comfy_table::{Table, presets};
use serde::Serialize;
use std::io::{self, Write};

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns for people.
    #[default]
    Table,
    /// JSON for programs: lists are arrays, sizes bytes, points in time RFC 3339.
    Json,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct OutputOptions {
    /// How to print
    #[arg(short = 'o', long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(crate) output: Format,
}

impl OutputOptions {
    pub(crate) fn is_json(&self) -> bool {
        self.output == Format::Json
    }
}

/// Writes and flushes; a reader that went away ends the verb without a word.
pub(crate) fn write(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|e| Failure::stdout(&e))
}

/// Writes one line.
pub(crate) fn line(text: &str) -> Result<()> {
    write(format!("{text}\n").as_bytes())
}

/// Writes one JSON value.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::new(format!("printing as JSON: {e}")))?;
    line(&text)
}

/// Writes a list: as a JSON array, or as a table with this header.
pub(crate) fn list<T: Serialize>(options: &OutputOptions, items: &[T], header: &[&str], row: impl Fn(&T) -> Vec<String>) -> Result<()> {
    if options.is_json() {
        return json(items);
    }
    line(&table(Some(header), items.iter().map(row)))
}

/// Lays out rows in columns. Cells may hold what guests and strangers wrote: control characters are made visible.
pub(crate) fn table(header: Option<&[&str]>, rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if let Some(header) = header {
        table.set_header(header.to_vec());
    }
    table.add_rows(rows.map(|row| row.iter().map(|cell| printable(cell)).collect::<Vec<_>>()));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Replaces control characters: texts of guests and servers must not steer the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c == '\n' || c == '\t' {
                ' '
            } else if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

/// `-` for what is not there.
pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_cannot_steer_the_terminal() {
        let rows = vec![vec!["a".to_owned(), "x\u{1b}[31m".to_owned()], vec!["long name".to_owned(), "two\nlines".to_owned()]];
        let text = table(Some(&["NAME", "TEXT"]), rows.into_iter());
        assert_eq!(text, "NAME       TEXT\na          x\u{fffd}[31m\nlong name  two lines");
    }
}
