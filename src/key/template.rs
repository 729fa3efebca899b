//! Templates over the segments of a path: one that matches requests, one that makes locations.

use super::path;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// Matches the path of a request, segment by segment, and captures some of it.
///
/// `{name}` stands for one whole segment, `{*rest}` in the last place for all that is left. Everything
/// else is literal. Requests are compared in normal form (RFC 3986 section 6.2.2), so `/%61` is `/a`, and the
/// query is no part of the comparison. A trailing slash is significant.
#[derive(Clone)]
pub struct PathTemplate {
    text: String,
    names: Vec<String>,
    /// The name of the `{*rest}`, if there is one.
    tail: Option<String>,
    // A router of one route, for its matching; which rule comes first is decided elsewhere.
    router: Arc<matchit::Router<()>>,
}

/// What a [`PathTemplate`] captured from one request. The default is empty.
///
/// `Debug` shows names alone: the values are the client's.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Captures(Vec<Capture>);

/// Where a client is sent: a path or an `http(s)` URL, with `{name}` for captured values.
///
/// Captures may stand in the path and the query, never in the authority, so that a client cannot choose
/// the host it is sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocationTemplate {
    pieces: Vec<Piece>,
    names: Vec<String>,
}

/// The most captures a template may have. Keys are made of one or two; the router panics at 25.
const MAX_CAPTURES: usize = 16;

/// Why a text is no template. `Display` quotes the text: it comes from the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplateError {
    /// A path template that does not begin with `/`.
    NoLeadingSlash(String),
    /// A segment with braces around a part of it, a brace without its partner, or no name between.
    BadCapture(String),
    /// A name with anything but ASCII letters, digits, `_` and `-`.
    BadName(String),
    /// The same name twice.
    DuplicateName(String),
    /// More captures than a template may have (16).
    TooManyCaptures,
    /// A `{*name}` before the last segment.
    TailNotLast(String),
    /// A literal segment that no path in normal form has: `.` or `..`, or one with a `?` or `#` in it.
    NeverMatches(String),
    /// A location that is neither a path nor an `http` or `https` URL, or one with a capture in its
    /// authority.
    BadLocation(String),
    /// A location with bytes that may not stand in a URL unescaped.
    NotPrintable(String),
}

impl PathTemplate {
    /// Reads a template.
    ///
    /// # Errors
    ///
    /// When the text is no template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let Some(segments) = text.strip_prefix('/') else {
            return Err(TemplateError::NoLeadingSlash(text.to_owned()));
        };
        let mut names = Vec::new();
        let mut tail = None;
        let mut route = String::with_capacity(text.len());
        let mut segments = segments.split('/').peekable();
        while let Some(segment) = segments.next() {
            route.push('/');
            if !segment.contains(['{', '}']) {
                if matches!(segment, "." | "..") || segment.contains(['?', '#']) {
                    return Err(TemplateError::NeverMatches(segment.to_owned()));
                }
                route.push_str(&path::normalise_escapes(segment.as_bytes()));
                continue;
            }
            let inside = segment
                .strip_prefix('{')
                .and_then(|rest| rest.strip_suffix('}'))
                .ok_or_else(|| TemplateError::BadCapture(segment.to_owned()))?;
            if let Some(name) = inside.strip_prefix('*') {
                if segments.peek().is_some() {
                    return Err(TemplateError::TailNotLast(segment.to_owned()));
                }
                tail = Some(name.to_owned());
            }
            add_name(&mut names, inside.strip_prefix('*').unwrap_or(inside))?;
            route.push_str(segment);
        }
        let mut router = matchit::Router::new();
        router.insert(route, ()).map_err(|_refused| TemplateError::BadCapture(text.to_owned()))?;
        Ok(Self { text: text.to_owned(), names, tail, router: Arc::new(router) })
    }

    /// The names of its captures, in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// What it captures from a `:path` header; `None` when the path does not match.
    ///
    /// A capture is never empty: `/orders/{id}` does not match `/orders/`, and `/{*rest}` matches
    /// neither `/` nor `//x`.
    pub fn matches(&self, path: &[u8]) -> Option<Captures> {
        let normal = path::normalise(path);
        let found = self.router.at(&normal).ok()?;
        found
            .params
            .iter()
            .map(|(name, value)| {
                // A tail that begins with a slash would turn a location `/{rest}` into `//host`.
                (!value.is_empty() && !value.starts_with('/')).then(|| Capture {
                    name: name.to_owned(),
                    normal: value.to_owned(),
                    reach: if self.tail.as_deref() == Some(name) {
                        Reach::Tail
                    } else {
                        Reach::Segment
                    },
                })
            })
            .collect::<Option<_>>()
            .map(Captures)
    }
}

impl fmt::Debug for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PathTemplate").field(&self.text).finish()
    }
}

impl PartialEq for PathTemplate {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for PathTemplate {}

impl Captures {
    /// The value captured under a name, percent-decoded; never empty. `None` when there is none.
    ///
    /// The value of a `{*rest}` keeps its escapes: there, a decoded `%2F` could not be told from a
    /// separator, and two paths would share a key.
    pub fn value(&self, name: &str) -> Option<Vec<u8>> {
        self.0.iter().find(|capture| capture.name == name).map(|capture| match capture.reach {
            Reach::Segment => path::decode(&capture.normal),
            Reach::Tail => capture.normal.clone().into_bytes(),
        })
    }

