use std::fmt;

use http::StatusCode;
use serde::{Deserialize, Deserializer};

/// What kind of failure it was, whoever the provider is and however it says so.
///
/// Whoever retries, falls back or counts failures looks at this and never at a message.
///
/// | class | status | `type` | `code` | transient |
/// |---|---|---|---|---|
/// | `Auth` | 401 | `authentication_error` | `invalid_api_key` | |
/// | `RateLimit` | 429 | `rate_limit_error` | `rate_limit_exceeded` | yes |
/// | `Quota` | 429 | `insufficient_quota` | `insufficient_quota` | |
/// | `Timeout` | 504 | `timeout_error` | `timeout` | yes |
/// | `Connect` | 502 | `api_error` | `upstream_unreachable` | yes |
/// | `ContextLength` | 400 | `invalid_request_error` | `context_length_exceeded` | |
/// | `ContentPolicy` | 400 | `invalid_request_error` | `content_policy_violation` | |
/// | `BadRequest` | 400 | `invalid_request_error` | none | |
/// | `TooLarge` | 413 | `invalid_request_error` | `request_too_large` | |
/// | `NotFound` | 404 | `invalid_request_error` | `not_found` | |
/// | `Upstream` | 502 | `api_error` | `upstream_error` | yes |
/// | `Overloaded` | 503 | `service_unavailable_error` | `overloaded` | yes |
/// | `Malformed` | 502 | `api_error` | `malformed_response` | yes |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Class {
    /// The credentials are missing, wrong, or not enough for this.
    Auth,
    /// Too many requests or tokens for now.
    RateLimit,
    /// The account has nothing left to spend: waiting does not help, paying does.
    Quota,
    /// Somebody was too slow.
    Timeout,
    /// No connection could be made.
    Connect,
    /// The prompt, with the room asked for the answer, is more than the model can hold.
    ContextLength,
    /// A content filter refused.
    ContentPolicy,
    /// The request is wrong as it stands.
    BadRequest,
    /// The request is larger than is allowed, whatever the model.
    TooLarge,
    /// There is no such model or path.
    NotFound,
    /// The provider failed.
    Upstream,
    /// The provider has no capacity just now (503 and 529).
    Overloaded,
    /// What came is not what the API promises: garbage, or a stream that ended without its end.
    Malformed,
}

impl Class {
    /// Whether a later try of the same request, or one elsewhere, may fare better without anybody changing anything.
    pub const fn is_transient(self) -> bool {
        matches!(
            self,
            Self::RateLimit
                | Self::Timeout
                | Self::Connect
                | Self::Upstream
                | Self::Overloaded
                | Self::Malformed
        )
    }

