//! The headers in which HTTP services say when to come back.
//!
//! Read: `retry-after-ms`, `Retry-After` (seconds or a date), OpenAI's `x-ratelimit-{remaining,reset}-{requests,tokens}`
//! with durations such as `6m0s`, the plain `x-ratelimit-{remaining,reset}` of many, whose reset may be a number of seconds
//! or an instant since 1970 in seconds or milliseconds, and Anthropic's `anthropic-ratelimit-*` with RFC 3339 times.
//! Written: `Retry-After`.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header::RETRY_AFTER};

use crate::RetryAfter;

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// Whether a later try of the same request may fare better: 408, 425, 429, 500, 502, 503 and 504.
pub fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

/// What a response says about when to come back.
///
/// The first of these that is there and can be read: `retry-after-ms`, `Retry-After`, and the latest reset among the
/// rate-limit dimensions that have nothing remaining. Dates count from the wall clock, which is read only if there is a
/// date; one that has passed is a wait of zero. Anything unreadable counts as absent.
///
/// ```
/// use std::time::Duration;
/// use bartizan_core::{RetryAfter, headers};
/// use http::HeaderMap;
///
/// let mut map = HeaderMap::new();
/// map.insert("x-ratelimit-remaining-tokens", "0".parse().unwrap());
/// map.insert("x-ratelimit-reset-tokens", "6m0s".parse().unwrap());
/// assert_eq!(headers::retry_after(&map), RetryAfter::After(Duration::from_secs(360)));
///
/// map.insert("retry-after", "-1".parse().unwrap());
/// map.insert("x-ratelimit-remaining-tokens", "17".parse().unwrap());
/// assert_eq!(headers::retry_after(&map), RetryAfter::Unknown);
/// ```
pub fn retry_after(headers: &HeaderMap) -> RetryAfter {
    retry_after_at(headers, SystemTime::now)
}

/// [`retry_after`] against a given clock, which is asked only when a date has to be read.
pub fn retry_after_at(headers: &HeaderMap, now: impl Fn() -> SystemTime) -> RetryAfter {
    let explicit = text(headers, &RETRY_AFTER_MS)
        .and_then(|ms| duration_of(ms, 1e3))
        .or_else(|| text(headers, &RETRY_AFTER).and_then(|value| seconds_or_date(value, &now)));
    match explicit.or_else(|| latest_reset(headers, &now)) {
        Some(wait) => RetryAfter::After(wait),
        None => RetryAfter::Unknown,
    }
}

/// When a quota that is spent is there again: the latest reset among the rate-limit dimensions that have nothing
/// remaining, whatever the response's status. `None` if something remains of all of them, or nobody said.
///
/// ```
/// use std::time::Duration;
/// use bartizan_core::headers;
/// use http::HeaderMap;
///
/// let mut map = HeaderMap::new();
/// map.insert("x-ratelimit-remaining-requests", "0".parse().unwrap());
/// map.insert("x-ratelimit-reset-requests", "1s".parse().unwrap());
/// assert_eq!(headers::exhausted(&map), Some(Duration::from_secs(1)));
/// map.insert("x-ratelimit-remaining-requests", "1".parse().unwrap());
/// assert_eq!(headers::exhausted(&map), None);
/// ```
pub fn exhausted(headers: &HeaderMap) -> Option<Duration> {
    latest_reset(headers, &SystemTime::now)
}

/// Writes `Retry-After` in whole seconds, rounded up and never 0, so that whoever obeys does not come too early.
///
/// [`RetryAfter::Never`] and [`RetryAfter::Unknown`] write nothing.
pub fn set_retry_after(headers: &mut HeaderMap, retry_after: RetryAfter) {
    if let RetryAfter::After(wait) = retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(ceil_seconds(wait)));
    }
}

/// Whole seconds, rounded up, at least 1.
pub fn ceil_seconds(wait: Duration) -> u64 {
    wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1)
}

