//! Many requests, two Envoys, one store, virtual time, and everything that can go wrong on the way.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test: clippy sees only what stands in a #[test] function as one"
)]
#![allow(unreachable_pub, missing_docs)]
//!
//! One invariant is checked at every execution: *no key runs twice while an earlier execution of it is
//! running, recorded, or in doubt*. Every run is bounded and is repeated exactly by its seed.

mod world;

use world::{Faults, World};

/// Seeds a fault is tried with. A run takes milliseconds; the seeds that once failed are in their own
/// tests.
const SEEDS: u64 = 300;

fn run(faults: Faults) -> world::Totals {
    let mut totals = world::Totals::default();
    for two_tiers in [false, true] {
        let mut here = world::Totals::default();
        for seed in 0..SEEDS {
            here += World::new(seed, Faults { two_tiers, ..faults }).run();
        }
        assert!(here.executions > 0 && here.answers > 0, "nothing happened: {here:?}");
        assert_eq!(here.answered_here > 0, two_tiers, "{here:?}");
        assert!(here.detached > 0, "{here:?}");
        totals += here;
    }
    totals
}

#[test]
fn nothing_runs_twice_when_all_is_well() {
    let totals = run(Faults::default());
    assert!(totals.replays > 0, "{totals:?}");
    assert_eq!(totals.doubtful, 0, "{totals:?}");
}

#[test]
fn nothing_runs_twice_when_replies_of_the_store_are_lost() {
    let totals = run(Faults { reply_lost_percent: 20, ..Faults::default() });
    assert!(totals.store_errors > 0, "{totals:?}");
}

#[test]
fn nothing_runs_twice_when_commands_to_the_store_are_lost() {
    let totals = run(Faults { command_lost_percent: 20, ..Faults::default() });
    assert!(totals.store_errors > 0, "{totals:?}");
}

#[test]
fn nothing_runs_twice_when_commands_reach_the_store_late() {
    let totals = run(Faults { command_late_percent: 20, ..Faults::default() });
    assert!(totals.store_errors > 0, "{totals:?}");
}

#[test]
fn nothing_runs_twice_when_commands_reach_the_store_twice() {
    run(Faults { command_twice_percent: 50, ..Faults::default() });
}

#[test]
fn nothing_runs_twice_when_words_of_an_end_are_lost() {
    run(Faults { word_lost_percent: 50, ..Faults::default() });
}

#[test]
fn nothing_runs_twice_when_the_store_is_down_for_a_while() {
    let totals = run(Faults { store_down: true, ..Faults::default() });
    assert!(totals.store_errors > 0, "{totals:?}");
}

#[test]
fn nothing_runs_twice_when_clients_leave_in_any_state() {
    let totals = run(Faults { client_gone_percent: 40, ..Faults::default() });
    assert!(totals.doubtful > 0, "{totals:?}");
}

#[test]
fn nothing_runs_twice_when_a_worker_dies() {
    let totals = run(Faults { worker_dies: true, ..Faults::default() });
    assert!(totals.takeovers > 0, "{totals:?}");
}

#[test]
fn nothing_runs_twice_when_a_worker_freezes_past_its_lease() {
    run(Faults { worker_freezes: true, ..Faults::default() });
}

#[test]
fn nothing_runs_twice_when_the_clocks_of_the_envoys_differ() {
    run(Faults { skew_millis: 5_000, ..Faults::default() });
}

#[test]
fn nothing_runs_twice_when_the_origin_fails() {
    let totals = run(Faults { origin_fails_percent: 30, ..Faults::default() });
    assert!(totals.doubtful > 0 && totals.released > 0, "{totals:?}");
}

#[test]
fn nothing_runs_twice_when_everything_goes_wrong_at_once() {
    run(Faults {
        reply_lost_percent: 10,
        command_lost_percent: 10,
        command_late_percent: 10,
        command_twice_percent: 10,
        word_lost_percent: 10,
        two_tiers: false,
        store_down: true,
        client_gone_percent: 20,
        worker_dies: true,
        worker_freezes: true,
        skew_millis: 1_000,
        origin_fails_percent: 20,
    });
}
