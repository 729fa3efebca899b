use super::*;

/// A rule of this name with these fields of `match`, as JSON.
fn rule(name: &str, matching: &str) -> String {
    format!(
        r#"{{ "name": "{name}", "match": {matching}, "key": [ {{ "key_header": "k" }} ], "caller": "anyone" }}"#
    )
}

fn config(rules: &[String]) -> Config {
    let json = format!(r#"{{ "rules": [ {} ] }}"#, rules.join(","));
    Config::load(json.as_bytes(), &|_| None).unwrap()
}

/// The name of the rule that is selected, or the variant that says why none is.
fn selected(config: &Config, route: Option<&str>, method: &str, host: &str, path: &str) -> String {
    let header = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
    let headers = [header(":method", method), header(":authority", host), header(":path", path)];
    match config.select(route.map(str::as_bytes), &headers) {
        Selection::Rule { rule, .. } => rule.name.clone(),
        Selection::NoRule => "no rule".to_owned(),
        Selection::RouteOff => "off".to_owned(),
        Selection::Dangling => "dangling".to_owned(),
    }
}

#[test]
fn the_first_rule_that_matches_wins() {
    let config = config(&[
        rule("narrow", r#"{ "path": "/orders/{id}" }"#),
        rule("wide", r#"{ "path": "/{*rest}" }"#),
    ]);
    assert_eq!(selected(&config, None, "POST", "a.example", "/orders/1"), "narrow");
    assert_eq!(selected(&config, None, "POST", "a.example", "/orders/1/items"), "wide");
    assert_eq!(selected(&config, None, "GET", "a.example", "/orders/1"), "no rule");
}

#[test]
fn a_host_matches_in_any_case_and_with_any_port_and_a_wildcard_only_what_is_below() {
    let config = config(&[rule(
        "r",
        r#"{ "hosts": ["API.example.com", "*.example.org", "rooted.example.", "[::1]"] }"#,
    )]);
    for (host, wanted) in [
        ("api.EXAMPLE.com", "r"),
        ("api.example.com:8443", "r"),
        ("api.example.com.", "r"),
        ("api.example.com.:8443", "r"),
        ("a.example.org.", "r"),
        ("rooted.example", "r"),
        ("rooted.example.", "r"),
        ("a.example.org", "r"),
        ("a.b.example.org:80", "r"),
        ("[::1]:80", "r"),
        ("example.org", "no rule"),
        (".example.org", "no rule"),
        ("badexample.org", "no rule"),
        ("api.example.com.evil.example", "no rule"),
        ("", "no rule"),
    ] {
        assert_eq!(selected(&config, None, "POST", host, "/"), wanted, "{host:?}");
    }
}

#[test]
fn the_query_is_no_part_of_the_path() {
    let config = config(&[rule("r", r#"{ "path": "/orders" }"#)]);
    assert_eq!(selected(&config, None, "POST", "a", "/orders?x=/y"), "r");
    assert_eq!(selected(&config, None, "POST", "a", "/order?s"), "no rule");
}

#[test]
fn a_rule_that_the_route_names_is_asked_for_its_methods_alone() {
    let config = config(&[
        rule("first", "{}"),
        rule("named", r#"{ "hosts": ["a.example"], "methods": ["PUT"], "path": "/a/{id}" }"#),
    ]);
    assert_eq!(selected(&config, Some("named"), "PUT", "b.example", "/b"), "named");
    assert_eq!(selected(&config, Some("named"), "POST", "a.example", "/a/1"), "no rule");
    assert_eq!(selected(&config, Some("off"), "PUT", "a.example", "/a/1"), "off");
    assert_eq!(selected(&config, Some("other"), "PUT", "a.example", "/a/1"), "dangling");
    assert_eq!(selected(&config, Some(""), "PUT", "a.example", "/a/1"), "dangling");
}

#[test]
fn a_named_rule_has_its_captures_where_its_path_matches_and_none_elsewhere() {
    let config = config(&[rule("r", r#"{ "path": "/orders/{id}" }"#)]);
    let captured = |path: &str| {
        let headers = [
            (b":method".to_vec(), b"POST".to_vec()),
            (b":path".to_vec(), path.as_bytes().to_vec()),
        ];
        match config.select(Some(b"r"), &headers) {
            Selection::Rule { captures, .. } => captures.value("id"),
            none @ (Selection::NoRule | Selection::RouteOff | Selection::Dangling) => {
                panic!("{none:?}")
            }
        }
    };
    assert_eq!(captured("/orders/7"), Some(b"7".to_vec()));
    assert_eq!(captured("/elsewhere"), None);
}
