//! `make bench`: requests/s and latency of Envoy with and without the filter, side by side in one run.
//!
//! The load, the origin and Envoy share this machine's cores, so only the ratios are meaningful. With the
//! argument `crowd`: the latency of other requests while a worker answers a crowd.

#![allow(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "it measures time, and a bench that cannot run ends there"
)]

mod crowd;
mod nginx;

use nginx::Nginx;
use serde_json::json;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use testkit::{Bootstrap, Client, Envoy, Origin, Redis, Request};

/// The length of each measurement. Each round runs all cases in turn, so that a slow second of the machine
/// affects them all; the median of the rounds counts.
const MEASURED: Duration = Duration::from_secs(3);
const ROUNDS: usize = 3;

/// Connections under load, and one for latency: nothing queues there.
const CONNECTIONS: [usize; 2] = [64, 1];

/// The measured cases.
#[derive(Clone, Copy, PartialEq)]
enum Case {
    /// Envoy without the filter, to the origin.
    Plain,
    /// The filter is there, and no rule matches.
    NoRule,
    /// Every request is new: claimed, run, recorded.
    First,
    /// … in Redis, which every Envoy shares.
    FirstRedis,
    /// Another proxy does the same, by its own script.
    FirstNginx,
    /// Envoy without the filter reads the body and answers by itself.
    Direct,
    /// Every request is answered from one record.
    Replay,
    /// … by the other proxy, which reads Redis each time.
    ReplayNginx,
}

impl Case {
    const ALL: [Self; 8] = [
        Self::Plain,
        Self::NoRule,
        Self::First,
        Self::FirstRedis,
        Self::FirstNginx,
        Self::Direct,
        Self::Replay,
        Self::ReplayNginx,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain proxying, no filter",
            Self::NoRule => "filter, no rule matches",
            Self::First => "filter, first execution",
            Self::FirstRedis => "filter, first execution, Redis",
            Self::FirstNginx => "NGINX + Lua, first, Redis",
            Self::Direct => "Envoy's own answer, no filter",
            Self::Replay => "filter, replay",
            Self::ReplayNginx => "NGINX + Lua, replay, Redis",
        }
    }

    const fn path(self) -> &'static str {
        match self {
            Self::Plain
            | Self::First
            | Self::FirstRedis
            | Self::FirstNginx
            | Self::Replay
            | Self::ReplayNginx => "/v1/payments",
            Self::NoRule => "/other",
            Self::Direct => "/direct",
        }
    }

    /// The case to which its ratio refers.
    const fn baseline(self) -> Self {
        match self {
            Self::Plain | Self::NoRule | Self::First | Self::FirstRedis | Self::FirstNginx => {
                Self::Plain
            }
            Self::Direct | Self::Replay | Self::ReplayNginx => Self::Direct,
        }
    }

    const fn replays(self) -> bool {
        match self {
            Self::Replay | Self::ReplayNginx => true,
            Self::Plain
            | Self::NoRule
            | Self::First
            | Self::FirstRedis
            | Self::FirstNginx
            | Self::Direct => false,
        }
    }
}

/// One measurement.
#[derive(Clone, Copy)]
struct Figures {
    per_second: f64,
    median: Duration,
}

/// Envoy doing the same without this filter: it proxies, or answers by itself.
fn without_filter() -> Bootstrap {
    Bootstrap::demo().with(|bootstrap| {
        let manager = bootstrap.manager();
        let buffer = json!({
            "name": "buffer",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer",
                "max_request_bytes": 262_144
            }
        });
        let mut direct = json!({
            "match": { "prefix": "/direct" },
            "direct_response": { "status": 200, "body": { "inline_string": "{\"execution\":1}\n" } }
        });
        direct["response_headers_to_add"] =
            json!([ { "header": { "key": "content-type", "value": "application/json" } } ]);
        // Plain proxying streams; only Envoy's own answer needs the body first, as a replay does.
        let streams = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
            "disabled": true
        });
        manager["http_filters"][0] = buffer;
        let routes = manager["route_config"]["virtual_hosts"][0]["routes"].as_array_mut().unwrap();
        for route in routes.iter_mut() {
            route["typed_per_filter_config"] = json!({ "buffer": streams });
        }
        routes.insert(0, direct);
        manager["access_log"] = json!([]);
    })
}

fn with_filter() -> Bootstrap {
    Bootstrap::demo().with(|bootstrap| bootstrap.manager()["access_log"] = json!([]))
}

/// Envoy with records in this Redis.
fn with_redis(redis: &Redis) -> Bootstrap {
    Bootstrap::redis(redis.port()).with(|bootstrap| bootstrap.manager()["access_log"] = json!([]))
}

/// Everything that is measured, side by side.
struct Bench {
    _origin: Origin,
    plain: Envoy,
    filtered: Envoy,
    shared: Envoy,
    /// If it is installed.
    nginx: Option<Nginx>,
    _redis: Redis,
}

impl Bench {
    async fn start() -> Self {
        let origin = Origin::forgetful().await;
        let redis = Redis::start().await;
        let port = origin.address.port();
        Self {
            plain: Envoy::start(without_filter().origin(port)).await,
            filtered: Envoy::start(with_filter().origin(port)).await,
            shared: Envoy::start(with_redis(&redis).origin(port)).await,
            nginx: Nginx::start(port, redis.port()).await,
            _origin: origin,
            _redis: redis,
        }
    }

