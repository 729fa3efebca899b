//! JSON for keys: strict reading, and one canonical form of each value.
//!
//! Not `serde_json`: it keeps the text of numbers only with a feature that applies to the whole build, and it
//! silently keeps the last of two members with one name.

mod parse;

use super::Pointer;
use std::borrow::Cow;
use std::fmt::Write;

pub(super) use parse::{NotJson, parse};

/// A JSON value. Text without escapes is borrowed from the body, and so are numbers.
///
/// A tree of small values takes up to about fifteen times the bytes of its text while it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    /// As written in the text: `1`, `1.0` and `1e0` are three values, because a double does not hold every
    /// amount of money, and JSON readers disagree about the rest.
    Number(&'a str),
    String(Cow<'a, str>),
    Array(Box<[Value<'a>]>),
    /// In canonical order, no name twice.
    Object(Box<[Member<'a>]>),
}

/// A name and its value.
pub(super) type Member<'a> = (Cow<'a, str>, Value<'a>);

impl Value<'_> {
    /// What a pointer finds (RFC 6901 section 4).
    pub(super) fn find(&self, pointer: &Pointer) -> Option<&Self> {
        pointer.tokens().iter().try_fold(self, |value, token| match value {
            Self::Object(members) => {
                members.iter().find(|(name, _)| name == token).map(|(_, value)| value)
            }
            Self::Array(items) => items.get(array_index(token)?),
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::String(_) => None,
        })
    }

    /// Whether it is empty: `null`, `""`, `[]`, `{}`. `false` and `0` are not.
    pub(super) fn is_blank(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Bool(_) | Self::Number(_) => false,
            Self::String(text) => text.is_empty(),
            Self::Array(items) => items.is_empty(),
            Self::Object(members) => members.is_empty(),
        }
    }

    /// The canonical form (RFC 8785), except that numbers keep their text.
    pub(super) fn canonical(&self) -> String {
        self.canonical_except(&[])
    }

    /// The canonical form without the values that some pointers find. All of them are resolved against the
    /// whole; an array closes up. Empty when the whole is left out.
    pub(super) fn canonical_except(&self, left_out: &[Pointer]) -> String {
        let paths: Vec<&[String]> = left_out.iter().map(Pointer::tokens).collect();
        let mut text = String::new();
        if !paths.iter().any(|path| path.is_empty()) {
            self.write(&mut text, &paths);
        }
        text
    }

    fn write(&self, text: &mut String, left_out: &[&[String]]) {
        match self {
            Self::Null => text.push_str("null"),
            Self::Bool(true) => text.push_str("true"),
            Self::Bool(false) => text.push_str("false"),
            Self::Number(number) => text.push_str(number),
            Self::String(string) => write_string(text, string),
            Self::Array(items) => {
                text.push('[');
                let mut comma = "";
                for (index, item) in items.iter().enumerate() {
                    let below = below(left_out, |token| array_index(token) == Some(index));
                    if let Some(below) = below {
                        text.push_str(comma);
                        item.write(text, &below);
                        comma = ",";
                    }
                }
                text.push(']');
            }
            Self::Object(members) => {
                text.push('{');
                let mut comma = "";
                for (name, value) in members {
                    if let Some(below) = below(left_out, |token| token == name) {
                        text.push_str(comma);
                        write_string(text, name);
                        text.push(':');
                        value.write(text, &below);
                        comma = ",";
                    }
                }
                text.push('}');
            }
        }
    }
}

/// The rest of the paths that lead through a child; `None` when one of them ends there.
fn below<'p>(paths: &[&'p [String]], leads: impl Fn(&str) -> bool) -> Option<Vec<&'p [String]>> {
    let through =
        paths.iter().filter_map(|path| path.split_first()).filter(|(first, _)| leads(first));
    through.map(|(_, rest)| (!rest.is_empty()).then_some(rest)).collect()
}

/// RFC 6901 section 4: digits without leading zeros. `-`, the element after the last, finds
/// nothing.
fn array_index(token: &str) -> Option<usize> {
    let plain = token.bytes().all(|byte| byte.is_ascii_digit());
    (plain && (token == "0" || !token.starts_with('0'))).then(|| token.parse().ok())?
}

/// RFC 8785 section 3.2.2.2: as few escapes as possible, each in one spelling.
fn write_string(text: &mut String, string: &str) {
    text.push('"');
    for char in string.chars() {
        match char {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\u{8}' => text.push_str("\\b"),
            '\t' => text.push_str("\\t"),
            '\n' => text.push_str("\\n"),
            '\u{c}' => text.push_str("\\f"),
            '\r' => text.push_str("\\r"),
            control if control < ' ' => {
                // Writing to a String cannot fail.
                let _ = write!(text, "\\u{:04x}", u32::from(control));
            }
            other => text.push(other),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests;
