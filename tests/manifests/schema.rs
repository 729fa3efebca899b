//! Kubernetes' structural schemas: OpenAPI v3 as an API server checks it; unknown fields are refused as in strict
//! mode. Its rules in CEL (`x-kubernetes-validations`) are not checked.

use regex_lite::Regex;
use serde_json::Value;

/// The violations of a value, each with its place. A keyword that is not known here is an error of its own: what is not
/// checked must not seem to be.
pub(crate) fn violations(schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let mut found = Vec::new();
    check(schema, value, at, true, &mut found);
    found
}

/// `structural`: fields are declared here, so others are unknown; not so under `oneOf` and its like.
fn check(schema: &Value, value: &Value, at: &str, structural: bool, found: &mut Vec<String>) {
    let on = |key: &str| schema.get(key).and_then(Value::as_bool).unwrap_or(false);
    if value.is_null() {
        if !on("nullable") && !on("x-kubernetes-preserve-unknown-fields") {
            found.push(format!("{at}: null"));
        }
        return;
    }
    for (keyword, wanted) in schema.as_object().unwrap() {
        let mut fails = |what: String| found.push(format!("{at}: {what}"));
        let number = |name: &str| wanted.as_f64().unwrap_or_else(|| panic!("{at}: {name}"));
        match keyword.as_str() {
            "type" if !is_a(value, wanted.as_str().unwrap()) => {
                fails(format!("{value}, wanted {wanted}"));
            }
            "x-kubernetes-int-or-string" if !(value.is_string() || value.is_i64()) => {
                fails(format!("{value}, wanted a number or a string"));
            }
            "enum" if !wanted.as_array().unwrap().contains(value) => {
                fails(format!("{value}, wanted one of {wanted}"));
            }
            "pattern" => {
                if let Some(text) = value.as_str()
                    && !Regex::new(wanted.as_str().unwrap()).unwrap().is_match(text)
                {
                    fails(format!("{text} does not match {wanted}"));
                }
            }
            "minLength" | "maxLength" | "minimum" | "maximum" | "minItems" | "maxItems"
            | "maxProperties" => {
                let size = match value {
                    Value::String(text) => Some(text.chars().count() as f64),
                    Value::Array(items) => Some(items.len() as f64),
                    Value::Object(fields) => Some(fields.len() as f64),
                    Value::Number(number) => number.as_f64(),
                    Value::Null | Value::Bool(_) => None,
                };
                let limit = number(keyword);
                let is_least = keyword.starts_with("min");
                if size.is_some_and(|size| if is_least { size < limit } else { size > limit }) {
                    fails(format!("{keyword} is {limit}"));
                }
            }
            "format" if wanted == "int32" => {
                if value.as_i64().is_none_or(|number| i32::try_from(number).is_err()) {
                    fails(format!("{value} is no int32"));
                }
            }
            "required" => {
                for name in wanted.as_array().unwrap() {
                    if value.get(name.as_str().unwrap()).is_none() {
                        fails(format!("{name} is missing"));
                    }
                }
            }
            "x-kubernetes-list-map-keys" => {
                let keys = wanted.as_array().unwrap();
                let key = |item: &Value| -> Vec<Value> {
                    keys.iter().map(|key| item[key.as_str().unwrap()].clone()).collect()
                };
                let items: Vec<_> = value.as_array().into_iter().flatten().map(key).collect();
                if (1..items.len()).any(|at| items[..at].contains(&items[at])) {
                    fails(format!("two elements with the same {wanted}"));
                }
            }
            "properties" => {
                for (name, schema) in wanted.as_object().unwrap() {
                    if let Some(value) = value.get(name) {
                        check(schema, value, &format!("{at}.{name}"), structural, found);
                    }
                }
            }
            "additionalProperties" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    check(wanted, value, &format!("{at}.{name}"), structural, found);
                }
            }
            "items" => {
                for (number, value) in value.as_array().into_iter().flatten().enumerate() {
                    check(wanted, value, &format!("{at}[{number}]"), structural, found);
                }
            }
            "oneOf" | "anyOf" | "allOf" => {
                let all = wanted.as_array().unwrap();
                let fit = all.iter().filter(|schema| fits(schema, value)).count();
                let good = match keyword.as_str() {
                    "oneOf" => fit == 1,
                    "anyOf" => fit > 0,
                    _ => fit == all.len(),
                };
                if !good {
                    fails(format!("fits {fit} of {keyword}"));
                }
            }
            "not" if fits(wanted, value) => fails("fits what it must not".to_owned()),
            "type"
            | "enum"
            | "format"
            | "not"
            | "nullable"
            | "default"
            | "x-kubernetes-int-or-string"
            | "x-kubernetes-preserve-unknown-fields"
            | "x-kubernetes-list-type"
            | "x-kubernetes-map-type"
            | "x-kubernetes-validations" => {}
            unknown => panic!("{at}: the schema says {unknown}, which is not checked here"),
        }
    }
    let open =
        on("x-kubernetes-preserve-unknown-fields") || schema.get("additionalProperties").is_some();
    if structural && !open {
        for name in value.as_object().into_iter().flat_map(|fields| fields.keys()) {
            if schema.get("properties").is_none_or(|known| known.get(name).is_none()) {
                found.push(format!("{at}: unknown field {name}"));
            }
        }
    }
}

