//! Result of comparing one file of a model with the manifest.

use super::digest::Digest;
use super::manifest::Member;

/// State of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileStatus {
    /// The size and the digest are those of the manifest.
    Valid,
    /// The size or the digest differs, or it is another kind of file.
    Invalid,
    /// The file does not exist.
    Missing,
    /// The file exists, but it cannot be read.
    Unreadable,
}

impl FileStatus {
    /// Returns the name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Invalid => "invalid",
            Self::Missing => "missing",
            Self::Unreadable => "unreadable",
        }
    }
}

/// Comparison of one file with its entry in the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileCheck {
    /// Entry in the manifest.
    pub expected: Member,
    /// Size of the file; `None` if it is unknown.
    pub size: Option<u64>,
    /// Digest of the file; `None` if it was not computed, for example because the file is larger
    /// than expected.
    pub sha256: Option<Digest>,
    /// Result of the comparison.
    pub status: FileStatus,
    /// Description of the fault, which names the file; `None` for a valid file.
    pub fault: Option<String>,
}

impl FileCheck {
    /// Returns the result for a file that was verified.
    pub fn valid(expected: &Member) -> Self {
        Self::compared(expected, expected.size, Some(expected.sha256))
    }

    /// Compares the size and the digest of a file with `expected`.
    pub(super) fn compared(expected: &Member, size: u64, sha256: Option<Digest>) -> Self {
        let fault = if size != expected.size {
            let expected = &expected.size;
            Some(format!("it has {size} bytes, expected {expected}"))
        } else if sha256 != Some(expected.sha256) {
            let found = sha256.map_or_else(|| "none".to_owned(), |digest| digest.to_string());
            Some(format!("it has SHA-256 {found}, expected {}", expected.sha256))
        } else {
            None
        };
        Self {
            status: if fault.is_none() { FileStatus::Valid } else { FileStatus::Invalid },
            fault: fault.map(|fault| format!("{}: {fault}", expected.path)),
            expected: expected.clone(),
            size: Some(size),
            sha256,
        }
    }

    /// Returns the result for a file that does not exist.
    pub(super) fn missing(expected: &Member) -> Self {
        Self {
            expected: expected.clone(),
            size: None,
            sha256: None,
            status: FileStatus::Missing,
            fault: Some(format!("{}: the file is missing", expected.path)),
        }
    }

    /// Returns the result for something else than a regular file, which `reason` describes.
    pub(super) fn other_kind(expected: &Member, reason: &str) -> Self {
        Self { status: FileStatus::Invalid, ..Self::unreadable(expected, reason) }
    }

    /// Returns the result for a file that cannot be read because of `reason`.
    pub(super) fn unreadable(expected: &Member, reason: &str) -> Self {
        Self {
            expected: expected.clone(),
            size: None,
            sha256: None,
            status: FileStatus::Unreadable,
            fault: Some(format!("{}: {reason}", expected.path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_compared_before_the_digest() {
        let expected =
            Member { path: "config.json".parse().unwrap(), size: 2, sha256: Digest::of(b"{}") };
        assert_eq!(FileCheck::valid(&expected).status, FileStatus::Valid);
        for (size, content, fault) in [
            (2, &b"[]"[..], "config.json: it has SHA-256 4f53cda1"),
            (3, b"{ }", "config.json: it has 3 bytes, expected 2"),
        ] {
            let check = FileCheck::compared(&expected, size, Some(Digest::of(content)));
            assert_eq!(check.status, FileStatus::Invalid);
            assert!(check.fault.as_ref().unwrap().starts_with(fault), "{check:?}");
        }
    }
}
