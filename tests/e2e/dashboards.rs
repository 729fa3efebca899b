//! The dashboard and the alerts use metrics that an Envoy exports, and a Prometheus finds them.

use crate::telemetry::{eventful, exported, happen};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use testkit::client::get;
use testkit::process::{Process, Scratch, free_port};
use testkit::{PATIENCE, Request, eventually};

const DASHBOARD: &str = include_str!("../../envoy/dashboards/idempotency.json");
const ALERTS: &str = "envoy/dashboards/alerts.yaml";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Title and query of every line of the dashboard.
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let of = |panel: &Value| {
        let title = panel["title"].as_str().unwrap().to_owned();
        let targets = panel["targets"].as_array().unwrap().clone();
        let query = |target: &Value| target["expr"].as_str().unwrap().to_owned();
        targets.iter().map(|target| (title.clone(), query(target))).collect::<Vec<_>>()
    };
    panels.iter().flat_map(of).collect()
}

/// Our metrics that a text names.
fn metrics(text: &str) -> BTreeSet<String> {
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = text.split(|letter| !is_name(letter));
    words.filter(|word| word.starts_with("idempotency_")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_the_dashboard_and_the_alerts_is_exported() {
    let fleet = eventful().await;
    let samples = exported(&fleet.envoys[0]).await;
    let exported: BTreeSet<String> = samples.into_iter().map(|sample| sample.name).collect();
    let alerts = std::fs::read_to_string(root().join(ALERTS)).unwrap();
    let used = &metrics(DASHBOARD) | &metrics(&alerts);
    assert!(used.len() > 8, "{used:?}");
    assert_eq!(used.difference(&exported).collect::<Vec<_>>(), Vec::<&String>::new());
    // And nothing that is exported is left out of the dashboard.
    let shown = metrics(DASHBOARD);
    for metric in &exported {
        let histogram = metric.ends_with("_sum") || metric.ends_with("_count");
        assert!(histogram || shown.contains(metric), "{metric}");
    }
}

/// `prometheus`, from the path, or where `PROMETHEUS` says.
fn prometheus() -> Option<PathBuf> {
    let named = std::env::var_os("PROMETHEUS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|folder| folder.join("prometheus"));
    named.or_else(|| found.find(|file| file.is_file()))
}

/// A query as Grafana would send it, with all rules and Envoys chosen.
fn filled(query: &str) -> String {
    query.replace("$__rate_interval", "10s").replace("$rule", ".*").replace("$instance", ".*")
}

async fn api(prometheus: SocketAddr, path: &str) -> Value {
    serde_json::from_str(&get(prometheus, path).await.unwrap_or_default()).unwrap_or_default()
}

async fn asked(prometheus: SocketAddr, query: &str) -> Value {
    let request = Request::new(prometheus, "POST", "/api/v1/query");
    let query: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    request.bytes(format!("query={query}")).send().await.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prometheus_has_an_answer_to_every_query_of_the_dashboard() {
    let Some(program) = prometheus() else {
        eprintln!("skipped: there is no prometheus on the path, and PROMETHEUS names none");
        return;
    };
    let mut fleet = eventful().await;
    fleet.redis.restart().await;
    let scratch = Scratch::new();
    let config = scratch.file("prometheus.yaml");
    let targets: Vec<_> = fleet.envoys.iter().map(|envoy| envoy.admin.to_string()).collect();
    let text = json!({
        "global": { "scrape_interval": "500ms", "evaluation_interval": "500ms" },
        "rule_files": [root().join(ALERTS)],
        "scrape_configs": [ {
            "job_name": "envoy", "metrics_path": "/stats/prometheus",
            "static_configs": [ { "targets": targets } ] } ] });
    std::fs::write(&config, text.to_string()).unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let mut command = Command::new(program);
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", scratch.file("data").display()))
        .arg(format!("--web.listen-address={address}"));
    let _server = Process::start("Prometheus", &mut command, &scratch);
    eventually("Prometheus is ready", async || {
        get(address, "/-/ready").await.is_some_and(|text| text.contains("Ready"))
    })
    .await;
    // Rates need traffic between two scrapes, and percentages something to divide by.
    let mut missing = queries();
    let begun = Instant::now();
    for round in 0.. {
        happen(&fleet, &format!("-{round}")).await;
        let mut left = Vec::new();
        for (title, query) in missing {
            let answer = asked(address, &filled(&query)).await;
            assert_ne!(answer["status"], "error", "{title}: {answer}");
            let results = answer["data"]["result"].as_array().cloned().unwrap_or_default();
            let is_number = |result: &Value| {
                let value = result["value"][1].as_str().unwrap_or_default();
                value.parse::<f64>().is_ok_and(f64::is_finite)
            };
            if results.is_empty() || !results.iter().all(is_number) {
                left.push((title, query));
            }
        }
        missing = left;
        if missing.is_empty() {
            break;
        }
        assert!(begun.elapsed() < 2 * PATIENCE, "no answer to {missing:?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let rules = api(address, "/api/v1/rules").await;
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap().clone();
    assert!(rules.len() >= 7 && rules.iter().all(|rule| rule["health"] == "ok"), "{rules:?}");
    // In this run there were takeovers, and no connection is missing.
    let state =
        |name: &str| rules.iter().find(|rule| rule["name"] == name).unwrap()["state"].clone();
    assert_eq!(state("IdempotencyTakeovers"), "firing");
    assert_eq!(state("IdempotencyPipesDown"), "inactive");
}
