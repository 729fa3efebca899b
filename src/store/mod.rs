//! What is asked of a store, what it says, and how it fails.

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

/// One transition of one key's record. Every store carries it out atomically.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Claims the key if it is absent, expired, or unknown and past its time; else reads the record.
    ///
    /// A claim that meets a live record with *its own token* is a retry of itself (its first reply was
    /// lost) and is answered [`Reply::Claimed`] again.
    Claim {
        /// The key to claim.
        key: Key,
        /// Fresh for every request; the same on a retry.
        token: Token,
        /// Stored with the claim, and compared by whoever meets it.
        fingerprint: Fingerprint,
        /// When the request came, for people to read. Kept if the key is new; Redis takes its own time.
        first_seen: WallTime,
        /// How long the claim lives without a heartbeat.
        lease: Duration,
        /// How long the key stays unknown when the lease lapses.
        unknown_for: Duration,
        /// Leave word that somebody waits, if the key is ongoing: whoever ends the claim is told so.
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
    /// The execution ended; keep this.
    Complete {
        /// The claimed key.
        key: Key,
        /// Proves the claim.
        token: Token,
        /// The answer's status code.
        status: u16,
        /// What to keep. An answer beyond what the store can hold is kept as [`Kept::Nothing`].
        kept: Kept,
        /// How long, counted from now.
        ttl: Duration,
    },
    /// Nothing was executed: frees the key. After a takeover the count of the attempts before it
    /// survives, as an unknown whose time is over, so that the origin is not told a lie next time.
    Release {
        /// The claimed key.
        key: Key,
        /// Proves the claim.
        token: Token,
    },
    /// It may have run; nobody can tell.
    MarkUnknown {
        /// The claimed key.
        key: Key,
        /// Proves the claim.
        token: Token,
        /// How long the key stays unknown, counted from now.
        unknown_for: Duration,
    },
}

/// Which command it is, without what it is about.
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

/// Which reply a command got, without what it says.
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
    /// That of a reply.
    pub fn of(reply: &Result<Reply, StoreError>) -> Self {
        match reply {
            Ok(Reply::Claimed { .. } | Reply::Done) => Self::Ok,
            Ok(Reply::Exists(_)) => Self::Exists,
            Ok(Reply::NotOwner) => Self::NotOwner,
            Err(_) => Self::Error,
        }
    }
}

/// What a store says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To `Claim`: the key is yours.
    Claimed {
        /// 1, or more after takeovers: what the origin is told.
        attempt: u32,
    },
    /// To `Claim`: the key is taken; this is its record. Never an expired one, and a lapsed lease
    /// is already [`State::Unknown`](crate::record::State::Unknown).
    Exists(Record),
    /// To `Extend`, `Complete`, `Release`, `MarkUnknown`: done.
    Done,
    /// To the same four: the record is no longer yours (lapsed and taken over, or expired). Nothing
    /// was changed.
    NotOwner,
}

/// How a store fails. Never a miss: a store that cannot tell must not let a duplicate run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// It could not be asked, or would not do it: nothing was changed.
    Unavailable(&'static str),
    /// It was asked and has not answered: what was asked may have been done, or may be done later.
    Unanswered(&'static str),
    /// There is no room that could be freed without dropping a live claim.
    Full,
    /// What stands under the key is no record this version can read.
    Unreadable(&'static str),
    /// Others changed the same place so often that the command was given up; nothing was changed.
    Contended,
}

impl Command {
    /// The key it is about.
    pub fn key(&self) -> Key {
        match self {
            Self::Claim { key, .. }
            | Self::Extend { key, .. }
            | Self::Complete { key, .. }
            | Self::Release { key, .. }
            | Self::MarkUnknown { key, .. } => *key,
        }
    }

    /// Which command it is.
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
            Self::Full => f.write_str("the store has no room that is not a claim's"),
            Self::Unreadable(why) => write!(f, "the store has a record that cannot be read: {why}"),
            Self::Contended => f.write_str("the store is contended"),
        }
    }
}

impl std::error::Error for StoreError {}
