//! Quoting of words for suggested shell commands: each stays one word, whatever it contains.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::base::printable::is_printable;

/// Quotes `word` for a shell: unchanged if no character in it is special to a shell, otherwise in
/// quotes. Characters that cannot be printed become escapes between `$'` and `'`, which bash, zsh,
/// ksh and shells of POSIX 2024 support.
pub(super) fn quote(word: impl AsRef<OsStr>) -> String {
    let bytes = word.as_ref().as_bytes();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_@%+:,./-".contains(byte);
    match str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && bytes.iter().all(plain) => text.to_owned(),
        Ok(text) if text.chars().all(is_printable) => format!("'{}'", text.replace('\'', r"'\''")),
        _ => escaped(bytes),
    }
}

fn escaped(bytes: &[u8]) -> String {
    let mut out = "$'".to_owned();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\'' | '\\' => out.extend(['\\', c]),
                c if is_printable(c) => out.push(c),
                c => octal(&mut out, c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        octal(&mut out, chunk.invalid());
    }
    out.push('\'');
    out
}

fn octal(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        out.push_str(&format!("\\{byte:03o}"));
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn special_characters_are_quoted_for_the_shell() {
        for (word, expected) in [
            ("/var/lib/caxton/packages", "/var/lib/caxton/packages"),
            ("m@1.0-rc1", "m@1.0-rc1"),
            ("", "''"),
            ("x;touch pwned;", "'x;touch pwned;'"),
            ("a'b", r"'a'\''b'"),
            ("~root", "'~root'"),
            ("$(id)`id`*?[a]", "'$(id)`id`*?[a]'"),
            ("größe", "'größe'"),
            ("a\nb\u{1b}'\\\u{202e}", r"$'a\012b\033\'\\\342\200\256'"),
        ] {
            assert_eq!(quote(word), expected);
        }
        assert_eq!(quote(OsStr::from_bytes(b"a\xff")), r"$'a\377'");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn shell_round_trips_quoted_word(word in prop::collection::vec(1_u8..=255, 0..24)) {
            // Checks the words that need an escape only in bash, the others in `sh`.
            let word = OsStr::from_bytes(&word);
            let quoted = quote(word);
            let shell = if quoted.starts_with('$') { "bash" } else { "sh" };
            let script = format!("printf %s {quoted}");
            if let Ok(output) = Command::new(shell).arg("-c").arg(&script).output() {
                prop_assert_eq!(output.stdout, word.as_bytes());
            }
        }
    }
}
