//! `-- crowd`: the latency of a worker's other requests while it answers a crowd.
//!
//! With `DELIBERATE_BATCH=N`, the module of `make trap` deals with N streams a callback instead of `BATCH`.
//!
//! The control is Envoy without the filter, whose origin holds such a crowd and then answers all of it. The
//! clients and the origin share this machine's cores, so only the ratios are meaningful.

use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use testkit::crowd::{Crowd, roomy};
use testkit::deployment::Store;
use testkit::{Bootstrap, Client, Deployment, Envoy, Origin, Request, eventually};
use tokio::runtime;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

/// Number of requests that wait for one key.
const NUMBER: usize = 10_000;

/// Samples of all rounds count together.
const ROUNDS: usize = 5;

/// How long the other requests are measured before the crowd waits, and while it waits.
const OBSERVED: Duration = Duration::from_secs(1);

/// Pause between two of the other requests of one kind: a worker could handle many more.
const PAUSE: Duration = Duration::from_millis(2);

/// The measured requests.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// No rule matches, and Envoy answers by itself, because its cluster has no hosts: only the worker's
    /// time.
    Get,
    /// It has its own key, and runs: also the origin's time, which in the control answers the crowd.
    Post,
}

/// The state of the crowd.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Away,
    Waits,
    LetGo,
}

impl Phase {
    const ALL: [Self; 3] = [Self::Away, Self::Waits, Self::LetGo];

    const fn name(self) -> &'static str {
        match self {
            Self::Away => "no crowd",
            Self::Waits => "it waits",
            Self::LetGo => "it ends",
        }
    }
}

/// A measured request.
struct Sample {
    kind: Kind,
    sent: Instant,
    took: Duration,
}

/// Sends a request of each kind in every [`PAUSE`], even if those before are not answered yet.
struct Others {
    stop: Arc<AtomicBool>,
    sending: JoinHandle<Vec<JoinHandle<Sample>>>,
}

impl Others {
    async fn start(front: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let get = Arc::new(Client::connect(front, true).await.unwrap());
        let post = Arc::new(Client::connect(front, true).await.unwrap());
        let sending = tokio::spawn(async move {
            let mut clock = interval(PAUSE);
            clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut samples = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let due: Instant = clock.tick().await.into();
                let key = format!("other-{}", super::NEXT_KEY.fetch_add(1, Ordering::Relaxed));
                let all = [
                    (Kind::Get, &get, Request::new(front, "GET", "/empty/").http2()),
                    (Kind::Post, &post, request(front, &key)),
                ];
                for (kind, client, request) in all {
                    let client = client.clone();
                    samples.push(tokio::spawn(async move {
                        let answer = client.send(request).await.unwrap();
                        let took = due.elapsed();
                        let expected = if kind == Kind::Get { 503 } else { 200 };
                        assert_eq!((answer.status, answer.is_replay()), (expected, false));
                        Sample { kind, sent: due, took }
                    }));
                }
            }
            samples
        });
        Self { stop, sending }
    }

    async fn end(self) -> Vec<Sample> {
        self.stop.store(true, Ordering::Relaxed);
        let mut samples = Vec::new();
        for sample in self.sending.await.unwrap() {
            samples.push(sample.await.unwrap());
        }
        samples
    }
}

fn request(front: SocketAddr, key: &str) -> Request {
    Request::new(front, "POST", "/pay").key(key).caller("alice").json("{}").http2()
}

/// The measurements of one Envoy.
struct Measured {
    name: &'static str,
    samples: Vec<(Phase, Sample)>,
    /// From the release of the first until the last waiting request has its answer, in each round.
    let_go: Vec<Duration>,
}

/// An Envoy under test.
struct Subject<'a> {
    name: &'static str,
    envoy: &'a Envoy,
    origin: &'a Origin,
    /// All but one wait in the filter; without it, all are held by the origin.
    filtered: bool,
}

