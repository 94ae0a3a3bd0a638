//! The runner of the conformance vectors.
//!
//! Each layer has a file of cases and one [`Adapter`] that drives the layer through its public API. A test target has a
//! line for each layer: `run::<RateLimitAdapter>("rate_limit")`.

use std::{
    env, fs,
    io::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    pin::Pin,
    task::Poll,
    time::Duration,
};

use futures_util::{
    future::{Either, LocalBoxFuture, poll_fn, select},
    stream::{FuturesUnordered, Stream},
};
use serde_json::Value;
use tokio::time::{self, Instant};

mod expect;
mod fields;
mod file;

pub use expect::check;
pub use fields::Fields;
pub use file::{Case, File, RawStep, Tier, Unit};

pub use crate::bench::settle;
use crate::bench::{message, on_paused_clock, within_a_month};

/// How a layer is driven by the cases of its file.
///
/// One is built for each case, on a fresh runtime whose clock is paused. What it does not know is an error, never a
/// skip: a `config` key or an argument that it does not read, an op it refuses, an `expect` key it does not observe.
pub trait Adapter: Sized {
    /// Builds the layer as `config` says.
    ///
    /// # Errors
    ///
    /// If `config` asks for what the adapter does not know. A configuration that the layer refuses is none: there is an
    /// op that asks for it.
    fn build(config: &Fields) -> Result<Self, String>;

    /// How long before its `t` a step begins: for a call that ends at `t` and takes its time.
    fn lead(&self, step: &Step) -> Duration {
        let _ = step;
        Duration::ZERO
    }

    /// Begins a step, as long before its `t` as [`lead`](Self::lead) says. Not called without a lead.
    ///
    /// # Errors
    ///
    /// If the adapter does not know what the step asks for.
    fn begin(&mut self, step: &Step) -> impl Future<Output = Result<(), String>> {
        let _ = step;
        async { Ok(()) }
    }

    /// Does what a step says, at its `t`, and tells all that can be seen then.
    ///
    /// It must not let time pass: what takes time goes into [`Answer::Later`]. [`settle`] lets tasks have their turns.
    ///
    /// # Errors
    ///
    /// If the adapter does not know what the step asks for: [`Step::unknown`].
    fn step(&mut self, step: &Step) -> impl Future<Output = Result<Answer, String>>;
}

/// What came of a step.
pub enum Answer {
    /// This can be seen at once.
    Now(Value),
    /// This can be seen when the future is complete. Meanwhile other steps go on.
    Later(LocalBoxFuture<'static, Value>),
    /// This can be seen at once, and it allows the case to end here.
    Last(Value),
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Now(value) => f.debug_tuple("Now").field(value).finish(),
            Self::Later(_) => f.write_str("Later"),
            Self::Last(value) => f.debug_tuple("Last").field(value).finish(),
        }
    }
}

/// A step, as the adapter sees it.
#[derive(Debug)]
pub struct Step {
    /// Its place in the case, from 0.
    pub index: usize,
    /// Its time, in the file's unit, since the base. Without one it happens when the step before it did.
    pub t: Option<u64>,
    /// Whether its time is before that of a step before it. The clock stands then, and the adapter passes `t` on by hand.
    pub back: bool,
    /// What to do.
    pub op: String,
    /// With what.
    pub args: Fields,
}

impl Step {
    /// The error of an adapter that does not know the op.
    pub fn unknown<T>(&self) -> Result<T, String> {
        Err(format!("unknown op {:?}", self.op))
    }
}

/// The directory of the vectors: `VECTORS_DIR`, or the project's own copy.
pub fn directory() -> PathBuf {
    env::var_os("VECTORS_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors"), PathBuf::from)
}

/// Reads the file of a layer.
///
/// # Errors
///
/// If it cannot be read or is not in the schema.
pub fn read(layer: &str) -> Result<File, String> {
    let path = directory().join(format!("{layer}.json"));
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let file: File = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    match file.layer == layer && !file.cases.is_empty() {
        true => Ok(file),
        false => Err(format!("{}: no cases of {layer}", path.display())),
    }
}

