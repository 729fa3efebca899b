//! Keys and fingerprints from the body.

use super::*;
use proptest::prelude::*;

const FORM: &str = "application/x-www-form-urlencoded";

fn json(text: &str) -> KeyPart {
    KeyPart::Json(pointer(text))
}

fn by(fingerprint: FingerprintPlan) -> KeyPlan {
    KeyPlan { fingerprint, ..parts(&[KeyPart::Header("x".into())]) }
}

fn x() -> Request {
    post().header("x", "1")
}

#[test]
fn a_body_is_needed_by_parts_of_it_and_by_fingerprints() {
    for part in [json("/a"), KeyPart::Form("a".into()), KeyPart::Body] {
        assert!(parts(&[KeyPart::Header("x".into()), part]).needs_body());
    }
    for fingerprint in
        [FingerprintPlan::Body, FingerprintPlan::Fields(vec![]), FingerprintPlan::Except(vec![])]
    {
        assert!(by(fingerprint).needs_body());
    }
    assert!(!by(FingerprintPlan::Nothing).needs_body());
}

#[test]
fn a_body_that_is_not_needed_changes_nothing() {
    let plan = by(FingerprintPlan::Nothing);
    assert_eq!(x().json("{").by(&plan), x().by(&plan));
    assert_eq!(fingerprint(&plan, &x()), Fingerprint([0; 32]));
}

