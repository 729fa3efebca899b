//! One script per transition: its call, and the meaning of its reply.
//!
//! A script changes the record under its one key as [`transitions`](crate::store::transitions) defines,
//! atomically and by Redis's own clock. Its reply is one bulk string:
//!
//! | reply | to | |
//! |---|---|---|
//! | `C`, Redis's time (8 bytes), attempt (4 bytes) | claim | the request owns the key |
//! | `E`, Redis's time (8 bytes), record | claim | the key is taken |
//! | `L`, Redis's time (8 bytes) | claim | it came too late; nothing was changed |
//! | `D` | the others | done |
//! | `N` | the others | the record belongs to another token |
//!
//! Each reply begins with four bytes of the command's token. A reply with other bytes answers another
//! command, and so would all that follow: one caller would get another caller's answer.

use super::resp::{self, Frame};
use crate::key::Fingerprint;
use crate::record::codec::{self, append_answer, encode_head};
use crate::record::{Head, Kept, Record, State, Token};
use crate::store::{Command, Reply, StoreError};
use crate::time::{Timestamp, WallTime};
use sha1::{Digest, Sha1};
use std::time::Duration;

/// How long the count of attempts outlives the unknown outcome. It is used only to give the origin the right
/// `Idempotency-Attempt`. A day is longer than clients retry, and costs only 80 bytes per key.
const ATTEMPTS_KEPT: Duration = Duration::from_secs(24 * 3600);

/// A script and its name at Redis.
#[derive(Debug)]
struct Script {
    text: String,
    /// SHA-1 in hex, for `EVALSHA`.
    digest: String,
}

/// The five scripts.
#[derive(Debug)]
pub(super) struct Scripts {
    claim: Script,
    extend: Script,
    complete: Script,
    release: Script,
    mark_unknown: Script,
}

/// How a script is named in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `EVALSHA`: by its digest. Redis may have forgotten the script, or never had it.
    Digest,
    /// `EVAL`: by its text, which Redis then remembers.
    Text,
}

/// The reply of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) reply: Reply,
    /// Redis's time, if the reply has it.
    pub(super) time: Option<Timestamp>,
}

/// How to react to a reply that is not the script's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    /// A claim came too late by Redis's clock, which is at this time.
    TooLate(Timestamp),
    /// Call it again by its text.
    SendText,
    /// The command has failed; the connection is still usable.
    Fail(StoreError),
    /// The command has failed, and others on this connection will fail too.
    Reopen(StoreError),
}

impl Scripts {
    pub(super) fn new() -> Self {
        let prelude = prelude();
        let script = |body: &str| {
            let text = format!("{prelude}{}{body}", include_str!("lua/record.lua"));
            let digest = Sha1::digest(text.as_bytes());
            let digest = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            Script { text, digest }
        };
        Self {
            claim: script(include_str!("lua/claim.lua")),
            extend: script(include_str!("lua/extend.lua")),
            complete: script(include_str!("lua/complete.lua")),
            release: script(include_str!("lua/release.lua")),
            mark_unknown: script(include_str!("lua/mark_unknown.lua")),
        }
    }

    /// The parts of the call that runs `command` on `key`; a claim gets its deadline by Redis's clock, if
    /// that is known.
    pub(super) fn parts(
        &self,
        key: &str,
        command: &Command,
        form: Form,
        not_after: Option<Timestamp>,
    ) -> Vec<Vec<u8>> {
        let millis = |length: &Duration| length.as_millis().to_string().into_bytes();
        let (script, arguments) = match command {
            Command::Claim { token, fingerprint, lease, unknown_for, .. } => {
                let lease_until = Timestamp::default();
                let state = State::Ongoing { lease_until, unknown_for: *unknown_for };
                let head = encode_head(&draft(*token, *fingerprint, state));
                // Zero means that the deadline is not known.
                let not_after = not_after.map_or(0, |time| time.as_millis().max(1)).to_string();
                (&self.claim, vec![head.to_vec(), millis(lease), not_after.into_bytes()])
            }
            Command::Extend { token, lease, .. } => {
                (&self.extend, vec![token.0.to_vec(), millis(lease)])
            }
            Command::Complete { token, status, kept, ttl, .. } => {
                let until = Timestamp::default();
                let state = State::Finished { until, status: *status, kept: kept.form() };
                let mut record = encode_head(&draft(*token, Fingerprint([0; 32]), state)).to_vec();
                match kept {
                    Kept::Answer(answer) => append_answer(answer, &mut record),
                    Kept::StatusOnly | Kept::Nothing => {}
                }
                (&self.complete, vec![token.0.to_vec(), millis(ttl), record])
            }
            Command::Release { token, .. } => (&self.release, vec![token.0.to_vec()]),
            Command::MarkUnknown { token, unknown_for, .. } => {
                (&self.mark_unknown, vec![token.0.to_vec(), millis(unknown_for)])
            }
        };
        let (call, name) = match form {
            Form::Digest => ("EVALSHA", &script.digest),
            Form::Text => ("EVAL", &script.text),
        };
        let mut parts: Vec<Vec<u8>> =
            [call, name, "1", key].map(|part| part.as_bytes().to_vec()).into();
        parts.extend(arguments);
        parts
    }

