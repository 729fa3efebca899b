//! Where records are kept: bounds and references of `store`.

use super::check::{Checked, SECOND, TTL, fail, length, out_of, unset};
use super::raw;
use super::unit::Size;
use super::{Redis, StoreConfig, Table};
use crate::key::Secret;
use crate::store::redis::{Login, Settings, Transport};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Below, the table is a lottery; above, its empty buckets alone cost a gigabyte.
pub(super) const ENTRIES: RangeInclusive<u64> = 64..=1_048_576;
pub(super) const DEFAULT_ENTRIES: u32 = 16_384;
const BUDGET: RangeInclusive<u64> = 1024 * 1024..=1024 * 1024 * 1024;
pub(super) const DEFAULT_BUDGET: u64 = 64 * 1024 * 1024;
/// Below ten milliseconds a busy worker is late by itself; a claim that took more than five seconds is not
/// worth having. Redis within a data centre answers in one millisecond.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(5);
pub(super) const DEFAULT_TIMEOUT: Duration = Duration::from_millis(250);
pub(super) const DEFAULT_PREFIX: &str = "idem:";
/// It is in the name of every key, and names are held in memory.
pub(super) const LONGEST_PREFIX: usize = 64;
/// Retries come within seconds; after a minute Redis is asked again.
pub(super) const DEFAULT_LOCAL_TTL: Duration = SECOND.saturating_mul(60);

const AT: &str = "store.redis";

pub(super) fn store(
    raw: Option<raw::Store>,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Checked<StoreConfig> {
    match raw {
        None => table("store.memory", None, None).map(StoreConfig::Memory),
        Some(raw::Store::Memory(raw)) => {
            table("store.memory", raw.entries, raw.budget).map(StoreConfig::Memory)
        }
        Some(raw::Store::Redis(raw)) => redis(raw, environment).map(StoreConfig::Redis),
    }
}

fn table(path: &str, entries: Option<raw::Whole>, budget: Option<raw::Size>) -> Checked<Table> {
    let entries = entries.map_or(u64::from(DEFAULT_ENTRIES), |entries| entries.0);
    let entries = match u32::try_from(entries) {
        Ok(number) if ENTRIES.contains(&entries) => number,
        Ok(_) | Err(_) => {
            let problem = out_of(entries, ENTRIES.start(), ENTRIES.end());
            return fail(format!("{path}.entries"), problem);
        }
    };
    let budget_bytes = budget.map_or(DEFAULT_BUDGET, |budget| budget.0);
    if !BUDGET.contains(&budget_bytes) {
        let problem = out_of(Size(budget_bytes), Size(*BUDGET.start()), Size(*BUDGET.end()));
        return fail(format!("{path}.budget"), problem);
    }
    Ok(Table { entries, budget_bytes })
}

fn redis(raw: raw::Redis, environment: &dyn Fn(&str) -> Option<String>) -> Checked<Redis> {
    if raw.cluster.is_empty() {
        return fail(format!("{AT}.cluster"), "empty, wanted the name of an Envoy cluster");
    }
    let timeout = raw.timeout.map_or(Ok(DEFAULT_TIMEOUT), |timeout| {
        length(format!("{AT}.timeout"), timeout, &TIMEOUT)
    })?;
    let transport = match raw.transport {
        raw::Transport::Pipe => Transport::Pipe,
        raw::Transport::Webdis => Transport::Webdis,
    };
    let login = login(raw.username, raw.password_env, transport, environment)?;
    let local = raw.local.unwrap_or_default();
    let local_ttl = local
        .ttl
        .map_or(Ok(DEFAULT_LOCAL_TTL), |ttl| length(format!("{AT}.local.ttl"), ttl, &TTL))?;
    Ok(Redis {
        cluster: raw.cluster,
        settings: Settings { prefix: prefix(raw.prefix)?, timeout, login },
        transport,
        local: table(&format!("{AT}.local"), local.entries, local.budget)?,
        local_ttl,
    })
}

fn prefix(raw: Option<String>) -> Checked<String> {
    let path = || format!("{AT}.prefix");
    let prefix = raw.unwrap_or_else(|| DEFAULT_PREFIX.to_owned());
    if prefix.len() > LONGEST_PREFIX {
        return fail(path(), format!("longer than {LONGEST_PREFIX} bytes"));
    }
    if !prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
        return fail(path(), format!("{prefix:?}, wanted visible ASCII without spaces"));
    }
    // Redis Cluster takes what is in braces for all that tells keys apart (Redis Cluster specification,
    // "Hash tags").
    if prefix.contains('{') {
        return fail(
            path(),
            format!("{prefix:?} has a brace: a whole Redis Cluster would use one node"),
        );
    }
    Ok(prefix)
}

fn login(
    username: Option<String>,
    password_env: Option<String>,
    transport: Transport,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Checked<Option<Login>> {
    let Some(name) = password_env else {
        return match username {
            Some(_) => fail(format!("{AT}.username"), "a username needs a password_env"),
            None => Ok(None),
        };
    };
    let path = format!("{AT}.password_env");
    match transport {
        Transport::Pipe => {}
        Transport::Webdis => {
            return fail(path, "has no effect: Webdis has the password, as redis_auth");
        }
    }
    match environment(&name).filter(|password| !password.is_empty()) {
        Some(password) => Ok(Some(Login { username, password: Secret(password.into_bytes()) })),
        None => fail(path, unset(&name)),
    }
}
