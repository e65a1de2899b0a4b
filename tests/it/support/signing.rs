//! Keys and signatures of a package's author.

use std::fs;

use minisign::KeyPair;

use super::Root;
use super::packages::{dropped, file_name};

/// Key pair.
pub(crate) struct Signer(KeyPair);

impl Signer {
    pub(crate) fn new() -> Self {
        Self(KeyPair::generate_unencrypted_keypair().unwrap())
    }

    /// Makes the appliance trust the key. Its file `name` gets `lines` after those of minisign.
    pub(crate) fn trust(&self, root: &Root, name: &str, lines: &str) {
        let key = self.0.pk.to_box().unwrap().into_string();
        fs::write(root.keys().join(name), format!("{}\n{lines}", key.trim_end())).unwrap();
    }

    /// Drops `package` with its signature.
    pub(crate) fn drop(&self, root: &Root, file: &str, package: &[u8]) {
        let signature = root.drop_directory().join(format!("{}.minisig", file_name(file)));
        fs::write(signature, self.sign(package)).unwrap();
        fs::write(dropped(root, file), package).unwrap();
    }

    /// Returns the signature of `package`.
    pub(crate) fn sign(&self, package: &[u8]) -> String {
        minisign::sign(None, &self.0.sk, package, None, None).unwrap().into_string()
    }
}
