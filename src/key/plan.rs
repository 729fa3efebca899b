//! How a rule makes keys and fingerprints, in two steps: first of the head, then of the body.

use super::body::Body;
use super::digest::{Preimage, Subject, Tag};
use super::{Fingerprint, Key, KeyError, Pointer, RequestHead, Secret, client_key, head, path};
use std::fmt;

/// How a rule makes keys and fingerprints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPlan {
    /// The rule's name; part of every key, so that two rules never share a record.
    pub rule: String,
    /// The parts; never empty. The digest takes those of the head first, then those of the body,
    /// each in this order.
    pub parts: Vec<KeyPart>,
    /// Who sends the request; part of the key unless [`CallerSource::Anyone`].
    pub caller: CallerSource,
    /// Which of method, host and path are part of the key.
    pub scope: Scope,
    /// What must not differ between two requests under one key.
    pub fingerprint: FingerprintPlan,
}

/// One part of a key. `Display` says where it is looked for, e.g. `header idempotency-key`, `json /from`.
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
    /// In this order, whatever the order of the parts: [`KeyError::KeyMissing`] for the first part of
    /// the head that is missing, [`KeyError::KeyInvalid`], [`KeyError::CallerMissing`].
    pub fn begin(&self, head: &RequestHead<'_>) -> Result<Draft, KeyError> {
        let mut preimage = Preimage::new(Subject::Key);
        preimage.frame(Tag::Rule, self.rule.as_bytes());
        let parts = Self::read(self.parts.iter().filter(|part| !part.is_in_body()), |part| {
            part.in_head(head)
        })?;
        self.add_caller(head, &mut preimage)?;
        self.add_scope(head, &mut preimage);
        add_parts(&mut preimage, parts);
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
    /// [`KeyError::BodyInvalid`] when a part or the fingerprint needs JSON or a form and the body is neither.
    pub fn finish(
        &self,
        draft: Draft,
        body: &[u8],
        secret: Option<&Secret>,
    ) -> Result<(Key, Fingerprint), KeyError> {
        let Draft { mut preimage, media_type } = draft;
        let body = Body::new(body, &media_type);
        let parts = Self::read(self.parts.iter().filter(|part| part.is_in_body()), |part| {
            part.in_body(&body)
        })?;
        add_parts(&mut preimage, parts);
        let fingerprint = self.fingerprint.of(&body, &media_type, secret)?;
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

    /// Reads every part; one that is missing counts before one that is invalid.
    fn read<'p>(
        parts: impl Iterator<Item = &'p KeyPart>,
        read: impl Fn(&KeyPart) -> Result<Values, KeyError>,
    ) -> Result<Vec<(&'p KeyPart, Values)>, KeyError> {
        let mut found = Vec::new();
        let mut invalid = None;
        for part in parts {
            match read(part) {
                Ok(values) if is_missing(&values) => {
                    return Err(KeyError::KeyMissing { part: part.clone() });
                }
                Ok(values) => found.push((part, values)),
                Err(error) => invalid = invalid.or(Some(error)),
            }
        }
        invalid.map_or(Ok(found), Err)
    }

    fn add_caller(&self, head: &RequestHead<'_>, preimage: &mut Preimage) -> Result<(), KeyError> {
        preimage.caller(&self.caller);
        let values = match &self.caller {
            CallerSource::Anyone => return Ok(()),
            CallerSource::Header(name) => head.headers_named(name).map(<[u8]>::to_vec).collect(),
            CallerSource::Cookie(name) => head.cookies(name),
            CallerSource::Metadata(below) => {
                let mut path = vec!["metadata", "filter_metadata"];
                path.extend(below.iter().map(String::as_str));
                head.attributes.attribute(&path).into_iter().collect()
            }
            CallerSource::Peer => head
                .attributes
                .attribute(&["connection", "uri_san_peer_certificate"])
                .into_iter()
                .collect(),
        };
        let values = as_bytes(values);
        if is_missing(&values) {
            return Err(KeyError::CallerMissing);
        }
        add_values(preimage, values);
        Ok(())
    }

    fn add_scope(&self, head: &RequestHead<'_>, preimage: &mut Preimage) {
        if self.scope.method {
            preimage.frame(Tag::Method, head.header(":method"));
        }
        if self.scope.host {
            preimage.frame(Tag::Host, &head::host(head.header(":authority")));
        }
        if self.scope.path {
            preimage.frame(Tag::Path, path::normalise(head.header(":path")).as_bytes());
        }
    }
}

impl KeyPart {
    fn is_in_body(&self) -> bool {
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
    fn in_head(&self, head: &RequestHead<'_>) -> Result<Values, KeyError> {
        Ok(as_bytes(match self {
            Self::KeyHeader(name) => {
                let values: Vec<&[u8]> = head.headers_named(name).collect();
                if values.is_empty() {
                    return Ok(Values::new());
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
    fn in_body(&self, body: &Body<'_>) -> Result<Values, KeyError> {
        Ok(match self {
            Self::Json(pointer) => {
                let found = body.json_field(pointer)?;
                found.map(|text| (Tag::Canonical, text.into_bytes())).into_iter().collect()
            }
            Self::Form(name) => as_bytes(body.form_field(name)?),
            Self::Body => vec![body.whole()],
            Self::KeyHeader(_)
            | Self::Header(_)
            | Self::Query(_)
            | Self::Cookie(_)
            | Self::Path(_) => Values::new(),
        })
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

impl FingerprintPlan {
    fn of(
        &self,
        body: &Body<'_>,
        media_type: &[u8],
        secret: Option<&Secret>,
    ) -> Result<Fingerprint, KeyError> {
        let mut preimage = Preimage::new(Subject::Fingerprint);
        match self {
            Self::Nothing => return Ok(Fingerprint([0; 32])),
            Self::Body => {
                let (tag, bytes) = body.whole();
                preimage.frame(Tag::MediaType, media_type);
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
                preimage.frame(Tag::Canonical, body.json()?.canonical_except(pointers).as_bytes());
            }
        }
        Ok(Fingerprint(preimage.digest(secret)))
    }
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Draft(..)")
    }
}

/// The values of one part, each with what it is.
type Values = Vec<(Tag, Vec<u8>)>;

fn as_bytes(values: Vec<Vec<u8>>) -> Values {
    values.into_iter().map(|value| (Tag::Bytes, value)).collect()
}

fn is_missing(values: &Values) -> bool {
    values.iter().all(|(_, bytes)| bytes.is_empty())
}

fn add_values(preimage: &mut Preimage, values: Values) {
    for (tag, bytes) in values {
        preimage.frame(tag, &bytes);
    }
}

fn add_parts(preimage: &mut Preimage, parts: Vec<(&KeyPart, Values)>) {
    for (part, values) in parts {
        preimage.part(part);
        add_values(preimage, values);
    }
}
