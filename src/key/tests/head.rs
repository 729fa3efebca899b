//! Keys from the head.

use super::*;
use proptest::prelude::*;

fn header(name: &str) -> KeyPart {
    KeyPart::Header(name.into())
}

#[test]
fn the_same_request_has_the_same_key_and_another_value_another() {
    let plan = parts(&[KeyPart::KeyHeader("idempotency-key".into())]);
    let with = |value: &str| key(&plan, &post().header("idempotency-key", value));
    assert_eq!(with("abc"), with("\"abc\";v=1"));
    assert_ne!(with("abc"), with("abd"));
    assert_ne!(with("abc"), with("ABC"));
}

#[test]
fn two_rules_never_share_a_key() {
    let plan = parts(&[header("x")]);
    let other = KeyPlan { rule: "refunds".into(), ..plan.clone() };
    let request = post().header("x", "1");
    assert_ne!(key(&plan, &request), key(&other, &request));
}

#[test]
fn values_do_not_run_into_each_other() {
    let plan = parts(&[header("x"), header("y")]);
    let with = |x: &str, y: &str| key(&plan, &post().header("x", x).header("y", y));
    assert_ne!(with("a", "bc"), with("ab", "c"));
    let several = |values: &[&str]| {
        let request = values.iter().fold(post(), |request, value| request.header("x", value));
        key(&parts(&[header("x")]), &request)
    };
    assert_ne!(several(&["a", "bc"]), several(&["ab", "c"]));
    assert_ne!(several(&["a", "b"]), several(&["b", "a"]));
    assert_ne!(several(&["a,b"]), several(&["a", "b"]));
    assert_ne!(several(&["a"]), several(&["a", ""]));
}

#[test]
fn header_names_are_compared_without_case_and_need_not_be_utf_8() {
    let plan = parts(&[header("x-id")]);
    let plain = key(&plan, &post().header("x-id", "1"));
    assert_eq!(key(&plan, &post().header("X-Id", "1")), plain);
    assert_eq!(key(&plan, &post().header(b"x-\xff\xfe", b"\xff").header("x-id", "1")), plain);
    assert_ne!(
        key(&plan, &post().header("x-id", b"\xff")),
        key(&plan, &post().header("x-id", b"\xfe"))
    );
}

#[test]
fn a_part_that_is_absent_or_empty_is_missing() {
    let cookie = KeyPart::Cookie("c".into());
    let query = KeyPart::Query("q".into());
    let capture = KeyPart::Path("id".into());
    let at = |path| request("POST", "a", path);
    for (part, requests) in [
        (header("x"), vec![post(), post().header("x", ""), post().header("x", "").header("x", "")]),
        (KeyPart::KeyHeader("k".into()), vec![post()]),
        (
            cookie,
            vec![post(), post().header("cookie", "c="), post().header("cookie", "d=1; cc=2; c")],
        ),
        (query, vec![at("/a"), at("/a?q"), at("/a?q="), at("/a?qq=1&Q=2"), at("/a#?q=1")]),
        (capture, vec![post()]),
    ] {
        let plan = parts(std::slice::from_ref(&part));
        for request in requests {
            assert_eq!(request.by(&plan), Err(missing(part.clone())));
        }
    }
}

#[test]
fn a_client_key_that_is_empty_is_there_and_invalid() {
    let plan = parts(&[KeyPart::KeyHeader("k".into())]);
    for value in ["", " ", "\"\"", "a, b", "\"a\", \"b\""] {
        let error = post().header("k", value).by(&plan).unwrap_err();
        assert!(matches!(&error, KeyError::KeyInvalid { header, .. } if header == "k"), "{value}");
    }
    let twice = post().header("k", "a").header("K", "a").by(&plan);
    assert_eq!(twice, Err(KeyError::KeyInvalid { header: "k".into(), why: "it is repeated" }));
}

#[test]
fn a_query_parameter_is_decoded_and_all_its_values_count() {
    let plan = parts(&[KeyPart::Query("a b".into())]);
    let with = |path: &str| key(&plan, &request("POST", "h", path));
    assert_eq!(with("/?a+b=1%2f+x&z=0"), with("/?y=2&a%20b=1/%20x#a%20b=3"));
    assert_ne!(with("/?a+b=1&a+b=2"), with("/?a+b=1"));
    assert_ne!(with("/?a+b=1&a+b=2"), with("/?a+b=2&a+b=1"));
    assert_ne!(with("/?a+b=%ff"), with("/?a+b=%fe"));
    assert_ne!(with("/?a+b=x=y"), with("/?a+b=x"));
    assert_eq!(with("/?a+b=x?y"), with("/?a+b=x%3Fy"));
}

