//! What is digested, byte for byte, and how.
//!
//! ```text
//! pre-image = version (1 byte), subject (1 byte: K or F), frame*
//! frame     = tag (1 byte), length (4 bytes, big endian), bytes
//! ```
//!
//! Frames can be told apart again in one way only, so different lists of frames have different pre-images:
//! `("a", "bc")` is not `("ab", "c")`, and a header's value is not a cookie's.

use super::{CallerSource, KeyPart, Secret};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// Changes whenever the pre-image of any request does: records under the old keys are then never
/// found, and the changelog must say so.
const VERSION: u8 = 1;

/// What a digest is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    Key,
    Fingerprint,
}

/// What a frame holds. The numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// The rule's name.
    Rule = 0x01,
    /// A value, as it is.
    Bytes = 0x02,
    /// A JSON value in canonical form.
    Canonical = 0x03,
    /// A JSON value that is not there.
    Absent = 0x04,

    /// Callers are one; empty.
    Anyone = 0x10,
    /// The caller is in this header.
    CallerHeader = 0x11,
    /// The caller is in this cookie.
    CallerCookie = 0x12,
    /// The caller is in metadata; a frame for each step of the path.
    CallerMetadata = 0x13,
    /// The caller is in the certificate; empty.
    CallerPeer = 0x14,

    /// The method.
    Method = 0x20,
    /// The host.
    Host = 0x21,
    /// The path.
    Path = 0x22,

    /// A part of the key, by its name.
    KeyHeader = 0x30,
    Header = 0x31,
    Query = 0x32,
    Cookie = 0x33,
    Capture = 0x34,
    Json = 0x35,
    Form = 0x36,
    /// The whole body is a part; empty.
    Body = 0x37,

    /// The media type of the body.
    MediaType = 0x40,
    /// A field of the body, by its pointer.
    Field = 0x41,
    /// The body without some fields; empty.
    Except = 0x42,
}

/// What is digested.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Preimage(Vec<u8>);

impl Preimage {
    pub(super) fn new(subject: Subject) -> Self {
        let subject = match subject {
            Subject::Key => b'K',
            Subject::Fingerprint => b'F',
        };
        Self(vec![VERSION, subject])
    }

    pub(super) fn frame(&mut self, tag: Tag, bytes: &[u8]) {
        // Four bytes hold any length there can be in a module's address space of 4 GiB.
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.0.push(tag as u8);
        self.0.extend_from_slice(&len.to_be_bytes());
        self.0.extend_from_slice(bytes);
    }

    /// Names a part of the key; its values follow.
    pub(super) fn part(&mut self, part: &KeyPart) {
        match part {
            KeyPart::KeyHeader(name) => self.frame(Tag::KeyHeader, name.as_bytes()),
            KeyPart::Header(name) => self.frame(Tag::Header, name.as_bytes()),
            KeyPart::Query(name) => self.frame(Tag::Query, name.as_bytes()),
            KeyPart::Cookie(name) => self.frame(Tag::Cookie, name.as_bytes()),
            KeyPart::Path(name) => self.frame(Tag::Capture, name.as_bytes()),
            KeyPart::Json(pointer) => self.frame(Tag::Json, pointer.to_string().as_bytes()),
            KeyPart::Form(name) => self.frame(Tag::Form, name.as_bytes()),
            KeyPart::Body => self.frame(Tag::Body, b""),
        }
    }

    /// Names where the caller is found; the values follow.
    pub(super) fn caller(&mut self, source: &CallerSource) {
        match source {
            CallerSource::Anyone => self.frame(Tag::Anyone, b""),
            CallerSource::Header(name) => self.frame(Tag::CallerHeader, name.as_bytes()),
            CallerSource::Cookie(name) => self.frame(Tag::CallerCookie, name.as_bytes()),
            CallerSource::Metadata(path) => {
                for step in path {
                    self.frame(Tag::CallerMetadata, step.as_bytes());
                }
            }
            CallerSource::Peer => self.frame(Tag::CallerPeer, b""),
        }
    }

    /// SHA-256, or HMAC-SHA-256 (RFC 2104) with a secret.
    pub(super) fn digest(&self, secret: Option<&Secret>) -> [u8; 32] {
        let Some(secret) = secret else {
            return Sha256::digest(&self.0).into();
        };
        // RFC 2104 section 3: keys can be of any length, so the second is never made.
        let mut mac = Hmac::<Sha256>::new_from_slice(&secret.0)
            .unwrap_or_else(|_too_short_or_long| Hmac::<Sha256>::new(&Default::default()));
        mac.update(&self.0);
        mac.finalize().into_bytes().into()
    }
}