    /// The status with which a gateway tells its own caller.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Auth => StatusCode::UNAUTHORIZED,
            Self::RateLimit | Self::Quota => StatusCode::TOO_MANY_REQUESTS,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Connect | Self::Upstream | Self::Malformed => StatusCode::BAD_GATEWAY,
            Self::ContextLength | Self::ContentPolicy | Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The `type` of OpenAI's error object.
    pub const fn openai_type(self) -> &'static str {
        match self {
            Self::Auth => "authentication_error",
            Self::RateLimit => "rate_limit_error",
            Self::Quota => "insufficient_quota",
            Self::Timeout => "timeout_error",
            Self::Connect | Self::Upstream | Self::Malformed => "api_error",
            Self::ContextLength
            | Self::ContentPolicy
            | Self::BadRequest
            | Self::TooLarge
            | Self::NotFound => "invalid_request_error",
            Self::Overloaded => "service_unavailable_error",
        }
    }

    /// The `code` of OpenAI's error object, unless the error at hand has a better one.
    pub const fn openai_code(self) -> Option<&'static str> {
        match self {
            Self::Auth => Some("invalid_api_key"),
            Self::RateLimit => Some("rate_limit_exceeded"),
            Self::Quota => Some("insufficient_quota"),
            Self::Timeout => Some("timeout"),
            Self::Connect => Some("upstream_unreachable"),
            Self::ContextLength => Some("context_length_exceeded"),
            Self::ContentPolicy => Some("content_policy_violation"),
            Self::BadRequest => None,
            Self::TooLarge => Some("request_too_large"),
            Self::NotFound => Some("not_found"),
            Self::Upstream => Some("upstream_error"),
            Self::Overloaded => Some("overloaded"),
            Self::Malformed => Some("malformed_response"),
        }
    }

    /// The class of a response, by its status alone. A status that is no error is [`Malformed`](Self::Malformed).
    pub const fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            401 | 403 | 407 => Self::Auth,
            402 => Self::Quota,
            404 | 410 => Self::NotFound,
            408 | 504 | 522 | 524 => Self::Timeout,
            // OpenAI's clients try 409 again (a lock not had in time), and 425 and 499 say nothing about the request.
            409 | 425 | 499 => Self::Upstream,
            413 => Self::TooLarge,
            429 => Self::RateLimit,
            // 498 is Groq's "flex tier capacity exceeded", 529 Anthropic's "overloaded".
            498 | 503 | 529 => Self::Overloaded,
            400..=499 => Self::BadRequest,
            500..=599 => Self::Upstream,
            _ => Self::Malformed,
        }
    }

    /// The class of an error response, by its status and its body.
    ///
    /// What the body says with a code that means one thing only (`insufficient_quota`, `overloaded_error`,
    /// `DeploymentNotFound`, ...) beats the status; a code that is general (`invalid_request_error`) does not. A message
    /// is looked at last, only where the status leaves it open and the provider is known to have no code for it, and
    /// only for the beginning of a sentence that provider is known to write:
    ///
    /// | message begins | who | class |
    /// |---|---|---|
    /// | `This model's maximum context length is` | vLLM | `ContextLength` |
    /// | `The decoder prompt (length` | vLLM | `ContextLength` |
    /// | `prompt is too long` | Anthropic, Ollama | `ContextLength` |
    /// | `input length and `max_tokens` exceed context limit` | Anthropic | `ContextLength` |
    /// | `The input token count` | Gemini | `ContextLength` |
    /// | `the request exceeds the available context size` | llama.cpp | `ContextLength` |
    /// | `Input validation error: `inputs` tokens` | Text Generation Inference | `ContextLength` |
    /// | `Request too large for` (as a 429) | OpenAI, Groq: more tokens than a minute's quota | `TooLarge` |
    /// | `API key not valid` | Gemini | `Auth` |
    /// | `Your credit balance is too low` | Anthropic | `Quota` |
    ///
    /// ```
    /// use bartizan_provider::Class;
    /// use http::StatusCode;
    ///
    /// let spent = br#"{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#;
    /// assert_eq!(Class::of_response(StatusCode::TOO_MANY_REQUESTS, spent), Class::Quota);
    /// assert_eq!(Class::of_response(StatusCode::TOO_MANY_REQUESTS, b"slow down"), Class::RateLimit);
    /// ```
    pub fn of_response(status: StatusCode, body: &[u8]) -> Self {
        classify(Some(status), &Told::read(body).unwrap_or_default())
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auth => "credentials refused",
            Self::RateLimit => "rate limited",
            Self::Quota => "quota used up",
            Self::Timeout => "timed out",
            Self::Connect => "cannot connect",
            Self::ContextLength => "context length exceeded",
            Self::ContentPolicy => "refused by content policy",
            Self::BadRequest => "bad request",
            Self::TooLarge => "request too large",
            Self::NotFound => "not found",
            Self::Upstream => "upstream failed",
            Self::Overloaded => "upstream overloaded",
            Self::Malformed => "malformed response",
        })
    }
}

