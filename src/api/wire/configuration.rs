//! The configuration key by key: what is in force, and what the files say.

use serde::{Deserialize, Serialize};

/// Answer of `GET /api/configuration`.
#[derive(Debug, Serialize, Deserialize)]
pub struct InForce {
    /// Every key, in the order of the shipped file. One that waits for a restart has the value of the start.
    pub values: Vec<Value>,
}

/// What `caxton cat-config --json` prints.
#[derive(Debug, Serialize, Deserialize)]
pub struct Files {
    /// Every file that was found, each applied over those before it.
    pub files: Vec<File>,
    /// Every key, in the order of the shipped file.
    pub values: Vec<Value>,
}

/// A file of the configuration.
#[derive(Debug, Serialize, Deserialize)]
pub struct File {
    /// Where it lies.
    pub path: String,
    /// `applied`; `empty`, which masks what it replaces; or `replaced`, by a file of its name in a higher directory.
    pub state: String,
    /// The file that replaces it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaced_by: Option<String>,
}

/// A key and what holds for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    /// Its dotted name.
    pub key: String,
    /// What holds, as a file says it.
    pub value: String,
    /// What holds when no file says anything of it.
    pub default: String,
    /// Whether a change waits for the next start.
    pub restart: bool,
    /// The file in which it was written; missing when the default holds, and in the answer of a daemon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// The column, from 1, in characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u64>,
}
