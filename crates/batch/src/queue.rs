//! What is collected, and when a batch goes. No clock and no tower in here.

use std::{hash::Hash, time::Duration};

use tokio::time::Instant;

use crate::{clock::after, settings::Settings};

mod order;

use order::{Due, Line, Open};

/// What waits, by key and in the order in which it is due.
///
/// `F` is whatever the members of a batch have in common. A key that panics while it is compared or hashed leaves everything
/// whole.
pub(crate) struct Queue<K, Req, F> {
    rules: Rules,
    batches: Vec<Option<Gathering<K, Req, F>>>,
    free: Vec<usize>,
    /// Those that take further items.
    open: Open<K>,
    line: Line,
    waiting: usize,
    batch: u64,
    closed: bool,
    /// The size of the last batch that went: what the next one may need.
    usual: usize,
    /// How many items there is room for in all batches that wait, by what was `usual` when they began.
    room: usize,
}

/// When a batch goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) max_size: usize,
    pub(crate) max_weight: u64,
    pub(crate) max_pending: usize,
    pub(crate) linger: Duration,
}

/// When the worker has to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Now,
    At(Instant),
}

struct Gathering<K, Req, F> {
    key: K,
    items: Vec<Req>,
    /// How many there was room for from the beginning.
    members: usize,
    /// How many have joined. Those who left are `gone`, in order.
    joined: usize,
    gone: Vec<usize>,
    weight: u64,
    opened: Instant,
    due: Due,
    full: bool,
    flight: F,
}

/// Where a batch gathers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    batch: u64,
    index: usize,
}

/// What came of joining.
#[derive(Debug)]
pub(crate) struct Joined<F> {
    pub(crate) flight: F,
    /// Its own in the batch, which it keeps when others leave.
    pub(crate) seat: usize,
    /// Whether the worker has to look: the first that is due is another one, or due earlier.
    pub(crate) hurry: bool,
}

/// A batch that goes.
#[derive(Debug)]
pub(crate) struct Departure<Req, F> {
    pub(crate) items: Vec<Req>,
    pub(crate) crew: Crew<F>,
    /// When its first item came.
    pub(crate) opened: Instant,
    /// When to look again.
    pub(crate) next: Option<Next>,
}

/// Whose results they are.
#[derive(Debug)]
pub(crate) struct Crew<F> {
    pub(crate) flight: F,
    joined: usize,
    gone: Vec<usize>,
}

impl<F> Crew<F> {
    pub(crate) fn len(&self) -> usize {
        self.joined - self.gone.len()
    }

    /// Seats in all, those that were left included.
    pub(crate) fn seats(&self) -> usize {
        self.joined
    }

    /// The seats of those who are there, in the order of their items.
    pub(crate) fn taken(&self) -> impl Iterator<Item = usize> {
        let mut gone = self.gone.iter().copied().peekable();
        (0..self.joined).filter(move |seat| gone.next_if_eq(seat).is_none())
    }
}

impl Next {
    pub(crate) fn is_due(self, now: Instant) -> bool {
        match self {
            Self::Now => true,
            Self::At(at) => at <= now,
        }
    }
}

impl Rules {
    pub(crate) fn new(settings: &Settings, max_weight: u64) -> Self {
        let Settings { max_size, linger, max_pending, .. } = *settings;
        Self { max_size, max_weight, max_pending, linger }
    }
}

