//! The faults, the events, and the rules.

use std::ops::AddAssign;

/// The faults of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// No Redis: each Envoy's table is the store.
    pub memory: bool,
    /// A connection breaks at a write: the bytes are lost.
    pub bytes_lost_percent: u64,
    /// A connection breaks at a write: Redis gets the bytes, and its replies are lost.
    pub replies_lost_percent: u64,
    /// A connection breaks at a write: Redis gets the bytes seconds later, because the network delayed them.
    pub bytes_late_percent: u64,
    /// Redis forgets its scripts when a command comes.
    pub scripts_lost_percent: u64,
    /// A message that a claim has ended does not come.
    pub messages_lost_percent: u64,
    /// Redis refuses connections for two seconds.
    pub redis_down: bool,
    /// Redis hangs for two seconds, then goes on.
    pub redis_hangs: bool,
    /// Redis's clock steps back by two seconds, at some time.
    pub redis_clock_steps: bool,
    /// The client leaves at any time.
    pub client_gone_percent: u64,
    /// One worker's VM stops with all its streams, without a message; a new one replaces it.
    pub worker_dies: bool,
    /// One worker hangs for longer than a lease, then goes on as if nothing had happened.
    pub worker_freezes: bool,
    /// The wall clock of the Envoys jumps.
    pub wall_clock_steps: bool,
    /// The origin resets, times out, refuses the connection, or breaks off in the middle of its answer.
    pub origin_fails_percent: u64,
    /// Many duplicates come at once.
    pub crowd: bool,
    /// Many requests of many keys come at once.
    pub busy: bool,
}

/// A rule of the simulated world. Times in milliseconds.
pub struct Rule {
    pub name: &'static str,
    pub on_store_error: &'static str,
    pub lease: u64,
    pub unknown_for: u64,
}

const fn rule(name: &'static str, on_store_error: &'static str, unknown_for: u64) -> Rule {
    Rule { name, on_store_error, lease: 1_000, unknown_for }
}

pub const RULES: [Rule; 7] = [
    rule("reject", "refuse", 3_000),
    rule("wait", "refuse", 3_000),
    rule("requeue", "refuse", 0),
    rule("detached", "refuse", 3_000),
    rule("local", "local", 3_000),
    rule("local-wait", "local", 3_000),
    rule("pass", "pass", 3_000),
];

pub const TTL: u64 = 8_000;

/// The filter's configuration with these rules.
pub fn config() -> String {
    let ongoing = |name: &str| match name {
        "wait" | "detached" | "local-wait" => r#""ongoing": { "wait": { "max": "2s" } },"#,
        "requeue" => r#""ongoing": { "requeue": { "delay": "100ms", "attempts": 20 } },"#,
        _ => "",
    };
    let rules: Vec<String> = RULES
        .iter()
        .map(|Rule { name, on_store_error, lease, unknown_for }| {
            let ongoing = ongoing(name);
            let execution = if *name == "detached" {
                r#""execution": { "detached": { "timeout": "5s" } },"#
            } else {
                ""
            };
            let (key, fingerprint) = if *name == "requeue" {
                (r#"{ "json": "/id" }"#, "body")
            } else {
                (r#"{ "path": "id" }"#, "none")
            };
            format!(
                r#"{{ "name": "{name}", "match": {{ "path": "/{name}/{{id}}" }}, "key": [ {key} ],
                     "caller": "anyone", "fingerprint": "{fingerprint}", "lease": "{lease}ms",
                     "unknown_ttl": "{unknown_for}ms", "ttl": "{TTL}ms", {ongoing} {execution}
                     "on_store_error": "{on_store_error}" }}"#
            )
        })
        .collect();
    format!(
        r#"{{ "store": {{ "redis": {{ "cluster": "redis" }} }}, "rules": [ {} ] }}"#,
        rules.join(",")
    )
}

/// The events of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub executions: u64,
    pub answers: u64,
    pub replays: u64,
    pub store_errors: u64,
    pub unknown: u64,
    pub released: u64,
    pub takeovers: u64,
    pub known_here: u64,
    pub detached: u64,
    pub local: u64,
    pub passed: u64,
    pub commands: u64,
    pub reconnects: u64,
    pub no_script: u64,
    pub too_late: u64,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.executions += other.executions;
        self.answers += other.answers;
        self.replays += other.replays;
        self.store_errors += other.store_errors;
        self.unknown += other.unknown;
        self.released += other.released;
        self.takeovers += other.takeovers;
        self.known_here += other.known_here;
        self.detached += other.detached;
        self.local += other.local;
        self.passed += other.passed;
        self.commands += other.commands;
        self.reconnects += other.reconnects;
        self.no_script += other.no_script;
        self.too_late += other.too_late;
    }
}
