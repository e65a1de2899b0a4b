//! Finds the control groups of this process and the directories that show them.
//!
//! The module reads `/proc/self/cgroup` (the groups) and `/proc/self/mountinfo` (the mounts), below
//! a root directory that tests replace. Three setups exist: version 2 alone; version 1, with one
//! hierarchy per controller; and "hybrid", where version 2 is mounted besides version 1 without the
//! memory controller, so that it has pressure but no limits.
//!
//! Paths in `/proc/self/cgroup` and the roots of mounts are both relative to this process's cgroup
//! namespace (<https://man7.org/linux/man-pages/man7/cgroup_namespaces.7.html>). A mount therefore
//! shows a group exactly when its root is a prefix of the group's path.

use std::path::{Path, PathBuf};

use crate::files::{self, FileError};

/// Longest file read here. On a machine with thousands of mounts, `mountinfo` has a megabyte.
const MAX_FILE: u64 = 8 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CgroupVersion {
    One,
    Two,
}

/// Visible part of a hierarchy, from the mount point down to this process's group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) version: CgroupVersion,
    mount: PathBuf,
    own: PathBuf,
    /// The group at the mount point is the root group of the system.
    is_whole: bool,
}

impl Hierarchy {
    /// Returns the directory of this process's group.
    pub(super) fn own(&self) -> &Path {
        &self.own
    }

    /// Returns the directories of this process's group and of its ancestors, its own first.
    pub(super) fn directories(&self) -> impl Iterator<Item = &Path> {
        self.own.ancestors().take_while(|directory| directory.starts_with(&self.mount))
    }

    /// Returns the directories of the groups that can have limits. The root group cannot.
    pub(super) fn limited(&self) -> impl Iterator<Item = &Path> {
        self.directories().filter(|directory| !self.is_whole || *directory != self.mount)
    }

    /// Returns the paths of the files that limit the memory of the group in `directory`; they need
    /// not exist.
    pub(super) fn limits(&self, directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
        let names: &[&str] = match self.version {
            CgroupVersion::One => &["memory.limit_in_bytes"],
            CgroupVersion::Two => &["memory.max", "memory.high"],
        };
        let directory = directory.to_owned();
        names.iter().map(move |name| directory.join(name))
    }

    /// Returns whether `path` is visible through this mount, in any group.
    pub(super) fn shows(&self, path: &Path) -> bool {
        path.starts_with(&self.mount)
    }

    /// Returns whether this process is in the root group, whose figures are those of the machine.
    pub(super) fn is_topmost(&self) -> bool {
        self.is_whole && self.own == self.mount
    }

    /// Returns whether the group at the mount point is the root group of the system.
    ///
    /// Its path does not answer this: the root of every namespace is `/`. But the kernel creates
    /// certain files only in the root group (version 1) or in all groups but the root (version 2).
    fn shows_all(&self) -> bool {
        match self.version {
            CgroupVersion::One => self.mount.join("cgroup.sane_behavior").exists(),
            CgroupVersion::Two => !self.mount.join("cgroup.events").exists(),
        }
    }
}

/// Memory-related groups of this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ProcessGroups {
    /// Hierarchy in which memory is charged and limited.
    pub(super) memory: Option<Hierarchy>,
    /// Hierarchy of version 2, in which pressure is counted. Equal to `memory` if that is version
    /// 2.
    pub(super) unified: Option<Hierarchy>,
}

/// File with the groups of this process. As long as its content is the same, the process was not
/// moved.
pub(super) const MEMBERSHIP: &str = "proc/self/cgroup";

/// Finds the groups in `membership` that are mounted.
pub(super) fn find(root: &Path, membership: &str) -> Result<ProcessGroups, FileError> {
    let mut groups = groups(root, membership, &read(&root.join("proc/self/mountinfo"))?);
    // Check this once and not for each sample: looking for an absent file allocates kernel memory.
    for hierarchy in [&mut groups.memory, &mut groups.unified].into_iter().flatten() {
        hierarchy.is_whole = hierarchy.shows_all();
    }
    Ok(groups)
}

