//! Configurations that are refused, each with the words that it is refused with: by the parser, by the tool
//! and, some of them, by a real Envoy.

use proptest::prelude::*;
use serde_json::{Value, json};

/// A configuration that is refused.
pub struct Case {
    pub config: String,
    pub wanted: Wanted,
}

/// What the refusal says.
pub enum Wanted {
    /// This, word for word.
    Words(String),
    /// Something that begins with the place and holds the culprit: the words are the JSON library's.
    Place(String, String),
}

impl Case {
    fn words(config: impl ToString, words: &str) -> Self {
        Self { config: config.to_string(), wanted: Wanted::Words(words.to_owned()) }
    }

    fn place(config: impl ToString, place: &str, culprit: &str) -> Self {
        let wanted = Wanted::Place(place.to_owned(), culprit.to_owned());
        Self { config: config.to_string(), wanted }
    }

    /// Whether this is the refusal.
    pub fn is_refused_by(&self, said: &str) -> bool {
        match &self.wanted {
            Wanted::Words(words) => said == words,
            Wanted::Place(place, culprit) => said.starts_with(place) && said.contains(culprit),
        }
    }
}

/// The variables that some of the cases name.
pub fn environment(name: &str) -> Option<String> {
    match name {
        "SHORT" => Some("secret".to_owned()),
        "PASSWORD" => Some("a password".to_owned()),
        _ => None,
    }
}

/// A rule that is right but for these fields, in a configuration with these others.
pub fn with(rule: Value, config: Value) -> String {
    let mut whole = json!({
        "name": "r", "key": [ { "key_header": "k" } ], "caller": "anyone"
    });
    whole.as_object_mut().unwrap().extend(rule.as_object().unwrap().clone());
    let mut all = json!({ "rules": [whole] });
    all.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    all.to_string()
}

/// All of them.
pub fn all() -> Vec<Case> {
    let mut all = of_each_kind();
    all.extend(rules().into_iter().map(|(rule, words)| Case::words(with(rule, json!({})), words)));
    all.extend(
        shapes()
            .into_iter()
            .map(|(rule, place, culprit)| Case::place(with(rule, json!({})), place, culprit)),
    );
    all.extend(others().into_iter().map(|(more, words)| Case::words(with(json!({}), more), words)));
    all.extend(no_json().into_iter().map(|text| Case::place(text, "configuration: ", "")));
    all
}

/// One of each kind: few enough to start an Envoy for each.
pub fn of_each_kind() -> Vec<Case> {
    let rule = |rule| with(rule, json!({}));
    let twice = json!({ "name": "r", "key": ["body"], "caller": "anyone" });
    vec![
        Case::place("not json", "configuration: not JSON: ", "line 1 column 2"),
        Case::words("{}", "configuration: missing field `rules`, wanted a list of rules"),
        Case::words(json!({ "rules": [] }), "rules: empty, wanted at least one rule"),
        Case::words(
            rule(json!({ "lease": "5" })),
            "rules[0].lease: \"5\" has no unit, write \"5s\"",
        ),
        Case::place(rule(json!({ "leese": "5s" })), "rules[0]", "leese"),
        Case::words(rule(json!({ "ttl": "31d" })), "rules[0].ttl: 31d, wanted 1s to 30d"),
        Case::words(
            rule(json!({ "match": { "methods": ["GET"] } })),
            "rules[0].match.methods[0]: \"GET\" is safe, or cannot be repeated",
        ),
        Case::place(rule(json!({ "match": { "path": "pay" } })), "rules[0].match.path", "pay"),
        Case::words(
            rule(json!({ "key": [ { "path": "order" } ] })),
            "rules[0].key[0].path: \"order\" is not a capture of match.path, which has none",
        ),
        Case::place(rule(json!({ "key": [ { "json": "from" } ] })), "rules[0].key[0].json", "from"),
        Case::words(
            rule(json!({ "limits": { "request_body": "9MiB" } })),
            "rules[0].limits.request_body: 9MiB, wanted 0B to 8MiB",
        ),
        Case::place(
            json!({ "rules": [ { "name": "r", "key": ["body"] } ] }),
            "rules[0]: missing field `caller`, wanted who may share an answer",
            "\"anyone\" if all may",
        ),
        Case::words(
            rule(json!({ "execution": { "detached": { "timeout": "2h" } } })),
            "rules[0].execution.detached.timeout: 2h, wanted 1s to 1h",
        ),
        Case::words(
            with(json!({}), json!({ "secret_env": "NO_SUCH_VARIABLE" })),
            "secret_env: the environment variable \"NO_SUCH_VARIABLE\" is not set or empty; hand it to the \
             module by vm_config.environment_variables",
        ),
        Case::words(
            with(json!({}), json!({ "store": { "redis": { "cluster": "r", "timeout": "6s" } } })),
            "store.redis.timeout: 6s, wanted 10ms to 5s",
        ),
        Case::words(
            json!({ "rules": [twice, twice] }),
            "rules[1].name: \"r\" is the name of rules[0], too",
        ),
    ]
}

