//! One form for all JSON texts that say the same.
//!
//! A single pass writes a text's tokens without white space, strings without escapes, and puts the members of an object in
//! order where they are not, unless their own order says something. A string ends with a byte that UTF-8 does not have, so
//! the form can be read back, and two texts have the same one only if they say the same. Numbers stay as they are written,
//! and members of the same name in the order in which they came: readers differ about both.

use std::ops::Range;

#[cfg(all(test, not(loom)))]
mod tests;

/// Room to work in.
#[derive(Debug)]
pub(super) struct Scratch {
    out: Out,
    sorted: Vec<u8>,
    members: Vec<Member>,
}

/// What is written so far, at the beginning of a buffer that has room for all of it.
#[derive(Debug)]
struct Out {
    buffer: Vec<u8>,
    end: usize,
}

/// A member of an object, as it stands in the output.
#[derive(Clone, Copy, Debug)]
struct Member {
    start: usize,
    name_end: usize,
    end: usize,
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Scratch {
    pub(super) const fn new() -> Self {
        Self { out: Out { buffer: Vec::new(), end: 0 }, sorted: Vec::new(), members: Vec::new() }
    }

    /// How many bytes it holds.
    pub(super) fn weight(&self) -> usize {
        self.out.buffer.capacity() + self.sorted.capacity() + self.members.capacity() * size_of::<Member>()
    }
}

/// What is said of members of the outermost object, by their names as they stand in the output.
#[derive(Clone, Debug)]
pub(super) struct Exceptions {
    left_out: Vec<Vec<u8>>,
    in_order: Vec<Vec<u8>>,
}

impl Exceptions {
    pub(super) const fn new() -> Self {
        Self { left_out: Vec::new(), in_order: Vec::new() }
    }

    /// It says nothing.
    pub(super) fn leave_out(&mut self, name: &str) {
        self.left_out.push(string(name));
    }

    /// In what is inside of it order says something.
    pub(super) fn in_order(&mut self, name: &str) {
        self.in_order.push(string(name));
    }
}

/// How deep arrays and objects may stand in each other: as deep as serde_json takes them.
const MAX_DEPTH: usize = 128;

/// Of so many bytes BLAKE3 takes eight parts at once.
const AT_ONCE: usize = 8 << 10;
/// What is no longer does not gain by that.
const FEW: usize = 2 << 10;

const STRING: u8 = b'"';
/// No byte of UTF-8, nor of what a lone surrogate becomes.
const STRING_END: u8 = 0xff;

/// The form of `text`.
///
/// `None` if it is no JSON, no UTF-8, or nested too deep.
pub(super) fn of<'s>(text: &[u8], exceptions: &Exceptions, scratch: &'s mut Scratch) -> Option<&'s [u8]> {
    std::str::from_utf8(text).ok()?;
    scratch.out.begin(text.len());
    scratch.members.clear();
    let mut writer = Writer { text, at: 0, in_order: false, scratch };
    writer.value(Some(exceptions), MAX_DEPTH)?;
    writer.skip_space();
    (writer.at == text.len()).then(|| scratch.out.written())
}

/// The form of a string.
fn string(text: &str) -> Vec<u8> {
    [&[STRING], text.as_bytes(), &[STRING_END]].concat()
}

impl Out {
    /// For a text of so many bytes: an element takes a byte more than it had, and is one at least.
    fn begin(&mut self, text: usize) {
        let most = (2 * text + CHUNK).next_multiple_of(AT_ONCE);
        if self.buffer.len() < most {
            self.buffer.resize(most, 0);
        }
        self.end = 0;
    }

    /// All that is written, and zeros up to what BLAKE3 takes at once: it is faster with those than without. No value goes
    /// on with a zero, so they say nothing.
    fn written(&mut self) -> &[u8] {
        let end = if self.end > FEW { self.end.next_multiple_of(AT_ONCE) } else { self.end };
        self.buffer[self.end..end].fill(0);
        &self.buffer[..end]
    }

    fn push(&mut self, byte: u8) {
        self.buffer[self.end] = byte;
        self.end += 1;
    }

