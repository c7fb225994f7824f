//! How a cost grows: points of a series, the exponent of its growth, and a picture of it.
//!
//! Pure. The exponent is the slope of the straight line through the points where both axes are logarithmic (least squares): 1 is
//! proportional, 0 does not depend on it.

use crate::svg;
use std::fmt::Write;

/// One series: what was measured at each size.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(crate) struct Series {
    /// Key in the JSON object, and name of the picture.
    pub(crate) name: String,
    /// What the sizes count.
    pub(crate) x: String,
    /// What was measured, with its unit.
    pub(crate) y: String,
    /// (size, value)
    pub(crate) points: Vec<(f64, f64)>,
    /// See above; `None` with fewer than two sizes.
    pub(crate) exponent: Option<f64>,
}

impl Series {
    pub(crate) fn new(name: &str, x: &str, y: &str, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), x: x.into(), y: y.into(), exponent: exponent(&points), points }
    }

    /// One line of a table.
    pub(crate) fn line(&self) -> String {
        let mut line = format!("{:<34}", self.name);
        for (x, y) in &self.points {
            let _ = write!(line, "  {}: {}", svg::short(*x), svg::short(*y));
        }
        let grown = self.exponent.map_or_else(|| "none".into(), |e| format!("{e:.2}"));
        let _ = write!(line, "  exponent {grown}");
        line
    }
}

/// The slope on double logarithmic axes. Values that are not above 0 have no logarithm, and are left out.
fn exponent(points: &[(f64, f64)]) -> Option<f64> {
    let logs: Vec<(f64, f64)> = points.iter().filter(|(x, y)| *x > 0.0 && *y > 0.0).map(|(x, y)| (x.ln(), y.ln())).collect();
    #[expect(clippy::cast_precision_loss, reason = "a handful of points")]
    let n = logs.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / n;
    let (mx, my) = (mean(|p| p.0), mean(|p| p.1));
    let spread: f64 = logs.iter().map(|(x, _)| (x - mx).powi(2)).sum();
    let together: f64 = logs.iter().map(|(x, y)| (x - mx) * (y - my)).sum();
    // No growth is written 0.00, not -0.00.
    (spread > 0.0).then(|| (together / spread * 1e3).round() / 1e3 + 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_is_found_and_noise_hardly_matters() {
        let of = |f: fn(f64) -> f64| exponent(&[1.0, 10.0, 100.0, 1000.0].map(|x| (x, f(x)))).unwrap();
        assert!((of(|x| 3.0 * x) - 1.0).abs() < 1e-9);
        assert!((of(|x| 5.0 * x * x) - 2.0).abs() < 1e-9);
        assert!(of(|_| 7.0).abs() < 1e-9);
        assert!((of(|x| x * (1.0 + 0.05 * x.sin())) - 1.0).abs() < 0.02);
        assert_eq!(exponent(&[(1.0, 1.0)]), None);
        assert_eq!(exponent(&[(1.0, 0.0), (2.0, 0.0)]), None);
    }
}
