//! Clients that retry: on 409, on 503, on connections that break, on either Envoy.

use super::ledger::{Fate, Ledger};
use super::{SLOWEST, UNKNOWN_TTL};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use testkit::{Answer, Client, Request};
use tokio::time::{sleep, timeout};

/// The rules' paths: even keys and odd ones.
pub(super) const PATHS: [&str; 2] = ["refused", "waits"];

/// Keys that clients share at a time: as many as clients, so that each meets others at its key.
const RECENT: u64 = 64;

/// Answers that a client collects for one request before it goes on to another: its own, and replays.
const ANSWERS: u32 = 3;

/// How long a client retries one request: the time of an unknown outcome, and some time to take over.
const PATIENCE: Duration = Duration::from_secs(UNKNOWN_TTL.as_secs() + 5);

/// The result of one request, as the client got it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Seen {
    /// 200, not replayed.
    First,
    Replay,
    /// The origin's own 429.
    Released,
    /// 409, with this code.
    Conflict(String),
    /// The store was unavailable.
    StoreAway,
    /// Envoy's own 503: the origin broke off before its answer.
    OriginDied,
    /// The answer broke off.
    Broken,
    /// The client left before it was answered.
    Left,
    /// Nothing of the above.
    Unexplained(String),
}

impl fmt::Display for Seen {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => to.write_str("first answers"),
            Self::Replay => to.write_str("replays"),
            Self::Released => to.write_str("429 of the origin, released"),
            Self::Conflict(code) => write!(to, "409 {code}"),
            Self::StoreAway => to.write_str("503 store-unavailable"),
            Self::OriginDied => to.write_str("503 of Envoy's, the origin died"),
            Self::Broken => to.write_str("connections and answers that broke"),
            Self::Left => to.write_str("clients that left"),
            Self::Unexplained(what) => write!(to, "unexplained: {what}"),
        }
    }
}

impl Seen {
    fn of(answer: &io::Result<Answer>) -> Self {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Self::Unexplained(error.to_string());
            }
            Err(_) => return Self::Broken,
        };
        match (answer.status, answer.code().as_str()) {
            (200, _) if answer.is_replay() => Self::Replay,
            (200, _) => Self::First,
            (429, "") => Self::Released,
            (409, code) => Self::Conflict(code.to_owned()),
            (503, "store-unavailable") => Self::StoreAway,
            (503, "") if answer.text().starts_with("upstream connect error") => Self::OriginDied,
            (status, _) => Self::Unexplained(format!("{status} {}", answer.text())),
        }
    }
}

/// What all clients share.
pub(super) struct Load {
    pub(super) envoys: Vec<SocketAddr>,
    pub(super) ledger: Arc<Ledger>,
    ended: AtomicBool,
    next_key: AtomicU64,
    pub(super) requests: AtomicU64,
    retries: AtomicU64,
    seen: Mutex<BTreeMap<Seen, u64>>,
    pub(super) crowds: AtomicU64,
    /// Of those of crowds, the answer that took longest, in milliseconds.
    pub(super) longest_in_a_crowd: AtomicU64,
}

impl Load {
    pub(super) fn new(envoys: Vec<SocketAddr>, ledger: Arc<Ledger>) -> Self {
        Self {
            envoys,
            ledger,
            ended: AtomicBool::new(false),
            next_key: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            seen: Mutex::default(),
            crowds: AtomicU64::new(0),
            longest_in_a_crowd: AtomicU64::new(0),
        }
    }

