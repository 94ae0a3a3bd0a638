//! Whether bytes are JSON, and how deep it is nested: one pass that builds nothing and does not recurse.

use std::fmt;

use memchr::memchr2;

/// Why bytes are not JSON that may be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    NotUtf8,
    /// What is there at this byte does not belong there.
    Syntax(usize),
    /// More arrays and objects inside each other than this.
    TooDeep(usize),
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotUtf8 => f.write_str("it is not UTF-8"),
            Self::Syntax(at) => write!(f, "it is not JSON from byte {at} on"),
            Self::TooDeep(max) => write!(f, "it is nested more than {max} deep"),
        }
    }
}

/// Looks through `bytes`: one JSON value (RFC 8259) in at most `max_depth` arrays and objects inside each other.
pub(crate) fn scan(bytes: &[u8], max_depth: usize) -> Result<(), Flaw> {
    let mut scanner = Scanner { bytes, at: 0 };
    let scanned = scanner.document(max_depth);
    // Outside of strings every byte is ASCII by then, so this can come last and only for what is JSON otherwise.
    scanned.and_then(|()| str::from_utf8(bytes).map(drop).map_err(|_| Flaw::NotUtf8))
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn document(&mut self, max_depth: usize) -> Result<(), Flaw> {
        // Which brackets are open: true for an object. It grows only as deep as is allowed.
        let mut open: Vec<bool> = Vec::new();
        loop {
            // A value begins here.
            match self.next()? {
                b'"' => self.string()?,
                bracket @ (b'{' | b'[') => {
                    if open.len() == max_depth {
                        return Err(Flaw::TooDeep(max_depth));
                    }
                    let object = bracket == b'{';
                    if self.peek() == Some(if object { b'}' } else { b']' }) {
                        self.at += 1;
                    } else {
                        open.push(object);
                        if object {
                            self.name()?;
                        }
                        continue;
                    }
                }
                b't' => self.word(b"rue")?,
                b'f' => self.word(b"alse")?,
                b'n' => self.word(b"ull")?,
                b'-' => {
                    let first = self.byte();
                    self.number(first)?;
                }
                digit => self.number(Some(digit))?,
            }
            // A value has ended here, and with it what contains it, if nothing more follows.
            loop {
                let Some(object) = open.last().copied() else {
                    return if self.peek().is_none() { Ok(()) } else { Err(Flaw::Syntax(self.at)) };
                };
                match self.next()? {
                    b',' => {
                        if object {
                            self.name()?;
                        }
                        break;
                    }
                    b'}' if object => drop(open.pop()),
                    b']' if !object => drop(open.pop()),
                    _ => return self.wrong(),
                }
            }
        }
    }

    /// A member's name, up to its value.
    fn name(&mut self) -> Result<(), Flaw> {
        if self.next()? != b'"' {
            return self.wrong();
        }
        self.string()?;
        if self.next()? == b':' { Ok(()) } else { self.wrong() }
    }

    fn string(&mut self) -> Result<(), Flaw> {
        loop {
            // Most of JSON is inside of strings, so they are crossed in strides.
            let rest = &self.bytes[self.at..];
            let plain = memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
            if rest[..plain].iter().fold(false, |any, byte| any | (*byte < 0x20)) {
                self.at += rest.iter().take_while(|byte| **byte >= 0x20).count();
                return Err(Flaw::Syntax(self.at));
            }
            self.at += plain;
            match self.byte() {
                Some(b'"') => return Ok(()),
                Some(_) => self.escape()?,
                None => return self.wrong(),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Flaw> {
        match self.byte() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(()),
            Some(b'u') => {
                for _ in 0..4 {
                    if !self.byte().is_some_and(|byte| byte.is_ascii_hexdigit()) {
                        return self.wrong();
                    }
                }
                Ok(())
            }
            _ => self.wrong(),
        }
    }

    fn number(&mut self, first: Option<u8>) -> Result<(), Flaw> {
        match first {
            Some(b'0') => {}
            Some(b'1'..=b'9') => self.digits(),
            _ => return self.wrong(),
        }
        if self.here() == Some(b'.') {
            self.at += 1;
            self.some_digits()?;
        }
        if let Some(b'e' | b'E') = self.here() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.here() {
                self.at += 1;
            }
            self.some_digits()?;
        }
        Ok(())
    }

    fn some_digits(&mut self) -> Result<(), Flaw> {
        if !self.byte().is_some_and(|byte| byte.is_ascii_digit()) {
            return self.wrong();
        }
        self.digits();
        Ok(())
    }

    fn digits(&mut self) {
        while self.here().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
    }

    fn word(&mut self, rest: &[u8]) -> Result<(), Flaw> {
        if self.bytes[self.at..].starts_with(rest) {
            self.at += rest.len();
            return Ok(());
        }
        Err(Flaw::Syntax(self.at))
    }

    /// The byte after white space, taken.
    fn next(&mut self) -> Result<u8, Flaw> {
        self.peek();
        self.byte().ok_or(Flaw::Syntax(self.at))
    }

    /// The byte after white space, left there.
    fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.here() {
            self.at += 1;
        }
        self.here()
    }

    fn here(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = self.here();
        self.at += usize::from(byte.is_some());
        byte
    }

    /// The byte just taken does not belong there, or there is none.
    fn wrong<T>(&self) -> Result<T, Flaw> {
        Err(Flaw::Syntax(self.at.saturating_sub(1)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn depth_is_counted_in_brackets() {
        for (text, depth) in [("1", 0), ("[]", 1), ("{}", 1), (r#"{"a":[{"b":1}]}"#, 3), ("[[],[],[]]", 2)] {
            assert_eq!(scan(text.as_bytes(), depth), Ok(()), "{text}");
            if depth > 0 {
                assert_eq!(scan(text.as_bytes(), depth - 1), Err(Flaw::TooDeep(depth - 1)), "{text}");
            }
        }
        let bomb = "[".repeat(1_000_000);
        assert_eq!(scan(bomb.as_bytes(), 64), Err(Flaw::TooDeep(64)));
    }

    #[test]
    fn what_is_wrong_is_found_where_it_is() {
        let cases: &[(&[u8], Flaw)] = &[
            (b"", Flaw::Syntax(0)),
            (b"{\"a\":NaN}", Flaw::Syntax(5)),
            (b"Infinity", Flaw::Syntax(0)),
            (b"[1,]", Flaw::Syntax(3)),
            (b"{} x", Flaw::Syntax(3)),
            (b"\"\xff\"", Flaw::NotUtf8),
            (b"\"a\x01b\"", Flaw::Syntax(2)),
        ];
        for (bytes, flaw) in cases {
            assert_eq!(scan(bytes, 9), Err(*flaw), "{}", bytes.escape_ascii());
        }
    }

    /// Texts of the bytes that matter, so that many are JSON and many nearly are.
    fn nearly_json() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"a\"",
            "\"\\u00e9\"",
            "\"\\x\"",
            "\"",
            "0",
            "01",
            "-",
            "1.5",
            "1.",
            "2e3",
            "e",
            "true",
            "nul",
            "null",
            " ",
            "\n",
            "\u{e9}",
            "\"\u{e9}\"",
            "\u{1}",
        ]);
        prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat().into_bytes())
    }

    /// Any JSON.
    pub(crate) fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn agrees_with_a_parser(bytes in nearly_json()) {
            let parses = serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok();
            prop_assert_eq!(scan(&bytes, 99).is_ok(), parses, "{}", bytes.escape_ascii());
        }

        #[test]
        fn what_is_written_as_json_is_json(value in value(), cut in any::<prop::sample::Index>()) {
            let text = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(scan(text.as_bytes(), 9), Ok(()));
            let cut = &text.as_bytes()[..cut.index(text.len())];
            let parses = serde_json::from_slice::<serde::de::IgnoredAny>(cut).is_ok();
            prop_assert_eq!(scan(cut, 9).is_ok(), parses);
        }
    }
}
