//! Routes and clusters that end a request in every way Envoy has.

use super::aborts::{Abort, AbortingUpstream, BlackHole};
use serde_json::{Value, json};
use testkit::{Bootstrap, Origin};

/// The data for the table of `src/exchange/source.rs`, per request.
const LOG: &str = "row %REQ(IDEMPOTENCY-KEY)% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %RESPONSE_FLAGS% \
    host=%UPSTREAM_HOST% tries=%UPSTREAM_REQUEST_ATTEMPT_COUNT% \
    outcome=%FILTER_STATE(wasm.idempotency.outcome:PLAIN)%\n";

/// A host of no route.
pub(super) const NOWHERE: &str = "nowhere.example.com";

/// Upstreams that fail, each in its way.
pub(super) struct Upstreams {
    /// The upstream of clusters that fail only because of their settings.
    fine: Origin,
    black_hole: BlackHole,
    garbage: AbortingUpstream,
    last_breath: AbortingUpstream,
    reset: AbortingUpstream,
    refused_stream: AbortingUpstream,
    go_away: AbortingUpstream,
}

impl Upstreams {
    pub(super) async fn start() -> Self {
        const INTERNAL_ERROR: u32 = 2;
        const REFUSED_STREAM: u32 = 7;
        Self {
            fine: Origin::start().await,
            black_hole: BlackHole::open().await,
            garbage: AbortingUpstream::start(Abort::Garbage).await,
            last_breath: AbortingUpstream::start(Abort::LastBreath).await,
            reset: AbortingUpstream::start(Abort::Reset(INTERNAL_ERROR)).await,
            refused_stream: AbortingUpstream::start(Abort::Reset(REFUSED_STREAM)).await,
            go_away: AbortingUpstream::start(Abort::GoAway).await,
        }
    }

    /// Requests that reached a good upstream behind a cluster that should let none through.
    pub(super) fn executions(&self) -> usize {
        self.fine.executions()
    }

    /// Routes to all of them, by the first segment of the path; the last route stays as it is.
    pub(super) fn lead(&self, mut bootstrap: Bootstrap) -> Bootstrap {
        let manager = bootstrap.manager();
        manager["access_log"][0]["typed_config"]["log_format"]["text_format_source"]["inline_string"] =
            json!(LOG);
        let hosts = manager["route_config"]["virtual_hosts"].as_array_mut().unwrap();
        // The origin can distinguish two tries.
        hosts[0]["include_request_attempt_count"] = json!(true);
        hosts[0]["routes"].as_array_mut().unwrap().splice(0..0, routes());
        hosts.push(json!({ "name": "nowhere", "domains": [NOWHERE], "routes": [] }));
        let filters = manager["http_filters"].as_array_mut().unwrap();
        let before_the_router = filters.len() - 1;
        filters.splice(before_the_router..before_the_router, filters_behind());
        let clusters = bootstrap.value()["static_resources"]["clusters"].as_array_mut().unwrap();
        clusters.retain(|cluster| cluster["name"] != "nobody");
        clusters.extend(self.clusters());
        bootstrap
    }

    fn clusters(&self) -> Vec<Value> {
        let fine = self.fine.address.port();
        let limited = |limit: &str| json!({ "circuit_breakers": { "thresholds": [{ limit: 0 }] } });
        let http2 =
            || protocol(json!({ "explicit_http_config": { "http2_protocol_options": {} } }));
        let refused_upstream = protocol(json!({
            "explicit_http_config": { "http_protocol_options": {} },
            "http_filters": [
                filter("lua", "lua.v3.Lua", json!({ "default_source_code": { "inline_string":
                    "function envoy_on_request(h) h:respond({ [':status'] = '500' }, 'no') end" } })),
                filter("codec", "upstream_codec.v3.UpstreamCodec", json!({})),
            ]
        }));
        vec![
            cluster("nobody", Some(1), json!({})),
            cluster("black_hole", Some(self.black_hole.port), json!({})),
            cluster("empty", None, json!({})),
            cluster("no_pending", Some(fine), limited("max_pending_requests")),
            cluster("no_requests", Some(fine), limited("max_requests")),
            cluster("no_retries", Some(fine), limited("max_retries")),
            cluster("garbage", Some(self.garbage.port), json!({})),
            cluster("last_breath", Some(self.last_breath.port), json!({})),
            cluster("reset", Some(self.reset.port), http2()),
            cluster("refused_stream", Some(self.refused_stream.port), http2()),
            cluster("go_away", Some(self.go_away.port), http2()),
            cluster("refused_upstream", Some(fine), refused_upstream),
        ]
    }
}

