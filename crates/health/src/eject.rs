//! Who is left out because it fails again and again, and for how long.

use crate::{clock::nanos, settings::Ejection};

/// The members of a pool, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Roster {
    consecutive: u32,
    base: u64,
    max: u64,
    at_most: u64,
    panic_below: u64,
    forget_after: Option<u64>,
    members: Vec<Member>,
    overflow: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Member {
    /// How often it was ejected, as far as that is remembered.
    times: u64,
    /// Until when it is, or was the last time.
    until: u64,
    /// How often it was ejected at all.
    ejections: u64,
}

impl Roster {
    pub(crate) fn new(ejection: &Ejection) -> Self {
        Self {
            consecutive: ejection.consecutive,
            base: nanos(ejection.base),
            max: nanos(ejection.max),
            at_most: ejection.at_most.into(),
            panic_below: ejection.panic_below.into(),
            forget_after: ejection.forget_after.map(nanos),
            members: Vec::new(),
            overflow: 0,
        }
    }

    /// One more. Its place is the number of those before.
    pub(crate) fn join(&mut self) {
        self.members.push(Member::default());
    }

    /// How many failures in a row are too many.
    pub(crate) fn consecutive(&self) -> u32 {
        self.consecutive
    }

    /// A member has failed too often in a row. Until when it is out now, unless the cap forbids that.
    pub(crate) fn eject(&mut self, place: usize, now: u64) -> Option<u64> {
        let out = self.members.iter().filter(|member| member.is_out(now)).count() as u64;
        if 100 * (out + 1) > self.at_most * self.members.len() as u64 {
            self.overflow += 1;
            return None;
        }
        let (base, max) = (self.base, self.max);
        let member = &mut self.members[place];
        if self.forget_after.is_some_and(|time| now >= member.until.saturating_add(time)) {
            member.times = 0;
        }
        member.times = member.times.saturating_add(1);
        member.ejections += 1;
        member.until = now.saturating_add(base.saturating_mul(member.times).min(max));
        Some(member.until)
    }

    /// How often members were not ejected because too many were out.
    pub(crate) fn overflow(&self) -> u64 {
        self.overflow
    }

    /// How often this one was ejected.
    pub(crate) fn ejections(&self, place: usize) -> u64 {
        self.members[place].ejections
    }

    /// Whether so few are up that all may be asked.
    pub(crate) fn panics(&self, up: usize) -> bool {
        100 * (up as u64) < self.panic_below * self.members.len() as u64
    }

    /// It is in, and was never out.
    pub(crate) fn forgive(&mut self, place: usize) {
        let member = &mut self.members[place];
        (member.times, member.until) = (0, 0);
    }
}

impl Member {
    fn is_out(&self, now: u64) -> bool {
        now < self.until
    }
}

#[cfg(all(test, not(loom)))]
#[path = "eject/tests.rs"]
mod tests;
