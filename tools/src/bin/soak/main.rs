//! `make soak`: minutes of clients that retry, over two Envoys whose Redis is killed every twenty seconds,
//! before an origin that keeps a ledger of its executions. `SOAK_SECONDS` sets the time.
//!
//! # What may run again
//!
//! The origin checks each execution when it begins, against the previous one under the same key:
//!
//! | previous execution | the next may begin |
//! |---|---|
//! | is still running | never. No execution takes as long as `unknown_ttl`, so an unknown outcome is no
//! excuse |
//! | answered 200, or some client has an answer of the key | never: `ttl` is a day |
//! | answered 429 | at once: it is released |
//! | broke off before or in the middle of its answer | `unknown_ttl` after that, with an
//! `Idempotency-Attempt` above 1 |
//! | ran for a client that leaves, and was not answered | `unknown_ttl` after its begin, at the earliest: the
//! outcome becomes unknown when the client leaves, which the origin does not see |
//!
//! An execution runs to its planned end even if its client has left, as at a real origin. All answers for a
//! key, first or replayed, must be of the same execution.
//!
//! This holds only while Redis keeps its data. It is killed without a warning, but it writes each command to
//! its file before it replies (`appendfsync always`), and is back long before a lease is over. If it were
//! away for longer, the end of a claim could not be recorded and its outcome would become unknown: the run
//! counts these, and its result is void if there is one.
//!
//! Every few seconds, 500 to 2,000 duplicates of one new key come to one Envoy at the same time, over HTTP/2.
//! Each of them must be answered in time.
//!
//! With `SOAK_STORE_ERROR=local` each Envoy decides alone while Redis is away (`on_store_error: local`). Then
//! the guarantee is that duplicates at one Envoy run once, whatever Redis does: the origin checks each
//! execution against those that *the same Envoy* sent under that key. The ledger reports executions with a
//! wrong `Idempotency-Attempt`, but they do not fail the run: while Redis was away, it counted no attempts.
//!
//! With `SOAK_FORGET=1` Redis comes back empty. Then there is no guarantee: if it loses a claim, the other
//! Envoy runs the key while the first still runs; if it loses a record, an Envoy with a copy replays it, and
//! the other runs the key again. The ledger reports these executions, but they do not fail the run.
//!
//! The run fails for one violation, for an unexpected answer, for a worker that stopped, and for an event of
//! the table that never came: then it was not tested.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
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

/// Concurrent clients: far more than workers, so that duplicates come in every state of a key.
const CLIENTS: u64 = 64;

/// Time between two kills of Redis. Every claim and every unknown outcome ends in between.
const KILLED_EVERY: Duration = Duration::from_secs(20);

/// How long Redis stays away: twice the store's timeout, so that requests are refused, and far below a lease.
const AWAY: Duration = Duration::from_millis(500);

/// If Redis misses the end of a claim, it is recorded when Redis is back, because the slowest origin leaves
/// six seconds.
const LEASE: Duration = Duration::from_secs(10);

/// The slowest execution: longer than a third of a lease, so that there are heartbeats.
const SLOWEST: Duration = Duration::from_secs(4);

/// Longer than the slowest execution: no two may ever overlap.
const UNKNOWN_TTL: Duration = Duration::from_secs(5);

/// Far below the time between two kills: most replays of old keys come from a restarted Redis.
const LOCAL_TTL: &str = "2s";

/// Room for more records than there are keys: an evicted record may be run again.
const LOCAL_ENTRIES: u32 = 262_144;
const LOCAL_BUDGET: &str = "256MiB";

/// Connections that probe whether Redis is back: every worker has some of them.
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
        // Its state at the end of the run does not matter: a Redis that is away takes part in no end.
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

/// Each request to the origin names the Envoy that sent it.
fn names(bootstrap: &mut Bootstrap, envoy: usize) {
    let manager = bootstrap.manager();
    manager["access_log"] = json!([]);
    manager["route_config"]["request_headers_to_add"] = json!([{
        "header": { "key": ENVOY_HEADER, "value": envoy.to_string() },
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }]);
}

/// Without waiting for the signal, it would end this process before its Envoys.
async fn interrupted() {
    let mut terminated = signal(SignalKind::terminate()).unwrap();
    let mut hung_up = signal(SignalKind::hangup()).unwrap();
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated.recv() => {}
        _ = hung_up.recv() => {}
    }
}

/// VMs created so far, on all Envoys; `None` if one is gone, as after a Ctrl-C that reached it too.
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
            // While it still reads its file, it answers with an error.
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
