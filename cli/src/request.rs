//! A raw HTTP/1.1 request, as Envoy would show it to the filter.

use super::Failure;

/// Far above Envoy's default limit (100).
const MOST_HEADERS: usize = 256;

/// A request.
pub(super) struct Request {
    /// Pseudo-headers first, names in lower case.
    pub(super) headers: Vec<(Vec<u8>, Vec<u8>)>,
    /// The whole body.
    pub(super) body: Vec<u8>,
}

impl Request {
    /// Reads a request; lines may end with only LF, as in an editor.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Failure> {
        let refused = |why: String| Failure::Refused(format!("request: {why}"));
        let mut parsed = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut head = httparse::Request::new(&mut parsed);
        let length = match head.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => {
                return Err(refused("the headers do not end with an empty line".to_owned()));
            }
            Err(error) => return Err(refused(format!("not HTTP/1.1: {error}"))),
        };
        let (method, target) = (head.method.unwrap_or_default(), head.path.unwrap_or_default());
        let (authority, path) = split(target);
        let mut host = authority.map(|authority| authority.as_bytes().to_vec());
        let mut headers = Vec::new();
        for header in head.headers.iter() {
            let name = header.name.to_ascii_lowercase();
            match name.as_str() {
                // RFC 9112 section 3.2.2: the target's authority comes before the field.
                "host" => host = host.or_else(|| Some(header.value.to_vec())),
                "transfer-encoding" => {
                    let why = "transfer-encoding is not supported: give the plain body, with or without content-length";
                    return Err(refused(why.to_owned()));
                }
                _ => headers.push((name.into_bytes(), header.value.to_vec())),
            }
        }
        let upgrades = headers.iter().any(|(name, _)| name == b"upgrade");
        // Envoy keeps this header only for upgrades.
        headers.retain(|(name, _)| upgrades || name != b"connection");
        let pseudo = [
            (":method", method.as_bytes()),
            (":authority", host.as_deref().unwrap_or_default()),
            (":path", path.as_bytes()),
            (":scheme", b"http"),
        ];
        let pseudo = pseudo.map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec()));
        let body = body(bytes.get(length..).unwrap_or_default(), &headers).map_err(refused)?;
        Ok(Self { headers: pseudo.into_iter().chain(headers).collect(), body })
    }
}

/// The authority of a target in absolute form, and its path.
fn split(target: &str) -> (Option<&str>, &str) {
    let rest = ["http://", "https://"].iter().find_map(|scheme| target.strip_prefix(scheme));
    let Some(rest) = rest else { return (None, target) };
    let end = rest.find('/').unwrap_or(rest.len());
    match rest.split_at_checked(end) {
        Some((authority, "")) => (Some(authority), "/"),
        Some((authority, path)) => (Some(authority), path),
        None => (None, target),
    }
}

/// As many bytes as `content-length` says, else all that follow.
fn body(rest: &[u8], headers: &[(Vec<u8>, Vec<u8>)]) -> Result<Vec<u8>, String> {
    let Some((_, said)) = headers.iter().find(|(name, _)| name == b"content-length") else {
        return Ok(rest.to_vec());
    };
    let length: usize = std::str::from_utf8(said)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .ok_or("content-length is not a number")?;
    let body = rest.get(..length).ok_or_else(|| {
        format!("content-length is {length}, but {} bytes follow the headers", rest.len())
    })?;
    Ok(body.to_vec())
}
