//! Of any number of duplicates, one runs, and the others get its answer.

use crate::pay;
use serde_json::json;
use std::collections::HashSet;
use std::time::{Duration, Instant};
use testkit::client::Raw;
use testkit::{Bootstrap, Client, Envoy, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A rule's `lease`, by default.
const LEASE: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_gets_the_first_answer() {
    let world = World::start(pay(json!({}))).await;
    let request = world.post("/pay").key("a").caller("alice").json(r#"{"amount":1}"#);
    let first = request.clone().send().await;
    let retry = request.clone().send().await;
    let over_http2 = request.http2().send().await;
    assert_eq!((first.status, first.is_replay()), (200, false));
    assert_eq!((retry.status, retry.is_replay()), (200, true));
    assert_eq!((over_http2.status, over_http2.is_replay()), (200, true));
    assert_eq!(first.body, retry.body);
    assert_eq!(first.body, over_http2.body);
    assert_eq!(world.executions(), 1);
    assert_eq!(world.origin.seen()[0].header("idempotency-key"), Some("a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_200_at_once_one_runs_and_the_others_are_refused() {
    let world = World::start(pay(json!({}))).await;
    let request = world
        .post("/pay")
        .key("a")
        .caller("alice")
        .header("x-origin-hold", "first")
        .json(r#"{"amount":1}"#);
    let tasks: Vec<_> = (0..200).map(|_| tokio::spawn(request.clone().send())).collect();
    testkit::eventually("199 were refused", async || world.counted("pay", "rejected").await == 199)
        .await;
    world.origin.release("first");
    let mut ran = 0;
    for task in tasks {
        let answer = task.await.unwrap();
        if answer.status == 200 {
            ran += 1;
        } else {
            assert_eq!((answer.status, answer.code().as_str()), (409, "in-progress"));
            assert_eq!(answer.header("retry-after"), Some("1"));
        }
    }
    assert_eq!((ran, world.executions()), (1, 1));
    let later = request.send().await;
    assert!(later.is_replay());
    assert_eq!(world.executions(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_200_at_once_one_runs_and_the_others_wait_for_its_answer() {
    let world = World::start(pay(json!({ "ongoing": { "wait": { "max": "15s" } } }))).await;
    let request = world
        .post("/pay")
        .key("a")
        .caller("alice")
        .header("x-origin-hold", "first")
        .json(r#"{"amount":1}"#);
    let tasks: Vec<_> = (0..200).map(|_| tokio::spawn(request.clone().send())).collect();
    testkit::eventually("199 wait", async || {
        world.envoy.stat("wasmcustom.idempotency_waiters").await == Some(199)
    })
    .await;
    world.origin.release("first");
    let released = Instant::now();
    let mut bodies = HashSet::new();
    let mut replays = 0;
    for task in tasks {
        let answer = task.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        replays += usize::from(answer.is_replay());
        bodies.insert(answer.body);
    }
    assert_eq!((bodies.len(), replays, world.executions()), (1, 199, 1));
    // They are woken; without that, a waiter would check only when the lease may lapse.
    assert!(released.elapsed() < LEASE / 2, "{:?}", released.elapsed());
    // Some waited on the worker of the first, and some on the other.
    let connections = world.envoy.connections().await;
    assert!(connections.len() == 2 && !connections.contains(&0), "{connections:?}");
    assert_eq!(world.counted("pay", "waited").await, 199);
    assert_eq!(world.envoy.stat("wasmcustom.idempotency_waiters").await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_keys_do_not_mix() {
    let world = World::start(pay(json!({ "ongoing": { "wait": { "max": "15s" } } }))).await;
    let mut requests = Vec::new();
    for round in 0..4 {
        for number in 0..500 {
            let key = format!("key-{number}");
            let body = format!("{{\"number\":{number}}}");
            let echo = format!("x-number: {number}");
            let request = world.post("/pay").key(&key).caller("alice").json(&body);
            // Only the first round may run; its answer shows the key.
            requests.push((number, round, request.header("x-origin-header", echo)));
        }
    }
    let clients: Vec<_> = (0..20).map(|_| Client::connect(world.envoy.front, true)).collect();
    let mut connected = Vec::new();
    for client in clients {
        connected.push(std::sync::Arc::new(client.await.unwrap()));
    }
    let tasks: Vec<_> = requests
        .into_iter()
        .map(|(number, _, request)| {
            let client = connected[number % connected.len()].clone();
            tokio::spawn(async move { (number, client.send(request).await.unwrap()) })
        })
        .collect();
    for task in tasks {
        let (number, answer) = task.await.unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("x-number"), Some(number.to_string().as_str()));
    }
    assert_eq!(world.executions(), 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_has_the_headers_in_order_with_duplicates_and_never_a_cookie() {
    let world = World::start(pay(json!({}))).await;
    let mut request = world
        .post("/pay")
        .key("a")
        .caller("alice")
        .json("{}")
        .header("x-origin-status", "201")
        .header("x-origin-bytes", "70000");
    for line in [
        "content-type: application/vnd.bank+json; charset=utf-8",
        "location: /payments/1",
        "x-twice: one",
        "etag: \"abc\"",
        "x-twice: two",
        "set-cookie: session=secret",
        "set-cookie: other=secret",
        "www-authenticate: Basic",
        "x-request-id: 7",
        "x-ratelimit-remaining: 3",
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "strict-transport-security: max-age=1",
        "x-twice: three",
    ] {
        request = request.header("x-origin-header", line);
    }
    let first = request.clone().send().await;
    let retry = request.send().await;
    assert_eq!(world.executions(), 1);
    assert!(first.headers.iter().any(|(name, _)| name == "set-cookie"));
    assert_eq!(retry.status, 201);
    assert_eq!(retry.body, first.body);
    assert_eq!(retry.body.len(), 70_000);
    let kept: Vec<_> = retry
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .filter(|(name, _)| !["date", "server", "content-length"].contains(name))
        .collect();
    assert_eq!(
        kept,
        [
            ("content-type", "application/vnd.bank+json; charset=utf-8"),
            ("location", "/payments/1"),
            ("x-twice", "one"),
            ("x-twice", "two"),
            ("x-twice", "three"),
            ("etag", "\"abc\""),
            ("idempotent-replayed", "true"),
        ]
        .map(|pair| pair)
    );
    assert_eq!(retry.header("content-length"), Some("70000"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_a_content_type_is_replayed_without_one() {
    let world = World::start(pay(json!({}))).await;
    let request =
        world.post("/pay").key("a").caller("alice").json("{}").header("x-origin-bytes", "10");
    let first = request.clone().send().await;
    let retry = request.send().await;
    assert_eq!(first.header("content-type"), None);
    assert!(retry.is_replay());
    assert_eq!(retry.header("content-type"), None);
    assert_eq!(retry.body, first.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_answer_is_replayed_empty() {
    let world = World::start(pay(json!({}))).await;
    let request = world
        .post("/pay")
        .key("a")
        .caller("alice")
        .json("{}")
        .header("x-origin-status", "204")
        .header("x-origin-header", "x-done: yes")
        .header("x-origin-bytes", "0");
    let first = request.clone().send().await;
    let retry = request.send().await;
    assert_eq!((first.status, first.body.len()), (204, 0));
    assert_eq!((retry.status, retry.body.len(), retry.is_replay()), (204, 0, true));
    assert_eq!(retry.header("x-done"), Some("yes"));
    assert_eq!(world.executions(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_answer_without_a_length_is_replayed_byte_for_byte() {
    let world = World::start(pay(json!({}))).await;
    let request =
        world.post("/pay").key("a").caller("alice").json("{}").header("x-origin-stream", "200");
    let first = request.clone().send().await;
    let retry = request.send().await;
    assert_eq!(first.body.len(), 200_000);
    assert!(retry.is_replay());
    assert_eq!(retry.body, first.body);
    assert_eq!(world.executions(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_that_race_on_both_workers_run_once() {
    const KEYS: usize = 1_000;
    let world = World::start(pay(json!({ "ongoing": { "wait": { "max": "15s" } } }))).await;
    // Each client goes through the same keys. Those that wait for one are woken together, and so they
    // are at the next at the same moment, on both workers.
    let mut tasks = Vec::new();
    for _ in 0..16 {
        let client = Client::connect(world.envoy.front, false).await.unwrap();
        let requests: Vec<_> = (0..KEYS)
            .map(|key| world.post("/pay").key(&format!("key-{key}")).caller("alice").json("{}"))
            .collect();
        tasks.push(tokio::spawn(async move {
            let mut firsts = 0;
            for request in requests {
                let answer = client.send(request).await.unwrap();
                assert_eq!(answer.status, 200, "{}", answer.text());
                firsts += usize::from(!answer.is_replay());
            }
            firsts
        }));
    }
    let mut firsts = 0;
    for task in tasks {
        firsts += task.await.unwrap();
    }
    assert_eq!((firsts, world.executions()), (KEYS, KEYS));
    let connections = world.envoy.connections().await;
    assert!(connections.len() == 2 && !connections.contains(&0), "{connections:?}");
}

/// An origin that answers in these very bytes; hyper would put headers of one name together.
async fn origin_of_bytes(answer: &'static [u8]) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            // Envoy sends a small request at once.
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer).await;
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_a_replay_stand_where_they_stood() {
    let port = origin_of_bytes(
        b"HTTP/1.1 201 Created\r\nx-twice: one\r\netag: \"abc\"\r\nx-twice: two\r\n\
          content-type: text/odd\r\nx-last: yes\r\nx-twice: \xe9\r\ncontent-length: 5\r\n\r\nhello",
    )
    .await;
    let envoy = Envoy::start(Bootstrap::demo().config(&pay(json!({}))).origin(port)).await;
    let mut lines = Vec::new();
    for replayed in [false, true] {
        let mut raw = Raw::connect(envoy.front).await.unwrap();
        raw.write(
            b"POST /pay HTTP/1.1\r\nhost: h\r\nidempotency-key: a\r\nauthorization: alice\r\n\
              content-length: 0\r\n\r\n",
        )
        .await
        .unwrap();
        let answer = raw.read_until("hello").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 201 Created"), "{answer}");
        assert_eq!(answer.contains("idempotent-replayed: true"), replayed);
        let kept: Vec<_> = answer
            .lines()
            .filter(|line| ["x-twice", "x-last", "etag"].iter().any(|name| line.starts_with(name)))
            .map(str::to_owned)
            .collect();
        assert!(answer.contains("content-type: text/odd\r\n"), "{answer}");
        lines.push(kept);
    }
    assert_eq!(lines[0].len(), 5);
    assert_eq!(lines[0], lines[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_chooses_the_headers_of_its_replays() {
    let rule = |name: &str, headers: serde_json::Value| {
        json!({ "name": name, "match": { "path": format!("/{name}") }, "caller": "anyone",
                "key": [ { "key_header": "idempotency-key" } ], "replay_headers": headers })
    };
    let config = json!({ "rules": [
        rule("deny", json!({ "deny": ["x-a"] })), rule("allow", json!({ "allow": ["x-a"] })),
    ] });
    let world = World::start(config).await;
    for (path, a, b) in [("/deny", None, Some("2")), ("/allow", Some("1"), None)] {
        let request = world
            .post(path)
            .key("a")
            .json("{}")
            .header("x-origin-header", "x-a: 1")
            .header("x-origin-header", "x-b: 2")
            .header("x-origin-header", "set-cookie: c");
        let first = request.clone().send().await;
        assert_eq!((first.header("x-a"), first.header("x-b")), (Some("1"), Some("2")));
        let retry = request.send().await;
        assert!(retry.is_replay());
        assert_eq!((retry.header("x-a"), retry.header("x-b")), (a, b), "{path}");
        assert_eq!(retry.header("set-cookie"), None);
        assert_eq!(retry.body, first.body);
    }
}