impl Subject<'_> {
    async fn measure(&self) -> Measured {
        let mut measured = Measured { name: self.name, samples: Vec::new(), let_go: Vec::new() };
        for round in 0..ROUNDS {
            self.round(&format!("{}-{round}", self.name), &mut measured).await;
        }
        measured
    }

    async fn round(&self, key: &str, measured: &mut Measured) {
        let front = self.envoy.front;
        let others = Others::start(front).await;
        tokio::time::sleep(OBSERVED).await;
        let away = others.end().await.into_iter();
        measured.samples.extend(away.map(|sample| (Phase::Away, sample)));

        let held = request(front, key).header("x-origin-hold", key);
        let executions = self.origin.executions();
        let first = Crowd::send(front, [held.clone()]).await;
        eventually("the first runs", async || self.origin.executions() > executions).await;
        let crowd = std::thread::spawn({
            let outcome = if self.filtered { "200 replayed" } else { "200" };
            // The client of the other requests and the origin do not have to wait for this one's tasks.
            move || {
                let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    Crowd::send(front, vec![held; NUMBER]).await.ends_in(&[(outcome, NUMBER)]).await
                })
            }
        });
        eventually("all wait", async || {
            if self.filtered {
                let waiters = self.envoy.stat("wasmcustom.idempotency_waiters").await;
                waiters == Some(NUMBER as u64)
            } else {
                self.origin.executions() > executions + NUMBER
            }
        })
        .await;
        let others = Others::start(front).await;
        tokio::time::sleep(OBSERVED).await;
        let released = Instant::now();
        self.origin.release(key);
        let last = tokio::task::spawn_blocking(|| crowd.join().unwrap()).await.unwrap();
        first.ends_in(&[("200", 1)]).await;
        measured.let_go.push(last - released);
        for sample in others.end().await {
            let phase = if sample.sent < released { Phase::Waits } else { Phase::LetGo };
            // Requests that came when all was over are not affected.
            if sample.sent < last {
                measured.samples.push((phase, sample));
            }
        }
    }
}

/// Measures and prints.
pub(super) async fn run() {
    let rules = json!({ "rules": [{
        "name": "pay", "match": { "path": "/pay" },
        "key": [ { "key_header": "idempotency-key" } ], "caller": { "header": "authorization" },
        "ongoing": { "wait": { "max": "2m" } } }] });
    let batch = std::env::var("DELIBERATE_BATCH").ok().map(|text| text.parse().unwrap());
    let change = |bootstrap: Bootstrap| match batch {
        Some(streams) => roomy(bootstrap).batch(streams),
        None => roomy(bootstrap),
    };
    let memory = Deployment::start(Store::Memory, &rules, change).await;
    let redis = Deployment::start(Store::Redis, &rules, change).await;
    let origin = Origin::start().await;
    let port = origin.address.port();
    let plain = Envoy::start(roomy(Bootstrap::demo()).without_filter().origin(port)).await;
    let subjects = [
        Subject { name: "no filter", envoy: &plain, origin: &origin, filtered: false },
        Subject { name: "memory", envoy: memory.envoy(), origin: &memory.origin, filtered: true },
        Subject { name: "Redis", envoy: redis.envoy(), origin: &redis.origin, filtered: true },
    ];
    println!(
        "{ROUNDS} rounds; one worker; a crowd of {NUMBER} on HTTP/2; besides, every {} ms, a GET that Envoy \
         answers by itself and a POST of its own key\n",
        PAUSE.as_millis()
    );
    println!(
        "{:<11}{:<14}{:<6}{:>9}{:>10}{:>10}{:>10}{:>8}",
        "", "crowd", "other", "requests", "p50 in µs", "p99", "longest", "ratio"
    );
    for subject in subjects {
        print(&subject.measure().await);
    }
    println!("\nA ratio is of p99, to the line of that kind without a crowd.");
}

fn print(measured: &Measured) {
    for kind in [Kind::Get, Kind::Post] {
        let alone = quantile(&took(measured, Phase::Away, kind), 99);
        for phase in Phase::ALL {
            let took = took(measured, phase, kind);
            let ratio = quantile(&took, 99).as_secs_f64() / alone.as_secs_f64();
            println!(
                "{:<11}{:<14}{:<6}{:>9}{:>10}{:>10}{:>10}{ratio:>8.1}",
                measured.name,
                phase.name(),
                if kind == Kind::Get { "GET" } else { "POST" },
                took.len(),
                quantile(&took, 50).as_micros(),
                quantile(&took, 99).as_micros(),
                quantile(&took, 100).as_micros(),
            );
        }
    }
    let mut let_go = measured.let_go.clone();
    let_go.sort();
    let median = quantile(&let_go, 50);
    println!(
        "{:<11}the last of the crowd has its answer after {} ms: {:.0} a second\n",
        measured.name,
        median.as_millis(),
        NUMBER as f64 / median.as_secs_f64()
    );
}

/// Sorted.
fn took(measured: &Measured, phase: Phase, kind: Kind) -> Vec<Duration> {
    let samples = measured.samples.iter();
    let samples = samples.filter(|(during, sample)| *during == phase && sample.kind == kind);
    let mut took: Vec<_> = samples.map(|(_, sample)| sample.took).collect();
    took.sort();
    took
}

/// Of sorted durations; zero if there is none.
fn quantile(took: &[Duration], percent: usize) -> Duration {
    let last = took.len().saturating_sub(1);
    took.get((took.len() * percent / 100).min(last)).copied().unwrap_or_default()
}
