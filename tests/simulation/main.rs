//! Many requests, two Envoys of two workers, one Redis, virtual time, and everything that can go wrong on
//! the way. It runs the machine of a request ([`envoy_idempotency::exchange`]) and the one in front of
//! the stores ([`envoy_idempotency::store::front`]), down to the bytes on the connections to Redis.
//!
//! Checked at every execution: *no key runs again while an earlier execution of it runs, is recorded, or is
//! unknown*: by Redis's records if the rule says `refuse`, within each Envoy if it says `local`,
//! whatever Redis does. Checked at every replay: it is the answer to this operation, and recorded. Checked in
//! every callback: it handles no more streams than its budget. Checked at the end: every request has its
//! answer, and no request waits. Every run is bounded and is repeated exactly by its seed: `SIM_SEED=7` runs that
//! one alone, `SIM_STORY=1` prints what happens in it, `SIM_SEEDS=100000` runs so many.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test: clippy sees only what stands in a #[test] function as one"
)]
#![allow(unreachable_pub, missing_docs)]

mod faults;
mod ledger;
mod random;
mod redis;
mod worker;
mod world;

use faults::{Faults, Totals};
use world::World;

/// Seeds a fault is tried with, of each store. A run takes milliseconds.
const SEEDS: u64 = 200;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Names the run that fails.
struct Running(u64, Faults);

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("SIM_SEED={} with {:?}", self.0, self.1);
        }
    }
}

fn run_one(faults: Faults) -> Totals {
    let mut totals = Totals::default();
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        let running = Running(seed, faults);
        totals += World::new(seed, faults).run();
        drop(running);
    }
    totals
}

/// Runs with Redis, and without.
fn run(faults: Faults) -> Totals {
    let mut totals = Totals::default();
    for memory in [false, true] {
        let here = run_one(Faults { memory, ..faults });
        assert!(here.executions > 0 && here.answers > 0, "nothing happened: {here:?}");
        assert!(here.detached > 0 || number("SIM_SEED").is_some(), "{here:?}");
        totals += here;
    }
    totals
}

/// Each event must have happened, unless only one seed is run.
fn seen(count: u64, totals: &Totals) {
    assert!(count > 0 || number("SIM_SEED").is_some(), "{totals:?}");
}

#[test]
fn nothing_runs_twice_when_all_is_well() {
    let totals = run(Faults::default());
    seen(totals.replays, &totals);
    seen(totals.known_here, &totals);
    seen(totals.no_script, &totals);
    assert_eq!((totals.unknown, totals.store_errors, totals.local), (0, 0, 0), "{totals:?}");
}

#[test]
fn nothing_runs_twice_when_connections_break_and_replies_are_lost() {
    let totals = run(Faults { replies_lost_percent: 10, ..Faults::default() });
    seen(totals.reconnects, &totals);
}

#[test]
fn nothing_runs_twice_when_connections_break_and_commands_are_lost() {
    let totals = run(Faults { bytes_lost_percent: 10, ..Faults::default() });
    seen(totals.store_errors, &totals);
    seen(totals.local, &totals);
}

#[test]
fn nothing_runs_twice_when_commands_come_to_redis_late() {
    let totals = run(Faults { bytes_late_percent: 10, ..Faults::default() });
    seen(totals.store_errors, &totals);
    seen(totals.too_late, &totals);
}

#[test]
fn nothing_runs_twice_when_redis_forgets_its_scripts_at_any_time() {
    let totals = run(Faults { scripts_lost_percent: 20, busy: true, ..Faults::default() });
    seen(totals.no_script, &totals);
    // A connection that is closed over a reply to another question would show here.
    assert_eq!((totals.store_errors, totals.reconnects), (0, 0), "{totals:?}");
}

#[test]
fn nothing_runs_twice_when_messages_of_an_end_are_lost() {
    run(Faults { messages_lost_percent: 50, ..Faults::default() });
}

#[test]
fn nothing_runs_twice_when_redis_is_away_for_a_while() {
    let totals = run(Faults { redis_down: true, ..Faults::default() });
    seen(totals.store_errors, &totals);
    seen(totals.local, &totals);
}

#[test]
fn nothing_runs_twice_when_redis_hangs_for_a_while() {
    let totals = run(Faults { redis_hangs: true, ..Faults::default() });
    seen(totals.store_errors, &totals);
    seen(totals.local, &totals);
}

#[test]
fn nothing_runs_twice_when_clocks_step_back() {
    run(Faults { redis_clock_steps: true, wall_clock_steps: true, ..Faults::default() });
}

#[test]
fn nothing_runs_twice_when_clients_leave_in_any_state() {
    let totals = run(Faults { client_gone_percent: 40, ..Faults::default() });
    seen(totals.unknown, &totals);
}

#[test]
fn nothing_runs_twice_when_a_worker_dies() {
    let totals = run(Faults { worker_dies: true, ..Faults::default() });
    seen(totals.takeovers, &totals);
}

#[test]
fn nothing_runs_twice_when_a_worker_freezes_past_its_lease() {
    run(Faults { worker_freezes: true, ..Faults::default() });
}

#[test]
fn nothing_runs_twice_when_the_origin_fails() {
    let totals = run(Faults { origin_fails_percent: 30, ..Faults::default() });
    seen(totals.unknown, &totals);
    seen(totals.released, &totals);
}

#[test]
fn nothing_runs_twice_in_a_crowd() {
    run(Faults { crowd: true, origin_fails_percent: 20, ..Faults::default() });
    run(Faults { crowd: true, redis_hangs: true, ..Faults::default() });
}

#[test]
fn nothing_runs_twice_when_redis_goes_away_while_claims_are_released() {
    let totals = run(Faults {
        origin_fails_percent: 50,
        bytes_lost_percent: 3,
        redis_down: true,
        redis_hangs: true,
        crowd: true,
        busy: true,
        ..Faults::default()
    });
    seen(totals.local, &totals);
}

#[test]
fn nothing_runs_twice_when_everything_goes_wrong_at_once() {
    run(Faults {
        memory: false,
        bytes_lost_percent: 3,
        replies_lost_percent: 3,
        bytes_late_percent: 3,
        scripts_lost_percent: 3,
        messages_lost_percent: 10,
        redis_down: true,
        redis_hangs: true,
        redis_clock_steps: true,
        client_gone_percent: 20,
        worker_dies: true,
        worker_freezes: true,
        wall_clock_steps: true,
        origin_fails_percent: 20,
        crowd: true,
        busy: true,
    });
}
