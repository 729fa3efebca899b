//! Clients that retry, at either Envoy, until they have an answer or get `outcome-unknown`.

use super::fleet::{Fleet, Ledger};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use testkit::{Answer, Client};
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// Enough for duplicates in every state of a key, and few enough for two cores.
const CLIENTS: u64 = 16;

/// Keys that clients share at a time.
const RECENT: u64 = 16;

/// How long a client retries one request: a lease (10 s), plus the delay of a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest execution, far shorter than a drain: executions that a restart cuts off are meant to be cut
/// off.
const LONGEST_MS: u64 = 300;

/// How clients see an Envoy that stops or has stopped.
pub(super) const BROKEN: &str = "connections that broke or were refused";

/// The outcome of a key, as clients got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// The answer of this execution.
    Answer(u64),
    /// 409 `outcome-unknown`, and never an answer.
    Doubt,
}

/// A load that runs until it is ended.
pub(super) struct Load {
    fleet: Arc<Fleet>,
    name: &'static str,
    ended: AtomicBool,
    next_key: AtomicU64,
    told: Mutex<BTreeMap<u64, Told>>,
    seen: Mutex<BTreeMap<String, u64>>,
    violations: Mutex<Vec<String>>,
}

impl Load {
    /// Starts clients; their keys begin with this name.
    pub(super) fn start(fleet: &Arc<Fleet>, name: &'static str) -> Running {
        let load = Arc::new(Self {
            fleet: fleet.clone(),
            name,
            ended: AtomicBool::new(false),
            next_key: AtomicU64::new(0),
            told: Mutex::default(),
            seen: Mutex::default(),
            violations: Mutex::default(),
        });
        let clients = (0..CLIENTS).map(|number| tokio::spawn(work(load.clone(), number))).collect();
        Running { load, clients }
    }

    fn key(&self, number: u64) -> String {
        format!("{}-{number}", self.name)
    }

    /// A new key as often as one that other clients use or have used.
    fn pick(&self, dice: &mut Dice) -> u64 {
        let keys = self.next_key.load(Ordering::SeqCst);
        match dice.below(10) {
            0..5 => self.next_key.fetch_add(1, Ordering::SeqCst),
            5..9 => keys.saturating_sub(1 + dice.below(RECENT)),
            _ => dice.below(keys.max(1)),
        }
    }

    fn saw(&self, what: &str) {
        *self.seen.lock().unwrap().entry(what.to_owned()).or_default() += 1;
    }

    fn violation(&self, what: String) {
        self.violations.lock().unwrap().push(what);
    }

    /// Records an answer; returns whether the client's request is finished.
    fn got(&self, number: u64, answer: &io::Result<Answer>) -> bool {
        let Ok(answer) = answer else {
            self.saw(BROKEN);
            return false;
        };
        let mut told = self.told.lock().unwrap();
        match (answer.status, answer.code().as_str()) {
            (201, _) => {
                let execution = answer.json()["execution"].as_u64().unwrap();
                self.saw(if answer.is_replay() { "replays" } else { "first answers" });
                match told.insert(number, Told::Answer(execution)) {
                    Some(Told::Answer(other)) if other != execution => self.violation(format!(
                        "{} was answered by execution {other}, then by {execution}",
                        self.key(number)
                    )),
                    Some(Told::Answer(_) | Told::Doubt) | None => {}
                }
                true
            }
            (409, "outcome-unknown") => {
                self.saw("409 outcome-unknown");
                told.entry(number).or_insert(Told::Doubt);
                true
            }
            (409, "in-progress") => {
                self.saw("409 in-progress");
                false
            }
            (503, "store-unavailable") => {
                self.saw("503 store-unavailable");
                false
            }
            (status, _) => {
                self.saw(&format!("{status}, unexpected"));
                self.violation(format!("{}: {status} {}", self.key(number), answer.text()));
                false
            }
        }
    }
}

