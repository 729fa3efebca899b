//! From requests to keys, behaviour by behaviour.

mod body;
mod head;
mod order;

use super::*;

/// A request and what Envoy knows of it.
#[derive(Clone, Default)]
struct Request {
    headers: Vec<(Vec<u8>, Vec<u8>)>,
    attributes: Vec<(&'static [&'static str], Vec<u8>)>,
    captures: Captures,
    body: Vec<u8>,
}

impl Attributes for Request {
    fn attribute(&self, path: &[&str]) -> Option<Vec<u8>> {
        self.attributes.iter().find(|(known, _)| *known == path).map(|(_, value)| value.clone())
    }
}

impl Request {
    fn header(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    fn attribute(mut self, path: &'static [&'static str], value: &str) -> Self {
        self.attributes.push((path, value.into()));
        self
    }

    fn body(self, media_type: &str, body: impl AsRef<[u8]>) -> Self {
        let mut request = self.header("content-type", media_type);
        request.body = body.as_ref().to_vec();
        request
    }

    fn json(self, body: &str) -> Self {
        self.body("application/json", body)
    }

    fn captured(mut self, template: &str) -> Self {
        let path = self.headers.iter().find(|(name, _)| name == b":path").unwrap().1.clone();
        self.captures = PathTemplate::parse(template).unwrap().matches(&path).unwrap();
        self
    }

    fn by(&self, plan: &KeyPlan) -> Result<(Key, Fingerprint), KeyError> {
        self.by_secret(plan, None)
    }

    fn by_secret(
        &self,
        plan: &KeyPlan,
        secret: Option<&Secret>,
    ) -> Result<(Key, Fingerprint), KeyError> {
        plan.finish(self.begin(plan)?, &self.body, secret)
    }

    fn begin(&self, plan: &KeyPlan) -> Result<Draft, KeyError> {
        plan.begin(&RequestHead {
            headers: &self.headers,
            attributes: self,
            captures: &self.captures,
        })
    }
}

fn request(method: &str, authority: &str, path: &str) -> Request {
    Request::default()
        .header(":method", method)
        .header(":authority", authority)
        .header(":path", path)
}

fn post() -> Request {
    request("POST", "api.example.com", "/v1/payments")
}

/// A plan with only these parts.
fn parts(parts: &[KeyPart]) -> KeyPlan {
    KeyPlan {
        rule: "payments".into(),
        parts: parts.to_vec(),
        caller: CallerSource::Anyone,
        scope: Scope { method: false, host: false, path: false },
        fingerprint: FingerprintPlan::Nothing,
    }
}

fn pointer(text: &str) -> Pointer {
    Pointer::parse(text).unwrap()
}

fn missing(part: KeyPart) -> KeyError {
    KeyError::KeyMissing { part }
}

/// The key, for tests about only that.
fn key(plan: &KeyPlan, request: &Request) -> Key {
    request.by(plan).unwrap().0
}

fn fingerprint(plan: &KeyPlan, request: &Request) -> Fingerprint {
    request.by(plan).unwrap().1
}

#[test]
fn only_the_first_twelve_hexadecimal_digits_of_a_key_are_logged() {
    let key = Key([0xab; 32]);
    assert_eq!(key.to_string(), "abababababab");
    assert_eq!(format!("{key:?}"), "Key(abababababab)");
}

#[test]
fn a_secret_makes_another_key_and_another_fingerprint() {
    let plan =
        KeyPlan { fingerprint: FingerprintPlan::Body, ..parts(&[KeyPart::Header("x".into())]) };
    let request = post().header("x", "1").json("{}");
    let with = |secret: &[u8]| request.by_secret(&plan, Some(&Secret(secret.to_vec()))).unwrap();
    let (plain_key, plain_print) = request.by(&plan).unwrap();
    let (key, print) = with(b"sixteen bytes or more");
    assert_ne!(key, plain_key);
    assert_ne!(print, plain_print);
    assert_ne!(with(b"sixteen bytes of another").0, key);
    assert_eq!(with(b"sixteen bytes or more").0, key);
}

#[test]
fn no_printed_text_shows_data_of_the_request() {
    let plan = parts(&[KeyPart::Header("x".into()), KeyPart::KeyHeader("k".into())]);
    let request = post().header("x", "hidden").header("k", "hidden");
    assert_eq!(format!("{:?}", request.begin(&plan).unwrap()), "Draft(..)");
    assert_eq!(format!("{:?}", Secret(b"hidden".to_vec())), "Secret(..)");
    let error = post().header("x", "hidden").header("k", "hid den").begin(&plan).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hid"), "{error:?}");
}

#[test]
fn an_error_says_where_the_fault_is() {
    let said = |part| missing(part).to_string();
    let named = |what: &str| format!("the request has no {what}, or an empty one");
    assert_eq!(said(KeyPart::KeyHeader("idempotency-key".into())), named("header idempotency-key"));
    assert_eq!(said(KeyPart::Json(pointer("/from"))), named("json /from"));
    assert_eq!(said(KeyPart::Body), named("body"));
    let invalid = KeyError::KeyInvalid { header: "idempotency-key".into(), why: "it is repeated" };
    assert_eq!(
        invalid.to_string(),
        "the header idempotency-key is not a valid key: it is repeated"
    );
    let body = KeyError::BodyInvalid { why: "it is not JSON" };
    assert_eq!(body.to_string(), "the body cannot be read: it is not JSON");
}
