//! An answer of the filter's that waits for the end of its request.
//!
//! Envoy closes an HTTP/1.1 connection on which it answers before the request has come to its end
//! (`downstream_rq_response_before_rq_complete`), and a client may read a reset in the place of the answer.
//! So the rest of the request is read and thrown away first, within bounds.

use super::{Flow, Input, Order, RequestPart, ResponsePart, number, value};
use crate::reply::LocalReply;
use crate::time::Timestamp;
use std::time::Duration;

/// The longest that an answer waits for the end of its request, counted from when the answer is known. It
/// is what nginx allows a client for the same purpose (`lingering_timeout`). A longer bound would keep more
/// answers waiting behind a client that does not go on; a shorter one would cost slow clients their
/// connection.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What is known of the end of a request.
#[derive(Debug, Default)]
pub(super) struct RequestEnd {
    ended: bool,
    /// It will not come: the client sends its body only when it is asked to, the protocol changes after the
    /// headers, or Envoy keeps the body from the filter.
    unreachable: bool,
    received: u64,
    announced: Option<u64>,
}

impl RequestEnd {
    pub(super) fn notice(&mut self, input: &Input<'_>) {
        match input {
            Input::Request(RequestPart::Headers { headers, end_of_stream, .. }) => {
                self.ended = *end_of_stream;
                // Envoy has answered `expect` itself and removed it, unless `proxy_100_continue` is on.
                let has = |name| value(headers, name).is_some();
                self.unreachable = has("expect") || has("upgrade") || has(":protocol");
                self.announced = value(headers, "content-length").and_then(number::<u64>);
            }
            Input::Request(RequestPart::Body { length, end_of_stream, .. }) => {
                self.received = self.received.saturating_add(*length as u64);
                self.ended |= end_of_stream;
            }
            Input::Request(RequestPart::Trailers) => self.ended = true,
            Input::Request(RequestPart::BodyBlocked) => self.unreachable = true,
            Input::Store(_) | Input::Worker(_) | Input::Response(_) | Input::StreamEnded => {}
        }
    }

    /// There is an end to wait for, if the request may have `limit` bytes.
    fn is_to_come(&self, limit: u64) -> bool {
        let length = self.announced.unwrap_or(0).max(self.received);
        !self.ended && !self.unreachable && length <= limit
    }
}

/// The answer.
#[derive(Debug)]
pub(super) struct Owed {
    reply: LocalReply,
    limit: u64,
    until: Timestamp,
}

/// Where an input comes from, as far as it matters to an answer that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// More of the request's body, which is not needed.
    More,
    /// The client is gone, or has another's answer.
    TooLate,
    /// Anything else.
    Other,
}

impl Meaning {
    pub(super) fn of(input: &Input<'_>) -> Self {
        match input {
            Input::Request(RequestPart::Body { .. }) => Self::More,
            Input::Response(ResponsePart::Headers { .. }) | Input::StreamEnded => Self::TooLate,
            Input::Request(
                RequestPart::Headers { .. } | RequestPart::Trailers | RequestPart::BodyBlocked,
            )
            | Input::Store(_)
            | Input::Worker(_)
            | Input::Response(ResponsePart::Body { .. } | ResponsePart::Trailers) => Self::Other,
        }
    }
}

impl Owed {
    /// Takes the answer out of a step's orders, if it has to wait.
    pub(super) fn take(
        orders: &mut Vec<Order>,
        end: &RequestEnd,
        limit: usize,
        now: Timestamp,
    ) -> Option<Self> {
        let limit = limit as u64;
        if !end.is_to_come(limit) {
            return None;
        }
        let at = orders.iter().position(|order| matches!(order, Order::Answer(_)))?;
        let Order::Answer(reply) = orders.remove(at) else { return None };
        Some(Self { reply, limit, until: now.after(LONGEST_WAIT) })
    }

    pub(super) fn alarm(&self) -> Timestamp {
        self.until
    }

    /// What becomes of it, and of the request, after an input.
    pub(super) fn go_on(
        self,
        meaning: Meaning,
        end: &RequestEnd,
        orders: &mut Vec<Order>,
        now: Timestamp,
    ) -> (Option<Self>, Option<Flow>) {
        match meaning {
            Meaning::TooLate => {
                // What was meant for our own answer's headers is not for another's.
                orders.retain(|order| !matches!(order, Order::RemoveResponseHeader(_)));
                (None, None)
            }
            Meaning::More | Meaning::Other if now >= self.until || !end.is_to_come(self.limit) => {
                orders.push(Order::Answer(self.reply));
                (None, Some(Flow::Hold))
            }
            Meaning::More => (Some(self), Some(Flow::Discard)),
            Meaning::Other => (Some(self), Some(Flow::Hold)),
        }
    }
}
