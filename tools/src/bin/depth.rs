//! `make depth`: how many streams one callback of a worker may let go before V8's stack ends.
//!
//! Envoy carries out a callback's requests after it, one inside another, so the stack grows with the number
//! of streams that one callback handles. The module of `make trap` handles a whole crowd in one callback;
//! bisection finds the crowd that is too large. A crowd passes if no VM stops and every request has its
//! answer. `BATCH` in `src/schedule/budget.rs` rests on these figures.

#![allow(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "it takes the time that a worker takes, and a measurement that cannot be made ends there"
)]

use serde_json::{Value, json};
use std::time::Duration;
use testkit::crowd::Crowd;
use testkit::deployment::Store;
use testkit::scene::Scene;
use testkit::{Bootstrap, PATIENCE, Request, eventually};
use tokio::time::{sleep, timeout};

/// No callback reaches this limit: only the size of the crowd counts.
const UNBOUNDED: u32 = 1_000_000;

/// The largest crowd. A worker has no more than 1,024 commands to Redis under way.
const LARGEST: usize = 1_000;

/// Bisection ends when the bounds are this close.
const RESOLUTION: usize = 2;

/// The store's timeout: short where the crowd waits for it, long where no request should reach it.
const SHORT: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(5);

/// A way to let a crowd go in one callback.
#[derive(Clone, Copy)]
enum Case {
    /// The first of a key has its answer, and those that wait for it get theirs: local replies.
    Replays,
    /// … behind five filters more, each of which sees every answer.
    ReplaysInAChain,
    /// Redis grants all claims in one read: the requests go on to the origin.
    Requests,
    /// … to a cluster without hosts: each ends in a local reply of Envoy's router.
    RequestsWithoutHost,
    /// Redis confirms all records in one read: the ends of the responses go on.
    Responses,
    /// The time of all records is over in one tick: the same.
    ResponsesLate,
    /// Redis confirms all records in one read, behind five filters more.
    ResponsesInAChain,
}

impl Case {
    const ALL: [Self; 7] = [
        Self::Replays,
        Self::ReplaysInAChain,
        Self::Requests,
        Self::RequestsWithoutHost,
        Self::Responses,
        Self::ResponsesLate,
        Self::ResponsesInAChain,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Replays => "local replies",
            Self::ReplaysInAChain => "local replies, five filters more",
            Self::Requests => "requests that go on, the origin answers",
            Self::RequestsWithoutHost => "requests that go on, the cluster has no host",
            Self::Responses => "ends of responses, Redis has confirmed all",
            Self::ResponsesLate => "ends of responses, all are late",
            Self::ResponsesInAChain => "ends of responses, five filters more",
        }
    }

    const fn store(self) -> Store {
        match self {
            Self::Replays | Self::ReplaysInAChain => Store::Memory,
            Self::Requests
            | Self::RequestsWithoutHost
            | Self::Responses
            | Self::ResponsesLate
            | Self::ResponsesInAChain => Store::Redis,
        }
    }

    const fn store_timeout(self) -> Duration {
        match self {
            Self::ResponsesLate => SHORT,
            Self::Replays
            | Self::ReplaysInAChain
            | Self::Requests
            | Self::RequestsWithoutHost
            | Self::Responses
            | Self::ResponsesInAChain => LONG,
        }
    }

    const fn has_chain(self) -> bool {
        match self {
            Self::ReplaysInAChain | Self::ResponsesInAChain => true,
            Self::Replays
            | Self::Requests
            | Self::RequestsWithoutHost
            | Self::Responses
            | Self::ResponsesLate => false,
        }
    }

    /// What becomes of a crowd of this size.
    async fn measure(self, size: usize) -> Fate {
        let mut rules = json!({ "rules": [{
            "name": "pay", "match": {}, "key": [ { "key_header": "idempotency-key" } ],
            "caller": { "header": "authorization" }, "lease": "2m",
            "ongoing": { "wait": { "max": "2m" } } }] });
        let store = self.store();
        if store == Store::Redis {
            let timeout = format!("{}s", self.store_timeout().as_secs());
            rules["store"] = json!({ "redis": { "cluster": "redis", "timeout": timeout } });
        }
        let change = |bootstrap: Bootstrap| {
            let bootstrap = bootstrap.batch(UNBOUNDED);
            if self.has_chain() { in_a_chain(bootstrap) } else { bootstrap }
        };
        let scene = Scene::start_with(store, &rules, change).await;
        let work = async {
            match self {
                Self::Replays | Self::ReplaysInAChain => replays(&scene, size).await,
                Self::Requests => requests(&scene, size).await,
                Self::RequestsWithoutHost => requests_without_host(&scene, size).await,
                Self::Responses | Self::ResponsesInAChain => responses(&scene, size).await,
                Self::ResponsesLate => responses_late(&scene, size).await,
            }
        };
        tokio::select! {
            all_answered = timeout(2 * PATIENCE, work) => match (trap(&scene), all_answered) {
                (Some(callback), _) => Fate::Trapped(callback),
                (None, Ok(true)) => Fate::Passed,
                (None, Ok(false) | Err(_)) => Fate::Unanswered,
            },
            callback = trapped(&scene) => Fate::Trapped(callback),
        }
    }
}

