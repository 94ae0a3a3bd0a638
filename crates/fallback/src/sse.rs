//! When a stream of server-sent events has begun to say something.

use std::{fmt, sync::Arc};

use bartizan_core::{BoxError, sse::Decoder};
use bytes::Bytes;
use http::{header::CONTENT_TYPE, response::Parts};
use serde_json::Value;

use crate::{Commit, Step, Watch};

/// The first event with data commits. Comments, and events without data, are waited out; a stream that ends before, fails.
///
/// Responses that are no event streams, or no success, pass as they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct FirstEvent;

impl Commit for FirstEvent {
    type Watch = EventWatch;

    fn watch(&self, head: &Parts) -> Option<EventWatch> {
        is_event_stream(head).then(|| EventWatch { decoder: Some(decoder()) })
    }
}

/// Looks at a stream for [`FirstEvent`].
#[derive(Debug)]
pub struct EventWatch {
    /// Gone once it has committed.
    decoder: Option<Decoder>,
}

impl Watch for EventWatch {
    fn chunk(&mut self, chunk: &Bytes) -> Step {
        step(&mut self.decoder, chunk, |_| Step::Commit)
    }

    fn end(&mut self) -> Result<(), BoxError> {
        match self.decoder {
            Some(_) => Err("the stream ended before its first event".into()),
            None => Ok(()),
        }
    }
}

/// The first event with content commits, in the words of OpenAI's API: text, reasoning, a call of a tool, or the reason why
/// the model stops. An event that tells the role only, or the usage, is waited out, and so are comments.
///
/// An event that is an error, or not JSON, fails; so does a stream that ends without content. One that ends later without
/// `data: [DONE]` ends with an error, which is the caller's. Responses that are no event streams, or no success, pass as
/// they are.
///
/// ```
/// use bartizan_fallback::{Commit, LlmEvents, Step, Watch};
/// use http::Response;
///
/// let (head, ()) = Response::builder().header("content-type", "text/event-stream").body(()).unwrap().into_parts();
/// let mut watch = LlmEvents::new().watch(&head).expect("it is a stream of events");
/// let role = r#"data: {"choices":[{"delta":{"role":"assistant","content":""}}]}"#;
/// assert!(matches!(watch.chunk(&format!("{role}\n\n").into()), Step::Wait));
/// let word = r#"data: {"choices":[{"delta":{"content":"Hello"}}]}"#;
/// assert!(matches!(watch.chunk(&format!("{word}\n\n").into()), Step::Commit));
/// assert!(watch.end().is_err(), "it must not end here");
/// ```
#[derive(Clone, Default)]
pub struct LlmEvents {
    error: Option<Arc<Interpret>>,
}

/// What the data of an event means that is an error.
type Interpret = dyn Fn(&[u8]) -> BoxError + Send + Sync;

impl LlmEvents {
    /// Errors are told by their message.
    pub const fn new() -> Self {
        Self { error: None }
    }

    /// What an event that is an error means: the cause of the failure, made of the event's data. By default it is the
    /// message.
    #[must_use]
    pub fn error(mut self, interpret: impl Fn(&[u8]) -> BoxError + Send + Sync + 'static) -> Self {
        self.error = Some(Arc::new(interpret));
        self
    }
}

impl Commit for LlmEvents {
    type Watch = LlmWatch;

    fn watch(&self, head: &Parts) -> Option<LlmWatch> {
        is_event_stream(head).then(|| LlmWatch {
            decoder: Some(decoder()),
            last: Tail::default(),
            error: self.error.clone(),
        })
    }
}

impl fmt::Debug for LlmEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LlmEvents")
    }
}

/// Looks at a stream for [`LlmEvents`].
pub struct LlmWatch {
    /// Gone once it has committed.
    decoder: Option<Decoder>,
    last: Tail,
    error: Option<Arc<Interpret>>,
}

impl fmt::Debug for LlmWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LlmWatch")
            .field("committed", &self.decoder.is_none())
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

impl Watch for LlmWatch {
    fn chunk(&mut self, chunk: &Bytes) -> Step {
        self.last.add(chunk);
        step(&mut self.decoder, chunk, |data| judge(data, self.error.as_deref()))
    }

