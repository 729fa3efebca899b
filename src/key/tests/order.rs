//! Which fault is reported for a request with several.

use super::*;

fn plan(listed: &[KeyPart]) -> KeyPlan {
    KeyPlan {
        caller: CallerSource::Header("authorization".into()),
        fingerprint: FingerprintPlan::Fields(vec![pointer("/a")]),
        ..parts(listed)
    }
}

#[test]
fn a_missing_part_counts_before_an_invalid_key_and_that_before_a_missing_caller() {
    let all = plan(&[KeyPart::KeyHeader("k".into()), KeyPart::Header("x".into())]);
    let invalid = KeyError::KeyInvalid {
        header: "k".into(),
        why: "it has characters that are allowed only in a quoted String of RFC 8941",
    };
    assert_eq!(post().header("k", "a b").begin(&all), Err(missing(KeyPart::Header("x".into()))));
    assert_eq!(post().header("k", "a b").header("x", "1").begin(&all), Err(invalid));
    assert_eq!(post().header("k", "a").header("x", "1").begin(&all), Err(KeyError::CallerMissing));
    assert_eq!(post().begin(&all), Err(missing(KeyPart::KeyHeader("k".into()))));
}

#[test]
fn the_head_counts_before_the_body() {
    let all = plan(&[KeyPart::Json(pointer("/a")), KeyPart::Header("x".into())]);
    assert_eq!(post().json("{").by(&all), Err(missing(KeyPart::Header("x".into()))));
    assert_eq!(post().header("x", "1").json("{").by(&all), Err(KeyError::CallerMissing));
}

#[test]
fn a_missing_part_of_the_body_counts_before_an_invalid_one() {
    let all = parts(&[KeyPart::Form("f".into()), KeyPart::Json(pointer("/a"))]);
    assert_eq!(post().json("{}").by(&all), Err(missing(KeyPart::Json(pointer("/a")))));
    let refused = KeyError::BodyInvalid { why: "it is not application/x-www-form-urlencoded" };
    assert_eq!(post().json(r#"{"a":1}"#).by(&all), Err(refused));
}

#[test]
fn a_missing_part_of_the_body_counts_before_a_fingerprint_that_cannot_be_made() {
    let all = KeyPlan { caller: CallerSource::Anyone, ..plan(&[KeyPart::Form("f".into())]) };
    let form = post().body("application/x-www-form-urlencoded", "g=1");
    assert_eq!(form.by(&all), Err(missing(KeyPart::Form("f".into()))));
}

#[test]
fn parts_of_the_body_may_stand_before_parts_of_the_head() {
    let body_first = parts(&[KeyPart::Json(pointer("/a")), KeyPart::Header("x".into())]);
    let head_first = parts(&[KeyPart::Header("x".into()), KeyPart::Json(pointer("/a"))]);
    let request = post().header("x", "1").json(r#"{"a":2}"#);
    assert_eq!(request.by(&body_first), request.by(&head_first));
}
