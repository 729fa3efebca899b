//! Whose answer is it? Every row of the table in `src/exchange/source.rs`, shown by a real Envoy, and what
//! becomes of the key.

use super::upstreams::{NOWHERE, Upstreams};
use serde_json::json;
use std::sync::Arc;
use testkit::deployment::Store;
use testkit::{Deployment, Request, eventually};
use tokio::task::JoinSet;

/// A way for a first request to end.
struct Row {
    /// Also the key.
    name: &'static str,
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
    /// Executions at the origin, of the router's tries all together.
    runs: usize,
    /// As Envoy logs it: status, details, flags, whether there is a host, tries.
    shows: (u16, &'static str, &'static str, bool, u32),
}

const REFUSED: &str = "upstream_reset_before_response_started{remote_connection_failure|\
                       delayed_connect_error:_Connection_refused}";
const CUT_OFF: &str = "upstream_reset_before_response_started{connection_termination}";
const OVERFLOW: &str = "upstream_reset_before_response_started{overflow}";
const CUT_IN_THE_MIDDLE: &str = "upstream_reset_after_response_started{protocol_error}";

const fn row(
    name: &'static str,
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
    runs: usize,
    shows: (u16, &'static str, &'static str, bool, u32),
) -> Row {
    Row { name, path, headers, runs, shows }
}

/// Nothing has run: the key is free again.
const RELEASED: [Row; 16] = [
    row("refused", "/nobody/", &[], 0, (503, REFUSED, "UF", true, 1)),
    row(
        "connect-timeout",
        "/black-hole/",
        &[],
        0,
        (503, "upstream_reset_before_response_started{connection_timeout}", "UF", true, 1),
    ),
    row("no-healthy-host", "/empty/", &[], 0, (503, "no_healthy_upstream", "UH", false, 1)),
    row("no-pending-requests", "/no-pending/", &[], 0, (503, OVERFLOW, "UO", false, 1)),
    row("no-requests", "/no-requests/", &[], 0, (503, OVERFLOW, "UO", true, 1)),
    row("no-route", "/", &[("host", NOWHERE)], 0, (404, "route_not_found", "NR", false, 0)),
    row(
        "no-cluster",
        "/no-cluster/",
        &[("x-cluster", "none")],
        0,
        (503, "cluster_not_found", "NC", false, 0),
    ),
    row(
        "denied",
        "/",
        &[("x-denied", "yes")],
        0,
        (403, "rbac_access_denied_matched_policy[no]", "-", false, 0),
    ),
    row(
        "aborted",
        "/",
        &[("x-envoy-fault-abort-request", "500")],
        0,
        (500, "fault_filter_abort", "FI", false, 0),
    ),
    row("too-large", "/small/", &[], 0, (413, "request_payload_too_large", "-", false, 0)),
    row("direct", "/direct/", &[], 0, (200, "direct_response", "-", false, 0)),
    row("moved", "/moved/", &[], 0, (301, "direct_response", "-", false, 0)),
    // The application says so.
    row("429", "/", &[("x-origin-status", "429")], 1, (429, "via_upstream", "-", true, 1)),
    row(
        "503-retry-after",
        "/",
        &[("x-origin-status", "503"), ("x-origin-header", "retry-after: 1")],
        1,
        (503, "via_upstream", "-", true, 1),
    ),
    row(
        "no-store",
        "/",
        &[("x-origin-header", "idempotency-control: no-store")],
        1,
        (200, "via_upstream", "-", true, 1),
    ),
    row(
        "ttl-0",
        "/",
        &[("x-origin-header", "idempotency-control: ttl=0")],
        1,
        (200, "via_upstream", "-", true, 1),
    ),
];