    fn pass(&mut self, chunk: &Bytes) {
        self.last.add(chunk);
    }

    fn end(&mut self) -> Result<(), BoxError> {
        if self.decoder.is_some() {
            return Err("the stream ended before it had said anything".into());
        }
        match self.last.is(DONE) {
            true => Ok(()),
            false => Err("the stream ended without data: [DONE]".into()),
        }
    }
}

const DONE: &[u8] = b"[DONE]";

fn judge(data: &[u8], interpret: Option<&Interpret>) -> Step {
    if data.trim_ascii() == DONE {
        return Step::Reject("the stream ended before it had said anything".into());
    }
    let Ok(Value::Object(event)) = serde_json::from_slice(data) else {
        return Step::Reject("an event of the stream is no JSON object".into());
    };
    if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
        let message = error.get("message").and_then(Value::as_str).or_else(|| error.as_str());
        let told = || message.unwrap_or("the stream began with an error").into();
        return Step::Reject(interpret.map_or_else(told, |interpret| interpret(data)));
    }
    let choices = event.get("choices").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if choices.iter().any(says_something) { Step::Commit } else { Step::Wait }
}

/// Text, reasoning, tools: whatever a delta says but whose turn it is. Of completions that are no chat, the text.
fn says_something(choice: &Value) -> bool {
    let of_delta = |delta: &serde_json::Map<String, Value>| {
        delta.iter().any(|(key, value)| key != "role" && !is_nothing(value))
    };
    !is_nothing(&choice["finish_reason"])
        || !is_nothing(&choice["text"])
        || choice["delta"].as_object().is_some_and(of_delta)
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// What the events that are complete with this chunk mean, the first of them that means anything.
fn step(decoder: &mut Option<Decoder>, chunk: &Bytes, judge: impl Fn(&[u8]) -> Step) -> Step {
    let Some(events) = decoder else { return Step::Commit };
    events.push(chunk.clone());
    loop {
        let step = match events.next_event() {
            Ok(Some(event)) => match event.data() {
                Some(data) => judge(&data),
                None => Step::Wait,
            },
            Ok(None) => return Step::Wait,
            Err(error) => Step::Reject(error.into()),
        };
        match step {
            Step::Wait => {}
            Step::Commit => {
                *decoder = None;
                return Step::Commit;
            }
            reject @ Step::Reject(_) => return reject,
        }
    }
}

/// Events are bounded by what may be held back at all.
fn decoder() -> Decoder {
    Decoder::new(usize::MAX)
}

fn is_event_stream(head: &Parts) -> bool {
    let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    head.status.is_success() && essence.eq_ignore_ascii_case("text/event-stream")
}

/// The last bytes of a stream, but for white space at its end.
#[derive(Default)]
struct Tail {
    bytes: [u8; 8],
    len: usize,
}

impl Tail {
    fn add(&mut self, chunk: &[u8]) {
        let chunk = chunk.trim_ascii_end();
        let fresh = &chunk[chunk.len().saturating_sub(self.bytes.len())..];
        let kept = self.len.min(self.bytes.len() - fresh.len());
        self.bytes.copy_within(self.len - kept..self.len, 0);
        self.bytes[kept..kept + fresh.len()].copy_from_slice(fresh);
        self.len = kept + fresh.len();
    }

    fn is(&self, end: &[u8]) -> bool {
        self.bytes[..self.len].ends_with(end)
    }
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tail").field(&self.bytes[..self.len].escape_ascii()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(kind: &str, status: u16) -> Parts {
        http::Response::builder().status(status).header("content-type", kind).body(()).unwrap().into_parts().0
    }

    fn llm() -> LlmWatch {
        LlmEvents::new().watch(&head("text/event-stream; charset=utf-8", 200)).unwrap()
    }

    fn told(data: &str) -> &'static str {
        match llm().chunk(&format!("data: {data}\n\n").into()) {
            Step::Wait => "wait",
            Step::Commit => "commit",
            Step::Reject(_) => "reject",
        }
    }

    #[test]
    fn what_is_content_and_what_is_not() {
        for data in [
            r#"{"choices":[{"delta":{"content":"Hello"}}]}"#,
            r#"{"choices":[{"delta":{"role":"assistant","content":"Hello"}}]}"#,
            r#"{"choices":[{"delta":{}},{"delta":{"content":"of the second"}}]}"#,
            r#"{"choices":[{"delta":{"reasoning_content":"Hm"}}]}"#,
            r#"{"choices":[{"delta":{"refusal":"No"}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#,
            r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#,
            r#"{"choices":[{"text":"Hello"}]}"#,
            r#"{"error":null,"choices":[{"text":"Hello"}]}"#,
        ] {
            assert_eq!(told(data), "commit", "{data}");
        }
        for data in [
            r#"{"choices":[{"delta":{"role":"assistant"}}]}"#,
            r#"{"choices":[{"delta":{"role":"assistant","content":"","refusal":null,"tool_calls":[]}}]}"#,
            r#"{"choices":[{"delta":{},"finish_reason":null}]}"#,
            r#"{"choices":[],"usage":{"total_tokens":7}}"#,
            r#"{"choices":[],"prompt_filter_results":[{"prompt_index":0}]}"#,
            r"{}",
        ] {
            assert_eq!(told(data), "wait", "{data}");
        }
        for data in [
            r#"{"error":{"message":"overloaded"}}"#,
            r#"{"error":"overloaded"}"#,
            "[DONE]",
            "what?",
            "[1]",
            "{",
        ] {
            assert_eq!(told(data), "reject", "{data}");
        }
    }

    #[test]
    fn comments_are_waited_out_and_errors_are_told() {
        let mut watch = llm();
        assert!(matches!(watch.chunk(&Bytes::from(": keep alive\n\nevent: ping\n\n")), Step::Wait));
        let error = Bytes::from("data: {\"error\":{\"message\":\"the engine is overloaded\"}}\n\n");
        let Step::Reject(error) = watch.chunk(&error) else { panic!("it is an error") };
        assert_eq!(error.to_string(), "the engine is overloaded");
        assert!(
            llm().end().is_err() && FirstEvent.watch(&head("text/event-stream", 200)).unwrap().end().is_err()
        );
    }

    #[test]
    fn what_is_no_stream_passes() {
        for (kind, status) in [("application/json", 200), ("text/event-stream", 500), ("", 200)] {
            assert!(LlmEvents::new().watch(&head(kind, status)).is_none(), "{kind} {status}");
            assert!(FirstEvent.watch(&head(kind, status)).is_none(), "{kind} {status}");
        }
    }

    const STREAM: &str = ": hello\r\n\r\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\r\n\r\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"Grüße\"}}]}\r\n\r\ndata: [DONE]\r\n\r\n";

    proptest! {
        /// However it is cut into chunks: it commits where the first content is complete, and may end behind its end.
        #[test]
        fn the_split_does_not_matter(cuts in prop::collection::btree_set(1..STREAM.len(), 0..30)) {
            let mut watch = llm();
            let (mut from, mut committed) = (0, None);
            for to in cuts.into_iter().chain([STREAM.len()]) {
                let chunk = Bytes::copy_from_slice(&STREAM.as_bytes()[from..to]);
                if committed.is_some() {
                    watch.pass(&chunk);
                } else if matches!(watch.chunk(&chunk), Step::Commit) {
                    committed = Some(to);
                }
                from = to;
            }
            let content = STREAM.find("data: [DONE]").unwrap();
            prop_assert!(committed.is_some_and(|at| at >= content), "{committed:?}");
            prop_assert!(watch.end().is_ok());
        }

        #[test]
        fn a_tail_is_the_end_of_all(chunks in prop::collection::vec("[a-c ]{0,12}", 0..12)) {
            let mut tail = Tail::default();
            chunks.iter().for_each(|chunk| tail.add(chunk.as_bytes()));
            let all: String = chunks.iter().map(|chunk| chunk.trim_end()).collect();
            prop_assert!(all.as_bytes().ends_with(&tail.bytes[..tail.len]));
            prop_assert!(tail.len == all.len().min(8));
        }
    }
}
