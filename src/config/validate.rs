//! Bounds, names and references: what a shape cannot say.

use super::check::{Checked, SECOND, TTL, fail, is_token, length, out_of, unset};
use super::matching::matching;
use super::raw::{self, WHOLE};
use super::select::OFF;
use super::store::store;
use super::unit::{Length, Size};
use super::{
    Config, ConfigError, Detached, Limits, MissingKey, OnStoreError, Ongoing, Rule, StoreConfig,
};
use crate::key::{
    CallerSource, FingerprintPlan, KeyPart, KeyPlan, LocationTemplate, PathTemplate, Pointer,
    Scope, Secret,
};
use crate::record::headers::HeaderPolicy;
use crate::record::outcome::{Disposition, OutcomeRule, Outcomes};
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) const DEFAULT_TTL: Duration = DAY;
/// Below a second a busy worker loses its claims; past ten minutes a crash blocks a key for too long.
const LEASE: RangeInclusive<Duration> = SECOND..=Duration::from_secs(600);
pub(super) const DEFAULT_LEASE: Duration = Duration::from_secs(10);
/// Time enough for an operator to look, and shorter than clients keep retrying.
pub(super) const DEFAULT_UNKNOWN_TTL: Duration = Duration::from_secs(15 * 60);
/// Envoy ends a stream that is silent for `stream_idle_timeout`, five minutes by default.
const PATIENCE: RangeInclusive<Duration> = SECOND..=Duration::from_secs(4 * 60);
const REDIRECT_AFTER: RangeInclusive<Duration> = SECOND..=HOUR;
pub(super) const DEFAULT_REDIRECT_AFTER: Duration = SECOND;
/// The worker's tick is 20 ms: shorter pauses could not be kept.
const REQUEUE_DELAY: RangeInclusive<Duration> = Duration::from_millis(10)..=MINUTE;
pub(super) const REQUEUE_ATTEMPTS: RangeInclusive<u64> = 1..=100;
/// A body is held in Envoy, copied into the VM and kept in the store: three times this much at once.
const MOST_BODY: u64 = 8 * 1024 * 1024;
pub(super) const DEFAULT_LIMIT: u64 = 256 * 1024;
/// Metric names hold it, and Envoy's are not meant to be long.
pub(super) const LONGEST_NAME: usize = 64;
/// RFC 2104 section 3: shorter than the digest weakens it; 128 bits are out of anybody's reach.
const SHORTEST_SECRET: usize = 16;
pub(super) fn config(
    raw: raw::Config,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Checked<Config> {
    let store = store(raw.store, environment)?;
    let shared = matches!(store, StoreConfig::Redis(_));
    let secret = raw.secret_env.map(|name| secret(&name, environment)).transpose()?;
    let raw_rules = match raw.rules {
        None => return fail(WHOLE, "missing field `rules`, wanted a list of rules"),
        Some(rules) if rules.is_empty() => {
            return fail("rules", "empty, wanted at least one rule");
        }
        Some(rules) => rules,
    };
    let mut rules: Vec<Rc<Rule>> = Vec::new();
    for (index, raw) in raw_rules.into_iter().enumerate() {
        let path = format!("rules[{index}]");
        let rule = rule(&path, raw, shared)?;
        if let Some(first) = rules.iter().position(|other| other.name == rule.name) {
            let problem = format!("{:?} is the name of rules[{first}], too", rule.name);
            return fail(format!("{path}.name"), problem);
        }
        rules.push(Rc::new(rule));
    }
    Ok(Config { store, secret, status_header: raw.status_header, rules })
}

fn secret(name: &str, environment: &dyn Fn(&str) -> Option<String>) -> Checked<Secret> {
    match environment(name) {
        Some(value) if value.len() >= SHORTEST_SECRET => Ok(Secret(value.into_bytes())),
        Some(value) if !value.is_empty() => fail(
            "secret_env",
            format!("the variable {name:?} is shorter than {SHORTEST_SECRET} bytes"),
        ),
        Some(_) | None => fail("secret_env", unset(name)),
    }
}

fn rule(path: &str, mut raw: raw::Rule, shared: bool) -> Checked<Rule> {
    name(path, &raw.name)?;
    let matching = matching(path, std::mem::take(&mut raw.matching))?;
    let captures: &[String] = matching.path.as_ref().map_or(&[], PathTemplate::names);
    let key = key(path, &raw, captures)?;
    let ttl = raw.ttl.map_or(Ok(DEFAULT_TTL), |ttl| length(format!("{path}.ttl"), ttl, &TTL))?;
    let lease = raw
        .lease
        .map_or(Ok(DEFAULT_LEASE), |lease| length(format!("{path}.lease"), lease, &LEASE))?;
    let unknown_ttl = match raw.unknown_ttl {
        Some(unknown) => length(format!("{path}.unknown_ttl"), unknown, &(Duration::ZERO..=ttl))?,
        // A rule with a short ttl need not name both.
        None => DEFAULT_UNKNOWN_TTL.min(ttl),
    };
    let detached = detached(&format!("{path}.execution.detached"), raw.execution)?;
    let on_store_error = match raw.on_store_error {
        raw::OnStoreError::Refuse => OnStoreError::Refuse,
        raw::OnStoreError::Pass => OnStoreError::Pass,
        raw::OnStoreError::Local if shared => OnStoreError::Local,
        raw::OnStoreError::Local => {
            let problem =
                "\"local\" needs store.redis: without it, this Envoy's memory is the store";
            return fail(format!("{path}.on_store_error"), problem);
        }
    };
    let limits = limits(&format!("{path}.limits"), &raw.limits)?;
    bodies(path, &key, limits, detached.is_some())?;
    Ok(Rule {
        ongoing: ongoing(&format!("{path}.ongoing"), raw.ongoing, captures)?,
        outcomes: outcomes(path, raw.outcomes)?,
        replay_headers: replay_headers(&format!("{path}.replay_headers"), raw.replay_headers)?,
        limits,
        missing_key: raw.missing_key.map(|policy| match policy {
            raw::MissingKey::Pass => MissingKey::Pass,
            raw::MissingKey::Reject => MissingKey::Reject,
        }),
        name: raw.name,
        matching,
        key,
        ttl,
        lease,
        unknown_ttl,
        on_store_error,
        detached,
        shadow: raw.shadow,
    })
}

fn detached(path: &str, raw: raw::Execution) -> Checked<Option<Detached>> {
    let raw::Execution::Detached(raw) = raw else { return Ok(None) };
    let timeout = length(format!("{path}.timeout"), raw.timeout, &(SECOND..=HOUR))?;
    let via = raw.via.map(|name| filled(format!("{path}.via"), "cluster", &name));
    Ok(Some(Detached { timeout, via: via.transpose()? }))
}

fn name(path: &str, name: &str) -> Checked<()> {
    let path = format!("{path}.name");
    let fits =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
    if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(fits) {
        return fail(path, format!("{name:?}, wanted 1 to {LONGEST_NAME} of a-z, 0-9, _ and -"));
    }
    if name == OFF {
        return fail(path, format!("{name:?} is what a route says to switch the filter off"));
    }
    Ok(())
}

fn header(path: String, name: &str) -> Checked<String> {
    if is_token(name) {
        Ok(name.to_ascii_lowercase())
    } else {
        fail(path, format!("{name:?} is not a header name"))
    }
}

/// RFC 6265 section 4.1.1: "cookie-name = token". No request could carry any other.
fn cookie(path: String, name: &str) -> Checked<String> {
    if is_token(name) {
        Ok(name.to_owned())
    } else {
        fail(path, format!("{name:?} is not a cookie name"))
    }
}

fn filled(path: String, what: &str, name: &str) -> Checked<String> {
    if name.is_empty() {
        return fail(path, format!("empty, wanted the name of a {what}"));
    }
    Ok(name.to_owned())
}

fn pointer(path: impl std::fmt::Display, text: &str) -> Checked<Pointer> {
    Pointer::parse(text).map_err(|error| ConfigError::new(path, error.to_string()))
}

fn pointers(path: &str, texts: &[String]) -> Checked<Vec<Pointer>> {
    if texts.is_empty() {
        return fail(path, "empty, wanted at least one JSON pointer");
    }
    let parsed = texts.iter().enumerate();
    parsed.map(|(index, text)| pointer(format!("{path}[{index}]"), text)).collect()
}

fn key(path: &str, raw: &raw::Rule, captures: &[String]) -> Checked<KeyPlan> {
    if raw.key.is_empty() {
        return fail(format!("{path}.key"), "empty, wanted at least one part");
    }
    let mut parts = Vec::new();
    for (index, part) in raw.key.iter().enumerate() {
        let at = |kind: &str| format!("{path}.key[{index}].{kind}");
        parts.push(match part {
            raw::Part::KeyHeader(name) => KeyPart::KeyHeader(header(at("key_header"), name)?),
            raw::Part::Header(name) => KeyPart::Header(header(at("header"), name)?),
            raw::Part::Query(name) => KeyPart::Query(filled(at("query"), "query parameter", name)?),
            raw::Part::Cookie(name) => KeyPart::Cookie(cookie(at("cookie"), name)?),
            raw::Part::Path(name) => KeyPart::Path(capture(at("path"), name, captures)?),
            raw::Part::Json(text) => KeyPart::Json(pointer(at("json"), text)?),
            raw::Part::Form(name) => KeyPart::Form(filled(at("form"), "form field", name)?),
            raw::Part::Body => KeyPart::Body,
        });
    }
    let at = |kind: &str| format!("{path}.caller.{kind}");
    let caller = match &raw.caller {
        None => {
            let problem = "missing field `caller`, wanted who may share an answer: {\"header\": NAME}, \
                           {\"cookie\": NAME}, {\"metadata\": [PATH]}, \"peer\", or \"anyone\" if all may";
            return fail(path, problem);
        }
        Some(raw::Caller::Anyone) => CallerSource::Anyone,
        Some(raw::Caller::Peer) => CallerSource::Peer,
        Some(raw::Caller::Header(name)) => CallerSource::Header(header(at("header"), name)?),
        Some(raw::Caller::Cookie(name)) => CallerSource::Cookie(cookie(at("cookie"), name)?),
        Some(raw::Caller::Metadata(leaf)) => {
            if leaf.len() < 2 || leaf.iter().any(String::is_empty) {
                let problem = "wanted a filter's name and the keys below it, e.g. \
                               [\"envoy.filters.http.jwt_authn\", \"payload\", \"sub\"]";
                return fail(at("metadata"), problem);
            }
            CallerSource::Metadata(leaf.clone())
        }
    };
    let scope =
        raw.scope.as_ref().map_or(Scope { method: true, host: true, path: true }, |scope| Scope {
            method: scope.contains(&raw::ScopePart::Method),
            host: scope.contains(&raw::ScopePart::Host),
            path: scope.contains(&raw::ScopePart::Path),
        });
    let fingerprint = match &raw.fingerprint {
        raw::Fingerprint::Body => FingerprintPlan::Body,
        raw::Fingerprint::None => FingerprintPlan::Nothing,
        raw::Fingerprint::Fields(texts) => {
            FingerprintPlan::Fields(pointers(&format!("{path}.fingerprint.fields"), texts)?)
        }
        raw::Fingerprint::Except(texts) => {
            FingerprintPlan::Except(pointers(&format!("{path}.fingerprint.except"), texts)?)
        }
    };
    Ok(KeyPlan { rule: raw.name.clone(), parts, caller, scope, fingerprint })
}

/// Refuses a rule whose every request would be answered 400 or 413, for what it wants of the body.
fn bodies(path: &str, key: &KeyPlan, limits: Limits, detached: bool) -> Checked<()> {
    let has = |wanted: fn(&KeyPart) -> bool| key.parts.iter().any(wanted);
    let reads_form = has(|part| matches!(part, KeyPart::Form(_)));
    if reads_form && has(|part| matches!(part, KeyPart::Json(_))) {
        return fail(format!("{path}.key"), "both json and form parts, but a body is never both");
    }
    let pointers = match key.fingerprint {
        FingerprintPlan::Fields(_) => Some("fields"),
        FingerprintPlan::Except(_) => Some("except"),
        FingerprintPlan::Body | FingerprintPlan::Nothing => None,
    };
    if let (true, Some(kind)) = (reads_form, pointers) {
        let problem = "points into JSON, the key has form parts, but a body is never both";
        return fail(format!("{path}.fingerprint.{kind}"), problem);
    }
    if limits.request_body == 0 && detached {
        let problem = "0B, and a detached execution sends the body itself; wanted 1B to 8MiB";
        return fail(format!("{path}.limits.request_body"), problem);
    }
    if limits.request_body == 0 && key.needs_body() {
        let problem = "0B, and the key or the fingerprint needs the body; wanted 1B to 8MiB, or a \
                       key without it and \"fingerprint\": \"none\"";
        return fail(format!("{path}.limits.request_body"), problem);
    }
    Ok(())
}

fn capture(path: String, name: &str, captures: &[String]) -> Checked<String> {
    if captures.iter().any(|known| known == name) {
        return Ok(name.to_owned());
    }
    fail(path, format!("{name:?} is not a capture of match.path, {}", which(captures)))
}

fn which(captures: &[String]) -> String {
    if captures.is_empty() {
        "which has none".to_owned()
    } else {
        format!("wanted one of {}", captures.join(", "))
    }
}

fn ongoing(path: &str, raw: raw::Ongoing, captures: &[String]) -> Checked<Ongoing> {
    Ok(match raw {
        raw::Ongoing::Reject => Ongoing::Reject,
        raw::Ongoing::Wait(wait) => {
            Ongoing::Wait { max: length(format!("{path}.wait.max"), wait.max, &PATIENCE)? }
        }
        raw::Ongoing::Redirect(redirect) => {
            let at = format!("{path}.redirect.to");
            let to = redirect.to.map(|text| {
                let template = LocationTemplate::parse(&text)
                    .map_err(|error| ConfigError::new(&at, error.to_string()))?;
                for name in template.names() {
                    capture(at.clone(), name, captures)?;
                }
                Ok(template)
            });
            let after = redirect.after.map_or(Ok(DEFAULT_REDIRECT_AFTER), |after| {
                length(format!("{path}.redirect.after"), after, &REDIRECT_AFTER)
            });
            Ongoing::Redirect { to: to.transpose()?, after: after? }
        }
        raw::Ongoing::Requeue(requeue) => {
            let path = format!("{path}.requeue");
            let delay = length(format!("{path}.delay"), requeue.delay, &REQUEUE_DELAY)?;
            let attempts = match u32::try_from(requeue.attempts.0) {
                Ok(attempts) if REQUEUE_ATTEMPTS.contains(&requeue.attempts.0) => attempts,
                Ok(_) | Err(_) => {
                    let (least, most) = (REQUEUE_ATTEMPTS.start(), REQUEUE_ATTEMPTS.end());
                    let problem = out_of(requeue.attempts.0, least, most);
                    return fail(format!("{path}.attempts"), problem);
                }
            };
            let longest = *PATIENCE.end();
            if delay.saturating_mul(attempts) > longest {
                let all = Length(delay.saturating_mul(attempts));
                let problem = format!(
                    "{attempts} times {} are {all}, wanted at most {}, before Envoy ends the stream",
                    Length(delay),
                    Length(longest)
                );
                return fail(path, problem);
            }
            Ongoing::Requeue { delay, attempts }
        }
    })
}

fn outcomes(path: &str, raw: Vec<raw::Outcome>) -> Checked<Outcomes> {
    let mut rules = Vec::new();
    for (index, outcome) in raw.into_iter().enumerate() {
        let path = format!("{path}.outcomes[{index}]");
        if outcome.status.is_empty() {
            return fail(format!("{path}.status"), "empty, wanted at least one status");
        }
        let ttl = outcome.ttl.map(|ttl| length(format!("{path}.ttl"), ttl, &TTL)).transpose()?;
        let then = match outcome.r#do {
            raw::Do::Store => Disposition::Store,
            raw::Do::Status => Disposition::StatusOnly,
            raw::Do::Release => Disposition::Release,
            raw::Do::Unknown => Disposition::Unknown,
        };
        match (then, ttl) {
            (Disposition::Release | Disposition::Unknown, Some(_)) => {
                let problem =
                    "has no effect: nothing is kept (unknown_ttl bounds an unknown outcome)";
                return fail(format!("{path}.ttl"), problem);
            }
            (Disposition::Release | Disposition::Unknown, None)
            | (Disposition::Store | Disposition::StatusOnly, _) => {}
        }
        let statuses = outcome.status.into_iter().map(|status| status.0).collect();
        rules.push(OutcomeRule { statuses, then, ttl });
    }
    Ok(Outcomes(rules))
}

