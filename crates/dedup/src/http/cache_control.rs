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
        let mut read = |directive: &str| {
            let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
            let value = value.trim().trim_matches('"');
            match name.trim().to_ascii_lowercase().as_str() {
                "no-store" => all.no_store = true,
                "no-cache" => all.no_cache = true,
                "private" => all.private = true,
                "must-revalidate" | "proxy-revalidate" => all.must_revalidate = true,
                // It means that, too.
                "s-maxage" => (shared, all.must_revalidate) = (least(shared, seconds(value)), true),
                "max-age" => any = least(any, seconds(value)),
                _ => {}
            }
        };
        let mut fields = headers.get_all(CACHE_CONTROL).iter();
        let is_clear = fields.all(|field| field.to_str().is_ok_and(|field| directives(field, &mut read)));
        // From before there was Cache-Control.
        let has_any = headers.contains_key(CACHE_CONTROL);
        all.no_cache |= !has_any && values(headers, &PRAGMA).any(|value| value.contains("no-cache"));
        all.max_age = shared.or(any);
        // What cannot be read may forbid anything.
        all.no_store |= !is_clear;
        all
    }
}

/// Has `read` what stands between commas, of which those in quotes are none. False if there is a quote that does not end.
fn directives(field: &str, read: &mut impl FnMut(&str)) -> bool {
    let (mut quoted, mut escaped) = (false, false);
    let ends = |letter: char| {
        match letter {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
        letter == ',' && !quoted
    };
    field.split(ends).for_each(read);
    !quoted
}

/// Of times that contradict each other.
fn least(one: Option<Duration>, other: Duration) -> Option<Duration> {
    Some(one.map_or(other, |one| one.min(other)))
}

/// How long a response is fresh where `Cache-Control` gives no time: from its `Date`, or else from now, to what `Expires`
/// says. What is no date has passed.
pub(super) fn expires(headers: &HeaderMap) -> Option<Duration> {
    let expires = headers.get(EXPIRES)?.to_str().ok().and_then(date);
    let from = values(headers, &DATE).next().and_then(date).unwrap_or_else(SystemTime::now);
    Some(expires.and_then(|expires| expires.duration_since(from).ok()).unwrap_or_default())
}

/// How old a response is that comes now: as old as those say who had it, and as its `Date` does by the clock on the wall. In
/// whole seconds, as the date.
pub(super) fn age(headers: &HeaderMap) -> Duration {
    let told = values(headers, &AGE).next().map_or(Duration::ZERO, seconds);
    let date = values(headers, &DATE).next().and_then(date);
    let since = date.and_then(|date| SystemTime::now().duration_since(date).ok()).unwrap_or_default();
    told.max(Duration::from_secs(since.as_secs()))
}

fn date(value: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(value).ok()
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
    fn of_several_times_the_least_counts() {
        let max_age = |fields: &[&'static str]| {
            let fields: Vec<_> = fields.iter().map(|field| (CACHE_CONTROL, *field)).collect();
            of(&fields).max_age.map(|age| age.as_secs())
        };
        assert_eq!(max_age(&["max-age=60, max-age=10", "max-age=30"]), Some(10));
        assert_eq!(max_age(&["s-maxage=60, max-age=10", "s-maxage=30"]), Some(30));
    }

    #[test]
    fn what_is_quoted_is_no_directive() {
        let none = CacheControl::default();
        assert_eq!(of(&[(CACHE_CONTROL, r#"by="no-store, private""#)]), none);
        assert_eq!(of(&[(CACHE_CONTROL, r#"by="a\", no-store, \\", to="private,""#)]), none);
        assert!(of(&[(CACHE_CONTROL, r#"by="a\\", private"#)]).private);
        assert!(of(&[(CACHE_CONTROL, r#"private="set-cookie, x", max-age=60"#)]).private);
        assert_eq!(of(&[(CACHE_CONTROL, ",,max-age=60,")]).max_age, Some(Duration::from_secs(60)));
    }

    #[test]
    fn what_cannot_be_read_forbids() {
        assert!(of(&[(CACHE_CONTROL, r#"by="a, public"#)]).no_store, "a quote that does not end");
        assert!(of(&[(CACHE_CONTROL, r#"by="a, public"#), (CACHE_CONTROL, "public")]).no_store);
        let mut headers = HeaderMap::new();
        headers.append(CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
        headers.append(CACHE_CONTROL, HeaderValue::from_bytes(b"private, by=\"Zo\xeb\"").unwrap());
        assert!(CacheControl::of(&headers).no_store);
    }

    #[test]
    fn an_answer_is_as_old_as_the_oldest_says() {
        let old = |fields: &[(HeaderName, String)]| {
            let fields = fields.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
            age(&fields.collect()).as_secs()
        };
        let ago = |seconds| httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(seconds));
        let to_come = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        assert_eq!(old(&[]), 0);
        assert_eq!(old(&[(AGE, "7".into())]), 7);
        assert!((100..110).contains(&old(&[(DATE, ago(100))])));
        assert!((100..110).contains(&old(&[(DATE, ago(100)), (AGE, "7".into())])));
        assert_eq!(old(&[(DATE, ago(100)), (AGE, "700".into())]), 700);
        assert_eq!(old(&[(DATE, to_come), (AGE, "7".into())]), 7);
        assert_eq!(old(&[(DATE, "today".into())]), 0);
    }

    #[test]
    fn pragma_speaks_where_nothing_else_does() {
        assert!(of(&[(PRAGMA, "no-cache")]).no_cache);
        assert!(!of(&[(PRAGMA, "no-cache"), (CACHE_CONTROL, "max-age=1")]).no_cache);
    }
}
