//! Finds the filter's configurations in a file: alone, or in a bootstrap or a manifest.

use super::{Failure, Source};
use prost::Message;
use prost_types::value::Kind;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

/// The filter's root context; `redis_bridge`, in the same module, has no configuration.
const ROOT_ID: &str = "idempotency";

/// A configuration of the filter.
pub(super) struct Extracted {
    /// Its source, for messages.
    pub(super) place: String,
    /// As the module gets it: JSON, or a `Struct` on the wire.
    pub(super) bytes: Vec<u8>,
    /// The variables that its VM gets; `None` when the configuration stands alone.
    pub(super) handed: Option<Handed>,
    /// The error in the plugin around it, if there is one.
    pub(super) holds_no_headers: bool,
}

/// The variables that a VM gets.
#[derive(Default)]
pub(super) struct Handed {
    /// By value.
    pub(super) values: BTreeMap<String, String>,
    /// By name, from Envoy's own environment.
    pub(super) host: BTreeSet<String>,
}

impl Source {
    /// Every configuration in the file, at least one.
    pub(super) fn extract(&self) -> Result<Vec<Extracted>, Failure> {
        let place = name(&self.config);
        let bytes = read(&self.config)?;
        let documents = match documents(&self.config, &bytes) {
            Ok(documents) => documents,
            // The module's parser has better messages for a text that is not JSON.
            Err(NoDocument::Json) => return Ok(vec![Extracted::alone(place, bytes)]),
            Err(NoDocument::Yaml(why)) => {
                return Err(Failure::Refused(format!("{place}: not YAML: {why}")));
            }
        };
        let mut found = Vec::new();
        for document in &documents {
            search(document, &place, &mut found)?;
        }
        if found.is_empty() {
            return match documents.as_slice() {
                [document] if !is_envelope(document) => {
                    let bytes = if is_json(&self.config, &bytes) {
                        bytes
                    } else {
                        document.to_string().into_bytes()
                    };
                    Ok(vec![Extracted::alone(place, bytes)])
                }
                _ => Err(Failure::Refused(format!(
                    "{place}: holds no plugin with root_id: {ROOT_ID}, and is not a configuration of one"
                ))),
            };
        }
        if found.len() > 1 {
            for (index, extracted) in found.iter_mut().enumerate() {
                extracted.place = format!("{place}: plugin {}", index.saturating_add(1));
            }
        }
        Ok(found)
    }
}

impl Extracted {
    fn alone(place: String, bytes: Vec<u8>) -> Self {
        Self { place, bytes, handed: None, holds_no_headers: false }
    }
}

/// The name of a file in messages.
pub(super) fn name(path: &Path) -> String {
    if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() }
}

/// A file, or standard input.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let read = if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    read.map_err(|error| Failure::Untried(format!("{}: {error}", name(path))))
}

enum NoDocument {
    Json,
    Yaml(String),
}

/// By its name, else by its first letter: every JSON text is also YAML, but the error messages differ.
fn is_json(path: &Path, bytes: &[u8]) -> bool {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => true,
        Some("yaml" | "yml") => false,
        Some(_) | None => bytes.trim_ascii_start().starts_with(b"{"),
    }
}

fn documents(path: &Path, bytes: &[u8]) -> Result<Vec<Value>, NoDocument> {
    if is_json(path, bytes) {
        return serde_json::from_slice(bytes)
            .map(|value| vec![value])
            .map_err(|_| NoDocument::Json);
    }
    let yaml = |error: &dyn std::fmt::Display| NoDocument::Yaml(error.to_string());
    let text = std::str::from_utf8(bytes).map_err(|error| yaml(&error))?;
    let mut documents = Vec::new();
    for document in serde_norway::Deserializer::from_str(text) {
        let mut value = serde_norway::Value::deserialize(document).map_err(|error| yaml(&error))?;
        value.apply_merge().map_err(|error| yaml(&error))?;
        let value = serde_json::to_value(value).map_err(|error| yaml(&error))?;
        // Manifests often begin or end with `---`.
        if !value.is_null() {
            documents.push(value);
        }
    }
    Ok(documents)
}

/// Whether this wraps configurations, rather than being one.
fn is_envelope(document: &Value) -> bool {
    const MARKS: [&str; 8] = [
        "static_resources",
        "staticResources",
        "resources",
        "apiVersion",
        "spec",
        "typed_config",
        "typedConfig",
        "@type",
    ];
    document.is_array() || MARKS.iter().any(|mark| document.get(mark).is_some())
}

