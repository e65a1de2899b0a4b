//! Progress of one installation from a file, for `/status`.

use std::fs::File;
use std::io::Seek;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Progress of one installation. Clones share it, and any thread may read it.
#[derive(Clone, Debug, Default)]
pub struct InstallProgress(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Second handle of the package, which has the position of the first, and its size.
    package: Mutex<Option<(File, u64)>>,
    is_testing: AtomicBool,
}

impl InstallProgress {
    /// Follows the position in `package` until [`InstallProgress::finish`].
    pub(super) fn follow(&self, package: &File) {
        // Without a second handle or a size, only the progress is unknown.
        let followed = package.try_clone().and_then(|file| {
            let size = file.metadata()?.len();
            Ok((file, size))
        });
        *self.0.package.lock().unwrap_or_else(PoisonError::into_inner) = followed.ok();
    }

    /// Records that the package was read and its self-test begins.
    pub(super) fn start_test(&self) {
        self.0.is_testing.store(true, Ordering::Relaxed);
        self.finish();
    }

    /// Closes the second handle: a removable disk can then be unmounted.
    pub(super) fn finish(&self) {
        *self.0.package.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Returns whether the package was read and its self-test has begun.
    pub fn is_testing(&self) -> bool {
        self.0.is_testing.load(Ordering::Relaxed)
    }

    /// Returns the bytes that were read, and the size of the package; `None` when it is not being
    /// read. A package with a signature is read twice. Does not block.
    pub fn read_bytes(&self) -> Option<(u64, u64)> {
        let mut package = self.0.package.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, size) = package.as_mut()?;
        Some((file.stream_position().ok()?, *size))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn progress_follows_reads_until_the_test() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0; 10]).unwrap();
        file.rewind().unwrap();
        let progress = InstallProgress::default();
        let reader = progress.clone();
        assert_eq!(reader.read_bytes(), None);
        progress.follow(&file);
        assert_eq!(reader.read_bytes(), Some((0, 10)));
        file.read_exact(&mut [0; 4]).unwrap();
        assert_eq!((reader.read_bytes(), reader.is_testing()), (Some((4, 10)), false));
        progress.start_test();
        assert_eq!((reader.read_bytes(), reader.is_testing()), (None, true));
    }
}
