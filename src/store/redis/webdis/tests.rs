use super::*;
use crate::key::{Fingerprint, Key};
use crate::record::{Answer, Kept, Token};
use crate::store::Reply;
use crate::time::WallTime;
use std::time::Duration;

const NOW: Timestamp = Timestamp::from_millis(1_000_000);

fn webdis() -> Webdis {
    let timeout = Duration::from_millis(250);
    Webdis::new(Settings { prefix: "a/b c:\u{e4}.".to_owned(), timeout, login: None })
}

fn claim(number: u8) -> Command {
    Command::Claim {
        key: Key([number; 32]),
        token: Token([number; 16]),
        fingerprint: Fingerprint([7; 32]),
        first_seen: WallTime::default(),
        lease: Duration::from_secs(10),
        unknown_for: Duration::from_secs(60),
        watch: false,
    }
}

fn extend() -> Command {
    let token = Token(*b"/.%+ ?#&\r\n\0\xff_-az");
    Command::Extend { key: Key([0xab; 32]), token, lease: Duration::from_secs(3) }
}

fn asked(webdis: &mut Webdis, id: u64, command: Command) -> Call {
    call(webdis.ask(CommandId(id), command, NOW))
}

fn call(events: Vec<Event>) -> Call {
    let [Event::Call(_, call)] = <[Event; 1]>::try_from(events).unwrap() else { panic!("no call") };
    call
}

/// Redis's reply to a claim of this number.
fn claimed(number: u8, attempt: u8) -> Vec<u8> {
    let time = 5_000_000_u64.to_be_bytes();
    [b"$17\r\n", &[number; 4][..], b"C", &time, &[0, 0, 0, attempt], b"\r\n"].concat()
}

/// The result of a claim with this answer.
fn outcome(status: u16, body: &[u8]) -> Result<Reply, StoreError> {
    let mut webdis = webdis();
    asked(&mut webdis, 1, claim(1));
    let events = webdis.called(CommandId(1), status, body, NOW);
    let [Event::Replied(CommandId(1), command, reply)] = <[Event; 1]>::try_from(events).unwrap()
    else {
        panic!("no reply")
    };
    assert_eq!(command, claim(1));
    reply
}

#[test]
fn all_parts_but_the_last_are_in_the_path_and_the_last_is_the_body() {
    let mut webdis = webdis();
    let digest = webdis.scripts.parts("", &extend(), Form::Digest, None)[1].clone();
    let digest = String::from_utf8(digest).unwrap();
    let call = asked(&mut webdis, 1, extend());
    let key = "AB".repeat(32).to_lowercase();
    let wanted = format!(
        "/EVALSHA/{digest}/1/a%2Fb%20c%3A%C3%A4%2E{key}\
         /%2F%2E%25%2B%20%3F%23%26%0D%0A%00%FF%5F%2Daz.raw"
    );
    assert_eq!(call.path, wanted);
    assert_eq!((call.method, &call.body[..]), ("PUT", &b"3000"[..]));
    assert_eq!(call.timeout, Duration::from_millis(250));
}

#[test]
fn a_record_is_the_body_byte_for_byte() {
    let mut webdis = webdis();
    let body: Vec<u8> = (0..=255).collect();
    let answer = Answer { headers: vec![(b"a".to_vec(), b"b".to_vec())], body: body.clone() };
    let complete = Command::Complete {
        key: Key([1; 32]),
        token: Token([2; 16]),
        status: 201,
        kept: Kept::Answer(answer),
        ttl: Duration::from_secs(60),
    };
    assert!(asked(&mut webdis, 1, complete).body.ends_with(&body));
    assert_eq!(asked(&mut webdis, 2, claim(1)).body, b"0", "nothing is known of Redis's clock");
}

#[test]
fn redis_s_own_reply_is_the_reply() {
    assert_eq!(outcome(200, &claimed(1, 2)), Ok(Reply::Claimed { attempt: 2 }));
    let full = StoreError::Unavailable("Redis is out of memory");
    assert_eq!(outcome(200, b"-OOM command not allowed\r\n"), Err(full));
    // There is no connection to give up, so this fails like any other.
    let replica = StoreError::Unavailable("Redis is a replica");
    assert_eq!(outcome(200, b"-READONLY x\r\n"), Err(replica));
    let foreign = StoreError::Unanswered("Redis sent the reply to another command");
    assert_eq!(outcome(200, b"$5\r\n\x01\x01\x01\x01D\r\n"), Err(foreign));
}

