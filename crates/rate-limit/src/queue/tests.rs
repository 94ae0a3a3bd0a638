//! Every order in which a few waiters come, look, go away and let time pass.

use std::{
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    task::Wake,
};

use super::*;
use crate::{gcra::Gcra, policy::Policy};

/// A waiter as a task: it looks when its timer rings or it is woken, unless it is parked.
struct Task {
    place: Option<Arc<Place>>,
    woken: Arc<Flag>,
    timer: u64,
    /// When it was granted its permits.
    at: Option<u64>,
    parked: bool,
    looks: usize,
    joined: u64,
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    /// Somebody comes, who costs so much.
    Join(u64),
    /// One goes away.
    Drop(usize),
    /// One is not polled any more, though woken.
    Park(usize),
    Pass(u64),
    /// Nothing passes for so long.
    Hold(u64),
}

const OPS: [Op; 9] = [
    Op::Join(1),
    Op::Join(2),
    Op::Drop(0),
    Op::Drop(1),
    Op::Park(0),
    Op::Park(1),
    Op::Pass(2 * TICK),
    Op::Pass(5 * TICK),
    Op::Hold(7 * TICK),
];
const PERMIT: u64 = 5 * TICK;

struct World {
    terms: Terms,
    state: State,
    queue: Queue,
    tasks: Vec<Task>,
    now: u64,
    /// From when until when nothing may have passed.
    held: Vec<(u64, u64)>,
}

impl World {
    fn new() -> Self {
        let terms = Terms { policy: Policy::Gcra(Gcra::new(1, PERMIT, 2).unwrap()), hold: 0 };
        Self { terms, state: [0, 0], queue: Queue::default(), tasks: Vec::new(), now: 0, held: Vec::new() }
    }

    fn advance(&mut self) {
        let (terms, state, mut wake) = (self.terms, &mut self.state, Vec::new());
        let take = |at, n| terms.take(*state, at, n).map(|next| *state = next);
        self.queue.advance(take, self.now, &mut wake);
        wake.into_iter().for_each(Waker::wake);
    }

    fn look(&mut self, n: usize) {
        self.advance();
        let (state, now) = (self.state, self.now);
        let task = &mut self.tasks[n];
        let Some(place) = &task.place else { return };
        task.looks += 1;
        task.woken.0.store(false, SeqCst);
        let waker = Waker::from(task.woken.clone());
        match self.queue.sleep(place, &self.terms, state, now, &waker) {
            Some(at) => {
                assert!(at > now, "whoever is due is served");
                task.timer = at;
            }
            None => {
                assert_eq!(place.fate(), Fate::Granted);
                (task.place, task.at) = (None, Some(now));
            }
        }
    }

    fn act(&mut self, op: Op) {
        match op {
            Op::Join(cost) => {
                self.advance();
                let (place, at) = self.queue.join(&self.terms, self.state, self.now, cost, u64::MAX).unwrap();
                self.tasks.push(Task {
                    place: Some(place),
                    woken: Arc::default(),
                    timer: at,
                    at: None,
                    parked: false,
                    looks: 0,
                    joined: self.now,
                });
                self.look(self.tasks.len() - 1);
            }
            Op::Drop(n) if n < self.tasks.len() => {
                if let Some(place) = self.tasks[n].place.take() {
                    if !self.queue.leave(&place) {
                        self.state = self.terms.policy.refund(self.state, self.now, 1);
                        self.queue.reckon(&self.terms, self.state, self.now, &mut Vec::new());
                    }
                    self.advance();
                }
                self.tasks[n].parked = true;
            }
            Op::Park(n) if n < self.tasks.len() => self.tasks[n].parked = true,
            Op::Drop(_) | Op::Park(_) => {}
            Op::Hold(time) => {
                self.terms.hold = self.terms.hold.max(self.now + time);
                self.held.push((self.now + 1, self.now + time));
                self.queue.reckon(&self.terms, self.state, self.now, &mut Vec::new());
                self.advance();
            }
            Op::Pass(time) => self.pass(self.now + time),
        }
    }

    /// Time passes; who is woken or whose timer rings looks.
    fn pass(&mut self, until: u64) {
        loop {
            let due = |task: &&Task| task.place.is_some() && !task.parked;
            while let Some(n) = self.tasks.iter().position(|task| due(&task) && task.woken.0.load(SeqCst)) {
                self.look(n);
            }
            let next = self.tasks.iter().enumerate().filter(|(_, task)| due(task));
            match next.map(|(n, task)| (task.timer, n)).min() {
                Some((at, n)) if at <= until => {
                    self.now = self.now.max(at);
                    self.look(n);
                }
                _ => break,
            }
        }
        self.now = until;
    }
}

/// Whatever happens, all who are still polled end, in order, not before their time and with few looks.
#[test]
fn every_order_of_a_few_events_ends_well() {
    let mut orders = 0;
    let mut stack = vec![Vec::new()];
    while let Some(ops) = stack.pop() {
        if ops.len() < 6 {
            stack.extend(OPS.iter().map(|op| {
                let mut longer: Vec<Op> = ops.clone();
                longer.push(*op);
                longer
            }));
            continue;
        }
        orders += 1;
        let mut world = World::new();
        for op in &ops {
            world.act(*op);
        }
        // Nobody costs more than 2, so each ends this much later at the latest, once for itself and once for not being
        // polled, those who are gone included.
        let begin = world.now.max(world.terms.hold);
        world.pass(begin + 2 * PERMIT * (2 * world.tasks.len() as u64 + 1));
        let polled = world.tasks.iter().filter(|task| !task.parked);
        let mut last = 0;
        for task in polled {
            let at = task.at.unwrap_or_else(|| panic!("{ops:?}: one waits for ever"));
            assert!(world.held.iter().all(|(from, until)| at < *from || at >= *until), "{ops:?}: one passed");
            assert!(at >= last && at >= task.joined, "{ops:?}: one was overtaken");
            assert!(task.looks <= 2 + 2 * ops.len(), "{ops:?}: {} looks", task.looks);
            last = at;
        }
        assert!(world.tasks.iter().any(|task| task.parked) || world.queue.is_empty());
    }
    assert_eq!(orders, OPS.len().pow(6));
}

#[test]
fn a_wait_that_is_just_long_enough_is_accepted() {
    let mut world = World::new();
    world.act(Op::Join(2));
    let at = |world: &mut World, max_wait| {
        world.queue.join(&world.terms, world.state, world.now, 1, max_wait).map(|(_, at)| at)
    };
    assert_eq!(at(&mut world, PERMIT - 1), Err(Denied::Wait(PERMIT)));
    assert_eq!(at(&mut world, PERMIT), Ok(PERMIT));
    assert_eq!(at(&mut world, PERMIT), Err(Denied::Wait(2 * PERMIT)));
}

#[test]
fn debt_tells_those_whom_it_dooms() {
    let mut world = World::new();
    world.act(Op::Join(2));
    let join = |world: &mut World, max_wait| {
        world.queue.join(&world.terms, world.state, world.now, 1, max_wait).unwrap().0
    };
    let (soon, late) = (join(&mut world, 2 * PERMIT), join(&mut world, 9 * PERMIT));
    world.state = world.terms.policy.charge(world.state, 0, 4);
    world.queue.reckon(&world.terms, world.state, 0, &mut Vec::new());
    assert_eq!(soon.fate(), Fate::Doomed(5 * PERMIT));
    assert_eq!(late.fate(), Fate::Waiting);
    assert_eq!(world.queue.len(), 1);
}
