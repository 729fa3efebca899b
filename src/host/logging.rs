//! The log: one line per incident, and a summary line for those beyond the limit.

use super::store::now;
use crate::telemetry::{Incident, Limiter};
use crate::time::Timestamp;
use std::cell::RefCell;
use std::fmt;

thread_local! {
    /// Of this VM, which is this worker's: its plugins share the limits, because a fault usually hits all of them.
    static LIMITER: RefCell<Limiter> = RefCell::default();
}

/// Writes a line, unless the limit for its kind is reached.
pub(super) fn log_incident(incident: Incident, text: &dyn fmt::Display) {
    if !log::log_enabled!(incident.level()) {
        return;
    }
    let now = now();
    log_missed(now);
    if LIMITER.with_borrow_mut(|limiter| limiter.admit(incident, now)) {
        write(incident, text);
    }
}

/// Writes how many lines were left out, when their window is over.
pub(super) fn log_missed(now: Timestamp) {
    summarise(LIMITER.with_borrow_mut(|limiter| limiter.ended(now)));
}

/// Writes how many lines were left out, at the end: no later call would do it.
pub(super) fn end() {
    summarise(LIMITER.with_borrow_mut(Limiter::rest));
}

/// When [`log_missed`] has something to write.
pub(super) fn alarm() -> Option<Timestamp> {
    LIMITER.with_borrow(Limiter::alarm)
}

fn summarise(missed: Vec<(Incident, u32)>) {
    for (incident, missed) in missed {
        write(incident, &format_args!("… and {missed} more like it"));
    }
}

fn write(incident: Incident, text: &dyn fmt::Display) {
    log::log!(incident.level(), "{}: {text}", incident.word());
}
