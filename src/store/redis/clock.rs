//! Redis's clock, as known from its replies.

use crate::time::Timestamp;

/// The time of Redis's clock, and when the reply with it came.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock {
    heard: Option<(Timestamp, Timestamp)>,
}

impl Clock {
    /// A new reply says that Redis's clock is at `there`.
    pub(super) fn hear(&mut self, there: Timestamp, now: Timestamp) {
        self.heard = Some((there, now));
    }

    /// An estimate of Redis's clock now, which is never ahead of it; `None` before the first reply.
    ///
    /// The reply took some time, so Redis's clock is ahead of this estimate by that time. A command that
    /// comes that late would get its reply too late as well.
    pub(super) fn there(&self, here: Timestamp) -> Option<Timestamp> {
        let (there, heard_at) = self.heard?;
        let back = here.until(heard_at);
        if back.is_zero() {
            return Some(there.after(heard_at.until(here)));
        }
        Some(Timestamp::default().after(Timestamp::default().until(there).saturating_sub(back)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn redis_time_passes_as_ours_does() {
        let mut clock = Clock::default();
        assert_eq!(clock.there(at(5)), None);
        clock.hear(at(1_000_000), at(100));
        assert_eq!(clock.there(at(350)), Some(at(1_000_250)));
        assert_eq!(clock.there(at(40)), Some(at(999_940)));
        // Redis's clock was set back.
        clock.hear(at(500), at(400));
        assert_eq!(clock.there(at(401)), Some(at(501)));
    }
}
