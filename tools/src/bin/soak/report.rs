//! The figures of a run, and the reasons why it failed.

use super::ledger::{Judged, Ledger};
use super::load::{Load, Seen};
use super::{CROWD_IN_TIME, Restarts};

/// Everything that a run is judged by.
pub(super) struct Report<'a> {
    pub(super) judged: Judged,
    /// Redis comes back empty.
    pub(super) forgets: bool,
    pub(super) load: &'a Load,
    pub(super) ledger: &'a Ledger,
    pub(super) restarts: &'a Restarts,
    /// Ends of claims that could not be recorded in time.
    pub(super) given_up: usize,
    /// Requests that an Envoy's memory decided alone.
    pub(super) fallbacks: u64,
    /// Records that were evicted from an Envoy's memory.
    pub(super) evictions: u64,
    /// VMs that were made, before and after.
    pub(super) vms: (Option<u64>, Option<u64>),
}

impl Report<'_> {
    pub(super) fn print(&self) {
        let line = |what: &str, count: &dyn std::fmt::Display| println!("  {what:<54}{count:>12}");
        let totals = self.ledger.totals();
        println!("\nClients");
        line("requests", &self.load.requests());
        line("keys", &self.load.keys());
        line("sent again without an answer", &self.load.retries());
        for (seen, count) in self.load.seen() {
            line(&seen.to_string(), &count);
        }
        let (crowds, longest) = self.load.crowds();
        line("crowds", &crowds);
        line("longest time to an answer in a crowd", &format!("{} ms", longest.as_millis()));
        println!("Origin");
        line("executions", &totals.executions);
        line("… of a key that was released before", &totals.after_release);
        line("… of a key with unknown outcome, after unknown_ttl", &totals.after_doubt);
        line("at once under one key, at the most", &totals.most_at_once);
        if self.forgets {
            line("… that a loss of Redis let run again", &totals.after_loss);
        }
        if self.judged == Judged::EachEnvoy {
            line("… of a key that the other Envoy had run", &totals.at_both);
            line("… after an unknown outcome, with too low an attempt", &totals.miscounted);
        }
        println!("Redis and Envoy");
        line("Redis restarts", &self.restarts.count);
        let longest = format!("{} ms", self.restarts.longest_without_service.as_millis());
        line("longest time without service after one", &longest);
        line("ends of claims that could not be recorded in time", &self.given_up);
        line("requests that an Envoy's memory decided alone", &self.fallbacks);
        line("records evicted from an Envoy's memory", &self.evictions);
        let made = |vms: Option<u64>| vms.map_or("unknown".to_owned(), |vms| vms.to_string());
        line(
            "VMs created before, and after",
            &format!("{}, {}", made(self.vms.0), made(self.vms.1)),
        );
        line(
            if self.forgets { "violations, not judged" } else { "violations" },
            &totals.violations.len(),
        );
        for violation in totals.violations.iter().take(10) {
            println!("    {violation}");
        }
    }

    pub(super) fn failures(&self, interrupted: bool) -> Vec<String> {
        let totals = self.ledger.totals();
        let mut failures = Vec::new();
        let mut fails = |if_so: bool, why: &str| {
            if if_so {
                failures.push(why.to_owned());
            }
        };
        fails(!self.forgets && !totals.violations.is_empty(), "a key ran that must not have run");
        fails(self.evictions > 0, "a record was evicted");
        fails(self.given_up > 0, "Redis was away for longer than this run can judge");
        if interrupted {
            // Envoy and Redis may have got the signal too; and there may be few results yet.
            return failures;
        }
        fails(self.vms.0 != self.vms.1, "a worker stopped");
        let seen = self.load.seen();
        let unexplained = |seen: &Seen| matches!(seen, Seen::Unexplained(_));
        fails(seen.keys().any(unexplained), "an unexpected answer");
        let (crowds, longest) = self.load.crowds();
        fails(longest > CROWD_IN_TIME, "an answer in a crowd that was late");
        let refused = seen.contains_key(&Seen::StoreAway);
        let alone = self.judged == Judged::EachEnvoy;
        fails(alone && refused, "a request that was refused although an Envoy's memory decides");
        let conflict = |code: &str| seen.contains_key(&Seen::Conflict(code.to_owned()));
        for (happened, what) in [
            (seen.contains_key(&Seen::First), "first answer"),
            (seen.contains_key(&Seen::Replay), "replay"),
            (conflict("in-progress"), "duplicate that was refused"),
            (conflict("outcome-unknown"), "unknown outcome"),
            (seen.contains_key(&Seen::Left), "client that left"),
            (totals.after_release > 0, "execution after a release"),
            (totals.after_doubt > 0, "execution after an unknown outcome"),
            (self.restarts.count > 0, "restart of Redis"),
            (crowds > 0, "crowd"),
            (alone || refused, "request refused while Redis was away"),
            (!alone || self.fallbacks > 0, "request that an Envoy's memory decided alone"),
            (!alone || totals.at_both > 0, "execution of a key at both Envoys"),
            (!self.forgets || totals.after_loss > 0, "execution after a loss"),
        ] {
            fails(!happened, &format!("there was no {what}"));
        }
        failures
    }
}
