//! Redis's clock, as far as its replies tell.

use crate::time::Timestamp;

/// What Redis's clock said, and when the reply that said so came.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock {
    heard: Option<(Timestamp, Timestamp)>,
}

impl Clock {
    /// A reply that has just come says that Redis's clock is at `there`.
    pub(super) fn hear(&mut self, there: Timestamp, now: Timestamp) {
        self.heard = Some((there, now));
    }

    /// What Redis's clock says at this moment at the latest; `None` before it has said anything.
    ///
    /// The reply was under way for a while, so that Redis's clock is ahead of this by as long. A command that
    /// comes that late would be answered too late as well.
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
