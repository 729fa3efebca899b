//! The end of an answer: it waits for the record, and never costs the client a byte.

use crate::pay;
use serde_json::json;
use std::time::Duration;
use testkit::deployment::{Deployment, Store};
use testkit::{Answer, Bootstrap, Request, eventually};

/// The origin speaks HTTP/2, and a Lua filter behind this one gathers each answer and passes it on in
/// one piece, as Envoy itself does with the frames that arrive while a client is slow.
fn one_piece(bootstrap: &mut Bootstrap) {
    const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    bootstrap.cluster("origin")["typed_extension_protocol_options"] = json!({ OPTIONS: {
        "@type": format!("type.googleapis.com/{OPTIONS}"),
        "explicit_http_config": { "http2_protocol_options": {} }
    } });
    let gather = "function envoy_on_response(handle) handle:body() end";
    let filters = bootstrap.manager()["http_filters"].as_array_mut().unwrap();
    filters.insert(
        1,
        json!({ "name": "gather", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
            "default_source_code": { "inline_string": gather }
        } }),
    );
}

/// Asks for an answer of so many thousand bytes.
fn thousands(request: &Request, thousands: usize, trailers: bool, announced: bool) -> Request {
    let mut request = request.clone().header("x-origin-stream", thousands.to_string());
    if announced {
        let length = format!("content-length: {}", thousands * 1_000);
        request = request.header("x-origin-header", length);
    }
    if trailers {
        request = request.header("te", "trailers").header("x-origin-trailers", "1");
    }
    request
}

fn checksum(answer: &Answer) -> Option<&str> {
    let mut trailers = answer.trailers.iter();
    trailers.find(|(name, _)| name == "x-checksum").map(|(_, value)| value.as_str())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_in_one_large_piece_comes_whole_with_its_trailers() {
    let rule = pay(json!({ "limits": { "response_body": "1MiB" } }));
    for store in [Store::Memory, Store::Redis] {
        let place = Deployment::start(store, &rule, |bootstrap| bootstrap.with(one_piece)).await;
        for size in [1, 16, 17, 100, 900] {
            for (trailers, announced) in
                [(false, false), (false, true), (true, false), (true, true)]
            {
                let key = format!("{size}-{trailers}-{announced}");
                let ask = |request: Request| {
                    let request = request.key(&key).caller("alice").json("{}").http2();
                    thousands(&request, size, trailers, announced)
                };
                let first = ask(place.post("/pay")).try_send().await.unwrap();
                assert_eq!((first.status, first.body.len()), (200, size * 1_000), "{key}");
                assert_eq!(checksum(&first).is_some(), trailers, "{key}");
                // At once: a client that has the answer finds its record.
                let again = ask(place.elsewhere("/pay")).send().await;
                assert!(again.is_replay(), "{store:?} {key}: {}", again.code());
                assert_eq!(again.body, first.body, "{key}");
            }
        }
        assert_eq!(place.origin.executions(), 20);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_answer_whose_stream_goes_on_waits_for_its_record() {
    let rule = pay(json!({}));
    let place = Deployment::start(Store::Redis, &rule, |bootstrap| bootstrap.with(one_piece)).await;
    // Redis takes its time: a client that has its answer before the record meets a claim.
    for key in 0..2 {
        let key = key.to_string();
        let ask = |request: Request| {
            thousands(&request.key(&key).caller("alice").json("{}"), 0, false, true)
        };
        let redis = place.redis.as_ref().unwrap();
        let request = ask(place.post("/pay")).header("x-origin-delay-ms", "200");
        let first = tokio::spawn(request.send());
        eventually("the first runs", async || place.origin.executions() > key.parse().unwrap())
            .await;
        redis.freeze().await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert!(!first.is_finished(), "{key}: the client has its answer before the record");
        redis.thaw().await;
        assert_eq!(first.await.unwrap().status, 200);
        assert!(ask(place.elsewhere("/pay")).send().await.is_replay(), "{key}");
    }
}
