//! When a connection may be opened, and for how long to leave Redis alone after one has failed.

use crate::time::Timestamp;
use std::time::Duration;

/// Pause after the first failure; each further one doubles it. A restart of Redis takes a tenth of a second:
/// the second or third try succeeds.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause. Service is back at most this long after Redis. A thousand workers without Redis make a
/// thousand connection attempts a second.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// One connection, open or closed.
#[derive(Debug)]
pub(super) struct Reconnect {
    state: State,
    /// Connections in a row that ended before they were usable.
    failures: u32,
    random: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed { retry_at: Timestamp },
    Opening,
    Open { last_sign: Timestamp },
}

impl Reconnect {
    /// `seed` differs from worker to worker, so that they do not reconnect all at once.
    pub(super) fn new(seed: u64) -> Self {
        let state = State::Closed { retry_at: Timestamp::default() };
        Self { state, failures: 0, random: seed | 1 }
    }

    /// Whether to open a connection now; if so, it counts as opening.
    pub(super) fn begin(&mut self, now: Timestamp) -> bool {
        match self.state {
            State::Closed { retry_at } if retry_at <= now => {
                self.state = State::Opening;
                true
            }
            State::Closed { .. } | State::Opening | State::Open { .. } => false,
        }
    }

    /// The host has a connection, or an attempt at one that takes bytes already.
    pub(super) fn opened(&mut self, now: Timestamp) {
        self.state = State::Open { last_sign: now };
    }

    /// Bytes were received.
    pub(super) fn heard(&mut self, now: Timestamp) {
        self.state = State::Open { last_sign: now };
    }

    /// It is usable: Redis has accepted the login and replies to commands.
    pub(super) fn proved(&mut self) {
        self.failures = 0;
    }

    /// It is closed. One that no command waited for may be reopened at once.
    pub(super) fn closed(&mut self, missed: bool, now: Timestamp) {
        if missed {
            self.failures = self.failures.saturating_add(1);
        }
        let pause = if missed { self.pause() } else { Duration::ZERO };
        self.state = State::Closed { retry_at: now.after(pause) };
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// When it was opened, or last received bytes.
    pub(super) fn last_sign(&self) -> Option<Timestamp> {
        match self.state {
            State::Open { last_sign } => Some(last_sign),
            State::Closed { .. } | State::Opening => None,
        }
    }

    /// When it may be opened, if it is closed.
    pub(super) fn retry_at(&self) -> Option<Timestamp> {
        match self.state {
            State::Closed { retry_at } => Some(retry_at),
            State::Opening | State::Open { .. } => None,
        }
    }

    /// More than one attempt has failed, and it is too early for the next: waiting for it would only delay
    /// requests that may be answered otherwise.
    pub(super) fn is_down(&self, now: Timestamp) -> bool {
        self.failures > 1 && self.retry_at().is_some_and(|retry_at| now < retry_at)
    }

    /// Half of the pause, plus a random part of up to the other half.
    fn pause(&mut self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(10);
        let longest = SHORTEST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE);
        // Xorshift (Marsaglia 2003): workers only have to differ.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let half = longest / 2;
        let by_chance = self.random % (half.as_millis() as u64).max(1);
        half.saturating_add(Duration::from_millis(by_chance))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn pauses_grow_up_to_a_second_and_end_when_redis_answers() {
        let mut reconnect = Reconnect::new(7);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            reconnect.closed(true, at(0));
            pauses.push(reconnect.retry_at().unwrap().as_millis());
        }
        assert!((25..50).contains(&pauses[0]), "{pauses:?}");
        assert!((500..1_000).contains(&pauses[9]), "{pauses:?}");
        reconnect.opened(at(0));
        reconnect.heard(at(0));
        reconnect.proved();
        reconnect.closed(true, at(0));
        assert!(reconnect.retry_at().unwrap() < at(50));
    }

    #[test]
    fn an_idle_connection_is_reopened_at_once() {
        let mut reconnect = Reconnect::new(7);
        reconnect.opened(at(5));
        reconnect.closed(false, at(10));
        assert!(reconnect.begin(at(10)) && !reconnect.begin(at(10)));
    }

    #[test]
    fn two_workers_do_not_come_back_together() {
        let pause = |seed| {
            let mut reconnect = Reconnect::new(seed);
            (0..6).for_each(|_| reconnect.closed(true, at(0)));
            reconnect.retry_at()
        };
        assert_ne!(pause(3), pause(1_234_567));
    }
}
