//! The machine of one request, without IO: facts in, orders out.

mod begin;
mod claim;
mod claiming;
mod detached;
mod disowned;
mod duplicate;
mod finish;
mod input;
mod order;
mod origin;
mod owed;
mod passing;
mod retention;
mod source;
mod tail;
mod transition;

pub use detached::{Fetched, Outgoing};
pub use input::{Input, RequestPart, ResponsePart, StoreReply, WorkerFact};
pub use order::{Flow, Order, RequestId};

use owed::{Meaning, Owed, RequestEnd};
use passing::Passing;
use transition::Transition;

use crate::config::{Config, Rule};
use crate::reply::LocalReply;
use crate::store::Command;
use crate::telemetry::{Outcome, Report, header};
use crate::time::{Timestamp, WallTime};
use std::rc::Rc;

/// The body that a request may have that no rule protects, in bytes, if an answer is to wait for its end: what a
/// rule allows by default.
const LIMIT: usize = 256 * 1024;

/// Header names and values as Envoy gives them, pseudo-headers first, in order, duplicates kept.
pub type Headers = [(Vec<u8>, Vec<u8>)];

/// One request, from its headers to its last byte or its end.
///
/// ```text
///  Fresh ── our own request, back through `via` ──▶ Returned ── response headers ──▶ Passing
///   │  │
///   │  └─ no rule, bypass, refused by the headers ──────────────────────────────────▶ Passing
///   │ a rule
///   ├── body needed ──▶ AwaitBody ── refused ───────────────────────────────────────▶ Passing
///   ▼                      │ whole
///  claim ◀─────────────────┘                   ongoing, wait     ┌────────────┐
///   │      ┌───────────────────────────────────────────────────▶ │ AwaitFirst │ ── at its end ──▶ Passing
///   ▼      │                        woken, or the lease is over   └────────────┘
///  AwaitClaim ◀──────────────────────────────────────────────────────┘
///   │ │ │ ▲│                                   ongoing, requeue  ┌──────────┐
///   │ │ │ │└───────────────────────────────────────────────────▶ │ Requeued │
///   │ │ │ └────────────────────────── after its delay ───────────└──────────┘
///   │ │ ├── answered from the record, refused ──────────────────────────────────────▶ Passing
///   │ │ └── the store failed and may have granted the claim ── take it back ────────▶ Finishing
///   │ └──── stream gone, or answered by another ──▶ Disowned ── perhaps granted ────▶ Finishing
///   │ granted                                           └────── another's record ───▶ Over, Passing
///   │
///   ├── detached ──▶ Dispatched ── the origin has replied ──────────────────────────▶ Finishing
///   ▼                    └──────── claim lost ──▶ stays, without a claim ───────────▶ Passing, Over
///  AwaitOrigin ── release, unknown, tombstone; client gone ─────────────────────────▶ Finishing
///   │     └────── claim lost ───────────────────────────────────────────────────────▶ Passing
///   │ an answer to keep
///   ▼
///  Recording ── whole, over the limit, broken off ──────────────────────────────────▶ Finishing
///         └──── claim lost ─────────────────────────────────────────────────────────▶ Passing
///
///  Finishing ── done, or given up ──▶ Passing, or Over if the stream is gone
///  Passing, and each state that owes the store nothing ── stream gone ──▶ Over
/// ```
///
/// Beside the state, an answer of the filter's may wait for the end of its request (`owed`).
///
/// The one rule: *the host carries out every order of a step, in order, before it feeds the next input;
/// the last flow is what the callback returns, or what becomes of the direction that is held.*
///
/// A claim is completed, released or marked unknown on every way out. `StreamEnded` ends the
/// client's part; the host keeps the exchange until [`Exchange::is_over`].
#[derive(Debug)]
pub struct Exchange {
    context: Context,
    state: State,
    request_end: RequestEnd,
    /// An answer that waits for the request's end.
    owed: Option<Owed>,
}

/// What follows from an input.
#[must_use]
#[derive(Debug)]
pub struct Step {
    /// The machine, for the next input.
    pub next: Exchange,
    /// What becomes of the held direction.
    pub flow: Flow,
    /// To be carried out in this order.
    pub orders: Vec<Order>,
}

