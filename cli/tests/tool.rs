//! The operator's tool as it is built: its output and its exit codes.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test: clippy sees only what stands in a #[test] function as one"
)]

use envoy_idempotency::config::Config;
use envoy_idempotency::key::{Fingerprint, Key};
use envoy_idempotency::record::{Answer, Kept, Token};
use envoy_idempotency::store::{Command as Transition, Reply};
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;
use testkit::config_cases::{self, with};
use testkit::project_path;
use testkit::redis_store::{Server, Store};

/// The result of a run.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

/// Runs it with these arguments and this standard input, and no environment but `more`.
fn run_with(arguments: &[&str], input: &str, more: &[(&str, &str)]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_idempotency"));
    command.args(arguments).env_clear().envs(more.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A run may end without reading its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

fn run(arguments: &[&str], input: &str) -> Ran {
    run_with(arguments, input, &[])
}

/// A file that ends with this value.
struct File(std::path::PathBuf);

impl File {
    fn new(name: &str, contents: &str) -> Self {
        let path = std::env::temp_dir().join(format!("idempotency-{}-{name}", std::process::id()));
        std::fs::write(&path, contents).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

const SECRETS: [(&str, &str); 2] = [("SHORT", "secret"), ("PASSWORD", "a password")];

/// A bootstrap with this filter configuration.
fn bootstrap(configuration: Value, vm_config: Value) -> String {
    let plugin = json!({
        "root_id": "idempotency", "configuration": configuration, "vm_config": vm_config,
        "allow_on_headers_stop_iteration": true
    });
    json!({ "static_resources": { "listeners": [ { "typed_config": { "config": plugin } } ] } })
        .to_string()
}

fn string(config: &str) -> Value {
    json!({ "@type": "type.googleapis.com/google.protobuf.StringValue", "value": config })
}

#[test]
fn check_refuses_like_the_module_in_the_same_words() {
    for (number, case) in config_cases::all().into_iter().enumerate() {
        let file = File::new(&format!("bad-{number}.json"), &case.config);
        let ran = run_with(&["check", file.path()], "", &SECRETS);
        let loaded = Config::load(case.config.as_bytes(), &config_cases::environment);
        let words = loaded.unwrap_err();
        assert_eq!(ran.err, format!("{}: {words}\n", file.path()), "{}", case.config);
        assert!(case.is_refused_by(&words.to_string()));
        assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    }
}

#[test]
fn check_finds_a_configuration_in_a_bootstrap_as_a_string_or_a_struct() {
    for (number, case) in config_cases::of_each_kind().into_iter().enumerate() {
        let given = json!({ "key_values": { "SHORT": "secret" } });
        let given = json!({ "environment_variables": given });
        let words = Config::load(case.config.as_bytes(), &config_cases::environment).unwrap_err();
        // JSON is YAML.
        let text = bootstrap(string(&case.config), given.clone());
        let file = File::new(&format!("string-{number}.yaml"), &text);
        let ran = run(&["check", file.path()], "");
        assert_eq!((ran.code, ran.err), (1, format!("{}: {words}\n", file.path())));
        let Ok(config) = serde_json::from_str::<Value>(&case.config) else { continue };
        if config == json!({}) {
            // On the wire, an empty Struct has no bytes.
            continue;
        }
        let structure =
            json!({ "@type": "type.googleapis.com/google.protobuf.Struct", "value": config });
        let ran = run(&["check", "-"], &bootstrap(structure, given));
        // In a Struct, fields have no order: which of two faults is found first may differ.
        assert_eq!(ran.code, 1);
        assert!(case.is_refused_by(ran.err.trim_end().strip_prefix("standard input: ").unwrap()));
    }
}

#[test]
fn check_prints_the_requests_that_each_rule_protects() {
    let file = project_path("envoy/redis.yaml");
    let file = file.to_str().unwrap();
    let ran = run(&["check", file], "");
    assert_eq!(
        (ran.code, ran.err.as_str(), ran.out),
        (
            0,
            "",
            format!(
                "{file}: 2 rules; store: Redis, by the cluster redis\n  payments: POST, PATCH \
                 /v1/payments\n  order-transition: POST, PATCH /orders/{{order}}/transitions\n"
            )
        )
    );
}

#[test]
fn check_reads_yaml_and_the_manifests_of_control_planes() {
    let config = "rules: [ { name: r, key: [ body ], caller: anyone } ]";
    let bad = "rules: [ { name: r, key: [ body ], caller: anyone, lease: \"5\" } ]";
    let wasm_plugin = |config| {
        format!(
            "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nspec:\n  pluginName: \
             idempotency\n  pluginConfig: {{ {config} }}\n"
        )
    };
    let policy = |config| {
        format!(
            "---\napiVersion: gateway.envoyproxy.io/v1alpha1\nkind: EnvoyExtensionPolicy\nspec:\n  \
             wasm:\n  - rootID: idempotency\n    config: {{ {config} }}\n---\n"
        )
    };
    for (text, code) in [
        (config.to_owned(), 0),
        (bad.to_owned(), 1),
        (wasm_plugin(config), 0),
        (wasm_plugin(bad), 1),
        (policy(config), 0),
        (policy(bad), 1),
    ] {
        let ran = run(&["check", "-"], &text);
        assert_eq!(ran.code, code, "{text}\n{}", ran.err);
        if code == 1 {
            let words = "standard input: rules[0].lease: \"5\" has no unit, write \"5s\"\n";
            assert_eq!(ran.err, words);
        }
    }
    let two = format!("{}\n---\n{}", wasm_plugin(bad), policy(bad));
    let ran = run(&["check", "-"], &two);
    assert!(ran.err.contains("plugin 1: rules[0]") && ran.err.contains("plugin 2: rules[0]"));
    for text in ["static_resources: {}", "apiVersion: v1\nkind: Service\n"] {
        let ran = run(&["check", "-"], text);
        assert_eq!(ran.code, 1);
        assert!(ran.err.contains("holds no plugin with root_id: idempotency"), "{}", ran.err);
    }
}

#[test]
fn every_file_that_the_project_shows_passes_or_holds_no_configuration() {
    /// A file that is neither Envoy's nor a control plane's.
    const OTHERS: [&str; 2] = ["dashboards/alerts.yaml", "docker/compose.yaml"];
    let mut folders = vec![project_path("envoy")];
    let mut passed = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if OTHERS.iter().any(|other| path.ends_with(other)) {
                continue;
            } else if path.extension().is_some_and(|extension| extension == "yaml") {
                let ran = run(&["check", path.to_str().unwrap(), "--assume-env"], "");
                let none = ran.err.contains("holds no plugin");
                assert!(ran.code == 0 && ran.err.is_empty() || none, "{}", ran.err);
                passed += usize::from(ran.code == 0);
            }
        }
    }
    assert!(passed > 10, "{passed}");
}

#[test]
fn a_variable_is_looked_for_where_the_module_would_find_it() {
    let config = with(json!({}), json!({ "secret_env": "SECRET" }));
    let good = "SECRET=0123456789abcdef";
    assert_eq!(run(&["check", "-"], &config).code, 1);
    assert_eq!(run(&["check", "-", "--env", good], &config).code, 0);
    assert_eq!(run(&["check", "-", "--assume-env"], &config).code, 0);
    assert_eq!(run_with(&["check", "-"], &config, &[("SECRET", "0123456789abcdef")]).code, 0);
    // A VM has only the variables that it is given, whatever is set outside.
    let nothing = bootstrap(string(&config), json!({}));
    for arguments in [&["check", "-", "--env", good][..], &["check", "-", "--assume-env"]] {
        assert_eq!(run(arguments, &nothing).code, 1);
    }
    let host = json!({ "environment_variables": { "host_env_keys": ["SECRET"] } });
    let handed = bootstrap(string(&config), host);
    assert_eq!(run(&["check", "-"], &handed).code, 1);
    assert_eq!(run(&["check", "-", "--assume-env"], &handed).code, 0);
    // And no value is ever shown.
    let short = run(&["check", "-", "--env", "SECRET=hush"], &config);
    assert!(short.code == 1 && !short.err.contains("hush"));
}

#[test]
fn a_plugin_that_cannot_hold_headers_is_warned_of() {
    let config = with(json!({}), json!({}));
    let text = bootstrap(string(&config), json!({})).replace("true", "false");
    let ran = run(&["check", "-"], &text);
    assert_eq!(ran.code, 0);
    assert!(ran.err.contains("warning: the rule r needs the request's body"), "{}", ran.err);
}

const REQUEST: &str = "POST /orders/7/transitions HTTP/1.1\nHost: Example.com:8080\n\
    Authorization: Bearer hush\nContent-Type: application/json\n\n{\"to\": \"B\", \"from\": \"A\"}";

fn transitions(more: Value) -> String {
    let mut rule = json!({
        "match": { "path": "/orders/{order}/transitions" },
        "key": [ { "path": "order" }, { "json": "/from" }, { "json": "/to" } ],
        "caller": { "header": "authorization" }, "fingerprint": "none"
    });
    rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    with(rule, json!({ "store": { "redis": { "cluster": "r", "prefix": "p:" } } }))
}

fn explained(config: &str, request: &str, more: &[&str]) -> Value {
    // Tests run in parallel.
    let name = format!("{:?}.json", std::thread::current().id());
    let file = File::new(&name, config);
    let ran = run(&[&["explain", file.path(), "--json"][..], more].concat(), request);
    assert_eq!(ran.code, 0, "{}", ran.err);
    serde_json::from_str(&ran.out).unwrap()
}

#[test]
fn explain_shows_the_parts_of_a_key_and_what_would_happen() {
    let said = explained(&transitions(json!({})), REQUEST, &[]);
    assert_eq!(
        (&said["rule"], &said["caller"]["from"]),
        (&json!("r"), &json!("header authorization"))
    );
    let key = said["key"].as_str().unwrap();
    assert_eq!((key.len(), said["redis_key"].as_str().unwrap()), (64, format!("p:{key}").as_str()));
    let parts: Vec<_> =
        said["parts"].as_array().unwrap().iter().map(|part| &part["part"]).collect();
    assert_eq!(parts, ["path order", "json /from", "json /to"]);
    let words =
        |said: &Value, meets: &str| said["would"][meets]["then"].as_str().unwrap().to_owned();
    assert_eq!(words(&said, "new"), "runs, with Idempotency-Attempt: 1");
    assert!(words(&said, "ongoing").starts_with("is answered 409 in-progress, retry-after: 1"));
    assert!(words(&said, "finished").contains("the first answer"));
    assert!(words(&said, "unknown").starts_with("is answered 409 outcome-unknown"));
    assert!(words(&said, "store_away").starts_with("is answered 503 store-unavailable"));
    // Nothing is compared, so nothing can differ.
    assert!(said["would"].get("differs").is_none());
    // The same operation, written another way.
    let again =
        REQUEST.replace("{\"to\": \"B\", \"from\": \"A\"}", "{\"from\":\"A\",\"to\":\"B\"}");
    assert_eq!(explained(&transitions(json!({})), &again, &[])["key"], said["key"]);
    let other = REQUEST.replace("\"A\"", "\"C\"");
    assert_ne!(explained(&transitions(json!({})), &other, &[])["key"], said["key"]);
}

#[test]
fn explain_follows_the_rule_for_duplicates() {
    let ongoing = |more: Value| {
        let said = explained(&transitions(more), REQUEST, &[]);
        said["would"]["ongoing"]["then"].as_str().unwrap().to_owned()
    };
    let wait = ongoing(json!({ "ongoing": { "wait": { "max": "10s" } } }));
    assert!(wait.starts_with("waits for the first to finish, at most 10 s"), "{wait}");
    let requeue = json!({ "ongoing": { "requeue": { "delay": "500ms", "attempts": 3 } } });
    assert!(ongoing(requeue).starts_with("polls 3 times, every 0.5 s"));
    let redirect = ongoing(json!({ "ongoing": { "redirect": { "to": "/orders/{order}" } } }));
    assert!(redirect.contains("307") && redirect.contains("location: /orders/7"), "{redirect}");
    let detached = json!({ "execution": { "detached": { "timeout": "5s" } } });
    let said = explained(&transitions(detached), REQUEST, &[]);
    assert_eq!(
        said["would"]["new"]["then"],
        "runs, detached from its client, with Idempotency-Attempt: 1"
    );
    let said = explained(&transitions(json!({ "shadow": true })), REQUEST, &[]);
    for (meets, outcome) in [("new", "executed"), ("ongoing", "rejected"), ("finished", "replayed")]
    {
        assert_eq!(said["would"][meets]["shadow"], true, "{said}");
        assert_eq!(said["would"][meets]["outcome"], outcome);
        let then = said["would"][meets]["then"].as_str().unwrap();
        assert!(then.starts_with("goes on untouched"), "{then}");
    }
    let said = explained(&transitions(json!({ "on_store_error": "pass" })), REQUEST, &[]);
    assert_eq!(said["would"]["store_away"]["then"], "goes on, unprotected");
    let said = explained(&transitions(json!({ "on_store_error": "local" })), REQUEST, &[]);
    assert_eq!(said["would"]["store_away"]["then"], "is decided by this Envoy's memory alone");
}

#[test]
fn explain_shows_values_only_with_reveal() {
    let file = File::new("reveal.json", &transitions(json!({})));
    for more in [&[][..], &["--json"]] {
        let ran = run(&[&["explain", file.path()][..], more].concat(), REQUEST);
        assert!(!ran.out.contains("hush") && !ran.out.contains("\"A\""), "{}", ran.out);
    }
    let ran = run(&["explain", file.path(), "--reveal"], REQUEST);
    assert!(ran.out.contains("\"A\"") && !ran.out.contains("hush"), "{}", ran.out);
    let alice = explained(&transitions(json!({})), REQUEST, &[]);
    let bob = explained(&transitions(json!({})), &REQUEST.replace("hush", "bob"), &[]);
    assert_ne!(alice["caller"]["digest"], bob["caller"]["digest"]);
}

#[test]
fn explain_says_why_a_request_gets_no_key() {
    let always = |request: &str, more: &[&str]| {
        let said = explained(&transitions(json!({})), request, more);
        assert!(said.get("key").is_none());
        said["would"]["always"]["then"].as_str().unwrap().to_owned()
    };
    let get = REQUEST.replace("POST", "GET");
    assert_eq!(always(&get, &[]), "goes on untouched: no rule matches");
    assert_eq!(always(REQUEST, &["--route", "off"]), "goes on untouched: no rule matches");
    assert!(always(REQUEST, &["--route", "x"]).starts_with("is answered 500 misconfigured"));
    let no_caller = REQUEST.replace("Authorization", "X-Authorization");
    assert!(always(&no_caller, &[]).starts_with("is answered 400 caller-missing"));
    let no_part = REQUEST.replace("from", "form");
    assert!(always(&no_part, &[]).starts_with("is answered 400 key-missing"));
    let grpc = REQUEST.replace("application/json", "application/grpc");
    assert!(always(&grpc, &[]).starts_with("goes on untouched (r: bypassed: "));
    let peer = transitions(json!({ "caller": "peer" }));
    let said = explained(&peer, REQUEST, &["--peer", "spiffe://a/b"]);
    assert!(said.get("key").is_some(), "{said}");
    let metadata = transitions(json!({ "caller": { "metadata": ["jwt", "sub"] } }));
    let said = explained(&metadata, REQUEST, &["--metadata", "jwt/sub=alice"]);
    assert!(said.get("key").is_some(), "{said}");
}

#[test]
fn a_malformed_request_is_refused() {
    let file = File::new("request.json", &transitions(json!({})));
    for (request, why) in [
        ("", "do not end with an empty line"),
        ("hello\n\n", "not HTTP/1.1"),
        ("POST / HTTP/1.1\ncontent-length: 5\n\nabc", "3 bytes follow"),
        ("POST / HTTP/1.1\ntransfer-encoding: chunked\n\n", "give the plain body"),
    ] {
        let ran = run(&["explain", file.path()], request);
        assert!(ran.code == 1 && ran.err.contains(why), "{request:?}: {}", ran.err);
    }
}

const KEY: Key = Key([0xab; 32]);
const TOKEN: Token = Token([1; 16]);

fn claim(store: &Store) {
    let claim = Transition::Claim {
        key: KEY,
        token: TOKEN,
        fingerprint: Fingerprint([7; 32]),
        first_seen: envoy_idempotency::time::WallTime::default(),
        lease: Duration::from_secs(60),
        unknown_for: Duration::from_secs(60),
        watch: false,
    };
    assert_eq!(store.pipelined(vec![claim]), [Ok(Reply::Claimed { attempt: 1 })]);
}

fn complete(store: &Store) {
    let headers = vec![(b"x-hush".to_vec(), b"value".to_vec())];
    let kept = Kept::Answer(Answer { headers, body: b"a body".to_vec() });
    let ttl = Duration::from_secs(3600);
    let complete = Transition::Complete { key: KEY, token: TOKEN, status: 201, kept, ttl };
    assert_eq!(store.pipelined(vec![complete]), [Ok(Reply::Done)]);
}

#[test]
fn show_prints_a_records_state_and_forget_deletes_it() {
    let server = Server::start();
    let store = Store::new(&server, "idem:");
    let url = format!("redis://127.0.0.1:{}", server.port);
    let digits = "ab".repeat(32);
    let name = format!("idem:{digits}");
    let tool = |command: &str, key: &str, more: &[&str]| {
        run(&[&[command, key, "--redis", url.as_str()][..], more].concat(), "")
    };
    let shown = |key: &str| -> Value {
        let ran = tool("show", key, &["--json"]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        serde_json::from_str(&ran.out).unwrap()
    };
    let none = tool("show", &digits, &[]);
    assert_eq!((none.code, none.err), (1, format!("no record: {name}\n")));

    claim(&store);
    for key in [digits.as_str(), name.as_str(), &digits[..12], &name[..20], &digits.to_uppercase()]
    {
        let said = shown(key);
        assert_eq!((&said["name"], &said["state"]), (&json!(name), &json!("ongoing")));
        assert!((50..=60).contains(&said["seconds_left"].as_u64().unwrap()), "{said}");
    }
    let running = tool("forget", &digits, &["--yes"]);
    assert_eq!(running.code, 1);
    assert!(running.out.contains("WARNING: an execution is running"), "{}", running.out);
    assert!(running.err.contains("--force"), "{}", running.err);
    assert_eq!(shown(&digits)["state"], "ongoing");

    complete(&store);
    let said = shown(&digits);
    assert_eq!((&said["state"], &said["status"]), (&json!("finished"), &json!(201)));
    assert_eq!((&said["body_bytes"], &said["headers"]), (&json!(6), &json!(["x-hush"])));
    let text = tool("show", &digits, &[]).out;
    assert!(!text.contains("a body") && !text.contains("value"), "{text}");
    let text = tool("show", &digits, &["--reveal"]).out;
    assert!(text.contains("a body") && text.contains("x-hush: value"), "{text}");

    let asked = tool("forget", &digits, &[]);
    assert_eq!(
        (asked.code, asked.err.as_str()),
        (1, "standard input is not a terminal: use --yes\n")
    );
    let forgotten = tool("forget", &digits, &["--yes"]);
    assert_eq!(forgotten.code, 0, "{}", forgotten.err);
    assert!(
        forgotten.out.contains("WARNING: it has been executed")
            && forgotten.out.ends_with("forgotten\n")
    );
    assert_eq!(store.integer(&[b"EXISTS", name.as_bytes()]), 0);

    claim(&store);
    assert_eq!(tool("forget", &digits, &["--yes", "--force"]).code, 0);
    claim(&store);
    let unknown_for = Duration::from_secs(60);
    store.pipelined(vec![Transition::MarkUnknown { key: KEY, token: TOKEN, unknown_for }]);
    assert_eq!(shown(&digits)["state"], "unknown");
    let doubtful = tool("forget", &digits, &["--yes"]);
    assert!(doubtful.code == 0 && doubtful.out.contains("it may have been executed"));
}

#[test]
fn an_unreadable_record_is_not_shown_and_only_forgotten_by_force() {
    let server = Server::start();
    let store = Store::new(&server, "idem:");
    let url = format!("redis://127.0.0.1:{}", server.port);
    let digits = "ab".repeat(32);
    let name = format!("idem:{digits}");
    store.raw(&[b"SET", name.as_bytes(), b"garbage"]);
    let ran = run(&["show", &digits, "--redis", &url], "");
    assert_eq!((ran.code, ran.err), (1, format!("{name}: the record is shorter than its head\n")));
    assert_eq!(run(&["forget", &digits, "--redis", &url, "--yes"], "").code, 1);
    assert_eq!(run(&["forget", &digits, "--redis", &url, "--yes", "--force"], "").code, 0);
    store.raw(&[b"LPUSH", name.as_bytes(), b"a list"]);
    let ran = run(&["show", &digits, "--redis", &url], "");
    assert!(ran.code == 2 && ran.err.contains("WRONGTYPE"), "{}", ran.err);
    // More digits distinguish two that begin alike.
    for last in ["00", "01"] {
        store.raw(&[b"SET", format!("idem:{}{last}", "cd".repeat(31)).as_bytes(), b"x"]);
    }
    let ran = run(&["show", "cdcdcdcdcdcd", "--redis", &url], "");
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (1, "2 keys begin with cdcdcdcdcdcd: give more digits\n")
    );
    let ran = run(&["show", "cdcd", "--redis", &url], "");
    assert!(ran.code == 2 && ran.err.contains("is not a key"), "{}", ran.err);
}

#[test]
fn the_rights_of_the_filters_own_user_are_enough_and_its_password_shows_nowhere() {
    let server = Server::start();
    let store = Store::new(&server, "idem:");
    claim(&store);
    complete(&store);
    // The README's.
    store.raw(&[
        b"ACL",
        b"SETUSER",
        b"filter",
        b"on",
        b">hush",
        b"resetkeys",
        b"~idem:*",
        b"resetchannels",
        b"&idem:*",
        b"-@all",
        b"+evalsha",
        b"+eval",
        b"+get",
        b"+set",
        b"+getrange",
        b"+setrange",
        b"+pexpire",
        b"+del",
        b"+time",
        b"+publish",
        b"+subscribe",
        b"+unsubscribe",
    ]);
    let digits = "ab".repeat(32);
    let url = format!("redis://filter@127.0.0.1:{}", server.port);
    let password = [("REDIS_PASSWORD", "hush")];
    let ran = run_with(&["show", &digits, "--redis", &url], "", &password);
    assert_eq!(ran.code, 0, "{}", ran.err);
    // Only a scan of all names needs one more.
    let ran = run_with(&["show", &digits[..12], "--redis", &url], "", &password);
    assert!(ran.code == 2 && ran.err.contains("no permissions"), "{}", ran.err);
    let ran = run_with(&["forget", &digits, "--redis", &url, "--yes"], "", &password);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let wrong = url.replace("filter@", "filter:mistaken@");
    let ran = run(&["show", &digits, "--redis", &wrong], "");
    assert_eq!(ran.code, 2);
    assert!(!ran.err.contains("mistaken"), "{}", ran.err);
}

#[test]
fn a_redis_that_cannot_be_reached_is_exit_code_2() {
    let digits = "ab".repeat(32);
    for url in ["redis://127.0.0.1:1", "http://127.0.0.1:1", "redis://a:mistaken@127.0.0.1:1"] {
        let ran = run(&["show", &digits, "--redis", url], "");
        assert_eq!(ran.code, 2, "{url}: {}", ran.err);
        assert!(!ran.err.contains("mistaken"), "{}", ran.err);
    }
    assert_eq!(run(&["check", "no such file"], "").code, 2);
}

#[test]
fn the_schema_it_prints_is_the_committed_one() {
    assert_eq!(run(&["schema"], "").out, include_str!("../../config.schema.json"));
}