fn no_json() -> Vec<&'static str> {
    vec!["", "rules", "{\"rules\": [}", "{} {}", "\n", "\u{0}"]
}

/// What is wrong with a rule.
fn rules() -> Vec<(Value, &'static str)> {
    vec![
        (json!({ "name": "" }), "rules[0].name: \"\", wanted 1 to 64 of a-z, 0-9, _ and -"),
        (json!({ "name": "A" }), "rules[0].name: \"A\", wanted 1 to 64 of a-z, 0-9, _ and -"),
        (
            json!({ "name": "off" }),
            "rules[0].name: \"off\" is what a route says to switch the filter off",
        ),
        (json!({ "key": [] }), "rules[0].key: empty, wanted at least one part"),
        (
            json!({ "key": [ { "header": "a b" } ] }),
            "rules[0].key[0].header: \"a b\" is not a header name",
        ),
        (
            json!({ "key": [ { "query": "" } ] }),
            "rules[0].key[0].query: empty, wanted the name of a query parameter",
        ),
        (
            json!({ "key": [ { "cookie": "" } ] }),
            "rules[0].key[0].cookie: \"\" is not a cookie name",
        ),
        (
            json!({ "key": [ { "form": "" } ] }),
            "rules[0].key[0].form: empty, wanted the name of a form field",
        ),
        (
            json!({ "key": [ { "path": "id" } ] }),
            "rules[0].key[0].path: \"id\" is not a capture of match.path, which has none",
        ),
        (
            json!({ "match": { "path": "/a/{b}" }, "key": [ { "path": "id" } ] }),
            "rules[0].key[0].path: \"id\" is not a capture of match.path, wanted one of b",
        ),
        (
            json!({ "caller": { "header": "" } }),
            "rules[0].caller.header: \"\" is not a header name",
        ),
        (
            json!({ "caller": { "cookie": "" } }),
            "rules[0].caller.cookie: \"\" is not a cookie name",
        ),
        (
            json!({ "caller": { "metadata": ["jwt"] } }),
            "rules[0].caller.metadata: wanted a filter's name and the keys below it, e.g. \
             [\"envoy.filters.http.jwt_authn\", \"payload\", \"sub\"]",
        ),
        (
            json!({ "fingerprint": { "fields": [] } }),
            "rules[0].fingerprint.fields: empty, wanted at least one JSON pointer",
        ),
        (
            json!({ "match": { "methods": [] } }),
            "rules[0].match.methods: empty, wanted at least one method",
        ),
        (
            json!({ "match": { "methods": ["GET"] } }),
            "rules[0].match.methods[0]: \"GET\" is safe, or cannot be repeated",
        ),
        (
            json!({ "match": { "methods": ["POST", "put"] } }),
            "rules[0].match.methods[1]: \"put\", wanted \"PUT\": methods are case-sensitive",
        ),
        (
            json!({ "match": { "methods": ["P T"] } }),
            "rules[0].match.methods[0]: \"P T\" is not a method",
        ),
        (
            json!({ "match": { "hosts": ["a.example:80"] } }),
            "rules[0].match.hosts[0]: \"a.example:80\", wanted a host without a port, or \"*.\" and a host",
        ),
        (
            json!({ "match": { "hosts": ["*"] } }),
            "rules[0].match.hosts[0]: \"*\", wanted a host without a port, or \"*.\" and a host",
        ),
        (json!({ "ttl": "5" }), "rules[0].ttl: \"5\" has no unit, write \"5s\""),
        (json!({ "ttl": "0" }), "rules[0].ttl: \"0\" has no unit, write \"0s\""),
        (json!({ "ttl": "500ms" }), "rules[0].ttl: 500ms, wanted 1s to 30d"),
        (json!({ "ttl": "31d" }), "rules[0].ttl: 31d, wanted 1s to 30d"),
        (json!({ "lease": "11m" }), "rules[0].lease: 11m, wanted 1s to 10m"),
        (json!({ "lease": "999ms" }), "rules[0].lease: 999ms, wanted 1s to 10m"),
        (json!({ "ttl": "1h", "unknown_ttl": "2h" }), "rules[0].unknown_ttl: 2h, wanted 0s to 1h"),
        (
            json!({ "ongoing": { "wait": { "max": "1h" } } }),
            "rules[0].ongoing.wait.max: 1h, wanted 1s to 4m",
        ),
        (
            json!({ "ongoing": { "redirect": { "after": "2h" } } }),
            "rules[0].ongoing.redirect.after: 2h, wanted 1s to 1h",
        ),
        (
            json!({ "ongoing": { "redirect": { "to": "/x/{id}" } } }),
            "rules[0].ongoing.redirect.to: \"id\" is not a capture of match.path, which has none",
        ),
        (
            json!({ "ongoing": { "requeue": { "delay": "1ms", "attempts": 1 } } }),
            "rules[0].ongoing.requeue.delay: 1ms, wanted 10ms to 1m",
        ),
        (
            json!({ "ongoing": { "requeue": { "delay": "1s", "attempts": 0 } } }),
            "rules[0].ongoing.requeue.attempts: 0, wanted 1 to 100",
        ),
        (
            json!({ "ongoing": { "requeue": { "delay": "1m", "attempts": 5 } } }),
            "rules[0].ongoing.requeue: 5 times 1m are 5m, wanted at most 4m, before Envoy ends the stream",
        ),
        (
            json!({ "outcomes": [ { "status": [], "do": "store" } ] }),
            "rules[0].outcomes[0].status: empty, wanted at least one status",
        ),
        (
            json!({ "outcomes": [ { "status": [404], "do": "release", "ttl": "1h" } ] }),
            "rules[0].outcomes[0].ttl: has no effect: nothing is kept (unknown_ttl bounds an unknown outcome)",
        ),
        (
            json!({ "replay_headers": { "deny": ["x y"] } }),
            "rules[0].replay_headers.deny[0]: \"x y\" is not a header name",
        ),
        (
            json!({ "replay_headers": { "allow": [""] } }),
            "rules[0].replay_headers.allow[0]: \"\" is not a header name",
        ),
        (
            json!({ "limits": { "request_body": "9MiB" } }),
            "rules[0].limits.request_body: 9MiB, wanted 0B to 8MiB",
        ),
        (
            json!({ "limits": { "response_body": "64" } }),
            "rules[0].limits.response_body: \"64\" has no unit, write \"64B\"",
        ),
        (
            json!({ "limits": { "response_body": "64KB" } }),
            "rules[0].limits.response_body: \"64KB\" is no size, wanted e.g. \"512B\", \"64KiB\", \"1MiB\" or \"1GiB\"",
        ),
        (
            json!({ "on_store_error": "local" }),
            "rules[0].on_store_error: \"local\" needs store.redis: without it, this Envoy's memory is the store",
        ),
        (
            json!({ "execution": { "detached": { "timeout": "5s", "via": "" } } }),
            "rules[0].execution.detached.via: empty, wanted the name of a cluster",
        ),
        (
            json!({ "execution": { "detached": { "timeout": "5s" } }, "fingerprint": "none",
                    "limits": { "request_body": "0B" } }),
            "rules[0].limits.request_body: 0B, and a detached execution sends the body itself; wanted 1B to 8MiB",
        ),
        (
            json!({ "execution": { "detached": { "timeout": "2h" } } }),
            "rules[0].execution.detached.timeout: 2h, wanted 1s to 1h",
        ),
        (
            json!({ "caller": {} }),
            concat!(
                "rules[0].caller",
                ": is no choice, wanted a word, or an object with exactly one field"
            ),
        ),
        (
            json!({ "caller": { "cookie": "b", "header": "a" } }),
            concat!(
                "rules[0].caller",
                ": is no choice, wanted a word, or an object with exactly one field"
            ),
        ),
        (
            json!({ "key": [ "body", {} ] }),
            concat!(
                "rules[0].key[1]",
                ": is no choice, wanted a word, or an object with exactly one field"
            ),
        ),
        (
            json!({ "key": [ { "header": "a", "key_header": "b" } ] }),
            concat!(
                "rules[0].key[0]",
                ": is no choice, wanted a word, or an object with exactly one field"
            ),
        ),
        (
            json!({ "fingerprint": null }),
            concat!(
                "rules[0].fingerprint",
                ": is no choice, wanted a word, or an object with exactly one field"
            ),
        ),
        (
            json!({ "ongoing": { "redirect": {}, "wait": { "max": "1s" } } }),
            concat!(
                "rules[0].ongoing",
                ": is no choice, wanted a word, or an object with exactly one field"
            ),
        ),
        (
            json!({ "key": [ { "json": "/a" }, { "form": "b" } ] }),
            "rules[0].key: both json and form parts, but a body is never both",
        ),
        (
            json!({ "key": [ { "form": "b" } ], "fingerprint": { "fields": ["/a"] } }),
            "rules[0].fingerprint.fields: points into JSON, the key has form parts, but a body is never both",
        ),
        (
            json!({ "key": [ { "form": "b" } ], "fingerprint": { "except": ["/a"] } }),
            "rules[0].fingerprint.except: points into JSON, the key has form parts, but a body is never both",
        ),
        (
            json!({ "limits": { "request_body": "0B" } }),
            "rules[0].limits.request_body: 0B, and the key or the fingerprint needs the body; \
             wanted 1B to 8MiB, or a key without it and \"fingerprint\": \"none\"",
        ),
    ]
}

