//! Logistic regression by gradient descent: items sum the gradient over their part of the data, the reduce makes the
//! step. (Bishop 2006, Pattern Recognition and Machine Learning, section 4.3.2.)

use std::io::{self, BufRead};

/// What one item sends to the reduce: the weights it used, the gradient's sum, the loss's sum, the number of rows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Partial {
    /// Weights, the bias first.
    pub weights: Vec<f64>,
    /// Sum over rows of (prediction − label) × feature, the bias first.
    pub gradient: Vec<f64>,
    /// Sum over rows of the cross entropy.
    pub loss: f64,
    /// Rows.
    pub rows: u64,
}

fn invalid(what: &str, line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what}: {:?}", line.trim_end()))
}

fn numbers(line: &str, separator: char) -> io::Result<Vec<f64>> {
    line.trim().split(separator).map(|n| n.trim().parse().map_err(|_| invalid("not numbers", line))).collect()
}

/// Sums the gradient over rows `x1,x2,…,label` (label 0 or 1). Without weights it begins at zero.
///
/// # Errors
/// When a row cannot be read, or rows have different lengths.
#[expect(clippy::suboptimal_flops, reason = "plain arithmetic gives the same digits on every target")]
pub fn gradient(input: impl BufRead, weights: Option<&str>) -> io::Result<Partial> {
    let mut p = Partial { weights: weights.map(|w| numbers(w, ' ')).transpose()?.unwrap_or_default(), ..Partial::default() };
    for line in input.lines() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let mut row = numbers(&line, ',')?;
        let label = row.pop().ok_or_else(|| invalid("an empty row", &line))?;
        if p.weights.is_empty() {
            p.weights = vec![0.0; row.len() + 1];
        }
        if p.weights.len() != row.len() + 1 {
            return Err(invalid("a row of another length", &line));
        }
        p.gradient.resize(p.weights.len(), 0.0);
        let z = p.weights[0] + row.iter().zip(&p.weights[1..]).map(|(x, w)| x * w).sum::<f64>();
        let y = 1.0 / (1.0 + (-z).exp());
        let error = y - label;
        p.gradient[0] += error;
        for (g, x) in p.gradient[1..].iter_mut().zip(&row) {
            *g += error * x;
        }
        p.loss -= label * y.max(1e-12).ln() + (1.0 - label) * (1.0 - y).max(1e-12).ln();
        p.rows += 1;
    }
    Ok(p)
}

fn join(numbers: &[f64]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

impl Partial {
    /// One line: `rows;loss;weights;gradient`. Rust prints doubles so that they read back exactly.
    #[must_use]
    pub fn to_line(&self) -> String {
        format!("{};{};{};{}", self.rows, self.loss, join(&self.weights), join(&self.gradient))
    }

    fn from_line(line: &str) -> io::Result<Self> {
        let bad = || invalid("not a partial gradient", line);
        let mut parts = line.trim().split(';');
        let mut next = || parts.next().ok_or_else(bad);
        Ok(Self {
            rows: next()?.parse().map_err(|_| bad())?,
            loss: next()?.parse().map_err(|_| bad())?,
            weights: numbers(next()?, ' ')?,
            gradient: numbers(next()?, ' ')?,
        })
    }
}

/// One step of gradient descent over the sum of all partials. Returns the new weights as one line, and the mean loss
/// before the step.
///
/// # Errors
/// When a line is not a partial, there is none, or they disagree about the weights.
pub fn step(input: impl BufRead, rate: f64) -> io::Result<(String, f64)> {
    let mut total = Partial::default();
    for line in input.lines() {
        let line = line?;
        let p = Partial::from_line(&line)?;
        if p.rows == 0 {
            continue;
        }
        if total.rows == 0 {
            total = p;
            continue;
        }
        if total.weights != p.weights || total.gradient.len() != p.gradient.len() {
            return Err(invalid("partials of different weights", &line));
        }
        total.gradient.iter_mut().zip(&p.gradient).for_each(|(a, b)| *a += b);
        total.loss += p.loss;
        total.rows += p.rows;
    }
    if total.rows == 0 {
        return Err(invalid("no rows", ""));
    }
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^53 rows")]
    let n = total.rows as f64;
    let weights: Vec<f64> = total.weights.iter().zip(&total.gradient).map(|(w, g)| w - rate * g / n).collect();
    Ok((join(&weights), total.loss / n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descent_over_two_parts_is_descent_over_the_whole_and_lowers_the_loss() {
        let (a, b) = ("0.1,0.2,0\n0.9,0.8,1\n", "0.2,0.1,0\n0.8,0.9,1\n");
        let mut weights: Option<String> = None;
        let mut losses = Vec::new();
        for _ in 0..20 {
            let parts = [a, b].map(|p| gradient(p.as_bytes(), weights.as_deref()).unwrap().to_line()).join("\n");
            let whole = gradient(format!("{a}{b}").as_bytes(), weights.as_deref()).unwrap().to_line();
            let (next, loss) = step(parts.as_bytes(), 1.0).unwrap();
            let (same, _) = step(whole.as_bytes(), 1.0).unwrap();
            assert_eq!(numbers(&next, ' ').unwrap().len(), 3);
            for (x, y) in numbers(&next, ' ').unwrap().iter().zip(numbers(&same, ' ').unwrap()) {
                assert!((x - y).abs() < 1e-12);
            }
            weights = Some(next);
            losses.push(loss);
        }
        assert!(losses.windows(2).all(|w| w[1] < w[0]), "{losses:?}");
    }
}
