//! The configuration's JSON Schema (draft 2020-12), for editors and admission checks.
//!
//! The shapes are those of `raw`, the bounds those of `validate`, the words those of the table of options:
//! nothing is said twice. It refuses no configuration that the parser takes, and cannot say all that the
//! parser refuses: lengths of time that are out of bounds, names that dangle.

use super::options;
use super::raw;
use super::select::OFF;
use super::store::{ENTRIES, LONGEST_PREFIX};
use super::validate::{LONGEST_NAME, REQUEUE_ATTEMPTS};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};
use std::borrow::Cow;

/// The schema as it is committed: two spaces of indent, a line's end at the end.
pub fn render_schema() -> String {
    // `{:#}` of a JSON value, and a value always has it.
    format!("{:#}\n", schema())
}

fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        // Every place has words and bounds of its own, which a shared definition could not hold.
        settings.inline_subschemas = true;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<raw::Config>().to_value();
    if let Some(top) = schema.as_object_mut() {
        top.insert("title".to_owned(), json!("Configuration of the idempotency filter"));
    }
    for (option, more) in bounds() {
        at(&mut schema, option, &mut |place| narrow(place, &more));
    }
    for row in options::rows() {
        at(&mut schema, row.option, &mut |place| describe(place, row.values, &row.default));
    }
    schema
}

/// What the shapes do not say, by option. `[]` is any element of a list.
fn bounds() -> Vec<(&'static str, Value)> {
    let whole = |least: &u64, most: &u64| json!({ "minimum": least, "maximum": most });
    let entries = whole(ENTRIES.start(), ENTRIES.end());
    let filled = json!({ "minItems": 1 });
    let named = json!({ "minLength": 1 });
    // RFC 9110 section 5.6.2.
    let token = json!({ "pattern": "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$" });
    // RFC 6901 section 3.
    let pointer = json!({ "pattern": "^(/([^~/]|~[01])*)*$" });
    let methods = "^[A-Z0-9!#$%&'*+.^_`|~-]+$";
    let safe = json!({ "enum": ["GET", "HEAD", "OPTIONS", "TRACE", "CONNECT"] });
    vec![
        ("store.memory.entries", entries.clone()),
        ("store.redis.local.entries", entries),
        ("store.redis.cluster", named.clone()),
        ("store.redis.prefix", json!({ "pattern": "^[!-z|}~]*$", "maxLength": LONGEST_PREFIX })),
        ("rules", filled.clone()),
        (
            "rules[].name",
            json!({ "pattern": format!("^[a-z0-9_-]{{1,{LONGEST_NAME}}}$"), "not": { "const": OFF } }),
        ),
        ("rules[].match.methods", filled.clone()),
        ("rules[].match.methods[]", json!({ "pattern": methods, "not": safe })),
        ("rules[].match.hosts", filled.clone()),
        (
            "rules[].match.hosts[]",
            json!({ "pattern": r"^(\*\.)?[A-Za-z0-9_.-]+$|^\[[0-9A-Fa-f:.]+\]$" }),
        ),
        ("rules[].match.path", json!({ "pattern": "^/" })),
        ("rules[].key", filled.clone()),
        ("rules[].key[].key_header", token.clone()),
        ("rules[].key[].header", token.clone()),
        ("rules[].key[].query", named.clone()),
        ("rules[].key[].cookie", token.clone()),
        ("rules[].key[].path", named.clone()),
        ("rules[].key[].json", pointer.clone()),
        ("rules[].key[].form", named.clone()),
        ("rules[].caller.header", token.clone()),
        ("rules[].caller.cookie", token.clone()),
        ("rules[].caller.metadata", json!({ "minItems": 2 })),
        ("rules[].caller.metadata[]", named.clone()),
        ("rules[].fingerprint.fields", filled.clone()),
        ("rules[].fingerprint.fields[]", pointer.clone()),
        ("rules[].fingerprint.except", filled.clone()),
        ("rules[].fingerprint.except[]", pointer),
        (
            "rules[].ongoing.requeue.attempts",
            whole(REQUEUE_ATTEMPTS.start(), REQUEUE_ATTEMPTS.end()),
        ),
        ("rules[].outcomes[].status", filled),
        ("rules[].replay_headers.deny[]", token.clone()),
        ("rules[].replay_headers.allow[]", token),
        ("rules[].execution.detached.via", named),
    ]
}

