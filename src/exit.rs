//! Exit codes, by the meanings of `sysexits.h`, so that systemd and scripts can tell faults apart.

use std::process::ExitCode;

/// Why a program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything was done.
    Ok = 0,
    /// The answer is "no": a check or a verification failed.
    Failure = 1,
    /// The command line is wrong.
    Usage = 64,
    /// The input data is wrong.
    Data = 65,
    /// The daemon cannot be reached or cannot serve now.
    Unavailable = 69,
    /// An internal fault.
    Software = 70,
    /// The system refused a resource: a directory, a socket, a lock.
    System = 71,
    /// The caller may not do this.
    Permission = 77,
    /// The configuration is wrong; a restart will not help.
    Config = 78,
}

impl Exit {
    /// The meaning of the exit code of another process of this program; [`Exit::Failure`] for one that it does not have,
    /// and for none.
    pub fn of_code(code: Option<i32>) -> Self {
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