    /// Clients finish their current request.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    pub(super) fn goes_on(&self) -> bool {
        !self.ended.load(Ordering::SeqCst)
    }

    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    pub(super) fn keys(&self) -> u64 {
        self.next_key.load(Ordering::SeqCst)
    }

    pub(super) fn retries(&self) -> u64 {
        self.retries.load(Ordering::SeqCst)
    }

    /// How many crowds came, and how long the slowest answer in any of them took.
    pub(super) fn crowds(&self) -> (u64, Duration) {
        let longest = self.longest_in_a_crowd.load(Ordering::SeqCst);
        (self.crowds.load(Ordering::SeqCst), Duration::from_millis(longest))
    }

    pub(super) fn seen(&self) -> BTreeMap<Seen, u64> {
        self.seen.lock().unwrap().clone()
    }

    pub(super) fn new_key(&self) -> u64 {
        self.next_key.fetch_add(1, Ordering::SeqCst)
    }

    /// A key that is new, shared with others, or of any age: its record may have outlived restarts.
    fn key(&self, dice: &mut Dice) -> u64 {
        let keys = self.keys();
        match dice.below(100) {
            0..20 => self.new_key(),
            20..85 => keys.saturating_sub(1 + dice.below(RECENT)),
            _ => dice.below(keys.max(1)),
        }
    }

    pub(super) fn request(&self, envoy: usize, key: u64, fate: Fate, delay: Duration) -> Request {
        let path = format!("/{}", PATHS[(key % 2) as usize]);
        Request::new(self.envoys[envoy], "POST", &path)
            .key(&key.to_string())
            .caller("Bearer soak")
            .header("x-soak-fate", fate.word())
            .header("x-soak-delay-ms", delay.as_millis().to_string())
            .json(r#"{"amount":100}"#)
    }

    /// Records the result of a request.
    pub(super) fn got(&self, key: u64, answer: &io::Result<Answer>) -> Seen {
        let seen = Seen::of(answer);
        if let (Seen::First | Seen::Replay, Ok(answer)) = (&seen, answer) {
            let number = answer.json()["execution"].as_u64().unwrap();
            self.ledger.answered(key, number, Instant::now());
        }
        self.count(seen.clone());
        seen
    }

    pub(super) fn count(&self, seen: Seen) {
        *self.seen.lock().unwrap().entry(seen).or_default() += 1;
    }

    /// Whether an Envoy runs a new key, on its own connection.
    pub(super) async fn probe(&self, envoy: usize) -> bool {
        let key = self.new_key();
        self.requests.fetch_add(1, Ordering::SeqCst);
        let request = self.request(envoy, key, Fate::Answer, Duration::ZERO);
        self.got(key, &request.try_send().await) == Seen::First
    }
}

/// A client: takes a request, sends it until it has its answers, goes on to another.
pub(super) async fn client(number: u64, load: Arc<Load>) {
    let mut dice = Dice::new(number);
    let mut connections: Vec<Option<Client>> = load.envoys.iter().map(|_| None).collect();
    while load.goes_on() {
        let key = load.key(&mut dice);
        let stays = dice.below(10) == 0;
        let patience = Instant::now() + PATIENCE;
        let mut answers = 0;
        while answers < ANSWERS && Instant::now() < patience && load.goes_on() {
            let envoy = dice.below(load.envoys.len() as u64) as usize;
            let seen = send(&load, &mut connections[envoy], envoy, key, &mut dice).await;
            match seen {
                Seen::First | Seen::Replay => answers += 1,
                // An unknown outcome takes seconds: most clients come back to it later, or all would wait
                // there.
                Seen::Conflict(code) if code == "outcome-unknown" && !stays => break,
                Seen::Released
                | Seen::Conflict(_)
                | Seen::StoreAway
                | Seen::OriginDied
                | Seen::Broken
                | Seen::Left
                | Seen::Unexplained(_) => {
                    load.retries.fetch_add(1, Ordering::SeqCst);
                    sleep(Duration::from_millis(10 + dice.below(40))).await;
                }
            }
        }
    }
}

/// Sends a request of this key, on this connection or a new one.
async fn send(
    load: &Load,
    connection: &mut Option<Client>,
    envoy: usize,
    key: u64,
    dice: &mut Dice,
) -> Seen {
    let fate = dice.fate();
    let request = load.request(envoy, key, fate, dice.delay());
    let client = match connection.take() {
        Some(client) => client,
        None => match Client::connect(load.envoys[envoy], false).await {
            Ok(client) => client,
            Err(error) => return load.got(key, &Err(error)),
        },
    };
    load.requests.fetch_add(1, Ordering::SeqCst);
    let answer = if fate == Fate::Leave {
        let leaves_after = Duration::from_millis(dice.below(300));
        match timeout(leaves_after, client.send(request)).await {
            Ok(answer) => answer,
            Err(_) => {
                load.count(Seen::Left);
                return Seen::Left;
            }
        }
    } else {
        client.send(request).await
    };
    if answer.is_ok() {
        *connection = Some(client);
    }
    load.got(key, &answer)
}

/// Random numbers, the same for a client with the same number.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Any number below this one.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        // Xorshift (Marsaglia 2003); its upper bits are the better ones.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % bound
    }

    fn fate(&mut self) -> Fate {
        match self.below(100) {
            0..5 => Fate::Refuse,
            5..7 => Fate::DieBefore,
            7..9 => Fate::DieMiddle,
            9..13 => Fate::Leave,
            _ => Fate::Answer,
        }
    }

    fn delay(&mut self) -> Duration {
        let millis = match self.below(100) {
            0 => 2_000 + self.below(SLOWEST.as_millis() as u64 - 2_000),
            1..10 => self.below(600),
            _ => self.below(20),
        };
        Duration::from_millis(millis)
    }
}