/// Runs every case of a layer's file, and prints the report where libtest does not capture it. A layer's test is this
/// line.
///
/// # Panics
///
/// If the file cannot be read or a case fails, with all that failed.
pub fn run<A: Adapter>(layer: &str) {
    let file = read(layer).unwrap_or_else(|error| panic!("{error}"));
    let report = run_file::<A>(&file);
    std::io::stdout().write_all(report.lines.as_bytes()).expect("stdout is open");
    assert!(report.failures.is_empty(), "{layer}:\n{}", report.failures.join("\n"));
}

/// What came of a file of cases.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// A line for each case and one for all.
    pub lines: String,
    /// What failed, for each case that did.
    pub failures: Vec<String>,
}

/// Runs every case of a file.
pub fn run_file<A: Adapter>(file: &File) -> Report {
    let layer = &file.layer;
    let mut report = Report::default();
    for case in &file.cases {
        let result = run_case::<A>(file.unit, case);
        let verdict = if result.is_ok() { "ok" } else { "FAILED" };
        report.lines += &format!("vector {layer} {} {verdict}: {}\n", case.id, case.title);
        report.failures.extend(result.err());
    }
    let (all, failed) = (file.cases.len(), report.failures.len());
    report.lines += &format!("vectors {layer}: {} passed, {failed} failed\n", all - failed);
    report
}

/// Runs one case.
///
/// # Errors
///
/// What failed: the case, the step, the key, what was expected there and what was seen.
pub fn run_case<A: Adapter>(unit: Unit, case: &Case) -> Result<(), String> {
    let result = catch_unwind(AssertUnwindSafe(|| on_paused_clock(Runner::<A>::run(unit, case))));
    result
        .unwrap_or_else(|panic| Err(format!("panicked: {}", message(&*panic))))
        .map_err(|error| format!("case {}: {error}", case.id))
}

/// Steps begin an hour after the runtime, so that a call that ends at 0 had time to take place.
const BASE: Duration = Duration::from_secs(3600);

struct Runner<'a, A> {
    adapter: A,
    unit: Unit,
    base: Instant,
    case: &'a Case,
    /// What is seen later, and of which step.
    later: FuturesUnordered<LocalBoxFuture<'static, (usize, Value)>>,
}

impl<'a, A: Adapter> Runner<'a, A> {
    async fn run(unit: Unit, case: &'a Case) -> Result<(), String> {
        let base = Instant::now() + BASE;
        let config = Fields::new(case.config.clone());
        let adapter = A::build(&config).and_then(|adapter| config.all_read().map(|()| adapter));
        let adapter = adapter.map_err(|error| format!("config: {error}"))?;
        Runner { adapter, unit, base, case, later: FuturesUnordered::new() }.steps().await
    }

    async fn steps(mut self) -> Result<(), String> {
        let steps = self.timeline();
        let mut begins: Vec<_> = (0..steps.len())
            .map(|n| (self.at(&steps[n]).checked_sub(self.adapter.lead(&steps[n])), n))
            .filter(|(at, n)| *at != Some(self.at(&steps[*n])))
            .collect();
        begins.sort();
        let mut begins = begins.into_iter().peekable();

        for step in &steps {
            let at = self.at(step);
            while let Some((begin, n)) = begins.next_if(|(begin, _)| *begin <= Some(at)) {
                let begin = begin.ok_or_else(|| tell(&steps[n], "it begins before all time"))?;
                self.pass_until(begin).await?;
                within_a_month(self.adapter.begin(&steps[n]))
                    .await
                    .map_err(|error| tell(&steps[n], &error))?;
            }
            if !step.back {
                self.pass_until(at).await?;
            }
            for _ in 0..self.case.steps[step.index].repeat {
                if self.step(step).await? {
                    return self.finish().await;
                }
            }
        }
        self.finish().await
    }

    fn timeline(&self) -> Vec<Step> {
        let mut latest = 0;
        let step = |(index, raw): (usize, &RawStep)| {
            let back = raw.t.is_some_and(|t| t < latest);
            latest = raw.t.unwrap_or(latest).max(latest);
            // A step without a time happens at that of the one before it.
            let t = raw.t.or(Some(latest));
            Step { index, t, back, op: raw.op.clone(), args: Fields::new(raw.args.clone()) }
        };
        self.case.steps.iter().enumerate().map(step).collect()
    }

