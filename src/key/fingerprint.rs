//! Fingerprints: they distinguish a repetition from another request under the same key.

use super::body::Body;
use super::digest::{Preimage, Subject, Tag};
use super::{KeyError, Pointer, Secret};

/// Digest of the data that must be equal in two requests under one key; 32 zero bytes when the rule says
/// `"fingerprint": "none"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

/// The data that must be equal in two requests under one key.
///
/// Where fields are named, the body must be JSON, whatever its media type; an empty one counts as
/// `{}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FingerprintPlan {
    /// The media type and the body, canonical when it is JSON and its media type says so, else its
    /// bytes: never fails.
    Body,
    /// Nothing: every request under the key is a duplicate.
    Nothing,
    /// The values these pointers find in a JSON body (absent is a value of its own).
    Fields(Vec<Pointer>),
    /// A JSON body without the values that these pointers find.
    Except(Vec<Pointer>),
}

impl FingerprintPlan {
    /// The fingerprint of a request.
    pub(super) fn of(
        &self,
        body: &Body<'_>,
        secret: Option<&Secret>,
    ) -> Result<Fingerprint, KeyError> {
        let mut preimage = Preimage::new(Subject::Fingerprint);
        match self {
            Self::Nothing => return Ok(Fingerprint([0; 32])),
            Self::Body => {
                let (tag, bytes) = body.whole();
                preimage.frame(Tag::MediaType, body.media_type());
                preimage.frame(tag, &bytes);
            }
            Self::Fields(pointers) => {
                let json = body.json()?;
                for pointer in pointers {
                    preimage.frame(Tag::Field, pointer.to_string().as_bytes());
                    match json.find(pointer) {
                        Some(value) => preimage.frame(Tag::Canonical, value.canonical().as_bytes()),
                        None => preimage.frame(Tag::Absent, b""),
                    }
                }
            }
            Self::Except(pointers) => {
                preimage.frame(Tag::Except, b"");
                let rest = body.json()?.canonical_except(pointers);
                preimage.frame(Tag::Canonical, rest.as_bytes());
            }
        }
        Ok(Fingerprint(preimage.digest(secret)))
    }
}
