//! JSON Patch (RFC 6902), as far as the manifests use it, and the two forms of JSONPath that choose an element of a list.

use serde_json::{Value, json};

/// Carries out one operation. `add` creates missing parents, as in Envoy Gateway.
pub(crate) fn apply(document: &mut Value, op: &str, pointer: &str, value: &Value) {
    let (parent, last) =
        pointer.rsplit_once('/').unwrap_or_else(|| panic!("no pointer: {pointer}"));
    let mut place = document;
    for step in parent.split('/').skip(1) {
        place = match place {
            Value::Array(items) => &mut items[step.parse::<usize>().unwrap()],
            Value::Object(_) if op == "add" => {
                let fields = place.as_object_mut().unwrap();
                fields.entry(step).or_insert_with(|| json!({}))
            }
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Object(_) => {
                place.get_mut(step).unwrap_or_else(|| panic!("{pointer}: no {step}"))
            }
        };
    }
    match (op, place) {
        ("add", Value::Array(items)) if last == "-" => items.push(value.clone()),
        ("add", Value::Array(items)) => items.insert(last.parse().unwrap(), value.clone()),
        ("add", Value::Object(fields)) => {
            fields.insert(last.to_owned(), value.clone());
        }
        ("replace", place) => {
            *place.get_mut(last).unwrap_or_else(|| panic!("{pointer}: nothing there")) =
                value.clone();
        }
        (op, place) => panic!("{op} at {pointer} of {place}"),
    }
}

/// The places that `..LIST[?(@.name == 'NAME')]` or `..LIST[?match(@.name, 'START.*')]` chooses.
pub(crate) fn choose(document: &Value, path: &str) -> Vec<String> {
    let path = path.strip_prefix("..").unwrap();
    let (list, filter) = path.split_once("[?").unwrap();
    let (is_chosen, text): (fn(&str, &str) -> bool, _) =
        match (filter.strip_prefix("(@.name == '"), filter.strip_prefix("match(@.name, '")) {
            (Some(rest), _) => (|name, wanted| name == wanted, rest.strip_suffix("')]").unwrap()),
            (_, Some(rest)) => {
                (|name, start| name.starts_with(start), rest.strip_suffix(".*')]").unwrap())
            }
            _ => panic!("a JSONPath that is not known here: {path}"),
        };
    let mut found = Vec::new();
    walk(document, "", &mut |at, value| {
        if at.rsplit('/').next() == Some(list) {
            for (number, item) in value.as_array().into_iter().flatten().enumerate() {
                if item["name"].as_str().is_some_and(|name| is_chosen(name, text)) {
                    found.push(format!("{at}/{number}"));
                }
            }
        }
    });
    found
}

fn walk(value: &Value, at: &str, look: &mut impl FnMut(&str, &Value)) {
    look(at, value);
    match value {
        Value::Array(items) => {
            for (number, item) in items.iter().enumerate() {
                walk(item, &format!("{at}/{number}"), look);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                walk(field, &format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")), look);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
