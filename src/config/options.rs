//! The table of every option, for the README and the schema: its defaults are the parser's own.

use super::matching::DEFAULT_METHODS;
use super::store::{
    DEFAULT_BUDGET, DEFAULT_ENTRIES, DEFAULT_LOCAL_TTL, DEFAULT_PREFIX, DEFAULT_TIMEOUT,
};
use super::unit::{Length, Size};
use super::validate::{
    DEFAULT_LEASE, DEFAULT_LIMIT, DEFAULT_REDIRECT_AFTER, DEFAULT_TTL, DEFAULT_UNKNOWN_TTL,
};
use std::fmt::Write;
use std::time::Duration;

/// An option: where it stands, what it may be, what it is when left out.
pub(super) struct Row {
    pub(super) option: &'static str,
    pub(super) values: &'static str,
    pub(super) default: String,
}

/// Every option as a Markdown table, in the order of the README.
pub fn render_markdown() -> String {
    let mut table = String::from("| option | values | default |\n|---|---|---|\n");
    for Row { option, values, default } in rows() {
        // Writing to a String does not fail.
        let _ = writeln!(table, "| `{option}` | {values} | {default} |");
    }
    table
}

fn code(text: impl std::fmt::Display) -> String {
    format!("`{text}`")
}

fn length(length: Duration) -> String {
    format!("`\"{}\"`", Length(length))
}

fn size(bytes: u64) -> String {
    format!("`\"{}\"`", Size(bytes))
}

