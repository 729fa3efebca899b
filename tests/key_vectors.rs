//! Golden keys: `vectors/keys.json` fixes the digests of requests, so that no change of code loses
//! the records of users who upgrade.
//!
//! Every vector also lists the frames of its pre-images, and this file digests them by itself: the
//! golden digests are argued, not merely recorded. A digest that changes on purpose needs a new
//! format version.

#![allow(
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a test: clippy sees only what stands in a #[test] function as one"
)]

use envoy_idempotency::key::{
    Attributes, CallerSource, Captures, FingerprintPlan, KeyPart, KeyPlan, PathTemplate, Pointer,
    RequestHead, Scope, Secret,
};
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    name: String,
    plan: Plan,
    template: Option<String>,
    headers: Vec<(Text, Text)>,
    #[serde(default)]
    attributes: Vec<(Vec<String>, Text)>,
    body: Text,
    secret: Option<String>,
    key_frames: Vec<(String, Text)>,
    /// Left out where the fingerprint is 32 zero bytes.
    fingerprint_frames: Option<Vec<(String, Text)>>,
    key: String,
    fingerprint: String,
}

/// As a rule's configuration has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    rule: String,
    parts: Vec<Part>,
    caller: Caller,
    scope: BTreeSet<String>,
    fingerprint: Print,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    KeyHeader(String),
    Header(String),
    Query(String),
    Cookie(String),
    Path(String),
    Json(String),
    Form(String),
    Body,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Caller {
    Anyone,
    Header(String),
    Cookie(String),
    Metadata(Vec<String>),
    Peer,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Print {
    Body,
    None,
    Fields(Vec<String>),
    Except(Vec<String>),
}

/// UTF-8 as it is, other bytes in hexadecimal.
#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Plain(String),
    Hex { hex: String },
}

impl Text {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Plain(text) => text.clone().into_bytes(),
            Self::Hex { hex } => (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
                .collect(),
        }
    }
}

impl Attributes for Vector {
    fn attribute(&self, path: &[&str]) -> Option<Vec<u8>> {
        self.attributes.iter().find(|(known, _)| known == path).map(|(_, value)| value.bytes())
    }
}

impl Plan {
    fn key_plan(&self) -> KeyPlan {
        KeyPlan {
            rule: self.rule.clone(),
            parts: self.parts.iter().map(Part::key_part).collect(),
            caller: match &self.caller {
                Caller::Anyone => CallerSource::Anyone,
                Caller::Header(name) => CallerSource::Header(name.clone()),
                Caller::Cookie(name) => CallerSource::Cookie(name.clone()),
                Caller::Metadata(path) => CallerSource::Metadata(path.clone()),
                Caller::Peer => CallerSource::Peer,
            },
            scope: Scope {
                method: self.scope.contains("method"),
                host: self.scope.contains("host"),
                path: self.scope.contains("path"),
            },
            fingerprint: match &self.fingerprint {
                Print::Body => FingerprintPlan::Body,
                Print::None => FingerprintPlan::Nothing,
                Print::Fields(fields) => FingerprintPlan::Fields(pointers(fields)),
                Print::Except(fields) => FingerprintPlan::Except(pointers(fields)),
            },
        }
    }
}

impl Part {
    fn key_part(&self) -> KeyPart {
        match self {
            Self::KeyHeader(name) => KeyPart::KeyHeader(name.clone()),
            Self::Header(name) => KeyPart::Header(name.clone()),
            Self::Query(name) => KeyPart::Query(name.clone()),
            Self::Cookie(name) => KeyPart::Cookie(name.clone()),
            Self::Path(name) => KeyPart::Path(name.clone()),
            Self::Json(pointer) => KeyPart::Json(Pointer::parse(pointer).unwrap()),
            Self::Form(name) => KeyPart::Form(name.clone()),
            Self::Body => KeyPart::Body,
        }
    }
}

