//! A key with its value, its default and the position where it was written.

use std::path::PathBuf;

use super::Position;

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The names on the path to the key. Names of models may have dots.
    pub path: Vec<String>,
    /// The value, in the form of a file, on one line.
    pub value: String,
    /// The value when no file sets the key.
    pub default: String,
    /// Whether a change takes effect only after a restart.
    pub restart: bool,
    /// Whether the key has only one possible value.
    pub fixed: bool,
    /// Place where it was written; `None` when the default applies or the position is unknown.
    pub origin: Option<ValueOrigin>,
}

impl KeyValue {
    /// Returns the dotted name of the key.
    pub fn key(&self) -> String {
        self.path.join(".")
    }
}

/// Place where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueOrigin {
    /// The file.
    pub file: PathBuf,
    /// The position in the file.
    pub position: Position,
}