/// What does not have a rule's shape: the words are the library's, place and culprit count.
fn shapes() -> Vec<(Value, &'static str, &'static str)> {
    vec![
        (json!({ "leese": "5s" }), "rules[0]", "leese"),
        (json!({ "match": { "host": [] } }), "rules[0].match", "host"),
        (json!({ "ttl": 5 }), "rules[0].ttl", "a length of time as a string"),
        (json!({ "ttl": "5 parsecs" }), "rules[0].ttl", "parsecs"),
        (
            json!({ "limits": { "request_body": 64 } }),
            "rules[0].limits.request_body",
            "a size as a string",
        ),
        (json!({ "shadow": "yes" }), "rules[0].shadow", "yes"),
        (json!({ "caller": "everyone" }), "rules[0].caller", "everyone"),
        (json!({ "fingerprint": "all" }), "rules[0].fingerprint", "all"),
        (json!({ "key": [ "headers" ] }), "rules[0].key[0]", "headers"),
        (json!({ "key": [ { "json": "from" } ] }), "rules[0].key[0].json", "from"),
        (json!({ "scope": ["query"] }), "rules[0].scope[0]", "query"),
        (json!({ "missing_key": "ignore" }), "rules[0].missing_key", "ignore"),
        (json!({ "ongoing": "wait" }), "rules[0].ongoing", ""),
        (json!({ "ongoing": { "wait": {} } }), "rules[0].ongoing.wait", "max"),
        (
            json!({ "ongoing": { "requeue": { "delay": "1s", "attempts": 1.5 } } }),
            "rules[0].ongoing.requeue.attempts",
            "1.5",
        ),
        (
            json!({ "outcomes": [ { "status": [199], "do": "store" } ] }),
            "rules[0].outcomes[0].status[0]",
            "199",
        ),
        (
            json!({ "outcomes": [ { "status": ["6xx"], "do": "store" } ] }),
            "rules[0].outcomes[0].status[0]",
            "",
        ),
        (
            json!({ "outcomes": [ { "status": ["599-500"], "do": "store" } ] }),
            "rules[0].outcomes[0].status[0]",
            "",
        ),
        (
            json!({ "outcomes": [ { "status": [200], "do": "keep" } ] }),
            "rules[0].outcomes[0].do",
            "keep",
        ),
        (json!({ "match": { "path": "orders" } }), "rules[0].match.path", "orders"),
        (json!({ "match": { "path": "/a/{b" } }), "rules[0].match.path", "{b"),
        (json!({ "match": { "path": "/{*all}/b" } }), "rules[0].match.path", "all"),
    ]
}

