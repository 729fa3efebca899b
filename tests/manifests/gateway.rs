//! Envoy Gateway's part: its translation of an EnvoyExtensionPolicy, and where an EnvoyPatchPolicy changes its output. As
//! in envoyproxy/gateway: internal/xds/translator/{wasm,jsonpatch}.go and internal/utils/jsonpatch.

use crate::documents::one;
use crate::{Site, patch, patient, reconfigure};
use serde_json::{Value, json};
use testkit::{Bootstrap, Redis};

/// Envoy Gateway's default limit of bytes that a connection may hold.
const BUFFER: u64 = 32_768;

/// The name of a listener and of its routes: the Gateway `eg` in `default`, and its listener `http`.
const LISTENER: &str = "default/eg/http";

/// An Envoy's resources as Envoy Gateway has them when it comes to policies.
struct Made {
    bootstrap: Bootstrap,
    listener: Value,
    routes: Value,
    clusters: Vec<Value>,
    module: Value,
}

impl Made {
    fn new() -> Self {
        let mut bootstrap = Bootstrap::read("redis.yaml");
        let module = bootstrap.plugin()["vm_config"]["code"]["local"]["filename"].clone();
        let mut bootstrap = bootstrap.without_filter();
        let manager = bootstrap.manager();
        let routes = manager.as_object_mut().unwrap().remove("route_config").unwrap();
        manager["normalize_path"] = json!(true);
        manager["merge_slashes"] = json!(true);
        manager["path_with_escaped_slashes_action"] = json!("UNESCAPE_AND_REDIRECT");
        manager["common_http_protocol_options"] =
            json!({ "headers_with_underscores_action": "REJECT_REQUEST" });
        let statics = &mut bootstrap.value()["static_resources"];
        let mut listener = statics["listeners"].as_array_mut().unwrap().remove(0);
        let chain = listener.as_object_mut().unwrap().remove("filter_chains").unwrap()[0].clone();
        listener["default_filter_chain"] = chain;
        listener["per_connection_buffer_limit_bytes"] = json!(BUFFER);
        let clusters = statics["clusters"].as_array_mut().unwrap();
        clusters.retain(|cluster| cluster["name"] != "redis");
        let clusters = std::mem::take(clusters);
        bootstrap.value()["stats_config"] = json!({ "use_all_default_tags": true, "stats_tags": [
            { "tag_name": "from_zone", "regex": "\\.zone(\\.(([^\\.]+)\\.))" } ] });
        Self { bootstrap, listener, routes, clusters, module }
    }

    /// Other routes, each to the origin.
    fn routes(mut self, routes: Value) -> Self {
        self.routes["virtual_hosts"][0]["routes"] = routes;
        self
    }

    /// The filter chain's HTTP connection manager.
    fn manager(&mut self) -> &mut Value {
        &mut self.listener["default_filter_chain"]["filters"][0]["typed_config"]
    }

