use super::*;
use crate::key::{Fingerprint, Key, Secret};
use crate::record::{Answer, Token};
use crate::store::Reply;
use crate::store::redis::Login;
use crate::time::WallTime;
use proptest::prelude::*;
use redis_protocol::resp2::decode::decode;
use std::collections::HashMap;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_millis(250);

/// Milliseconds of [`TIMEOUT`].
const LATE: u64 = 250;

const NOEVICTION: &[u8] = b"*2\r\n$16\r\nmaxmemory-policy\r\n$10\r\nnoeviction\r\n";

const BROKEN: &str = "Redis sent bytes that are not RESP2";

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(1_000_000 + millis)
}

/// A key of which both ends know the number.
fn key(number: u64) -> Key {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&number.to_be_bytes());
    Key(key)
}

fn token(number: u64) -> Token {
    let mut token = [0xee; 16];
    token[..8].copy_from_slice(&number.to_le_bytes());
    Token(token)
}

fn claim(number: u64) -> Command {
    Command::Claim {
        key: key(number),
        token: token(number),
        fingerprint: Fingerprint([7; 32]),
        first_seen: WallTime::default(),
        lease: Duration::from_secs(10),
        unknown_for: Duration::from_secs(60),
        watch: false,
    }
}

fn complete(number: u64, bytes: usize) -> Command {
    Command::Complete {
        key: key(number),
        token: token(number),
        status: 200,
        kept: Kept::Answer(Answer { headers: Vec::new(), body: vec![b'a'; bytes] }),
        ttl: Duration::from_secs(60),
    }
}

/// Redis's time at this time of the test.
fn there(millis: u64) -> u64 {
    5_000_000 + millis
}

/// Redis's reply to a claim at 0; the attempt distinguishes them.
fn claimed(number: u64) -> Vec<u8> {
    let attempt = u32::try_from(number).unwrap().to_be_bytes();
    let tag = &token(number).0[..4];
    [b"$17\r\n", tag, b"C", &there(0).to_be_bytes(), &attempt[..], b"\r\n"].concat()
}

/// Redis's reply to a command that ends a claim.
fn done(number: u64) -> Vec<u8> {
    [b"$5\r\n", &token(number).0[..4], b"D\r\n"].concat()
}

fn unanswered<T>(why: &'static str) -> Result<T, StoreError> {
    Err(StoreError::Unanswered(why))
}

fn unavailable<T>(why: &'static str) -> Result<T, StoreError> {
    Err(StoreError::Unavailable(why))
}

const IN_TIME: &str = "Redis did not answer in time";
const UNREACHED: &str = "Redis cannot be reached";

/// The host's state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    None,
    Opening,
    Open,
}

/// A pipe and the Redis at its other end, whose replies the test chooses.
struct World {
    pipe: Pipe,
    connection: Phase,
    opens: usize,
    /// Bytes that were written on this connection and are not a whole command yet.
    bytes: Vec<u8>,
    /// Commands on this connection that the test has not checked yet.
    asked: VecDeque<Vec<Vec<u8>>>,
    replies: Vec<(u64, Result<Reply, StoreError>)>,
    warnings: Vec<String>,
    once: Vec<String>,
}

impl World {
    fn new() -> Self {
        Self::with_login(None)
    }

    fn with_login(login: Option<Login>) -> Self {
        let settings = Settings { prefix: "idem:".to_owned(), timeout: TIMEOUT, login };
        Self {
            pipe: Pipe::new(settings, 7),
            connection: Phase::None,
            opens: 0,
            bytes: Vec::new(),
            asked: VecDeque::new(),
            replies: Vec::new(),
            warnings: Vec::new(),
            once: Vec::new(),
        }
    }

    /// One whose connection is open, and whose greetings are over.
    fn greeted() -> Self {
        let mut world = Self::new();
        world.ask(0, 0);
        world.opened(0);
        world.reply(NOEVICTION, 0);
        world.reply(&claimed(0), 0);
        assert_eq!(world.said(), ["CONFIG GET maxmemory-policy", "EVALSHA 0"]);
        assert_eq!(world.outcomes(), [(0, Ok(Reply::Claimed { attempt: 0 }))]);
        world
    }

