//! Which requests are duplicates of each other, and which keys are refused.

use crate::pay;
use serde_json::json;
use testkit::{Bootstrap, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_quoted_key_is_the_bare_key() {
    let world = World::start(pay(json!({}))).await;
    let request = world.post("/pay").caller("alice").json("{}");
    let bare = request.clone().key("abc-1").send().await;
    let quoted = request.clone().key("\"abc-1\"").send().await;
    let with_parameter = request.clone().key("\"abc-1\"; v=1").send().await;
    assert_eq!((bare.status, bare.is_replay()), (200, false));
    assert!(quoted.is_replay());
    assert!(with_parameter.is_replay());
    // A string can have characters that bare text cannot.
    let odd = request.clone().key("\"a b\\\"c\"").send().await;
    assert_eq!((odd.status, odd.is_replay()), (200, false));
    assert!(request.key("\"a b\\\"c\"").send().await.is_replay());
    assert_eq!(world.executions(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_key_is_refused_and_never_shown() {
    let world = World::start(pay(json!({}))).await;
    let request = world.post("/pay").caller("alice").json("{}");
    let longest = "k".repeat(255);
    assert_eq!(request.clone().key(&longest).send().await.status, 200);
    assert_eq!(request.clone().key(&format!("\"{longest}\"")).send().await.status, 200);
    let executions = world.executions();
    let too_long = "k".repeat(256);
    let bad = [
        "",
        "\"\"",
        &too_long,
        &format!("\"{too_long}\""),
        "hush key",
        "hush,key",
        "hush;key",
        "hush\"key",
        "\"hush",
        "\"hush\" key",
        "\"hush\", \"key\"",
        "\"hush\\n\"",
        "hus\u{e9}h",
    ];
    for key in bad {
        let answer = request.clone().key(key).send().await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "key-invalid"), "{key:?}");
        assert!(!answer.text().contains("hush"), "{}", answer.text());
    }
    let twice = request.clone().key("one").key("one").send().await;
    assert_eq!((twice.status, twice.code().as_str()), (400, "key-invalid"));
    assert_eq!(world.executions(), executions);
    assert_eq!(world.counted("pay", "invalid").await, bad.len() as u64 + 1);
    assert!(!world.envoy.log().contains("hush"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_a_request_passes_or_is_refused_as_the_rule_says() {
    let lenient = World::start(pay(json!({}))).await;
    let request = lenient.post("/pay").caller("alice").json("{}");
    assert_eq!(request.clone().send().await.status, 200);
    assert_eq!(request.send().await.status, 200);
    assert_eq!(lenient.executions(), 2);
    assert_eq!(lenient.counted("pay", "bypassed").await, 2);

    let strict = World::start(pay(json!({ "missing_key": "reject" }))).await;
    let refused = strict.post("/pay").caller("alice").json("{}").send().await;
    assert_eq!((refused.status, refused.code().as_str()), (400, "key-missing"));
    assert_eq!(strict.executions(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_caller_a_request_is_refused() {
    let world = World::start(pay(json!({}))).await;
    let refused = world.post("/pay").key("a").json("{}").send().await;
    assert_eq!((refused.status, refused.code().as_str()), (400, "caller-missing"));
    assert_eq!(world.executions(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_never_share_a_key() {
    let world = World::start(pay(json!({}))).await;
    let request = world.post("/pay").key("a").json("{}");
    let alice = request.clone().caller("alice").send().await;
    let bob = request.clone().caller("bob").send().await;
    assert!(!bob.is_replay());
    assert_ne!(alice.body, bob.body);
    let again = request.caller("bob").send().await;
    assert!(again.is_replay());
    assert_eq!(again.body, bob.body);
    assert_eq!(world.executions(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_on_another_path_host_or_method_is_another() {
    let mut config = pay(json!({}));
    config["rules"][0]["match"] = json!({ "methods": ["POST", "PUT"] });
    let world = World::start(config).await;
    let request = world.post("/pay").key("a").caller("alice").json("{}");
    request.clone().send().await;
    let elsewhere = world.post("/refund").key("a").caller("alice").json("{}").send().await;
    let other_host = request.clone().host("other.example.com").send().await;
    let other_method = request.clone().method("PUT").send().await;
    for answer in [elsewhere, other_host, other_method] {
        assert_eq!((answer.status, answer.is_replay()), (200, false));
    }
    // The port, the case of the host, and how the path is written make no difference.
    assert!(request.clone().host("API.example.com:80").send().await.is_replay());
    let spelled = world.post("/p%61y").key("a").caller("alice").json("{}").send().await;
    assert!(spelled.is_replay());
    assert_eq!(world.executions(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_part_distinguishes_requests() {
    let rule = |name: &str, part: serde_json::Value| {
        json!({ "name": name, "match": { "path": format!("/{name}/{{id}}") }, "key": [part],
                "caller": "anyone", "fingerprint": "none", "scope": ["method"] })
    };
    let config = json!({ "rules": [
        rule("header", json!({ "header": "x-order" })),
        rule("query", json!({ "query": "order" })),
        rule("cookie", json!({ "cookie": "order" })),
        rule("path", json!({ "path": "id" })),
        rule("json", json!({ "json": "/order/id" })),
        rule("form", json!({ "form": "order" })),
        rule("body", json!("body")),
    ] });
    let world = World::start(config).await;
    let request = |kind: &str, value: &str| match kind {
        "header" => world.post("/header/1").header("x-order", value),
        "query" => world.post(&format!("/query/1?order={value}")),
        "cookie" => world.post("/cookie/1").header("cookie", format!("a=b; order={value}")),
        "path" => world.post(&format!("/path/{value}")),
        "json" => world.post("/json/1").json(&format!("{{\"order\":{{\"id\":\"{value}\"}}}}")),
        "form" => world
            .post("/form/1")
            .header("content-type", "application/x-www-form-urlencoded")
            .bytes(format!("a=b&order={value}")),
        "body" => world.post("/body/1").header("content-type", "text/plain").bytes(value),
        other => panic!("{other}"),
    };
    for (number, kind) in
        ["header", "query", "cookie", "path", "json", "form", "body"].into_iter().enumerate()
    {
        let first = request(kind, "one").send().await;
        assert_eq!((first.status, first.is_replay()), (200, false), "{kind} {}", first.text());
        assert!(request(kind, "one").send().await.is_replay(), "{kind}");
        assert!(!request(kind, "two").send().await.is_replay(), "{kind}");
        assert_eq!(world.executions(), 2 * (number + 1), "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_an_earlier_filter_authenticated_is_part_of_the_key() {
    let mut config = pay(json!({}));
    config["rules"][0]["caller"] = json!({ "metadata": ["test.auth", "subject"] });
    let bootstrap = Bootstrap::demo().config(&config).with(|bootstrap| {
        // The metadata that jwt_authn would set, from a header.
        let to_metadata = json!({
            "name": "to_metadata",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config",
                "request_rules": [ {
                    "header": "x-subject",
                    "on_header_present": { "metadata_namespace": "test.auth", "key": "subject", "type": "STRING" }
                } ]
            }
        });
        if let Some(filters) = bootstrap.manager()["http_filters"].as_array_mut() {
            filters.insert(0, to_metadata);
        }
    });
    let world = World::start_with(bootstrap).await;
    let request = world.post("/pay").key("a").json("{}");
    let nobody = request.clone().send().await;
    assert_eq!((nobody.status, nobody.code().as_str()), (400, "caller-missing"));
    assert!(!request.clone().header("x-subject", "alice").send().await.is_replay());
    assert!(!request.clone().header("x-subject", "bob").send().await.is_replay());
    assert!(request.header("x-subject", "alice").send().await.is_replay());
    assert_eq!(world.executions(), 2);
}
