//! The end of a claim on its way into a store that is away.

use super::{Driven, Upstream, pairs};
use envoy_idempotency::exchange::{Flow, Input, Order, ResponsePart};
use envoy_idempotency::store::{Command, Reply, StoreError};
use envoy_idempotency::telemetry::Incident;
use serde_json::{Value, json};
use std::time::Duration;

const AWAY: Result<Reply, StoreError> = Err(StoreError::Unavailable("it is away"));

/// Asked for the claim, and the reply was lost.
const LOST: Result<Reply, StoreError> = Err(StoreError::Unanswered("no reply in time"));

fn rule() -> Value {
    json!({ "lease": "10s", "unknown_ttl": "60s" })
}

/// A request with a key that waits for the store.
fn asked() -> Driven {
    let mut driven = Driven::new(rule());
    driven.request(&[("idempotency-key", "a")], true);
    driven
}

/// The origin's answer is whole, and the filter holds its end.
fn answered(headers: &[(&str, &str)], end_of_stream: bool) -> Driven {
    let mut driven = asked();
    assert_eq!(driven.store(Ok(Reply::Claimed { attempt: 1 })), Flow::Continue);
    let headers = pairs([(":status", "200")].iter().chain(headers));
    driven.feed(Input::Response(ResponsePart::Headers {
        headers: &headers,
        attributes: &Upstream,
        end_of_stream,
    }));
    driven
}

fn logged(driven: &Driven, incident: Incident) -> usize {
    let told = |order: &&Order| matches!(order, Order::Log(told, _) if *told == incident);
    driven.orders.iter().filter(told).count()
}

/// Fails every try until the exchange gives up: how long that took, and the longest pause.
fn to_the_end(driven: &mut Driven) -> (Vec<Duration>, Duration) {
    let start = driven.now;
    let mut pauses = Vec::new();
    driven.store(AWAY);
    while driven.exchange.as_ref().unwrap().alarm().is_some() {
        pauses.push(driven.tick());
        let asked = driven.orders.iter().filter(|order| matches!(order, Order::Ask(..))).count();
        if logged(driven, Incident::RecordGivenUp) == 0 {
            assert!(asked > 1);
            driven.store(AWAY);
        }
        assert!(pauses.len() < 1_000, "it never gives up");
    }
    (pauses, start.until(driven.now))
}

fn backs_off(pauses: &[Duration]) {
    assert!(pauses[0] <= Duration::from_millis(250), "{pauses:?}");
    // The last one may be cut short by the end.
    for pair in pauses[..pauses.len() - 1].windows(2) {
        assert!(pair[1] * 5 >= pair[0] * 4, "{pauses:?}");
    }
    assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(5)), "{pauses:?}");
    assert!(pauses.len() < 30, "{} tries", pauses.len());
}

#[test]
fn a_record_is_tried_past_the_lease_as_long_as_the_store_would_take_it() {
    let mut driven = answered(&[], true);
    assert!(matches!(driven.question().1, Command::Complete { .. }));
    assert_eq!(driven.flow, Flow::Hold);
    let (pauses, took) = to_the_end(&mut driven);
    // The lease, and the time in which nobody else may run.
    assert_eq!(took, Duration::from_secs(70));
    backs_off(&pauses);
    assert_eq!(logged(&driven, Incident::RecordGivenUp), 1);
}

#[test]
fn a_record_that_arrives_after_its_lease_ends_the_exchange() {
    let mut driven = answered(&[], true);
    driven.store(AWAY);
    while driven.now.until(driven.exchange.as_ref().unwrap().alarm().unwrap()) > Duration::ZERO {
        driven.tick();
        if Duration::from_millis(driven.now.as_millis() - 1_000_000) > Duration::from_secs(20) {
            break;
        }
        driven.store(AWAY);
    }
    assert!(matches!(driven.question().1, Command::Complete { .. }));
    driven.store(Ok(Reply::Done));
    assert!(driven.is_over());
    assert_eq!(logged(&driven, Incident::RecordGivenUp), 0);
}

#[test]
fn an_unknown_outcome_and_a_release_are_tried_as_long() {
    for (status, header) in [("502", ("x", "y")), ("429", ("x", "y"))] {
        let mut driven = asked();
        driven.store(Ok(Reply::Claimed { attempt: 1 }));
        let headers = pairs([(":status", status), header].iter());
        let end_of_stream = true;
        let response = Input::Response(ResponsePart::Headers {
            headers: &headers,
            attributes: &Upstream,
            end_of_stream,
        });
        driven.feed(response);
        let (pauses, took) = to_the_end(&mut driven);
        assert_eq!(took, Duration::from_secs(70), "{status}");
        backs_off(&pauses);
    }
}

#[test]
fn a_claim_that_may_have_been_given_is_taken_back_with_growing_pauses() {
    let mut driven = asked();
    driven.store(LOST);
    assert!(matches!(driven.question().1, Command::Release { .. }));
    assert_eq!(driven.answers().len(), 1);
    let (pauses, took) = to_the_end(&mut driven);
    assert_eq!(took, Duration::from_secs(70));
    backs_off(&pauses);
}

#[test]
fn nobody_reports_a_lost_claim_that_never_was_one() {
    let mut driven = asked();
    driven.store(LOST);
    driven.store(Ok(Reply::NotOwner));
    assert_eq!(logged(&driven, Incident::ClaimLost), 0);
    // The client left while the question was under way.
    let mut driven = asked();
    driven.feed(Input::StreamEnded);
    driven.store(LOST);
    assert!(matches!(driven.question().1, Command::Release { .. }));
    driven.store(Ok(Reply::NotOwner));
    assert_eq!(logged(&driven, Incident::ClaimLost), 0);
    assert!(driven.is_over());
    // A claim that was given is another matter.
    let mut driven = answered(&[], true);
    driven.store(Ok(Reply::NotOwner));
    assert_eq!(logged(&driven, Incident::ClaimLost), 1);
}

#[test]
fn an_empty_answer_is_held_at_its_headers_although_its_stream_goes_on() {
    let mut driven = answered(&[("content-length", "0")], false);
    assert_eq!(driven.flow, Flow::Hold);
    assert!(matches!(driven.question().1, Command::Complete { .. }));
    let end = Input::Response(ResponsePart::Body { chunk: &[], length: 0, end_of_stream: true });
    assert_eq!(driven.feed(end), Flow::Hold);
    assert_eq!(driven.store(Ok(Reply::Done)), Flow::Continue);
}
