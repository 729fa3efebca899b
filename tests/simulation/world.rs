//! The simulated world: clients, two Envoys with a clock each, a store, an origin, and faults.

use crate::map::Map;
use envoy_idempotency::config::Config;
use envoy_idempotency::exchange::{
    Exchange, Fetched, Flow, Input, Order, Question, RequestPart, ResponsePart, StoreReply,
    WorkerFact,
};
use envoy_idempotency::key::{Attributes, Key};
use envoy_idempotency::record::Token;
use envoy_idempotency::store::shared_data::{Capacity, MemoryStore};
use envoy_idempotency::store::tiers::{Begun, Tiers};
use envoy_idempotency::store::{Command, Reply, StoreError};
use envoy_idempotency::telemetry::Outcome;
use envoy_idempotency::time::Timestamp;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::ops::AddAssign;
use std::rc::Rc;
use std::time::Duration;

/// What may go wrong, named after the fault.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// The command was carried out; its reply never comes, and the host reports a time-out.
    pub reply_lost_percent: u64,
    /// The command never reached the store; the host reports a time-out.
    pub command_lost_percent: u64,
    /// The command reaches the store when the host has long reported a time-out.
    pub command_late_percent: u64,
    /// The connection breaks once the command is carried out, and it is sent again on the next.
    pub command_twice_percent: u64,
    /// Word of a claim's end does not come.
    pub word_lost_percent: u64,
    /// Each Envoy has a table of its own in front of the store.
    pub two_tiers: bool,
    /// The store refuses everything for two seconds.
    pub store_down: bool,
    /// The client leaves at any time.
    pub client_gone_percent: u64,
    /// One worker vanishes with all its streams, without a word.
    pub worker_dies: bool,
    /// One worker does nothing for longer than a lease, then goes on as if nothing had been.
    pub worker_freezes: bool,
    /// How far the second Envoy's clock is from the store's.
    pub skew_millis: u64,
    /// The origin resets, times out, refuses the connection, or dies in the middle of its answer.
    pub origin_fails_percent: u64,
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub executions: u64,
    pub answers: u64,
    pub replays: u64,
    pub store_errors: u64,
    pub doubtful: u64,
    pub released: u64,
    pub takeovers: u64,
    pub answered_here: u64,
    pub undecided: u64,
    pub detached: u64,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.executions += other.executions;
        self.answers += other.answers;
        self.replays += other.replays;
        self.store_errors += other.store_errors;
        self.doubtful += other.doubtful;
        self.released += other.released;
        self.takeovers += other.takeovers;
        self.answered_here += other.answered_here;
        self.undecided += other.undecided;
        self.detached += other.detached;
    }
}

const CONFIG: &str = r#"{ "rules": [
    { "name": "reject", "match": { "path": "/reject/{id}" }, "key": [ { "path": "id" } ],
      "caller": "anyone", "fingerprint": "none", "lease": "1s", "unknown_ttl": "3s", "ttl": "8s" },
    { "name": "wait", "match": { "path": "/wait/{id}" }, "key": [ { "path": "id" } ],
      "caller": "anyone", "fingerprint": "none", "lease": "1s", "unknown_ttl": "3s", "ttl": "8s",
      "ongoing": { "wait": { "max": "2s" } } },
    { "name": "requeue", "match": { "path": "/requeue/{id}" }, "key": [ { "json": "/id" } ],
      "caller": "anyone", "lease": "1s", "unknown_ttl": "0s", "ttl": "8s",
      "ongoing": { "requeue": { "delay": "100ms", "attempts": 20 } } },
    { "name": "detached", "match": { "path": "/detached/{id}" }, "key": [ { "path": "id" } ],
      "caller": "anyone", "fingerprint": "none", "lease": "1s", "unknown_ttl": "3s", "ttl": "8s",
      "ongoing": { "wait": { "max": "2s" } }, "execution": { "detached": { "timeout": "5s" } } }
] }"#;

