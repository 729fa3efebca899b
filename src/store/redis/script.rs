//! One script a transition: how it is called, and what its reply means.
//!
//! A script does to the record under its one key what [`life`](crate::store::life) says, with Redis's own
//! clock, and in one step that nothing comes between. Its reply is one bulk string:
//!
//! | reply | to | |
//! |---|---|---|
//! | `C`, attempt (4 bytes) | claim | the key is yours |
//! | `E`, Redis's time (8 bytes), record | claim | the key is taken |
//! | `D` | the others | done |
//! | `N` | the others | the record is not yours |

use super::wire::{self, Frame};
use crate::key::Fingerprint;
use crate::record::codec::{self, append_answer, encode_head};
use crate::record::{Head, Kept, Record, State, Token};
use crate::store::{Command, Reply, StoreError};
use crate::time::Timestamp;
use sha1::{Digest, Sha1};
use std::time::Duration;

/// How long the count of attempts outlives the doubt it is about. It only tells the origin that an earlier
/// attempt may have run; a day is longer than clients retry, and 80 bytes a key are little for it.
const ATTEMPTS_KEPT: Duration = Duration::from_secs(24 * 3600);

/// A script and its name at Redis.
#[derive(Debug)]
struct Script {
    text: String,
    /// SHA-1 in hex: what `EVALSHA` wants.
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
    /// `EVALSHA`: by its digest. Redis may have forgotten it, or never known.
    Digest,
    /// `EVAL`: by its text, which Redis remembers then.
    Text,
}

