//! `make soak`: minutes of clients that retry, over two Envoys whose Redis is killed every twenty seconds,
//! before an origin that keeps a ledger of what it runs. `SOAK_SECONDS` says how long.
//!
//! # What may run again
//!
//! The origin judges each execution the moment it begins, by the one that it ran before under the same key:
//!
//! | that one | the next may begin |
//! |---|---|
//! | is still running | never. No execution takes as long as a doubt lasts, so no doubt excuses it |
//! | answered 200, or some client has an answer of the key | never: `ttl` is a day |
//! | answered 429 | at once: it is released |
//! | died before or in the middle of its answer | `unknown_ttl` after its death, told that it is not the first attempt |
//! | ran for a client that leaves, and was not answered | `unknown_ttl` after its begin, at the earliest: the doubt begins when the client leaves, which the origin does not see |
//!
//! An execution runs to its planned end, whoever has left meanwhile, as one at a real origin would.
//! Whatever clients are answered, first or replayed, must be the same execution of a key for ever.
//!
//! This holds only while Redis remembers. It is killed without a warning, but writes each command to
//! its file before it replies (`appendfsync always`), and is back long before a lease is over. Were it away
//! for longer, the end of a claim could not be recorded and would lapse into a doubt: the run counts those,
//! and is worth nothing if there is one.
//!
//! Every few seconds, besides, some hundred to two thousand duplicates of one new key come to one Envoy in one
//! moment, on HTTP/2. Each of them must be answered in time.
//!
//! With `SOAK_STORE_ERROR=local` each Envoy goes on alone while Redis is away (`on_store_error: local`). What
//! is promised then is that duplicates that meet in one Envoy run once, whatever Redis does: the origin
//! judges each execution by those that *the same Envoy* sent it under that key. The number of the attempt is
//! counted and not judged: Redis, which counts attempts, does not know of those while it was away.
//!
//! With `SOAK_FORGET=1` Redis comes back empty. Nothing can be promised then: a claim that it forgets lets
//! the other Envoy run the key while the first still runs, and a record that it forgets is replayed by the
//! Envoy that has a copy, and run again by the other. The ledger says what ran again after such a loss, and
//! nobody is judged by it.
//!
//! The run fails for one violation, for an answer that nobody can explain, for a worker that stopped, and
//! for an event of the table that never came: then nothing was tested.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "it takes the time that clients take, and a soak that cannot run ends there"
)]

mod crowds;
mod ledger;
mod load;
mod origin;
mod report;

use ledger::{Judged, Ledger};
use load::Load;
use report::Report;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use testkit::{Bootstrap, Envoy, Redis};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

const SECONDS: u64 = 300;

/// Clients at once: far more than workers, so that duplicates meet in every state of a key.
const CLIENTS: u64 = 64;

/// Redis is killed so often. Between two kills every claim and every doubt comes to its end.
const KILLED_EVERY: Duration = Duration::from_secs(20);

/// Redis stays away so long: twice the store's timeout, so that requests are refused, and far below a lease.
const AWAY: Duration = Duration::from_millis(500);

/// An end of a claim that Redis misses is recorded when it is back, as the slowest origin leaves six seconds.
const LEASE: Duration = Duration::from_secs(10);

/// The slowest execution: longer than a third of a lease, so that heartbeats go.
const SLOWEST: Duration = Duration::from_secs(4);

/// Longer than the slowest execution: no two ever overlap by right.
const UNKNOWN_TTL: Duration = Duration::from_secs(5);

/// Far below the time between two kills: most replays of old keys come from a Redis that was restarted.
const LOCAL_TTL: &str = "2s";

/// More than keys: a record that is dropped for want of room is none that was broken.
const LOCAL_ENTRIES: u32 = 262_144;
const LOCAL_BUDGET: &str = "256MiB";

/// Connections on which an Envoy is asked when Redis is back: every worker has some of them.
const PROBES: usize = 8;

/// The slowest answer in a crowd: the longest wait of the rules, 2 s, and far more than what it takes to let
/// a crowd go on a busy machine.
const CROWD_IN_TIME: Duration = Duration::from_secs(10);

/// Says which Envoy has sent a request to the origin.
const ENVOY_HEADER: &str = "x-soak-envoy";

fn config(judged: Judged) -> Value {
    let on_store_error = match judged {
        Judged::Together => "refuse",
        Judged::EachEnvoy => "local",
    };
    let rule = |name: &str, ongoing: Value| {
        json!({
            "name": name,
            "match": { "path": format!("/{name}") },
            "key": [ { "key_header": "idempotency-key" } ],
            "caller": { "header": "authorization" },
            "ongoing": ongoing,
            "on_store_error": on_store_error,
            "lease": format!("{}s", LEASE.as_secs()),
            "unknown_ttl": format!("{}s", UNKNOWN_TTL.as_secs()),
        })
    };
    json!({
        "store": { "redis": {
            "cluster": "redis", "local": { "ttl": LOCAL_TTL, "entries": LOCAL_ENTRIES, "budget": LOCAL_BUDGET } } },
        "rules": [
            rule(load::PATHS[0], json!("reject")),
            rule(load::PATHS[1], json!({ "wait": { "max": "2s" } })),
        ]
    })
}