    /// Carries out the host's work, in order.
    fn perform(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Open(Connection::Commands) => {
                    assert_eq!(self.connection, Phase::None, "opened twice");
                    self.connection = Phase::Opening;
                    self.opens += 1;
                }
                Event::Write(Connection::Commands, bytes) => {
                    assert_eq!(self.connection, Phase::Open, "written to no connection");
                    self.bytes.extend(bytes);
                    while let Some((frame, length)) = decode(&self.bytes).unwrap() {
                        self.bytes.drain(..length);
                        self.asked.push_back(parts(frame));
                    }
                    assert!(self.bytes.is_empty(), "half a command was written");
                }
                Event::Close(Connection::Commands) => {
                    assert_eq!(self.connection, Phase::Open, "closed what is not open");
                    self.lost();
                }
                Event::Replied(id, command, reply) => {
                    assert_eq!(command.key(), key(id.0), "another's command");
                    self.replies.push((id.0, reply));
                }
                Event::Warn(text) => self.warnings.push(text),
                Event::WarnOnce(text) => self.once.push(text),
                event @ (Event::Open(Connection::Channels)
                | Event::Write(Connection::Channels, _)
                | Event::Close(Connection::Channels)
                | Event::Call(..)
                | Event::Ended(_)) => panic!("no business of the pipe: {event:?}"),
            }
        }
    }

    fn lost(&mut self) {
        self.connection = Phase::None;
        self.bytes.clear();
        self.asked.clear();
    }

    fn ask(&mut self, number: u64, millis: u64) {
        self.ask_for(number, claim(number), millis);
    }

    fn ask_for(&mut self, number: u64, command: Command, millis: u64) {
        let events = self.pipe.ask(CommandId(number), command, at(millis));
        self.perform(events);
    }

    fn opened(&mut self, millis: u64) {
        assert_eq!(self.connection, Phase::Opening, "no connection was requested");
        self.connection = Phase::Open;
        let events = self.pipe.opened(at(millis));
        self.perform(events);
    }

    fn reply(&mut self, bytes: &[u8], millis: u64) {
        let events = self.pipe.received(bytes, at(millis));
        self.perform(events);
    }

    /// The connection is closed, or could not be opened.
    fn closed(&mut self, millis: u64) {
        assert_ne!(self.connection, Phase::None, "there is none");
        self.lost();
        let events = self.pipe.closed(at(millis));
        self.perform(events);
    }

    fn tick(&mut self, millis: u64) {
        let events = self.pipe.tick(at(millis));
        self.perform(events);
    }

    /// Lets time go by, with a tick at each alarm, until a new connection is wanted; says when.
    fn until_opening(&mut self) -> u64 {
        for _ in 0..4 {
            let alarm = self.alarm().expect("it waits for nothing");
            self.tick(alarm);
            if self.connection == Phase::Opening {
                return alarm;
            }
        }
        panic!("it does not come back");
    }

    fn alarm(&self) -> Option<u64> {
        self.pipe.alarm().map(|alarm| alarm.as_millis() - at(0).as_millis())
    }

    /// The commands to Redis, in short.
    fn said(&mut self) -> Vec<String> {
        self.asked.drain(..).map(|command| short(&command)).collect()
    }

    fn outcomes(&mut self) -> Vec<(u64, Result<Reply, StoreError>)> {
        std::mem::take(&mut self.replies)
    }
}

fn parts(frame: Frame) -> Vec<Vec<u8>> {
    let Frame::Array(parts) = frame else { panic!("no command: {frame:?}") };
    let part = |part| match part {
        Frame::BulkString(part) => part,
        Frame::Array(_)
        | Frame::SimpleString(_)
        | Frame::Error(_)
        | Frame::Integer(_)
        | Frame::Null => panic!("no part of a command: {part:?}"),
    };
    parts.into_iter().map(part).collect()
}

/// The number of the key that a call of a script is about.
fn number(command: &[Vec<u8>]) -> u64 {
    let digits = command[3].strip_prefix(b"idem:").unwrap();
    u64::from_str_radix(std::str::from_utf8(&digits[..16]).unwrap(), 16).unwrap()
}

/// A call of a script as its form and the number of its key, anything else as it is.
fn short(command: &[Vec<u8>]) -> String {
    let words: Vec<_> = command.iter().map(|part| String::from_utf8_lossy(part)).collect();
    if words[0].starts_with("EVAL") {
        format!("{} {}", words[0], number(command))
    } else {
        words.join(" ")
    }
}

