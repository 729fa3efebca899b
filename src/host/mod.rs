//! Envoy's callbacks become inputs, and orders become host calls. Decides nothing.

mod abi;
mod bridge;
mod calls;
mod connections;
mod exports;
mod logger;
mod logging;
mod metrics;
mod queues;
mod request;
mod store;
mod tokens;
#[cfg(feature = "deliberate-trap")]
mod trap;
mod worker;

use crate::config::{Config, Redis, StoreConfig, Table};
use crate::exchange::Flow;
use crate::store::front::Front;
use crate::store::redis::Client;
use crate::store::shared_data::{Capacity, MemoryStore};
use crate::store::tiers::Tiers;
use crate::telemetry::Incident;
use abi::Direction;
use bridge::Bridge;
use connections::Connections;
use exports::{BodyStatus, HeadStatus};
use metrics::Metrics;
use std::cell::RefCell;
use std::rc::Rc;
use store::EnvoySharedData;
use tokens::Tokens;
use worker::{Stores, Worker};

/// The `root_id` under which Envoy finds the filter.
const FILTER_ROOT_ID: &str = "idempotency";

/// The `root_id` under which Envoy finds the bridge of the Redis cluster.
const BRIDGE_ROOT_ID: &str = "redis_bridge";

/// One plugin in one worker, until its configuration is replaced.
struct Root {
    id: u32,
    role: RefCell<Role>,
}

/// Which plugin it is.
#[derive(Clone)]
enum Role {
    /// Not configured yet, or refused.
    None,
    /// The filter.
    Filter(Rc<RefCell<Worker>>),
    /// The bridge, which keeps no state beyond a stream.
    Bridge,
}

impl Root {
    fn configured(&self, size: usize) -> Result<Role, String> {
        let root_id = abi::property(&["plugin_root_id"]).unwrap_or_default();
        if root_id == BRIDGE_ROOT_ID.as_bytes() {
            return Ok(Role::Bridge);
        }
        if root_id != FILTER_ROOT_ID.as_bytes() {
            let found = String::from_utf8_lossy(&root_id).into_owned();
            return Err(format!(
                "root_id: {found:?}, wanted {FILTER_ROOT_ID:?} or, in the Redis cluster, \
                 {BRIDGE_ROOT_ID:?}"
            ));
        }
        let environment = |name: &str| std::env::var(name).ok();
        let config = Config::load(&abi::plugin_configuration(size), &environment)
            .map_err(|error| error.to_string())?;
        let plugin = abi::property(&["plugin_name"]).unwrap_or_default();
        let mut tokens = Tokens::default();
        let stores = stores(&config, &String::from_utf8_lossy(&plugin), &mut tokens)?;
        let connections = Connections::new(self.id, &config.store);
        let metrics = Metrics::define(&config);
        let worker = Worker::new(Rc::new(config), stores, connections, metrics, tokens);
        Ok(Role::Filter(Rc::new(RefCell::new(worker))))
    }

    fn with(&self, act: impl FnOnce(&mut Worker)) {
        let Role::Filter(worker) = self.role() else { return };
        match worker.try_borrow_mut() {
            Ok(mut worker) => {
                act(&mut worker);
                worker.flush();
                worker.end_if_settled(self.id);
            }
            Err(_) => {
                logging::log_incident(Incident::Unreachable, &"Envoy called back into a host call");
            }
        }
    }
}

/// The stores that the configuration names.
fn stores(config: &Config, plugin: &str, tokens: &mut Tokens) -> Result<Stores, String> {
    let open = |at: &str, name: &str, table: &Table| {
        let Table { entries, budget_bytes } = *table;
        let capacity = Capacity { entries, budget_bytes, largest_answer: config.largest_answer() };
        MemoryStore::open(EnvoySharedData, name, capacity).map_err(|error| format!("{at}: {error}"))
    };
    match &config.store {
        StoreConfig::Memory(table) => Ok(Front::memory(open("store.memory", plugin, table)?)),
        StoreConfig::Redis(Redis { cluster, settings, transport, local, local_ttl }) => {
            // Settings of one Redis do not apply to another.
            let name = format!("{plugin}/{cluster}/{}", settings.prefix);
            let table = open("store.redis.local", &name, local)?;
            let tiers = Tiers::new(table, *local_ttl, settings.timeout);
            let [a, b, c, d, e, f, g, h, ..] = tokens.next().0;
            let seed = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
            let client = Client::new(settings, *transport, seed);
            Ok(Front::redis(tiers, client, settings.timeout))
        }
    }
}

