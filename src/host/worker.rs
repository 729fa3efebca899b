//! The state of one worker thread: its streams, and how an exchange's orders become host calls.

mod callouts;
mod ticks;

use super::abi::{self, Direction};
use super::calls::{Calls, Purpose, Wanted};
use super::connections::Connections;
use super::logging;
use super::metrics::Metrics;
use super::queues::Queues;
use super::request::StreamRequest;
use super::store::{EnvoySharedData, now, wall_time};
use super::tokens::Tokens;
use crate::config::Config;
use crate::exchange::{
    Exchange, Fetched, Flow, Input, Order, Outgoing, RequestId, RequestPart, ResponsePart,
    StoreReply,
};
use crate::key::Attributes;
use crate::record::Token;
use crate::reply::{Code, LocalReply, Problem};
use crate::schedule::{BATCH, Budget, Timers, Waiters};
use crate::store::front::{Fact, Front};
use crate::store::shared_data::INSERT;
use crate::store::{Reply, StoreError};
use crate::telemetry::{FILTER_STATE, Incident};
use crate::time::Timestamp;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;
use ticks::{NEXT_TICK, SHORT_TICK};

/// Where records are kept.
pub(super) type Stores = Front<EnvoySharedData, StreamRequest>;

/// One worker's part of one filter.
#[derive(Debug)]
pub(super) struct Worker {
    config: Rc<Config>,
    stores: Stores,
    connections: Connections,
    tokens: Tokens,
    metrics: Metrics,
    queues: Queues,
    streams: HashMap<u32, Stream>,
    /// Origins' answers to this worker's own requests that are not handled yet.
    fetched: VecDeque<(StreamRequest, Fetched)>,
    waiters: Waiters,
    timers: Timers,
    /// The budget of this callback for streams other than its own.
    budget: Budget,
    calls: Calls,
    /// The number by which this process recognises its own requests.
    nonce: Rc<str>,
    /// Streams whose body may be kept back, with the bytes that Envoy had received at the headers.
    probes: VecDeque<(u32, Vec<u8>)>,
    bodies: Bodies,
    tick: Duration,
    /// A further callback was asked for since the last tick.
    called_back: bool,
    /// Envoy has announced the end of this configuration.
    ending: bool,
}

/// Whether Envoy hands over bodies whose headers are held: `allow_on_headers_stop_iteration`, which only
/// shows in what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bodies {
    Unknown,
    Come,
    Blocked,
}

/// A request under way.
#[derive(Debug)]
struct Stream {
    /// `None` only while it handles an input.
    exchange: Option<Exchange>,
    /// The direction that is held.
    held: Option<Direction>,
    /// Bytes of the request's held body that were read before.
    consumed: usize,
    /// Envoy still has it.
    alive: bool,
}

