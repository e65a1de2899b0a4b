//! Defines the wire types of packages on their way, as `/status` shows them.

use serde::{Deserialize, Serialize};

/// A file of a drop directory, or of the bundled directory, that is not installed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IncomingPackage {
    /// Name of the file.
    pub file: String,
    /// Directory of the file.
    pub directory: String,
    /// `settling` (found; it may still change), `reading` (read and verified), `verifying` (its
    /// model is tested), `incomplete` (the rest is waited for), `failed` (retried later),
    /// `refused` (wrong, and not moved to the quarantine), `kept_out` (only bundled packages are
    /// allowed) or `not_a_package`. Later versions may add states.
    pub state: String,
    /// Bytes that were read in the state `reading`, otherwise the size of the file; `null` when it
    /// is not known.
    pub bytes: Option<u64>,
    /// Size of the file in the state `reading`, otherwise `null`: the final size of a copy in
    /// progress is not known.
    pub expected_bytes: Option<u64>,
    /// Reason of the state, for people.
    pub reason: Option<String>,
    /// Time until the next attempt in seconds, if nothing changes before; `null` when the daemon
    /// waits for a change.
    pub retry_in_seconds: Option<u64>,
}

/// A directory from which packages are installed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PackageDirectory {
    /// Path of the directory.
    pub path: String,
    /// `present`, `absent` (a further drop directory that is not there), `replaced` (another
    /// directory is in its place; the models stay), `unreadable`, or `unknown` before the first
    /// scan.
    pub state: String,
    /// Reason of the state, for people.
    pub reason: Option<String>,
}
