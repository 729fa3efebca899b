//! The connection for commands: pipelined, with replies in the same order.

use super::clock::Clock;
use super::reconnect::Reconnect;
use super::resp::{self, Decoder, Frame};
use super::script::{self, Form, Reaction, Read, Scripts};
use super::{CommandId, Connection, Event, Settings};
use crate::record::{Kept, Token};
use crate::store::{Command, StoreError};
use crate::time::Timestamp;
use std::collections::VecDeque;

/// Claims in flight. Redis answers ten thousand in the default timeout: more than this would only wait until
/// they are late.
const MOST_CLAIMS: usize = 1024;

/// Commands in flight. The second half is for commands that extend and end claims: a crowd of new requests
/// must not cost the running ones their records.
const MOST_COMMANDS: usize = 2 * MOST_CLAIMS;

/// Bytes of answers in flight, eight of the largest: the memory that a hanging Redis can cost a worker.
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// A pipe, open or closed.
///
/// ```text
///            ask               opened                     closed, broken, silent
///   closed ───────▶ opening ───────────▶ open: AUTH, commands ──────────┐
///     ▲                                                                 │
///     └───────────────────── a pause with jitter ◀──────────────────────┘
/// ```
///
/// When a connection breaks, its commands do not fail: they are sent again on the next, until their timeout.
/// Each carries its token, so a command that was carried out and whose reply was lost is recognised.
#[derive(Debug)]
pub(super) struct Pipe {
    settings: Settings,
    scripts: Scripts,
    clock: Clock,
    reconnect: Reconnect,
    decoder: Decoder,
    /// Replies to expect before those of commands.
    greetings: VecDeque<Greeting>,
    /// In the order of their replies. Sent commands come first; with an open pipe, all were sent.
    waiting: VecDeque<Waiting>,
    bytes: usize,
    /// No command is late before this: the earliest deadline at the last check. All commands have the same
    /// timeout, so a later command is late later.
    late_at: Option<Timestamp>,
    policy_known: bool,
    /// The refused login was logged already.
    login_refused: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Greeting {
    Login,
    Policy,
}

/// A command that has no reply yet.
#[derive(Debug)]
struct Waiting {
    id: CommandId,
    token: Token,
    /// `None`: it was late and has failed; its reply is dropped when it comes.
    command: Option<Command>,
    deadline: Timestamp,
    /// On this connection.
    sent_at: Option<Timestamp>,
    /// On this connection or an earlier one.
    ever_sent: bool,
    /// Redis has replied that it came too late, although it is in time by this clock.
    too_late: bool,
}

impl Waiting {
    /// The error for an end without a reply.
    fn error(&self, why: &'static str) -> StoreError {
        if self.ever_sent { StoreError::Unanswered(why) } else { StoreError::Unavailable(why) }
    }
}

impl Pipe {
    pub(super) fn new(settings: Settings, seed: u64) -> Self {
        Self {
            settings,
            scripts: Scripts::new(),
            clock: Clock::default(),
            reconnect: Reconnect::new(seed),
            decoder: Decoder::default(),
            greetings: VecDeque::new(),
            waiting: VecDeque::new(),
            bytes: 0,
            late_at: None,
            policy_known: false,
            login_refused: false,
        }
    }

    pub(super) fn ask(&mut self, id: CommandId, command: Command, now: Timestamp) -> Vec<Event> {
        let refuse =
            |command, why| vec![Event::Replied(id, command, Err(StoreError::Unavailable(why)))];
        if self.reconnect.is_down(now) {
            return refuse(command, "Redis cannot be reached");
        }
        let bytes = self.bytes.saturating_add(size(&command));
        let most = match command {
            Command::Claim { .. } => MOST_CLAIMS,
            Command::Extend { .. }
            | Command::Complete { .. }
            | Command::Release { .. }
            | Command::MarkUnknown { .. } => MOST_COMMANDS,
        };
        if self.waiting.len() >= most || bytes > MOST_BYTES {
            return refuse(command, "too many commands are under way");
        }
        self.bytes = bytes;
        let mut events = Vec::new();
        let mut sent_at = None;
        let deadline = now.after(self.settings.timeout);
        if self.reconnect.is_open() {
            events.push(self.write(&command, Form::Digest, deadline));
            sent_at = Some(now);
        } else if self.reconnect.begin(now) {
            events.push(Event::Open(Connection::Commands));
        }
        if self.waiting.is_empty() {
            self.late_at = None;
        }
        self.late_at.get_or_insert(deadline);
        let ever_sent = sent_at.is_some();
        self.waiting.push_back(Waiting {
            id,
            token: command.token(),
            command: Some(command),
            deadline,
            sent_at,
            ever_sent,
            too_late: false,
        });
        events
    }

