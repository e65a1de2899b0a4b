//! Finds the files of the configuration, in their order, and reads their bytes.
//!
//! The rules are those of version 1.0 of the UAPI configuration files specification
//! (<https://github.com/uapi-group/specifications/blob/1e5924716ae5e6f4c6a11dd132be9b5c989e8696/specs/configuration_files_specification.md>).
//! The main file is the one in the highest directory that has one. Drop-ins of all directories are
//! sorted by name and override the main file. A drop-in replaces those of the same name in lower
//! directories. An empty file or a link to `/dev/null` masks the files that it replaces; a masked
//! main file does not mask drop-ins. Directories of drop-ins do not nest.
//!
//! Caxton makes two choices of its own. Drop-ins are in `conf.d` and not in `caxton.yaml.d`,
//! because there is only one main file. `/usr/local/lib` is not read: the specification names
//! `/usr`, `/run` and `/etc`, and local files on a device are the administrator's, which belong in
//! `/etc`.
//!
//! Invariant: reading never blocks and never exceeds [`LARGEST`], with any kind of file under these
//! names.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::makedev;

use super::{ConfigSource, Problem};

/// Largest file, in bytes.
const LARGEST: u64 = 1 << 20;

/// Directories below the root, highest first.
const DIRECTORIES: [&str; 3] = ["etc/caxton", "run/caxton", "usr/lib/caxton"];

const MAIN: &str = "caxton.yaml";
const DROP_INS: &str = "conf.d";
const SUFFIX: &[u8] = b".yaml";

/// A file of the configuration.
#[derive(Debug)]
pub(super) struct ConfigFile {
    pub(super) path: PathBuf,
    /// Content of the file. An empty file masks others.
    pub(super) content: Vec<u8>,
    /// Files of the same name in lower directories, which are not read, the lowest first.
    pub(super) replaced: Vec<PathBuf>,
}

/// Reads the files of `source`; each overrides the earlier ones.
///
/// Adds files that cannot be read to `problems`. A directory or a main file that does not exist is
/// not a problem.
pub(super) fn read(source: &ConfigSource, problems: &mut Vec<Problem>) -> Vec<ConfigFile> {
    let mut layers = Vec::new();
    for NamedFile { path, replaced } in files(source, problems) {
        match read_file(&path) {
            Ok(content) => layers.push(ConfigFile { path, content, replaced }),
            Err(message) => problems.push(whole_file(&path, message)),
        }
    }
    layers
}

/// Returns the directories in which a file may be created, changed or deleted.
pub fn directories(source: &ConfigSource) -> Vec<PathBuf> {
    match source {
        ConfigSource::File(path) => {
            // Make the path absolute: a relative one has no parents on which the watcher could fall
            // back. The path stays relative when the process has no working directory.
            let path = std::path::absolute(path).unwrap_or_else(|_no_cwd| path.clone());
            path.parent().map(Path::to_owned).into_iter().collect()
        }
        ConfigSource::Layers { root } => {
            let bases = DIRECTORIES.iter().map(|base| root.join(base));
            bases.flat_map(|base| [base.join(DROP_INS), base]).collect()
        }
    }
}

/// The highest of the files with one name.
struct NamedFile {
    path: PathBuf,
    /// The other files, the lowest first.
    replaced: Vec<PathBuf>,
}

impl NamedFile {
    /// Takes the highest of `paths`, which have one name and begin with the lowest; returns `None`
    /// for an empty list.
    fn highest(mut paths: Vec<PathBuf>) -> Option<Self> {
        paths.pop().map(|path| Self { path, replaced: paths })
    }
}

fn files(source: &ConfigSource, problems: &mut Vec<Problem>) -> Vec<NamedFile> {
    let root = match source {
        ConfigSource::File(path) => {
            return vec![NamedFile { path: path.clone(), replaced: Vec::new() }];
        }
        ConfigSource::Layers { root } => root,
    };
    let main = main_file(root, problems);
    main.into_iter().chain(drop_ins(root, problems)).collect()
}

fn main_file(root: &Path, problems: &mut Vec<Problem>) -> Option<NamedFile> {
    let mut found = Vec::new();
    for base in DIRECTORIES.iter().rev() {
        let path = root.join(base).join(MAIN);
        match fs::symlink_metadata(&path) {
            Ok(_) => found.push(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => problems.push(whole_file(&path, failed("look up", &error))),
        }
    }
    NamedFile::highest(found)
}

fn drop_ins(root: &Path, problems: &mut Vec<Problem>) -> Vec<NamedFile> {
    let mut by_name: BTreeMap<OsString, Vec<PathBuf>> = BTreeMap::new();
    for base in DIRECTORIES.iter().rev() {
        let directory = root.join(base).join(DROP_INS);
        match names(&directory) {
            Ok(names) => {
                for name in names {
                    let path = directory.join(&name);
                    by_name.entry(name).or_default().push(path);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => problems.push(whole_file(&directory, failed("list", &error))),
        }
    }
    by_name.into_values().filter_map(NamedFile::highest).collect()
}

/// Returns the names of the drop-ins in `directory`. Ignores names with a leading dot, which belong
/// to editors and to mounts.
fn names(directory: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        if name.as_bytes().ends_with(SUFFIX) && !name.as_bytes().starts_with(b".") {
            names.push(name);
        }
    }
    Ok(names)
}

/// Reads the content of `path` and follows links; returns nothing for `/dev/null`. The error is a
/// sentence for the operator.
fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    // Without O_NONBLOCK, opening a FIFO waits for a writer.
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(|error| failed("open", &error))?;
    let metadata = file.metadata().map_err(|error| failed("look up", &error))?;
    // The null device is character device 1:3 on every Linux:
    // Documentation/admin-guide/devices.txt.
    if metadata.file_type().is_char_device() && metadata.rdev() == makedev(1, 3) {
        return Ok(Vec::new());
    }
    if !metadata.is_file() {
        return Err("expected a regular file or a link to a regular file".to_owned());
    }
    read_limited(file)
}

fn read_limited(file: File) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    let read = file.take(LARGEST + 1).read_to_end(&mut content);
    read.map_err(|error| failed("read", &error))?;
    if content.len() as u64 > LARGEST {
        return Err(format!(
            "the file is larger than {LARGEST} bytes; split it into several files in conf.d"
        ));
    }
    Ok(content)
}

fn failed(operation: &str, error: &io::Error) -> String {
    format!("failed to {operation}: {error}")
}

fn whole_file(path: &Path, message: String) -> Problem {
    Problem { file: path.to_owned(), position: None, key: String::new(), message }
}

#[cfg(test)]
mod tests;