/// What is wrong beside the rules.
fn others() -> Vec<(Value, &'static str)> {
    vec![
        (json!({ "rules": [] }), "rules: empty, wanted at least one rule"),
        (
            json!({ "secret_env": "UNSET" }),
            "secret_env: the environment variable \"UNSET\" is not set or empty; hand it to the module by \
             vm_config.environment_variables",
        ),
        (
            json!({ "secret_env": "SHORT" }),
            "secret_env: the variable \"SHORT\" is shorter than 16 bytes",
        ),
        (
            json!({ "store": { "memory": { "entries": 63 } } }),
            "store.memory.entries: 63, wanted 64 to 1048576",
        ),
        (
            json!({ "store": { "memory": { "budget": "2GiB" } } }),
            "store.memory.budget: 2GiB, wanted 1MiB to 1GiB",
        ),
        (
            json!({ "store": { "redis": { "cluster": "" } } }),
            "store.redis.cluster: empty, wanted the name of an Envoy cluster",
        ),
        (
            json!({ "store": { "redis": { "cluster": "r", "timeout": "6s" } } }),
            "store.redis.timeout: 6s, wanted 10ms to 5s",
        ),
        (
            json!({ "store": { "redis": { "cluster": "r", "username": "u" } } }),
            "store.redis.username: a username needs a password_env",
        ),
        (
            json!({ "store": { "redis": { "cluster": "r", "local": { "entries": 1 } } } }),
            "store.redis.local.entries: 1, wanted 64 to 1048576",
        ),
        (
            json!({ "store": { "redis": { "cluster": "r", "local": { "ttl": "0s" } } } }),
            "store.redis.local.ttl: 0s, wanted 1s to 30d",
        ),
        (
            json!({ "store": { "redis": { "cluster": "r", "prefix": "{a}:" } } }),
            "store.redis.prefix: \"{a}:\" has a brace: a whole Redis Cluster would use one node",
        ),
        (
            json!({ "store": { "redis": { "cluster": "r", "prefix": "a b" } } }),
            "store.redis.prefix: \"a b\", wanted visible ASCII without spaces",
        ),
        (
            json!({ "store": { "redis": { "cluster": "r", "transport": "webdis", "password_env": "PASSWORD" } } }),
            "store.redis.password_env: has no effect: Webdis has the password, as redis_auth",
        ),
    ]
}