/// Shorter than a record's own, so that both ends are met.
const LOCAL_TTL: Duration = Duration::from_secs(3);
const LEASE_MILLIS: u64 = 1_000;
const CAPACITY: Capacity = Capacity { entries: 64, budget_bytes: 1 << 20, largest_answer: 1_000 };
const UNKNOWN_FOR_MILLIS: [u64; 4] = [3_000, 3_000, 0, 3_000];
const TTL_MILLIS: u64 = 8_000;
/// Longer than a lease.
const FROZEN_MILLIS: u64 = 2_500;
const RULES: [&str; 4] = ["reject", "wait", "requeue", "detached"];
const ENVOYS: usize = 2;
const CLIENTS: usize = 60;
const IDS: u64 = 3;
/// Clients come within this time; the run then goes on until nothing is left to happen.
const ARRIVALS_MILLIS: u64 = 12_000;
/// After which the host reports that the store did not answer.
const STORE_TIMEOUT_MILLIS: u64 = 250;
/// More events than the longest run had, by a factor of ten: an endless loop fails the test.
const EVENTS: usize = 200_000;

#[derive(Debug)]
enum Event {
    Arrives {
        client: usize,
    },
    CommandArrives {
        stream: usize,
        question: Question,
        command: Command,
        reply_lost: bool,
    },
    StoreReplies {
        stream: usize,
        question: Question,
        reply: Result<Reply, StoreError>,
    },
    SharedReplies {
        stream: usize,
        question: Question,
        command: Command,
        reply: Result<Reply, StoreError>,
    },
    /// What waited for another to be answered begins again.
    BeginsAgain {
        stream: usize,
        question: Question,
        command: Command,
    },
    /// Word in one Envoy, from its own memory.
    Woken {
        envoy: usize,
        key: Key,
    },
    /// Word from the store, to every Envoy.
    Ended {
        envoy: usize,
        key: Key,
    },
    Tick {
        stream: usize,
    },
    OriginAnswers {
        stream: usize,
    },
    BodyEnds {
        stream: usize,
    },
    ClientGone {
        stream: usize,
    },
    StreamEnds {
        stream: usize,
    },
    WorkerDies {
        envoy: usize,
    },
    WorkerWakes,
}

/// How an execution ends at the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Stored,
    Released,
    Doubtful,
    DiesInTheMiddle,
}

struct Stream {
    exchange: Option<Exchange>,
    envoy: usize,
    rule: usize,
    operation: (usize, u64),
    ending: Ending,
    millis_at_origin: u64,
    token: Token,
    /// When the store gave it the claim.
    claimed_at: Option<u64>,
    executing: bool,
    /// The worker's own request, if the execution is detached.
    sent: Option<Question>,
    /// The whole answer is here, and the filter holds its last byte.
    end_held: bool,
    answered: bool,
    left: bool,
    tick_at: Option<u64>,
}

/// What is known of an execution by who sees everything.
struct Execution {
    operation: (usize, u64),
    token: Token,
    /// From then on the key may run again; `None` while that cannot be said.
    free_at: Option<u64>,
    completed: bool,
    /// The lease, as the store counts it.
    lease_until: u64,
}

/// One run.
pub struct World {
    random: Random,
    faults: Faults,
    config: Rc<Config>,
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: HashMap<u64, Event>,
    next_event: u64,
    streams: Vec<Stream>,
    store: MemoryStore<Map>,
    tiers: Vec<Tiers<Map>>,
    watchers: BTreeMap<Key, Vec<usize>>,
    executions: Vec<Execution>,
    dead: Option<usize>,
    frozen: Option<(usize, u64, u64)>,
    down: Option<(u64, u64)>,
    totals: Totals,
}

/// SplitMix64 (Steele, Lea, Flood 2014): enough to draw faults by, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// The attributes Envoy has of a response of this ending.
struct Told(Ending);

impl Attributes for Told {
    fn attribute(&self, path: &[&str]) -> Option<Vec<u8>> {
        let (details, flags): (&str, u64) = match self.0 {
            Ending::Stored | Ending::DiesInTheMiddle => ("via_upstream", 0),
            Ending::Released => {
                ("upstream_reset_before_response_started{remote_connection_failure}", 0x20)
            }
            Ending::Doubtful => ("response_timeout", 0x4),
        };
        match path {
            ["response", "code_details"] => Some(details.into()),
            ["response", "flags"] => Some(flags.to_le_bytes().to_vec()),
            ["xds", "cluster_name"] => Some(b"origin".to_vec()),
            ["upstream", "address"] => Some(b"10.0.0.1:80".to_vec()),
            _ => None,
        }
    }
}

