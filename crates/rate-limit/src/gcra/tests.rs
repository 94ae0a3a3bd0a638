use proptest::prelude::*;

use super::*;
use crate::policy::Policy;

/// The definition, word for word, in parts of a nanosecond of which `rate` make one. `None` where `u128` ends.
struct Model {
    rate: u128,
    per: u128,
    burst: u128,
    tat: u128,
}

impl Model {
    fn take(&mut self, now: u64, n: u64) -> Option<Result<(), Denied>> {
        let (now, n) = (u128::from(now).checked_mul(self.rate)?, u128::from(n));
        if n > self.burst {
            return Some(Err(Denied::Never));
        }
        let tat = self.tat.max(now).checked_add(n.checked_mul(self.per)?)?;
        let latest = now.checked_add(self.burst.checked_mul(self.per)?)?;
        if tat > latest {
            let wait = (tat - latest).div_ceil(self.rate);
            return Some(Err(Denied::Wait(saturate(wait))));
        }
        self.tat = tat;
        Some(Ok(()))
    }

    fn settle(&mut self, now: u64, reserved: u64, actual: u64) -> Option<()> {
        let now = u128::from(now).checked_mul(self.rate)?;
        let worth = u128::from(reserved.abs_diff(actual)).checked_mul(self.per)?;
        if actual > reserved {
            let base = if self.tat == 0 { now } else { self.tat };
            self.tat = base.checked_add(worth)?;
        } else if self.tat > now {
            self.tat = self.tat.saturating_sub(worth).max(now);
        }
        Some(())
    }
}

/// Small and large numbers alike: half of all `u64` would be above 2^63.
fn any_size(bits: u32) -> impl Strategy<Value = u64> {
    (0..bits, any::<u64>()).prop_map(|(bits, n)| (n >> (63 - bits)).max(1))
}

#[derive(Clone, Debug)]
enum Op {
    Take(u64),
    Settle(u64, u64),
}

fn ops(bits: u32) -> impl Strategy<Value = Vec<(i64, Op)>> {
    let op = prop_oneof![
        3 => any_size(bits).prop_map(Op::Take),
        1 => (any_size(bits), any_size(bits)).prop_map(|(a, b)| Op::Settle(a, b)),
    ];
    // Now and then the clock goes back.
    let step = (any_size(bits + 8), 0..10_u8).prop_map(|(gap, back)| {
        let gap = i64::try_from(gap >> 1).unwrap();
        if back == 0 { -gap } else { gap }
    });
    prop::collection::vec((step, op), 1..60)
}