/// It may have run.
const UNKNOWN: [Row; 20] = [
    row("cut-off", "/", &[("x-origin-die", "before")], 1, (503, CUT_OFF, "UC", true, 1)),
    row(
        "cut-in-a-chunk",
        "/",
        &[("x-origin-die", "middle")],
        1,
        (200, CUT_IN_THE_MIDDLE, "UPE", true, 1),
    ),
    row(
        "cut-short-of-its-length",
        "/",
        &[("x-origin-die", "middle"), ("x-origin-header", "content-length: 5000")],
        1,
        (200, CUT_IN_THE_MIDDLE, "UPE", true, 1),
    ),
    row(
        "garbage",
        "/garbage/",
        &[],
        0,
        (502, "upstream_reset_before_response_started{protocol_error}", "UPE", true, 1),
    ),
    row(
        "reset",
        "/reset/",
        &[],
        0,
        (503, "upstream_reset_before_response_started{remote_reset}", "UR", true, 1),
    ),
    row(
        "refused-stream",
        "/refused-stream/",
        &[],
        0,
        (503, "upstream_reset_before_response_started{remote_refused_stream_reset}", "UR", true, 1),
    ),
    row(
        "go-away",
        "/go-away/",
        &[],
        0,
        (503, "upstream_reset_before_response_started{remote_refused_stream_reset}", "UR", true, 1),
    ),
    row("timeout", "/timeout/", HELD, 1, (504, "response_timeout", "UT", true, 1)),
    row("per-try", "/per-try/", HELD, 1, (504, "upstream_per_try_timeout", "UT", true, 1)),
    row("idle", "/idle/", HELD, 1, (504, "stream_idle_timeout", "SI", true, 1)),
    row("duration", "/duration/", HELD, 1, (504, "max_duration_timeout", "-", true, 1)),
    // Ran out of time while it waited for a connection: nothing was sent, but the host is named by then.
    row("timeout-first", "/timeout-first/", &[], 0, (504, "response_timeout", "UT", true, 1)),
    row("idle-first", "/idle-first/", &[], 0, (504, "stream_idle_timeout", "SI", true, 1)),
    // Refused by an upstream filter: the same.
    row("refused-upstream", "/refused-upstream/", &[], 0, (500, "lua_response", "-", true, 1)),
    // The application does not know either.
    row("502", "/", &[("x-origin-status", "502")], 1, (502, "via_upstream", "-", true, 1)),
    row(
        "retried-503",
        "/retried/",
        &[("x-origin-status", "503")],
        2,
        (503, "via_upstream", "URX", true, 2),
    ),
    row(
        "retried-cut-off",
        "/retried/",
        &[("x-origin-die", "before")],
        2,
        (503, CUT_OFF, "URX,UC", true, 2),
    ),
    // Got by the origin, and then refused: the last try's attributes say that nothing was sent …
    row("last-breath", "/last-breath/", &[], 0, (503, REFUSED, "URX,UF", true, 2)),
    // … and look just the same in that case.
    row("retried-refused", "/retried-nobody/", &[], 0, (503, REFUSED, "URX,UF", true, 2)),
    // The flag of a circuit breaker, which refused the retry of a sent request.
    row(
        "no-retries",
        "/no-retries/",
        &[("x-origin-die", "before")],
        0,
        (503, CUT_OFF, "UO,UC", true, 1),
    ),
];

/// The application's answer is kept, whichever try of the router's it was.
const KEPT: [Row; 4] = [
    row("answered", "/", &[], 1, (200, "via_upstream", "-", true, 1)),
    row(
        "retried-503-200",
        "/retried/",
        &[("x-origin-status", "503"), ("x-origin-until-try", "2")],
        2,
        (200, "via_upstream", "-", true, 2),
    ),
    row(
        "retried-cut-off-200",
        "/retried/",
        &[("x-origin-die", "before"), ("x-origin-until-try", "2")],
        2,
        (200, "via_upstream", "-", true, 2),
    ),
    row(
        "retried-500",
        "/retried/",
        &[("x-origin-status", "500")],
        2,
        (500, "via_upstream", "URX", true, 2),
    ),
];