impl World {
    pub fn new(seed: u64, faults: Faults) -> Self {
        let config = Config::load(CONFIG.as_bytes(), &|_: &str| None).unwrap();
        let mut world = Self {
            random: Random(seed),
            faults,
            config: Rc::new(config),
            now: 1_000_000,
            events: BinaryHeap::new(),
            happenings: HashMap::new(),
            next_event: 0,
            streams: Vec::new(),
            store: MemoryStore::open(Map::default(), "simulation", CAPACITY).unwrap(),
            tiers: (0..ENVOYS)
                .map(|_| {
                    let table = MemoryStore::open(Map::default(), "simulation", CAPACITY).unwrap();
                    Tiers::new(table, LOCAL_TTL, Duration::from_millis(STORE_TIMEOUT_MILLIS))
                })
                .collect(),
            watchers: BTreeMap::new(),
            executions: Vec::new(),
            dead: None,
            frozen: None,
            down: None,
            totals: Totals::default(),
        };
        for client in 0..CLIENTS {
            let after = world.random.below(ARRIVALS_MILLIS);
            world.after(after, Event::Arrives { client });
        }
        let start = world.now + world.random.below(ARRIVALS_MILLIS);
        if faults.store_down {
            world.down = Some((start, start + 2_000));
        }
        if faults.worker_dies {
            let after = world.random.below(ARRIVALS_MILLIS);
            world.after(after, Event::WorkerDies { envoy: 1 });
        }
        if faults.worker_freezes {
            let start = world.now + world.random.below(ARRIVALS_MILLIS);
            world.frozen = Some((0, start, start + FROZEN_MILLIS));
            world.after(start + FROZEN_MILLIS - world.now, Event::WorkerWakes);
        }
        world
    }

    pub fn run(mut self) -> Totals {
        for _ in 0..EVENTS {
            let Some(Reverse((time, number))) = self.events.pop() else {
                self.check_the_end();
                return self.totals;
            };
            let Some(event) = self.happenings.remove(&number) else { continue };
            self.now = time;
            self.happen(event);
        }
        panic!("the run does not end");
    }

    fn after(&mut self, millis: u64, event: Event) {
        self.next_event += 1;
        self.events.push(Reverse((self.now + millis, self.next_event)));
        self.happenings.insert(self.next_event, event);
    }

    /// Whose turn an event is; that of a frozen worker waits until it wakes.
    fn envoy_of(&self, event: &Event) -> Option<usize> {
        match event {
            Event::StoreReplies { stream, .. }
            | Event::SharedReplies { stream, .. }
            | Event::BeginsAgain { stream, .. }
            | Event::Tick { stream }
            | Event::OriginAnswers { stream }
            | Event::BodyEnds { stream }
            | Event::StreamEnds { stream }
            | Event::ClientGone { stream } => self.streams.get(*stream).map(|stream| stream.envoy),
            Event::Woken { envoy, .. } | Event::Ended { envoy, .. } => Some(*envoy),
            Event::Arrives { .. }
            | Event::CommandArrives { .. }
            | Event::WorkerDies { .. }
            | Event::WorkerWakes => None,
        }
    }

