//! When a worker is called back: its tick, and the streams whose body may be blocked.

use super::{Bodies, Stream, Worker};
use crate::exchange::{Exchange, Input, RequestPart};
use crate::host::abi::{self, Direction};
use crate::host::logging;
use crate::schedule::BATCH;
use crate::time::Timestamp;
use std::time::Duration;

/// Tick while something waits for a short time: a requeued request, a waiting request near its end, a body
/// that may be blocked. It is the granularity of `requeue.delay`, and short compared with the 100 ms that a
/// person notices.
pub(super) const SHORT_TICK: Duration = Duration::from_millis(20);

/// Tick while facts wait for another callback. Envoy takes in new requests before each tick, so those do not
/// wait behind a crowd. A message to the worker's own queue comes before them, and at once: one such callback
/// follows each tick, and no more.
pub(super) const NEXT_TICK: Duration = Duration::from_millis(1);

/// Tick while there are streams: fine enough for the heartbeat of the shortest lease, 1 s, which is due three
/// times in it.
const LONG_TICK: Duration = Duration::from_millis(100);

impl Worker {
    /// Remembers to look whether the body of this request is kept back; if that is known of others, says so at
    /// once, unless that would refuse a request whose body may not have come yet.
    pub(super) fn probe(&mut self, id: u32) {
        let Some(stream) = self.streams.get(&id) else { return };
        if stream.held != Some(Direction::Request) || self.bodies == Bodies::Come {
            return;
        }
        let needs_it = stream.exchange.as_ref().is_some_and(Exchange::awaits_body);
        if self.bodies == Bodies::Blocked && !needs_it {
            self.called(id, Direction::Request, Input::Request(RequestPart::BodyBlocked));
        } else {
            self.probes.push_back((id, received()));
            self.hurry_to(SHORT_TICK);
        }
    }

    /// Tells streams that have received more than their headers and were not given it. Each tick looks at some of
    /// them, in turn.
    pub(super) fn look_for_blocked(&mut self) {
        for _ in 0..self.probes.len().min(BATCH as usize) {
            if self.budget.is_spent() {
                return;
            }
            let Some((id, before)) = self.probes.pop_front() else { return };
            let held = |stream: &Stream| stream.held == Some(Direction::Request);
            if !self.streams.get(&id).is_some_and(held) || abi::set_effective_context(id).is_err() {
                continue;
            }
            if received() == before {
                self.probes.push_back((id, before));
            } else {
                self.budget.spend();
                self.bodies = Bodies::Blocked;
                self.come_back(id, Input::Request(RequestPart::BodyBlocked));
            }
        }
    }

    /// Makes sure that the tick comes in time for a timer.
    pub(super) fn hurry(&mut self, alarm: Option<Timestamp>, now: Timestamp) {
        if let Some(alarm) = alarm {
            self.hurry_to(if is_soon(alarm, now) { SHORT_TICK } else { LONG_TICK });
        }
    }

    pub(super) fn hurry_to(&mut self, tick: Duration) {
        if self.tick.is_zero() || tick < self.tick {
            self.set_tick(tick);
        }
    }

    /// Facts wait for another callback, whatever the time.
    pub(super) fn has_more(&self) -> bool {
        !self.fetched.is_empty() || self.waiters.has_woken() || self.stores.has_work()
    }

    pub(super) fn due_tick(&self, now: Timestamp) -> Duration {
        let alarms = self.timers.next().into_iter().chain(self.stores.alarm());
        let alarm = alarms.chain(logging::alarm()).min();
        if self.has_more() || self.calls.are_wanted() || alarm.is_some_and(|alarm| alarm <= now) {
            NEXT_TICK
        } else if !self.probes.is_empty() || alarm.is_some_and(|alarm| is_soon(alarm, now)) {
            SHORT_TICK
        } else {
            LONG_TICK
        }
    }

    pub(super) fn set_tick(&mut self, tick: Duration) {
        if self.tick != tick {
            self.tick = tick;
            abi::set_tick_period(tick);
        }
    }
}

/// The long tick would be late for it, or almost.
fn is_soon(alarm: Timestamp, now: Timestamp) -> bool {
    now.until(alarm) < 2 * LONG_TICK
}

/// The number of bytes that Envoy has received of the effective context's request, as Envoy writes it.
fn received() -> Vec<u8> {
    abi::property(&["request", "total_size"]).unwrap_or_default()
}