    fn at(&self, step: &Step) -> Instant {
        self.base + self.unit.duration(step.t.unwrap_or_default())
    }

    /// Does one step. True if the case ends with it.
    async fn step(&mut self, step: &Step) -> Result<bool, String> {
        let answer = within_a_month(self.adapter.step(step)).await.map_err(|error| tell(step, &error))?;
        step.args.all_read().map_err(|error| tell(step, &error))?;
        let last = matches!(answer, Answer::Last(_));
        match answer {
            Answer::Now(seen) | Answer::Last(seen) => self.see(step.index, &seen)?,
            Answer::Later(future) => {
                let index = step.index;
                self.later.push(Box::pin(async move { (index, future.await) }));
            }
        }
        self.see_all().await?;
        Ok(last)
    }

    fn see(&self, index: usize, seen: &Value) -> Result<(), String> {
        let raw = &self.case.steps[index];
        let Some(expect) = &raw.expect else { return Ok(()) };
        check(expect, seen).map_err(|error| format!("step {index} ({}): {error}", raw.op))
    }

    /// Polls what is seen later, and checks what can be seen now.
    async fn see_all(&mut self) -> Result<(), String> {
        settle().await;
        let mut seen = Vec::new();
        poll_fn(|cx| {
            while let Poll::Ready(Some(item)) = Pin::new(&mut self.later).poll_next(cx) {
                seen.push(item);
            }
            Poll::Ready(())
        })
        .await;
        seen.iter().try_for_each(|(index, seen)| self.see(*index, seen))
    }

    /// Lets time pass. Timers count whole milliseconds, and a paused clock moves by whole milliseconds to the next of
    /// them: so by hand to the next whole one, asleep to the last one, and by hand again for the rest.
    async fn pass_until(&mut self, at: Instant) -> Result<(), String> {
        let past_a_millisecond = |instant: Instant| {
            Duration::from_nanos(u64::from((instant - (self.base - BASE)).subsec_nanos() % 1_000_000))
        };
        let now = Instant::now();
        let (odd, rest) = (past_a_millisecond(now), past_a_millisecond(at));
        let whole = now + (Duration::from_millis(1) - odd);
        if !odd.is_zero() && whole <= at {
            time::advance(whole - now).await;
            self.see_all().await?;
        }
        // Tokio's timers reach two years; a case may reach further.
        let far = Duration::from_secs(365 * 24 * 3600);
        while Instant::now() < at - rest {
            let mut sleep = Box::pin(time::sleep_until((at - rest).min(Instant::now() + far)));
            while let Some((index, seen)) = self.next_before(&mut sleep).await {
                self.see(index, &seen)?;
            }
        }
        time::advance(at.saturating_duration_since(Instant::now())).await;
        self.see_all().await
    }

    /// What is seen next, unless it is time before.
    async fn next_before(&mut self, sleep: &mut Pin<Box<time::Sleep>>) -> Option<(usize, Value)> {
        let later = &mut self.later;
        let next = poll_fn(|cx| match Pin::new(&mut *later).poll_next(cx) {
            // Nothing is left to see: only time can pass.
            Poll::Ready(None) => Poll::Pending,
            polled => polled,
        });
        match select(next, sleep).await {
            Either::Left((seen, _)) => seen,
            Either::Right(_) => None,
        }
    }

    /// Waits for what has not been seen yet.
    async fn finish(mut self) -> Result<(), String> {
        let mut day = Box::pin(time::sleep(Duration::from_secs(24 * 3600)));
        while !self.later.is_empty() {
            match self.next_before(&mut day).await {
                Some((index, seen)) => self.see(index, &seen)?,
                None => return Err(format!("{} step(s) had no end within a day", self.later.len())),
            }
        }
        Ok(())
    }
}

fn tell(step: &Step, error: &str) -> String {
    format!("step {} ({}): {error}", step.index, step.op)
}
