//! How much of a response is still to come, as its headers announced it.

use super::{Headers, number, value};

/// What a response has announced and not sent yet.
///
/// A client that counts bytes has its answer once all bytes have come. It does not wait for the end of the
/// stream, which comes from an HTTP/1 upstream as an empty piece of its own. To hold back the end of an
/// answer is therefore to hold back its last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tail {
    left: Option<u64>,
}

impl Tail {
    /// Nothing is announced: the end of the stream is the end.
    pub(super) const UNKNOWN: Self = Self { left: None };

    /// As `content-length` says (RFC 9110 section 8.6).
    pub(super) fn announced(headers: &Headers) -> Self {
        Self { left: value(headers, "content-length").and_then(number::<u64>) }
    }

    /// Everything has come that was announced.
    pub(super) fn is_whole(self) -> bool {
        self.left == Some(0)
    }

    /// A piece of so many bytes has come; whether the last byte is in it.
    pub(super) fn take(&mut self, length: usize, end_of_stream: bool) -> bool {
        self.left = self.left.map(|left| left.saturating_sub(length as u64));
        end_of_stream || self.is_whole()
    }
}
