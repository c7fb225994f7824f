//! How long tests wait before something counts as hanging.

use std::time::Duration;

/// How many times slower than a machine of its own the tests run: every time limit of theirs is multiplied by it.
const VARIABLE: &str = "SMALTI_TEST_PATIENCE";

/// A time limit for what should take much less. `$SMALTI_TEST_PATIENCE` multiplies it, for emulated machines.
#[must_use]
pub fn patience(limit: Duration) -> Duration {
    let factor = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(1_u32);
    limit.saturating_mul(factor.max(1))
}
