//! Redis through Webdis, a server that speaks HTTP: one call per command.
//!
//! `PUT /EVALSHA/DIGEST/1/KEY/….raw` carries the last part of the command as the body, byte for byte, and
//! `.raw` asks for Redis's own reply (Webdis README, "File upload" and "Raw output").

use super::clock::Clock;
use super::resp::Decoder;
use super::script::{self, Form, Reaction, Read, Scripts};
use super::{Call, CommandId, Event, Settings};
use crate::store::{Command, StoreError};
use crate::time::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use std::collections::HashMap;

/// Commands in flight: as many connections to Webdis, which Envoy's own circuit breaker bounds at 1,024
/// requests.
const MOST_COMMANDS: usize = 1024;

/// Calls that have no answer yet.
#[derive(Debug)]
pub(super) struct Webdis {
    settings: Settings,
    scripts: Scripts,
    clock: Clock,
    waiting: HashMap<CommandId, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    command: Command,
    deadline: Timestamp,
    /// Redis has replied that it came too late, although it is in time by this clock.
    too_late: bool,
}

impl Webdis {
    pub(super) fn new(settings: Settings) -> Self {
        let (scripts, clock) = (Scripts::new(), Clock::default());
        Self { settings, scripts, clock, waiting: HashMap::new() }
    }

    pub(super) fn ask(&mut self, id: CommandId, command: Command, now: Timestamp) -> Vec<Event> {
        if self.waiting.len() >= MOST_COMMANDS {
            let error = StoreError::Unavailable("too many commands are under way");
            return vec![Event::Replied(id, command, Err(error))];
        }
        let deadline = now.after(self.settings.timeout);
        let waiting = Waiting { command, deadline, too_late: false };
        let event = self.call(id, &waiting, Form::Digest, now);
        self.waiting.insert(id, waiting);
        vec![event]
    }

    pub(super) fn called(
        &mut self,
        id: CommandId,
        status: u16,
        body: &[u8],
        now: Timestamp,
    ) -> Vec<Event> {
        let Some(mut waiting) = self.waiting.remove(&id) else { return Vec::new() };
        match reply(&waiting.command, status, body, now) {
            Ok(Read { reply, time }) => {
                if let Some(time) = time {
                    self.clock.hear(time, now);
                }
                vec![Event::Replied(id, waiting.command, Ok(reply))]
            }
            Err(Reaction::TooLate(time)) if now < waiting.deadline && !waiting.too_late => {
                self.clock.hear(time, now);
                waiting.too_late = true;
                let event = self.call(id, &waiting, Form::Digest, now);
                self.waiting.insert(id, waiting);
                vec![event]
            }
            Err(Reaction::TooLate(time)) => {
                self.clock.hear(time, now);
                let late = StoreError::Unavailable("the claim reached Redis too late");
                vec![Event::Replied(id, waiting.command, Err(late))]
            }
            Err(Reaction::SendText) if now < waiting.deadline => {
                let event = self.call(id, &waiting, Form::Text, now);
                self.waiting.insert(id, waiting);
                vec![event]
            }
            Err(Reaction::SendText) => {
                let late = StoreError::Unavailable("Redis was slow to report an unknown script");
                vec![Event::Replied(id, waiting.command, Err(late))]
            }
            Err(Reaction::Fail(error) | Reaction::Reopen(error)) => {
                vec![Event::Replied(id, waiting.command, Err(error))]
            }
        }
    }

    fn call(&self, id: CommandId, waiting: &Waiting, form: Form, now: Timestamp) -> Event {
        let name = self.settings.name(waiting.command.key());
        let mut parts =
            self.scripts.parts(&name, &waiting.command, form, self.clock.there(waiting.deadline));
        let body = parts.pop().unwrap_or_default();
        let mut path = String::new();
        for part in &parts {
            path.push('/');
            path.extend(percent_encode(part, NON_ALPHANUMERIC));
        }
        path.push_str(".raw");
        let timeout = now.until(waiting.deadline);
        Event::Call(id, Call { method: "PUT", path, body, timeout })
    }
}

/// Envoy's texts for a request that was not sent (Envoy docs, "Response code details").
const NOT_SENT: [&[u8]; 2] = [b"connection failure", b"no healthy upstream"];

fn contains(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted)
}

fn reply(command: &Command, status: u16, body: &[u8], now: Timestamp) -> Result<Read, Reaction> {
    let fail = |why| Reaction::Fail(StoreError::Unanswered(why));
    match status {
        200 => {}
        // Webdis sends this without a body when it has no Redis; Envoy sends it when it has no Webdis. Envoy
        // also sends it when an existing connection broke: the command may have been carried out then.
        503 if body.is_empty() || NOT_SENT.iter().any(|said| contains(body, said)) => {
            let why = "Webdis or its Redis cannot be reached";
            return Err(Reaction::Fail(StoreError::Unavailable(why)));
        }
        // How Envoy reports a missing answer.
        0 => return Err(fail("Webdis closed the connection")),
        504 => return Err(fail("Redis did not answer in time")),
        _ => return Err(fail("Webdis answered with an unexpected status")),
    }
    let mut decoder = Decoder::default();
    decoder.push(body);
    match decoder.next() {
        Ok(Some(frame)) => script::read(command, frame, now),
        Ok(None) => Err(fail("Webdis sent an incomplete reply")),
        Err(_) => Err(fail("Webdis sent bytes that are not RESP2")),
    }
}

#[cfg(test)]
mod tests;
