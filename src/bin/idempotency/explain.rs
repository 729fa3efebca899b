//! `explain`: what would become of a request, by the module's own machine.
//!
//! Nothing here decides: the machine of one request is fed the request and, once for each state that a
//! record can be in, the reply of a store; what it orders is put into words.

use super::check::protects;
use super::request::Request;
use super::said::{Said, say};
use super::{Failure, Source, lift};
use clap::Args;
use envoy_idempotency::config::{Config, Ongoing, Rule, Selection, StoreConfig};
use envoy_idempotency::exchange::{Exchange, Flow, Input, Order};
use envoy_idempotency::key::{
    Attributes, CallerSource, Fingerprint, FingerprintPlan, Key, KeyPart, KeyPlan, RequestHead,
};
use envoy_idempotency::record::{Answer, Kept, Record, State, Token};
use envoy_idempotency::reply::LocalReply;
use envoy_idempotency::store::{Command, Reply, StoreError};
use envoy_idempotency::telemetry::{Outcome, header};
use envoy_idempotency::time::Timestamp;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::rc::Rc;

/// Says which rule protects a request, its key, and what would become of it.
///
/// The request is HTTP/1.1 as on the wire: a request line, headers, an empty line, the body. Without
/// content-length, all that follows is the body, an editor's last line end included. What Envoy does to a
/// request before the filter sees it (normalising its path, other filters) is not done here.
#[derive(Args)]
pub(super) struct Explain {
    #[command(flatten)]
    source: Source,
    /// The request; standard input by default.
    #[arg(long, value_name = "FILE", default_value = "-")]
    request: PathBuf,
    /// Which plugin, if the file holds several, counted from 1.
    #[arg(long, value_name = "NUMBER")]
    plugin: Option<usize>,
    /// What the route's metadata says: a rule's name, or off.
    #[arg(long, value_name = "RULE")]
    route: Option<String>,
    /// The URI SAN of the client's certificate, for a rule with "caller": "peer".
    #[arg(long, value_name = "URI")]
    peer: Option<String>,
    /// What earlier filters left as dynamic metadata, e.g.
    /// envoy.filters.http.jwt_authn/payload/sub=alice; the steps of the path are parted by slashes.
    #[arg(long, value_name = "PATH=VALUE", value_parser = super::variables::pair)]
    metadata: Vec<(String, String)>,
    /// Print the values of the key's parts, which are the client's own.
    #[arg(long)]
    reveal: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// No matter which: nothing is asked of any store.
const NOW: Timestamp = Timestamp::from_millis(1_000_000_000_000);

impl Explain {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let mut lifted = self.source.lift()?;
        let plugin = match (self.plugin, lifted.len()) {
            (None, 1) => 1,
            (None, found) => {
                let why = format!("{found} plugins in the file: choose one with --plugin");
                return Err(Failure::Untried(why));
            }
            (Some(plugin), _) => plugin,
        };
        let chosen = plugin.checked_sub(1).filter(|index| *index < lifted.len());
        let chosen = chosen
            .map(|index| lifted.swap_remove(index))
            .ok_or_else(|| Failure::Untried(format!("there is no plugin {plugin} in the file")))?;
        if self.request == self.source.config {
            let why = "configuration and request cannot be the same file, or both standard input";
            return Err(Failure::Untried(why.to_owned()));
        }
        let config = Rc::new(self.source.load(&chosen)?);
        let request = Request::parse(&lift::read(&self.request)?)?;
        let explained = self.explain(&config, &request);
        if self.json {
            say(format_args!("{explained:#}"));
        } else {
            print(&explained);
        }
        Ok(())
    }

