//! Mounts file systems for a test, where it has the right to.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A mount, which is unmounted when it is dropped.
#[derive(Debug)]
pub(crate) struct Mount(PathBuf);

impl Mount {
    /// Mounts a file system in memory at `path`; returns `None` where this process may not mount.
    pub(crate) fn tmpfs(path: &Path, options: &str) -> Option<Self> {
        Self::with(&["-t", "tmpfs", "-o", options, "tmpfs"], path)
    }

    /// Mounts the directory `source` at `path`; returns `None` where this process may not mount.
    pub(crate) fn bind(source: &Path, path: &Path) -> Option<Self> {
        Self::with(&["--bind", source.to_str().unwrap()], path)
    }

    fn with(arguments: &[&str], path: &Path) -> Option<Self> {
        let mounted = Command::new("mount").args(arguments).arg(path).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(path.to_owned()))
    }

    /// Remounts it with another option, for example `ro` or `size=400m`.
    pub(crate) fn remount(&self, option: &str) {
        let options = format!("remount,{option}");
        let mounted = Command::new("mount").args(["-o", &options]).arg(&self.0).status();
        assert!(mounted.unwrap().success(), "{options}");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Unmount lazily, because a daemon left by a failing test may still use it.
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(std::thread::panicking() || unmounted.unwrap().success());
    }
}
