//! Maps errors of packages and of the store to statuses and codes.

use std::time::Duration;

use axum::http::StatusCode;

use super::{ApiError, DRAINING};
use crate::models::ingest::install::{InstallError, RemoveError};
use crate::package::{ApprovalError, RollbackError, StoreError, UnpackError};

impl From<InstallError> for ApiError {
    fn from(error: InstallError) -> Self {
        match &error {
            InstallError::Unpack(UnpackError::Io { .. }) => {
                Self::of(StatusCode::INSUFFICIENT_STORAGE, "store_failed", &error)
            }
            InstallError::Unpack(UnpackError::TooSlow { .. } | UnpackError::Source(_)) => {
                Self::of(StatusCode::REQUEST_TIMEOUT, "package_incomplete", &error)
            }
            InstallError::Unpack(UnpackError::Truncated { .. } | UnpackError::Refused { .. }) => {
                Self::of(StatusCode::BAD_REQUEST, "package_refused", &error)
            }
            InstallError::Signature(_) => {
                Self::of(StatusCode::BAD_REQUEST, "signature_refused", &error)
            }
            InstallError::Keys(_) => {
                Self::of(StatusCode::INTERNAL_SERVER_ERROR, "keys_unusable", &error)
            }
            InstallError::Load(_)
            | InstallError::NoTestAttemptsLeft
            | InstallError::NoUnpackAttemptsLeft
            | InstallError::SelfTestPanicked
            | InstallError::Crashed(_)
            | InstallError::Trust(_) => {
                Self::of(StatusCode::BAD_REQUEST, "package_refused", &error)
            }
            InstallError::NotTested(_) | InstallError::InstallationPanicked => {
                Self::of(StatusCode::INTERNAL_SERVER_ERROR, "internal", &error)
            }
            InstallError::BundledOnly => Self::of(StatusCode::FORBIDDEN, "bundled_only", &error),
            InstallError::Stopping => {
                let wait = Duration::from_secs(5);
                Self::of(StatusCode::SERVICE_UNAVAILABLE, DRAINING, &error).with_retry_after(wait)
            }
            InstallError::Store(_) | InstallError::NotReserved(_) | InstallError::NoMemory(_) => {
                match error {
                    InstallError::Store(error) => error.into(),
                    InstallError::NotReserved(error) | InstallError::NoMemory(error) => {
                        error.into()
                    }
                    other => Self::of(StatusCode::INTERNAL_SERVER_ERROR, "internal", &other),
                }
            }
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let (status, code) = match &error {
            StoreError::Unknown(_) => (StatusCode::NOT_FOUND, "model_not_found"),
            StoreError::Corrupt { .. } => (StatusCode::CONFLICT, "model_corrupt"),
            StoreError::Full(_) | StoreError::NoSpace(_) | StoreError::TooManyVersions(_) => {
                (StatusCode::INSUFFICIENT_STORAGE, "store_full")
            }
            StoreError::LooksAlike(_) => (StatusCode::BAD_REQUEST, "package_refused"),
            StoreError::Locked(_) | StoreError::File(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "store_failed")
            }
        };
        Self::of(status, code, &error)
    }
}

impl From<RollbackError> for ApiError {
    fn from(error: RollbackError) -> Self {
        let (status, code) = match error {
            RollbackError::Unknown(_) => (StatusCode::NOT_FOUND, "model_not_found"),
            RollbackError::NoVersion { .. } => (StatusCode::NOT_FOUND, "version_not_found"),
            RollbackError::NamesVersion(_) => (StatusCode::BAD_REQUEST, "invalid_request"),
            RollbackError::NoPrevious(_) => (StatusCode::CONFLICT, "no_earlier_version"),
            RollbackError::Store(error) => return error.into(),
        };
        Self::of(status, code, &error)
    }
}

impl From<ApprovalError> for ApiError {
    fn from(error: ApprovalError) -> Self {
        let (status, code) = match error {
            ApprovalError::Unknown(_) => (StatusCode::NOT_FOUND, "model_not_found"),
            ApprovalError::NotWaiting(_) => (StatusCode::CONFLICT, "not_waiting"),
            ApprovalError::Store(error) => return error.into(),
        };
        Self::of(status, code, &error)
    }
}

impl From<RemoveError> for ApiError {
    fn from(error: RemoveError) -> Self {
        let (status, code) = match &error {
            RemoveError::Unknown(_) => (StatusCode::NOT_FOUND, "model_not_found"),
            RemoveError::Bundled(_) => (StatusCode::CONFLICT, "bundled"),
            RemoveError::InFurtherDirectory { .. } => {
                (StatusCode::CONFLICT, "package_in_further_directory")
            }
            RemoveError::Store(_) | RemoveError::File(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "store_failed")
            }
        };
        Self::of(status, code, &error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rollback_errors_name_no_option_of_the_command_line() {
        let key = "m@1+0123456789ab".parse().unwrap();
        for (error, status, expected) in [
            (RollbackError::NamesVersion("m@1".to_owned()), 400, "give only the id"),
            (RollbackError::NoPrevious(key), 409, "no version before m@1+0123456789ab"),
        ] {
            let error = ApiError::from(error);
            assert_eq!(error.status().as_u16(), status);
            assert!(error.message().contains(expected), "{}", error.message());
            assert!(!error.message().contains("--"), "{}", error.message());
        }
    }

    #[test]
    fn panicking_installation_is_an_internal_error() {
        for (error, status, code) in [
            (InstallError::SelfTestPanicked, 400, "package_refused"),
            (InstallError::InstallationPanicked, 500, "internal"),
        ] {
            let error = ApiError::from(error);
            assert_eq!((error.status().as_u16(), error.code()), (status, code));
        }
    }
}
