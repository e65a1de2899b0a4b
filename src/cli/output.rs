//! Files that the command line writes. They appear under their name only when they are complete.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::files::FileError;

/// A file that appears under its name when it is complete.
pub(super) struct OutputFile {
    /// Temporary file for the content.
    pub(super) temporary: tempfile::NamedTempFile,
    path: PathBuf,
}

impl OutputFile {
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let temporary = tempfile::Builder::new()
            .prefix(".")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(directory)
            .map_err(FileError::new("create a file in", directory))?;
        Ok(Self { temporary, path: path.to_owned() })
    }

    /// Syncs the file and renames it to its final name.
    pub(super) fn persist(self) -> anyhow::Result<()> {
        let Self { temporary, path } = self;
        // Sync before the rename, so that a crash cannot leave a partial file under the name.
        temporary.as_file().sync_all().map_err(FileError::new("write", &path))?;
        temporary
            .persist(&path)
            .map_err(|error| FileError::new("rename the temporary file to", &path)(error.error))?;
        Ok(())
    }
}

/// Destination of a package.
pub(super) enum ExportTarget {
    File(OutputFile),
    Stdout(io::StdoutLock<'static>),
}

impl ExportTarget {
    /// Completes the output. Returns whether it is a file, which has its final name now.
    pub(super) fn persist(self) -> anyhow::Result<bool> {
        match self {
            Self::File(output) => output.persist().map(|()| true),
            Self::Stdout(mut out) => Ok(out.flush().map(|()| false)?),
        }
    }
}

impl Write for ExportTarget {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(output) => output.temporary.write(bytes),
            Self::Stdout(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(output) => output.temporary.flush(),
            Self::Stdout(out) => out.flush(),
        }
    }
}
