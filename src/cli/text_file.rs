//! Files of texts and of pairs for measurements.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::str::Utf8Error;

use serde::Deserialize;

use crate::base::units::Bytes;
use crate::files::FileError;

/// Most texts of a comparison. Every text is compared with every other one.
pub(super) const MAX_TEXTS: usize = 5000;
/// Longest text of a comparison. Models read only the beginning of longer ones.
const MAX_TEXT: Bytes = Bytes(64 << 10);
/// Largest file of a comparison, which is read into memory.
const MAX_FILE: Bytes = Bytes::mib(64);
/// Largest grade of a pair.
const MAX_GRADE: f64 = 100.0;

/// Reason why the texts of a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum InputError {
    /// A line is neither a JSON string nor UTF-8.
    #[error("line {line} of {} is not UTF-8; convert the file to UTF-8", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Line number from 1.
        line: usize,
        /// Position of the first wrong byte.
        source: Utf8Error,
    },
    /// A line is not a pair.
    #[error(
        "line {line} of {} is not a pair: {reason}; write QUERY<tab>TEXT<tab>GRADE, or in JSON \
         [\"QUERY\", \"TEXT\", GRADE], with or without the grade from 0 to {MAX_GRADE}",
        path.display()
    )]
    Pair {
        /// The file.
        path: PathBuf,
        /// Line number from 1.
        line: usize,
        /// Description of the fault.
        reason: String,
    },
    /// The file holds no text.
    #[error("{} contains no texts; write one text on each line", .0.display())]
    Empty(PathBuf),
    /// The file has too many texts to compare them all.
    #[error(
        "{} has more than {MAX_TEXTS} different texts, which is the limit of a comparison; take a \
         sample, for example with `shuf -n {MAX_TEXTS}`",
        .0.display()
    )]
    TooMany(PathBuf),
    /// A text is too long.
    #[error(
        "the text in line {line} of {} has more than {MAX_TEXT}, which is the limit of a \
         comparison; shorten it",
        path.display()
    )]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Line number from 1.
        line: usize,
    },
    /// The file is too large.
    #[error("{} has more than {MAX_FILE}; take a sample of its lines", .0.display())]
    TooLarge(PathBuf),
}

/// A query, and a text with its relevance for the query.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pair {
    pub(super) query: String,
    pub(super) text: String,
    /// Relevance, from 0 (irrelevant).
    pub(super) grade: f64,
}

/// Reads the texts of `path` in order, one from each line that is not empty; there is at least one.
pub(super) fn read_texts(path: &Path) -> anyhow::Result<Vec<String>> {
    // Not only regular files are accepted, so that the texts may come from a pipe.
    let file = File::open(path).map_err(FileError::new("open", path))?;
    let mut texts = Vec::new();
    for (line, text) in (1..).zip(BufReader::new(file).split(b'\n')) {
        let text = text.map_err(FileError::new("read", path))?;
        texts.extend(parse_text(path, line, &text)?);
    }
    if texts.is_empty() {
        return Err(InputError::Empty(path.to_owned()).into());
    }
    Ok(texts)
}

/// Reads the different texts of `path` in order, within the limits of a comparison; there is at
/// least one. Leaves out empty texts and lines, because the daemon rejects empty texts.
pub(super) fn read_few_texts(path: &Path) -> anyhow::Result<Vec<String>> {
    let file = read_small(path)?;
    let (mut texts, mut seen) = (Vec::new(), BTreeSet::new());
    for (line, text) in lines(&file) {
        let Some(text) = parse_text(path, line, text)? else { continue };
        check_length(path, line, &text)?;
        if !text.is_empty() && seen.insert(text.clone()) {
            texts.push(text);
        }
        if texts.len() > MAX_TEXTS {
            return Err(InputError::TooMany(path.to_owned()).into());
        }
    }
    match texts.is_empty() {
        true => Err(InputError::Empty(path.to_owned()).into()),
        false => Ok(texts),
    }
}

/// Reads the pairs of `path` in order, within the limits of a comparison; there is at least one.
pub(super) fn read_pairs(path: &Path) -> anyhow::Result<Vec<Pair>> {
    let file = read_small(path)?;
    let mut pairs = Vec::new();
    for (line, text) in lines(&file) {
        let pair = parse_pair(text).map_err(|reason| InputError::Pair {
            path: path.to_owned(),
            line,
            reason,
        })?;
        check_length(path, line, &pair.query)?;
        check_length(path, line, &pair.text)?;
        pairs.push(pair);
        if pairs.len() > MAX_TEXTS {
            return Err(InputError::TooMany(path.to_owned()).into());
        }
    }
    match pairs.is_empty() {
        true => Err(InputError::Empty(path.to_owned()).into()),
        false => Ok(pairs),
    }
}

fn read_small(path: &Path) -> anyhow::Result<Vec<u8>> {
    let file = File::open(path).map_err(FileError::new("open", path))?;
    let mut bytes = Vec::new();
    let limit = MAX_FILE.0 + 1;
    file.take(limit).read_to_end(&mut bytes).map_err(FileError::new("read", path))?;
    match bytes.len() as u64 > MAX_FILE.0 {
        true => Err(InputError::TooLarge(path.to_owned()).into()),
        false => Ok(bytes),
    }
}

/// Returns the lines of `file` with their numbers from 1.
fn lines(file: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let file = file.strip_suffix(b"\n").unwrap_or(file);
    (1..).zip(file.split(|byte| *byte == b'\n')).filter(|_line| !file.is_empty())
}

