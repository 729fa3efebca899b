//! Output of a command, as text and as JSON.

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

/// Prints a line. A closed pipe, as from `head`, is no error.
pub(super) fn print_line(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Text from a client or an origin, escaped so that it cannot control the terminal.
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
