//! Quotes text from a package for a message.
//!
//! A package may contain a tensor name with terminal escapes, or one of a megabyte. Messages go to
//! terminals, to the journal and into files, so they must contain neither.

use std::fmt::Display;

/// Maximum number of characters of a quoted text.
const MOST_CHARACTERS: usize = 80;
/// Maximum number of characters of a library's message, which may quote one or two texts.
const MOST_TOLD: usize = 400;

/// Returns `text` in double quotes, escaped as in a Rust literal and cut after [`MOST_CHARACTERS`].
///
/// Control characters and those that change the direction of writing are escaped.
pub(super) fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    push_escaped(&mut out, text, MOST_CHARACTERS, |character| character == '\'');
    out.push('"');
    out
}

/// Returns the message of a library about a package without surrounding quotes, escaped as in
/// [`quote`] and cut after [`MOST_TOLD`] characters. Quotes and backslashes stay as they are, so
/// text that was already quoted does not change.
pub(super) fn escape(message: impl Display) -> String {
    let mut out = String::new();
    let plain = |character| matches!(character, '\'' | '"' | '\\');
    push_escaped(&mut out, &message.to_string(), MOST_TOLD, plain);
    out
}

fn push_escaped(out: &mut String, text: &str, most: usize, plain: impl Fn(char) -> bool) {
    for (count, character) in text.chars().enumerate() {
        match character {
            _ if count == most => {
                out.push('…');
                return;
            }
            _ if plain(character) => out.push(character),
            _ => out.extend(character.escape_debug()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_control_characters_are_escaped() {
        assert_eq!(quote("silu"), "\"silu\"");
        assert_eq!(quote("it's \"x\"\\"), r#""it's \"x\"\\""#);
        for evil in ["\u{1b}[2J", "\u{9b}2J", "a\nb", "\u{202e}gnp", "\u{2066}", "\u{200f}", "\0"] {
            for told in [quote(evil), escape(evil)] {
                assert!(told.is_ascii(), "{told}");
                assert!(!told.chars().any(char::is_control), "{told:?}");
            }
        }
        assert_eq!(escape("unknown variant `\u{1b}`, \"x\""), "unknown variant `\\u{1b}`, \"x\"");
    }

    #[test]
    fn long_text_is_truncated() {
        let told = quote(&"é".repeat(1_000_000));
        assert_eq!(told.chars().count(), MOST_CHARACTERS + 3);
        assert!(told.ends_with("é…\""));
        let told = escape(format!("{} is not a word", quote(&"\u{1b}".repeat(1_000_000))));
        assert!(told.starts_with("\"\\u{1b}\\u{1b}") && told.chars().count() == MOST_TOLD + 1);
    }
}