#[test]
fn nothing_is_opened_before_the_first_command_and_only_one_connection_for_many() {
    let mut world = World::new();
    assert_eq!((world.alarm(), world.opens), (None, 0));
    world.tick(0);
    assert_eq!(world.opens, 0);
    world.ask(1, 0);
    world.ask(2, 5);
    world.tick(10);
    assert_eq!((world.connection, world.opens), (Phase::Opening, 1));
    world.opened(10);
    world.ask(3, 10);
    world.tick(20);
    assert_eq!(world.opens, 1);
}

#[test]
fn commands_wait_until_the_connection_is_open_and_later_ones_are_written_at_once() {
    let mut world = World::new();
    world.ask(1, 0);
    world.ask(2, 5);
    assert!(world.asked.is_empty());
    world.opened(10);
    assert_eq!(world.said(), ["CONFIG GET maxmemory-policy", "EVALSHA 1", "EVALSHA 2"]);
    world.ask(3, 10);
    assert_eq!(world.said(), ["EVALSHA 3"]);
    world.reply(NOEVICTION, 11);
    world.reply(&[claimed(1), claimed(2), claimed(3)].concat(), 11);
    let claimed = |attempt| Ok(Reply::Claimed { attempt });
    assert_eq!(world.outcomes(), [(1, claimed(1)), (2, claimed(2)), (3, claimed(3))]);
    assert_eq!(world.alarm(), None);
}

#[test]
fn the_login_is_said_before_anything_else_on_every_connection() {
    for (username, wanted) in [(None, "AUTH secret"), (Some("idem"), "AUTH idem secret")] {
        let username = username.map(str::to_owned);
        let login = Login { username, password: Secret(b"secret".to_vec()) };
        let mut world = World::with_login(Some(login));
        world.ask(1, 0);
        world.opened(0);
        assert_eq!(world.said(), [wanted, "CONFIG GET maxmemory-policy", "EVALSHA 1"]);
        world.reply(b"+OK\r\n", 1);
        world.reply(NOEVICTION, 1);
        world.reply(&claimed(1), 1);
        assert_eq!(world.outcomes(), [(1, Ok(Reply::Claimed { attempt: 1 }))]);
        world.closed(2);
        world.ask(2, 2);
        world.opened(2);
        assert_eq!(world.said(), [wanted, "EVALSHA 2"]);
    }
}

#[test]
fn a_policy_that_drops_records_is_warned_about_and_asked_for_once() {
    let lru = b"*2\r\n$16\r\nmaxmemory-policy\r\n$11\r\nallkeys-lru\r\n";
    for (reply, warnings) in [
        (NOEVICTION, 0),
        (lru, 1),
        (b"-NOPERM this user has no permissions to run the 'config|get' command\r\n", 0),
        (b"*0\r\n", 0),
    ] {
        let mut world = World::new();
        world.ask(1, 0);
        world.opened(0);
        world.reply(reply, 0);
        assert_eq!((world.once.len(), world.warnings.len()), (warnings, 0));
        assert!(world.once.iter().all(|said| said.contains("allkeys-lru")), "{:?}", world.once);
        world.reply(&claimed(1), 0);
        assert_eq!(world.outcomes(), [(1, Ok(Reply::Claimed { attempt: 1 }))]);
        world.closed(1);
        world.ask(2, 1);
        world.opened(1);
        assert_eq!(world.said(), ["EVALSHA 2"]);
    }
}

#[test]
fn replies_may_be_split_at_every_byte() {
    let stream =
        [NOEVICTION, &claimed(1), b"-OOM no\r\n", &claimed(3), b"-NOSCRIPT x\r\n"].concat();
    for split in 0..=stream.len() {
        let mut world = World::new();
        (1..=4).for_each(|number| world.ask(number, 0));
        world.opened(0);
        world.said();
        world.reply(&stream[..split], 1);
        world.reply(&stream[split..], 2);
        let wanted = [
            (1, Ok(Reply::Claimed { attempt: 1 })),
            (2, unavailable("Redis is out of memory")),
            (3, Ok(Reply::Claimed { attempt: 3 })),
        ];
        assert_eq!(world.outcomes(), wanted, "split at {split}");
        assert_eq!(world.said(), ["EVAL 4"], "split at {split}");
    }
}

