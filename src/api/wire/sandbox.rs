//! Defines the wire types of the daemon's sandbox, as `/status` shows it.

use serde::{Deserialize, Serialize};

/// Sandbox that the daemon made for itself at its start.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Sandbox {
    /// Restriction of the files that the daemon may open.
    pub landlock: SandboxPart,
    /// Restriction of the system calls that the daemon may make.
    pub seccomp: SandboxPart,
}

/// One part of the sandbox.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct SandboxPart {
    /// `on`, or `off` when the kernel does not support the part sufficiently.
    pub state: String,
    /// Version of Landlock in the kernel; a later version restricts more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abi: Option<u32>,
    /// Reason why the part is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl SandboxPart {
    /// Returns a part that is active.
    pub fn on(abi: Option<u32>) -> Self {
        Self { state: "on".to_owned(), abi, reason: None }
    }

    /// Returns a part that is not active, with the reason.
    pub fn off(abi: Option<u32>, reason: String) -> Self {
        Self { state: "off".to_owned(), abi, reason: Some(reason) }
    }

    /// Returns whether the part is active.
    pub fn is_on(&self) -> bool {
        self.reason.is_none()
    }
}
