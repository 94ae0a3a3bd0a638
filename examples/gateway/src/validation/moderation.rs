//! A moderation endpoint as a rule, as OpenAI's `/v1/moderations` is one.

use std::{collections::BTreeMap, sync::Arc};

use bartizan_core::BoxError;
use bartizan_provider::HttpTransport;
use bartizan_validate::{Found, Inquiry};
use bytes::Bytes;
use http::{
    HeaderValue, Request,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use http_body_util::{BodyExt, Full, Limited};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::timeout;
use tower::{ServiceExt, service_fn};

use crate::config::Moderation;

/// What is no text of anybody's, or none that such an endpoint reads.
const SKIPPED: [&str; 14] = [
    "created",
    "data",
    "detail",
    "encoding_format",
    "file_data",
    "id",
    "model",
    "object",
    "role",
    "service_tier",
    "system_fingerprint",
    "tool_call_id",
    "type",
    "url",
];

/// A longer answer is none.
const MAX_ANSWER: usize = 1 << 20;

/// A rule that asks about all texts of a request or an answer at once.
pub(super) fn of_whole(
    name: &str,
    moderation: &Arc<Moderation>,
    transport: &HttpTransport,
) -> Inquiry<Value> {
    let question = |value: &Value| {
        let mut texts = Vec::new();
        gather(value, "", &mut texts);
        (!texts.is_empty()).then_some(texts)
    };
    Inquiry::new(question, service(name, moderation, transport), tell).within(moderation.within)
}

/// A rule that asks about a window of a stream.
pub(super) fn of_window(name: &str, moderation: &Arc<Moderation>, transport: &HttpTransport) -> Inquiry<str> {
    let question = |text: &str| {
        let text = text.trim();
        (!text.is_empty()).then(|| vec![(String::new(), text.to_owned())])
    };
    Inquiry::new(question, service(name, moderation, transport), tell).within(moderation.within)
}

/// Texts, each with the JSON pointer to it.
type Texts = Vec<(String, String)>;

fn gather(value: &Value, pointer: &str, texts: &mut Texts) {
    match value {
        Value::String(text) if !text.trim().is_empty() => texts.push((pointer.to_owned(), text.clone())),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                gather(item, &format!("{pointer}/{index}"), texts);
            }
        }
        Value::Object(members) => {
            for (name, member) in members.iter().filter(|(name, _)| !SKIPPED.contains(&name.as_str())) {
                gather(member, &format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1")), texts);
            }
        }
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Where something was flagged, and as what.
type Flagged = Vec<(String, String)>;

fn tell(flagged: &Flagged, found: &mut Found<'_>) {
    for (pointer, message) in flagged {
        found.violation(pointer, message.clone());
    }
}

fn service(
    name: &str,
    moderation: &Arc<Moderation>,
    transport: &HttpTransport,
) -> impl tower::Service<Texts, Response = Flagged, Error = BoxError, Future: Send>
+ Clone
+ Send
+ Sync
+ 'static
+ use<> {
    let (name, moderation, transport): (Arc<str>, _, _) =
        (name.into(), moderation.clone(), transport.clone());
    service_fn(move |texts: Texts| {
        let (name, moderation, transport) = (name.clone(), moderation.clone(), transport.clone());
        async move {
            let asking = timeout(moderation.within, ask(transport, &moderation, texts));
            let answer = asking.await.unwrap_or_else(|late| Err(late.into()));
            answer.inspect_err(|error| tracing::warn!(rule = &*name, %error, "a moderation endpoint failed"))
        }
    })
}

#[derive(Serialize)]
struct Question<'a> {
    input: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
}

#[derive(Deserialize)]
struct Answer {
    results: Vec<Verdict>,
}

#[derive(Deserialize)]
struct Verdict {
    flagged: bool,
    #[serde(default)]
    categories: BTreeMap<String, Value>,
}

async fn ask(transport: HttpTransport, moderation: &Moderation, texts: Texts) -> Result<Flagged, BoxError> {
    let question = Question {
        input: texts.iter().map(|(_, text)| text.as_str()).collect(),
        model: moderation.model.as_deref(),
    };
    let mut request = Request::post(format!("{}/moderations", moderation.url))
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(&question)?)))?;
    if let Some(key) = &moderation.api_key {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", key.secret.expose_secret()))?;
        value.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, value);
    }
    let response = transport.oneshot(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await?.to_bytes();
    if !status.is_success() {
        return Err(format!("it answered with status {}", status.as_u16()).into());
    }
    // The error would quote what is wrong, which may be what was asked about.
    let Ok(Answer { results }) = serde_json::from_slice(&body) else {
        return Err("its answer has no results".into());
    };
    if results.len() != texts.len() {
        return Err("its answer has not one result for each text".into());
    }
    let flagged = texts.into_iter().zip(results).filter(|(_, verdict)| verdict.flagged);
    Ok(flagged.map(|((pointer, _), verdict)| (pointer, verdict.describe())).collect())
}

impl Verdict {
    fn describe(&self) -> String {
        let is_name = |name: &&str| {
            name.len() <= 64
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-/ ".contains(&byte))
        };
        let held = self.categories.iter().filter(|(_, held)| **held == Value::Bool(true));
        let names: Vec<_> = held.map(|(name, _)| name.as_str()).filter(is_name).take(16).collect();
        if names.is_empty() {
            "it is flagged".to_owned()
        } else {
            format!("it is flagged: {}", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_and_where_they_are() {
        let value = json!({
            "model": "m", "messages": [
                {"role": "user", "content": "a"},
                {"role": "user", "content": [
                    {"type": "text", "text": "b"}, {"type": "image_url", "image_url": {"url": "data:,"}},
                ]},
                {"role": "assistant", "content": " ", "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                ]},
            ],
            "metadata": {"a/b": "c"}, "n": 1,
        });
        let mut texts = Vec::new();
        gather(&value, "", &mut texts);
        texts.sort();
        let expected = [
            ("/messages/0/content", "a"),
            ("/messages/1/content/0/text", "b"),
            ("/messages/2/tool_calls/0/function/arguments", "{}"),
            ("/messages/2/tool_calls/0/function/name", "f"),
            ("/metadata/a~1b", "c"),
        ];
        assert_eq!(texts, expected.map(|(pointer, text)| (pointer.to_owned(), text.to_owned())));
    }

    #[test]
    fn categories_are_names_or_nothing() {
        let describe = |categories: Value| {
            serde_json::from_value::<Verdict>(json!({"flagged": true, "categories": categories}))
                .unwrap()
                .describe()
        };
        let all =
            json!({"violence/graphic": true, "hate": false, "self-harm": true, "odd\n": true, "score": 0.9});
        assert_eq!(describe(all), "it is flagged: self-harm, violence/graphic");
        assert_eq!(describe(json!({})), "it is flagged");
    }
}
