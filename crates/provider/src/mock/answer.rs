use std::{borrow::Cow, collections::VecDeque};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header::CONTENT_TYPE};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::script::Script;
use crate::{Class, Operation};

/// The date of everything, in Unix seconds: answers are the same tomorrow.
const CREATED: u64 = 1_700_000_000;

/// How long embeddings are unless the request says.
const DIMENSIONS: usize = 16;
const MAX_DIMENSIONS: usize = 4_096;
const MAX_INPUTS: usize = 2_048;

/// What to send.
pub(super) struct Answer {
    pub(super) head: Response<()>,
    pub(super) events: VecDeque<Bytes>,
    /// Whether the body is a stream, of which the length is not told beforehand.
    pub(super) streamed: bool,
}

/// What a request asks for.
pub(super) enum Asked<'a> {
    Chat(Chat<'a>),
    Embeddings(Embeddings<'a>),
    Models,
    Model(&'a str),
    Wrong(Wrong),
}

impl<'a> Asked<'a> {
    pub(super) fn read(method: &Method, path: &'a str, body: &'a [u8]) -> Self {
        match (Operation::of_path(path), method) {
            (Operation::Chat, &Method::POST) => read(body).map_or_else(Self::Wrong, Self::Chat),
            (Operation::Embeddings, &Method::POST) => read(body).map_or_else(Self::Wrong, Self::Embeddings),
            (Operation::Models, &Method::GET | &Method::HEAD) => match path.split_once("/models/") {
                Some((_, model)) => Self::Model(model),
                None => Self::Models,
            },
            (Operation::Other, _) => {
                Self::Wrong(Wrong::new(StatusCode::NOT_FOUND, format!("Invalid URL ({method} {path})")))
            }
            _ => Self::Wrong(Wrong::new(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("Not allowed to {method} on {path}"),
            )),
        }
    }

    pub(super) fn model(&self) -> Option<&str> {
        match self {
            Self::Chat(Chat { model, .. }) | Self::Embeddings(Embeddings { model, .. }) => Some(model),
            Self::Model(model) => Some(model),
            Self::Models | Self::Wrong(_) => None,
        }
    }

    fn streams(&self) -> bool {
        matches!(self, Self::Chat(Chat { stream: Some(true), .. }))
    }
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Wrong> {
    serde_json::from_slice(body).map_err(|error| {
        Wrong::new(StatusCode::BAD_REQUEST, format!("We could not parse the JSON body: {error}"))
    })
}

#[derive(Deserialize)]
pub(super) struct Chat<'a> {
    #[serde(borrow)]
    model: Cow<'a, str>,
    #[serde(borrow)]
    messages: Vec<Message<'a>>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    /// Looked into only where it is needed.
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

impl Message<'_> {
    /// The text, of a content that is a string or a list of parts.
    fn text(&self) -> String {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Content {
            Text(String),
            Parts(Vec<Part>),
            Other(serde::de::IgnoredAny),
        }
        #[derive(Deserialize)]
        struct Part {
            #[serde(default)]
            text: String,
        }
        match self.content.map(|raw| serde_json::from_str(raw.get())) {
            Some(Ok(Content::Text(text))) => text,
            Some(Ok(Content::Parts(parts))) => parts.into_iter().map(|part| part.text).collect(),
            Some(Ok(Content::Other(_)) | Err(_)) | None => String::new(),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct Embeddings<'a> {
    #[serde(borrow)]
    model: Cow<'a, str>,
    input: Input,
    dimensions: Option<usize>,
    #[serde(borrow)]
    encoding_format: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    Lists(Vec<Vec<u32>>),
}

impl Input {
    /// Every input as bytes: equal ones get equal vectors.
    fn all(self) -> Vec<Vec<u8>> {
        let bytes = |tokens: Vec<u32>| tokens.into_iter().flat_map(u32::to_le_bytes).collect();
        match self {
            Self::Text(text) => vec![text.into_bytes()],
            Self::Texts(texts) => texts.into_iter().map(String::into_bytes).collect(),
            Self::Tokens(tokens) => vec![bytes(tokens)],
            Self::Lists(lists) => lists.into_iter().map(bytes).collect(),
        }
    }
}

/// An error in OpenAI's shape. Written here and not with [`crate::Error`], which reads it in the tests.
pub(super) struct Wrong {
    status: StatusCode,
    message: String,
    param: Option<&'static str>,
    code: Option<&'static str>,
}

impl Wrong {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    fn param(self, param: &'static str) -> Self {
        Self { param: Some(param), ..self }
    }

    fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    fn no_model(model: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            format!("The model `{model}` does not exist or you do not have access to it."),
        )
        .param("model")
        .code("model_not_found")
    }

    fn json(&self) -> Vec<u8> {
        let error = serde_json::json!({"error": {
            "message": self.message,
            "type": Class::of_status(self.status).openai_type(),
            "param": self.param,
            "code": self.code,
        }});
        error.to_string().into_bytes()
    }
}

/// What `asked` gets, in the call of this number, where there are these models.
pub(super) fn answer(asked: Asked<'_>, models: Option<&[String]>, script: &Script, number: u64) -> Answer {
    let mut streamed = asked.streams();
    let mut status = StatusCode::OK;
    let wrong = script.status.filter(|status| status.as_u16() >= 400).map(|status| {
        let reason = status.canonical_reason().unwrap_or("No reason known");
        Wrong::new(status, format!("{reason}, as scripted"))
    });
    let events = match (&script.frames, wrong) {
        (Some(frames), _) => frames.iter().cloned().collect(),
        (None, Some(wrong)) => {
            streamed = false;
            VecDeque::from([wrong.json().into()])
        }
        (None, None) => reply(asked, models, script, number).unwrap_or_else(|wrong| {
            streamed = false;
            status = wrong.status;
            VecDeque::from([wrong.json().into()])
        }),
    };
    let mut head = Response::new(());
    *head.status_mut() = script.status.unwrap_or(status);
    let headers = head.headers_mut();
    let content_type = if streamed { "text/event-stream; charset=utf-8" } else { "application/json" };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    let request_id = HeaderValue::try_from(format!("req_mock_{number}")).expect("visible ASCII");
    headers.insert("x-request-id", request_id);
    // Replaces what stands here, and keeps what a script sets twice.
    headers.extend(script.headers.clone());
    Answer { head, events, streamed }
}

fn reply(
    asked: Asked<'_>,
    models: Option<&[String]>,
    script: &Script,
    number: u64,
) -> Result<VecDeque<Bytes>, Wrong> {
    if let (Some(model), Some(models)) = (asked.model(), models)
        && !models.iter().any(|known| known == model)
    {
        return Err(Wrong::no_model(model));
    }
    let one = |json: Vec<u8>| VecDeque::from([Bytes::from(json)]);
    match asked {
        Asked::Chat(chat) => chat_completion(&chat, script, number),
        Asked::Embeddings(request) => embeddings(request, script).map(one),
        Asked::Models => {
            let any = ["mock".to_owned()];
            let data: Vec<_> = models.unwrap_or(&any).iter().map(|id| Model::new(id)).collect();
            Ok(one(json(&List { object: "list", data, model: None, usage: None })))
        }
        Asked::Model(id) => Ok(one(json(&Model::new(id)))),
        Asked::Wrong(wrong) => Err(wrong),
    }
}

/// Strings, numbers and lists of them: there is nothing in them that could fail.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data always serializes")
}

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
}

impl<'a> Model<'a> {
    fn new(id: &'a str) -> Self {
        Self { id, object: "model", created: CREATED, owned_by: "bartizan-mock" }
    }
}

#[derive(Serialize)]
struct List<'a, T> {
    object: &'static str,
    data: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<EmbeddingUsage>,
}