    fn explain(&self, config: &Rc<Config>, request: &Request) -> Value {
        let mut said = Said::default();
        let route = self.route.as_deref().map(str::as_bytes);
        if let Selection::Rule { rule, captures } = config.select(route, &request.headers) {
            let head =
                RequestHead { headers: &request.headers, attributes: self, captures: &captures };
            self.describe(&mut said, config, &rule, &head, &request.body);
            let asked = self.play(config, request, &Meets::Nothing).claim;
            if let Some((key, fingerprint)) = asked {
                said.put("key", format!("{key:x}"));
                if let StoreConfig::Redis(redis) = &config.store {
                    said.put("redis_key", redis.settings.name(key));
                }
                if rule.key.fingerprint != FingerprintPlan::Nothing {
                    said.put("fingerprint", hex(&fingerprint.0));
                }
                let would = Meets::ALL.iter().filter(|meets| {
                    // Nothing differs where nothing is compared.
                    **meets != Meets::Another || rule.key.fingerprint != FingerprintPlan::Nothing
                });
                let would = would.map(|meets| {
                    let played = self.play(config, request, meets);
                    (meets.word().to_owned(), played.into_json(&rule))
                });
                said.put("would", Value::Object(would.collect()));
                return Value::from(said);
            }
            let alone = self.play(config, request, &Meets::Nothing).into_json(&rule);
            said.put("would", json!({ "always": alone }));
        } else {
            let played = self.play(config, request, &Meets::Nothing);
            said.put("rule", Value::Null);
            said.put("would", json!({ "always": played.without_rule() }));
        }
        Value::from(said)
    }

    fn describe(
        &self,
        said: &mut Said,
        config: &Config,
        rule: &Rc<Rule>,
        head: &RequestHead<'_>,
        body: &[u8],
    ) {
        said.put("rule", rule.name.as_str());
        said.put("protects", protects(rule));
        let mut from = Said::default();
        from.put("from", caller(&rule.key.caller));
        if rule.key.caller != CallerSource::Anyone {
            let digest = rule.key.caller_in(head, config.secret.as_ref()).ok();
            // Enough to tell two callers apart, as in the filter's own log.
            let digest = digest.map(|digest| Key(digest).to_string());
            from.put("digest", digest);
        }
        said.put("caller", Value::from(from));
        let parts = rule.key.parts.iter().map(|part| {
            let mut one = Said::default();
            one.put("part", name(part));
            match part.values(head, body) {
                Ok(values) if self.reveal => {
                    let values = values.iter().map(|value| String::from_utf8_lossy(value));
                    one.put("values", values.collect::<Vec<_>>());
                }
                Ok(values) => one.put("values", values.len()),
                Err(error) => one.put("error", error.to_string()),
            }
            one
        });
        said.put("parts", parts.map(Value::from).collect::<Vec<_>>());
        said.put("scope", scope(&rule.key));
        said.put("compares", compares(&rule.key.fingerprint));
    }

    /// Runs the machine until it has answered, let the request go, or waits.
    fn play(&self, config: &Rc<Config>, request: &Request, meets: &Meets) -> Played {
        let exchange = Exchange::new(config.clone(), "explain".into(), Token([1; 16]));
        let ends = request.body.is_empty();
        let headers = Input::RequestHeaders {
            headers: &request.headers,
            attributes: self,
            end_of_stream: ends,
        };
        let mut step = exchange.handle(headers, NOW);
        let mut played = Played { held: step.flow == Flow::Hold, ..Played::default() };
        let mut questions = played.take(&mut step.orders);
        if !ends && step.next.wants_bytes() {
            let body = Input::RequestBody { chunk: &request.body, end_of_stream: true };
            step = step.next.handle(body, NOW);
            played.held = step.flow == Flow::Hold;
            questions = played.take(&mut step.orders);
        }
        // A waiter asks twice: it watches, and looks again.
        for _ in 0..2 {
            let Some((question, command)) = questions else { break };
            if let Command::Claim { key, fingerprint, .. } = &command {
                played.claim = Some((*key, *fingerprint));
            }
            let reply = meets.reply(&command);
            step = step.next.handle(Input::StoreReplied { question, reply }, NOW);
            played.held = step.flow == Flow::Hold;
            questions = played.take(&mut step.orders);
        }
        played.waits = step.next.alarm().is_some() && played.answer.is_none();
        played
    }
}

/// What the request meets in the store.
#[derive(PartialEq)]
enum Meets {
    Nothing,
    Ongoing,
    Finished,
    Unknown,
    Another,
    NoStore,
}

