//! Redis gone, hanging, or full of garbage: refused, decided here, or let pass, and never run twice.

use crate::pay;
use serde_json::json;
use std::time::{Duration, Instant};
use testkit::{Answer, Bootstrap, Envoy, Fleet, Origin, Redis, Request, eventually};

/// The store's timeout, plus the delay of a loaded machine.
const IN_TIME: Duration = Duration::from_millis(250 + 1_500);

fn with(request: Request, key: &str) -> Request {
    request.key(key).caller("alice").json("{}")
}

/// Sends it, and sees that it is answered in time.
async fn in_time(request: Request) -> Answer {
    let begun = Instant::now();
    let answer = request.send().await;
    assert!(begun.elapsed() < IN_TIME, "{:?}", begun.elapsed());
    answer
}

async fn refused(fleet: &Fleet, key: &str) {
    let answer = in_time(with(fleet.post(0, "/pay"), key)).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "store-unavailable"));
}

/// Waits until requests run again, and sees that it does not take long.
async fn recovers(fleet: &Fleet, back: Instant) {
    eventually("service is back", async || {
        let key = format!("back-{}", back.elapsed().as_nanos());
        with(fleet.post(0, "/pay"), &key).send().await.status == 200
    })
    .await;
    assert!(back.elapsed() < Duration::from_secs(3), "{:?}", back.elapsed());
}

