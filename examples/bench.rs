//! `make bench`: requests/s and latency of Envoy with and without the filter, side by side in one run.
//!
//! The load, the origin and Envoy share this machine's cores, so only the ratios mean something.

#![allow(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "it measures time, and a bench that cannot run ends there"
)]

#[path = "../tests/e2e/harness/mod.rs"]
mod harness;

use harness::{Bootstrap, Client, Envoy, Origin, Request};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Each measurement lasts so long. Rounds go over all cases in turn, so that a slow second of the machine
/// hits them all; of the rounds the median counts.
const MEASURED: Duration = Duration::from_secs(3);
const ROUNDS: usize = 3;

/// Connections under load, and one for latency: nothing queues there.
const CONNECTIONS: [usize; 2] = [64, 1];

/// What is measured.
#[derive(Clone, Copy, PartialEq)]
enum Case {
    /// Envoy without the filter, to the origin.
    Plain,
    /// The filter is there, and no rule matches.
    NoRule,
    /// Every request is new: claimed, run, recorded.
    First,
    /// Envoy without the filter reads the body and answers by itself.
    Direct,
    /// Every request is answered from one record.
    Replay,
}

impl Case {
    const ALL: [Self; 5] = [Self::Plain, Self::NoRule, Self::First, Self::Direct, Self::Replay];

    const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain proxying, no filter",
            Self::NoRule => "filter, no rule matches",
            Self::First => "filter, first execution",
            Self::Direct => "Envoy's own answer, no filter",
            Self::Replay => "filter, replay",
        }
    }

    const fn path(self) -> &'static str {
        match self {
            Self::Plain | Self::First | Self::Replay => "/v1/payments",
            Self::NoRule => "/other",
            Self::Direct => "/direct",
        }
    }

    /// What its ratio is to.
    const fn baseline(self) -> Self {
        match self {
            Self::Plain | Self::NoRule | Self::First => Self::Plain,
            Self::Direct | Self::Replay => Self::Direct,
        }
    }
}

/// One measurement.
#[derive(Clone, Copy)]
struct Figures {
    per_second: f64,
    median: Duration,
}

/// Envoy as it would do the same without this filter: proxied, or answered by itself.
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
        // Plain proxying streams; only an answer of its own needs the body first, as a replay does.
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

static NEXT_KEY: AtomicU64 = AtomicU64::new(0);

fn request(envoy: &Envoy, case: Case) -> Request {
    let key = match case {
        Case::Replay => "replayed".to_owned(),
        Case::Plain | Case::NoRule | Case::First | Case::Direct => {
            format!("key-{}", NEXT_KEY.fetch_add(1, Ordering::Relaxed))
        }
    };
    Request::new(envoy.front, "POST", case.path())
        .key(&key)
        .caller("Bearer alice")
        .json(r#"{"amount":100,"currency":"EUR","to":"DE89370400440532013000"}"#)
}

async fn measure(envoy: &Arc<Envoy>, case: Case, connections: usize) -> Figures {
    if case == Case::Replay {
        // The record that is replayed: new, or dropped for those of the first executions.
        request(envoy, case).send().await;
    }
    let mut tasks = Vec::new();
    let begun = Instant::now();
    for _ in 0..connections {
        let client = Client::connect(envoy.front, false).await.unwrap();
        let envoy = envoy.clone();
        tasks.push(tokio::spawn(async move {
            let mut took = Vec::new();
            while begun.elapsed() < MEASURED {
                let request = request(&envoy, case);
                let sent = Instant::now();
                let answer = client.send(request).await.unwrap();
                took.push(sent.elapsed());
                assert_eq!(answer.status, 200, "{}", answer.text());
                assert_eq!(answer.is_replay(), case == Case::Replay);
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
    let origin = Origin::forgetful().await;
    let port = origin.address.port();
    let plain = Arc::new(Envoy::start(without_filter().origin(port)).await);
    let filtered = Arc::new(Envoy::start(with_filter().origin(port)).await);
    println!(
        "{} rounds of {} s a line; Envoy with 2 workers, load and origin on the same cores\n",
        ROUNDS,
        MEASURED.as_secs()
    );
    println!("{:<32}{:>12}{:>12}{:>9}", "", "requests/s", "p50 in µs", "ratio");
    for connections in CONNECTIONS {
        let mut rounds: Vec<Vec<Figures>> = vec![Vec::new(); Case::ALL.len()];
        for _ in 0..ROUNDS {
            for (case, figures) in Case::ALL.into_iter().zip(&mut rounds) {
                let envoy = match case {
                    Case::Plain | Case::Direct => &plain,
                    Case::NoRule | Case::First | Case::Replay => &filtered,
                };
                figures.push(measure(envoy, case, connections).await);
            }
        }
        println!("{connections} connection{}", if connections == 1 { "" } else { "s" });
        let medians: Vec<(Case, Figures)> =
            Case::ALL.into_iter().zip(rounds.into_iter().map(median)).collect();
        for (case, figures) in &medians {
            let (_, baseline) =
                medians.iter().find(|(other, _)| *other == case.baseline()).unwrap();
            let ratio = figures.per_second / baseline.per_second;
            let (name, per_second) = (case.name(), figures.per_second);
            println!(
                "  {name:<30}{per_second:>12.0}{:>12}{ratio:>9.2}",
                figures.median.as_micros()
            );
        }
    }
    println!("\nA ratio is to the line without the filter above it, in requests/s.");
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