impl Meets {
    const ALL: [Self; 6] =
        [Self::Nothing, Self::Ongoing, Self::Finished, Self::Unknown, Self::Another, Self::NoStore];

    fn word(&self) -> &'static str {
        match self {
            Self::Nothing => "new",
            Self::Ongoing => "ongoing",
            Self::Finished => "finished",
            Self::Unknown => "unknown",
            Self::Another => "differs",
            Self::NoStore => "store_away",
        }
    }

    fn reply(&self, command: &Command) -> Result<Reply, StoreError> {
        let Command::Claim { fingerprint, lease, .. } = command else {
            return Ok(Reply::Done);
        };
        let until = NOW.after(*lease);
        let ongoing = State::Ongoing { lease_until: until, unknown_for: *lease };
        let exists = |fingerprint, state| {
            let token = Token([2; 16]);
            Ok(Reply::Exists(Record { token, fingerprint, attempt: 1, first_seen: NOW, state }))
        };
        match self {
            Self::Nothing => Ok(Reply::Claimed { attempt: 1 }),
            Self::Ongoing => exists(*fingerprint, ongoing),
            Self::Finished => {
                let kept = Kept::Answer(Answer::default());
                exists(*fingerprint, State::Finished { until, status: 200, kept })
            }
            Self::Unknown => exists(*fingerprint, State::Unknown { until }),
            Self::Another => exists(Fingerprint(fingerprint.0.map(|byte| !byte)), ongoing),
            Self::NoStore => Err(StoreError::Unavailable("it is away")),
        }
    }
}

/// What the machine has ordered.
#[derive(Default)]
struct Played {
    claim: Option<(Key, Fingerprint)>,
    outcome: Option<Outcome>,
    shadow: bool,
    answer: Option<LocalReply>,
    attempt: Option<String>,
    sends: bool,
    asks_here: bool,
    waits: bool,
    held: bool,
    log: Vec<String>,
}

impl Played {
    /// Notes the orders, and gives the question to the store that is among them.
    fn take(
        &mut self,
        orders: &mut Vec<Order>,
    ) -> Option<(envoy_idempotency::exchange::Question, Command)> {
        let mut asked = None;
        for order in orders.drain(..) {
            match order {
                Order::Ask(question, command) => asked = Some((question, command)),
                Order::AskHere(..) => self.asks_here = true,
                Order::Send(_, outgoing) => {
                    self.sends = true;
                    let mut headers = outgoing.headers.into_iter();
                    let attempt = headers.find(|(name, _)| name == header::ATTEMPT.as_bytes());
                    self.attempt =
                        attempt.map(|(_, value)| String::from_utf8_lossy(&value).into_owned());
                }
                Order::Answer(reply) => self.answer = Some(reply),
                Order::SetRequestHeader(header::ATTEMPT, attempt) => self.attempt = Some(attempt),
                Order::Report(_, report) => {
                    self.outcome = Some(report.outcome);
                    self.shadow = report.shadow;
                }
                Order::Log(_, text) => self.log.push(text),
                Order::SetRequestHeader(..)
                | Order::RemoveRequestHeader(_)
                | Order::SetResponseHeader(..)
                | Order::RemoveResponseHeader(_)
                | Order::Watch(_)
                | Order::Unwatch(_)
                | Order::Count(_) => {}
            }
        }
        asked
    }

    fn into_json(self, rule: &Rule) -> Value {
        let then = self.words(rule);
        let mut said = Said::default();
        said.put("then", then);
        if let Some(outcome) = self.outcome {
            said.put("outcome", outcome.word());
        }
        if let Some(answer) = &self.answer {
            said.put("status", answer.status);
        }
        if self.shadow {
            said.put("shadow", true);
        }
        said.into()
    }

    fn without_rule(&self) -> Value {
        match &self.answer {
            Some(answer) => json!({ "then": answered(answer), "status": answer.status }),
            None => json!({ "then": "goes on untouched: no rule protects it" }),
        }
    }