#[test]
fn a_script_that_redis_does_not_know_is_sent_as_text_behind_the_commands_in_flight() {
    let mut world = World::greeted();
    (1..=3).for_each(|number| world.ask(number, 0));
    assert_eq!(world.said(), ["EVALSHA 1", "EVALSHA 2", "EVALSHA 3"]);
    world.reply(b"-NOSCRIPT No matching script. Please use EVAL.\r\n", 1);
    let text = world.asked[0].clone();
    let digest = world.pipe.scripts.parts(
        "idem:",
        &claim(1),
        Form::Digest,
        world.pipe.clock.there(at(LATE)),
    );
    assert_eq!(&text[4..], &digest[4..], "the same arguments, the token among them");
    assert_eq!(world.said(), ["EVAL 1"]);
    assert_eq!(world.outcomes(), []);
    world.reply(&[claimed(2), claimed(3), claimed(1)].concat(), 2);
    let claimed = |attempt| Ok(Reply::Claimed { attempt });
    assert_eq!(world.outcomes(), [(2, claimed(2)), (3, claimed(3)), (1, claimed(1))]);
}

#[test]
fn a_command_sent_again_as_text_is_late_by_its_own_time() {
    let mut world = World::greeted();
    world.ask(1, 0);
    world.ask(2, 100);
    world.reply(b"-NOSCRIPT x\r\n", 110);
    // It stands behind the second, whose time is over later.
    assert_eq!(world.alarm(), Some(LATE));
    world.tick(LATE);
    assert_eq!(world.outcomes(), [(1, unanswered(IN_TIME))]);
}

#[test]
fn a_late_command_fails_and_its_reply_is_dropped_when_it_comes() {
    let mut world = World::greeted();
    world.ask(1, 0);
    world.ask(2, 200);
    let late = claimed(1);
    // It talks, so a new connection would not be faster.
    world.reply(&late[..3], 210);
    assert_eq!(world.alarm(), Some(LATE));
    world.tick(LATE - 1);
    assert_eq!(world.outcomes(), []);
    world.tick(LATE);
    assert_eq!(world.outcomes(), [(1, unanswered(IN_TIME))]);
    assert_eq!(world.connection, Phase::Open);
    world.reply(&late[3..], 300);
    assert_eq!(world.outcomes(), []);
    world.reply(&claimed(2), 301);
    assert_eq!(world.outcomes(), [(2, Ok(Reply::Claimed { attempt: 2 }))]);
}

#[test]
fn a_silent_pipe_is_given_up_and_commands_in_time_are_sent_again_with_their_token() {
    let mut world = World::greeted();
    world.ask(1, 0);
    world.ask(2, 200);
    world.tick(LATE);
    assert_eq!(world.outcomes(), [(1, unanswered(IN_TIME))]);
    assert_eq!(world.connection, Phase::None);
    // Bytes that still come on the old connection are ignored.
    world.reply(&claimed(1), LATE);
    assert!(world.until_opening() < 200 + LATE);
    world.opened(310);
    assert!(world.asked[0][4].windows(16).any(|part| part == token(2).0));
    assert_eq!(world.said(), ["EVALSHA 2"]);
    world.reply(&claimed(2), 320);
    assert_eq!(world.outcomes(), [(2, Ok(Reply::Claimed { attempt: 2 }))]);
    assert_eq!(world.opens, 2);
}

#[test]
fn a_silent_pipe_is_given_up_even_if_no_command_waits_any_more() {
    let mut world = World::greeted();
    world.ask(1, 0);
    world.reply(&claimed(1)[..3], 200);
    world.tick(LATE);
    assert_eq!(world.outcomes(), [(1, unanswered(IN_TIME))]);
    // The next command would be late on it without need.
    assert_eq!((world.connection, world.alarm()), (Phase::Open, Some(200 + LATE)));
    world.tick(200 + LATE);
    assert_eq!((world.connection, world.alarm()), (Phase::None, None));
}

#[test]
fn a_pipe_that_was_idle_for_long_is_not_taken_for_a_silent_one() {
    let mut world = World::greeted();
    world.ask(1, 10_000);
    assert_eq!(world.alarm(), Some(10_000 + LATE));
    world.tick(10_000 + LATE - 1);
    assert_eq!((world.connection, world.opens), (Phase::Open, 1));
}

#[test]
fn half_a_reply_of_a_lost_connection_is_not_read_into_the_next() {
    let mut world = World::greeted();
    world.ask(1, 0);
    world.reply(&claimed(1)[..7], 1);
    world.closed(2);
    let opening = world.until_opening();
    world.opened(opening);
    assert_eq!(world.said(), ["EVALSHA 1"]);
    world.reply(&claimed(1), opening);
    assert_eq!(world.outcomes(), [(1, Ok(Reply::Claimed { attempt: 1 }))]);
}

