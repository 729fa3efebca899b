//! The simulated world: clients, two Envoys with two workers each, a Redis, an origin, and faults.

use crate::faults::{Faults, RULES, Rule, Totals, config};
use crate::ledger::{Ledger, Operation};
use crate::random::Random;
use crate::redis::{self, Redis};
use crate::worker::{SHARE, Shared, Socket, StreamRequest, TIMEOUT_MILLIS, Worker};
use envoy_idempotency::config::Config;
use envoy_idempotency::exchange::{
    Exchange, Fetched, Flow, Input, Order, RequestId, RequestPart, ResponsePart, StoreReply,
    WorkerFact,
};
use envoy_idempotency::key::{Attributes, Key};
use envoy_idempotency::record::Token;
use envoy_idempotency::store::front::{self, Fact};
use envoy_idempotency::store::redis::Connection;
use envoy_idempotency::store::transitions::{Change, Verdict};
use envoy_idempotency::store::{Command, Reply, StoreError};
use envoy_idempotency::telemetry::{Counter, Outcome};
use envoy_idempotency::time::{Timestamp, WallTime};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::rc::Rc;

const ENVOYS: usize = 2;
const WORKERS: usize = 2;
const CLIENTS: usize = 70;
const CROWD: usize = 60;
const IDS: u64 = 3;
/// Ids of a busy moment, with few requests each.
const BUSY_IDS: u64 = 100;
/// Clients come within this time; the run then goes on until no event is left.
const ARRIVALS_MILLIS: u64 = 12_000;
/// Longer than a lease.
const FROZEN_MILLIS: u64 = 2_500;
/// How long Redis is away.
const AWAY_MILLIS: u64 = 2_000;
/// How far Redis's clock steps back: all its records live so much longer.
const STEP_MILLIS: u64 = 2_000;
/// Ten times the events of the longest run: an endless loop fails the test.
const EVENTS: usize = 400_000;

#[derive(Debug)]
enum Event {
    Arrives {
        envoy: usize,
        rule: usize,
        id: u64,
    },
    /// The connection attempt of a worker comes to Redis.
    Connects {
        connection: Socket,
    },
    ToRedis {
        connection: Socket,
        bytes: Vec<u8>,
    },
    FromRedis {
        connection: Socket,
    },
    Closed {
        connection: Socket,
    },
    /// A message of another worker of this Envoy.
    Message {
        worker: usize,
        key: Key,
        ended: bool,
    },
    WorkerTick {
        worker: usize,
        generation: u64,
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
    RedisDies,
    WorkerDies {
        worker: usize,
    },
}

/// How an execution ends at the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Stored,
    Released,
    Unknown,
    DiesInTheMiddle,
}

/// Bytes that come in one read, and whether a reply among them says what Redis's clock is at.
#[derive(Debug, Default)]
struct ReadBytes {
    bytes: Vec<u8>,
    say_the_time: bool,
}

struct Stream {
    exchange: Option<Exchange>,
    worker: usize,
    operation: Operation,
    ending: Ending,
    millis_at_origin: u64,
    token: Token,
    /// When it last asked its store for a claim.
    asked_at: u64,
    executing: bool,
    /// The worker's own request, if the execution is detached.
    sent: Option<RequestId>,
    /// The whole answer is here, and the filter holds its last byte.
    end_held: bool,
    answered: bool,
    left: bool,
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
    shared: Vec<Shared>,
    workers: Vec<Worker>,
    streams: Vec<Stream>,
    redis: Redis,
    /// Bytes that Redis has received on a connection and that are not a whole command yet.
    half: HashMap<Socket, Vec<u8>>,
    subscribed: HashSet<(Socket, Key)>,
    /// When the last bytes of a connection come, to Redis and back: none overtakes another.
    to_redis_at: HashMap<Socket, u64>,
    from_redis_at: HashMap<Socket, u64>,
    /// What is on its way from Redis, read by read.
    reads: HashMap<Socket, VecDeque<ReadBytes>>,
    /// Connections that broke: bytes written on them are lost, or come so much later.
    broken: HashMap<Socket, Option<u64>>,
    ledger: Ledger,
    frozen: Option<(usize, u64, u64)>,
    down: Option<(u64, u64)>,
    hangs: Option<(u64, u64)>,
    clock_steps_at: u64,
    /// Streams other than its own that the current callback has answered or resumed.
    let_go: u32,
    totals: Totals,
    story: Option<Vec<String>>,
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
            Ending::Unknown => ("response_timeout", 0x4),
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

/// The origin's answer to an operation.
fn body(operation: Operation) -> String {
    format!("half of an answer to {}/{}", RULES[operation.0].name, operation.1)
}

impl World {
    pub fn new(seed: u64, faults: Faults) -> Self {
        let config = Config::load(config().as_bytes(), &|_: &str| None).unwrap();
        let shared: Vec<_> = (0..ENVOYS).map(|_| Shared::default()).collect();
        let workers = (0..ENVOYS * WORKERS)
            .map(|worker| {
                let envoy = worker / WORKERS;
                Worker::new(envoy, shared[envoy].clone(), faults.memory, worker as u64 + 1)
            })
            .collect();
        let mut world = Self {
            random: Random(seed),
            faults,
            config: Rc::new(config),
            now: 1_000_000,
            events: BinaryHeap::new(),
            happenings: HashMap::new(),
            next_event: 0,
            shared,
            workers,
            streams: Vec::new(),
            redis: Redis::default(),
            half: HashMap::new(),
            subscribed: HashSet::new(),
            to_redis_at: HashMap::new(),
            from_redis_at: HashMap::new(),
            reads: HashMap::new(),
            broken: HashMap::new(),
            ledger: Ledger::default(),
            frozen: None,
            down: None,
            hangs: None,
            clock_steps_at: u64::MAX,
            let_go: 0,
            totals: Totals::default(),
            story: std::env::var_os("SIM_STORY").map(|_| Vec::new()),
        };
        world.plan();
        world
    }

