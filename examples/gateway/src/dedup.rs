//! Which requests are not sent twice, and which answers are given again.
//!
//! One table for all models and workers. A request is the same as another if method, path and body say the same, and the
//! same tenant asks; and whether other models may answer. Workers share calls, too: whoever is polled drives one, wherever
//! its sockets and timers are, which is why a worker's runtime goes on until all workers have served.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bartizan_core::{Ending, Guard, GuardedBody, sse::Decoder};
use bartizan_dedup::{Frames, Key, Recording, Replay, RequestKey, Served};
use bartizan_provider::{Tenant, UsageReport};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body::Body;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json};
use tower::{Layer, ServiceExt};

use crate::{
    ask::{Ask, erased},
    config::Config,
    fallbacks::{FALLBACK, StoodIn},
    rate_limits::facts,
};

/// What is asked for now and was answered lately: what all workers of a gateway share.
#[derive(Debug)]
pub(crate) struct Dedup {
    handle: bartizan_dedup::Dedup<Key, Recording, Frames>,
    models: Arc<HashSet<String>>,
    saved_tokens: Arc<AtomicU64>,
}

/// As much as a provider reads of an answer that is not streamed, so that nobody who reads one slowly lags behind.
const MAX_ANSWER: usize = 64 << 20;

/// What a model reads in the order in which it is written, or writes in it: JSON schemas, of OpenAI, vLLM, SGLang, llama.cpp
/// and Ollama, and what templates put into a prompt.
const IN_ORDER: [&str; 9] = [
    "response_format",
    "tools",
    "functions",
    "structured_outputs",
    "guided_json",
    "json_schema",
    "format",
    "chat_template_kwargs",
    "documents",
];

impl Dedup {
    /// `None` if no model wants it.
    ///
    /// # Panics
    ///
    /// If the configuration's times can never work; those of one that was loaded can.
    pub(crate) fn new(config: &Config) -> Option<Arc<Self>> {
        let models = config.models.iter().filter(|model| model.dedup);
        let models: HashSet<_> = models.map(|model| model.name.clone()).collect();
        let dedup = &config.dedup;
        let replay = if dedup.ttl.is_zero() {
            Replay::none()
        } else {
            Replay::ttl(dedup.ttl)
                .stale_while_revalidate(dedup.stale_while_revalidate)
                .stale_if_error(dedup.stale_if_error)
                .max_entries(dedup.max_entries)
                .max_bytes(dedup.max_bytes)
                .cache_when(is_worth_repeating)
        };
        (!models.is_empty()).then(|| {
            // Event streams say `no-cache` by custom.
            let frames = Frames::new().max_body(MAX_ANSWER).keep_no_cache().served();
            let handle = bartizan_dedup::Dedup::sharing(frames, replay);
            Arc::new(Self { handle, models: Arc::new(models), saved_tokens: Arc::default() })
        })
    }

    /// Sends on to `inner` what nobody asks already.
    pub(crate) fn around(&self, inner: Ask) -> Ask {
        let key = RequestKey::scoped_by(tenant as fn(&Request<Bytes>) -> Option<&str>)
            .header(FALLBACK)
            .in_order(IN_ORDER);
        let models = self.models.clone();
        let layer = self.handle.layer(move |request: &Request<Bytes>| {
            models.contains(facts(request).model()).then(|| key.of(request)).flatten()
        });
        let saved = self.saved_tokens.clone();
        erased(layer.layer(inner).map_response(move |response| count_savings(response, &saved)))
    }

    /// What there is to tell of it.
    pub(crate) fn describe(&self) -> Value {
        let stats = self.handle.stats();
        json!({
            "hits": stats.hits,
            "stale": stats.stale,
            "collapsed": stats.collapsed,
            "misses": stats.misses,
            "refreshes": stats.refreshes,
            "bypassed": stats.bypassed,
            "hit_rate": stats.hit_rate(),
            "saved_tokens": self.saved_tokens.load(Relaxed),
            "in_flight": stats.in_flight,
            "entries": stats.entries,
            "bytes": stats.bytes,
        })
    }

