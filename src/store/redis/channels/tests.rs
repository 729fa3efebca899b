use super::*;
use crate::key::Secret;
use crate::store::redis::Login;
use proptest::prelude::*;

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(1_000_000 + millis)
}

const KEY: Key = Key([0xaa; 32]);
const OTHER: Key = Key([0xbb; 32]);

fn settings(login: Option<Login>) -> Settings {
    Settings { prefix: "idem:".to_owned(), timeout: Duration::from_millis(250), login }
}

fn channels() -> Channels {
    Channels::new(settings(None), 7)
}

/// With a waiter for [`KEY`], and listening.
fn listening() -> Channels {
    let mut channels = channels();
    assert_eq!(channels.watch(KEY, at(0)), [Event::Open(Connection::Channels)]);
    assert_eq!(channels.opened(at(0)), [said(&["SUBSCRIBE", &name(KEY)])]);
    assert_eq!(channels.received(&word("subscribe", KEY), at(0)), [Event::Ended(KEY)]);
    channels
}

fn name(key: Key) -> String {
    settings(None).name(key)
}

fn said(words: &[&str]) -> Event {
    let mut out = Vec::new();
    let words: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
    resp::write(&mut out, &words);
    Event::Write(Connection::Channels, out)
}

/// Bytes of Redis: a confirmation, which ends with a number, or a message, which ends with a text.
fn word(kind: &str, key: Key) -> Vec<u8> {
    let end = if kind == "message" { "$1\r\n1" } else { ":1" };
    let name = name(key);
    format!("*3\r\n${}\r\n{kind}\r\n${}\r\n{name}\r\n{end}\r\n", kind.len(), name.len()).into()
}

#[test]
fn no_connection_is_opened_while_no_request_waits() {
    let mut channels = channels();
    assert_eq!((channels.alarm(), channels.tick(at(0))), (None, Vec::new()));
    // The waiter has left before the connection was open.
    channels.watch(KEY, at(0));
    assert_eq!(channels.unwatch(KEY, at(1)), []);
    channels.closed(at(2));
    assert_eq!((channels.alarm(), channels.tick(at(60_000))), (None, Vec::new()));
    assert_eq!(channels.unwatch(OTHER, at(3)), []);
}

#[test]
fn the_first_waiter_of_a_key_subscribes_and_the_last_unsubscribes() {
    let mut channels = listening();
    assert_eq!(channels.watch(KEY, at(1)), []);
    assert_eq!(channels.watch(OTHER, at(1)), [said(&["SUBSCRIBE", &name(OTHER)])]);
    assert_eq!(channels.unwatch(KEY, at(2)), []);
    assert_eq!(channels.unwatch(KEY, at(2)), [said(&["UNSUBSCRIBE", &name(KEY)])]);
    assert_eq!(channels.unwatch(KEY, at(2)), []);
    assert_eq!(channels.watch(KEY, at(3)), [said(&["SUBSCRIBE", &name(KEY)])]);
}

#[test]
fn a_waiter_that_comes_while_the_connection_opens_is_subscribed_with_the_rest() {
    let mut channels = channels();
    assert_eq!(channels.watch(KEY, at(0)), [Event::Open(Connection::Channels)]);
    assert_eq!(channels.watch(OTHER, at(0)), []);
    let [Event::Write(Connection::Channels, bytes)] = &channels.opened(at(1))[..] else {
        panic!("nothing was written")
    };
    let text = String::from_utf8_lossy(bytes);
    assert!(text.starts_with("*3\r\n$9\r\nSUBSCRIBE\r\n"), "{text}");
    assert!(text.contains(&name(KEY)) && text.contains(&name(OTHER)), "{text}");
}

#[test]
fn the_login_comes_first() {
    let login = Login { username: None, password: Secret(b"secret".to_vec()) };
    let mut channels = Channels::new(settings(Some(login)), 7);
    channels.watch(KEY, at(0));
    let (Event::Write(_, login), Event::Write(_, subscription)) =
        (said(&["AUTH", "secret"]), said(&["SUBSCRIBE", &name(KEY)]))
    else {
        panic!("nothing was written")
    };
    let both = Event::Write(Connection::Channels, [login, subscription].concat());
    assert_eq!(channels.opened(at(1)), [both]);
    let replies = [b"+OK\r\n", &word("subscribe", KEY)[..]].concat();
    assert_eq!(channels.received(&replies, at(2)), [Event::Ended(KEY)]);
}