/// Reads a kernel file that is needed once. Bytes that are not UTF-8 become U+FFFD, which every
/// parser here rejects.
pub(super) fn read(path: &Path) -> Result<String, FileError> {
    Ok(String::from_utf8_lossy(&files::read_limited(path, MAX_FILE)?).into_owned())
}

fn groups(root: &Path, membership: &str, mountinfo: &str) -> ProcessGroups {
    let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
    let hierarchy = |version, path: &str| {
        let shown = mounts.iter().filter(|mount| mount.version == version);
        // The mount with the shortest root shows the most groups above ours. A later mount on the
        // same path covers an earlier one, so search from the end.
        let (mount, below) = shown
            .filter_map(|mount| Some((mount, below(&mount.root, path)?)))
            .rev()
            .min_by_key(|(mount, _)| mount.root.len())?;
        let mount = root.join(mount.point.trim_start_matches('/'));
        let own = if below.is_empty() { mount.clone() } else { mount.join(below) };
        Some(Hierarchy { version, mount, own, is_whole: false })
    };
    let mut first = None;
    let mut second = None;
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if id == "0" && controllers.is_empty() {
            second = Some(path);
        } else if controllers.split(',').any(|name| name == "memory") {
            first = Some(path);
        }
    }
    let unified = second.and_then(|path| hierarchy(CgroupVersion::Two, path));
    // A controller belongs to one hierarchy at a time.
    let memory = match first {
        Some(path) => hierarchy(CgroupVersion::One, path),
        None => unified.clone(),
    };
    ProcessGroups { memory, unified }
}

/// Returns the path of the group `path` relative to the group `root`; `None` if `root` does not
/// contain it.
fn below<'a>(root: &str, path: &'a str) -> Option<&'a str> {
    let rest = path.strip_prefix(root.trim_end_matches('/'))?;
    let rest = if rest.is_empty() { rest } else { rest.strip_prefix('/')? };
    // `/..` is above the namespace. `root` may begin with it, but every component below `root` must
    // be a name. An empty component would make the rest an absolute path, and `join` would then
    // leave the mount.
    let has_names = || rest.split('/').all(|name| !matches!(name, "" | ".."));
    (rest.is_empty() || has_names()).then_some(rest)
}

/// Mounted hierarchy that may be related to memory.
struct Mount {
    version: CgroupVersion,
    /// Group at the mount point.
    root: String,
    point: String,
}

impl Mount {
    /// Parses a line of `mountinfo`
    /// (<https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html>).
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let version = match after.next()? {
            "cgroup2" => CgroupVersion::Two,
            "cgroup" if after.nth(1)?.split(',').any(|option| option == "memory") => {
                CgroupVersion::One
            }
            _ => return None,
        };
        let mut before = before.split(' ').skip(3);
        Some(Self { version, root: unescape(before.next()?), point: unescape(before.next()?) })
    }
}

