//! Keeps the last good configuration on disk, so that a restart with wrong files uses it instead of
//! failing.
//!
//! The file is `last-good.yaml` in the state directory, the first directory of `$STATE_DIRECTORY`,
//! which systemd sets
//! (<https://www.freedesktop.org/software/systemd/man/252/systemd.exec.html#RuntimeDirectory=>). It
//! cannot be below `memory.model_cache.directory`, because that path is unknown when the files are
//! wrong. Without the variable, no configuration is kept.
//!
//! The first line of the file has the SHA-256 of the rest. The rest lists every key with its value,
//! in the syntax of a configuration file. It is read by the same loader with the same limits as
//! every configuration file.
//!
//! Invariants:
//! 1. Before a file is written, its content is parsed and must give the same settings.
//! 2. A file with a wrong digest, or with settings that are wrong for this version, is not used at
//!    all.

use std::path::{Path, PathBuf};

use crate::config::{self, ConfigError, Settings};
use crate::files::{self, FileError};
use crate::package::Digest;

/// Name of the file in the state directory.
const NAME: &str = "last-good.yaml";
/// Start of the first line, before the digest. The number is the version of the format.
const MARK: &str = "# caxton-last-good 1 sha256:";
/// Largest file in bytes. It holds several configuration files of the largest allowed size.
const MAX_SIZE: u64 = 8 << 20;
/// Explanation for people who open the file.
const ABOUT: &str = "\
# The configuration that caxtond has applied last. caxtond writes this file when it applies another, and starts with it
# when the files of the configuration are wrong. Change those; this one does not count when it was edited.
";

/// Reasons for which the last good configuration cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum LastGoodError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file does not match its digest.
    #[error("{} is damaged or was edited: its first line does not have the digest of the rest; remove it", .0.display())]
    Damaged(PathBuf),
    /// The file matches its digest, but a version with other keys wrote it.
    #[error("{} was kept by another version of caxton, which had other keys; remove it", path.display())]
    OtherVersion {
        /// Path of the file.
        path: PathBuf,
        /// Problems of the keys.
        source: ConfigError,
    },
    /// The configuration could not be read back unchanged.
    #[error("the configuration is too large to be kept in one file")]
    TooLarge,
}

/// Location of the last good configuration.
#[derive(Clone, Debug)]
pub(super) struct LastGood {
    path: Option<PathBuf>,
}

impl LastGood {
    /// Returns the location in the state directory that systemd gave to this process.
    pub(super) fn of_process() -> Self {
        let directories = std::env::var_os("STATE_DIRECTORY");
        let first = directories.and_then(|all| std::env::split_paths(&all).next());
        Self { path: first.filter(|path| path.is_absolute()).map(|path| path.join(NAME)) }
    }

    /// Reads the last good configuration. Returns `None` if none was kept.
    ///
    /// # Errors
    /// Fails if the file exists but cannot be used.
    pub(super) fn load(&self) -> Result<Option<config::LoadedConfig>, LastGoodError> {
        let Some(path) = &self.path else { return Ok(None) };
        let content = match files::read_limited(path, MAX_SIZE) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            content => content?,
        };
        let body = body(&content).ok_or_else(|| LastGoodError::Damaged(path.clone()))?;
        let settings = config::parse(path, body.to_vec())
            .map_err(|source| LastGoodError::OtherVersion { path: path.clone(), source })?;
        Ok(Some(config::LoadedConfig { settings, files: vec![path.clone()] }))
    }

    /// Keeps `settings` on disk. Writes nothing if the file holds them already. Blocks until they
    /// are on disk.
    ///
    /// # Errors
    /// Fails if the settings cannot be kept. The old file is then still there.
    pub(super) fn keep(&self, settings: &Settings) -> Result<(), LastGoodError> {
        let Some(path) = &self.path else { return Ok(()) };
        let content = content(settings);
        let same = |body: &[u8]| {
            config::parse(path, body.to_vec()).is_ok_and(|settings_read| settings_read == *settings)
        };
        let fits = content.len() as u64 <= MAX_SIZE;
        if !fits || !body(content.as_bytes()).is_some_and(same) {
            return Err(LastGoodError::TooLarge);
        }
        // Compare before writing, because writing wears out flash memory. An unreadable file is
        // replaced.
        let kept = files::read_limited(path, MAX_SIZE);
        if kept.is_ok_and(|kept| kept == content.as_bytes()) {
            return Ok(());
        }
        Ok(files::write_atomic(path, content.as_bytes())?)
    }

    /// Returns the path of the file.
    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

