//! JSON Pointers (RFC 6901): where in a body a value is.

use std::error::Error;
use std::fmt;

/// A JSON Pointer (RFC 6901).
///
/// The empty pointer names the whole document; every other one begins with `/`. `Display` writes it
/// in the form it is parsed from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer(Vec<String>);

/// Why a text is not a JSON Pointer. `Display` quotes the text: it comes from the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PointerError {
    /// It is not empty and does not begin with `/` (RFC 6901 section 3).
    NoLeadingSlash(String),
    /// A `~` is followed by neither `0` nor `1` (RFC 6901 section 3).
    BadEscape(String),
}

impl Pointer {
    /// Reads a pointer in its string form (RFC 6901 section 5).
    ///
    /// # Errors
    ///
    /// If the text is not a pointer.
    pub fn parse(text: &str) -> Result<Self, PointerError> {
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let Some(tokens) = text.strip_prefix('/') else {
            return Err(PointerError::NoLeadingSlash(text.to_owned()));
        };
        tokens
            .split('/')
            .map(|token| unescape(token).ok_or_else(|| PointerError::BadEscape(text.to_owned())))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The reference tokens, unescaped: member names or array indices.
    pub fn tokens(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // RFC 6901 section 3: `~` before `/`, or the tilde of `~1` would be escaped again.
        self.0
            .iter()
            .try_for_each(|token| write!(f, "/{}", token.replace('~', "~0").replace('/', "~1")))
    }
}

impl fmt::Display for PointerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLeadingSlash(text) => {
                write!(f, "{text:?} is not a JSON Pointer, write \"/{text}\"")
            }
            Self::BadEscape(text) => {
                write!(f, "{text:?} has a `~` that is neither `~0` (for ~) nor `~1` (for /)")
            }
        }
    }
}

impl Error for PointerError {}

/// RFC 6901 section 4: `~1` is `/`, `~0` is `~`, nothing else may follow a tilde.
fn unescape(token: &str) -> Option<String> {
    let mut plain = String::with_capacity(token.len());
    let mut chars = token.chars();
    while let Some(char) = chars.next() {
        plain.push(match char {
            '~' => match chars.next()? {
                '0' => '~',
                '1' => '/',
                _ => return None,
            },
            other => other,
        });
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_is_written_as_it_was_read() {
        for text in ["", "/", "/a", "/a~1b/m~0n", "/a//b", "/~01", "/0/-", "/ü"] {
            assert_eq!(Pointer::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn escapes_are_undone_once_and_in_the_order_of_the_rfc() {
        let tokens = |text| Pointer::parse(text).unwrap().tokens().to_vec();
        assert_eq!(tokens("/a~1b"), ["a/b"]);
        assert_eq!(tokens("/~01"), ["~1"]);
        assert_eq!(tokens("/~0~1/x"), ["~/", "x"]);
        assert_eq!(tokens("/"), [""]);
        assert!(tokens("").is_empty());
    }

    #[test]
    fn a_text_that_is_not_a_pointer_is_refused_and_the_message_says_why() {
        let message = |text| Pointer::parse(text).unwrap_err().to_string();
        assert_eq!(message("from"), r#""from" is not a JSON Pointer, write "/from""#);
        assert!(message("/a~2").contains("neither `~0`"));
        assert!(message("/a~").contains("neither `~0`"));
    }
}
