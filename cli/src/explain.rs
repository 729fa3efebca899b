//! `explain`: what would happen to a request, by the module's own state machine.

use super::check::protects;
use super::dry_run::{Meets, dry_run};
use super::output::{Fields, plain, print_line};
use super::request::Request;
use super::{Failure, Source, extract};
use clap::Args;
use envoy_idempotency::config::{Config, Rule, Selection, StoreConfig};
use envoy_idempotency::key::{
    Attributes, CallerSource, FingerprintPlan, Key, KeyPart, KeyPlan, RequestHead,
};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::rc::Rc;

/// Shows which rule protects a request, its key, and what would happen to it.
///
/// The request is HTTP/1.1 as on the wire: a request line, headers, an empty line, the body. Without
/// content-length, everything that follows is the body, an editor's last line end included. Envoy's own
/// changes to a request (normalised path, other filters) are not applied.
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
    /// The rule in the route's metadata: a rule's name, or off.
    #[arg(long, value_name = "RULE")]
    route: Option<String>,
    /// The URI SAN of the client's certificate, for a rule with "caller": "peer".
    #[arg(long, value_name = "URI")]
    peer: Option<String>,
    /// Dynamic metadata of earlier filters, e.g. envoy.filters.http.jwt_authn/payload/sub=alice; slashes
    /// separate the steps of the path.
    #[arg(long, value_name = "PATH=VALUE", value_parser = super::variables::pair)]
    metadata: Vec<(String, String)>,
    /// Print the values of the key's parts, which are the client's own.
    #[arg(long)]
    reveal: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let mut extracted = self.source.extract()?;
        let plugin = match (self.plugin, extracted.len()) {
            (None, 1) => 1,
            (None, found) => {
                let why = format!("{found} plugins in the file: choose one with --plugin");
                return Err(Failure::Untried(why));
            }
            (Some(plugin), _) => plugin,
        };
        let chosen = plugin.checked_sub(1).filter(|index| *index < extracted.len());
        let chosen = chosen
            .map(|index| extracted.swap_remove(index))
            .ok_or_else(|| Failure::Untried(format!("there is no plugin {plugin} in the file")))?;
        if self.request == self.source.config {
            let why = "configuration and request cannot be the same file, or both standard input";
            return Err(Failure::Untried(why.to_owned()));
        }
        let config = Rc::new(self.source.load(&chosen)?);
        let request = Request::parse(&extract::read(&self.request)?)?;
        let explained = self.explain(&config, &request);
        if self.json {
            print_line(format_args!("{explained:#}"));
        } else {
            print(&explained);
        }
        Ok(())
    }

    fn explain(&self, config: &Rc<Config>, request: &Request) -> Value {
        let mut output = Fields::default();
        let route = self.route.as_deref().map(str::as_bytes);
        if let Selection::Rule { rule, captures } = config.select(route, &request.headers) {
            let head =
                RequestHead { headers: &request.headers, attributes: self, captures: &captures };
            self.describe(&mut output, config, &rule, &head, &request.body);
            let asked = dry_run(self, config, request, &Meets::Nothing).claim;
            if let Some((key, fingerprint)) = asked {
                output.put("key", format!("{key:x}"));
                if let StoreConfig::Redis(redis) = &config.store {
                    output.put("redis_key", redis.settings.name(key));
                }
                if rule.key.fingerprint != FingerprintPlan::Nothing {
                    output.put("fingerprint", hex(&fingerprint.0));
                }
                let would = Meets::ALL.iter().filter(|meets| {
                    // Without a fingerprint, no request differs.
                    **meets != Meets::Another || rule.key.fingerprint != FingerprintPlan::Nothing
                });
                let would = would.map(|meets| {
                    let run = dry_run(self, config, request, meets);
                    (meets.word().to_owned(), run.into_json(&rule))
                });
                output.put("would", Value::Object(would.collect()));
                return Value::from(output);
            }
            let alone = dry_run(self, config, request, &Meets::Nothing).into_json(&rule);
            output.put("would", json!({ "always": alone }));
        } else {
            let run = dry_run(self, config, request, &Meets::Nothing);
            output.put("rule", Value::Null);
            output.put("would", json!({ "always": run.without_rule() }));
        }
        Value::from(output)
    }

    fn describe(
        &self,
        output: &mut Fields,
        config: &Config,
        rule: &Rc<Rule>,
        head: &RequestHead<'_>,
        body: &[u8],
    ) {
        output.put("rule", rule.name.as_str());
        output.put("protects", protects(rule));
        let mut from = Fields::default();
        from.put("from", caller(&rule.key.caller));
        if rule.key.caller != CallerSource::Anyone {
            let digest = rule.key.caller_in(head, config.secret.as_ref()).ok();
            // Enough to distinguish two callers, as in the filter's own log.
            let digest = digest.map(|digest| Key(digest).to_string());
            from.put("digest", digest);
        }
        output.put("caller", Value::from(from));
        let parts = rule.key.parts.iter().map(|part| {
            let mut one = Fields::default();
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
        output.put("parts", parts.map(Value::from).collect::<Vec<_>>());
        output.put("scope", scope(&rule.key));
        output.put("compares", compares(&rule.key.fingerprint));
    }
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

/// The same for people: a name and a value per line.
fn print(output: &Value) {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let line = |name: &str, value: &str| print_line(format_args!("{name:<12} {value}"));
    match output.get("rule") {
        Some(Value::String(rule)) => {
            let protects = output.get("protects").map(text).unwrap_or_default();
            line("rule", &format!("{rule}: {protects}"));
        }
        Some(_) | None => line("rule", "none"),
    }
    if let Some(caller) = output.get("caller") {
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
    for part in output.get("parts").and_then(Value::as_array).into_iter().flatten() {
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
    if let Some(scope) = output.get("scope").and_then(Value::as_array) {
        let words: Vec<_> = scope.iter().map(text).collect();
        line("scope", &if words.is_empty() { "nothing".to_owned() } else { words.join(", ") });
    }
    for (name, field) in [
        ("compares", "compares"),
        ("fingerprint", "fingerprint"),
        ("key", "key"),
        ("Redis key", "redis_key"),
    ] {
        if let Some(value) = output.get(field) {
            line(name, &text(value));
        }
    }
    let would = |meets: &str| output.get("would").and_then(|all| all.get(meets));
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