/// What became of a crowd.
enum Fate {
    Passed,
    /// The VM stopped in this callback.
    Trapped(String),
    /// No VM stopped, and yet some have no answer.
    Unanswered,
}

/// The callback in which a VM has stopped.
fn trap(scene: &Scene) -> Option<String> {
    let log = scene.deployment.envoy().log();
    let line = log.lines().find(|line| line.contains("RangeError"))?;
    let callback = line.split_once("Function: ")?.1.split_once(" failed").map(|(name, _)| name);
    Some(callback.unwrap_or("?").to_owned())
}

/// Waits until a VM has stopped.
async fn trapped(scene: &Scene) -> String {
    loop {
        if let Some(callback) = trap(scene) {
            return callback;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Before the router: Lua that looks at both directions, RBAC, a buffer, a Wasm filter of whatever kind, and
/// Lua once more.
fn in_a_chain(bootstrap: Bootstrap) -> Bootstrap {
    bootstrap.with(|bootstrap| {
        let of = |name: &str, config: Value| {
            let kind = format!("type.googleapis.com/envoy.extensions.filters.http.{name}");
            let mut config = config;
            config["@type"] = json!(kind);
            json!({ "name": name, "typed_config": config })
        };
        let code = "function envoy_on_request(handle) handle:headers():add('x-chain', '1') end\n\
                    function envoy_on_response(handle) handle:headers():add('x-chain', '1') end";
        let lua = of("lua.v3.Lua", json!({ "default_source_code": { "inline_string": code } }));
        let rbac = of(
            "rbac.v3.RBAC",
            json!({ "rules": { "action": "ALLOW", "policies": { "all": {
            "permissions": [{ "any": true }], "principals": [{ "any": true }] } } } }),
        );
        let buffer = of("buffer.v3.Buffer", json!({ "max_request_bytes": 65_536 }));
        let filters = &mut bootstrap.manager()["http_filters"];
        // One of ours, in a VM of its own, whose rule matches nothing.
        let mut wasm = filters.as_array().unwrap().first().unwrap().clone();
        let plugin = &mut wasm["typed_config"]["config"];
        plugin["name"] = json!("other");
        plugin["vm_config"]["vm_id"] = json!("other");
        plugin["configuration"]["value"] = json!(
            json!({ "rules": [{
            "name": "none", "match": { "path": "/none" },
            "key": [ { "key_header": "idempotency-key" } ], "caller": "anyone" }] })
            .to_string()
        );
        let filters = filters.as_array_mut().unwrap();
        let router = filters.len() - 1;
        filters.splice(router..router, [lua.clone(), rbac, buffer, wasm, lua]);
    })
}

fn held(requests: Vec<Request>) -> Vec<Request> {
    requests.into_iter().map(|request| request.header("x-origin-hold", "all")).collect()
}

/// Whether all of the crowd end in this.
async fn end_in(crowd: Crowd, outcome: &str) -> bool {
    let size = crowd.size();
    crowd.outcomes().await.0.get(outcome) == Some(&size)
}

async fn replays(scene: &Scene, size: usize) -> bool {
    let first = scene.crowd(held(scene.requests("/pay", 1, 1))).await;
    scene.run(1).await;
    let waiters = scene.crowd(scene.requests("/pay", size, 1)).await;
    scene.wait(0, size).await;
    scene.deployment.origin.release("all");
    end_in(first, "200").await && end_in(waiters, "200 replayed").await
}

/// The origin keeps its answers back: their ends would be let go together as well, and are another case.
async fn requests(scene: &Scene, size: usize) -> bool {
    let redis = scene.deployment.redis.as_ref().unwrap();
    let before = redis.script_calls().await;
    redis.freeze().await;
    let _crowd = scene.crowd(held(scene.requests("/pay", size, size))).await;
    scene.come(size).await;
    scene.redis_wakes_up(before + size as u64).await;
    eventually("all run", async || scene.executions() == size || trap(scene).is_some()).await;
    true
}

async fn requests_without_host(scene: &Scene, size: usize) -> bool {
    let redis = scene.deployment.redis.as_ref().unwrap();
    let before = redis.script_calls().await;
    redis.freeze().await;
    let crowd = scene.crowd(scene.requests("/empty/pay", size, size)).await;
    scene.come(size).await;
    scene.redis_wakes_up(before + size as u64).await;
    end_in(crowd, "503").await
}

/// All run; Redis takes no more writes; all responses wait for it to take their records.
///
/// A frozen Redis would not read: its socket has no room for a crowd's records.
async fn responses_held(scene: &Scene, size: usize) -> Crowd {
    let mut crowd = Crowd::at(scene.deployment.envoy().front).await;
    // Few at a time: a crowd's claims are let go together as well, and are another case.
    for some in held(scene.requests("/pay", size, size)).chunks(50) {
        crowd.add(some.to_vec());
        scene.run(crowd.size()).await;
    }
    let redis = scene.deployment.redis.as_ref().unwrap();
    assert_eq!(redis.cli(&["CLIENT", "PAUSE", "60000", "WRITE"]).await, "OK");
    scene.deployment.origin.release("all");
    eventually("Envoy has all answers", async || {
        scene.deployment.envoy().stat("cluster.origin.upstream_rq_active").await == Some(0)
    })
    .await;
    // A worker that has answered others since has sent on what it had from the origin.
    scene.come(size).await;
    crowd
}

async fn responses(scene: &Scene, size: usize) -> bool {
    let crowd = responses_held(scene, size).await;
    let redis = scene.deployment.redis.as_ref().unwrap();
    assert_eq!(redis.cli(&["CLIENT", "UNPAUSE"]).await, "OK");
    end_in(crowd, "200").await
}

async fn responses_late(scene: &Scene, size: usize) -> bool {
    let crowd = responses_held(scene, size).await;
    scene.freeze_for(SHORT).await;
    end_in(crowd, "200").await
}

/// Measures a case and prints its line.
async fn bisect(case: Case) {
    let (mut passes, mut too_many, mut callback) = (0, LARGEST, String::new());
    match case.measure(LARGEST).await {
        Fate::Passed => {
            return line(case.name(), &LARGEST.to_string(), "–", "the largest measured");
        }
        Fate::Unanswered => return line(case.name(), "?", "?", "some have no answer"),
        Fate::Trapped(first) => callback.clone_from(&first),
    }
    while too_many - passes > RESOLUTION {
        let size = passes.midpoint(too_many);
        match case.measure(size).await {
            Fate::Passed => passes = size,
            Fate::Trapped(in_it) => (too_many, callback) = (size, in_it),
            Fate::Unanswered => {
                return line(case.name(), "?", &size.to_string(), "some have no answer");
            }
        }
    }
    line(case.name(), &passes.to_string(), &too_many.to_string(), &callback);
}

fn line(case: &str, passes: &str, too_many: &str, callback: &str) {
    println!("{case:<46}{passes:>8}{too_many:>8}  {callback}");
}

#[tokio::main]
async fn main() {
    println!("Streams that one callback of a worker lets go\n");
    line("", "passes", "traps", "in");
    for case in Case::ALL {
        bisect(case).await;
    }
}