fn content(settings: &Settings) -> String {
    let body = format!("{ABOUT}{}", config::document(&config::values(settings), |_| None));
    format!("{MARK}{}\n{body}", Digest::of(body.as_bytes()))
}

/// Returns the content after the first line. Returns `None` if it does not match the digest in that
/// line.
fn body(content: &[u8]) -> Option<&[u8]> {
    let rest = content.strip_prefix(MARK.as_bytes())?;
    let end = rest.iter().position(|byte| *byte == b'\n')?;
    let (digest, body) = (rest.get(..end)?, rest.get(end + 1..)?);
    let digest: Digest = std::str::from_utf8(digest).ok()?.parse().ok()?;
    (Digest::of(body) == digest).then_some(body)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use tempfile::TempDir;

    use super::*;

    fn below(directory: &TempDir) -> LastGood {
        LastGood { path: Some(directory.path().join(NAME)) }
    }

    fn settings() -> Settings {
        let mut settings = Settings::default();
        settings.embedding.queue_size = 7;
        settings.models.insert("a.1".to_owned(), config::ModelSettings::default());
        settings
    }

    #[test]
    fn saved_configuration_is_loaded() {
        let directory = TempDir::new().unwrap();
        let last_good = below(&directory);
        assert!(last_good.load().unwrap().is_none());
        last_good.keep(&Settings::default()).unwrap();
        last_good.keep(&settings()).unwrap();
        assert_eq!(last_good.load().unwrap().unwrap().settings, settings());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn unchanged_configuration_is_not_rewritten() {
        let directory = TempDir::new().unwrap();
        let inode = || fs::metadata(directory.path().join(NAME)).unwrap().ino();
        below(&directory).keep(&settings()).unwrap();
        let before = inode();
        below(&directory).keep(&settings()).unwrap();
        assert_eq!(inode(), before);
        // The old and the new file exist at the same time, so their inode numbers differ.
        below(&directory).keep(&Settings::default()).unwrap();
        assert_ne!(inode(), before);
    }

    #[test]
    fn damaged_or_foreign_file_is_not_used() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join(NAME);
        let good = content(&settings());
        let body = "memory: { no_such_key: 1 }\n";
        let other_version = format!("{MARK}{}\n{body}", Digest::of(body.as_bytes()));
        for (content, expected) in [
            (String::new(), "is damaged"),
            (good[..good.len() / 2].to_owned(), "is damaged"),
            (good.replace("queue_size: 7", "queue_size: 8"), "is damaged"),
            ("socket: {}\n".to_owned(), "is damaged"),
            (good.replace("caxton-last-good 1", "caxton-last-good 2"), "is damaged"),
            ("\0".repeat(1 << 16), "is damaged"),
            (other_version, "was kept by another version"),
            ("#".repeat((8 << 20) + 1), "cannot read"),
        ] {
            fs::write(&path, &content).unwrap();
            let error = below(&directory).load().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            // The next good configuration replaces the file.
            below(&directory).keep(&settings()).unwrap();
            assert_eq!(below(&directory).load().unwrap().unwrap().settings, settings());
        }
        let target = directory.path().join("target");
        fs::rename(&path, &target).unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        assert!(below(&directory).load().is_err(), "a link is followed");
    }

    #[test]
    fn oversized_configuration_is_not_saved() {
        let directory = TempDir::new().unwrap();
        let mut large = settings();
        for index in 0..4000 {
            large.models.insert(format!("m{index}"), config::ModelSettings::default());
        }
        below(&directory).keep(&settings()).unwrap();
        assert!(matches!(below(&directory).keep(&large), Err(LastGoodError::TooLarge)));
        assert_eq!(below(&directory).load().unwrap().unwrap().settings, settings());
    }

    #[test]
    fn nothing_is_saved_without_state_directory() {
        let nowhere = LastGood { path: None };
        nowhere.keep(&settings()).unwrap();
        assert!(nowhere.load().unwrap().is_none());
    }
}