const HELD: &[(&str, &str)] = &[("x-origin-hold", "for ever")];

/// Over the limit of `/small/`, and that one over Envoy's answer: it is the limit for both.
const BODY: &str = r#"{"amount":1,"note":"more than forty bytes of a body"}"#;

/// The path of a request that nothing stands in the way of.
const CLEAR: &str = "/clear";

/// A deployment with all upstreams. The path is not part of the key, so that a retry may take another.
async fn deployment(store: Store) -> (Arc<Deployment>, Arc<Upstreams>) {
    let upstreams = Upstreams::start().await;
    let rules = json!({ "rules": [ {
        "name": "any", "match": {}, "scope": ["method"], "unknown_ttl": "2s",
        "key": [ { "key_header": "idempotency-key" } ], "caller": { "header": "authorization" }
    } ] });
    let deployment = Deployment::start(store, &rules, |bootstrap| upstreams.lead(bootstrap)).await;
    (Arc::new(deployment), Arc::new(upstreams))
}

fn complete(request: Request, row: &Row) -> Request {
    request.key(row.name).caller("alice").json(BODY)
}

/// Sends the row's request, and checks its client's answer.
async fn try_row(request: Request, row: &Row) {
    let mut request = complete(request, row);
    for (name, value) in row.headers {
        request = match *name {
            "host" => request.host(value),
            _ => request.header(name, value),
        };
    }
    match request.try_send().await {
        Ok(answer) => {
            assert_eq!((answer.status, answer.is_replay()), (row.shows.0, false), "{}", row.name);
            assert_eq!(answer.header("idempotency-control"), None, "{}", row.name);
        }
        // Cut off in its middle, and its client must notice.
        Err(_) => assert_eq!(row.shows.1, CUT_IN_THE_MIDDLE, "{}", row.name),
    }
}

/// This Envoy's log about the first request of a row, in the row's own words.
async fn logged(deployment: &Deployment, envoy: usize, row: &Row) {
    let start = format!("row {} ", row.name);
    let line = || {
        let log = deployment.envoys[envoy].log();
        log.lines().find_map(|line| line.strip_prefix(&start).map(str::to_owned))
    };
    eventually("the request is logged", async || line().is_some()).await;
    let line = line().unwrap();
    let [status, details, flags, host, tries, outcome] =
        line.split(' ').collect::<Vec<_>>()[..].try_into().unwrap();
    let shown = (
        status.parse().unwrap(),
        details,
        flags,
        host != "host=-",
        tries.strip_prefix("tries=").unwrap().parse().unwrap(),
    );
    assert_eq!((row.name, shown, outcome), (row.name, row.shows, "outcome=executed"));
}

/// Runs every row at the same time as the others.
async fn each<F>(rows: &'static [Row], run: impl Fn(&'static Row) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut all = JoinSet::new();
    for row in rows {
        all.spawn(run(row));
    }
    while let Some(ended) = all.join_next().await {
        ended.unwrap();
    }
}

async fn where_nothing_has_run_the_key_is_free(store: Store) {
    let (deployment, upstreams) = deployment(store).await;
    each(&RELEASED, |row| {
        let deployment = deployment.clone();
        async move {
            try_row(deployment.post(row.path), row).await;
            try_row(deployment.elsewhere(row.path), row).await;
            logged(&deployment, 0, row).await;
            logged(&deployment, deployment.envoys.len() - 1, row).await;
        }
    })
    .await;
    if let Some(redis) = &deployment.redis {
        assert_eq!(redis.keys("idem:*").await, Vec::<String>::new());
    }
    each(&RELEASED, |row| {
        let deployment = deployment.clone();
        async move {
            let answer = complete(deployment.post(CLEAR), row).send().await;
            assert_eq!((answer.status, answer.is_replay()), (200, false), "{}", row.name);
            assert_eq!(deployment.attempts(row.name), vec!["1"; 2 * row.runs + 1], "{}", row.name);
        }
    })
    .await;
    assert_eq!(upstreams.executions(), 0);
}

