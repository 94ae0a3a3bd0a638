//! What `Cache-Control` says that matters here (RFC 9111, section 5.2).

use std::time::Duration;

use http::{
    HeaderMap, HeaderName,
    header::{AGE, CACHE_CONTROL, PRAGMA},
};

/// The directives of a request or a response.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct CacheControl {
    pub(super) no_store: bool,
    pub(super) no_cache: bool,
    pub(super) private: bool,
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
                "s-maxage" => shared = Some(seconds(value)),
                "max-age" => any = Some(seconds(value)),
                _ => {}
            }
        }
        // From before there was Cache-Control.
        let has_any = headers.contains_key(CACHE_CONTROL);
        all.no_cache |= !has_any && values(headers, &PRAGMA).any(|value| value.contains("no-cache"));
        all.max_age = shared.or(any);
        all
    }
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
        let all = of(&[(CACHE_CONTROL, "No-Store , max-age=60"), (CACHE_CONTROL, "private=\"x\", no-cache")]);
        let minute = Some(Duration::from_secs(60));
        assert_eq!(all, CacheControl { no_store: true, no_cache: true, private: true, max_age: minute });
        assert_eq!(of(&[(CACHE_CONTROL, "no-storeroom")]), none, "a word of its own");
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
    fn pragma_speaks_where_nothing_else_does() {
        assert!(of(&[(PRAGMA, "no-cache")]).no_cache);
        assert!(!of(&[(PRAGMA, "no-cache"), (CACHE_CONTROL, "max-age=1")]).no_cache);
    }
}