    fn plan(&mut self) {
        for _ in 0..CLIENTS {
            let after = self.random.below(ARRIVALS_MILLIS);
            let envoy = self.random.below(ENVOYS as u64) as usize;
            let rule = self.random.below(RULES.len() as u64) as usize;
            let id = self.random.below(IDS);
            self.after(after, Event::Arrives { envoy, rule, id });
        }
        if self.faults.crowd {
            let at = self.random.below(ARRIVALS_MILLIS);
            let rule = self.random.below(RULES.len() as u64) as usize;
            for _ in 0..CROWD {
                let after = at + self.random.below(30);
                self.after(after, Event::Arrives { envoy: 0, rule, id: 0 });
            }
        }
        if self.faults.busy {
            let at = self.random.below(ARRIVALS_MILLIS);
            let rule = self.random.below(RULES.len() as u64) as usize;
            for number in 0..CROWD as u64 {
                let after = at + self.random.below(10);
                // Some of one key, most of others.
                let id = BUSY_IDS + number * 3 / 4;
                self.after(after, Event::Arrives { envoy: 0, rule, id });
            }
        }
        let start = self.now + self.random.below(ARRIVALS_MILLIS);
        if self.faults.redis_down {
            self.down = Some((start, start + AWAY_MILLIS));
            self.after(start - self.now, Event::RedisDies);
        }
        let start = self.now + self.random.below(ARRIVALS_MILLIS);
        if self.faults.redis_hangs {
            self.hangs = Some((start, start + AWAY_MILLIS));
        }
        if self.faults.redis_clock_steps {
            self.clock_steps_at = self.now + self.random.below(ARRIVALS_MILLIS);
        }
        if self.faults.worker_dies {
            let after = self.random.below(ARRIVALS_MILLIS);
            self.after(after, Event::WorkerDies { worker: 3 });
        }
        if self.faults.worker_freezes {
            let start = self.now + self.random.below(ARRIVALS_MILLIS);
            self.frozen = Some((0, start, start + FROZEN_MILLIS));
        }
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

    fn tell(&mut self, text: impl FnOnce() -> String) {
        if self.story.is_some() {
            eprintln!("{:>9} {}", self.now, text());
        }
    }

    fn after(&mut self, millis: u64, event: Event) {
        self.next_event += 1;
        self.events.push(Reverse((self.now + millis, self.next_event)));
        self.happenings.insert(self.next_event, event);
    }

    /// The worker of an event; an event of a frozen worker waits until it wakes.
    fn worker_of(&self, event: &Event) -> Option<usize> {
        match event {
            Event::OriginAnswers { stream }
            | Event::BodyEnds { stream }
            | Event::StreamEnds { stream }
            | Event::ClientGone { stream } => self.streams.get(*stream).map(|stream| stream.worker),
            Event::FromRedis { connection } | Event::Closed { connection } => {
                Some(connection.worker)
            }
            Event::Message { worker, .. } | Event::WorkerTick { worker, .. } => Some(*worker),
            Event::Arrives { .. }
            | Event::Connects { .. }
            | Event::ToRedis { .. }
            | Event::RedisDies
            | Event::WorkerDies { .. } => None,
        }
    }

    fn is_frozen(&self, worker: usize) -> Option<u64> {
        let (_, _, to) = self
            .frozen
            .filter(|(frozen, from, to)| *frozen == worker && (*from..*to).contains(&self.now))?;
        Some(to)
    }

    fn happen(&mut self, event: Event) {
        if let Some(to) = self.worker_of(&event).and_then(|worker| self.is_frozen(worker)) {
            return self.after(to - self.now, event);
        }
        self.let_go = 0;
        match event {
            Event::Arrives { envoy, rule, id } => self.arrives(envoy, rule, id),
            Event::Connects { connection } => {
                if self.is_down() {
                    self.after(1, Event::Closed { connection });
                }
            }
            Event::ToRedis { connection, bytes } => self.arrive_at_redis(connection, bytes),
            Event::FromRedis { connection } => {
                let read = self.reads.get_mut(&connection).and_then(VecDeque::pop_front);
                let ReadBytes { bytes, say_the_time } = read.unwrap_or_default();
                if self.is_current(connection) && !self.broken.contains_key(&connection) {
                    if say_the_time {
                        self.workers[connection.worker].clock_known_at.get_or_insert(self.now);
                    }
                    self.workers[connection.worker].budget.renew();
                    self.fact(connection.worker, Fact::Received(connection.line, &bytes));
                    self.root_callback(connection.worker);
                }
            }
            Event::Closed { connection } => {
                if self.is_current(connection) {
                    self.workers[connection.worker].connections.remove(&connection.line);
                    self.totals.reconnects += u64::from(connection.line == Connection::Commands);
                    self.fact(connection.worker, Fact::Closed(connection.line));
                    self.root_callback(connection.worker);
                }
            }
            Event::Message { worker, key, ended } => {
                self.workers[worker].budget.renew();
                self.fact(worker, if ended { Fact::Ended(key) } else { Fact::Answered(key) });
                self.root_callback(worker);
            }
            Event::WorkerTick { worker, generation } => {
                let this = &mut self.workers[worker];
                if this.generation == generation && this.tick_at.is_some_and(|at| at <= self.now) {
                    this.tick_at = None;
                    this.budget.renew();
                    self.fact(worker, Fact::Tick);
                    self.root_callback(worker);
                }
            }
            Event::OriginAnswers { stream } => self.origin_answers(stream),
            Event::BodyEnds { stream } => self.body_ends(stream),
            Event::ClientGone { stream } => {
                if !self.streams[stream].answered {
                    self.tell(|| format!("client of {stream} leaves"));
                    self.streams[stream].left = true;
                    self.called(stream, Input::StreamEnded);
                }
            }
            Event::StreamEnds { stream } => self.called(stream, Input::StreamEnded),
            Event::RedisDies => {
                self.tell(|| "Redis dies".to_owned());
                for worker in 0..self.workers.len() {
                    let lines: Vec<_> =
                        self.workers[worker].connections.clone().into_iter().collect();
                    for (line, number) in lines {
                        let connection = Socket { worker, line, number };
                        self.broken.insert(connection, None);
                        let after = 1 + self.random.below(20);
                        self.after(after, Event::Closed { connection });
                    }
                }
            }
            Event::WorkerDies { worker } => self.worker_dies(worker),
        }
        assert!(self.let_go <= SHARE, "{} streams were let go in one callback", self.let_go);
    }

    fn worker_dies(&mut self, worker: usize) {
        self.tell(|| format!("worker {worker} dies"));
        for stream in self.streams.iter_mut().filter(|stream| stream.worker == worker) {
            if stream.exchange.take().is_some() {
                // What it has asked last, nobody hears the answer to.
                self.ledger.owner_dies(stream.token);
            }
            stream.left = true;
        }
        let envoy = self.workers[worker].envoy;
        let generation = self.workers[worker].generation + 1;
        let opened = self.workers[worker].opened;
        let shared = self.shared[envoy].clone();
        let next = Worker::new(envoy, shared, self.faults.memory, 77 + worker as u64);
        self.workers[worker] = Worker { generation, opened, ..next };
    }

    fn is_down(&self) -> bool {
        self.down.is_some_and(|(from, to)| (from..to).contains(&self.now))
    }

    fn is_current(&self, connection: Socket) -> bool {
        let number = self.workers[connection.worker].connections.get(&connection.line);
        number == Some(&connection.number)
    }

    /// A worker's clock has its own start.
    fn time(&self, worker: usize) -> Timestamp {
        Timestamp::from_millis(self.now + 5_000_000 * self.workers[worker].envoy as u64)
    }

    fn redis_time(&self) -> u64 {
        let back = if self.now >= self.clock_steps_at { STEP_MILLIS } else { 0 };
        1_700_000_000_000 + self.now - back
    }

    fn fact(&mut self, worker: usize, fact: Fact<'_>) {
        let now = self.time(worker);
        self.workers[worker].front.handle(fact, now);
    }

    /// The end of every callback of a worker.
    fn flush(&mut self, worker: usize) {
        self.carry_out_orders(worker);
        let this = &self.workers[worker];
        let alarms = this.timers.next().into_iter().chain(this.front.alarm());
        let now = self.time(worker);
        let next = alarms.min().map(|alarm| now.until(alarm).as_micros().div_ceil(1_000) as u64);
        let next = if this.has_more() { Some(1) } else { next.map(|next| next.max(1)) };
        let Some(next) = next else { return };
        let at = self.now + next;
        if self.workers[worker].tick_at.is_none_or(|tick_at| at < tick_at || tick_at < self.now) {
            self.workers[worker].tick_at = Some(at);
            let generation = self.workers[worker].generation;
            self.after(next, Event::WorkerTick { worker, generation });
        }
    }

    /// The work of a root's own callback besides its fact.
    fn root_callback(&mut self, worker: usize) {
        self.carry_out_orders(worker);
        let mut idle = false;
        while !idle {
            idle = true;
            for source in 0..4 {
                if self.workers[worker].budget.is_spent() {
                    break;
                }
                if self.deal_with_one(worker, source) {
                    self.workers[worker].budget.spend();
                    idle = false;
                }
            }
            if self.workers[worker].budget.is_spent() {
                break;
            }
        }
        self.flush(worker);
    }

    fn deal_with_one(&mut self, worker: usize, source: usize) -> bool {
        let now = self.time(worker);
        let this = &mut self.workers[worker];
        match source {
            0 => {
                let worked = this.front.work(now);
                self.carry_out_orders(worker);
                worked
            }
            1 => {
                let Some((stream, question, ending)) = this.fetched.pop_front() else {
                    return false;
                };
                self.origin_replies(stream, question, ending);
                true
            }
            2 => {
                let Some(stream) = this.waiters.take_woken() else { return false };
                self.come_back(stream as usize, Input::Worker(WorkerFact::Woken));
                true
            }
            _ => {
                let Some(stream) = this.timers.take_due(now) else { return false };
                self.come_back(stream as usize, Input::Worker(WorkerFact::Tick));
                true
            }
        }
    }

    fn carry_out_orders(&mut self, worker: usize) {
        while let Some(order) = self.workers[worker].front.next_order() {
            match order {
                front::Order::Reply((stream, question), reply) => {
                    self.come_back(stream, Input::Store(StoreReply { question, reply }));
                }
                front::Order::Open(line) => {
                    self.workers[worker].opened += 1;
                    let number = self.workers[worker].opened;
                    self.workers[worker].connections.insert(line, number);
                    let connection = Socket { worker, line, number };
                    self.after(1, Event::Connects { connection });
                    self.fact(worker, Fact::Opened(line));
                }
                front::Order::Write(line, bytes) => self.write(worker, line, bytes),
                front::Order::Close(line) => {
                    self.workers[worker].connections.remove(&line);
                    self.totals.reconnects += u64::from(line == Connection::Commands);
                }
                front::Order::Call(..) => panic!("no worker uses Webdis"),
                front::Order::Wake(key) => self.message(worker, key, true),
                front::Order::WakeAskers(key) => self.message(worker, key, false),
                front::Order::WakeHere(key) => self.workers[worker].waiters.wake(key),
                front::Order::Listen => {
                    if !std::mem::replace(&mut self.workers[worker].listens, true) {
                        self.fact(worker, Fact::Listening);
                    }
                }
                front::Order::Count(..) | front::Order::Took(_) | front::Order::WarnOnce(_) => {}
                front::Order::Warn(text) => {
                    assert!(
                        !text.contains("no command waits") && !text.contains("not RESP2"),
                        "{text}"
                    );
                }
            }
        }
    }

    /// To every worker of this Envoy.
    fn message(&mut self, from: usize, key: Key, ended: bool) {
        let envoy = self.workers[from].envoy;
        for worker in envoy * WORKERS..(envoy + 1) * WORKERS {
            let lost = self.random.chance(self.faults.messages_lost_percent);
            if self.workers[worker].listens && !lost {
                let after = self.random.below(3);
                self.after(after, Event::Message { worker, key, ended });
            }
        }
    }

    fn write(&mut self, worker: usize, line: Connection, bytes: Vec<u8>) {
        let number = self.workers[worker].connections[&line];
        let connection = Socket { worker, line, number };
        if let Some(late) = self.broken.get(&connection).copied() {
            if let Some(late) = late {
                self.after(late, Event::ToRedis { connection, bytes });
            }
            return;
        }
        let Faults { bytes_lost_percent, replies_lost_percent, bytes_late_percent, .. } =
            self.faults;
        let lost = self.random.chance(bytes_lost_percent);
        let late = self.random.chance(bytes_late_percent);
        let replies_lost = self.random.chance(replies_lost_percent);
        let breaks = lost || late || replies_lost;
        if breaks {
            let delay = late.then(|| 100 + self.random.below(3_000));
            self.broken.insert(connection, delay);
            // Either the other end reports it, or nobody does.
            if self.random.chance(70) {
                let after = 1 + self.random.below(60);
                self.after(after, Event::Closed { connection });
            }
            if let Some(delay) = delay {
                self.tell(|| format!("bytes of {connection:?} come {delay} ms late"));
                return self.after(delay, Event::ToRedis { connection, bytes });
            }
            if lost {
                return;
            }
        }
        let at = self.now + 1 + self.random.below(20);
        let at = at.max(self.to_redis_at.get(&connection).copied().unwrap_or(0));
        self.to_redis_at.insert(connection, at);
        self.after(at - self.now, Event::ToRedis { connection, bytes });
    }

    fn arrive_at_redis(&mut self, connection: Socket, bytes: Vec<u8>) {
        if self.is_down() {
            return;
        }
        if let Some((_, to)) = self.hangs.filter(|(from, to)| (*from..*to).contains(&self.now)) {
            return self.after(to - self.now, Event::ToRedis { connection, bytes });
        }
        let mut half = self.half.remove(&connection).unwrap_or_default();
        half.extend_from_slice(&bytes);
        let commands = redis::commands(&mut half);
        self.half.insert(connection, half);
        for parts in commands {
            self.totals.commands += 1;
            if self.random.chance(self.faults.scripts_lost_percent) {
                self.redis.forget_scripts();
            }
            let ran = self.redis.run(&parts, self.redis_time());
            if ran.reply.starts_with(b"-NOSCRIPT") {
                self.totals.no_script += 1;
            }
            if ran.done.is_none() && ran.reply.get(5..).is_some_and(|rest| rest.contains(&b'L')) {
                self.totals.too_late += u64::from(ran.reply.starts_with(b"$13"));
            }
            let done = ran.done.as_ref();
            let is_claim = done.is_some_and(|done| matches!(done.command, Command::Claim { .. }));
            if let Some(done) = done {
                self.tell(|| format!("Redis: {:?} -> {:?}", done.command, done.verdict));
                self.check_in_time(connection.worker, done);
                self.ledger.redis_did(&done.command, &done.verdict, self.now);
                self.count(&done.command, &done.verdict);
            }
            if let Some(key) = ran.subscribed {
                self.subscribed.insert((connection, key));
                self.answer_from_redis(connection, redis::message("subscribe", key), false);
            }
            if let Some(key) = ran.unsubscribed {
                self.subscribed.remove(&(connection, key));
                self.answer_from_redis(connection, redis::message("unsubscribe", key), false);
            }
            if let Some(key) = ran.published {
                let mut told: Vec<_> = self
                    .subscribed
                    .iter()
                    .filter(|(_, other)| *other == key)
                    .map(|(to, _)| *to)
                    .collect();
                told.sort_unstable_by_key(|to| (to.worker, to.number));
                for to in told {
                    if !self.random.chance(self.faults.messages_lost_percent) {
                        self.answer_from_redis(to, redis::message("message", key), false);
                    }
                }
            }
            if !ran.reply.is_empty() {
                self.answer_from_redis(connection, ran.reply, is_claim);
            }
        }
    }

    /// Redis accepts no claim that its sender has given up: it would have no owner, and then be unknown.
    fn check_in_time(&self, worker: usize, done: &redis::Done) {
        if !matches!(done.verdict, Verdict::Claimed { change: Change::Put(_), .. }) {
            return;
        }
        let token = done.command.token();
        let sender = self.streams.iter().find(|stream| stream.token == token);
        let asked_at = sender.map_or(0, |sender| sender.asked_at);
        // It may have waited for another's lookup before it was sent.
        let until = asked_at + 2 * TIMEOUT_MILLIS;
        let knows_the_clock = self.workers[worker].clock_known_at.is_some_and(|at| at < asked_at);
        let exempt =
            !knows_the_clock || self.faults.redis_clock_steps || self.faults.worker_freezes;
        assert!(
            self.now <= until || exempt,
            "{token:?} gets its claim at {}, and has given up at {until}",
            self.now
        );
    }

    fn answer_from_redis(&mut self, connection: Socket, bytes: Vec<u8>, say_the_time: bool) {
        let reads = self.reads.entry(connection).or_default();
        // What is on its way already may come in the same read.
        match reads.back_mut() {
            Some(last) if self.random.chance(80) => {
                last.bytes.extend(bytes);
                last.say_the_time |= say_the_time;
            }
            Some(_) | None => {
                reads.push_back(ReadBytes { bytes, say_the_time });
                let at = self.now + 1 + self.random.below(20);
                let at = at.max(self.from_redis_at.get(&connection).copied().unwrap_or(0));
                self.from_redis_at.insert(connection, at);
                self.after(at - self.now, Event::FromRedis { connection });
            }
        }
    }

    fn count(&mut self, command: &Command, verdict: &Verdict) {
        match (command, verdict) {
            (Command::Claim { .. }, Verdict::Claimed { attempt, .. }) => {
                self.totals.takeovers += u64::from(*attempt > 1);
            }
            (Command::Release { .. }, Verdict::Done(_)) => self.totals.released += 1,
            (Command::MarkUnknown { .. }, Verdict::Done(_)) => self.totals.unknown += 1,
            _ => {}
        }
    }

    fn arrives(&mut self, envoy: usize, rule: usize, id: u64) {
        let worker = envoy * WORKERS + self.random.below(WORKERS as u64) as usize;
        if let Some(to) = self.is_frozen(worker) {
            return self.after(to - self.now, Event::Arrives { envoy, rule, id });
        }
        let fails = self.random.chance(self.faults.origin_fails_percent);
        let ending = match (fails, self.random.below(3)) {
            (false, _) => Ending::Stored,
            (true, 0) => Ending::Released,
            (true, 1) => Ending::Unknown,
            (true, _) => Ending::DiesInTheMiddle,
        };
        // Up to three lease lengths.
        let millis_at_origin = self.random.below(3_000);
        let token = Token(std::array::from_fn(|_| self.random.next() as u8));
        let jump = if self.faults.wall_clock_steps { self.random.below(1 << 40) } else { 0 };
        let came_at = WallTime::from_millis(jump);
        let exchange = Exchange::new(self.config.clone(), "nonce".into(), token, came_at);
        let stream = self.streams.len();
        self.streams.push(Stream {
            exchange: Some(exchange),
            worker,
            operation: (rule, id),
            ending,
            millis_at_origin,
            token,
            asked_at: 0,
            executing: false,
            sent: None,
            end_held: false,
            answered: false,
            left: false,
        });
        self.tell(|| {
            format!("{stream} arrives at worker {worker}: {}/{id}, {token:?}", RULES[rule].name)
        });
        if self.random.chance(self.faults.client_gone_percent) {
            let after = self.random.below(3_500);
            self.after(after, Event::ClientGone { stream });
        }
        let path = format!("/{}/{id}", RULES[rule].name);
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
        self.called(stream, input);
        let body = format!("{{\"id\":{id}}}");
        let (first, second) = body.as_bytes().split_at(3);
        for chunk in [first, second] {
            let length = chunk.len();
            let part = RequestPart::Body { chunk, length, end_of_stream: false };
            self.called(stream, Input::Request(part));
        }
        self.called(stream, Input::Request(RequestPart::Trailers));
    }

    /// A callback of the stream's own.
    fn called(&mut self, stream: usize, input: Input<'_>) {
        let worker = self.streams[stream].worker;
        self.feed(stream, input);
        self.flush(worker);
    }

    /// A fact from elsewhere.
    fn come_back(&mut self, stream: usize, input: Input<'_>) {
        let answered = self.streams[stream].answered;
        if self.feed(stream, input) == Flow::Continue || self.streams[stream].answered != answered {
            self.let_go += 1;
        }
    }

    fn feed(&mut self, stream: usize, input: Input<'_>) -> Flow {
        let worker = self.streams[stream].worker;
        let now = self.time(worker);
        let Some(mut exchange) = self.streams[stream].exchange.take() else {
            // The filter is no longer involved, and holds nothing.
            if std::mem::take(&mut self.streams[stream].end_held) {
                self.last_byte_out(stream);
            }
            return Flow::Continue;
        };
        let from_elsewhere =
            matches!(input, Input::Store(_) | Input::Worker(WorkerFact::Woken | WorkerFact::Tick));
        let mut input = input;
        let mut replies = VecDeque::new();
        let flow = loop {
            if let Input::Store(StoreReply { reply, .. }) = &input {
                self.heard(stream, reply);
            }
            let step = exchange.handle(input, now);
            exchange = step.next;
            let Stream { answered, executing, sent, .. } = self.streams[stream];
            let refused = answered && (!executing || sent.is_some());
            assert!(
                !(refused && from_elsewhere && step.flow == Flow::Continue),
                "stream {stream} is answered, and its request goes on all the same"
            );
            for order in step.orders {
                replies.extend(self.carry_out(stream, order));
            }
            let Some((question, reply)) = replies.pop_front() else { break step.flow };
            input = Input::Store(StoreReply { question, reply });
        };
        self.workers[worker].timers.set(stream as u32, exchange.alarm());
        if exchange.is_over() {
            self.workers[worker].timers.set(stream as u32, None);
        } else {
            self.streams[stream].exchange = Some(exchange);
        }
        if self.streams[stream].end_held && flow == Flow::Continue {
            self.streams[stream].end_held = false;
            self.last_byte_out(stream);
        }
        flow
    }

    fn heard(&mut self, stream: usize, reply: &Result<Reply, StoreError>) {
        self.tell(|| format!("{stream} hears {reply:?}"));
        self.ledger.owner_hears(self.streams[stream].token);
        match reply {
            Err(_) => self.totals.store_errors += 1,
            Ok(Reply::NotOwner) => {
                let token = self.streams[stream].token;
                self.ledger.claim_lost(token, self.now);
            }
            Ok(Reply::Claimed { .. } | Reply::Exists(_) | Reply::Done) => {}
        }
    }

    fn carry_out(
        &mut self,
        stream: usize,
        order: Order,
    ) -> Option<(RequestId, Result<Reply, StoreError>)> {
        let worker = self.streams[stream].worker;
        let now = self.time(worker);
        match order {
            Order::Ask(question, command) => {
                if matches!(command, Command::Claim { .. }) {
                    self.streams[stream].asked_at = self.now;
                }
                self.owner_asks(stream, &command);
                let request: StreamRequest = (stream, question);
                let reply = self.workers[worker].front.ask(request, command, now)?;
                self.totals.known_here += 1;
                return Some((question, reply));
            }
            Order::AskHere(question, command) => {
                self.totals.local += 1;
                self.owner_asks(stream, &command);
                return Some((question, self.workers[worker].front.ask_here(&command, now)));
            }
            Order::Answer(reply) => {
                let Stream { executing, sent, operation, .. } = self.streams[stream];
                assert!(!executing || sent.is_some(), "answered and executed");
                self.tell(|| format!("{stream} is answered: {}", reply.status));
                self.streams[stream].answered = true;
                self.totals.answers += 1;
                let replayed = reply.headers.iter().any(|(name, _)| name == b"idempotent-replayed");
                if replayed {
                    self.totals.replays += 1;
                    let text = String::from_utf8_lossy(&reply.body);
                    assert_eq!(text, body(operation), "{stream} got another operation's answer");
                    let frozen = if self.faults.worker_freezes { FROZEN_MILLIS } else { 0 };
                    let stepped = if self.faults.redis_clock_steps { STEP_MILLIS } else { 0 };
                    let slack = 300 + frozen + stepped;
                    self.ledger.replayed(operation, slack, self.now);
                }
                // The answer takes its way through Envoy; a later request may be answered first.
                let after = self.random.below(400);
                self.after(after, Event::StreamEnds { stream });
            }
            Order::Send(question, _) => {
                self.totals.detached += 1;
                self.streams[stream].sent = Some(question);
            }
            Order::Watch(key) => {
                self.workers[worker].listens = true;
                self.workers[worker].waiters.join(key, stream as u32);
                self.workers[worker].front.watch(key, now);
            }
            Order::Unwatch(key) => {
                self.workers[worker].waiters.leave(stream as u32);
                self.workers[worker].front.unwatch(key, now);
            }
            Order::Report(_, report) => {
                if report.outcome == Outcome::Executed {
                    self.executes(stream);
                }
                if report.outcome == Outcome::StoreError
                    && self.rule(stream).on_store_error == "pass"
                {
                    // It goes on, unprotected.
                    self.streams[stream].answered = true;
                    self.totals.passed += 1;
                }
            }
            Order::Count(Counter::LocalFallbacks) => {}
            Order::SetRequestHeader(..)
            | Order::RemoveRequestHeader(_)
            | Order::SetResponseHeader(..)
            | Order::RemoveResponseHeader(_)
            | Order::Count(_)
            | Order::Log(..) => {}
        }
        None
    }

    fn rule(&self, stream: usize) -> &'static Rule {
        &RULES[self.streams[stream].operation.0]
    }

