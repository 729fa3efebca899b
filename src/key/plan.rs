//! How a rule makes keys and fingerprints, in two steps: first of the head, then of the body.

use super::body::Body;
use super::digest::{Preimage, Subject, Tag};
use super::part::Values;
use super::{
    CallerSource, Fingerprint, FingerprintPlan, Key, KeyError, KeyPart, RequestHead, Secret, head,
    path,
};
use std::fmt;

/// How a rule makes keys and fingerprints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPlan {
    /// The rule's name; part of every key, so that two rules never share a record.
    pub rule: String,
    /// The parts; never empty. The digest takes those of the head first, then those of the body,
    /// each in this order.
    pub parts: Vec<KeyPart>,
    /// The caller; part of the key unless [`CallerSource::Anyone`].
    pub caller: CallerSource,
    /// Which of method, host and path are part of the key.
    pub scope: Scope,
    /// What must not differ between two requests under one key.
    pub fingerprint: FingerprintPlan,
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

/// A key as far as the head of a request says it. `Debug` shows nothing of the request.
///
/// Only the plan that began it can finish it.
#[derive(Clone, PartialEq, Eq)]
pub struct Draft {
    preimage: Preimage,
    media_type: Vec<u8>,
}

impl KeyPlan {
    /// Reads the head of a request.
    ///
    /// # Errors
    ///
    /// In this order, whatever the order of the parts: [`KeyError::KeyMissing`] for the first part
    /// of the head that is missing, [`KeyError::KeyInvalid`], [`KeyError::CallerMissing`].
    pub fn begin(&self, head: &RequestHead<'_>) -> Result<Draft, KeyError> {
        let parts = self.parts.iter().filter(|part| !part.is_in_body());
        let found = read(parts, |part| part.in_head(head))?;
        let mut preimage = Preimage::new(Subject::Key);
        preimage.frame(Tag::Rule, self.rule.as_bytes());
        self.caller.add(head, &mut preimage)?;
        self.scope.add(head, &mut preimage);
        for (part, values) in found {
            part.add(values, &mut preimage);
        }
        Ok(Draft { preimage, media_type: head.media_type() })
    }

    /// Whether [`KeyPlan::finish`] looks at the body: if not, an empty one will do.
    pub fn needs_body(&self) -> bool {
        self.parts.iter().any(KeyPart::is_in_body) || self.fingerprint != FingerprintPlan::Nothing
    }

    /// Reads the body of the request that `draft` was begun with.
    ///
    /// The digests are SHA-256, or HMAC-SHA-256 with a secret.
    ///
    /// # Errors
    ///
    /// [`KeyError::KeyMissing`] for the first part of the body that is missing; else
    /// [`KeyError::BodyInvalid`] when a part or the fingerprint needs JSON or a form and the body
    /// is neither.
    pub fn finish(
        &self,
        draft: Draft,
        body: &[u8],
        secret: Option<&Secret>,
    ) -> Result<(Key, Fingerprint), KeyError> {
        let Draft { mut preimage, media_type } = draft;
        let body = Body::new(body, &media_type);
        let parts = self.parts.iter().filter(|part| part.is_in_body());
        for (part, values) in read(parts, |part| part.in_body(&body))? {
            part.add(values, &mut preimage);
        }
        let fingerprint = self.fingerprint.of(&body, secret)?;
        Ok((Key(preimage.digest(secret)), fingerprint))
    }

    /// The captures the parts are made of: the rule's path template must have them all.
    pub fn captures_used(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            KeyPart::Path(name) => Some(name.as_str()),
            KeyPart::KeyHeader(_)
            | KeyPart::Header(_)
            | KeyPart::Query(_)
            | KeyPart::Cookie(_)
            | KeyPart::Json(_)
            | KeyPart::Form(_)
            | KeyPart::Body => None,
        })
    }
}

impl Scope {
    fn add(self, head: &RequestHead<'_>, preimage: &mut Preimage) {
        if self.method {
            preimage.frame(Tag::Method, head.header(":method"));
        }
        if self.host {
            preimage.frame(Tag::Host, &head::host(head.header(":authority")));
        }
        if self.path {
            preimage.frame(Tag::Path, path::normalise(head.header(":path")).as_bytes());
        }
    }
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Draft(..)")
    }
}

/// Reads every part, so that one that is missing counts before one that is invalid.
fn read<'p>(
    parts: impl Iterator<Item = &'p KeyPart>,
    read: impl Fn(&KeyPart) -> Result<Values, KeyError>,
) -> Result<Vec<(&'p KeyPart, Values)>, KeyError> {
    let mut found = Vec::new();
    let mut invalid = None;
    for part in parts {
        match read(part) {
            Ok(values) if values.is_missing() => {
                return Err(KeyError::KeyMissing { part: part.clone() });
            }
            Ok(values) => found.push((part, values)),
            Err(error) => invalid = invalid.or(Some(error)),
        }
    }
    invalid.map_or(Ok(found), Err)
}
