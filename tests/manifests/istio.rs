//! Istio's part: istiod's translation of EnvoyFilters, WasmPlugins and ServiceEntries, and the work of the agent beside Envoy on
//! a module that must be fetched. As in istio/istio: pilot/pkg/networking/core/envoyfilter, pilot/pkg/model/extensions.go
//! and pkg/wasm/convert.go.

use crate::documents::{one, read};
use crate::scratch::Extensions;
use crate::{Site, patch, patient, reconfigure};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use testkit::{Bootstrap, Envoy, Origin, Redis, Request, Webdis, client, eventually};

/// The namespace whose EnvoyFilters are meant for all proxies.
const ROOT: &str = "istio-system";

/// The configured proxy.
#[derive(Clone, Copy)]
enum Proxy {
    Gateway,
    /// In front of a workload with this `app` label.
    Sidecar(&'static str),
}

impl Proxy {
    /// A sidecar's configuration has two halves; each patch names its half.
    fn is_in(self, context: &str) -> bool {
        match self {
            Self::Gateway => context == "GATEWAY",
            Self::Sidecar(_) => ["SIDECAR_INBOUND", "SIDECAR_OUTBOUND"].contains(&context),
        }
    }

    fn is_selected(self, filter: &Value) -> bool {
        match (filter["spec"].pointer("/workloadSelector/labels"), self) {
            (None, _) => true,
            (Some(labels), Self::Sidecar(app)) => *labels == json!({ "app": app }),
            (Some(_), Self::Gateway) => false,
        }
    }
}

/// An Envoy's bootstrap, and the extensions that it discovers.
struct Configured {
    bootstrap: Bootstrap,
    served: Extensions,
    extensions: BTreeMap<String, Value>,
}

/// A listener, a route to the origin, and nothing of this project: Istio's state before it reads our resources.
fn bare() -> (Bootstrap, Value) {
    let mut bootstrap = Bootstrap::read("redis.yaml");
    let module = bootstrap.plugin()["vm_config"]["code"]["local"].clone();
    let bootstrap = bootstrap.without_filter().with(|bootstrap| {
        let file = bootstrap.value();
        file.as_object_mut().unwrap().remove("stats_config");
        // An agent's Envoy has an identity; without one, nothing is discovered.
        file["node"] = json!({ "id": "sidecar~127.0.0.1~app.shop~local", "cluster": "app.shop" });
        let clusters = file["static_resources"]["clusters"].as_array_mut().unwrap();
        clusters.retain(|cluster| cluster["name"] != "redis");
        let filters = bootstrap.manager()["http_filters"].as_array().unwrap();
        assert_eq!(filters.len(), 1, "the router alone");
    });
    (bootstrap, module)
}

/// The configuration that istiod sends to this proxy, given these EnvoyFilters, after the agent's work on it.
fn configure(proxy: Proxy, resources: &[Value], routes: Option<Value>) -> Configured {
    let (mut bootstrap, module) = bare();
    if let Some(routes) = routes {
        bootstrap.manager()["route_config"]["virtual_hosts"][0]["routes"] = routes;
    }
    let mut extensions = BTreeMap::new();
    // The root namespace's come first, so that another namespace can override them.
    let is_root =
        |filter: &&Value| filter["metadata"]["namespace"].as_str().unwrap_or(ROOT) == ROOT;
    let filters = resources.iter().filter(|filter| filter["kind"] == "EnvoyFilter");
    let (first, second): (Vec<_>, Vec<_>) = filters.partition(is_root);
    for filter in first.into_iter().chain(second).filter(|filter| proxy.is_selected(filter)) {
        for one in filter["spec"]["configPatches"].as_array().unwrap() {
            apply(&mut bootstrap, proxy, one, &mut extensions);
        }
    }
    let served = Extensions::new();
    let mut serve = |filter: &mut Value| {
        let name = filter["name"].as_str().unwrap().to_owned();
        if let Some(discovery) = filter.get_mut("config_discovery") {
            let source = &discovery["config_source"];
            assert_eq!(
                (&source["ads"], &source["resource_api_version"]),
                (&json!({}), &json!("V3"))
            );
            let extension =
                extensions.get_mut(&name).unwrap_or_else(|| panic!("no extension {name}"));
            fetch(&mut extension["config"], &module);
            discovery["config_source"] = served.serve(&name, extension);
        }
    };
    for filter in bootstrap.manager()["http_filters"].as_array_mut().unwrap() {
        serve(filter);
    }
    let clusters = bootstrap.value()["static_resources"]["clusters"].as_array_mut().unwrap();
    for cluster in clusters {
        let filters = "/typed_extension_protocol_options\
            /envoy.extensions.upstreams.http.v3.HttpProtocolOptions/http_filters";
        for filter in
            cluster.pointer_mut(filters).into_iter().flat_map(|all| all.as_array_mut().unwrap())
        {
            serve(filter);
        }
    }
    Configured { bootstrap, served, extensions }
}

/// The agent fetches a module, and gives Envoy a file in its place.
fn fetch(plugin: &mut Value, module: &Value) {
    let code = &mut plugin["vm_config"]["code"];
    let remote = &code["remote"];
    assert!(remote["http_uri"]["uri"].as_str().unwrap().starts_with("oci://"), "{remote}");
    assert_eq!(remote["sha256"].as_str().unwrap().len(), 64);
    *code = json!({ "local": module });
    // Of this project's own, and of no bridge.
    if plugin.get("configuration").is_some() {
        reconfigure(plugin, patient);
    }
}

fn apply(
    bootstrap: &mut Bootstrap,
    proxy: Proxy,
    patch: &Value,
    extensions: &mut BTreeMap<String, Value>,
) {
    let (kind, asked) = (patch["applyTo"].as_str().unwrap(), &patch["match"]);
    let (operation, value) =
        (patch["patch"]["operation"].as_str().unwrap(), &patch["patch"]["value"]);
    let context = asked["context"].as_str();
    // istiod serves an extension to any proxy that asks for its name.
    assert_eq!(context.is_none(), kind == "EXTENSION_CONFIG");
    if context.is_some_and(|context| !proxy.is_in(context)) {
        return;
    }
    match (kind, operation) {
        ("EXTENSION_CONFIG", "ADD") => {
            let name = value["name"].as_str().unwrap().to_owned();
            let before = extensions.insert(name.clone(), value["typed_config"].clone());
            assert_eq!(before, None, "{name} twice");
        }
        ("CLUSTER", "ADD") => {
            let clusters =
                bootstrap.value()["static_resources"]["clusters"].as_array_mut().unwrap();
            assert!(
                clusters.iter().all(|cluster| cluster["name"] != value["name"]),
                "{value} twice"
            );
            clusters.push(value.clone());
        }
        ("HTTP_FILTER", _) => {
            let filter = &asked["listener"]["filterChain"]["filter"];
            assert_eq!(filter["name"], "envoy.filters.network.http_connection_manager");
            let filters = bootstrap.manager()["http_filters"].as_array_mut().unwrap();
            let at = filters.iter().position(|one| one["name"] == filter["subFilter"]["name"]);
            let at = at.unwrap_or_else(|| panic!("{filter} is not there"));
            match operation {
                "INSERT_BEFORE" => filters.insert(at, value.clone()),
                "REPLACE" => filters[at] = value.clone(),
                "REMOVE" => drop(filters.remove(at)),
                other => panic!("{other} of a filter"),
            }
        }
        ("HTTP_ROUTE", "MERGE") => {
            let name = &asked["routeConfiguration"]["vhost"]["route"]["name"];
            let routes = &mut bootstrap.manager()["route_config"]["virtual_hosts"][0]["routes"];
            let mut routes = routes.as_array_mut().unwrap().iter_mut();
            let route = routes.find(|route| route["name"] == *name).unwrap();
            route.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        }
        (kind, operation) => panic!("{operation} of {kind} is nothing that this project uses"),
    }
}

/// The resources of a folder of `envoy/istio`.
fn resources(paths: &[&str]) -> Vec<Value> {
    paths.iter().flat_map(|path| read(&format!("envoy/istio/{path}.yaml"))).collect()
}

fn base() -> Vec<Value> {
    resources(&["base/redis", "base/gateway", "base/sidecar"])
}

/// The base as the overlay changes it, by the patches of that folder.
pub(crate) fn managed_redis() -> Vec<Value> {
    let mut all = base();
    for resource in &mut all {
        let file =
            if resource["metadata"]["name"] == "idempotency-redis" { "tls" } else { "password" };
        for one in
            one(&format!("envoy/istio/overlays/managed-redis/{file}.yaml")).as_array().unwrap()
        {
            let (op, path) = (one["op"].as_str().unwrap(), one["path"].as_str().unwrap());
            patch::apply(resource, op, path, &one["value"]);
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_of_the_base_answers_duplicates_from_redis() {
    let redis = Redis::start().await;
    let configured = configure(Proxy::Gateway, &base(), None);
    let site = Site::start(configured.bootstrap.endpoints("redis", &[redis.port()])).await;
    site.protects_bodies_too().await;
    site.protects_transitions().await;
    // The metric names that Prometheus splits, as in docs/istio.md.
    let text = client::get(site.envoy.admin, "/stats/prometheus").await.unwrap();
    let name = "idempotency_requests_total_rule_payments_outcome_replayed{} 1";
    assert!(text.lines().any(|line| line == name), "{text}");
    let keys = redis.keys("*").await;
    assert!(keys.len() == 3 && keys.iter().all(|key| key.starts_with("idem:gateway:")), "{keys:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_of_the_base_answers_duplicates_from_redis() {
    let redis = Redis::start().await;
    let configured = configure(Proxy::Sidecar("payments"), &base(), None);
    let site = Site::start(configured.bootstrap.endpoints("redis", &[redis.port()])).await;
    site.protects_bodies_too().await;
    let keys = redis.keys("*").await;
    assert!(keys.len() == 1 && keys[0].starts_with("idem:sidecar:"), "{keys:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_whose_bridge_has_not_been_served_comes_up_and_refuses() {
    let redis = Redis::start().await;
    let configured = configure(Proxy::Gateway, &base(), None);
    let bootstrap = configured.bootstrap.endpoints("redis", &[redis.port()]);
    let site = Site::start(bootstrap.with(|bootstrap| {
        let nobody = json!({ "api_type": "GRPC", "transport_api_version": "V3",
            "grpc_services": [{ "envoy_grpc": { "cluster_name": "nobody" } }] });
        let source = json!({ "api_config_source": nobody, "resource_api_version": "V3",
            "initial_fetch_timeout": "0.5s" });
        let options = &mut bootstrap.cluster("redis")["typed_extension_protocol_options"];
        let http = &mut options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
        http["http_filters"][0]["config_discovery"]["config_source"] = source;
        let http2 = json!({
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} },
        });
        let clusters = bootstrap.value()["static_resources"]["clusters"].as_array_mut().unwrap();
        clusters.push(json!({ "name": "nobody", "connect_timeout": "1s",
            "load_assignment": { "cluster_name": "nobody", "endpoints": [] },
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2 } }));
    }))
    .await;
    let refused = site.post("/v1/payments").key("a").caller("alice").json("{}").send().await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "store-unavailable"));
    assert_eq!((site.origin.executions(), redis.keys("*").await.len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_takes_effect_and_a_broken_one_changes_nothing() {
    let redis = Redis::start().await;
    let Configured { bootstrap, served, mut extensions } = configure(Proxy::Gateway, &base(), None);
    let site = Site::start(bootstrap.endpoints("redis", &[redis.port()])).await;
    let post = |path: &str, key: &str| site.post(path).key(key).caller("alice").json("{}");
    assert!(site.replays(post("/v1/payments", "a")).await);
    assert!(!site.replays(post("/v1/refunds", "a")).await);
    let name = "idempotency-gateway";
    let extension = extensions.get_mut(name).unwrap();
    reconfigure(&mut extension["config"], |config| {
        config["rules"][0]["match"]["path"] = json!("/v1/{what}");
    });
    served.serve(name, extension);
    eventually("the new rule is there", async || {
        let key = format!("probe-{}", site.origin.executions());
        site.replays(post("/v1/refunds", &key)).await
    })
    .await;
    // Answers under the earlier rules are still known.
    assert!(post("/v1/payments", "a").send().await.is_replay());
    let mut broken = extension.clone();
    reconfigure(&mut broken["config"], |config| {
        config["store"]["redis"]["password_env"] = json!("NOBODY_SET_IT");
    });
    served.serve(name, &broken);
    let rejected = format!("extension_config_discovery.http_filter.{name}.update_rejected");
    eventually("it is refused", async || site.envoy.stat(&rejected).await == Some(1)).await;
    assert!(post("/v1/payments", "a").send().await.is_replay());
    assert!(site.replays(post("/v1/refunds", "b")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_passes_a_gateway_and_a_sidecar_runs_once_and_is_not_in_its_own_way() {
    let (redis, origin) = (Redis::start().await, Origin::start().await);
    let sidecar = configure(Proxy::Sidecar("payments"), &base(), None);
    let sidecar_bootstrap = sidecar.bootstrap.endpoints("redis", &[redis.port()]);
    let sidecar_envoy = Envoy::start(sidecar_bootstrap.origin(origin.address.port())).await;
    let gateway = configure(Proxy::Gateway, &base(), None);
    let gateway_bootstrap = gateway.bootstrap.endpoints("redis", &[redis.port()]);
    let gateway_envoy = Envoy::start(gateway_bootstrap.origin(sidecar_envoy.front.port())).await;
    let post = |to| Request::new(to, "POST", "/v1/payments").key("a").caller("alice").json("{}");
    let first = post(gateway_envoy.front).send().await;
    assert!(first.status == 200 && !first.is_replay(), "{} {}", first.status, first.text());
    assert!(post(gateway_envoy.front).send().await.is_replay());
    // From within the mesh, not through the gateway: the sidecar has its own records.
    assert!(post(sidecar_envoy.front).send().await.is_replay());
    assert_eq!((origin.executions(), redis.keys("idem:*").await.len()), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_managed_redis_is_reached_by_tls_with_the_password_of_a_secret() {
    let redis = Redis::tls("open sesame").await;
    let env = one("envoy/istio/overlays/managed-redis/proxy-env.yaml");
    let container = &env["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["name"], "istio-proxy");
    let variable = &container["env"][0];
    let secret = json!({ "name": "idempotency-redis", "key": "password" });
    assert_eq!(variable["valueFrom"]["secretKeyRef"], secret);
    for proxy in [Proxy::Gateway, Proxy::Sidecar("payments")] {
        let configured = configure(proxy, &managed_redis(), None);
        let bootstrap = configured.bootstrap.with(|bootstrap| {
            let cluster = bootstrap.cluster("redis");
            let address = cluster.pointer(
                "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address",
            );
            assert_eq!(
                *address.unwrap(),
                json!({ "address": "redis.example.com", "port_value": 6379 })
            );
            // The certificate of the tests is for another host, by an authority of their own.
            let tls = &mut cluster["transport_socket"]["typed_config"];
            tls["sni"] = json!("localhost");
            let validation = &mut tls["common_tls_context"]["validation_context"];
            validation["trusted_ca"]["filename"] = json!(redis.ca_path());
            let name = &mut validation["match_typed_subject_alt_names"][0]["matcher"]["exact"];
            assert_eq!(name.take(), "redis.example.com");
            *name = json!("localhost");
        });
        let bootstrap = bootstrap.endpoints("redis", &[redis.port()]);
        let bootstrap =
            bootstrap.env(variable["name"].as_str().unwrap(), redis.password().unwrap());
        Site::start(bootstrap).await.protects_bodies_too().await;
    }
    assert_eq!(redis.keys("idem:*").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_can_have_rules_of_its_own_or_none() {
    let redis = Redis::start().await;
    let all =
        [base(), resources(&["overlays/workload/orders", "overlays/workload/legacy"])].concat();
    let start = async |app| {
        let configured = configure(Proxy::Sidecar(app), &all, None);
        (
            Site::start(configured.bootstrap.endpoints("redis", &[redis.port()])).await,
            configured.served,
        )
    };
    let pay = |site: &Site| site.post("/v1/payments").key("a").caller("alice").json("{}");
    let (orders, _files) = start("orders").await;
    orders.protects_transitions().await;
    assert!(!orders.replays(pay(&orders)).await);
    let keys = redis.keys("*").await;
    assert!(keys.iter().all(|key| key.starts_with("idem:orders:")), "{keys:?}");
    let (legacy, _files) = start("legacy").await;
    assert!(!legacy.replays(pay(&legacy)).await);
    let (others, _files) = start("payments").await;
    assert!(others.replays(pay(&others)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_of_a_gateway_can_choose_its_rule_or_none() {
    let redis = Redis::start().await;
    let all = [base(), resources(&["overlays/routes/routes"])].concat();
    let hook = json!({ "name": "x-hook", "present_match": true });
    let routes = json!([
        { "name": "webhooks", "match": { "prefix": "/", "headers": [hook] }, "route": { "cluster": "origin" } },
        { "name": "refunds", "match": { "prefix": "/refunds/" }, "route": { "cluster": "origin" } },
        { "name": "default", "match": { "prefix": "/" }, "route": { "cluster": "origin" } },
    ]);
    let configured = configure(Proxy::Gateway, &all, Some(routes));
    let site = Site::start(configured.bootstrap.endpoints("redis", &[redis.port()])).await;
    let post = |path| site.post(path).key("a").caller("alice").json("{}");
    assert!(site.replays(post("/v1/payments")).await);
    assert!(!site.replays(post("/v1/payments").header("x-hook", "1")).await);
    assert!(site.replays(post("/refunds/7")).await);
    assert!(!site.replays(post("/returns/7")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bootstrap_override_gives_metrics_their_labels() {
    let redis = Redis::start().await;
    let configured = configure(Proxy::Sidecar("payments"), &base(), None);
    let map = one("envoy/istio/base/stats-tags.yaml");
    // The key under which the annotation's mount is read.
    let text = map["data"]["custom_bootstrap.json"].as_str().unwrap();
    let custom: Map<String, Value> = serde_json::from_str(text).unwrap();
    let bootstrap = configured.bootstrap.endpoints("redis", &[redis.port()]);
    let site = Site::start(bootstrap.with(|bootstrap| {
        bootstrap.value().as_object_mut().unwrap().extend(custom);
    }))
    .await;
    site.protects_bodies_too().await;
    site.labels_metrics().await;
}

/// The filter that istiod makes of a WasmPlugin, after the agent's work on it.
fn plugin(resource: &Value) -> Configured {
    let (bootstrap, module) = bare();
    let (metadata, spec) = (&resource["metadata"], &resource["spec"]);
    // The schema knows more; every used field must be checked here.
    for field in spec.as_object().unwrap().keys() {
        let known = [
            "selector",
            "url",
            "sha256",
            "imagePullPolicy",
            "phase",
            "failStrategy",
            "pluginName",
            "pluginConfig",
        ];
        assert!(known.contains(&field.as_str()), "{field}");
    }
    let name = format!("{ROOT}.{}", metadata["name"].as_str().unwrap());
    let mut config = json!({
        "name": name,
        "root_id": spec["pluginName"],
        "failure_policy": spec["failStrategy"],
        "configuration": {
            "@type": "type.googleapis.com/google.protobuf.StringValue",
            "value": spec["pluginConfig"].to_string(),
        },
        "vm_config": {
            "runtime": "envoy.wasm.runtime.v8",
            "code": { "remote": { "http_uri": { "uri": spec["url"], "timeout": "30s", "cluster": "_" }, "sha256": spec["sha256"] } },
            "environment_variables": { "key_values": { "ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION": "1" } },
        },
    });
    fetch(&mut config, &module);
    let wasm = json!({ "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm", "config": config });
    let served = Extensions::new();
    let filter = json!({ "name": name, "config_discovery": {
        "config_source": served.serve(&name, &wasm),
        "type_urls": ["type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"],
    } });
    let bootstrap = bootstrap.with(|bootstrap| {
        bootstrap.manager()["http_filters"].as_array_mut().unwrap().insert(0, filter);
    });
    Configured { bootstrap, served, extensions: BTreeMap::new() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wasm_plugin_answers_duplicates_from_memory() {
    let configured = plugin(&one("envoy/istio/overlays/wasmplugin/plugin.yaml"));
    Site::start(configured.bootstrap).await.protects_header_keys().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_of_a_wasm_plugin_that_reads_the_body_lets_nothing_through() {
    let mut resource = one("envoy/istio/overlays/wasmplugin/plugin.yaml");
    let rule = &mut resource["spec"]["pluginConfig"]["rules"][0];
    assert_eq!(rule.as_object_mut().unwrap().remove("fingerprint"), Some(json!("none")));
    let configured = plugin(&resource);
    let site = Site::start(configured.bootstrap).await;
    let refused = site.post("/v1/payments").key("a").caller("alice").json("{}").send().await;
    assert_eq!((refused.status, refused.code().as_str()), (500, "misconfigured"));
    assert_eq!(site.origin.executions(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wasm_plugin_answers_duplicates_by_way_of_webdis() {
    let redis = Redis::start().await;
    let webdis = Webdis::start(redis.port()).await;
    let entry = one("envoy/istio/overlays/wasmplugin-webdis/service-entry.yaml");
    let (port, host) = (&entry["spec"]["ports"][0], entry["spec"]["hosts"][0].as_str().unwrap());
    assert_eq!((&entry["spec"]["resolution"], &port["protocol"]), (&json!("DNS"), &json!("HTTP")));
    // As istiod names the cluster of a service.
    let cluster = format!("outbound|{}||{host}", port["number"]);
    let configured = plugin(&one("envoy/istio/overlays/wasmplugin-webdis/plugin.yaml"));
    let bootstrap = configured.bootstrap.with(|bootstrap| {
        let clusters = bootstrap.value()["static_resources"]["clusters"].as_array_mut().unwrap();
        clusters.push(json!({
            "name": cluster,
            "type": "STRICT_DNS",
            "connect_timeout": "10s",
            "load_assignment": { "cluster_name": cluster, "endpoints": [{ "lb_endpoints": [] }] },
        }));
    });
    let site = Site::start(bootstrap.endpoints(&cluster, &[webdis.port()])).await;
    site.protects_header_keys().await;
    assert_eq!(redis.keys("idem:gateway:*").await.len(), 2);
}