    fn owner_asks(&mut self, stream: usize, command: &Command) {
        self.tell(|| format!("{stream} asks {command:?}"));
        if self.streams[stream].executing {
            let unknown_for = self.rule(stream).unknown_for;
            self.ledger.owner_asks(command, unknown_for, self.now);
        }
    }

    fn executes(&mut self, stream: usize) {
        let Stream { operation, token, worker, .. } = self.streams[stream];
        self.tell(|| format!("{stream} executes {operation:?}"));
        let envoy = self.workers[worker].envoy;
        let rule = self.rule(stream);
        self.ledger.executes(operation, rule, self.faults.memory, envoy, token, self.now);
        self.streams[stream].executing = true;
        self.totals.executions += 1;
        let after = self.streams[stream].millis_at_origin;
        self.after(after, Event::OriginAnswers { stream });
    }

    /// The worker's own request has its answer, whether or not the client is still there.
    fn origin_replies(&mut self, stream: usize, question: RequestId, ending: Ending) {
        let text = |text: &str| text.as_bytes().to_vec();
        let operation = self.streams[stream].operation;
        let answer = |status: &str, more: Option<&str>, body: &str| {
            let more = more.map(|name| (text(name), text("3")));
            let headers = [(text(":status"), text(status))].into_iter().chain(more).collect();
            Fetched::Answer { headers, body: text(body) }
        };
        let fetched = match ending {
            Ending::Stored => {
                answer("201", Some("x-envoy-upstream-service-time"), &body(operation))
            }
            Ending::Released => answer("503", None, "reset reason: remote connection failure"),
            Ending::Unknown => answer("504", None, "upstream request timeout"),
            Ending::DiesInTheMiddle => Fetched::Broken,
        };
        self.come_back(stream, Input::Worker(WorkerFact::OriginReplied { question, fetched }));
    }

