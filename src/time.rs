//! Points in time and lengths of time. No clock: the caller passes the time.

use std::fmt;
use std::time::{Duration, SystemTime};

/// A point in time on a clock that never goes back, in whole microseconds since that clock's own start.
///
/// It is the clock of leases, deadlines, timers and of the table in Envoy's memory. A change of the machine's
/// wall clock must not end a lease. Two points are comparable only if they come from one clock: the
/// machine's, or, in a record as Redis holds it, that of Redis. Arithmetic saturates: a deadline that
/// overflows never comes. If it wrapped into the past, it would free a claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

/// Microseconds in a millisecond.
const MICROS: u64 = 1_000;

impl Timestamp {
    /// The point `millis` milliseconds after the clock's start.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(MICROS))
    }

    /// Whole milliseconds since the clock's start: the unit of records, because Redis's `TIME` and `PEXPIRE` use
    /// it. A time that never comes stays one.
    pub const fn as_millis(self) -> u64 {
        if self.0 == u64::MAX { u64::MAX } else { self.0 / MICROS }
    }

    /// The point `micros` microseconds after the clock's start.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the clock's start.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// The point `length` later, or the last representable one.
    #[must_use]
    pub fn after(self, length: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(length.as_micros()).unwrap_or(u64::MAX)))
    }

    /// How long it is from `self` until `later`; zero when `later` is past.
    pub fn until(self, later: Self) -> Duration {
        Duration::from_micros(later.0.saturating_sub(self.0))
    }
}

/// A point in time that people read, in whole milliseconds since the Unix epoch.
///
/// No decision depends on it: it may step back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallTime(u64);

impl WallTime {
    /// The point `millis` milliseconds after the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }
}

/// RFC 3339 in UTC with milliseconds, e.g. `2026-11-24T04:06:34.120Z` (RFC 3339 section 5.6).
impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // humantime refuses years past 9999; a time that never comes is clamped to that.
        let millis = self.0.min(LAST_MILLISECOND_OF_9999);
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        humantime::format_rfc3339_millis(time).fmt(f)
    }
}

/// 9999-12-31T23:59:59.999Z, the last instant RFC 3339 can write.
const LAST_MILLISECOND_OF_9999: u64 = 253_402_300_799_999;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_is_written_as_rfc_3339() {
        let written = |millis| WallTime::from_millis(millis).to_string();
        assert_eq!(written(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(written(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(written(1_795_493_194_120), "2026-11-24T04:06:34.120Z");
        assert_eq!(written(u64::MAX), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn a_deadline_that_overflows_never_comes() {
        let end = Timestamp::from_micros(u64::MAX - 1).after(Duration::from_secs(60));
        assert_eq!(end, Timestamp::from_micros(u64::MAX));
        assert_eq!(Timestamp::from_millis(u64::MAX), end);
        assert_eq!(end.as_millis(), u64::MAX);
        assert_eq!(Timestamp::from_millis(5).until(Timestamp::from_millis(3)), Duration::ZERO);
    }
}
