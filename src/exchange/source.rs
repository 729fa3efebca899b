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
/// (`envoy.data.accesslog.v3.ResponseFlags`, in the order of `CoreResponseFlag`).
const UPSTREAM_CONNECTION_FAILURE: u64 = 0x20;

/// Tells by `response.code_details`, `response.flags` and whether an upstream host was ever chosen
/// (Envoy docs, "Attributes" and "Response code details").
///
/// A wrong `NothingSent` costs a double execution, a wrong `MaybeSent` a needless 409: what cannot be
/// told apart is `MaybeSent`.
pub(super) fn source(attributes: &dyn Attributes) -> Source {
    let details = attributes.attribute(&["response", "code_details"]).unwrap_or_default();
    if details.starts_with(b"via_upstream") {
        return Source::Application;
    }
    // Envoy's router retries below this filter: an earlier try may have reached the origin whatever
    // became of the last one.
    if integer(attributes, &["upstream", "request_attempt_count"]).is_some_and(|tries| tries > 1) {
        return Source::MaybeSent;
    }
    let flags = integer(attributes, &["response", "flags"]).unwrap_or(0);
    let no_host = attributes.attribute(&["upstream", "address"]).is_none_or(|host| host.is_empty());
    if no_host || flags & UPSTREAM_CONNECTION_FAILURE != 0 {
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
    use super::*;

    struct Fake {
        details: Option<&'static str>,
        flags: u64,
        tries: u64,
        host: Option<&'static str>,
    }

    impl Attributes for Fake {
        fn attribute(&self, path: &[&str]) -> Option<Vec<u8>> {
            match path {
                ["response", "code_details"] => self.details.map(|text| text.into()),
                ["response", "flags"] => Some(self.flags.to_le_bytes().into()),
                ["upstream", "request_attempt_count"] => Some(self.tries.to_le_bytes().into()),
                ["upstream", "address"] => self.host.map(|text| text.into()),
                _ => None,
            }
        }
    }

    fn told(details: &'static str, flags: u64, tries: u64, host: Option<&'static str>) -> Source {
        source(&Fake { details: Some(details), flags, tries, host })
    }

    const HOST: Option<&str> = Some("10.0.0.1:80");

    #[test]
    fn an_answer_via_upstream_is_the_applications() {
        assert_eq!(told("via_upstream", 0, 1, HOST), Source::Application);
        assert_eq!(told("via_upstream", 0, 3, HOST), Source::Application);
    }

    #[test]
    fn nothing_was_sent_where_no_connection_stood() {
        let refused = "upstream_reset_before_response_started{remote_connection_failure|111}";
        assert_eq!(told(refused, 0x20, 1, HOST), Source::NothingSent);
        assert_eq!(told("no_healthy_upstream", 0x2, 1, None), Source::NothingSent);
        assert_eq!(told("route_not_found", 0, 0, None), Source::NothingSent);
        assert_eq!(
            told("rbac_access_denied_matched_policy[none]", 0, 0, None),
            Source::NothingSent
        );
        assert_eq!(told("direct_response", 0, 0, None), Source::NothingSent);
    }

    #[test]
    fn something_may_have_been_sent_once_a_connection_stood() {
        assert_eq!(told("response_timeout", 0x4, 1, HOST), Source::MaybeSent);
        let reset = "upstream_reset_before_response_started{connection_termination}";
        assert_eq!(told(reset, 0x40, 1, HOST), Source::MaybeSent);
        assert_eq!(told("response_payload_too_large", 0, 1, HOST), Source::MaybeSent);
    }

    #[test]
    fn a_try_before_the_last_may_have_been_sent() {
        let refused = "upstream_reset_before_response_started{remote_connection_failure|111}";
        assert_eq!(told(refused, 0x20, 2, HOST), Source::MaybeSent);
        assert_eq!(told("no_healthy_upstream", 0x2, 2, None), Source::MaybeSent);
    }

    #[test]
    fn without_attributes_nothing_is_taken_for_the_applications() {
        let mute = Fake { details: None, flags: 0, tries: 0, host: HOST };
        assert_eq!(source(&mute), Source::MaybeSent);
    }
}
