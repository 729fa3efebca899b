//! Whatever clients send: memory stays bounded, and no worker stops.

use crate::pay;
use serde_json::json;
use std::sync::Arc;
use testkit::client::Raw;
use testkit::{Bootstrap, Client, World, eventually};

/// Bytes that the table may take at the most.
const BUDGET: u64 = 4 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_keys_takes_no_more_than_the_budget_and_no_running_claim() {
    let mut config = pay(json!({}));
    config["store"] = json!({ "memory": { "entries": 4096, "budget": "4MiB" } });
    // However long the flood takes, the route does not end the request that runs meanwhile.
    let bootstrap = Bootstrap::demo().config(&config).with(|bootstrap| {
        let hosts = &mut bootstrap.manager()["route_config"]["virtual_hosts"];
        let routes = hosts[0]["routes"].as_array_mut().unwrap();
        routes.last_mut().unwrap()["route"]["timeout"] = json!("0s");
    });
    let world = Arc::new(World::start_with(bootstrap).await);
    let request = |number: usize| {
        world.post("/pay").key(&format!("key-{number}")).caller("alice").json("{\"amount\":1}")
    };
    let held = request(1_000_000).header("x-origin-hold", "it");
    let patient = Client::connect(world.envoy.front, false).await.unwrap();
    let first = held.clone();
    let running = tokio::spawn(async move { patient.exchange(first).await.unwrap() });
    eventually("one runs", async || world.executions() == 1).await;

    let flood = async |from: usize, to: usize| {
        let mut tasks = Vec::new();
        for lane in 0..16 {
            let client = Client::connect(world.envoy.front, false).await.unwrap();
            let requests: Vec<_> =
                (from..to).filter(|number| number % 16 == lane).map(&request).collect();
            tasks.push(tokio::spawn(async move {
                for request in requests {
                    assert_eq!(client.send(request).await.unwrap().status, 200);
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    };
    // A first part fills the table and whatever else Envoy warms up.
    flood(0, 20_000).await;
    let before = world.envoy.resident_bytes();
    flood(20_000, 99_900).await;
    // Lanes drift apart: the newest keys are those of a last round.
    flood(99_900, 100_000).await;
    let after = world.envoy.resident_bytes();
    assert!(
        after < before + 2 * BUDGET,
        "80,000 further keys took {} KiB",
        (after - before.min(after)) / 1024
    );
    assert_eq!(world.executions(), 100_001);

    // The newest keys are still there …
    for number in 99_900..100_000 {
        assert!(request(number).send().await.is_replay(), "{number}");
    }
    // … and so is the claim that ran all the while.
    assert_eq!(held.clone().send().await.code(), "in-progress");
    world.origin.release("it");
    assert_eq!(running.await.unwrap().status, 200);
    assert!(held.send().await.is_replay());
    assert_eq!(world.executions(), 100_001);
    let evictions = world.envoy.stat("wasmcustom.idempotency_evictions_total").await.unwrap();
    assert!(evictions >= 100_001 - 4_096, "{evictions}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_take_no_memory() {
    let world = World::start(pay(json!({ "ongoing": { "wait": { "max": "4m" } } }))).await;
    let request =
        world.post("/pay").key("a").caller("alice").json("{}").header("x-origin-hold", "it");
    let patient = Client::connect(world.envoy.front, false).await.unwrap();
    let first = request.clone();
    let running = tokio::spawn(async move { patient.exchange(first).await.unwrap() });
    eventually("one runs", async || world.executions() == 1).await;
    let waiters = async || world.envoy.stat("wasmcustom.idempotency_waiters").await;
    let come_and_leave = async |rounds: usize| {
        for _ in 0..rounds {
            let client = Arc::new(Client::connect(world.envoy.front, true).await.unwrap());
            let waiting: Vec<_> = (0..100)
                .map(|_| {
                    let (client, request) = (client.clone(), request.clone());
                    tokio::spawn(async move { client.exchange(request).await })
                })
                .collect();
            eventually("all wait", async || waiters().await == Some(100)).await;
            for one in waiting {
                one.abort();
            }
            drop(client);
            eventually("all have left", async || waiters().await == Some(0)).await;
        }
    };
    // The first rounds fill whatever Envoy and the module keep for the next.
    come_and_leave(100).await;
    let before = world.envoy.resident_bytes();
    come_and_leave(400).await;
    let after = world.envoy.resident_bytes();
    // A hundred bytes for each that left would be over it.
    assert!(
        after < before + BUDGET,
        "40,000 clients that left took {} KiB",
        (after - before.min(after)) / 1024
    );
    world.origin.release("it");
    assert_eq!(running.await.unwrap().status, 200);
    assert_eq!(world.executions(), 1);
}

/// SplitMix64: the same bytes in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        let length = self.next() % (most + 1);
        (0..length).map(|_| self.next() as u8).collect()
    }

    fn one_of<'a>(&mut self, choice: &[&'a [u8]]) -> &'a [u8] {
        choice[(self.next() % choice.len() as u64) as usize]
    }

    /// Bytes that a header may contain: Envoy's codec lets them through, so the filter must handle them.
    fn value(&mut self, most: u64) -> Vec<u8> {
        self.bytes(most).into_iter().filter(|byte| *byte >= 32 && *byte != 127).collect()
    }

    /// Pieces that a parser may expect, and others.
    fn body(&mut self) -> Vec<u8> {
        const PIECES: [&[u8]; 16] = [
            b"{\"a\":1}",
            b"{\"a\":",
            b"[",
            b"]",
            b"}",
            b"\"",
            b"\\u",
            b"d800",
            b"1e999",
            b"null",
            b",",
            b"a=1",
            b"a=",
            b"&",
            b"%",
            b"%zz",
        ];
        let mut body = Vec::new();
        for _ in 0..self.next() % 6 {
            if self.next().is_multiple_of(4) {
                body.extend(self.bytes(30));
            } else {
                body.extend_from_slice(self.one_of(&PIECES));
            }
        }
        body
    }

    /// A request over HTTP/1.1 that Envoy's codec lets through, whatever the filter makes of it.
    fn request(&mut self) -> Vec<u8> {
        let mut request = b"POST ".to_vec();
        request.extend_from_slice(self.one_of(&[
            b"/head/%2e%2e%zz?q=%ff&q=",
            b"/head/1?q=1",
            b"/head/%C3%A9?q=%00",
            b"/json",
            b"/json?",
            b"/form",
            b"/any/thing",
            b"/%ff/",
        ]));
        request.extend_from_slice(b" HTTP/1.1\r\nhost: h\r\nx-origin-bytes: 1\r\n");
        let known: [(&str, &[&[u8]]); 6] = [
            ("idempotency-key", &[b"\"a\"", b"a", b"\"", b"\"\\\"\";a=\"", b"a, b"]),
            ("x-a", &[b"1", b""]),
            ("cookie", &[b"c=1", b"c=\"1\"; c=2", b"=;;c", b"c"]),
            ("x-caller", &[b"1", b"2"]),
            (
                "content-type",
                &[
                    b"application/json",
                    b"application/x-www-form-urlencoded",
                    b"application/json;=\"",
                    b"text/plain",
                    b"a/b/c;;",
                    b"application/x+json; charset=\xff",
                ],
            ),
            ("idempotency-attempt", &[b"1", b"\xff"]),
        ];
        for (name, values) in known {
            // Now and then it is missing, or there twice.
            for _ in 0..[1, 1, 1, 1, 1, 1, 1, 1, 0, 2][(self.next() % 10) as usize] {
                let wild = self.next().is_multiple_of(8);
                let value = if wild { self.value(40) } else { self.one_of(values).to_vec() };
                request.extend_from_slice(name.as_bytes());
                request.extend_from_slice(b": ");
                request.extend_from_slice(&value);
                request.extend_from_slice(b"\r\n");
            }
        }
        let body = self.body();
        request.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
        request.extend_from_slice(&body);
        request
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_bytes_stop_no_worker() {
    let key = json!([
        { "key_header": "idempotency-key" }, { "header": "x-a" }, { "cookie": "c" },
        { "query": "q" }, { "path": "p" },
    ]);
    let config = json!({ "rules": [
        { "name": "head", "match": { "path": "/head/{p}" }, "key": key, "caller": "anyone" },
        { "name": "json", "match": { "path": "/json" }, "key": [ { "json": "/a" } ],
          "caller": "anyone", "fingerprint": { "except": ["/b"] } },
        { "name": "form", "match": { "path": "/form" }, "key": [ { "form": "a" } ], "caller": "anyone" },
        { "name": "body", "match": { "path": "/{*rest}" }, "key": [ "body" ],
          "caller": { "header": "x-caller" } },
    ] });
    let world = World::start(config).await;
    let vms = world.envoy.vms_created().await;
    let mut random = Random(20_261_124);
    for number in 0..10_000 {
        let request = random.request();
        let mut raw = Raw::connect(world.envoy.front).await.unwrap();
        raw.write(&request).await.unwrap();
        let answer = raw.read_answer().await.unwrap();
        let status = answer.strip_prefix("HTTP/1.1 ").and_then(|answer| answer.get(..3));
        assert!(
            status.is_some_and(|status| ["200", "400", "422"].contains(&status)),
            "{number}: {answer:?} to {}",
            String::from_utf8_lossy(&request)
        );
    }
    // The filter saw them, and not just from one side.
    let mut seen = 0;
    for (outcome, at_least) in [
        ("executed", 1_000),
        ("replayed", 20),
        ("invalid", 3_000),
        ("mismatch", 100),
        ("bypassed", 100),
    ] {
        let mut count = 0;
        for rule in ["head", "json", "form", "body"] {
            count += world.counted(rule, outcome).await;
        }
        assert!(count >= at_least, "{count} {outcome}");
        seen += count;
    }
    assert_eq!(seen, 10_000);
    // Both workers serve, and neither had to be replaced: a VM that stops is made anew for the next
    // request of its worker.
    let connections = world.envoy.connections().await;
    for key in 0..40 {
        let next = world.post("/json").json(&format!("{{\"a\":\"key {key}\"}}")).send().await;
        assert_eq!((next.status, next.is_replay()), (200, false));
    }
    let since = world.envoy.connections().await;
    assert!(since.len() == 2 && since.iter().zip(&connections).all(|(now, then)| now > then));
    assert_eq!(world.envoy.vms_created().await, vms);
    assert_eq!(world.envoy.stat("wasm.idempotency.vm_reload").await, Some(0));
    assert!(!world.envoy.log().contains("Function: proxy_on"), "a trap");
}
