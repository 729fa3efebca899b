//! Which answers of the application are kept, which free the key, and which make its outcome unknown.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What happens to a first answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Kept and replayed.
    Store,
    /// The status is kept and replayed with an empty body.
    StatusOnly,
    /// Nothing was done: the key is free again, and the next request runs.
    Release,
    /// It may have been done: duplicates are refused until an attempt may take over.
    Unknown,
}

/// Final status codes from `first` to `last`, both included, within 200 to 599.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusRange {
    first: u16,
    last: u16,
}

/// Why a value is not a [`StatusRange`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatusRangeError {
    /// Neither a number, nor `4xx`, nor `500-599`.
    Syntax(String),
    /// Beyond 200 to 599: interim answers never end an execution, and RFC 9110 section 15 knows no
    /// status above 599.
    OutOfBounds(u16),
    /// The first status is above the last.
    Reversed(u16, u16),
}

/// One line of a rule's `outcomes`: these statuses are treated like this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutcomeRule {
    /// The rule applies when any of these holds the status.
    pub statuses: Vec<StatusRange>,
    /// What happens to the answer.
    pub then: Disposition,
    /// How long the record lives, if not the rule's own `ttl`.
    pub ttl: Option<Duration>,
}

/// A rule's `outcomes`: the first that matches wins, then the defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcomes(pub Vec<OutcomeRule>);

impl StatusRange {
    /// The statuses from `first` to `last`, both included.
    ///
    /// # Errors
    ///
    /// [`StatusRangeError::OutOfBounds`] and [`StatusRangeError::Reversed`].
    pub fn new(first: u16, last: u16) -> Result<Self, StatusRangeError> {
        for status in [first, last] {
            if !(LOWEST_FINAL_STATUS..=HIGHEST_STATUS).contains(&status) {
                return Err(StatusRangeError::OutOfBounds(status));
            }
        }
        if first > last {
            return Err(StatusRangeError::Reversed(first, last));
        }
        Ok(Self { first, last })
    }

    /// This status alone.
    ///
    /// # Errors
    ///
    /// [`StatusRangeError::OutOfBounds`].
    pub fn single(status: u16) -> Result<Self, StatusRangeError> {
        Self::new(status, status)
    }

    /// Whether `status` is one of these.
    pub fn contains(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

/// Reads `200`, `4xx` or `500-599`.
impl FromStr for StatusRange {
    type Err = StatusRangeError;

    fn from_str(text: &str) -> Result<Self, StatusRangeError> {
        let syntax = || StatusRangeError::Syntax(text.to_owned());
        if let Some(class) = text.strip_suffix("xx") {
            // One digit, so that the product cannot overflow.
            let class = status_digits(class, 1).ok_or_else(syntax)? * 100;
            return Self::new(class, class + 99);
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let first = status_digits(first, 3).ok_or_else(syntax)?;
        let last = status_digits(last, 3).ok_or_else(syntax)?;
        Self::new(first, last)
    }
}

impl fmt::Display for StatusRangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(found) => {
                write!(f, "{found:?} is not a status, write 200, \"4xx\" or \"500-599\"")
            }
            Self::OutOfBounds(status) => {
                write!(f, "{status} is not within {LOWEST_FINAL_STATUS} to {HIGHEST_STATUS}")
            }
            Self::Reversed(first, last) => {
                write!(f, "{first}-{last} runs backwards, write {last}-{first}")
            }
        }
    }
}

impl std::error::Error for StatusRangeError {}

impl Outcomes {
    /// What happens to an answer *of the application*, and how long its record lives if not for the
    /// rule's `ttl`. Envoy's own answers are told apart before this is asked: their status says
    /// nothing about whether the application ran.
    ///
    /// A wrong `Release` costs a double execution, a wrong `Unknown` a needless 409; hence whatever
    /// does not say clearly "not executed" is never released.
    pub fn decide(&self, status: u16, has_retry_after: bool) -> (Disposition, Option<Duration>) {
        self.0
            .iter()
            .find(|rule| rule.statuses.iter().any(|range| range.contains(status)))
            .map_or_else(
                || (default_for_application_status(status, has_retry_after), None),
                |rule| (rule.then, rule.ttl),
            )
    }
}

/// 1xx are interim (RFC 9110 section 15.2): more is to come, so no rule can be about them.
const LOWEST_FINAL_STATUS: u16 = 200;