    /// Appends the call to `out`.
    pub(super) fn write(
        &self,
        out: &mut Vec<u8>,
        key: &str,
        command: &Command,
        form: Form,
        not_after: Option<Timestamp>,
    ) {
        let parts = self.parts(key, command, form, not_after);
        let parts: Vec<_> = parts.iter().map(Vec::as_slice).collect();
        resp::write(out, &parts);
    }
}

/// A head whose remaining fields the script fills in.
fn draft(token: Token, fingerprint: Fingerprint, state: State<()>) -> Head {
    Head { token, fingerprint, attempt: 0, first_seen: WallTime::default(), state }
}

/// The offsets of a record's fields, as Lua counts, and the letters of its states. They come from the codec,
/// so that no script has its own.
fn prelude() -> String {
    let from = |at: usize| at.saturating_add(1);
    let state = |letter: u8| char::from(letter);
    let states: String =
        [codec::ONGOING, codec::UNKNOWN, codec::ANSWER, codec::STATUS_ONLY, codec::TOMBSTONE]
            .map(state)
            .iter()
            .collect();
    format!(
        "local VERSION, HEAD_LEN, ATTEMPTS_KEPT = {}, {}, {} \
         local STATE, TOKEN, FINGERPRINT, DEADLINE, UNKNOWN_FOR = {}, {}, {}, {}, {} \
         local ATTEMPT, FIRST_SEEN, STATUS = {}, {}, {} \
         local ONGOING, UNKNOWN, STATES = '{}', '{}', '{states}'\n",
        codec::VERSION,
        codec::HEAD_LEN,
        ATTEMPTS_KEPT.as_millis(),
        from(codec::STATE_AT),
        from(codec::TOKEN.start),
        from(codec::FINGERPRINT.start),
        from(codec::DEADLINE.start),
        from(codec::UNKNOWN_FOR.start),
        from(codec::ATTEMPT.start),
        from(codec::FIRST_SEEN.start),
        from(codec::STATUS.start),
        state(codec::ONGOING),
        state(codec::UNKNOWN),
    )
}

/// The meaning of a reply to `command`; `now` is when it came.
pub(super) fn read(command: &Command, frame: Frame, now: Timestamp) -> Result<Read, Reaction> {
    let reply = match frame {
        Frame::BulkString(reply) => reply,
        Frame::Error(text) => return Err(reaction(&text)),
        Frame::SimpleString(_) | Frame::Integer(_) | Frame::Array(_) | Frame::Null => {
            return Err(foreign());
        }
    };
    let rest = reply.strip_prefix(&tag(command.token())).ok_or(foreign())?;
    let (letter, rest) = rest.split_first().ok_or(foreign())?;
    let plain = |reply| Ok(Read { reply, time: None });
    match (command, letter) {
        (Command::Claim { .. }, b'C') => {
            let (time, attempt) = timed(rest)?;
            let attempt = attempt.try_into().map_err(|_| foreign())?;
            let reply = Reply::Claimed { attempt: u32::from_be_bytes(attempt) };
            Ok(Read { reply, time: Some(time) })
        }
        (Command::Claim { .. }, b'E') => {
            let (time, record) = timed(rest)?;
            let record = codec::decode(record)
                .map_err(|error| Reaction::Fail(StoreError::Unreadable(error.as_str())))?;
            let reply = Reply::Exists(by_our_clock(record, time, now));
            Ok(Read { reply, time: Some(time) })
        }
        (Command::Claim { .. }, b'L') => Err(Reaction::TooLate(timed(rest)?.0)),
        (
            Command::Extend { .. }
            | Command::Complete { .. }
            | Command::Release { .. }
            | Command::MarkUnknown { .. },
            b'D',
        ) => plain(Reply::Done),
        (
            Command::Extend { .. }
            | Command::Complete { .. }
            | Command::Release { .. }
            | Command::MarkUnknown { .. },
            b'N',
        ) => plain(Reply::NotOwner),
        // A reply to another command: all that follow would be wrong too.
        (
            Command::Claim { .. }
            | Command::Extend { .. }
            | Command::Complete { .. }
            | Command::Release { .. }
            | Command::MarkUnknown { .. },
            _,
        ) => Err(foreign()),
    }
}

