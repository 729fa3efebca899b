//! Path templates: which requests a rule matches, and what it captures of their paths.

use super::path;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// Matches the path of a request, segment by segment, and captures some of it.
///
/// `{name}` stands for one whole segment, `{*rest}` in the last place for all that is left.
/// Everything else is literal. Requests are compared in normal form (RFC 3986 section 6.2.2), so
/// `/%61` is `/a`, and the query is not part of the comparison. A trailing slash is significant.
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

/// Why a text is not a template. `Display` quotes the text: it comes from the configuration.
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
    /// A literal segment that no path in normal form has: `.` or `..`, or one with a `?` or `#` in
    /// it.
    NeverMatches(String),
    /// A location that is neither a path nor an `http` or `https` URL, or one with a capture in its
    /// authority.
    BadLocation(String),
    /// A location with bytes that must be escaped in a URL.
    NotPrintable(String),
}

impl PathTemplate {
    /// Reads a template.
    ///
    /// # Errors
    ///
    /// If the text is not a template.
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
                let normal = path::normalise_escapes(segment.as_bytes());
                if matches!(normal.as_str(), "." | "..") || segment.contains(['?', '#']) {
                    return Err(TemplateError::NeverMatches(segment.to_owned()));
                }
                route.push_str(&normal);
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

/// As it was written.
impl fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
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
    /// The value of a `{*rest}` keeps its escapes: there, a decoded `%2F` would look like a
    /// separator, and two paths would share a key.
    pub fn value(&self, name: &str) -> Option<Vec<u8>> {
        self.0.iter().find(|capture| capture.name == name).map(|capture| match capture.reach {
            Reach::Segment => path::decode(&capture.normal),
            Reach::Tail => capture.normal.clone().into_bytes(),
        })
    }

    /// The value as a location may hold it: of its characters, only the unreserved ones (RFC 3986
    /// section 2.3) and the slashes between the segments of a tail are as they are. Empty when
    /// there is none.
    pub(super) fn escaped(&self, name: &str) -> String {
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

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLeadingSlash(text) => write!(f, "{text:?} does not begin with \"/\""),
            Self::BadCapture(text) => {
                write!(
                    f,
                    "{text:?} has braces that are not a capture, write {{name}} or {{*rest}} as a segment"
                )
            }
            Self::BadName(name) => {
                write!(
                    f,
                    "{name:?} is not a name: ASCII letters, digits, \"_\" and \"-\", at least one"
                )
            }
            Self::DuplicateName(name) => write!(f, "{{{name}}} appears twice"),
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
                write!(f, "{text:?} has bytes that a URL may not contain, percent-encode them")
            }
        }
    }
}

impl Error for TemplateError {}

/// The most captures a template may have. Keys are made of one or two; the router panics at 25.
const MAX_CAPTURES: usize = 16;

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

/// Checks a capture's name.
pub(super) fn check_name(name: &str) -> Result<(), TemplateError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if name.is_empty() || !name.bytes().all(plain) {
        return Err(TemplateError::BadName(name.to_owned()));
    }
    Ok(())
}

/// Adds a capture's name to those before it.
fn add_name(names: &mut Vec<String>, name: &str) -> Result<(), TemplateError> {
    check_name(name)?;
    if names.iter().any(|known| known == name) {
        return Err(TemplateError::DuplicateName(name.to_owned()));
    }
    if names.len() == MAX_CAPTURES {
        return Err(TemplateError::TooManyCaptures);
    }
    names.push(name.to_owned());
    Ok(())
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
    fn a_text_that_is_not_a_path_template_is_refused_and_the_message_says_why() {
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
        assert_eq!(refused("/a/%2e"), TemplateError::NeverMatches("%2e".into()));
        assert_eq!(refused("/{a}/{a}").to_string(), "{a} appears twice");
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
    fn debug_does_not_show_captured_values() {
        let captures = template("/a/{id}").matches(b"/a/secret").unwrap();
        assert_eq!(format!("{captures:?}"), r#"["id"]"#);
    }
}
