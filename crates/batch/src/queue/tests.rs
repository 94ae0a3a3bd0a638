//! The queue against one that is simple: a list of batches, looked through from the front.

use std::time::Duration;

use proptest::{collection::vec, prelude::*};
use tokio::time::Instant;

use super::*;

const MILLI: Duration = Duration::from_millis(1);

fn due<K, Req, F>(queue: &Queue<K, Req, F>) -> Option<Instant> {
    queue.line.first().map(|due| due.at)
}

fn is_due<K: Eq + Hash + Clone, Req, F: Clone>(queue: &Queue<K, Req, F>, now: Instant) -> bool {
    queue.next().is_some_and(|next| next.is_due(now))
}

#[derive(Clone, Debug)]
enum Op {
    Join {
        key: u8,
        weight: u64,
    },
    /// One of those that ever joined, gone or not.
    Leave(usize),
    Pass(u32),
    Take,
    Close,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        8 => (0..3_u8, 0..7_u64).prop_map(|(key, weight)| Op::Join { key, weight }),
        4 => any::<prop::sample::Index>().prop_map(|index| Op::Leave(index.index(64))),
        4 => (0..4_u32).prop_map(Op::Pass),
        4 => Just(Op::Take),
        1 => Just(Op::Close),
    ];
    vec(op, 0..64)
}

#[derive(Debug)]
struct Simple {
    key: u8,
    items: Vec<(usize, u64)>,
    opened: Instant,
    full_since: Option<Instant>,
}

impl Simple {
    fn weight(&self) -> u64 {
        self.items.iter().map(|(_, weight)| weight).sum()
    }
}

#[derive(Debug)]
struct Model {
    rules: Rules,
    batches: Vec<Simple>,
    closed: bool,
}

impl Model {
    fn due(&self, it: &Simple) -> Instant {
        let lingered = it.opened + self.rules.linger;
        it.full_since.map_or(lingered, |full| full.min(lingered))
    }

    fn next_due(&self) -> Option<Instant> {
        self.batches.iter().map(|it| self.due(it)).min()
    }

    fn is_full(&self, it: &Simple) -> bool {
        it.items.len() >= self.rules.max_size || it.weight() >= self.rules.max_weight
    }

    fn join(&mut self, key: u8, item: usize, weight: u64, now: Instant) {
        let max = self.rules.max_weight;
        let mut open = self.batches.iter_mut().find(|it| it.key == key && it.full_since.is_none());
        if let Some(it) = open.take_if(|it| it.weight() + weight > max) {
            it.full_since = Some(now);
        }
        let at = self.batches.iter().position(|it| it.key == key && it.full_since.is_none());
        let at = at.unwrap_or_else(|| {
            self.batches.push(Simple { key, items: Vec::new(), opened: now, full_since: None });
            self.batches.len() - 1
        });
        self.batches[at].items.push((item, weight));
        if self.is_full(&self.batches[at]) {
            self.batches[at].full_since = Some(now);
        }
    }

    fn leave(&mut self, item: usize) -> bool {
        let Some(at) = self.batches.iter().position(|it| it.items.iter().any(|(id, _)| *id == item)) else {
            return false;
        };
        self.batches[at].items.retain(|(id, _)| *id != item);
        let key = self.batches[at].key;
        let followed = self.batches[at + 1..].iter().any(|it| it.key == key);
        if self.batches[at].items.is_empty() {
            self.batches.remove(at);
        } else if !followed && !self.is_full(&self.batches[at]) {
            self.batches[at].full_since = None;
        }
        true
    }

    fn take(&mut self, now: Instant) -> Option<Vec<usize>> {
        let due = |it: &&Simple| self.closed || self.due(it) <= now;
        let first = self.batches.iter().filter(due).map(|it| self.due(it)).min()?;
        let at = self.batches.iter().position(|it| self.due(it) == first)?;
        Some(self.batches.remove(at).items.into_iter().map(|(id, _)| id).collect())
    }

    /// Whether the first that is due does not wait for time.
    fn is_timeless(&self) -> bool {
        let first = self.batches.iter().min_by_key(|it| self.due(it));
        self.rules.linger.is_zero() || first.is_some_and(|it| it.full_since.is_some())
    }