fn replay_headers(path: &str, raw: Option<raw::ReplayHeaders>) -> Checked<HeaderPolicy> {
    let names = |kind: &str, names: Vec<String>| {
        let names = names.iter().enumerate();
        names
            .map(|(index, name)| header(format!("{path}.{kind}[{index}]"), name))
            .collect::<Checked<Vec<_>>>()
    };
    Ok(match raw {
        None => HeaderPolicy::default(),
        Some(raw::ReplayHeaders::Deny(denied)) => HeaderPolicy::Deny(names("deny", denied)?),
        Some(raw::ReplayHeaders::Allow(allowed)) => HeaderPolicy::Allow(names("allow", allowed)?),
    })
}

fn limits(path: &str, raw: &raw::Limits) -> Checked<Limits> {
    let limit = |name: &str, size: Option<raw::Size>| {
        let size = size.map_or(DEFAULT_LIMIT, |size| size.0);
        match usize::try_from(size) {
            Ok(bytes) if size <= MOST_BODY => Ok(bytes),
            Ok(_) | Err(_) => {
                fail(format!("{path}.{name}"), out_of(Size(size), Size(0), Size(MOST_BODY)))
            }
        }
    };
    Ok(Limits {
        request_body: limit("request_body", raw.request_body)?,
        response_body: limit("response_body", raw.response_body)?,
    })
}
