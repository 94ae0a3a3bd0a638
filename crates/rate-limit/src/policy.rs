use crate::{
    gcra::Gcra,
    window::{Frame, Sliding},
};

/// What a key is limited to, and how that is counted. No clock in here: `now` is nanoseconds since the limiter began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Gcra(Gcra),
    Fixed(Frame),
    Sliding(Sliding),
}

/// What is known of a key. All zero for one that nobody has used.
pub(crate) type State = [u64; 2];

/// Why permits were not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// It costs more than there can ever be.
    Never,
    /// They will be there after so many nanoseconds, if nobody else takes them.
    Wait(u64),
}

/// What is left of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Level {
    pub(crate) available: i64,
    pub(crate) remaining: u64,
    pub(crate) reset_after: u64,
}

impl Policy {
    #[inline]
    pub(crate) fn take(&self, state: State, now: u64, n: u64) -> Result<State, Denied> {
        match self {
            Self::Gcra(gcra) => gcra.take(join(state), now, n).map(split),
            Self::Fixed(frame) => frame.take(state, now, n),
            Self::Sliding(sliding) => sliding.take(state, now, n),
        }
    }

    pub(crate) fn level(&self, state: State, now: u64) -> Level {
        match self {
            Self::Gcra(gcra) => gcra.level(join(state), now),
            Self::Fixed(frame) => frame.level(state, now),
            Self::Sliding(sliding) => sliding.level(state, now),
        }
    }

    pub(crate) fn charge(&self, state: State, now: u64, n: u64) -> State {
        match self {
            Self::Gcra(gcra) => split(gcra.charge(join(state), now, n)),
            Self::Fixed(frame) => frame.charge(state, now, n),
            Self::Sliding(sliding) => sliding.charge(state, now, n),
        }
    }

    pub(crate) fn refund(&self, state: State, now: u64, n: u64) -> State {
        match self {
            Self::Gcra(gcra) => split(gcra.refund(join(state), now, n)),
            Self::Fixed(frame) => frame.refund(state, now, n),
            Self::Sliding(sliding) => sliding.refund(state, now, n),
        }
    }

    pub(crate) fn is_fresh(&self, state: State, now: u64) -> bool {
        match self {
            Self::Gcra(gcra) => gcra.is_fresh(join(state), now),
            Self::Fixed(_) | Self::Sliding(_) => self.level(state, now).reset_after == 0,
        }
    }

    /// The state under another policy: what is used is used, though no more than there is, and what is owed is owed.
    pub(crate) fn convert(&self, state: State, now: u64, to: &Self) -> State {
        let Level { available, .. } = self.level(state, now);
        let (capacity, owed) = (self.capacity(), available.min(0).unsigned_abs());
        let used = capacity.saturating_sub(u64::try_from(available).unwrap_or(0)).min(to.capacity());
        to.charge(to.charge([0, 0], now, used), now, owed)
    }

    pub(crate) fn capacity(&self) -> u64 {
        match self {
            Self::Gcra(gcra) => gcra.capacity(),
            Self::Fixed(frame) => frame.limit(),
            Self::Sliding(sliding) => sliding.limit(),
        }
    }
}

fn join([low, high]: State) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}

#[expect(clippy::cast_possible_truncation, reason = "it is split into its halves")]
fn split(tat: u128) -> State {
    [tat as u64, (tat >> 64) as u64]
}
