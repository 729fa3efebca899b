//! The executions at the origin under each key, and whether they are allowed.

use super::UNKNOWN_TTL;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Redis counts whole milliseconds of a clock that may be slewed; the time of an unknown outcome may seem
/// shorter by this.
const SLEW: Duration = Duration::from_millis(20);

/// An event so soon after a loss may be due to the time before: a claim that was on its way to the origin, a
/// copy that an Envoy replays for its `local.ttl`.
const AFTERMATH: Duration = Duration::from_secs(3);

/// How an execution ends. The request carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// 200.
    Answer,
    /// 429.
    Refuse,
    /// The origin closes the connection before its answer.
    DieBefore,
    /// … in the middle of it.
    DieMiddle,
    /// 200, for a client that leaves, if it is not answered first.
    Leave,
}

impl Fate {
    pub(super) const ALL: [Self; 5] =
        [Self::Answer, Self::Refuse, Self::DieBefore, Self::DieMiddle, Self::Leave];

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Answer => "answer",
            Self::Refuse => "refuse",
            Self::DieBefore => "die-before",
            Self::DieMiddle => "die-middle",
            Self::Leave => "leave",
        }
    }
}

#[derive(Debug)]
struct Execution {
    number: u64,
    fate: Fate,
    attempt: u32,
    began: Instant,
    /// `None`: it is running.
    ended: Option<Instant>,
}

#[derive(Debug, Default)]
struct Account {
    /// The latest one.
    last: Option<Execution>,
    running: u32,
    /// The execution whose answer is the key's, and when that became known.
    answer: Option<(u64, Instant)>,
}

impl Account {
    /// Why no execution may begin; `None` if one may.
    fn forbids(&self, attempt: u32, now: Instant) -> Option<&'static str> {
        if attempt == 0 {
            return Some("began without the filter");
        }
        let last = self.last.as_ref()?;
        let (0, Some(ended)) = (self.running, last.ended) else {
            return Some("began while another was running");
        };
        if self.answer.is_some() {
            return Some("began although the key was answered");
        }
        let doubted = match last.fate {
            Fate::Refuse => return None,
            // Its end has answered the key.
            Fate::Answer => return Some("began although the key was answered"),
            Fate::DieBefore | Fate::DieMiddle => ended,
            Fate::Leave => last.began,
        };
        if now + SLEW < doubted + UNKNOWN_TTL {
            return Some("began before the end of unknown_ttl");
        }
        let as_if_first = self.miscounts(attempt);
        as_if_first.then_some("began after an unknown outcome as if it were the first")
    }

    /// The previous execution has an unknown outcome, and this attempt has no higher number.
    fn miscounts(&self, attempt: u32) -> bool {
        let last = self.last.as_ref().filter(|last| last.fate != Fate::Refuse);
        last.is_some_and(|last| attempt <= last.attempt)
    }
}

/// Which executions of a key are checked against each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// Those of all Envoys: none runs a key that it cannot claim in Redis.
    Together,
    /// Those of one Envoy: without Redis, its memory decides alone.
    EachEnvoy,
}

/// The Envoy, if each is checked by itself, and the key.
type Place = (Option<usize>, u64);

/// Figures of the whole run.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    pub(super) executions: u64,
    pub(super) after_release: u64,
    pub(super) after_doubt: u64,
    pub(super) after_loss: u64,
    /// Of a key that the other Envoy had run, if each is checked by itself.
    pub(super) at_both: u64,
    /// After an unknown outcome, with a number that is not higher.
    pub(super) miscounted: u64,
    pub(super) most_at_once: u32,
    pub(super) violations: Vec<String>,
}

#[derive(Debug, Default)]
struct Inner {
    accounts: HashMap<Place, Account>,
    /// Where each execution ran.
    places: HashMap<u64, Place>,
    totals: Totals,
    /// Redis last forgot everything.
    forgotten: Option<Instant>,
}

impl Inner {
    /// Whether a fact of this time may be forgotten.
    fn is_forgotten(&self, since: Instant) -> bool {
        self.forgotten.is_some_and(|forgotten| since < forgotten + AFTERMATH)
    }

