//! Whether bytes are JSON, to the last one.
//!
//! For answers that are passed on as they are: nobody here reads them, and whoever does must not fail. serde_json's
//! `IgnoredAny` says the same in about the same time, and allocates for what is nested.

use memchr::memchr2;

/// How deep lists and objects may lie in each other. As deep as a request's, and as parsers take by default.
const MAX_DEPTH: usize = 127;

/// Whether this is one JSON document in UTF-8, and nothing else.
pub(crate) fn is_well_formed(bytes: &[u8]) -> bool {
    let mut rest = Rest(bytes);
    str::from_utf8(bytes).is_ok() && rest.value(MAX_DEPTH).is_some() && rest.peek().is_none()
}

/// What was not looked at yet. Each step goes on behind what it was to find, or there is none.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn value(&mut self, depth: usize) -> Option<()> {
        match self.peek()? {
            b'{' => {
                let depth = depth.checked_sub(1)?;
                self.list(b'}', |rest| {
                    rest.peek().filter(|quote| *quote == b'"')?;
                    rest.string()?;
                    rest.take(b':')?;
                    rest.value(depth)
                })
            }
            b'[' => {
                let depth = depth.checked_sub(1)?;
                self.list(b']', |rest| rest.value(depth))
            }
            b'"' => self.string(),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            _ => self.number(),
        }
    }

    /// From its opening bracket on.
    fn list(&mut self, close: u8, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.0 = &self.0[1..];
        if self.take(close).is_some() {
            return Some(());
        }
        loop {
            item(self)?;
            if self.take(b',').is_none() {
                return self.take(close);
            }
        }
    }

    /// From its opening quote on.
    fn string(&mut self) -> Option<()> {
        self.0 = &self.0[1..];
        loop {
            let (plain, rest) = self.0.split_at(memchr2(b'"', b'\\', self.0)?);
            // All of them, without a way out: that goes many at a time.
            if !plain.iter().fold(true, |all, byte| all & (*byte >= b' ')) {
                return None;
            }
            match rest {
                [b'"', rest @ ..] => {
                    self.0 = rest;
                    return Some(());
                }
                [_, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', rest @ ..] => self.0 = rest,
                [_, b'u', a, b, c, d, rest @ ..]
                    if [a, b, c, d].iter().all(|hex| hex.is_ascii_hexdigit()) =>
                {
                    self.0 = rest;
                }
                _ => return None,
            }
        }
    }

    fn number(&mut self) -> Option<()> {
        self.skip(b"-");
        if !self.skip(b"0") {
            self.digits()?;
        }
        if self.skip(b".") {
            self.digits()?;
        }
        if self.skip(b"eE") {
            self.skip(b"+-");
            self.digits()?;
        }
        Some(())
    }

    fn digits(&mut self) -> Option<()> {
        let end = self.0.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(self.0.len());
        self.0 = &self.0[end..];
        (end > 0).then_some(())
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        self.0 = self.0.strip_prefix(word)?;
        Some(())
    }

    /// Whether one of these came next.
    fn skip(&mut self, any: &[u8]) -> bool {
        let skips = self.0.first().is_some_and(|byte| any.contains(byte));
        if skips {
            self.0 = &self.0[1..];
        }
        skips
    }

    /// This one, behind white space.
    fn take(&mut self, byte: u8) -> Option<()> {
        self.peek().filter(|next| *next == byte)?;
        self.0 = &self.0[1..];
        Some(())
    }

    /// The next one behind white space.
    fn peek(&mut self) -> Option<u8> {
        while let [b' ' | b'\n' | b'\r' | b'\t', rest @ ..] = self.0 {
            self.0 = rest;
        }
        self.0.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IgnoredAny;
    use serde_json::{Value, json};

    use super::*;

    /// The same in serde_json's words. It counts levels only where it keeps what it reads.
    fn oracle(bytes: &[u8]) -> bool {
        str::from_utf8(bytes).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok())
    }

    #[test]
    fn what_is_json_and_what_is_not() {
        for text in [
            "{}",
            " [ ] ",
            "\t{\"a\" : [1 , -0.5e+3, 0, 10E-2, true, false, null, \"\\u00e4\\n\\\"ä\"] }\r\n",
            "{\"a\":{},\"a\":[[],[{}]]}",
            "7",
        ] {
            assert!(is_well_formed(text.as_bytes()) && oracle(text.as_bytes()), "{text}");
        }
        for text in [
            "",
            " ",
            "{this is not json at all}",
            "{\"a\":1}}",
            "{\"a\":1} {\"a\":1}",
            "{\"a\":[{\"b\":1}",
            "{\"a\":1,}",
            "[1,]",
            "[1 2]",
            "{\"a\" 1}",
            "{\"a\":}",
            "{a:1}",
            "{1:1}",
            "[}",
            "{]",
            "[01]",
            "[-]",
            "[+1]",
            "[1.]",
            "[.5]",
            "[1e]",
            "[tru]",
            "[True]",
            "['a']",
            "[\"a]",
            "[\"\n\"]",
            "[\"\\x\"]",
            "[\"\\u12g4\"]",
            "[\"\\u12\"]",
            "[\"\\",
            "\u{feff}{}",
            "[\u{a0}]",
        ] {
            assert!(!is_well_formed(text.as_bytes()) && !oracle(text.as_bytes()), "{text}");
        }
        for bytes in [&b"[\"\xff\xfe\"]"[..], b"[\"\xc3\"]", b"{}\xff", b"{}\0"] {
            assert!(!is_well_formed(bytes) && !oracle(bytes), "{bytes:?}");
        }
    }

    #[test]
    fn how_deep_it_may_be() {
        let nested = |depth| ["[".repeat(depth), "]".repeat(depth)].concat();
        assert!(is_well_formed(nested(127).as_bytes()));
        assert!(!is_well_formed(nested(128).as_bytes()));
        assert!(!is_well_formed("[{\"a\":".repeat(1_000_000).as_bytes()));
    }

    fn document() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..4).prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        /// Whole, cut off, and with one byte of it changed, left out or put in.
        #[test]
        fn as_serde_has_it(
            document in document(),
            pretty: bool,
            at: prop::sample::Index,
            byte in prop_oneof![any::<u8>(), prop::sample::select(b"\"\\,:{}[]0-.eutn \n".to_vec())],
        ) {
            let print = if pretty { serde_json::to_vec_pretty } else { serde_json::to_vec };
            let whole = print(&document).unwrap();
            prop_assert!(is_well_formed(&whole));
            let at = at.index(whole.len());
            let mut changed = [whole.clone(), whole.clone(), whole.clone(), whole[..at].to_vec()];
            changed[0][at] = byte;
            changed[1].remove(at);
            changed[2].insert(at, byte);
            for bytes in changed {
                prop_assert_eq!(is_well_formed(&bytes), oracle(&bytes), "{}", bytes.escape_ascii());
            }
        }
    }
}