#[test]
fn bytes_that_are_not_resp_close_the_pipe_and_the_commands_go_to_the_next() {
    let mut world = World::greeted();
    world.ask(1, 0);
    world.ask(2, 0);
    world.reply(&[&claimed(1)[..], b"HTTP/1.1 400 Bad Request\r\n"].concat(), 1);
    assert_eq!(world.outcomes(), [(1, Ok(Reply::Claimed { attempt: 1 }))]);
    assert_eq!(world.warnings, [BROKEN]);
    assert_eq!(world.connection, Phase::None);
    let opening = world.until_opening();
    world.opened(opening);
    assert_eq!(world.said(), ["EVALSHA 2"]);
}

#[test]
fn a_reply_that_no_command_waits_for_closes_the_pipe() {
    let mut world = World::greeted();
    world.reply(&claimed(1), 1);
    assert_eq!(world.warnings, ["Redis sent a reply that no command waits for"]);
    assert_eq!(world.connection, Phase::None);
    world.ask(2, 2);
    assert_eq!(world.connection, Phase::Opening);
}

#[test]
fn a_reply_of_another_kind_fails_its_command_and_closes_the_pipe() {
    let mut world = World::greeted();
    world.ask(1, 0);
    world.ask(2, 0);
    world.reply(&done(1), 1);
    assert_eq!(world.outcomes(), [(1, unanswered("Redis sent the reply to another command"))]);
    assert_eq!(world.connection, Phase::None);
    let opening = world.until_opening();
    world.opened(opening);
    assert_eq!(world.said(), ["EVALSHA 2"]);
}

#[test]
fn after_two_failed_connections_commands_fail_at_once_until_the_pause_is_over() {
    let mut world = World::new();
    world.ask(1, 0);
    world.closed(1);
    assert_eq!(world.outcomes(), [], "a restart takes no longer than a second try");
    let second = world.until_opening();
    world.ask(2, second);
    world.closed(second);
    assert_eq!(world.outcomes(), [(1, unavailable(UNREACHED)), (2, unavailable(UNREACHED))]);
    assert_eq!(world.alarm(), None);
    world.ask(3, second + 1);
    assert_eq!(world.outcomes(), [(3, unavailable(UNREACHED))]);
    let over = world.pipe.reconnect.retry_at().unwrap().as_millis() - at(0).as_millis();
    world.ask(4, over - 1);
    assert_eq!(world.outcomes(), [(4, unavailable(UNREACHED))]);
    assert_eq!(world.opens, 2);
    world.ask(5, over);
    assert_eq!((world.opens, world.outcomes()), (3, Vec::new()));
    world.opened(over);
    world.reply(NOEVICTION, over);
    world.reply(&claimed(5), over);
    assert_eq!(world.outcomes(), [(5, Ok(Reply::Claimed { attempt: 5 }))]);
    // It is usable again, so the next failure is a first one.
    world.ask(6, over);
    world.closed(over);
    assert_eq!(world.outcomes(), []);
}

#[test]
fn a_connection_that_ends_while_no_command_needs_it_is_no_failure() {
    let mut world = World::greeted();
    for number in 1..5 {
        world.closed(number);
        assert_eq!((world.connection, world.alarm()), (Phase::None, None));
        world.ask(number, number);
        world.opened(number);
        world.reply(&claimed(number), number);
        assert_eq!(world.outcomes().len(), 1);
    }
    assert_eq!(world.opens, 5);
}

#[test]
fn no_more_than_1024_commands_are_under_way() {
    let mut world = World::new();
    (0..1024).for_each(|number| world.ask(number, 0));
    assert_eq!(world.outcomes(), []);
    let full = "too many commands are under way";
    world.ask(1024, 0);
    assert_eq!(world.outcomes(), [(1024, unavailable(full))]);
    world.opened(0);
    world.reply(NOEVICTION, 0);
    world.reply(&claimed(0), 0);
    world.ask(1025, 0);
    world.ask(1026, 0);
    let first = (0, Ok(Reply::Claimed { attempt: 0 }));
    assert_eq!(world.outcomes(), [first, (1026, unavailable(full))]);
}

