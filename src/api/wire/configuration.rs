//! Defines the wire types of the configuration: applied values, and values in the files.

use serde::{Deserialize, Serialize};

/// Answer of `GET /api/configuration`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ActiveConfiguration {
    /// All keys, in the order of the shipped file. A key that needs a restart has its value at the
    /// start.
    pub values: Vec<ConfigValue>,
}

/// Output of `caxton cat-config --json`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ConfigFiles {
    /// All files that were found. Each one overrides the earlier ones.
    pub files: Vec<ConfigFile>,
    /// All keys, in the order of the shipped file.
    pub values: Vec<ConfigValue>,
}

/// A configuration file.
#[derive(Debug, Serialize, Deserialize)]
pub struct ConfigFile {
    /// Path of the file.
    pub path: String,
    /// `applied`; `empty`, which masks the file that it replaces; or `replaced` by a file with the
    /// same name in a higher directory.
    pub state: String,
    /// Path of the file that replaces it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaced_by: Option<String>,
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigValue {
    /// Dotted name of the key.
    pub key: String,
    /// Value in the syntax of the files.
    pub value: String,
    /// Value if no file sets the key.
    pub default: String,
    /// Whether a change needs a restart.
    pub restart: bool,
    /// File that sets the key. Absent for a default value, and in the answer of a daemon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// Column in characters, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u64>,
}
