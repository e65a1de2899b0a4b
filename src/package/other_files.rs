//! Files of a drop directory that are not packages, although an operator may take them for one.
//!
//! Decides by the name alone on the kind of such a file and on the advice to the operator, and
//! selects the files that are logged. Both are bounded: a directory may hold any number of files.
//! Pure: the caller passes the names and the time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{SIDECARS, SUFFIX};

/// Number of files in [`OtherFiles`].
const MAX_LISTED: usize = 16;
/// Number of files of one directory that are mentioned in the log while the program runs. One more
/// record gives the number of all others.
const MAX_MENTIONED: usize = 16;
/// Time from the first scan with a file until it is mentioned. Some programs copy a file under
/// another name and rename it at the end.
const CONFIRM: Duration = Duration::from_secs(3);

/// Directories that a file system or another program creates, and the quarantine.
const IGNORED_DIRECTORIES: [&str; 5] =
    ["quarantine", "lost+found", "System Volume Information", "$RECYCLE.BIN", "RECYCLER"];
/// Endings of files that another program still writes.
const UNFINISHED: [&str; 8] =
    [".part", ".partial", ".tmp", ".temp", ".crdownload", ".download", ".filepart", "~"];
const ARCHIVES: [&str; 11] = [
    ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tar.lz4", ".zip", ".7z",
    ".rar",
];
const WEIGHTS: [&str; 6] = [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5"];
const FOREIGN: [&str; 6] = [".onnx", ".gguf", ".ggml", ".tflite", ".mlmodel", ".pb"];

/// Kind of a file that is not a package, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherKind {
    /// A package by its name, except that the ending is not in lower case.
    UpperCase,
    /// A file whose name has a part of a package's ending.
    OtherEnding,
    /// An archive in another format.
    Archive,
    /// Weights without the other files of a model.
    Weights,
    /// A model in a format that Caxton does not run.
    Foreign,
    /// A directory.
    Directory,
    /// Any other file.
    Unknown,
}

impl OtherKind {
    /// Returns the kind of the file `name`, or `None` if it is not reported: a package, a sidecar, a
    /// hidden file or a copy in progress.
    pub(super) fn of(name: &str, is_directory: bool) -> Option<Self> {
        let lower = name.to_ascii_lowercase();
        let ends_with = |endings: &[&str]| endings.iter().any(|ending| lower.ends_with(ending));
        if name.starts_with('.') || name.ends_with(SUFFIX) || ends_with(&UNFINISHED) {
            return None;
        }
        if is_directory {
            return (!IGNORED_DIRECTORIES.contains(&name)).then_some(Self::Directory);
        }
        if ends_with(&SIDECARS) {
            return None;
        }
        Some(if lower.ends_with(SUFFIX) {
            Self::UpperCase
        } else if ends_with(&[".tar.zst", ".tzst", ".zst", ".model"]) {
            Self::OtherEnding
        } else if ends_with(&ARCHIVES) {
            Self::Archive
        } else if ends_with(&WEIGHTS) {
            Self::Weights
        } else if ends_with(&FOREIGN) {
            Self::Foreign
        } else {
            Self::Unknown
        })
    }

    /// Returns whether only a model has such a name. A removable disk also holds other files.
    pub fn is_surely_model(self) -> bool {
        match self {
            Self::UpperCase | Self::Foreign => true,
            Self::OtherEnding | Self::Archive | Self::Weights | Self::Directory | Self::Unknown => {
                false
            }
        }
    }

    /// Returns the description of the file, and the advice to the operator.
    pub fn advice(self) -> &'static str {
        match self {
            Self::UpperCase => {
                "the ending of a package is in lower case: rename the file to end in .model.tar.zst"
            }
            Self::OtherEnding => {
                "the name of a package ends in .model.tar.zst: if `caxton model pack` or `caxton \
                 model export` wrote the file, rename it"
            }
            Self::Archive => {
                "it is another archive and not a package: unpack it elsewhere, make a package of \
                 the model's directory with `caxton model pack`, and copy that here"
            }
            Self::Weights => {
                "it is a file of weights and not a package: make a package of the model's \
                 directory, with configuration and tokenizer, with `caxton model pack`, and copy \
                 that here"
            }
            Self::Foreign => {
                "it is a model in another format and not a package: make a package of it with \
                 `caxton model pack`, which reads GGUF; for other formats, take the directory of \
                 the same model with safetensors. Copy the package here"
            }
            Self::Directory => {
                "it is a directory and not a package: if it holds a model, make a package of it \
                 with `caxton model pack`, and copy that here"
            }
            Self::Unknown => {
                "it is not a package: only files whose names end in .model.tar.zst are installed; \
                 remove it, or make a package of its model with `caxton model pack`"
            }
        }
    }
}

/// Files of one directory that are not packages, as one scan finds them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OtherFiles {
    /// The first files in the order of their names.
    pub listed: BTreeMap<String, OtherKind>,
    /// Number of all such files.
    pub count: usize,
}

impl OtherFiles {
    /// Adds a file of the kind `kind`.
    pub(super) fn insert(&mut self, name: String, kind: OtherKind) {
        self.count += 1;
        let is_early = self.listed.last_key_value().is_some_and(|(last, _)| name < *last);
        if self.listed.len() < MAX_LISTED || is_early {
            self.listed.insert(name, kind);
        }
        if self.listed.len() > MAX_LISTED {
            self.listed.pop_last();
        }
    }

    /// Removes the listed files that are not surely models, and counts only the others.
    #[must_use]
    pub fn only_models(mut self) -> Self {
        self.listed.retain(|_, kind| kind.is_surely_model());
        self.count = self.listed.len();
        self
    }
}