    pub(super) fn opened(&mut self, now: Timestamp) -> Vec<Event> {
        self.reconnect.opened(now);
        let mut out = Vec::new();
        if self.settings.write_login(&mut out) {
            self.greetings.push_back(Greeting::Login);
        }
        if !self.policy_known {
            resp::write(&mut out, &[b"CONFIG", b"GET", b"maxmemory-policy"]);
            self.greetings.push_back(Greeting::Policy);
        }
        for waiting in &mut self.waiting {
            if let Some(command) = &waiting.command {
                let name = self.settings.name(command.key());
                let not_after = self.clock.there(waiting.deadline);
                self.scripts.write(&mut out, &name, command, Form::Digest, not_after);
                waiting.sent_at = Some(now);
                waiting.ever_sent = true;
            }
        }
        if out.is_empty() { Vec::new() } else { vec![Event::Write(Connection::Commands, out)] }
    }

    pub(super) fn received(&mut self, bytes: &[u8], now: Timestamp) -> Vec<Event> {
        if !self.reconnect.is_open() {
            // From a connection that was given up.
            return Vec::new();
        }
        self.reconnect.heard(now);
        self.decoder.push(bytes);
        let mut events = Vec::new();
        loop {
            match self.decoder.next() {
                Ok(Some(frame)) => {
                    if !self.reply(frame, now, &mut events) {
                        self.reopen(now, &mut events);
                        return events;
                    }
                }
                Ok(None) => return events,
                Err(resp::Broken) => {
                    events.push(Event::Warn("Redis sent bytes that are not RESP2".to_owned()));
                    self.reopen(now, &mut events);
                    return events;
                }
            }
        }
    }

    pub(super) fn closed(&mut self, now: Timestamp) -> Vec<Event> {
        let mut events = Vec::new();
        let missed = self.is_missed();
        self.gone(missed, now, &mut events);
        events
    }

    pub(super) fn tick(&mut self, now: Timestamp) -> Vec<Event> {
        let mut events = Vec::new();
        self.fail_late(now, &mut events);
        if self.silent_at().is_some_and(|silent_at| silent_at <= now) {
            // Commands waited for it, even if all of them have failed by now.
            events.push(Event::Close(Connection::Commands));
            self.gone(true, now, &mut events);
        }
        if !self.waiting.is_empty() && self.reconnect.begin(now) {
            events.push(Event::Open(Connection::Commands));
        }
        events
    }

    pub(super) fn alarm(&self) -> Option<Timestamp> {
        let late = self.late_at.filter(|_| !self.waiting.is_empty());
        let retry = self.reconnect.retry_at().filter(|_| !self.waiting.is_empty());
        late.into_iter().chain(self.silent_at()).chain(retry).min()
    }

    /// When the pipe is given up: the oldest reply is late, and no bytes have come meanwhile. A Redis that
    /// still sends is only slow, and a new connection would not be faster.
    fn silent_at(&self) -> Option<Timestamp> {
        let last_sign = self.reconnect.last_sign()?;
        let sent_at = self.waiting.front().and_then(|waiting| waiting.sent_at)?;
        Some(last_sign.max(sent_at).after(self.settings.timeout))
    }

    fn write(&self, command: &Command, form: Form, deadline: Timestamp) -> Event {
        let mut out = Vec::new();
        let name = self.settings.name(command.key());
        self.scripts.write(&mut out, &name, command, form, self.clock.there(deadline));
        Event::Write(Connection::Commands, out)
    }

    /// Takes the next reply; false if the connection must be closed.
    fn reply(&mut self, frame: Frame, now: Timestamp, events: &mut Vec<Event>) -> bool {
        if let Some(greeting) = self.greetings.pop_front() {
            return self.greeted(greeting, &frame, events);
        }
        let Some(waiting) = self.waiting.pop_front() else {
            events.push(Event::Warn("Redis sent a reply that no command waits for".to_owned()));
            return false;
        };
        let Some(command) = waiting.command else {
            // The command has failed already, but this must be the reply to it and to no other.
            return match frame {
                Frame::BulkString(reply) => reply.starts_with(&script::tag(waiting.token)),
                Frame::Error(_) => true,
                Frame::SimpleString(_) | Frame::Integer(_) | Frame::Array(_) | Frame::Null => false,
            };
        };
        if !matches!(&frame, Frame::Error(_)) {
            self.reconnect.proved();
            self.login_refused = false;
        }
        let (reply, usable) = match script::read(&command, frame, now) {
            Ok(Read { reply, time }) => {
                if let Some(time) = time {
                    self.clock.hear(time, now);
                }
                (Ok(reply), true)
            }
            Err(Reaction::SendText) => {
                self.again(Waiting { command: Some(command), ..waiting }, Form::Text, now, events);
                return true;
            }
            Err(Reaction::TooLate(time)) => {
                self.clock.hear(time, now);
                if waiting.too_late || waiting.deadline <= now {
                    (Err(StoreError::Unavailable("the claim reached Redis too late")), true)
                } else {
                    // The estimate of Redis's clock was wrong: it is another Redis, or its clock was set.
                    let waiting = Waiting { command: Some(command), too_late: true, ..waiting };
                    self.again(waiting, Form::Digest, now, events);
                    return true;
                }
            }
            Err(Reaction::Fail(error)) => (Err(error), true),
            Err(Reaction::Reopen(error)) => (Err(error), false),
        };
        self.bytes = self.bytes.saturating_sub(size(&command));
        events.push(Event::Replied(waiting.id, command, reply));
        usable
    }

