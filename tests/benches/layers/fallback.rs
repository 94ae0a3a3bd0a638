//! Fallbacks: ours, one written by hand, and tower-resilience's.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    task::{Context, Poll, ready as ready_or_wait},
    time::Duration,
};

use bartizan_core::BoxError;
use bartizan_fallback::{Fallback, Settings};
use pin_project_lite::pin_project;
use tower::{Layer, Service};
use tower_resilience_fallback::FallbackLayer as Resilience;

use crate::{
    inner::{Call, Inner, calls_of},
    measure::{Contender, Plan, drive},
    report::Table,
};

pub(crate) fn compare(plan: Plan) -> Vec<Table> {
    vec![first_answers(plan), first_answers_a_string(plan), first_fails(plan)]
}

const BASELINE: &str = "hand-written";
const AN_HOUR: Duration = Duration::from_secs(3600);

fn targets(settings: Settings) -> Fallback {
    Fallback::with(settings, ["first", "second", "third"])
}

fn first_answers(plan: Plan) -> Table {
    let ours = targets(Settings::new());
    let service = ours.layer("first").or("second", Inner).layer(Inner);
    let three = ours.layer("first").or("second", Inner).or("third", Inner).layer(Inner);
    let listed = ours.layer("first").or_each([("second", Inner), ("third", Inner)]).layer(Inner);
    let timed = targets(Settings::new().within(AN_HOUR));
    let timed = timed.layer("first").or("second", Inner).layer(Inner);
    let aside = targets(Settings::new());
    aside.put_aside("second", AN_HOUR);
    let aside = aside.layer("first").or("second", Inner).layer(Inner);
    let hand_written = HandWritten { first: Inner, second: Inner };
    let resilience = Resilience::<Call, Call, Infallible>::tower_service(Inner).layer(Inner);
    let resilience_value = Resilience::<Call, Call, Infallible>::value(7).layer(Inner);
    let figures = plan.on_two_threads(&[
        Contender::new("no layer", |_| calls_of(Inner)),
        Contender::new(BASELINE, |_| calls_of(hand_written.clone())),
        Contender::new("ours, two targets", |_| calls_of(service.clone())),
        Contender::new("ours, three targets", |_| calls_of(three.clone())),
        Contender::new("ours, one and a list of two", |_| calls_of(listed.clone())),
        Contender::new("ours, within a time", |_| calls_of(timed.clone())),
        Contender::new("ours, another target is left alone", |_| calls_of(aside.clone())),
        Contender::new("tower-resilience, to a service", |_| calls_of(resilience.clone())),
        Contender::new("tower-resilience, to a value", |_| calls_of(resilience_value.clone())),
    ]);
    Table::new("The first target answers; requests are numbers", BASELINE, figures)
}

/// Answers requests that take something to copy.
#[derive(Clone, Copy)]
struct Texts;

impl Service<String> for Texts {
    type Response = usize;
    type Error = Infallible;
    type Future = Ready<Result<usize, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, text: String) -> Self::Future {
        ready(Ok(text.len()))
    }
}

fn first_answers_a_string(plan: Plan) -> Table {
    let service = targets(Settings::new()).layer("first").or("second", Texts).layer(Texts);
    let hand_written = HandWritten { first: Texts, second: Texts };
    let resilience = Resilience::<String, usize, Infallible>::tower_service(Texts).layer(Texts);
    fn texts_of<S: Service<String>>(mut service: S) -> impl FnMut(u64) {
        let text = "x".repeat(64);
        move |calls| drive(&mut service, (0..calls).map(|_| text.clone()))
    }
    let figures = plan.on_one_thread(&[
        Contender::new("no layer", |_| texts_of(Texts)),
        Contender::new(BASELINE, |_| texts_of(hand_written.clone())),
        Contender::new("ours", |_| texts_of(service.clone())),
        Contender::new("tower-resilience, to a service", |_| texts_of(resilience.clone())),
    ]);
    Table::new("The first target answers; requests are strings of 64 bytes", BASELINE, figures)
}

/// Fails at once, with an error that takes no memory.
#[derive(Clone, Copy)]
struct Fails;

#[derive(Clone, Copy, Debug)]
struct Failed;

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("it fails")
    }
}

impl std::error::Error for Failed {}

impl Service<Call> for Fails {
    type Response = Call;
    type Error = Failed;
    type Future = Ready<Result<Call, Failed>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Call) -> Self::Future {
        ready(Err(Failed))
    }
}

fn first_fails(plan: Plan) -> Table {
    let service = targets(Settings::new()).layer("first").or("second", Inner).layer(Fails);
    let hand_written = HandWritten { first: Fails, second: Inner };
    let resilience = Resilience::<Call, Call, Failed>::tower_service(Inner).layer(Fails);
    let figures = plan.on_one_thread(&[
        Contender::new(BASELINE, |_| calls_of(hand_written.clone())),
        Contender::new("ours", |_| calls_of(service.clone())),
        Contender::new("tower-resilience, to a service", |_| calls_of(resilience.clone())),
    ]);
    Table::new("The first target fails, the second one answers", BASELINE, figures).note(
        "Ours boxes the error, which its classifier looks at, and keeps it until the call has been answered.",
    )
}

/// What one writes in an hour: copies the request, and sends the copy to the second service if the first one fails.
#[derive(Clone, Debug)]
struct HandWritten<A, B> {
    first: A,
    second: B,
}

impl<A, B, Req> Service<Req> for HandWritten<A, B>
where
    A: Service<Req, Error: Into<BoxError>>,
    B: Service<Req, Response = A::Response, Error: Into<BoxError>> + Clone,
    Req: Clone,
{
    type Response = A::Response;
    type Error = BoxError;
    type Future = Falling<A::Future, B, B::Future, Req>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.first.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let kept = Some((self.second.clone(), request.clone()));
        Falling { kept, stage: Stage::First { future: self.first.call(request) } }
    }
}

pin_project! {
    struct Falling<A, S, B, Req> {
        kept: Option<(S, Req)>,
        #[pin]
        stage: Stage<A, B>,
    }
}

pin_project! {
    #[project = StageProjection]
    enum Stage<A, B> {
        First { #[pin] future: A },
        Second { #[pin] future: B },
    }
}

impl<A, S, B, Req, Res, E> Future for Falling<A, S, B, Req>
where
    A: Future<Output = Result<Res, E>>,
    S: Service<Req, Response = Res, Future = B>,
    S::Error: Into<BoxError>,
    B: Future<Output = Result<Res, S::Error>>,
{
    type Output = Result<Res, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.stage.as_mut().project() {
                StageProjection::First { future } => {
                    if let Ok(response) = ready_or_wait!(future.poll(cx)) {
                        return Poll::Ready(Ok(response));
                    }
                }
                StageProjection::Second { future } => return future.poll(cx).map_err(Into::into),
            }
            let (second, _) = this.kept.as_mut().expect("polled after completion");
            ready_or_wait!(second.poll_ready(cx)).map_err(Into::into)?;
            let (mut second, request) = this.kept.take().expect("it was there just now");
            this.stage.set(Stage::Second { future: second.call(request) });
        }
    }
}