/// Every field there is, so that a mutation can reach each parser.
pub fn every_field() -> Value {
    json!({
        "store": { "memory": { "entries": 64, "budget": "1MiB" } },
        "secret_env": "SECRET", "status_header": true,
        "rules": [ {
            "name": "r",
            "match": { "hosts": ["*.example.com"], "methods": ["POST"], "path": "/o/{id}/{*rest}" },
            "key": [ { "key_header": "k" }, { "path": "id" }, { "json": "/a~1b" }, "body" ],
            "caller": { "metadata": ["jwt", "sub"] }, "scope": ["method"], "missing_key": "pass",
            "fingerprint": { "except": ["/a"] },
            "ongoing": { "redirect": { "to": "/o/{id}", "after": "1s" } },
            "ttl": "1h", "lease": "10s", "unknown_ttl": "15m",
            "outcomes": [ { "status": [200, "4xx", "500-599"], "do": "store", "ttl": "1h" } ],
            "replay_headers": { "allow": ["location"] },
            "limits": { "request_body": "1KiB", "response_body": "1KiB" },
            "on_store_error": "pass", "execution": "attached", "shadow": true
        } ]
    })
}

/// All places of a value, as JSON pointers, the whole included.
pub fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, inner)| places(inner, &format!("{at}/{name}"), found));
        }
        Value::Array(items) => {
            let items = items.iter().enumerate();
            items.for_each(|(index, inner)| places(inner, &format!("{at}/{index}"), found));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What parsers stumble over: ends of ranges, halves of syntax, letters of more than one byte.
pub fn junk() -> impl Strategy<Value = Value> {
    let known = [
        json!(null),
        json!(true),
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!([]),
        json!({}),
        json!([[]]),
        json!(""),
        json!("é"),
        json!("5"),
        json!("18446744073709551615s 1000ms"),
        json!("1000000000ms 1ns"),
        json!("99999999999999999999GiB"),
        json!("/{"),
        json!("/{*}"),
        json!("/~"),
        json!("é-5"),
        json!("xx"),
        json!("500-"),
        json!("*."),
        json!("\u{0}"),
        json!({ "detached": { "timeout": "1s" } }),
        json!({ "redis": { "cluster": "" } }),
    ];
    prop_oneof![
        proptest::sample::select(known.to_vec()),
        any::<String>().prop_map(Value::String),
        any::<f64>().prop_map(Value::from),
    ]
}