    /// Sends a command again, behind all that were sent meanwhile, as its reply will be.
    fn again(&mut self, waiting: Waiting, form: Form, now: Timestamp, events: &mut Vec<Event>) {
        if let Some(command) = &waiting.command {
            events.push(self.write(command, form, waiting.deadline));
        }
        self.waiting.push_back(Waiting { sent_at: Some(now), ..waiting });
    }

    fn greeted(&mut self, greeting: Greeting, frame: &Frame, events: &mut Vec<Event>) -> bool {
        match (greeting, frame) {
            (Greeting::Login, Frame::Error(error)) => {
                if !std::mem::replace(&mut self.login_refused, true) {
                    // Redis's error names no password.
                    events.push(Event::Warn(format!("Redis refuses the login: {error}")));
                }
                false
            }
            (Greeting::Policy, Frame::Array(parts)) => {
                self.policy_known = true;
                // Pairs of name and value; redis_proxy gives those of all nodes.
                let (pairs, _) = parts.as_chunks();
                let evicts = pairs.iter().find_map(|[_, policy]| match policy {
                    Frame::BulkString(policy) if policy != b"noeviction" => Some(policy),
                    Frame::BulkString(_)
                    | Frame::SimpleString(_)
                    | Frame::Error(_)
                    | Frame::Integer(_)
                    | Frame::Array(_)
                    | Frame::Null => None,
                });
                if let Some(policy) = evicts {
                    let policy = String::from_utf8_lossy(policy);
                    events.push(Event::WarnOnce(format!(
                        "Redis has maxmemory-policy {policy}: it may evict claims and answers, and \
                         their requests may run again; set noeviction"
                    )));
                }
                true
            }
            // Not every user has the right to ask.
            (Greeting::Policy, Frame::Error(_)) => {
                self.policy_known = true;
                true
            }
            (
                Greeting::Login | Greeting::Policy,
                Frame::SimpleString(_)
                | Frame::Integer(_)
                | Frame::BulkString(_)
                | Frame::Array(_)
                | Frame::Null,
            ) => true,
        }
    }

    fn fail_late(&mut self, now: Timestamp, events: &mut Vec<Event>) {
        if self.late_at.is_none_or(|late_at| now < late_at) {
            return;
        }
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.deadline <= now) {
            if let Some(command) = waiting.command.take() {
                self.bytes = self.bytes.saturating_sub(size(&command));
                let error = waiting.error("Redis did not answer in time");
                events.push(Event::Replied(waiting.id, command, Err(error)));
            }
        }
        // A command that was never sent has no reply to drop.
        self.waiting.retain(|waiting| waiting.command.is_some() || waiting.sent_at.is_some());
        // All must be checked: a command that was sent again as text stands behind younger ones.
        let live = self.waiting.iter().filter(|waiting| waiting.command.is_some());
        self.late_at = live.map(|waiting| waiting.deadline).min();
    }

    fn reopen(&mut self, now: Timestamp, events: &mut Vec<Event>) {
        events.push(Event::Close(Connection::Commands));
        let missed = self.is_missed();
        self.gone(missed, now, events);
    }

    fn is_missed(&self) -> bool {
        self.waiting.iter().any(|waiting| waiting.command.is_some())
    }

    /// The connection is closed. Its commands are sent again on the next, unless none can be expected.
    fn gone(&mut self, missed: bool, now: Timestamp, events: &mut Vec<Event>) {
        self.decoder = Decoder::default();
        self.greetings.clear();
        self.waiting.retain_mut(|waiting| {
            waiting.sent_at = None;
            waiting.command.is_some()
        });
        self.reconnect.closed(missed, now);
        if self.reconnect.is_down(now) {
            self.bytes = 0;
            for waiting in self.waiting.drain(..) {
                let error = waiting.error("Redis cannot be reached");
                if let Some(command) = waiting.command {
                    events.push(Event::Replied(waiting.id, command, Err(error)));
                }
            }
        }
    }
}

/// Memory of a command, beyond its fixed size.
fn size(command: &Command) -> usize {
    match command {
        Command::Complete { kept: Kept::Answer(answer), .. } => {
            let headers = answer.headers.iter();
            let headers: usize = headers.map(|(name, value)| name.len() + value.len()).sum();
            headers.saturating_add(answer.body.len())
        }
        Command::Claim { .. }
        | Command::Extend { .. }
        | Command::Complete { kept: Kept::StatusOnly | Kept::Nothing, .. }
        | Command::Release { .. }
        | Command::MarkUnknown { .. } => 0,
    }
}

#[cfg(test)]
mod tests;
