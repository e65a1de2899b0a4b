//! What the daemon has taken from itself, as `/status` shows it.

use serde::{Deserialize, Serialize};

/// The sandbox that the daemon made for itself at its start.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Sandbox {
    /// Which files it may open.
    pub landlock: Part,
    /// Which system calls it may make.
    pub seccomp: Part,
}

/// One part of it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Part {
    /// `on`, or `off` when the kernel does not give it or not all of it.
    pub state: String,
    /// Of Landlock, the version of what the kernel gives; a later one holds more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abi: Option<u32>,
    /// Why it is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Part {
    /// A part that holds.
    pub fn on(abi: Option<u32>) -> Self {
        Self { state: "on".to_owned(), abi, reason: None }
    }

    /// A part that does not.
    pub fn off(abi: Option<u32>, reason: String) -> Self {
        Self { state: "off".to_owned(), abi, reason: Some(reason) }
    }

    /// Whether it holds.
    pub fn is_on(&self) -> bool {
        self.reason.is_none()
    }
}