fn routes() -> Vec<Value> {
    const TIMEOUT: &str = "0.3s";
    let route = |name: &str, cluster: &str, more: Value| {
        let action = merged(json!({ "cluster": cluster }), more);
        json!({ "match": { "prefix": format!("/{name}/") }, "route": action })
    };
    let to = |name: &str| route(&name.replace('_', "-"), name, json!({}));
    let retried = || json!({ "retry_on": "5xx,reset,connect-failure", "num_retries": 1 });
    vec![
        to("nobody"),
        to("black_hole"),
        to("empty"),
        to("no_pending"),
        to("no_requests"),
        to("garbage"),
        to("reset"),
        to("refused_stream"),
        to("go_away"),
        to("refused_upstream"),
        route("timeout", "origin", json!({ "timeout": TIMEOUT })),
        route("timeout-first", "black_hole", json!({ "timeout": "0.1s" })),
        route("idle", "origin", json!({ "timeout": "0s", "idle_timeout": TIMEOUT })),
        route("idle-first", "black_hole", json!({ "timeout": "0s", "idle_timeout": "0.1s" })),
        route(
            "duration",
            "origin",
            json!({ "max_stream_duration": { "max_stream_duration": TIMEOUT } }),
        ),
        route(
            "per-try",
            "origin",
            json!({ "retry_policy": { "retry_on": "connect-failure", "per_try_timeout": TIMEOUT } }),
        ),
        route("retried", "origin", json!({ "retry_policy": retried() })),
        route("retried-nobody", "nobody", json!({ "retry_policy": retried() })),
        route("last-breath", "last_breath", json!({ "retry_policy": retried() })),
        route("no-retries", "no_retries", json!({ "retry_policy": retried() })),
        route(
            "redirected",
            "origin",
            json!({ "internal_redirect_policy": { "allow_cross_scheme_redirect": true } }),
        ),
        json!({ "match": { "prefix": "/no-cluster/" }, "route": { "cluster_header": "x-cluster" } }),
        json!({ "match": { "prefix": "/direct/" }, "direct_response": { "status": 200 } }),
        json!({ "match": { "prefix": "/moved/" }, "redirect": { "path_redirect": "/" } }),
        merged(
            route("small", "origin", json!({})),
            json!({ "typed_per_filter_config": { "buffer": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
                "buffer": { "max_request_bytes": 40 } } } }),
        ),
    ]
}

/// Filters that may refuse a request that the idempotency filter has let pass.
fn filters_behind() -> Vec<Value> {
    let denied = json!({ "header": { "name": "x-denied", "present_match": true } });
    let policy = json!({ "permissions": [denied], "principals": [{ "any": true }] });
    vec![
        filter(
            "rbac",
            "rbac.v3.RBAC",
            json!({ "rules": { "action": "DENY", "policies": { "no": policy } } }),
        ),
        filter(
            "fault",
            "fault.v3.HTTPFault",
            json!({ "abort": { "header_abort": {}, "percentage": { "numerator": 100 } } }),
        ),
        filter("buffer", "buffer.v3.Buffer", json!({ "max_request_bytes": 1_000_000 })),
    ]
}

fn filter(name: &str, kind: &str, more: Value) -> Value {
    let kind = format!("type.googleapis.com/envoy.extensions.filters.http.{kind}");
    json!({ "name": name, "typed_config": merged(json!({ "@type": kind }), more) })
}

fn protocol(more: Value) -> Value {
    const NAME: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let kind = format!("type.googleapis.com/{NAME}");
    json!({ "typed_extension_protocol_options": { NAME: merged(json!({ "@type": kind }), more) } })
}

fn cluster(name: &str, port: Option<u16>, more: Value) -> Value {
    let endpoints: Vec<Value> = port
        .iter()
        .map(|port| json!({ "address": "127.0.0.1", "port_value": port }))
        .map(|address| json!({ "endpoint": { "address": { "socket_address": address } } }))
        .collect();
    let assignment = json!({ "cluster_name": name, "endpoints": [{ "lb_endpoints": endpoints }] });
    let cluster = json!({ "name": name, "connect_timeout": "0.3s", "load_assignment": assignment });
    merged(cluster, more)
}

fn merged(mut value: Value, more: Value) -> Value {
    if let (Some(value), Value::Object(more)) = (value.as_object_mut(), more) {
        value.extend(more);
    }
    value
}