fn search(value: &Value, place: &str, found: &mut Vec<Extracted>) -> Result<(), Failure> {
    match value {
        Value::Object(fields) => {
            if let Some(extracted) = plugin(fields, place)? {
                found.push(extracted);
                return Ok(());
            }
            fields.values().try_for_each(|inner| search(inner, place, found))
        }
        Value::Array(items) => items.iter().try_for_each(|inner| search(inner, place, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

fn plugin(fields: &Map<String, Value>, place: &str) -> Result<Option<Extracted>, Failure> {
    let is = |name: &str| fields.get(name).and_then(Value::as_str) == Some(ROOT_ID);
    // envoy.extensions.wasm.v3.PluginConfig, in either spelling of protobuf's JSON.
    if is("root_id") || is("rootId") {
        let either = |snake: &str, camel: &str| fields.get(snake).or_else(|| fields.get(camel));
        let bytes = match either("configuration", "configuration") {
            None => Vec::new(),
            Some(any) => unpack(any, place)?,
        };
        let vm = either("vm_config", "vmConfig");
        let holds = either("allow_on_headers_stop_iteration", "allowOnHeadersStopIteration");
        // A BoolValue is a boolean in protobuf's JSON.
        let holds_no_headers = holds.and_then(Value::as_bool) != Some(true);
        let handed = Some(envoy_variables(vm));
        return Ok(Some(Extracted { place: place.to_owned(), bytes, handed, holds_no_headers }));
    }
    // Istio's WasmPlugin, whose pluginName is the root_id.
    if is("pluginName") {
        let bytes = json(fields.get("pluginConfig"));
        let handed = Some(istio_variables(fields.get("vmConfig")));
        return Ok(Some(Extracted {
            place: place.to_owned(),
            bytes,
            handed,
            holds_no_headers: false,
        }));
    }
    // An EnvoyExtensionPolicy of Envoy Gateway.
    if is("rootID") {
        let bytes = json(fields.get("config"));
        let host = names(fields.get("env").and_then(|env| env.get("hostKeys")));
        let handed = Some(Handed { values: BTreeMap::new(), host });
        return Ok(Some(Extracted {
            place: place.to_owned(),
            bytes,
            handed,
            holds_no_headers: false,
        }));
    }
    Ok(None)
}

/// The content of a plugin's `Any`, as Envoy passes it to the module.
fn unpack(any: &Value, place: &str) -> Result<Vec<u8>, Failure> {
    let value = any.get("value");
    let kind = any.get("@type").and_then(Value::as_str).unwrap_or_default();
    match (kind.rsplit('/').next(), value) {
        (Some("google.protobuf.StringValue"), Some(Value::String(text))) => {
            Ok(text.clone().into_bytes())
        }
        (Some("google.protobuf.Struct"), Some(Value::Object(fields))) => {
            Ok(structure(fields).encode_to_vec())
        }
        _ => Err(Failure::Refused(format!(
            "{place}: the plugin's configuration is of the type {kind:?}, wanted a \
             google.protobuf.StringValue or google.protobuf.Struct, and its value"
        ))),
    }
}

fn structure(fields: &Map<String, Value>) -> prost_types::Struct {
    let fields = fields.iter().map(|(name, value)| (name.clone(), protobuf(value)));
    prost_types::Struct { fields: fields.collect() }
}

fn protobuf(value: &Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(truth) => Kind::BoolValue(*truth),
        // A Struct has only doubles.
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(items) => {
            Kind::ListValue(prost_types::ListValue { values: items.iter().map(protobuf).collect() })
        }
        Value::Object(fields) => Kind::StructValue(structure(fields)),
    };
    prost_types::Value { kind: Some(kind) }
}

/// Both control planes pass their structures as JSON text.
fn json(config: Option<&Value>) -> Vec<u8> {
    config.map(|config| config.to_string().into_bytes()).unwrap_or_default()
}

fn names(list: Option<&Value>) -> BTreeSet<String> {
    let names = list.and_then(Value::as_array).into_iter().flatten();
    names.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// `vm_config.environment_variables`.
fn envoy_variables(vm: Option<&Value>) -> Handed {
    let variables = vm
        .and_then(|vm| vm.get("environment_variables").or_else(|| vm.get("environmentVariables")));
    let either = |snake: &str, camel: &str| {
        variables.and_then(|all| all.get(snake).or_else(|| all.get(camel)))
    };
    let values = either("key_values", "keyValues").and_then(Value::as_object);
    let values = values
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| value.as_str().map(|value| (name.clone(), value.to_owned())));
    Handed { values: values.collect(), host: names(either("host_env_keys", "hostEnvKeys")) }
}

/// `vmConfig.env`: a list of names, each with a value or `valueFrom: HOST`.
fn istio_variables(vm: Option<&Value>) -> Handed {
    let mut handed = Handed::default();
    let list = vm.and_then(|vm| vm.get("env")).and_then(Value::as_array);
    for variable in list.into_iter().flatten() {
        let text = |field: &str| variable.get(field).and_then(Value::as_str);
        match (text("name"), text("value"), text("valueFrom")) {
            (Some(name), _, Some("HOST")) => {
                handed.host.insert(name.to_owned());
            }
            (Some(name), Some(value), _) => {
                handed.values.insert(name.to_owned(), value.to_owned());
            }
            (Some(_), None, _) | (None, _, _) => {}
        }
    }
    handed
}
