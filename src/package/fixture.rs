//! Packages for tests: small valid ones, and a builder for invalid ones.

use std::io;
use std::sync::Arc;

use super::archive::BLOCK;
use super::digest::Digest;
use super::install_record::{InstallRecord, InstallStatus, Origin, Timestamp};
use super::manifest::{
    CONFIG, FORMAT, MANIFEST, Manifest, Member, Precision, SelfTest, TOKENIZER, WEIGHTS,
};

/// Returns the bytes of a small valid package. An engine cannot load its files.
pub(crate) fn package(id: &str, version: &str) -> Vec<u8> {
    package_with(id, version, |_| {})
}

/// Returns the bytes of such a package after `change`.
pub(crate) fn package_with(id: &str, version: &str, change: impl FnOnce(&mut Builder)) -> Vec<u8> {
    let mut builder = Builder::new(id, version, b"not really weights");
    change(&mut builder);
    builder.compress()
}

/// Returns a manifest of the given files.
pub(crate) fn manifest(id: &str, version: &str, files: &[(&str, &[u8])]) -> Manifest {
    let member = |(path, content): &(&str, &[u8])| Member {
        path: path.parse().unwrap(),
        size: content.len() as u64,
        sha256: Digest::of(content),
    };
    Manifest {
        format: FORMAT,
        id: id.parse().unwrap(),
        version: version.parse().unwrap(),
        architecture: "bert".to_owned(),
        dimensions: 2,
        matryoshka_dimensions: Vec::new(),
        max_sequence_length: 8,
        precision: Precision::F32,
        pooling: "mean".to_owned(),
        dense: Vec::new(),
        normalize: true,
        classifier: None,
        sparse: None,
        multi_vector: None,
        prompts: [("query".to_owned(), "query: ".to_owned())].into(),
        default_prompt: None,
        languages: vec!["en".to_owned()],
        license: "Apache-2.0".to_owned(),
        source: None,
        revision: None,
        files: files.iter().map(member).collect(),
        self_test: SelfTest { text: "a text".to_owned(), vector: vec![0.6, 0.8] },
    }
}

/// Returns an installed model for tests that use only its name, its dimensions and its embedding
/// space.
pub(crate) fn entry(
    id: &str,
    version: &str,
    dimensions: usize,
    weights: &str,
) -> super::StoreEntry {
    let files: [(&str, &[u8]); 3] =
        [(CONFIG, b""), (WEIGHTS, weights.as_bytes()), (TOKENIZER, b"")];
    let manifest = manifest(id, version, &files);
    let vector = (0..dimensions).map(|at| if at == 0 { 1.0 } else { 0.0 }).collect();
    let self_test = SelfTest { vector, ..manifest.self_test };
    let manifest = Manifest { dimensions, self_test, ..manifest };
    let manifest_digest = Digest::of(&manifest.to_json().unwrap());
    let record = InstallRecord {
        package_digest: manifest_digest,
        manifest_digest,
        origin: Origin::Installed,
        status: InstallStatus::Available,
        attempts: 0,
        installed_at: Timestamp(0),
        last_validated_at: Timestamp(0),
        access_count: 0,
        last_access_at: None,
        chosen_at: None,
        awaits_approval: false,
        signer: None,
        verity: std::collections::BTreeMap::new(),
    };
    let key = super::EntryKey::new(&manifest, manifest_digest);
    let accesses = super::AccessStats::default();
    super::StoreEntry { key, manifest: Arc::new(manifest), record, accesses, disabled: None }
}

/// One member of the archive. [`StoreEntry::seal`] computes the checksum of its header.
#[derive(Clone)]
pub(crate) struct TestMember {
    pub(crate) header: [u8; BLOCK],
    pub(crate) content: Vec<u8>,
    /// Bytes between the content and the next header.
    pub(crate) padding: Vec<u8>,
}

impl TestMember {
    pub(crate) fn new(name: &str, content: &[u8]) -> Self {
        let mut entry = Self {
            header: [0; BLOCK],
            content: content.to_owned(),
            padding: vec![0; content.len().next_multiple_of(BLOCK) - content.len()],
        };
        entry.set(100, b"0000644\0").set(108, b"0000000\0").set(116, b"0000000\0");
        entry.set(136, b"00000000000\0").set(156, b"0").set(257, b"ustar\x0000");
        entry.rename(name).resize(content.len() as u64).seal();
        entry
    }

    /// Overwrites the header from `offset` on.
    pub(crate) fn set(&mut self, offset: usize, bytes: &[u8]) -> &mut Self {
        self.header[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(crate) fn rename(&mut self, name: &str) -> &mut Self {
        self.set(0, &[0; 100]).set(0, name.as_bytes())
    }

    /// Sets the size in the header to `size`, independent of the content.
    pub(crate) fn resize(&mut self, size: u64) -> &mut Self {
        self.set(124, format!("{size:011o}\0").as_bytes())
    }

    /// Computes the checksum of the header.
    pub(crate) fn seal(&mut self) -> &mut Self {
        self.set(148, &[b' '; 8]);
        let sum: u32 = self.header.iter().map(|byte| u32::from(*byte)).sum();
        self.set(148, format!("{sum:06o}\0 ").as_bytes())
    }
}

/// Package as separate parts.
pub(crate) struct Builder {
    /// The manifest, followed by its files.
    pub(crate) entries: Vec<TestMember>,
    /// Bytes after the last member.
    pub(crate) end: Vec<u8>,
}

impl Builder {
    pub(crate) fn new(id: &str, version: &str, weights: &[u8]) -> Self {
        let files: [(&str, &[u8]); 3] = [(CONFIG, b"{}"), (TOKENIZER, b"[]"), (WEIGHTS, weights)];
        let json = manifest(id, version, &files).to_json().unwrap();
        let mut entries = vec![TestMember::new(MANIFEST, &json)];
        entries.extend(files.map(|(name, content)| TestMember::new(name, content)));
        Self { entries, end: vec![0; 2 * BLOCK] }
    }

    /// Replaces the manifest by the result of `change`, without a check.
    pub(crate) fn change_manifest(&mut self, change: impl FnOnce(&mut serde_json::Value)) {
        let mut json = serde_json::from_slice(&self.entries[0].content).unwrap();
        change(&mut json);
        self.entries[0] = TestMember::new(MANIFEST, json.to_string().as_bytes());
    }

    pub(crate) fn archive(&self) -> Vec<u8> {
        let parts = self.entries.iter().flat_map(|entry| {
            [entry.header.as_slice(), entry.content.as_slice(), entry.padding.as_slice()]
        });
        let mut archive = parts.collect::<Vec<_>>().concat();
        archive.extend(&self.end);
        archive
    }

    pub(crate) fn compress(&self) -> Vec<u8> {
        compress(&self.archive())
    }
}

/// Compresses `content` into one zstd frame with a checksum.
pub(crate) fn compress(content: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    io::copy(&mut &content[..], &mut encoder).unwrap();
    encoder.finish().unwrap()
}
