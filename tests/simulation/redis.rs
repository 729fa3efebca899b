//! A Redis: commands in RESP, the five scripts by the rules that every store goes by, publish/subscribe.

use envoy_idempotency::key::Key;
use envoy_idempotency::record::codec;
use envoy_idempotency::record::{Kept, Record, State, Token};
use envoy_idempotency::store::Command;
use envoy_idempotency::store::transitions::{self, Change, Verdict};
use envoy_idempotency::time::{Timestamp, WallTime};
use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::types::OwnedFrame;
use sha1::{Digest, Sha1};
use std::collections::HashMap;
use std::time::Duration;

/// The prefix of keys.
pub const PREFIX: &str = "idem:";

/// Which script a text is, by its end.
const SCRIPTS: [(Script, &str); 5] = [
    (Script::Claim, include_str!("../../src/store/redis/lua/claim.lua")),
    (Script::Extend, include_str!("../../src/store/redis/lua/extend.lua")),
    (Script::Complete, include_str!("../../src/store/redis/lua/complete.lua")),
    (Script::Release, include_str!("../../src/store/redis/lua/release.lua")),
    (Script::MarkUnknown, include_str!("../../src/store/redis/lua/mark_unknown.lua")),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Script {
    Claim,
    Extend,
    Complete,
    Release,
    MarkUnknown,
}

/// The effect of a script.
#[derive(Debug)]
pub struct Done {
    pub command: Command,
    pub verdict: Verdict,
}

/// The reply to a command, and its other effects.
#[derive(Debug, Default)]
pub struct Ran {
    pub reply: Vec<u8>,
    pub done: Option<Done>,
    /// All subscribers of this key get a message.
    pub published: Option<Key>,
    pub subscribed: Option<Key>,
    pub unsubscribed: Option<Key>,
}

#[derive(Debug, Default)]
pub struct Redis {
    scripts: HashMap<Vec<u8>, Script>,
    records: HashMap<Vec<u8>, Record>,
}

/// Extracts whole commands from the bytes of a connection.
pub fn commands(bytes: &mut Vec<u8>) -> Vec<Vec<Vec<u8>>> {
    let mut commands = Vec::new();
    while let Some((frame, length)) = decode(bytes).expect("RESP") {
        bytes.drain(..length);
        let OwnedFrame::Array(parts) = frame else { panic!("no command: {frame:?}") };
        commands.push(
            parts
                .into_iter()
                .map(|part| match part {
                    OwnedFrame::BulkString(part) => part,
                    other => panic!("no part of a command: {other:?}"),
                })
                .collect(),
        );
    }
    commands
}

fn bulk(bytes: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// A message to the subscribers of `key`.
pub fn message(kind: &str, key: Key) -> Vec<u8> {
    let last = if kind == "message" { bulk(b"") } else { b":1\r\n".to_vec() };
    [&b"*3\r\n"[..], &bulk(kind.as_bytes()), &bulk(name(key).as_bytes()), &last].concat()
}

fn name(key: Key) -> String {
    let digits: String = key.0.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{PREFIX}{digits}")
}

fn key(name: &[u8]) -> Key {
    let digits = std::str::from_utf8(&name[PREFIX.len()..]).unwrap();
    Key(std::array::from_fn(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap()))
}

fn number(part: &[u8]) -> u64 {
    std::str::from_utf8(part).unwrap().parse().unwrap()
}

impl Redis {
    /// Forgets all scripts, as `SCRIPT FLUSH` or a failover does.
    pub fn forget_scripts(&mut self) {
        self.scripts.clear();
    }

    /// Carries out a command at this time of its clock.
    pub fn run(&mut self, parts: &[Vec<u8>], now: u64) -> Ran {
        match (parts[0].as_slice(), parts.get(1)) {
            (b"CONFIG", _) => {
                let reply = [&b"*2\r\n"[..], &bulk(b"maxmemory-policy"), &bulk(b"noeviction")];
                Ran { reply: reply.concat(), ..Ran::default() }
            }
            (b"EVALSHA", Some(digest)) => match self.scripts.get(digest) {
                Some(script) => self.script(*script, parts, now),
                None => {
                    Ran { reply: b"-NOSCRIPT No matching script.\r\n".into(), ..Ran::default() }
                }
            },
            (b"EVAL", Some(text)) => {
                let ends = |(_, end): &&(Script, &str)| text.ends_with(end.as_bytes());
                let (script, _) = SCRIPTS.iter().find(ends).expect("a known script");
                let digest: String =
                    Sha1::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
                self.scripts.insert(digest.into_bytes(), *script);
                self.script(*script, parts, now)
            }
            (b"SUBSCRIBE", Some(name)) => Ran { subscribed: Some(key(name)), ..Ran::default() },
            (b"UNSUBSCRIBE", Some(name)) => Ran { unsubscribed: Some(key(name)), ..Ran::default() },
            other => panic!("no command that anybody sends: {other:?}"),
        }
    }

    fn script(&mut self, script: Script, parts: &[Vec<u8>], now: u64) -> Ran {
        let [_, _, _, name, arguments @ ..] = parts else { panic!("no call: {parts:?}") };
        let key = key(name);
        let millis = |at: usize| Duration::from_millis(number(&arguments[at]));
        let token = || Token(arguments[0].as_slice().try_into().unwrap());
        let command = match script {
            Script::Claim => {
                let claim = codec::decode(&arguments[0]).unwrap();
                let State::Ongoing { unknown_for, .. } = claim.state else { panic!("no claim") };
                Command::Claim {
                    key,
                    token: claim.token,
                    fingerprint: claim.fingerprint,
                    first_seen: WallTime::from_millis(now),
                    lease: millis(1),
                    unknown_for,
                    watch: false,
                }
            }
            Script::Extend => Command::Extend { key, token: token(), lease: millis(1) },
            Script::Complete => {
                let record = codec::decode(&arguments[2]).unwrap();
                let State::Finished { status, kept, .. } = record.state else { panic!("no end") };
                Command::Complete { key, token: token(), status, kept, ttl: millis(1) }
            }
            Script::Release => Command::Release { key, token: token() },
            Script::MarkUnknown => {
                Command::MarkUnknown { key, token: token(), unknown_for: millis(1) }
            }
        };
        let not_after = if script == Script::Claim { number(&arguments[2]) } else { 0 };
        self.transition(name, command, not_after, now)
    }

    fn transition(&mut self, name: &[u8], command: Command, not_after: u64, now: u64) -> Ran {
        let head = self.records.get(name).map(Record::head);
        let verdict = transitions::apply(head.as_ref(), &command, Timestamp::from_millis(now));
        let is_new = matches!(verdict, Verdict::Claimed { change: Change::Put(_), .. });
        let tag = &command.token().0[..4];
        let time = now.to_be_bytes();
        let reply = |rest: &[&[u8]]| bulk(&[tag, &rest.concat()].concat());
        if is_new && not_after > 0 && now > not_after {
            return Ran { reply: reply(&[b"L", &time]), ..Ran::default() };
        }
        let said = match &verdict {
            Verdict::Claimed { attempt, .. } => reply(&[b"C", &time, &attempt.to_be_bytes()]),
            Verdict::Exists(head) => {
                let record = Record { ..self.records[name].clone() };
                // As it stands now: a lapsed lease is an unknown outcome.
                let record = match &head.state {
                    State::Unknown { until } => {
                        Record { state: State::Unknown { until: *until }, ..record }
                    }
                    State::Ongoing { .. } | State::Finished { .. } => record,
                };
                reply(&[b"E", &time, &codec::encode(&record)])
            }
            Verdict::Done(_) => reply(&[b"D"]),
            Verdict::NotOwner => reply(&[b"N"]),
        };
        let change = match &verdict {
            Verdict::Claimed { change, .. } | Verdict::Done(change) => change.clone(),
            Verdict::Exists(_) | Verdict::NotOwner => Change::Keep,
        };
        let ends = !matches!(command, Command::Claim { .. } | Command::Extend { .. });
        let published = (ends && change != Change::Keep).then_some(command.key());
        match change {
            Change::Keep => {}
            Change::Remove => drop(self.records.remove(name)),
            Change::Put(head) => {
                let record = whole(head, &command);
                self.records.insert(name.to_vec(), record);
            }
        }
        let done = Some(Done { command, verdict });
        Ran { reply: said, done, published, ..Ran::default() }
    }
}

/// The record that a command puts, with the answer that it brings along.
fn whole(head: envoy_idempotency::record::Head, command: &Command) -> Record {
    let state = match head.state {
        State::Ongoing { lease_until, unknown_for } => State::Ongoing { lease_until, unknown_for },
        State::Unknown { until } => State::Unknown { until },
        State::Finished { until, status, kept } => {
            let kept = match (kept, command) {
                (Kept::Answer(()), Command::Complete { kept, .. }) => kept.clone(),
                (Kept::Answer(()), _) => panic!("an answer out of nowhere"),
                (Kept::StatusOnly, _) => Kept::StatusOnly,
                (Kept::Nothing, _) => Kept::Nothing,
            };
            State::Finished { until, status, kept }
        }
    };
    Record {
        token: head.token,
        fingerprint: head.fingerprint,
        attempt: head.attempt,
        first_seen: head.first_seen,
        state,
    }
}