/// The class of an error of which the body says `told`; without a status when it came inside a stream.
pub(crate) fn classify(status: Option<StatusCode>, told: &Told) -> Class {
    let by_status = status.map(Class::of_status);
    let class = match (told.names().find_map(specific), by_status) {
        // Groq: one request is larger than a minute's tokens, so waiting never helps.
        (Some(Class::RateLimit), Some(Class::TooLarge)) => Class::TooLarge,
        (Some(class), _) | (None, Some(class)) => class,
        (None, None) => told.names().find_map(general).unwrap_or(Class::Upstream),
    };
    sentence(class, &told.message).unwrap_or(class)
}

/// Codes that mean one thing only.
fn specific(code: &str) -> Option<Class> {
    Some(match code {
        "context_length_exceeded" | "exceed_context_size_error" | "max_tokens_exceeded" => {
            Class::ContextLength
        }
        "content_policy_violation"
        | "content_filter"
        | "ResponsibleAIPolicyViolation"
        | "content_filtered"
        | "moderation_blocked" => Class::ContentPolicy,
        "insufficient_quota"
        | "billing_error"
        | "billing_not_active"
        | "billing_hard_limit_reached"
        | "insufficient_balance"
        | "exceeded_current_quota_error"
        | "credits_exhausted" => Class::Quota,
        "invalid_api_key"
        | "authentication_error"
        | "permission_error"
        | "account_deactivated"
        | "PERMISSION_DENIED"
        | "UNAUTHENTICATED"
        | "API_KEY_INVALID" => Class::Auth,
        "model_not_found" | "DeploymentNotFound" | "not_found_error" | "NotFoundError" | "NOT_FOUND"
        | "invalid_model" => Class::NotFound,
        "rate_limit_exceeded" | "rate_limit_error" | "RESOURCE_EXHAUSTED" | "RateLimitReached" => {
            Class::RateLimit
        }
        "request_too_large" => Class::TooLarge,
        "overloaded_error" | "engine_overloaded_error" | "service_unavailable_error" | "UNAVAILABLE" => {
            Class::Overloaded
        }
        "timeout_error" | "DEADLINE_EXCEEDED" => Class::Timeout,
        _ => return None,
    })
}

/// Codes that only sort an error roughly: for errors inside a stream, where there is no status to do that.
fn general(code: &str) -> Option<Class> {
    if let Ok(Ok(status)) = code.parse().map(StatusCode::from_u16) {
        return Some(Class::of_status(status));
    }
    Some(match code {
        "invalid_request_error" | "BadRequestError" | "INVALID_ARGUMENT" => Class::BadRequest,
        "requests" | "tokens" => Class::RateLimit,
        _ => return None,
    })
}

/// The last resort, as documented at [`Class::of_response`].
fn sentence(class: Class, message: &str) -> Option<Class> {
    let begins = |start: &str| message.starts_with(start);
    match class {
        // Ollama and vLLM have answered these with 400, 422 and 500.
        Class::BadRequest | Class::TooLarge | Class::Upstream => {
            if begins("This model's maximum context length is")
                || begins("The decoder prompt (length")
                || begins("prompt is too long")
                || begins("input length and `max_tokens` exceed context limit")
                || begins("The input token count")
                || begins("the request exceeds the available context size")
                || begins("Input validation error: `inputs` tokens")
            {
                return Some(Class::ContextLength);
            }
            if begins("API key not valid") {
                return Some(Class::Auth);
            }
            begins("Your credit balance is too low").then_some(Class::Quota)
        }
        Class::RateLimit => begins("Request too large for").then_some(Class::TooLarge),
        _ => None,
    }
}

/// What an error body says, in any of the shapes that providers use.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Empty when nothing was said.
    pub(crate) message: String,
    pub(crate) code: Option<String>,
    pub(crate) param: Option<String>,
    kind: Option<String>,
    /// Whether the body says that it is an error, which a body of an error status need not.
    pub(crate) explicit: bool,
    /// Azure's `innererror.code` and Gemini's `status`.
    inner: [Option<String>; 2],
}

