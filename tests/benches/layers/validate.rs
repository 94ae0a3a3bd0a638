//! The validation layer: what it costs to look at what passes, for one parse of the same bytes.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
    pin::pin,
    task::{Context, Poll, Waker},
};

use bartizan_validate::{
    Answers, Json, Level, Pattern, Pii, ResponseFormat, Rules, Schema, Severity, Terms, Validate, Validator,
    Window, at, content_type, max_bytes, must, strings, text, well_formed,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{Full, StreamBody};
use serde_json::{Value, json};
use tower::{Layer, Service, service_fn};

use crate::{
    inner::{Inner, calls_of},
    measure::{Contender, Plan},
    report::Table,
};

pub(crate) fn compare(plan: Plan) -> Vec<Table> {
    vec![values(plan), requests(plan), terms(plan), forms(plan), streams(plan)]
}

fn values(plan: Plan) -> Table {
    let none = Validator::new(Rules::new());
    let rules = || (0..5).fold(Rules::new(), |rules, _| rules.error("it", must("it", |_: &_| true)));
    let five = Validator::new(rules());
    let figures = plan.on_two_threads(&[
        Contender::new("no layer", |_| calls_of(Inner)),
        Contender::new("ours, no rule", |_| calls_of(none.layer(Level::Strict).layer(Inner))),
        Contender::new("ours, 5 closures", |_| calls_of(five.layer(Level::Strict).layer(Inner))),
    ]);
    Table::new("A value passes", "no layer", figures)
}

const PARSE: &str = "serde_json to a Value, once";

fn requests(plan: Plan) -> Table {
    let body = conversation(&json!({"type": "text"}));
    let terms = || Terms::new(["nightfall", "red door", "blue moon"]).expect("they are terms");
    let deny = |pattern| Pattern::deny(pattern).expect("it is a pattern");
    let schema = json!({
        "required": ["model", "messages"],
        "properties": {
            "model": {"type": "string"},
            "messages": {"type": "array", "items": {"required": ["role"], "properties": {"role": {"enum": ["system", "user", "assistant"]}}}},
        },
    });
    let schema = || Schema::new(&schema).expect("it is a schema");
    let head =
        || Rules::new().error("type", content_type(["application/json"])).error("size", max_bytes(1 << 20));
    let as_it_stands = Validator::http(
        head()
            .error("json", well_formed(64))
            .error("terms", text(terms()))
            .error("pii", text(Pii::all()))
            .error("secret", text(deny("(?i)project x")))
            .error("word", text(deny("confidential"))),
    );
    let read = |rules: Rules<Value>| Validator::http(head().json(Json::new(), rules));
    let no_rule = read(Rules::new());
    let of_strings = read(
        Rules::new()
            .error("terms", strings(terms()))
            .error("pii", strings(Pii::all()))
            .error("secret", strings(deny("(?i)project x")))
            .error("word", strings(deny("confidential")))
            .error("anchored", at("/messages/*/content", deny("^ignore"))),
    );
    let of_schema = read(Rules::new().error("schema", schema()));
    let all = read(
        Rules::new()
            .error("schema", schema())
            .error("terms", strings(terms()))
            .error("pii", strings(Pii::all()))
            .error("secret", strings(deny("(?i)project x")))
            .error("word", strings(deny("confidential"))),
    );
    let plan = long(plan);
    let figures = plan.on_one_thread(&[
        Contender::new(PARSE, |_| parses(&body)),
        Contender::new("5 rules for the text as it stands", |_| asks(&as_it_stands, &body)),
        Contender::new("no rule for its JSON", |_| asks(&no_rule, &body)),
        Contender::new("5 rules for its strings", |_| asks(&of_strings, &body)),
        Contender::new("a schema", |_| asks(&of_schema, &body)),
        Contender::new("a schema and 4 rules for its strings", |_| asks(&all, &body)),
    ]);
    let note = format!("A conversation of {} bytes and 40 messages.", body.len());
    Table::new("A request of 8 KiB passes", PARSE, figures).note(note)
}

fn terms(plan: Plan) -> Table {
    let body = conversation(&json!({"type": "text"}));
    let of = |n: usize| {
        let terms = (0..n).map(|n| format!("{}{n}", ["quartz", "vermilion", "zeppelin", "wormwood"][n % 4]));
        Validator::http(Rules::new().error("terms", text(Terms::new(terms).expect("they are terms"))))
    };
    let (ten, hundred, thousand) = (of(10), of(100), of(1_000));
    let plan = long(plan);
    let figures = plan.on_one_thread(&[
        Contender::new("10 terms", |_| asks(&ten, &body)),
        Contender::new("100 terms", |_| asks(&hundred, &body)),
        Contender::new("1,000 terms", |_| asks(&thousand, &body)),
        Contender::new(PARSE, |_| parses(&body)),
    ]);
    Table::new("Terms in a text of 8 KiB", "10 terms", figures)
}

fn forms(plan: Plan) -> Table {
    let schema = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {
        "type": "object", "required": ["items"], "additionalProperties": false,
        "properties": {"items": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}}},
    }}});
    let (plain, asking) = (conversation(&json!({"type": "text"})), conversation(&schema));
    let none = Validator::http(Rules::<Request<Bytes>>::new());
    let formed = Validator::http(Rules::new()).structured("form", Severity::Error, ResponseFormat::chat());
    let text = json!({"items": vec![json!({"n": 7}); 100]}).to_string();
    let answer = Bytes::from(json!({"choices": [{"message": {"content": text}}]}).to_string());
    let plan = long(plan);
    let figures = plan.on_one_thread(&[
        Contender::new(PARSE, |_| parses(&asking)),
        Contender::new("no rule", |_| asks(&none, &asking)),
        Contender::new("no form is asked for", |_| asks(&formed, &plain)),
        Contender::new("a schema is asked for, known, and the answer fits", |_| {
            let (mut service, asking) = (answering(&formed, answer.clone()), asking.clone());
            move |calls| (0..calls).for_each(|_| call(&mut service, &asking))
        }),
        Contender::new("an answer is parsed, and the text in it", |_| {
            let answer = answer.clone();
            move |calls| {
                for _ in 0..calls {
                    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
                    let text = answer["choices"][0]["message"]["content"].as_str().expect("text");
                    black_box(serde_json::from_str::<Value>(text).expect("JSON"));
                }
            }
        }),
    ]);
    Table::new("A request of 8 KiB asks for a form, the answer has 1 KiB", PARSE, figures)
}

