//! A body for keys and fingerprints: JSON, a form, or bytes.

use super::digest::Tag;
use super::json::{self, NotJson, Value};
use super::{KeyError, Pointer, form};
use std::cell::OnceCell;

/// A whole body and its media type. Parsed at most once.
pub(super) struct Body<'a> {
    bytes: &'a [u8],
    media_type: &'a [u8],
    json: OnceCell<Result<Value<'a>, NotJson>>,
}

impl<'a> Body<'a> {
    pub(super) fn new(bytes: &'a [u8], media_type: &'a [u8]) -> Self {
        Self { bytes, media_type, json: OnceCell::new() }
    }

    /// The media type, in lower case without parameters; empty when it is absent.
    pub(super) fn media_type(&self) -> &'a [u8] {
        self.media_type
    }

    /// The body as JSON, whatever its media type. An empty one counts as `{}`: it has no fields.
    pub(super) fn json(&self) -> Result<&Value<'a>, KeyError> {
        let text = if self.bytes.is_empty() { b"{}" } else { self.bytes };
        let parsed = self.json.get_or_init(|| json::parse(text));
        parsed.as_ref().map_err(|error| KeyError::BodyInvalid { why: error.why() })
    }

    /// The value that a pointer finds, canonical; `None` if there is none, or an empty one.
    pub(super) fn json_field(&self, pointer: &Pointer) -> Result<Option<String>, KeyError> {
        let found = self.json()?.find(pointer).filter(|value| !value.is_blank());
        Ok(found.map(Value::canonical))
    }

    /// Every value of a form's field. An empty body has none, whatever its media type.
    pub(super) fn form_field(&self, name: &str) -> Result<Vec<Vec<u8>>, KeyError> {
        if !self.bytes.is_empty() && self.media_type != form::MEDIA_TYPE {
            return Err(KeyError::BodyInvalid {
                why: "it is not application/x-www-form-urlencoded",
            });
        }
        Ok(form::values(self.bytes, name))
    }

    /// The whole body: canonical if its media type says JSON and it is valid JSON, else its bytes.
    pub(super) fn whole(&self) -> (Tag, Vec<u8>) {
        let may_be_json = self.claims_json() && !self.bytes.is_empty();
        match may_be_json.then(|| self.json()) {
            Some(Ok(value)) => (Tag::Canonical, value.canonical().into_bytes()),
            Some(Err(_)) | None => (Tag::Bytes, self.bytes.to_vec()),
        }
    }

    /// `application/json`, or the `+json` of RFC 6839 section 3.1.
    fn claims_json(&self) -> bool {
        self.media_type == b"application/json" || self.media_type.ends_with(b"+json")
    }
}