/// Returns the text of a line: the value of a JSON string, and every other line as it is. Returns
/// `None` for an empty line.
fn parse_text(path: &Path, line: usize, text: &[u8]) -> Result<Option<String>, InputError> {
    if let Ok(text) = serde_json::from_slice(text) {
        return Ok(Some(text));
    }
    let not_utf8 = |source| InputError::NotUtf8 { path: path.to_owned(), line, source };
    let text = str::from_utf8(text).map_err(not_utf8)?;
    let text = text.strip_suffix('\r').unwrap_or(text);
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

fn check_length(path: &Path, line: usize, text: &str) -> Result<(), InputError> {
    match text.len() as u64 > MAX_TEXT.0 {
        true => Err(InputError::TooLong { path: path.to_owned(), line }),
        false => Ok(()),
    }
}

/// Forms of a pair in JSON.
#[derive(Deserialize)]
#[serde(untagged)]
enum JsonPair {
    Ungraded(String, String),
    Graded(String, String, f64),
    #[serde(rename_all = "snake_case")]
    Named {
        query: String,
        text: String,
        #[serde(default = "one")]
        grade: f64,
    },
}

fn one() -> f64 {
    1.0
}

fn parse_pair(line: &[u8]) -> Result<Pair, String> {
    let text = std::str::from_utf8(line).map_err(|error| error.to_string())?;
    let text = text.trim_end_matches('\r');
    let pair = if text.trim_start().starts_with(['[', '{']) {
        match serde_json::from_str(text).map_err(|error| error.to_string())? {
            JsonPair::Ungraded(query, text) => Pair { query, text, grade: one() },
            JsonPair::Graded(query, text, grade) | JsonPair::Named { query, text, grade } => {
                Pair { query, text, grade }
            }
        }
    } else {
        let fields = Vec::from_iter(text.split('\t'));
        let (query, text, grade) = match fields.as_slice() {
            [query, text] => (query, text, one()),
            [query, text, grade] => {
                let grade = grade.trim().parse();
                (query, text, grade.map_err(|_not_a_number| "the grade is no number".to_owned())?)
            }
            _ => return Err(format!("it has {} fields", fields.len())),
        };
        Pair { query: (*query).to_owned(), text: (*text).to_owned(), grade }
    };
    if pair.query.is_empty() || pair.text.is_empty() {
        return Err("a text is empty".to_owned());
    }
    match (0.0..=MAX_GRADE).contains(&pair.grade) {
        true => Ok(pair),
        false => Err(format!("the grade is {}", pair.grade)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(line: &str) -> Result<(String, String, f64), String> {
        parse_pair(line.as_bytes()).map(|pair| (pair.query, pair.text, pair.grade))
    }

    fn expected(grade: f64) -> Result<(String, String, f64), String> {
        Ok(("a b".to_owned(), "c".to_owned(), grade))
    }

    #[test]
    fn pairs_are_read_from_tsv_and_json() {
        assert_eq!(pair("a b\tc"), expected(1.0));
        assert_eq!(pair("a b\tc\t2.5\r"), expected(2.5));
        assert_eq!(pair(r#"["a b", "c"]"#), expected(1.0));
        assert_eq!(pair(r#"["a b", "c", 3]"#), expected(3.0));
        assert_eq!(pair(r#"{"query": "a b", "text": "c", "grade": 0}"#), expected(0.0));
        assert_eq!(pair(r#"{"query": "a b", "text": "c"}"#), expected(1.0));
        for bad in
            ["", "a", "a\tb\tc\td", "a\tb\tx", "a\tb\tNaN", "a\tb\t-1", "a\t", "[1]", "{", "\tb"]
        {
            assert!(pair(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn texts_are_bounded_and_distinct() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("texts");
        let read = |content: String| {
            std::fs::write(&path, content).unwrap();
            read_few_texts(&path).map_err(|error| error.to_string())
        };
        assert_eq!(read("\"a\"\n\"\"\n\"b\"\n\"a\"\n".to_owned()).unwrap(), ["a", "b"]);
        assert!(read(String::new()).unwrap_err().contains("contains no texts"));
        let many = (0..=MAX_TEXTS).map(|index| format!("\"{index}\"\n")).collect();
        assert!(read(many).unwrap_err().contains("more than 5000 different texts"));
        let long = format!("\"{}\"\n", "x".repeat(65_537));
        assert!(read(long).unwrap_err().contains("the text in line 1 of"));
        assert_eq!(read("\"a\"\n\nb\n".to_owned()).unwrap(), ["a", "b"]);
        std::fs::write(&path, b"a\n\xff\n").unwrap();
        let error = read_few_texts(&path).unwrap_err().to_string();
        assert!(error.contains("line 2 of"), "{error}");
    }

    #[test]
    fn line_that_is_no_json_string_is_the_text() {
        let text = |line: &str| parse_text(Path::new("texts"), 1, line.as_bytes()).unwrap();
        for (line, expected) in [
            (r#""a\tb""#, Some("a\tb")),
            ("\"a\"\r", Some("a")),
            ("The pump runs hot.\r", Some("The pump runs hot.")),
            (r#""a" and "b""#, Some(r#""a" and "b""#)),
            (r#"{"text": "a"}"#, Some(r#"{"text": "a"}"#)),
            ("12", Some("12")),
            ("\"\"", Some("")),
            ("\r", None),
            ("", None),
        ] {
            assert_eq!(text(line).as_deref(), expected, "{line:?}");
        }
    }
}
