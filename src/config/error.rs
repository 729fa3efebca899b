//! What is wrong with a configuration, and where.

use std::fmt;

/// The first thing found wrong with a configuration.
///
/// `Display` is one line, `where: found, wanted`, e.g. `rules[1].lease: "5" has no unit, write "5s"`.
/// It goes to Envoy's log as it is, and never holds the value of an environment variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The field, e.g. `rules[1].lease`; `configuration` when it is the whole.
    pub path: String,
    /// What was found there and what is wanted.
    pub problem: String,
}

impl ConfigError {
    /// `problem` at `path`.
    pub(super) fn new(path: impl fmt::Display, problem: impl Into<String>) -> Self {
        Self { path: path.to_string(), problem: problem.into() }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.problem)
    }
}

impl std::error::Error for ConfigError {}
