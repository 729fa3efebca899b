//! What a command says, for people and as JSON alike.

use serde_json::{Map, Value};

/// Named values.
#[derive(Default)]
pub(super) struct Said(Map<String, Value>);

impl Said {
    /// Says one thing.
    pub(super) fn put(&mut self, field: &str, value: impl Into<Value>) {
        self.0.insert(field.to_owned(), value.into());
    }
}

impl From<Said> for Value {
    fn from(said: Said) -> Self {
        Self::Object(said.0)
    }
}