async fn work(load: Arc<Load>, number: u64) {
    let mut dice = Dice::new(number);
    let mut connections: [Option<(SocketAddr, Client)>; 2] = [None, None];
    while !load.ended.load(Ordering::SeqCst) {
        let key = load.pick(&mut dice);
        let begun = Instant::now();
        let mut envoy = dice.below(2) as usize;
        loop {
            let answer = send(&load, &mut connections[envoy], envoy, key, &mut dice).await;
            if load.got(key, &answer) {
                break;
            }
            if begun.elapsed() > PATIENCE {
                load.violation(format!(
                    "{} got neither an answer nor outcome-unknown",
                    load.key(key)
                ));
                break;
            }
            // A client without an answer here uses the other Envoy.
            envoy = 1 - envoy;
            sleep(Duration::from_millis(20 + dice.below(60))).await;
        }
    }
}

/// Sends a request of this key, on the connection that is open or on a new one.
async fn send(
    load: &Load,
    connection: &mut Option<(SocketAddr, Client)>,
    envoy: usize,
    key: u64,
    dice: &mut Dice,
) -> io::Result<Answer> {
    let front = load.fleet.envoys[envoy].front();
    // A restarted Envoy has another port.
    let client = match connection.take() {
        Some((to, client)) if to == front => client,
        Some(_) | None => Client::connect(front, false).await?,
    };
    let delay = dice.below(LONGEST_MS).to_string();
    let request = load.fleet.payment(envoy, &load.key(key)).header("x-origin-delay-ms", delay);
    let answer = client.send(request).await?;
    if answer.header("connection") != Some("close") {
        *connection = Some((front, client));
    }
    Ok(answer)
}

/// A load under way.
pub(super) struct Running {
    load: Arc<Load>,
    clients: Vec<JoinHandle<()>>,
}

impl Running {
    /// Lets clients finish their requests, and checks their answers against the origin's ledger.
    pub(super) async fn end(self) -> Verdict {
        self.load.ended.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.await.unwrap();
        }
        let ledger = self.load.fleet.ledger().await;
        let mut violations = self.load.violations.lock().unwrap().clone();
        let told = self.load.told.lock().unwrap();
        let mut doubts = 0;
        let mut executions = 0;
        for number in 0..self.load.next_key.load(Ordering::SeqCst) {
            let key = self.load.key(number);
            executions += ledger.of(&key);
            match told.get(&number) {
                Some(Told::Answer(execution)) => {
                    let runs = ledger.executions.get(&key);
                    if runs.is_none_or(|runs| runs.as_slice() != [*execution]) {
                        violations.push(format!(
                            "{key} was answered by execution {execution}, the origin ran {runs:?}"
                        ));
                    }
                }
                Some(Told::Doubt) => doubts += 1,
                // Reported by the client that gave up.
                None => {}
            }
            if ledger.of(&key) > 1 {
                violations.push(format!("{key} was executed {} times", ledger.of(&key)));
            }
        }
        Verdict {
            keys: self.load.next_key.load(Ordering::SeqCst),
            executions,
            doubts,
            seen: self.load.seen.lock().unwrap().clone(),
            violations,
            ledger,
        }
    }
}

/// The result of a load.
pub(super) struct Verdict {
    pub(super) keys: u64,
    pub(super) executions: usize,
    pub(super) doubts: u64,
    pub(super) seen: BTreeMap<String, u64>,
    pub(super) violations: Vec<String>,
    pub(super) ledger: Ledger,
}

impl Verdict {
    pub(super) fn requests(&self) -> u64 {
        self.seen.values().sum()
    }

    /// How often clients had this result.
    pub(super) fn count(&self, what: &str) -> u64 {
        self.seen.get(what).copied().unwrap_or(0)
    }
}

/// Random numbers, the same for a client with the same number.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Any number below this one.
    fn below(&mut self, bound: u64) -> u64 {
        // Xorshift (Marsaglia 2003); its upper bits are the better ones.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % bound
    }
}
