use std::fmt;

/// How a component fares. The later of two is the worse one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// It works, or nothing says otherwise.
    #[default]
    Healthy,
    /// It works, but not as it should.
    Degraded,
    /// It does not work.
    Unhealthy,
}

impl State {
    pub(crate) const ALL: [Self; 3] = [Self::Healthy, Self::Degraded, Self::Unhealthy];

    /// `healthy`, `degraded` or `unhealthy`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
        }
    }

    pub(crate) fn of_bits(bits: u64) -> Self {
        Self::ALL[((bits & 3) as usize).min(2)]
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
