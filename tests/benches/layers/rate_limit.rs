//! Rate limiters: ours, one written by hand, tower's, governor in a small layer, and tower-resilience's.

use std::{
    convert::Infallible,
    fmt,
    future::Ready,
    num::NonZeroU32,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bartizan_core::BoxError;
use bartizan_rate_limit::{Limit, Quota, RateLimitLayer, RateLimiter};
use bartizan_tests::alloc::allocations;
use governor::{
    DefaultDirectRateLimiter, DefaultKeyedRateLimiter,
    clock::{Clock, MonotonicClock},
    middleware::NoOpMiddleware,
    state::{InMemoryState, NotKeyed, keyed::DashMapStateStore},
};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::{Layer, Service, limit::RateLimitLayer as TowersLayer};
use tower_resilience_ratelimiter::RateLimiterLayer as ResilienceLayer;

use crate::{
    inner::{Call, Inner, calls_of, refusals_of},
    measure::{Contender, Plan, drive},
    report::Table,
};

pub(crate) fn compare(plan: Plan) -> Vec<Table> {
    let mut tables = vec![admitted(plan), refused(plan)];
    tables.extend(keyed(plan));
    tables
}

const BASELINE: &str = "hand-written GCRA, one atomic";

/// Permits a second: more than any machine asks for.
const PLENTY: u32 = 1_000_000_000;

fn admitted(plan: Plan) -> Table {
    let quota = Quota::per_second(PLENTY.into()).burst(PLENTY.into());
    let ours = RateLimiter::new(quota);
    let (one, other) = (RateLimiter::new(quota), RateLimiter::new(quota));
    let hand_written = Gated::new(HandWritten::new(PLENTY, Duration::from_secs(1), PLENTY));
    let governor = Gated::new(Arc::new(DefaultDirectRateLimiter::direct(plenty_of_governor())));
    let governor_std =
        Gated::new(Arc::new(governor::RateLimiter::direct_with_clock(plenty_of_governor(), MonotonicClock)));
    let resilience = ResilienceLayer::builder()
        .limit_for_period(usize::MAX)
        .refresh_period(Duration::from_secs(1))
        .build()
        .expect("a valid configuration")
        .layer(Inner);

    let figures = plan.on_two_threads(&[
        Contender::new("no layer", |_| calls_of(Inner)),
        Contender::new(BASELINE, |_| calls_of(hand_written.clone())),
        Contender::new("ours", |_| calls_of(ours.layer().layer(Inner))),
        Contender::new("ours, queueing, a permit is there", |_| {
            calls_of(ours.layer().queue(10, Duration::MAX).layer(Inner))
        }),
        Contender::new("ours, all((a, b))", |_| {
            calls_of(RateLimitLayer::all((one.rule(), other.rule())).layer(Inner))
        }),
        Contender::new("tower RateLimit (1)", |_| {
            calls_of(TowersLayer::new(u64::MAX, Duration::from_secs(1)).layer(Inner))
        }),
        Contender::new("governor, in a layer (2)", |_| calls_of(governor.clone())),
        Contender::new("governor with std's clock, in a layer", |_| calls_of(governor_std.clone())),
        Contender::new("tower-resilience", |_| calls_of(resilience.clone())),
    ]);
    Table::new("Admitted, one limit for all calls", BASELINE, figures)
        .note("(1) is no Clone: each service, and each thread here, has a limit of its own.")
        .note("(2) reads the processor's time stamp counter by itself: no paused clock reaches it.")
}

fn refused(plan: Plan) -> Table {
    let ours = RateLimiter::new(Quota::per_hour(1));
    let tenants: RateLimiter<u64> = RateLimiter::keyed(Quota::per_hour(1));
    let by_tenant = RateLimitLayer::new(tenants.rule().by_ref(|call: &Call| Some(call)));
    let hand_written = HandWritten::new(1, Duration::from_secs(3600), 1);
    let an_hour = governor::Quota::per_hour(NonZeroU32::MIN);
    let direct = Arc::new(DefaultDirectRateLimiter::direct(an_hour));

    // The only permit goes first.
    assert!(ours.try_acquire(&(), 1).is_ok() && tenants.try_acquire(&0, 1).is_ok());
    assert!(hand_written.admit(&0).is_ok() && direct.check().is_ok());
    let (hand_written, direct) = (Gated::new(hand_written), Gated::new(direct));

    let figures = plan.on_one_thread(&[
        Contender::new(BASELINE, |_| refusals_of(hand_written.clone())),
        Contender::new("ours", |_| refusals_of(ours.layer().layer(Inner))),
        Contender::new("ours, by_ref", |_| refusals_of(by_tenant.layer(Inner))),
        Contender::new("governor, in a layer", |_| refusals_of(direct.clone())),
    ]);
    Table::new("Refused", BASELINE, figures)
        .note("Ours says which limit refused, and how long it has to be waited for; the others the latter.")
}

const KEYED_BASELINE: &str = "governor keyed, in a layer (2)";

fn keyed(plan: Plan) -> [Table; 2] {
    let keys: u64 = if plan.quick { 20_000 } else { 1_000_000 };
    let ours: RateLimiter<u64> = RateLimiter::keyed(
        Limit::from(Quota::per_second(PLENTY.into()).burst(PLENTY.into())).max_keys(usize::MAX),
    );
    let governor = Arc::new(DefaultKeyedRateLimiter::<u64>::keyed(plenty_of_governor()));
    // A key that is full can be forgotten, so each is charged for an hour as long as others come.
    let an_hour = u64::from(PLENTY) * 3600;
    let ((), of_ours) = allocations(|| (0..keys).for_each(|key| ours.settle(&key, 0, an_hour)));
    let ((), of_governor) =
        allocations(|| (0..keys).for_each(|key| assert!(governor.check_key(&key).is_ok())));
    let bytes = |live: i64| live / i64::try_from(keys).unwrap_or(i64::MAX) - 8;
    let memory = format!(
        "Bytes a key above the key: ours {}, governor {}.",
        bytes(of_ours.live),
        bytes(of_governor.live),
    );
    (0..keys).for_each(|key| ours.settle(&key, an_hour, 0));
    let governor_std = Arc::new(governor::RateLimiter::new(
        plenty_of_governor(),
        DashMapStateStore::<u64>::default(),
        MonotonicClock,
    ));
    (0..keys).for_each(|key| assert!(governor_std.check_key(&key).is_ok()));

    let by_key = RateLimitLayer::new(ours.rule().by_ref(|call: &Call| Some(call)));
    let (governor, governor_std) = (Gated::new(governor), Gated::new(governor_std));
    [("Zipf-like", zipf(keys)), ("uniform", uniform(keys))].map(|(how, draws)| {
        let figures = plan.on_two_threads(&[
            Contender::new(KEYED_BASELINE, |n| draws_of(governor.clone(), &draws, n)),
            Contender::new("governor keyed with std's clock, in a layer", |n| {
                draws_of(governor_std.clone(), &draws, n)
            }),
            Contender::new("ours, by_ref", |n| draws_of(by_key.layer(Inner), &draws, n)),
        ]);
        let title = format!("Admitted, {keys} keys, {how} draws");
        Table::new(title, KEYED_BASELINE, figures)
            .note(&memory)
            .note("(2) as above. Governor keeps no statistics.")
    })
}

fn plenty_of_governor() -> governor::Quota {
    let plenty = NonZeroU32::new(PLENTY).expect("more than 0");
    governor::Quota::per_second(plenty)
}

/// Calls with keys that were drawn before. Each thread begins somewhere else.
fn draws_of<S: Service<Call>>(mut service: S, draws: &[u32], thread: u64) -> impl FnMut(u64) {
    let mut draws = draws.iter().map(|&key| Call::from(key)).cycle();
    draws.by_ref().take(thread as usize * 300_000).for_each(drop);
    move |calls| drive(&mut service, draws.by_ref().take(calls as usize))
}

const DRAWS: usize = 1 << 20;

fn uniform(keys: u64) -> Vec<u32> {
    random().take(DRAWS).map(|random| (random * keys as f64) as u32).collect()
}

/// The k-th key is drawn about 1/k as often as the first. Neighbours in number are not neighbours in frequency.
fn zipf(keys: u64) -> Vec<u32> {
    let rank = |random: f64| (keys as f64).powf(random) as u64 - 1;
    random().take(DRAWS).map(|random| (rank(random) * 982_451_653 % keys) as u32).collect()
}

/// Numbers from 0 to 1, the same in every run.
fn random() -> impl Iterator<Item = f64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 53) as f64
    })
}