/// What to do about a reply that is none of the script's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    /// Call it again by its text.
    SendText,
    /// The command has failed; the connection is as good as before.
    Fail(StoreError),
    /// The command has failed, and so will others on this connection.
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

    /// The parts of the call that carries `command` out on `key`.
    pub(super) fn parts(&self, key: &str, command: &Command, form: Form) -> Vec<Vec<u8>> {
        let millis = |length: &Duration| length.as_millis().to_string().into_bytes();
        let (script, arguments) = match command {
            Command::Claim { token, fingerprint, lease, unknown_for, .. } => {
                let lease_until = Timestamp::default();
                let state = State::Ongoing { lease_until, unknown_for: *unknown_for };
                let head = encode_head(&draft(*token, *fingerprint, state));
                (&self.claim, vec![millis(lease), head.to_vec()])
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

    /// Writes the call behind what is in `out`.
    pub(super) fn write(&self, out: &mut Vec<u8>, key: &str, command: &Command, form: Form) {
        let parts = self.parts(key, command, form);
        let parts: Vec<_> = parts.iter().map(Vec::as_slice).collect();
        wire::write(out, &parts);
    }
}

/// A head of which the script fills in the rest.
fn draft(token: Token, fingerprint: Fingerprint, state: State<()>) -> Head {
    Head { token, fingerprint, attempt: 0, first_seen: Timestamp::default(), state }
}

/// Where the fields of a record begin, as Lua counts, and what its states are called: the codec's words,
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

/// What a reply to `command` means; `now` is when it came.
pub(super) fn read(command: &Command, frame: Frame, now: Timestamp) -> Result<Reply, Reaction> {
    let reply = match frame {
        Frame::BulkString(reply) => reply,
        Frame::Error(text) => return Err(reaction(&text)),
        Frame::SimpleString(_) | Frame::Integer(_) | Frame::Array(_) | Frame::Null => {
            return Err(Reaction::Reopen(StoreError::Unanswered(FOREIGN)));
        }
    };
    let foreign = Reaction::Reopen(StoreError::Unanswered(FOREIGN));
    let (tag, rest) = reply.split_first().ok_or(foreign.clone())?;
    match (command, tag) {
        (Command::Claim { .. }, b'C') => {
            let attempt = rest.try_into().map_err(|_| foreign)?;
            Ok(Reply::Claimed { attempt: u32::from_be_bytes(attempt) })
        }
        (Command::Claim { .. }, b'E') => {
            let (time, record) = rest.split_first_chunk().ok_or(foreign)?;
            let record = codec::decode(record)
                .map_err(|error| Reaction::Fail(StoreError::Unreadable(error.as_str())))?;
            let there = Timestamp::from_millis(u64::from_be_bytes(*time));
            Ok(Reply::Exists(by_our_clock(record, there, now)))
        }
        (
            Command::Extend { .. }
            | Command::Complete { .. }
            | Command::Release { .. }
            | Command::MarkUnknown { .. },
            b'D',
        ) => Ok(Reply::Done),
        (
            Command::Extend { .. }
            | Command::Complete { .. }
            | Command::Release { .. }
            | Command::MarkUnknown { .. },
            b'N',
        ) => Ok(Reply::NotOwner),
        // A reply to another question: whatever follows would be, too.
        (
            Command::Claim { .. }
            | Command::Extend { .. }
            | Command::Complete { .. }
            | Command::Release { .. }
            | Command::MarkUnknown { .. },
            _,
        ) => Err(foreign),
    }
}

const FOREIGN: &str = "Redis gave a reply to another question";

/// A record's deadline is a point in Redis's time; what remains of it is the same everywhere.
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

/// What an error of Redis is answered by: the word it begins with decides (Redis docs, "RESP protocol
/// description", simple errors). Wrongly taken for the record's, an error costs a needless 503 as well.
pub(super) fn reaction(error: &str) -> Reaction {
    let fail = |why| Reaction::Fail(StoreError::Unavailable(why));
    let reopen = |why| Reaction::Reopen(StoreError::Unavailable(why));
    // Before Redis 7, what goes wrong in a script is told in the middle of an ERR.
    if error.contains("WRONGTYPE") {
        return Reaction::Fail(StoreError::Unreadable("the key holds another type of value"));
    }
    match error.split([' ', ':']).next().unwrap_or_default() {
        "NOSCRIPT" => Reaction::SendText,
        "UNREADABLE" => Reaction::Fail(StoreError::Unreadable(unreadable(error))),
        "OOM" => fail("Redis is out of memory"),
        "LOADING" => fail("Redis is loading its data"),
        "BUSY" => fail("Redis is busy with a script"),
        "TRYAGAIN" => fail("Redis Cluster moves the key"),
        "CLUSTERDOWN" => fail("Redis Cluster is down"),
        "NOREPLICAS" => fail("Redis has too few replicas to write"),
        "MISCONF" => fail("Redis cannot save its data and takes no writes"),
        "NOPERM" => fail("the Redis user may not run the scripts"),
        "MOVED" | "ASK" => fail("the key is on another node: Redis Cluster needs redis_proxy"),
        // Envoy's redis_proxy, which has no code for it.
        "upstream" => Reaction::Fail(StoreError::Unanswered("redis_proxy has lost the key's node")),
        // A failover: the name may lead to the new primary.
        "READONLY" => reopen("Redis is a replica"),
        "MASTERDOWN" => reopen("Redis is a replica without its primary"),
        "NOAUTH" => reopen("Redis wants a password"),
        "WRONGPASS" => reopen("Redis does not take the user and password"),
        _ => fail("Redis gave an error that this filter does not know"),
    }
}

/// What the scripts say of a record, in the codec's words.
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
        let digest = scripts.parts("idem:07", &claim(), Form::Digest);
        let text = scripts.parts("idem:07", &claim(), Form::Text);
        assert_eq!((digest[0].as_slice(), digest[1].len()), (&b"EVALSHA"[..], 40));
        assert_eq!((text[0].as_slice(), &text[2..]), (&b"EVAL"[..], &digest[2..]));
        assert_eq!(&digest[2..5], [b"1".to_vec(), b"idem:07".to_vec(), b"10000".to_vec()]);
        assert_eq!(digest[5].len(), codec::HEAD_LEN);
        assert_eq!(
            Sha1::digest(&text[1]).iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
            String::from_utf8_lossy(&digest[1])
        );
    }

    #[test]
    fn a_reply_is_taken_only_for_what_the_command_can_get() {
        assert_eq!(read(&claim(), bulk(b"C\0\0\0\x02"), NOW), Ok(Reply::Claimed { attempt: 2 }));
        assert_eq!(read(&extend(), bulk(b"D"), NOW), Ok(Reply::Done));
        assert_eq!(read(&extend(), bulk(b"N"), NOW), Ok(Reply::NotOwner));
        let foreign = Err(Reaction::Reopen(StoreError::Unanswered(FOREIGN)));
        for (command, frame) in [
            (claim(), bulk(b"D")),
            (claim(), bulk(b"C\0\0")),
            (claim(), bulk(b"")),
            (claim(), Frame::Null),
            (claim(), Frame::Integer(1)),
            (extend(), bulk(b"C\0\0\0\x01")),
            (extend(), Frame::SimpleString(b"OK".to_vec())),
        ] {
            assert_eq!(read(&command, frame.clone(), NOW), foreign, "{frame:?}");
        }
    }

    #[test]
    fn a_deadline_is_told_by_our_clock() {
        let record = Record {
            token: Token([1; 16]),
            fingerprint: Fingerprint([2; 32]),
            attempt: 1,
            first_seen: Timestamp::from_millis(900_000),
            state: State::Unknown { until: Timestamp::from_millis(1_003_000) },
        };
        let mut reply = b"E".to_vec();
        reply.extend_from_slice(&1_000_000_u64.to_be_bytes());
        reply.extend_from_slice(&codec::encode(&record));
        let Ok(Reply::Exists(found)) = read(&claim(), bulk(&reply), NOW) else {
            panic!("no record")
        };
        assert_eq!(found.state, State::Unknown { until: Timestamp::from_millis(53_000) });
        assert_eq!(found.first_seen, record.first_seen);
        reply.truncate(50);
        let cut = read(&claim(), bulk(&reply), NOW);
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
                Reaction::Fail(StoreError::Unavailable(
                    "Redis gave an error that this filter does not know",
                )),
            ),
        ] {
            assert_eq!(reaction(error), wanted, "{error}");
        }
    }
}