    fn happen(&mut self, event: Event) {
        let envoy = self.envoy_of(&event);
        if envoy.is_some() && envoy == self.dead {
            return;
        }
        if let Some((frozen, from, to)) = self.frozen
            && envoy == Some(frozen)
            && (from..to).contains(&self.now)
        {
            return self.after(to - self.now, event);
        }
        match event {
            Event::Arrives { client } => self.arrives(client),
            Event::CommandArrives { stream, question, command, reply_lost } => {
                self.command_arrives(stream, question, &command, reply_lost);
            }
            Event::StoreReplies { stream, question, reply } => {
                if reply.is_err() {
                    self.totals.store_errors += 1;
                }
                self.feed(stream, Input::Store(StoreReply { question, reply }));
            }
            Event::SharedReplies { stream, question, command, reply } => {
                if reply.is_err() {
                    self.totals.store_errors += 1;
                }
                let envoy = self.streams[stream].envoy;
                let now = self.envoy_time(envoy);
                let concluded = self.tiers[envoy].conclude(&command, reply, now);
                if concluded.wake {
                    self.after(1, Event::Woken { envoy, key: command.key() });
                }
                self.feed(stream, Input::Store(StoreReply { question, reply: concluded.reply }));
            }
            Event::BeginsAgain { stream, question, command } => {
                self.begin(stream, question, command);
            }
            Event::Woken { envoy, key } => self.wake(envoy, key),
            Event::Ended { envoy, key } => {
                let now = self.envoy_time(envoy);
                self.tiers[envoy].ended(key, now);
                self.wake(envoy, key);
            }
            Event::Tick { stream } => {
                if self.streams[stream].tick_at.is_some_and(|at| at <= self.now) {
                    self.streams[stream].tick_at = None;
                    self.feed(stream, Input::Worker(WorkerFact::Tick));
                }
            }
            Event::OriginAnswers { stream } => self.origin_answers(stream),
            Event::BodyEnds { stream } => self.body_ends(stream),
            Event::ClientGone { stream } => {
                if !self.streams[stream].answered {
                    self.streams[stream].left = true;
                    self.feed(stream, Input::StreamEnded);
                }
            }
            Event::StreamEnds { stream } => self.feed(stream, Input::StreamEnded),
            Event::WorkerDies { envoy } => {
                self.dead = Some(envoy);
                for stream in self.streams.iter_mut().filter(|stream| stream.envoy == envoy) {
                    stream.exchange = None;
                    stream.left = true;
                }
                let streams = &self.streams;
                for watchers in self.watchers.values_mut() {
                    watchers.retain(|watcher| streams[*watcher].envoy != envoy);
                }
            }
            Event::WorkerWakes => {}
        }
    }

    fn wake(&mut self, envoy: usize, key: Key) {
        for stream in self.watchers.get(&key).cloned().unwrap_or_default() {
            if self.streams[stream].envoy == envoy {
                self.feed(stream, Input::Worker(WorkerFact::Woken));
            }
        }
    }

    fn arrives(&mut self, client: usize) {
        let envoy = client % ENVOYS;
        if self.dead == Some(envoy) {
            return;
        }
        let rule = self.random.below(RULES.len() as u64) as usize;
        let operation = (rule, self.random.below(IDS));
        let fails = self.random.chance(self.faults.origin_fails_percent);
        let ending = match (fails, self.random.below(3)) {
            (false, _) => Ending::Stored,
            (true, 0) => Ending::Released,
            (true, 1) => Ending::Doubtful,
            (true, _) => Ending::DiesInTheMiddle,
        };
        // Up to three lease lengths.
        let millis_at_origin = self.random.below(3_000);
        let token = Token(std::array::from_fn(|_| self.random.next() as u8));
        let exchange = Exchange::new(self.config.clone(), "nonce".into(), token);
        let stream = self.streams.len();
        self.streams.push(Stream {
            exchange: Some(exchange),
            envoy,
            rule,
            operation,
            ending,
            millis_at_origin,
            token,
            claimed_at: None,
            executing: false,
            sent: None,
            end_held: false,
            answered: false,
            left: false,
            tick_at: None,
        });
        if self.random.chance(self.faults.client_gone_percent) {
            let after = self.random.below(3_500);
            self.after(after, Event::ClientGone { stream });
        }
        let path = format!("/{}/{}", RULES[rule], operation.1);
        let headers = [
            (b":method".to_vec(), b"POST".to_vec()),
            (b":authority".to_vec(), b"api.example.com".to_vec()),
            (b":path".to_vec(), path.into_bytes()),
            (b"content-type".to_vec(), b"application/json".to_vec()),
        ];
        let attributes = Told(Ending::Stored);
        let input = Input::Request(RequestPart::Headers {
            headers: &headers,
            attributes: &attributes,
            end_of_stream: false,
        });
        self.feed(stream, input);
        let body = format!("{{\"id\":{}}}", operation.1);
        let (first, second) = body.as_bytes().split_at(3);
        self.feed(
            stream,
            Input::Request(RequestPart::Body {
                chunk: first,
                length: first.len(),
                end_of_stream: false,
            }),
        );
        self.feed(
            stream,
            Input::Request(RequestPart::Body {
                chunk: second,
                length: second.len(),
                end_of_stream: false,
            }),
        );
        self.feed(stream, Input::Request(RequestPart::Trailers));
    }

    fn envoy_time(&self, envoy: usize) -> Timestamp {
        let skew = if envoy == 1 { self.faults.skew_millis } else { 0 };
        Timestamp::from_millis(self.now + skew)
    }

