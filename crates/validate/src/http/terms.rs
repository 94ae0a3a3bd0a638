use aho_corasick::{AhoCorasick, AhoCorasickKind, Input, MatchKind, packed};

use super::pattern::InvalidPattern;
use crate::{Found, Rule};

/// Terms that text must not have in it, all of them looked for in one pass.
///
/// The case of ASCII letters does not matter. A term counts as a whole word: `ass` is not in `class`, unless
/// [`inside_words`](Self::inside_words) says so. However many there are, text is looked through once; terms of 16 KiB in all take
/// up to 4 MiB of memory (16 MiB if they are of many scripts), and more take longer to look for, and less memory each.
///
/// ```
/// use bartizan_validate::{Level, Rules, Terms};
///
/// let rules = Rules::<str>::new().safety("terms", Terms::new(["Nightfall", "red door"])?);
/// assert!(rules.check("what is NIGHTFALL?", Level::Lenient).refuses());
/// assert!(rules.check("the nightfalls of autumn", Level::Lenient).is_clean());
/// # Ok::<(), bartizan_validate::InvalidPattern>(())
/// ```
#[derive(Clone, Debug)]
pub struct Terms {
    automaton: AhoCorasick,
    /// Finds few terms in lower case, many bytes at a time.
    few: Option<packed::Searcher>,
    inside_words: bool,
}

/// Terms of more bytes in all have a smaller table, which takes longer to look through.
const MOST_TABLED: usize = 16 << 10;
/// So many are found many bytes at a time.
const MOST_FEW: usize = 32;
/// Text that is shorter is looked through faster than lowered.
const WORTH_LOWERING: usize = 128;

impl Terms {
    /// These terms.
    ///
    /// # Errors
    ///
    /// If one is empty, since that is in every text, or if together they are too many for an automaton.
    pub fn new<I>(terms: I) -> Result<Self, InvalidPattern>
    where
        I: IntoIterator<Item: AsRef<str>>,
    {
        let terms: Vec<_> = terms.into_iter().collect();
        if let Some(at) = terms.iter().position(|term| term.as_ref().is_empty()) {
            return Err(InvalidPattern::new(format!("term {at} is empty")));
        }
        // The faster table while it stays small: a byte of a term takes 256 bytes of it, or 1 KiB if terms have all bytes there are.
        let bytes: usize = terms.iter().map(|term| term.as_ref().len()).sum();
        let kind = if bytes <= MOST_TABLED { AhoCorasickKind::DFA } else { AhoCorasickKind::ContiguousNFA };
        let automaton = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            // Standard, so that overlapping ones are found: a term inside a longer one, at a word's end.
            .match_kind(MatchKind::Standard)
            .kind(Some(kind))
            .build(terms.iter().map(AsRef::as_ref))
            .map_err(|error| InvalidPattern::new(error.to_string()))?;
        let few = terms.len() <= MOST_FEW;
        let few =
            few.then(|| packed::Searcher::new(terms.iter().map(|term| term.as_ref().to_ascii_lowercase())));
        Ok(Self { automaton, few: few.flatten(), inside_words: false })
    }

    /// A term counts inside of words, too.
    #[must_use]
    pub const fn inside_words(mut self) -> Self {
        self.inside_words = true;
        self
    }
}

impl Terms {
    fn is_in(&self, text: &str) -> bool {
        // Most text has none of them, not even inside of a word, which is faster to see.
        let some = match &self.few {
            Some(few) if text.len() >= WORTH_LOWERING => few.find(text.to_ascii_lowercase()).is_some(),
            _ => self.automaton.is_match(text),
        };
        if !some {
            return false;
        }
        if self.inside_words {
            return true;
        }
        let words = |start, end| is_edge(text, start) && is_edge(text, end);
        self.automaton.find_overlapping_iter(Input::new(text)).any(|hit| words(hit.start(), hit.end()))
    }
}

impl Rule<str> for Terms {
    fn check(&self, text: &str, found: &mut Found<'_>) {
        if self.is_in(text) {
            found.violation("", "a term that must not be there is there");
        }
    }

    /// A line feed ends words as the end of a text does.
    fn clears(&self, lines: &str) -> bool {
        !self.is_in(lines)
    }
}

/// Whether no word goes on across this place.
pub(super) fn is_edge(text: &str, at: usize) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    // A term of other signs stands for itself wherever it is.
    let (before, after) = (text[..at].chars().next_back(), text[at..].chars().next());
    !(before.is_some_and(is_word) && after.is_some_and(is_word))
}