    fn words(&self, rule: &Rule) -> String {
        let said = if let Some(answer) = &self.answer {
            if self.outcome == Some(Outcome::Replayed) {
                return "is answered with the first answer, and Idempotent-Replayed: true"
                    .to_owned();
            }
            answered(answer)
        } else if self.sends {
            let attempt = self.attempt.as_deref().unwrap_or("1");
            format!("runs, detached from its client, with Idempotency-Attempt: {attempt}")
        } else if let Some(attempt) = &self.attempt {
            format!("runs, with Idempotency-Attempt: {attempt}")
        } else if self.asks_here {
            "is decided by this Envoy's memory alone".to_owned()
        } else if self.waits && self.held {
            match &rule.ongoing {
                Ongoing::Wait { max } => format!(
                    "waits for the first to finish, at most {} s, and is answered 409 in-progress then",
                    max.as_secs_f64()
                ),
                Ongoing::Requeue { delay, attempts } => format!(
                    "is looked at again, {attempts} times every {} s, and answered 409 in-progress then",
                    delay.as_secs_f64()
                ),
                Ongoing::Reject | Ongoing::Redirect { .. } => "is held".to_owned(),
            }
        } else if self.shadow {
            "goes on untouched: the rule only watches".to_owned()
        } else {
            match self.outcome {
                Some(Outcome::StoreError) => "goes on, unprotected".to_owned(),
                Some(_) | None => "goes on untouched".to_owned(),
            }
        };
        match self.log.first() {
            // Why it does not get as far as the store.
            Some(log) if self.claim.is_none() => format!("{said} ({log})"),
            Some(_) | None => said,
        }
    }
}

/// `409 in-progress, retry-after: 1`.
fn answered(answer: &LocalReply) -> String {
    let code = serde_json::from_slice::<Value>(&answer.body).ok();
    let text = |field: &str| {
        let found = code.as_ref().and_then(|code| code.get(field)).and_then(Value::as_str);
        found.unwrap_or_default().to_owned()
    };
    let mut said = format!("is answered {} {}", answer.status, text("code"));
    for name in ["retry-after", "location"] {
        let found = answer.headers.iter().find(|(known, _)| known == name.as_bytes());
        if let Some((_, value)) = found {
            said = format!("{said}, {name}: {}", String::from_utf8_lossy(value));
        }
    }
    let detail = text("detail");
    if detail.is_empty() { said } else { format!("{said}: {detail}") }
}

impl Attributes for Explain {
    fn attribute(&self, path: &[&str]) -> Option<Vec<u8>> {
        match path {
            ["xds", "route_metadata", "filter_metadata", "idempotency", "rule"] => {
                self.route.as_ref().map(|rule| rule.clone().into_bytes())
            }
            ["connection", "uri_san_peer_certificate"] => {
                self.peer.as_ref().map(|peer| peer.clone().into_bytes())
            }
            ["metadata", "filter_metadata", below @ ..] => {
                let below = below.join("/");
                let found = self.metadata.iter().find(|(known, _)| *known == below);
                found.map(|(_, value)| value.clone().into_bytes())
            }
            // Where a detached request would be sent; it never is.
            ["xds", "cluster_name"] => Some(b"the route's cluster".to_vec()),
            _ => None,
        }
    }
}

/// As the configuration writes it.
fn name(part: &KeyPart) -> String {
    match part {
        KeyPart::KeyHeader(name) => format!("key_header {name}"),
        KeyPart::Header(_)
        | KeyPart::Query(_)
        | KeyPart::Cookie(_)
        | KeyPart::Path(_)
        | KeyPart::Json(_)
        | KeyPart::Form(_)
        | KeyPart::Body => part.to_string(),
    }
}

fn caller(source: &CallerSource) -> String {
    match source {
        CallerSource::Anyone => "anyone".to_owned(),
        CallerSource::Header(name) => format!("header {name}"),
        CallerSource::Cookie(name) => format!("cookie {name}"),
        CallerSource::Metadata(below) => format!("metadata {}", below.join("/")),
        CallerSource::Peer => "peer".to_owned(),
    }
}

