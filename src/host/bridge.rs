//! The bridge: an upstream filter of the Redis cluster that removes and adds gRPC's message headers.
//!
//! A plugin can keep only a gRPC stream open. With the upstream pool `envoy.upstreams.http.tcp`, the body of
//! that stream is the TCP connection to Redis. This filter turns its messages into plain bytes on the way
//! out, and plain bytes into messages on the way back.

use super::abi::{self, Direction, Failure};
use super::logging;
use crate::store::redis::framing::{GrpcDeframer, head};
use crate::telemetry::Incident;

/// One connection.
#[derive(Debug, Default)]
pub(super) struct Bridge {
    deframer: GrpcDeframer,
}

impl Bridge {
    pub(super) fn headers(direction: Direction) {
        match direction {
            Direction::Request => {}
            Direction::Response => {
                told(abi::set_header(Direction::Response, "content-type", "application/grpc"));
            }
        }
    }

    pub(super) fn body(&mut self, direction: Direction, size: usize) {
        match direction {
            Direction::Request => {
                let bare = self.deframer.strip(&abi::body(Direction::Request, 0, size));
                told(abi::replace_body(Direction::Request, 0, size, &bare));
            }
            Direction::Response if size > 0 => {
                told(abi::replace_body(Direction::Response, 0, 0, &head(size)));
            }
            Direction::Response => {}
        }
    }
}

/// A stream with unexpected bytes is broken, and is opened again.
fn told(result: Result<(), Failure>) {
    if let Err(failure) = result {
        let said = format_args!("Envoy refused to let the bridge change a stream: {failure:?}");
        logging::log_incident(Incident::Host, &said);
    }
}
