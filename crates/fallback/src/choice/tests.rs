use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

/// What a target is like, and what it does when it is asked.
#[derive(Clone, Debug)]
struct Script {
    /// In so many milliseconds it may be asked.
    aside: Option<u64>,
    ready: bool,
    /// It takes over from failures of this class only.
    only: Option<u8>,
    /// What it does: fails with this class, or succeeds.
    fails: Option<u8>,
    takes: u64,
}

fn script() -> impl Strategy<Value = Script> {
    (
        prop::option::of(1_u64..40),
        prop::bool::weighted(0.8),
        prop::option::weighted(0.3, 0_u8..3),
        prop::option::weighted(0.8, 0_u8..3),
        0_u64..30,
    )
        .prop_map(|(aside, ready, only, fails, takes)| Script { aside, ready, only, fails, takes })
}

#[derive(Debug, PartialEq, Eq)]
struct Told {
    asked: Vec<(usize, u64)>,
    end: Result<usize, Stop>,
}

struct Table<'a> {
    scripts: &'a [Script],
    begin: Instant,
    failed: Option<u8>,
}

impl Field for Table<'_> {
    fn len(&self) -> usize {
        self.scripts.len()
    }

    fn takes(&self, target: usize) -> bool {
        let only = self.scripts[target].only;
        only.is_none() || only == self.failed
    }

    fn aside(&self, target: usize, now: &mut Now<impl FnMut() -> Instant>) -> Option<Instant> {
        let until = self.begin + ms(self.scripts[target].aside?);
        (until > now.get()).then_some(until)
    }
}

fn ms(n: u64) -> Duration {
    MS * u32::try_from(n).unwrap()
}

fn ours(scripts: &[Script], attempts: u32, within: Option<u64>, least: u64) -> Told {
    let begin = Instant::now();
    let mut table = Table { scripts, begin, failed: None };
    let mut course = Course::default();
    let bounds =
        Bounds { attempts, deadline: within.map(|within| begin + ms(within)), min_attempt: ms(least) };
    let (mut asked, mut time) = (Vec::new(), 0);
    loop {
        match course.next(&table, &bounds, &mut Now::new(|| begin + ms(time))) {
            Next::Stop(stop) => return Told { asked, end: Err(stop) },
            Next::Ask(target) if !scripts[target].ready => course.unready(target),
            Next::Ask(target) => {
                course.called(target);
                asked.push((target, time));
                time += scripts[target].takes;
                match scripts[target].fails {
                    None => return Told { asked, end: Ok(target) },
                    failed => table.failed = failed,
                }
            }
        }
    }
}

/// The same by lists: whoever is left over goes through the list again from its beginning.
fn model(scripts: &[Script], attempts: u32, within: Option<u64>, least: u64) -> Told {
    let (mut asked, mut time, mut failed) = (Vec::<(usize, u64)>::new(), 0, None);
    let mut left: Vec<usize> = (0..scripts.len()).collect();
    let mut aside: Vec<usize> = Vec::new();
    loop {
        let fits = |n: &usize| scripts[*n].only.is_none() || scripts[*n].only == failed;
        let cools = |n: usize| scripts[n].aside.is_some_and(|until| until > time);
        let target = match left.iter().position(fits) {
            Some(place) if cools(left[place]) => {
                aside.push(left.remove(place));
                continue;
            }
            Some(place) => left[place],
            None if !asked.is_empty() || aside.is_empty() => {
                return Told { asked, end: Err(Stop::NobodyLeft) };
            }
            None => {
                aside.sort_by_key(|n| (scripts[*n].aside, *n));
                left.push(aside.remove(0));
                *left.last().unwrap()
            }
        };
        if asked.len() as u32 >= attempts {
            return Told { asked, end: Err(Stop::Attempts) };
        }
        if within.is_some_and(|within| time >= within || within - time < least) {
            return Told { asked, end: Err(Stop::Deadline) };
        }
        left.retain(|n| *n != target);
        if scripts[target].ready {
            asked.push((target, time));
            time += scripts[target].takes;
            match scripts[target].fails {
                None => return Told { asked, end: Ok(target) },
                class => failed = class,
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn it_does_as_the_model(
        scripts in prop::collection::vec(script(), 1..8),
        attempts in 1_u32..9,
        within in prop::option::of(1_u64..100),
        least in 0_u64..20,
    ) {
        let (ours, model) =
            (ours(&scripts, attempts, within, least), model(&scripts, attempts, within, least));
        prop_assert_eq!(ours, model);
    }

    /// Whatever happens, nobody is asked twice, and no more are asked than may be.
    #[test]
    fn nobody_is_asked_twice(scripts in prop::collection::vec(script(), 1..64), attempts in 1_u32..64) {
        let mut asked: Vec<_> = ours(&scripts, attempts, None, 0).asked.into_iter().map(|it| it.0).collect();
        prop_assert!(asked.len() <= attempts as usize);
        asked.sort_unstable();
        prop_assert!(asked.windows(2).all(|two| two[0] < two[1]));
    }
}

fn plain(n: usize) -> Vec<Script> {
    vec![Script { aside: None, ready: true, only: None, fails: Some(0), takes: 0 }; n]
}

#[test]
fn nothing_depends_on_the_time_if_nobody_says_so() {
    let scripts = plain(3);
    let table = Table { scripts: &scripts, begin: Instant::now(), failed: None };
    let bounds = Bounds { attempts: 9, deadline: None, min_attempt: 9 * MS };
    let mut course = Course::default();
    let next = course.next(&table, &bounds, &mut Now::new(|| panic!("the clock is read")));
    assert_eq!(next, Next::Ask(0));
}

#[test]
fn a_request_is_kept_only_as_long_as_somebody_is_left() {
    let bounds = |attempts| Bounds { attempts, deadline: None, min_attempt: MS };
    let mut course = Course::default();
    assert!(course.may_go_on(0, 2, &bounds(2)));
    assert!(!course.may_go_on(0, 2, &bounds(1)));
    assert!(!course.may_go_on(0, 1, &bounds(9)));
    course.unready(0);
    assert!(!course.may_go_on(1, 2, &bounds(9)));
    course.called(1);
    assert!(course.may_go_on(2, 4, &bounds(3)) && !course.may_go_on(2, 4, &bounds(2)));
}