fn pointers(texts: &[String]) -> Vec<Pointer> {
    texts.iter().map(|text| Pointer::parse(text).unwrap()).collect()
}

fn vectors() -> Vec<Vector> {
    serde_json::from_str(include_str!("vectors/keys.json")).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A second writing of the format, by which the vectors argue.
fn digest(subject: u8, frames: &[(String, Text)], secret: Option<&str>) -> String {
    const FORMAT_VERSION: u8 = 1;
    let mut preimage = vec![FORMAT_VERSION, subject];
    for (tag, text) in frames {
        let bytes = text.bytes();
        preimage.push(tag_number(tag));
        preimage.extend((bytes.len() as u32).to_be_bytes());
        preimage.extend(bytes);
    }
    match secret {
        None => hex(&Sha256::digest(&preimage)),
        Some(secret) => {
            let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
            mac.update(&preimage);
            hex(&mac.finalize().into_bytes())
        }
    }
}

fn tag_number(name: &str) -> u8 {
    match name {
        "Rule" => 0x01,
        "Bytes" => 0x02,
        "Canonical" => 0x03,
        "Absent" => 0x04,
        "Anyone" => 0x10,
        "CallerHeader" => 0x11,
        "CallerCookie" => 0x12,
        "CallerMetadata" => 0x13,
        "CallerPeer" => 0x14,
        "Method" => 0x20,
        "Host" => 0x21,
        "Path" => 0x22,
        "KeyHeader" => 0x30,
        "Header" => 0x31,
        "Query" => 0x32,
        "Cookie" => 0x33,
        "Capture" => 0x34,
        "Json" => 0x35,
        "Form" => 0x36,
        "Body" => 0x37,
        "MediaType" => 0x40,
        "Field" => 0x41,
        "Except" => 0x42,
        other => panic!("no such tag: {other}"),
    }
}

#[test]
fn every_request_has_its_golden_key_and_fingerprint() {
    for vector in vectors() {
        let headers: Vec<_> =
            vector.headers.iter().map(|(name, value)| (name.bytes(), value.bytes())).collect();
        let path = headers.iter().find(|(name, _)| name == b":path").map(|(_, value)| value);
        let captures = match &vector.template {
            Some(template) => {
                PathTemplate::parse(template).unwrap().matches(path.unwrap()).unwrap()
            }
            None => Captures::default(),
        };
        let plan = vector.plan.key_plan();
        let head = RequestHead { headers: &headers, attributes: &vector, captures: &captures };
        let secret = vector.secret.clone().map(|secret| Secret(secret.into_bytes()));
        let (key, fingerprint) = plan
            .begin(&head)
            .and_then(|draft| plan.finish(draft, &vector.body.bytes(), secret.as_ref()))
            .unwrap_or_else(|error| panic!("{}: {error}", vector.name));
        assert_eq!(hex(&key.0), vector.key, "key: {}", vector.name);
        assert_eq!(hex(&fingerprint.0), vector.fingerprint, "fingerprint: {}", vector.name);
    }
}

#[test]
fn every_golden_digest_follows_from_the_frames_beside_it() {
    for vector in vectors() {
        let secret = vector.secret.as_deref();
        assert_eq!(digest(b'K', &vector.key_frames, secret), vector.key, "key: {}", vector.name);
        let fingerprint = match &vector.fingerprint_frames {
            Some(frames) => digest(b'F', frames, secret),
            None => "00".repeat(32),
        };
        assert_eq!(fingerprint, vector.fingerprint, "fingerprint: {}", vector.name);
    }
}

#[test]
fn the_vectors_cover_every_tag() {
    let vectors = vectors();
    assert!(vectors.len() >= 20);
    let used: BTreeSet<u8> = vectors
        .iter()
        .flat_map(|vector| {
            vector.key_frames.iter().chain(vector.fingerprint_frames.iter().flatten())
        })
        .map(|(tag, _)| tag_number(tag))
        .collect();
    assert_eq!(used.len(), 23, "every tag of the format");
}
