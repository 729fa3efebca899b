//! Redis: one connection per worker for commands, one more while requests wait, and no IO.
//!
//! [`Client`] takes facts (a command, received bytes, a closed connection, the time) and returns [`Event`]s:
//! work for the host, and results of commands. *The host carries out every event before it feeds the next
//! fact.*

mod channels;
mod clock;
pub mod framing;
mod pipe;
mod reconnect;
mod resp;
mod script;
mod webdis;

use crate::key::{Key, Secret};
use crate::store::{Command, Reply, StoreError};
use crate::time::Timestamp;
use channels::Channels;
use pipe::Pipe;
use std::time::Duration;
use webdis::Webdis;

/// Settings of the Redis client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The prefix of the names of all keys.
    pub prefix: String,
    /// How long a command may take until its reply.
    pub timeout: Duration,
    /// Sent before anything else.
    pub login: Option<Login>,
}

/// User and password for Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// If absent: Redis's user `default`.
    pub username: Option<String>,
    /// The password.
    pub password: Secret,
}

/// How commands reach Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A connection that stays open.
    Pipe,
    /// HTTP, to a Webdis server.
    Webdis,
}

/// The number of a command, given by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CommandId(pub u64);

/// Which connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Connection {
    /// Commands and their replies.
    Commands,
    /// Messages about ended claims.
    Channels,
}

/// Work for the host, or the result of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Open this connection, then call [`Client::opened`] or [`Client::closed`].
    Open(Connection),
    /// Send these bytes on it.
    Write(Connection, Vec<u8>),
    /// Close it. No [`Client::closed`] is needed.
    Close(Connection),
    /// Make this HTTP call, then call [`Client::called`].
    Call(CommandId, Call),
    /// The result of a command, which is handed back.
    Replied(CommandId, Command, Result<Reply, StoreError>),
    /// The claim on this key has ended, or may have.
    Ended(Key),
    /// A warning for the log.
    Warn(String),
    /// A warning for the log, once per Envoy: every worker finds the same.
    WarnOnce(String),
}

/// An HTTP call to Webdis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The method.
    pub method: &'static str,
    /// The path.
    pub path: String,
    /// The body; may be empty.
    pub body: Vec<u8>,
    /// When an answer is too late, counted from now.
    pub timeout: Duration,
}

/// One worker's Redis client.
#[derive(Debug)]
pub struct Client {
    commands: Commands,
    channels: Option<Channels>,
}

#[derive(Debug)]
enum Commands {
    Pipe(Box<Pipe>),
    Webdis(Box<Webdis>),
}

impl Client {
    /// `seed` differs from worker to worker.
    pub fn new(settings: &Settings, transport: Transport, seed: u64) -> Self {
        match transport {
            Transport::Pipe => Self {
                commands: Commands::Pipe(Box::new(Pipe::new(settings.clone(), seed))),
                channels: Some(Channels::new(settings.clone(), seed.rotate_left(32))),
            },
            Transport::Webdis => Self {
                commands: Commands::Webdis(Box::new(Webdis::new(settings.clone()))),
                channels: None,
            },
        }
    }

    /// Sends a command, or refuses it at once.
    pub fn ask(&mut self, id: CommandId, command: Command, now: Timestamp) -> Vec<Event> {
        match &mut self.commands {
            Commands::Pipe(pipe) => pipe.ask(id, command, now),
            Commands::Webdis(webdis) => webdis.ask(id, command, now),
        }
    }

    /// From now on, [`Event::Ended`] when the claim on this key ends, if Redis can publish that.
    pub fn watch(&mut self, key: Key, now: Timestamp) -> Vec<Event> {
        self.channels.as_mut().map(|channels| channels.watch(key, now)).unwrap_or_default()
    }

    /// Stops that.
    pub fn unwatch(&mut self, key: Key, now: Timestamp) -> Vec<Event> {
        self.channels.as_mut().map(|channels| channels.unwatch(key, now)).unwrap_or_default()
    }