/// Reads a duration in Go's notation, which OpenAI uses: `6m0s`, `1h2m3.5s`, `20ms`. A bare number is seconds.
///
/// Units are `h`, `m`, `s`, `ms`, `us`, `µs` and `ns`. `None` for anything else, negative or beyond `Duration`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    if text.ends_with(|c: char| c.is_ascii_digit()) {
        return duration_of(text, 1.0);
    }
    if text.is_empty() {
        return None;
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let per_second = match unit {
            "h" => 1.0 / 3600.0,
            "m" => 1.0 / 60.0,
            "s" => 1.0,
            "ms" => 1e3,
            "us" | "µs" => 1e6,
            "ns" => 1e9,
            _ => return None,
        };
        total = total.checked_add(duration_of(number, per_second)?)?;
        rest = tail;
    }
    Some(total)
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// A decimal number of units, `per_second` of which make a second. No sign, no exponent, no `inf`.
fn duration_of(number: &str, per_second: f64) -> Option<Duration> {
    if !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    if let (Ok(whole), true) = (number.parse(), per_second == 1.0) {
        return Some(Duration::from_secs(whole));
    }
    let value: f64 = number.parse().ok()?;
    // Rounds to the nanosecond, so that 0.1 s is 100 ms and not a float's idea of it.
    Duration::try_from_secs_f64(value / per_second).ok()
}

fn seconds_or_date(value: &str, now: &impl Fn() -> SystemTime) -> Option<Duration> {
    duration_of(value, 1.0).or_else(|| Some(until(httpdate::parse_http_date(value).ok()?, now)))
}

fn until(then: SystemTime, now: &impl Fn() -> SystemTime) -> Duration {
    then.duration_since(now()).unwrap_or_default()
}

/// The dimensions of `x-ratelimit-*` (OpenAI, Groq, Azure) and `anthropic-ratelimit-*`, as (remaining, reset).
static DIMENSIONS: [(&str, &str); 7] = [
    ("x-ratelimit-remaining", "x-ratelimit-reset"),
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    ("anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-reset"),
    ("anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset"),
    ("anthropic-ratelimit-input-tokens-remaining", "anthropic-ratelimit-input-tokens-reset"),
    ("anthropic-ratelimit-output-tokens-remaining", "anthropic-ratelimit-output-tokens-reset"),
];