    fn feed(&mut self, stream: usize, input: Input<'_>) {
        let now = self.envoy_time(self.streams[stream].envoy);
        let Some(exchange) = self.streams[stream].exchange.take() else {
            // The filter is out of it, and holds nothing.
            if std::mem::take(&mut self.streams[stream].end_held) {
                self.last_byte_out(stream);
            }
            return;
        };
        let from_elsewhere =
            matches!(input, Input::Store(_) | Input::Worker(WorkerFact::Woken | WorkerFact::Tick));
        let step = exchange.handle(input, now);
        let Stream { answered, executing, sent, .. } = self.streams[stream];
        let refused = answered && (!executing || sent.is_some());
        assert!(
            !(refused && from_elsewhere && step.flow == Flow::Continue),
            "stream {stream} is answered, and its request goes on all the same"
        );
        let alarm = step.next.alarm();
        if !step.next.is_over() {
            self.streams[stream].exchange = Some(step.next);
        }
        for order in step.orders {
            self.carry_out(stream, order);
        }
        if let Some(alarm) = alarm {
            let after = now.until(alarm).as_millis() as u64;
            let at = self.now + after.max(1);
            if self.streams[stream].tick_at != Some(at) {
                self.streams[stream].tick_at = Some(at);
                self.after(at - self.now, Event::Tick { stream });
            }
        }
        if self.streams[stream].end_held && step.flow == Flow::Continue {
            self.streams[stream].end_held = false;
            self.last_byte_out(stream);
        }
    }

    fn carry_out(&mut self, stream: usize, order: Order) {
        match order {
            Order::Ask(question, command) if self.faults.two_tiers => {
                self.begin(stream, question, command);
            }
            Order::Ask(question, command) => self.send(stream, question, command),
            Order::AskHere(..) => panic!("no rule says local"),
            Order::Answer(reply) => {
                let Stream { executing, sent, .. } = self.streams[stream];
                assert!(!executing || sent.is_some(), "answered and executed");
                self.streams[stream].answered = true;
                self.totals.answers += 1;
                let replayed = reply.headers.iter().any(|(name, _)| name == b"idempotent-replayed");
                self.totals.replays += u64::from(replayed);
                if replayed {
                    self.check_replay(stream);
                }
                // The answer takes its way through Envoy; what was asked meanwhile may be answered first.
                let after = self.random.below(400);
                self.after(after, Event::StreamEnds { stream });
            }
            Order::Send(question, _) => {
                self.totals.detached += 1;
                self.streams[stream].sent = Some(question);
            }
            Order::Watch(key) => self.watchers.entry(key).or_default().push(stream),
            Order::Unwatch(key) => {
                let watchers = self.watchers.get_mut(&key).expect("watched before");
                watchers.retain(|watcher| *watcher != stream);
            }
            Order::Report(_, report) => {
                if report.outcome == Outcome::Executed {
                    self.executes(stream);
                }
            }
            Order::SetRequestHeader(..)
            | Order::RemoveRequestHeader(_)
            | Order::SetResponseHeader(..)
            | Order::RemoveResponseHeader(_)
            | Order::Count(_)
            | Order::Log(..) => {}
        }
    }

    fn begin(&mut self, stream: usize, question: Question, command: Command) {
        let envoy = self.streams[stream].envoy;
        match self.tiers[envoy].begin(&command, self.envoy_time(envoy)) {
            Begun::Answered(executed) => {
                self.totals.answered_here += 1;
                if executed.wake {
                    self.after(1, Event::Woken { envoy, key: command.key() });
                }
                let reply = Ok(executed.reply);
                self.after(0, Event::StoreReplies { stream, question, reply });
            }
            Begun::Undecided(_) => {
                self.totals.undecided += 1;
                let after = 1 + self.random.below(50);
                self.after(after, Event::BeginsAgain { stream, question, command });
            }
            Begun::AskShared => self.send(stream, question, command),
        }
    }