    /// The changes of an EnvoyPatchPolicy.
    fn patched(mut self, policy: &Value) -> Self {
        let spec = &policy["spec"];
        let eg = json!({ "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "eg" });
        assert_eq!((&spec["type"], &spec["targetRef"]), (&json!("JSONPatch"), &eg));
        for one in spec["jsonPatches"].as_array().unwrap() {
            let operation = &one["operation"];
            let (op, value) = (operation["op"].as_str().unwrap(), &operation["value"]);
            let path = operation["path"].as_str().unwrap_or_default();
            let document = match one["type"].as_str().unwrap().rsplit('.').next().unwrap() {
                "Cluster" => {
                    assert_eq!((op, path, &one["name"]), ("add", "", &value["name"]));
                    self.clusters.push(value.clone());
                    continue;
                }
                "Listener" => &mut self.listener,
                "RouteConfiguration" => &mut self.routes,
                other => panic!("{other} is nothing that this project patches"),
            };
            assert_eq!(one["name"], LISTENER);
            match operation["jsonPath"].as_str() {
                None => patch::apply(document, op, path, value),
                Some(chosen) => {
                    let places = patch::choose(document, chosen);
                    assert!(!places.is_empty(), "{chosen} chooses nothing");
                    for place in places {
                        patch::apply(document, op, &format!("{place}{path}"), value);
                    }
                }
            }
        }
        self
    }

    /// The settings of an EnvoyProxy for its Envoys.
    fn with_proxy(mut self, proxy: &Value, password: &str) -> Self {
        let bootstrap = &proxy["spec"]["bootstrap"];
        assert_eq!(bootstrap["type"], "JSONPatch");
        for one in bootstrap["jsonPatches"].as_array().unwrap() {
            let (op, path) = (one["op"].as_str().unwrap(), one["path"].as_str().unwrap());
            patch::apply(self.bootstrap.value(), op, path, &one["value"]);
        }
        let deployment = &proxy["spec"]["provider"]["kubernetes"]["envoyDeployment"];
        let (volume, mount) =
            (&deployment["pod"]["volumes"][0], &deployment["container"]["volumeMounts"][0]);
        assert_eq!(volume["name"], mount["name"]);
        let reference = volume["image"]["reference"].as_str().unwrap();
        assert_eq!(reference.rsplit_once("@sha256:").unwrap().1.len(), 64);
        // The file that the image has at its root, where the volume is mounted.
        let file = format!("{}/plugin.wasm", mount["mountPath"].as_str().unwrap());
        let module = self.module.clone();
        let mut found = 0;
        for resource in self.clusters.iter_mut().chain([&mut self.listener]) {
            found += replace(resource, &json!(file), &module);
        }
        assert_eq!(found, 2, "the filter and the bridge run this file");
        let variable = &deployment["container"]["env"][0];
        assert!(variable["valueFrom"]["secretKeyRef"]["name"].is_string());
        self.bootstrap = self.bootstrap.env(variable["name"].as_str().unwrap(), password);
        self
    }

    /// All of it, in a bootstrap.
    fn bootstrap(mut self) -> Bootstrap {
        let routes = self.routes.take();
        self.manager()["route_config"] = routes;
        // The harness expects its listener's chain here.
        let chain = self.listener.as_object_mut().unwrap().remove("default_filter_chain").unwrap();
        self.listener["filter_chains"] = json!([chain]);
        let statics = &mut self.bootstrap.value()["static_resources"];
        statics["listeners"] = json!([self.listener]);
        statics["clusters"] = json!(self.clusters);
        self.bootstrap
    }
}

/// Replaces a value by another everywhere; returns how often.
fn replace(within: &mut Value, old: &Value, new: &Value) -> usize {
    if within == old {
        *within = new.clone();
        return 1;
    }
    match within {
        Value::Array(items) => items.iter_mut().map(|item| replace(item, old, new)).sum(),
        Value::Object(fields) => fields.values_mut().map(|field| replace(field, old, new)).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// The whole filter: policy and proxy together, before a Redis with a password.
async fn whole(redis: &Redis, routes: Option<(Value, Value)>) -> Site {
    let mut made = Made::new();
    let mut policies = vec![one("envoy/gateway/patch-policy.yaml")];
    if let Some((routes, policy)) = routes {
        made = made.routes(routes);
        policies.push(policy);
    }
    for policy in &policies {
        made = made.patched(policy);
    }
    let mut made = made.with_proxy(&one("envoy/gateway/proxy.yaml"), redis.password().unwrap());
    assert_eq!(made.manager()["http_filters"][1]["name"], "envoy.filters.http.router");
    reconfigure(&mut made.manager()["http_filters"][0]["typed_config"]["config"], patient);
    Site::start(made.bootstrap().endpoints("redis", &[redis.port()])).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_patch_policy_answers_duplicates_from_redis() {
    let redis = Redis::with(&["--requirepass", "open sesame"]).await;
    let site = whole(&redis, None).await;
    site.protects_bodies_too().await;
    site.protects_transitions().await;
    assert_eq!(redis.keys("idem:*").await.len(), 3);
    site.labels_metrics().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_patch_policy_lets_bodies_be_held_that_envoy_gateway_would_not() {
    let redis = Redis::with(&["--requirepass", "open sesame"]).await;
    let site = whole(&redis, None).await;
    let large = format!("{{\"text\":\"{}\"}}", "x".repeat(4 * 32_768));
    assert!(
        site.replays(site.post("/v1/payments").key("large").caller("alice").json(&large)).await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_of_envoy_gateway_can_choose_its_rule_or_none() {
    let redis = Redis::with(&["--requirepass", "open sesame"]).await;
    let route = |name: &str, matched: Value| {
        let name = format!("httproute/default/{name}/rule/0/match/0/*");
        // The metadata that Envoy Gateway gives to every route.
        let metadata = json!({ "filter_metadata": { "envoy-gateway": { "resources": [] } } });
        json!({ "name": name, "match": matched, "route": { "cluster": "origin" }, "metadata": metadata })
    };
    let hook = json!([{ "name": "x-hook", "present_match": true }]);
    let routes = json!([
        route("webhooks", json!({ "prefix": "/", "headers": hook })),
        route("refunds", json!({ "prefix": "/refunds/" })),
        route("default", json!({ "prefix": "/" })),
    ]);
    let site = whole(&redis, Some((routes, one("envoy/gateway/routes.yaml")))).await;
    let post = |path| site.post(path).key("a").caller("alice").json("{}");
    assert!(site.replays(post("/v1/payments")).await);
    assert!(!site.replays(post("/v1/payments").header("x-hook", "1")).await);
    assert!(site.replays(post("/refunds/7")).await);
    assert!(!site.replays(post("/returns/7")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_extension_policy_answers_duplicates_from_memory() {
    let policy = one("envoy/gateway/extension-policy.yaml");
    let name = format!(
        "envoyextensionpolicy/default/{}/wasm/0",
        policy["metadata"]["name"].as_str().unwrap()
    );
    let wasm = &policy["spec"]["wasm"][0];
    // Every used field must be checked here.
    for field in wasm.as_object().unwrap().keys() {
        assert!(
            ["name", "rootID", "failOpen", "code", "config"].contains(&field.as_str()),
            "{field}"
        );
    }
    assert_eq!(wasm["code"]["type"], "Image");
    assert_eq!(wasm["code"]["image"]["sha256"].as_str().unwrap().len(), 64);
    let mut made = Made::new();
    let filter = json!({
        "name": format!("envoy.filters.http.wasm/{name}"),
        "disabled": true,
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
            "config": {
                "name": wasm["name"],
                "root_id": wasm["rootID"],
                "fail_open": wasm["failOpen"],
                "configuration": {
                    "@type": "type.googleapis.com/google.protobuf.StringValue",
                    "value": wasm["config"].to_string(),
                },
                "vm_config": {
                    "vm_id": name,
                    "runtime": "envoy.wasm.runtime.v8",
                    // Envoy Gateway fetches the image, and serves the module to Envoy by HTTP: here it is a file.
                    "code": { "local": { "filename": made.module } },
                },
            },
        },
    });
    let enabled =
        json!({ "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {} });
    let filters = made.manager()["http_filters"].as_array_mut().unwrap();
    filters.insert(0, filter.clone());
    // One has the policy by its route, like all of a Gateway with the policy; another has none.
    let made = made.routes(json!([
        { "match": { "prefix": "/without/" }, "route": { "cluster": "origin" } },
        { "match": { "prefix": "/" }, "route": { "cluster": "origin" },
          "typed_per_filter_config": { filter["name"].as_str().unwrap(): enabled } },
    ]));
    let site = Site::start(made.bootstrap()).await;
    site.protects_header_keys().await;
    let large = "x".repeat(4 * 32_768);
    let request = site.post("/v1/payments").key("large").caller("alice").json(&large);
    assert!(site.replays(request).await, "a body that is not held may be larger than the buffer");
}