fn agrees(rate: u64, per: u64, burst: u64, ops: Vec<(i64, Op)>) -> Result<(), TestCaseError> {
    let Some(gcra) = Gcra::new(rate, per, burst) else { return Ok(()) };
    let mut model = Model { rate: rate.into(), per: per.into(), burst: burst.into(), tat: 0 };
    let (mut tat, mut now) = (0, 0_u64);
    for (gap, op) in ops {
        now = now.saturating_add_signed(gap);
        match op {
            Op::Take(n) => {
                let n = if burst > 1 { n % burst + n % 2 } else { n };
                let Some(expected) = model.take(now, n) else { return Ok(()) };
                let taken = gcra.take(tat, now, n);
                prop_assert_eq!(taken.map(|_| ()), expected, "{} at {}", n, now);
                tat = taken.unwrap_or(tat);
            }
            Op::Settle(reserved, actual) => {
                let Some(()) = model.settle(now, reserved, actual) else { return Ok(()) };
                tat = match actual.checked_sub(reserved) {
                    Some(more) => gcra.amend(tat, now, more),
                    None => gcra.refund(tat, now, reserved - actual),
                };
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn agrees_with_the_definition(
        rate in any_size(40), per in any_size(45), burst in any_size(20), ops in ops(20)
    ) {
        agrees(rate, per, burst, ops)?;
    }

    #[test]
    fn agrees_with_the_definition_at_the_extremes(
        rate in any_size(63), per in any_size(63), burst in any_size(63), ops in ops(54)
    ) {
        agrees(rate, per, burst, ops)?;
    }

    #[test]
    fn nothing_panics_and_waiting_is_enough(
        rate in any_size(63), per in any_size(63), burst in any_size(63),
        tat in any::<u128>(), now in any::<u64>(), n in any::<u64>(),
    ) {
        let Some(gcra) = Gcra::new(rate, per, burst) else { return Ok(()) };
        let _ = gcra.level(tat, now);
        let _ = (gcra.charge(tat, now, n), gcra.amend(tat, now, n));
        prop_assert!(gcra.refund(tat, now, n) <= tat);
        match gcra.take(tat, now, n) {
            Ok(next) => prop_assert!(next >= tat),
            Err(Denied::Never) => prop_assert!(n > burst),
            Err(Denied::Wait(wait)) => {
                prop_assert!(wait > 0);
                if let (Some(then), true) = (now.checked_add(wait), wait < u64::MAX) {
                    prop_assert!(gcra.take(tat, then, n).is_ok(), "after the wait it passes");
                    prop_assert!(gcra.take(tat, then - 1, n).is_err(), "and not before");
                }
            }
        }
    }

    /// However calls come, in any span of time no more passes than the burst and what is earned meanwhile.
    #[test]
    fn never_over_admits(
        rate in any_size(34), per in any_size(34), burst in 1..50_u64,
        gaps in prop::collection::vec((any_size(34), 1..4_u64), 1..60)
    ) {
        let gcra = Gcra::new(rate, per, burst).unwrap();
        let cell = Cell::new(&gcra);
        let (mut tat, mut now, mut admitted) = (0, 0_u64, Vec::new());
        for (gap, n) in gaps {
            now += gap;
            let taken = gcra.take(tat, now, n);
            if let Some(cell) = &cell {
                let policy = Policy::Gcra(gcra);
                let of_cell = cell.update(now, |state, now| Ok((policy.take(state, now, n)?, ())));
                prop_assert_eq!(of_cell, taken.map(|_| ()));
            }
            if let Ok(next) = taken {
                tat = next;
                admitted.push((now, n));
            }
        }
        for (first, (begin, _)) in admitted.iter().enumerate() {
            let mut sum = 0_u128;
            for (end, n) in &admitted[first..] {
                sum += u128::from(*n);
                let earned = u128::from(end - begin) * u128::from(rate);
                prop_assert!(sum * u128::from(per) <= u128::from(burst) * u128::from(per) + earned);
            }
        }
    }
}

/// Case RL-12 of the vectors, on the pure logic: the trace that governor admits too.
#[test]
fn golden_trace() {
    let gcra = Gcra::new(100, 1_000_000_000, 50).unwrap();
    let mut x = 88_172_645_463_325_252_u64;
    let mut next = || {
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        x.wrapping_mul(2_685_821_657_736_338_717)
    };
    let (mut tat, mut t, mut admitted, mut denied, mut hash) = (0, 0, 0, 0, 0xcbf2_9ce4_8422_2325_u64);
    for _ in 0..20_000 {
        t += next() % 30_000_000;
        let n = 1 + next() % 3;
        let taken = gcra.take(tat, t, n);
        hash = (hash ^ u64::from(taken.is_ok())).wrapping_mul(0x100_0000_01b3);
        match taken {
            Ok(after) => (tat, admitted) = (after, admitted + n),
            Err(_) => denied += 1,
        }
    }
    assert_eq!((admitted, denied, t, hash), (30_007, 3_833, 299_614_967_032, 9_001_505_956_411_581_352));
}

#[test]
fn rates_that_do_not_divide_a_second_lose_nothing() {
    // 3 a second: a thousand seconds hold exactly three thousand, and a nanosecond before that one less.
    let gcra = Gcra::new(3, 1_000_000_000, 1).unwrap();
    let (mut tat, mut now) = (0, 0);
    for _ in 0..3_000 {
        match gcra.take(tat, now, 1) {
            Ok(next) => tat = next,
            Err(Denied::Wait(wait)) => {
                now += wait;
                tat = gcra.take(tat, now, 1).unwrap();
            }
            Err(Denied::Never) => unreachable!(),
        }
    }
    assert!(now.abs_diff(2_999 * 1_000_000_000 / 3) <= 3_000, "{now}: only the wait is rounded, to 1 ns");
}

#[test]
fn a_refund_never_lifts_above_full_and_debt_is_never_forgiven() {
    let gcra = Gcra::new(1_000, 1_000_000_000, 10_000).unwrap();
    assert_eq!(gcra.level(gcra.refund(0, 5, 4_000), 5).available, 10_000);
    let tat = gcra.take(0, 0, 4_000).unwrap();
    assert_eq!(gcra.level(gcra.refund(tat, 0, 9_000), 0).available, 10_000);
    let owed = gcra.amend(tat, 2_000_000_000, 11_000);
    assert_eq!(gcra.level(owed, 2_000_000_000).available, -3_000);
    assert_eq!(gcra.take(owed, 2_000_000_000, 1), Err(Denied::Wait(3_001_000_000)));
    // What came late is charged as of when the call came, unless that is forgotten.
    assert_eq!(gcra.level(gcra.amend(tat, 14_000_000_000, 11_000), 14_000_000_000).available, 9_000);
    assert_eq!(gcra.level(gcra.amend(0, 14_000_000_000, 11_000), 14_000_000_000).available, -1_000);
}