async fn if_it_may_have_run_the_outcome_is_unknown_for_a_while(store: Store) {
    let (deployment, _upstreams) = deployment(store).await;
    each(&UNKNOWN, |row| {
        let deployment = deployment.clone();
        async move {
            try_row(deployment.post(row.path), row).await;
            // The record is written when Envoy knows; a client that was cut off may know before it.
            eventually("the outcome is unknown", async || {
                let retry = complete(deployment.elsewhere(CLEAR), row).send().await;
                assert_eq!(retry.status, 409, "{}", row.name);
                assert!(["in-progress", "outcome-unknown"].contains(&retry.code().as_str()));
                retry.code() == "outcome-unknown"
            })
            .await;
            logged(&deployment, 0, row).await;
            assert_eq!(deployment.attempts(row.name), vec!["1"; row.runs], "{}", row.name);
            eventually("the next attempt takes over", async || {
                let retry = complete(deployment.elsewhere(CLEAR), row).send().await;
                assert!(retry.status == 200 || retry.code() == "outcome-unknown", "{}", row.name);
                retry.status == 200
            })
            .await;
            let mut attempts = vec!["1"; row.runs];
            attempts.push("2");
            assert_eq!(deployment.attempts(row.name), attempts, "{}", row.name);
        }
    })
    .await;
}

async fn the_applications_answer_to_the_last_try_is_kept(store: Store) {
    let (deployment, _upstreams) = deployment(store).await;
    each(&KEPT, |row| {
        let deployment = deployment.clone();
        async move {
            try_row(deployment.post(row.path), row).await;
            logged(&deployment, 0, row).await;
            for request in [deployment.post(CLEAR), deployment.elsewhere(CLEAR)] {
                let retry = complete(request, row).send().await;
                let found = (retry.status, retry.is_replay());
                assert_eq!(found, (row.shows.0, true), "{}", row.name);
            }
            // One execution of the filter's, in as many tries of the router's.
            assert_eq!(deployment.attempts(row.name), vec!["1"; row.runs], "{}", row.name);
        }
    })
    .await;
}

/// Envoy sends the request through all filters again: the second pass is a duplicate of the first.
async fn an_internal_redirect_is_not_followed(store: Store) {
    let (deployment, _upstreams) = deployment(store).await;
    let request = |path: &str| deployment.post(path).key("a").caller("alice").json("{}");
    let first = request("/redirected/")
        .header("x-origin-status", "302")
        .header("x-origin-header", "location: http://api.example.com/clear")
        .send()
        .await;
    assert_eq!(first.status, 409);
    eventually("the outcome is unknown", async || {
        request(CLEAR).send().await.code() == "outcome-unknown"
    })
    .await;
    assert_eq!(deployment.attempts("a"), ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_has_run_the_key_is_free_in_memory() {
    where_nothing_has_run_the_key_is_free(Store::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_has_run_the_key_is_free_in_redis() {
    where_nothing_has_run_the_key_is_free(Store::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn if_it_may_have_run_the_outcome_is_unknown_for_a_while_in_memory() {
    if_it_may_have_run_the_outcome_is_unknown_for_a_while(Store::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn if_it_may_have_run_the_outcome_is_unknown_for_a_while_in_redis() {
    if_it_may_have_run_the_outcome_is_unknown_for_a_while(Store::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_applications_answer_to_the_last_try_is_kept_in_memory() {
    the_applications_answer_to_the_last_try_is_kept(Store::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_applications_answer_to_the_last_try_is_kept_in_redis() {
    the_applications_answer_to_the_last_try_is_kept(Store::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_internal_redirect_runs_once_and_is_not_followed_in_memory() {
    an_internal_redirect_is_not_followed(Store::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_internal_redirect_runs_once_and_is_not_followed_in_redis() {
    an_internal_redirect_is_not_followed(Store::Redis).await;
}
