//! From a request to the key that names one logical operation, and the fingerprint that distinguishes two
//! requests under one key.
//!
//! Keys are made in two steps, because most faults of a request can be seen before its
//! body arrives: [`KeyPlan::begin`] reads the head, [`KeyPlan::finish`] the body.

mod body;
mod caller;
mod client_key;
mod digest;
mod error;
// Only for the tool: a second caller would keep the compiler from inlining the module's code.
#[cfg(not(target_arch = "wasm32"))]
mod explain;
mod fingerprint;
mod form;
mod head;
mod json;
mod location;
mod part;
mod path;
mod plan;
mod pointer;
mod template;

pub use caller::CallerSource;
pub use error::KeyError;
pub use fingerprint::{Fingerprint, FingerprintPlan};
pub use head::{Attributes, RequestHead, host};
pub use location::LocationTemplate;
pub use part::KeyPart;
pub use plan::{Draft, KeyPlan, Scope};
pub use pointer::{Pointer, PointerError};
pub use template::{Captures, PathTemplate, TemplateError};

use std::fmt;

/// Names one logical operation: a SHA-256 digest (HMAC-SHA-256 with a [`Secret`]) of 32 bytes.
///
/// `Display` writes the first 12 hexadecimal digits, the only form that may reach a log; `LowerHex` all
/// of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; 32]);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(6).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::LowerHex for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

/// Makes the digests keyed, so that a reader of the store cannot guess keys (at least 16 bytes).
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Vec<u8>);

/// Never shows the secret.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests;
