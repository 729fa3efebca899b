//! A client's key as a header writes it: an RFC 8941 String, or bare text.

use sfv::visitor::Ignored;
use sfv::{BareItemFromInput, Parser, Version};
use std::convert::Infallible;

/// The longest key, in bytes after decoding: Stripe's limit, and more than any UUID or hash needs.
const MAX_BYTES: usize = 255;

/// Reads the one key among the values of a key header.
///
/// # Errors
///
/// The fault, in words that show nothing of the key.
pub(super) fn parse(values: &[&[u8]]) -> Result<Vec<u8>, &'static str> {
    // RFC 8941 section 3.3: an Item comes in one field line. Two are two keys, even when they are
    // equal.
    let &[value] = values else {
        return Err("it is repeated");
    };
    // Optional white space (RFC 9110 section 5.6.3) is not part of a field's value.
    let value = value.trim_ascii();
    let key = if value.starts_with(b"\"") { quoted(value)? } else { bare(value)? };
    if key.is_empty() {
        return Err("it is empty");
    }
    if key.len() > MAX_BYTES {
        return Err("it is longer than 255 bytes");
    }
    Ok(key)
}

/// An RFC 8941 Item that is a String. Its parameters must be well-formed, and are ignored.
fn quoted(value: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut key = None;
    Parser::new(value)
        .with_version(Version::Rfc8941)
        .parse_item_with_visitor(|item: BareItemFromInput<'_>| {
            if let BareItemFromInput::String(text) = item {
                key = Some(text.as_str().as_bytes().to_vec());
            }
            Ok::<_, Infallible>(Ignored)
        })
        .map_err(|_where| "it begins with a quote but is not a String of RFC 8941")?;
    key.ok_or("it begins with a quote but is not a String of RFC 8941")
}

/// Bare text: from clients that do not use RFC 8941.
///
/// Without characters that separate or quote in a list, so that `a, b` and `"a` are refused and not taken as
/// keys.
fn bare(value: &[u8]) -> Result<Vec<u8>, &'static str> {
    let plain = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b',' | b';' | b'"' | b'\\');
    if !value.iter().all(plain) {
        return Err("it has characters that are allowed only in a quoted String of RFC 8941");
    }
    Ok(value.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(value: &str) -> Result<Vec<u8>, &'static str> {
        parse(&[value.as_bytes()])
    }

    #[test]
    fn the_quoted_and_the_bare_form_are_the_same_key() {
        for value in [
            "abc",
            "\"abc\"",
            " abc\t",
            "  \"abc\"  ",
            "\"abc\";v=1;w",
            "\"abc\"; a=?1;b=:aGk=:;c=\"x\"",
        ] {
            assert_eq!(key(value).unwrap(), b"abc", "{value}");
        }
        assert_eq!(key("8e03978e-40d5-43dd-bc93-6894a57f9324").unwrap().len(), 36);
    }

    #[test]
    fn the_escapes_of_a_string_are_undone() {
        assert_eq!(key(r#""a\"b\\c""#).unwrap(), br#"a"b\c"#);
        assert_eq!(key(r#""a, b; c""#).unwrap(), b"a, b; c");
        assert_eq!(key(r#""\"""#).unwrap(), b"\"");
    }

    #[test]
    fn a_key_that_is_badly_written_is_refused() {
        for value in [
            "a b",
            "a,b",
            "a;b",
            "a\"b",
            "a\\b",
            "\"abc",
            "abc\"",
            "\"a\", \"b\"",
            "\"a\" \"b\"",
            "\"a\"b",
            "\"a\\b\"",
            "\"a\\",
            "\"a\";",
            "\"a\";=1",
            "\"a\";A=1",
            "\"a\";b=",
            "\"a\" ;b=1",
            "\"a\";b=@1659578233",
            "\u{fc}",
            "\"\u{fc}\"",
            "a\0",
            "\"a\tb\"",
            "\"a\"\u{b}",
        ] {
            assert!(key(value).is_err(), "{value:?}");
        }
        assert!(parse(&[b"\xff"]).is_err());
    }

    #[test]
    fn a_key_has_1_to_255_bytes_after_decoding() {
        assert_eq!(key(""), Err("it is empty"));
        assert_eq!(key("  "), Err("it is empty"));
        assert_eq!(key("\"\""), Err("it is empty"));
        assert_eq!(key(&"x".repeat(255)).unwrap().len(), 255);
        assert_eq!(key(&"x".repeat(256)), Err("it is longer than 255 bytes"));
        assert_eq!(key(&format!("\"{}\"", "\\\\".repeat(255))).unwrap().len(), 255);
        assert_eq!(key(&format!("\"{}\"", "\\\\".repeat(256))), Err("it is longer than 255 bytes"));
    }

    #[test]
    fn a_repeated_key_is_refused_even_when_the_keys_are_equal() {
        assert_eq!(parse(&[b"a", b"a"]), Err("it is repeated"));
    }

    proptest! {
        #[test]
        fn any_printable_key_comes_back_from_its_quoted_form(text in "[ -~]{1,255}") {
            let quoted = format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
            prop_assert_eq!(key(&quoted).unwrap(), text.as_bytes());
        }

        #[test]
        fn random_bytes_are_a_key_of_a_fair_length_or_refused(
            value in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            if let Ok(key) = parse(&[&value]) {
                prop_assert!((1..=255).contains(&key.len()));
                prop_assert!(key.iter().all(|byte| (0x20..0x7f).contains(byte)));
            }
        }
    }
}