#[test]
fn a_confirmed_subscription_counts_as_a_message() {
    // The claim may have ended before the subscription, so waiters have to check again.
    let mut channels = listening();
    channels.watch(OTHER, at(1));
    assert_eq!(channels.received(&word("subscribe", OTHER), at(1)), [Event::Ended(OTHER)]);
}

#[test]
fn a_message_wakes_only_waiters_of_its_key_that_are_still_there() {
    let mut channels = listening();
    assert_eq!(channels.received(&word("message", KEY), at(1)), [Event::Ended(KEY)]);
    assert_eq!(channels.received(&word("message", OTHER), at(1)), []);
    channels.unwatch(KEY, at(2));
    assert_eq!(channels.received(&word("message", KEY), at(3)), []);
    // Nor is the end of a subscription a message for a waiter that has come meanwhile.
    channels.watch(KEY, at(3));
    assert_eq!(channels.received(&word("unsubscribe", KEY), at(3)), []);
}

#[test]
fn messages_may_be_split_at_every_byte() {
    let stream = [word("message", KEY), word("subscribe", KEY)].concat();
    for split in 0..=stream.len() {
        let mut channels = listening();
        let mut events = channels.received(&stream[..split], at(1));
        events.extend(channels.received(&stream[split..], at(2)));
        assert_eq!(events, [Event::Ended(KEY), Event::Ended(KEY)], "split at {split}");
    }
}

#[test]
fn a_lost_connection_is_opened_again_with_all_that_is_watched() {
    let mut channels = listening();
    let half = &word("message", KEY)[..20];
    channels.received(half, at(1));
    assert_eq!(channels.closed(at(2)), []);
    let alarm = channels.alarm().unwrap();
    assert!(at(2) < alarm && alarm <= at(52), "{alarm:?}");
    assert_eq!(channels.watch(OTHER, at(2)), [], "the pause is not over");
    assert_eq!(channels.unwatch(OTHER, at(2)), []);
    assert_eq!(channels.tick(alarm), [Event::Open(Connection::Channels)]);
    assert_eq!(channels.opened(alarm), [said(&["SUBSCRIBE", &name(KEY)])]);
    // Lost messages are made up for, and half a message is forgotten.
    assert_eq!(channels.received(&word("subscribe", KEY), alarm), [Event::Ended(KEY)]);
}

#[test]
fn a_connection_that_cannot_be_had_is_tried_again_with_growing_pauses() {
    let mut channels = channels();
    channels.watch(KEY, at(0));
    let mut now = at(0);
    let mut pauses = Vec::new();
    for _ in 0..10 {
        channels.closed(now);
        let alarm = channels.alarm().unwrap();
        pauses.push(now.until(alarm));
        assert_eq!(channels.tick(alarm), [Event::Open(Connection::Channels)]);
        assert_eq!(channels.alarm(), None);
        now = alarm;
    }
    assert!(pauses[0] < Duration::from_millis(50), "{pauses:?}");
    assert!(pauses[9] >= Duration::from_millis(500), "{pauses:?}");
    // A connection that was usable is not counted as a failure.
    channels.opened(now);
    channels.received(&word("subscribe", KEY), now);
    channels.closed(now);
    assert!(now.until(channels.alarm().unwrap()) < Duration::from_millis(50));
}

