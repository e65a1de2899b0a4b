//! Tests of `quarantine`.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use super::*;

const NAME: &str = "a.model.tar.zst";
const PACKAGE: Bytes = Bytes::mib(1);

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    fn fingerprint(&self, name: &str) -> FileFingerprint {
        list(self.0.path()).unwrap()[name].clone()
    }

    fn quarantine(&self, name: &str) -> Result<QuarantineResult, FileError> {
        quarantine(self.0.path(), name, &self.fingerprint(name), "why", PACKAGE)
    }

    fn in_quarantine(&self, name: &str) -> PathBuf {
        self.0.path().join(QUARANTINE).join(name)
    }
}

#[test]
fn quarantine_takes_sidecars_and_keeps_newest() {
    let root = Place::new();
    root.write(".half.model.tar.zst", "");
    root.write("readme.txt", "");
    assert_eq!(list_quarantined(root.0.path()).unwrap(), []);
    for index in 0..=MAX_QUARANTINED {
        let name = format!("{index}{SUFFIX}");
        root.write(&name, &name);
        root.write(&format!("{name}.sha256"), "sum");
        let before = list(root.0.path()).unwrap();
        assert_eq!(before.keys().collect::<Vec<_>>(), [&name]);
        root.write(&format!("{name}.sha256 "), "");
        let moved = root.quarantine(&name).unwrap();
        assert_eq!(moved, QuarantineResult::Moved(root.in_quarantine(&name)));
        assert!(list(root.0.path()).unwrap().is_empty());
        fs::remove_file(root.path(&format!("{name}.sha256 "))).unwrap();
    }
    let quarantine = root.path(QUARANTINE);
    assert_eq!(list(&quarantine).unwrap().len(), MAX_QUARANTINED);
    assert!(!quarantine.join(format!("0{SUFFIX}.reason")).exists());
    let last = format!("{MAX_QUARANTINED}{SUFFIX}");
    assert_eq!(fs::read_to_string(quarantine.join(format!("{last}.reason"))).unwrap(), "why\n");
    assert!(quarantine.join(format!("{last}.sha256")).exists());
    let found = list_quarantined(root.0.path()).unwrap();
    assert_eq!(found.len(), MAX_QUARANTINED);
    assert_eq!(found[0], (last.clone(), "why".to_owned()));
    fs::remove_file(quarantine.join(format!("{last}.reason"))).unwrap();
    assert_eq!(list_quarantined(root.0.path()).unwrap()[0], (last, String::new()));
}

#[test]
fn quarantine_size_limit_includes_sidecars() {
    let root = Place::new();
    let kept = |count, bound| {
        prune(&root.path(QUARANTINE), count, Bytes(bound)).unwrap();
        Vec::from_iter(list_quarantined(root.0.path()).unwrap().into_iter().map(|(name, _)| name))
    };
    for name in ["a", "b", "c"].map(|id| format!("{id}{SUFFIX}")) {
        root.write(&name, &"x".repeat(100));
        root.write(&format!("{name}.minisig"), &"x".repeat(95));
        root.quarantine(&name).unwrap();
    }
    // 100 bytes, 95 of the signature, and "why\n".
    assert_eq!(kept(8, 3 * 199).len(), 3);
    assert_eq!(kept(8, 3 * 199 - 1), ["c.model.tar.zst", "b.model.tar.zst"]);
    assert_eq!(kept(1, u64::MAX), ["c.model.tar.zst"]);
    assert_eq!(kept(8, 198), Vec::<String>::new());
    assert_eq!(fs::read_dir(root.path(QUARANTINE)).unwrap().count(), 0);
}

#[test]
fn file_larger_than_quarantine_stays() {
    let root = Place::new();
    let file = File::create(root.path(NAME)).unwrap();
    file.set_len(LEAST_BOUND.0 + 1).unwrap();
    root.quarantine(NAME).unwrap_err();
    assert!(root.path(NAME).exists());
    // A larger `max_package` makes the quarantine larger, too.
    let fingerprint = root.fingerprint(NAME);
    let larger = Bytes(LEAST_BOUND.0 + 1000);
    quarantine(root.0.path(), NAME, &fingerprint, "why", larger).unwrap();
    assert!(root.in_quarantine(NAME).exists());
}

#[test]
fn irregular_files_except_directories_are_quarantined() {
    let root = Place::new();
    let at = |kind: &str| format!("{kind}{SUFFIX}");
    root.write(&at("file"), "");
    fs::create_dir(root.path(&at("directory"))).unwrap();
    symlink("nowhere", root.path(&at("link"))).unwrap();
    mkfifo(&root.path(&at("fifo")), Mode::S_IRWXU).unwrap();
    let _socket = UnixListener::bind(root.path(&at("socket"))).unwrap();
    assert_eq!(invalid_reason(root.0.path(), &at("file")).unwrap(), None);
    for (kind, what) in [
        ("directory", "a directory"),
        ("link", "a symbolic link"),
        ("fifo", "a FIFO"),
        ("socket", "a socket"),
    ] {
        let reason = invalid_reason(root.0.path(), &at(kind)).unwrap().unwrap();
        assert!(reason.contains(what), "{reason}");
        let moved = root.quarantine(&at(kind));
        let there = fs::symlink_metadata(root.in_quarantine(&at(kind))).is_ok();
        assert_eq!((moved.is_ok(), there), (kind != "directory", kind != "directory"), "{kind}");
    }
    assert!(root.path(&at("directory")).is_dir());
}

