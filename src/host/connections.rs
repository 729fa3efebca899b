//! The connections to Redis, as Envoy has them: gRPC streams of the root context.

use super::{abi, logging};
use crate::config::StoreConfig;
use crate::store::redis::Connection;
use crate::telemetry::Incident;

/// The connections of one worker.
#[derive(Debug)]
pub(super) struct Connections {
    root: u32,
    cluster: String,
    open: Vec<(Connection, u32)>,
    /// Written in one piece, at the end of the callback that they come from.
    outgoing: Vec<(Connection, Vec<u8>)>,
    /// Only a callback of the root's own opens them: messages come to the context that opened the stream.
    to_open: Vec<Connection>,
}

/// The result of work in the root's callback.
#[derive(Debug)]
pub(super) enum Did {
    Opened(Connection),
    Failed(Connection),
}

impl Connections {
    /// Without Redis, there will be none.
    pub(super) fn new(root: u32, store: &StoreConfig) -> Self {
        let cluster = match store {
            StoreConfig::Memory(_) => String::new(),
            StoreConfig::Redis(redis) => redis.cluster.clone(),
        };
        Self { root, cluster, open: Vec::new(), outgoing: Vec::new(), to_open: Vec::new() }
    }

    /// How many are open.
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }

    /// The Envoy cluster that they lead to.
    pub(super) fn cluster(&self) -> &str {
        &self.cluster
    }

    pub(super) fn want(&mut self, connection: Connection) {
        self.to_open.push(connection);
    }

    /// Does the work that is allowed only in the root's own callback. Call it there.
    pub(super) fn as_root(&mut self) -> Vec<Did> {
        let mut did = Vec::new();
        for connection in std::mem::take(&mut self.to_open) {
            let method = match connection {
                Connection::Commands => "Commands",
                Connection::Channels => "Channels",
            };
            // The bridge removes everything of gRPC; the names are only for readers of Envoy's own logs.
            let opened = abi::grpc_stream(&self.cluster, "redis", method);
            did.push(match opened {
                Ok(token) => {
                    self.open.push((connection, token));
                    Did::Opened(connection)
                }
                Err(status) => {
                    let cluster = &self.cluster;
                    logging::log_incident(
                        Incident::Host,
                        &format_args!(
                            "Envoy refused to open a stream to the cluster {cluster:?}: {status:?}"
                        ),
                    );
                    Did::Failed(connection)
                }
            });
        }
        did
    }

    pub(super) fn write(&mut self, connection: Connection, bytes: Vec<u8>) {
        match self.outgoing.iter_mut().find(|(other, _)| *other == connection) {
            Some((_, gathered)) => gathered.extend_from_slice(&bytes),
            None => self.outgoing.push((connection, bytes)),
        }
    }

    /// Sends the written bytes. Afterwards, the root is the effective context.
    pub(super) fn flush(&mut self) {
        for (connection, bytes) in std::mem::take(&mut self.outgoing) {
            if let Some(token) = self.token(connection) {
                // If the stream is gone, its own callback reports that.
                let sent = self.effective().and_then(|()| abi::grpc_send(token, &bytes));
                if let Err(failure) = sent {
                    let said = format_args!("Envoy refused to send to Redis: {failure:?}");
                    logging::log_incident(Incident::Host, &said);
                }
            }
        }
    }

    /// Closes a connection; whether it was open.
    pub(super) fn close(&mut self, connection: Connection) -> bool {
        self.outgoing.retain(|(other, _)| *other != connection);
        self.to_open.retain(|other| *other != connection);
        let Some(token) = self.token(connection) else { return false };
        self.forget(token);
        // A stream that is gone is closed already.
        let _ = self.effective().and_then(|()| abi::grpc_cancel(token));
        true
    }

    /// The connection of this stream; none if it was given up.
    pub(super) fn connection(&self, token: u32) -> Option<Connection> {
        self.open.iter().find(|(_, other)| *other == token).map(|(connection, _)| *connection)
    }

    /// The stream is gone; returns its connection.
    pub(super) fn forget(&mut self, token: u32) -> Option<Connection> {
        let connection = self.connection(token)?;
        self.open.retain(|(_, other)| *other != token);
        self.outgoing.retain(|(other, _)| *other != connection);
        Some(connection)
    }

    fn token(&self, connection: Connection) -> Option<u32> {
        self.open.iter().find(|(other, _)| *other == connection).map(|(_, token)| *token)
    }

    fn effective(&self) -> Result<(), abi::Failure> {
        abi::set_effective_context(self.root)
    }
}