    /// A command takes up to 20 ms to the store, and its reply as long.
    fn send(&mut self, stream: usize, question: Question, command: Command) {
        let there = 1 + self.random.below(20);
        let down = self.down.is_some_and(|(from, to)| (from..to).contains(&self.now));
        if down {
            let reply = Err(StoreError::Unavailable("refused"));
            return self.replies(there, stream, question, &command, reply);
        }
        let lost = self.random.chance(self.faults.command_lost_percent);
        let reply_lost = self.random.chance(self.faults.reply_lost_percent);
        let late = self.random.chance(self.faults.command_late_percent);
        if lost || reply_lost || late {
            let reply = Err(StoreError::Unanswered("timed out"));
            self.replies(STORE_TIMEOUT_MILLIS, stream, question, &command, reply);
        }
        let twice = self.random.chance(self.faults.command_twice_percent);
        if twice && !lost {
            let command = command.clone();
            self.after(
                there,
                Event::CommandArrives { stream, question, command, reply_lost: true },
            );
        }
        let delay = match (late, twice) {
            (true, _) => STORE_TIMEOUT_MILLIS + self.random.below(3_000),
            (false, true) => 2 * there,
            (false, false) => there,
        };
        if !lost {
            let reply_lost = reply_lost || late;
            self.after(delay, Event::CommandArrives { stream, question, command, reply_lost });
        }
    }

    fn replies(
        &mut self,
        after: u64,
        stream: usize,
        question: Question,
        command: &Command,
        reply: Result<Reply, StoreError>,
    ) {
        let event = if self.faults.two_tiers {
            Event::SharedReplies { stream, question, command: command.clone(), reply }
        } else {
            Event::StoreReplies { stream, question, reply }
        };
        self.after(after, event);
    }

    fn command_arrives(
        &mut self,
        stream: usize,
        question: Question,
        command: &Command,
        reply_lost: bool,
    ) {
        let now = Timestamp::from_millis(self.now);
        let executed = self.store.execute(command, now).unwrap();
        let reply = executed.reply;
        // Redis tells everybody; shared data whoever it knows to wait.
        let ends = !matches!(command, Command::Claim { .. } | Command::Extend { .. });
        let tells = self.faults.two_tiers && ends && reply == Reply::Done;
        if (executed.wake || tells) && !self.random.chance(self.faults.word_lost_percent) {
            for envoy in 0..ENVOYS {
                // Word takes its time, and may come after the next claim.
                let after = 1 + self.random.below(30);
                let key = command.key();
                self.after(
                    after,
                    if tells { Event::Ended { envoy, key } } else { Event::Woken { envoy, key } },
                );
            }
        }
        self.follow(stream, command, &reply);
        if !reply_lost {
            let back = 1 + self.random.below(20);
            self.replies(back, stream, question, command, Ok(reply));
        }
    }

    /// Keeps the books of who sees everything.
    fn follow(&mut self, stream: usize, command: &Command, reply: &Reply) {
        let unknown_for = UNKNOWN_FOR_MILLIS[self.streams[stream].rule];
        let now = self.now;
        let token = command.token();
        let execution = self.executions.iter_mut().find(|execution| execution.token == token);
        match (command, reply) {
            (Command::Claim { .. }, Reply::Claimed { attempt }) => {
                self.totals.takeovers += u64::from(*attempt > 1);
                self.streams[stream].claimed_at.get_or_insert(now);
            }
            (Command::Extend { lease, .. }, Reply::Done) => {
                if let Some(execution) = execution {
                    execution.lease_until = now + lease.as_millis() as u64;
                }
            }
            (Command::Complete { .. }, Reply::Done) => {
                if let Some(execution) = execution
                    && !execution.completed
                {
                    // A retry of it, its first reply lost, changes nothing.
                    execution.completed = true;
                    execution.free_at = Some(now + TTL_MILLIS);
                }
            }
            (Command::Release { .. }, Reply::Done) => {
                self.totals.released += 1;
                if let Some(execution) = execution {
                    execution.free_at = Some(now);
                }
            }
            (Command::MarkUnknown { .. }, Reply::Done) => {
                self.totals.doubtful += 1;
                if let Some(execution) = execution {
                    execution.free_at = Some(now + unknown_for);
                }
            }
            (_, Reply::Claimed { .. } | Reply::Exists(_) | Reply::NotOwner | Reply::Done) => {}
        }
    }

