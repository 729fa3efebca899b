//! The connection for publish/subscribe: the end of a claim is published on its record's name, and waiting
//! requests subscribe to it.

use super::reconnect::Reconnect;
use super::resp::{self, Decoder, Frame};
use super::{Connection, Event, Settings};
use crate::key::Key;
use crate::time::Timestamp;
use std::collections::HashMap;
use std::time::Duration;

/// How long the connection is kept when no request waits any more: the next one often comes soon.
const IDLE: Duration = Duration::from_secs(10);

/// How long to poll after Redis has refused SUBSCRIBE: behind redis_proxy, or for a user without the right,
/// it refuses every time.
const REFUSED: Duration = Duration::from_secs(60);

/// Subscriptions of one worker.
///
/// A message may be lost: if it comes before its subscription is active, or while the connection is being
/// reopened. So each confirmed subscription counts as a message: waiting requests check again then.
#[derive(Debug)]
pub(super) struct Channels {
    settings: Settings,
    reconnect: Reconnect,
    decoder: Decoder,
    /// With the number of waiting requests.
    watched: HashMap<Key, u32>,
    idle_since: Timestamp,
    refused_until: Option<Timestamp>,
}

impl Channels {
    pub(super) fn new(settings: Settings, seed: u64) -> Self {
        Self {
            settings,
            reconnect: Reconnect::new(seed),
            decoder: Decoder::default(),
            watched: HashMap::new(),
            idle_since: Timestamp::default(),
            refused_until: None,
        }
    }

    pub(super) fn watch(&mut self, key: Key, now: Timestamp) -> Vec<Event> {
        let watchers = self.watched.entry(key).or_default();
        *watchers = watchers.saturating_add(1);
        if *watchers > 1 {
            return Vec::new();
        }
        if self.reconnect.is_open() {
            return vec![self.say(b"SUBSCRIBE", [key])];
        }
        self.open_if_due(now)
    }

    pub(super) fn unwatch(&mut self, key: Key, now: Timestamp) -> Vec<Event> {
        let Some(watchers) = self.watched.get_mut(&key) else { return Vec::new() };
        *watchers = watchers.saturating_sub(1);
        if *watchers > 0 {
            return Vec::new();
        }
        self.watched.remove(&key);
        self.idle_since = now;
        if self.reconnect.is_open() { vec![self.say(b"UNSUBSCRIBE", [key])] } else { Vec::new() }
    }

    pub(super) fn opened(&mut self, now: Timestamp) -> Vec<Event> {
        self.reconnect.opened(now);
        self.idle_since = now;
        let mut out = Vec::new();
        self.settings.write_login(&mut out);
        if !self.watched.is_empty() {
            self.write(&mut out, b"SUBSCRIBE", self.watched.keys().copied());
        }
        if out.is_empty() { Vec::new() } else { vec![Event::Write(Connection::Channels, out)] }
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
                Ok(Some(Frame::Array(parts))) => {
                    self.reconnect.proved();
                    self.refused_until = None;
                    events.extend(self.word(&parts));
                }
                Ok(Some(Frame::Error(error))) => {
                    if self.refused_until.is_none() {
                        let said =
                            format!("Redis refuses SUBSCRIBE ({error}): waiting requests poll");
                        events.push(Event::Warn(said));
                    }
                    self.refused_until = Some(now.after(REFUSED));
                    self.close(false, now, &mut events);
                    return events;
                }
                // The reply to a login.
                Ok(Some(
                    Frame::SimpleString(_) | Frame::Integer(_) | Frame::BulkString(_) | Frame::Null,
                )) => {}
                Ok(None) => return events,
                Err(resp::Broken) => {
                    self.close(true, now, &mut events);
                    return events;
                }
            }
        }
    }

    pub(super) fn closed(&mut self, now: Timestamp) -> Vec<Event> {
        self.decoder = Decoder::default();
        self.reconnect.closed(!self.watched.is_empty(), now);
        Vec::new()
    }

    pub(super) fn tick(&mut self, now: Timestamp) -> Vec<Event> {
        if !self.watched.is_empty() {
            return self.open_if_due(now);
        }
        let mut events = Vec::new();
        if self.reconnect.is_open() && self.idle_since.after(IDLE) <= now {
            self.close(false, now, &mut events);
        }
        events
    }

    pub(super) fn alarm(&self) -> Option<Timestamp> {
        if self.watched.is_empty() {
            return self.reconnect.is_open().then(|| self.idle_since.after(IDLE));
        }
        self.reconnect
            .retry_at()
            .map(|retry_at| retry_at.max(self.refused_until.unwrap_or_default()))
    }

    fn open_if_due(&mut self, now: Timestamp) -> Vec<Event> {
        let refused = self.refused_until.is_some_and(|until| now < until);
        if !refused && self.reconnect.begin(now) {
            vec![Event::Open(Connection::Channels)]
        } else {
            Vec::new()
        }
    }

    /// A claim has ended, or may have ended while no connection received messages.
    fn word(&self, parts: &[Frame]) -> Option<Event> {
        let [Frame::BulkString(kind), Frame::BulkString(channel), _] = parts else { return None };
        let tells = [&b"message"[..], b"subscribe"].contains(&kind.as_slice());
        let key = self.settings.key(channel)?;
        (tells && self.watched.contains_key(&key)).then_some(Event::Ended(key))
    }

    fn say(&self, what: &[u8], keys: impl IntoIterator<Item = Key>) -> Event {
        let mut out = Vec::new();
        self.write(&mut out, what, keys);
        Event::Write(Connection::Channels, out)
    }

    fn write(&self, out: &mut Vec<u8>, what: &[u8], keys: impl IntoIterator<Item = Key>) {
        let names: Vec<_> = keys.into_iter().map(|key| self.settings.name(key)).collect();
        let parts: Vec<_> =
            [what].into_iter().chain(names.iter().map(|name| name.as_bytes())).collect();
        resp::write(out, &parts);
    }

    fn close(&mut self, missed: bool, now: Timestamp, events: &mut Vec<Event>) {
        self.decoder = Decoder::default();
        self.reconnect.closed(missed, now);
        events.push(Event::Close(Connection::Channels));
    }
}

#[cfg(test)]
mod tests;
