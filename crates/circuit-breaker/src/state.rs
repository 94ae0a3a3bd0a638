//! What callers see of a breaker without a lock: one number.

use std::fmt;

/// What a breaker does with calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum State {
    /// Calls pass and their outcomes are counted.
    #[default]
    Closed,
    /// Calls are refused until the open period is over.
    Open,
    /// A few calls pass as probes, and their outcomes decide.
    HalfOpen,
    /// Calls are refused until somebody resets the breaker by hand.
    ForcedOpen,
    /// Calls pass and nothing is counted, until somebody resets the breaker by hand.
    Disabled,
}

impl State {
    const ALL: [Self; 5] = [Self::Closed, Self::Open, Self::HalfOpen, Self::ForcedOpen, Self::Disabled];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
            Self::ForcedOpen => "forced open",
            Self::Disabled => "disabled",
        })
    }
}

/// State, generation, probes and successes in one number, as it is published.
///
/// From the lowest bit: three for the state, one that says whether a success has something to write, one that says whether
/// what it writes is the same at any time, twelve each for the probes outstanding and the successes so far, and the
/// generation's lower 35.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(pub(crate) u64);

const STATE_BITS: u32 = 3;
const COUNT_BITS: u32 = 12;
const PROBES_AT: u32 = STATE_BITS + 2;
const SUCCESSES_AT: u32 = PROBES_AT + COUNT_BITS;
const GENERATION_AT: u32 = SUCCESSES_AT + COUNT_BITS;
const COUNTED: u64 = 1 << STATE_BITS;
const TIMELESS: u64 = COUNTED << 1;

/// The most probes and successes that can be counted.
pub(crate) const MOST: u32 = (1 << COUNT_BITS) - 1;

impl Word {
    pub(crate) fn new(state: State, generation: u64, counted: bool, probes: u32, successes: u32) -> Self {
        debug_assert!(probes <= MOST && successes <= MOST);
        let counted = if counted { COUNTED } else { 0 };
        let counts = u64::from(probes) << PROBES_AT | u64::from(successes) << SUCCESSES_AT;
        Self(state as u64 | counted | counts | generation << GENERATION_AT)
    }

    #[inline]
    pub(crate) fn state(self) -> State {
        State::ALL.get((self.0 & ((1 << STATE_BITS) - 1)) as usize).copied().unwrap_or_default()
    }

    /// Whether every call passes.
    #[inline]
    pub(crate) fn passes(self) -> bool {
        const CLOSED: u64 = State::Closed as u64;
        const DISABLED: u64 = State::Disabled as u64;
        matches!(self.0 & ((1 << STATE_BITS) - 1), CLOSED | DISABLED)
    }

    /// Whether a success changes something: a run of failures that ends, a window that counts it, a probe.
    #[inline]
    pub(crate) fn counts_successes(self) -> bool {
        self.0 & COUNTED != 0
    }

    /// The same with the word that what a success changes, if anything, is the same at any time.
    pub(crate) fn timeless(self) -> Self {
        Self(self.0 | TIMELESS)
    }

    #[inline]
    pub(crate) fn is_timeless(self) -> bool {
        self.0 & TIMELESS != 0
    }

    pub(crate) fn probes(self) -> u32 {
        (self.0 >> PROBES_AT) as u32 & MOST
    }

    #[cfg(test)]
    pub(crate) fn successes(self) -> u32 {
        (self.0 >> SUCCESSES_AT) as u32 & MOST
    }

    /// How many generations before the one of that number this was published.
    pub(crate) fn age(self, generation: u64) -> u64 {
        generation.wrapping_sub(self.0 >> GENERATION_AT) << GENERATION_AT >> GENERATION_AT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_tells_what_it_was_made_of() {
        for state in State::ALL {
            for (generation, probes, successes) in
                [(0, 0, 0), (7, 1, 2), (u64::MAX, MOST, MOST), (1 << 34, MOST, 0)]
            {
                for counted in [false, true] {
                    let word = Word::new(state, generation, counted, probes, successes);
                    for (word, timeless) in [(word, false), (word.timeless(), true)] {
                        assert_eq!((word.state(), word.counts_successes()), (state, counted));
                        assert_eq!(word.is_timeless(), timeless);
                        assert_eq!((word.probes(), word.successes()), (probes, successes));
                        assert_eq!((word.age(generation), word.age(generation.wrapping_add(3))), (0, 3));
                    }
                }
            }
        }
    }
}
