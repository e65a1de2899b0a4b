//! Lines of standard input, with bounds.

use std::io::{self, BufRead, Read};

use anyhow::{Context, bail};

use crate::base::units::Bytes;

/// Longest line. The daemon reads only the beginning of a text as long as this.
const MAX_LINE: Bytes = Bytes::mib(8);

/// A line that is not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Number from 1.
    pub(super) number: u64,
    /// Text without the line break.
    pub(super) text: String,
}

/// Reader of lines. Empty lines count, but are not returned: the API rejects empty texts.
pub(super) struct Lines<R> {
    reader: R,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, number: 0 }
    }

    /// Returns the next line that is not empty, or `None` at the end.
    ///
    /// # Errors
    /// When the input cannot be read, or a line is too long or not UTF-8.
    pub(super) fn next_line(&mut self) -> anyhow::Result<Option<Line>> {
        loop {
            let mut bytes = Vec::new();
            let mut limited = self.reader.by_ref().take(MAX_LINE.0 + 1);
            let read = limited.read_until(b'\n', &mut bytes);
            if read.context("cannot read standard input")? == 0 {
                return Ok(None);
            }
            self.number += 1;
            let number = self.number;
            if bytes.len() as u64 > MAX_LINE.0 {
                bail!("line {number} of standard input has more than {MAX_LINE}");
            }
            if bytes.pop_if(|last| *last == b'\n').is_some() {
                bytes.pop_if(|last| *last == b'\r');
            }
            if !bytes.is_empty() {
                let text = String::from_utf8(bytes).map_err(io::Error::other);
                let text =
                    text.with_context(|| format!("line {number} of standard input is not UTF-8"))?;
                return Ok(Some(Line { number, text }));
            }
        }
    }

    /// Skips the first `count` lines.
    ///
    /// # Errors
    /// When the input cannot be read.
    pub(super) fn skip(&mut self, count: u64) -> anyhow::Result<()> {
        while self.number < count {
            let skipped = self.reader.skip_until(b'\n').context("cannot read standard input")?;
            if skipped == 0 {
                break;
            }
            self.number += 1;
        }
        Ok(())
    }

    /// Returns the next lines that are not empty, up to `count` lines and about `bytes` bytes, but
    /// at least one. Returns none at the end.
    ///
    /// # Errors
    /// Those of [`next_line`](Self::next_line).
    pub(super) fn chunk(&mut self, count: usize, bytes: usize) -> anyhow::Result<Vec<Line>> {
        let (mut lines, mut size) = (Vec::new(), 0);
        while lines.len() < count && size < bytes {
            let Some(line) = self.next_line()? else { break };
            size += line.text.len();
            lines.push(line);
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(lines: &[Line]) -> Vec<(u64, &str)> {
        lines.iter().map(|line| (line.number, line.text.as_str())).collect()
    }

    #[test]
    fn chunks_keep_numbers_and_leave_out_empty_lines() {
        let mut lines = Lines::new(&b"one\n\ntwo\r\nthree\nfour"[..]);
        assert_eq!(numbered(&lines.chunk(2, 100).unwrap()), [(1, "one"), (3, "two")]);
        assert_eq!(numbered(&lines.chunk(9, 1).unwrap()), [(4, "three")]);
        assert_eq!(numbered(&lines.chunk(9, 100).unwrap()), [(5, "four")]);
        assert_eq!(lines.chunk(9, 100).unwrap(), []);
    }

    #[test]
    fn skipped_lines_include_empty_ones() {
        let mut lines = Lines::new(&b"one\n\nthree\n"[..]);
        lines.skip(2).unwrap();
        assert_eq!(numbered(&lines.chunk(9, 100).unwrap()), [(3, "three")]);
        lines.skip(99).unwrap();
        assert_eq!(lines.chunk(9, 100).unwrap(), []);
    }

    #[test]
    fn invalid_line_is_named() {
        let error = Lines::new(&b"one\n\xff\n"[..]).chunk(9, 100).unwrap_err();
        assert_eq!(error.to_string(), "line 2 of standard input is not UTF-8");
        let endless = io::repeat(b'x').take(MAX_LINE.0 + 5);
        let error = Lines::new(io::BufReader::new(endless)).next_line().unwrap_err();
        assert!(error.to_string().starts_with("line 1 of standard input has more than"), "{error}");
    }
}