#[test]
fn a_cookie_is_found_in_any_cookie_header() {
    let plan = parts(&[KeyPart::Cookie("sid".into())]);
    let with = |headers: &[&str]| {
        key(&plan, &headers.iter().fold(post(), |request, value| request.header("cookie", value)))
    };
    let plain = with(&["sid=x"]);
    assert_eq!(with(&["a=1; sid=x;b=2"]), plain);
    assert_eq!(with(&["a=1", "sid=x", "b=2"]), plain);
    assert_eq!(with(&["SID=y; sid=x; sid2=z"]), plain);
    assert_ne!(with(&["sid=x=y"]), plain);
}

#[test]
fn a_cookie_sent_twice_counts_once_when_it_agrees_and_whole_when_it_does_not() {
    let plan = parts(&[KeyPart::Cookie("sid".into())]);
    let with = |value: &str| key(&plan, &post().header("cookie", value));
    assert_eq!(with("sid=x; sid=x"), with("sid=x"));
    assert_ne!(with("sid=x; sid=y"), with("sid=x"));
    assert_ne!(with("sid=x; sid=y"), with("sid=y; sid=x"));
}

#[test]
fn a_capture_is_a_part() {
    let plan = parts(&[KeyPart::Path("order".into())]);
    let with = |path: &str| {
        let captured = request("POST", "h", path).captured("/orders/{order}/transitions");
        key(&plan, &captured)
    };
    assert_eq!(with("/orders/%37/transitions?x=1"), with("/orders/7/./transitions"));
    assert_ne!(with("/orders/7/transitions"), with("/orders/8/transitions"));
    assert_eq!(plan.captures_used().collect::<Vec<_>>(), ["order"]);
}

#[test]
fn two_tails_that_differ_in_an_escaped_slash_have_different_keys() {
    let plan = parts(&[KeyPart::Path("rest".into())]);
    let with = |path: &str| key(&plan, &request("POST", "h", path).captured("/{*rest}"));
    assert_ne!(with("/a/b"), with("/a%2Fb"));
    assert_ne!(with("/a%2Fb"), with("/a%252Fb"));
    assert_eq!(with("/a%2fb"), with("/a%2Fb"));
}

#[test]
fn each_part_of_the_scope_counts_only_when_it_is_chosen() {
    let nothing = Scope { method: false, host: false, path: false };
    let base = request("POST", "a.example", "/x").header("x", "1");
    let requests = [
        request("PATCH", "a.example", "/x").header("x", "1"),
        request("POST", "b.example", "/x").header("x", "1"),
        request("POST", "a.example", "/y").header("x", "1"),
    ];
    let scopes = [
        Scope { method: true, ..nothing },
        Scope { host: true, ..nothing },
        Scope { path: true, ..nothing },
    ];
    for (chosen, scope) in scopes.into_iter().enumerate() {
        let plan = KeyPlan { scope, ..parts(&[header("x")]) };
        for (changed, other) in requests.iter().enumerate() {
            assert_eq!(
                key(&plan, other) != key(&plan, &base),
                changed == chosen,
                "{chosen} {changed}"
            );
        }
    }
}

#[test]
fn the_scope_knows_one_spelling_of_host_and_path() {
    let plan =
        KeyPlan { scope: Scope { method: true, host: true, path: true }, ..parts(&[header("x")]) };
    let with = |authority, path| key(&plan, &request("POST", authority, path).header("x", "1"));
    let plain = with("api.example.com", "/a/b");
    assert_eq!(with("API.Example.com:8443", "/a/b?q=1"), plain);
    assert_eq!(with("api.example.com", "/%61/./c/../b"), plain);
    assert_ne!(with("api.example.com", "/a%2Fb"), plain);
    assert_ne!(with("api.example.com", "/a/b/"), plain);
    assert_ne!(with("api.example.com", "/A/b"), plain);
}

