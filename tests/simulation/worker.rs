//! A worker as in the host: the front, the waiting streams, timers, and a budget per callback.

use envoy_idempotency::exchange::RequestId;
use envoy_idempotency::schedule::{Budget, Timers, Waiters};
use envoy_idempotency::store::front::Front;
use envoy_idempotency::store::redis::{Client, Connection, Settings, Transport};
use envoy_idempotency::store::shared_data::{Capacity, MemoryStore, SharedData, SharedDataError};
use envoy_idempotency::store::tiers::Tiers;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;
use testkit::map::Map;

/// Shorter than a record's own, so that both ends are met.
const LOCAL_TTL: Duration = Duration::from_secs(3);
/// Room for all that a run has: what is dropped for want of room may run again, as the README says.
const CAPACITY: Capacity =
    Capacity { entries: 1_024, budget_bytes: 4 << 20, largest_answer: 1_000 };
/// When a command to Redis is late.
pub const TIMEOUT_MILLIS: u64 = 250;
/// Streams that one callback handles: few, so that small crowds need many callbacks.
pub const SHARE: u32 = 3;

/// Shared data of one Envoy.
#[derive(Clone, Debug, Default)]
pub struct Shared(pub Rc<Map>);

impl SharedData for Shared {
    fn load(&self, key: &str) -> (Option<Vec<u8>>, Option<u32>) {
        self.0.load(key)
    }

    fn store(&self, key: &str, value: &[u8], cas: u32) -> Result<(), SharedDataError> {
        self.0.store(key, value, cas)
    }
}

/// A command of a stream.
pub type StreamRequest = (usize, RequestId);

/// A connection to Redis, as the worker has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Socket {
    pub worker: usize,
    pub line: Connection,
    /// Distinguishes the connections of one line.
    pub number: u64,
}

pub struct Worker {
    pub envoy: usize,
    pub front: Front<Shared, StreamRequest>,
    pub waiters: Waiters,
    pub timers: Timers,
    pub budget: Budget,
    pub fetched: VecDeque<(usize, RequestId, crate::world::Ending)>,
    pub connections: HashMap<Connection, u64>,
    pub opened: u64,
    /// It receives messages of the other workers.
    pub listens: bool,
    pub tick_at: Option<u64>,
    /// When a reply gave it Redis's time.
    pub clock_known_at: Option<u64>,
    /// VMs that this worker had before.
    pub generation: u64,
}

impl Worker {
    pub fn new(envoy: usize, shared: Shared, memory: bool, seed: u64) -> Self {
        let table = MemoryStore::open(shared, "simulation", CAPACITY).unwrap();
        let timeout = Duration::from_millis(TIMEOUT_MILLIS);
        let front = if memory {
            Front::memory(table)
        } else {
            let settings =
                Settings { prefix: crate::redis::PREFIX.to_owned(), timeout, login: None };
            let client = Client::new(&settings, Transport::Pipe, seed);
            Front::redis(Tiers::new(table, LOCAL_TTL, timeout), client, timeout)
        };
        Self {
            envoy,
            front,
            waiters: Waiters::default(),
            timers: Timers::default(),
            budget: Budget::new(SHARE),
            fetched: VecDeque::new(),
            connections: HashMap::new(),
            opened: 0,
            listens: false,
            tick_at: None,
            clock_known_at: None,
            generation: 0,
        }
    }

    /// Something waits for another callback, whatever the time.
    pub fn has_more(&self) -> bool {
        !self.fetched.is_empty() || self.waiters.has_woken() || self.front.has_work()
    }
}
