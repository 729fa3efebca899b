//! The limit of log lines of one kind: a store that is down must not write one for each request.

use super::Incident;
use crate::time::Timestamp;
use std::time::Duration;

/// Lines of one kind and worker in a [`WINDOW`]: the first ones show the fault and some of its keys, the
/// hundredth adds nothing.
pub const LINES: u32 = 5;

/// The length of a window. Short compared with the minute in which an operator looks, so that a lasting fault
/// is visible as such; a day of it is at most some 100,000 lines per worker and kind.
pub const WINDOW: Duration = Duration::from_secs(5);

/// The recent lines of one worker's log, by kind.
#[derive(Debug, Default)]
pub struct Limiter {
    /// One per recent kind; there are a dozen kinds.
    windows: Vec<Window>,
}

#[derive(Debug)]
struct Window {
    incident: Incident,
    until: Timestamp,
    written: u32,
    missed: u32,
}

impl Window {
    /// A clock that was set back must not silence a kind until it has caught up.
    fn is_over(&self, now: Timestamp) -> bool {
        self.until <= now || now.after(WINDOW) < self.until
    }
}

impl Limiter {
    /// Whether a line of this kind may be written. Call [`Limiter::ended`] first.
    pub fn admit(&mut self, incident: Incident, now: Timestamp) -> bool {
        match self.windows.iter_mut().find(|window| window.incident == incident) {
            Some(window) if window.written < LINES => {
                window.written += 1;
                true
            }
            Some(window) => {
                window.missed = window.missed.saturating_add(1);
                false
            }
            None => {
                let until = now.after(WINDOW);
                self.windows.push(Window { incident, until, written: 1, missed: 0 });
                true
            }
        }
    }

    /// Forgets the windows that are over, and returns the kinds and numbers of lines that were not written in
    /// them.
    pub fn ended(&mut self, now: Timestamp) -> Vec<(Incident, u32)> {
        self.forget(|window| window.is_over(now))
    }

    /// Forgets all windows, as if they were over.
    pub fn rest(&mut self) -> Vec<(Incident, u32)> {
        self.forget(|_| true)
    }

    /// When a window with unwritten lines ends.
    pub fn alarm(&self) -> Option<Timestamp> {
        let missed = self.windows.iter().filter(|window| window.missed > 0);
        missed.map(|window| window.until).min()
    }

    fn forget(&mut self, is_over: impl Fn(&Window) -> bool) -> Vec<(Incident, u32)> {
        let mut missed = Vec::new();
        self.windows.retain(|window| {
            let over = is_over(window);
            if over && window.missed > 0 {
                missed.push((window.incident, window.missed));
            }
            !over
        });
        missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_000_000);

    fn at(millis: u64) -> Timestamp {
        START.after(Duration::from_millis(millis))
    }

    /// Lines that are written of one that comes each millisecond, and summaries.
    fn written(
        limiter: &mut Limiter,
        incident: Incident,
        millis: std::ops::Range<u64>,
    ) -> (u32, u32) {
        let (mut lines, mut missed) = (0, 0);
        for millis in millis {
            missed += limiter.ended(at(millis)).iter().map(|(_, missed)| missed).sum::<u32>();
            lines += u32::from(limiter.admit(incident, at(millis)));
        }
        (lines, missed)
    }

    #[test]
    fn an_outage_writes_few_lines_and_every_other_is_counted_once() {
        let mut limiter = Limiter::default();
        let (lines, missed) = written(&mut limiter, Incident::StoreFailed, 0..60_000);
        assert_eq!(lines, 12 * LINES);
        let rest: u32 = limiter.rest().iter().map(|(_, missed)| missed).sum();
        assert_eq!(lines + missed + rest, 60_000);
        assert_eq!(limiter.alarm(), None);
    }

    #[test]
    fn one_kind_does_not_silence_another() {
        let mut limiter = Limiter::default();
        written(&mut limiter, Incident::StoreFailed, 0..100);
        assert!(limiter.admit(Incident::Takeover, at(100)));
        assert!(!limiter.admit(Incident::StoreFailed, at(100)));
    }

    #[test]
    fn the_summary_comes_when_the_window_ends_and_not_before() {
        let mut limiter = Limiter::default();
        written(&mut limiter, Incident::StoreFailed, 0..u64::from(LINES));
        assert_eq!(limiter.alarm(), None, "nothing was left out");
        assert!(!limiter.admit(Incident::StoreFailed, at(100)));
        let end = START.after(WINDOW);
        assert_eq!(limiter.alarm(), Some(end));
        assert_eq!(limiter.ended(at(4_999)), []);
        assert_eq!(limiter.ended(end), [(Incident::StoreFailed, 1)]);
        assert!(limiter.admit(Incident::StoreFailed, end));
    }

    #[test]
    fn a_rare_line_is_written_each_time() {
        let mut limiter = Limiter::default();
        for minute in 0..100 {
            let now = at(minute * 60_000);
            assert_eq!(limiter.ended(now), []);
            assert!(limiter.admit(Incident::Takeover, now));
        }
    }

    #[test]
    fn a_clock_that_was_set_back_silences_nothing() {
        let mut limiter = Limiter::default();
        let before = written(&mut limiter, Incident::StoreFailed, 3_600_000..3_600_100);
        assert_eq!(before, (LINES, 0));
        assert_eq!(limiter.ended(START), [(Incident::StoreFailed, 100 - LINES)]);
        assert!(limiter.admit(Incident::StoreFailed, START));
    }
}