fn fits(schema: &Value, value: &Value) -> bool {
    let mut found = Vec::new();
    check(schema, value, "", false, &mut found);
    found.is_empty()
}

fn is_a(value: &Value, kind: &str) -> bool {
    match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        other => panic!("a type {other}"),
    }
}

#[test]
fn an_invalid_manifest_is_found() {
    let schema = serde_json::json!({
        "type": "object", "required": ["url"],
        "properties": {
            "url": { "type": "string", "minLength": 1, "pattern": "^oci:" },
            "mode": { "type": "string", "enum": ["A", "B"] },
            "ports": { "type": "array", "maxItems": 2, "items": {
                "type": "object", "properties": { "number": { "type": "integer", "maximum": 10 } } },
                "x-kubernetes-list-map-keys": ["number"] },
            "config": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
            "one": { "oneOf": [{ "required": ["a"] }, { "required": ["b"] }],
                "properties": { "a": { "type": "string" }, "b": { "type": "string" } } }
        }
    });
    let found = |value| violations(&schema, &value, "it");
    let json = |text: &str| serde_json::from_str(text).unwrap();
    assert_eq!(found(json(r#"{"url":"oci:x","config":{"any":[1]},"one":{"a":"x"}}"#)), [""; 0]);
    for (text, wanted) in [
        ("{}", "it: \"url\" is missing"),
        (r#"{"url":1}"#, "it.url: 1, wanted \"string\""),
        (r#"{"url":""}"#, "it.url: minLength is 1"),
        (r#"{"url":"http:"}"#, "it.url: http: does not match \"^oci:\""),
        (r#"{"url":"oci:","urll":1}"#, "it: unknown field urll"),
        (r#"{"url":"oci:","mode":"C"}"#, "it.mode: \"C\", wanted one of [\"A\",\"B\"]"),
        (r#"{"url":"oci:","ports":[{"nummer":1}]}"#, "it.ports[0]: unknown field nummer"),
        (r#"{"url":"oci:","ports":[{"number":11}]}"#, "it.ports[0].number: maximum is 10"),
        (
            r#"{"url":"oci:","ports":[{"number":1},{"number":1}]}"#,
            "it.ports: two elements with the same [\"number\"]",
        ),
        (r#"{"url":"oci:","one":{"a":"x","b":"y"}}"#, "it.one: fits 2 of oneOf"),
        (r#"{"url":"oci:","config":null}"#, ""),
        (r#"{"url":null}"#, "it.url: null"),
    ] {
        let found = found(json(text));
        assert!(found.iter().any(|one| one == wanted) || wanted.is_empty(), "{text}: {found:?}");
    }
}