/// The first bytes of a reply to this token.
pub(super) fn tag(token: Token) -> [u8; 4] {
    let [a, b, c, d, ..] = token.0;
    [a, b, c, d]
}

/// Redis's time at the start of a reply, and the rest of it.
fn timed(reply: &[u8]) -> Result<(Timestamp, &[u8]), Reaction> {
    let (time, rest) = reply.split_first_chunk().ok_or(foreign())?;
    Ok((Timestamp::from_millis(u64::from_be_bytes(*time)), rest))
}

fn foreign() -> Reaction {
    Reaction::Reopen(StoreError::Unanswered(FOREIGN))
}

const FOREIGN: &str = "Redis sent the reply to another command";

/// A record's deadline is in Redis's time. The remaining time is the same everywhere.
fn by_our_clock(record: Record, there: Timestamp, now: Timestamp) -> Record {
    let ours = |deadline: Timestamp| now.after(there.until(deadline));
    let state = match record.state {
        State::Ongoing { lease_until, unknown_for } => {
            State::Ongoing { lease_until: ours(lease_until), unknown_for }
        }
        State::Unknown { until } => State::Unknown { until: ours(until) },
        State::Finished { until, status, kept } => {
            State::Finished { until: ours(until), status, kept }
        }
    };
    Record { state, ..record }
}

/// The reaction to an error of Redis: its first word decides (Redis docs, "RESP protocol description", simple
/// errors). If an error is wrongly taken as the record's, the cost is only a needless 503.
pub(super) fn reaction(error: &str) -> Reaction {
    let fail = |why| Reaction::Fail(StoreError::Unavailable(why));
    let reopen = |why| Reaction::Reopen(StoreError::Unavailable(why));
    // Before Redis 7, an error in a script is reported in the middle of an ERR.
    if error.contains("WRONGTYPE") {
        return Reaction::Fail(StoreError::Unreadable("the key holds another type of value"));
    }
    match error.split([' ', ':']).next().unwrap_or_default() {
        "NOSCRIPT" => Reaction::SendText,
        "UNREADABLE" => Reaction::Fail(StoreError::Unreadable(unreadable(error))),
        "OOM" => fail("Redis is out of memory"),
        "LOADING" => fail("Redis is loading its data"),
        "BUSY" => fail("Redis is busy with a script"),
        "TRYAGAIN" => fail("Redis Cluster is moving the key"),
        "CLUSTERDOWN" => fail("Redis Cluster is down"),
        "NOREPLICAS" => fail("Redis has too few replicas to write"),
        "MISCONF" => fail("Redis cannot save its data and refuses writes"),
        "NOPERM" => fail("the Redis user may not run the scripts"),
        "MOVED" | "ASK" => fail("the key is on another node: Redis Cluster needs redis_proxy"),
        // Envoy's redis_proxy, which has no error code for it.
        "upstream" => Reaction::Fail(StoreError::Unanswered("redis_proxy has lost the key's node")),
        // A failover: the name may now lead to the new primary.
        "READONLY" => reopen("Redis is a replica"),
        "MASTERDOWN" => reopen("Redis is a replica without its primary"),
        "NOAUTH" => reopen("Redis requires a password"),
        "WRONGPASS" => reopen("Redis refuses the user and password"),
        _ => fail("Redis sent an unknown error"),
    }
}

