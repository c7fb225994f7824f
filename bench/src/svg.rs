//! A small line plot as SVG: both axes logarithmic, one line per series.
//!
//! Owns the drawing only. Written by hand, because all that a plotting library adds is a dependency.

use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
/// Room for labels: left, right, top, bottom.
const ROOM: (f64, f64, f64, f64) = (72.0, 24.0, 40.0, 48.0);
const COLOURS: [&str; 6] = ["#1f6fb4", "#c8502d", "#2f8f4e", "#7b4fa3", "#8a6d1d", "#555555"];

/// One line of a plot.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    pub(crate) label: String,
    pub(crate) points: &'a [(f64, f64)],
}

/// From `low` to `high`, which are powers of ten (or near) around all values.
#[derive(Debug, Clone, Copy)]
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    /// Around these values: whole decades, at least one.
    fn around(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values.filter(|v| *v > 0.0).fold((f64::INFINITY, 0.0_f64), |(l, h), v| (l.min(v), h.max(v)));
        if !low.is_finite() {
            return Self { low: 0.0, high: 1.0 };
        }
        // A whisker of room, so that 1000 is not the end of an axis by rounding.
        let (low, high) = ((low.log10() + 1e-9).floor(), (high.log10() - 1e-9).ceil());
        Self { low, high: high.max(low + 1.0) }
    }

    /// Where a value lies, 0 to 1.
    fn at(&self, value: f64) -> f64 {
        (value.log10() - self.low) / (self.high - self.low)
    }

    /// Powers of ten, with 2 and 5 where there are few.
    fn ticks(&self) -> Vec<f64> {
        #[expect(clippy::cast_possible_truncation, reason = "exponents of ten")]
        let decades = self.low as i32..=self.high as i32;
        let between: &[f64] = if self.high - self.low <= 2.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let all = decades.flat_map(|d| between.iter().map(move |b| b * 10_f64.powi(d)));
        all.filter(|v| v.log10() <= self.high + 1e-9).collect()
    }
}

/// A picture of these lines.
pub(crate) fn plot(title: &str, x_label: &str, y_label: &str, lines: &[Line<'_>]) -> String {
    let all = || lines.iter().flat_map(|l| l.points.iter());
    let (x, y) = (Axis::around(all().map(|p| p.0)), Axis::around(all().map(|p| p.1)));
    let (left, right, top, bottom) = ROOM;
    let px = |v: f64| left + x.at(v) * (WIDTH - left - right);
    let py = |v: f64| HEIGHT - bottom - y.at(v) * (HEIGHT - top - bottom);
    let mut out = String::new();
    let _ = writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" role="img">
<title>{title}</title>
<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>
<text x="{left}" y="20" font-size="14" font-weight="bold">{title}</text>"#,
        title = escape(title)
    );
    let (x_end, y_end) = (WIDTH - right, HEIGHT - bottom);
    for tick in x.ticks() {
        let at = px(tick);
        let _ = writeln!(out, r##"<line x1="{at:.1}" y1="{top}" x2="{at:.1}" y2="{y_end}" stroke="#e4e4e4"/>"##);
        let _ = writeln!(out, r#"<text x="{at:.1}" y="{:.1}" text-anchor="middle">{}</text>"#, y_end + 16.0, short(tick));
    }
    for tick in y.ticks() {
        let at = py(tick);
        let _ = writeln!(out, r##"<line x1="{left}" y1="{at:.1}" x2="{x_end}" y2="{at:.1}" stroke="#e4e4e4"/>"##);
        let _ = writeln!(out, r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#, left - 6.0, at + 4.0, short(tick));
    }
    let _ = writeln!(
        out,
        r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
        f64::midpoint(left, x_end),
        HEIGHT - 10.0,
        escape(x_label)
    );
    let middle = f64::midpoint(top, y_end);
    let _ = writeln!(
        out,
        r#"<text x="16" y="{middle:.1}" text-anchor="middle" transform="rotate(-90 16 {middle:.1})">{}</text>"#,
        escape(y_label)
    );
    for (n, line) in lines.iter().enumerate() {
        let colour = COLOURS[n % COLOURS.len()];
        let points: Vec<(f64, f64)> = line.points.iter().filter(|(a, b)| *a > 0.0 && *b > 0.0).map(|(a, b)| (px(*a), py(*b))).collect();
        let path = points.iter().map(|(a, b)| format!("{a:.1},{b:.1}")).collect::<Vec<_>>().join(" ");
        let _ = writeln!(out, r#"<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>"#);
        for (a, b) in &points {
            let _ = writeln!(out, r#"<circle cx="{a:.1}" cy="{b:.1}" r="3" fill="{colour}"/>"#);
        }
        #[expect(clippy::cast_precision_loss, reason = "a handful of lines")]
        let row = top + 16.0 + 16.0 * n as f64;
        let _ = writeln!(out, r#"<rect x="{:.1}" y="{:.1}" width="10" height="10" fill="{colour}"/>"#, left + 10.0, row - 9.0);
        let _ = writeln!(out, r#"<text x="{:.1}" y="{row:.1}">{}</text>"#, left + 26.0, escape(&line.label));
    }
    out.push_str("</svg>\n");
    out
}

/// `12k`, `3M`, `0.25`.
pub(crate) fn short(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = if scaled.abs() >= 100.0 || (scaled - scaled.round()).abs() < 1e-9 {
        0
    } else if scaled.abs() >= 1.0 {
        1
    } else {
        3
    };
    let text = format!("{scaled:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text };
    format!("{text}{unit}")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_between_the_axes_and_text_is_escaped() {
        let points = [(10.0, 1.0), (1_000.0, 30.0), (10_000.0, 950.0)];
        let svg = plot("a < b & c", "agents", "ms", &[Line { label: "x".into(), points: &points }]);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.contains("a &lt; b &amp; c"));
        let circles: Vec<(f64, f64)> = svg
            .lines()
            .filter(|l| l.starts_with("<circle"))
            .map(|l| {
                let number = |key: &str| l.split(&format!("{key}=\"")).nth(1).unwrap().split('"').next().unwrap().parse::<f64>().unwrap();
                (number("cx"), number("cy"))
            })
            .collect();
        assert_eq!(circles.len(), 3);
        assert!((circles[0].0 - ROOM.0).abs() < 0.1, "10 is the left end: {circles:?}");
        assert!((circles[2].0 - (WIDTH - ROOM.1)).abs() < 0.1, "10,000 is the right end: {circles:?}");
        assert!(circles.iter().all(|(_, y)| (ROOM.2..=HEIGHT - ROOM.3).contains(y)) && circles[0].1 > circles[2].1);
        assert_eq!([0.25, 7.0, 1_500.0, 2e6, 123_456.0].map(short), ["0.25", "7", "1.5k", "2M", "123k"]);
    }

    #[test]
    fn nothing_to_draw_is_no_reason_to_panic() {
        assert!(plot("t", "x", "y", &[]).contains("<svg"));
        assert!(plot("t", "x", "y", &[Line { label: "l".into(), points: &[(1.0, 0.0)] }]).contains("<polyline"));
    }
}
