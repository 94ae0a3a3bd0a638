//! How long an open period is.

use crate::{settings::Settings, window::nanos};

/// Nanoseconds, of a breaker that has opened again so often without having been closed. What is random is drawn by `seed`.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a period that grows or is jittered need not be exact, and a float saturates"
)]
pub(crate) fn period(settings: &Settings, reopened: i32, seed: u64) -> u64 {
    let mut period = nanos(settings.open_for);
    if let Some((factor, longest)) = settings.growth
        && reopened > 0
    {
        period = ((period as f64 * factor.powi(reopened)) as u64).min(nanos(longest));
    }
    if settings.jitter > 0.0 {
        let share = mix(seed) as f64 / u64::MAX as f64;
        period = period.saturating_add((period as f64 * settings.jitter * share) as u64);
    }
    period
}

/// One step of a generator of numbers that look random (splitmix64).
fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ n >> 31
}