    fn extend(&mut self, bytes: &[u8]) {
        self.buffer[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Writes a whole chunk, of which so many bytes count. A copy of a known length is an instruction.
    fn extend_in_part(&mut self, chunk: &[u8; CHUNK], count: usize) {
        self.buffer[self.end..self.end + CHUNK].copy_from_slice(chunk);
        self.end += count;
    }
}

struct Writer<'t, 's> {
    text: &'t [u8],
    at: usize,
    /// Members stay in the order in which they come.
    in_order: bool,
    scratch: &'s mut Scratch,
}

impl Writer<'_, '_> {
    /// `top`: what is said of the members, if this is the outermost value.
    fn value(&mut self, top: Option<&Exceptions>, depth: usize) -> Option<()> {
        self.skip_space();
        match self.peek()? {
            b'{' => self.object(top, depth.checked_sub(1)?),
            b'[' => self.array(depth.checked_sub(1)?),
            b'"' => self.string(),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            _ => self.number(),
        }
    }

    fn object(&mut self, top: Option<&Exceptions>, depth: usize) -> Option<()> {
        self.take(b'{')?;
        let begin = self.scratch.out.end;
        let first = self.scratch.members.len();
        let mut is_sorted = true;
        self.skip_space();
        while self.peek()? != b'}' {
            let start = self.scratch.out.end;
            self.string()?;
            let name_end = self.scratch.out.end;
            self.skip_space();
            self.pass(b':')?;
            let is_left_out = top.is_some_and(|top| self.heeds(top, start..name_end));
            self.value(None, depth)?;
            let Scratch { out, members, .. } = &mut *self.scratch;
            let name = |start, end| &out.buffer[start..end];
            if is_left_out {
                out.end = start;
            } else {
                let last = members[first..].last();
                is_sorted &= last.is_none_or(|last| name(last.start, last.name_end) <= name(start, name_end));
                members.push(Member { start, name_end, end: out.end });
            }
            self.next(b'}')?;
        }
        // Order says nothing at the top.
        if !is_sorted && (top.is_some() || !self.in_order) {
            self.sort(begin, first);
        }
        self.scratch.members.truncate(first);
        self.take(b'}')
    }

    /// Minds the order in the member whose name stands there in the output, if it is said to; whether it is left out.
    fn heeds(&mut self, exceptions: &Exceptions, name: Range<usize>) -> bool {
        let name = &self.scratch.out.buffer[name];
        let is_in = |names: &[Vec<u8>]| names.iter().any(|it| it == name);
        self.in_order = is_in(&exceptions.in_order);
        is_in(&exceptions.left_out)
    }

    /// Puts the members of an object that begins at `begin` in order. Theirs are those from `first`.
    fn sort(&mut self, begin: usize, first: usize) {
        let Scratch { out, sorted, members } = &mut *self.scratch;
        let members = &mut members[first..];
        let name = |member: &Member| &out.buffer[member.start..member.name_end];
        members.sort_unstable_by(|one, other| name(one).cmp(name(other)).then(one.start.cmp(&other.start)));
        sorted.clear();
        members.iter().for_each(|member| sorted.extend_from_slice(&out.buffer[member.start..member.end]));
        out.end = begin;
        out.extend(sorted);
    }

    fn array(&mut self, depth: usize) -> Option<()> {
        self.take(b'[')?;
        self.skip_space();
        while self.peek()? != b']' {
            self.value(None, depth)?;
            // Two numbers would run together.
            self.scratch.out.push(b',');
            self.next(b']')?;
        }
        self.take(b']')
    }

    /// Goes on to the next element, or to the end: there is none behind the last comma.
    fn next(&mut self, end: u8) -> Option<()> {
        self.skip_space();
        if self.peek()? != end {
            self.pass(b',')?;
            self.skip_space();
            return (self.peek()? != end).then_some(());
        }
        Some(())
    }

    fn string(&mut self) -> Option<()> {
        self.take(b'"')?;
        loop {
            self.plain();
            match self.peek()? {
                b'"' => break,
                b'\\' => self.escape()?,
                // A control character must be escaped.
                _ => return None,
            }
        }
        self.at += 1;
        self.scratch.out.push(STRING_END);
        Some(())
    }

    /// Writes what is neither a quote, nor a backslash, nor a control character, a chunk at a time.
    fn plain(&mut self) {
        let out = &mut self.scratch.out;
        let (chunks, rest) = self.text[self.at..].as_chunks();
        for chunk in chunks {
            let count = plain(chunk);
            out.extend_in_part(chunk, count);
            self.at += count;
            if count < CHUNK {
                return;
            }
        }
        let count = rest.iter().take_while(|byte| !matches!(byte, b'"' | b'\\' | ..0x20)).count();
        out.extend(&rest[..count]);
        self.at += count;
    }

    fn escape(&mut self) -> Option<()> {
        let escaped = *self.text.get(self.at + 1)?;
        self.at += 2;
        let byte = match escaped {
            b'"' | b'\\' | b'/' => escaped,
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => return self.unicode(),
            _ => return None,
        };
        self.scratch.out.push(byte);
        Some(())
    }

    /// A code unit of UTF-16, and its other half if it has one. A half alone is written as UTF-8 would if it might.
    fn unicode(&mut self) -> Option<()> {
        let first = self.hex()?;
        let mut code = u32::from(first);
        if (0xd800..0xdc00).contains(&first) && self.text[self.at..].starts_with(b"\\u") {
            let back = self.at;
            self.at += 2;
            let second = self.hex()?;
            if (0xdc00..0xe000).contains(&second) {
                code = 0x10000 + ((code - 0xd800) << 10) + (u32::from(second) - 0xdc00);
            } else {
                self.at = back;
            }
        }
        let out = &mut self.scratch.out;
        match char::from_u32(code) {
            Some(char) => out.extend(char.encode_utf8(&mut [0; 4]).as_bytes()),
            None => {
                out.extend(
                    &[0xe0 | code >> 12, 0x80 | code >> 6 & 0x3f, 0x80 | code & 0x3f].map(|byte| byte as u8),
                );
            }
        }
        Some(())
    }

    fn hex(&mut self) -> Option<u16> {
        let digits = self.text.get(self.at..self.at + 4)?;
        self.at += 4;
        digits.iter().try_fold(0, |code, digit| Some(code << 4 | char::from(*digit).to_digit(16)? as u16))
    }

    fn number(&mut self) -> Option<()> {
        let start = self.at;
        let _ = self.skip(b"-");
        match self.peek()? {
            b'0' => self.at += 1,
            _ => self.digits()?,
        }
        if self.skip(b".") {
            self.digits()?;
        }
        if self.skip(b"eE") {
            let _ = self.skip(b"+-");
            self.digits()?;
        }
        self.scratch.out.extend(&self.text[start..self.at]);
        Some(())
    }

    fn digits(&mut self) -> Option<()> {
        let digits = self.text[self.at..].iter().take_while(|digit| digit.is_ascii_digit()).count();
        self.at += digits;
        (digits > 0).then_some(())
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        self.text[self.at..].starts_with(word).then_some(())?;
        self.at += word.len();
        self.scratch.out.extend(word);
        Some(())
    }

    fn skip_space(&mut self) {
        let space = |byte: &&u8| matches!(byte, b' ' | b'\n' | b'\r' | b'\t');
        self.at += self.text[self.at..].iter().take_while(space).count();
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// Goes past one of these, if it is there.
    fn skip(&mut self, any: &[u8]) -> bool {
        let is_there = self.peek().is_some_and(|byte| any.contains(&byte));
        self.at += usize::from(is_there);
        is_there
    }

    /// Goes past this, which must be there.
    fn pass(&mut self, byte: u8) -> Option<()> {
        self.skip(&[byte]).then_some(())
    }

    /// [`pass`](Self::pass)es it and writes it.
    fn take(&mut self, byte: u8) -> Option<()> {
        self.pass(byte)?;
        self.scratch.out.push(byte);
        Some(())
    }
}

const CHUNK: usize = 16;

/// How many bytes of a chunk, from its first, are neither a quote, nor a backslash, nor a control character.
fn plain(chunk: &[u8; CHUNK]) -> usize {
    const ONES: u128 = u128::MAX / 0xff;
    const HIGHS: u128 = ONES << 7;
    let word = u128::from_le_bytes(*chunk);
    // The highest bit of each byte that is 0; a borrow may mark bytes above the first of those, never below.
    let zeros = |word: u128| word.wrapping_sub(ONES) & !word;
    let controls = word.wrapping_sub(ONES * 0x20) & !word;
    let marks = (zeros(word ^ (ONES * 0x22)) | zeros(word ^ (ONES * 0x5c)) | controls) & HIGHS;
    marks.trailing_zeros() as usize / 8
}
