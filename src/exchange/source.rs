//! Whose answer is it, and may the origin have run? By Envoy's attributes, never by status alone.

use crate::key::Attributes;

/// Where a response comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The application answered: it ran, and this is what it says.
    Application,
    /// Envoy answered, and no byte of the request went upstream.
    NothingSent,
    /// Envoy answered after something may have gone upstream.
    MaybeSent,
}

/// `UF`, upstream connection failure: Envoy's response flag `0x20`
/// (`envoy.data.accesslog.v3.ResponseFlags`, in the order of `CoreResponseFlag`). Set for the try whose
/// end the answer tells of, and only where the pool got no connection for it.
const UPSTREAM_CONNECTION_FAILURE: u64 = 0x20;

/// A circuit breaker kept the request from its connection. The flag `UO` would not tell: it also says
/// that a breaker forbade a *retry*, of a request that was sent.
const OVERFLOW: &[u8] = b"upstream_reset_before_response_started{overflow}";

/// Tells by `response.code_details`, `response.flags`, `upstream.address` and
/// `upstream.request_attempt_count` (Envoy docs, "Attributes" and "Response code details").
///
/// The first of these that holds:
///
/// | Envoy shows | so | because |
/// |---|---|---|
/// | details `via_upstream` | [`Source::Application`] | the router passes on what came from upstream |
/// | more than one try | [`Source::MaybeSent`] | the attributes tell of the last try alone |
/// | no address | [`Source::NothingSent`] | the router names a host before it asks for a connection |
/// | flag `UF` | [`Source::NothingSent`] | no connection stood: refused, timed out, failed its handshake |
/// | details `…{overflow}` | [`Source::NothingSent`] | a circuit breaker forbade the first try |
/// | anything else | [`Source::MaybeSent`] | a connection stood, and the request was on it |
///
/// A wrong `NothingSent` costs a double execution, a wrong `MaybeSent` a needless 409: what cannot be
/// told apart is `MaybeSent`. That is too strict, knowingly, where
///
/// * Envoy's router retries and every try fails to connect: what became of an earlier try is in no
///   attribute, and one that was cut off and then refused looks just the same;
/// * time runs out while the request waits for a connection, or an *upstream* filter of the cluster
///   refuses it: the host is named by then;
/// * an HTTP/2 origin refuses the stream (`remote_refused_stream_reset`). It says that it did nothing
///   (RFC 9113 section 8.7), but that is the origin's claim, which Envoy cannot verify.
///
/// Too lax it would be where a route sends unsafe requests as early data of HTTP/3 (`early_data_policy`;
/// Envoy's own sends only safe ones): `UF` then also tells of a handshake that failed after the request.
pub(super) fn source(attributes: &dyn Attributes) -> Source {
    let details = attributes.attribute(&["response", "code_details"]).unwrap_or_default();
    if details.starts_with(b"via_upstream") {
        return Source::Application;
    }
    if integer(attributes, &["upstream", "request_attempt_count"]).is_some_and(|tries| tries > 1) {
        return Source::MaybeSent;
    }
    let flags = integer(attributes, &["response", "flags"]).unwrap_or(0);
    let no_host = attributes.attribute(&["upstream", "address"]).is_none_or(|host| host.is_empty());
    if no_host || flags & UPSTREAM_CONNECTION_FAILURE != 0 || details == OVERFLOW {
        Source::NothingSent
    } else {
        Source::MaybeSent
    }
}

