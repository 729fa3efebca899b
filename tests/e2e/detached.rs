//! Executions that outlive their clients, and that look like others to an origin.

use crate::pay;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use testkit::client::Raw;
use testkit::origin::Seen;
use testkit::{Bootstrap, Fleet, Request, World, eventually};

fn detached(more: Value) -> Value {
    let mut rule = json!({ "execution": { "detached": { "timeout": "20s" } } });
    rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    pay(rule)
}

fn through(more: Value) -> Value {
    let mut config = detached(more);
    config["rules"][0]["execution"]["detached"]["via"] = json!("loopback");
    config["rules"][0]["match"] = json!({});
    config
}

/// The three ways to be sent: as any other, by the worker, by the worker through a listener.
fn ways() -> [(&'static str, Bootstrap); 3] {
    let any = |mut config: Value| {
        config["rules"][0]["match"] = json!({});
        config
    };
    let file = || Bootstrap::read("detached.yaml");
    [
        ("attached", file().config(&any(pay(json!({}))))),
        ("detached", file().config(&any(detached(json!({}))))),
        ("via", file().config(&through(json!({})))),
    ]
}

/// A client that leaves once its request is with the origin.
async fn leaves(front: SocketAddr, headers: &str) -> Raw {
    let mut raw = Raw::connect(front).await.unwrap();
    let request = format!(
        "POST /pay HTTP/1.1\r\nhost: api.example.com\r\nidempotency-key: a\r\n\
         authorization: alice\r\ncontent-type: application/json\r\n{headers}content-length: 2\r\n\r\n{{}}"
    );
    raw.write(request.as_bytes()).await.unwrap();
    raw
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_the_client_has_left_gets_the_stored_answer() {
    let wait = json!({ "ongoing": { "wait": { "max": "15s" } } });
    let bootstrap = Bootstrap::read("detached.yaml").config(&detached(wait));
    let world = World::start_with(bootstrap).await;
    let raw = leaves(world.envoy.front, "x-origin-delay-ms: 1200\r\n").await;
    eventually("the first runs", async || world.executions() == 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(raw);
    // The retry waits, and gets the answer for the first client.
    let retry = world.post("/pay").key("a").caller("alice").json("{}").send().await;
    assert!(retry.is_replay(), "{}", retry.text());
    assert_eq!((retry.status, retry.json()["execution"].as_u64()), (200, Some(1)));
    assert_eq!(world.executions(), 1);
    assert_eq!(world.counted("pay", "executed").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_at_the_other_envoy_gets_the_stored_answer() {
    let wait = json!({ "ongoing": { "wait": { "max": "15s" } } });
    let fleet = Fleet::start(detached(wait)).await;
    let raw = leaves(fleet.envoys[0].front, "x-origin-delay-ms: 1200\r\n").await;
    eventually("the first runs", async || fleet.executions() == 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(raw);
    let retry = fleet.post(1, "/pay").key("a").caller("alice").json("{}").send().await;
    assert!(retry.is_replay(), "{}", retry.text());
    assert_eq!((retry.status, fleet.executions()), (200, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stays_gets_the_answer_and_its_duplicates_wait_for_it() {
    let wait = json!({ "ongoing": { "wait": { "max": "15s" } } });
    for bootstrap in [
        Bootstrap::read("detached.yaml").config(&detached(wait.clone())),
        Bootstrap::read("detached.yaml").config(&through(wait)),
    ] {
        let world = World::start_with(bootstrap).await;
        let request = world.post("/pay").key("a").caller("alice").json("{}");
        let tasks: Vec<_> = (0..50)
            .map(|_| tokio::spawn(request.clone().header("x-origin-hold", "it").send()))
            .collect();
        eventually("the others wait", async || {
            world.envoy.stat("wasmcustom.idempotency_waiters").await == Some(49)
        })
        .await;
        world.origin.release("it");
        let mut replays = 0;
        for task in tasks {
            let answer = task.await.unwrap();
            assert_eq!((answer.status, answer.json()["execution"].as_u64()), (200, Some(1)));
            replays += usize::from(answer.is_replay());
        }
        assert_eq!((replays, world.executions()), (49, 1));
    }
}

/// Without headers that must differ between two runs, or that the README names.
fn comparable(headers: &[(String, String)], named: &[&str]) -> Vec<(String, String)> {
    let passes = |name: &str| !named.contains(&name);
    headers.iter().filter(|(name, _)| passes(name)).cloned().collect()
}

/// The differences for an origin that the README names without `via`; with it, there are none.
const ORIGIN_SEES: [&str; 2] = ["x-envoy-expected-rq-timeout-ms", "x-envoy-internal"];

#[tokio::test(flavor = "multi_thread")]
async fn neither_origin_nor_client_sees_that_a_request_is_detached() {
    let mut seen: Vec<(&str, Vec<Seen>)> = Vec::new();
    let mut answers = Vec::new();
    for (way, bootstrap) in ways() {
        let world = World::start_with(bootstrap).await;
        let send = async |request: Request| {
            let request = request
                .caller("alice")
                .header("x-twice", "1")
                .header("cookie", "a=b")
                .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
                .header("x-request-id", "5d1b5d0e-0000-4000-8000-000000000000")
                .header("x-twice", "2")
                .header("user-agent", "test")
                .header("x-origin-header", "set-cookie: a=1")
                .header("x-origin-header", "content-type: text/plain")
                .header("x-origin-header", "set-cookie: b=2")
                .header("x-origin-header", "x-other: c");
            let answer = request.send().await;
            let named = ["date", "x-envoy-upstream-service-time"];
            (answer.status, comparable(&answer.headers, &named), answer.body)
        };
        let post = |path: &str, key: &str| world.post(path).key(key);
        let big = "x".repeat(100_000);
        let all = [
            send(post("/pay?a=b&c=%20", "a").json("{\"a\": 1}")).await,
            send(post("/pay", "b").bytes(b"\x00\xff".to_vec())).await,
            send(post("/pay", "c").header("x-origin-bytes", "100000").bytes(big)).await,
            send(post("/pay", "d").header("x-origin-status", "422").json("{}")).await,
            send(post("/pay", "e").header("x-origin-stream", "20").json("{}")).await,
            send(post("/pay", "f").json("{}").http2()).await,
        ];
        answers.push((way, all));
        seen.push((way, world.origin.seen()));
    }
    let (_, attached) = &answers[0];
    for (way, others) in &answers[1..] {
        for (number, (one, other)) in attached.iter().zip(others).enumerate() {
            assert_eq!(one.0, other.0, "{way} {number}");
            assert_eq!(one.2, other.2, "{way} {number}");
            let lines = |headers: &[(String, String)]| {
                // How a body's length is sent is between each client and Envoy.
                let framing = ["content-length", "transfer-encoding"];
                let mut lines = comparable(headers, &framing);
                lines.sort();
                lines
            };
            assert_eq!(lines(&one.1), lines(&other.1), "{way} {number}");
            let order = |headers: &[(String, String)]| {
                headers.iter().filter(|(name, _)| name == "set-cookie").cloned().collect::<Vec<_>>()
            };
            assert_eq!(order(&one.1), order(&other.1), "{way} {number}");
            assert_eq!(order(&one.1).len(), 2);
        }
    }
    let (_, attached) = &seen[0];
    assert_eq!(attached.len(), 6);
    for (way, others) in &seen[1..] {
        let named: &[&str] = if *way == "via" { &[] } else { &ORIGIN_SEES };
        for (number, (one, other)) in attached.iter().zip(others).enumerate() {
            assert_eq!((&one.method, &one.path), (&other.method, &other.path), "{way} {number}");
            assert_eq!(one.body, other.body, "{way} {number}");
            let lines = |seen: &Seen| {
                let framing = ["content-length", "transfer-encoding"];
                let mut lines = comparable(&comparable(&seen.headers, named), &framing);
                lines.sort();
                lines
            };
            assert_eq!(lines(one), lines(other), "{way} {number}");
            for name in ["x-request-id", "traceparent", "host", "idempotency-attempt"] {
                assert_eq!(one.header(name), other.header(name), "{way} {number}: {name}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_routes_policy_applies_through_the_listener() {
    let bootstrap = Bootstrap::read("detached.yaml").config(&through(json!({})));
    let world = World::start_with(bootstrap).await;
    let request = world.post("/public/pay?a=b").key("a").caller("alice").json("{}");
    let first = request.clone().send().await;
    assert_eq!((first.status, first.is_replay()), (200, false), "{}", first.text());
    assert!(request.send().await.is_replay());
    assert_eq!(world.origin.seen()[0].path, "/internal/pay?a=b");
    assert_eq!(world.executions(), 1);
    assert_eq!(world.origin.seen()[0].header("idempotency-via"), None);
    assert_eq!(first.header("idempotency-source"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_client_may_pretend_to_come_through_the_listener() {
    let bootstrap = Bootstrap::read("detached.yaml").config(&through(json!({})));
    let world = World::start_with(bootstrap).await;
    for nonce in ["", "a", "00000000000000000000000000000000"] {
        let request = world.post("/pay").key("a").caller("alice").json("{}");
        let refused = request.header("idempotency-via", nonce).send().await;
        assert_eq!((refused.status, refused.code().as_str()), (403, "via-refused"));
    }
    assert_eq!(world.executions(), 0);
}

/// An execution whose outcome is unknown, and then the next attempt.
async fn in_doubt(world: &World, path: &str, header: (&str, &str), status: u16) {
    let executions = world.executions();
    let request = world.post(path).key(path).caller("alice").json("{}");
    let first = request.clone().header(header.0, header.1).send().await;
    assert_eq!(first.status, status, "{}", first.text());
    assert_eq!(request.clone().send().await.code(), "outcome-unknown");
    assert_eq!(world.executions(), executions + 1);
    eventually("the next attempt takes over", async || {
        let answer = request.clone().send().await;
        assert!(answer.code() == "outcome-unknown" || answer.status != 409);
        answer.code() != "outcome-unknown"
    })
    .await;
    assert_eq!(world.executions(), executions + 2);
    let seen = world.origin.seen();
    assert_eq!(seen[executions + 1].header("idempotency-attempt"), Some("2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_of_an_answer_is_known_with_and_without_via() {
    for config in [through(json!({ "unknown_ttl": "2s" })), {
        let mut config = detached(json!({ "unknown_ttl": "2s" }));
        config["rules"][0]["match"] = json!({});
        config
    }] {
        let world = World::start_with(Bootstrap::read("detached.yaml").config(&config)).await;
        // The application's own, whatever its status.
        for (status, replay) in [("500", true), ("404", true), ("429", false), ("401", false)] {
            let request = world.post("/status").key(status).caller("alice").json("{}");
            let request = request.header("x-origin-status", status);
            assert_eq!(request.clone().send().await.status.to_string(), status);
            assert_eq!(request.send().await.is_replay(), replay, "{status}");
        }
        // Nothing was sent: free again.
        for _ in 0..2 {
            let request = world.post("/refused/pay").key("r").caller("alice").json("{}");
            let answer = request.send().await;
            assert_eq!((answer.status, answer.is_replay()), (503, false), "{}", answer.text());
            assert_ne!(answer.code(), "outcome-unknown");
        }
        // It may have run.
        in_doubt(&world, "/before", ("x-origin-die", "before"), 503).await;
        let middle = world.post("/middle").key("m").caller("alice").json("{}");
        let middle = middle.header("x-origin-die", "middle").try_send().await;
        assert!(middle.is_err() || middle.is_ok_and(|answer| answer.status >= 500));
        let again = world.post("/middle").key("m").caller("alice").json("{}").send().await;
        assert_eq!(again.code(), "outcome-unknown");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_the_timeout_give_clear_answers() {
    let mut config = detached(json!({
        "unknown_ttl": "2s", "fingerprint": "none",
        "limits": { "request_body": "1KiB", "response_body": "2KiB" } }));
    config["rules"][0]["execution"]["detached"]["timeout"] = json!("1s");
    let bootstrap = Bootstrap::read("detached.yaml").config(&config);
    let world = World::start_with(bootstrap).await;
    let post = |key: &str| world.post("/pay").key(key).caller("alice");
    let large = post("large").bytes(vec![b'x'; 1025]).send().await;
    assert_eq!((large.status, large.code().as_str()), (413, "body-too-large"));
    assert_eq!(world.executions(), 0);
    // The client gets all of an answer that is too large to keep.
    let answer = post("long").json("{}").header("x-origin-bytes", "100000").send().await;
    assert_eq!((answer.status, answer.body.len()), (200, 100_000));
    let again = post("long").json("{}").send().await;
    assert_eq!((again.status, again.code().as_str()), (409, "completed-not-stored"));
    assert_eq!(again.json()["original_status"], 200);
    let late = post("late").json("{}").header("x-origin-delay-ms", "3000").send().await;
    assert_eq!(late.status, 504, "{}", late.text());
    assert_eq!(post("late").json("{}").send().await.code(), "outcome-unknown");
    assert_eq!(world.executions(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_kept_alive_while_no_client_waits_for_it() {
    let bootstrap = Bootstrap::read("detached.yaml").config(&detached(json!({ "lease": "1s" })));
    let world = World::start_with(bootstrap).await;
    let raw = leaves(world.envoy.front, "x-origin-hold: it\r\n").await;
    eventually("the first runs", async || world.executions() == 1).await;
    drop(raw);
    let request = world.post("/pay").key("a").caller("alice").json("{}");
    for _ in 0..30 {
        assert_eq!(request.clone().send().await.code(), "in-progress");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.origin.release("it");
    eventually("the answer is recorded", async || request.clone().send().await.is_replay()).await;
    assert_eq!(world.executions(), 1);
}
