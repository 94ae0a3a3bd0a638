use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};

use super::bodies::NOT_UTF8;
use crate::{Part, Policy, Report, Rules, pending::Inquiring, rule::Findings, validator::Tally};

/// How a body is looked at while it runs: so much of it at once, together with the end of what came before.
///
/// A body passes window by window, each once the rules have seen it. The one in which a rule refuses is never forwarded:
/// the body ends there with the refusal as its error. What earlier windows let pass cannot be taken back.
///
/// What a rule looks for is found across two windows if it is no longer than the overlap. **Anything longer can be
/// missed.** A rule that demands something ([`Pattern::require`](crate::Pattern::require)) makes no sense here: it is
/// asked of each window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    bytes: usize,
    overlap: usize,
    within: Duration,
}

impl Window {
    /// Windows of this many bytes, with an overlap of 256 bytes. One that is not full is looked at after 200 ms.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub const fn new(bytes: usize) -> Self {
        assert!(bytes > 0, "a window of no bytes sees nothing");
        Self { bytes, overlap: 256, within: Duration::from_millis(200) }
    }

    /// How many bytes of what has passed are looked at again, together with the next window. 256 by default; 0 misses
    /// everything that lies in two windows.
    #[must_use]
    pub const fn overlap(mut self, bytes: usize) -> Self {
        self.overlap = bytes;
        self
    }

    /// How long bytes are held at most until there are enough for a window. 200 ms by default, and to the millisecond.
    #[must_use]
    pub const fn within(mut self, time: Duration) -> Self {
        self.within = time;
        self
    }

    #[cfg(feature = "json")]
    pub(super) const fn is_full(self, bytes: usize) -> bool {
        bytes >= self.bytes
    }

    pub(super) const fn time(self) -> Duration {
        self.within
    }
}

impl Default for Window {
    /// Windows of 1,024 bytes.
    fn default() -> Self {
        Self::new(1024)
    }
}

