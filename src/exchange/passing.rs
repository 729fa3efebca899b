//! Nothing is left to decide.

use super::{Context, Flow, Input, Order, ResponsePart, State, Transition};
use crate::config::Rule;
use crate::telemetry::Outcome;
use std::rc::Rc;

/// Nothing more to decide: what comes goes through.
#[derive(Debug, Default)]
pub(super) struct Passing {
    /// The rule that protects the request, if one does.
    pub(super) rule: Option<Rc<Rule>>,
    /// Said in the response's headers, when the origin answers and the config wants it.
    pub(super) outcome: Option<Outcome>,
    /// The answer is a replay whose record has no content type: Envoy's own default is taken off.
    pub(super) untyped: bool,
    /// The filter has answered: the request is held for good.
    pub(super) answered: bool,
}

impl Passing {
    pub(super) fn handle(mut self, context: &Context, input: Input<'_>) -> Transition {
        match input {
            Input::Response(ResponsePart::Headers { .. }) => {
                let said = self.outcome.take().and_then(|outcome| context.status_header(outcome));
                let taken_off = self.untyped.then_some(Order::RemoveResponseHeader("content-type"));
                Transition::new(State::Passing(self), Flow::Continue).orders(said).orders(taken_off)
            }
            Input::StreamEnded => Transition::new(State::Over, Flow::Continue),
            Input::Response(ResponsePart::Body { .. } | ResponsePart::Trailers) => {
                Transition::new(State::Passing(self), Flow::Continue)
            }
            Input::Request(_) | Input::Store(_) | Input::Worker(_) => {
                let flow = if self.answered { Flow::Hold } else { Flow::Continue };
                Transition::new(State::Passing(self), flow)
            }
        }
    }
}
