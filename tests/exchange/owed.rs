//! Answers that wait for the end of their request.

use super::{Driven, Upstream, pairs};
use envoy_idempotency::exchange::{Flow, Input, RequestPart, ResponsePart};
use envoy_idempotency::store::StoreError;
use serde_json::json;
use std::time::Duration;

/// A request that its headers have refused, and whose body is still to come.
fn refused(more: &[(&str, &str)]) -> Driven {
    let mut driven = Driven::new(json!({ "limits": { "request_body": "1KiB" } }));
    assert_eq!(driven.request(more, false), Flow::Hold);
    driven
}

#[test]
fn what_comes_is_thrown_away_and_the_answer_follows_the_end() {
    let mut driven = refused(&[]);
    for _ in 0..4 {
        assert_eq!(driven.body(256, false), Flow::Discard);
        assert!(driven.answers().is_empty() && !driven.is_over());
    }
    assert_eq!(driven.body(0, true), Flow::Hold);
    assert_eq!(driven.answers().len(), 1);
    assert!(driven.is_over());
}

#[test]
fn trailers_are_an_end_too() {
    let mut driven = refused(&[]);
    assert_eq!(driven.body(256, false), Flow::Discard);
    assert_eq!(driven.feed(Input::Request(RequestPart::Trailers)), Flow::Hold);
    assert_eq!(driven.answers().len(), 1);
}

#[test]
fn a_request_without_a_body_is_answered_at_once() {
    let mut driven = Driven::new(json!({}));
    assert_eq!(driven.request(&[], true), Flow::Hold);
    assert_eq!(driven.answers().len(), 1);
}

#[test]
fn the_answer_does_not_wait_longer_than_its_bound() {
    let mut driven = refused(&[]);
    assert_eq!(driven.body(1, false), Flow::Discard);
    assert_eq!(driven.tick(), Duration::from_secs(5));
    assert_eq!((driven.flow, driven.answers().len()), (Flow::Hold, 1));
}

#[test]
fn the_answer_does_not_wait_for_more_than_the_limit() {
    let mut driven = refused(&[]);
    assert_eq!(driven.body(1024, false), Flow::Discard);
    assert!(driven.answers().is_empty());
    assert_eq!(driven.body(1, false), Flow::Hold);
    assert_eq!(driven.answers().len(), 1);
}

#[test]
fn the_answer_does_not_wait_for_what_will_not_come() {
    for header in [("content-length", "1025"), ("expect", "100-continue")] {
        assert_eq!(refused(&[header]).answers().len(), 1, "{header:?}");
    }
    let mut driven = refused(&[]);
    assert!(driven.answers().is_empty());
    driven.feed(Input::Request(RequestPart::BodyBlocked));
    assert_eq!(driven.answers().len(), 1);
}

#[test]
fn a_client_that_is_gone_gets_no_answer_and_nor_does_one_that_has_another() {
    let mut driven = refused(&[]);
    driven.feed(Input::StreamEnded);
    assert!(driven.answers().is_empty() && driven.is_over());
    let mut driven = refused(&[]);
    let headers = pairs([(":status", "504")].iter());
    let end_of_stream = true;
    let response = Input::Response(ResponsePart::Headers {
        headers: &headers,
        attributes: &Upstream,
        end_of_stream,
    });
    assert_eq!(driven.feed(response), Flow::Continue);
    driven.body(0, true);
    assert!(driven.answers().is_empty());
}

#[test]
fn an_answer_waits_as_well_when_the_store_has_taken_its_time() {
    let mut driven = Driven::new(json!({}));
    assert_eq!(driven.request(&[("idempotency-key", "a")], false), Flow::Hold);
    // It may have to run yet.
    assert_eq!(driven.body(10, false), Flow::Hold);
    assert_eq!(driven.store(Err(StoreError::Unavailable("away"))), Flow::Hold);
    assert!(driven.answers().is_empty());
    assert_eq!(driven.body(10, false), Flow::Discard);
    driven.body(0, true);
    assert_eq!(driven.answers().first().unwrap().status, 503);
}
