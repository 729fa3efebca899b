//! Which rule protects a request.

use super::{Config, Rule};
use crate::key::{self, Captures};
use std::rc::Rc;

/// What the configuration says of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// This rule protects it.
    Rule {
        /// The rule.
        rule: Rc<Rule>,
        /// What the rule's path template captured.
        captures: Captures,
    },
    /// No rule matches.
    NoRule,
    /// Its route says `off`.
    RouteOff,
    /// Its route names a rule that does not exist.
    Dangling,
}

/// The word by which a route switches the filter off. No rule can have this name.
pub(super) const OFF: &str = "off";

impl Config {
    /// Finds the rule for a request with these headers, pseudo-headers included.
    ///
    /// A rule that the route names is the only one looked at, and is asked for its methods alone: the
    /// route has decided about host and path.
    pub fn select(&self, route: Option<&[u8]>, headers: &[(Vec<u8>, Vec<u8>)]) -> Selection {
        let value = |wanted: &[u8]| {
            let found = headers.iter().find(|(name, _)| name == wanted);
            found.map(|(_, value)| value.as_slice()).unwrap_or_default()
        };
        let (method, path) = (value(b":method"), value(b":path"));
        let Some(route) = route else {
            let host = key::host(value(b":authority"));
            let found = self.rules.iter().find_map(|rule| {
                let captures = rule.captures(method, path)?;
                rule.takes_host(&host).then(|| (rule.clone(), captures))
            });
            return found
                .map_or(Selection::NoRule, |(rule, captures)| Selection::Rule { rule, captures });
        };
        if route == OFF.as_bytes() {
            return Selection::RouteOff;
        }
        match self.rules.iter().find(|rule| rule.name.as_bytes() == route) {
            None => Selection::Dangling,
            Some(rule) if !rule.takes_method(method) => Selection::NoRule,
            Some(rule) => {
                let captures =
                    rule.matching.path.as_ref().and_then(|path_of| path_of.matches(path));
                Selection::Rule { rule: rule.clone(), captures: captures.unwrap_or_default() }
            }
        }
    }
}

impl Rule {
    fn takes_method(&self, method: &[u8]) -> bool {
        self.matching.methods.iter().any(|known| known.as_bytes() == method)
    }

    fn takes_host(&self, host: &[u8]) -> bool {
        let hosts = &self.matching.hosts;
        hosts.is_empty()
            || hosts.iter().any(|pattern| match pattern.strip_prefix('*') {
                // `*.example.com` takes what ends in `.example.com`, and not that alone.
                Some(domain) => host.len() > domain.len() && host.ends_with(domain.as_bytes()),
                None => pattern.as_bytes() == host,
            })
    }

    fn captures(&self, method: &[u8], path: &[u8]) -> Option<Captures> {
        if !self.takes_method(method) {
            return None;
        }
        match &self.matching.path {
            None => Some(Captures::default()),
            Some(template) => template.matches(path),
        }
    }
}

#[cfg(test)]
mod tests;
