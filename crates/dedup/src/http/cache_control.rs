//! What `Cache-Control` says that matters here (RFC 9111, section 5.2).

use std::time::{Duration, SystemTime};

use http::{
    HeaderMap, HeaderName,
    header::{AGE, CACHE_CONTROL, DATE, EXPIRES, PRAGMA},
};

/// The directives of a request or a response.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct CacheControl {
    pub(super) no_store: bool,
    pub(super) no_cache: bool,
    pub(super) private: bool,
    /// Not to be served once it is stale.
    pub(super) must_revalidate: bool,
    /// How long a shared cache may keep it: `s-maxage`, or else `max-age`.
    pub(super) max_age: Option<Duration>,
}

impl CacheControl {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut all = Self::default();
        let (mut shared, mut any) = (None, None);
        for directive in values(headers, &CACHE_CONTROL).flat_map(|value| value.split(',')) {
            let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
            let value = value.trim().trim_matches('"');
            match name.trim().to_ascii_lowercase().as_str() {
                "no-store" => all.no_store = true,
                "no-cache" => all.no_cache = true,
                "private" => all.private = true,
                "must-revalidate" | "proxy-revalidate" => all.must_revalidate = true,
                // It means that, too.
                "s-maxage" => (shared, all.must_revalidate) = (Some(seconds(value)), true),
                "max-age" => any = Some(seconds(value)),
                _ => {}
            }
        }
        // From before there was Cache-Control.
        let has_any = headers.contains_key(CACHE_CONTROL);
        all.no_cache |= !has_any && values(headers, &PRAGMA).any(|value| value.contains("no-cache"));
        all.max_age = shared.or(any);
        // What cannot be read may forbid anything.
        all.no_store |= headers.get_all(CACHE_CONTROL).iter().any(|value| value.to_str().is_err());
        all
    }
}

/// How long a response is fresh where `Cache-Control` gives no time: from its `Date`, or else from now, to what `Expires`
/// says. What is no date has passed.
pub(super) fn expires(headers: &HeaderMap) -> Option<Duration> {
    let date = |value: &str| httpdate::parse_http_date(value).ok();
    let expires = headers.get(EXPIRES)?.to_str().ok().and_then(date);
    let from = values(headers, &DATE).next().and_then(date).unwrap_or_else(SystemTime::now);
    Some(expires.and_then(|expires| expires.duration_since(from).ok()).unwrap_or_default())
}

/// How old a response was when it came.
pub(super) fn age(headers: &HeaderMap) -> Duration {
    values(headers, &AGE).next().map_or(Duration::ZERO, seconds)
}

/// What is no number of seconds is no time at all, which is how stale a recipient should take it.
fn seconds(value: &str) -> Duration {
    let digits = !value.is_empty() && value.bytes().all(|digit| digit.is_ascii_digit());
    // A number that is too large for us is a long time.
    let seconds = if digits { value.parse().unwrap_or(u64::from(u32::MAX)) } else { 0 };
    Duration::from_secs(seconds)
}

fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use http::{HeaderValue, header::HeaderName};

    use super::*;

    fn of(fields: &[(HeaderName, &'static str)]) -> CacheControl {
        let fields = fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, value);
        }
        CacheControl::of(&headers)
    }

    #[test]
    fn directives_are_read_in_any_case_from_any_number_of_fields() {
        let none = CacheControl::default();
        assert_eq!(of(&[]), none);
        assert_eq!(of(&[(CACHE_CONTROL, "public, immutable")]), none);
        let all = of(&[
            (CACHE_CONTROL, "No-Store , max-age=60"),
            (CACHE_CONTROL, "private=\"x\", no-cache, Must-Revalidate"),
        ]);
        let expected = CacheControl {
            no_store: true,
            no_cache: true,
            private: true,
            must_revalidate: true,
            max_age: Some(Duration::from_secs(60)),
        };
        assert_eq!(all, expected);
        assert_eq!(of(&[(CACHE_CONTROL, "no-storeroom")]), none, "a word of its own");
    }

    #[test]
    fn some_answers_are_not_served_stale() {
        for says in ["must-revalidate", "proxy-revalidate", "s-maxage=60"] {
            assert!(of(&[(CACHE_CONTROL, says)]).must_revalidate, "{says}");
        }
        assert!(!of(&[(CACHE_CONTROL, "max-age=60")]).must_revalidate);
    }

    #[test]
    fn an_old_answer_says_when_it_expires() {
        let fresh = |fields: &[(HeaderName, &'static str)]| {
            let fields = fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
            expires(&fields.collect()).map(|fresh| fresh.as_secs())
        };
        let (eight, nine) = ("Sun, 06 Nov 1994 08:00:00 GMT", "Sun, 06 Nov 1994 09:00:00 GMT");
        assert_eq!(fresh(&[(DATE, eight)]), None, "it does not say");
        assert_eq!(fresh(&[(DATE, eight), (EXPIRES, nine)]), Some(3_600));
        assert_eq!(fresh(&[(DATE, nine), (EXPIRES, eight)]), Some(0));
        assert_eq!(fresh(&[(DATE, eight), (EXPIRES, "0")]), Some(0));
        // Of now, it is to be told from what the clock says.
        assert_eq!(fresh(&[(EXPIRES, nine)]), Some(0));
        assert!(fresh(&[(EXPIRES, "Fri, 31 Dec 9999 23:59:59 GMT")]).is_some_and(|fresh| fresh > 0));
    }

    #[test]
    fn a_shared_cache_has_its_own_age() {
        let max_age = |value| of(&[(CACHE_CONTROL, value)]).max_age.map(|age| age.as_secs());
        assert_eq!(max_age("max-age=60, s-maxage=10"), Some(10));
        assert_eq!(max_age("s-maxage=10, max-age=60"), Some(10));
        assert_eq!(max_age("max-age=\"60\""), Some(60));
        assert_eq!(max_age("max-age=soon"), Some(0));
        assert_eq!(max_age("max-age=-1"), Some(0));
        assert_eq!(max_age("max-age=99999999999999999999999"), Some(u64::from(u32::MAX)));
    }

    #[test]
    fn what_cannot_be_read_forbids() {
        let mut headers = HeaderMap::new();
        headers.append(CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
        headers.append(CACHE_CONTROL, HeaderValue::from_bytes(b"private, by=\"Zo\xeb\"").unwrap());
        assert!(CacheControl::of(&headers).no_store);
    }

    #[test]
    fn pragma_speaks_where_nothing_else_does() {
        assert!(of(&[(PRAGMA, "no-cache")]).no_cache);
        assert!(!of(&[(PRAGMA, "no-cache"), (CACHE_CONTROL, "max-age=1")]).no_cache);
    }
}
