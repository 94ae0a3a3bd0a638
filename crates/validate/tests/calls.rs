//! The layer around services of values.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bartizan_core::{BoxError, Rejected, RejectionKind, RetryAfter};
use bartizan_validate::{
    Found, Level, OnRuleError, Part, Policy, Report, Rules, Severity, Stats, Validator, must,
};
use futures_util::FutureExt;
use proptest::prelude::*;
use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};

fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("ready at once")
}

fn positive() -> Rules<i64> {
    Rules::new().error("positive", must("above zero", |n: &i64| *n > 0))
}

fn echo() -> impl Service<i64, Response = i64, Error = Infallible, Future: Send> + Clone {
    service_fn(|n: i64| std::future::ready(Ok(n)))
}

#[test]
fn a_refusal_tells_why() {
    let validator = Validator::new(positive().warn("small", must("below ten", |n: &i64| *n < 10).at("/n")));
    let error = now(validator.layer(Level::Strict).layer(echo()).oneshot(-1)).unwrap_err();
    let refusal = Rejected::find(&*error).unwrap();
    assert_eq!((refusal.kind(), refusal.layer()), (RejectionKind::Invalid, "validate"));
    assert_eq!(refusal.retry_after(), RetryAfter::Never);
    let report = Report::find(&*error).unwrap();
    assert_eq!(report.part(), Part::Request);
    assert_eq!(report.to_string(), "the request: positive: above zero");

    let error = now(validator.layer(Level::Strict).layer(echo()).oneshot(11)).unwrap_err();
    let violation = &Report::find(&*error).unwrap().violations()[0];
    assert_eq!((violation.rule(), violation.pointer()), ("small", "/n"));
    assert_eq!(violation.severity(), Some(Severity::Warn));
    assert_eq!(validator.stats(), Stats { refused_requests: 2, ..Stats::default() });
}

#[test]
fn answers_are_checked_and_errors_are_left_alone() {
    let validator =
        Validator::new(Rules::new()).answers(Rules::new().error("even", must("even", |n: &i64| n % 2 == 0)));
    let inner =
        service_fn(|n: i64| std::future::ready(if n == 0 { Err(BoxError::from("down")) } else { Ok(n) }));
    let service = validator.layer(Level::Moderate).layer(inner);
    assert_eq!(now(service.clone().oneshot(2)).unwrap(), 2);
    assert_eq!(now(service.clone().oneshot(0)).unwrap_err().to_string(), "down");
    let error = now(service.clone().oneshot(3)).unwrap_err();
    assert_eq!(Report::find(&*error).unwrap().part(), Part::Response);
    assert_eq!(Rejected::find(&*error).unwrap().kind(), RejectionKind::InvalidAnswer);
    assert_eq!(
        Rejected::find(&*error).unwrap().retry_after(),
        RetryAfter::Unknown,
        "another answer may pass"
    );
    assert_eq!(now(validator.layer(Level::Lenient).layer(echo()).oneshot(3)).unwrap(), 3);
    let stats = Stats { refused_responses: 1, reported: 1, ..Stats::default() };
    assert_eq!(validator.stats(), stats);
}

#[test]
fn what_passes_is_told() {
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let rules = positive().on_report({
        let told = told.clone();
        move |n: &mut i64, report| told.lock().unwrap().push(format!("{n}: {report}"))
    });
    let validator = Validator::new(rules);
    assert_eq!(now(validator.layer(Level::Lenient).layer(echo()).oneshot(-1)).unwrap(), -1);
    now(validator.layer(Level::Moderate).layer(echo()).oneshot(-2)).unwrap_err();
    assert_eq!(*told.lock().unwrap(), ["-1: the request: positive: above zero"]);
}

#[test]
fn a_rule_that_panics_poisons_nothing() {
    let rules = Rules::new()
        .warn(
            "bug",
            must("never", |n: &i64| {
                assert!(*n != 7, "the rule has a bug");
                true
            }),
        )
        .error("positive", must("above zero", |n: &i64| *n > 0));
    let validator = Validator::new(rules);
    let at = |policy: Policy, n| now(validator.layer(policy).layer(echo()).oneshot(n));
    for level in [Level::Strict, Level::Moderate] {
        let error = at(level.into(), 7).unwrap_err();
        assert!(Report::find(&*error).unwrap().violations()[0].is_failure());
        assert!(at(Policy::new(level).on_rule_error(OnRuleError::Open), 7).is_ok());
    }
    assert!(at(Level::Lenient.into(), 7).is_ok());
    assert!(at(Policy::new(Level::Lenient).on_rule_error(OnRuleError::Closed), 7).is_err());
    assert!(at(Level::Strict.into(), 1).is_ok());
    assert!(at(Level::Moderate.into(), -1).is_err(), "the rules behind it are asked");
    assert_eq!(validator.stats().failures, 6);
}

