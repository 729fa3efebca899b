//! Before the store is asked: which rule and which key a request has, and whether it is valid.

use super::claiming::{self, Claiming};
use super::detached::{Returned, Unsent};
use super::{
    Context, Flow, Headers, Input, Order, Passing, RequestPart, ResponsePart, State, Transition,
    number, value,
};
use crate::config::{Ongoing, Rule, Selection};
use crate::key::{Attributes, Captures, Draft, KeyError, RequestHead};
use crate::reply::{Code, Problem};
use crate::telemetry::{Bypass, Incident, Outcome, header};
use crate::time::Timestamp;
use std::rc::Rc;

/// Where a route names its rule, or switches the filter off (Envoy attribute `xds.route_metadata`).
const ROUTE_RULE: [&str; 5] = ["xds", "route_metadata", "filter_metadata", "idempotency", "rule"];

/// The request's headers are held until its body is whole.
#[derive(Debug)]
pub(super) struct AwaitBody {
    rule: Rc<Rule>,
    draft: Draft,
    location: Vec<u8>,
    body: Vec<u8>,
    /// What will be sent if the request is to be executed detached.
    unsent: Option<Unsent>,
}

/// The first input of an exchange.
pub(super) fn fresh(context: &mut Context, input: Input<'_>, now: Timestamp) -> Transition {
    match input {
        Input::Request(RequestPart::Headers { headers, attributes, end_of_stream }) => {
            head(context, headers, attributes, end_of_stream, now)
        }
        Input::StreamEnded => Transition::new(State::Over, Flow::Continue),
        // A stream whose request headers never came, since Envoy refused them. Envoy answers it.
        Input::Request(
            RequestPart::Body { .. } | RequestPart::Trailers | RequestPart::BodyBlocked,
        )
        | Input::Store(_)
        | Input::Worker(_)
        | Input::Response(_) => Transition::new(State::Passing(Passing::default()), Flow::Continue),
    }
}

/// Rows 1 to 6 of the README's table: what can be seen before the body is here.
fn head(
    context: &mut Context,
    headers: &Headers,
    attributes: &dyn Attributes,
    end_of_stream: bool,
    now: Timestamp,
) -> Transition {
    if let Some(nonce) = value(headers, header::VIA) {
        return returned(context, nonce);
    }
    let route = attributes.attribute(&ROUTE_RULE);
    let (rule, captures) = match context.config.select(route.as_deref(), headers) {
        Selection::Rule { rule, captures } => (rule, captures),
        Selection::NoRule | Selection::RouteOff => {
            return Transition::new(State::Passing(Passing::default()), Flow::Continue);
        }
        Selection::Dangling => return dangling(route.unwrap_or_default()),
    };
    let transition = match admit(&rule, headers, attributes, &captures, end_of_stream) {
        Err(left) => left.into_transition(context, &rule),
        Ok(draft) => {
            let location = location(&rule, headers, &captures);
            // In shadow mode neither client nor origin may notice anything.
            let detached = rule.detached.as_ref().filter(|_| !rule.shadow);
            let unsent = detached.and_then(|detached| Unsent::new(detached, headers, attributes));
            let state = AwaitBody { rule, draft, location, body: Vec::new(), unsent };
            if state.needs_body() && !end_of_stream {
                Transition::new(State::AwaitBody(state), Flow::Hold)
            } else {
                state.whole(context, now)
            }
        }
    };
    // Only this filter may set the number of the attempt.
    transition.after(vec![Order::RemoveRequestHeader(header::ATTEMPT)])
}

/// Why a request does not get as far as the store.
enum NotAdmitted {
    Bypassed(Bypass),
    Refused(Problem),
}

impl NotAdmitted {
    fn into_transition(self, context: &Context, rule: &Rc<Rule>) -> Transition {
        match self {
            Self::Bypassed(reason) => {
                let said = format!("{}: bypassed: {}", rule.name, reason.word());
                context.pass(rule, Outcome::Bypassed).order(Order::Log(Incident::Bypassed, said))
            }
            Self::Refused(problem) => context.answer(rule, Outcome::Invalid, problem.into_reply()),
        }
    }
}

fn admit(
    rule: &Rule,
    headers: &Headers,
    attributes: &dyn Attributes,
    captures: &Captures,
    end_of_stream: bool,
) -> Result<Draft, NotAdmitted> {
    if value(headers, "upgrade").is_some() || value(headers, ":protocol").is_some() {
        return Err(NotAdmitted::Bypassed(Bypass::Upgrade));
    }
    if value(headers, "content-type").is_some_and(is_grpc) {
        return Err(NotAdmitted::Bypassed(Bypass::Grpc));
    }
    let draft = rule
        .key
        .begin(&RequestHead { headers, attributes, captures })
        .map_err(|error| unfit(rule, error))?;
    let announced = value(headers, "content-length").and_then(number::<u64>);
    let limit = rule.limits.request_body;
    // Envoy refuses to buffer more than its own limit, with an answer of its own; ours comes first.
    if rule.needs_body() && !end_of_stream && announced.is_some_and(|size| size > limit as u64) {
        return Err(NotAdmitted::Refused(too_large(limit)));
    }
    Ok(draft)
}

/// gRPC over HTTP/2 and gRPC-Web, with whichever message format.
fn is_grpc(content_type: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    content_type.get(..GRPC.len()).is_some_and(|start| start.eq_ignore_ascii_case(GRPC))
}

