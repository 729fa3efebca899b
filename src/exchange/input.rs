//! What the machine is told, by where it comes from.

use super::{Fetched, Headers, RequestId};
use crate::key::Attributes;
use crate::store::{Reply, StoreError};

/// A fact.
pub enum Input<'a> {
    /// A part of the request has come.
    Request(RequestPart<'a>),
    /// A part of the response has come: the origin's, Envoy's own, or this filter's.
    Response(ResponsePart<'a>),
    /// The store has answered.
    Store(StoreReply),
    /// The worker has something for the exchange.
    Worker(WorkerFact),
    /// The stream is gone, because it is complete, was reset, or its client left.
    StreamEnded,
}

/// A part of the request.
pub enum RequestPart<'a> {
    /// The headers. The first input of every exchange, and no other.
    Headers {
        /// All of them.
        headers: &'a Headers,
        /// Envoy's attributes, route metadata among them.
        attributes: &'a dyn Attributes,
        /// Neither body nor trailers follow.
        end_of_stream: bool,
    },
    /// The next bytes of the body.
    Body {
        /// Empty when [`Exchange::wants_bytes`](super::Exchange::wants_bytes) is false.
        chunk: &'a [u8],
        /// How many bytes they are, whether they are given or not.
        length: usize,
        /// The request ends here. Never true when trailers follow.
        end_of_stream: bool,
    },
    /// The request ends with trailers.
    Trailers,
    /// The body has begun to arrive and Envoy does not hand it over, because the headers are held:
    /// `allow_on_headers_stop_iteration` is off.
    BodyBlocked,
}

/// A part of the response.
pub enum ResponsePart<'a> {
    /// The headers.
    Headers {
        /// All of them.
        headers: &'a Headers,
        /// Envoy's attributes, `response.code_details` among them.
        attributes: &'a dyn Attributes,
        /// Neither body nor trailers follow.
        end_of_stream: bool,
    },
    /// The next bytes of the body.
    Body {
        /// Empty when [`Exchange::wants_bytes`](super::Exchange::wants_bytes) is false.
        chunk: &'a [u8],
        /// How many bytes they are, whether they are given or not.
        length: usize,
        /// The response ends here. Never true when trailers follow.
        end_of_stream: bool,
    },
    /// The response ends with trailers.
    Trailers,
}

/// The store's answer to a question.
#[derive(Debug)]
pub struct StoreReply {
    /// The number of the question.
    pub question: RequestId,
    /// The reply.
    pub reply: Result<Reply, StoreError>,
}

/// What a worker has for an exchange.
#[derive(Debug)]
pub enum WorkerFact {
    /// A request of the worker's own has its answer, or will get none.
    OriginReplied {
        /// The number it was sent under.
        question: RequestId,
        /// What became of it.
        fetched: Fetched,
    },
    /// Another request has ended its claim on the watched key.
    Woken,
    /// The time of [`Exchange::alarm`](super::Exchange::alarm) has come.
    Tick,
}
