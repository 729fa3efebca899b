//! Envoy's callbacks become inputs, and orders become host calls. Decides nothing.

mod abi;
mod alarms;
mod metrics;
mod store;
mod tokens;
mod waiters;
mod worker;

use crate::config::{Config, StoreConfig};
use crate::exchange::Flow;
use crate::store::shared_data::{Capacity, MemoryStore};
use abi::Direction;
use metrics::Metrics;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, LogLevel};
use std::cell::RefCell;
use std::rc::Rc;
use store::EnvoySharedData;
use worker::Worker;

/// The `root_id` under which Envoy finds the filter.
const FILTER_ROOT_ID: &str = "idempotency";

// Envoy calls this once a VM, before anything else.
#[allow(unsafe_code)]
mod start {
    proxy_wasm::main! {{
        proxy_wasm::set_log_level(super::LogLevel::Info);
        proxy_wasm::set_root_context(|_| Box::new(super::Root::default()));
    }}
}

/// The filter in one worker, until its configuration is replaced.
#[derive(Default)]
struct Root {
    worker: Option<Rc<RefCell<Worker>>>,
}

impl Root {
    fn configured(size: usize) -> Result<Worker, String> {
        let root_id = abi::property(&["plugin_root_id"]).unwrap_or_default();
        if root_id != FILTER_ROOT_ID.as_bytes() {
            let found = String::from_utf8_lossy(&root_id).into_owned();
            return Err(format!("root_id: {found:?}, wanted {FILTER_ROOT_ID:?}"));
        }
        let environment = |name: &str| std::env::var(name).ok();
        let config = Config::load(&abi::plugin_configuration(size), &environment)
            .map_err(|error| error.to_string())?;
        let plugin = abi::property(&["plugin_name"]).unwrap_or_default();
        let StoreConfig::Memory { entries, budget_bytes } = config.store;
        let capacity = Capacity { entries, budget_bytes, largest_answer: config.largest_answer() };
        let store = MemoryStore::open(EnvoySharedData, &String::from_utf8_lossy(&plugin), capacity)
            .map_err(|error| format!("store.memory: {error}"))?;
        let metrics = Metrics::define(&config);
        let prefix = store.prefix().to_owned();
        Ok(Worker::new(Rc::new(config), store, metrics, &prefix))
    }

    fn with(&self, act: impl FnOnce(&mut Worker)) {
        match self.worker.as_ref().map(|worker| worker.try_borrow_mut()) {
            Some(Ok(mut worker)) => act(&mut worker),
            Some(Err(_)) => log::error!("unreachable: Envoy called back into a host call"),
            None => {}
        }
    }
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, size: usize) -> bool {
        match Self::configured(size) {
            Ok(worker) => {
                self.worker = Some(Rc::new(RefCell::new(worker)));
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
        Some(Box::new(Handle { id, worker: self.worker.clone() }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

/// A stream, by its number; what is known of it is with the worker.
struct Handle {
    id: u32,
    worker: Option<Rc<RefCell<Worker>>>,
}

impl Handle {
    fn with(&self, act: impl FnOnce(&mut Worker, u32) -> Flow) -> Action {
        let flow = match self.worker.as_ref().map(|worker| worker.try_borrow_mut()) {
            Some(Ok(mut worker)) => act(&mut worker, self.id),
            // Envoy does not call back into host calls; a request nobody checks stays where it is.
            Some(Err(_)) | None => Flow::Hold,
        };
        match flow {
            Flow::Continue => Action::Continue,
            Flow::Hold => Action::Pause,
        }
    }
}

impl Context for Handle {}

impl HttpContext for Handle {
    fn on_http_request_headers(&mut self, _: usize, end_of_stream: bool) -> Action {
        self.with(|worker, id| worker.request_headers(id, end_of_stream))
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        self.with(|worker, id| worker.body(id, Direction::Request, size, end_of_stream))
    }

    fn on_http_request_trailers(&mut self, _: usize) -> Action {
        self.with(|worker, id| worker.trailers(id, Direction::Request))
    }

    fn on_http_response_headers(&mut self, _: usize, end_of_stream: bool) -> Action {
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