    fn waiting(&self) -> usize {
        self.batches.iter().map(|it| it.items.len()).sum()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 16 } else { 2_000 }))]

    #[test]
    fn it_does_what_a_simple_one_does(
        ops in ops(),
        max_size in 1..4_usize,
        max_weight in prop_oneof![Just(u64::MAX), 1..9_u64],
        linger in 0..4_u32,
    ) {
        let rules = Rules { max_size, max_weight, max_pending: 99, linger: linger * MILLI };
        let mut model = Model { rules, batches: Vec::new(), closed: false };
        let mut queue: Queue<u8, usize, (u8, Place)> = Queue::new(rules);
        let mut places = Vec::new();
        let mut now = Instant::now();
        for op in ops {
            let was = due(&queue);
            match op {
                Op::Join { key, weight } => {
                    let item = places.len();
                    let joined = queue.join(key, weight, item, || now, |place, _| (key, place));
                    let (its, place) = joined.flight;
                    prop_assert_eq!(its, key);
                    let earlier = due(&queue).is_some_and(|at| was.is_none_or(|was| at < was));
                    prop_assert!(joined.hurry || !earlier, "nobody is told that something is due earlier");
                    places.push((place, joined.seat, weight));
                    model.join(key, item, weight, now);
                }
                Op::Leave(index) => if let Some((place, seat, weight)) = places.get(index) {
                    let left = queue.leave(*place, *seat, *weight);
                    prop_assert_eq!(left, model.leave(index).then_some(index));
                }
                Op::Pass(millis) => now += millis * MILLI,
                Op::Take => {
                    let is_due = is_due(&queue, now);
                    let went = queue.take(now);
                    prop_assert_eq!(is_due, went.is_some());
                    if let Some(went) = &went {
                        prop_assert!(!went.items.is_empty() && went.items.len() <= max_size);
                        prop_assert_eq!(went.crew.len(), went.items.len());
                        let seats: Vec<_> = went.crew.taken().collect();
                        let expected: Vec<_> = went.items.iter().map(|item| places[*item].1).collect();
                        prop_assert_eq!(seats, expected);
                        prop_assert!(went.crew.taken().all(|seat| seat < went.crew.seats()));
                    }
                    prop_assert_eq!(went.map(|it| it.items), model.take(now));
                }
                Op::Close => {
                    queue.close();
                    model.closed = true;
                }
            }
            prop_assert_eq!(queue.waiting(), model.waiting());
            prop_assert_eq!(due(&queue), model.next_due());
            match queue.next() {
                None => prop_assert_eq!(queue.waiting(), 0),
                Some(Next::Now) => prop_assert!(model.closed || model.is_timeless()),
                Some(Next::At(at)) => prop_assert_eq!(Some(at), model.next_due()),
            }
        }
        // What waits goes, and nothing is kept.
        queue.close();
        model.closed = true;
        while let Some(expected) = model.take(now) {
            prop_assert_eq!(queue.take(now).map(|it| it.items), Some(expected));
        }
        prop_assert!(queue.take(now).is_none() && queue.line.first().is_none() && queue.open.is_empty());
        prop_assert!(queue.batches.iter().all(Option::is_none));
        prop_assert_eq!(queue.free.len(), queue.batches.len());
    }
}

fn queue(max_size: usize, linger: u32) -> Queue<(), char, Place> {
    Queue::new(Rules { max_size, max_weight: u64::MAX, max_pending: 99, linger: linger * MILLI })
}

fn join(queue: &mut Queue<(), char, Place>, item: char, now: Instant) -> Joined<Place> {
    queue.join((), 0, item, || now, |place, _| place)
}

fn leave(queue: &mut Queue<(), char, Place>, who: &Joined<Place>) -> Option<char> {
    queue.leave(who.flight, who.seat, 0)
}

#[test]
fn later_items_do_not_move_the_time() {
    let (mut queue, now) = (queue(9, 10), Instant::now());
    assert!(join(&mut queue, 'a', now).hurry);
    for n in 1..8 {
        assert!(!join(&mut queue, 'b', now + n * MILLI).hurry);
        assert_eq!(due(&queue), Some(now + 10 * MILLI));
    }
    assert!(join(&mut queue, 'z', now + 8 * MILLI).hurry, "it is full");
    assert_eq!(due(&queue), Some(now + 8 * MILLI));
}

#[test]
fn an_emptied_batch_never_goes_and_the_next_one_begins_anew() {
    let (mut queue, now) = (queue(2, 10), Instant::now());
    let first = join(&mut queue, 'a', now);
    assert_eq!(leave(&mut queue, &first), Some('a'));
    assert_eq!((leave(&mut queue, &first), due(&queue), queue.waiting()), (None, None, 0));
    assert!(join(&mut queue, 'b', now + 5 * MILLI).hurry, "the worker sleeps without a timer");
    assert_eq!(due(&queue), Some(now + 15 * MILLI));
    assert_eq!(leave(&mut queue, &first), None, "its batch is another one");
}

#[test]
fn a_full_batch_that_loses_a_member_takes_another_one() {
    let (mut queue, now) = (queue(2, 10), Instant::now());
    let first = join(&mut queue, 'a', now);
    join(&mut queue, 'b', now);
    assert!(is_due(&queue, now));
    assert_eq!(leave(&mut queue, &first), Some('a'));
    assert!(!is_due(&queue, now));
    join(&mut queue, 'c', now + MILLI);
    assert_eq!(queue.take(now + MILLI).map(|it| it.items), Some(vec!['b', 'c']));
}