/// The callbacks.
impl Root {
    fn new(id: u32) -> Self {
        Self { id, role: RefCell::new(Role::None) }
    }

    fn role(&self) -> Role {
        self.role.borrow().clone()
    }

    fn configure(&self, size: usize) -> bool {
        match self.configured(size) {
            Ok(role) => {
                self.role.replace(role);
                true
            }
            Err(error) => {
                log::error!("configuration refused: {error}");
                false
            }
        }
    }

    /// Another configuration has taken this one's place, or Envoy drains: what is owed to the store is
    /// settled first.
    fn done(&self) -> bool {
        let Role::Filter(worker) = self.role() else { return true };
        worker.try_borrow_mut().is_ok_and(|mut worker| worker.end())
    }

    fn grpc_message(&self, token: u32, size: usize) {
        self.with(|worker| worker.grpc_message(token, size));
    }

    fn grpc_closed(&self, token: u32) {
        self.with(|worker| worker.grpc_closed(token));
    }

    fn call_answered(&self, token: u32, headers: usize, size: usize) {
        self.with(|worker| worker.call_answered(token, headers, size));
    }

    fn tick(&self) {
        self.with(Worker::tick);
    }

    fn queue_ready(&self, queue: u32) {
        self.with(|worker| worker.queue_ready(queue));
    }

    fn stream(&self, id: u32) -> Stream {
        match self.role() {
            Role::Filter(worker) => Stream::Filtered { id, worker },
            Role::Bridge => Stream::Bridged(RefCell::default()),
            Role::None => Stream::Unknown,
        }
    }
}

/// A stream of a plugin.
enum Stream {
    /// A request, by its number; what is known of it is with the worker.
    Filtered { id: u32, worker: Rc<RefCell<Worker>> },
    /// A connection to Redis.
    Bridged(RefCell<Bridge>),
    /// Of a plugin without a configuration: nothing gets through.
    Unknown,
}

/// The callbacks.
impl Stream {
    fn headers(&self, direction: Direction, end_of_stream: bool) -> HeadStatus {
        if let Self::Bridged(_) = self {
            Bridge::headers(direction);
        }
        #[cfg(feature = "deliberate-trap")]
        if let Self::Filtered { .. } = self {
            trap::spring(direction);
        }
        head_status(self.feed(|worker, id| match direction {
            Direction::Request => worker.request_headers(id, end_of_stream),
            Direction::Response => worker.response_headers(id, end_of_stream),
        }))
    }

    fn body(&self, direction: Direction, size: usize, end_of_stream: bool) -> BodyStatus {
        if let Self::Bridged(bridge) = self
            && let Ok(mut bridge) = bridge.try_borrow_mut()
        {
            bridge.body(direction, size);
        }
        match (self.feed(|worker, id| worker.body(id, direction, size, end_of_stream)), direction) {
            (Flow::Continue, _) => BodyStatus::Continue,
            // Envoy's own limit holds for it, and Envoy answers for it.
            (Flow::Hold, Direction::Request) => BodyStatus::StopAndBuffer,
            // The end of an answer, in whatever piece it comes: it must not be cut off.
            (Flow::Hold, Direction::Response) => BodyStatus::StopAndWatermark,
            (Flow::Discard, _) => BodyStatus::StopNoBuffer,
        }
    }

    fn trailers(&self, direction: Direction) -> HeadStatus {
        head_status(self.feed(|worker, id| worker.trailers(id, direction)))
    }

    fn ended(&self) {
        self.feed(|worker, id| {
            worker.ended(id);
            Flow::Continue
        });
    }

    fn feed(&self, act: impl FnOnce(&mut Worker, u32) -> Flow) -> Flow {
        let Self::Filtered { id, worker } = self else {
            return match self {
                Self::Bridged(_) => Flow::Continue,
                Self::Filtered { .. } | Self::Unknown => Flow::Hold,
            };
        };
        match worker.try_borrow_mut() {
            Ok(mut worker) => {
                let flow = act(&mut worker, *id);
                worker.flush();
                flow
            }
            // Envoy does not call back into host calls; a request nobody checked stays where it is.
            Err(_) => Flow::Hold,
        }
    }
}

const fn head_status(flow: Flow) -> HeadStatus {
    match flow {
        Flow::Continue => HeadStatus::Continue,
        Flow::Hold | Flow::Discard => HeadStatus::Stop,
    }
}
