//! Recognizes bodies that are not UTF-8, and repairs escapes of half a character.
//!
//! JSON is UTF-8, and parsers may skip a byte order mark
//! (<https://www.rfc-editor.org/rfc/rfc8259#section-8.1>). Programs in JavaScript cut texts between
//! the two halves of a surrogate pair, and write the half as an escape. The parsers of Go and
//! Python accept it, and that of this crate does not.

/// Byte order mark of UTF-8.
pub(super) const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
/// Length of an escape such as `\ud83d`.
const ESCAPE: usize = 6;
/// Digits of the escape of U+FFFD, the replacement character.
const REPLACEMENT: &[u8] = b"fffd";

/// Describes the encoding of a body that is not UTF-8; `None` for UTF-8.
pub(super) fn diagnose(bytes: &[u8]) -> Option<String> {
    // JSON begins with an ASCII character, so the zero bytes around it show the width of the
    // others: https://www.rfc-editor.org/rfc/rfc4627#section-3
    let name = match bytes {
        [0, 0, 0xfe, 0xff, ..] | [0xff, 0xfe, 0, 0, ..] => "UTF-32",
        [0xfe, 0xff, ..] | [0xff, 0xfe, ..] => "UTF-16",
        [0, 0, 0, 1..=255, ..] | [1..=255, 0, 0, 0, ..] => "UTF-32",
        [0, 1..=255, ..] | [1..=255, 0, ..] => "UTF-16",
        _ => {
            let error = std::str::from_utf8(bytes).err()?;
            return Some(format!("not UTF-8 at byte {}", error.valid_up_to()));
        }
    };
    Some(name.to_owned())
}

/// Replaces each escape of a surrogate without its other half by that of U+FFFD. Returns whether
/// there was one.
pub(super) fn replace_lone_surrogates(bytes: &mut [u8]) -> bool {
    let (mut at, mut has_replaced) = (0, false);
    // Outside of strings, a backslash is not JSON. So strings need not be parsed.
    while let Some(next) = backslash(bytes, at) {
        at = next;
        let Some(code) = escaped_code(bytes, at) else {
            // Another escape: skip its character, which may be a backslash.
            at += 2;
            continue;
        };
        let is_pair = (0xd800..0xdc00).contains(&code)
            && escaped_code(bytes, at + ESCAPE).is_some_and(|low| (0xdc00..0xe000).contains(&low));
        if !is_pair && (0xd800..0xe000).contains(&code) {
            bytes[at + 2..at + ESCAPE].copy_from_slice(REPLACEMENT);
            has_replaced = true;
        }
        at += if is_pair { 2 * ESCAPE } else { ESCAPE };
    }
    has_replaced
}

/// Returns the index of the first backslash from index `at` on.
fn backslash(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = bytes.get(at..)?;
    rest.iter().position(|byte| *byte == b'\\').map(|index| at + index)
}

/// Returns the code of the `\u` escape at index `at`; `None` if the bytes there are no such escape.
fn escaped_code(bytes: &[u8], at: usize) -> Option<u16> {
    let digits = bytes.get(at..at + ESCAPE)?.strip_prefix(b"\\u")?;
    // The parser of numbers accepts a sign.
    let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
    u16::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn replaced(json: &str) -> String {
        let mut bytes = json.as_bytes().to_vec();
        let has_replaced = replace_lone_surrogates(&mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(has_replaced, text != json, "{json}");
        text
    }

    #[test]
    fn lone_surrogates_are_replaced() {
        for (json, expected) in [
            (r#""cut \ud83d""#, r#""cut \ufffd""#),
            (r#""\uD83D""#, r#""\ufffd""#),
            (r#""\ude00 later""#, r#""\ufffd later""#),
            (r#""\ud83d\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#),
            (r#""\ude00\ud83d""#, r#""\ufffd\ufffd""#),
            (r#""\ud83d\\ude00""#, r#""\ufffd\\ude00""#),
            (r#""\\\ud83d""#, r#""\\\ufffd""#),
            (r#""\ud83d\n""#, r#""\ufffd\n""#),
        ] {
            assert_eq!(replaced(json), expected);
        }
    }

    #[test]
    fn other_text_is_unchanged() {
        for json in [
            r#""\ud83d\ude00""#,
            r#""\\ud83d""#,
            r#""\\\\ud83d""#,
            r#""\u00e4\ufffd\ud7ff\ue000""#,
            r#""\ud8""#,
            r#""\ud8zz""#,
            r#""\u+d80""#,
            r#""\"#,
            "\"\u{1f600}\"",
        ] {
            assert_eq!(replaced(json), json);
        }
    }

    #[test]
    fn other_encodings_are_named() {
        let utf16 = |text: &str, is_little: bool| -> Vec<u8> {
            let units = text.encode_utf16();
            units
                .flat_map(|unit| if is_little { unit.to_le_bytes() } else { unit.to_be_bytes() })
                .collect()
        };
        let utf32 = |text: &str| -> Vec<u8> {
            text.chars().flat_map(|char| u32::from(char).to_le_bytes()).collect()
        };
        for json in [r#"{"input":"a"}"#, "\u{feff}{}"] {
            for is_little in [true, false] {
                assert_eq!(diagnose(&utf16(json, is_little)).as_deref(), Some("UTF-16"), "{json}");
            }
            assert_eq!(diagnose(&utf32(json)).as_deref(), Some("UTF-32"), "{json}");
            assert_eq!(diagnose(json.as_bytes()), None);
        }
        let latin = diagnose(b"{\"input\":\"gr\xf6\xdfe\"}");
        assert_eq!(latin.as_deref(), Some("not UTF-8 at byte 12"));
    }

    proptest! {
        #[test]
        fn replaced_strings_are_valid_json(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    r"\ud83d", r"\ude00", r"\\", "u", "d83d", r"\n", "ä", r"\u0041", r"\uDBFF",
                ]),
                0..12,
            ),
        ) {
            let json = format!("\"{}\"", parts.concat());
            let text: Result<String, _> = serde_json::from_str(&replaced(&json));
            prop_assert!(text.is_ok(), "{} {:?}", json, text);
            // A valid string keeps its value.
            if let Ok(before) = serde_json::from_str::<String>(&json) {
                prop_assert_eq!(before, text.unwrap());
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            drop(diagnose(&bytes));
            replace_lone_surrogates(&mut bytes.clone());
        }
    }
}
