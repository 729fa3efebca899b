//! Which headers of a first answer are kept for its replays.

/// A rule's `replay_headers`. Names are compared without regard to case.
///
/// These are never kept, whatever the policy says: `set-cookie` (a session must not reach a second client),
/// headers of one connection (RFC 9110 section 7.6.1, and all that `connection` names), `content-length`
/// (computed anew), pseudo headers, and the filter's own headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderPolicy {
    /// Keeps all but the built-in list and these.
    Deny(Vec<String>),
    /// Keeps only these; the built-in list does not apply.
    Allow(Vec<String>),
}

/// Only the built-in list.
impl Default for HeaderPolicy {
    fn default() -> Self {
        Self::Deny(Vec::new())
    }
}

impl HeaderPolicy {
    /// Whether a header of this name is kept, judged only by its name: see [`HeaderPolicy::kept`] for names
    /// in `connection`.
    pub fn keep(&self, name: &[u8]) -> bool {
        if is_never_replayed(name) {
            return false;
        }
        match self {
            Self::Deny(more) => !is_denied_by_default(name) && !is_listed(name, more),
            Self::Allow(names) => is_listed(name, names),
        }
    }

    /// The headers of `response` that are kept: in order, duplicates too, values byte for byte.
    pub fn kept(&self, response: &[(Vec<u8>, Vec<u8>)]) -> Vec<(Vec<u8>, Vec<u8>)> {
        // "Intermediaries MUST parse a received Connection header field before a message is
        // forwarded and, for each connection-option in this field, remove any header [...] field(s)
        // from the message with the same name" (RFC 9110 section 7.6.1).
        let of_the_connection: Vec<&[u8]> = response
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case(b"connection"))
            .flat_map(|(_, value)| value.split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .collect();
        response
            .iter()
            .filter(|(name, _)| self.keep(name) && !is_listed(name, &of_the_connection))
            .cloned()
            .collect()
    }
}

/// Kept by no policy.
const NEVER_REPLAYED: &[&str] = &[
    // A cookie names a session: with `"caller": "anyone"`, one client would get another client's session.
    "set-cookie",
    // Hop by hop: RFC 9110 section 7.6.1, and headers that HTTP/2 forbids (RFC 9113 section 8.2.2).
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    // Computed from the body that is sent: an answer kept only as its status has none.
    "content-length",
    // Our own: their values hold for one answer only.
    "idempotent-replayed",
    "idempotency-status",
    "idempotency-attempt",
    "idempotency-control",
];

/// Not kept unless an allow-list names them: they hold for the first answer, not for its replay.
const DENIED_BY_DEFAULT: &[&str] = &[
    // The proxy writes them anew.
    "date",
    "server",
    "x-request-id",
    // Authentication: a challenge holds a nonce or is about one connection (RFC 9110 section 11).
    "www-authenticate",
    "proxy-authenticate",
    "authentication-info",
    "proxy-authentication-info",
    // Trace context: W3C, B3, Jaeger, OpenCensus, AWS, Google.
    "traceparent",
    "tracestate",
    "traceresponse",
    "baggage",
    "b3",
    "uber-trace-id",
    "grpc-trace-bin",
    "x-amzn-trace-id",
    "x-cloud-trace-context",
    // A statement about the host for a time that began with the first answer (RFC 6797).
    "strict-transport-security",
];

/// Prefixes of names that are not kept unless an allow-list names them: headers that Envoy adds, trace
/// context (B3), and the remaining quota at *that* time.
const PREFIXES_DENIED_BY_DEFAULT: &[&str] =
    &["x-envoy-", "x-b3-", "ratelimit", "x-ratelimit-", "x-rate-limit-"];

fn is_never_replayed(name: &[u8]) -> bool {
    name.is_empty() || name.starts_with(b":") || is_listed(name, NEVER_REPLAYED)
}

