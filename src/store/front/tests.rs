use super::*;
use crate::key::Fingerprint;
use crate::record::codec;
use crate::record::{Kept, Record, State, Token};
use crate::store::redis::{Settings, Transport};
use crate::store::shared_data::Capacity;
use crate::store::shared_data::map::Map;
use crate::time::WallTime;
use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::types::OwnedFrame;

const TIMEOUT: Duration = Duration::from_millis(250);
const CAPACITY: Capacity = Capacity { entries: 64, budget_bytes: 1 << 20, largest_answer: 1_000 };

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(1_000_000 + millis)
}

fn key(number: u8) -> Key {
    Key([number; 32])
}

fn token(request: u32) -> Token {
    let mut token = [0; 16];
    token[..4].copy_from_slice(&request.to_be_bytes());
    Token(token)
}

fn claim(request: u32, number: u8) -> Command {
    Command::Claim {
        key: key(number),
        token: token(request),
        fingerprint: Fingerprint([7; 32]),
        first_seen: WallTime::default(),
        lease: Duration::from_secs(10),
        unknown_for: Duration::from_secs(60),
        watch: false,
    }
}

/// A front whose connection to Redis is open, its written bytes, and the requests that it has answered.
struct World {
    front: Front<Map, u32>,
    written: Vec<u8>,
    replies: Vec<(u32, Result<Reply, StoreError>)>,
    listens: bool,
    woken: Vec<Key>,
}

impl World {
    fn new(map: &Map) -> Self {
        Self::greeted(map, 0)
    }

    /// Whose greetings are over, with a claim on this key.
    fn greeted(map: &Map, first: u8) -> Self {
        let table = MemoryStore::open(map.clone(), "test", CAPACITY).unwrap();
        let tiers = Tiers::new(table, Duration::from_secs(60), TIMEOUT);
        let settings = Settings { prefix: "idem:".to_owned(), timeout: TIMEOUT, login: None };
        let front = Front::redis(tiers, Client::new(&settings, Transport::Pipe, 7), TIMEOUT);
        let mut world = Self {
            front,
            written: Vec::new(),
            replies: Vec::new(),
            listens: true,
            woken: Vec::new(),
        };
        world.ask(0, first, 0);
        world.carry_out(0);
        world.front.handle(Fact::Opened(Connection::Commands), at(0));
        world.carry_out(0);
        let greeting = b"*2\r\n$16\r\nmaxmemory-policy\r\n$10\r\nnoeviction\r\n";
        world.receive(&[&greeting[..], &claimed(0)].concat(), 0);
        world.work(0);
        assert_eq!(world.asked(), [(b'C', 0), (b'E', 0)]);
        world.replies.clear();
        world
    }

    fn ask(&mut self, request: u32, number: u8, millis: u64) {
        if let Some(reply) = self.front.ask(request, claim(request, number), at(millis)) {
            self.replies.push((request, reply));
        }
    }

    fn carry_out(&mut self, millis: u64) {
        while let Some(order) = self.front.next_order() {
            match order {
                Order::Reply(request, reply) => self.replies.push((request, reply)),
                Order::Write(Connection::Commands, bytes) => self.written.extend(bytes),
                Order::Listen if !std::mem::replace(&mut self.listens, true) => {
                    self.front.handle(Fact::Listening, at(millis));
                }
                Order::Wake(key) | Order::WakeAskers(key) => self.woken.push(key),
                Order::Listen
                | Order::Open(_)
                | Order::Write(Connection::Channels, _)
                | Order::Close(_)
                | Order::Call(..)
                | Order::WakeHere(_)
                | Order::Count(..)
                | Order::Took(_)
                | Order::Warn(_)
                | Order::WarnOnce(_) => {}
            }
        }
    }

    fn receive(&mut self, bytes: &[u8], millis: u64) {
        self.front.handle(Fact::Received(Connection::Commands, bytes), at(millis));
        self.carry_out(millis);
    }

    fn work(&mut self, millis: u64) -> usize {
        let mut steps = 0;
        while self.front.work(at(millis)) {
            steps += 1;
            self.carry_out(millis);
        }
        steps
    }

    /// The commands to Redis: `E` by digest, `T` by text, `C` for its policy; and the request of each.
    fn asked(&mut self) -> Vec<(u8, u32)> {
        let mut asked = Vec::new();
        while let Some((frame, length)) = decode(&self.written).unwrap() {
            self.written.drain(..length);
            let OwnedFrame::Array(parts) = frame else { panic!("no command") };
            let part = |part: OwnedFrame| {
                let OwnedFrame::BulkString(part) = part else { panic!("no part: {part:?}") };
                part
            };
            let parts: Vec<Vec<u8>> = parts.into_iter().map(part).collect();
            asked.push(match parts[0].as_slice() {
                b"CONFIG" => (b'C', 0),
                form => {
                    let head = &parts[4];
                    let token = if head.len() == 16 { &head[..4] } else { &head[2..6] };
                    let request = u32::from_be_bytes(token.try_into().unwrap());
                    (if form == b"EVAL" { b'T' } else { b'E' }, request)
                }
            });
        }
        asked
    }
}