/// "Values outside the range 100..599 are invalid" (RFC 9110 section 15).
const HIGHEST_STATUS: u16 = 599;

/// Exactly `digits` decimal digits (at most 4), no sign.
fn status_digits(text: &str, digits: usize) -> Option<u16> {
    (text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

fn default_for_application_status(status: u16, has_retry_after: bool) -> Disposition {
    match status {
        // Refused before it was begun: who you are (401, 403, 407), too slow (408), wrong connection
        // (421), too early (425), too often (429). The same request may succeed later.
        401 | 403 | 407 | 408 | 421 | 425 | 429 => Disposition::Release,
        503 if has_retry_after => Disposition::Release,
        // Said by something in front of the application, or while it went away half done.
        502..=504 => Disposition::Unknown,
        200..=599 => Disposition::Store,
        // No final status: the outcome is unknown.
        0..=199 | 600..=u16::MAX => Disposition::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> StatusRange {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_is_a_status_a_class_or_two_bounds() {
        assert_eq!(range("200"), StatusRange { first: 200, last: 200 });
        assert_eq!(range("4xx"), StatusRange { first: 400, last: 499 });
        assert_eq!(range("500-599"), StatusRange { first: 500, last: 599 });
        assert_eq!(StatusRange::single(404), Ok(StatusRange { first: 404, last: 404 }));
    }

    #[test]
    fn a_text_that_is_not_a_range_is_refused() {
        for text in
            ["", "x", "xx", "4XX", "44xx", "+4xx", "-", "200-", "-200", "2000", "20", " 200"]
        {
            assert_eq!(
                text.parse::<StatusRange>(),
                Err(StatusRangeError::Syntax(text.to_owned())),
                "{text}"
            );
        }
        assert_eq!("1xx".parse::<StatusRange>(), Err(StatusRangeError::OutOfBounds(100)));
        assert_eq!("200-600".parse::<StatusRange>(), Err(StatusRangeError::OutOfBounds(600)));
        assert_eq!("500-400".parse::<StatusRange>(), Err(StatusRangeError::Reversed(500, 400)));
    }

    #[test]
    fn errors_show_a_correct_form() {
        let said = |text: &str| text.parse::<StatusRange>().unwrap_err().to_string();
        assert_eq!(said("5XX"), r#""5XX" is not a status, write 200, "4xx" or "500-599""#);
        assert_eq!(said("199"), "199 is not within 200 to 599");
        assert_eq!(said("500-400"), "500-400 runs backwards, write 400-500");
    }

    #[test]
    fn every_status_has_its_default() {
        let released = [401, 403, 407, 408, 421, 425, 429];
        let in_doubt = [502, 503, 504];
        for status in 0..=1000 {
            let wanted = if released.contains(&status) {
                Disposition::Release
            } else if in_doubt.contains(&status) || !(200..600).contains(&status) {
                Disposition::Unknown
            } else {
                Disposition::Store
            };
            assert_eq!(Outcomes::default().decide(status, false), (wanted, None), "{status}");
        }
    }

    #[test]
    fn retry_after_frees_the_key_with_a_503_alone() {
        for status in 200..600 {
            let (without, _) = Outcomes::default().decide(status, false);
            let (with, _) = Outcomes::default().decide(status, true);
            assert_eq!(
                with,
                if status == 503 { Disposition::Release } else { without },
                "{status}"
            );
        }
    }

    #[test]
    fn the_first_rule_that_matches_wins_before_the_defaults() {
        let minute = Some(Duration::from_secs(60));
        let rule = |statuses: &[&str], then, ttl| OutcomeRule {
            statuses: statuses.iter().map(|text| range(text)).collect(),
            then,
            ttl,
        };
        let outcomes = Outcomes(vec![
            rule(&["404", "410"], Disposition::Release, None),
            rule(&["4xx"], Disposition::StatusOnly, minute),
            rule(&["503"], Disposition::Store, minute),
        ]);
        assert_eq!(outcomes.decide(404, false), (Disposition::Release, None));
        assert_eq!(outcomes.decide(410, false), (Disposition::Release, None));
        assert_eq!(outcomes.decide(429, false), (Disposition::StatusOnly, minute));
        assert_eq!(outcomes.decide(503, true), (Disposition::Store, minute));
        assert_eq!(outcomes.decide(502, false), (Disposition::Unknown, None));
    }
}