#[test]
fn quarantine_follows_no_links() {
    let (root, foreign) = (Place::new(), Place::new());
    for index in 0..=MAX_QUARANTINED {
        foreign.write(&format!("{index}{SUFFIX}"), "foreign");
    }
    symlink(foreign.0.path(), root.path(QUARANTINE)).unwrap();
    root.write(NAME, "bad");
    let told = chain(&root.quarantine(NAME).unwrap_err());
    assert!(told.contains("quarantine: it is a symbolic link"), "{told}");
    assert!(root.path(NAME).exists());
    list_quarantined(root.0.path()).unwrap_err();
    let left = fs::read_dir(foreign.0.path()).unwrap().count();
    assert_eq!(left, MAX_QUARANTINED + 1);

    // A broken link is not followed either, nor a link inside the quarantine.
    fs::remove_file(root.path(QUARANTINE)).unwrap();
    symlink(root.path("nowhere"), root.path(QUARANTINE)).unwrap();
    root.quarantine(NAME).unwrap_err();
    assert!(!root.path("nowhere").exists());
    fs::remove_file(root.path(QUARANTINE)).unwrap();
    root.quarantine(NAME).unwrap();
    let reason = root.in_quarantine(&format!("{NAME}{REASON}"));
    fs::remove_file(&reason).unwrap();
    foreign.write("secret", "secret");
    symlink(foreign.path("secret"), &reason).unwrap();
    let listed = list_quarantined(root.0.path()).unwrap();
    assert!(listed[0].1.contains("cannot open"), "{listed:?}");
    // A reader without a check would block on a FIFO without end.
    fs::remove_file(&reason).unwrap();
    mkfifo(&reason, Mode::S_IRWXU).unwrap();
    let listed = list_quarantined(root.0.path()).unwrap();
    assert!(listed[0].1.contains("not a regular file"), "{listed:?}");
}

#[test]
fn overlong_name_is_shortened() {
    let root = Place::new();
    for name in [
        format!("{}{SUFFIX}", "a".repeat(MAX_NAME + 1 - SUFFIX.len())),
        format!("{}{SUFFIX}", "a".repeat(255 - SUFFIX.len())),
        format!("{}b{SUFFIX}", "ä".repeat((254 - SUFFIX.len()) / 2)),
    ] {
        root.write(&name, "content");
        let reason = invalid_reason(root.0.path(), &name).unwrap().unwrap();
        assert!(reason.contains("at most 240"), "{reason}");
        let QuarantineResult::Moved(path) = root.quarantine(&name).unwrap() else {
            panic!("stays")
        };
        let kept_as = path.file_name().unwrap().to_str().unwrap();
        assert!(kept_as.len() <= MAX_NAME && kept_as.ends_with(SUFFIX), "{kept_as}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "content");
        assert!(root.in_quarantine(&format!("{kept_as}.reason")).exists());
    }
    assert_eq!(list_quarantined(root.0.path()).unwrap().len(), 3);
    let longest = format!("{}{SUFFIX}", "a".repeat(MAX_NAME - SUFFIX.len()));
    root.write(&longest, "");
    assert_eq!(invalid_reason(root.0.path(), &longest).unwrap(), None);
}

#[test]
fn replaced_file_is_not_quarantined() {
    let root = Place::new();
    let target = root.path("target");
    let replace = |content: &str| {
        root.write("new", content);
        fs::rename(root.path("new"), root.path(NAME)).unwrap();
    };
    let content = |path: &Path| fs::read_to_string(path).ok();

    // The file is replaced before `quarantine` examines it.
    root.write(NAME, "bad");
    let refused = root.fingerprint(NAME);
    replace("good");
    let moved = quarantine(root.0.path(), NAME, &refused, "why", PACKAGE).unwrap();
    assert_eq!(moved, QuarantineResult::Replaced);
    assert_eq!(content(&root.path(NAME)).as_deref(), Some("good"));
    assert!(!root.path(QUARANTINE).exists());

    // The file is replaced between the examination and the rename.
    let refused = root.fingerprint(NAME);
    let moved = move_with(&root.path(NAME), &target, &refused, || replace("better"));
    assert!(!moved.unwrap());
    assert_eq!(content(&root.path(NAME)).as_deref(), Some("better"));
    assert_eq!(content(&target), None);

    // The file is removed in between.
    let refused = root.fingerprint(NAME);
    let leave = || fs::remove_file(root.path(NAME)).unwrap();
    assert!(!move_with(&root.path(NAME), &target, &refused, leave).unwrap());

    // Nothing happens in between.
    root.write(NAME, "bad");
    let refused = root.fingerprint(NAME);
    assert!(move_with(&root.path(NAME), &target, &refused, || {}).unwrap());
    assert_eq!(content(&target).as_deref(), Some("bad"));
}