/// Every option, in the order of the README.
pub(super) fn rows() -> Vec<Row> {
    let row = |option, values, default| Row { option, values, default };
    let methods = DEFAULT_METHODS.map(|method| format!("\"{method}\"")).join(", ");
    vec![
        row("store.memory.entries", "records at the most, 64 to 1,048,576", code(DEFAULT_ENTRIES)),
        row("store.memory.budget", "bytes at the most, 1 MiB to 1 GiB", size(DEFAULT_BUDGET)),
        row("store.redis.cluster", "the Envoy cluster that leads to Redis", "required".to_owned()),
        row(
            "store.redis.prefix",
            "what all keys in Redis begin with, up to 64 bytes, no braces",
            code(format!("\"{DEFAULT_PREFIX}\"")),
        ),
        row(
            "store.redis.timeout",
            "10 ms to 5 s: how long a command may take",
            length(DEFAULT_TIMEOUT),
        ),
        row("store.redis.username", "with a `password_env`", "Redis's own `default`".to_owned()),
        row(
            "store.redis.password_env",
            "variable with the password; not with `webdis`",
            "no login".to_owned(),
        ),
        row(
            "store.redis.transport",
            "`\"pipe\"`, or `\"webdis\"`: a Webdis server behind `cluster`",
            code("\"pipe\""),
        ),
        row(
            "store.redis.local.entries",
            "the table in front of Redis: as `store.memory.entries`",
            code(DEFAULT_ENTRIES),
        ),
        row("store.redis.local.budget", "as `store.memory.budget`", size(DEFAULT_BUDGET)),
        row(
            "store.redis.local.ttl",
            "1 s to 30 d: how long that table replays what is in Redis",
            length(DEFAULT_LOCAL_TTL),
        ),
        row(
            "secret_env",
            "variable with a secret of 16 bytes or more: digests become HMAC-SHA-256",
            "SHA-256".to_owned(),
        ),
        row(
            "status_header",
            "`true`: responses of protected requests carry `Idempotency-Status`",
            code(false),
        ),
        row("rules", "list, the first match wins", "required".to_owned()),
        row("rules[].name", "`[a-z0-9_-]{1,64}`, unique: a metric label", "required".to_owned()),
        row(
            "rules[].match.methods",
            "list; GET, HEAD, OPTIONS, TRACE, CONNECT are refused",
            code(format!("[{methods}]")),
        ),
        row(
            "rules[].match.hosts",
            "list; `*.` in front stands for any name below; no port, any case",
            "any".to_owned(),
        ),
        row(
            "rules[].match.path",
            "template: `{name}` one segment, `{*rest}` the tail; without the query",
            "any".to_owned(),
        ),
        row(
            "rules[].key",
            "list of `{\"key_header\": NAME}`, `{\"header\": NAME}`, `{\"query\": NAME}`, \
             `{\"cookie\": NAME}`, `{\"path\": CAPTURE}`, `{\"json\": POINTER}`, `{\"form\": FIELD}`, \
             `\"body\"`",
            "required".to_owned(),
        ),
        row(
            "rules[].caller",
            "`\"anyone\"`, `{\"header\": NAME}`, `{\"cookie\": NAME}`, `{\"metadata\": [PATH]}`, \
             `\"peer\"` (URI SAN of the client's certificate)",
            "required".to_owned(),
        ),
        row(
            "rules[].scope",
            "which of `\"method\"`, `\"host\"`, `\"path\"` are part of the key",
            "all three".to_owned(),
        ),
        row(
            "rules[].missing_key",
            "`\"pass\"` or `\"reject\"`, when a part or the caller is absent",
            "`\"pass\"` for a `key_header`, else `\"reject\"`".to_owned(),
        ),
        row(
            "rules[].fingerprint",
            "`\"body\"`, `\"none\"`, `{\"fields\": [POINTERS]}`, `{\"except\": [POINTERS]}`",
            code("\"body\""),
        ),
        row(
            "rules[].ongoing",
            "`\"reject\"`, `{\"wait\": …}`, `{\"redirect\": …}`, `{\"requeue\": …}`",
            code("\"reject\""),
        ),
        row("rules[].ongoing.wait.max", "1 s to 4 min", "required".to_owned()),
        row(
            "rules[].ongoing.redirect.to",
            "template of the path's captures",
            "the request's own URL".to_owned(),
        ),
        row(
            "rules[].ongoing.redirect.after",
            "1 s to 1 h: what `Retry-After` says",
            length(DEFAULT_REDIRECT_AFTER),
        ),
        row("rules[].ongoing.requeue.delay", "10 ms to 1 min", "required".to_owned()),
        row(
            "rules[].ongoing.requeue.attempts",
            "1 to 100, all together within 4 min",
            "required".to_owned(),
        ),
        row("rules[].ttl", "1 s to 30 d: how long an answer is kept", length(DEFAULT_TTL)),
        row(
            "rules[].lease",
            "1 s to 10 min: how long a claim lives without a heartbeat",
            length(DEFAULT_LEASE),
        ),
        row(
            "rules[].unknown_ttl",
            "0 s to `ttl`; `\"0s\"`: the next attempt takes over at once",
            format!("{}, at most `ttl`", length(DEFAULT_UNKNOWN_TTL)),
        ),
        row(
            "rules[].outcomes",
            "list of `{\"status\": [200, \"4xx\", \"500-599\"], \"do\": \"store\" or \"status\" or \
             \"release\" or \"unknown\", \"ttl\": …}`, the first match wins",
            code("[]"),
        ),
        row(
            "rules[].replay_headers",
            "`{\"deny\": [NAMES]}` adds to the built-in list, `{\"allow\": [NAMES]}` replaces it",
            "the built-in list".to_owned(),
        ),
        row(
            "rules[].limits.request_body",
            "up to 8 MiB; over it 413, where the rule needs the body",
            size(DEFAULT_LIMIT),
        ),
        row(
            "rules[].limits.response_body",
            "up to 8 MiB; over it a tombstone",
            size(DEFAULT_LIMIT),
        ),
        row(
            "rules[].on_store_error",
            "`\"refuse\"` (503), `\"local\"` (with Redis: this Envoy's memory alone), `\"pass\"` \
             (unprotected)",
            code("\"refuse\""),
        ),
        row(
            "rules[].execution",
            "`\"attached\"`, or `{\"detached\": …}`: it outlives its client",
            code("\"attached\""),
        ),
        row(
            "rules[].execution.detached.timeout",
            "1 s to 1 h: when to give up waiting for the answer",
            "required".to_owned(),
        ),
        row(
            "rules[].execution.detached.via",
            "a cluster that leads back into a listener, where the route's policy applies",
            "the route's own cluster".to_owned(),
        ),
        row(
            "rules[].shadow",
            "`true`: decide, count and record, but neither answer nor hold",
            code(false),
        ),
    ]
}
