//! Commands to a store, its replies and its errors.

pub mod coalesced;
pub mod front;
pub mod redis;
pub mod shared_data;
pub mod tiers;
pub mod transitions;

use crate::key::{Fingerprint, Key};
use crate::record::{Kept, Record, Token};
use crate::time::WallTime;
use std::fmt;
use std::time::Duration;

/// One transition of one key's record. Every store does it atomically.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Claims the key if it is absent, expired, or unknown and past `unknown_ttl`; else reads the record.
    ///
    /// A claim that meets a live record with *its own token* is a retry of itself (its first reply was
    /// lost) and is answered [`Reply::Claimed`] again.
    Claim {
        /// The key to claim.
        key: Key,
        /// Fresh for every request; the same on a retry.
        token: Token,
        /// Stored with the claim, and compared with that of every duplicate.
        fingerprint: Fingerprint,
        /// When the request came, for people to read. Kept if the key is new; Redis uses its own time.
        first_seen: WallTime,
        /// How long the claim lives without a heartbeat.
        lease: Duration,
        /// How long the key stays unknown when the lease lapses.
        unknown_for: Duration,
        /// Note that a request waits, if the key is ongoing: the store then wakes it when the claim ends.
        watch: bool,
    },
    /// Heartbeat: a new lease, counted from now.
    Extend {
        /// The claimed key.
        key: Key,
        /// Proves the claim.
        token: Token,
        /// Counted from now.
        lease: Duration,
    },
    /// The execution ended: keep its outcome.
    Complete {
        /// The claimed key.
        key: Key,
        /// Proves the claim.
        token: Token,
        /// The answer's status code.
        status: u16,
        /// What to keep. An answer that is too large for the store is kept as [`Kept::Nothing`].
        kept: Kept,
        /// How long to keep it, counted from now.
        ttl: Duration,
    },
    /// Nothing was executed: frees the key. After a takeover, the count of earlier attempts survives as an
    /// unknown record whose time is over, so that the next attempt has the right number for the origin.
    Release {
        /// The claimed key.
        key: Key,
        /// Proves the claim.
        token: Token,
    },
    /// The execution may have run: its outcome is unknown.
    MarkUnknown {
        /// The claimed key.
        key: Key,
        /// Proves the claim.
        token: Token,
        /// How long the key stays unknown, counted from now.
        unknown_for: Duration,
    },
}

/// The kind of a command, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CommandKind {
    /// [`Command::Claim`].
    Claim,
    /// [`Command::Extend`].
    Extend,
    /// [`Command::Complete`].
    Complete,
    /// [`Command::Release`].
    Release,
    /// [`Command::MarkUnknown`].
    MarkUnknown,
}

/// The kind of a reply, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplyKind {
    /// [`Reply::Claimed`] or [`Reply::Done`].
    Ok,
    /// [`Reply::Exists`].
    Exists,
    /// [`Reply::NotOwner`].
    NotOwner,
    /// A [`StoreError`].
    Error,
}

impl ReplyKind {
    /// The kind of a reply.
    pub fn of(reply: &Result<Reply, StoreError>) -> Self {
        match reply {
            Ok(Reply::Claimed { .. } | Reply::Done) => Self::Ok,
            Ok(Reply::Exists(_)) => Self::Exists,
            Ok(Reply::NotOwner) => Self::NotOwner,
            Err(_) => Self::Error,
        }
    }
}

/// A store's reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To `Claim`: the request owns the key.
    Claimed {
        /// 1, or more after takeovers: the number that the origin gets.
        attempt: u32,
    },
    /// To `Claim`: the key is taken; this is its record. Never an expired one, and a lapsed lease
    /// is already [`State::Unknown`](crate::record::State::Unknown).
    Exists(Record),
    /// To `Extend`, `Complete`, `Release`, `MarkUnknown`: done.
    Done,
    /// To the same four: the record no longer belongs to this token (it lapsed and was taken over, or it
    /// expired). Nothing was changed.
    NotOwner,
}

/// How a store fails. A failure is never a miss: a store that cannot decide must not let a duplicate run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// The store could not be reached, or it refused: nothing was changed.
    Unavailable(&'static str),
    /// The command was sent and has no reply: it may have been done, or may be done later.
    Unanswered(&'static str),
    /// The store is full of live claims: nothing can be evicted.
    Full,
    /// This version cannot read the value under the key.
    Unreadable(&'static str),
    /// Others changed the same place so often that the command gave up; nothing was changed.
    Contended,
}

impl Command {
    /// The key that the command is about.
    pub fn key(&self) -> Key {
        match self {
            Self::Claim { key, .. }
            | Self::Extend { key, .. }
            | Self::Complete { key, .. }
            | Self::Release { key, .. }
            | Self::MarkUnknown { key, .. } => *key,
        }
    }

    /// The kind of this command.
    pub fn kind(&self) -> CommandKind {
        match self {
            Self::Claim { .. } => CommandKind::Claim,
            Self::Extend { .. } => CommandKind::Extend,
            Self::Complete { .. } => CommandKind::Complete,
            Self::Release { .. } => CommandKind::Release,
            Self::MarkUnknown { .. } => CommandKind::MarkUnknown,
        }
    }

    /// The token that proves, or is to prove, the claim.
    pub fn token(&self) -> Token {
        match self {
            Self::Claim { token, .. }
            | Self::Extend { token, .. }
            | Self::Complete { token, .. }
            | Self::Release { token, .. }
            | Self::MarkUnknown { token, .. } => *token,
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(why) => write!(f, "the store is not available: {why}"),
            Self::Unanswered(why) => write!(f, "the store has not answered: {why}"),
            Self::Full => f.write_str("the store is full of live claims"),
            Self::Unreadable(why) => write!(f, "the store has a record that cannot be read: {why}"),
            Self::Contended => f.write_str("the store is contended"),
        }
    }
}

impl std::error::Error for StoreError {}
