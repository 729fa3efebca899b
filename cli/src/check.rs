//! `check`: runs the module's own parser before Envoy does.

use super::extract::Extracted;
use super::output::print_line;
use super::{Failure, Source};
use clap::Args;
use envoy_idempotency::config::{Config, Rule, StoreConfig};

/// Refuses a configuration that Envoy would refuse, in the same words.
///
/// Prints `FILE: PATH: ERROR`, or a line for each rule. Errors outside the filter's configuration, such as a
/// cluster that does not exist, are not detected.
#[derive(Args)]
pub(super) struct Check {
    #[command(flatten)]
    source: Source,
}

impl Check {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let mut refused = Vec::new();
        for extracted in self.source.extract()? {
            match self.source.load(&extracted) {
                Ok(config) => print(&extracted, &config),
                // All plugins are checked: one run reports the errors of each.
                Err(failure) => refused.push(failure.to_string()),
            }
        }
        if refused.is_empty() { Ok(()) } else { Err(Failure::Refused(refused.join("\n"))) }
    }
}

impl Source {
    /// The configuration, by the module's own parser.
    pub(super) fn load(&self, extracted: &Extracted) -> Result<Config, Failure> {
        Config::load(&extracted.bytes, &|name| self.variable(extracted, name))
            .map_err(|error| Failure::Refused(format!("{}: {error}", extracted.place)))
    }
}

fn print(extracted: &Extracted, config: &Config) {
    let store = match &config.store {
        StoreConfig::Memory(table) => format!("memory, {} records", table.entries),
        StoreConfig::Redis(redis) => format!("Redis, by the cluster {}", redis.cluster),
    };
    let rules = config.rules.len();
    let plural = if rules == 1 { "" } else { "s" };
    print_line(format_args!("{}: {rules} rule{plural}; store: {store}", extracted.place));
    for rule in &config.rules {
        print_line(format_args!("  {}: {}", rule.name, protects(rule)));
    }
    let holds = config.rules.iter().find(|rule| rule.needs_body() && !rule.shadow);
    if let Some(rule) = holds.filter(|_| extracted.holds_no_headers) {
        eprintln!(
            "{}: warning: the rule {} needs the request's body: without \
             allow_on_headers_stop_iteration: true, it answers every request with a body with 500",
            extracted.place, rule.name
        );
    }
}

/// The requests that a rule matches, in a line.
pub(super) fn protects(rule: &Rule) -> String {
    let matching = &rule.matching;
    let mut text = matching.methods.join(", ");
    if let Some(path) = &matching.path {
        text = format!("{text} {path}");
    }
    if !matching.hosts.is_empty() {
        text = format!("{text} at {}", matching.hosts.join(", "));
    }
    if rule.shadow { format!("{text} (shadow)") } else { text }
}
