//! Answers of the filter leave the client its connection: the request's end comes first.

use crate::pay;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use testkit::client::Raw;
use testkit::deployment::{Deployment, Store};
use testkit::{Bootstrap, World, eventually};

/// How long the filter waits for the end of a request that it has an answer for.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// A rule whose every answer the headers decide.
fn by_headers() -> Value {
    pay(
        json!({ "fingerprint": "none", "missing_key": "reject", "limits": { "request_body": "64KiB" } }),
    )
}

const BODY: &str = "{\"amount\":1}";

fn head(key: Option<&str>, length: usize) -> String {
    let key = key.map(|key| format!("idempotency-key: {key}\r\n")).unwrap_or_default();
    format!(
        "POST /pay HTTP/1.1\r\nhost: api.example.com\r\nauthorization: alice\r\n{key}\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

async fn raw(place: &Deployment) -> Raw {
    Raw::connect(place.envoy().front).await.unwrap()
}

/// Lets an HTTP/1.1 connection live on after an answer of 400, which Envoy else takes for the end of all trust.
fn keeps_after_400(bootstrap: &mut Bootstrap) {
    bootstrap.manager()["stream_error_on_invalid_http_message"] = json!(true);
}

/// One key has an answer, and another is running.
async fn one_done_one_busy(store: Store) -> Deployment {
    let place =
        Deployment::start(store, &by_headers(), |bootstrap| bootstrap.with(keeps_after_400)).await;
    let done = place.post("/pay").key("done").caller("alice").json(BODY).send().await;
    assert_eq!(done.status, 200);
    let busy = place.post("/pay").key("busy").caller("alice").json(BODY);
    tokio::spawn(busy.header("x-origin-hold", "it").try_send());
    eventually("the first runs", async || place.origin.executions() == 2).await;
    place
}

const CASES: [(Option<&str>, &str); 4] =
    [(None, "400"), (Some("busy"), "409"), (Some("done"), "200"), (None, "400")];

async fn answers_leave_the_connection(store: Store) {
    let place = one_done_one_busy(store).await;
    for later in [false, true] {
        let mut raw = raw(&place).await;
        for (key, wanted) in CASES {
            let head = head(key, BODY.len());
            if later {
                raw.write(head.as_bytes()).await.unwrap();
                // Time for an answer that does not wait, and for the close that follows it.
                tokio::time::sleep(Duration::from_millis(100)).await;
                raw.write(BODY.as_bytes()).await.unwrap();
            } else {
                raw.write(format!("{head}{BODY}").as_bytes()).await.unwrap();
            }
            let answer = raw.read_answer().await.unwrap();
            assert_eq!(status(&answer), wanted, "{store:?} {later} {key:?}: {answer}");
            assert!(!answer.contains("connection: close"), "{store:?} {later} {key:?}: {answer}");
        }
    }
    let early = place.envoy().stat("http.front.downstream_rq_response_before_rq_complete").await;
    assert_eq!(early.unwrap_or(0), 0);
    assert_eq!(place.origin.executions(), 2);
    place.origin.release("it");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_headers_decide_leave_the_connection_in_memory() {
    answers_leave_the_connection(Store::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_headers_decide_leave_the_connection_in_redis() {
    answers_leave_the_connection(Store::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunked_body_and_one_of_many_pieces_are_read_to_their_end() {
    let place = one_done_one_busy(Store::Redis).await;
    let mut raw = raw(&place).await;
    for (key, wanted) in CASES {
        let head = head(key, 0).replace("content-length: 0", "transfer-encoding: chunked");
        raw.write(head.as_bytes()).await.unwrap();
        for _ in 0..6 {
            raw.write(format!("2710\r\n{}\r\n", "x".repeat(10_000)).as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        raw.write(b"0\r\n\r\n").await.unwrap();
        let answer = raw.read_answer().await.unwrap();
        assert_eq!(status(&answer), wanted, "{key:?}: {answer}");
        assert!(!answer.contains("connection: close"), "{key:?}: {answer}");
    }
    assert_eq!(place.origin.executions(), 2);
    place.origin.release("it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_never_ends_gets_its_answer_in_bounded_time() {
    let place = one_done_one_busy(Store::Redis).await;
    for (key, wanted) in [(None, "400"), (Some("busy"), "409"), (Some("done"), "200")] {
        let mut raw = raw(&place).await;
        let sent = Instant::now();
        raw.write(head(key, 1_000).as_bytes()).await.unwrap();
        let trickle = async {
            loop {
                raw.write(b"x").await.unwrap();
                tokio::time::sleep(Duration::from_millis(200)).await;
                if sent.elapsed() > LONGEST_WAIT - Duration::from_millis(500) {
                    return;
                }
            }
        };
        trickle.await;
        let answer = raw.read_answer().await.unwrap();
        let took = sent.elapsed();
        assert_eq!(status(&answer), wanted, "{key:?}: {answer}");
        assert!(answer.contains("connection: close"), "{key:?}: {answer}");
        assert!(took > LONGEST_WAIT - Duration::from_millis(500), "{took:?}");
        assert!(took < LONGEST_WAIT + Duration::from_secs(3), "{took:?}");
    }
    place.origin.release("it");
}

/// Long before an answer that waits for the end of its request comes.
const AT_ONCE: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_not_waited_for() {
    let place = one_done_one_busy(Store::Redis).await;
    for (key, wanted) in [(None, "400"), (Some("busy"), "409"), (Some("done"), "200")] {
        let sent = Instant::now();
        // Its length says so …
        let mut announced = raw(&place).await;
        announced.write(head(key, 64 * 1024 + 1).as_bytes()).await.unwrap();
        let answer = announced.read_answer().await.unwrap();
        assert_eq!(status(&answer), wanted, "{key:?}: {answer}");
        // … or it turns out.
        let mut chunked = raw(&place).await;
        let head = head(key, 0).replace("content-length: 0", "transfer-encoding: chunked");
        let chunk = format!("{:x}\r\n{}\r\n", 64 * 1024 + 1, "x".repeat(64 * 1024 + 1));
        chunked.write(format!("{head}{chunk}").as_bytes()).await.unwrap();
        let answer = chunked.read_answer().await.unwrap();
        assert_eq!(status(&answer), wanted, "{key:?}: {answer}");
        assert!(sent.elapsed() < AT_ONCE, "{:?}", sent.elapsed());
    }
    place.origin.release("it");
}

/// A client that asks before it sends its body, and does not send it unasked.
fn asking(key: Option<&str>) -> String {
    head(key, BODY.len()).replace("content-length", "expect: 100-continue\r\ncontent-length")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_first_gets_its_final_answer_where_envoy_leaves_that_to_us() {
    let bootstrap = Bootstrap::demo().config(&by_headers()).with(|bootstrap| {
        bootstrap.manager()["proxy_100_continue"] = json!(true);
    });
    let world = World::start_with(bootstrap).await;
    assert_eq!(world.post("/pay").key("done").caller("alice").json(BODY).send().await.status, 200);
    for (key, wanted) in [(None, "400"), (Some("done"), "200")] {
        let mut raw = Raw::connect(world.envoy.front).await.unwrap();
        let sent = Instant::now();
        raw.write(asking(key).as_bytes()).await.unwrap();
        let answer = raw.read_answer().await.unwrap();
        assert_eq!(status(&answer), wanted, "{key:?}: {answer}");
        assert!(sent.elapsed() < AT_ONCE, "{:?}", sent.elapsed());
    }
    assert_eq!(world.executions(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn by_default_envoy_closes_after_400_and_says_so_and_the_answer_comes_whole() {
    let world = World::start(by_headers()).await;
    for later in [false, true] {
        let mut raw = Raw::connect(world.envoy.front).await.unwrap();
        raw.write(head(None, BODY.len()).as_bytes()).await.unwrap();
        if later {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        raw.write(BODY.as_bytes()).await.unwrap();
        // To the end of the connection: a reset would be an error.
        let answer = raw.read_until("what never comes").await.unwrap();
        assert!(answer.contains("connection: close") && answer.ends_with('}'), "{answer}");
    }
    let early = world.envoy.stat("http.front.downstream_rq_response_before_rq_complete").await;
    assert_eq!(early.unwrap_or(0), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_first_is_asked_by_envoy_itself_and_keeps_its_connection() {
    let bootstrap = Bootstrap::demo().config(&by_headers()).with(keeps_after_400);
    let world = World::start_with(bootstrap).await;
    let mut raw = Raw::connect(world.envoy.front).await.unwrap();
    for _ in 0..2 {
        raw.write(asking(None).as_bytes()).await.unwrap();
        // By default Envoy answers the question before any filter sees the request.
        let asked = raw.read_until("\r\n\r\n").await.unwrap();
        assert_eq!(asked, "HTTP/1.1 100 Continue\r\n\r\n");
        raw.write(BODY.as_bytes()).await.unwrap();
        let answer = raw.read_answer().await.unwrap();
        assert_eq!(status(&answer), "400", "{answer}");
        assert!(!answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_envoy_keeps_bodies_back_the_answer_does_not_wait_for_them() {
    let bootstrap = Bootstrap::demo().config(&by_headers()).with(|bootstrap| {
        bootstrap.plugin()["allow_on_headers_stop_iteration"] = json!(false);
    });
    let world = World::start_with(bootstrap).await;
    assert_eq!(world.post("/pay").key("done").caller("alice").json(BODY).send().await.status, 200);
    for (key, wanted) in [(None, "400"), (Some("done"), "200"), (None, "400")] {
        let mut raw = Raw::connect(world.envoy.front).await.unwrap();
        let sent = Instant::now();
        raw.write(format!("{}{BODY}", head(key, BODY.len())).as_bytes()).await.unwrap();
        let answer = raw.read_answer().await.unwrap();
        assert_eq!(status(&answer), wanted, "{key:?}: {answer}");
        assert!(sent.elapsed() < AT_ONCE, "{:?}", sent.elapsed());
    }
    assert_eq!(world.executions(), 1);
}
