//! The manifests for Istio and Envoy Gateway: each is checked against its custom resource's schema, and the Envoy part of it
//! is extracted, put into a bootstrap, and run. There is no cluster here: the part of the control plane is played by
//! `istio` and `gateway`, which handle these resources like the sources of the real ones. The image is read back, too.

#![allow(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a test: clippy sees only what stands in a #[test] function as one"
)]

mod documents;
mod gateway;
mod image;
mod istio;
mod patch;
mod schema;
mod scratch;

use serde_json::Value;
use testkit::{Bootstrap, Envoy, Origin, Request};

/// A path of this project.
fn home(path: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// An Envoy for a manifest, in front of an origin that counts.
struct Site {
    envoy: Envoy,
    origin: Origin,
}

impl Site {
    async fn start(bootstrap: Bootstrap) -> Self {
        let origin = Origin::start().await;
        let envoy = Envoy::start(bootstrap.origin(origin.address.port())).await;
        Self { envoy, origin }
    }

    fn post(&self, path: &str) -> Request {
        Request::new(self.envoy.front, "POST", path)
    }

    /// Sends it twice; whether the second was answered from the first.
    async fn replays(&self, request: Request) -> bool {
        let before = self.origin.executions();
        let first = request.clone().send().await;
        assert!(first.status == 200 && !first.is_replay(), "{} {}", first.status, first.text());
        let second = request.send().await;
        assert_eq!(second.status, 200, "{}", second.text());
        assert_eq!(self.origin.executions() - before, if second.is_replay() { 1 } else { 2 });
        assert!(!second.is_replay() || first.body == second.body);
        second.is_replay()
    }

    /// The rules `payments` and `order-transition`, as in the README.
    async fn protects_bodies_too(&self) {
        let pay = || self.post("/v1/payments").key("a").caller("alice");
        assert!(self.replays(pay().json("{\"amount\":1}")).await);
        let other = pay().json("{\"amount\":2}").send().await;
        assert_eq!((other.status, other.code().as_str()), (422, "key-reused"));
    }

    async fn protects_transitions(&self) {
        let order = |body| self.post("/orders/7/transitions").json(body);
        assert!(self.replays(order(r#"{"from":"A","to":"B"}"#)).await);
        assert!(order(r#"{"to":"B","from":"A"}"#).send().await.is_replay());
        assert!(self.replays(order(r#"{"from":"D","to":"B"}"#)).await);
    }

    /// The rule `payments` of plugins that cannot read bodies.
    async fn protects_header_keys(&self) {
        let pay = |key| self.post("/v1/payments").key(key).caller("alice").json("{}");
        assert!(self.replays(pay("a")).await);
        assert!(self.replays(pay("b")).await);
        assert!(!self.replays(self.post("/elsewhere").key("a").caller("alice").json("{}")).await);
    }

    /// Prometheus gets the labels out of a metric's name.
    async fn labels_metrics(&self) {
        let text = testkit::client::get(self.envoy.admin, "/stats/prometheus").await.unwrap();
        let labelled = "idempotency_requests_total{rule=\"payments\",outcome=\"replayed\"} 1";
        let lines: Vec<_> = text.lines().filter(|line| line.contains("replayed")).collect();
        assert!(lines.contains(&labelled), "{lines:#?}");
    }
}

/// Changes the filter's configuration within Envoy's plugin config, in any of its forms.
fn reconfigure(plugin: &mut Value, change: impl FnOnce(&mut Value)) {
    let value = &mut plugin["configuration"]["value"];
    match value.as_str() {
        Some(text) => {
            let mut config = serde_json::from_str(text).unwrap();
            change(&mut config);
            *value = Value::String(config.to_string());
        }
        None => change(value),
    }
}

/// More time for Redis than in a manifest: on a busy machine, a test that is not about time must not fail because of it.
fn patient(config: &mut Value) {
    if let Some(redis) = config.pointer_mut("/store/redis") {
        redis["timeout"] = "3s".into();
    }
}
