//! What every check needs: bounds that several options share, and how a complaint is made.

use super::unit::Length;
use super::{ConfigError, raw};
use std::ops::RangeInclusive;
use std::time::Duration;

pub(super) type Checked<T> = Result<T, ConfigError>;

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// Below a second a retry of a human's click would run again; a month is longer than anybody retries,
/// and bounds what a store must keep.
pub(super) const TTL: RangeInclusive<Duration> = SECOND..=Duration::from_secs(30 * 24 * 3600);

pub(super) fn fail<T>(path: impl std::fmt::Display, problem: impl Into<String>) -> Checked<T> {
    Err(ConfigError::new(path, problem))
}

pub(super) fn unset(name: &str) -> String {
    format!(
        "the environment variable {name:?} is not set or empty; hand it to the module by \
         vm_config.environment_variables"
    )
}

/// RFC 9110 section 5.6.2.
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

pub(super) fn length(
    path: String,
    raw: raw::Length,
    bounds: &RangeInclusive<Duration>,
) -> Checked<Duration> {
    if bounds.contains(&raw.0) {
        return Ok(raw.0);
    }
    fail(path, out_of(Length(raw.0), Length(*bounds.start()), Length(*bounds.end())))
}

pub(super) fn out_of(
    found: impl std::fmt::Display,
    least: impl std::fmt::Display,
    most: impl std::fmt::Display,
) -> String {
    format!("{found}, wanted {least} to {most}")
}