#[test]
fn an_answer_that_is_not_a_reply_of_redis_leaves_it_open_whether_it_was_done() {
    for (status, body, why) in [
        (200, &b""[..], "Webdis sent an incomplete reply"),
        (200, b"$17\r\n\x01\x01\x01\x01C\0", "Webdis sent an incomplete reply"),
        (200, b"{\"EVALSHA\":true}", "Webdis sent bytes that are not RESP2"),
        (0, b"", "Webdis closed the connection"),
        (504, b"upstream request timeout", "Redis did not answer in time"),
        (403, b"", "Webdis answered with an unexpected status"),
        (500, b"", "Webdis answered with an unexpected status"),
    ] {
        assert_eq!(outcome(status, body), Err(StoreError::Unanswered(why)), "{status}");
    }
}

#[test]
fn without_a_connection_nothing_was_asked() {
    for body in [&b""[..], b"no healthy upstream"] {
        let unreachable = StoreError::Unavailable("Webdis or its Redis cannot be reached");
        assert_eq!(outcome(503, body), Err(unreachable));
    }
}

#[test]
fn a_script_that_redis_does_not_know_is_called_by_its_text_within_the_same_time() {
    let mut webdis = webdis();
    let digest = asked(&mut webdis, 1, claim(1));
    let later = NOW.after(Duration::from_millis(100));
    let text = call(webdis.called(CommandId(1), 200, b"-NOSCRIPT x\r\n", later));
    assert!(text.path.starts_with("/EVAL/local%20"), "{}", text.path);
    assert_eq!((text.method, &text.body), ("PUT", &digest.body));
    assert_eq!(text.timeout, Duration::from_millis(150));
    let events = webdis.called(CommandId(1), 200, &claimed(1, 1), later);
    let claimed = Event::Replied(CommandId(1), claim(1), Ok(Reply::Claimed { attempt: 1 }));
    assert_eq!(events, [claimed]);
}

#[test]
fn a_script_is_not_called_by_its_text_when_the_time_is_over() {
    let mut webdis = webdis();
    asked(&mut webdis, 1, claim(1));
    let late = NOW.after(Duration::from_millis(250));
    let events = webdis.called(CommandId(1), 200, b"-NOSCRIPT x\r\n", late);
    let [Event::Replied(CommandId(1), _, Err(StoreError::Unavailable(_)))] = &events[..] else {
        panic!("{events:?}")
    };
}

#[test]
fn an_answer_that_no_command_waits_for_is_ignored() {
    let mut webdis = webdis();
    assert_eq!(webdis.called(CommandId(1), 200, b"$1\r\nD\r\n", NOW), []);
    asked(&mut webdis, 1, claim(1));
    assert_eq!(webdis.called(CommandId(1), 0, b"", NOW).len(), 1);
    assert_eq!(webdis.called(CommandId(1), 200, &claimed(1, 1), NOW), []);
}

#[test]
fn answers_may_come_in_any_order() {
    let mut webdis = webdis();
    asked(&mut webdis, 1, claim(1));
    asked(&mut webdis, 2, claim(2));
    for (id, number) in [(2, 2), (1, 1)] {
        let body = claimed(number, number);
        let events = webdis.called(CommandId(id), 200, &body, NOW);
        let claimed = Reply::Claimed { attempt: number.into() };
        assert_eq!(events, [Event::Replied(CommandId(id), claim(number), Ok(claimed))]);
    }
}

#[test]
fn no_more_than_1024_commands_are_under_way() {
    let mut webdis = webdis();
    (0..1024).for_each(|id| drop(asked(&mut webdis, id, claim(1))));
    let full = Err(StoreError::Unavailable("too many commands are under way"));
    let refused = Event::Replied(CommandId(1024), claim(1), full);
    assert_eq!(webdis.ask(CommandId(1024), claim(1), NOW), [refused]);
    webdis.called(CommandId(0), 0, b"", NOW);
    asked(&mut webdis, 1025, claim(1));
}