    /// Forgets all answers, and lets nobody join those that run.
    pub(crate) fn clear(&self) {
        self.handle.clear();
        tracing::info!("the kept answers were cleared by hand");
    }
}

/// Whether no call was made for this response, so that it has cost nothing.
pub(crate) fn is_shared<B>(response: &Response<B>) -> bool {
    response.extensions().get().copied().is_some_and(Served::is_shared)
}

/// Who may see the answer. All who have no name are one.
fn tenant(request: &Request<Bytes>) -> Option<&str> {
    Some(facts(request).tenant().map_or("", Tenant::as_str))
}

/// Counts what a shared answer would have cost, as far as it has told by its end.
fn count_savings<B>(
    mut response: Response<B>,
    saved: &Arc<AtomicU64>,
) -> Response<GuardedBody<B, Option<Saving>>>
where
    B: Body<Data = Bytes>,
{
    if let Some(Served::Hit { .. } | Served::Stale { .. }) = response.extensions().get() {
        forget_limits(response.headers_mut());
    }
    let report = response.extensions().get().filter(|_| is_shared(&response)).cloned();
    let saving = report.map(|report| Saving { report, saved: saved.clone() });
    response.map(|body| GuardedBody::new(body, saving))
}

/// What the upstream had left when it answered is not what it has now.
fn forget_limits(headers: &mut HeaderMap) {
    let told: Vec<_> = headers.keys().filter(|name| name.as_str().contains("ratelimit")).cloned().collect();
    told.iter().for_each(|name| _ = headers.remove(name));
}

/// Counts when it is dropped: whoever goes before the end of an answer was spared a call, too.
struct Saving {
    report: UsageReport,
    saved: Arc<AtomicU64>,
}

impl Guard for Saving {
    fn settle(self, _: Ending<'_>) {}
}

impl Drop for Saving {
    fn drop(&mut self) {
        if let Some(usage) = self.report.get() {
            self.saved.fetch_add(usage.total_tokens, Relaxed);
        }
    }
}

/// Whether an answer that is complete is a good one, of the model that was asked: every choice says why it ends, and none that
/// it was cut short. One of many is enough to spoil it.
fn is_worth_repeating(recording: &Recording) -> bool {
    let kind = recording.headers().get(CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
    let is_stream = kind.get(..STREAM.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(STREAM));
    let data = recording.data();
    let stood_in = recording.extensions().get::<StoodIn>().is_some();
    recording.status() == StatusCode::OK
        && !stood_in
        && if is_stream { is_good_stream(data) } else { is_good_document(&data.concat()) }
}

const STREAM: &[u8] = b"text/event-stream";

/// What is looked at in a document or an event.
#[derive(Deserialize)]
struct Told<'a> {
    error: Option<IgnoredAny>,
    #[serde(borrow)]
    choices: Option<Vec<Choice<'a>>>,
    /// Of embeddings.
    data: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default)]
    index: u64,
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
}

impl Choice<'_> {
    /// Whether it ends here, and well; `None` if it is cut short.
    fn ends(&self) -> Option<bool> {
        match self.finish_reason.as_deref() {
            Some("length" | "content_filter") => None,
            reason => Some(reason.is_some()),
        }
    }
}

fn is_good_document(json: &[u8]) -> bool {
    match serde_json::from_slice(json) {
        Ok(Told { error: None, choices: Some(choices), .. }) => {
            !choices.is_empty() && choices.iter().all(|choice| choice.ends() == Some(true))
        }
        Ok(Told { error: None, choices: None, data }) => data.is_some(),
        _ => false,
    }
}

