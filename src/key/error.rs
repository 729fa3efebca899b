//! Why a request has no key. Always the client's doing.

use super::KeyPart;
use std::error::Error;
use std::fmt;

/// Why a request has no key. `Display` names what is wrong, never a value of the request.
///
/// The variants stand in the order in which they are found: a request that lacks its key and has a
/// bad body is told about the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// A part of the key is absent or empty. Which one, because a rule may let a request without a
    /// client's key pass and still insist on the others.
    KeyMissing {
        /// The first part that is missing.
        part: KeyPart,
    },
    /// A client's key is repeated, empty, too long, or badly written.
    KeyInvalid {
        /// The header it stands in.
        header: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The request does not say who sends it.
    CallerMissing,
    /// The body is needed as JSON or as a form, and is neither.
    BodyInvalid {
        /// What is wrong with it.
        why: &'static str,
    },
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyMissing { part } => write!(f, "the request has no {part}, or an empty one"),
            Self::KeyInvalid { header, why } => write!(f, "the header {header} is not a valid key: {why}"),
            Self::CallerMissing => f.write_str("the request does not identify its caller"),
            Self::BodyInvalid { why } => write!(f, "the body cannot be read: {why}"),
        }
    }
}

impl Error for KeyError {}