/// The longest end of `text` that has at most `max_bytes` bytes and begins where a character does.
///
/// ```
/// assert_eq!(bartizan_validate::tail("aé", 1), "", "é has two bytes");
/// assert_eq!(bartizan_validate::tail("aé", 2), "é");
/// ```
pub fn tail(text: &str, max_bytes: usize) -> &str {
    let mut from = text.len().saturating_sub(max_bytes);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

/// Who judges windows.
pub(super) struct Judge {
    pub(super) rules: Arc<Rules<str>>,
    pub(super) policy: Policy,
    pub(super) tally: Arc<Tally>,
}

impl Judge {
    /// Asks all rules about a window. What those say that are services is waited for with `asked`.
    ///
    /// # Errors
    ///
    /// The report that refuses.
    fn judge(&self, text: &mut str, asked: &mut Vec<AskedOf>) -> Result<(), Report> {
        let mut findings = self.rules.findings(self.policy);
        self.rules.run(text, &mut findings);
        if findings.refuses() || !self.rules.waits() {
            return self.conclude(findings, text);
        }
        asked.push(AskedOf { inquiring: self.rules.inquire_all(text, findings), text: text.to_owned() });
        Ok(())
    }

    /// Counts and tells what was found in a text.
    ///
    /// # Errors
    ///
    /// The report that refuses.
    pub(super) fn conclude(&self, findings: Findings, text: &mut str) -> Result<(), Report> {
        let report = findings.into_report(Part::Response);
        self.rules.tell(text, &report);
        self.tally.count(&report);
        if report.refuses() { Err(report) } else { Ok(()) }
    }

    pub(super) fn malformed(&self, message: &'static str) -> Report {
        let report = Report::malformed(Part::Response, "stream", message);
        self.tally.count(&report);
        report
    }
}

/// A window about which services are asked.
pub(super) struct AskedOf {
    pub(super) inquiring: Inquiring,
    pub(super) text: String,
}

/// Text of which one window after the other is looked at.
#[derive(Default)]
pub(super) struct Seen {
    /// The end of what has passed, and behind it what is to pass next.
    text: String,
}

impl Seen {
    /// # Errors
    ///
    /// The report that refuses.
    pub(super) fn pass(
        &mut self,
        next: &str,
        window: Window,
        judge: &Judge,
        asked: &mut Vec<AskedOf>,
    ) -> Result<(), Report> {
        self.text.push_str(next);
        judge.judge(&mut self.text, asked)?;
        let kept = tail(&self.text, window.overlap).len();
        self.text.drain(..self.text.len() - kept);
        Ok(())
    }
}

/// What is held of a body, until it may pass.
pub(super) trait Hold {
    /// Takes the next bytes of the body.
    fn push(&mut self, data: Bytes);

    /// Gives out what may pass now: a full window or, if that is `all` there is for now, what is held. `ended` if nothing
    /// more will come.
    ///
    /// # Errors
    ///
    /// The report that refuses.
    fn next(&mut self, all: bool, ended: bool, asked: &mut Vec<AskedOf>) -> Result<Option<Bytes>, Report>;

    /// Who judges.
    fn by(&self) -> &Judge;

    /// How many bytes are held.
    fn held(&self) -> usize;

    /// The body has failed: nobody knows how it would have gone on.
    fn cut(&mut self) {}

    /// Whether nothing is left to be said at the end of the body.
    fn is_settled(&self) -> bool {
        true
    }
}

/// A body that is text as it stands.
pub(super) struct Raw {
    window: Window,
    judge: Judge,
    seen: Seen,
    held: BytesMut,
}

impl Raw {
    pub(super) fn new(window: Window, judge: Judge) -> Self {
        Self { window, judge, seen: Seen::default(), held: BytesMut::new() }
    }
}

impl Hold for Raw {
    fn push(&mut self, data: Bytes) {
        self.held.extend_from_slice(&data);
    }

    fn next(&mut self, all: bool, ended: bool, asked: &mut Vec<AskedOf>) -> Result<Option<Bytes>, Report> {
        if self.held.is_empty() || (self.held.len() < self.window.bytes && !all && !ended) {
            return Ok(None);
        }
        // Cut at the byte, not at what happened to arrive together: the same body always passes in the same windows.
        let most = self.window.bytes.min(self.held.len());
        let end = match str::from_utf8(&self.held[..most]) {
            Ok(text) => text.len(),
            Err(error) => {
                let cut_by_us = error.error_len().is_none() && (most < self.held.len() || !ended);
                match error.valid_up_to() {
                    _ if !cut_by_us => {
                        return Err(self.judge.malformed(NOT_UTF8));
                    }
                    // A window smaller than a character.
                    0 if most < self.held.len() => return self.one_character(ended, asked),
                    0 => return Ok(None),
                    end => end,
                }
            }
        };
        self.pass(end, asked).map(Some)
    }

    fn by(&self) -> &Judge {
        &self.judge
    }

    fn held(&self) -> usize {
        self.held.len()
    }
}

impl Raw {
    fn pass(&mut self, end: usize, asked: &mut Vec<AskedOf>) -> Result<Bytes, Report> {
        let next = self.held.split_to(end).freeze();
        let text = str::from_utf8(&next).expect("it was looked at");
        self.seen.pass(text, self.window, &self.judge, asked)?;
        Ok(next)
    }

    fn one_character(&mut self, ended: bool, asked: &mut Vec<AskedOf>) -> Result<Option<Bytes>, Report> {
        for end in 1..=self.held.len().min(4) {
            if str::from_utf8(&self.held[..end]).is_ok() {
                return self.pass(end, asked).map(Some);
            }
        }
        if self.held.len() < 4 && !ended {
            return Ok(None);
        }
        Err(self.judge.malformed(NOT_UTF8))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Level, Pattern};

    fn raw(window: Window, deny: &str) -> Raw {
        let rules = Arc::new(Rules::new().error("deny", Pattern::deny(deny).unwrap()));
        Raw::new(window, Judge { rules, policy: Level::Moderate.into(), tally: Arc::default() })
    }

    /// What passes of the chunks, and whether all did.
    fn run(mut raw: Raw, chunks: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut passed = Vec::new();
        for (n, chunk) in chunks.iter().enumerate() {
            raw.push(Bytes::copy_from_slice(chunk));
            let ended = n + 1 == chunks.len();
            loop {
                match raw.next(false, ended, &mut Vec::new()) {
                    Ok(Some(bytes)) => passed.extend_from_slice(&bytes),
                    Ok(None) => break,
                    Err(_) => return (passed, false),
                }
            }
        }
        (passed, raw.held() == 0)
    }

    #[test]
    fn what_is_not_text_is_refused() {
        assert_eq!(run(raw(Window::new(4), "x"), &[b"abcd\xff\xfe"]), (b"abcd".to_vec(), false));
        assert_eq!(
            run(raw(Window::new(4), "x"), &[b"ab\xc3"]),
            (vec![], false),
            "half a character at the end"
        );
        assert_eq!(run(raw(Window::new(1), "x"), &["é€𝄞".as_bytes()]), ("é€𝄞".as_bytes().to_vec(), true));
        assert_eq!(
            run(raw(Window::new(1), "x"), &[b"\xf0\x9d", b"\x84\x9e"]),
            ("𝄞".as_bytes().to_vec(), true)
        );
    }

    #[test]
    fn a_window_that_is_not_full_passes_when_it_must() {
        let mut raw = raw(Window::new(100), "no");
        raw.push(Bytes::from_static("aé".as_bytes()).slice(..2));
        assert_eq!(raw.next(false, false, &mut Vec::new()).unwrap(), None);
        assert_eq!(
            raw.next(true, false, &mut Vec::new()).unwrap().as_deref(),
            Some(&b"a"[..]),
            "half a character waits"
        );
        assert_eq!(raw.next(true, false, &mut Vec::new()).unwrap(), None);
        raw.push(Bytes::from_static(b"\xa9 n"));
        assert_eq!(
            raw.next(true, false, &mut Vec::new()).unwrap().as_deref(),
            Some(" é n".trim_start().as_bytes())
        );
        raw.push(Bytes::from_static(b"o"));
        assert!(raw.next(true, false, &mut Vec::new()).is_err(), "across what time has cut");
    }

    proptest! {
        /// However a body arrives, the same of it passes: whole windows before the one that completes the word, if the
        /// overlap is long enough, and all of it if the word is not there.
        #[test]
        fn a_word_no_longer_than_the_overlap_is_never_missed(
            bytes in 1_usize..40, more in 0_usize..40, before in 0_usize..120, after in 0_usize..60,
            there: bool, cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            const WORD: &str = "SECRET";
            let window = Window::new(bytes).overlap(WORD.len() - 1 + more);
            let word = if there { WORD } else { "SECRE" };
            let text = format!("{}{word}{}", "a".repeat(before), "b".repeat(after));
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let chunks: Vec<_> = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
            let (passed, all) = run(raw(window, WORD), &chunks);
            prop_assert_eq!(all, !there);
            let expected = if there { (before + WORD.len() - 1) / bytes * bytes } else { text.len() };
            prop_assert_eq!(passed, &text.as_bytes()[..expected]);
        }

        #[test]
        fn a_tail_is_the_longest_there_is(text: String, max in 0_usize..40) {
            let tail = tail(&text, max);
            prop_assert!(text.ends_with(tail) && tail.len() <= max);
            let longer = text[..text.len() - tail.len()].chars().next_back();
            prop_assert!(longer.is_none_or(|c| tail.len() + c.len_utf8() > max));
        }
    }
}
