//! Telemetry for operators: counters, the access log, the status header; and shadow mode.

use crate::pay;
use envoy_idempotency::telemetry::{LINES, Outcome, WINDOW};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;
use testkit::deployment::Store;
use testkit::{Bootstrap, Deployment, Envoy, Fleet, Redis, Request, World, client, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn every_outcome_is_counted_logged_and_said_if_the_config_wants_it() {
    let mut config = pay(json!({}));
    config["status_header"] = json!(true);
    let world = World::start(config).await;
    let request = world.post("/pay").key("hush-key").caller("alice").json("{}");
    let said = async |request: testkit::Request| {
        request.send().await.header("idempotency-status").map(str::to_owned)
    };
    assert_eq!(said(request.clone()).await.as_deref(), Some("executed"));
    assert_eq!(said(request.clone()).await.as_deref(), Some("replayed"));
    assert_eq!(said(request.clone().key("other")).await.as_deref(), Some("invalid"));
    assert_eq!(said(request.clone().bytes("[1]")).await.as_deref(), Some("mismatch"));
    assert_eq!(said(world.post("/pay").caller("alice")).await.as_deref(), Some("bypassed"));
    assert_eq!(said(world.post("/other")).await, None);
    for (outcome, count) in
        [("executed", 1), ("replayed", 1), ("invalid", 1), ("mismatch", 1), ("bypassed", 1)]
    {
        assert_eq!(world.counted("pay", outcome).await, count, "{outcome}");
        eventually("the access log has it", async || {
            world.envoy.log().contains(&format!("outcome={outcome}\n"))
        })
        .await;
    }
    assert!(!world.envoy.log().contains("hush-key"));
}

/// The status header, which must agree with the access log and the counter.
async fn said(deployment: &Deployment, request: Request) -> String {
    let answer = request.key("a").caller("alice").json("{}").send().await;
    let said = answer.header("idempotency-status").unwrap().to_owned();
    eventually("it is logged and counted", async || {
        deployment.envoy().log().contains(&format!("outcome={said}\n"))
            && deployment.envoy().counted("pay", &said).await > 0
    })
    .await;
    said
}

async fn the_outcome_of_duplicates_is_reported(store: Store) {
    let mut config = pay(json!({
        "scope": ["method"], "match": {}, "ongoing": { "wait": { "max": "1s" } },
        "limits": { "response_body": "1KiB" }, "unknown_ttl": "1s"
    }));
    config["status_header"] = json!(true);
    let mut deployment = Deployment::start(store, &config, |bootstrap| bootstrap).await;
    let first = deployment.post("/pay").key("a").caller("alice").json("{}");
    let first = first.header("x-origin-hold", "it").header("x-origin-status", "502").send();
    let first = tokio::spawn(first);
    eventually("the first runs", async || deployment.attempts("a").len() == 1).await;
    // Its `max` is over before the first has ended.
    assert_eq!(said(&deployment, deployment.post("/pay")).await, "rejected");
    let waits = deployment.post("/pay").key("a").caller("alice").json("{}").send();
    let waits = tokio::spawn(waits);
    eventually("one waits", async || {
        deployment.envoy().stat("wasmcustom.idempotency_waiters").await == Some(1)
    })
    .await;
    deployment.origin.release("it");
    assert_eq!(first.await.unwrap().header("idempotency-status"), Some("executed"));
    assert_eq!(waits.await.unwrap().header("idempotency-status"), Some("unknown"));
    assert_eq!(said(&deployment, deployment.post("/pay")).await, "unknown");
    eventually("the next attempt takes over", async || {
        let request = deployment.post("/pay").header("x-origin-bytes", "2000");
        said(&deployment, request).await == "executed"
    })
    .await;
    assert_eq!(said(&deployment, deployment.post("/pay")).await, "tombstone");
    if let Some(redis) = &mut deployment.redis {
        redis.stop();
        let request = deployment.post("/pay").key("b").caller("alice").json("{}").send().await;
        assert_eq!(request.header("idempotency-status"), Some("store_error"));
        eventually("it is logged", async || {
            deployment.envoy().log().contains("outcome=store_error\n")
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outcome_of_duplicates_is_reported_in_memory() {
    the_outcome_of_duplicates_is_reported(Store::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outcome_of_duplicates_is_reported_in_redis() {
    the_outcome_of_duplicates_is_reported(Store::Redis).await;
}

/// A rule for a path, with the name of the path.
fn rule(name: &str, more: Value) -> Value {
    let mut rule = pay(more)["rules"][0].clone();
    rule["name"] = json!(name);
    rule["match"]["path"] = json!(format!("/{name}"));
    rule
}

/// Two Envoys and a Redis in which every outcome has come, with keys, callers, bodies and secrets that
/// contain `hush`. Redis is away in the end.
pub(crate) async fn eventful() -> Fleet {
    let redis = Redis::with(&["--requirepass", "hush-password"]).await;
    let config = json!({
        "store": { "redis": {
            "cluster": "redis", "timeout": "3s", "password_env": "IDEMPOTENCY_TEST_PASSWORD" } },
        "secret_env": "IDEMPOTENCY_TEST_SECRET",
        "rules": [
            rule("pay", json!({ "limits": { "response_body": "4KiB" } })),
            rule("wait", json!({ "ongoing": { "wait": { "max": "20s" } } })),
            rule("again", json!({ "unknown_ttl": "0s" })),
            rule("shadow", json!({ "shadow": true })),
        ] });
    let bootstrap = Bootstrap::redis(redis.port())
        .config(&config)
        .with(|bootstrap| {
            bootstrap.plugin()["vm_config"]["environment_variables"] = json!({
                "host_env_keys": ["IDEMPOTENCY_TEST_PASSWORD", "IDEMPOTENCY_TEST_SECRET"] });
        })
        .env("IDEMPOTENCY_TEST_PASSWORD", "hush-password")
        .env("IDEMPOTENCY_TEST_SECRET", "hush-secret-0123456789abcdef");
    let mut fleet = Fleet::start_with(redis, vec![bootstrap; 2]).await;
    happen(&fleet, "").await;
    fleet.redis.stop();
    let refused = post(&fleet, "pay", "hush-away").send().await;
    assert_eq!(refused.code(), "store-unavailable");
    fleet
}

fn post(fleet: &Fleet, rule: &str, key: &str) -> Request {
    let request = fleet.post(0, &format!("/{rule}")).key(key).caller("hush-alice");
    request.header("cookie", "session=hush").json(r#"{"card":"hush"}"#)
}

/// Every outcome but one: it takes a Redis that is away. `round` makes keys of their own.
pub(crate) async fn happen(fleet: &Fleet, round: &str) {
    let key = |name: &str| format!("hush-{name}{round}");
    // Nothing is held in the shadow: an origin that is faster than Redis leaves no outcome to count, and a
    // client that is faster finds no record.
    for (rule, delay, replayed) in [("pay", "0", "replayed"), ("shadow", "500", "shadow_replayed")]
    {
        let post = |name: &str| post(fleet, rule, &key(name)).header("x-origin-delay-ms", delay);
        assert_eq!(post("a").send().await.status, 200);
        eventually("it is replayed", async || {
            post("a").send().await;
            fleet.counted(rule, replayed).await > 0
        })
        .await;
        post("a").bytes("hush, other").send().await;
        fleet.post(0, &format!("/{rule}")).caller("hush-alice").json("{}").send().await;
        fleet.post(0, &format!("/{rule}")).key(&key("c")).json("{}").send().await;
    }
    for _ in 0..2 {
        post(fleet, "pay", &key("large")).header("x-origin-bytes", "5000").send().await;
        let died = post(fleet, "pay", &key("died")).header("x-origin-die", "before").send().await;
        assert!([502, 503, 409].contains(&died.status), "{}", died.status);
        // Unknown, and run again: the second takes over.
        post(fleet, "again", &key("died")).header("x-origin-die", "before").send().await;
    }
    for rule in ["pay", "wait"] {
        let begun = fleet.executions();
        let name = key(rule);
        let held = post(fleet, rule, &key("held")).header("x-origin-hold", &name);
        let first = tokio::spawn(held.clone().send());
        eventually("it runs", async || fleet.executions() == begun + 1).await;
        let second = tokio::spawn(held.send());
        if rule == "wait" {
            let waiters = "wasmcustom.idempotency_waiters";
            eventually("one waits", async || fleet.envoys[0].stat(waiters).await == Some(1)).await;
        } else {
            eventually("one is refused", async || fleet.counted(rule, "rejected").await > 0).await;
        }
        fleet.origin.release(&name);
        assert_eq!(first.await.unwrap().status, 200);
        second.await.unwrap();
    }
}

/// A line of `/stats/prometheus`: the metric's name, its labels, its value.
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

/// Our metrics, as Prometheus would get them.
pub(crate) async fn exported(envoy: &Envoy) -> Vec<Sample> {
    let text = client::get(envoy.admin, "/stats/prometheus").await.unwrap();
    let ours = text.lines().filter(|line| line.starts_with("idempotency_"));
    ours.map(|line| {
        let (metric, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = metric.trim_end_matches('}').split_once('{').unwrap();
        let labels = labels.split(',').filter_map(|label| label.split_once('='));
        let labels =
            labels.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()));
        let labels = labels.collect();
        Sample { name: name.to_owned(), labels, value: value.parse().unwrap() }
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_exported_with_its_labels_and_nothing_private_is_among_them() {
    let fleet = eventful().await;
    let samples = exported(&fleet.envoys[0]).await;
    let mut found: BTreeMap<&str, BTreeSet<Vec<&str>>> = BTreeMap::new();
    for sample in &samples {
        let labels = sample.labels.keys().map(String::as_str).collect();
        found.entry(&sample.name).or_default().insert(labels);
        for value in sample.labels.values() {
            assert!(!value.contains("hush"), "{}: {value}", sample.name);
        }
    }
    let wanted: [(&str, &[&str]); 13] = [
        ("idempotency_bytes", &[]),
        ("idempotency_entries", &[]),
        ("idempotency_evictions_total", &[]),
        ("idempotency_local_fallbacks_total", &[]),
        ("idempotency_pipes", &[]),
        ("idempotency_record_write_failures_total", &[]),
        ("idempotency_requests_total", &["outcome", "rule"]),
        ("idempotency_store_operations_total", &["operation", "result"]),
        ("idempotency_store_seconds_bucket", &["le"]),
        ("idempotency_store_seconds_count", &[]),
        ("idempotency_store_seconds_sum", &[]),
        ("idempotency_takeovers_total", &[]),
        ("idempotency_waiters", &[]),
    ];
    let wanted: BTreeMap<_, _> =
        wanted.into_iter().map(|(name, labels)| (name, [labels.to_vec()].into())).collect();
    assert_eq!(found, wanted);
    let requests = |rule: &str, outcome: &str| {
        let mut of = samples.iter().filter(|sample| sample.name == "idempotency_requests_total");
        of.find(|sample| sample.labels["rule"] == rule && sample.labels["outcome"] == outcome)
            .unwrap_or_else(|| panic!("{rule} {outcome}"))
            .value
    };
    for outcome in Outcome::ALL.map(Outcome::word) {
        let of_rules = requests("pay", outcome) + requests("wait", outcome);
        assert!(of_rules > 0.0, "{outcome}");
        // Exported, whether it has come or not.
        requests("shadow", &format!("shadow_{outcome}"));
    }
    for outcome in ["executed", "replayed", "mismatch", "bypassed", "invalid"] {
        assert!(requests("shadow", &format!("shadow_{outcome}")) > 0.0, "{outcome}");
        assert!(requests("shadow", outcome) == 0.0, "{outcome}");
    }
    let value = |name: &str| samples.iter().find(|sample| sample.name == name).unwrap().value;
    assert!(value("idempotency_takeovers_total") >= 1.0);
    assert!(value("idempotency_entries") >= 5.0);
    assert_eq!(value("idempotency_waiters"), 0.0);
    // Envoy merges histograms when it flushes, every 5 s.
    let store_seconds = async |what: &str| {
        let samples = exported(&fleet.envoys[0]).await;
        let name = format!("idempotency_store_seconds_{what}");
        samples.iter().find(|sample| sample.name == name).unwrap().value
    };
    eventually("replies are timed", async || store_seconds("count").await > 10.0).await;
    // Microseconds: a Redis needs more than 10 of them, and less than 3 s, its time-out.
    let mean = store_seconds("sum").await / store_seconds("count").await;
    assert!((10.0..3_000_000.0).contains(&mean), "{mean}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_names_a_key_a_caller_a_header_a_body_or_a_secret() {
    let fleet = eventful().await;
    let log = fleet.envoys[0].log();
    for word in ["takeover: again ", "store-failed: pay "] {
        let said = log.lines().find_map(|line| line.split_once(word)).map(|(_, said)| said);
        let digits = said.and_then(|said| said.split(':').next()).unwrap_or_default();
        assert!(
            digits.len() == 12 && digits.chars().all(|digit| digit.is_ascii_hexdigit()),
            "{log}"
        );
    }
    for envoy in &fleet.envoys {
        assert!(!envoy.log().contains("hush"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_down_does_not_write_a_line_for_each_request() {
    const REQUESTS: usize = 300;
    let mut fleet = Fleet::start_as_it_is(pay(json!({}))).await;
    fleet.redis.stop();
    let begun = Instant::now();
    for number in 0..REQUESTS {
        let request = fleet.post(0, "/pay").key(&number.to_string()).caller("alice").json("{}");
        assert_eq!(request.send().await.code(), "store-unavailable");
    }
    // Written and left out, together they are all.
    let counts = || {
        let log = fleet.envoys[0].log();
        let lines = log.lines().filter_map(|line| line.split_once(" store-failed: "));
        let (mut written, mut summaries, mut missed) = (0, 0, 0);
        for (_, said) in lines {
            match said.strip_prefix("… and ").and_then(|said| said.split(' ').next()) {
                Some(number) => {
                    summaries += 1;
                    missed += number.parse::<usize>().unwrap();
                }
                None => written += 1,
            }
        }
        (written, summaries, missed)
    };
    eventually("the summary line is written", async || {
        let (written, _, missed) = counts();
        written + missed == REQUESTS
    })
    .await;
    let windows = 1 + begun.elapsed().as_secs() / WINDOW.as_secs();
    let most = 2 * usize::try_from(windows).unwrap();
    let (written, summaries, _) = counts();
    assert!(written <= most * LINES as usize && summaries <= most, "{written} {summaries}");
    assert!(summaries > 0 && written < REQUESTS / 2, "{written} {summaries}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gauges_of_the_table_match_its_content() {
    const REQUESTS: u64 = 400;
    let mut config = pay(json!({}));
    config["store"] = json!({ "memory": { "entries": 64, "budget": "1MiB" } });
    let world = World::start(config).await;
    let stat = async |name: &str| {
        world.envoy.stat(&format!("wasmcustom.idempotency_{name}")).await.unwrap()
    };
    assert_eq!((stat("entries").await, stat("bytes").await), (0, 0));
    for number in 0..REQUESTS {
        let request = world.post("/pay").key(&number.to_string()).caller("alice").json("{}");
        assert_eq!(request.send().await.status, 200);
    }
    // The answers are so small that records go whole.
    let evicted = stat("evictions_total").await;
    let (entries, bytes) = (stat("entries").await, stat("bytes").await);
    assert_eq!(entries, REQUESTS - evicted);
    assert!((32..=64).contains(&entries), "{entries}");
    assert!((entries * 50..1 << 20).contains(&bytes), "{bytes}");
    assert_eq!(world.envoy.connections().await.len(), 2);
    let last = world.post("/pay").key(&(REQUESTS - 1).to_string()).caller("alice").json("{}");
    assert!(last.send().await.is_replay());
    assert_eq!((stat("entries").await, stat("bytes").await), (entries, bytes));
    // One is claimed, and released: another went for it, and its place is free.
    let released = world.post("/pay").key("released").caller("alice").json("{}");
    assert_eq!(released.header("x-origin-status", "429").send().await.status, 429);
    assert_eq!(stat("entries").await, entries - (stat("evictions_total").await - evicted));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_of_the_page_is_json_with_the_outcome() {
    let page = include_str!("../../docs/telemetry.md");
    let (_, rest) = page.split_once("<!-- access-log -->\n```yaml\n").unwrap();
    let shown: Value = serde_norway::from_str(rest.split_once("```").unwrap().0).unwrap();
    let bootstrap = Bootstrap::demo().config(&pay(json!({}))).with(|bootstrap| {
        bootstrap.manager()["access_log"] = shown["access_log"].clone();
    });
    let world = World::start_with(bootstrap).await;
    let request = world.post("/pay?card=hush").key("hush").caller("hush").json("{}");
    request.clone().send().await;
    request.clone().send().await;
    request.bytes("[1]").send().await;
    let lines = || {
        let log = world.envoy.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.collect::<Vec<_>>()
    };
    eventually("there are three lines", async || lines().len() == 3).await;
    let lines = lines();
    for (line, (outcome, status)) in
        lines.iter().zip([("executed", 200), ("replayed", 200), ("mismatch", 422)])
    {
        assert_eq!(
            (&line["outcome"], &line["status"]),
            (&json!(outcome), &json!(status)),
            "{line}"
        );
    }
    assert_eq!(lines[1]["replayed"], "true");
    assert!(!world.envoy.log().contains("hush"));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_shadow_everything_is_counted_and_nothing_is_done() {
    let mut config = pay(json!({ "shadow": true, "missing_key": "reject" }));
    config["status_header"] = json!(true);
    let world = World::start(config).await;
    let request = world.post("/pay").key("a").caller("alice");
    let first = request.clone().json(r#"{"amount":1}"#).send().await;
    let duplicate = request.clone().json(r#"{"amount":1}"#).send().await;
    let other = request.clone().json(r#"{"amount":2}"#).send().await;
    let without = world.post("/pay").caller("alice").json("{}").send().await;
    for answer in [&first, &duplicate, &other, &without] {
        assert_eq!((answer.status, answer.is_replay()), (200, false));
        assert_eq!(answer.header("idempotency-status"), None);
    }
    assert_ne!(first.body, duplicate.body);
    assert_eq!(world.executions(), 4);
    assert!(world.origin.seen().iter().all(|seen| seen.header("idempotency-attempt").is_none()));
    let held = world
        .post("/pay")
        .key("b")
        .caller("alice")
        .header("x-origin-hold", "it")
        .json(r#"{"amount":1}"#);
    let running = tokio::spawn(held.clone().send());
    eventually("one runs", async || world.executions() == 5).await;
    let second = tokio::spawn(held.send());
    eventually("so does its duplicate", async || world.executions() == 6).await;
    world.origin.release("it");
    assert_eq!(running.await.unwrap().status, 200);
    assert_eq!(second.await.unwrap().status, 200);
    for (outcome, count) in [
        ("shadow_executed", 2),
        ("shadow_replayed", 1),
        ("shadow_mismatch", 1),
        ("shadow_invalid", 1),
        ("shadow_rejected", 1),
        ("executed", 0),
    ] {
        assert_eq!(world.counted("pay", outcome).await, count, "{outcome}");
    }
}