    fn origin_answers(&mut self, stream: usize) {
        let Stream { worker, ending, sent, left, operation, .. } = self.streams[stream];
        if let Some(question) = sent {
            if self.streams[stream].exchange.is_some() {
                self.workers[worker].fetched.push_back((stream, question, ending));
                self.root_callback(worker);
            }
            return;
        }
        if left {
            return;
        }
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
        self.called(stream, input);
        let body = body(operation);
        let (half, _) = body.as_bytes().split_at(8);
        self.called(
            stream,
            Input::Response(ResponsePart::Body {
                chunk: half,
                length: half.len(),
                end_of_stream: false,
            }),
        );
        if ending == Ending::DiesInTheMiddle {
            self.streams[stream].answered = true;
            return self.called(stream, Input::StreamEnded);
        }
        self.after(5, Event::BodyEnds { stream });
    }

    fn body_ends(&mut self, stream: usize) {
        let Stream { left, operation, .. } = self.streams[stream];
        if left {
            return;
        }
        self.streams[stream].end_held = true;
        let body = body(operation);
        let (_, rest) = body.as_bytes().split_at(8);
        self.called(
            stream,
            Input::Response(ResponsePart::Body {
                chunk: rest,
                length: rest.len(),
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
        for (number, worker) in self.workers.iter().enumerate() {
            assert!(worker.waiters.is_empty(), "worker {number} has waiters for ever");
            assert!(!worker.has_more(), "worker {number} has left something undone");
        }
    }
}
