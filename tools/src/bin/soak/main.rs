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
    clippy::unwrap_used,
    reason = "it takes the time that clients take, and a soak that cannot run ends there"
)]

mod ledger;
mod load;
mod origin;

use ledger::Ledger;
use load::{Load, Seen};
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

/// Connections that probe whether Redis is back: every worker has some of them.
const PROBES: usize = 8;

fn config() -> Value {
    let rule = |name: &str, ongoing: Value| {
        json!({
            "name": name,
            "match": { "path": format!("/{name}") },
            "key": [ { "key_header": "idempotency-key" } ],
            "caller": { "header": "authorization" },
            "ongoing": ongoing,
            "lease": format!("{}s", LEASE.as_secs()),
            "unknown_ttl": format!("{}s", UNKNOWN_TTL.as_secs()),
        })
    };
    json!({
        "store": { "redis": { "cluster": "redis", "local": { "ttl": LOCAL_TTL } } },
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
    let ledger = Arc::new(Ledger::default());
    let origin = origin::start(ledger.clone()).await;
    let bootstrap = Bootstrap::redis(redis.port())
        .config(&config())
        .origin(origin.port())
        .with(|bootstrap| bootstrap.manager()["access_log"] = json!([]));
    let mut envoys = Vec::new();
    for _ in 0..2 {
        envoys.push(Envoy::start(bootstrap.clone()).await);
    }
    println!(
        "{CLIENTS} clients for {seconds} s over two Envoys with two workers each; their Redis is killed every \
         {} s, and comes back {}\n",
        KILLED_EVERY.as_secs(),
        if forgets { "empty" } else { "with all that it held" }
    );
    let vms_before = vms(&envoys).await;
    let load =
        Arc::new(Load::new(envoys.iter().map(|envoy| envoy.front).collect(), ledger.clone()));
    let clients: Vec<_> =
        (0..CLIENTS).map(|number| tokio::spawn(load::client(number, load.clone()))).collect();
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
    let mut given_up = 0;
    for envoy in &envoys {
        given_up += envoy.log().matches("gave up recording the end of a claim").count();
    }
    let vms = (vms_before, vms(&envoys).await);
    let report = Report { load: &load, ledger: &ledger, restarts: &restarts, given_up, vms };
    report.print(forgets);
    let failures = report.failures(forgets, interrupted);
    for failure in &failures {
        println!("FAILED: {failure}");
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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

struct Report<'a> {
    load: &'a Load,
    ledger: &'a Ledger,
    restarts: &'a Restarts,
    given_up: usize,
    /// Before and after.
    vms: (Option<u64>, Option<u64>),
}

impl Report<'_> {
    fn print(&self, forgets: bool) {
        let line = |what: &str, count: &dyn std::fmt::Display| println!("  {what:<54}{count:>12}");
        let totals = self.ledger.totals();
        println!("\nClients");
        line("requests", &self.load.requests());
        line("keys", &self.load.keys());
        line("sent again without an answer", &self.load.retries());
        for (seen, count) in self.load.seen() {
            line(&seen.to_string(), &count);
        }
        println!("Origin");
        line("executions", &totals.executions);
        line("… of a key that was released before", &totals.after_release);
        line("… of a key with unknown outcome, after unknown_ttl", &totals.after_doubt);
        line("at once under one key, at the most", &totals.most_at_once);
        if forgets {
            line("… that a loss of Redis let run again", &totals.after_loss);
        }
        println!("Redis and Envoy");
        line("Redis restarts", &self.restarts.count);
        let longest = format!("{} ms", self.restarts.longest_without_service.as_millis());
        line("longest time without service after one", &longest);
        line("ends of claims that could not be recorded in time", &self.given_up);
        let made = |vms: Option<u64>| vms.map_or("unknown".to_owned(), |vms| vms.to_string());
        line(
            "VMs created before, and after",
            &format!("{}, {}", made(self.vms.0), made(self.vms.1)),
        );
        line(
            if forgets { "violations, not judged" } else { "violations" },
            &totals.violations.len(),
        );
        for violation in totals.violations.iter().take(10) {
            println!("    {violation}");
        }
    }

    fn failures(&self, forgets: bool, interrupted: bool) -> Vec<String> {
        let totals = self.ledger.totals();
        let mut failures = Vec::new();
        let mut fails = |if_so: bool, why: &str| {
            if if_so {
                failures.push(why.to_owned());
            }
        };
        fails(!forgets && !totals.violations.is_empty(), "a key ran that must not have run");
        fails(self.given_up > 0, "Redis was away for longer than this run can judge");
        if interrupted {
            // Envoy and Redis may have got the signal too; and there may be few results yet.
            return failures;
        }
        fails(self.vms.0 != self.vms.1, "a worker stopped");
        let seen = self.load.seen();
        let unexplained = |seen: &Seen| matches!(seen, Seen::Unexplained(_));
        fails(seen.keys().any(unexplained), "an unexpected answer");
        let conflict = |code: &str| seen.contains_key(&Seen::Conflict(code.to_owned()));
        for (happened, what) in [
            (seen.contains_key(&Seen::First), "first answer"),
            (seen.contains_key(&Seen::Replay), "replay"),
            (conflict("in-progress"), "duplicate that was refused"),
            (conflict("outcome-unknown"), "unknown outcome"),
            (seen.contains_key(&Seen::Left), "client that left"),
            (totals.after_release > 0, "execution after a release"),
            (totals.after_doubt > 0, "execution after an unknown outcome"),
            (self.restarts.count > 0, "restart of Redis"),
            (seen.contains_key(&Seen::StoreAway), "request refused while Redis was away"),
            (!forgets || totals.after_loss > 0, "execution after a loss"),
        ] {
            fails(!happened, &format!("there was no {what}"));
        }
        failures
    }
}
