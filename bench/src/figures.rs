//! Named figures with their spread.

use crate::growth::Series;
use anyhow::Result;
use std::collections::BTreeMap;

/// A figure: the median of its repetitions, and the lowest and highest.
#[derive(Debug, Clone, Copy)]
struct Figure {
    low: f64,
    median: f64,
    high: f64,
}

/// All figures of a run, in the order they were measured.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    order: Vec<String>,
    by_name: BTreeMap<String, Figure>,
}

impl Figures {
    /// Adds a figure from its repetitions.
    pub(crate) fn add(&mut self, name: &str, mut samples: Vec<f64>) {
        samples.sort_by(f64::total_cmp);
        if let (Some(low), Some(high)) = (samples.first(), samples.last()) {
            let figure = Figure { low: *low, median: samples[samples.len() / 2], high: *high };
            self.order.push(name.into());
            self.by_name.insert(name.into(), figure);
        }
    }

    /// Adds the ratio of two medians.
    pub(crate) fn ratio(&mut self, name: &str, of: &str, to: &str) {
        if let (Some(a), Some(b)) = (self.by_name.get(of), self.by_name.get(to)) {
            let ratio = a.median / b.median;
            self.add(name, vec![ratio]);
        }
    }

    /// Adds the lower of two figures.
    pub(crate) fn lower(&mut self, name: &str, a: &str, b: &str) {
        if let (Some(a), Some(b)) = (self.by_name.get(a), self.by_name.get(b)) {
            let lower = a.median.min(b.median);
            self.add(name, vec![lower]);
        }
    }

    /// Prints a table.
    pub(crate) fn print(&self) {
        println!("{:<38} {:>14} {:>14} {:>14}", "figure", "median", "lowest", "highest");
        for name in &self.order {
            let f = self.by_name[name];
            println!("{name:<38} {:>14} {:>14} {:>14}", number(f.median), number(f.low), number(f.high));
        }
    }

    /// One object: the medians by name, and how they grow, where that was measured.
    pub(crate) fn to_json(&self, growth: &[Series]) -> Result<String> {
        let mut object: BTreeMap<&str, serde_json::Value> = self.by_name.iter().map(|(name, f)| (name.as_str(), f.median.into())).collect();
        if !growth.is_empty() {
            object.insert("growth", serde_json::to_value(growth)?);
        }
        Ok(serde_json::to_string_pretty(&object)?)
    }
}

fn number(n: f64) -> String {
    if n.abs() >= 100.0 { format!("{n:.0}") } else { format!("{n:.3}") }
}

/// The value below which `share` of the samples lie.
pub(crate) fn percentile(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "an index into the samples")]
    let index = ((samples.len() as f64 * share) as usize).min(samples.len().saturating_sub(1));
    samples.get(index).copied().unwrap_or(f64::NAN)
}
