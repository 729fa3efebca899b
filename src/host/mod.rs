//! Envoy's callbacks become inputs, and orders become host calls. Decides nothing.

mod abi;
mod bridge;
mod calls;
mod connections;
mod logging;
mod metrics;
mod queues;
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
use metrics::Metrics;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, LogLevel};
use std::cell::RefCell;
use std::rc::Rc;
use store::EnvoySharedData;
use tokens::Tokens;
use worker::{Stores, Worker};

/// The `root_id` under which Envoy finds the filter.
const FILTER_ROOT_ID: &str = "idempotency";

/// The `root_id` under which Envoy finds the bridge of the Redis cluster.
const BRIDGE_ROOT_ID: &str = "redis_bridge";

// Envoy calls this once a VM, before anything else.
#[allow(unsafe_code)]
mod start {
    proxy_wasm::main! {{
        proxy_wasm::set_log_level(super::LogLevel::Info);
        proxy_wasm::set_root_context(|id| Box::new(super::Root { id, role: super::Role::None }));
    }}
}

/// One plugin in one worker, until its configuration is replaced.
struct Root {
    id: u32,
    role: Role,
}

/// Which plugin it is.
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
        let Role::Filter(worker) = &self.role else { return };
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

impl Context for Root {
    /// Another configuration has replaced this one, or Envoy drains: outstanding store commands are finished
    /// first.
    fn on_done(&mut self) -> bool {
        let Role::Filter(worker) = &self.role else { return true };
        worker.try_borrow_mut().is_ok_and(|mut worker| worker.end())
    }

    fn on_grpc_stream_message(&mut self, token: u32, size: usize) {
        self.with(|worker| worker.grpc_message(token, size));
    }

    fn on_grpc_stream_close(&mut self, token: u32, _: u32) {
        self.with(|worker| worker.grpc_closed(token));
    }

    fn on_http_call_response(&mut self, token: u32, headers: usize, size: usize, _: usize) {
        self.with(|worker| worker.call_answered(token, headers, size));
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, size: usize) -> bool {
        match self.configured(size) {
            Ok(role) => {
                self.role = role;
                true
            }
            Err(error) => {
                log::error!("configuration refused: {error}");
                false
            }
        }
    }

    fn on_tick(&mut self) {
        self.with(Worker::tick);
    }

    fn on_queue_ready(&mut self, queue: u32) {
        self.with(|worker| worker.queue_ready(queue));
    }

    fn create_http_context(&self, id: u32) -> Option<Box<dyn HttpContext>> {
        Some(match &self.role {
            Role::Filter(worker) => Box::new(Handle { id, worker: Some(worker.clone()) }),
            Role::Bridge => Box::new(Bridge::default()),
            Role::None => Box::new(Handle { id, worker: None }),
        })
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

/// A stream, by its number; its state is in the worker.
struct Handle {
    id: u32,
    worker: Option<Rc<RefCell<Worker>>>,
}

impl Handle {
    fn with(&self, act: impl FnOnce(&mut Worker, u32) -> Flow) -> Action {
        let flow = match self.worker.as_ref().map(|worker| worker.try_borrow_mut()) {
            Some(Ok(mut worker)) => {
                let flow = act(&mut worker, self.id);
                worker.flush();
                flow
            }
            // Envoy does not call back into host calls. A request that was not checked stays held.
            Some(Err(_)) | None => Flow::Hold,
        };
        match flow {
            Flow::Continue | Flow::KeepLastByte => Action::Continue,
            Flow::Hold => Action::Pause,
        }
    }
}

impl Context for Handle {}

impl HttpContext for Handle {
    fn on_http_request_headers(&mut self, _: usize, end_of_stream: bool) -> Action {
        #[cfg(feature = "deliberate-trap")]
        trap::spring(Direction::Request);
        self.with(|worker, id| worker.request_headers(id, end_of_stream))
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        self.with(|worker, id| worker.body(id, Direction::Request, size, end_of_stream))
    }

    fn on_http_request_trailers(&mut self, _: usize) -> Action {
        self.with(|worker, id| worker.trailers(id, Direction::Request))
    }

    fn on_http_response_headers(&mut self, _: usize, end_of_stream: bool) -> Action {
        #[cfg(feature = "deliberate-trap")]
        trap::spring(Direction::Response);
        self.with(|worker, id| worker.response_headers(id, end_of_stream))
    }

    fn on_http_response_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        self.with(|worker, id| worker.body(id, Direction::Response, size, end_of_stream))
    }

    fn on_http_response_trailers(&mut self, _: usize) -> Action {
        self.with(|worker, id| worker.trailers(id, Direction::Response))
    }

    fn on_log(&mut self) {
        self.with(|worker, id| {
            worker.ended(id);
            Flow::Continue
        });
    }
}