/// Decodes the octal escapes of characters that would split a field.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |field, (escape, sign)| field.replace(escape, sign))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNIFIED: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw";
    const HYBRID: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    fn own(hierarchy: Option<&Hierarchy>) -> Option<(CgroupVersion, &str)> {
        hierarchy.map(|hierarchy| (hierarchy.version, hierarchy.own.to_str().unwrap()))
    }

    #[test]
    fn all_cgroup_hierarchies_are_found() {
        use CgroupVersion::{One, Two};
        let v1 = HYBRID.replace("cgroup2 cgroup2", "cgroup cgroup");
        for (name, membership, mountinfo, memory, unified) in [
            (
                "version 2",
                "0::/system.slice/caxton.service\n",
                UNIFIED,
                Some((Two, "/sys/fs/cgroup/system.slice/caxton.service")),
                Some((Two, "/sys/fs/cgroup/system.slice/caxton.service")),
            ),
            (
                "version 1",
                "5:cpu,cpuacct:/x\n4:memory:/a/b\n1:name=systemd:/a\n",
                v1.as_str(),
                Some((One, "/sys/fs/cgroup/memory/a/b")),
                None,
            ),
            (
                "hybrid",
                "4:memory:/a\n0::/b\n",
                HYBRID,
                Some((One, "/sys/fs/cgroup/memory/a")),
                Some((Two, "/sys/fs/cgroup/unified/b")),
            ),
            (
                "hybrid, with the memory controller in version 2",
                "3:cpu:/a\n0::/b\n",
                HYBRID,
                Some((Two, "/sys/fs/cgroup/unified/b")),
                Some((Two, "/sys/fs/cgroup/unified/b")),
            ),
            (
                "a colon in the path",
                "0::/a:b\n",
                UNIFIED,
                Some((Two, "/sys/fs/cgroup/a:b")),
                Some((Two, "/sys/fs/cgroup/a:b")),
            ),
            ("nothing mounted", "0::/a\n", "", None, None),
            ("a name is missing", "0:://a\n", UNIFIED, None, None),
            ("nothing said", "", HYBRID, None, None),
            ("half a line", "0:\n4:memory\n\n:::\n", HYBRID, None, None),
        ] {
            let found = groups(Path::new("/"), membership, mountinfo);
            assert_eq!(own(found.memory.as_ref()), memory, "{name}");
            assert_eq!(own(found.unified.as_ref()), unified, "{name}");
        }
    }

    #[test]
    fn group_is_found_in_partial_mounts() {
        for (root, path, found) in [
            // The process has its own namespace: the mount shows its group as the root.
            ("/", "/", Some("/sys/fs/cgroup")),
            ("/", "/sub", Some("/sys/fs/cgroup/sub")),
            // A container without its own namespace: a part of the tree is mounted, and paths are
            // those of the host.
            ("/docker/1", "/docker/1", Some("/sys/fs/cgroup")),
            ("/docker/1", "/docker/1/sub", Some("/sys/fs/cgroup/sub")),
            ("/docker/1", "/docker/12", None),
            ("/docker/1", "/", None),
            // The process was moved out of the namespace, or the host's hierarchy is mounted within
            // it.
            ("/", "/..", None),
            ("/", "/../other", None),
            ("/../..", "/../..", Some("/sys/fs/cgroup")),
            ("/../..", "/../../a", Some("/sys/fs/cgroup/a")),
            ("/../..", "/", None),
            ("/..", "/../..", None),
        ] {
            let mountinfo = UNIFIED.replace(" / /sys", &format!(" {root} /sys"));
            let groups = groups(Path::new("/"), &format!("0::{path}\n"), &mountinfo);
            let own = groups.memory.as_ref().map(|memory| memory.own().to_str().unwrap());
            assert_eq!(own, found, "{path} in a mount of {root}");
        }
    }

    #[test]
    fn widest_and_latest_mount_is_used() {
        let part = UNIFIED.replace(" / /sys/fs/cgroup", " /a /part");
        let covering = UNIFIED.replace("/sys/fs/cgroup", "/again");
        let mountinfo = format!("{part}\n{UNIFIED}\n{covering}\n{part}\n");
        let groups = groups(Path::new("/"), "0::/a/b\n", &mountinfo);
        let directories: Vec<_> = groups.memory.as_ref().unwrap().directories().collect();
        assert_eq!(directories, ["/again/a/b", "/again/a", "/again"].map(Path::new));
    }

    #[test]
    fn mount_point_escapes_are_decoded() {
        let mountinfo = UNIFIED.replace("/sys/fs/cgroup", r"/a\040b\134\011c");
        let groups = groups(Path::new("/r"), "0::/x\n", &mountinfo);
        assert_eq!(groups.memory.unwrap().own(), Path::new("/r/a b\\\tc/x"));
    }

    proptest! {
        #[test]
        fn arbitrary_text_stays_within_the_mount(
            membership in "([0-9]:(memory)?:(/(\\.\\.|a|.)){0,4}\n?){0,4}",
            mountinfo in "([0-9 ]{0,4} (/(\\.\\.|a)){0,3} /m.{0,3} - cgroup2? .{0,3} ?(memory)?\n?){0,4}",
        ) {
            for hierarchy in {
                let groups = groups(Path::new("/r"), &membership, &mountinfo);
                [groups.memory, groups.unified]
            }.into_iter().flatten() {
                prop_assert!(hierarchy.shows(hierarchy.own()));
                prop_assert!(hierarchy.own().starts_with("/r"));
                prop_assert!(hierarchy.directories().count() > 0);
            }
        }
    }
}
