//! The conformance vectors, one test a layer; and the runner itself.

use std::{collections::HashMap, time::Duration};

use bartizan_tests::vectors::{self, Adapter, Answer, Case, Fields, Step, Unit};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

#[path = "vectors/batch.rs"]
mod batch;
#[path = "vectors/circuit_breaker.rs"]
mod circuit_breaker;
#[path = "vectors/dedup.rs"]
mod dedup;
#[path = "vectors/fallback.rs"]
mod fallback;
#[path = "vectors/health.rs"]
mod health;
#[path = "vectors/rate_limit.rs"]
mod rate_limit;
#[path = "vectors/validation.rs"]
mod validation;

#[test]
fn batch() {
    vectors::run::<batch::Batching>("batch");
}

#[test]
fn circuit_breaker() {
    vectors::run::<circuit_breaker::Breaker>("circuit_breaker");
}

#[test]
fn dedup() {
    vectors::run::<dedup::Deduplication>("dedup");
}

#[test]
fn fallback() {
    vectors::run::<fallback::Fallbacks>("fallback");
}

#[test]
fn health() {
    vectors::run::<health::Healthy>("health");
}

#[test]
fn rate_limit() {
    vectors::run::<rate_limit::RateLimit>("rate_limit");
}

#[test]
fn validation() {
    vectors::run::<validation::Validation>("validation");
}

/// Named as the directory's files; a layer without its adapter has at least cases that can be read.
const LAYERS: [&str; 7] =
    ["batch", "circuit_breaker", "dedup", "fallback", "health", "rate_limit", "validation"];

#[test]
fn every_file_is_in_the_schema() {
    for layer in LAYERS {
        let file = vectors::read(layer).unwrap_or_else(|error| panic!("{error}"));
        assert!(!file.semantics.is_empty(), "{layer} has no semantics");
        for case in &file.cases {
            assert!(!case.steps.is_empty(), "{layer} {} has no steps", case.id);
        }
    }
}

/// A counter with a bound, which knows how late it is: enough of a layer to show what the runner does.
struct Counter {
    most: u64,
    count: u64,
    start: Instant,
    begun: HashMap<usize, Instant>,
}

impl Counter {
    fn seen(&self) -> Value {
        let now = self.start.elapsed() - Duration::from_secs(3600);
        json!({"count": self.count, "now": u64::try_from(now.as_nanos()).unwrap()})
    }
}

impl Adapter for Counter {
    fn build(config: &Fields) -> Result<Self, String> {
        Ok(Self { most: config.need("most")?, count: 0, start: Instant::now(), begun: HashMap::new() })
    }

    fn lead(&self, step: &Step) -> Duration {
        step.args.get("dur").ok().flatten().map_or(Duration::ZERO, Duration::from_nanos)
    }

    async fn begin(&mut self, step: &Step) -> Result<(), String> {
        self.begun.insert(step.index, Instant::now());
        Ok(())
    }

    async fn step(&mut self, step: &Step) -> Result<Answer, String> {
        match step.op.as_str() {
            "count" => {
                self.count = (self.count + step.args.get("n")?.unwrap_or(1)).min(self.most);
                Ok(Answer::Now(self.seen()))
            }
            "took" => {
                let took = self.begun[&step.index].elapsed();
                Ok(Answer::Now(json!({"took": u64::try_from(took.as_nanos()).unwrap()})))
            }
            "wait" => {
                let ms: u64 = step.args.need("ms")?;
                let begin = Instant::now();
                Ok(Answer::Later(Box::pin(async move {
                    sleep(Duration::from_millis(ms)).await;
                    json!({"end": u64::try_from(begin.elapsed().as_millis()).unwrap()})
                })))
            }
            "back" => Ok(Answer::Now(json!({"back": step.back, "t": step.t}))),
            "last" => Ok(Answer::Last(json!({}))),
            "panic" => panic!("the adapter panics"),
            _ => step.unknown(),
        }
    }
}

fn run(steps: &Value) -> Result<(), String> {
    run_with(&json!({"most": 10}), steps)
}

fn run_with(config: &Value, steps: &Value) -> Result<(), String> {
    let case = json!({
        "id": "C-1", "title": "a case", "tier": "must", "agree": "all", "src": [], "config": config, "steps": steps,
    });
    let case: Case = serde_json::from_value(case).map_err(|error| error.to_string())?;
    vectors::run_case::<Counter>(Unit::Ns, &case)
}

#[test]
fn every_case_of_a_file_is_run() {
    let case = |id, most| {
        let step = json!({"t": 0, "op": "count", "n": 5, "expect": {"count": 3}});
        json!({
            "id": id, "title": "up to three", "tier": "should", "agree": "all", "src": [],
            "config": {"most": most}, "steps": [step],
        })
    };
    let file = json!({
        "schema": "rv/1", "layer": "counter", "unit": "ms", "semantics": [],
        "cases": [case("C-1", 3), case("C-2", 4), case("C-3", 3), case("C-4", 2)],
    });
    let report = vectors::run_file::<Counter>(&serde_json::from_value(file.clone()).unwrap());
    let expected = [
        "case C-2: step 0 (count): count: expected 3, got 4",
        "case C-4: step 0 (count): count: expected 3, got 2",
    ];
    assert_eq!(report.failures, expected);
    let lines = [
        "vector counter C-1 ok: up to three",
        "vector counter C-2 FAILED: up to three",
        "vector counter C-3 ok: up to three",
        "vector counter C-4 FAILED: up to three",
        "vectors counter: 2 passed, 2 failed\n",
    ];
    assert_eq!(report.lines, lines.join("\n"));

    let mut unknown = file;
    unknown["cases"][0]["rank"] = json!(1);
    let error = serde_json::from_value::<vectors::File>(unknown).unwrap_err();
    assert!(error.to_string().contains("unknown field `rank`"), "{error}");
}

