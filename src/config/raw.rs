//! The configuration as it is written: shapes, units and names, but no sense yet.

use super::ConfigError;
use super::unit::{parse_length, parse_size};
use crate::record::outcome::StatusRange;
use prost::Message;
use prost_types::value::Kind;
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, Unexpected, Visitor};
use serde_json::Value;
use std::fmt;
use std::time::Duration;

#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    pub(super) store: Option<Store>,
    pub(super) secret_env: Option<String>,
    #[serde(default)]
    pub(super) status_header: bool,
    #[cfg_attr(feature = "schema", schemars(required))]
    pub(super) rules: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub(super) enum Store {
    Memory(Memory),
    Redis(Redis),
}

#[derive(Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct Memory {
    pub(super) entries: Option<Whole>,
    pub(super) budget: Option<Size>,
}

#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct Redis {
    pub(super) cluster: String,
    pub(super) prefix: Option<String>,
    pub(super) timeout: Option<Length>,
    pub(super) username: Option<String>,
    pub(super) password_env: Option<String>,
    #[serde(default)]
    pub(super) transport: Transport,
    pub(super) local: Option<Local>,
}

#[derive(Default, Deserialize, PartialEq)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub(super) enum Transport {
    #[default]
    Pipe,
    Webdis,
}

#[derive(Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct Local {
    pub(super) entries: Option<Whole>,
    pub(super) budget: Option<Size>,
    pub(super) ttl: Option<Length>,
}

#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    pub(super) name: String,
    #[serde(default, rename = "match")]
    pub(super) matching: Matching,
    pub(super) key: Vec<Part>,
    #[cfg_attr(feature = "schema", schemars(required))]
    pub(super) caller: Option<Caller>,
    pub(super) scope: Option<Vec<ScopePart>>,
    pub(super) missing_key: Option<MissingKey>,
    #[serde(default)]
    pub(super) fingerprint: Fingerprint,
    #[serde(default)]
    pub(super) ongoing: Ongoing,
    pub(super) ttl: Option<Length>,
    pub(super) lease: Option<Length>,
    pub(super) unknown_ttl: Option<Length>,
    #[serde(default)]
    pub(super) outcomes: Vec<Outcome>,
    pub(super) replay_headers: Option<ReplayHeaders>,
    #[serde(default)]
    pub(super) limits: Limits,
    #[serde(default)]
    pub(super) on_store_error: OnStoreError,
    #[serde(default)]
    pub(super) execution: Execution,
    #[serde(default)]
    pub(super) shadow: bool,
}

#[derive(Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct Matching {
    pub(super) hosts: Option<Vec<String>>,
    pub(super) methods: Option<Vec<String>>,
    pub(super) path: Option<String>,
}

#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub(super) enum Part {
    KeyHeader(String),
    Header(String),
    Query(String),
    Cookie(String),
    Path(String),
    Json(String),
    Form(String),
    Body,
}

#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub(super) enum Caller {
    Anyone,
    Peer,
    Header(String),
    Cookie(String),
    Metadata(Vec<String>),
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub(super) enum ScopePart {
    Method,
    Host,
    Path,
}

#[derive(Clone, Copy, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub(super) enum MissingKey {
    Pass,
    Reject,
}

#[derive(Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub(super) enum Fingerprint {
    #[default]
    Body,
    None,
    Fields(Vec<String>),
    Except(Vec<String>),
}

#[derive(Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub(super) enum Ongoing {
    #[default]
    Reject,
    Wait(Wait),
    Redirect(Redirect),
    Requeue(Requeue),
}

#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct Wait {
    pub(super) max: Length,
}

#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct Redirect {
    pub(super) to: Option<String>,
    pub(super) after: Option<Length>,
}

#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct Requeue {
    pub(super) delay: Length,
    pub(super) attempts: Whole,
}

#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct Outcome {
    pub(super) status: Vec<Statuses>,
    pub(super) r#do: Do,
    pub(super) ttl: Option<Length>,
}

#[derive(Clone, Copy, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub(super) enum Do {
    Store,
    Status,
    Release,
    Unknown,
}

#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub(super) enum ReplayHeaders {
    Deny(Vec<String>),
    Allow(Vec<String>),
}

#[derive(Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub(super) request_body: Option<Size>,
    pub(super) response_body: Option<Size>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub(super) enum OnStoreError {
    #[default]
    Refuse,
    Local,
    Pass,
}

#[derive(Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub(super) enum Execution {
    #[default]
    Attached,
    Detached(Detached),
}

