//! Which requests a rule protects, checked: methods, hosts, path.

use super::check::{Checked, fail, is_token};
use super::{ConfigError, Matching, raw};
use crate::key::PathTemplate;

/// The methods of RFC 9110 and RFC 5789 that are not idempotent by themselves.
pub(super) const DEFAULT_METHODS: [&str; 2] = ["POST", "PATCH"];

pub(super) fn matching(path: &str, raw: raw::Matching) -> Checked<Matching> {
    let path = format!("{path}.match");
    let template = raw.path.map(|text| {
        PathTemplate::parse(&text)
            .map_err(|error| ConfigError::new(format!("{path}.path"), error.to_string()))
    });
    Ok(Matching {
        methods: methods(&format!("{path}.methods"), raw.methods)?,
        hosts: hosts(&format!("{path}.hosts"), raw.hosts)?,
        path: template.transpose()?,
    })
}

fn methods(path: &str, raw: Option<Vec<String>>) -> Checked<Vec<String>> {
    let methods = raw.unwrap_or_else(|| DEFAULT_METHODS.map(str::to_owned).to_vec());
    if methods.is_empty() {
        return fail(path, "empty, wanted at least one method");
    }
    for (index, method) in methods.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let upper = method.to_ascii_uppercase();
        if ["GET", "HEAD", "OPTIONS", "TRACE", "CONNECT"].contains(&upper.as_str()) {
            return fail(path, format!("{method:?} is safe, or cannot be repeated"));
        }
        if !is_token(method) {
            return fail(path, format!("{method:?} is not a method"));
        }
        if *method != upper {
            // RFC 9110 section 9.1: "The method token is case-sensitive".
            return fail(path, format!("{method:?}, wanted {upper:?}: methods are case-sensitive"));
        }
    }
    Ok(methods)
}

fn hosts(path: &str, raw: Option<Vec<String>>) -> Checked<Vec<String>> {
    let Some(mut hosts) = raw else { return Ok(Vec::new()) };
    if hosts.is_empty() {
        // A list that a template rendered empty must not come to mean every host.
        return fail(path, "empty, wanted at least one host, or no hosts for any");
    }
    for (index, host) in hosts.iter_mut().enumerate() {
        host.make_ascii_lowercase();
        if !is_host(host.strip_prefix("*.").unwrap_or(host)) && !is_ip_literal(host) {
            let problem = format!("{host:?}, wanted a host without a port, or \"*.\" and a host");
            return fail(format!("{path}[{index}]"), problem);
        }
        // A request's host comes without it, too.
        if host.ends_with('.') {
            host.pop();
        }
    }
    Ok(hosts)
}

/// Labels with dots between, as RFC 1123 section 2.1 has them, and `_`, which names inside a cluster
/// use; one dot at the end is the root's (RFC 3986 section 3.2.2).
fn is_host(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    name.split('.').all(|label| {
        !label.is_empty()
            && label.bytes().all(fits)
            && !label.starts_with('-')
            && !label.ends_with('-')
    })
}

/// An IPv6 address in brackets (RFC 3986 section 3.2.2).
fn is_ip_literal(host: &str) -> bool {
    host.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok())
}
