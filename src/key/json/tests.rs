//! Strict reading, canonical writing, pointers.

use super::{NotJson, Value, parse};
use crate::key::Pointer;
use proptest::prelude::*;
use std::borrow::Cow;

fn canonical(text: &str) -> String {
    parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error:?}")).canonical()
}

fn refused(text: &str) -> NotJson {
    parse(text.as_bytes()).expect_err(text)
}

fn pointers(texts: &[&str]) -> Vec<Pointer> {
    texts.iter().map(|text| Pointer::parse(text).unwrap()).collect()
}

#[test]
fn white_space_and_the_order_of_members_do_not_count() {
    let text = canonical(r#"{"a":[1,true,null],"b":{"c":"d","e":{}}}"#);
    assert_eq!(text, r#"{"a":[1,true,null],"b":{"c":"d","e":{}}}"#);
    assert_eq!(
        canonical("\t{ \"b\" : { \"e\":{ } ,\"c\":\"d\"},\r\n \"a\": [ 1 , true,null ] } \n"),
        text
    );
}

#[test]
fn the_order_of_elements_counts() {
    assert_ne!(canonical("[1,2]"), canonical("[2,1]"));
}

#[test]
fn members_are_sorted_by_utf_16_code_units() {
    // The example of RFC 8785 section 3.2.3: U+1F600 is a surrogate pair and sorts before U+FB33.
    let text = r#"{"\u20ac":1,"\r":2,"\ufb33":3,"1":4,"\ud83d\ude00":5,"\u0080":6,"\u00f6":7}"#;
    let sorted = "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"\u{f6}\":7,\"\u{20ac}\":1,\"\u{1f600}\":5,\"\u{fb33}\":3}";
    assert_eq!(canonical(text), sorted);
}

#[test]
fn a_string_is_written_with_as_few_escapes_as_there_can_be() {
    // The example of RFC 8785 section 3.2.2.
    let text = r#""\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/""#;
    assert_eq!(canonical(text), "\"\u{20ac}$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"");
    assert_eq!(
        canonical(r#""\b\t\n\f\r\u0000\u001F\u007f""#),
        "\"\\b\\t\\n\\f\\r\\u0000\\u001f\u{7f}\""
    );
    assert_eq!(canonical(r#""\ud834\uDD1E""#), "\"\u{1d11e}\"");
    assert_eq!(canonical("\"k\u{f6}ln\\u00f6x\""), "\"k\u{f6}ln\u{f6}x\"");
}

#[test]
fn a_number_keeps_its_text() {
    for number in
        ["0", "-0", "1", "1.0", "1.10", "1e2", "1E+2", "100", "-1.5e-07", "333333333.33333329"]
    {
        assert_eq!(canonical(number), number);
    }
    let beyond_a_double = "12345678901234567890.12345678901234567890";
    assert_eq!(canonical(beyond_a_double), beyond_a_double);
}

#[test]
fn invalid_grammar_is_refused() {
    for text in [
        "",
        " ",
        "{",
        "[",
        "]",
        "{]",
        "[}",
        "[1,]",
        "[,1]",
        "[1 2]",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{a:1}",
        "{1:1}",
        "{\"a\" 1}",
        "{\"a\":1 \"b\":2}",
        "{'a':1}",
        "nul",
        "nulll",
        "True",
        "NaN",
        "Infinity",
        "+1",
        "-",
        "01",
        "-01",
        "1.",
        ".1",
        "1e",
        "1e+",
        "0x1",
        "1 2",
        "{}{}",
        "[] x",
        "// c\n1",
        "\"",
        "\"a",
        "\"\\\"",
        "\"\\x\"",
        "\"\\",
        "\"\\u12\"",
        "\"\\u+123\"",
        "\"\\u12g4\"",
        "\"\\\u{e4}\"",
        "\"a\nb\"",
        "\"\0\"",
        "\u{feff}1",
        "1\u{a0}",
        "\u{e4}",
        "[1,",
        "{\"a\":1,",
    ] {
        assert_eq!(refused(text), NotJson::Syntax, "{text:?}");
    }
}

#[test]
fn text_that_is_not_unicode_is_refused() {
    assert_eq!(parse(b"\"\xff\"").unwrap_err(), NotJson::Encoding);
    assert_eq!(parse(b"\"\xed\xa0\x80\"").unwrap_err(), NotJson::Encoding);
    for text in [
        r#""\ud800""#,
        r#""\udc00""#,
        r#""\ud800\ud800""#,
        r#""\ud800x""#,
        r#""\ud800\n""#,
        r#""\udc00\ud800""#,
        r#"{"\udfff":1}"#,
    ] {
        assert_eq!(refused(text), NotJson::Encoding, "{text}");
    }
}

#[test]
fn a_name_twice_in_one_object_is_refused_however_it_is_spelled() {
    assert_eq!(refused(r#"{"a":1,"b":2,"a":1}"#), NotJson::DuplicateName);
    assert_eq!(refused(r#"{"a":1,"\u0061":2}"#), NotJson::DuplicateName);
    assert_eq!(refused(r#"[{"x":{"":1,"":2}}]"#), NotJson::DuplicateName);
    assert_eq!(canonical(r#"{"a":{"a":{"a":1}},"A":1}"#), r#"{"A":1,"a":{"a":{"a":1}}}"#);
}

#[test]
fn nesting_is_bounded() {
    let arrays = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let objects = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    assert_eq!(canonical(&arrays(128)), arrays(128));
    assert_eq!(refused(&arrays(129)), NotJson::TooDeep);
    assert_eq!(canonical(&objects(128)), objects(128));
    assert_eq!(refused(&objects(129)), NotJson::TooDeep);
    assert_eq!(refused(&"[".repeat(1_000_000)), NotJson::TooDeep);
}

#[test]
fn a_pointer_finds_what_rfc_6901_says() {
    // Section 5 of the RFC.
    let text = r#"{"foo":["bar","baz"],"":0,"a/b":1,"c%d":2,"e^f":3,"g|h":4,"i\\j":5,"k\"l":6," ":7,"m~n":8}"#;
    let whole = parse(text.as_bytes()).unwrap();
    let found = |pointer| whole.find(&Pointer::parse(pointer).unwrap()).map(Value::canonical);
    assert_eq!(found("").unwrap(), whole.canonical());
    assert_eq!(found("/foo").unwrap(), r#"["bar","baz"]"#);
    assert_eq!(found("/foo/0").unwrap(), r#""bar""#);
    assert_eq!(found("/").unwrap(), "0");
    for (pointer, value) in [
        ("/a~1b", 1),
        ("/c%d", 2),
        ("/e^f", 3),
        ("/g|h", 4),
        ("/i\\j", 5),
        ("/k\"l", 6),
        ("/ ", 7),
        ("/m~0n", 8),
    ] {
        assert_eq!(found(pointer).unwrap(), value.to_string(), "{pointer}");
    }
    for nothing in [
        "/foo/2",
        "/foo/-",
        "/foo/01",
        "/foo/00",
        "/foo/+1",
        "/foo/",
        "/foo/0/x",
        "/bar",
        "/foo/99999999999999999999",
    ] {
        assert_eq!(found(nothing), None, "{nothing}");
    }
}

#[test]
fn null_and_empty_values_say_nothing_and_false_and_zero_do() {
    let blank = |text: &str| parse(text.as_bytes()).unwrap().is_blank();
    assert!(["null", "\"\"", "[]", "{}", "[ ]", "{ }"].into_iter().all(blank));
    assert!(!["false", "true", "0", "-0", "\" \"", "[null]", "{\"\":null}"].into_iter().any(blank));
}

#[test]
fn values_found_by_pointers_are_left_out_of_the_whole() {
    let without = |text: &str, left_out: &[&str]| {
        parse(text.as_bytes()).unwrap().canonical_except(&pointers(left_out))
    };
    let text = r#"{"a":[1,{"b":2,"c":3},4],"d":{"e":5},"f":6}"#;
    assert_eq!(without(text, &[]), text);
    assert_eq!(without(text, &["/f", "/d/e", "/a/1/b"]), r#"{"a":[1,{"c":3},4],"d":{}}"#);
    assert_eq!(without(text, &["/x", "/a/9", "/f/0", "/a/1/b/c", "/a/-"]), text);
    assert_eq!(without(text, &["/a", "/a/1/b", "/a"]), r#"{"d":{"e":5},"f":6}"#);
    assert_eq!(without(text, &["/d", ""]), "");
    // Every pointer means an element of the whole, not of the rest.
    assert_eq!(without(text, &["/a/0", "/a/1"]), r#"{"a":[4],"d":{"e":5},"f":6}"#);
}

/// A value as a tree without any order or spelling, to write in many ways.
fn any_value() -> impl Strategy<Value = Value<'static>> {
    let name = "[a-c\u{e4}\u{1f600}\u{fb33}\"\\\\\n]{0,3}";
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        prop::sample::select(vec!["0", "-1.50", "1e5"]).prop_map(Value::Number),
        name.prop_map(|text| Value::String(Cow::Owned(text))),
    ];
    leaf.prop_recursive(4, 32, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| Value::Array(items.into())),
            prop::collection::btree_map(name, inner, 0..4).prop_map(|members| {
                Value::Object(
                    members.into_iter().map(|(name, value)| (name.into(), value)).collect(),
                )
            }),
        ]
    })
}

/// Writes a value as another client might: other space, members in reverse, every character
/// escaped.
fn spell_differently(value: &Value<'_>, text: &mut String) {
    let string = |string: &str| -> String {
        let escaped: String = string.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect();
        format!("\"{escaped}\"")
    };
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(bool) => text.push_str(&bool.to_string()),
        Value::Number(number) => text.push_str(number),
        Value::String(value) => text.push_str(&string(value)),
        Value::Array(items) => {
            text.push_str("[ ");
            for (index, item) in items.iter().enumerate() {
                text.push_str(if index > 0 { " ,\n" } else { "" });
                spell_differently(item, text);
            }
            text.push_str("\t]");
        }
        Value::Object(members) => {
            text.push_str("{\r\n");
            for (index, (name, value)) in members.iter().rev().enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                text.push_str(&string(name));
                text.push_str(" : ");
                spell_differently(value, text);
            }
            text.push_str(" }");
        }
    }
}

proptest! {
    #[test]
    fn however_a_value_is_spelled_its_canonical_form_is_one(value in any_value()) {
        let mut spelled = String::new();
        spell_differently(&value, &mut spelled);
        let parsed = parse(spelled.as_bytes()).unwrap();
        let canonical = parsed.canonical();
        prop_assert_eq!(parse(canonical.as_bytes()).unwrap(), parsed);
        // `serde_json` agrees that both say the same.
        let theirs: serde_json::Value = serde_json::from_str(&canonical).unwrap();
        prop_assert_eq!(theirs, serde_json::from_str::<serde_json::Value>(&spelled).unwrap());
    }

    #[test]
    fn different_values_have_different_canonical_forms(a in any_value(), b in any_value()) {
        let read = |value: &Value<'_>| {
            let mut text = String::new();
            spell_differently(value, &mut text);
            text
        };
        let (a, b) = (read(&a), read(&b));
        let (a, b) = (parse(a.as_bytes()).unwrap(), parse(b.as_bytes()).unwrap());
        prop_assert_eq!(a == b, a.canonical() == b.canonical());
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _either = parse(&bytes);
    }

    #[test]
    fn random_tokens_are_json_for_us_when_they_are_for_serde_json(
        tokens in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", ":", ",", "\"a\"", "\"b\"", "1", "-", "0", ".5", "e+3", "null", "true", " ", "\"",
            "\\u00", "\\ud83d", "\\ude00", "\\n", "\u{e4}",
        ]), 0..12)
    ) {
        let text = tokens.concat();
        let theirs = serde_json::from_str::<serde_json::Value>(&text);
        match parse(text.as_bytes()) {
            Ok(value) => {
                let canonical: serde_json::Value = serde_json::from_str(&value.canonical()).unwrap();
                prop_assert_eq!(canonical, theirs.unwrap());
            }
            Err(NotJson::DuplicateName) => prop_assert!(theirs.is_ok()),
            Err(NotJson::Syntax | NotJson::Encoding | NotJson::TooDeep) => prop_assert!(theirs.is_err()),
        }
    }
}