#[test]
fn the_host_is_an_authority_without_its_port() {
    for (authority, expected) in [
        ("a.example", "a.example"),
        ("A.Example:443", "a.example"),
        ("a.example:", "a.example"),
        ("a.example.", "a.example"),
        ("A.Example.:443", "a.example"),
        ("a.example..", "a.example."),
        (".", ""),
        ("[2001:DB8::1]", "[2001:db8::1]"),
        ("[2001:db8::1]:8443", "[2001:db8::1]"),
        ("[", "["),
        ("", ""),
    ] {
        assert_eq!(host(authority.as_bytes()), expected.as_bytes(), "{authority}");
    }
}

#[test]
fn a_caller_is_kept_apart_from_every_other_wherever_it_is_found() {
    const SUBJECT: &[&str] =
        &["metadata", "filter_metadata", "envoy.filters.http.jwt_authn", "sub"];
    const PEER: &[&str] = &["connection", "uri_san_peer_certificate"];
    let metadata = vec!["envoy.filters.http.jwt_authn".to_owned(), "sub".to_owned()];
    let send = |who: &str, source: &CallerSource| {
        let request = post().header("x", "1");
        match source {
            CallerSource::Anyone => request,
            CallerSource::Header(name) => request.header(name, who),
            CallerSource::Cookie(name) => request.header("cookie", format!("{name}={who}")),
            CallerSource::Metadata(_) => request.attribute(SUBJECT, who),
            CallerSource::Peer => request.attribute(PEER, who),
        }
    };
    for source in [
        CallerSource::Header("authorization".into()),
        CallerSource::Cookie("sid".into()),
        CallerSource::Metadata(metadata),
        CallerSource::Peer,
    ] {
        let plan = KeyPlan { caller: source.clone(), ..parts(&[header("x")]) };
        assert_eq!(key(&plan, &send("ann", &source)), key(&plan, &send("ann", &source)));
        assert_ne!(key(&plan, &send("ann", &source)), key(&plan, &send("bob", &source)));
        assert_eq!(send("", &source).by(&plan), Err(KeyError::CallerMissing));
        assert_eq!(post().header("x", "1").by(&plan), Err(KeyError::CallerMissing));
    }
}

#[test]
fn a_rule_for_anyone_shares_no_keys_with_a_named_caller() {
    let anyone = parts(&[header("x")]);
    let named = KeyPlan { caller: CallerSource::Header("x".into()), ..anyone.clone() };
    let request = post().header("x", "1");
    assert_ne!(key(&anyone, &request), key(&named, &request));
}

#[test]
fn a_value_in_another_place_is_another_key() {
    let request =
        request("POST", "h", "/v?v=1").header("v", "1").header("cookie", "v=1").captured("/{v}");
    let name = || "v".to_owned();
    let found: Vec<Key> = [
        KeyPart::KeyHeader(name()),
        KeyPart::Header(name()),
        KeyPart::Query(name()),
        KeyPart::Cookie(name()),
        KeyPart::Path(name()),
    ]
    .map(|part| key(&parts(&[part]), &request))
    .to_vec();
    for (index, key) in found.iter().enumerate() {
        assert!(!found[index + 1..].contains(key), "{index}");
    }
}

proptest! {
    #[test]
    fn different_values_have_different_keys(
        a in proptest::collection::vec("[ab]{0,2}", 1..4),
        b in proptest::collection::vec("[ab]{0,2}", 1..4),
    ) {
        let plan = parts(&[header("x")]);
        let with = |values: &[String]| {
            values.iter().fold(post(), |request, value| request.header("x", value)).by(&plan)
        };
        if let (Ok(one), Ok(other)) = (with(&a), with(&b)) {
            prop_assert_eq!(a == b, one == other);
        }
    }

    #[test]
    fn whatever_the_head_holds_nothing_panics(
        headers in proptest::collection::vec(
            (
                prop::sample::select(vec![":path", ":authority", "cookie", "content-type", "x"]),
                proptest::collection::vec(any::<u8>(), 0..24),
            ),
            0..6,
        )
    ) {
        let plan = KeyPlan {
            scope: Scope { method: true, host: true, path: true },
            fingerprint: FingerprintPlan::Body,
            ..parts(&[KeyPart::KeyHeader("x".into())])
        };
        let all = parts(&[KeyPart::Query("a".into()), KeyPart::Cookie("b".into())]);
        let request = headers
            .into_iter()
            .fold(Request::default(), |request, (name, value)| request.header(name, value));
        let _either = (request.by(&plan), request.by(&all));
    }
}
