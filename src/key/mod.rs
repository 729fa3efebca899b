//! From a request to the key that names one logical operation, and the fingerprint that tells two
//! requests under one key apart.
//!
//! Keys are made in two steps, because most of what is wrong with a request can be seen before its
//! body arrives: [`KeyPlan::begin`] reads the head, [`Draft::finish`] the body.

mod path;
mod pointer;
mod template;

pub use pointer::{Pointer, PointerError};
pub use template::{Captures, LocationTemplate, PathTemplate, TemplateError};

use std::fmt;

/// Names one logical operation: a SHA-256 digest (HMAC-SHA-256 with a [`Secret`]) of 32 bytes.
///
/// `Display` writes the first 12 hexadecimal digits, the only form that may reach a log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; 32]);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(6).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

/// Digest of what must not differ between two requests under one key; 32 zero bytes when the rule
/// says `"fingerprint": "none"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

/// Makes the digests keyed, so that who reads the store cannot guess keys (at least 16 bytes).
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Vec<u8>);

/// Never shows the secret.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// How a rule makes keys and fingerprints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPlan {
    /// The rule's name; part of every key, so that two rules never share a record.
    pub rule: String,
    /// The parts, in the order the digest takes them; never empty.
    pub parts: Vec<KeyPart>,
    /// Who sends the request; part of the key unless [`CallerSource::Anyone`].
    pub caller: CallerSource,
    /// Which of method, host and path are part of the key.
    pub scope: Scope,
    /// What must not differ between two requests under one key.
    pub fingerprint: FingerprintPlan,
}

/// One part of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPart {
    /// A client's key in the named header (lower case): an RFC 8941 String or bare text, 1 to 255
    /// bytes after decoding, once.
    KeyHeader(String),
    /// Every value of the named header (lower case), in order, as they are.
    Header(String),
    /// Every value of the named query parameter, decoded, in order.
    Query(String),
    /// The value of the named cookie.
    Cookie(String),
    /// What the path template captured under this name.
    Path(String),
    /// The JSON value the pointer (RFC 6901) finds in the body, canonical.
    Json(Pointer),
    /// Every value of the named field of an `application/x-www-form-urlencoded` body, in order.
    Form(String),
    /// The whole body: canonical when it is JSON, else its bytes.
    Body,
}

/// Who sends a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallerSource {
    /// Whoever: callers share keys and therefore answers.
    Anyone,
    /// The values of a header (lower case).
    Header(String),
    /// The value of a cookie.
    Cookie(String),
    /// A leaf of dynamic metadata, by its path below `filter_metadata`, e.g. what `jwt_authn` left.
    Metadata(Vec<String>),
    /// The URI SAN of the client certificate: the SPIFFE identity in a mesh.
    Peer,
}

/// Which parts of the request line are part of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The method, as sent.
    pub method: bool,
    /// The authority, lower case, without its port.
    pub host: bool,
    /// The path, without the query, escapes normalised (RFC 3986 section 6.2.2).
    pub path: bool,
}

/// What must not differ between two requests under one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FingerprintPlan {
    /// The media type and the body, canonical when it is JSON.
    Body,
    /// Nothing: every request under the key is a duplicate.
    Nothing,
    /// The values these pointers find in a JSON body (absent is a value of its own).
    Fields(Vec<Pointer>),
    /// A JSON body without what these pointers find.
    Except(Vec<Pointer>),
}