fn scope(plan: &KeyPlan) -> Vec<&'static str> {
    let scope = plan.scope;
    let all = [(scope.method, "method"), (scope.host, "host"), (scope.path, "path")];
    all.into_iter().filter(|(chosen, _)| *chosen).map(|(_, word)| word).collect()
}

fn compares(plan: &FingerprintPlan) -> String {
    let list = |pointers: &[envoy_idempotency::key::Pointer]| {
        let texts = pointers.iter().map(ToString::to_string);
        texts.collect::<Vec<_>>().join(", ")
    };
    match plan {
        FingerprintPlan::Body => "the body and its media type".to_owned(),
        FingerprintPlan::Nothing => "nothing".to_owned(),
        FingerprintPlan::Fields(pointers) => format!("the fields {}", list(pointers)),
        FingerprintPlan::Except(pointers) => format!("the body except {}", list(pointers)),
    }
}

fn hex(bytes: &[u8; 32]) -> String {
    format!("{:x}", Key(*bytes))
}

/// The same for people: a name and a value a line.
fn print(said: &Value) {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let line = |name: &str, value: &str| say(format_args!("{name:<12} {value}"));
    match said.get("rule") {
        Some(Value::String(rule)) => {
            let protects = said.get("protects").map(text).unwrap_or_default();
            line("rule", &format!("{rule}: {protects}"));
        }
        Some(_) | None => line("rule", "none"),
    }
    if let Some(caller) = said.get("caller") {
        let from = caller.get("from").map(text).unwrap_or_default();
        line(
            "caller",
            &match caller.get("digest") {
                Some(Value::String(digest)) => format!("{from}, digest {digest}"),
                Some(_) => format!("{from}, absent"),
                None => from,
            },
        );
    }
    for part in said.get("parts").and_then(Value::as_array).into_iter().flatten() {
        let name = part.get("part").map(text).unwrap_or_default();
        let found = match (part.get("values"), part.get("error")) {
            (_, Some(error)) => format!(": {}", text(error)),
            (Some(Value::Number(count)), None) if count.as_u64() == Some(0) => {
                ": absent".to_owned()
            }
            (Some(Value::Array(values)), None) if values.is_empty() => ": absent".to_owned(),
            (Some(Value::Array(values)), None) => {
                format!(
                    ": {}",
                    values.iter().map(|value| plain(&text(value))).collect::<Vec<_>>().join(", ")
                )
            }
            (Some(_) | None, None) => String::new(),
        };
        line("key part", &format!("{name}{found}"));
    }
    if let Some(scope) = said.get("scope").and_then(Value::as_array) {
        let words: Vec<_> = scope.iter().map(text).collect();
        line("scope", &if words.is_empty() { "nothing".to_owned() } else { words.join(", ") });
    }
    for (name, field) in [
        ("compares", "compares"),
        ("fingerprint", "fingerprint"),
        ("key", "key"),
        ("Redis key", "redis_key"),
    ] {
        if let Some(value) = said.get(field) {
            line(name, &text(value));
        }
    }
    let would = |meets: &str| said.get("would").and_then(|all| all.get(meets));
    let words = ["always"].into_iter().chain(Meets::ALL.iter().map(Meets::word));
    for (meets, would) in words.filter_map(|meets| Some((meets, would(meets)?))) {
        let then = would.get("then").map(text).unwrap_or_default();
        let shadow = match (would.get("shadow"), would.get("outcome")) {
            (Some(_), Some(outcome)) => format!(" [shadow: {}]", text(outcome)),
            (Some(_), None) | (None, _) => String::new(),
        };
        let name = if meets == "always" {
            meets.to_owned()
        } else {
            format!("if {}", meets.replace('_', " "))
        };
        line(&name, &format!("{then}{shadow}"));
    }
}

/// What a client sent, so that it cannot speak to the terminal.
fn plain(text: &str) -> String {
    let letter = |letter: char| {
        if letter.is_control() { letter.escape_default().to_string() } else { letter.to_string() }
    };
    text.chars().map(letter).collect()
}