/// A limiter in a layer that one writes in an hour: refuses or passes on, with a future that has a name.
#[derive(Clone, Debug)]
struct Gated<L> {
    inner: Inner,
    limiter: L,
}

impl<L> Gated<L> {
    fn new(limiter: L) -> Self {
        Self { inner: Inner, limiter }
    }
}

/// What a [`Gated`] asks.
trait Admit {
    fn admit(&self, call: &Call) -> Result<(), Refused>;
}

impl<L: Admit> Service<Call> for Gated<L> {
    type Response = Call;
    type Error = BoxError;
    type Future = GatedFuture<Ready<Result<Call, Infallible>>>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, call: Call) -> Self::Future {
        match self.limiter.admit(&call) {
            Ok(()) => GatedFuture::Admitted { inner: self.inner.call(call) },
            Err(refused) => GatedFuture::Refused { refused },
        }
    }
}

pin_project! {
    #[project = GatedProjection]
    enum GatedFuture<F> {
        Admitted { #[pin] inner: F },
        Refused { refused: Refused },
    }
}

impl<F, T, E> Future for GatedFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            GatedProjection::Admitted { inner } => inner.poll(cx).map_err(Into::into),
            GatedProjection::Refused { refused } => Poll::Ready(Err((*refused).into())),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Refused(Duration);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "come back in {:?}", self.0)
    }
}

