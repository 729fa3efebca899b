//! What one worker thread keeps: its streams, and how an exchange's orders become host calls.

use super::abi::{self, Direction};
use super::alarms::Alarms;
use super::metrics::Metrics;
use super::store::{EnvoySharedData, now};
use super::tokens::Tokens;
use super::waiters::Waiters;
use crate::config::Config;
use crate::exchange::{Exchange, Flow, Input, Order, Question};
use crate::key::Attributes;
use crate::reply::{Code, LocalReply, Problem};
use crate::store::shared_data::MemoryStore;
use crate::store::{Command, Reply, StoreError};
use crate::telemetry::FILTER_STATE;
use crate::time::Timestamp;
use log::Level;
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// Tick while something waits for its time: a requeued request, a waiter at its end, a body that may
/// be blocked. It is the granularity of `requeue.delay`, and short against the 100 ms a person notices.
const SHORT_TICK: Duration = Duration::from_millis(20);

/// Tick while there are streams: fine enough for the heartbeat of the shortest lease, 1 s, which is
/// due three times in it.
const LONG_TICK: Duration = Duration::from_millis(100);

/// One worker's part of one filter.
#[derive(Debug)]
pub(super) struct Worker {
    config: Rc<Config>,
    store: MemoryStore<EnvoySharedData>,
    tokens: Tokens,
    metrics: Metrics,
    waiters: Waiters,
    streams: HashMap<u32, Stream>,
    alarms: Alarms,
    /// Streams whose body may be kept back, with the bytes that Envoy had received at the headers.
    probes: HashMap<u32, Vec<u8>>,
    /// A body came while its headers were held: `allow_on_headers_stop_iteration` is on.
    bodies_come: bool,
    tick: Duration,
}

/// A request on its way.
#[derive(Debug)]
struct Stream {
    /// `None` only while it is being fed.
    exchange: Option<Exchange>,
    /// The direction that waits for our word.
    held: Option<Direction>,
    /// Bytes of the held body that were read before: its callbacks give it whole each time.
    consumed: usize,
    /// Envoy still has it.
    alive: bool,
}

/// Envoy's attributes of the effective context.
pub(super) struct EnvoyAttributes;

impl Attributes for EnvoyAttributes {
    fn attribute(&self, path: &[&str]) -> Option<Vec<u8>> {
        abi::property(path)
    }
}

impl Worker {
    pub(super) fn new(
        config: Rc<Config>,
        store: MemoryStore<EnvoySharedData>,
        metrics: Metrics,
        prefix: &str,
    ) -> Self {
        let mut tokens = Tokens::default();
        let waiters = Waiters::new(prefix, &tokens.next().0);
        Self {
            config,
            store,
            tokens,
            metrics,
            waiters,
            streams: HashMap::new(),
            alarms: Alarms::default(),
            probes: HashMap::new(),
            bodies_come: false,
            tick: Duration::ZERO,
        }
    }

    pub(super) fn request_headers(&mut self, id: u32, end_of_stream: bool) -> Flow {
        let Some(headers) = abi::headers(Direction::Request) else {
            log::error!("Envoy's list of the request's headers cannot be read");
            let problem = Problem::new(Code::Misconfigured, "the request's headers cannot be read");
            answer(&problem.into_reply());
            return Flow::Hold;
        };
        let exchange = Exchange::new(self.config.clone(), self.tokens.next());
        let stream = Stream { exchange: Some(exchange), held: None, consumed: 0, alive: true };
        self.streams.insert(id, stream);
        let input = Input::RequestHeaders {
            headers: &headers,
            attributes: &EnvoyAttributes,
            end_of_stream,
        };
        let flow = self.called(id, Direction::Request, input);
        self.probe(id, end_of_stream);
        flow
    }

    pub(super) fn response_headers(&mut self, id: u32, end_of_stream: bool) -> Flow {
        if !self.streams.contains_key(&id) {
            return Flow::Continue;
        }
        // Unreadable: `:status` is absent then, and what became of the request is unknown.
        let headers = abi::headers(Direction::Response).unwrap_or_default();
        let input = Input::ResponseHeaders {
            headers: &headers,
            attributes: &EnvoyAttributes,
            end_of_stream,
        };
        self.called(id, Direction::Response, input)
    }

