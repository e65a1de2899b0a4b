//! Attack: the daemon's user plants names and links in the store, and waits for root to run the
//! command line.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use serde_json::{Value, json};

use crate::support::packages::{file_name, names, until_answers};
use crate::support::{Root, STRANGER, pack, skipped};

/// Exit codes of `sysexits.h` for wrong input data and for an error of the system.
const DATA: i32 = 65;
const SYSTEM: i32 = 71;

/// The store of a stopped daemon, below a directory that only root may enter, as with
/// `DynamicUser=`. Store and drop directory belong to the daemon's user, the attacker.
struct Place {
    root: Root,
    state: PathBuf,
    drop: PathBuf,
}

impl Place {
    /// Creates the store with the model `m`, installed from the drop directory.
    fn new() -> Self {
        let root = Root::new();
        let private = root.path().join("private");
        let (state, drop) = (private.join("state"), private.join("state/packages"));
        fs::create_dir_all(&drop).unwrap();
        let root = root
            .with("memory.model_cache.directory", json!(state))
            .with("packages.drop_directory", json!(drop));
        fs::write(drop.join(file_name("m")), pack("tiny-bert-mean", "m", "1")).unwrap();
        let daemon = root.start();
        until_answers(&daemon, "m");
        let root = daemon.stop();
        fs::set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&private, Permissions::from_mode(0o700)).unwrap();
        give(&state);
        Self { root, state, drop }
    }

    /// Runs `caxton model` as root. Returns exit code and stderr.
    fn model(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.root.cli().arg("model").args(arguments).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), stderr)
    }

    /// Creates a directory that only root may enter.
    fn secret(&self) -> PathBuf {
        let secret = self.root.path().join("secret");
        fs::create_dir(&secret).unwrap();
        fs::set_permissions(&secret, Permissions::from_mode(0o700)).unwrap();
        secret
    }

    fn record(&self) -> PathBuf {
        let models = self.state.join("models");
        let entries = names(&models);
        let entry = entries.iter().find(|name| name.starts_with("m@")).unwrap();
        models.join(entry).join("record.json")
    }
}

fn path_in(directory: &Path, name: &str) -> String {
    directory.join(name).into_os_string().into_string().unwrap()
}

/// Gives `path` and all files below it to the attacker.
fn give(path: &Path) {
    chown(path, Some(STRANGER), Some(STRANGER)).unwrap();
    if path.is_dir() {
        for name in names(path) {
            give(&path.join(name));
        }
    }
}

/// Returns all files below `path` that do not belong to the attacker.
fn foreign(path: &Path) -> Vec<PathBuf> {
    let metadata = fs::symlink_metadata(path).unwrap();
    let mut found = Vec::new();
    if (metadata.uid(), metadata.gid()) != (STRANGER, STRANGER) {
        found.push(path.to_owned());
    }
    if metadata.is_dir() {
        found.extend(names(path).iter().flat_map(|name| foreign(&path.join(name))));
    }
    found
}

#[test]
fn record_with_path_as_file_name_is_rejected() {
    let place = Place::new();
    let victim = place.root.path().join("victim.model.tar.zst");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("file"), "of root").unwrap();
    // The attacker may delete this directory, so only the check of the name protects it.
    give(&victim);
    let path = place.record();
    let good: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let upwards = format!("../../../{}", victim.file_name().unwrap().to_str().unwrap());
    let remove_with = |name: &str| {
        let mut record = good.clone();
        record["origin"] = json!({ "dropped": { "files": { name: "" } } });
        fs::write(&path, record.to_string()).unwrap();
        let removed = place.model(&["remove", "m"]);
        assert_eq!(fs::read_to_string(victim.join("file")).unwrap(), "of root");
        removed
    };
    let indirect = format!("/tmp/..{}", victim.display());
    for name in [&upwards, &indirect] {
        let (code, stderr) = remove_with(name);
        assert_eq!(code, DATA, "{stderr}");
        assert!(stderr.contains("is not the name of a package file"), "{stderr}");
    }
    // A path names a file of a further drop directory, from which nothing is removed.
    let (code, stderr) = remove_with(victim.to_str().unwrap());
    assert_eq!(code, 0, "{stderr}");
}

#[test]
fn root_acts_with_owner_rights_in_store() {
    if !geteuid().is_root() {
        return skipped("root_acts_with_owner_rights_in_store", "root");
    }
    let place = Place::new();
    let victim = place.root.path().join("victim");
    fs::create_dir(&victim).unwrap();
    let file = victim.join(file_name("m"));
    fs::write(&file, "of root").unwrap();
    fs::rename(&place.drop, place.state.join("moved")).unwrap();
    symlink(&victim, &place.drop).unwrap();
    let (code, stderr) = place.model(&["remove", "m"]);
    assert_eq!(code, SYSTEM, "{stderr}");
    // The error names the directory by its path, not by the handle through which it was opened.
    assert!(stderr.contains(place.drop.to_str().unwrap()), "{stderr}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "of root");
}

#[test]
fn store_files_keep_owner_when_root_administers() {
    if !geteuid().is_root() {
        return skipped("store_files_keep_owner_when_root_administers", "root");
    }
    let place = Place::new();
    let secret = place.secret();
    let (file, exported) = (path_in(&secret, "n.model.tar.zst"), path_in(&secret, "exported"));
    let package = pack("tiny-bert-cls", "n", "2");
    fs::write(&file, &package).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    for arguments in [
        &["verify", &file][..],
        &["install", &file],
        &["list"],
        &["verify", "n"],
        &["export", "n", "--output", &exported],
        &["remove", "m"],
    ] {
        let (code, stderr) = place.model(arguments);
        assert_eq!(code, 0, "{arguments:?}: {stderr}");
    }
    assert_eq!(fs::read(&exported).unwrap(), package);
    assert_eq!(fs::metadata(&exported).unwrap().uid(), 0);
    assert_eq!(foreign(&place.state), Vec::<PathBuf>::new());
    assert_eq!(names(&place.drop), Vec::<String>::new());
    assert_eq!(names(&secret), ["exported", "n.model.tar.zst"]);
}

#[test]
fn failed_export_leaves_no_file() {
    if !geteuid().is_root() {
        return skipped("failed_export_leaves_no_file", "root");
    }
    let place = Place::new();
    let secret = place.secret();
    let output = path_in(&secret, "no");
    let (code, stderr) = place.model(&["export", "absent", "--output", &output]);
    assert_eq!(code, DATA, "{stderr}");
    assert!(stderr.contains("\"absent\" is not installed"), "{stderr}");
    assert_eq!(names(&secret), Vec::<String>::new());
}
