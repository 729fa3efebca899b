//! Why a request has no key. Always the client's fault.

use super::KeyPart;
use std::error::Error;
use std::fmt;

/// Why a request has no key. `Display` names the fault, never a value of the request.
///
/// The variants are in the order of the checks: for a request without its key and with a bad body, the error
/// is about the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// A part of the key is absent or empty. It is named, because a rule may let a request without a client's
    /// key pass and still require the other parts.
    KeyMissing {
        /// The first part that is missing.
        part: KeyPart,
    },
    /// A client's key is repeated, empty, too long, or has bad syntax.
    KeyInvalid {
        /// The header with the key.
        header: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The request does not identify its caller.
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
            Self::KeyInvalid { header, why } => {
                write!(f, "the header {header} is not a valid key: {why}")
            }
            Self::CallerMissing => f.write_str("the request does not identify its caller"),
            Self::BodyInvalid { why } => write!(f, "the body cannot be read: {why}"),
        }
    }
}

impl Error for KeyError {}
