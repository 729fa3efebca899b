//! Reads the head of a request: headers, cookies, query, attributes.

use super::{Captures, form};

/// Everything known of a request before its body.
pub struct RequestHead<'a> {
    /// Names and values as Envoy has them, `:method`, `:authority` and `:path` among them. Neither
    /// need be UTF-8.
    pub headers: &'a [(Vec<u8>, Vec<u8>)],
    /// Envoy's attributes.
    pub attributes: &'a dyn Attributes,
    /// The captures of the rule's path template.
    pub captures: &'a Captures,
}

/// Envoy's attributes of a request ("Attributes" in Envoy's documentation).
pub trait Attributes {
    /// The value at a path, such as `["connection", "uri_san_peer_certificate"]`; `None` when there
    /// is none.
    fn attribute(&self, path: &[&str]) -> Option<Vec<u8>>;
}

/// The host in an authority: lower case, without its port and the dot that ends a fully qualified name
/// (RFC 3986 section 3.2.2), an IPv6 address with its brackets.
pub fn host(authority: &[u8]) -> Vec<u8> {
    let bracket =
        authority.iter().rposition(|byte| *byte == b']').filter(|_| authority.starts_with(b"["));
    let end = match (bracket, authority.iter().rposition(|byte| *byte == b':')) {
        (Some(bracket), _) => bracket.saturating_add(1),
        (None, Some(colon)) => colon,
        (None, None) => authority.len(),
    };
    let host = authority.get(..end).unwrap_or_default();
    // `a.example.` names the same host. If it counted as another, it would bypass the rule for `a.example`.
    host.strip_suffix(b".").unwrap_or(host).to_ascii_lowercase()
}

impl RequestHead<'_> {
    /// Every value of a header, in order.
    pub(super) fn headers_named(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.headers
            .iter()
            .filter(move |(known, _)| known.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value.as_slice())
    }

    /// The value of a header that Envoy lets through once; empty when it is absent.
    pub(super) fn header(&self, name: &str) -> &[u8] {
        self.headers_named(name).next().unwrap_or_default()
    }

    /// Every value of a cookie, in order; a value equal to the one before it is left out.
    ///
    /// Browsers send a name twice when two paths or domains have set it (RFC 6265 section 4.2.2),
    /// and servers differ in which one they take: two requests share a key only when they agree on
    /// all.
    pub(super) fn cookies(&self, name: &str) -> Vec<Vec<u8>> {
        let mut values: Vec<Vec<u8>> = self
            .headers_named("cookie")
            .flat_map(|header| header.split(|byte| *byte == b';'))
            .filter_map(|pair| {
                let pair = pair.trim_ascii();
                let equals = pair.iter().position(|byte| *byte == b'=')?;
                let (known, value) = pair.split_at_checked(equals)?;
                (known == name.as_bytes()).then(|| value.get(1..).unwrap_or_default().to_vec())
            })
            .collect();
        values.dedup();
        values
    }

    /// Every value of a query parameter, decoded, in order.
    pub(super) fn query(&self, name: &str) -> Vec<Vec<u8>> {
        let path = self.header(":path");
        let before_fragment = path.split(|byte| *byte == b'#').next().unwrap_or_default();
        let query = before_fragment
            .iter()
            .position(|byte| *byte == b'?')
            .and_then(|mark| before_fragment.get(mark.saturating_add(1)..));
        form::values(query.unwrap_or_default(), name)
    }

    /// The media type of the body: type and subtype in lower case, without parameters; empty when
    /// absent.
    ///
    /// A parameter such as `charset` or a multipart boundary does not make it a different request.
    pub(super) fn media_type(&self) -> Vec<u8> {
        let essence = self.header("content-type").split(|byte| *byte == b';').next();
        essence.unwrap_or_default().trim_ascii().to_ascii_lowercase()
    }
}
