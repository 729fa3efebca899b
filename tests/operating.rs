//! Texts for operators: the page about telemetry is complete, and the alerts fire.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test: clippy sees only what stands in a #[test] function as one"
)]

use envoy_idempotency::telemetry::{
    Counter, Gauge, Incident, LINES, Operation, OperationResult, Outcome, Report, STORE_SECONDS,
    WINDOW,
};
use std::path::PathBuf;
use std::process::Command;

const PAGE: &str = include_str!("../docs/telemetry.md");

#[test]
fn the_page_names_every_metric_label_and_log_kind() {
    let operation = (Operation::Claim, OperationResult::Ok);
    let report = Report { outcome: Outcome::Executed, shadow: false };
    let counters = [
        Counter::Requests { rule: "r".to_owned(), report },
        Counter::StoreOperations { operation: operation.0, result: operation.1 },
        Counter::Evictions,
        Counter::RecordWriteFailures,
        Counter::Takeovers,
        Counter::LocalFallbacks,
    ];
    let gauges = [Gauge::Waiters, Gauge::Pipes, Gauge::Entries, Gauge::Bytes];
    let counters = counters.map(|counter| counter.name().split('.').next().unwrap().to_owned());
    let metrics = counters.into_iter().chain(gauges.map(|gauge| gauge.name().to_owned()));
    for metric in metrics.chain([STORE_SECONDS.to_owned()]) {
        assert!(PAGE.contains(&format!("\n| `{metric}` | ")), "{metric}");
    }
    let words = Outcome::ALL.map(Outcome::word).into_iter();
    let words = words.chain(Operation::ALL.map(Operation::word));
    let words = words.chain(OperationResult::ALL.map(OperationResult::word));
    for word in words.chain(Incident::ALL.map(Incident::word)) {
        assert!(PAGE.contains(&format!("`{word}`")), "{word}");
    }
    let limits = format!("{LINES} lines in {} seconds", WINDOW.as_secs());
    assert!(PAGE.contains(&limits), "{limits}");
}

/// A program that a variable names or that is on the path.
fn program(variable: &str, name: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = || std::env::split_paths(&path).map(|folder| folder.join(name));
    named.or_else(|| found().find(|file| file.is_file()))
}

#[test]
fn the_alerts_are_rules_and_fire_when_they_should() {
    let Some(promtool) = program("PROMTOOL", "promtool") else {
        eprintln!("skipped: there is no promtool on the path, and PROMTOOL names none");
        return;
    };
    for arguments in
        [["check", "rules", "envoy/dashboards/alerts.yaml"], ["test", "rules", "tests/alerts.yaml"]]
    {
        let mut command = Command::new(&promtool);
        let output = command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
        let output = output.unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }
}