fn unfit(rule: &Rule, error: KeyError) -> NotAdmitted {
    if rule.passes_without(&error) {
        return NotAdmitted::Bypassed(Bypass::KeyAbsent);
    }
    let code = match &error {
        KeyError::KeyMissing { .. } => Code::KeyMissing,
        KeyError::KeyInvalid { .. } => Code::KeyInvalid,
        KeyError::CallerMissing => Code::CallerMissing,
        KeyError::BodyInvalid { .. } => Code::BodyInvalid,
    };
    NotAdmitted::Refused(Problem::new(code, error.to_string()))
}

fn too_large(limit: usize) -> Problem {
    Problem::new(
        Code::BodyTooLarge,
        format!("The request body is part of the idempotency key; the limit is {limit} bytes."),
    )
}

/// Where `redirect` sends a duplicate: the template filled in, or the request's own URL.
fn location(rule: &Rule, headers: &Headers, captures: &Captures) -> Vec<u8> {
    match &rule.ongoing {
        Ongoing::Redirect { to: Some(template), .. } => template.fill(captures).into_bytes(),
        Ongoing::Redirect { to: None, .. } => value(headers, ":path").unwrap_or_default().to_vec(),
        Ongoing::Reject | Ongoing::Wait { .. } | Ongoing::Requeue { .. } => Vec::new(),
    }
}

fn dangling(route: Vec<u8>) -> Transition {
    let named = String::from_utf8_lossy(&route).into_owned();
    let said = format!("route metadata names the rule {named:?}, which does not exist");
    let problem = Problem::new(
        Code::Misconfigured,
        "The route names an idempotency rule that does not exist.",
    );
    Transition::new(State::Passing(Passing { answered: true, ..Passing::default() }), Flow::Hold)
        .order(Order::Log(Incident::Misconfigured, said))
        .order(Order::Answer(problem.into_reply()))
}

/// A request of this filter's own that comes back through `via`, or a request that claims to be one.
fn returned(context: &Context, nonce: &[u8]) -> Transition {
    // Compared in constant time: the time must not reveal where the two differ.
    let ours = context.nonce.as_bytes();
    let differences = ours.iter().zip(nonce).fold(0, |all, (one, other)| all | (one ^ other));
    if nonce.len() == ours.len() && differences == 0 {
        return Transition::new(State::Returned(Returned), Flow::Continue)
            .order(Order::RemoveRequestHeader(header::VIA));
    }
    let problem =
        Problem::new(Code::ViaRefused, "Clients must not send the header idempotency-via.");
    Transition::new(State::Passing(Passing { answered: true, ..Passing::default() }), Flow::Hold)
        .order(Order::Answer(problem.into_reply()))
}

impl AwaitBody {
    pub(super) fn rule(&self) -> &Rule {
        &self.rule
    }

    fn needs_body(&self) -> bool {
        self.rule.key.needs_body() || self.unsent.is_some()
    }

    pub(super) fn handle(
        mut self,
        context: &mut Context,
        input: Input<'_>,
        now: Timestamp,
    ) -> Transition {
        match input {
            Input::Request(RequestPart::Body { chunk, end_of_stream, .. }) => {
                let limit = self.rule.limits.request_body;
                if self.body.len().saturating_add(chunk.len()) > limit {
                    return NotAdmitted::Refused(too_large(limit))
                        .into_transition(context, &self.rule);
                }
                self.body.extend_from_slice(chunk);
                if end_of_stream {
                    self.whole(context, now)
                } else {
                    Transition::new(State::AwaitBody(self), Flow::Hold)
                }
            }
            Input::Request(RequestPart::Trailers) => self.whole(context, now),
            Input::Request(RequestPart::BodyBlocked) => self.blocked(context),
            // Envoy (a time-out) or another filter has answered the request.
            Input::Response(ResponsePart::Headers { .. }) => {
                context.pass(&self.rule, Outcome::Bypassed)
            }
            Input::StreamEnded => Transition::new(State::Over, Flow::Continue),
            Input::Request(RequestPart::Headers { .. })
            | Input::Store(_)
            | Input::Worker(_)
            | Input::Response(ResponsePart::Body { .. } | ResponsePart::Trailers) => {
                Transition::new(State::AwaitBody(self), Flow::Hold)
            }
        }
    }

    /// The request is whole as far as the rule needs it: its key can be made.
    fn whole(self, context: &mut Context, now: Timestamp) -> Transition {
        let Self { rule, draft, location, body, unsent } = self;
        let secret = context.config.secret.as_ref();
        match rule.key.finish(draft, &body, secret) {
            Ok((key, fingerprint)) => {
                let unsent = unsent.map(|unsent| unsent.with_body(body));
                let claiming = Claiming::new(rule, key, fingerprint, location, unsent);
                claiming::ask(context, claiming, now)
            }
            Err(error) => unfit(&rule, error).into_transition(context, &rule),
        }
    }

    /// The request cannot be checked, so it must not reach the origin.
    fn blocked(self, context: &Context) -> Transition {
        let said = format!(
            "the rule {} needs the request's body, which Envoy does not deliver: set \
             allow_on_headers_stop_iteration: true in the filter's plugin config",
            self.rule.name
        );
        let problem = Problem::new(
            Code::Misconfigured,
            "The filter needs the request body, but Envoy is not configured to deliver it.",
        );
        NotAdmitted::Refused(problem)
            .into_transition(context, &self.rule)
            .order(Order::Log(Incident::Misconfigured, said))
    }
}
