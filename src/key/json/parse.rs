//! A strict reader of JSON (RFC 8259), bounded in depth and linear in time.

use super::{Member, Value};
use std::borrow::Cow;

/// How deep arrays and objects may nest. As deep as `serde_json` reads; far deeper than any API's
/// body, and a few kilobytes of stack.
const MAX_DEPTH: usize = 128;

/// Why a body is not JSON from which a key can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum NotJson {
    /// It breaks the grammar, or goes on after its end.
    Syntax,
    /// It is not UTF-8, or has half of a surrogate pair: there is no text to compare.
    Encoding,
    /// It nests deeper than 128 arrays and objects.
    TooDeep,
    /// An object has a name twice: readers differ in which one they take (RFC 8259 section 4), and
    /// the origin might take the other one.
    DuplicateName,
}

impl NotJson {
    /// What is wrong, in words that show none of the body.
    pub(in super::super) fn why(self) -> &'static str {
        match self {
            Self::Syntax => "it is not JSON",
            Self::Encoding => "it is not JSON: its text is not Unicode",
            Self::TooDeep => "it is JSON with more than 128 levels",
            Self::DuplicateName => "it is JSON with a duplicate member",
        }
    }
}

/// Reads one value that is the whole of a body.
///
/// # Errors
///
/// If it is not JSON from which a key can be made.
pub(in super::super) fn parse(body: &[u8]) -> Result<Value<'_>, NotJson> {
    let text = std::str::from_utf8(body).map_err(|_where| NotJson::Encoding)?;
    let mut reader = Reader { text, at: 0 };
    let value = reader.value(0)?;
    reader.skip_space();
    if reader.at == text.len() { Ok(value) } else { Err(NotJson::Syntax) }
}

struct Reader<'a> {
    text: &'a str,
    /// Always at the start of a character.
    at: usize,
}

impl<'a> Reader<'a> {
    fn value(&mut self, depth: usize) -> Result<Value<'a>, NotJson> {
        self.skip_space();
        match self.peek().ok_or(NotJson::Syntax)? {
            b'{' => self.object(deeper(depth)?),
            b'[' => self.array(deeper(depth)?),
            b'"' => self.string().map(Value::String),
            b'-' | b'0'..=b'9' => self.number().map(Value::Number),
            _ => self.word(),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value<'a>, NotJson> {
        self.at += 1;
        let mut members: Vec<Member<'a>> = Vec::new();
        self.skip_space();
        if !self.take(b'}') {
            loop {
                self.skip_space();
                if self.peek() != Some(b'"') {
                    return Err(NotJson::Syntax);
                }
                let name = self.string()?;
                self.skip_space();
                if !self.take(b':') {
                    return Err(NotJson::Syntax);
                }
                members.push((name, self.value(depth)?));
                if self.is_last(b'}')? {
                    break;
                }
            }
        }
        // RFC 8785 section 3.2.3: by UTF-16 code units, which is not the order of UTF-8 bytes.
        members.sort_unstable_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
        let mut neighbours = members.iter().zip(members.iter().skip(1));
        if neighbours.any(|((a, _), (b, _))| a == b) {
            return Err(NotJson::DuplicateName);
        }
        Ok(Value::Object(members.into_boxed_slice()))
    }

    fn array(&mut self, depth: usize) -> Result<Value<'a>, NotJson> {
        self.at += 1;
        let mut items = Vec::new();
        self.skip_space();
        if !self.take(b']') {
            loop {
                items.push(self.value(depth)?);
                if self.is_last(b']')? {
                    break;
                }
            }
        }
        Ok(Value::Array(items.into_boxed_slice()))
    }

    /// After an element: whether the closing bracket follows, or a comma and another element.
    fn is_last(&mut self, closing: u8) -> Result<bool, NotJson> {
        self.skip_space();
        if self.take(closing) {
            Ok(true)
        } else if self.take(b',') {
            Ok(false)
        } else {
            Err(NotJson::Syntax)
        }
    }

    fn string(&mut self) -> Result<Cow<'a, str>, NotJson> {
        self.at += 1;
        let mut unescaped = Cow::Borrowed("");
        loop {
            let plain = self.until_special()?;
            // An owned copy is made only of a string that has escapes.
            if unescaped.is_empty() {
                unescaped = Cow::Borrowed(plain);
            } else {
                unescaped.to_mut().push_str(plain);
            }
            if self.take(b'"') {
                return Ok(unescaped);
            }
            if !self.take(b'\\') {
                // A control character, which must be escaped.
                return Err(NotJson::Syntax);
            }
            let char = self.escape()?;
            unescaped.to_mut().push(char);
        }
    }

    /// The text up to a quote, a backslash or a control character.
    fn until_special(&mut self) -> Result<&'a str, NotJson> {
        let rest = self.text.get(self.at..).ok_or(NotJson::Syntax)?;
        let special = |byte: u8| matches!(byte, b'"' | b'\\' | 0..=0x1f);
        let len = rest.bytes().position(special).ok_or(NotJson::Syntax)?;
        self.at += len;
        rest.get(..len).ok_or(NotJson::Syntax)
    }

    fn escape(&mut self) -> Result<char, NotJson> {
        let escaped = self.peek().ok_or(NotJson::Syntax)?;
        self.at += 1;
        Ok(match escaped {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode_escape(),
            _ => {
                // What follows may be more than a byte, but nothing is read after an error.
                return Err(NotJson::Syntax);
            }
        })
    }

    /// RFC 8259 section 7: beyond the Basic Multilingual Plane, a surrogate pair.
    fn unicode_escape(&mut self) -> Result<char, NotJson> {
        let first = self.four_hex_digits()?;
        let code = match first {
            0xd800..=0xdbff => {
                if !(self.take(b'\\') && self.take(b'u')) {
                    return Err(NotJson::Encoding);
                }
                let second = self.four_hex_digits()?;
                if !(0xdc00..=0xdfff).contains(&second) {
                    return Err(NotJson::Encoding);
                }
                0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00)
            }
            other => other,
        };
        // A low surrogate that comes first is not a character.
        char::from_u32(code).ok_or(NotJson::Encoding)
    }

    fn four_hex_digits(&mut self) -> Result<u32, NotJson> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16));
            code = code * 16 + digit.ok_or(NotJson::Syntax)?;
            self.at += 1;
        }
        Ok(code)
    }

    /// RFC 8259 section 6, as it stands in the text.
    fn number(&mut self) -> Result<&'a str, NotJson> {
        let start = self.at;
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            let _sign = self.take(b'+') || self.take(b'-');
            self.digits()?;
        }
        self.text.get(start..self.at).ok_or(NotJson::Syntax)
    }

    /// One digit or more.
    fn digits(&mut self) -> Result<(), NotJson> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at > start { Ok(()) } else { Err(NotJson::Syntax) }
    }

    fn word(&mut self) -> Result<Value<'a>, NotJson> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let words =
            [("null", Value::Null), ("true", Value::Bool(true)), ("false", Value::Bool(false))];
        let (word, value) =
            words.into_iter().find(|(word, _)| rest.starts_with(word)).ok_or(NotJson::Syntax)?;
        self.at += word.len();
        Ok(value)
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }
}

fn deeper(depth: usize) -> Result<usize, NotJson> {
    if depth < MAX_DEPTH { Ok(depth + 1) } else { Err(NotJson::TooDeep) }
}