impl std::error::Error for Refused {}

/// GCRA in whole nanoseconds, with nothing else to it.
#[derive(Clone, Debug)]
struct HandWritten {
    tat: Arc<AtomicU64>,
    birth: Instant,
    permit: u64,
    burst: u64,
}

impl HandWritten {
    fn new(rate: u32, per: Duration, burst: u32) -> Self {
        let permit = per.as_nanos() as u64 / u64::from(rate);
        Self { tat: Arc::default(), birth: Instant::now(), permit, burst: permit * u64::from(burst) }
    }
}

impl Admit for HandWritten {
    #[inline]
    fn admit(&self, _: &Call) -> Result<(), Refused> {
        let now = (Instant::now() - self.birth).as_nanos() as u64;
        let mut tat = self.tat.load(Relaxed);
        loop {
            let next = tat.max(now) + self.permit;
            if next > now + self.burst {
                return Err(Refused(Duration::from_nanos(next - now - self.burst)));
            }
            match self.tat.compare_exchange_weak(tat, next, Relaxed, Relaxed) {
                Ok(_) => return Ok(()),
                Err(seen) => tat = seen,
            }
        }
    }
}

impl<C: Clock> Admit for Arc<governor::RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<C::Instant>>> {
    #[inline]
    fn admit(&self, _: &Call) -> Result<(), Refused> {
        self.check().map_err(|not_until| Refused(not_until.wait_time_from(self.clock().now())))
    }
}

impl<C: Clock> Admit
    for Arc<governor::RateLimiter<u64, DashMapStateStore<u64>, C, NoOpMiddleware<C::Instant>>>
{
    #[inline]
    fn admit(&self, call: &Call) -> Result<(), Refused> {
        self.check_key(call).map_err(|not_until| Refused(not_until.wait_time_from(self.clock().now())))
    }
}