/// A frame of 50 bytes is one "call" of the table, of streams of a thousand.
fn streams(plan: Plan) -> Table {
    const PASSED: &str = "no rule";
    let event = |n: usize| {
        let delta = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [
            {"index": 0, "delta": {"content": format!("and word {n} ")}, "finish_reason": null},
        ]});
        Bytes::from(format!("data: {delta}\n\n"))
    };
    let events: Vec<_> = (0..FRAMES).map(event).collect();
    let raw: Vec<_> =
        (0..FRAMES).map(|n| Bytes::from(format!("{:50}", format!("a line of text, number {n}")))).collect();
    let rules = || {
        Rules::new()
            .error("secrets", Pii::new().secrets())
            .error("word", Pattern::deny("confidential").expect("it is a pattern"))
    };
    let none = Validator::http(Rules::<Request<Bytes>>::new());
    let window = Validator::http(Rules::new()).window(Window::default(), rules());
    let text = Validator::http(Rules::new()).events(Window::default(), rules());
    let form = Validator::http(Rules::new()).structured("form", Severity::Warn, ResponseFormat::chat());
    let asks_for_object = Bytes::from_static(br#"{"response_format":{"type":"json_object"}}"#);
    let nothing = Bytes::new();
    let plan = Plan { batch: Some(if plan.quick { 1 } else { 50 } * FRAMES as u64), ..plan };
    let figures = plan.on_one_thread(&[
        Contender::new(PASSED, |_| frames(&none, &raw, "text/plain", &nothing)),
        Contender::new("a window of 1 KiB, 2 rules", |_| frames(&window, &raw, "text/plain", &nothing)),
        Contender::new("an event, no rule", |_| frames(&none, &events, "text/event-stream", &nothing)),
        Contender::new("an event is parsed to a Value", |_| {
            let events = events.clone();
            move |calls| {
                for n in 0..calls {
                    let event = &events[n as usize % FRAMES];
                    let data = &event["data: ".len()..event.len() - 2];
                    black_box(serde_json::from_slice::<Value>(data).expect("JSON"));
                }
            }
        }),
        Contender::new("an event, 2 rules for what events add up to", |_| {
            frames(&text, &events, "text/event-stream", &nothing)
        }),
        Contender::new("an event of a text whose form was asked for", |_| {
            frames(&form, &events, "text/event-stream", &asks_for_object)
        }),
    ]);
    Table::new("A frame of a stream", PASSED, figures)
}