#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct Detached {
    pub(super) timeout: Length,
    pub(super) via: Option<String>,
}

/// Reads JSON, or the bytes of a `google.protobuf.Struct`: Envoy hands a plugin a `Struct` as it is on
/// the wire (seen in 1.39.3), although its API says that it writes JSON.
pub(super) fn read(bytes: &[u8]) -> Result<Config, ConfigError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let error = match serde_path_to_error::deserialize(&mut json) {
        Ok(config) => match json.end() {
            Ok(()) => return Ok(config),
            Err(error) => error,
        },
        Err(error) if error.inner().is_data() => return Err(misfit(error)),
        // serde_json calls a choice with no field, or with two, a fault of syntax: the JSON is fine.
        Err(error) if serde_json::from_slice::<IgnoredAny>(bytes).is_ok() => {
            return Err(ConfigError::new(place(&error), WANTED_CHOICE));
        }
        Err(error) => error.into_inner(),
    };
    match prost_types::Struct::decode(bytes) {
        Ok(fields) if !bytes.is_empty() => {
            serde_path_to_error::deserialize(json_of_struct(fields)).map_err(misfit)
        }
        Ok(_) | Err(_) => Err(ConfigError::new(WHOLE, format!("not JSON: {error}"))),
    }
}

fn misfit(error: serde_path_to_error::Error<serde_json::Error>) -> ConfigError {
    let path = place(&error);
    let mut problem = error.into_inner().to_string();
    // Where a value has a path, line and column of what is often one long line say nothing.
    if let Some(at) = problem.rfind(" at line ") {
        problem.truncate(at);
    }
    ConfigError::new(path, problem)
}

fn place(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    match error.path().to_string() {
        whole if whole == "." => WHOLE.to_owned(),
        path => path,
    }
}

fn json_of_struct(fields: prost_types::Struct) -> Value {
    Value::Object(fields.fields.into_iter().map(|(name, value)| (name, json_of(value))).collect())
}

/// The decoder bounds the depth to 100, so recursion is safe.
fn json_of(value: prost_types::Value) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::NumberValue(number)) => Value::from(number),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::BoolValue(truth)) => Value::Bool(truth),
        Some(Kind::StructValue(fields)) => json_of_struct(fields),
        Some(Kind::ListValue(list)) => Value::Array(list.values.into_iter().map(json_of).collect()),
    }
}

/// What the path of the whole configuration is called.
pub(super) const WHOLE: &str = "configuration";

const WANTED_CHOICE: &str = "is no choice, wanted a word, or an object with exactly one field";

/// A length of time with its unit.
#[derive(Clone, Copy)]
pub(super) struct Length(pub(super) Duration);

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Text {
            wanted: "a length of time as a string, e.g. \"5s\"",
            parse: |text| parse_length(text).map(Self),
        })
    }
}

/// A size with its unit.
#[derive(Clone, Copy)]
pub(super) struct Size(pub(super) u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Text {
            wanted: "a size as a string, e.g. \"64KiB\"",
            parse: |text| parse_size(text).map(Self),
        })
    }
}

/// A string with a syntax of its own.
struct Text<T> {
    wanted: &'static str,
    parse: fn(&str) -> Result<T, String>,
}

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.wanted)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(E::custom)
    }
}

/// A whole number. A protobuf `Struct` knows doubles alone, so `20.0` is one, too.
#[derive(Clone, Copy)]
pub(super) struct Whole(pub(super) u64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WholeVisitor).map(Self)
    }
}

struct WholeVisitor;

impl Visitor<'_> for WholeVisitor {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<u64, E> {
        Ok(number)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<u64, E> {
        // Doubles are exact up to 2^53.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        if number.fract() == 0.0 && (0.0..=EXACT).contains(&number) {
            Ok(number as u64)
        } else {
            Err(E::invalid_value(Unexpected::Float(number), &self))
        }
    }
}

/// `200`, `"4xx"` or `"500-599"`.
pub(super) struct Statuses(pub(super) StatusRange);

impl<'de> Deserialize<'de> for Statuses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StatusesVisitor).map(Self)
    }
}

struct StatusesVisitor;

impl Visitor<'_> for StatusesVisitor {
    type Value = StatusRange;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a status such as 200, \"4xx\" or \"500-599\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<StatusRange, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<StatusRange, E> {
        let status = u16::try_from(number)
            .map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))?;
        StatusRange::single(status).map_err(E::custom)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<StatusRange, E> {
        WholeVisitor.visit_f64(number).and_then(|number| self.visit_u64(number))
    }
}
