//! Tests of `layers`.

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
            &["etc/caxton/caxton.yaml", "etc/caxton/conf.d/a.yaml", "usr/lib/caxton/conf.d/b.yaml"],
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
        ["etc/caxton/conf.d/20-more.yaml: the file is larger than 1048576 bytes; split it into \
              several files in conf.d"]
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
