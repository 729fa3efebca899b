//! Bodies in any form: compared, limited, and never seen by the origin before the decision.

use crate::pay;
use serde_json::json;
use testkit::client::Raw;
use testkit::deployment::{Deployment, Store};
use testkit::origin::PIECE;
use testkit::{Bootstrap, Request, World, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_different_request_under_a_used_key_is_refused_in_flight_and_after() {
    let world = World::start(pay(json!({ "ongoing": { "wait": { "max": "15s" } } }))).await;
    let request = world.post("/pay").key("hush-key").caller("alice").header("x-origin-hold", "it");
    let first = tokio::spawn(request.clone().json(r#"{"amount":1}"#).send());
    eventually("the first runs", async || world.executions() == 1).await;
    let other = request.clone().json(r#"{"amount":2}"#);
    let in_flight = other.clone().send().await;
    assert_eq!((in_flight.status, in_flight.code().as_str()), (422, "key-reused"));
    assert!(in_flight.json()["first_seen"].is_string());
    world.origin.release("it");
    assert_eq!(first.await.unwrap().status, 200);
    let after = other.send().await;
    assert_eq!((after.status, after.code().as_str()), (422, "key-reused"));
    assert!(!after.text().contains("hush-key") && !after.text().contains("amount"));
    let other_type = request.header("content-type", "text/plain").bytes(r#"{"amount":1}"#);
    assert_eq!(other_type.send().await.status, 422);
    assert_eq!(world.executions(), 1);
    assert_eq!(world.counted("pay", "mismatch").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn member_order_and_white_space_make_no_difference_and_digits_do() {
    let world = World::start(pay(json!({}))).await;
    let request = world.post("/pay").key("a").caller("alice");
    request.clone().json(r#"{"amount": 1.50, "to": {"a": 1, "b": "\u00e9"}}"#).send().await;
    let same = "{\n\"to\":{\"b\":\"é\",\"a\":1},\"amount\":1.50}";
    assert!(request.clone().json(same).send().await.is_replay());
    let digits = r#"{"amount":1.5,"to":{"a":1,"b":"é"}}"#;
    assert_eq!(request.json(digits).send().await.status, 422);
    assert_eq!(world.executions(), 1);
}

const HEAD: &str = "POST /pay HTTP/1.1\r\nhost: api.example.com\r\nidempotency-key: a\r\n\
                    authorization: alice\r\ncontent-type: application/json\r\n";

/// The end of the origin's answer.
const ANSWER_END: &str = "\"path\":\"/pay\"}";

#[tokio::test(flavor = "multi_thread")]
async fn a_body_split_at_every_byte_is_one_body() {
    let world = World::start(pay(json!({}))).await;
    let body = br#"{"amount":1,"to":"\u00e9"}"#;
    let mut executed = 0;
    for split in 0..=body.len() {
        let (first, second) = body.split_at(split);
        // With a length …
        let mut raw = Raw::connect(world.envoy.front).await.unwrap();
        let head = format!("{HEAD}content-length: {}\r\n\r\n", body.len());
        world.write(&mut raw, head.as_bytes()).await;
        world.write(&mut raw, first).await;
        world.write(&mut raw, second).await;
        let answer = raw.read_until(ANSWER_END).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "split at {split}: {answer}");
        executed += usize::from(!answer.contains("idempotent-replayed"));
        // … and in chunks that announce none.
        let mut raw = Raw::connect(world.envoy.front).await.unwrap();
        world.write(&mut raw, format!("{HEAD}transfer-encoding: chunked\r\n\r\n").as_bytes()).await;
        for piece in [first, second].into_iter().filter(|piece| !piece.is_empty()) {
            world.write(&mut raw, format!("{:x}\r\n", piece.len()).as_bytes()).await;
            world.write(&mut raw, piece).await;
            world.write(&mut raw, b"\r\n").await;
        }
        raw.write(b"0\r\n\r\n").await.unwrap();
        let answer = raw.read_until(ANSWER_END).await.unwrap();
        assert!(answer.contains("idempotent-replayed: true"), "split at {split}: {answer}");
    }
    assert_eq!((executed, world.executions()), (1, 1));
    assert_eq!(world.origin.seen()[0].body, body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_comes_byte_by_byte_is_one_body() {
    let world = World::start(pay(json!({}))).await;
    let body = br#"{"amount":1,"to":["x",{"y":null}]}"#;
    let mut raw = Raw::connect(world.envoy.front).await.unwrap();
    let head = format!("{HEAD}content-length: {}\r\n\r\n", body.len());
    for byte in head.as_bytes().iter().chain(body) {
        world.write(&mut raw, &[*byte]).await;
    }
    let first = raw.read_until(ANSWER_END).await.unwrap();
    assert!(first.starts_with("HTTP/1.1 200") && !first.contains("idempotent-replayed"), "{first}");
    let whole =
        world.post("/pay").key("a").caller("alice").json(std::str::from_utf8(body).unwrap());
    assert!(whole.send().await.is_replay());
    assert_eq!(world.executions(), 1);
    assert_eq!(world.origin.seen()[0].body, body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_ends_in_trailers_is_whole() {
    let world = World::start(pay(json!({}))).await;
    let request = world.post("/pay").key("a").caller("alice").json(r#"{"amount":1}"#);
    let first = request.clone().trailer("x-checksum", "1").send().await;
    assert_eq!(first.status, 200, "{}", first.text());
    let second = request.clone().trailer("x-checksum", "2").send().await;
    assert!(second.is_replay());
    assert!(request.send().await.is_replay());
    assert_eq!(world.executions(), 1);
    assert_eq!(world.origin.seen()[0].body, br#"{"amount":1}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_ends_in_trailers_is_recorded() {
    let world = World::start(pay(json!({}))).await;
    let request = world
        .post("/pay")
        .key("a")
        .caller("alice")
        .json("{}")
        .header("te", "trailers")
        .header("x-origin-stream", "3")
        .header("x-origin-trailers", "1");
    let first = request.clone().send().await;
    assert_eq!(first.body.len(), 3_000);
    let retry = request.send().await;
    assert!(retry.is_replay());
    assert_eq!(retry.body, first.body);
    assert_eq!(world.executions(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_a_request_holds_to_the_byte() {
    let world = World::start(pay(json!({ "limits": { "request_body": "1KiB" } }))).await;
    let request = world.post("/pay").caller("alice").header("content-type", "text/plain");
    let fits = request.clone().key("a").bytes(vec![b'x'; 1024]).send().await;
    assert_eq!(fits.status, 200);
    let over = request.clone().key("b").bytes(vec![b'x'; 1025]).send().await;
    assert_eq!((over.status, over.code().as_str()), (413, "body-too-large"));
    // The same where no length announces it.
    let fits = request.clone().key("c").bytes(vec![b'x'; 1024]).trailer("x-end", "1").send().await;
    assert_eq!(fits.status, 200);
    let over = request.key("d").bytes(vec![b'x'; 1025]).trailer("x-end", "1").send().await;
    assert_eq!((over.status, over.code().as_str()), (413, "body-too-large"));
    assert_eq!(world.executions(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_an_answer_holds_to_the_byte_and_the_client_gets_it_all() {
    let world = World::start(pay(json!({ "limits": { "response_body": "10KiB" } }))).await;
    let request = world.post("/pay").caller("alice").json("{}");
    for (key, how, bytes, kept) in [
        ("a", "x-origin-bytes", "10240", true),
        ("b", "x-origin-bytes", "10241", false),
        ("c", "x-origin-stream", "10", true),
        ("d", "x-origin-stream", "11", false),
    ] {
        let request = request.clone().key(key).header(how, bytes);
        let first = request.clone().header("x-origin-status", "202").send().await;
        let length = bytes.parse::<usize>().unwrap();
        let length = if how == "x-origin-stream" { length * 1_000 } else { length };
        assert_eq!((first.status, first.body.len()), (202, length));
        let executions = world.executions();
        let retry = request.header("x-origin-status", "202").send().await;
        if kept {
            assert_eq!((retry.status, retry.is_replay()), (202, true));
            assert_eq!(retry.body, first.body);
        } else {
            assert_eq!((retry.status, retry.code().as_str()), (409, "completed-not-stored"));
            assert_eq!(retry.json()["original_status"], 202);
        }
        assert_eq!(world.executions(), executions);
    }
    assert_eq!(world.counted("pay", "tombstone").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_must_be_json_or_a_form_and_is_not_is_refused() {
    let config = json!({ "rules": [
        { "name": "json", "match": { "path": "/json" }, "key": [ { "json": "/id" } ], "caller": "anyone" },
        { "name": "form", "match": { "path": "/form" }, "key": [ { "form": "id" } ], "caller": "anyone" },
    ] });
    let world = World::start(config).await;
    let deep = format!("{{\"id\":{}1{}}}", "[".repeat(5_000), "]".repeat(5_000));
    for body in ["{\"id\":1", "{\"id\":1,\"id\":2}", "not json", "{\"id\":\"\\ud800\"}", &deep] {
        let answer = world.post("/json").json(body).send().await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "body-invalid"), "{body:.40}");
    }
    let answer = world.post("/form").json("{\"id\":1}").send().await;
    assert_eq!((answer.status, answer.code().as_str()), (400, "body-invalid"));
    for body in ["{}", "{\"id\":null}", "{\"id\":\"\"}", "{\"id\":[]}", "{\"id\":{}}"] {
        let answer = world.post("/json").json(body).send().await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "key-missing"), "{body}");
    }
    assert_eq!(world.executions(), 0);
    for body in ["{\"id\":false}", "{\"id\":0}"] {
        assert_eq!(world.post("/json").json(body).send().await.status, 200, "{body}");
    }
    assert_eq!(world.executions(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_needs_the_body_says_so_when_envoy_keeps_it_back() {
    let bootstrap = Bootstrap::demo().config(&pay(json!({}))).with(|bootstrap| {
        bootstrap.plugin()["allow_on_headers_stop_iteration"] = json!(false);
    });
    let world = World::start_with(bootstrap).await;
    let request = world.post("/pay").key("a").caller("alice");
    for _ in 0..3 {
        let answer = request.clone().json(r#"{"amount":1}"#).send().await;
        assert_eq!((answer.status, answer.code().as_str()), (500, "misconfigured"));
    }
    assert_eq!(world.executions(), 0);
    assert!(world.envoy.log().contains("allow_on_headers_stop_iteration: true"));
    // Without a body there is nothing to keep back.
    assert_eq!(request.clone().send().await.status, 200);
    assert!(request.send().await.is_replay());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_origin_sees_nothing_before_the_body_is_whole() {
    let world = World::start(pay(json!({}))).await;
    let mut raw = Raw::connect(world.envoy.front).await.unwrap();
    world.write(&mut raw, format!("{HEAD}content-length: 12\r\n\r\n{{\"amount\"").as_bytes()).await;
    // Another request, from its first byte to its last, on each worker most likely, goes by meanwhile.
    for key in 0..10 {
        let other = world.post("/pay").key(&format!("other-{key}")).caller("alice").json("{}");
        assert_eq!(other.send().await.status, 200);
    }
    assert_eq!(world.executions(), 10);
    raw.write(b":1}").await.unwrap();
    raw.read_until(ANSWER_END).await.unwrap();
    assert_eq!(world.executions(), 11);
    assert_eq!(world.origin.seen()[10].body, br#"{"amount":1}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_streams_to_its_client_while_it_is_recorded() {
    let world = World::start(pay(json!({}))).await;
    let mut raw = Raw::connect(world.envoy.front).await.unwrap();
    raw.write(
        format!(
            "{HEAD}x-origin-stream: 2\r\nx-origin-hold-stream: end\r\ncontent-length: 2\r\n\r\n{{}}"
        )
        .as_bytes(),
    )
    .await
    .unwrap();
    // The first piece is with the client while the origin still holds the second …
    let piece = "s".repeat(PIECE);
    raw.read_until(&piece).await.unwrap();
    let request = world.post("/pay").key("a").caller("alice").json("{}");
    assert_eq!(request.clone().send().await.code(), "in-progress");
    world.origin.release("end");
    // … and once it has the end, the record is there.
    raw.read_until("0\r\n\r\n").await.unwrap();
    let retry = request.send().await;
    assert!(retry.is_replay());
    assert_eq!(retry.body.len(), 2 * PIECE);
    assert_eq!(world.executions(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_larger_than_envoys_buffer_come_whole_and_are_recorded_first() {
    let rule = pay(json!({ "limits": { "response_body": "2MiB" } }));
    for store in [Store::Memory, Store::Redis] {
        for http2 in [false, true] {
            let deployment = Deployment::start(store, &rule, |bootstrap| {
                bootstrap.with(|bootstrap| {
                    // Envoy Gateway's default.
                    bootstrap.listener()["per_connection_buffer_limit_bytes"] = json!(32_768);
                    if http2 {
                        const OPTIONS: &str =
                            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
                        bootstrap.cluster("origin")["typed_extension_protocol_options"] = json!({
                            OPTIONS: {
                                "@type": format!("type.googleapis.com/{OPTIONS}"),
                                "explicit_http_config": { "http2_protocol_options": {} }
                            }
                        });
                    }
                })
            })
            .await;
            for bytes in [1, 16_384, 16_385, 32_768, 32_769, 60_000, 200_000, 900_000] {
                for way in ["x-origin-bytes", "x-origin-stream"] {
                    // A stream's pieces are of a thousand bytes.
                    let value = if way == "x-origin-stream" { bytes / 1_000 } else { bytes };
                    let wanted = if way == "x-origin-stream" { value * 1_000 } else { bytes };
                    let key = format!("{way}-{bytes}");
                    let ask = |request: Request| {
                        let request = request.key(&key).caller("alice").json("{}");
                        request.header(way, value.to_string()).send()
                    };
                    let first = ask(deployment.post("/pay")).await;
                    let got = (first.status, first.is_replay(), first.body.len());
                    assert_eq!(got, (200, false, wanted), "{store:?} {http2} {key}");
                    // At once: a client with the answer finds its record.
                    let again = ask(deployment.elsewhere("/pay")).await;
                    assert!(again.is_replay(), "{store:?} {http2} {key}: {}", again.code());
                    assert_eq!(again.body, first.body, "{store:?} {http2} {key}");
                }
            }
            assert_eq!(deployment.origin.executions(), 16);
        }
    }
}