    fn location(&self, name: &str) -> String {
        let normal =
            self.0.iter().find(|capture| capture.name == name).map(|it| it.normal.as_str());
        let segments: Vec<String> = normal
            .unwrap_or_default()
            .split('/')
            .map(|it| path::escape(&path::decode(it)))
            .collect();
        segments.join("/")
    }
}

impl fmt::Debug for Captures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|capture| &capture.name)).finish()
    }
}

impl LocationTemplate {
    /// Reads a template.
    ///
    /// # Errors
    ///
    /// When the text is no template. That its names are captured by the rule's path is for the caller to
    /// check, by [`LocationTemplate::names`].
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
            add_name(&mut names, name)?;
            pieces.push(Piece::Capture(name.to_owned()));
            rest = after;
        }
        add_literal(&mut pieces, rest)?;
        Ok(Self { pieces, names })
    }

    /// The names of its captures, in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The location for one request.
    ///
    /// Of a captured value only unreserved characters (RFC 3986 section 2.3) stay as they are, and the slashes
    /// between the segments of a `{*rest}`: no value can end the header, the path or the parameter
    /// it stands in. A name that was not captured leaves nothing.
    pub fn fill(&self, captures: &Captures) -> String {
        self.pieces
            .iter()
            .map(|piece| match piece {
                Piece::Literal(text) => text.clone(),
                Piece::Capture(name) => captures.location(name),
            })
            .collect()
    }
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLeadingSlash(text) => write!(f, "{text:?} does not begin with \"/\""),
            Self::BadCapture(text) => {
                write!(
                    f,
                    "{text:?} has braces that are no capture, write {{name}} or {{*rest}} as a segment"
                )
            }
            Self::BadName(name) => {
                write!(
                    f,
                    "{name:?} is no name: ASCII letters, digits, \"_\" and \"-\", at least one"
                )
            }
            Self::DuplicateName(name) => write!(f, "{{{name}}} stands twice"),
            Self::TooManyCaptures => write!(f, "more than {MAX_CAPTURES} captures"),
            Self::TailNotLast(segment) => write!(f, "{segment} is not the last segment"),
            Self::NeverMatches(segment) => {
                write!(
                    f,
                    "the segment {segment:?} matches no path: queries and dot segments are cut off"
                )
            }
            Self::BadLocation(text) => write!(
                f,
                "{text:?} is neither a path nor an http(s) URL without captures in its authority"
            ),
            Self::NotPrintable(text) => {
                write!(f, "{text:?} has bytes that may not stand in a URL, percent-encode them")
            }
        }
    }
}

impl Error for TemplateError {}

#[derive(Clone, PartialEq, Eq)]
struct Capture {
    name: String,
    /// As it stands in the path in normal form.
    normal: String,
    reach: Reach,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    Segment,
    Tail,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Capture(String),
}

fn add_name(names: &mut Vec<String>, name: &str) -> Result<(), TemplateError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if name.is_empty() || !name.bytes().all(plain) {
        return Err(TemplateError::BadName(name.to_owned()));
    }
    if names.iter().any(|known| known == name) {
        return Err(TemplateError::DuplicateName(name.to_owned()));
    }
    if names.len() == MAX_CAPTURES {
        return Err(TemplateError::TooManyCaptures);
    }
    names.push(name.to_owned());
    Ok(())
}

fn add_literal(pieces: &mut Vec<Piece>, literal: &str) -> Result<(), TemplateError> {
    if literal.contains('}') {
        return Err(TemplateError::BadCapture(literal.to_owned()));
    }
    pieces.push(Piece::Literal(literal.to_owned()));
    Ok(())
}

