//! What a look at the table is asked, and what comes of it.

use super::entry::{Knowledge, Wake};
use super::layout::TooManyEntries;
use crate::record::{Head, Record};
use crate::store::Reply;
use std::fmt;

/// The result of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    /// The store's reply.
    pub reply: Reply,
    /// The command ended a claim that a request watches, or another claim has replaced it.
    pub wake: bool,
}

/// The result of a lookup of a key, as the caller judges it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged<T> {
    /// The reply.
    pub says: Says<T>,
    /// What replaces the known entry; `None`: it stays.
    pub next: Option<Knowledge>,
    /// The caller wants to know when the known entry changes.
    pub watch: bool,
}

/// The reply to a lookup, without a record's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Says<T> {
    /// The record, with this head. Its answer is read.
    Record(Head),
    /// Something else.
    Other(T),
}

/// The result of a lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked<T> {
    /// The reply.
    pub said: Said<T>,
    /// Which waiting requests check again.
    pub wake: Wake,
}

/// The reply to a lookup, the record with its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said<T> {
    /// The record.
    Record(Record),
    /// Something else.
    Other(T),
}

/// The result of keeping an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is kept.
    Kept {
        /// Which waiting requests check again.
        wake: Wake,
    },
    /// There is no entry that it may replace; nothing was changed.
    Refused,
    /// It is larger than the table can hold; nothing was changed.
    DoesNotFit,
}

/// Why the table could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The capacity contradicts itself.
    Capacity(TooManyEntries),
    /// This host's shared data has no atomic insertion, or no compare-and-swap.
    NotAtomic,
    /// The host refused to write.
    Failed,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capacity(error) => error.fmt(f),
            Self::NotAtomic => f.write_str("this host's shared data cannot compare and swap"),
            Self::Failed => f.write_str("this host's shared data cannot be written"),
        }
    }
}

impl std::error::Error for OpenError {}
