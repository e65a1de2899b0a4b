//! Defines exit codes with the meanings of `sysexits.h`, so that systemd and scripts can
//! distinguish failures.

use std::process::ExitCode;

/// Reason for which a program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The command succeeded.
    Ok = 0,
    /// A check or a verification failed.
    Failure = 1,
    /// The command line is wrong.
    Usage = 64,
    /// The input data is wrong.
    Data = 65,
    /// The daemon cannot be reached or cannot serve now.
    Unavailable = 69,
    /// An internal error.
    Software = 70,
    /// The system refused a resource: a directory, a socket, a lock.
    System = 71,
    /// The caller does not have the permission.
    Permission = 77,
    /// The configuration is wrong; a restart does not help.
    Config = 78,
}

impl Exit {
    /// Returns the meaning of `code`, with which another process of this program ended. Returns
    /// [`Exit::Failure`] for an unknown code and for `None` (a signal ended the process).
    pub fn from_code(code: Option<i32>) -> Self {
        let all = [
            Self::Ok,
            Self::Usage,
            Self::Data,
            Self::Unavailable,
            Self::Software,
            Self::System,
            Self::Permission,
            Self::Config,
        ];
        all.into_iter().find(|exit| Some(i32::from(*exit as u8)) == code).unwrap_or(Self::Failure)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
