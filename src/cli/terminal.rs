//! Standard output and standard error: the only code of the command line that writes to them.
//!
//! Invariant: control, bidirectional and invisible characters are escaped, except the line breaks
//! and tabs of our own layout. Much of the output comes from packages, file names and the daemon,
//! which an attacker may control.

use std::io::{self, IsTerminal, StderrLock, StdoutLock, Write};

use crate::base::printable::is_printable;

/// Returns standard output for text.
pub(super) fn out() -> EscapingWriter<StdoutLock<'static>> {
    EscapingWriter::new(io::stdout().lock(), EscapeForm::Text)
}

/// Returns standard output for JSON and configuration files; escapes are those of JSON.
pub(super) fn json() -> EscapingWriter<StdoutLock<'static>> {
    EscapingWriter::new(io::stdout().lock(), EscapeForm::Json)
}

/// Returns standard error.
pub(super) fn err() -> EscapingWriter<StderrLock<'static>> {
    EscapingWriter::new(io::stderr().lock(), EscapeForm::Text)
}

/// Returns standard output for a package, without escapes.
pub(super) fn bytes() -> StdoutLock<'static> {
    io::stdout().lock()
}

/// Returns whether standard output is a terminal.
pub(super) fn is_interactive() -> bool {
    io::stdout().is_terminal()
}

/// Form of an escape.
#[derive(Clone, Copy, Debug)]
enum EscapeForm {
    /// Rust's form: `\u{1b}`.
    Text,
    /// The form of JSON, `\u001b`, which a JSON parser reads as the same string.
    Json,
}

/// Writer of text that escapes characters that cannot be printed.
pub(super) struct EscapingWriter<W: Write> {
    inner: W,
    form: EscapeForm,
    /// First bytes of a character that continues in the next write.
    begun: Vec<u8>,
}

impl<W: Write> EscapingWriter<W> {
    fn new(inner: W, form: EscapeForm) -> Self {
        Self { inner, form, begun: Vec::new() }
    }

    fn escaped(&self, text: &str, out: &mut String) {
        for c in text.chars() {
            match (is_printable(c) || matches!(c, '\n' | '\t'), self.form) {
                (true, _) => out.push(c),
                (false, EscapeForm::Text) => out.extend(c.escape_default()),
                (false, EscapeForm::Json) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
            }
        }
    }
}

impl<W: Write> Write for EscapingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut all = std::mem::take(&mut self.begun);
        all.extend_from_slice(bytes);
        let mut out = String::with_capacity(all.len());
        let mut chunks = all.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            self.escaped(chunk.valid(), &mut out);
            let invalid = chunk.invalid();
            // At the end of the input, this may be the first part of a character.
            let is_begun = chunks.peek().is_none() && invalid.len() < 4 && begins(invalid);
            if is_begun {
                self.begun = invalid.to_vec();
            } else if !invalid.is_empty() {
                out.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.inner.write_all(out.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Returns whether `bytes`, which are not a complete character, can become one with more bytes.
fn begins(bytes: &[u8]) -> bool {
    str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(form: EscapeForm, pieces: &[&[u8]]) -> String {
        let mut writer = EscapingWriter::new(Vec::new(), form);
        pieces.iter().for_each(|piece| writer.write_all(piece).unwrap());
        String::from_utf8(writer.inner).unwrap()
    }

    #[test]
    fn unprintable_characters_are_escaped() {
        let hostile = "a\u{1b}[2J\u{9b}\u{202e}\n\tb\u{e0041}".as_bytes();
        assert_eq!(
            written(EscapeForm::Text, &[hostile]),
            "a\\u{1b}[2J\\u{9b}\\u{202e}\n\tb\\u{e0041}"
        );
        let json = "\"\u{9b}\u{202e}\u{e0041}\"";
        let shown = written(EscapeForm::Json, &[json.as_bytes()]);
        assert_eq!(shown, r#""\u009b\u202e\udb40\udc41""#);
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), "\u{9b}\u{202e}\u{e0041}");
    }

    #[test]
    fn split_characters_are_joined_and_broken_ones_replaced() {
        let text = "ü€🦀".as_bytes();
        for at in 0..text.len() {
            assert_eq!(written(EscapeForm::Text, &[&text[..at], &text[at..]]), "ü€🦀", "{at}");
        }
        assert_eq!(written(EscapeForm::Text, &[b"\xc3", b"a\xff"]), "\u{fffd}a\u{fffd}");
    }

    proptest! {
        #[test]
        fn arbitrary_output_is_printable(pieces: Vec<Vec<u8>>) {
            let pieces = Vec::from_iter(pieces.iter().map(Vec::as_slice));
            let shown = written(EscapeForm::Text, &pieces);
            prop_assert!(shown.chars().all(|c| is_printable(c) || "\n\t".contains(c)), "{:?}", shown);
        }
    }
}