#[test]
fn no_more_than_64_mebibytes_are_under_way() {
    let mut world = World::new();
    world.ask_for(1, complete(1, 32 << 20), 0);
    world.ask_for(2, complete(2, 32 << 20), 1);
    world.ask_for(3, complete(3, 1), 2);
    assert_eq!(world.outcomes(), [(3, unavailable("too many commands are under way"))]);
    // A connection that takes no bytes costs nothing.
    world.ask(4, 2);
    world.tick(LATE);
    assert_eq!(world.outcomes(), [(1, unavailable(IN_TIME))]);
    world.ask_for(5, complete(5, 1), LATE);
    assert_eq!(world.outcomes(), []);
}

#[test]
fn a_refused_login_is_logged_once_until_it_succeeds_again() {
    let login = Login { username: None, password: Secret(b"secret".to_vec()) };
    let mut world = World::with_login(Some(login));
    let refused = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n";
    let mut now = 0;
    for _ in 0..2 {
        world.ask(1, now);
        for _ in 0..2 {
            if world.connection == Phase::None {
                now = world.until_opening();
            }
            world.opened(now);
            // The errors for the others come too, and are not taken for replies.
            world.reply(&[&refused[..], b"-NOAUTH x\r\n-NOAUTH x\r\n"].concat(), now);
            assert_eq!(world.connection, Phase::None);
        }
        // Twice in a row: it counts as unreachable.
        assert_eq!(world.outcomes(), [(1, unanswered(UNREACHED))]);
        assert_eq!(world.warnings.len(), 1, "{:?}", world.warnings);
        assert!(!world.warnings.concat().contains("secret"));
        // The password is right for once.
        now += 2_000;
        world.ask(2, now);
        world.opened(now);
        world.reply(b"+OK\r\n", now);
        if world.said().contains(&"CONFIG GET maxmemory-policy".to_owned()) {
            world.reply(NOEVICTION, now);
        }
        world.reply(&claimed(2), now);
        assert_eq!(world.outcomes(), [(2, Ok(Reply::Claimed { attempt: 2 }))]);
        world.closed(now);
        world.warnings.clear();
    }
}

#[test]
fn a_replica_fails_its_command_and_the_others_look_for_the_primary() {
    let mut world = World::greeted();
    world.ask(1, 0);
    world.ask(2, 0);
    world.reply(b"-READONLY You can't write against a read only replica.\r\n", 1);
    assert_eq!(world.outcomes(), [(1, unavailable("Redis is a replica"))]);
    assert_eq!(world.connection, Phase::None);
    let opening = world.until_opening();
    world.opened(opening);
    assert_eq!(world.said(), ["EVALSHA 2"]);
}

#[test]
fn an_error_that_is_the_commands_own_leaves_the_pipe_open() {
    let mut world = World::greeted();
    world.ask(1, 0);
    world.ask(2, 0);
    world.reply(b"-OOM command not allowed\r\n", 1);
    world.reply(&claimed(2), 1);
    let claimed = Ok(Reply::Claimed { attempt: 2 });
    assert_eq!(world.outcomes(), [(1, unavailable("Redis is out of memory")), (2, claimed)]);
    assert_eq!(world.connection, Phase::Open);
}

#[test]
fn only_a_command_that_was_never_sent_is_known_not_to_be_done() {
    let mut world = World::new();
    world.ask(1, 0);
    world.tick(LATE);
    assert_eq!(world.outcomes(), [(1, unavailable(IN_TIME))]);
    // Sent, on a connection that is closed.
    world.ask(2, LATE);
    world.opened(LATE);
    world.closed(LATE + 1);
    let opening = world.until_opening();
    world.ask(3, opening);
    world.tick(2 * LATE);
    world.tick(opening + LATE);
    assert_eq!(world.outcomes(), [(2, unanswered(IN_TIME)), (3, unavailable(IN_TIME))]);
    // A command that was late before it could be sent is not sent at all.
    world.opened(opening + LATE);
    assert_eq!(world.said(), ["CONFIG GET maxmemory-policy"]);
}

/// An event of a pipe.
#[derive(Clone, Copy, Debug)]
enum Happening {
    Ask,
    AskMuch,
    /// The connection, or the attempt at one, ends in this state.
    Opened,
    Closed,
    /// The oldest command gets a correct reply.
    Reply,
    /// Half of one: the rest comes with the next reply.
    HalfReply,
    NoScript,
    Replica,
    OutOfMemory,
    Garbage,
    Unasked,
    Wait(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => Just(Happening::Ask),
        1 => Just(Happening::AskMuch),
        4 => Just(Happening::Opened),
        1 => Just(Happening::Closed),
        6 => Just(Happening::Reply),
        2 => Just(Happening::HalfReply),
        2 => Just(Happening::NoScript),
        1 => Just(Happening::Replica),
        1 => Just(Happening::OutOfMemory),
        1 => Just(Happening::Garbage),
        1 => Just(Happening::Unasked),
        6 => (0..2 * LATE).prop_map(Happening::Wait),
    ]
}