impl<K: Eq + Hash + Clone, Req, F: Clone> Queue<K, Req, F> {
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            rules,
            batches: Vec::new(),
            free: Vec::new(),
            open: Open::default(),
            line: Line::default(),
            waiting: 0,
            batch: 0,
            closed: false,
            usual: 0,
            room: 0,
        }
    }

    /// Puts an item into the batch of its key, or into a new one. `now` and `flight` are asked when they are needed, the
    /// latter with where the batch gathers and the number of members to expect.
    pub(crate) fn join(
        &mut self,
        key: K,
        weight: u64,
        item: Req,
        mut now: impl FnMut() -> Instant,
        flight: impl FnOnce(Place, usize) -> F,
    ) -> Joined<F> {
        let Rules { max_size, max_weight, .. } = self.rules;
        let fills = |items: usize, weight: u64| items >= max_size || weight >= max_weight;
        let mut open = self.open.get(&key);
        let mut hurry = false;
        if let Some(index) = open {
            let gathering = self.gathering(index);
            let (items, weight) = (gathering.items.len() + 1, gathering.weight.saturating_add(weight));
            let too_heavy = weight > max_weight;
            if too_heavy || fills(items, weight) {
                hurry |= self.fill(index, now());
            }
            open = open.filter(|_| !too_heavy);
        }
        let index = match open {
            Some(index) => index,
            None => {
                let index = self.begin(key, fills(1, weight), now(), flight);
                hurry |= self.is_first(index);
                index
            }
        };
        let gathering = self.gathering(index);
        gathering.items.push(item);
        gathering.weight = gathering.weight.saturating_add(weight);
        let seat = gathering.joined;
        gathering.joined += 1;
        let flight = gathering.flight.clone();
        self.waiting += 1;
        Joined { flight, seat, hurry }
    }

    /// Takes an item out that has not gone, and what its batch waits for is what is left. `None` if the batch has gone.
    pub(crate) fn leave(&mut self, place: Place, seat: usize, weight: u64) -> Option<Req> {
        let Place { batch, index } = place;
        let gathering = self.batches.get_mut(index)?.as_mut().filter(|it| it.due.batch == batch)?;
        let before = gathering.gone.binary_search(&seat).err()?;
        if gathering.items.len() == 1 {
            let item = self.remove(index).items.pop();
            self.waiting -= 1;
            return item;
        }
        gathering.gone.insert(before, seat);
        let item = gathering.items.remove(seat - before);
        gathering.weight -= weight.min(gathering.weight);
        self.waiting -= 1;
        if gathering.full {
            self.reopen(index);
        }
        Some(item)
    }

    /// When to look again, as of whenever this is asked. `None` if nothing waits.
    pub(crate) fn next(&self) -> Option<Next> {
        let first = self.line.first()?;
        Some(if self.is_timeless(first) { Next::Now } else { Next::At(first.at) })
    }

    /// The batch that has been due for longest.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Departure<Req, F>> {
        let first = self.line.first()?;
        let index = self.next()?.is_due(now).then_some(first.index)?;
        let Gathering { items, joined, gone, opened, flight, .. } = self.remove(index);
        self.waiting -= items.len();
        self.usual = items.len();
        Some(Departure { items, crew: Crew { flight, joined, gone }, opened, next: self.next() })
    }

    /// Everything that waits is due from now on.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether it does not wait for time: then it is due even if it became so after the clock was read.
    fn is_timeless(&self, due: &Due) -> bool {
        let full = |gathering: &Gathering<K, Req, F>| gathering.full;
        self.closed || self.rules.linger.is_zero() || self.batches[due.index].as_ref().is_some_and(full)
    }

    /// A batch that takes further items, unless its first one fills it.
    fn begin(&mut self, key: K, full: bool, now: Instant, flight: impl FnOnce(Place, usize) -> F) -> usize {
        let index = self.free.last().copied().unwrap_or(self.batches.len());
        if !full {
            self.open.insert(key.clone(), index);
        }
        let members = if full { 1 } else { self.usual.min(self.rules.max_pending.saturating_sub(self.room)) };
        let flight = flight(Place { batch: self.batch, index }, members);
        let linger = if full { Duration::ZERO } else { self.rules.linger };
        let due = Due { at: after(now, linger), batch: self.batch, index };
        let gathering = Gathering {
            key,
            items: Vec::with_capacity(members),
            members,
            joined: 0,
            gone: Vec::new(),
            weight: 0,
            opened: now,
            due,
            full,
            flight,
        };
        match self.batches.get_mut(index) {
            Some(empty) => *empty = Some(gathering),
            None => self.batches.push(Some(gathering)),
        }
        self.free.pop();
        self.batch += 1;
        self.room += members;
        self.line.insert(due);
        index
    }

    /// Nothing more goes in, and it is due at the latest now. Whether it is the first that is.
    fn fill(&mut self, index: usize, now: Instant) -> bool {
        let gathering = self.batches[index].as_mut().expect("it gathers");
        self.open.remove(&gathering.key);
        gathering.full = true;
        if gathering.due.at > now {
            self.line.remove(&gathering.due);
            gathering.due.at = now;
            self.line.insert(gathering.due);
        }
        self.is_first(index)
    }

    fn is_first(&self, index: usize) -> bool {
        self.line.first().is_some_and(|first| first.index == index)
    }

    /// One that has room again waits as it did before; unless others of its key wait behind it, who would be overtaken.
    fn reopen(&mut self, index: usize) {
        let gathering = self.batches[index].as_ref().expect("it gathers");
        let behind = |other: &Gathering<K, Req, F>| {
            other.due.batch > gathering.due.batch && other.key == gathering.key
        };
        if gathering.weight >= self.rules.max_weight || self.batches.iter().flatten().any(behind) {
            return;
        }
        let gathering = self.batches[index].as_mut().expect("it gathers");
        self.open.insert(gathering.key.clone(), index);
        gathering.full = false;
        self.line.remove(&gathering.due);
        gathering.due.at = after(gathering.opened, self.rules.linger);
        self.line.insert(gathering.due);
    }

    fn remove(&mut self, index: usize) -> Gathering<K, Req, F> {
        let open = self.batches[index].as_ref().filter(|it| !it.full);
        open.into_iter().for_each(|it| self.open.remove(&it.key));
        let gathering = self.batches[index].take().expect("it gathers");
        self.line.remove(&gathering.due);
        self.room -= gathering.members;
        self.free.push(index);
        gathering
    }

    fn gathering(&mut self, index: usize) -> &mut Gathering<K, Req, F> {
        self.batches[index].as_mut().expect("it gathers")
    }
}

#[cfg(all(test, not(loom)))]
#[path = "queue/tests.rs"]
mod tests;
