//! The keys of what limits rates, and of who is limited.

use std::{ops::RangeInclusive, time::Duration};

use bartizan_rate_limit::Quota;
use secrecy::SecretString;

use super::{
    RateLimits, Rates,
    key::{Key, Kind},
    schema::{MILLISECONDS, variable_name},
};

/// Beyond any use, and within what is counted exactly.
const COUNT: RangeInclusive<u64> = 1..=1_000_000_000_000;

/// What a limit says that is none.
const NONE: &str = "unlimited";

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The keys of `[rate_limits]` that a `[[tenant]]` may have, too.
pub(super) const RATES: &[Key<Rates>] = &[
    Key {
        name: "requests_per_minute",
        kind: Kind::IntegerOr(NONE, COUNT, |rates, n| set(&mut rates.requests_per_minute, n, MINUTE)),
        default: "\"unlimited\"",
        doc: "Requests a minute.",
    },
    Key {
        name: "requests_per_hour",
        kind: Kind::IntegerOr(NONE, COUNT, |rates, n| set(&mut rates.requests_per_hour, n, HOUR)),
        default: "\"unlimited\"",
        doc: "Requests an hour.",
    },
    Key {
        name: "requests_per_day",
        kind: Kind::IntegerOr(NONE, COUNT, |rates, n| set(&mut rates.requests_per_day, n, DAY)),
        default: "\"unlimited\"",
        doc: "Requests a day.",
    },
    Key {
        name: "tokens_per_minute",
        kind: Kind::IntegerOr(NONE, COUNT, |rates, n| set(&mut rates.tokens_per_minute, n, MINUTE)),
        default: "\"unlimited\"",
        doc: "Tokens a minute, prompts and answers together. What a request will use is estimated when it comes, and\n\
              corrected when its answer has told. One that is estimated at more than the limit is refused for good.",
    },
    Key {
        name: "tokens_per_hour",
        kind: Kind::IntegerOr(NONE, COUNT, |rates, n| set(&mut rates.tokens_per_hour, n, HOUR)),
        default: "\"unlimited\"",
        doc: "Tokens an hour.",
    },
    Key {
        name: "tokens_per_day",
        kind: Kind::IntegerOr(NONE, COUNT, |rates, n| set(&mut rates.tokens_per_day, n, DAY)),
        default: "\"unlimited\"",
        doc: "Tokens a day.",
    },
    Key {
        name: "burst",
        kind: Kind::IntegerOr("auto", COUNT, |rates, n| {
            rates.burst = n;
            Ok(())
        }),
        default: "\"auto\"",
        doc: "How many requests may come at once after a pause. \"auto\" is all of requests_per_minute.",
    },
];

/// The further keys of `[rate_limits]`.
pub(super) const QUEUE: &[Key<RateLimits>] = &[
    Key {
        name: "max_queue",
        kind: Kind::Integer(0..=1_000_000, |limits, n| {
            limits.max_queue = n.try_into().unwrap_or(usize::MAX);
        }),
        default: "0",
        doc: "How many requests of a tenant may wait for a limit of its own, and how many of all for a total one. With 0\n\
              what is above a limit is refused at once.",
    },
    Key {
        name: "max_wait_ms",
        kind: Kind::Integer(MILLISECONDS, |limits, ms| limits.max_wait = Duration::from_millis(ms)),
        default: "10_000",
        doc: "How long a request may wait for a limit. One that would have to wait longer is refused at once.",
    },
    Key {
        name: "follow_upstreams",
        kind: Kind::Flag(|limits, flag| limits.follow_upstreams = flag),
        default: "false",
        doc: "Whether to ask an upstream no more for a model that it says it has no capacity left for: by a 429 or 503 that\n\
              says when to come back, or by an x-ratelimit-remaining header of 0. Until then, for an hour at most, requests\n\
              for it are refused at once, whosever they are.",
    },
];

/// The keys of `[total_rate_limits]`.
pub(super) const TOTAL: &[Key<Rates>] = &[
    Key {
        name: "requests_per_minute",
        kind: Kind::IntegerOr(NONE, COUNT, |rates, n| set(&mut rates.requests_per_minute, n, MINUTE)),
        default: "\"unlimited\"",
        doc: "Requests a minute.",
    },
    Key {
        name: "tokens_per_minute",
        kind: Kind::IntegerOr(NONE, COUNT, |rates, n| set(&mut rates.tokens_per_minute, n, MINUTE)),
        default: "\"unlimited\"",
        doc: "Tokens a minute.",
    },
];

/// A `[[tenant]]` while it is read.
#[derive(Default)]
pub(super) struct RawTenant {
    pub(super) name: Option<String>,
}

/// The keys of a `[[tenant]]`, which also takes those of [`RATES`].
pub(super) const TENANT: &[Key<RawTenant>] = &[Key {
    name: "name",
    kind: Kind::Text("a string", |tenant, text| {
        tenant.name = Some(tenant_name(text)?);
        Ok(())
    }),
    default: "",
    doc: "Required. Who it is: what a [[key]] or the tenant header says.",
}];

/// A `[[key]]` while it is read.
#[derive(Default)]
pub(super) struct RawKey {
    pub(super) tenant: Option<String>,
    pub(super) secret: Option<SecretString>,
    pub(super) variable: Option<String>,
}

pub(super) const KEY: &[Key<RawKey>] = &[
    Key {
        name: "tenant",
        kind: Kind::Text("a string", |key, text| {
            key.tenant = Some(tenant_name(text)?);
            Ok(())
        }),
        default: "",
        doc: "Required. Whose key it is. A tenant may have several.",
    },
    Key {
        name: "key_env",
        kind: Kind::Secret("the name of an environment variable that holds the key", |key, text| {
            key.variable = Some(variable_name(text)?);
            Ok(())
        }),
        default: "",
        doc: "The environment variable that holds the key.",
    },
    Key {
        name: "key",
        kind: Kind::Secret("a string", |key, text| {
            key.secret = Some(secret(text)?);
            Ok(())
        }),
        default: "",
        doc: "The key itself, in a file that nobody else can read. Either this or key_env is required.",
    },
];

/// A secret that a header can carry. It is not repeated.
pub(super) fn secret(text: &str) -> Result<SecretString, String> {
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("holds white space or characters that a header cannot carry".to_owned());
    }
    Ok(text.into())
}

fn set(limit: &mut Option<Quota>, n: Option<u64>, per: Duration) -> Result<(), String> {
    let quota = n.map(|n| Quota::try_new(n, per)).transpose();
    *limit = quota.map_err(|invalid| format!("cannot be: {invalid}"))?;
    Ok(())
}

/// What the tenant header may say.
fn tenant_name(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    let fits =
        text.bytes().all(|byte| matches!(byte, b' '..=b'~')) && text.trim() == text && text.len() <= 256;
    if !fits {
        return Err(format!(
            "must be at most 256 visible ASCII characters, without white space at its ends, not {text:?}"
        ));
    }
    Ok(text.to_owned())
}