impl Exchange {
    /// A request whose headers are about to come.
    ///
    /// `token` is 16 fresh random bytes: a client that guesses it could end the claim. `nonce` is a secret of this
    /// process, which marks its own requests when they come back through `via`. `came_at` is told to clients that
    /// send the request again.
    pub fn new(
        config: Rc<Config>,
        nonce: Rc<str>,
        token: crate::record::Token,
        came_at: WallTime,
    ) -> Self {
        let context = Context { config, nonce, token, came_at, asked: 0 };
        Self { context, state: State::Fresh, request_end: RequestEnd::default(), owed: None }
    }

    /// Takes a fact, consumes what was, and says what follows.
    pub fn handle(self, input: Input<'_>, now: Timestamp) -> Step {
        let Self { mut context, state, mut request_end, owed } = self;
        request_end.notice(&input);
        let meaning = Meaning::of(&input);
        let shadow = state.rule().is_some_and(|rule| rule.shadow);
        let transition = match state {
            State::Fresh => begin::fresh(&mut context, input, now),
            State::AwaitBody(state) => state.handle(&mut context, input, now),
            State::AwaitClaim(state) => state.handle(&mut context, input, now),
            State::AwaitFirst(state) => state.handle(&mut context, input, now),
            State::Requeued(state) => state.handle(&mut context, input, now),
            State::Disowned(state) => state.handle(&mut context, input, now),
            State::AwaitOrigin(state) => state.handle(&mut context, input, now),
            State::Dispatched(state) => state.handle(&mut context, input, now),
            State::Returned(state) => state.handle(input),
            State::Recording(state) => state.handle(&mut context, input, now),
            State::Finishing(state) => state.handle(&mut context, input, now),
            State::Passing(state) => state.handle(&context, input),
            State::Over => Transition::new(State::Over, Flow::Continue),
        };
        let shadow = shadow || transition.state.rule().is_some_and(|rule| rule.shadow);
        let Transition { state, mut flow, mut orders } =
            if shadow { transition.in_shadow() } else { transition };
        let owed = match owed {
            Some(owed) => {
                let (owed, becomes) = owed.go_on(meaning, &request_end, &mut orders, now);
                flow = becomes.unwrap_or(flow);
                owed
            }
            None => {
                let limit = state.rule().map_or(LIMIT, |rule| rule.limits.request_body);
                Owed::take(&mut orders, &request_end, limit, now)
            }
        };
        Step { next: Self { context, state, request_end, owed }, flow, orders }
    }

    /// When the machine wants a `Tick`, if nothing comes before. May be in the past: then at once.
    pub fn alarm(&self) -> Option<Timestamp> {
        let owed = self.owed.as_ref().map(Owed::alarm);
        self.state.alarm().into_iter().chain(owed).min()
    }

    /// The bytes of the next body chunk matter; else the host need not copy them.
    pub fn wants_bytes(&self) -> bool {
        match &self.state {
            State::AwaitBody(_) => true,
            State::Recording(state) => state.wants_bytes(),
            State::Fresh
            | State::AwaitClaim(_)
            | State::AwaitFirst(_)
            | State::Requeued(_)
            | State::Disowned(_)
            | State::AwaitOrigin(_)
            | State::Dispatched(_)
            | State::Returned(_)
            | State::Finishing(_)
            | State::Passing(_)
            | State::Over => false,
        }
    }

    /// The request's headers are held until its body is here.
    pub fn awaits_body(&self) -> bool {
        matches!(&self.state, State::AwaitBody(state) if !state.rule().shadow)
    }

    /// Nothing that may still come would change anything: the host may forget the exchange. Never
    /// before everything that is owed to the store is settled.
    pub fn is_over(&self) -> bool {
        if self.owed.is_some() {
            return false;
        }
        match &self.state {
            State::Over => true,
            State::Passing(passing) => {
                !passing.untyped
                    && (passing.outcome.is_none() || !self.context.config.status_header)
            }
            State::Fresh
            | State::AwaitBody(_)
            | State::AwaitClaim(_)
            | State::AwaitFirst(_)
            | State::Requeued(_)
            | State::Disowned(_)
            | State::AwaitOrigin(_)
            | State::Dispatched(_)
            | State::Returned(_)
            | State::Recording(_)
            | State::Finishing(_) => false,
        }
    }
}

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whom {
    /// The store that the configuration names.
    Store,
    /// This Envoy's memory: the store has failed, and the rule says `local`.
    Here,
}

/// What every state shares.
#[derive(Debug)]
struct Context {
    config: Rc<Config>,
    nonce: Rc<str>,
    token: crate::record::Token,
    came_at: WallTime,
    asked: u32,
}

