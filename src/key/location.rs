//! Location templates: the redirect target of a duplicate while the first request is running.

use super::template::check_name;
use super::{Captures, TemplateError};

/// The redirect target: a path or an `http(s)` URL, with `{name}` for captured values.
///
/// Captures are allowed in the path and the query, never in the authority, so that a client cannot choose the
/// host of its redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocationTemplate {
    pieces: Vec<Piece>,
    names: Vec<String>,
}

impl LocationTemplate {
    /// Reads a template.
    ///
    /// # Errors
    ///
    /// If the text is not a template. The caller checks by [`LocationTemplate::names`] that the rule's path
    /// captures all names.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\') {
            return Err(TemplateError::NotPrintable(text.to_owned()));
        }
        let (fixed, open) = split_authority(text)?;
        let mut pieces = vec![Piece::Literal(fixed.to_owned())];
        let mut names = Vec::new();
        let mut rest = open;
        while let Some((literal, opened)) = rest.split_once('{') {
            let (name, after) = opened
                .split_once('}')
                .ok_or_else(|| TemplateError::BadCapture(format!("{{{opened}")))?;
            add_literal(&mut pieces, literal)?;
            check_name(name)?;
            names.push(name.to_owned());
            pieces.push(Piece::Capture(name.to_owned()));
            rest = after;
        }
        add_literal(&mut pieces, rest)?;
        Ok(Self { pieces, names })
    }

    /// The names of its captures, in order; a repeated name is listed twice.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The location for one request.
    ///
    /// Of a captured value only unreserved characters (RFC 3986 section 2.3) stay as they are, and the
    /// slashes between the segments of a `{*rest}`: no value can end its header, path or parameter. A name
    /// that was not captured adds nothing.
    pub fn fill(&self, captures: &Captures) -> String {
        self.pieces
            .iter()
            .map(|piece| match piece {
                Piece::Literal(text) => text.clone(),
                Piece::Capture(name) => captures.escaped(name),
            })
            .collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Capture(String),
}

fn add_literal(pieces: &mut Vec<Piece>, literal: &str) -> Result<(), TemplateError> {
    if literal.contains('}') {
        return Err(TemplateError::BadCapture(literal.to_owned()));
    }
    pieces.push(Piece::Literal(literal.to_owned()));
    Ok(())
}

/// A location's scheme and authority (empty for a path), and the rest.
fn split_authority(text: &str) -> Result<(&str, &str), TemplateError> {
    let bad = || TemplateError::BadLocation(text.to_owned());
    // `//host/path` is a network-path reference (RFC 3986 section 4.2): it would leave the host.
    if text.starts_with('/') && !text.starts_with("//") {
        return Ok(("", text));
    }
    let after_scheme =
        text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).ok_or_else(bad)?;
    let authority_len = after_scheme.find(['/', '?', '#']).unwrap_or(after_scheme.len());
    let scheme_len = text.len() - after_scheme.len();
    let (fixed, open) = text.split_at_checked(scheme_len + authority_len).ok_or_else(bad)?;
    // In a URL without a path, a capture could extend the host: `https://host{id}`.
    if authority_len == 0 || fixed.contains(['{', '}']) {
        return Err(bad());
    }
    Ok((fixed, open))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PathTemplate;

    fn template(text: &str) -> PathTemplate {
        PathTemplate::parse(text).unwrap()
    }

    #[test]
    fn a_location_is_filled_with_the_captures() {
        let captures = template("/o/{id}/{*rest}").matches(b"/o/7%20%c3%bc/a/b%2Fc").unwrap();
        let filled = |text| LocationTemplate::parse(text).unwrap().fill(&captures);
        assert_eq!(filled("/status/{id}"), "/status/7%20%C3%BC");
        assert_eq!(
            filled("https://a.example:8443/x/{rest}?id={id}"),
            "https://a.example:8443/x/a/b%2Fc?id=7%20%C3%BC"
        );
        assert_eq!(filled("/{id}/{id}"), "/7%20%C3%BC/7%20%C3%BC");
        assert_eq!(filled("/status"), "/status");
        assert_eq!(filled("/x-{id}.json"), "/x-7%20%C3%BC.json");
        assert_eq!(filled("/status/{unknown}"), "/status/");
    }

    #[test]
    fn no_captured_value_can_end_the_header_or_the_parameter_it_stands_in() {
        let captures =
            template("/o/{id}").matches(b"/o/%0d%0aSet-Cookie:a=b&c=d#e;\"\\\xff").unwrap();
        let location = LocationTemplate::parse("/s?id={id}").unwrap().fill(&captures);
        assert_eq!(location, "/s?id=%0D%0ASet-Cookie%3Aa%3Db%26c%3Dd");
        for byte in 0..=u8::MAX {
            let path = format!("/o/x%{byte:02x}");
            let captures = template("/o/{id}").matches(path.as_bytes()).unwrap();
            let location = LocationTemplate::parse("/{id}").unwrap().fill(&captures);
            assert!(
                location.bytes().all(|it| it.is_ascii_alphanumeric() || b"/%-._~".contains(&it))
            );
        }
    }

    #[test]
    fn a_location_that_could_leave_its_host_is_refused() {
        for text in [
            "//host/{id}",
            "{id}",
            "",
            "https://{id}/",
            "https://a{id}",
            "ftp://a/",
            "https:///a",
            "javascript:x",
            "https://a}b/",
        ] {
            let refused = LocationTemplate::parse(text).unwrap_err();
            assert_eq!(refused, TemplateError::BadLocation(text.into()));
        }
    }

    #[test]
    fn a_location_with_stray_braces_or_bytes_is_refused() {
        let refused = |text| LocationTemplate::parse(text).unwrap_err();
        assert_eq!(refused("/a/{id"), TemplateError::BadCapture("{id".into()));
        assert_eq!(refused("/a/id}"), TemplateError::BadCapture("/a/id}".into()));
        assert_eq!(refused("/a/{}"), TemplateError::BadName(String::new()));
        assert_eq!(refused("/a/{*id}"), TemplateError::BadName("*id".into()));
        for text in ["/a b", "/a\r\nb: c", "/\u{e4}", "/a\"b", "/a\\b"] {
            assert_eq!(refused(text), TemplateError::NotPrintable(text.into()));
        }
    }
}