/// Files to mention after one scan.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct OtherFilesNews {
    /// Files that were not mentioned before.
    pub mention: Vec<(String, OtherKind)>,
    /// Number of further files, none of which is mentioned. Given once.
    pub further: Option<usize>,
    /// Instant of the next scan.
    pub next: Option<Instant>,
}

/// Record of the files of one directory that were mentioned.
#[derive(Debug, Default)]
pub struct OtherFilesLog {
    /// Files of the last scan, with the time of the first scan with them; `None` when the file was
    /// mentioned.
    seen: BTreeMap<String, Option<Instant>>,
    mentioned: usize,
    is_summarized: bool,
}

impl OtherFilesLog {
    /// Returns the files of a scan at `now` to mention.
    pub fn observe(&mut self, found: &OtherFiles, now: Instant) -> OtherFilesNews {
        let mut news = OtherFilesNews::default();
        self.seen.retain(|name, _| found.listed.contains_key(name));
        let mut further = found.count - found.listed.len();
        for (name, kind) in &found.listed {
            let first = self.seen.entry(name.clone()).or_insert(Some(now));
            let Some(due) = first.map(|first| first + CONFIRM) else { continue };
            if self.mentioned >= MAX_MENTIONED {
                further += 1;
            } else if now < due {
                news.next = news.next.into_iter().chain([due]).min();
            } else {
                *first = None;
                self.mentioned += 1;
                news.mention.push((name.clone(), *kind));
            }
        }
        if further > 0 && news.next.is_none() && !self.is_summarized {
            self.is_summarized = true;
            news.further = Some(further);
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_decide_kind_and_advice() {
        for (name, kind, word) in [
            ("m.MODEL.tar.zst", OtherKind::UpperCase, "lower case"),
            ("m.tar.zst", OtherKind::OtherEnding, "rename it"),
            ("m.model", OtherKind::OtherEnding, "rename it"),
            ("m.tar.gz", OtherKind::Archive, "unpack"),
            ("M.ZIP", OtherKind::Archive, "unpack"),
            ("model.safetensors", OtherKind::Weights, "tokenizer"),
            ("model.onnx", OtherKind::Foreign, "safetensors"),
            ("m.gguf", OtherKind::Foreign, "safetensors"),
            ("notes.txt", OtherKind::Unknown, ".model.tar.zst"),
            ("", OtherKind::Unknown, ".model.tar.zst"),
        ] {
            assert_eq!(OtherKind::of(name, false), Some(kind), "{name}");
            assert!(kind.advice().contains(word), "{name}");
        }
        assert_eq!(OtherKind::of("all-MiniLM-L6-v2", true), Some(OtherKind::Directory));
        for name in [
            "m.model.tar.zst",
            "m.model.tar.zst.sha256",
            "m.model.tar.zst.minisig",
            ".m.model.tar.zst.Xa3b9Q",
            "m.model.tar.zst.part",
            "m.gguf~",
        ] {
            assert_eq!(OtherKind::of(name, false), None, "{name}");
        }
        assert_eq!(OtherKind::of("quarantine", true), None);
    }

    #[test]
    fn each_file_is_mentioned_once_after_confirmation() {
        let start = Instant::now();
        let (mut log, mut found) = (OtherFilesLog::default(), OtherFiles::default());
        found.insert("m.gguf".to_owned(), OtherKind::Foreign);
        let first = log.observe(&found, start);
        assert_eq!(
            first,
            OtherFilesNews { next: Some(start + CONFIRM), ..OtherFilesNews::default() }
        );
        let second = log.observe(&found, start + CONFIRM);
        assert_eq!(second.mention, [("m.gguf".to_owned(), OtherKind::Foreign)]);
        assert_eq!(log.observe(&found, start + 2 * CONFIRM), OtherFilesNews::default());
        // A copy that got its final name in time is not mentioned.
        found.insert("n.gguf".to_owned(), OtherKind::Foreign);
        assert_eq!(log.observe(&found, start + 3 * CONFIRM).mention, []);
        found.listed.remove("n.gguf");
        found.count -= 1;
        assert_eq!(log.observe(&found, start + 4 * CONFIRM), OtherFilesNews::default());
    }

    #[test]
    fn junk_is_summarized_once() {
        let start = Instant::now();
        let (mut log, mut found) = (OtherFilesLog::default(), OtherFiles::default());
        for number in (0..100_000).rev() {
            found.insert(format!("{number:06}"), OtherKind::Unknown);
        }
        assert_eq!((found.listed.len(), found.count), (MAX_LISTED, 100_000));
        assert_eq!(found.listed.keys().next().map(String::as_str), Some("000000"));
        assert_eq!(log.observe(&found, start).mention, []);
        let news = log.observe(&found, start + CONFIRM);
        assert_eq!((news.mention.len(), news.further), (MAX_MENTIONED, Some(100_000 - MAX_LISTED)));
        // A program that renames its files forever adds nothing.
        for round in 1..100_u32 {
            let mut renamed = OtherFiles::default();
            renamed.insert(format!("{round}"), OtherKind::Unknown);
            assert_eq!(log.observe(&renamed, start + round * CONFIRM), OtherFilesNews::default());
        }
    }

    #[test]
    fn removable_disk_may_hold_other_files() {
        let mut found = OtherFiles::default();
        for (name, kind) in [
            ("holiday.zip", OtherKind::Archive),
            ("m.gguf", OtherKind::Foreign),
            ("photos", OtherKind::Directory),
        ] {
            found.insert(name.to_owned(), kind);
        }
        let models = found.only_models();
        assert_eq!((models.listed.len(), models.count), (1, 1));
        assert!(models.listed.contains_key("m.gguf"));
    }
}
