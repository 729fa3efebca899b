//! Local answers: the one place where a refusal becomes status, headers and bytes.

use serde::Serialize;

/// An answer that this filter gives in the origin's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalReply {
    /// The status code.
    pub status: u16,
    /// Names in lower case and values, in order.
    pub headers: Vec<(Vec<u8>, Vec<u8>)>,
    /// The body; Envoy adds the `content-length`.
    pub body: Vec<u8>,
    /// `%RESPONSE_CODE_DETAILS%` in Envoy's access log.
    pub details: &'static str,
}

/// The refusal that a client gets: a problem of RFC 9457.
///
/// Never holds the raw key, the body, or a header's value: problems end up in other people's logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The reason.
    pub code: Code,
    /// What is wrong with this request, in a sentence.
    pub detail: String,
    /// Seconds after which a retry makes sense: body member and `Retry-After` header
    /// (RFC 9110 section 10.2.3).
    pub retry_after: Option<u64>,
    /// When the first request under the key was seen, as RFC 3339.
    pub first_seen: Option<String>,
    /// The status of the first answer, where the answer itself was not kept.
    pub original_status: Option<u16>,
}

/// Every reason for a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// 400: the rule needs a key, and a part of it is absent.
    KeyMissing,
    /// 400: the key header is repeated, empty, too long, or of bad syntax.
    KeyInvalid,
    /// 400: the rule needs a caller, and there is none.
    CallerMissing,
    /// 413: the body is needed and is over `limits.request_body`.
    BodyTooLarge,
    /// 400: the body is needed as JSON or form, and is not.
    BodyInvalid,
    /// 422: a different request under a used key.
    KeyReused,
    /// 409: it has run; the answer was not kept.
    CompletedNotStored,
    /// 409: it may have run; the outcome is unknown.
    OutcomeUnknown,
    /// 409, or 307 with a `Location`: the first is still running.
    InProgress,
    /// 503: the store failed, and the rule says `refuse`.
    StoreUnavailable,
    /// 403: the request claims to come from this filter itself.
    ViaRefused,
    /// 502: a detached request's answer broke off.
    OriginFailed,
    /// 503: a detached request could not be sent.
    OriginUnreachable,
    /// 500: Envoy's configuration keeps the filter from its work.
    Misconfigured,
}

impl Code {
    /// The status code.
    pub const fn status(self) -> u16 {
        match self {
            Self::KeyMissing | Self::KeyInvalid | Self::CallerMissing | Self::BodyInvalid => 400,
            Self::CompletedNotStored | Self::OutcomeUnknown | Self::InProgress => 409,
            Self::ViaRefused => 403,
            Self::BodyTooLarge => 413,
            Self::KeyReused => 422,
            Self::Misconfigured => 500,
            Self::OriginFailed => 502,
            Self::StoreUnavailable | Self::OriginUnreachable => 503,
        }
    }

    /// The word clients switch on: the `code` member, and the end of `type`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::KeyMissing => "key-missing",
            Self::KeyInvalid => "key-invalid",
            Self::CallerMissing => "caller-missing",
            Self::BodyTooLarge => "body-too-large",
            Self::BodyInvalid => "body-invalid",
            Self::KeyReused => "key-reused",
            Self::CompletedNotStored => "completed-not-stored",
            Self::OutcomeUnknown => "outcome-unknown",
            Self::InProgress => "in-progress",
            Self::StoreUnavailable => "store-unavailable",
            Self::ViaRefused => "via-refused",
            Self::OriginFailed => "origin-failed",
            Self::OriginUnreachable => "origin-unreachable",
            Self::Misconfigured => "misconfigured",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::KeyMissing => "The idempotency key is missing",
            Self::KeyInvalid => "The idempotency key is invalid",
            Self::CallerMissing => "The caller is not identified",
            Self::BodyTooLarge => "The body is too large",
            Self::BodyInvalid => "The body cannot be read",
            Self::KeyReused => "The idempotency key belongs to a different request",
            Self::CompletedNotStored => "The request was completed and its answer was not kept",
            Self::OutcomeUnknown => "The outcome of the first request is unknown",
            Self::InProgress => "The first request is still in progress",
            Self::StoreUnavailable => "The idempotency store is unavailable",
            Self::ViaRefused => "The request pretends to be the filter's own",
            Self::OriginFailed => "The origin's answer broke off",
            Self::OriginUnreachable => "The origin cannot be reached",
            Self::Misconfigured => "The idempotency filter is misconfigured",
        }
    }

    const fn details(self) -> &'static str {
        match self {
            Self::KeyMissing => "idempotency_key_missing",
            Self::KeyInvalid => "idempotency_key_invalid",
            Self::CallerMissing => "idempotency_caller_missing",
            Self::BodyTooLarge => "idempotency_body_too_large",
            Self::BodyInvalid => "idempotency_body_invalid",
            Self::KeyReused => "idempotency_key_reused",
            Self::CompletedNotStored => "idempotency_completed_not_stored",
            Self::OutcomeUnknown => "idempotency_outcome_unknown",
            Self::InProgress => "idempotency_in_progress",
            Self::StoreUnavailable => "idempotency_store_unavailable",
            Self::ViaRefused => "idempotency_via_refused",
            Self::OriginFailed => "idempotency_origin_failed",
            Self::OriginUnreachable => "idempotency_origin_unreachable",
            Self::Misconfigured => "idempotency_misconfigured",
        }
    }
}