impl Context {
    fn ask(&mut self, whom: Whom, command: Command) -> (RequestId, Order) {
        let question = self.number();
        let order = match whom {
            Whom::Store => Order::Ask(question, command),
            Whom::Here => Order::AskHere(question, command),
        };
        (question, order)
    }
}

/// What the machine waits for.
#[derive(Debug)]
enum State {
    Fresh,
    AwaitBody(begin::AwaitBody),
    AwaitClaim(claiming::AwaitClaim),
    AwaitFirst(claiming::AwaitFirst),
    Requeued(claiming::Requeued),
    Disowned(disowned::Disowned),
    AwaitOrigin(origin::AwaitOrigin),
    Dispatched(detached::Dispatched),
    Returned(detached::Returned),
    Recording(origin::Recording),
    Finishing(finish::Finishing),
    Passing(Passing),
    Over,
}

impl State {
    fn alarm(&self) -> Option<Timestamp> {
        match self {
            Self::AwaitFirst(state) => Some(state.alarm()),
            Self::Requeued(state) => Some(state.alarm()),
            Self::AwaitOrigin(state) => Some(state.alarm()),
            Self::Dispatched(state) => state.alarm(),
            Self::Recording(state) => Some(state.alarm()),
            Self::Finishing(state) => state.alarm(),
            Self::Fresh
            | Self::AwaitBody(_)
            | Self::AwaitClaim(_)
            | Self::Disowned(_)
            | Self::Returned(_)
            | Self::Passing(_)
            | Self::Over => None,
        }
    }

    fn rule(&self) -> Option<&Rule> {
        match self {
            Self::AwaitBody(state) => Some(state.rule()),
            Self::AwaitClaim(state) => Some(state.rule()),
            Self::AwaitFirst(state) => Some(state.rule()),
            Self::Requeued(state) => Some(state.rule()),
            Self::Disowned(state) => Some(state.rule()),
            Self::AwaitOrigin(state) => Some(state.rule()),
            Self::Dispatched(state) => Some(state.rule()),
            Self::Recording(state) => Some(state.rule()),
            Self::Finishing(state) => Some(state.rule()),
            Self::Passing(state) => state.rule.as_deref(),
            Self::Fresh | Self::Returned(_) | Self::Over => None,
        }
    }
}

impl Context {
    fn status_header(&self, outcome: Outcome) -> Option<Order> {
        self.config
            .status_header
            .then(|| Order::SetResponseHeader(header::STATUS, outcome.word().to_owned()))
    }

    /// The client gets this answer instead of the origin's.
    fn answer(&self, rule: &Rc<Rule>, outcome: Outcome, reply: LocalReply) -> Transition {
        let reply = self.with_status(outcome, reply);
        finish::answer(rule, reply).after(vec![report(rule, outcome)])
    }

    /// The answer, with `Idempotency-Status` if the config wants it.
    fn with_status(&self, outcome: Outcome, mut reply: LocalReply) -> LocalReply {
        if self.config.status_header {
            reply.headers.push((header::STATUS.into(), outcome.word().into()));
        }
        reply
    }

    /// The next number of a question.
    fn number(&mut self) -> RequestId {
        self.asked = self.asked.wrapping_add(1);
        RequestId(self.asked)
    }

    /// The origin answers as if there were no filter.
    fn pass(&self, rule: &Rc<Rule>, outcome: Outcome) -> Transition {
        let passing =
            Passing { rule: Some(rule.clone()), outcome: Some(outcome), ..Passing::default() };
        Transition::new(State::Passing(passing), Flow::Continue).order(report(rule, outcome))
    }
}

/// The first value of a header, by its name in lower case.
fn value<'a>(headers: &'a Headers, wanted: &str) -> Option<&'a [u8]> {
    let found = headers.iter().find(|(name, _)| name == wanted.as_bytes());
    found.map(|(_, value)| value.as_slice())
}

/// Whether there is a content type.
fn has_type(headers: &Headers) -> bool {
    value(headers, "content-type").is_some()
}

/// A header's value as a number.
fn number<N: std::str::FromStr>(text: &[u8]) -> Option<N> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

fn report(rule: &Rc<Rule>, outcome: Outcome) -> Order {
    Order::Report(rule.clone(), Report { outcome, shadow: rule.shadow })
}
