//! `show` and `forget`: what Redis keeps under a key.

use super::Failure;
use super::output::{Fields, plain, print_line};
use super::server::{Server, Target};
use clap::Args;
use envoy_idempotency::record::codec::{self, TOKEN};
use envoy_idempotency::record::{Head, Kept, Record, State};
use envoy_idempotency::store::transitions;
use envoy_idempotency::time::{Timestamp, WallTime};
use serde_json::Value;
use std::io::{BufRead, IsTerminal, Write};

/// Shows the record of a key: its state, its deadline, the kept part of the answer.
#[derive(Args)]
pub(super) struct Show {
    #[command(flatten)]
    target: Target,
    /// Print the answer's headers and body, which are the client's own.
    #[arg(long)]
    reveal: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Deletes the record of a key: a later duplicate runs.
///
/// It asks first. Each Envoy replays records from its own memory for up to store.redis.local.ttl afterwards.
#[derive(Args)]
pub(super) struct Forget {
    #[command(flatten)]
    target: Target,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Delete the record even if the execution is running or the record cannot be read: a duplicate may run
    /// beside it.
    #[arg(long)]
    force: bool,
}

impl Show {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let mut server = self.target.connect()?;
        let name = self.target.name(&mut server)?;
        let bytes = find(&mut server, &name)?;
        let record =
            codec::decode(&bytes).map_err(|error| Failure::Refused(format!("{name}: {error}")))?;
        let now = server.now()?;
        let output = describe(&name, &record, now, self.reveal);
        if self.json {
            print_line(format_args!("{output:#}"));
        } else {
            print(&output);
        }
        Ok(())
    }
}

impl Forget {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let mut server = self.target.connect()?;
        let name = self.target.name(&mut server)?;
        let bytes = find(&mut server, &name)?;
        match codec::decode(&bytes) {
            Ok(record) => {
                let standing = standing(&record.head(), server.now()?);
                print(&describe(&name, &record, server.now()?, false));
                print_line(format_args!("{}", warning(&standing)));
                if matches!(standing, Standing::Ongoing) && !self.force {
                    return Err(Failure::Refused(format!(
                        "{name}: an execution is running; use --force to delete its record"
                    )));
                }
            }
            Err(error) if !self.force => {
                return Err(Failure::Refused(format!(
                    "{name}: {error}; it may be a claim; use --force to delete it"
                )));
            }
            Err(error) => print_line(format_args!("{name}: {error}")),
        }
        self.confirm()?;
        // Version, state and token: a heartbeat changes none of them, and every other change does.
        let start = bytes.get(..TOKEN.end).unwrap_or(&bytes);
        if server.delete(&name, start)? {
            print_line(format_args!("forgotten"));
            Ok(())
        } else {
            Err(Failure::Refused(format!(
                "{name}: changed in the meantime, not deleted; show it again"
            )))
        }
    }

    fn confirm(&self) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Err(Failure::Refused("standard input is not a terminal: use --yes".to_owned()));
        }
        print!("forget it? [y/N] ");
        let mut answer = String::new();
        let read = std::io::stdout().flush().and_then(|()| stdin.lock().read_line(&mut answer));
        match read {
            Ok(_) if ["y", "yes"].contains(&answer.trim()) => Ok(()),
            Ok(_) | Err(_) => Err(Failure::Refused("not deleted".to_owned())),
        }
    }
}

fn find(server: &mut Server, name: &str) -> Result<Vec<u8>, Failure> {
    let found = server.record(name)?;
    found.ok_or_else(|| Failure::Refused(format!("no record: {name}")))
}

/// The state in which a duplicate would find the record now.
enum Standing {
    /// It runs.
    Ongoing,
    /// It may have run; unknown until then.
    Unknown(Timestamp),
    /// Its outcome is kept.
    Finished,
    /// The next request runs.
    Free,
}

/// By the transition rules of every store.
fn standing(head: &Head, now: Timestamp) -> Standing {
    match transitions::as_it_stands(head, now).map(|head| head.state) {
        Some(State::Ongoing { .. }) => Standing::Ongoing,
        Some(State::Unknown { until }) => Standing::Unknown(until),
        Some(State::Finished { .. }) => Standing::Finished,
        None => Standing::Free,
    }
}

fn warning(standing: &Standing) -> &'static str {
    match standing {
        Standing::Ongoing => {
            "WARNING: an execution is running. Once forgotten, a duplicate runs beside it, and its outcome \
             is not kept."
        }
        Standing::Unknown(_) => {
            "WARNING: it may have been executed. Once forgotten, the next request with this key runs, and the \
             origin cannot see that it is a second attempt."
        }
        Standing::Finished => "WARNING: it has been executed. Once forgotten, a retry runs again.",
        Standing::Free => "The key is free already; only its count of attempts is lost.",
    }
}

fn describe(name: &str, record: &Record, now: Timestamp, reveal: bool) -> Value {
    let mut output = Fields::default();
    output.put("name", name);
    let (state, deadline) = match (standing(&record.head(), now), &record.state) {
        (Standing::Ongoing, State::Ongoing { lease_until, .. }) => ("ongoing", *lease_until),
        (Standing::Unknown(until), _) => ("unknown", until),
        (
            Standing::Free,
            State::Ongoing { lease_until: until, .. }
            | State::Unknown { until }
            | State::Finished { until, .. },
        ) => ("free", *until),
        (
            Standing::Finished | Standing::Ongoing,
            State::Finished { until, .. }
            | State::Unknown { until }
            | State::Ongoing { lease_until: until, .. },
        ) => ("finished", *until),
    };
    output.put("state", state);
    // Redis's clock is a wall clock.
    output.put("until", WallTime::from_millis(deadline.as_millis()).to_string());
    output.put("seconds_left", now.until(deadline).as_secs());
    output.put("attempt", record.attempt);
    output.put("first_seen", record.first_seen.to_string());
    if let State::Finished { status, kept, .. } = &record.state {
        output.put("status", *status);
        match kept {
            Kept::StatusOnly => output.put("kept", "the status"),
            Kept::Nothing => output.put("kept", "nothing: the answer was too large, or a stream"),
            Kept::Answer(answer) => {
                output.put("kept", "the answer");
                output.put("body_bytes", answer.body.len());
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let headers = answer.headers.iter().map(|(name, value)| {
                    if reveal { format!("{}: {}", text(name), text(value)) } else { text(name) }
                });
                output.put("headers", headers.collect::<Vec<_>>());
                if reveal {
                    output.put("body", text(&answer.body));
                }
            }
        }
    }
    output.into()
}

/// The same for people: a name and a value per line.
fn print(output: &Value) {
    let text = |field: &str| match output.get(field) {
        Some(Value::String(text)) => Some(text.clone()),
        Some(value) => Some(value.to_string()),
        None => None,
    };
    let line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            print_line(format_args!("{name:<12} {value}"));
        }
    };
    line("key", text("name"));
    line("state", text("state"));
    let left = text("seconds_left").unwrap_or_default();
    line("until", text("until").map(|until| format!("{until}, {left} s left")));
    line("attempt", text("attempt"));
    line("first seen", text("first_seen"));
    line("status", text("status"));
    line("kept", text("kept"));
    for header in output.get("headers").and_then(Value::as_array).into_iter().flatten() {
        line("header", header.as_str().map(plain));
    }
    line("body", text("body_bytes").map(|bytes| format!("{bytes} bytes")));
    if let Some(body) = text("body") {
        print_line(format_args!("\n{}", plain(&body)));
    }
}
