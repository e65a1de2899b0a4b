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
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use tempfile::TempDir;

    use super::*;

    /// Paths and contents; a content that begins with "->" makes a link.
    type Files = &'static [(&'static str, &'static str)];

    fn root(files: &[(&str, &str)]) -> TempDir {
        let root = TempDir::new().unwrap();
        for (name, content) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match content.strip_prefix("->") {
                Some(target) => symlink(target, path).unwrap(),
                None => fs::write(path, content).unwrap(),
            }
        }
        root
    }

    /// Returns the files below `root` that are not empty, and the problems, without the path of the
    /// root.
    fn read_below(root: &TempDir) -> (Vec<String>, Vec<String>) {
        let mut problems = Vec::new();
        let layers = read(&ConfigSource::Layers { root: root.path().into() }, &mut problems);
        let short = |path: &Path| path.strip_prefix(root.path()).unwrap().display().to_string();
        let problem = |p: &Problem| format!("{}: {}", short(&p.file), p.message);
        let read = layers.iter().filter(|layer| !layer.content.is_empty());
        (read.map(|layer| short(&layer.path)).collect(), problems.iter().map(problem).collect())
    }

    #[test]
    fn files_follow_uapi_precedence() {
        let cases: &[(&str, Files, &[&str])] = &[
            ("no file at all", &[], &[]),
            (
                "the highest main file alone",
                &[
                    ("usr/lib/caxton/caxton.yaml", "u"),
                    ("run/caxton/caxton.yaml", "r"),
                    ("etc/caxton/caxton.yaml", "e"),
                ],
                &["etc/caxton/caxton.yaml"],
            ),
            (
                "the next when there is none in etc",
                &[("usr/lib/caxton/caxton.yaml", "u"), ("run/caxton/caxton.yaml", "r")],
                &["run/caxton/caxton.yaml"],
            ),
            (
                "drop-ins by name whatever their directory, over the main file",
                &[
                    ("etc/caxton/conf.d/20-b.yaml", "e"),
                    ("run/caxton/conf.d/10-a.yaml", "r"),
                    ("usr/lib/caxton/conf.d/30-c.yaml", "u"),
                    ("usr/lib/caxton/caxton.yaml", "u"),
                ],
                &[
                    "usr/lib/caxton/caxton.yaml",
                    "run/caxton/conf.d/10-a.yaml",
                    "etc/caxton/conf.d/20-b.yaml",
                    "usr/lib/caxton/conf.d/30-c.yaml",
                ],
            ),
            (
                "of drop-ins with one name, the highest",
                &[
                    ("etc/caxton/conf.d/10-a.yaml", "e"),
                    ("run/caxton/conf.d/10-a.yaml", "r"),
                    ("run/caxton/conf.d/20-b.yaml", "r"),
                    ("usr/lib/caxton/conf.d/10-a.yaml", "u"),
                    ("usr/lib/caxton/conf.d/20-b.yaml", "u"),
                ],
                &["etc/caxton/conf.d/10-a.yaml", "run/caxton/conf.d/20-b.yaml"],
            ),
            (
                "a drop-in masked by an empty file",
                &[("etc/caxton/conf.d/10-a.yaml", ""), ("usr/lib/caxton/conf.d/10-a.yaml", "u")],
                &[],
            ),
            (
                "a drop-in masked by a link to /dev/null",
                &[
                    ("run/caxton/conf.d/10-a.yaml", "->/dev/null"),
                    ("usr/lib/caxton/conf.d/10-a.yaml", "u"),
                    ("usr/lib/caxton/conf.d/20-b.yaml", "u"),
                ],
                &["usr/lib/caxton/conf.d/20-b.yaml"],
            ),
            (
                "a masked main file masks those below but not its drop-ins",
                &[
                    ("etc/caxton/caxton.yaml", "->/dev/null"),
                    ("usr/lib/caxton/caxton.yaml", "u"),
                    ("usr/lib/caxton/conf.d/10-a.yaml", "u"),
                ],
                &["usr/lib/caxton/conf.d/10-a.yaml"],
            ),
            (
                "other suffixes, hidden files and directories below are not looked at",
                &[
                    ("etc/caxton/conf.d/10-a.yaml", "e"),
                    ("etc/caxton/conf.d/10-a.yaml~", "e"),
                    ("etc/caxton/conf.d/10-b.yml", "e"),
                    ("etc/caxton/conf.d/.10-c.yaml", "e"),
                    ("etc/caxton/conf.d/..data/10-d.yaml", "e"),
                    ("etc/caxton/conf.d/more/10-e.yaml", "e"),
                    ("etc/caxton/10-f.yaml", "e"),
                ],
                &["etc/caxton/conf.d/10-a.yaml"],
            ),
            // The following cases are the examples of the specification, in the order of its text,
            // with the main file for `bar.conf` and the drop-ins for `bar.conf.d`.
            (
                "storage: the main file of run goes before that of usr, that of etc before both",
                &[("usr/lib/caxton/caxton.yaml", "u"), ("etc/caxton/caxton.yaml", "e")],
                &["etc/caxton/caxton.yaml"],
            ),
            (
                "masking: an empty main file in etc masks that of usr",
                &[("etc/caxton/caxton.yaml", ""), ("usr/lib/caxton/caxton.yaml", "u")],
                &[],
            ),
            (
                "drop-ins: the list of files in their order",
                &[
                    ("usr/lib/caxton/caxton.yaml", "u"),
                    ("etc/caxton/caxton.yaml", "e"),
                    ("usr/lib/caxton/conf.d/a.yaml", "u"),
                    ("etc/caxton/conf.d/a.yaml", "e"),
                    ("usr/lib/caxton/conf.d/b.yaml", "u"),
                ],
                &[
                    "etc/caxton/caxton.yaml",
                    "etc/caxton/conf.d/a.yaml",
                    "usr/lib/caxton/conf.d/b.yaml",
                ],
            ),
            (
                "drop-ins: those of a main file that is masked by an empty one are read",
                &[
                    ("usr/lib/caxton/caxton.yaml", "u"),
                    ("etc/caxton/caxton.yaml", ""),
                    ("usr/lib/caxton/conf.d/a.yaml", "u"),
                ],
                &["usr/lib/caxton/conf.d/a.yaml"],
            ),
            (
                "drop-ins: unless they are masked themselves",
                &[
                    ("usr/lib/caxton/caxton.yaml", "u"),
                    ("etc/caxton/caxton.yaml", ""),
                    ("usr/lib/caxton/conf.d/a.yaml", "u"),
                    ("etc/caxton/conf.d/a.yaml", ""),
                ],
                &[],
            ),
            (
                "drop-ins: a drop-in has no drop-ins",
                &[
                    ("etc/caxton/conf.d/a.yaml", "e"),
                    ("etc/caxton/conf.d/a.yaml.d/b.yaml", "e"),
                    ("etc/caxton/conf.d/conf.d/c.yaml", "e"),
                ],
                &["etc/caxton/conf.d/a.yaml"],
            ),
            (
                "drop-ins without a main file",
                &[
                    ("usr/lib/caxton/conf.d/a.yaml", "u"),
                    ("usr/lib/caxton/conf.d/b.yaml", "u"),
                    ("etc/caxton/conf.d/c.yaml", "e"),
                ],
                &[
                    "usr/lib/caxton/conf.d/a.yaml",
                    "usr/lib/caxton/conf.d/b.yaml",
                    "etc/caxton/conf.d/c.yaml",
                ],
            ),
            // The following cases result from the rules but are not examples in the specification.
            (
                "a drop-in of the lowest directory goes over the main file of the highest",
                &[("etc/caxton/caxton.yaml", "e"), ("usr/lib/caxton/conf.d/00-a.yaml", "u")],
                &["etc/caxton/caxton.yaml", "usr/lib/caxton/conf.d/00-a.yaml"],
            ),
            (
                "a mask masks what is below it and not what is above it",
                &[
                    ("usr/lib/caxton/conf.d/a.yaml", "u"),
                    ("run/caxton/conf.d/a.yaml", ""),
                    ("etc/caxton/conf.d/a.yaml", "e"),
                    ("usr/lib/caxton/caxton.yaml", ""),
                    ("run/caxton/caxton.yaml", "r"),
                ],
                &["run/caxton/caxton.yaml", "etc/caxton/conf.d/a.yaml"],
            ),
            (
                "a main file masked in run does not mask that of etc",
                &[("run/caxton/caxton.yaml", "->/dev/null"), ("etc/caxton/caxton.yaml", "e")],
                &["etc/caxton/caxton.yaml"],
            ),
            (
                "names are ordered by their bytes, not by numbers or by letters",
                &[
                    ("etc/caxton/conf.d/9.yaml", "e"),
                    ("etc/caxton/conf.d/10.yaml", "e"),
                    ("etc/caxton/conf.d/B.yaml", "e"),
                    ("etc/caxton/conf.d/a.yaml", "e"),
                ],
                &[
                    "etc/caxton/conf.d/10.yaml",
                    "etc/caxton/conf.d/9.yaml",
                    "etc/caxton/conf.d/B.yaml",
                    "etc/caxton/conf.d/a.yaml",
                ],
            ),
            (
                "the main file's name means nothing among drop-ins, nor theirs beside it",
                &[("etc/caxton/conf.d/caxton.yaml", "e"), ("usr/lib/caxton/a.yaml", "u")],
                &["etc/caxton/conf.d/caxton.yaml"],
            ),
            (
                "links are followed",
                &[
                    ("etc/caxton/conf.d/10-a.yaml", "->..data/10-a.yaml"),
                    ("etc/caxton/conf.d/..data/10-a.yaml", "e"),
                ],
                &["etc/caxton/conf.d/10-a.yaml"],
            ),
        ];
        for (name, files, expected) in cases {
            let (read, problems) = read_below(&root(files));
            assert_eq!(read, *expected, "{name}");
            assert!(problems.is_empty(), "{name}: {problems:?}");
        }
    }

    #[test]
    fn replaced_files_are_listed_lowest_first() {
        let root = root(&[
            ("usr/lib/caxton/caxton.yaml", "u"),
            ("run/caxton/caxton.yaml", "r"),
            ("etc/caxton/caxton.yaml", ""),
            ("usr/lib/caxton/conf.d/a.yaml", "u"),
            ("etc/caxton/conf.d/a.yaml", "e"),
            ("run/caxton/conf.d/b.yaml", "r"),
        ]);
        let mut problems = Vec::new();
        let layers = read(&ConfigSource::Layers { root: root.path().into() }, &mut problems);
        let short = |path: &PathBuf| path.strip_prefix(root.path()).unwrap().to_owned();
        let told: Vec<_> = layers
            .iter()
            .map(|layer| (short(&layer.path), Vec::from_iter(layer.replaced.iter().map(short))))
            .collect();
        let paths = |of: &[&str]| of.iter().map(PathBuf::from).collect::<Vec<_>>();
        let main = paths(&["usr/lib/caxton/caxton.yaml", "run/caxton/caxton.yaml"]);
        assert_eq!(
            told,
            [
                ("etc/caxton/caxton.yaml".into(), main),
                ("etc/caxton/conf.d/a.yaml".into(), paths(&["usr/lib/caxton/conf.d/a.yaml"])),
                ("run/caxton/conf.d/b.yaml".into(), Vec::new()),
            ]
        );
    }

    #[test]
    fn irregular_file_is_a_problem_and_never_blocks() {
        let root = root(&[
            ("etc/caxton/caxton.yaml", "->nowhere"),
            ("usr/lib/caxton/caxton.yaml", "hidden by the broken link"),
            ("etc/caxton/conf.d/30-directory.yaml/x", ""),
            ("etc/caxton/conf.d/40-good.yaml", "g"),
            ("etc/caxton/conf.d/50-zero.yaml", "->/dev/zero"),
            ("run/caxton/conf.d", "no directory"),
        ]);
        let conf = root.path().join("etc/caxton/conf.d");
        mkfifo(&conf.join("10-fifo.yaml"), Mode::S_IRWXU).unwrap();
        let _socket = UnixListener::bind(conf.join("20-socket.yaml")).unwrap();
        let (read, problems) = read_below(&root);
        assert_eq!(read, ["etc/caxton/conf.d/40-good.yaml"]);
        let regular = "expected a regular file or a link to a regular file";
        assert_eq!(
            problems,
            [
                "run/caxton/conf.d: failed to list: Not a directory (os error 20)".to_owned(),
                "etc/caxton/caxton.yaml: failed to open: No such file or directory (os error 2)"
                    .to_owned(),
                format!("etc/caxton/conf.d/10-fifo.yaml: {regular}"),
                "etc/caxton/conf.d/20-socket.yaml: failed to open: No such device or address (os error 6)"
                    .to_owned(),
                format!("etc/caxton/conf.d/30-directory.yaml: {regular}"),
                format!("etc/caxton/conf.d/50-zero.yaml: {regular}"),
            ]
        );
    }

    #[test]
    fn file_is_limited_to_one_mebibyte() {
        let most = "#".repeat(1 << 20);
        let root = root(&[
            ("etc/caxton/conf.d/10-most.yaml", &most),
            ("etc/caxton/conf.d/20-more.yaml", &format!("{most}#")),
        ]);
        let (read, problems) = read_below(&root);
        assert_eq!(read, ["etc/caxton/conf.d/10-most.yaml"]);
        assert_eq!(
            problems,
            [
                "etc/caxton/conf.d/20-more.yaml: the file is larger than 1048576 bytes; split it into \
              several files in conf.d"
            ]
        );
    }

    #[test]
    fn named_file_is_read_alone() {
        let root = root(&[("a.yaml", "a"), ("conf.d/b.yaml", "b")]);
        let mut problems = Vec::new();
        let layers = read(&ConfigSource::File(root.path().join("a.yaml")), &mut problems);
        assert_eq!(layers.iter().map(|l| l.content.as_slice()).collect::<Vec<_>>(), [b"a"]);
        let null = read(&ConfigSource::File("/dev/null".into()), &mut problems);
        assert_eq!(null.iter().map(|l| l.content.as_slice()).collect::<Vec<_>>(), [b""]);
        assert!(problems.is_empty(), "{problems:?}");
        assert!(read(&ConfigSource::File(root.path().join("none.yaml")), &mut problems).is_empty());
        assert_eq!(problems.len(), 1);
    }
}
