//! What becomes of an answer: recorded, in whole or in part, or not, as far as its headers tell.

use super::source::Source;
use super::{Headers, number, value};
use crate::config::Rule;
use crate::record::Answer;
use crate::record::outcome::Disposition;
use crate::telemetry::header;
use std::time::Duration;

/// The longest `Idempotency-Control: ttl=`; the same bound as a rule's `ttl`. A longer one is cut.
const LONGEST_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Debug)]
pub(super) enum Capture {
    Answer(Answer),
    StatusOnly,
}

/// What becomes of an answer, as far as its headers tell.
pub(super) enum Plan {
    Record { status: u16, ttl: Duration, capture: Capture },
    Tombstone { status: u16, ttl: Duration },
    Release,
    Unknown,
}

/// In this order: whose answer it is, what the origin asks for, what the rule says, what can be kept.
pub(super) fn plan(rule: &Rule, headers: &Headers, source: Source) -> Plan {
    match source {
        Source::NothingSent => return Plan::Release,
        Source::MaybeSent => return Plan::Unknown,
        Source::Application => {}
    }
    let Some(status) = value(headers, ":status").and_then(number::<u16>) else {
        return Plan::Unknown;
    };
    let control = Control::parse(headers);
    if control.no_store {
        return Plan::Release;
    }
    let retry_after = value(headers, "retry-after").is_some();
    let (disposition, ttl) = rule.outcomes.decide(status, retry_after);
    let ttl = control.ttl.or(ttl).unwrap_or(rule.ttl);
    match disposition {
        Disposition::Release => Plan::Release,
        Disposition::Unknown => Plan::Unknown,
        Disposition::StatusOnly => Plan::Record { status, ttl, capture: Capture::StatusOnly },
        Disposition::Store if cannot_be_kept(rule, headers) => Plan::Tombstone { status, ttl },
        Disposition::Store => {
            let answer = Answer { headers: rule.replay_headers.kept(headers), body: Vec::new() };
            Plan::Record { status, ttl, capture: Capture::Answer(answer) }
        }
    }
}

/// A stream without end, or one that says beforehand that it is over the limit.
fn cannot_be_kept(rule: &Rule, headers: &Headers) -> bool {
    const EVENT_STREAM: &[u8] = b"text/event-stream";
    let events = value(headers, "content-type")
        .and_then(|kind| kind.get(..EVENT_STREAM.len()))
        .is_some_and(|kind| kind.eq_ignore_ascii_case(EVENT_STREAM));
    let length = value(headers, "content-length").and_then(number::<u64>);
    events || length.is_some_and(|length| length > rule.limits.response_body as u64)
}

/// What the origin asks for: `Idempotency-Control: no-store` or `ttl=SECONDS`, comma-separated as in
/// `Cache-Control` (RFC 9111 section 5.2). Directives that are not known are ignored, as there.
#[derive(Debug, Default, PartialEq, Eq)]
struct Control {
    no_store: bool,
    ttl: Option<Duration>,
}

impl Control {
    fn parse(headers: &Headers) -> Self {
        let mut control = Self::default();
        let lines = headers.iter().filter(|(name, _)| name == header::CONTROL.as_bytes());
        for directive in lines.flat_map(|(_, value)| value.split(|byte| *byte == b',')) {
            let directive = directive.trim_ascii();
            if directive.eq_ignore_ascii_case(b"no-store") {
                control.no_store = true;
            } else if let Some(seconds) = directive.strip_prefix(b"ttl=").and_then(number::<u64>) {
                // Zero is "keep nothing": a record that is over when it is written.
                control.no_store |= seconds == 0;
                control.ttl = Some(Duration::from_secs(seconds).min(LONGEST_TTL));
            }
        }
        control
    }
}