    fn violation(&mut self, key: u64, number: u64, what: &str) {
        self.totals.violations.push(format!("key {key}: execution {number} {what}"));
    }
}

/// The executions under each key: one ledger, because there is one origin.
#[derive(Debug)]
pub(super) struct Ledger {
    judged: Judged,
    inner: Mutex<Inner>,
}

impl Ledger {
    pub(super) fn new(judged: Judged) -> Self {
        Self { judged, inner: Mutex::default() }
    }

    /// An execution begins that this Envoy has sent; returns its number. An attempt of 0 does not come from
    /// the filter.
    pub(super) fn begins(
        &self,
        key: u64,
        envoy: usize,
        fate: Fate,
        attempt: u32,
        now: Instant,
    ) -> u64 {
        let place = match self.judged {
            Judged::Together => (None, key),
            Judged::EachEnvoy => (Some(envoy), key),
        };
        let mut inner = self.inner.lock().unwrap();
        inner.totals.executions += 1;
        let number = inner.totals.executions;
        inner.places.insert(number, place);
        let elsewhere = (Some(1 - envoy.min(1)), key);
        inner.totals.at_both += u64::from(inner.accounts.contains_key(&elsewhere));
        let mut account = inner.accounts.remove(&place).unwrap_or_default();
        let forbidden = account.forbids(attempt, now);
        inner.totals.miscounted += u64::from(account.miscounts(attempt));
        let last = account.last.as_ref();
        let forgotten = last.is_some_and(|last| inner.is_forgotten(last.began));
        match (forbidden, last) {
            (None, None) => {}
            (None, Some(last)) if last.fate == Fate::Refuse => inner.totals.after_release += 1,
            (None, Some(_)) => inner.totals.after_doubt += 1,
            (Some(_), _) if forgotten => {
                inner.totals.after_loss += 1;
                account.answer = None;
            }
            (Some(why), None) => inner.violation(key, number, why),
            (Some(why), Some(last)) => {
                let earlier = now.duration_since(last.began).as_millis();
                let (before, fate) = (last.number, last.fate.word());
                let what = format!("{why}; {before} ({fate}) had begun {earlier} ms before");
                inner.violation(key, number, &what);
            }
        }
        account.running += 1;
        inner.totals.most_at_once = inner.totals.most_at_once.max(account.running);
        account.last = Some(Execution { number, fate, attempt, began: now, ended: None });
        inner.accounts.insert(place, account);
        number
    }

    /// An execution has ended.
    pub(super) fn ends(&self, key: u64, number: u64, fate: Fate, now: Instant) {
        {
            let mut inner = self.inner.lock().unwrap();
            let Some(&place) = inner.places.get(&number) else { return };
            let Some(account) = inner.accounts.get_mut(&place) else { return };
            account.running -= 1;
            if let Some(last) = account.last.as_mut().filter(|last| last.number == number) {
                last.ended = Some(now);
            }
        }
        if fate == Fate::Answer {
            self.answered(key, number, now);
        }
    }

    /// A client of any Envoy has this execution's answer, or is sure to get it.
    pub(super) fn answered(&self, key: u64, number: u64, now: Instant) {
        let mut inner = self.inner.lock().unwrap();
        // The origin never had this execution: the key's own executions contradict the answer.
        let place = inner.places.get(&number).copied().unwrap_or((None, key));
        if place.1 != key {
            return inner.violation(key, number, "answered, but it ran under another key");
        }
        let account = inner.accounts.entry(place).or_default();
        match account.answer {
            None => account.answer = Some((number, now)),
            Some((answer, _)) if answer == number => {}
            Some((answer, known)) => {
                let began = account.last.as_ref().map_or(known, |last| last.began);
                if !inner.is_forgotten(known.min(began)) {
                    inner.violation(key, number, &format!("answered a key that {answer} had"));
                }
            }
        }
    }

    /// Redis is about to forget everything.
    pub(super) fn forgotten(&self, now: Instant) {
        self.inner.lock().unwrap().forgotten = Some(now);
    }

    pub(super) fn executions(&self) -> u64 {
        self.inner.lock().unwrap().totals.executions
    }

    pub(super) fn totals(&self) -> Totals {
        self.inner.lock().unwrap().totals.clone()
    }
}