#[test]
fn what_is_expected_passes() {
    run(&json!([
        {"t": 0, "op": "count", "expect": {"count": 1, "now": 0}},
        {"t": 0, "op": "count", "n": 2, "repeat": 2},
        {"t": 5, "op": "count", "expect": {"count": {"ge": 6, "le": 6}}},
        {"op": "count", "n": 9, "expect": {"count": {"in": [10, 11]}, "now": 5}},
    ]))
    .unwrap();
}

#[test]
fn time_is_exact_to_the_nanosecond() {
    run(&json!([
        {"t": 1, "op": "count", "expect": {"now": 1}},
        {"t": 999_999, "op": "count", "expect": {"now": 999_999}},
        {"t": 1_000_000, "op": "count", "expect": {"now": 1_000_000}},
        {"t": "9007199254740993", "op": "count", "expect": {"now": "9007199254740993"}},
        {"t": "900719925474099300", "op": "count", "expect": {"now": "900719925474099300"}},
    ]))
    .unwrap();
}

#[test]
fn a_mismatch_names_the_case_the_step_and_the_key() {
    let error =
        run(&json!([{"t": 0, "op": "count"}, {"t": 0, "op": "count", "expect": {"count": 3}}])).unwrap_err();
    assert_eq!(error, "case C-1: step 1 (count): count: expected 3, got 2");
}

#[test]
fn every_repetition_is_checked() {
    let error = run(&json!([{"t": 0, "op": "count", "repeat": 2, "expect": {"count": 1}}])).unwrap_err();
    assert_eq!(error, "case C-1: step 0 (count): count: expected 1, got 2");
}

#[test]
fn what_is_unknown_is_an_error() {
    let cases = [
        (run(&json!([{"t": 0, "op": "jump"}])), "step 0 (jump): unknown op \"jump\""),
        (run(&json!([{"t": 0, "op": "count", "m": 1}])), "step 0 (count): unknown key \"m\""),
        (
            run(&json!([{"t": 0, "op": "count", "expect": {"sum": 1}}])),
            "step 0 (count): sum: expected 1, got nothing",
        ),
        (run_with(&json!({"most": 1, "least": 0}), &json!([])), "config: unknown key \"least\""),
        (run_with(&json!({}), &json!([])), "config: most is missing"),
        (run(&json!([{"t": 0, "op": "panic"}])), "panicked: the adapter panics"),
    ];
    for (result, error) in cases {
        assert_eq!(result, Err(format!("case C-1: {error}")));
    }
    assert!(run(&json!([{"t": -1, "op": "count"}])).unwrap_err().contains("-1 is no time"));
}

#[test]
fn steps_at_one_time_run_side_by_side() {
    run(&json!([
        {"t": 0, "op": "wait", "ms": 20, "expect": {"end": 20}},
        {"t": 0, "op": "wait", "ms": 10, "expect": {"end": 10}},
        {"t": 0, "op": "count", "expect": {"now": 0}},
        {"t": 15_000_000, "op": "count", "expect": {"now": 15_000_000}},
    ]))
    .unwrap();

    let wait =
        |end| json!([{"t": 0, "op": "wait", "ms": 20, "expect": {"end": end}}, {"t": 0, "op": "count"}]);
    run(&wait(20)).unwrap();
    assert_eq!(run(&wait(21)).unwrap_err(), "case C-1: step 0 (wait): end: expected 21, got 20");
}

#[test]
fn a_step_without_an_end_is_an_error() {
    let error = run(&json!([{"t": 0, "op": "wait", "ms": 100_000_000}])).unwrap_err();
    assert_eq!(error, "case C-1: 1 step(s) had no end within a day");
}

#[test]
fn a_call_that_takes_its_time_begins_before() {
    run(&json!([
        {"t": 0, "op": "took", "dur": 4000, "expect": {"took": 4000}},
        {"t": 0, "op": "took", "dur": 5_000_000, "expect": {"took": 5_000_000}},
        {"t": 100, "op": "took", "dur": 50, "expect": {"took": 50}},
    ]))
    .unwrap();
}

#[test]
fn a_clock_that_goes_back_stands() {
    run(&json!([
        {"t": 7, "op": "back", "expect": {"back": false, "t": 7}},
        {"t": 3, "op": "back", "expect": {"back": true, "t": 3}},
        {"t": 7, "op": "count", "expect": {"now": 7}},
    ]))
    .unwrap();
}

#[test]
fn a_case_may_end_early() {
    run(&json!([{"t": 0, "op": "last"}, {"t": 0, "op": "jump"}])).unwrap();
}