#[derive(Serialize)]
struct EmbeddingUsage {
    prompt_tokens: u64,
    total_tokens: u64,
}

fn chat_completion(chat: &Chat<'_>, script: &Script, number: u64) -> Result<VecDeque<Bytes>, Wrong> {
    if chat.messages.is_empty() {
        return Err(Wrong::new(StatusCode::BAD_REQUEST, "[] is too short - 'messages'").param("messages"));
    }
    let text = match &script.text {
        Some(text) => Cow::Borrowed(text.as_str()),
        None => {
            let said = chat.messages.iter().rfind(|message| message.role == "user").map(Message::text);
            Cow::Owned(format!("You said: {}", said.unwrap_or_default()))
        }
    };
    let mut words: Vec<&str> = text.split_inclusive(' ').collect();
    if let Some(n) = script.words {
        words = if words.is_empty() { vec!["word "] } else { words }.into_iter().cycle().take(n).collect();
    }
    let most = chat.max_completion_tokens.or(chat.max_tokens).unwrap_or(usize::MAX);
    let finish = if words.len() > most { "length" } else { "stop" };
    words.truncate(most);

    let (prompt, completion) = script.usage.unwrap_or_else(|| {
        let said: usize =
            chat.messages.iter().filter_map(|message| message.content).map(|raw| raw.get().len()).sum();
        (said.div_ceil(4) as u64, words.len() as u64)
    });
    let usage = format!(
        r#"{{"prompt_tokens":{prompt},"completion_tokens":{completion},"total_tokens":{}}}"#,
        prompt.saturating_add(completion)
    );
    let model = quoted(&chat.model);
    let id = format!("chatcmpl-mock-{number}");
    if chat.stream != Some(true) {
        let content = quoted(&words.concat());
        let body = format!(
            r#"{{"id":"{id}","object":"chat.completion","created":{CREATED},"model":{model},"choices":[{{"index":0,"message":{{"role":"assistant","content":{content},"refusal":null,"annotations":[]}},"logprobs":null,"finish_reason":"{finish}"}}],"usage":{usage},"service_tier":"default","system_fingerprint":"fp_mock"}}"#
        );
        return Ok(VecDeque::from([body.into()]));
    }

    let include_usage = chat.stream_options.as_ref().and_then(|options| options.include_usage) == Some(true);
    let prefix = format!(
        r#"data: {{"id":"{id}","object":"chat.completion.chunk","created":{CREATED},"model":{model},"service_tier":"default","system_fingerprint":"fp_mock","choices":["#
    );
    let suffix = if include_usage { "],\"usage\":null}\n\n" } else { "]}\n\n" };
    let mut stream = Events::with_capacity(words.len() + 4, prefix.len() + 96);
    let delta = r#"{"index":0,"delta":"#;
    let more = r#","logprobs":null,"finish_reason":null}"#;
    stream.event(&[&prefix, delta, r#"{"role":"assistant","content":"","refusal":null}"#, more, suffix]);
    for word in words {
        stream.event(&[&prefix, delta, r#"{"content":"#, &quoted(word), "}", more, suffix]);
    }
    stream.event(&[&prefix, delta, r#"{},"logprobs":null,"finish_reason":""#, finish, "\"}", suffix]);
    if include_usage {
        stream.event(&[&prefix, r#"],"usage":"#, &usage, "}\n\n"]);
    }
    stream.event(&["data: [DONE]\n\n"]);
    Ok(stream.finish())
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string always serializes")
}

/// Events in one allocation, of which each is a slice.
struct Events {
    buffer: Vec<u8>,
    ends: Vec<usize>,
}

impl Events {
    fn with_capacity(events: usize, each: usize) -> Self {
        Self { buffer: Vec::with_capacity(events * each), ends: Vec::with_capacity(events) }
    }

    fn event(&mut self, parts: &[&str]) {
        for part in parts {
            self.buffer.extend_from_slice(part.as_bytes());
        }
        self.ends.push(self.buffer.len());
    }

    fn finish(self) -> VecDeque<Bytes> {
        let all = Bytes::from(self.buffer);
        let mut start = 0;
        let slice = |end| {
            let event = all.slice(start..end);
            start = end;
            event
        };
        self.ends.into_iter().map(slice).collect()
    }
}

fn embeddings(request: Embeddings<'_>, script: &Script) -> Result<Vec<u8>, Wrong> {
    #[derive(Serialize)]
    struct Embedding {
        object: &'static str,
        index: usize,
        embedding: Vector,
    }
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Vector {
        Floats(Vec<f32>),
        Base64(String),
    }
    let bad = |message: &str, param| Wrong::new(StatusCode::BAD_REQUEST, message).param(param);

    let dimensions = request.dimensions.unwrap_or(DIMENSIONS);
    if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
        return Err(bad("'dimensions' must be between 1 and 4096", "dimensions"));
    }
    let base64 = match request.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(bad("'encoding_format' must be 'float' or 'base64'", "encoding_format")),
    };
    let inputs = request.input.all();
    if !(1..=MAX_INPUTS).contains(&inputs.len()) || inputs.iter().any(Vec::is_empty) {
        return Err(bad("'input' must be 1 to 2048 inputs, none of them empty", "input"));
    }
    let tokens = inputs.iter().map(|input| input.len().div_ceil(4) as u64).sum();
    let prompt_tokens = script.usage.map_or(tokens, |(prompt, _)| prompt);
    let embed = |(index, input): (usize, &Vec<u8>)| {
        let floats = vector(input, dimensions);
        let embedding = if base64 {
            Vector::Base64(to_base64(&floats.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()))
        } else {
            Vector::Floats(floats)
        };
        Embedding { object: "embedding", index, embedding }
    };
    Ok(json(&List {
        object: "list",
        data: inputs.iter().enumerate().map(embed).collect(),
        model: Some(&request.model),
        usage: Some(EmbeddingUsage { prompt_tokens, total_tokens: prompt_tokens }),
    }))
}

/// A vector of length 1 that depends on every byte of `input`: FNV-1a seeds splitmix64.
fn vector(input: &[u8], dimensions: usize) -> Vec<f32> {
    let mut state = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // 23 bits and a half fit a float's mantissa exactly: -1 to 1 and never 0, so there is a length to divide by.
        (((z ^ (z >> 31)) >> 41) as f32 + 0.5) / 4_194_304.0 - 1.0
    };
    let mut floats: Vec<f32> = (0..dimensions).map(|_| next()).collect();
    let length = floats.iter().map(|x| x * x).sum::<f32>().sqrt();
    floats.iter_mut().for_each(|x| *x /= length);
    floats
}

/// Standard alphabet, padded.
fn to_base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().fold(0, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = (group >> (18 - 6 * place)) & 63;
            out.push(if place <= chunk.len() { char::from(ALPHABET[digit as usize]) } else { '=' });
        }
    }
    out
}