/// A location's scheme and authority (empty for a path), and what follows them.
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
    // A URL without a path could run on into a capture: `https://host{id}`.
    if authority_len == 0 || fixed.contains(['{', '}']) {
        return Err(bad());
    }
    Ok((fixed, open))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> PathTemplate {
        PathTemplate::parse(text).unwrap()
    }

    fn captured(text: &str, path: &str, name: &str) -> Option<Vec<u8>> {
        template(text).matches(path.as_bytes()).and_then(|captures| captures.value(name))
    }

    #[test]
    fn a_name_captures_one_whole_segment() {
        let text = "/orders/{order}/items/{item}";
        assert_eq!(captured(text, "/orders/7/items/a%20b", "order").unwrap(), b"7");
        assert_eq!(captured(text, "/orders/7/items/a%20b", "item").unwrap(), b"a b");
        assert_eq!(captured(text, "/orders/7/items/a%20b", "else"), None);
        for path in
            ["/orders/7/items", "/orders/7/8/items/9", "/orders/7/items/9/", "/Orders/7/items/9"]
        {
            assert_eq!(template(text).matches(path.as_bytes()), None, "{path}");
        }
    }

    #[test]
    fn a_tail_captures_all_that_is_left_and_keeps_its_escapes() {
        assert_eq!(
            captured("/files/{*rest}", "/files/a/b%20c/%2fd", "rest").unwrap(),
            b"a/b%20c/%2Fd"
        );
        assert_eq!(captured("/files/{*rest}", "/files/a", "rest").unwrap(), b"a");
    }

    #[test]
    fn an_empty_capture_does_not_match() {
        for (text, path) in [
            ("/a/{id}", "/a/"),
            ("/a/{id}/b", "/a//b"),
            ("/a/{*rest}", "/a/"),
            ("/{*rest}", "/"),
            ("/{*rest}", "//host"),
        ] {
            assert_eq!(template(text).matches(path.as_bytes()), None, "{text} {path}");
        }
    }

    #[test]
    fn an_escaped_slash_does_not_separate() {
        assert_eq!(captured("/a/{id}", "/a/x%2Fy", "id").unwrap(), b"x/y");
        assert_eq!(template("/a/{x}/{y}").matches(b"/a/x%2Fy"), None);
        assert_eq!(captured("/a/{id}", "/a/%ff%00", "id").unwrap(), b"\xff\x00");
    }

    #[test]
    fn a_path_is_compared_in_normal_form_and_without_its_query() {
        assert!(template("/a/b").matches(b"/%61/./x/../b?c=d/e").is_some());
        assert!(template("/%7ea/k\u{f6}ln").matches(b"/~a/k%c3%b6ln").is_some());
        assert!(template("/a%2fb").matches(b"/a%2Fb").is_some());
        assert!(template("/a%2fb").matches(b"/a/b").is_none());
        assert!(template("/a").matches(b"/a/").is_none());
        assert!(template("/").matches(b"/").is_some());
        assert!(template("/").matches(b"*").is_none());
    }

    #[test]
    fn what_is_no_path_template_is_refused_and_the_message_says_why() {
        let refused = |text: &str| PathTemplate::parse(text).unwrap_err();
        assert_eq!(refused("a"), TemplateError::NoLeadingSlash("a".into()));
        assert_eq!(refused(""), TemplateError::NoLeadingSlash(String::new()));
        for segment in ["{a", "a}", "x{a}", "{a}x", "}a{"] {
            assert_eq!(
                refused(&format!("/{segment}/b")),
                TemplateError::BadCapture(segment.into())
            );
        }
        for name in ["", "a b", "{a", "a{b", "a}", "*a", "\u{e4}"] {
            assert!(PathTemplate::parse(&format!("/{{{name}}}/x")).is_err(), "{name}");
        }
        assert_eq!(refused("/{}"), TemplateError::BadName(String::new()));
        assert_eq!(refused("/{*}"), TemplateError::BadName(String::new()));
        assert_eq!(refused("/{a}/{a}"), TemplateError::DuplicateName("a".into()));
        assert_eq!(refused("/{*a}/b"), TemplateError::TailNotLast("{*a}".into()));
        assert_eq!(refused("/a?b"), TemplateError::NeverMatches("a?b".into()));
        assert_eq!(refused("/../b"), TemplateError::NeverMatches("..".into()));
        assert_eq!(refused("/{a}/{a}").to_string(), "{a} stands twice");
    }

    #[test]
    fn a_template_with_too_many_captures_is_refused_and_one_with_all_it_may_have_works() {
        let many = |count: usize| (0..count).map(|n| format!("/{{n{n}}}")).collect::<String>();
        assert_eq!(template(&many(16)).names().len(), 16);
        assert!(template(&many(16)).matches("/x".repeat(16).as_bytes()).is_some());
        assert_eq!(PathTemplate::parse(&many(17)).unwrap_err(), TemplateError::TooManyCaptures);
        assert_eq!(PathTemplate::parse(&many(99)).unwrap_err(), TemplateError::TooManyCaptures);
    }

    #[test]
    fn a_literal_that_looks_like_the_routers_syntax_is_literal() {
        assert!(template("/v1/things:batch*").matches(b"/v1/things:batch*").is_some());
        assert!(template("/*a").matches(b"/b").is_none());
        assert!(template("/:a").matches(b"/b").is_none());
        assert!(template("/%7Ba%7D").matches(b"/{a}").is_some());
        assert!(template("/%7Ba%7D").matches(b"/b").is_none());
    }

    #[test]
    fn debug_does_not_show_what_was_captured() {
        let captures = template("/a/{id}").matches(b"/a/secret").unwrap();
        assert_eq!(format!("{captures:?}"), r#"["id"]"#);
    }

    #[test]
    fn a_location_is_filled_with_what_was_captured() {
        let captures = template("/o/{id}/{*rest}").matches(b"/o/7%20%c3%bc/a/b%2Fc").unwrap();
        let filled = |text| LocationTemplate::parse(text).unwrap().fill(&captures);
        assert_eq!(filled("/status/{id}"), "/status/7%20%C3%BC");
        assert_eq!(
            filled("https://a.example:8443/x/{rest}?id={id}"),
            "https://a.example:8443/x/a/b%2Fc?id=7%20%C3%BC"
        );
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