/// The store's replies to the stream that handles an input now.
type Answered = (RequestId, Result<Reply, StoreError>);

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
        stores: Stores,
        connections: Connections,
        metrics: Metrics,
        mut tokens: Tokens,
    ) -> Self {
        let queues = Queues::new(stores.prefix(), &tokens.next().0);
        let nonce = nonce(stores.prefix(), tokens.next());
        Self {
            config,
            stores,
            connections,
            tokens,
            metrics,
            queues,
            streams: HashMap::new(),
            fetched: VecDeque::new(),
            waiters: Waiters::default(),
            timers: Timers::default(),
            budget: Budget::new(batch()),
            calls: Calls::default(),
            nonce,
            probes: VecDeque::new(),
            bodies: Bodies::Unknown,
            tick: Duration::ZERO,
            called_back: false,
            ending: false,
        }
    }

    /// The configuration ends: returns whether all work is finished.
    pub(super) fn end(&mut self) -> bool {
        self.ending = true;
        // From now on only ticks come.
        self.set_tick(SHORT_TICK);
        logging::end();
        let settled = self.streams.is_empty();
        if settled {
            self.leave();
        }
        settled
    }

    /// Reports the end to Envoy if the configuration is ending and all work is finished.
    pub(super) fn end_if_settled(&mut self, root: u32) {
        if self.ending && self.streams.is_empty() && abi::set_effective_context(root).is_ok() {
            self.leave();
            logging::end();
            warn("end a configuration", abi::done());
        }
    }

    /// Removes what other workers know of this one. Its connections end with it, without a callback.
    fn leave(&mut self) {
        self.ending = false;
        self.queues.leave();
        self.metrics.pipe(-(self.connections.count() as i64));
    }

    pub(super) fn request_headers(&mut self, id: u32, end_of_stream: bool) -> Flow {
        let Some(headers) = abi::headers(Direction::Request) else {
            let said = "its list of the request's headers cannot be read";
            logging::log_incident(Incident::Host, &said);
            let problem = Problem::new(Code::Misconfigured, "the request's headers cannot be read");
            answer(&problem.into_reply());
            return Flow::Hold;
        };
        let exchange =
            Exchange::new(self.config.clone(), self.nonce.clone(), self.tokens.next(), wall_time());
        let stream = Stream { exchange: Some(exchange), held: None, consumed: 0, alive: true };
        self.streams.insert(id, stream);
        let input = Input::Request(RequestPart::Headers {
            headers: &headers,
            attributes: &EnvoyAttributes,
            end_of_stream,
        });
        let flow = self.called(id, Direction::Request, input);
        if !end_of_stream {
            self.probe(id);
        }
        flow
    }

    pub(super) fn response_headers(&mut self, id: u32, end_of_stream: bool) -> Flow {
        let Some(stream) = self.streams.get_mut(&id) else { return Flow::Continue };
        // This answer is not the origin's: the request that is held here goes no further.
        stream.held = None;
        // Unreadable: `:status` is absent then, and the outcome is unknown.
        let headers = abi::headers(Direction::Response).unwrap_or_default();
        let input = Input::Response(ResponsePart::Headers {
            headers: &headers,
            attributes: &EnvoyAttributes,
            end_of_stream,
        });
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
        // Each callback shows all of a request's body that is held, and of an answer's the new bytes alone.
        let held = direction == Direction::Request && stream.held == Some(direction);
        if held {
            // What holds for one stream holds for all.
            self.bodies = Bodies::Come;
            self.probes.clear();
        }
        let start = if held { stream.consumed.min(size) } else { 0 };
        let wanted = stream.exchange.as_ref().is_some_and(Exchange::wants_bytes);
        let length = size - start;
        let chunk = if wanted { abi::body(direction, start, length) } else { Vec::new() };
        stream.consumed = size;
        let input = match direction {
            Direction::Request => {
                Input::Request(RequestPart::Body { chunk: &chunk, length, end_of_stream })
            }
            Direction::Response => {
                Input::Response(ResponsePart::Body { chunk: &chunk, length, end_of_stream })
            }
        };
        let flow = self.called(id, direction, input);
        if flow == Flow::Discard {
            // What was held before is in the same buffer.
            warn("discard a body", abi::replace_body(direction, 0, size, &[]));
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.consumed = 0;
            }
        }
        flow
    }

    pub(super) fn trailers(&mut self, id: u32, direction: Direction) -> Flow {
        let input = match direction {
            Direction::Request => Input::Request(RequestPart::Trailers),
            Direction::Response => Input::Response(ResponsePart::Trailers),
        };
        self.called(id, direction, input)
    }

    pub(super) fn ended(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.held = None;
            stream.alive = false;
            self.feed(id, Input::StreamEnded);
            // Only outstanding store commands keep it alive.
            self.forget_if_over(id);
        }
    }

    pub(super) fn queue_ready(&mut self, queue: u32) {
        self.budget.renew();
        self.queues.is_called_back();
        self.as_root();
        for message in self.queues.take(queue) {
            self.hear(message);
        }
        self.work_off();
    }

    /// Sends the bytes and counts the changes of the callback that ends now, and schedules the handling of
    /// the rest. Afterwards its context is not the effective one.
    pub(super) fn flush(&mut self) {
        self.carry_out_orders(now());
        self.metrics.table(self.stores.take_tally());
        if let Some(alarm) = logging::alarm() {
            self.hurry(Some(alarm), now());
        }
        self.connections.flush();
        if self.has_more() {
            self.hurry_to(NEXT_TICK);
            if !std::mem::replace(&mut self.called_back, true) {
                self.queues.call_back();
            }
        }
    }

    pub(super) fn tick(&mut self) {
        self.budget.renew();
        self.called_back = false;
        let now = now();
        self.as_root();
        if self.ending {
            for message in self.queues.take_own() {
                self.hear(message);
            }
        }
        self.stores.handle(Fact::Tick, now);
        self.carry_out_orders(now);
        self.as_root();
        self.work_off();
        self.look_for_blocked();
        logging::log_missed(now);
        if !self.waiters.is_empty() {
            self.queues.listen(now);
        }
        let quiet = self.calls.is_empty()
            && self.streams.is_empty()
            && self.waiters.is_empty()
            && self.stores.alarm().is_none()
            && logging::alarm().is_none();
        let tick = if quiet { Duration::ZERO } else { self.due_tick(now) };
        self.set_tick(tick);
    }

    /// An input from the stream's own callback: the flow is the callback's return value.
    fn called(&mut self, id: u32, direction: Direction, input: Input<'_>) -> Flow {
        let flow = self.feed(id, input);
        if let Some(stream) = self.streams.get_mut(&id) {
            match flow {
                Flow::Hold | Flow::Discard => stream.held = Some(direction),
                Flow::Continue if stream.held == Some(direction) => stream.held = None,
                Flow::Continue => {}
            }
        }
        self.forget_if_over(id);
        flow
    }

    /// An input from elsewhere: the held direction goes on, or stays held.
    fn come_back(&mut self, id: u32, input: Input<'_>) {
        let Some(stream) = self.streams.get(&id) else { return };
        if stream.alive && abi::set_effective_context(id).is_err() {
            logging::log_incident(
                Incident::Host,
                &format_args!("stream {id} ended without a callback"),
            );
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

    /// Handles the input and every reply that follows from it.
    fn feed(&mut self, id: u32, input: Input<'_>) -> Flow {
        let now = now();
        let Some(mut exchange) =
            self.streams.get_mut(&id).and_then(|stream| stream.exchange.take())
        else {
            return Flow::Continue;
        };
        let mut input = input;
        let mut replies = VecDeque::new();
        let flow = loop {
            let step = exchange.handle(input, now);
            exchange = step.next;
            replies.extend(self.carry_out(id, step.orders, now));
            let Some((question, reply)) = replies.pop_front() else { break step.flow };
            input = Input::Store(StoreReply { question, reply });
        };
        self.timers.set(id, exchange.alarm());
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
            self.timers.set(id, None);
        }
    }

    /// Carries out orders, and returns the replies that are known at once.
    fn carry_out(&mut self, id: u32, orders: Vec<Order>, now: Timestamp) -> Vec<Answered> {
        let mut answered = Vec::new();
        for order in orders {
            match order {
                Order::Ask(question, command) => {
                    let reply =
                        self.stores.ask(StreamRequest { stream: id, question }, command, now);
                    answered.extend(reply.map(|reply| (question, reply)));
                }
                Order::AskHere(question, command) => {
                    answered.push((question, self.stores.ask_here(&command, now)));
                }
                Order::Send(question, outgoing) => {
                    let Outgoing { cluster, headers, body, timeout } = *outgoing;
                    let purpose = Purpose::Stream(StreamRequest { stream: id, question });
                    self.calls.want(Wanted { purpose, cluster, headers, body, timeout });
                    self.queues.call_back();
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
                    self.queues.listen(now);
                    self.waiters.join(key, id);
                    self.stores.watch(key, now);
                }
                Order::Unwatch(key) => {
                    self.metrics.waiting(-1);
                    self.waiters.leave(id);
                    self.stores.unwatch(key, now);
                }
                Order::Report(rule, report) => {
                    self.metrics.request(&rule, report);
                    let set = abi::set_property(FILTER_STATE, &report.to_string());
                    warn("set filter state", set);
                }
                Order::Count(counter) => self.metrics.count(&counter),
                Order::Log(incident, text) => logging::log_incident(incident, &text),
            }
        }
        answered
    }
}

/// How many streams one callback handles.
fn batch() -> u32 {
    #[cfg(feature = "deliberate-trap")]
    if let Some(batch) = super::trap::batch() {
        return batch;
    }
    BATCH
}

/// The number by which this process recognises its own requests: the first worker chooses it.
fn nonce(prefix: &str, token: Token) -> Rc<str> {
    let name = format!("{prefix}/nonce");
    let chosen: String = token.0.iter().map(|byte| format!("{byte:02x}")).collect();
    // An insertion: a later worker reads the number of the first.
    let _ = abi::set_shared_data(&name, chosen.as_bytes(), INSERT);
    let (first, _) = abi::shared_data(&name);
    first.and_then(|first| String::from_utf8(first).ok()).unwrap_or(chosen).into()
}

/// Answers the effective context's request.
fn answer(reply: &LocalReply) {
    let LocalReply { status, headers, body, details } = reply;
    warn("answer a request", abi::send_local_response(*status, details, headers, body));
}

/// A failed host call does not change the decision; it is logged, because it should not fail.
fn warn(what: &str, result: Result<(), abi::Failure>) {
    if let Err(failure) = result {
        logging::log_incident(
            Incident::Host,
            &format_args!("Envoy refused to {what}: {failure:?}"),
        );
    }
}
