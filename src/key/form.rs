//! Reads `application/x-www-form-urlencoded` text, in a query or a body.

use percent_encoding::percent_decode;

/// The media type of a form (WHATWG URL Standard, section 5).
pub(super) const MEDIA_TYPE: &[u8] = b"application/x-www-form-urlencoded";

/// Every value of a field, decoded, in order.
///
/// As the WHATWG URL Standard says in section 5.1, except that values stay bytes: made UTF-8 there, every
/// byte that is none becomes U+FFFD, and `%FF` and `%FE` would share a key.
pub(super) fn values(text: &[u8], name: &str) -> Vec<Vec<u8>> {
    text.split(|byte| *byte == b'&')
        .filter_map(|pair| {
            let equals = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            let (known, value) = pair.split_at_checked(equals)?;
            (decode(known) == name.as_bytes()).then(|| decode(value.get(1..).unwrap_or_default()))
        })
        .collect()
}

fn decode(text: &[u8]) -> Vec<u8> {
    let spaced: Vec<u8> =
        text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    percent_decode(&spaced).collect()
}
