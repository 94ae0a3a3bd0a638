use proptest::prelude::*;

use super::*;

#[test]
fn every_duration_has_a_bucket_that_holds_it() {
    for micros in (0..100_000).chain([1 << 20, (1 << 31) - 1, 1 << 31, LONGEST, LONGEST + 1, u64::MAX]) {
        let (from, width) = bounds(index(micros));
        assert!((from..from + width).contains(&micros.min(LONGEST)), "{micros}: {from} and {width}");
    }
    assert_eq!(index(LONGEST), BUCKETS - 1);
}

proptest! {
    /// The error that is promised.
    #[test]
    fn percentiles_are_off_by_a_sixteenth(
        mut micros in prop::collection::vec(1_u64..4_000_000_000, 1..50),
        percent in 1_u32..=100,
    ) {
        let histogram = Histogram::new();
        micros.iter().for_each(|micros| histogram.record(Duration::from_micros(*micros)));
        micros.sort_unstable();
        let rank = (micros.len() as u64 * u64::from(percent)).div_ceil(100) as usize;
        let exact = micros[rank - 1] as f64 * 1e-6;
        let told = histogram.counts().quantile(f64::from(percent) / 100.0).unwrap().as_secs_f64();
        prop_assert!((told - exact).abs() <= (exact / 16.0).max(0.5e-6) + 1e-9, "{} for {}", told, exact);
        prop_assert_eq!(histogram.counts().sum().as_micros(), micros.iter().map(|it| u128::from(*it)).sum());
    }

    /// The bounds that others make histograms of.
    #[test]
    fn what_is_below_a_power_of_two_is_exact(micros in prop::collection::vec(0_u64..1 << 31, 0..50), bit in 0_u32..32) {
        let histogram = Histogram::new();
        micros.iter().for_each(|micros| histogram.record(Duration::from_micros(*micros)));
        let below = micros.iter().filter(|micros| **micros < 1 << bit).count();
        prop_assert_eq!(histogram.counts().below(Duration::from_micros(1 << bit)), below as u64);
    }

    /// What is recent is what was counted in this period and the one before.
    #[test]
    fn recent_is_of_two_periods(periods in prop::collection::vec((0_u64..4, 1_u64..5), 1..20), later in 0_u64..4) {
        let recent = Recent::new();
        let (mut period, mut all) = (0, Vec::new());
        for (skip, n) in periods {
            period += skip;
            for _ in 0..n {
                recent.enter(period);
                recent.all.record(Duration::from_millis(1));
                all.push(period);
            }
        }
        period += later;
        let expected = all.iter().filter(|it| **it + 1 >= period).count() as u64;
        prop_assert_eq!(recent.recent(period).count(), expected);
        prop_assert_eq!(recent.all.count(), all.len() as u64);
        recent.reset();
        prop_assert_eq!(recent.recent(period).count(), 0);
    }
}

#[test]
fn nothing_has_no_percentile() {
    assert_eq!(Histogram::new().counts().quantile(0.5), None);
    let histogram = Histogram::new();
    histogram.record(Duration::from_secs(1));
    for odd in [-1.0, 0.0, 1.0, 2.0, f64::NAN] {
        assert!(histogram.counts().quantile(odd).is_some(), "{odd}");
    }
}