    /// The address of the proxy; `None` if it is not installed.
    fn front(&self, case: Case) -> Option<SocketAddr> {
        match case {
            Case::Plain | Case::Direct => Some(self.plain.front),
            Case::NoRule | Case::First | Case::Replay => Some(self.filtered.front),
            Case::FirstRedis => Some(self.shared.front),
            Case::FirstNginx | Case::ReplayNginx => self.nginx.as_ref().map(|nginx| nginx.front),
        }
    }

    /// The cases that can be measured, each with its address.
    fn cases(&self) -> Vec<(Case, SocketAddr)> {
        Case::ALL.into_iter().filter_map(|case| Some((case, self.front(case)?))).collect()
    }
}

static NEXT_KEY: AtomicU64 = AtomicU64::new(0);

fn request(front: SocketAddr, case: Case) -> Request {
    let key = if case.replays() {
        "replayed".to_owned()
    } else {
        format!("key-{}", NEXT_KEY.fetch_add(1, Ordering::Relaxed))
    };
    Request::new(front, "POST", case.path())
        .key(&key)
        .caller("Bearer alice")
        .json(r#"{"amount":100,"currency":"EUR","to":"DE89370400440532013000"}"#)
}

async fn measure(front: SocketAddr, case: Case, connections: usize) -> Figures {
    if case.replays() {
        // The record that is replayed: new, or dropped for those of the first executions.
        request(front, case).send().await;
    }
    let mut tasks = Vec::new();
    let begun = Instant::now();
    for _ in 0..connections {
        let client = Client::connect(front, false).await.unwrap();
        tasks.push(tokio::spawn(async move {
            let mut took = Vec::new();
            while begun.elapsed() < MEASURED {
                let request = request(front, case);
                let sent = Instant::now();
                let answer = client.send(request).await.unwrap();
                took.push(sent.elapsed());
                assert_eq!(answer.status, 200, "{}", answer.text());
                assert_eq!(answer.is_replay(), case.replays());
            }
            took
        }));
    }
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await.unwrap());
    }
    let per_second = took.len() as f64 / begun.elapsed().as_secs_f64();
    took.sort();
    Figures { per_second, median: took.get(took.len() / 2).copied().unwrap_or_default() }
}

#[tokio::main]
async fn main() {
    if std::env::args().any(|argument| argument == "crowd") {
        return crowd::run().await;
    }
    let bench = Bench::start().await;
    println!(
        "{ROUNDS} rounds of {} s a line; each proxy with 2 workers; load, origin and Redis on the same cores\n",
        MEASURED.as_secs()
    );
    println!("{:<32}{:>12}{:>12}{:>9}", "", "requests/s", "p50 in µs", "ratio");
    for connections in CONNECTIONS {
        let cases = bench.cases();
        let mut rounds: Vec<Vec<Figures>> = vec![Vec::new(); cases.len()];
        for _ in 0..ROUNDS {
            for ((case, front), figures) in cases.iter().zip(&mut rounds) {
                figures.push(measure(*front, *case, connections).await);
            }
        }
        let cases = cases.into_iter().map(|(case, _)| case);
        let medians: Vec<_> = cases.zip(rounds.into_iter().map(median)).collect();
        print(connections, &medians);
    }
    println!("\nA ratio is to the line without the filter above it, in requests/s.");
    if bench.nginx.is_none() {
        println!("NGINX + Lua was skipped: {}.", Nginx::WANTED);
    }
}

fn print(connections: usize, medians: &[(Case, Figures)]) {
    let of = |wanted: Case| {
        let (_, figures) = medians.iter().find(|(case, _)| *case == wanted)?;
        Some(*figures)
    };
    println!("{connections} connection{}", if connections == 1 { "" } else { "s" });
    for (case, figures) in medians {
        let ratio = figures.per_second / of(case.baseline()).unwrap().per_second;
        let (name, per_second) = (case.name(), figures.per_second);
        println!("  {name:<30}{per_second:>12.0}{:>12}{ratio:>9.2}", figures.median.as_micros());
    }
    // Under load the difference would be that of queues.
    if connections == 1
        && let (Some(first), Some(plain)) = (of(Case::FirstRedis), of(Case::Plain))
    {
        let added = first.median.saturating_sub(plain.median);
        println!(
            "  a first execution with Redis adds {} µs to plain proxying (p50)",
            added.as_micros()
        );
    }
    for (ours, theirs) in [(Case::FirstRedis, Case::FirstNginx), (Case::Replay, Case::ReplayNginx)]
    {
        if let (Some(of_ours), Some(of_theirs)) = (of(ours), of(theirs)) {
            let ratio = of_ours.per_second / of_theirs.per_second;
            println!("  {} ÷ {}: {ratio:.2}", ours.name(), theirs.name());
        }
    }
}

/// The middle round of each figure.
fn median(mut rounds: Vec<Figures>) -> Figures {
    let middle = rounds.len() / 2;
    rounds.sort_by(|one, other| one.per_second.total_cmp(&other.per_second));
    let per_second = rounds.get(middle).map_or(0.0, |figures| figures.per_second);
    rounds.sort_by_key(|figures| figures.median);
    let median = rounds.get(middle).map_or(Duration::ZERO, |figures| figures.median);
    Figures { per_second, median }
}
