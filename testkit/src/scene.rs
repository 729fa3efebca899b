//! Envoys in front of which a crowd gathers, and what makes all of it go in one moment.

use super::crowd::{Crowd, roomy};
use super::deployment::Store;
use super::{Bootstrap, Deployment, Redis, Request, eventually};
use serde_json::Value;
use std::cell::Cell;
use std::time::Duration;

/// Envoys that each have served a request, and whose VMs must outlive the crowd.
pub struct Scene {
    pub deployment: Deployment,
    /// VMs that each Envoy has made.
    pub vms: Vec<u64>,
}

impl Scene {
    pub async fn start(store: Store, rules: &Value) -> Self {
        Self::start_with(store, rules, |bootstrap| bootstrap).await
    }

    pub async fn start_with(
        store: Store,
        rules: &Value,
        change: impl FnOnce(Bootstrap) -> Bootstrap,
    ) -> Self {
        let deployment =
            Deployment::start(store, rules, |bootstrap| change(roomy(bootstrap))).await;
        let mut scene = Self { deployment, vms: Vec::new() };
        for (number, envoy) in scene.deployment.envoys.iter().enumerate() {
            assert_eq!(scene.post(number, "/pay", "before").send().await.status, 200);
            scene.vms.push(envoy.vms_created().await);
        }
        scene
    }

    pub fn post(&self, envoy: usize, path: &str, key: &str) -> Request {
        let request = Request::new(self.deployment.envoys[envoy].front, "POST", path);
        request.key(key).caller("alice").json("{}").http2()
    }

    /// This many requests to the first Envoy, over this many keys in turn.
    pub fn requests(&self, path: &str, number: usize, keys: usize) -> Vec<Request> {
        (0..number).map(|each| self.post(0, path, &format!("key-{}", each % keys))).collect()
    }

    /// Sends these to the first Envoy.
    pub async fn crowd(&self, requests: Vec<Request>) -> Crowd {
        Crowd::send(self.deployment.envoy().front, requests).await
    }

    /// Executions of the crowd, without the request before it.
    pub fn executions(&self) -> usize {
        self.deployment.origin.executions() - 1
    }

    /// Waits until this many run.
    pub async fn run(&self, number: usize) {
        eventually("so many run", async || self.executions() == number).await;
    }

    /// Waits until this many wait at this Envoy for another's execution.
    pub async fn wait(&self, envoy: usize, number: usize) {
        eventually("so many wait", async || {
            let waiters =
                self.deployment.envoys[envoy].stat("wasmcustom.idempotency_waiters").await;
            waiters == Some(number as u64)
        })
        .await;
    }

    /// Sends these to the first Envoy, where all of them run in the end.
    pub async fn crowd_that_runs(&self, requests: Vec<Request>) -> Crowd {
        let mut crowd = Crowd::at(self.deployment.envoy().front).await;
        // With Redis, a worker has no more than 1,024 commands under way.
        for some in requests.chunks(500) {
            crowd.add(some.to_vec());
            self.run(crowd.size()).await;
        }
        crowd
    }

    /// Waits until this many requests have come to the first Envoy, the one before the crowd not counted.
    pub async fn come(&self, number: usize) {
        eventually("all have come", async || {
            let total = self.deployment.envoy().stat("http.front.downstream_rq_total").await;
            total == Some(number as u64 + 1)
        })
        .await;
        // A worker that has answered others since has passed on their bytes.
        for _ in 0..2 {
            let other = Request::new(self.deployment.envoy().front, "GET", "/empty/").send().await;
            assert_eq!(other.status, 503);
        }
    }

    /// Sees that no VM has stopped, and that the next request is served.
    pub async fn is_unharmed(&self) {
        for (number, envoy) in self.deployment.envoys.iter().enumerate() {
            let executions = self.executions();
            let next = self.post(number, "/pay", &format!("next-{number}")).send().await;
            assert_eq!((next.status, next.is_replay()), (200, false), "{}", next.text());
            assert_eq!(self.executions(), executions + 1);
            assert_eq!(envoy.vms_created().await, self.vms[number]);
            assert_eq!(envoy.stat("wasm.idempotency.vm_reload").await, Some(0));
            let log = envoy.log();
            assert!(!log.contains("Function: proxy_on") && !log.contains("RangeError"), "a trap");
        }
    }

    /// Waits until Redis serves again, and then as [`Self::is_unharmed`].
    pub async fn recovers(&self) {
        for number in 0..self.deployment.envoys.len() {
            let tries = Cell::new(0);
            eventually("service is back", async || {
                tries.set(tries.get() + 1);
                let key = format!("back-{number}-{}", tries.get());
                self.post(number, "/pay", &key).send().await.status == 200
            })
            .await;
        }
        self.is_unharmed().await;
    }

    /// Freezes the first Envoy: all timers that expire meanwhile are due in one moment.
    pub async fn freeze_for(&self, time: Duration) {
        self.deployment.envoy().freeze().await;
        tokio::time::sleep(time).await;
        self.deployment.envoy().thaw().await;
    }

    /// Lets Redis, which is frozen, answer this many commands, all before the first Envoy reads any.
    pub async fn redis_wakes_up(&self, commands: u64) {
        let redis = self.deployment.redis.as_ref().unwrap();
        self.deployment.envoy().freeze().await;
        redis.thaw().await;
        eventually("Redis has answered", async || redis.script_calls().await >= commands).await;
        self.deployment.envoy().thaw().await;
    }

    pub fn redis(&mut self) -> &mut Redis {
        self.deployment.redis.as_mut().unwrap()
    }
}