fn is_denied_by_default(name: &[u8]) -> bool {
    let has_prefix = |prefix: &&str| {
        name.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()))
    };
    is_listed(name, DENIED_BY_DEFAULT) || PREFIXES_DENIED_BY_DEFAULT.iter().any(has_prefix)
}

fn is_listed<N: AsRef<[u8]>>(name: &[u8], list: &[N]) -> bool {
    list.iter().any(|listed| listed.as_ref().eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(Vec<u8>, Vec<u8>)> {
        list.iter().map(|(name, value)| (name.as_bytes().into(), value.as_bytes().into())).collect()
    }

    #[test]
    fn headers_that_describe_the_answer_are_kept() {
        let policy = HeaderPolicy::default();
        for name in ["content-type", "location", "etag", "link", "retry-after", "x-custom", "vary"]
        {
            assert!(policy.keep(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn headers_that_hold_only_for_the_first_exchange_are_not_kept() {
        let policy = HeaderPolicy::default();
        for name in [
            "date",
            "Server",
            "x-request-id",
            "www-authenticate",
            "proxy-authenticate",
            "x-envoy-upstream-service-time",
            "traceparent",
            "tracestate",
            "x-b3-traceid",
            "ratelimit",
            "ratelimit-policy",
            "X-RateLimit-Remaining",
            "strict-transport-security",
        ] {
            assert!(!policy.keep(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn a_deny_list_adds_to_the_built_in_one() {
        let policy = HeaderPolicy::Deny(vec!["x-internal".into()]);
        assert!(!policy.keep(b"x-internal"));
        assert!(!policy.keep(b"X-Internal"));
        assert!(!policy.keep(b"date"));
        assert!(policy.keep(b"x-internal-2"));
    }

    #[test]
    fn an_allow_list_replaces_the_built_in_one() {
        let policy = HeaderPolicy::Allow(vec!["content-type".into(), "date".into()]);
        assert!(policy.keep(b"content-type"));
        assert!(policy.keep(b"date"));
        assert!(!policy.keep(b"etag"));
    }

    #[test]
    fn some_headers_are_never_kept_even_if_allowed() {
        let names = [
            "set-cookie",
            "connection",
            "keep-alive",
            "proxy-connection",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "content-length",
            ":status",
            "idempotent-replayed",
            "idempotency-status",
            "idempotency-attempt",
            "idempotency-control",
        ];
        let policy = HeaderPolicy::Allow(names.iter().map(|name| (*name).to_owned()).collect());
        for name in names {
            assert!(!policy.keep(name.as_bytes()), "{name}");
            assert!(!policy.keep(name.to_uppercase().as_bytes()), "{name}");
        }
    }

    #[test]
    fn order_duplicates_and_odd_values_are_kept() {
        let mut response = pairs(&[
            (":status", "201"),
            ("link", "<a>"),
            ("location", "/orders/1"),
            ("set-cookie", "a=1"),
            ("link", "<b>"),
        ]);
        response.push((b"x-bytes".to_vec(), vec![0xff, 0x00, b' ']));
        let mut wanted = pairs(&[("link", "<a>"), ("location", "/orders/1"), ("link", "<b>")]);
        wanted.push((b"x-bytes".to_vec(), vec![0xff, 0x00, b' ']));
        assert_eq!(HeaderPolicy::default().kept(&response), wanted);
    }

    #[test]
    fn headers_named_in_connection_are_not_kept_even_if_allowed() {
        let response = pairs(&[
            ("x-hop", "1"),
            ("connection", "close, X-Hop"),
            ("connection", "x-other"),
            ("x-other", "2"),
            ("etag", "\"3\""),
        ]);
        let wanted = pairs(&[("etag", "\"3\"")]);
        assert_eq!(HeaderPolicy::default().kept(&response), wanted);
        let allow = HeaderPolicy::Allow(vec!["x-hop".into(), "x-other".into(), "etag".into()]);
        assert_eq!(allow.kept(&response), wanted);
    }
}
