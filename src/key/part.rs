//! The parts of a key: where each is looked for, and when it is missing.

use super::body::Body;
use super::digest::{Preimage, Tag};
use super::{KeyError, Pointer, RequestHead, client_key};
use std::fmt;

/// One part of a key. `Display` says where it is looked for, e.g. `header idempotency-key`, `json
/// /from`.
///
/// A part that is there and empty counts as missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPart {
    /// A client's key in the named header (lower case): an RFC 8941 String or bare text, 1 to 255
    /// bytes after decoding, once.
    KeyHeader(String),
    /// Every value of the named header (lower case), in order, as they are.
    Header(String),
    /// Every value of the named query parameter, decoded, in order.
    Query(String),
    /// Every value of the named cookie, in order; nearly always one.
    Cookie(String),
    /// What the path template captured under this name.
    Path(String),
    /// The JSON value the pointer (RFC 6901) finds in the body, canonical, whatever the media type.
    /// `null`, `""`, `[]` and `{}` count as missing; `false` and `0` do not.
    Json(Pointer),
    /// Every value of the named field of an `application/x-www-form-urlencoded` body, in order.
    Form(String),
    /// The whole body: canonical when it is JSON and its media type says so, else its bytes.
    Body,
}

impl KeyPart {
    /// Whether it is looked for in the body.
    pub(super) fn is_in_body(&self) -> bool {
        match self {
            Self::Json(_) | Self::Form(_) | Self::Body => true,
            Self::KeyHeader(_)
            | Self::Header(_)
            | Self::Query(_)
            | Self::Cookie(_)
            | Self::Path(_) => false,
        }
    }

    /// Its values in the head; none for a part of the body.
    pub(super) fn in_head(&self, head: &RequestHead<'_>) -> Result<Values, KeyError> {
        Ok(Values::bytes(match self {
            Self::KeyHeader(name) => {
                let values: Vec<&[u8]> = head.headers_named(name).collect();
                if values.is_empty() {
                    return Ok(Values::default());
                }
                let invalid = |why| KeyError::KeyInvalid { header: name.clone(), why };
                vec![client_key::parse(&values).map_err(invalid)?]
            }
            Self::Header(name) => head.headers_named(name).map(<[u8]>::to_vec).collect(),
            Self::Query(name) => head.query(name),
            Self::Cookie(name) => head.cookies(name),
            Self::Path(name) => head.captures.value(name).into_iter().collect(),
            Self::Json(_) | Self::Form(_) | Self::Body => Vec::new(),
        }))
    }

    /// Its values in the body; none for a part of the head.
    pub(super) fn in_body(&self, body: &Body<'_>) -> Result<Values, KeyError> {
        Ok(match self {
            Self::Json(pointer) => {
                let found = body.json_field(pointer)?;
                Values(found.map(|text| (Tag::Canonical, text.into_bytes())).into_iter().collect())
            }
            Self::Form(name) => Values::bytes(body.form_field(name)?),
            Self::Body => Values(vec![body.whole()]),
            Self::KeyHeader(_)
            | Self::Header(_)
            | Self::Query(_)
            | Self::Cookie(_)
            | Self::Path(_) => Values::default(),
        })
    }

    /// Adds its name and its values to the digest.
    pub(super) fn add(&self, values: Values, preimage: &mut Preimage) {
        match self {
            Self::KeyHeader(name) => preimage.frame(Tag::KeyHeader, name.as_bytes()),
            Self::Header(name) => preimage.frame(Tag::Header, name.as_bytes()),
            Self::Query(name) => preimage.frame(Tag::Query, name.as_bytes()),
            Self::Cookie(name) => preimage.frame(Tag::Cookie, name.as_bytes()),
            Self::Path(name) => preimage.frame(Tag::Capture, name.as_bytes()),
            Self::Json(pointer) => preimage.frame(Tag::Json, pointer.to_string().as_bytes()),
            Self::Form(name) => preimage.frame(Tag::Form, name.as_bytes()),
            Self::Body => preimage.frame(Tag::Body, b""),
        }
        values.add(preimage);
    }
}

impl fmt::Display for KeyPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyHeader(name) | Self::Header(name) => write!(f, "header {name}"),
            Self::Query(name) => write!(f, "query {name}"),
            Self::Cookie(name) => write!(f, "cookie {name}"),
            Self::Path(name) => write!(f, "path {name}"),
            Self::Json(pointer) => write!(f, "json {pointer}"),
            Self::Form(name) => write!(f, "form {name}"),
            Self::Body => f.write_str("body"),
        }
    }
}

/// What a request has in one place, in order, each value with its kind.
#[derive(Default)]
pub(super) struct Values(Vec<(Tag, Vec<u8>)>);

impl Values {
    /// Values as they are.
    pub(super) fn bytes(values: Vec<Vec<u8>>) -> Self {
        Self(values.into_iter().map(|value| (Tag::Bytes, value)).collect())
    }

    /// Whether there is none, or only empty ones.
    pub(super) fn is_missing(&self) -> bool {
        self.0.iter().all(|(_, bytes)| bytes.is_empty())
    }

    /// As they are, without their kinds.
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) fn into_bytes(self) -> Vec<Vec<u8>> {
        self.0.into_iter().map(|(_, bytes)| bytes).collect()
    }

    pub(super) fn add(self, preimage: &mut Preimage) {
        for (tag, bytes) in self.0 {
            preimage.frame(tag, &bytes);
        }
    }
}