#[test]
fn a_refusal_is_logged_once_and_not_retried_for_a_minute() {
    let mut channels = listening();
    let refused = b"-NOPERM this user has no permissions to access one of the channels\r\n";
    let events = channels.received(refused, at(1));
    let [Event::Warn(text), Event::Close(Connection::Channels)] = &events[..] else {
        panic!("{events:?}")
    };
    assert!(text.contains("NOPERM"), "{text}");
    assert_eq!(channels.watch(OTHER, at(2)), []);
    assert_eq!(channels.tick(at(60_000)), []);
    assert_eq!(channels.alarm(), Some(at(60_001)));
    assert_eq!(channels.tick(at(60_001)), [Event::Open(Connection::Channels)]);
    channels.opened(at(60_001));
    assert_eq!(channels.received(refused, at(60_002)), [Event::Close(Connection::Channels)]);
    assert_eq!(channels.alarm(), Some(at(120_002)));
}

#[test]
fn an_unused_connection_is_closed_after_ten_seconds() {
    let mut channels = listening();
    assert_eq!(channels.tick(at(60_000)), [], "a request waits");
    channels.unwatch(KEY, at(60_000));
    assert_eq!(channels.alarm(), Some(at(70_000)));
    assert_eq!(channels.tick(at(69_999)), []);
    assert_eq!(channels.tick(at(70_000)), [Event::Close(Connection::Channels)]);
    assert_eq!(channels.alarm(), None);
    // No waiter needed it, so the next one gets a connection at once.
    assert_eq!(channels.watch(KEY, at(70_000)), [Event::Open(Connection::Channels)]);
}

#[test]
fn a_connection_that_took_long_to_open_has_its_ten_seconds_from_then() {
    let mut channels = channels();
    channels.watch(KEY, at(0));
    channels.unwatch(KEY, at(1));
    assert_eq!(channels.opened(at(20_000)), []);
    assert_eq!((channels.tick(at(20_000)), channels.alarm()), (Vec::new(), Some(at(30_000))));
}

#[test]
fn a_waiter_within_ten_seconds_finds_the_connection_open() {
    let mut channels = listening();
    channels.unwatch(KEY, at(0));
    assert_eq!(channels.watch(OTHER, at(9_999)), [said(&["SUBSCRIBE", &name(OTHER)])]);
    assert_eq!((channels.alarm(), channels.tick(at(20_000))), (None, Vec::new()));
}

#[test]
fn frames_that_are_not_messages_do_no_harm() {
    let mut channels = listening();
    for frame in [
        &b"+OK\r\n"[..],
        b":1\r\n",
        b"$-1\r\n",
        b"*0\r\n",
        b"*1\r\n$7\r\nmessage\r\n",
        b"*3\r\n:1\r\n:2\r\n:3\r\n",
        b"*3\r\n$7\r\nmessage\r\n$9\r\nidem:zzzz\r\n$1\r\n1\r\n",
        b"*3\r\n$7\r\nmessage\r\n$5\r\nidem:\r\n$1\r\n1\r\n",
        b"*3\r\n$7\r\nmessage\r\n$7\r\nanother\r\n$1\r\n1\r\n",
        b"*3\r\n$8\r\npmessage\r\n$7\r\nanother\r\n$1\r\n1\r\n",
    ] {
        assert_eq!(channels.received(frame, at(1)), [], "{}", String::from_utf8_lossy(frame));
    }
    assert_eq!(channels.received(&word("message", KEY), at(2)), [Event::Ended(KEY)]);
}

#[test]
fn bytes_that_are_not_resp_close_the_connection_and_another_is_opened() {
    let mut channels = listening();
    assert_eq!(channels.received(b"HTTP/1.1 400\r\n", at(1)), [Event::Close(Connection::Channels)]);
    assert_eq!(channels.received(&word("message", KEY), at(1)), [], "the old connection's");
    let alarm = channels.alarm().unwrap();
    assert_eq!(channels.tick(alarm), [Event::Open(Connection::Channels)]);
}

proptest! {
    #[test]
    fn no_bytes_of_redis_are_too_strange(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..32), 0..8)
    ) {
        let mut channels = listening();
        for piece in pieces {
            for event in channels.received(&piece, at(1)) {
                let fits = matches!(event, Event::Close(Connection::Channels) | Event::Warn(_));
                prop_assert!(fits, "{:?}", event);
            }
        }
        // Whatever the event was, it listens or will listen.
        prop_assert!(channels.reconnect.is_open() || channels.alarm().is_some());
    }
}