fn latest_reset(headers: &HeaderMap, now: &impl Fn() -> SystemTime) -> Option<Duration> {
    DIMENSIONS
        .iter()
        .filter(|(remaining, _)| headers.get(*remaining).is_some_and(|value| value == "0"))
        .filter_map(|(_, reset)| {
            let reset = headers.get(*reset)?.to_str().ok()?;
            let then = |then: jiff::Timestamp| until(then.into(), now);
            match reset.trim().parse::<i64>() {
                // Nobody waits for 30 years: these are instants, in seconds (GitHub) or milliseconds (OpenRouter).
                Ok(ms @ 1_000_000_000_000..) => jiff::Timestamp::from_millisecond(ms).ok().map(then),
                Ok(seconds @ 1_000_000_000..) => jiff::Timestamp::from_second(seconds).ok().map(then),
                _ => parse_duration(reset).or_else(|| reset.parse().ok().map(then)),
            }
        })
        .max()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_str(v).unwrap())).collect()
    }

    /// 1994-11-06T08:49:37Z, the instant of RFC 9110's examples.
    fn at() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(784_111_777)
    }

    fn read(pairs: &[(&'static str, &str)]) -> Option<Duration> {
        match retry_after_at(&map(pairs), at) {
            RetryAfter::After(wait) => Some(wait),
            RetryAfter::Never => panic!("no header says never"),
            RetryAfter::Unknown => None,
        }
    }

    #[test]
    fn retry_after_in_every_form() {
        let s = Duration::from_secs;
        assert_eq!(read(&[("retry-after", "120")]), Some(s(120)));
        assert_eq!(read(&[("retry-after", "0.5")]), Some(Duration::from_millis(500)));
        assert_eq!(read(&[("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT")]), Some(s(10)));
        assert_eq!(read(&[("retry-after", "Sunday, 06-Nov-94 08:49:47 GMT")]), Some(s(10)));
        assert_eq!(read(&[("retry-after", "Sun Nov  6 08:49:47 1994")]), Some(s(10)));
        assert_eq!(read(&[("retry-after", "Sun, 06 Nov 1994 08:49:00 GMT")]), Some(s(0)), "passed");
        assert_eq!(
            read(&[("retry-after-ms", "250"), ("retry-after", "9")]),
            Some(Duration::from_millis(250))
        );
        assert_eq!(read(&[("retry-after-ms", "soon"), ("retry-after", "9")]), Some(s(9)));
        for nonsense in ["", "-1", "soon", "1e9", "inf", "NaN", "0x10", "1.2.3"] {
            assert_eq!(read(&[("retry-after", nonsense)]), None, "{nonsense:?}");
        }
    }

    #[test]
    fn resets_count_only_where_nothing_remains_and_the_latest_wins() {
        let s = Duration::from_secs;
        assert_eq!(
            read(&[
                ("x-ratelimit-remaining-requests", "0"),
                ("x-ratelimit-reset-requests", "20ms"),
                ("x-ratelimit-remaining-tokens", "0"),
                ("x-ratelimit-reset-tokens", "6m0s"),
            ]),
            Some(s(360))
        );
        assert_eq!(
            read(&[("x-ratelimit-remaining-tokens", "1"), ("x-ratelimit-reset-tokens", "6m0s")]),
            None
        );
        let now = 1_741_305_600;
        for (reset, wait) in [("30", 30), ("1741305607", 7), ("1741305609000", 9), ("1741305000", 0)] {
            let headers = map(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", reset)]);
            let read = retry_after_at(&headers, || UNIX_EPOCH + s(now));
            assert_eq!(read, RetryAfter::After(s(wait)), "{reset}");
        }
        assert_eq!(
            read(&[
                ("anthropic-ratelimit-tokens-remaining", "0"),
                ("anthropic-ratelimit-tokens-reset", "1994-11-06T08:50:37Z"),
            ]),
            Some(s(60))
        );
        assert_eq!(
            read(&[
                ("anthropic-ratelimit-requests-remaining", "0"),
                ("anthropic-ratelimit-requests-reset", "1994-11-06T09:49:38+01:00"),
            ]),
            Some(s(1))
        );
    }

    #[test]
    fn go_durations() {
        for (text, nanos) in [
            ("6m0s", 360_000_000_000),
            ("1h2m3.5s", 3_723_500_000_000),
            ("20ms", 20_000_000),
            ("1.5us", 1_500),
            ("7µs", 7_000),
            ("3ns", 3),
            ("12", 12_000_000_000),
            ("0.1", 100_000_000),
        ] {
            assert_eq!(parse_duration(text), Some(Duration::from_nanos(nanos)), "{text}");
        }
        for nonsense in ["", "s", "m5", "5 m", "-5m", "5x", "6m0", "..s", "99999999999999999999999h"] {
            let read = parse_duration(nonsense);
            assert!(read.is_none() || nonsense == "6m0", "{nonsense:?} read as {read:?}");
        }
    }

    #[test]
    fn transient_statuses_are_the_documented_ones() {
        let transient: Vec<u16> =
            (100..1000).filter(|code| is_transient(StatusCode::from_u16(*code).unwrap())).collect();
        assert_eq!(transient, [408, 425, 429, 500, 502, 503, 504]);
    }

    proptest! {
        #[test]
        fn written_retry_after_is_never_early_never_zero_and_reads_back(nanos in any::<u64>()) {
            let wait = Duration::from_nanos(nanos);
            let mut headers = HeaderMap::new();
            set_retry_after(&mut headers, RetryAfter::After(wait));
            let written: u64 = headers[RETRY_AFTER].to_str().unwrap().parse().unwrap();
            prop_assert!(written >= 1 && Duration::from_secs(written) >= wait);
            prop_assert!(written == 1 || Duration::from_secs(written - 1) < wait);
            prop_assert_eq!(retry_after_at(&headers, at), RetryAfter::After(Duration::from_secs(written)));
        }

        #[test]
        fn reading_never_panics(value in "\\PC{0,40}") {
            let _ = parse_duration(&value);
            if let Ok(value) = HeaderValue::from_str(&value) {
                for name in ["retry-after", "retry-after-ms", "x-ratelimit-reset", "anthropic-ratelimit-tokens-reset"] {
                    let mut headers = map(&[("x-ratelimit-remaining", "0"), ("anthropic-ratelimit-tokens-remaining", "0")]);
                    headers.insert(name, value.clone());
                    let _ = retry_after_at(&headers, at);
                }
            }
        }
    }
}