/// Finds the place of an option, such as `rules[].ongoing.wait.max`, behind every choice that leads there.
fn at(schema: &mut Value, option: &str, then: &mut dyn FnMut(&mut Map<String, Value>)) {
    let Some(fields) = schema.as_object_mut() else { return };
    for choice in ["oneOf", "anyOf"] {
        if option.is_empty() {
            break;
        }
        let choices = fields.get_mut(choice).and_then(Value::as_array_mut);
        choices.into_iter().flatten().for_each(|choice| at(choice, option, then));
    }
    if option.is_empty() {
        then(fields);
    } else if let Some(rest) = option.strip_prefix("[]") {
        if let Some(items) = fields.get_mut("items") {
            at(items, rest.strip_prefix('.').unwrap_or(rest), then);
        }
    } else {
        let end = option.find(['.', '[']).unwrap_or(option.len());
        let (name, rest) = option.split_at_checked(end).unwrap_or((option, ""));
        if let Some(field) = fields.get_mut("properties").and_then(|all| all.get_mut(name)) {
            at(field, rest.strip_prefix('.').unwrap_or(rest), then);
        }
    }
}

fn narrow(place: &mut Map<String, Value>, more: &Value) {
    for (word, value) in more.as_object().into_iter().flatten() {
        place.insert(word.clone(), value.clone());
    }
}

/// The words of the table of options, without its Markdown.
fn describe(place: &mut Map<String, Value>, values: &str, default: &str) {
    let plain = |text: &str| text.replace('`', "");
    let values = plain(values);
    let first = values.chars().next().map(|letter| letter.to_uppercase().to_string());
    let rest: String = values.chars().skip(1).collect();
    let said = format!("{}{rest}. Default: {}.", first.unwrap_or_default(), plain(default));
    let said = said.replace(" Default: required.", " Required.");
    place.insert("description".to_owned(), Value::String(said));
    let code = default.strip_prefix('`').and_then(|rest| rest.strip_suffix('`'));
    if let Some(value) = code.and_then(|code| serde_json::from_str(code).ok()) {
        place.insert("default".to_owned(), value);
    }
}

/// Every unit that humantime reads; which lengths are whole milliseconds and within bounds is for the
/// parser to say.
const LENGTH: &str = "^\\s*([0-9][0-9\\s]*(\\.[0-9\\s]*[0-9][0-9\\s]*)?\
    (ns|nsec|nanos|us|usec|µs|ms|msec|millis|s|sec|secs|second|seconds|m|min|mins|minute|minutes\
    |h|hr|hrs|hour|hours|d|day|days|w|wk|wks|week|weeks|M|month|months|y|yr|yrs|year|years)\\s*)+$";

const SIZE: &str = "^[0-9]+(B|KiB|MiB|GiB)$";

impl JsonSchema for raw::Length {
    fn schema_name() -> Cow<'static, str> {
        "Length".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": LENGTH })
    }
}

impl JsonSchema for raw::Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": SIZE })
    }
}

impl JsonSchema for raw::Whole {
    fn schema_name() -> Cow<'static, str> {
        "Whole".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // To JSON Schema, too, 20.0 is an integer.
        json_schema!({ "type": "integer", "minimum": 0 })
    }
}

impl JsonSchema for raw::Statuses {
    fn schema_name() -> Cow<'static, str> {
        "Statuses".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "integer", "minimum": 200, "maximum": 599 },
            { "type": "string", "pattern": "^([2-5]xx|[2-5][0-9]{2}(-[2-5][0-9]{2})?)$" }
        ] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_and_every_bound_has_its_place() {
        let schema = schema();
        let options = options::rows().into_iter().map(|row| row.option);
        for option in bounds().into_iter().map(|(option, _)| option).chain(options) {
            let mut found = 0;
            at(&mut schema.clone(), option, &mut |_| found += 1);
            assert_eq!(found, 1, "{option}");
        }
    }

    #[test]
    fn what_the_parser_reads_as_a_length_or_size_matches() {
        let schema = schema();
        let validator = jsonschema::validator_for(&schema).unwrap();
        for text in
            ["250ms", "0s", "0.25s", "1h 30m", " 1 5 s", "1. 5h", "2 days", "1000µs", "1h30m"]
        {
            assert!(super::super::unit::parse_length(text).is_ok(), "{text}");
            let config = json!({ "rules": [
                { "name": "r", "key": ["body"], "caller": "anyone", "ttl": text } ] });
            assert!(validator.is_valid(&config), "{text}");
        }
    }
}
