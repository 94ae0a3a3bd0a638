use crate::{
    Measure, Quota, Window,
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

/// Why permits were not there. What has to be waited for longer is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Denied {
    /// They will be there after so many nanoseconds, if nobody else takes them.
    Wait(u64),
    /// It costs more than there can ever be.
    Never,
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

    pub(crate) fn amend(&self, state: State, now: u64, n: u64) -> State {
        match self {
            Self::Gcra(gcra) => split(gcra.amend(join(state), now, n)),
            Self::Fixed(_) | Self::Sliding(_) => self.charge(state, now, n),
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

    /// In how many nanoseconds all of it is there again.
    #[cfg(feature = "http")]
    pub(crate) fn period(&self) -> u64 {
        match self {
            Self::Gcra(gcra) => gcra.level(gcra.charge(0, 0, gcra.capacity()), 0).reset_after,
            Self::Fixed(frame) => frame.window(),
            Self::Sliding(sliding) => sliding.window(),
        }
    }

    /// What it was made from, or what counts the same.
    pub(crate) fn measure(&self) -> Measure {
        match self {
            Self::Gcra(gcra) => Measure::Quota(Quota::of(gcra)),
            Self::Fixed(frame) => Measure::Window(Window::of(frame, false)),
            Self::Sliding(sliding) => Measure::Window(Window::of(&sliding.0, true)),
        }
    }

    pub(crate) fn capacity(&self) -> u64 {
        match self {
            Self::Gcra(gcra) => gcra.capacity(),
            Self::Fixed(frame) => frame.limit(),
            Self::Sliding(sliding) => sliding.limit(),
        }
    }
}

/// What holds for a key: its policy, and until when nothing passes at all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) policy: Policy,
    pub(crate) hold: u64,
}

impl Terms {
    #[inline]
    pub(crate) fn take(&self, state: State, now: u64, n: u64) -> Result<State, Denied> {
        if now >= self.hold {
            return self.policy.take(state, now, n);
        }
        let (_, at) = self.serve(state, now, n)?;
        Err(Denied::Wait(at - now))
    }

    /// When a call of this cost is served by a key in this state, and the key's state then.
    pub(crate) fn serve(&self, state: State, now: u64, n: u64) -> Result<(State, u64), Denied> {
        let from = now.max(self.hold);
        match self.policy.take(state, from, n) {
            Ok(state) => Ok((state, from)),
            Err(Denied::Wait(wait)) => {
                let at = from.saturating_add(wait);
                Ok((self.policy.take(state, at, n)?, at))
            }
            Err(never) => Err(never),
        }
    }

    /// What is left at `now`. A key that is held has nothing, and is full again when it is let go at the earliest.
    pub(crate) fn level(&self, state: State, now: u64) -> Level {
        let level = self.policy.level(state, now);
        match self.hold.checked_sub(now) {
            None | Some(0) => level,
            Some(held) => Level {
                available: level.available.min(0),
                remaining: 0,
                reset_after: level.reset_after.max(held),
            },
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
