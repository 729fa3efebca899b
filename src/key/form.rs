//! Reads `application/x-www-form-urlencoded` text, in a query or a body.

use percent_encoding::percent_decode;

/// The media type of a form (WHATWG URL Standard, section 5).
pub(super) const MEDIA_TYPE: &[u8] = b"application/x-www-form-urlencoded";

/// Every value of a field, decoded, in order.
///
/// As in section 5.1 of the WHATWG URL Standard, except that values stay bytes. There, every byte that is not
/// UTF-8 becomes U+FFFD, so `%FF` and `%FE` would share a key.
pub(super) fn values(text: &[u8], name: &str) -> Vec<Vec<u8>> {
    text.split(|byte| *byte == b'&')
        .filter(|pair| !pair.is_empty())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_split_before_they_are_decoded() {
        assert_eq!(values(b"a=1%262&b=3%3D4&a=x=y", "a"), [b"1&2".to_vec(), b"x=y".to_vec()]);
        assert_eq!(values(b"b=3%3D4", "b"), [b"3=4"]);
        assert_eq!(values(b"%61%3D=1", "a="), [b"1"]);
    }

    #[test]
    fn a_plus_is_a_space_and_an_escaped_plus_is_a_plus() {
        assert_eq!(values(b"a=b+c%2Bd", "a"), [b"b c+d"]);
    }

    #[test]
    fn a_field_without_a_value_is_empty_and_stray_separators_are_nothing() {
        assert_eq!(values(b"&&a&=x&", "a"), [b""]);
        assert_eq!(values(b"&&a&=x&", ""), [b"x"]);
        assert!(values(b"", "a").is_empty());
    }

    #[test]
    fn a_percent_that_begins_no_escape_is_a_percent() {
        assert_eq!(values(b"a=%&b=%zz&c=%4", "a"), [b"%"]);
        assert_eq!(values(b"a=%&b=%zz&c=%4", "b"), [b"%zz"]);
        assert_eq!(values(b"a=%&b=%zz&c=%4", "c"), [b"%4"]);
    }
}
