use std::sync::LazyLock;

use regex::Regex;

use super::terms::is_edge;
use crate::{Found, Rule};

/// What identifies a person or opens a door, in text: e-mail addresses, phone numbers, payment cards, keys and tokens.
///
/// Patterns, not understanding: names, addresses and numbers that are spelt out are not seen, and neither is what is
/// broken up by other signs than those named here. Each class that is found is one violation, which does not quote it.
///
/// | class | what counts | what does not |
/// |---|---|---|
/// | [`emails`](Self::emails) | `local@domain.tld` of ASCII letters, digits and the usual signs | a host without a dot, an address in other scripts |
/// | [`phones`](Self::phones) | `+` and 8 to 15 digits in any grouping; 10 or 11 digits of the North American plan with separators | a number without `+` or separators, local formats of other countries |
/// | [`cards`](Self::cards) | 13 to 19 digits, single spaces or hyphens between them, first digit 2 to 6, right by Luhn | other first digits; one in ten of random numbers passes Luhn |
/// | [`secrets`](Self::secrets) | well-known prefixes (`sk-`, `ghp_`, `AKIA`, `xoxb-`, `AIza`, `glpat-`, ..), JSON web tokens, PEM private keys | keys without a prefix |
///
/// ```
/// use bartizan_validate::{Level, Pii, Rules};
///
/// let rules = Rules::<str>::new().error("pii", Pii::new().emails().cards());
/// let report = rules.check("charge 4111 1111 1111 1111, receipt to ann@example.org", Level::Moderate);
/// assert!(report.refuses());
/// assert_eq!(report.violations().len(), 2);
/// assert!(!report.to_string().contains("4111"), "nothing is quoted");
/// assert!(rules.check("order 4111 1111 1111 1112", Level::Moderate).is_clean());
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Pii {
    emails: bool,
    phones: bool,
    cards: bool,
    secrets: bool,
}

impl Pii {
    /// Nothing yet: the classes are chosen one by one.
    pub const fn new() -> Self {
        Self { emails: false, phones: false, cards: false, secrets: false }
    }

    /// All classes.
    pub const fn all() -> Self {
        Self { emails: true, phones: true, cards: true, secrets: true }
    }

    /// E-mail addresses.
    #[must_use]
    pub const fn emails(mut self) -> Self {
        self.emails = true;
        self
    }

    /// Phone numbers.
    #[must_use]
    pub const fn phones(mut self) -> Self {
        self.phones = true;
        self
    }

    /// Numbers of payment cards.
    #[must_use]
    pub const fn cards(mut self) -> Self {
        self.cards = true;
        self
    }

    /// Keys, tokens and private keys.
    #[must_use]
    pub const fn secrets(mut self) -> Self {
        self.secrets = true;
        self
    }
}

impl Pii {
    /// Which classes are in the text, in words.
    fn found_in(self, text: &str) -> impl Iterator<Item = &'static str> {
        type IsIn = fn(&str) -> bool;
        let number = (self.phones || self.cards) && has_number(text.as_bytes());
        let classes: [(bool, IsIn, _); 4] = [
            (self.emails, has_email, "an e-mail address"),
            (self.phones && number, has_phone, "a phone number"),
            (self.cards && number, has_card, "the number of a payment card"),
            (self.secrets, has_secret, "a key or a token"),
        ];
        classes.into_iter().filter(|(wanted, is_in, _)| *wanted && is_in(text)).map(|(_, _, class)| class)
    }
}

impl Rule<str> for Pii {
    fn check(&self, text: &str, found: &mut Found<'_>) {
        for class in self.found_in(text) {
            found.violation("", class);
        }
    }

    /// None of it goes across a line feed, and what may not stand before or behind it is no line feed.
    fn clears(&self, lines: &str) -> bool {
        self.found_in(lines).next().is_none()
    }
}

fn pattern(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a pattern of our own")
}

static EMAIL: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"(?i)[a-z0-9](?:[a-z0-9._%+-]{0,63})@(?:[a-z0-9](?:[a-z0-9-]{0,62})\.){1,8}[a-z]{2,24}(?-u:\b)")
});

static PHONE: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?x)
        \+[1-9](?:[\x20.()/-]{0,2}[0-9]){7,14}(?-u:\b)
        | (?:1[\x20.-])?\([2-9][0-9]{2}\)\x20?[2-9][0-9]{2}[\x20.-][0-9]{4}(?-u:\b)
        | (?:1[\x20.-])?[2-9][0-9]{2}[\x20.-][2-9][0-9]{2}[\x20.-][0-9]{4}(?-u:\b)",
    )
});

/// `xoxb-` and ten signs.
const SHORTEST_SECRET: usize = 15;

