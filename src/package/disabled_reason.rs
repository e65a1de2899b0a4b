//! Reason for which an installed package must not be used.

use std::fmt;

use super::signer::Signer;

/// Reason why an entry with valid files must not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DisabledReason {
    /// The key that signed the entry is not configured any more.
    KeyRemoved(Signer),
    /// The file of the key that signed the entry does not cover its id any more.
    NotCovered(Signer),
    /// A bundled package with other content has the same id.
    Reserved,
    /// Keys are configured, the entry has no signature, and the settings disable such entries.
    Unsigned,
}

impl fmt::Display for DisabledReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyRemoved(signer) => write!(
                f,
                "its key was removed: the package was signed with key {signer}; restore \
                 the key, install a package that is signed with another key, or remove the model \
                 with `caxton model remove`"
            ),
            Self::NotCovered(signer) => write!(
                f,
                "the package was signed with key {signer}, whose file no longer allows \
                 its id; add a prefix of the id to the file, or remove the model with `caxton \
                 model remove`"
            ),
            Self::Reserved => f.write_str(
                "its id is that of a bundled package, and only that package may have it; \
                 remove the model with `caxton model remove`",
            ),
            Self::Unsigned => f.write_str(
                "it was installed without a signature, and packages.disable_unsigned is true; \
                 install its package with a signature, or remove the model with `caxton model \
                 remove`",
            ),
        }
    }
}