async fn stat(envoy: &Envoy, name: &str) -> u64 {
    envoy.stat(&format!("wasmcustom.{name}")).await.unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_when_redis_is_away_and_served_when_it_is_back() {
    let mut fleet = Fleet::start_as_it_is(pay(json!({}))).await;
    // Away at start …
    fleet.redis.stop();
    for number in 0..5 {
        refused(&fleet, &format!("start-{number}")).await;
    }
    fleet.redis.restart().await;
    recovers(&fleet, Instant::now()).await;
    // … and in between.
    fleet.redis.stop();
    let before = fleet.executions();
    for number in 0..20 {
        refused(&fleet, &format!("between-{number}")).await;
    }
    assert_eq!(fleet.executions(), before);
    fleet.redis.restart().await;
    recovers(&fleet, Instant::now()).await;
    assert!(fleet.counted("pay", "store_error").await >= 25);
    // The refused request has left no record: it runs now.
    let before = fleet.executions();
    eventually("it runs", async || {
        let answer = with(fleet.post(0, "/pay"), "between-7").send().await;
        // The other worker may still wait before it tries to connect.
        assert!(answer.status == 200 || answer.code() == "store-unavailable");
        answer.status == 200
    })
    .await;
    assert_eq!(fleet.executions(), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_in_time_when_redis_hangs_and_no_outcome_is_left_unknown() {
    let fleet = Fleet::start_as_it_is(pay(json!({}))).await;
    assert_eq!(with(fleet.post(0, "/pay"), "a").send().await.status, 200);
    fleet.redis.freeze().await;
    for number in 0..8 {
        refused(&fleet, &format!("hang-{number}")).await;
    }
    // A record that is known here is still replayed.
    assert!(in_time(with(fleet.post(0, "/pay"), "a")).await.is_replay());
    fleet.redis.thaw().await;
    recovers(&fleet, Instant::now()).await;
    // Claims that Redis made when it woke up were given back: nothing had run.
    for number in 0..8 {
        eventually("the key is free", async || {
            let answer = with(fleet.post(1, "/pay"), &format!("hang-{number}")).send().await;
            assert_ne!(answer.code(), "outcome-unknown");
            answer.status == 200
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn decided_only_here_when_the_rule_says_local() {
    let mut fleet = Fleet::start_as_it_is(pay(json!({ "on_store_error": "local" }))).await;
    fleet.redis.stop();
    for number in 0..5 {
        let key = format!("key-{number}");
        let first = in_time(with(fleet.post(0, "/pay"), &key)).await;
        assert_eq!((first.status, first.is_replay()), (200, false), "{}", first.text());
        assert!(in_time(with(fleet.post(0, "/pay"), &key)).await.is_replay());
        let other = fleet.post(0, "/pay").key(&key).caller("alice").json("[]");
        assert_eq!(in_time(other).await.code(), "key-reused");
    }
    assert_eq!(fleet.executions(), 5);
    let running = with(fleet.post(0, "/pay"), "b").header("x-origin-hold", "it");
    let running = tokio::spawn(running.send());
    eventually("it runs", async || fleet.executions() == 6).await;
    assert_eq!(in_time(with(fleet.post(0, "/pay"), "b")).await.code(), "in-progress");
    fleet.origin.release("it");
    assert_eq!(running.await.unwrap().status, 200);
    assert!(stat(&fleet.envoys[0], "idempotency_local_fallbacks_total").await >= 6);
    // The other Envoy does not know it: this is the cost of `local`.
    assert!(!in_time(with(fleet.post(1, "/pay"), "b")).await.is_replay());
    assert_eq!(fleet.executions(), 7);
    fleet.redis.restart().await;
    let back = Instant::now();
    eventually("records are shared again", async || {
        let key = format!("again-{}", back.elapsed().as_nanos());
        assert_eq!(with(fleet.post(0, "/pay"), &key).send().await.status, 200);
        !fleet.redis.keys("*").await.is_empty()
    })
    .await;
    // A request that ran here while Redis was away is still replayed here.
    assert!(with(fleet.post(0, "/pay"), "key-1").send().await.is_replay());
}

#[tokio::test(flavor = "multi_thread")]
async fn let_pass_when_the_rule_says_pass() {
    let mut fleet = Fleet::start_as_it_is(pay(json!({ "on_store_error": "pass" }))).await;
    fleet.redis.stop();
    for _ in 0..3 {
        let answer = in_time(with(fleet.post(0, "/pay"), "a")).await;
        assert_eq!((answer.status, answer.is_replay()), (200, false));
    }
    assert_eq!((fleet.executions(), fleet.counted("pay", "store_error").await), (3, 3));
    fleet.redis.restart().await;
    eventually("protected again", async || {
        with(fleet.post(0, "/pay"), "b").send().await.is_replay()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_reaches_its_client_when_redis_dies_while_the_origin_runs() {
    let mut fleet = Fleet::start_as_it_is(pay(json!({ "lease": "5s" }))).await;
    let first = with(fleet.post(0, "/pay"), "a").header("x-origin-hold", "it");
    let first = tokio::spawn(first.send());
    eventually("the first runs", async || fleet.executions() == 1).await;
    fleet.redis.stop();
    fleet.origin.release("it");
    let answer = first.await.unwrap();
    assert_eq!((answer.status, answer.is_replay()), (200, false));
    let failures = "idempotency_record_write_failures_total";
    assert_eq!(stat(&fleet.envoys[0], failures).await, 1);
    // The Envoy that ran it has the answer, whatever became of Redis.
    let replay = with(fleet.post(0, "/pay"), "a").send().await;
    assert!(replay.is_replay());
    assert_eq!((replay.body, fleet.executions()), (answer.body, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_written_when_redis_wakes_up_within_the_claims_life() {
    let fleet = Fleet::start_as_it_is(pay(json!({ "lease": "10s" }))).await;
    let first = with(fleet.post(0, "/pay"), "a").header("x-origin-hold", "it");
    let first = tokio::spawn(first.send());
    eventually("the first runs", async || fleet.executions() == 1).await;
    fleet.redis.freeze().await;
    fleet.origin.release("it");
    let answer = first.await.unwrap();
    assert_eq!((answer.status, answer.is_replay()), (200, false));
    fleet.redis.thaw().await;
    eventually("the other Envoy replays it", async || {
        let answer = with(fleet.post(1, "/pay"), "a").send().await;
        assert!(answer.is_replay() || answer.status != 200);
        answer.is_replay()
    })
    .await;
    assert_eq!(fleet.executions(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_under_a_key_is_a_store_error_and_never_a_miss() {
    let fleet = Fleet::start_as_it_is(pay(json!({}))).await;
    assert_eq!(with(fleet.post(0, "/pay"), "a").send().await.status, 200);
    let key = fleet.redis.keys("idem:*").await.remove(0);
    let record = fleet.redis.bytes(&key).await;
    let mut newer = record.clone();
    newer[0] = 2;
    for garbage in [&b"garbage"[..], &record[..record.len() - 1], &record[..40], &newer] {
        fleet.redis.set_bytes(&key, garbage).await;
        // The first Envoy still has its copy; the other asks.
        let answer = with(fleet.post(1, "/pay"), "a").send().await;
        assert_eq!((answer.status, answer.code().as_str()), (503, "store-unavailable"));
        assert_eq!(fleet.redis.bytes(&key).await, garbage);
    }
    fleet.redis.set_bytes(&key, &record).await;
    assert!(with(fleet.post(1, "/pay"), "a").send().await.is_replay());
    assert_eq!(fleet.executions(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_and_a_prefix_are_used_and_a_wrong_password_is_logged() {
    let redis = Redis::with(&["--requirepass", "open sesame"]).await;
    let mut config = pay(json!({}));
    config["store"] = json!({ "redis": {
        "cluster": "redis", "prefix": "team-a:", "password_env": "IDEMPOTENCY_TEST_PASSWORD" } });
    let bootstrap = |password: &str| {
        Bootstrap::redis(redis.port())
            .config(&config)
            .with(|bootstrap| {
                bootstrap.plugin()["vm_config"]["environment_variables"] =
                    json!({ "host_env_keys": ["IDEMPOTENCY_TEST_PASSWORD"] });
            })
            .env("IDEMPOTENCY_TEST_PASSWORD", password)
    };
    let bootstraps = vec![bootstrap("open sesame"), bootstrap("wrong")];
    let fleet = Fleet::start_with(redis, bootstraps).await;
    assert_eq!(with(fleet.post(0, "/pay"), "a").send().await.status, 200);
    let keys = fleet.redis.keys("*").await;
    assert!(keys.len() == 1 && keys[0].starts_with("team-a:"), "{keys:?}");
    let answer = in_time(with(fleet.post(1, "/pay"), "a")).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "store-unavailable"));
    let log = fleet.envoys[1].log();
    assert!(log.contains("Redis refuses the login: WRONGPASS"), "{log}");
    assert!(!log.contains("wrong\""), "{log}");
}

/// The rights that the README names.
const RIGHTS: &str = "+evalsha +eval +get +set +getrange +setrange +pexpire +del +time +publish \
                      +subscribe +unsubscribe";

#[tokio::test(flavor = "multi_thread")]
async fn a_user_needs_no_more_rights_than_the_readme_says() {
    let readme = include_str!("../../README.md");
    assert!(
        readme.contains(&format!("a user with `{RIGHTS}`, keys `~idem:*` and channels `&idem:*`"))
    );
    let redis = Redis::start().await;
    let rights: Vec<_> = RIGHTS.split(' ').filter(|right| !right.is_empty()).collect();
    let user = ["ACL", "SETUSER", "filter", "on", ">open sesame", "~idem:*", "&idem:*"];
    assert_eq!(redis.cli(&[&user[..], &rights].concat()).await, "OK");
    let mut config = pay(json!({ "ongoing": { "wait": { "max": "15s" } } }));
    config["store"] = json!({ "redis": {
        "cluster": "redis", "username": "filter", "password_env": "IDEMPOTENCY_TEST_PASSWORD" } });
    let bootstrap = Bootstrap::redis(redis.port())
        .config(&config)
        .with(|bootstrap| {
            bootstrap.plugin()["vm_config"]["environment_variables"] =
                json!({ "host_env_keys": ["IDEMPOTENCY_TEST_PASSWORD"] });
        })
        .env("IDEMPOTENCY_TEST_PASSWORD", "open sesame");
    let fleet = Fleet::start_with(redis, vec![bootstrap; 2]).await;
    let first = with(fleet.post(0, "/pay"), "a").header("x-origin-hold", "it");
    let first = tokio::spawn(first.send());
    eventually("the first runs", async || fleet.executions() == 1).await;
    let waiter = tokio::spawn(with(fleet.post(1, "/pay"), "a").send());
    eventually("it waits and has subscribed", async || {
        stat(&fleet.envoys[1], "idempotency_pipes").await >= 2
    })
    .await;
    fleet.origin.release("it");
    assert_eq!(first.await.unwrap().status, 200);
    assert!(waiter.await.unwrap().is_replay());
    let released = with(fleet.post(0, "/pay"), "b").header("x-origin-status", "429");
    assert_eq!(released.send().await.status, 429);
    // Only the command that reads the settings was refused.
    let denied = fleet.redis.cli(&["ACL", "LOG"]).await;
    assert!(!denied.contains("eval") && !denied.contains("subscribe"), "{denied}");
    assert!(!fleet.envoys.iter().any(|envoy| envoy.log().contains("may not")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_evicts_is_warned_about_once() {
    let redis = Redis::with(&["--maxmemory-policy", "allkeys-lru"]).await;
    let origin = Origin::start().await;
    let bootstrap = Bootstrap::redis(redis.port()).rules(&pay(json!({})));
    let envoy = Envoy::start(bootstrap.origin(origin.address.port())).await;
    let begun = Instant::now();
    eventually("both workers have a connection", async || {
        let request = Request::new(envoy.front, "POST", "/pay");
        let _ = with(request, &begun.elapsed().as_nanos().to_string()).send().await;
        stat(&envoy, "idempotency_pipes").await == 2
    })
    .await;
    eventually("it is warned about", async || envoy.log().contains("allkeys-lru")).await;
    assert_eq!(envoy.log().matches("maxmemory-policy").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_owed_is_written_when_the_configuration_has_been_replaced() {
    // One that keeps the claim when it is killed, so that nothing sent to it lies there to be read later.
    let mut redis = Redis::with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let origin = Origin::start().await;
    let port = redis.port();
    let bootstrap = |ttl: &str| {
        Bootstrap::redis(port)
            .rules(&pay(json!({ "lease": "60s", "ttl": ttl })))
            .origin(origin.address.port())
    };
    let envoy = Envoy::start(bootstrap("1h").replaceable()).await;
    let post = || with(Request::new(envoy.front, "POST", "/pay"), "a");
    let first = tokio::spawn(post().header("x-origin-hold", "it").send());
    eventually("the first runs", async || origin.executions() == 1).await;
    redis.stop();
    origin.release("it");
    assert_eq!(first.await.unwrap().status, 200);
    envoy.replace(bootstrap("2h")).await;
    eventually("the old configuration is gone", async || {
        envoy.stat("listener_manager.total_filter_chains_draining").await == Some(0)
            && envoy.stat("listener_manager.total_listeners_draining").await == Some(0)
    })
    .await;
    redis.restart().await;
    let key = redis.keys("idem:*").await.remove(0);
    eventually("the answer is recorded", async || redis.bytes(&key).await.get(1) == Some(&b'a'))
        .await;
    assert_eq!(origin.executions(), 1);
    eventually("the new configuration serves", async || post().send().await.is_replay()).await;
    assert_eq!(origin.executions(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn local_goes_by_all_that_its_envoy_knew_before_redis_went_away() {
    let mut rules = pay(json!({ "on_store_error": "local", "lease": "10s", "unknown_ttl": "1m" }));
    // What finished may be replayed without Redis for no longer than that, as long as there is a Redis.
    rules["store"] = json!({ "redis": { "cluster": "redis", "local": { "ttl": "1s" } } });
    let mut fleet = Fleet::start_as_it_is(rules).await;
    let request = |envoy: usize, key: &str| with(fleet.post(envoy, "/pay"), key);
    // Finished here, and seen there.
    assert_eq!(request(0, "finished").send().await.status, 200);
    let finished = Instant::now();
    assert!(request(1, "finished").send().await.is_replay());
    // Running here, and seen there.
    let running = request(0, "running").header("x-origin-hold", "it");
    let first = tokio::spawn(running.send());
    eventually("one runs", async || fleet.executions() == 2).await;
    assert_eq!(request(1, "running").send().await.code(), "in-progress");
    // Left by its client: nobody knows what became of it.
    let left = request(0, "left").header("x-origin-hold", "it");
    let client = tokio::spawn(left.send());
    eventually("another runs", async || fleet.executions() == 3).await;
    client.abort();
    eventually("its outcome is unknown", async || {
        request(0, "left").send().await.code() == "outcome-unknown"
    })
    .await;
    assert_eq!(request(1, "left").send().await.code(), "outcome-unknown");
    eventually("the copies are old", async || finished.elapsed() > Duration::from_millis(1_100))
        .await;

    let requests: Vec<_> = (0..2)
        .flat_map(|envoy| ["finished", "running", "left"].map(|key| (key, request(envoy, key))))
        .collect();
    fleet.redis.stop();
    for (key, request) in requests {
        let answer = in_time(request).await;
        match key {
            "finished" => assert!(answer.is_replay(), "{answer:?}"),
            "running" => assert_eq!(answer.code(), "in-progress"),
            _ => assert_eq!(answer.code(), "outcome-unknown"),
        }
    }
    assert_eq!(fleet.executions(), 3);
    fleet.origin.release("it");
    assert_eq!(first.await.unwrap().status, 200);
}