#[test]
fn a_refusal_gives_readiness_back() {
    let validator = Validator::new(positive());
    let limited = ConcurrencyLimitLayer::new(1).layer(echo());
    let mut service = validator.layer(Level::Strict).layer(limited);
    let mut other = service.clone();
    now(service.ready()).unwrap();
    assert!(other.ready().now_or_never().is_none(), "there is one permit");
    let refused = service.call(-1);
    assert!(now(other.ready()).is_ok(), "and it is back before the refusal is polled");
    assert!(now(refused).is_err());
}

#[test]
fn switched_off_and_on_for_all_layers() {
    let validator = Validator::new(positive());
    let service = validator.layer(Level::Strict).layer(echo());
    validator.clone().disable();
    assert!(!validator.is_enabled());
    assert!(now(service.clone().oneshot(-1)).is_ok());
    validator.enable();
    assert!(now(service.oneshot(-1)).is_err());
}

#[test]
fn what_is_decided_is_not_asked_on() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let rules = positive().error("count", move |_: &i64, found: &mut Found<'_>| {
        count.fetch_add(1, Relaxed);
        found.violation("", "always");
    });
    assert_eq!(rules.check(&-1, Policy::new(Level::Moderate).first()).violations().len(), 1);
    assert_eq!(asked.load(Relaxed), 0);
    assert_eq!(rules.check(&-1, Level::Moderate).violations().len(), 2);
}

#[test]
fn a_report_is_bounded() {
    let many =
        |_: &i64, found: &mut Found<'_>| (0..100).for_each(|n| found.violation(&format!("/{n}"), "bad"));
    let rules = Rules::new().max_violations(3).warn("many", many).safety("last", must("no", |_: &i64| false));
    let report = rules.check(&0, Level::Lenient);
    assert_eq!((report.violations().len(), report.left_out()), (3, 98));
    assert!(report.refuses(), "what is left out refuses as well");
    assert!(report.to_string().ends_with("; and 98 more"));
}

#[test]
fn what_is_of_no_use_cannot_be_built() {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    let panics = |build: &dyn Fn()| catch_unwind(AssertUnwindSafe(build)).is_err();
    assert!(panics(&|| drop(Rules::new().warn("", must("x", |_: &i64| true)))));
    assert!(panics(&|| drop(Rules::<i64>::new().max_violations(0))));
}

fn severity() -> impl Strategy<Value = Severity> {
    prop::sample::select(vec![Severity::Warn, Severity::Error, Severity::Safety])
}

proptest! {
    /// Against the sentence: strict refuses on any severity, moderate on error and safety, lenient on safety; all that is
    /// broken is told in order; with `first`, the first that refuses, or else the first.
    #[test]
    fn levels_and_severities(
        rules in prop::collection::vec((severity(), any::<bool>()), 0..6),
        level in prop::sample::select(vec![(Level::Strict, 0), (Level::Moderate, 1), (Level::Lenient, 2)]),
        first: bool,
    ) {
        let built = rules.iter().enumerate().fold(Rules::new(), |all, (n, (severity, holds))| {
            let holds = *holds;
            all.rule(&n.to_string(), *severity, must("it", move |_: &()| holds))
        });
        let policy = Policy::new(level.0);
        let report = built.check(&(), if first { policy.first() } else { policy });
        let broken: Vec<_> = rules.iter().enumerate().filter(|(_, rule)| !rule.1).collect();
        let refusing = broken.iter().find(|(_, (severity, _))| *severity as usize >= level.1);
        let expected: Vec<_> = match (first, refusing) {
            (false, _) => broken.iter().map(|(n, _)| n.to_string()).collect(),
            (true, refusing) => refusing.or(broken.first()).iter().map(|(n, _)| n.to_string()).collect(),
        };
        let told: Vec<_> = report.violations().iter().map(|violation| violation.rule().to_owned()).collect();
        prop_assert_eq!(told, expected);
        prop_assert_eq!(report.refuses(), refusing.is_some());
    }
}