    /// The connection is open and takes bytes.
    pub fn opened(&mut self, connection: Connection, now: Timestamp) -> Vec<Event> {
        match (connection, &mut self.commands, &mut self.channels) {
            (Connection::Commands, Commands::Pipe(pipe), _) => pipe.opened(now),
            (Connection::Channels, _, Some(channels)) => channels.opened(now),
            (Connection::Commands, Commands::Webdis(_), _) | (Connection::Channels, _, None) => {
                Vec::new()
            }
        }
    }

    /// Bytes were received.
    pub fn received(&mut self, connection: Connection, bytes: &[u8], now: Timestamp) -> Vec<Event> {
        match (connection, &mut self.commands, &mut self.channels) {
            (Connection::Commands, Commands::Pipe(pipe), _) => pipe.received(bytes, now),
            (Connection::Channels, _, Some(channels)) => channels.received(bytes, now),
            (Connection::Commands, Commands::Webdis(_), _) | (Connection::Channels, _, None) => {
                Vec::new()
            }
        }
    }

    /// The connection is closed, or could not be opened.
    pub fn closed(&mut self, connection: Connection, now: Timestamp) -> Vec<Event> {
        match (connection, &mut self.commands, &mut self.channels) {
            (Connection::Commands, Commands::Pipe(pipe), _) => pipe.closed(now),
            (Connection::Channels, _, Some(channels)) => channels.closed(now),
            (Connection::Commands, Commands::Webdis(_), _) | (Connection::Channels, _, None) => {
                Vec::new()
            }
        }
    }

    /// An HTTP call has its response; status 0 for none.
    pub fn called(
        &mut self,
        id: CommandId,
        status: u16,
        body: &[u8],
        now: Timestamp,
    ) -> Vec<Event> {
        match &mut self.commands {
            Commands::Webdis(webdis) => webdis.called(id, status, body, now),
            Commands::Pipe(_) => Vec::new(),
        }
    }

    /// The time of [`Client::alarm`] is reached.
    pub fn tick(&mut self, now: Timestamp) -> Vec<Event> {
        let mut events = match &mut self.commands {
            Commands::Pipe(pipe) => pipe.tick(now),
            Commands::Webdis(_) => Vec::new(),
        };
        if let Some(channels) = &mut self.channels {
            events.append(&mut channels.tick(now));
        }
        events
    }

    /// When it needs a tick, if nothing comes before.
    pub fn alarm(&self) -> Option<Timestamp> {
        let commands = match &self.commands {
            Commands::Pipe(pipe) => pipe.alarm(),
            Commands::Webdis(_) => None,
        };
        let channels = self.channels.as_ref().and_then(Channels::alarm);
        commands.into_iter().chain(channels).min()
    }
}

impl Settings {
    /// The name of a key's record, and of the channel for the end of its claim.
    pub fn name(&self, key: Key) -> String {
        use std::fmt::Write;
        let mut name = self.prefix.clone();
        for byte in key.0 {
            // Writing to a String does not fail.
            let _ = write!(name, "{byte:02x}");
        }
        name
    }

    /// The key of a name.
    fn key(&self, name: &[u8]) -> Option<Key> {
        let digits = name.strip_prefix(self.prefix.as_bytes())?;
        let (pairs, rest) = digits.as_chunks::<2>();
        let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let bytes: Vec<u8> = pairs.iter().map(byte).collect::<Option<_>>()?;
        rest.is_empty().then_some(Key(bytes.try_into().ok()?))
    }

    /// The login command.
    fn write_login(&self, out: &mut Vec<u8>) -> bool {
        let Some(Login { username, password }) = &self.login else { return false };
        match username {
            Some(username) => resp::write(out, &[b"AUTH", username.as_bytes(), &password.0]),
            None => resp::write(out, &[b"AUTH", &password.0]),
        }
        true
    }
}
