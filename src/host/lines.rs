//! The connections to Redis, as Envoy has them: gRPC streams of the root context.

use super::{abi, journal};
use crate::store::redis::Line;
use crate::telemetry::Incident;

/// The connections of one worker.
#[derive(Debug)]
pub(super) struct Lines {
    root: u32,
    cluster: String,
    open: Vec<(Line, u32)>,
    /// Written in one piece, when the callback that they come from is over.
    outgoing: Vec<(Line, Vec<u8>)>,
    /// Only a callback of the root's own opens them: messages come to the context that opened the stream.
    to_open: Vec<Line>,
}

/// What became of what only the root may do.
#[derive(Debug)]
pub(super) enum Did {
    Opened(Line),
    Failed(Line),
}

impl Lines {
    pub(super) fn new(root: u32, cluster: String) -> Self {
        Self { root, cluster, open: Vec::new(), outgoing: Vec::new(), to_open: Vec::new() }
    }

    /// The Envoy cluster that they lead to.
    pub(super) fn cluster(&self) -> &str {
        &self.cluster
    }

    pub(super) fn want(&mut self, line: Line) {
        self.to_open.push(line);
    }

    /// Does what only the root may. To be called in a callback of its own.
    pub(super) fn as_root(&mut self) -> Vec<Did> {
        let mut did = Vec::new();
        for line in std::mem::take(&mut self.to_open) {
            let method = match line {
                Line::Commands => "Commands",
                Line::Channels => "Channels",
            };
            // The bridge takes off all that is gRPC; the names are for who looks at Envoy's own logs.
            let opened = abi::grpc_stream(&self.cluster, "redis", method);
            did.push(match opened {
                Ok(token) => {
                    self.open.push((line, token));
                    Did::Opened(line)
                }
                Err(status) => {
                    let cluster = &self.cluster;
                    journal::tell(
                        Incident::Host,
                        &format_args!(
                            "Envoy would not open a stream to the cluster {cluster:?}: {status:?}"
                        ),
                    );
                    Did::Failed(line)
                }
            });
        }
        did
    }

    pub(super) fn write(&mut self, line: Line, bytes: Vec<u8>) {
        match self.outgoing.iter_mut().find(|(other, _)| *other == line) {
            Some((_, gathered)) => gathered.extend_from_slice(&bytes),
            None => self.outgoing.push((line, bytes)),
        }
    }

    /// Sends what was written. Afterwards, the root is the effective context.
    pub(super) fn flush(&mut self) {
        for (line, bytes) in std::mem::take(&mut self.outgoing) {
            if let Some(token) = self.token(line) {
                // Of a stream that is gone word comes by its own callback.
                let sent = self.effective().and_then(|()| abi::grpc_send(token, &bytes));
                if let Err(failure) = sent {
                    let said = format_args!("Envoy would not send to Redis: {failure:?}");
                    journal::tell(Incident::Host, &said);
                }
            }
        }
    }

    pub(super) fn close(&mut self, line: Line) {
        self.outgoing.retain(|(other, _)| *other != line);
        if let Some(token) = self.token(line) {
            self.forget(token);
            // A stream that is gone already is closed enough.
            let _ = self.effective().and_then(|()| abi::grpc_cancel(token));
        }
    }

    /// Which connection this stream is; none if it was given up.
    pub(super) fn line(&self, token: u32) -> Option<Line> {
        self.open.iter().find(|(_, other)| *other == token).map(|(line, _)| *line)
    }

    /// The stream is gone: which connection it was.
    pub(super) fn forget(&mut self, token: u32) -> Option<Line> {
        let line = self.line(token)?;
        self.open.retain(|(_, other)| *other != token);
        self.outgoing.retain(|(other, _)| *other != line);
        Some(line)
    }

    fn token(&self, line: Line) -> Option<u32> {
        self.open.iter().find(|(other, _)| *other == line).map(|(_, token)| *token)
    }

    fn effective(&self) -> Result<(), abi::Failure> {
        abi::set_effective_context(self.root)
    }
}