const FRAMES: usize = 1_000;

/// Fewer calls where each of them takes long.
fn long(plan: Plan) -> Plan {
    Plan { batch: Some(if plan.quick { 10 } else { 200 }), ..plan }
}

/// What people write, about 8 KiB of it.
fn conversation(format: &Value) -> Bytes {
    let message = |n: u32| {
        let role = if n.is_multiple_of(2) { "user" } else { "assistant" };
        let content = format!(
            "In step {n} we look at \"the usual\" ways of doing it: at 9:30 the train leaves,\nthe price is about {n}0 @ a \
             piece, and nobody minds the weather."
        );
        json!({"role": role, "content": content})
    };
    let messages: Vec<_> = (0..40).map(message).collect();
    let body = json!({"model": "m", "temperature": 0.7, "messages": messages, "response_format": format});
    Bytes::from(body.to_string())
}

fn parses(body: &Bytes) -> impl FnMut(u64) + Send + use<> {
    let body = body.clone();
    move |calls| {
        for _ in 0..calls {
            black_box(serde_json::from_slice::<Value>(black_box(&body)).expect("it is JSON"));
        }
    }
}

fn asks<A>(validator: &Validator<Request<Bytes>, A>, body: &Bytes) -> impl FnMut(u64) + Send + use<A>
where
    A: Answers<Response<Full<Bytes>>, Checking: Send> + Send + 'static,
{
    let (mut service, body) = (answering(validator, Bytes::new()), body.clone());
    move |calls| (0..calls).for_each(|_| call(&mut service, &body))
}

/// Gives one answer to everything.
#[derive(Clone)]
struct Below(Bytes);

impl Service<Request<Bytes>> for Below {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Full<Bytes>>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Bytes>) -> Self::Future {
        ready(Ok(Response::new(Full::new(self.0.clone()))))
    }
}

fn answering<A: Clone>(
    validator: &Validator<Request<Bytes>, A>,
    answer: Bytes,
) -> Validate<Below, Request<Bytes>, A> {
    validator.layer(Level::Strict).layer(Below(answer))
}

fn call<S: Service<Request<Bytes>>>(service: &mut S, body: &Bytes) {
    let request = Request::builder().header("content-type", "application/json").body(body.clone());
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(service.poll_ready(cx).is_ready());
    let passes = matches!(pin!(service.call(request.expect("it is a request"))).poll(cx), Poll::Ready(Ok(_)));
    assert!(passes, "it passes, at once");
}

fn frames<A>(
    validator: &Validator<Request<Bytes>, A>,
    frames: &[Bytes],
    content_type: &'static str,
    request: &Bytes,
) -> impl FnMut(u64) + Send + use<A>
where
    A: Answers<Response<Stream>, Checking: Send> + Send + 'static,
    A::Response: IntoBody,
{
    let frames = frames.to_vec();
    let inner = service_fn(move |_: Request<Bytes>| {
        let frames: Frames = frames.clone().into_iter().map(Frame::data as fn(Bytes) -> Frame<Bytes>).map(Ok);
        let body = StreamBody::new(futures_util::stream::iter(frames));
        ready(Ok::<_, Infallible>(
            Response::builder().header("content-type", content_type).body(body).expect("it is a response"),
        ))
    });
    let mut service = validator.layer(Level::Lenient).layer(inner);
    let request = request.clone();
    move |calls| {
        for _ in 0..calls / FRAMES as u64 {
            let cx = &mut Context::from_waker(Waker::noop());
            assert!(service.poll_ready(cx).is_ready());
            let call = pin!(service.call(Request::new(request.clone())));
            let Poll::Ready(Ok(response)) = call.poll(cx) else { panic!("it passes, at once") };
            let mut body = pin!(response.into_body());
            while let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(cx) {
                assert!(frame.is_ok(), "all of it passes");
            }
        }
    }
}

type Frames = std::iter::Map<
    std::iter::Map<std::vec::IntoIter<Bytes>, fn(Bytes) -> Frame<Bytes>>,
    fn(Frame<Bytes>) -> Result<Frame<Bytes>, Infallible>,
>;
type Stream = StreamBody<futures_util::stream::Iter<Frames>>;

/// A response with a body, whichever.
trait IntoBody {
    type Body: Body<Data = Bytes>;

    fn into_body(self) -> Self::Body;
}

impl<B: Body<Data = Bytes>> IntoBody for Response<B> {
    type Body = B;

    fn into_body(self) -> B {
        self.into_body()
    }
}