static SECRET: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?x)
        (?-u:\b)(?:
            sk-[A-Za-z0-9_-]{20,}
            | (?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,}
            | gh[pousr]_[A-Za-z0-9]{36,}
            | github_pat_[A-Za-z0-9_]{22,}
            | glpat-[A-Za-z0-9_-]{20,}
            | xox[abprs]-[A-Za-z0-9-]{10,}
            | (?:AKIA|ASIA)[A-Z0-9]{16}(?-u:\b)
            | AIza[A-Za-z0-9_-]{35}
            | hf_[A-Za-z0-9]{30,}
            | eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}
        )
        | -----BEGIN\x20(?:[A-Z]+\x20)*PRIVATE\x20KEY-----",
    )
});

// Most text has none of the bytes that these begin with, which is much faster to see.

fn has_email(text: &str) -> bool {
    text.contains('@') && EMAIL.is_match(text)
}

fn has_secret(text: &str) -> bool {
    text.len() >= SHORTEST_SECRET && SECRET.is_match(text)
}

fn has_phone(text: &str) -> bool {
    PHONE.find_iter(text).any(|hit| {
        let (before, after) = (&text[..hit.start()], &text.as_bytes()[hit.end()..]);
        // A number that goes on is another number: a version, an address.
        let goes_on = matches!(after, [b'.', b'0'..=b'9', ..]) || before.ends_with(['.', '+']);
        let begins = hit.as_str().starts_with(['(', '+']) || is_edge(text, hit.start());
        begins && !goes_on
    })
}

/// Whether there is a run of digits, with single spaces or hyphens between groups of them, of which some whole groups are
/// the number of a card.
fn has_card(text: &str) -> bool {
    const MOST: usize = 63;
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        at += before_digit(&bytes[at..]);
        let mut digits = [0_u8; MOST];
        // Bit n: a group begins with digit n, or has ended before it.
        let mut edges = 1_u64;
        let mut count = 0;
        while count < MOST
            && let Some(digit) = bytes.get(at).filter(|byte| byte.is_ascii_digit())
        {
            digits[count] = digit - b'0';
            count += 1;
            at += 1;
            if bytes.get(at).is_none_or(|byte| !byte.is_ascii_digit()) {
                edges |= 1 << count;
                let goes_on = matches!(bytes.get(at), Some(b' ' | b'-'))
                    && bytes.get(at + 1).is_some_and(u8::is_ascii_digit);
                at += usize::from(goes_on);
            }
        }
        let is_edge = |n: &usize| edges & (1 << n) != 0;
        let mut groups = (0..count).filter(is_edge);
        if groups.any(|start| {
            (start + 13..=count.min(start + 19)).filter(is_edge).any(|end| is_card(&digits[start..end]))
        }) {
            return true;
        }
    }
    false
}

/// Whether there are as many digits as the shortest number has that is looked for, with no more between two of them than any of
/// those has.
fn has_number(bytes: &[u8]) -> bool {
    const SHORTEST: usize = 8;
    // So many digits are in two strides that follow each other, if they stand as near to each other as they must. Most text
    // has fewer, which is seen many bytes at a time.
    let mut last = 0;
    let dense = bytes.chunks(32).any(|stride| {
        let digits = stride.iter().fold(0, |digits, byte| digits + u8::from(byte.is_ascii_digit()));
        usize::from(std::mem::replace(&mut last, digits) + digits) >= SHORTEST
    });
    if !dense {
        return false;
    }
    let mut at = 0;
    while at < bytes.len() {
        at += before_digit(&bytes[at..]);
        let (mut digits, mut between) = (0, 0);
        for byte in &bytes[at..] {
            at += 1;
            match byte {
                b'0'..=b'9' => (digits, between) = (digits + 1, 0),
                b' ' | b'.' | b'(' | b')' | b'/' | b'-' if between < 2 => between += 1,
                _ => break,
            }
            if digits == SHORTEST {
                return true;
            }
        }
    }
    false
}

/// How many bytes come before the first digit. In strides, since most text has few.
fn before_digit(bytes: &[u8]) -> usize {
    let mut before = 0;
    for stride in bytes.chunks(32) {
        if stride.iter().fold(false, |any, byte| any | byte.is_ascii_digit()) {
            return before + stride.iter().take_while(|byte| !byte.is_ascii_digit()).count();
        }
        before += stride.len();
    }
    before
}