fn is_good_stream(data: Vec<Bytes>) -> bool {
    let mut decoder = Decoder::new(usize::MAX);
    data.into_iter().for_each(|data| decoder.push(data));
    // It is whole, so what follows a last `\r` can only end its event.
    decoder.push(Bytes::from_static(b"\n"));
    let mut ended = HashMap::new();
    while let Ok(Some(event)) = decoder.next_event() {
        // A comment.
        let Some(data) = event.data() else { continue };
        if data.trim_ascii() == b"[DONE]" {
            return !ended.is_empty() && ended.into_values().all(|ended| ended);
        }
        let Ok(Told { error: None, choices: Some(choices), .. }) = serde_json::from_slice(&data) else {
            return false;
        };
        for choice in choices {
            let Some(ends) = choice.ends() else { return false };
            *ended.entry(choice.index).or_insert(false) |= ends;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> bool {
        is_good_document(text.as_bytes())
    }

    /// Of these events, in pieces that respect none of them.
    fn stream(events: &[&str]) -> bool {
        let text: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
        let pieces = |size| text.as_bytes().chunks(size).map(Bytes::copy_from_slice).collect();
        let verdict = is_good_stream(pieces(usize::MAX));
        assert_eq!(is_good_stream(pieces(7)), verdict);
        verdict
    }

    #[test]
    fn documents_that_are_worth_repeating() {
        assert!(document(r#"{"choices":[{"index":0,"finish_reason":"stop","message":{"content":"hi"}}]}"#));
        assert!(document(r#"{"error":null,"choices":[{"finish_reason":"tool_calls"}]}"#));
        assert!(document(r#"{"object":"list","data":[{"embedding":[1]}]}"#));
    }

    #[test]
    fn documents_that_are_not() {
        for text in [
            r#"{"choices":[{"finish_reason":"length"}]}"#,
            r#"{"choices":[{"finish_reason":"content_filter"}]}"#,
            r#"{"choices":[{"finish_reason":"stop"},{"index":1,"finish_reason":"length"}]}"#,
            r#"{"choices":[{"finish_reason":null}]}"#,
            r#"{"choices":[{}]}"#,
            r#"{"choices":[]}"#,
            r#"{"error":{"message":"no"},"choices":[{"finish_reason":"stop"}]}"#,
            r#"{"error":{"message":"no"},"data":[]}"#,
            r#"{"id":"x"}"#,
            r#"{"choices":[{"finish_reason":"stop"}]"#,
            "",
        ] {
            assert!(!document(text), "{text}");
        }
    }

    #[test]
    fn streams_that_are_worth_repeating() {
        let (begin, stop) = (
            r#"{"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}"#,
            r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
        );
        let other = r#"{"choices":[{"index":1,"delta":{},"finish_reason":"st\u006fp"}]}"#;
        let usage = r#"{"choices":[],"usage":{"total_tokens":7}}"#;
        assert!(stream(&[begin, stop, "[DONE]"]));
        assert!(stream(&[begin, other, stop, usage, "[DONE]"]));
        assert!(is_good_stream(vec![Bytes::from(format!(": hi\r\n\r\ndata: {stop}\r\rdata: [DONE]\r\r"))]));

        let error = r#"{"error":{"message":"overloaded"}}"#;
        for events in [
            &[begin, stop][..],
            &[begin, "[DONE]"],
            &["[DONE]"],
            &[usage, "[DONE]"],
            &[],
            &[begin, error, stop, "[DONE]"],
            &[begin, stop, error, "[DONE]"],
            &[begin, stop, "garbage", "[DONE]"],
            &[begin, stop, r#"{"object":"error","message":"overloaded"}"#, "[DONE]"],
            &[begin, &stop.replace("stop", "length"), "[DONE]"],
            &[begin, other, &stop.replace("stop", "length"), "[DONE]"],
            &[begin, &stop.replace("stop", "content_filter"), "[DONE]"],
            &[begin, &other.replace("\"st\\u006fp\"", "null"), stop, "[DONE]"],
        ] {
            assert!(!stream(events), "{events:?}");
        }
    }
}
