//! Both stores behind one interface, so that a test runs on either.

use super::{Bootstrap, Envoy, Origin, Redis, Request, patient};
use serde_json::Value;

/// Where records are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// In the memory of one Envoy.
    Memory,
    /// In a Redis that two Envoys share.
    Redis,
}

/// One Envoy with records in memory, or two that share a Redis, in front of an origin.
pub struct Deployment {
    pub envoys: Vec<Envoy>,
    pub origin: Origin,
    /// With [`Store::Redis`].
    pub redis: Option<Redis>,
}

impl Deployment {
    /// Starts the store's own bootstrap with these rules, changed further by the test.
    pub async fn start(
        store: Store,
        rules: &Value,
        change: impl FnOnce(Bootstrap) -> Bootstrap,
    ) -> Self {
        let origin = Origin::start().await;
        let (redis, bootstrap, count) = match store {
            Store::Memory => (None, Bootstrap::demo().rules(rules), 1),
            Store::Redis => {
                let redis = Redis::start().await;
                let bootstrap = Bootstrap::redis(redis.port()).rules(&patient(rules));
                (Some(redis), bootstrap, 2)
            }
        };
        let bootstrap = change(bootstrap).origin(origin.address.port());
        let mut envoys = Vec::new();
        for _ in 0..count {
            envoys.push(Envoy::start(bootstrap.clone()).await);
        }
        Self { envoys, origin, redis }
    }

    /// The Envoy that runs first requests.
    pub fn envoy(&self) -> &Envoy {
        &self.envoys[0]
    }

    /// A POST to the first Envoy.
    pub fn post(&self, path: &str) -> Request {
        Request::new(self.envoys[0].front, "POST", path)
    }

    /// A POST to an Envoy that knows the first requests only from the store, if there is one.
    pub fn elsewhere(&self, path: &str) -> Request {
        Request::new(self.envoys[self.envoys.len() - 1].front, "POST", path)
    }

    /// The origin's requests with this `Idempotency-Key`: the `Idempotency-Attempt` of each.
    pub fn attempts(&self, key: &str) -> Vec<String> {
        let seen = self.origin.seen().into_iter();
        let of_key = seen.filter(|seen| seen.header("idempotency-key") == Some(key));
        of_key
            .map(|seen| seen.header("idempotency-attempt").unwrap_or_default().to_owned())
            .collect()
    }
}