    /// The invariant.
    fn executes(&mut self, stream: usize) {
        let Stream { operation, token, claimed_at, .. } = self.streams[stream];
        let unknown_for = UNKNOWN_FOR_MILLIS[operation.0];
        // The store's word counts, not the time it took to get here.
        let claimed_at = claimed_at.expect("executed without a claim");
        for earlier in self.executions.iter().filter(|earlier| earlier.operation == operation) {
            let free_at = earlier.free_at.unwrap_or(earlier.lease_until + unknown_for);
            assert!(
                free_at <= claimed_at,
                "operation {operation:?} runs again at {claimed_at}, and is not free until {free_at}"
            );
        }
        let lease_until = claimed_at + LEASE_MILLIS;
        self.executions.push(Execution {
            operation,
            token,
            free_at: None,
            completed: false,
            lease_until,
        });
        self.streams[stream].executing = true;
        self.totals.executions += 1;
        let after = self.streams[stream].millis_at_origin;
        self.after(after, Event::OriginAnswers { stream });
    }

    /// A replay is of an execution that is recorded, or that its own Envoy alone knows the end of; the
    /// record may end while the reply is on its way.
    fn check_replay(&self, stream: usize) {
        let on_its_way = if self.faults.worker_freezes { FROZEN_MILLIS + 100 } else { 100 };
        let operation = self.streams[stream].operation;
        let recorded = self.executions.iter().any(|execution| {
            let recorded = execution.free_at.is_none_or(|free_at| self.now < free_at + on_its_way);
            execution.operation == operation && recorded
        });
        assert!(recorded, "{operation:?} is replayed at {} and not recorded", self.now);
    }

    /// The worker's own request has its answer, whoever is still there.
    fn origin_replies(&mut self, stream: usize, question: Question) {
        let text = |text: &str| text.as_bytes().to_vec();
        let answer = |status: &str, more: Option<&str>, body: &str| {
            let more = more.map(|name| (text(name), text("3")));
            let headers = [(text(":status"), text(status))].into_iter().chain(more).collect();
            Fetched::Answer { headers, body: text(body) }
        };
        let fetched = match self.streams[stream].ending {
            Ending::Stored => answer("201", Some("x-envoy-upstream-service-time"), "an answer"),
            Ending::Released => answer("503", None, "reset reason: remote connection failure"),
            Ending::Doubtful => answer("504", None, "upstream request timeout"),
            Ending::DiesInTheMiddle => Fetched::Broken,
        };
        self.feed(stream, Input::Worker(WorkerFact::OriginReplied { question, fetched }));
    }

    fn origin_answers(&mut self, stream: usize) {
        if let Some(question) = self.streams[stream].sent {
            return self.origin_replies(stream, question);
        }
        if self.streams[stream].left {
            return;
        }
        let ending = self.streams[stream].ending;
        let headers = [
            (
                b":status".to_vec(),
                if ending == Ending::Stored { b"201".to_vec() } else { b"503".to_vec() },
            ),
            (b"content-type".to_vec(), b"text/plain".to_vec()),
        ];
        let attributes = Told(ending);
        let input = Input::Response(ResponsePart::Headers {
            headers: &headers,
            attributes: &attributes,
            end_of_stream: false,
        });
        self.feed(stream, input);
        self.feed(
            stream,
            Input::Response(ResponsePart::Body {
                chunk: b"half of ",
                length: 8,
                end_of_stream: false,
            }),
        );
        if ending == Ending::DiesInTheMiddle {
            self.streams[stream].answered = true;
            return self.feed(stream, Input::StreamEnded);
        }
        self.after(5, Event::BodyEnds { stream });
    }

    fn body_ends(&mut self, stream: usize) {
        if self.streams[stream].left {
            return;
        }
        self.streams[stream].end_held = true;
        self.feed(
            stream,
            Input::Response(ResponsePart::Body {
                chunk: b"an answer",
                length: 9,
                end_of_stream: true,
            }),
        );
    }

    fn last_byte_out(&mut self, stream: usize) {
        self.streams[stream].answered = true;
        self.totals.answers += 1;
        self.feed(stream, Input::StreamEnded);
    }

    fn check_the_end(&self) {
        for (number, stream) in self.streams.iter().enumerate() {
            assert!(
                stream.answered || stream.left,
                "stream {number} was left without an answer: {:?}",
                stream.exchange
            );
            assert!(
                stream.exchange.is_none(),
                "stream {number} never settled: {:?}",
                stream.exchange
            );
        }
        for (key, watchers) in &self.watchers {
            assert!(watchers.is_empty(), "{key} is watched by {watchers:?} for ever");
        }
    }
}