impl Told {
    /// `None` if the body is no JSON object that tells an error.
    ///
    /// Known shapes: OpenAI, Azure, Mistral, llama.cpp and Gemini `{"error":{"message","type","param","code",..}}`
    /// (Gemini also in an array of one), Anthropic `{"type":"error","error":{"type","message"}}`, Ollama and xAI
    /// `{"error":"..","code":..}`, older vLLM and Mistral `{"object":"error","message","type","code"}`, FastAPI
    /// `{"detail":".."}`.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        let outer = match body.trim_ascii_start().first()? {
            b'{' => serde_json::from_slice(body).ok()?,
            b'[' => serde_json::from_slice::<[Outer; 1]>(body).map(|[one]| one).ok()?,
            _ => return None,
        };
        let explicit = outer.object.as_deref() == Some("error")
            || match &outer.error {
                // Some say so where there is none, and OpenAI's clients understand that.
                Some(Loose::Text(message)) => !message.is_empty(),
                Some(Loose::Fields(_) | Loose::Other(_)) => true,
                None => false,
            };
        let told = match outer {
            Outer { error: Some(Loose::Fields(fields)), .. } => fields,
            Outer { error: Some(Loose::Text(message)), fields, .. } => {
                Fields { message: Some(message), ..fields }
            }
            Outer { detail: Some(Loose::Text(message)), fields, .. } if fields.message.is_none() => {
                Fields { message: Some(message), ..fields }
            }
            Outer { fields, .. } if fields.message.is_some() => fields,
            _ => return None,
        };
        Some(Self {
            message: told.message.unwrap_or_default(),
            code: told.code,
            param: told.param,
            kind: told.kind,
            explicit,
            inner: [told.innererror.and_then(Loose::code), told.status],
        })
    }

    /// Everything that is a name for what went wrong, the most telling first.
    fn names(&self) -> impl Iterator<Item = &str> {
        [&self.code, &self.inner[0], &self.kind, &self.inner[1]]
            .into_iter()
            .filter_map(|name| name.as_deref())
    }
}

#[derive(Deserialize)]
struct Outer {
    error: Option<Loose>,
    detail: Option<Loose>,
    #[serde(default, deserialize_with = "scalar")]
    object: Option<String>,
    #[serde(flatten)]
    fields: Fields,
}

#[derive(Default, Deserialize)]
struct Fields {
    #[serde(default, deserialize_with = "scalar")]
    message: Option<String>,
    #[serde(default, deserialize_with = "scalar")]
    code: Option<String>,
    #[serde(default, deserialize_with = "scalar")]
    param: Option<String>,
    #[serde(default, deserialize_with = "scalar", rename = "type")]
    kind: Option<String>,
    #[serde(default, deserialize_with = "scalar")]
    status: Option<String>,
    #[serde(default)]
    innererror: Option<Box<Loose>>,
}

/// Providers disagree on what stands where: read what fits, and let nothing else spoil the rest.
#[derive(Deserialize)]
#[serde(untagged)]
enum Loose {
    Text(String),
    Fields(Fields),
    Other(serde::de::IgnoredAny),
}

impl Loose {
    #[expect(clippy::boxed_local, reason = "the box ends the recursion of the types")]
    fn code(self: Box<Self>) -> Option<String> {
        match *self {
            Self::Fields(fields) => fields.code,
            _ => None,
        }
    }
}

/// A string, or a number as one; anything else counts as absent.
fn scalar<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Scalar {
        Text(String),
        Number(serde_json::Number),
        Other(serde::de::IgnoredAny),
    }
    Ok(match Scalar::deserialize(deserializer)? {
        Scalar::Text(text) => Some(text),
        Scalar::Number(number) => Some(number.to_string()),
        Scalar::Other(_) => None,
    })
}

#[cfg(test)]
mod tests;