#[test]
fn nobody_overtakes_who_came_before() {
    let (mut queue, now) = (queue(2, 10), Instant::now());
    let first = join(&mut queue, 'a', now);
    for item in ['b', 'c', 'd'] {
        join(&mut queue, item, now);
    }
    assert_eq!(leave(&mut queue, &first), Some('a'));
    join(&mut queue, 'e', now);
    let went: Vec<_> = std::iter::from_fn(|| queue.take(now + 10 * MILLI)).map(|it| it.items).collect();
    assert_eq!(went, [vec!['b'], vec!['c', 'd'], vec!['e']]);
}

/// Lists are made as long as the last batch was, but not for every key of many.
#[test]
fn room_is_made_for_no_more_than_may_wait() {
    let rules = Rules { max_size: 100, max_weight: u64::MAX, max_pending: 1_600, linger: MILLI };
    let mut queue: Queue<u32, u32, usize> = Queue::new(rules);
    let now = Instant::now();
    let join = |queue: &mut Queue<u32, u32, usize>, key| {
        queue.join(key, 0, key, || now, |_, members| members).flight
    };
    for round in 0..3 {
        assert_eq!(join(&mut queue, 0), if round == 0 { 0 } else { 100 });
        (1..100).for_each(|_| _ = join(&mut queue, 0));
        assert_eq!(queue.take(now).map(|it| it.items.len()), Some(100));
        let members: usize = (1..=1_000).map(|key| join(&mut queue, key)).sum();
        let room: usize = queue.batches.iter().flatten().map(|it| it.items.capacity()).sum();
        assert_eq!(members, 1_600);
        assert!(room < 1_600 + 4 * 1_000, "room for {room} items");
        while queue.take(now + MILLI).is_some() {}
        assert_eq!(queue.room, 0);
        (0..100).for_each(|_| _ = join(&mut queue, 0));
        assert_eq!(queue.take(now).map(|it| it.items.len()), Some(100));
    }
}

/// A key that panics when it is hashed the so many-th time from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Moody(char);

thread_local!(static HASHES: std::cell::Cell<u32> = const { std::cell::Cell::new(u32::MAX) });

impl Hash for Moody {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        HASHES.set(HASHES.get() - 1);
        if HASHES.get() == 0 {
            std::panic::resume_unwind(Box::new("a key panics"));
        }
        self.0.hash(state);
    }
}

#[test]
fn a_key_that_panics_leaves_everything_whole() {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    let mut panics = 0;
    for (max_size, max_weight, hash) in (1..4)
        .flat_map(|size| [3, 9].into_iter().flat_map(move |weight| (1..6).map(move |n| (size, weight, n))))
    {
        let rules = Rules { max_size, max_weight, max_pending: 99, linger: MILLI };
        let mut queue: Queue<Moody, u64, Place> = Queue::new(rules);
        let now = Instant::now();
        let mut waiting = 0;
        for (key, weight) in [('a', 1), ('b', 2), ('c', 2), ('b', 1), ('c', 2), ('c', 1), ('b', 3), ('d', 1)]
        {
            let join =
                |queue: &mut Queue<_, _, _>| queue.join(Moody(key), weight, weight, || now, |place, _| place);
            HASHES.set(hash);
            let joined = catch_unwind(AssertUnwindSafe(|| join(&mut queue)));
            HASHES.set(u32::MAX);
            panics += u32::from(joined.is_err());
            waiting += usize::from(joined.is_ok());
            if key == 'c'
                && let Ok(joined) = joined
            {
                HASHES.set(hash);
                let left = catch_unwind(AssertUnwindSafe(|| queue.leave(joined.flight, joined.seat, weight)));
                HASHES.set(u32::MAX);
                panics += u32::from(left.is_err());
                waiting = if left.is_ok() { waiting - 1 } else { queue.waiting() };
            }
            assert_eq!(queue.waiting(), waiting);
        }
        let mut went = 0;
        while let Some(departure) = queue.take(now + MILLI) {
            assert!((1..=max_size).contains(&departure.items.len()));
            assert!(departure.items.len() == 1 || departure.items.iter().sum::<u64>() <= max_weight);
            went += departure.items.len();
        }
        assert_eq!((went, queue.waiting()), (waiting, 0));
        assert!(queue.open.is_empty() && queue.line.first().is_none());
        assert_eq!(queue.free.len(), queue.batches.len());
    }
    assert!(panics > 20, "{panics} panics");
}

#[test]
fn weights_saturate() {
    let mut queue: Queue<(), char, ()> =
        Queue::new(Rules { max_size: 9, max_weight: 9, max_pending: 99, linger: MILLI });
    let now = Instant::now();
    for (item, weight) in [('a', 1), ('b', u64::MAX), ('c', u64::MAX), ('d', 8)] {
        queue.join((), weight, item, || now, |_, _| ());
    }
    let went: Vec<_> = std::iter::from_fn(|| queue.take(now + MILLI)).map(|it| it.items).collect();
    assert_eq!(went, [['a'], ['b'], ['c'], ['d']]);
}
