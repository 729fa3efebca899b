//! Two Envoys, two workers each, one Redis: one truth.

use crate::pay;
use serde_json::json;
use std::time::{Duration, Instant};
use testkit::{Fleet, Request, eventually};

async fn waiters(fleet: &Fleet, number: u64) {
    eventually("so many wait", async || {
        let mut waiting = 0;
        for envoy in &fleet.envoys {
            waiting += envoy.stat("wasmcustom.idempotency_waiters").await.unwrap_or(0);
        }
        waiting == number
    })
    .await;
}

fn a(request: Request) -> Request {
    request.key("a").caller("alice").json("{}")
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_hundred_duplicates_on_both_envoys_one_runs() {
    let fleet = Fleet::start(pay(json!({}))).await;
    let tasks: Vec<_> = (0..200)
        .map(|number| {
            let request = a(fleet.post(number % 2, "/pay")).header("x-origin-hold", "it");
            tokio::spawn(request.send())
        })
        .collect();
    eventually("all but one are refused", async || fleet.counted("pay", "rejected").await == 199)
        .await;
    fleet.origin.release("it");
    let mut executed = 0;
    for task in tasks {
        let answer = task.await.unwrap();
        match answer.status {
            200 => executed += 1,
            409 => assert_eq!(answer.code(), "in-progress"),
            other => panic!("{other}: {}", answer.text()),
        }
    }
    assert_eq!((executed, fleet.executions()), (1, 1));
    for envoy in 0..2 {
        let replay = a(fleet.post(envoy, "/pay")).send().await;
        assert!(replay.is_replay());
        assert_eq!(replay.json()["execution"], 1);
    }
    let keys = fleet.redis.keys("*").await;
    assert!(keys.len() == 1 && keys[0].starts_with("idem:"), "{keys:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_keys_raced_across_the_envoys_run_once_each() {
    let fleet = Fleet::start(pay(json!({ "ongoing": { "wait": { "max": "15s" } } }))).await;
    let tasks: Vec<_> = (0..600)
        .map(|number| {
            let key = format!("key-{}", number / 2);
            let request = fleet.post(number % 2, "/pay").key(&key).caller("alice").json("{}");
            tokio::spawn(request.header("x-origin-delay-ms", "20").send())
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    for pair in answers.chunks(2) {
        assert_eq!((pair[0].status, pair[1].status), (200, 200));
        assert_eq!(pair[0].body, pair[1].body);
        assert_eq!(pair.iter().filter(|answer| answer.is_replay()).count(), 1);
    }
    assert_eq!(fleet.executions(), 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_waiters_on_the_other_envoy_are_answered_at_once() {
    let fleet = Fleet::start(pay(json!({ "ongoing": { "wait": { "max": "15s" } } }))).await;
    let first = a(fleet.post(0, "/pay")).header("x-origin-hold", "it");
    let first = tokio::spawn(first.send());
    eventually("the first runs", async || fleet.executions() == 1).await;
    let begun = Instant::now();
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let request = a(fleet.post(1, "/pay"));
            tokio::spawn(async move {
                let answer = request.send().await;
                (answer, Instant::now())
            })
        })
        .collect();
    waiters(&fleet, 50).await;
    // Long enough for the pause between two polls to be a second.
    tokio::time::sleep(Duration::from_secs(4).saturating_sub(begun.elapsed())).await;
    // One poll per pause, key and Envoy, not one per waiter.
    let looks = fleet.redis.script_calls().await;
    assert!(looks < 100, "{looks}");
    fleet.origin.release("it");
    assert_eq!(first.await.unwrap().status, 200);
    let ended = Instant::now();
    for task in tasks {
        let (answer, at) = task.await.unwrap();
        assert!(answer.is_replay(), "{}", answer.text());
        let late = at.saturating_duration_since(ended);
        assert!(late < Duration::from_millis(300), "{late:?}");
    }
    assert_eq!(fleet.executions(), 1);
    waiters(&fleet, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_claim_passes_to_one_waiter_of_all_envoys() {
    let fleet = Fleet::start(pay(json!({ "ongoing": { "wait": { "max": "15s" } } }))).await;
    let first = a(fleet.post(0, "/pay")).header("x-origin-status", "429");
    let first = tokio::spawn(first.header("x-origin-hold", "first").send());
    eventually("the first runs", async || fleet.executions() == 1).await;
    let tasks: Vec<_> =
        (0..40).map(|number| tokio::spawn(a(fleet.post(number % 2, "/pay")).send())).collect();
    waiters(&fleet, 40).await;
    fleet.origin.release("first");
    assert_eq!(first.await.unwrap().status, 429);
    let mut replays = 0;
    for task in tasks {
        let answer = task.await.unwrap();
        assert_eq!(answer.status, 200);
        replays += usize::from(answer.is_replay());
    }
    assert_eq!((replays, fleet.executions()), (39, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_different_request_under_a_used_key_is_refused_on_every_envoy() {
    let fleet = Fleet::start(pay(json!({}))).await;
    let first = tokio::spawn(a(fleet.post(0, "/pay")).header("x-origin-hold", "it").send());
    eventually("the first runs", async || fleet.executions() == 1).await;
    for envoy in 0..2 {
        let other = fleet.post(envoy, "/pay").key("a").caller("alice").json("[]").send().await;
        assert_eq!((other.status, other.code().as_str()), (422, "key-reused"));
    }
    fleet.origin.release("it");
    assert_eq!(first.await.unwrap().status, 200);
    for envoy in 0..2 {
        for _ in 0..2 {
            let other = fleet.post(envoy, "/pay").key("a").caller("alice").json("[]").send().await;
            assert_eq!((other.status, other.code().as_str()), (422, "key-reused"));
        }
    }
    assert_eq!(fleet.executions(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_come_back_whole_from_the_other_envoy() {
    const BYTES: usize = 900_000;
    let rule = pay(json!({ "limits": { "response_body": "1MiB" } }));
    let fleet = Fleet::start(rule).await;
    for envoy in 0..2 {
        let tasks: Vec<_> = (0..20)
            .map(|number| {
                let key = format!("key-{number}");
                let request = fleet.post(envoy, "/pay").key(&key).caller("alice").json("{}");
                tokio::spawn(request.header("x-origin-bytes", BYTES.to_string()).send())
            })
            .collect();
        for task in tasks {
            let answer = task.await.unwrap();
            assert_eq!((answer.status, answer.is_replay()), (200, envoy == 1), "{}", answer.code());
            assert_eq!(answer.body.len(), BYTES);
            let whole =
                answer.body.iter().enumerate().all(|(at, byte)| *byte == b'a' + (at % 26) as u8);
            assert!(whole);
        }
    }
    assert_eq!(fleet.executions(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_this_envoy_knows_costs_redis_nothing() {
    let fleet = Fleet::start(pay(json!({}))).await;
    let first = tokio::spawn(a(fleet.post(0, "/pay")).header("x-origin-hold", "it").send());
    eventually("the first runs", async || fleet.executions() == 1).await;
    let before = fleet.redis.script_calls().await;
    for _ in 0..50 {
        assert_eq!(a(fleet.post(0, "/pay")).send().await.code(), "in-progress");
    }
    assert_eq!(fleet.redis.script_calls().await, before);
    fleet.origin.release("it");
    assert_eq!(first.await.unwrap().status, 200);
    let ended = fleet.redis.script_calls().await;
    for _ in 0..50 {
        assert!(a(fleet.post(0, "/pay")).send().await.is_replay());
    }
    assert_eq!(fleet.redis.script_calls().await, ended);
    // The other Envoy asks once.
    for _ in 0..50 {
        assert!(a(fleet.post(1, "/pay")).send().await.is_replay());
    }
    assert_eq!(fleet.redis.script_calls().await, ended + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_key_that_runs_elsewhere_does_not_storm_redis() {
    let fleet = Fleet::start(pay(json!({}))).await;
    let first = tokio::spawn(a(fleet.post(0, "/pay")).header("x-origin-hold", "it").send());
    eventually("the first runs", async || fleet.executions() == 1).await;
    let before = fleet.redis.script_calls().await;
    let begun = Instant::now();
    for _ in 0..20 {
        let burst = (0..50).map(|_| tokio::spawn(a(fleet.post(1, "/pay")).send()));
        for task in burst.collect::<Vec<_>>() {
            assert_eq!(task.await.unwrap().code(), "in-progress");
        }
    }
    // A mirror is good for ten milliseconds.
    let most = begun.elapsed().as_millis() as u64 / 10 + 20;
    let calls = fleet.redis.script_calls().await - before;
    assert!(calls < most, "{calls} calls, {most} at the most");
    fleet.origin.release("it");
    assert_eq!(first.await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_replayed_no_longer_than_local_ttl_nor_than_the_record_lives() {
    let redis = testkit::Redis::start().await;
    let mut config = pay(json!({ "ttl": "3s" }));
    config["store"] = json!({ "redis": { "cluster": "redis", "local": { "ttl": "1s" } } });
    let bootstrap = testkit::Bootstrap::redis(redis.port()).config(&config);
    let fleet = Fleet::start_with(redis, vec![bootstrap]).await;
    let begun = Instant::now();
    assert_eq!(a(fleet.post(0, "/pay")).send().await.status, 200);
    let ended = fleet.redis.script_calls().await;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert!(a(fleet.post(0, "/pay")).send().await.is_replay());
    assert_eq!(fleet.redis.script_calls().await, ended + 1);
    tokio::time::sleep(Duration::from_millis(2_500).saturating_sub(begun.elapsed())).await;
    assert!(a(fleet.post(0, "/pay")).send().await.is_replay());
    // This copy is half a second old, and its record is over.
    tokio::time::sleep(Duration::from_millis(3_200).saturating_sub(begun.elapsed())).await;
    assert!(!a(fleet.post(0, "/pay")).send().await.is_replay());
    assert_eq!(fleet.executions(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn four_hundred_requests_share_two_connections_a_worker() {
    let fleet = Fleet::start(pay(json!({ "ongoing": { "wait": { "max": "15s" } } }))).await;
    let tasks: Vec<_> = (0..400)
        .map(|number| {
            let key = format!("key-{}", number / 4);
            let request = fleet.post(number % 2, "/pay").key(&key).caller("alice").json("{}");
            tokio::spawn(request.header("x-origin-hold", "all").send())
        })
        .collect();
    waiters(&fleet, 300).await;
    let connections = fleet.redis.clients(None).await;
    assert!(connections <= 8, "{connections} connections of four workers");
    fleet.origin.release("all");
    for task in tasks {
        assert_eq!(task.await.unwrap().status, 200);
    }
    assert_eq!(fleet.executions(), 100);
    let connections = fleet.redis.clients(None).await;
    assert!(connections <= 8, "{connections} connections of four workers");
    // No request waits any more: the connections for messages are closed.
    eventually("only those for commands are left", async || fleet.redis.clients(None).await <= 4)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_the_first_answer_finds_its_record_on_every_envoy() {
    let fleet = Fleet::start(pay(json!({}))).await;
    let mut ran = 0;
    // Announced by its length, streamed, empty, and larger than one piece.
    for (header, value) in [
        ("x-origin-none", ""),
        ("x-origin-stream", "3"),
        ("x-origin-bytes", "0"),
        ("x-origin-bytes", "200000"),
    ] {
        for number in 0..25 {
            let key = format!("{header}-{value}-{number}");
            let post = |envoy| {
                let request = fleet.post(envoy, "/pay").key(&key).caller("alice").json("{}");
                request.header(header, value).send()
            };
            assert!(!post(number % 2).await.is_replay());
            assert!(post((number + 1) % 2).await.is_replay(), "{key}");
            assert!(post(number % 2).await.is_replay(), "{key}");
            ran += 1;
            assert_eq!(fleet.executions(), ran);
        }
    }
    // Released before its client has the answer, too.
    for number in 0..25 {
        let key = format!("released-{number}");
        for envoy in [0, 1, 0] {
            let request = fleet.post(envoy, "/pay").key(&key).caller("alice").json("{}");
            assert_eq!(request.header("x-origin-status", "429").send().await.status, 429);
        }
    }
    assert_eq!(fleet.executions(), ran + 75);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_at_an_envoy_that_knows_nothing_is_replayed_by_one_question() {
    let fleet = Fleet::start(pay(json!({}))).await;
    let mut questions = 0;
    for number in 0..10 {
        let key = format!("key-{number}");
        let post = |envoy| fleet.post(envoy, "/pay").key(&key).caller("alice").json("{}").send();
        assert!(!post(0).await.is_replay());
        let before = fleet.redis.script_calls().await;
        let burst: Vec<_> = (0..50).map(|_| tokio::spawn(post(1))).collect();
        for task in burst {
            let answer = task.await.unwrap();
            assert!(answer.is_replay(), "{}", answer.text());
        }
        questions += fleet.redis.script_calls().await - before;
    }
    assert_eq!((questions, fleet.executions()), (10, 10));
}