/// Envoy hands integers over as eight bytes, little endian.
fn integer(attributes: &dyn Attributes, path: &[&str]) -> Option<u64> {
    let bytes = attributes.attribute(path)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::Source::{Application, MaybeSent, NothingSent};
    use super::*;

    #[derive(Default)]
    struct Shown {
        details: Option<&'static str>,
        flags: Option<u64>,
        host: Option<&'static str>,
        tries: Option<u64>,
    }

    impl Attributes for Shown {
        fn attribute(&self, path: &[&str]) -> Option<Vec<u8>> {
            match path {
                ["response", "code_details"] => self.details.map(|text| text.into()),
                ["response", "flags"] => self.flags.map(|flags| flags.to_le_bytes().into()),
                ["upstream", "address"] => self.host.map(|text| text.into()),
                ["upstream", "request_attempt_count"] => {
                    self.tries.map(|tries| tries.to_le_bytes().into())
                }
                _ => None,
            }
        }
    }

    const HOST: Option<&str> = Some("10.0.0.1:80");

    /// The router had nothing to do with it.
    const NONE: u64 = 0;

    const UH: u64 = 0x2;
    const UT: u64 = 0x4;
    const UR: u64 = 0x10;
    const UF: u64 = 0x20;
    const UC: u64 = 0x40;
    const UO: u64 = 0x80;
    const NR: u64 = 0x100;
    const FI: u64 = 0x400;
    const URX: u64 = 0x8000;
    const SI: u64 = 0x1_0000;
    const UPE: u64 = 0x80_0000;
    const NC: u64 = 0x100_0000;

    type Row = (&'static str, u64, Option<&'static str>, u64, Source);

    /// What Envoy 1.39 shows: details, flags, host, tries. `tests/e2e/outcomes/response_source.rs` makes a real one
    /// show each of them.
    const ROWS: [Row; 27] = [
        // The application's own.
        ("via_upstream", 0, HOST, 1, Application),
        ("via_upstream", 0, HOST, 2, Application),
        ("via_upstream", URX, HOST, 2, Application),
        // Never got as far as the router.
        ("direct_response", 0, None, NONE, NothingSent),
        ("route_not_found", NR, None, NONE, NothingSent),
        ("cluster_not_found", NC, None, NONE, NothingSent),
        ("rbac_access_denied_matched_policy[no]", 0, None, NONE, NothingSent),
        ("fault_filter_abort", FI, None, NONE, NothingSent),
        ("request_payload_too_large", 0, None, NONE, NothingSent),
        // Got no connection.
        ("no_healthy_upstream", UH, None, 1, NothingSent),
        ("upstream_reset_before_response_started{overflow}", UO, None, 1, NothingSent),
        ("upstream_reset_before_response_started{overflow}", UO, HOST, 1, NothingSent),
        (REFUSED, UF, HOST, 1, NothingSent),
        ("upstream_reset_before_response_started{connection_timeout}", UF, HOST, 1, NothingSent),
        // Had one.
        (CUT_OFF, UC, HOST, 1, MaybeSent),
        ("upstream_reset_before_response_started{protocol_error}", UPE, HOST, 1, MaybeSent),
        ("upstream_reset_before_response_started{remote_reset}", UR, HOST, 1, MaybeSent),
        (REFUSED_STREAM, UR, HOST, 1, MaybeSent),
        ("response_timeout", UT, HOST, 1, MaybeSent),
        ("upstream_per_try_timeout", UT, HOST, 1, MaybeSent),
        ("stream_idle_timeout", SI, HOST, 1, MaybeSent),
        ("max_duration_timeout", 0, HOST, 1, MaybeSent),
        ("lua_response", 0, HOST, 1, MaybeSent),
        // A breaker forbade the retry of what was sent.
        (CUT_OFF, UO | UC, HOST, 1, MaybeSent),
        // Had one, or may have had one, in an earlier try.
        (REFUSED, URX | UF, HOST, 2, MaybeSent),
        (CUT_OFF, URX | UC, HOST, 2, MaybeSent),
        ("no_healthy_upstream", UH, None, 2, MaybeSent),
    ];

    const REFUSED: &str = "upstream_reset_before_response_started{remote_connection_failure|\
                           delayed_connect_error:_Connection_refused}";
    const CUT_OFF: &str = "upstream_reset_before_response_started{connection_termination}";
    const REFUSED_STREAM: &str =
        "upstream_reset_before_response_started{remote_refused_stream_reset}";

    #[test]
    fn what_envoy_shows_tells_whose_answer_it_is() {
        for row in ROWS {
            let (details, flags, host, tries, means) = row;
            let shown =
                Shown { details: Some(details), flags: Some(flags), host, tries: Some(tries) };
            assert_eq!(source(&shown), means, "{row:?}");
        }
    }

    #[test]
    fn a_host_without_more_may_have_got_the_request() {
        assert_eq!(source(&Shown { host: HOST, ..Shown::default() }), MaybeSent);
        let odd = Shown { details: Some("upstream_overflow"), host: HOST, ..Shown::default() };
        assert_eq!(source(&odd), MaybeSent);
    }
}
