//! Identity of the key that signed a package, as it is recorded and printed.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize};

use super::digest::Digest;

/// Maximum length in characters of a key file's name in a record.
const MAX_FILE_NAME: usize = 128;

/// Identifier of a key pair, printed as in minisign: 16 upper-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId([u8; 8]);

/// Error of parsing a text that is not a [`KeyId`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected the identifier of a key: 16 upper-case hexadecimal digits")]
pub struct ParseKeyIdError;

impl TryFrom<String> for KeyId {
    type Error = ParseKeyIdError;

    fn try_from(text: String) -> Result<Self, ParseKeyIdError> {
        let good =
            text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'));
        let number = good.then(|| u64::from_str_radix(&text, 16).ok()).flatten();
        number.map(|number| Self(number.to_le_bytes())).ok_or(ParseKeyIdError)
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.to_string()
    }
}

impl KeyId {
    /// Extracts the identifier from the second line of a key or a signature:
    /// <https://jedisct1.github.io/minisign/#signature-format>.
    pub(super) fn parse_second_line(text: &str) -> Option<Self> {
        let bytes = STANDARD.decode(text.lines().nth(1)?).ok()?;
        bytes.get(2..10)?.try_into().ok().map(Self)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", u64::from_le_bytes(self.0))
    }
}

/// Key that signed a package, as recorded at the installation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signer {
    /// Key identifier. The creator of a key chooses it, so it does not identify the key securely.
    pub key: KeyId,
    /// SHA-256 of the key, which identifies it.
    pub fingerprint: Digest,
    /// Name of the key file, without characters that a terminal or a log could interpret.
    #[serde(deserialize_with = "plain_file")]
    pub file: String,
}

/// Prints the key's identifier and file for messages.
impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.key, self.file)
    }
}

fn plain_file<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(|name| plain(&name))
}

/// Replaces all characters except letters, digits, '.', '_', '-' and '@' by '?', and truncates the
/// name.
pub(super) fn plain(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-@".contains(c) { c } else { '?' };
    name.chars().take(MAX_FILE_NAME).map(plain).collect()
}