fn is_card(digits: &[u8]) -> bool {
    if !(13..=19).contains(&digits.len()) || !(2..=6).contains(&digits[0]) {
        return false;
    }
    let luhn = |(n, digit): (usize, &u8)| match (n % 2, digit * 2) {
        (0, _) => u32::from(*digit),
        (_, twice) => u32::from(if twice > 9 { twice - 9 } else { twice }),
    };
    digits.iter().rev().enumerate().map(luhn).sum::<u32>() % 10 == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Level, Rules};

    fn finds(pii: Pii, text: &str) -> bool {
        Rules::<str>::new().warn("pii", pii).check(text, Level::Strict).refuses()
    }

    fn table(pii: Pii, is: &[&str], is_not: &[&str]) {
        for text in is {
            assert!(finds(pii, text), "missed: {text}");
            assert!(finds(pii, &format!("Well: {text}, he said.")), "missed in a sentence: {text}");
        }
        for text in is_not {
            assert!(!finds(pii, text), "found: {text}");
        }
    }

    #[test]
    fn emails() {
        table(
            Pii::new().emails(),
            &[
                "ann@example.org",
                "Ann.B+tag@mail.example.co.uk",
                "x_1%y@a-b.io",
                "<ann@example.org>",
                "mailto:ann@example.org",
            ],
            &[
                "ann@localhost",
                "@ann",
                "ann@",
                "a @ b.org",
                "user@host:22",
                "@Component.Class",
                "3 @ 5.00",
                "git@v1.2.3",
            ],
        );
    }

    #[test]
    fn phones() {
        table(
            Pii::new().phones(),
            &[
                "+14155552671",
                "+1 (415) 555-2671",
                "+49 30 901820",
                "+44 20 7946 0958",
                "+33 1 23 45 67 89",
                "415-555-2671",
                "(415) 555-2671",
                "1-415-555-2671",
                "415.555.2671",
                "call +14155552671.",
                "+14155552671 12",
            ],
            &[
                "2024-01-15",
                "10.0.0.1",
                "192.168.100.200",
                "4155552671",
                "555-2671",
                "1+23",
                "+123",
                "115-555-2671",
                "415-155-2671",
                "9415-555-26712",
                "v1.2.3",
                "3.14159265358979",
                "415.555.2671.9",
                "1.415.555.26715",
                "ISBN 978-3-16-148410-0",
            ],
        );
    }

    #[test]
    fn cards() {
        table(
            Pii::new().cards(),
            &[
                "4111111111111111",
                "4111 1111 1111 1111",
                "5500-0000-0000-0004",
                "378282246310005",
                "6011111111111117",
                "3530111333300000",
                "2223003122003222",
                "4222222222222",
                "4111 1111 1111 1111 12 28",
                "12-28 4111-1111-1111-1111",
            ],
            &[
                "4111111111111112",
                "4111  1111  1111  1111",
                "1234567890123",
                "0000000000000000",
                "9999999999999995",
                "41111111111111111111111",
                "411111111111",
                "1700000000000",
            ],
        );
    }

    #[test]
    fn secrets() {
        let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVPmB92K27uhbUJ";
        let github = format!("ghp_{}", "a1B2".repeat(9));
        let openai = format!("sk-proj-{}", "a1B2".repeat(6));
        table(
            Pii::new().secrets(),
            &[
                jwt,
                &github,
                &openai,
                "AKIAIOSFODNN7EXAMPLE",
                "xoxb-123456789012-abcdef",
                "-----BEGIN RSA PRIVATE KEY-----",
                "-----BEGIN PRIVATE KEY-----",
            ],
            &[
                "sk-short",
                "risk-adjusted-returns-of-the-portfolio",
                "ghp_short",
                "AKIA",
                "eyJhbGciOiJIUzI1NiJ9",
                "-----BEGIN PUBLIC KEY-----",
                "-----BEGIN CERTIFICATE-----",
            ],
        );
    }

    proptest! {
        /// What is too short for a number has none, whatever stands around its digits.
        #[test]
        fn no_number_is_missed(
            before in 0_usize..70,
            parts in prop::collection::vec(prop::sample::select(vec![
                "1", "4", "415", "555", "2671", "4111", "1111", "+", "-", " ", ".", "(", ")", "/", ") ", "-(", "a", "\n", "  ",
            ]), 0..16),
        ) {
            let text = "x".repeat(before) + &parts.concat();
            if !has_number(text.as_bytes()) {
                prop_assert!(!PHONE.is_match(&text), "{}", text);
            }
        }
    }

    #[test]
    fn classes_are_chosen() {
        assert!(!finds(Pii::new(), "ann@example.org +14155552671 4111111111111111 AKIAIOSFODNN7EXAMPLE"));
        let report = Rules::<str>::new()
            .warn("pii", Pii::all())
            .check("ann@example.org +14155552671 4111111111111111 AKIAIOSFODNN7EXAMPLE", Level::Lenient);
        assert_eq!(report.violations().len(), 4);
    }
}