#[tokio::main]
async fn main() -> ExitCode {
    let seconds = std::env::var("SOAK_SECONDS").ok();
    let seconds = seconds.map_or(SECONDS, |text| text.parse().expect("SOAK_SECONDS is a number"));
    let forgets = std::env::var("SOAK_FORGET").is_ok_and(|text| text == "1");
    let kept = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut redis = Redis::with(if forgets { &[] } else { &kept }).await;
    let judged = match std::env::var("SOAK_STORE_ERROR").as_deref() {
        Ok("local") => Judged::EachEnvoy,
        Ok("refuse") | Err(_) => Judged::Together,
        Ok(other) => panic!("SOAK_STORE_ERROR: {other:?}, wanted \"refuse\" or \"local\""),
    };
    let ledger = Arc::new(Ledger::new(judged));
    let origin = origin::start(ledger.clone()).await;
    let bootstrap = Bootstrap::redis(redis.port()).config(&config(judged)).origin(origin.port());
    let mut envoys = Vec::new();
    for number in 0..2 {
        envoys
            .push(Envoy::start(bootstrap.clone().with(|bootstrap| names(bootstrap, number))).await);
    }
    println!(
        "{CLIENTS} clients and a crowd every few seconds, for {seconds} s over two Envoys with two workers each; \
         their Redis is killed every {} s, and comes back {}; each Envoy is judged {}\n",
        KILLED_EVERY.as_secs(),
        if forgets { "empty" } else { "with all that it held" },
        match judged {
            Judged::Together => "together with the other",
            Judged::EachEnvoy => "by itself",
        }
    );
    let vms_before = vms(&envoys).await;
    let load =
        Arc::new(Load::new(envoys.iter().map(|envoy| envoy.front).collect(), ledger.clone()));
    let mut clients: Vec<_> =
        (0..CLIENTS).map(|number| tokio::spawn(load::client(number, load.clone()))).collect();
    clients.push(tokio::spawn(crowds::send(load.clone())));
    let mut restarts = Restarts::default();
    let interrupted = tokio::select! {
        () = sleep(Duration::from_secs(seconds)) => false,
        () = interrupted() => true,
        // Where it stands when time is over does not matter: a Redis that is away takes part in no end.
        () = restarts.go_on(&mut redis, &load, forgets) => false,
    };
    load.end();
    for client in clients {
        client.await.unwrap();
    }
    let (mut given_up, mut fallbacks, mut evictions) = (0, 0, 0);
    for envoy in &envoys {
        let stat = async |name| envoy.stat(&format!("wasmcustom.{name}")).await.unwrap_or(0);
        fallbacks += stat("idempotency_local_fallbacks_total").await;
        evictions += stat("idempotency_evictions_total").await;
        given_up += envoy.log().matches("gave up recording the end of a claim").count();
    }
    let vms = (vms_before, vms(&envoys).await);
    let report = Report {
        judged,
        forgets,
        load: &load,
        ledger: &ledger,
        restarts: &restarts,
        given_up,
        fallbacks,
        evictions,
        vms,
    };
    report.print();
    let failures = report.failures(interrupted);
    for failure in &failures {
        println!("FAILED: {failure}");
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What an Envoy sends to the origin says which one it is.
fn names(bootstrap: &mut Bootstrap, envoy: usize) {
    let manager = bootstrap.manager();
    manager["access_log"] = json!([]);
    manager["route_config"]["request_headers_to_add"] = json!([{
        "header": { "key": ENVOY_HEADER, "value": envoy.to_string() },
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }]);
}

/// A signal that is not awaited would end this process before its Envoys.
async fn interrupted() {
    let mut terminated = signal(SignalKind::terminate()).unwrap();
    let mut hung_up = signal(SignalKind::hangup()).unwrap();
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated.recv() => {}
        _ = hung_up.recv() => {}
    }
}

/// VMs made so far, on all Envoys; `None` if one is gone, as after a Ctrl-C that reached it too.
async fn vms(envoys: &[Envoy]) -> Option<u64> {
    let mut all = 0;
    for envoy in envoys {
        all += envoy.stat("wasm.envoy.wasm.runtime.v8.created").await?;
    }
    Some(all)
}

#[derive(Default)]
struct Restarts {
    count: u64,
    longest_without_service: Duration,
}

impl Restarts {
    /// Kills Redis and starts it again, for ever.
    async fn go_on(&mut self, redis: &mut Redis, load: &Arc<Load>, forgets: bool) {
        loop {
            sleep(KILLED_EVERY.saturating_sub(AWAY)).await;
            if forgets {
                load.ledger.forgotten(Instant::now());
            }
            redis.stop();
            sleep(AWAY).await;
            redis.restart().await;
            // It answers while it still reads its file, with an error.
            while !redis.cli(&["INFO", "persistence"]).await.contains("\nloading:0\r") {
                sleep(Duration::from_millis(5)).await;
            }
            let without = served_again(load).await;
            self.count += 1;
            self.longest_without_service = self.longest_without_service.max(without);
            println!(
                "Redis was restarted, and there was no service for another {} ms; {} executions so far",
                without.as_millis(),
                load.ledger.executions()
            );
        }
    }
}

/// The time until every worker of every Envoy runs new keys.
async fn served_again(load: &Arc<Load>) -> Duration {
    let begun = Instant::now();
    let mut probes = Vec::new();
    for probe in 0..load.envoys.len() * PROBES {
        let load = load.clone();
        probes.push(tokio::spawn(async move {
            while load.goes_on() && !load.probe(probe % load.envoys.len()).await {
                sleep(Duration::from_millis(5)).await;
            }
            begun.elapsed()
        }));
    }
    let mut longest = Duration::ZERO;
    for probe in probes {
        longest = longest.max(probe.await.unwrap());
    }
    longest
}