/// A world in which time passes, and the result of each of its commands.
struct Run {
    world: World,
    now: u64,
    deadlines: HashMap<u64, u64>,
    asked: u64,
    /// The rest of a reply that was cut in two.
    rest: Vec<u8>,
}

impl Run {
    /// Redis's reply to the oldest command.
    fn next_reply(&mut self) -> Option<Vec<u8>> {
        let command = self.world.asked.pop_front()?;
        Some(match short(&command).split(' ').next() {
            Some("CONFIG") => NOEVICTION.to_vec(),
            // The token is an argument of its own only in commands that end a claim.
            _ if command[4].len() == 16 => done(number(&command)),
            _ => claimed(number(&command)),
        })
    }

    fn say(&mut self, bytes: &[u8]) {
        let bytes = [std::mem::take(&mut self.rest), bytes.to_vec()].concat();
        self.world.reply(&bytes, self.now);
    }

    /// An error instead of the reply to the oldest command, if that is a call.
    fn say_error(&mut self, error: &[u8]) {
        if self.world.asked.pop_front().is_some() {
            self.say(error);
        }
    }

    fn happen(&mut self, happening: Happening) {
        let open = self.world.connection == Phase::Open;
        match happening {
            Happening::Ask | Happening::AskMuch => {
                self.asked += 1;
                self.deadlines.insert(self.asked, self.now + LATE);
                let much = matches!(happening, Happening::AskMuch);
                let command = if much { complete(self.asked, 100) } else { claim(self.asked) };
                self.world.ask_for(self.asked, command, self.now);
            }
            Happening::Opened if self.world.connection == Phase::Opening => {
                self.world.opened(self.now);
            }
            Happening::Closed if self.world.connection != Phase::None => {
                self.world.closed(self.now);
            }
            Happening::Reply if open => {
                if let Some(reply) = self.next_reply() {
                    self.say(&reply);
                }
            }
            Happening::HalfReply if open => {
                if let Some(reply) = self.next_reply() {
                    let (first, rest) = reply.split_at(reply.len() / 2);
                    self.say(first);
                    self.rest = rest.to_vec();
                }
            }
            Happening::NoScript if open => self.say_error(b"-NOSCRIPT x\r\n"),
            Happening::Replica if open => self.say_error(b"-READONLY x\r\n"),
            Happening::OutOfMemory if open => self.say_error(b"-OOM x\r\n"),
            Happening::Garbage if open => self.say(b"?!\r\n"),
            Happening::Unasked if open && self.world.asked.is_empty() => self.say(b"+OK\r\n"),
            Happening::Wait(millis) => self.wait(millis),
            Happening::Opened
            | Happening::Closed
            | Happening::Reply
            | Happening::HalfReply
            | Happening::NoScript
            | Happening::Replica
            | Happening::OutOfMemory
            | Happening::Garbage
            | Happening::Unasked => {}
        }
        if self.world.connection != Phase::Open {
            self.rest.clear();
        }
        self.check();
    }

    /// Time goes by, with a tick at each alarm and at no other time.
    fn wait(&mut self, millis: u64) {
        let end = self.now + millis;
        while let Some(alarm) = self.world.alarm().filter(|alarm| *alarm <= end) {
            self.now = self.now.max(alarm);
            self.world.tick(self.now);
            if self.world.connection != Phase::Open {
                self.rest.clear();
            }
            self.check();
            let next = self.world.alarm();
            assert!(next.is_none_or(|next| next > self.now), "a tick that changes nothing");
        }
        self.now = end;
    }

    fn check(&mut self) {
        for (number, reply) in self.world.outcomes() {
            let deadline = self.deadlines.remove(&number).expect("a second reply, or no command");
            assert!(
                self.now <= deadline,
                "{number} got its reply at {}, not at {deadline}",
                self.now
            );
            if let Ok(Reply::Claimed { attempt }) = reply {
                assert_eq!(u64::from(attempt), number, "another's reply");
            }
        }
        let overdue = self.deadlines.values().filter(|deadline| **deadline < self.now).count();
        assert_eq!(overdue, 0, "at {} no reply had come", self.now);
    }
}