fn reply(request: u32, rest: &[&[u8]]) -> Vec<u8> {
    let bytes = [&token(request).0[..4], &rest.concat()].concat();
    [format!("${}\r\n", bytes.len()).as_bytes(), &bytes, b"\r\n"].concat()
}

fn claimed(request: u32) -> Vec<u8> {
    reply(request, &[b"C", &5_000_000_u64.to_be_bytes(), &1_u32.to_be_bytes()])
}

/// The key is taken by another Envoy's claim, which has left a tombstone.
fn tombstone(request: u32) -> Vec<u8> {
    let record = Record {
        token: Token([9; 16]),
        fingerprint: Fingerprint([7; 32]),
        attempt: 1,
        first_seen: WallTime::default(),
        state: State::Finished {
            until: Timestamp::from_millis(9_000_000),
            status: 201,
            kept: Kept::Nothing,
        },
    };
    reply(request, &[b"E", &5_000_000_u64.to_be_bytes(), &codec::encode(&record)])
}

#[test]
fn a_question_that_asks_again_does_not_overtake_one_that_is_sent_as_text() {
    let mut world = World::new(&Map::default());
    // The third waits for the first's reply, which is not enough for it: it asks again at once.
    world.ask(1, 1, 1);
    world.ask(2, 2, 1);
    world.ask(3, 1, 1);
    world.carry_out(1);
    assert_eq!(world.asked(), [(b'E', 1), (b'E', 2)]);
    world.receive(&[&tombstone(1)[..], b"-NOSCRIPT No matching script.\r\n"].concat(), 2);
    world.work(2);
    // Commands are written in the order of the expected replies: no caller gets another's answer.
    assert_eq!(world.asked(), [(b'T', 2), (b'E', 3)]);
    world.receive(&[claimed(2), tombstone(3)].concat(), 3);
    world.work(3);
    let answered: Vec<_> = world.replies.iter().map(|(request, reply)| (*request, reply)).collect();
    let [(1, Ok(Reply::Exists(_))), (2, Ok(Reply::Claimed { .. })), (3, Ok(Reply::Exists(_)))] =
        answered[..]
    else {
        panic!("{answered:?}")
    };
}

#[test]
fn the_replies_of_one_read_are_handled_one_step_at_a_time() {
    let mut world = World::new(&Map::default());
    (1..=100).for_each(|number| world.ask(u32::from(number), number, 1));
    world.carry_out(1);
    let replies: Vec<u8> = (1..=100).flat_map(claimed).collect();
    world.receive(&replies, 2);
    assert!(world.replies.is_empty() && world.front.has_work());
    assert!(world.front.work(at(2)));
    world.carry_out(2);
    assert_eq!(world.replies.len(), 1);
    assert_eq!(world.work(2), 99);
    let order: Vec<_> = world.replies.iter().map(|(request, _)| *request).collect();
    assert_eq!(order, (1..=100).collect::<Vec<_>>());
}

#[test]
fn ten_thousand_that_wait_for_one_answer_cost_a_linear_number_of_steps() {
    let mut world = World::new(&Map::default());
    (1..=10_000).for_each(|request| world.ask(request, 1, 1));
    world.carry_out(1);
    assert_eq!(world.asked(), [(b'E', 1)]);
    // Nothing comes for a while: one of them asks per pause, not all.
    for millis in (2..200).step_by(10) {
        assert!(world.work(millis) <= 1);
    }
    assert_eq!(world.asked(), []);
    world.receive(&claimed(1), 200);
    assert_eq!(world.work(200), 10_000);
    assert_eq!(world.replies.len(), 10_000);
    assert_eq!(world.asked(), []);
}

#[test]
fn a_question_in_another_worker_is_waited_for_though_this_one_did_not_listen_yet() {
    let map = Map::default();
    let (mut first, mut second) = (World::greeted(&map, 0), World::greeted(&map, 200));
    second.listens = false;
    first.ask(1, 1, 1);
    second.ask(2, 1, 1);
    first.carry_out(1);
    first.receive(&claimed(1), 2);
    first.work(2);
    assert_eq!(first.woken, [key(1)]);
    // The second got no message. It asks again when it has begun to listen.
    second.carry_out(2);
    assert_eq!(second.work(2), 1);
    let [(2, Ok(Reply::Exists(_)))] = &second.replies[..] else { panic!("{:?}", second.replies) };
}

#[test]
fn a_claim_that_this_envoy_cannot_use_any_more_goes_back_to_redis() {
    let mut world = World::new(&Map::default());
    world.ask(1, 1, 1);
    world.carry_out(1);
    assert_eq!(world.asked(), [(b'E', 1)]);
    let local = world.front.ask_here(&claim(2, 1), at(2));
    assert_eq!(local, Ok(Reply::Claimed { attempt: 1 }));
    world.receive(&claimed(1), 3);
    world.work(3);
    let [(1, Ok(Reply::Exists(_)))] = &world.replies[..] else { panic!("{:?}", world.replies) };
    assert_eq!(world.asked(), [(b'E', 1)], "a release by the same token");
}
