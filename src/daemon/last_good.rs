//! The last good configuration, kept on disk: with wrong files a restart begins with it instead of not at all.
//!
//! Owns `last-good.yaml` in the state directory, the first of `$STATE_DIRECTORY`, which systemd sets
//! (<https://www.freedesktop.org/software/systemd/man/252/systemd.exec.html#RuntimeDirectory=>). It cannot lie below
//! `memory.model_cache.directory`: with wrong files nobody knows what that is. Without the variable nothing is kept.
//!
//! The file has every key with its value, as a file of the configuration says it, below a line with the SHA-256 of all
//! that follows. It is read by the same loader with the same limits as every file.
//!
//! Invariants:
//! 1. What is written was read back first and found to be the same settings.
//! 2. What does not have its digest, or is wrong for this version, is not used: there is no guess at what was meant.

use std::path::{Path, PathBuf};

use crate::config::{self, ConfigError, Settings};
use crate::files::{self, FileError};
use crate::package::Digest;

/// Its name in the state directory.
const NAME: &str = "last-good.yaml";
/// What its first line says before the digest; another format has another number.
const MARK: &str = "# caxton-last-good 1 sha256:";
/// Largest content in bytes: several files of the configuration at their largest.
const LARGEST: u64 = 8 << 20;
/// What people should know who find the file.
const ABOUT: &str = "\
# The configuration that caxtond has applied last. caxtond writes this file when it applies another, and starts with it
# when the files of the configuration are wrong. Change those; this one does not count when it was edited.
";

/// Why there is no last good configuration, or none was kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum LastGoodError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not what was written.
    #[error("{} is damaged or was edited: its first line does not have the digest of the rest; remove it", .0.display())]
    Damaged(PathBuf),
    /// It is what was written, by a version that had other keys.
    #[error("{} was kept by another version of caxton, which had other keys; remove it", path.display())]
    OtherVersion {
        /// The file.
        path: PathBuf,
        /// The keys.
        source: ConfigError,
    },
    /// It would not come back as it is.
    #[error("the configuration is too large to be kept in one file")]
    TooLarge,
}

/// Where the last good configuration is kept.
#[derive(Clone, Debug)]
pub(super) struct LastGood {
    path: Option<PathBuf>,
}

impl LastGood {
    /// That of the state directory that systemd gave this process.
    pub(super) fn of_process() -> Self {
        let directories = std::env::var_os("STATE_DIRECTORY");
        let first = directories.and_then(|all| std::env::split_paths(&all).next());
        Self { path: first.filter(|path| path.is_absolute()).map(|path| path.join(NAME)) }
    }

    /// Reads it. `None` when none was kept.
    ///
    /// # Errors
    /// When there is one that cannot be used.
    pub(super) fn load(&self) -> Result<Option<config::Loaded>, LastGoodError> {
        let Some(path) = &self.path else { return Ok(None) };
        let content = match files::read_limited(path, LARGEST) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            content => content?,
        };
        let body = body(&content).ok_or_else(|| LastGoodError::Damaged(path.clone()))?;
        let settings = config::parse(path, body.to_vec())
            .map_err(|source| LastGoodError::OtherVersion { path: path.clone(), source })?;
        Ok(Some(config::Loaded { settings, files: vec![path.clone()] }))
    }

    /// Keeps `settings`; writes nothing when they are kept already. Blocks until they are on the disk.
    ///
    /// # Errors
    /// When they cannot be kept; what was kept before then still is.
    pub(super) fn keep(&self, settings: &Settings) -> Result<(), LastGoodError> {
        let Some(path) = &self.path else { return Ok(()) };
        let content = content(settings);
        let same = |body: &[u8]| {
            config::parse(path, body.to_vec()).is_ok_and(|settings_read| settings_read == *settings)
        };
        let fits = content.len() as u64 <= LARGEST;
        if !fits || !body(content.as_bytes()).is_some_and(same) {
            return Err(LastGoodError::TooLarge);
        }
        // Flash is worn by writing, not by reading. What cannot be read is replaced.
        let kept = files::read_limited(path, LARGEST);
        if kept.is_ok_and(|kept| kept == content.as_bytes()) {
            return Ok(());
        }
        Ok(files::write_atomic(path, content.as_bytes())?)
    }

    /// Where it is kept.
    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

fn content(settings: &Settings) -> String {
    let body = format!("{ABOUT}{}", config::document(&config::values(settings), |_| None));
    format!("{MARK}{}\n{body}", Digest::of(body.as_bytes()))
}

/// What follows the first line; `None` when it is not what that line says.
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
    fn what_was_kept_comes_back() {
        let directory = TempDir::new().unwrap();
        let last_good = below(&directory);
        assert!(last_good.load().unwrap().is_none());
        last_good.keep(&Settings::default()).unwrap();
        last_good.keep(&settings()).unwrap();
        assert_eq!(last_good.load().unwrap().unwrap().settings, settings());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_kept_already_is_not_written_again() {
        let directory = TempDir::new().unwrap();
        let inode = || fs::metadata(directory.path().join(NAME)).unwrap().ino();
        below(&directory).keep(&settings()).unwrap();
        let before = inode();
        below(&directory).keep(&settings()).unwrap();
        assert_eq!(inode(), before);
        // Old and new file are there at the same time, so that their numbers differ.
        below(&directory).keep(&Settings::default()).unwrap();
        assert_ne!(inode(), before);
    }

    #[test]
    fn what_is_not_as_it_was_written_is_not_used() {
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
            // The next good configuration takes its place.
            below(&directory).keep(&settings()).unwrap();
            assert_eq!(below(&directory).load().unwrap().unwrap().settings, settings());
        }
        let target = directory.path().join("target");
        fs::rename(&path, &target).unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        assert!(below(&directory).load().is_err(), "a link is followed");
    }

    #[test]
    fn what_would_not_come_back_is_not_kept() {
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
    fn without_a_state_directory_nothing_is_kept() {
        let nowhere = LastGood { path: None };
        nowhere.keep(&settings()).unwrap();
        assert!(nowhere.load().unwrap().is_none());
    }
}
