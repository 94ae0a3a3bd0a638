use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use bartizan_core::sse::Decoder;
use bytes::Bytes;
use memchr::memmem;
use serde::Deserialize;

const NAME: &[u8] = b"\"usage\"";

/// How often a `"usage"` may turn out to be no usage before an answer is given up.
const MAX_TRIES: usize = 8;

/// The tokens that a call used, as the upstream counted them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Those of the request.
    pub prompt_tokens: u64,
    /// Those of the answer; an embedding has none.
    pub completion_tokens: u64,
    /// All of them. The sum of the others if the upstream does not say.
    pub total_tokens: u64,
}

/// Where a call's [`Usage`] appears once the upstream has told it.
///
/// [`Provider`](crate::Provider) puts one into the extensions of every successful answer that has a usage or, being a
/// stream, may still tell one. Clones show the same, so whoever settles an account takes one from the response and looks
/// when the body has ended.
///
/// A stream tells its usage with its last event, and only if the request asked for that with
/// `"stream_options":{"include_usage":true}`. Nobody asks in the caller's place, who would get an event that it did not
/// expect: then the usage stays unknown. Of an upstream that tells a running count the last one counts.
#[derive(Clone, Default)]
pub struct UsageReport(Arc<Mutex<Option<Usage>>>);

impl UsageReport {
    /// What the upstream has told so far, if anything.
    pub fn get(&self) -> Option<Usage> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn of(usage: Usage) -> Self {
        Self(Arc::new(Mutex::new(Some(usage))))
    }

    /// Takes note of what whole events tell.
    pub(crate) fn hear(&self, events: &Bytes) {
        if let Some(usage) = Usage::of_events(events) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(usage);
        }
    }
}

impl fmt::Debug for UsageReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UsageReport").field(&self.get()).finish()
    }
}

impl Usage {
    /// The usage that a JSON document tells. What is no usage counts as none.
    ///
    /// The document is searched, not parsed: in JSON the name with both its quotes cannot stand inside of a string, so
    /// the last object of this name is it.
    pub(crate) fn of_json(json: &[u8]) -> Option<Self> {
        let values = memmem::rfind_iter(json, NAME).filter_map(|at| value(&json[at + NAME.len()..]));
        values.filter(|value| value.starts_with(b"{")).take(MAX_TRIES).find_map(Self::read)
    }

    fn of_events(events: &Bytes) -> Option<Self> {
        // Events are taken apart only if one of them tells more than `null`, which every one does that has no usage.
        let told =
            |at: usize| value(&events[at + NAME.len()..]).is_none_or(|value| !value.starts_with(b"null"));
        if !memmem::find_iter(events, NAME).any(told) {
            return None;
        }
        let mut decoder = Decoder::new(usize::MAX);
        // They are whole, so what follows a last `\r` can only end it.
        decoder.push([events, &b"\n"[..]].concat().into());
        let events = std::iter::from_fn(|| decoder.next_event().ok().flatten());
        events.filter_map(|event| Self::of_json(&event.data()?)).last()
    }

    /// Reads the object at the beginning.
    fn read(json: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Told {
            prompt_tokens: Option<u64>,
            completion_tokens: Option<u64>,
            total_tokens: Option<u64>,
        }
        let Told { prompt_tokens, completion_tokens, total_tokens } =
            Told::deserialize(&mut serde_json::Deserializer::from_slice(json)).ok()?;
        if prompt_tokens.is_none() && total_tokens.is_none() {
            return None;
        }
        let prompt = prompt_tokens.unwrap_or(0);
        let completion = completion_tokens.unwrap_or(0);
        let total_tokens = total_tokens.unwrap_or(prompt.saturating_add(completion));
        Some(Self { prompt_tokens: prompt, completion_tokens: completion, total_tokens })
    }
}

/// What stands behind a name and its colon.
pub(crate) fn value(after_name: &[u8]) -> Option<&[u8]> {
    Some(after_name.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(json: &str) -> Option<u64> {
        Usage::of_json(json.as_bytes()).map(|usage| usage.total_tokens)
    }

    #[test]
    fn of_an_answer() {
        let usage = Usage { prompt_tokens: 7, completion_tokens: 5, total_tokens: 12 };
        let told =
            r#""usage" : {"prompt_tokens":7,"completion_tokens":5,"total_tokens":12,"details":{"a":[1]}}"#;
        assert_eq!(Usage::of_json(format!(r#"{{"choices":[],{told}}}"#).as_bytes()), Some(usage));
        assert_eq!(Usage::of_json(format!(r#"{{{told},"choices":[]}}"#).as_bytes()), Some(usage));
        // Embeddings have no completion, and some do not add up.
        assert_eq!(total(r#"{"data":[],"usage":{"prompt_tokens":8,"total_tokens":8}}"#), Some(8));
        assert_eq!(total(r#"{"usage":{"prompt_tokens":8,"completion_tokens":2}}"#), Some(10));
    }

    #[test]
    fn what_is_no_usage() {
        let huge = format!(r#"{{"usage":{{"prompt_tokens":1{}}}}}"#, "0".repeat(30));
        for json in [
            "",
            "{}",
            r#"{"usage":null}"#,
            r#"{"usage":{}}"#,
            r#"{"usage":{"prompt_tokens":-1,"total_tokens":3}}"#,
            r#"{"usage":{"prompt_tokens":"7"}}"#,
            r#"{"usage":[7]}"#,
            r#"{"usage":"#,
            r#"{"usage":{"prompt_tokens":7"#,
            r#"{"say":"usage"}"#,
            huge.as_str(),
        ] {
            assert_eq!(total(json), None, "{json}");
        }
    }

    #[test]
    fn a_model_cannot_forge_it() {
        let said = r#"{"usage":{"prompt_tokens":0,"total_tokens":0}}"#;
        let said = serde_json::to_string(said).unwrap();
        let json = format!(r#"{{"usage":{{"prompt_tokens":9}},"content":{said}}}"#);
        assert_eq!(total(&json), Some(9));
        let events = format!("data: {{\"usage\":null,\"content\":{said}}}\n\n");
        assert_eq!(Usage::of_events(&events.into()), None);
    }

    #[test]
    fn of_events_the_last_counts() {
        let report = UsageReport::default();
        report.hear(&Bytes::from("data: {\"usage\":null}\n\ndata: {\"a\":1}\n\n"));
        assert_eq!(report.get(), None);
        report.hear(&Bytes::from(
            "data: {\"usage\":{\"total_tokens\":1}}\n\ndata: {\"usage\":{\"total_tokens\":2}}\n\n",
        ));
        assert_eq!(report.get().map(|usage| usage.total_tokens), Some(2));
        // Over several lines, with garbage around, after null, and before the end.
        report.hear(&Bytes::from(
            "data: {\"usage\":null}\r\n\r\n: \"usage\":\r\n\r\ndata: {\"usage\"\r\ndata: :\r\ndata: {\"total_tokens\":\r\ndata: 3}}\r\n\r\ndata: [DONE]\r\n\r\n",
        ));
        assert_eq!(report.clone().get().map(|usage| usage.total_tokens), Some(3));
        report.hear(&Bytes::from("data: {\"usage\":{\"total_tokens\":-4}}\n\n"));
        assert_eq!(report.get().map(|usage| usage.total_tokens), Some(3), "no usage changes nothing");
    }
}
