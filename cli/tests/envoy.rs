//! The operator's tool beside a real Envoy: it shows the same keys, in the same words.

#![allow(
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a test: clippy sees only what stands in a #[test] function as one"
)]

use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};
use testkit::{Bootstrap, Envoy, Origin, Redis, Request, Scratch};

fn tool(redis: Option<&Redis>, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_idempotency"));
    command.args(arguments);
    if let Some(redis) = redis {
        command.args(["--redis", &format!("rediss://127.0.0.1:{}", redis.port())]);
        command.arg("--ca").arg(redis.ca_path());
        command.env("REDIS_PASSWORD", redis.password().unwrap());
    }
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn write(path: &Path, contents: impl AsRef<[u8]>) -> &str {
    std::fs::write(path, contents).unwrap();
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_finds_shows_and_forgets_a_record_of_an_envoy() {
    let redis = Redis::tls("open sesame").await;
    let origin = Origin::start().await;
    let bootstrap = Bootstrap::redis_tls(&redis);
    let rules = json!({ "rules": [ {
        "name": "pay",
        "match": { "path": "/pay" },
        "key": [ { "key_header": "idempotency-key" } ],
        "caller": { "header": "authorization" }
    } ] });
    let mut bootstrap = bootstrap.rules(&rules).origin(origin.address.port());
    let scratch = Scratch::new();
    let (file, request) = (scratch.file("envoy.json"), scratch.file("request.http"));
    let file = write(&file, bootstrap.value().to_string());
    let envoy = Envoy::start(bootstrap).await;
    let post = Request::new(envoy.front, "POST", "/pay").key("a").caller("alice").json("{}");
    assert_eq!(post.send().await.status, 200);

    let raw = "POST /pay HTTP/1.1\r\nhost: api.example.com:10000\r\nidempotency-key: \"a\"\r\n\
               authorization: alice\r\ncontent-type: application/json\r\n\r\n{}";
    let request = write(&request, raw);
    let explained = tool(
        None,
        &["explain", file, "--request", request, "--json", "--env", "REDIS_PASSWORD=any"],
    );
    let explained: Value = serde_json::from_slice(&explained.stdout).unwrap();
    let name = explained["redis_key"].as_str().unwrap();
    assert_eq!(redis.keys("idem:*").await, [name]);

    let key = explained["key"].as_str().unwrap();
    let shown = tool(Some(&redis), &["show", &key[..12], "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&shown["name"], &shown["state"]), (&json!(name), &json!("finished")));
    assert_eq!((&shown["status"], &shown["attempt"]), (&json!(200), &json!(1)));

    let forgotten = tool(Some(&redis), &["forget", key, "--yes"]);
    assert_eq!(forgotten.status.code(), Some(0), "{}", text(&forgotten.stderr));
    assert!(text(&forgotten.stdout).contains("WARNING"));
    assert_eq!(redis.keys("idem:*").await, Vec::<String>::new());
    assert_eq!(tool(Some(&redis), &["show", key]).status.code(), Some(1));
}