    pub(super) fn body(
        &mut self,
        id: u32,
        direction: Direction,
        size: usize,
        end_of_stream: bool,
    ) -> Flow {
        let Some(stream) = self.streams.get_mut(&id) else { return Flow::Continue };
        if direction == Direction::Request && self.probes.remove(&id).is_some() {
            self.bodies_come = true;
        }
        // What was held before is still in the buffer; what was let through is not.
        let start = if stream.held == Some(direction) { stream.consumed.min(size) } else { 0 };
        let wanted = stream.exchange.as_ref().is_some_and(Exchange::wants_bytes);
        let chunk = if wanted { abi::body(direction, start, size - start) } else { Vec::new() };
        stream.consumed = size;
        let input = match direction {
            Direction::Request => Input::RequestBody { chunk: &chunk, end_of_stream },
            Direction::Response => Input::ResponseBody { chunk: &chunk, end_of_stream },
        };
        self.called(id, direction, input)
    }

    pub(super) fn trailers(&mut self, id: u32, direction: Direction) -> Flow {
        let input = match direction {
            Direction::Request => Input::RequestTrailers,
            Direction::Response => Input::ResponseTrailers,
        };
        self.called(id, direction, input)
    }

    pub(super) fn ended(&mut self, id: u32) {
        self.probes.remove(&id);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.held = None;
            stream.alive = false;
            self.feed(id, Input::StreamEnded);
            // What is owed to the store may keep it; nothing else does.
            self.forget_if_over(id);
        }
    }

    pub(super) fn queue_ready(&mut self, queue: u32) {
        for id in self.waiters.woken(queue) {
            self.come_back(id, Input::Woken);
        }
    }

    pub(super) fn tick(&mut self) {
        let now = now();
        self.waiters.keep_alive(now);
        for id in self.alarms.due(now) {
            self.come_back(id, Input::Tick);
        }
        for id in self.blocked() {
            self.come_back(id, Input::BodyBlocked);
        }
        let quiet = self.streams.is_empty() && self.waiters.is_empty();
        let tick = if quiet { Duration::ZERO } else { self.due_tick(now) };
        self.set_tick(tick);
    }

    /// An input of a callback of the stream's own: the flow is what the callback returns.
    fn called(&mut self, id: u32, direction: Direction, input: Input<'_>) -> Flow {
        let flow = self.feed(id, input);
        if let Some(stream) = self.streams.get_mut(&id) {
            match flow {
                Flow::Hold => stream.held = Some(direction),
                Flow::Continue if stream.held == Some(direction) => stream.held = None,
                Flow::Continue => {}
            }
        }
        self.forget_if_over(id);
        flow
    }

    /// An input from elsewhere: the direction that is held goes on, or does not.
    fn come_back(&mut self, id: u32, input: Input<'_>) {
        let Some(stream) = self.streams.get(&id) else { return };
        if stream.alive && abi::set_effective_context(id).is_err() {
            log::error!("stream {id} is gone and has not said so");
            return self.ended(id);
        }
        let flow = self.feed(id, input);
        if let Some(stream) = self.streams.get_mut(&id)
            && flow == Flow::Continue
            && let Some(direction) = stream.held.take()
        {
            warn("resume a stream", abi::resume(direction));
        }
        self.forget_if_over(id);
    }

    /// Feeds the input and every reply that follows from it.
    fn feed(&mut self, id: u32, input: Input<'_>) -> Flow {
        let now = now();
        let Some(mut exchange) =
            self.streams.get_mut(&id).and_then(|stream| stream.exchange.take())
        else {
            return Flow::Continue;
        };
        let mut replies = VecDeque::new();
        let mut input = input;
        let flow = loop {
            let step = exchange.handle(input, now);
            exchange = step.next;
            self.carry_out(id, step.orders, now, &mut replies);
            let Some((question, reply)) = replies.pop_front() else { break step.flow };
            input = Input::StoreReplied { question, reply };
        };
        self.alarms.set(id, exchange.alarm());
        self.hurry(exchange.alarm(), now);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.exchange = Some(exchange);
        }
        flow
    }

    fn forget_if_over(&mut self, id: u32) {
        let over = |stream: &Stream| stream.exchange.as_ref().is_none_or(Exchange::is_over);
        if self.streams.get(&id).is_some_and(over) {
            self.streams.remove(&id);
            self.probes.remove(&id);
            self.alarms.set(id, None);
        }
    }

    fn carry_out(
        &mut self,
        id: u32,
        orders: Vec<Order>,
        now: Timestamp,
        replies: &mut VecDeque<(Question, Result<Reply, StoreError>)>,
    ) {
        for order in orders {
            match order {
                Order::Ask(question, command) => {
                    replies.push_back((question, self.ask(&command, now)));
                }
                Order::Answer(reply) => answer(&reply),
                Order::SetRequestHeader(name, value) => {
                    let set = abi::set_header(Direction::Request, name, &value);
                    warn("set a request header", set);
                }
                Order::RemoveRequestHeader(name) => {
                    let removed = abi::remove_header(Direction::Request, name);
                    warn("remove a request header", removed);
                }
                Order::SetResponseHeader(name, value) => {
                    let set = abi::set_header(Direction::Response, name, &value);
                    warn("set a response header", set);
                }
                Order::RemoveResponseHeader(name) => {
                    let removed = abi::remove_header(Direction::Response, name);
                    warn("remove a response header", removed);
                }
                Order::Watch(key) => {
                    self.metrics.waiting(1);
                    self.waiters.watch(key, id, now);
                }
                Order::Unwatch(key) => {
                    self.metrics.waiting(-1);
                    self.waiters.unwatch(key, id);
                }
                Order::Report(rule, report) => {
                    self.metrics.request(&rule, report);
                    let set = abi::set_property(FILTER_STATE, &report.to_string());
                    warn("set filter state", set);
                }
                Order::Count(counter) => self.metrics.count(&counter),
                Order::Log(level, text) => log::log!(level, "{text}"),
            }
        }
    }

    fn ask(&mut self, command: &Command, now: Timestamp) -> Result<Reply, StoreError> {
        let reply = self.store.execute(command, now).map(|executed| {
            self.metrics.evicted(executed.evicted);
            if executed.wake {
                self.waiters.broadcast(command.key());
            }
            executed.reply
        });
        self.metrics.operation(command, &reply);
        reply
    }

    /// Remembers to look whether the body of this request is kept back.
    fn probe(&mut self, id: u32, end_of_stream: bool) {
        let waits = |stream: &Stream| stream.exchange.as_ref().is_some_and(Exchange::awaits_body);
        if !self.bodies_come && !end_of_stream && self.streams.get(&id).is_some_and(waits) {
            self.probes.insert(id, received());
            self.set_tick(SHORT_TICK);
        }
    }

    /// Streams that have received more than their headers and were not given it.
    fn blocked(&mut self) -> Vec<u32> {
        let mut blocked = HashSet::new();
        for (id, before) in &self.probes {
            if abi::set_effective_context(*id).is_ok() && received() != *before {
                blocked.insert(*id);
            }
        }
        self.probes.retain(|id, _| !blocked.contains(id));
        blocked.into_iter().collect()
    }

    /// Sees to it that the tick comes in time for an alarm.
    fn hurry(&mut self, alarm: Option<Timestamp>, now: Timestamp) {
        let Some(alarm) = alarm else { return };
        let soon = is_soon(alarm, now);
        if self.tick.is_zero() || (soon && self.tick != SHORT_TICK) {
            self.set_tick(if soon { SHORT_TICK } else { LONG_TICK });
        }
    }

    fn due_tick(&self, now: Timestamp) -> Duration {
        let soon = self.alarms.next().is_some_and(|alarm| is_soon(alarm, now));
        if soon || !self.probes.is_empty() { SHORT_TICK } else { LONG_TICK }
    }

    fn set_tick(&mut self, tick: Duration) {
        if self.tick != tick {
            self.tick = tick;
            abi::set_tick_period(tick);
        }
    }
}

/// The long tick would be late for it, or next to it.
fn is_soon(alarm: Timestamp, now: Timestamp) -> bool {
    now.until(alarm) < 2 * LONG_TICK
}

/// Answers the effective context's request.
fn answer(reply: &LocalReply) {
    let LocalReply { status, headers, body, details } = reply;
    warn("answer a request", abi::send_local_response(*status, details, headers, body));
}

/// What Envoy has received of the effective context's request, as it writes the number.
fn received() -> Vec<u8> {
    abi::property(&["request", "total_size"]).unwrap_or_default()
}

/// A host call that failed does not change what was decided; it is told, for it should not fail.
fn warn(what: &str, result: Result<(), abi::Failure>) {
    if let Err(failure) = result {
        log::log!(Level::Warn, "Envoy would not {what}: {failure:?}");
    }
}