/// The members of `application/problem+json`, in the order RFC 9457 section 3.1 lists its own.
#[derive(Serialize)]
struct Members<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_seen: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    original_status: Option<u16>,
}

impl Problem {
    /// A problem with only a code and a sentence.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            retry_after: None,
            first_seen: None,
            original_status: None,
        }
    }

    /// The answer with this problem.
    pub fn into_reply(self) -> LocalReply {
        let status = self.code.status();
        self.answer(status)
    }

    /// The answer that redirects the client: 307 keeps method and body (RFC 9110
    /// section 15.4.8).
    pub fn into_redirect(self, location: Vec<u8>) -> LocalReply {
        let mut reply = self.answer(307);
        reply.headers.push((b"location".to_vec(), location));
        reply.details = "idempotency_redirected";
        reply
    }

    fn answer(self, status: u16) -> LocalReply {
        let members = Members {
            r#type: format!("urn:idempotency:{}", self.code.word()),
            title: self.code.title(),
            status,
            detail: &self.detail,
            code: self.code.word(),
            retry_after: self.retry_after,
            first_seen: self.first_seen.as_deref(),
            original_status: self.original_status,
        };
        let mut headers = vec![(b"content-type".to_vec(), b"application/problem+json".to_vec())];
        if let Some(seconds) = self.retry_after {
            headers.push((b"retry-after".to_vec(), seconds.to_string().into_bytes()));
        }
        LocalReply {
            status,
            headers,
            // Strings and numbers always serialise; should that change, the status still says it all.
            body: serde_json::to_vec(&members).unwrap_or_default(),
            details: self.code.details(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_problem_says_only_what_it_knows() {
        let reply = Problem::new(Code::KeyMissing, "header idempotency-key is absent").into_reply();
        assert_eq!(reply.status, 400);
        assert_eq!(
            text(&reply.body),
            "{\"type\":\"urn:idempotency:key-missing\",\"title\":\"The idempotency key is missing\",\
             \"status\":400,\"detail\":\"header idempotency-key is absent\",\"code\":\"key-missing\"}"
        );
        assert_eq!(
            reply.headers,
            [(b"content-type".to_vec(), b"application/problem+json".to_vec())]
        );
    }

    #[test]
    fn retry_after_is_in_header_and_body() {
        let problem = Problem {
            retry_after: Some(2),
            first_seen: Some("2026-11-24T04:06:34.120Z".to_owned()),
            ..Problem::new(Code::InProgress, "try later")
        };
        let reply = problem.into_reply();
        assert_eq!(reply.status, 409);
        assert!(reply.headers.contains(&(b"retry-after".to_vec(), b"2".to_vec())));
        let body = text(&reply.body);
        assert!(body.contains("\"retry_after\":2"), "{body}");
        assert!(body.contains("\"first_seen\":\"2026-11-24T04:06:34.120Z\""), "{body}");
    }

    #[test]
    fn a_redirect_keeps_the_problem_and_names_the_place() {
        let problem =
            Problem { retry_after: Some(1), ..Problem::new(Code::InProgress, "look there") };
        let reply = problem.into_redirect(b"/orders/7".to_vec());
        assert_eq!(reply.status, 307);
        assert!(reply.headers.contains(&(b"location".to_vec(), b"/orders/7".to_vec())));
        assert!(text(&reply.body).contains("\"status\":307"));
    }
}