proptest! {
    #[test]
    fn every_command_comes_to_one_end_in_its_time_whatever_happens(
        happenings in prop::collection::vec(happening(), 0..80)
    ) {
        let world = World::new();
        let mut run =
            Run { world, now: 0, deadlines: HashMap::new(), asked: 0, rest: Vec::new() };
        for happening in happenings {
            run.happen(happening);
        }
        run.wait(LATE);
        prop_assert_eq!(run.deadlines.len(), 0);
        prop_assert_eq!(run.world.pipe.bytes, 0, "bytes that no command has any more");
    }

    #[test]
    fn no_bytes_of_redis_are_too_strange(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..32), 0..8)
    ) {
        let mut world = World::new();
        world.ask(1, 0);
        world.opened(0);
        for piece in pieces {
            world.reply(&piece, 1);
        }
        world.tick(LATE);
        prop_assert_eq!(world.outcomes().len(), 1);
    }
}

/// The deadline of a claim, by Redis's clock.
fn not_after(command: &[Vec<u8>]) -> u64 {
    String::from_utf8(command[6].clone()).unwrap().parse().unwrap()
}

#[test]
fn a_claim_says_until_when_its_sender_believes_in_it() {
    let mut world = World::new();
    world.ask(1, 0);
    world.opened(0);
    assert_eq!(not_after(&world.asked[1]), 0, "nothing is known of Redis's clock yet");
    world.reply(NOEVICTION, 0);
    world.reply(&claimed(1), 40);
    world.said();
    world.ask(2, 100);
    assert_eq!(not_after(&world.asked[0]), there(100 - 40 + LATE));
    // So it does when it is sent again on the next connection.
    world.closed(101);
    let opening = world.until_opening();
    world.opened(opening);
    assert_eq!(not_after(&world.asked[0]), there(100 - 40 + LATE));
}

/// Redis's reply to a claim that came too late, at this time of its clock.
fn too_late(number: u64, time: u64) -> Vec<u8> {
    [b"$13\r\n", &token(number).0[..4], b"L", &time.to_be_bytes(), b"\r\n"].concat()
}

#[test]
fn a_claim_that_is_late_by_a_clock_that_was_set_is_sent_again_once() {
    let mut world = World::greeted();
    world.ask(1, 0);
    world.said();
    world.reply(&too_late(1, 9_000_000), 10);
    assert_eq!(not_after(&world.asked[0]), 9_000_000 + LATE - 10);
    world.reply(&too_late(1, 9_000_020), 20);
    let late = unavailable("the claim reached Redis too late");
    assert_eq!(world.outcomes(), [(1, late)]);
    assert_eq!(world.connection, Phase::Open);
}

#[test]
fn a_reply_that_names_another_question_closes_the_pipe() {
    let mut world = World::greeted();
    (1..=3).for_each(|number| world.ask(number, 0));
    // One reply is missing: the second's would be taken for the first's.
    world.reply(&[claimed(2), claimed(3)].concat(), 1);
    assert_eq!(world.connection, Phase::None);
    assert_eq!(world.outcomes(), [(1, unanswered("Redis sent the reply to another command"))]);
    let opening = world.until_opening();
    world.opened(opening);
    assert_eq!(world.said(), ["EVALSHA 2", "EVALSHA 3"]);
    // Nor is it taken for one that no command waits for any more.
    let mut world = World::greeted();
    world.ask(1, 0);
    world.ask(2, 100);
    world.reply(&claimed(1)[..3], 240);
    world.tick(LATE);
    assert_eq!(world.outcomes(), [(1, unanswered(IN_TIME))]);
    world.reply(&[&claimed(1)[3..5], &claimed(2)[5..]].concat(), LATE + 1);
    assert_eq!((world.connection, world.outcomes()), (Phase::None, vec![]));
}

#[test]
fn claims_leave_room_for_commands_that_end_claims() {
    let mut world = World::greeted();
    for number in 1..=MOST_CLAIMS as u64 {
        world.ask(number, 0);
    }
    world.ask(2_000, 0);
    assert_eq!(world.outcomes(), [(2_000, unavailable("too many commands are under way"))]);
    world.ask_for(3_000, complete(3_000, 10), 0);
    assert_eq!(world.outcomes(), []);
}
