//! The variables that a configuration may name, as the module would see them.

use super::Source;
use super::extract::{Extracted, Handed};

/// Stands for a variable that is not set here: as long as the longest minimum for a secret.
const ASSUMED: &str = "assumed-0123456789abcdef";

/// Reads `NAME=VALUE`.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => Err("wanted NAME=VALUE".to_owned()),
    }
}

impl Source {
    /// The value that the module finds under a name.
    ///
    /// A plugin sees only the variables in its `vm_config`: one that is missing there is missing in Envoy,
    /// even if it is set or assumed here.
    pub(super) fn variable(&self, extracted: &Extracted, name: &str) -> Option<String> {
        let outside = || {
            let given = self.variables.iter().find(|(known, _)| known == name);
            given
                .map(|(_, value)| value.clone())
                .or_else(|| std::env::var(name).ok())
                .or_else(|| self.assume_env.then(|| ASSUMED.to_owned()))
        };
        match &extracted.handed {
            None => outside(),
            Some(Handed { values, host }) => match values.get(name) {
                Some(value) => Some(value.clone()),
                None if host.contains(name) => outside(),
                None => None,
            },
        }
    }
}
