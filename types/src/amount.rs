//! Fixed-point amounts. Resources are never floats: sums must come out equal however they are ordered.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Why a text is not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Not a decimal number at all (also: infinite, not a number, an exponent).
    #[error("`{0}` is not a number: write it like 2, 0.5 or 1.25")]
    NotANumber(String),
    /// A minus sign.
    #[error("`{0}` is negative")]
    Negative(String),
    /// More digits after the point than the type keeps.
    #[error("`{0}` is finer than 0.001, the smallest step")]
    TooFine(String),
    /// Does not fit 63 bits.
    #[error("`{0}` is too large")]
    TooLarge(String),
    /// A size with an unknown unit.
    #[error("`{0}` has an unknown unit: use B, KiB, MiB, GiB, TiB (or kB, MB, GB, TB)")]
    Unit(String),
}

/// Parses a decimal number with at most three digits after the point into thousandths.
fn parse_milli(text: &str) -> Result<u64, AmountError> {
    let t = text.trim();
    if let Some(rest) = t.strip_prefix('-') {
        return Err(if rest.parse::<f64>().is_ok() { AmountError::Negative(t.into()) } else { AmountError::NotANumber(t.into()) });
    }
    let (whole, frac) = t.split_once('.').unwrap_or((t, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && frac.is_empty()) || !digits(whole) || !digits(frac) {
        return Err(AmountError::NotANumber(t.into()));
    }
    let frac = frac.trim_end_matches('0');
    if frac.len() > 3 {
        return Err(AmountError::TooFine(t.into()));
    }
    let too_large = || AmountError::TooLarge(t.into());
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| too_large())? };
    let mut milli: u64 = 0;
    for (i, b) in frac.bytes().enumerate() {
        milli += u64::from(b - b'0') * [100, 10, 1][i];
    }
    whole.checked_mul(1000).and_then(|w| w.checked_add(milli)).filter(|v| *v <= i64::MAX as u64).ok_or_else(too_large)
}

macro_rules! milli {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl FromStr for $name {
            type Err = AmountError;
            fn from_str(s: &str) -> Result<Self, AmountError> {
                parse_milli(s).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let (whole, frac) = (self.0 / 1000, self.0 % 1000);
                if frac == 0 {
                    write!(f, "{whole}")
                } else {
                    f.write_str(format!("{whole}.{frac:03}").trim_end_matches('0'))
                }
            }
        }

        impl $name {
            /// As a floating-point number of whole units, for display and JSON only.
            #[must_use]
            #[expect(clippy::cast_precision_loss, reason = "display only")]
            pub fn to_f64(self) -> f64 {
                self.0 as f64 / 1000.0
            }
        }
    };
}

milli! {
    /// Thousandths of a processor core.
    MilliCpus
}
milli! {
    /// Thousandths of a custom scalar resource's unit.
    MilliUnits
}

impl MilliCpus {
    /// The smallest request: 0.01 cpu, because the kernel's quota has a floor of 1 ms in a period of 100 ms.
    pub const SMALLEST: Self = Self(10);
}

/// A size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Bytes(pub u64);

impl Bytes {
    /// `n` mebibytes.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }
    /// `n` gibibytes.
    #[must_use]
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }
}

/// Units in the order they are tried; the plain one-letter forms are binary, as in Docker and Kubernetes.
const UNITS: &[(&str, u64)] = &[
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("k", 1 << 10),
    ("m", 1 << 20),
    ("g", 1 << 30),
    ("t", 1 << 40),
    ("b", 1),
    ("", 1),
];

impl FromStr for Bytes {
    type Err = AmountError;

    /// Reads `64MiB`, `1.5GiB`, `500kB`, `1048576`.
    fn from_str(s: &str) -> Result<Self, AmountError> {
        let t = s.trim();
        let split = t.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(t.len());
        let (number, unit) = (t[..split].trim(), t[split..].trim().to_ascii_lowercase());
        let milli = parse_milli(number).map_err(|e| if number.is_empty() { AmountError::NotANumber(t.into()) } else { e })?;
        let (_, factor) = UNITS.iter().find(|(u, _)| *u == unit).ok_or_else(|| AmountError::Unit(t.into()))?;
        let bytes = u128::from(milli) * u128::from(*factor) / 1000;
        u64::try_from(bytes).ok().filter(|v| *v <= i64::MAX as u64).map(Self).ok_or_else(|| AmountError::TooLarge(t.into()))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
            let unit = 1_u64 << shift;
            if self.0 >= unit {
                let tenths = u128::from(self.0) * 10 / u128::from(unit);
                return if tenths % 10 == 0 {
                    write!(f, "{}{name}", tenths / 10)
                } else {
                    write!(f, "{}.{}{name}", tenths / 10, tenths % 10)
                };
            }
        }
        write!(f, "{}B", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_read_exactly() {
        for (text, milli) in [("1", 1000), ("0.5", 500), ("0.01", 10), (".25", 250), ("2.", 2000), ("1.500", 1500)] {
            assert_eq!(text.parse(), Ok(MilliCpus(milli)), "{text}");
        }
    }

    #[test]
    fn what_is_not_an_amount_is_refused_with_its_reason() {
        assert!(matches!("NaN".parse::<MilliCpus>(), Err(AmountError::NotANumber(_))));
        assert!(matches!("inf".parse::<MilliCpus>(), Err(AmountError::NotANumber(_))));
        assert!(matches!("".parse::<MilliCpus>(), Err(AmountError::NotANumber(_))));
        assert!(matches!("1e3".parse::<MilliCpus>(), Err(AmountError::NotANumber(_))));
        assert!(matches!("-1".parse::<MilliCpus>(), Err(AmountError::Negative(_))));
        assert!(matches!("0.0001".parse::<MilliCpus>(), Err(AmountError::TooFine(_))));
        assert!(matches!("99999999999999999999".parse::<MilliCpus>(), Err(AmountError::TooLarge(_))));
        assert!(matches!("12XB".parse::<Bytes>(), Err(AmountError::Unit(_))));
        assert!(matches!("-5MiB".parse::<Bytes>(), Err(AmountError::Negative(_))));
    }

    #[test]
    fn sizes_round_trip_through_text() {
        for (text, n) in [("64MiB", 64 << 20), ("1.5GiB", 3 << 29), ("500kB", 500_000), ("17", 17), ("2g", 2 << 30)] {
            assert_eq!(text.parse(), Ok(Bytes(n)), "{text}");
        }
        assert_eq!(Bytes(3 << 29).to_string(), "1.5GiB");
        assert_eq!(Bytes(17).to_string(), "17B");
        assert_eq!(MilliCpus(1250).to_string(), "1.25");
    }
}
