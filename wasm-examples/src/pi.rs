//! Monte Carlo estimate of pi: the share of random points of the unit square that lie in the quarter circle.

/// xorshift64* (Vigna 2016, "An experimental exploration of Marsaglia's xorshift generators, scrambled"): good enough
/// here, and the same everywhere.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
        let n = (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64;
        n / 9_007_199_254_740_992.0
    }
}

/// How many of `samples` points fall into the quarter circle. Equal seeds give equal results.
#[must_use]
pub fn inside(seed: u64, samples: u64) -> u64 {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    (0..samples)
        .filter(|_| {
            let (x, y) = (random.unit(), random.unit());
            x * x + y * y < 1.0
        })
        .count() as u64
}

/// The estimate from the sums over all items.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
pub fn estimate(inside: u64, samples: u64) -> f64 {
    4.0 * inside as f64 / samples as f64
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_million_points_come_near_pi() {
        let n: u64 = (0..10).map(|seed| super::inside(seed, 100_000)).sum();
        assert!((super::estimate(n, 1_000_000) - std::f64::consts::PI).abs() < 0.01);
    }
}