#[test]
fn a_json_part_is_read_whatever_the_media_type_says() {
    let plan = parts(&[json("/from"), json("/to")]);
    let plain = key(&plan, &post().json(r#"{"from":"a","to":"b"}"#));
    assert_eq!(
        key(&plan, &post().body("text/plain", r#"{ "to": "\u0062", "x": 1, "from":"a" }"#)),
        plain
    );
    assert_ne!(key(&plan, &post().json(r#"{"from":"b","to":"a"}"#)), plain);
    assert_ne!(key(&plan, &post().json(r#"{"from":["a"],"to":"b"}"#)), plain);
}

#[test]
fn a_json_string_is_not_the_number_that_looks_like_it() {
    let plan = parts(&[json("/a")]);
    let with = |text: &str| key(&plan, &post().json(text));
    assert_ne!(with(r#"{"a":1}"#), with(r#"{"a":"1"}"#));
    assert_ne!(with(r#"{"a":1}"#), with(r#"{"a":1.0}"#));
    assert_ne!(with(r#"{"a":false}"#), with(r#"{"a":0}"#));
}

#[test]
fn a_json_part_that_says_nothing_is_missing_and_false_and_zero_are_not() {
    let plan = parts(&[json("/a")]);
    for text in ["{}", "[]", "1", r#"{"a":null}"#, r#"{"a":""}"#, r#"{"a":[]}"#, r#"{"a":{}}"#, ""]
    {
        assert_eq!(post().json(text).by(&plan), Err(missing(json("/a"))), "{text}");
    }
    for text in [r#"{"a":false}"#, r#"{"a":0}"#, r#"{"a":[null]}"#] {
        assert!(post().json(text).by(&plan).is_ok(), "{text}");
    }
}

#[test]
fn a_json_part_of_a_body_that_is_not_json_is_refused_with_the_reason() {
    let why =
        |body: &[u8]| post().body("application/json", body).by(&parts(&[json("/a")])).unwrap_err();
    let invalid = |why| KeyError::BodyInvalid { why };
    assert_eq!(why(b"a=1"), invalid("it is not JSON"));
    assert_eq!(why(b" "), invalid("it is not JSON"));
    assert_eq!(why(b"{\"a\":1,\"a\":2}"), invalid("it is JSON with a duplicate member"));
    assert_eq!(why(b"{\"a\":\"\xff\"}"), invalid("it is not JSON: its text is not Unicode"));
    assert_eq!(why(&[b'['; 200]), invalid("it is JSON with more than 128 levels"));
}

#[test]
fn a_form_part_is_decoded_and_all_its_values_count() {
    let plan = parts(&[KeyPart::Form("a b".into())]);
    let with = |body: &str| {
        key(&plan, &post().body("Application/x-www-form-urlencoded; charset=utf-8", body))
    };
    assert_eq!(with("a+b=1%2F+x&c=d"), with("c=e&a%20b=1/%20x"));
    assert_ne!(with("a+b=1&a+b=2"), with("a+b=1"));
    assert_ne!(with("a+b=%FF"), with("a+b=%FE"));
}

#[test]
fn a_form_part_needs_a_form() {
    let plan = parts(&[KeyPart::Form("a".into())]);
    let refused = Err(KeyError::BodyInvalid { why: "it is not application/x-www-form-urlencoded" });
    assert_eq!(post().body("multipart/form-data; boundary=x", "a=1").by(&plan), refused);
    assert_eq!(post().body("", "a=1").by(&plan), refused);
    for body in ["", "b=1", "a=", "a", "a=&a="] {
        assert_eq!(
            post().body(FORM, body).by(&plan),
            Err(missing(KeyPart::Form("a".into()))),
            "{body}"
        );
    }
    assert_eq!(post().by(&plan), Err(missing(KeyPart::Form("a".into()))));
}

#[test]
fn a_whole_body_is_compared_as_json_only_when_it_says_so_and_is() {
    let plan = parts(&[KeyPart::Body]);
    let with = |media_type: &str, body: &str| key(&plan, &post().body(media_type, body));
    for media_type in
        ["application/json", "APPLICATION/JSON ; charset=utf-8", "application/merge-patch+json"]
    {
        assert_eq!(
            with(media_type, r#"{"a":1,"b":2}"#),
            with("application/json", r#"{ "b":2,"a":1 }"#)
        );
    }
    for media_type in ["text/plain", "application/jsonx", ""] {
        assert_ne!(with(media_type, r#"{"a":1,"b":2}"#), with(media_type, r#"{ "b":2,"a":1 }"#));
    }
    assert_ne!(with("application/json", "{a"), with("application/json", "{ a"));
    assert_eq!(post().json("").by(&plan), Err(missing(KeyPart::Body)));
    assert!(post().json("null").by(&plan).is_ok());
}

#[test]
fn canonical_json_is_never_taken_for_the_same_bytes_of_something_else() {
    let plan = parts(&[KeyPart::Body]);
    assert_ne!(key(&plan, &post().json("{}")), key(&plan, &post().body("text/plain", "{}")));
}

#[test]
fn the_fingerprint_of_a_body_covers_its_media_type_but_no_parameter() {
    let plan = by(FingerprintPlan::Body);
    let of = |media_type: &str| fingerprint(&plan, &x().body(media_type, "a=1"));
    assert_ne!(of("text/plain"), of(FORM));
    assert_ne!(of("text/plain"), of(""));
    assert_eq!(of("text/plain"), of(" Text/Plain;charset=latin1"));
}

#[test]
fn the_fingerprint_of_json_does_not_see_the_order_of_members() {
    let plan = by(FingerprintPlan::Body);
    let of = |body: &str| fingerprint(&plan, &x().json(body));
    assert_eq!(of(r#"{"a":1,"b":[2]}"#), of("{\"b\": [2],\n\"a\": 1}"));
    assert_ne!(of(r#"{"a":1,"b":[2]}"#), of(r#"{"a":1,"b":[2,2]}"#));
}

#[test]
fn the_fingerprint_of_a_body_never_fails() {
    let plan = by(FingerprintPlan::Body);
    for body in [&b""[..], b"{", b"\xff", b"{\"a\":1,\"a\":2}", &[b'['; 1000]] {
        let request = x().body("application/json", body);
        assert_eq!(fingerprint(&plan, &request), fingerprint(&plan, &request));
        assert_ne!(fingerprint(&plan, &request), fingerprint(&plan, &x().json("{}")));
    }
}

#[test]
fn the_key_does_not_depend_on_the_fingerprint() {
    let request = x().json("{}");
    assert_eq!(
        key(&by(FingerprintPlan::Body), &request),
        key(&by(FingerprintPlan::Nothing), &request)
    );
}

#[test]
fn chosen_fields_are_compared_and_no_others() {
    let plan = by(FingerprintPlan::Fields(vec![pointer("/amount"), pointer("/to/iban")]));
    let of = |body: &str| fingerprint(&plan, &x().body("text/plain", body));
    let plain = of(r#"{"amount":1,"to":{"iban":"x"}}"#);
    assert_eq!(of(r#"{"to":{"iban":"x","name":"n"},"amount":1,"sent_at":2}"#), plain);
    assert_ne!(of(r#"{"amount":2,"to":{"iban":"x"}}"#), plain);
    assert_ne!(of(r#"{"amount":"x","to":{"iban":1}}"#), plain);
}

#[test]
fn an_absent_field_is_not_null() {
    let plan = by(FingerprintPlan::Fields(vec![pointer("/a")]));
    let of = |body: &str| fingerprint(&plan, &x().json(body));
    assert_ne!(of("{}"), of(r#"{"a":null}"#));
    assert_ne!(of(r#"{"a":""}"#), of(r#"{"a":null}"#));
    assert_eq!(of(""), of("{}"));
}

#[test]
fn fields_that_are_excepted_do_not_count_and_all_others_do() {
    let plan = by(FingerprintPlan::Except(vec![pointer("/sent_at"), pointer("/meta/trace")]));
    let of = |body: &str| fingerprint(&plan, &x().body("text/plain", body));
    let plain = of(r#"{"amount":1,"meta":{}}"#);
    assert_eq!(of(r#"{"sent_at":7,"meta":{"trace":"t"},"amount":1}"#), plain);
    assert_ne!(of(r#"{"amount":1,"meta":{"other":1}}"#), plain);
    assert_ne!(of(r#"{"amount":2,"meta":{}}"#), plain);
    assert_eq!(of(""), of("{}"));
}

#[test]
fn fields_of_a_body_that_is_not_json_cannot_be_compared() {
    for plan in
        [FingerprintPlan::Fields(vec![pointer("/a")]), FingerprintPlan::Except(vec![pointer("/a")])]
    {
        let refused = x().json("a=1").by(&by(plan));
        assert_eq!(refused, Err(KeyError::BodyInvalid { why: "it is not JSON" }));
    }
}

proptest! {
    #[test]
    fn whatever_the_body_holds_nothing_panics(body in proptest::collection::vec(any::<u8>(), 0..64)) {
        for media_type in ["application/json", FORM, "text/plain"] {
            for part in [json("/a"), KeyPart::Form("a".into()), KeyPart::Body] {
                let _either = post().body(media_type, &body).by(&parts(&[part]));
            }
        }
    }
}
