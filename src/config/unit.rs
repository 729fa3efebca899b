//! Lengths of time and sizes, as the configuration writes them.

use std::fmt;
use std::time::Duration;

/// Reads a length of time with a unit: `"250ms"`, `"1h"`, `"30d"`, `"1h 30m"`, and the way Envoy's own
/// configuration writes it, `"0.25s"`. Whole milliseconds, which is what [`Timestamp`] counts.
///
/// [`Timestamp`]: crate::time::Timestamp
///
/// # Errors
///
/// What was found and what is wanted, in words.
pub(super) fn parse_length(text: &str) -> Result<Duration, String> {
    let no_length = || format!("{text:?} is no length of time, {WANTED_LENGTH}");
    if text.len() > LONGEST_LENGTH {
        return Err(no_length());
    }
    // humantime takes a bare zero.
    if text == "0" {
        return Err("\"0\" has no unit, write \"0s\"".to_owned());
    }
    let length = humantime::parse_duration(text).map_err(|error| match error {
        humantime::DurationError::UnknownUnit { unit, .. } if unit.is_empty() => {
            format!("{text:?} has no unit, write {:?}", format!("{}s", text.trim_end()))
        }
        humantime::DurationError::UnknownUnit { unit, .. } => {
            format!("{text:?} has the unknown unit {unit:?}, {WANTED_LENGTH}")
        }
        humantime::DurationError::InvalidCharacter(_)
        | humantime::DurationError::NumberExpected(_)
        | humantime::DurationError::NumberOverflow
        | humantime::DurationError::Empty => no_length(),
    })?;
    if length.subsec_nanos() % 1_000_000 != 0 {
        return Err(format!("{text:?} is finer than a millisecond, wanted whole milliseconds"));
    }
    Ok(length)
}

/// Reads a size: a whole number of `B`, `KiB`, `MiB` or `GiB`.
///
/// Our own twelve lines and not the `bytesize` crate, which takes `"64"`, `"64kb"` and `"1.5 M"` as well:
/// a bound on memory should not depend on knowing which of two kilobytes a library meant.
///
/// # Errors
///
/// What was found and what is wanted, in words.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).unwrap_or((text, ""));
    let no_size = || format!("{text:?} is no size, {WANTED_SIZE}");
    let number: u64 = number.parse().map_err(|_| no_size())?;
    if unit.is_empty() {
        return Err(format!("{text:?} has no unit, write \"{text}B\""));
    }
    let unit = SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(no_size)?;
    number.checked_mul(unit.1).ok_or_else(no_size)
}

/// A length of time as [`parse_length`] reads it: the largest unit that leaves a whole number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Length(pub(super) Duration);

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let whole = LENGTH_UNITS.iter().find(|(name, unit)| {
            let least = if *name == "d" { 2 * unit } else { *unit };
            millis >= least && millis.is_multiple_of(*unit)
        });
        match whole {
            Some((name, unit)) => write!(f, "{}{name}", millis / unit),
            None => write!(f, "0s"),
        }
    }
}

/// A size as [`parse_size`] reads it: the largest unit that leaves a whole number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole =
            SIZE_UNITS.iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit));
        match whole {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "0B"),
        }
    }
}

/// No sensible length is longer (`"2591999s 999ms"`). It also keeps sums of parts away from the end of
/// [`Duration`], where humantime 2.4 panics (`"18446744073709551615s 1000ms"`).
const LONGEST_LENGTH: usize = 16;

const WANTED_LENGTH: &str = r#"wanted e.g. "250ms", "30s", "1h" or "30d""#;

const WANTED_SIZE: &str = r#"wanted e.g. "512B", "64KiB", "1MiB" or "1GiB""#;

/// Largest first. Nothing above a day: months and years have no length of their own. Hours do not turn
/// into days before the second one, because "24h" is how everybody writes a day's lifetime.
const LENGTH_UNITS: [(&str, u128); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Largest first.
const SIZE_UNITS: [(&str, u64); 4] =
    [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_with_their_unit() {
        for (text, millis) in [
            ("250ms", 250),
            ("0s", 0),
            ("5s", 5000),
            ("0.25s", 250),
            ("1h 30m", 5_400_000),
            ("24h", 86_400_000),
            ("30d", 2_592_000_000),
        ] {
            assert_eq!(parse_length(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn a_length_that_is_none_says_what_is_wanted() {
        for (text, problem) in [
            ("5", r#""5" has no unit, write "5s""#),
            ("0", r#""0" has no unit, write "0s""#),
            ("1h 30", r#""1h 30" has no unit, write "1h 30s""#),
            (
                "5 parsecs",
                r#""5 parsecs" has the unknown unit "parsecs", wanted e.g. "250ms", "30s", "1h" or "30d""#,
            ),
            ("", r#""" is no length of time, wanted e.g. "250ms", "30s", "1h" or "30d""#),
            ("-1s", r#""-1s" is no length of time, wanted e.g. "250ms", "30s", "1h" or "30d""#),
            ("1500us", r#""1500us" is finer than a millisecond, wanted whole milliseconds"#),
        ] {
            assert_eq!(parse_length(text), Err(problem.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_length_at_the_end_of_time_is_an_error_and_no_panic() {
        assert!(parse_length("18446744073709551615s 1000ms").is_err());
        assert!(parse_length("999999999999999y").is_err());
    }

    #[test]
    fn sizes_are_read_with_their_unit() {
        for (text, bytes) in
            [("0B", 0), ("512B", 512), ("64KiB", 65_536), ("1MiB", 1_048_576), ("1GiB", 1 << 30)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn a_size_that_is_none_says_what_is_wanted() {
        let wanted = r#"wanted e.g. "512B", "64KiB", "1MiB" or "1GiB""#;
        assert_eq!(parse_size("64"), Err(r#""64" has no unit, write "64B""#.to_owned()));
        for text in ["64KB", "64 KiB", "64kib", "1.5MiB", "-1B", "B", "", "99999999999999GiB", "é"]
        {
            assert_eq!(parse_size(text), Err(format!("{text:?} is no size, {wanted}")));
        }
    }

    #[test]
    fn what_is_written_is_read_back_the_same() {
        for millis in [0, 1, 250, 1000, 1500, 60_000, 86_400_000, 90_000_000, 2_592_000_000] {
            let length = Duration::from_millis(millis);
            assert_eq!(parse_length(&Length(length).to_string()), Ok(length));
        }
        for bytes in [0, 1, 1000, 1024, 262_144, 1 << 30, (1 << 30) + 1] {
            assert_eq!(parse_size(&Size(bytes).to_string()), Ok(bytes));
        }
    }

    #[test]
    fn the_largest_whole_unit_is_written() {
        let written = |millis| Length(Duration::from_millis(millis)).to_string();
        assert_eq!(written(1500), "1500ms");
        assert_eq!(written(90_000), "90s");
        assert_eq!(written(86_400_000), "24h");
        assert_eq!(written(2 * 86_400_000), "2d");
        assert_eq!(written(0), "0s");
        assert_eq!(Size(262_144).to_string(), "256KiB");
        assert_eq!(Size(0).to_string(), "0B");
    }
}
