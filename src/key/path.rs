//! The normal form of a request's path (RFC 3986 section 6.2.2).

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_decode, percent_encode};

/// What RFC 3986 section 2.3 calls unreserved stays; every other byte is escaped.
const ALL_BUT_UNRESERVED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Bytes that a path may not contain: all but `pchar` and `/` (RFC 3986 section 3.3).
const NOT_IN_A_PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// The path of a `:path` header in normal form: no query, escapes of unreserved characters undone,
/// the hexadecimal digits of others in upper case, no dot segments.
///
/// Bytes that a path may not contain are escaped, and so is a `%` that begins no escape. The result is
/// therefore ASCII and safe in a header. An escaped slash stays escaped: it is part of a segment.
pub(super) fn normalise(path: &[u8]) -> String {
    let end = path.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(path.len());
    remove_dot_segments(&normalise_escapes(path.get(..end).unwrap_or_default()))
}

/// RFC 3986 sections 6.2.2.1 and 6.2.2.2.
pub(super) fn normalise_escapes(path: &[u8]) -> String {
    let mut normal = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let escape = if byte == b'%' { split_escape(after) } else { None };
        match escape {
            Some((escaped, after)) => {
                rest = after;
                push_escaped(&mut normal, escaped, ALL_BUT_UNRESERVED);
            }
            None => push_escaped(&mut normal, byte, NOT_IN_A_PATH),
        }
    }
    normal
}

/// The bytes a piece of a normal path stands for.
pub(super) fn decode(normal: &str) -> Vec<u8> {
    percent_decode(normal.as_bytes()).collect()
}

/// The bytes with all but unreserved characters escaped.
pub(super) fn escape(bytes: &[u8]) -> String {
    percent_encode(bytes, ALL_BUT_UNRESERVED).to_string()
}

/// The byte of the two hexadecimal digits at the start, and the rest.
fn split_escape(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let ([high, low], rest) = bytes.split_first_chunk::<2>()?;
    let high = char::from(*high).to_digit(16)?;
    let low = char::from(*low).to_digit(16)?;
    Some((u8::try_from(high * 16 + low).ok()?, rest))
}

fn push_escaped(normal: &mut String, byte: u8, set: &'static AsciiSet) {
    normal.extend(percent_encode(&[byte], set));
}

/// RFC 3986 section 5.2.4, on a path whose escaped dots are plain by now.
fn remove_dot_segments(path: &str) -> String {
    let Some(segments) = path.strip_prefix('/') else {
        return path.to_owned();
    };
    let mut kept: Vec<&str> = Vec::new();
    let mut ends_in_dots = false;
    for segment in segments.split('/') {
        ends_in_dots = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            other => kept.push(other),
        }
    }
    if ends_in_dots {
        // `/a/..` is the directory `/`, `/a/.` is `/a/`: the slash before the dots stays.
        kept.push("");
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escapes_of_unreserved_characters_are_undone_and_others_are_written_one_way() {
        assert_eq!(normalise(b"/%7euser/%41%2d%2E%5f"), "/~user/A-._");
        assert_eq!(normalise(b"/a%2fb%3aC%c3%bc"), "/a%2Fb%3AC%C3%BC");
        assert_eq!(normalise(b"/a:b@c!$&'()*+,;=d"), "/a:b@c!$&'()*+,;=d");
    }

    #[test]
    fn bytes_that_a_path_may_not_contain_are_escaped() {
        assert_eq!(normalise("/k\u{f6}ln {x}\r\n".as_bytes()), "/k%C3%B6ln%20%7Bx%7D%0D%0A");
        assert_eq!(normalise(b"/\xff\x00\x7f"), "/%FF%00%7F");
        assert_eq!(normalise(b"/100%/%zz/%4"), "/100%25/%25zz/%254");
    }

    #[test]
    fn the_query_is_no_part_of_the_path() {
        assert_eq!(normalise(b"/a?b=/c/../d"), "/a");
        assert_eq!(normalise(b"/a%3fb#c"), "/a%3Fb");
    }

    #[test]
    fn dot_segments_are_removed_even_when_their_dots_are_escaped() {
        for (path, normal) in [
            ("/a/b/c/./../../g", "/a/g"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/../../a", "/a"),
            ("/a//../b", "/a/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/%2e./b", "/b"),
            ("/a/...", "/a/..."),
            ("/a/%2F../b", "/a/%2F../b"),
            ("/", "/"),
            ("", ""),
            ("*", "*"),
        ] {
            assert_eq!(normalise(path.as_bytes()), normal, "{path}");
        }
    }

    proptest! {
        #[test]
        fn a_normal_path_is_its_own_normal_form(path in proptest::collection::vec(any::<u8>(), 0..64)) {
            let normal = normalise(&path);
            prop_assert!(normal.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert_eq!(normalise(normal.as_bytes()), normal);
        }

        #[test]
        fn a_path_of_awkward_pieces_is_normalised_once(
            pieces in proptest::collection::vec(
                prop::sample::select(vec!["/", ".", "%2e", "%2F", "%", "25", "a", "%41", "?"]), 0..12)
        ) {
            let normal = normalise(format!("/{}", pieces.concat()).as_bytes());
            prop_assert_eq!(normalise(normal.as_bytes()), normal);
        }
    }
}
