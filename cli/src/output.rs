//! What a command prints, for people and as JSON alike.

use serde_json::{Map, Value};
use std::fmt::Display;
use std::io::Write;

/// Named values.
#[derive(Default)]
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// Sets one field.
    pub(super) fn put(&mut self, field: &str, value: impl Into<Value>) {
        self.0.insert(field.to_owned(), value.into());
    }
}

impl From<Fields> for Value {
    fn from(fields: Fields) -> Self {
        Self::Object(fields.0)
    }
}

/// A line of output. Who reads no further, as `head` does, has what it wants: that is no fault.
pub(super) fn print_line(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// What a client or an origin sent, so that it cannot speak to the terminal.
pub(super) fn plain(text: &str) -> String {
    let letter = |letter: char| {
        if letter.is_control() && letter != '\n' && letter != '\t' {
            letter.escape_default().to_string()
        } else {
            letter.to_string()
        }
    };
    text.chars().map(letter).collect()
}
