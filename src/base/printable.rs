//! Makes text safe to show to people: escapes characters that control a terminal or are invisible.
//!
//! File names, messages of parsers and strings in packages may contain any character. A control
//! character can move the cursor, change colours or set the title of the terminal. A bidirectional
//! character changes the order in which text is shown. An invisible character makes two different
//! names look equal.

use std::borrow::Cow;

/// Returns whether `c` can be shown unchanged. Control characters (C0, C1, DEL), Unicode line and
/// paragraph separators, bidirectional characters and invisible characters cannot.
pub fn is_printable(c: char) -> bool {
    let hidden = matches!(
        c,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    );
    !(hidden || c.is_control())
}

/// Returns `text` as one line: each character that is not printable becomes an escape such as `\n`
/// or `\u{1b}`.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// Returns `text` with its line feeds and tabs. Each other character that is not printable becomes
/// an escape.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| matches!(c, '\n' | '\t'))
}

fn escaped(text: &str, stays: impl Fn(char) -> bool) -> Cow<'_, str> {
    let shown = |c: char| is_printable(c) || stays(c);
    if text.chars().all(shown) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if shown(c) {
            out.push(c);
        } else {
            out.extend(c.escape_default());
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_and_invisible_characters_are_escaped() {
        for (text, expected) in [
            ("plain text, größer 日本語 🦀", "plain text, größer 日本語 🦀"),
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("\u{9b}2J\u{7f}", "\\u{9b}2J\\u{7f}"),
            ("a\u{202e}b\u{2066}c\u{200b}d\u{e0041}", "a\\u{202e}b\\u{2066}c\\u{200b}d\\u{e0041}"),
            ("a\r\n\tb", "a\\r\\n\\tb"),
        ] {
            assert_eq!(line(text), expected);
        }
        assert_eq!(lines("a\r\n\tb\u{2028}c"), "a\\r\n\tb\\u{2028}c");
    }

    proptest! {
        #[test]
        fn arbitrary_text_becomes_printable(text: String) {
            prop_assert!(line(&text).chars().all(is_printable));
            prop_assert!(lines(&text).chars().all(|c| is_printable(c) || "\n\t".contains(c)));
        }
    }
}