/// The script's reason why a record is unreadable, as the codec's text.
fn unreadable(error: &str) -> &'static str {
    use codec::CodecError::{Short, State, Version};
    let said = |known: &codec::CodecError| error.contains(known.as_str());
    let known = [Short, Version(0), State(0)];
    known.iter().find(|known| said(known)).map_or("it is none", |known| known.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Key;

    const NOW: Timestamp = Timestamp::from_millis(50_000);

    fn claim() -> Command {
        Command::Claim {
            key: Key([7; 32]),
            token: Token([1; 16]),
            fingerprint: Fingerprint([2; 32]),
            first_seen: WallTime::default(),
            lease: Duration::from_secs(10),
            unknown_for: Duration::from_secs(60),
            watch: false,
        }
    }

    fn extend() -> Command {
        Command::Extend { key: Key([7; 32]), token: Token([1; 16]), lease: Duration::from_secs(1) }
    }

    fn bulk(bytes: &[u8]) -> Frame {
        Frame::BulkString(bytes.to_vec())
    }

    #[test]
    fn a_script_is_called_by_its_digest_and_then_by_its_text() {
        let scripts = Scripts::new();
        let at = Timestamp::from_millis(7);
        let digest = scripts.parts("idem:07", &claim(), Form::Digest, None);
        let text = scripts.parts("idem:07", &claim(), Form::Text, Some(at));
        assert_eq!((digest[0].as_slice(), digest[1].len()), (&b"EVALSHA"[..], 40));
        assert_eq!((text[0].as_slice(), &text[2..6]), (&b"EVAL"[..], &digest[2..6]));
        assert_eq!(&digest[2..4], [b"1".to_vec(), b"idem:07".to_vec()]);
        assert_eq!((digest[4].len(), &digest[5][..]), (codec::HEAD_LEN, &b"10000"[..]));
        assert_eq!((&digest[6][..], &text[6][..]), (&b"0"[..], &b"7"[..]), "not after");
        assert_eq!(
            Sha1::digest(&text[1]).iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
            String::from_utf8_lossy(&digest[1])
        );
    }

    /// A reply to the token of these tests.
    fn reply(rest: &[u8]) -> Frame {
        bulk(&[&[1; 4], rest].concat())
    }

    #[test]
    fn a_reply_is_accepted_only_if_the_command_can_get_it() {
        let time = Some(Timestamp::from_millis(5));
        let claimed = Reply::Claimed { attempt: 2 };
        assert_eq!(
            read(&claim(), reply(b"C\0\0\0\0\0\0\0\x05\0\0\0\x02"), NOW),
            Ok(Read { reply: claimed, time })
        );
        let plain = |reply| Ok(Read { reply, time: None });
        assert_eq!(read(&extend(), reply(b"D"), NOW), plain(Reply::Done));
        assert_eq!(read(&extend(), reply(b"N"), NOW), plain(Reply::NotOwner));
        assert_eq!(
            read(&claim(), reply(b"L\0\0\0\0\0\0\0\x05"), NOW),
            Err(Reaction::TooLate(Timestamp::from_millis(5)))
        );
        let foreign = Err(Reaction::Reopen(StoreError::Unanswered(FOREIGN)));
        for (command, frame) in [
            (claim(), reply(b"D")),
            (claim(), reply(b"C\0\0")),
            (claim(), reply(b"")),
            (claim(), bulk(b"")),
            (claim(), Frame::Null),
            (claim(), Frame::Integer(1)),
            (extend(), reply(b"C\0\0\0\0\0\0\0\x05\0\0\0\x01")),
            (extend(), Frame::SimpleString(b"OK".to_vec())),
            // The reply to another token.
            (extend(), bulk(b"\x01\x01\x01\x02D")),
            (claim(), bulk(b"\x02\x01\x01\x01C\0\0\0\0\0\0\0\x05\0\0\0\x01")),
        ] {
            assert_eq!(read(&command, frame.clone(), NOW), foreign, "{frame:?}");
        }
    }

    #[test]
    fn a_deadline_is_converted_to_our_clock() {
        let record = Record {
            token: Token([1; 16]),
            fingerprint: Fingerprint([2; 32]),
            attempt: 1,
            first_seen: WallTime::from_millis(900_000),
            state: State::Unknown { until: Timestamp::from_millis(1_003_000) },
        };
        let mut found = b"E".to_vec();
        found.extend_from_slice(&1_000_000_u64.to_be_bytes());
        found.extend_from_slice(&codec::encode(&record));
        let read_now = |found: &[u8]| read(&claim(), reply(found), NOW);
        let mut cut = found.clone();
        let Ok(Read { reply: Reply::Exists(found), .. }) = read_now(&found) else {
            panic!("no record")
        };
        assert_eq!(found.state, State::Unknown { until: Timestamp::from_millis(53_000) });
        assert_eq!(found.first_seen, record.first_seen);
        cut.truncate(50);
        let cut = read_now(&cut);
        let short = "the record is shorter than its head";
        assert_eq!(cut, Err(Reaction::Fail(StoreError::Unreadable(short))));
    }

    #[test]
    fn every_error_has_its_reaction() {
        let unreadable = |why| Reaction::Fail(StoreError::Unreadable(why));
        for (error, wanted) in [
            ("NOSCRIPT No matching script. Please use EVAL.", Reaction::SendText),
            (
                "UNREADABLE the record was written by another version",
                unreadable("the record was written by another version"),
            ),
            (
                "ERR Error running script (call to f_1): @user_script:1: WRONGTYPE Operation",
                unreadable("the key holds another type of value"),
            ),
            (
                "READONLY You can't write against a read only replica.",
                Reaction::Reopen(StoreError::Unavailable("Redis is a replica")),
            ),
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                Reaction::Fail(StoreError::Unavailable("Redis is out of memory")),
            ),
            (
                "ERR unknown command",
                Reaction::Fail(StoreError::Unavailable("Redis sent an unknown error")),
            ),
        ] {
            assert_eq!(reaction(error), wanted, "{error}");
        }
    }
}
