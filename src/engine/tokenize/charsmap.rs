//! Checks the charsmap of SentencePiece: a double array that maps byte sequences of a text to their
//! normalized form.
//!
//! The library that applies the charsmap (`spm_precompiled`) allocates by a length in the data and
//! indexes by its offsets without checks of its own. The format is `[u32: bytes of the array][array
//! of u32][texts, each ended by a zero]`, little-endian. Each unit of the array has its label in
//! the low eight bits. Bit 8 states that a value follows. Bits 10 and above are the offset to the
//! children; bit 9 multiplies it by 256. Bit 31 marks a unit that is a value:
//! <https://github.com/google/sentencepiece/blob/v0.2.0/third_party/darts_clone/darts.h>.
//!
//! Invariants of a charsmap that passed the check:
//! 1. No search leaves the array, whatever the text.
//! 2. Each value points into the block of texts, at a character boundary before its end.
//! 3. A normalized text has at most [`MOST_EXPANSION`] times as many characters as the text has
//!    bytes, except for [`MOST_LONG`] keys.

/// Maximum size of a charsmap in bytes. Those of SentencePiece have a quarter of this.
const MOST_BYTES: usize = 1 << 20;
/// Number of units in a block; the children of a node lie in one block.
const BLOCK: usize = 256;
/// Maximum number of characters that replace each byte of a key. NFKC needs two, except for the
/// keys that [`MOST_LONG`] counts.
const MOST_EXPANSION: usize = 2;
/// Maximum number of keys with a longer replacement. NFKC has two, both Arabic ligatures: U+FDFA
/// becomes 18 characters and U+FDFB 8.
const MOST_LONG: usize = 8;
/// Maximum number of characters of a longer replacement.
const MOST_LONG_CHARACTERS: usize = 18;
/// Maximum number of bytes that the library looks up at once.
const LONGEST_KEY: usize = 5;

const LEAF: u32 = 1 << 31;

/// Returns the offset from a unit to its children.
const fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize
}

const fn has_value(unit: u32) -> bool {
    unit & (1 << 8) != 0
}

/// Checks the charsmap in `bytes`. Takes time and memory in proportion to their number.
///
/// # Errors
/// Returns a description of the problem that completes a sentence with the subject "the charsmap".
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    if bytes.len() > MOST_BYTES {
        return Err(format!("has {} bytes, more than {MOST_BYTES}", bytes.len()));
    }
    let Some((length, rest)) = bytes.split_first_chunk() else {
        return Err(format!("has {} bytes, too few for its length", bytes.len()));
    };
    let length = u32::from_le_bytes(*length) as usize;
    let Some((array, texts)) = rest.split_at_checked(length) else {
        return Err(format!("declares {length} bytes for its array, but has {}", rest.len()));
    };
    let (units, []) = array.as_chunks() else {
        return Err(format!("has an array of {length} bytes, which is not a multiple of 4"));
    };
    let units: Vec<u32> = units.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
    if units.is_empty() || !units.len().is_multiple_of(BLOCK) {
        let count = units.len();
        return Err(format!("has an array of {count} units, which is not a multiple of {BLOCK}"));
    }
    let texts = str::from_utf8(texts).map_err(|_invalid| "has texts that are not UTF-8")?;
    check_places(&units, texts)?;
    check_expansion(&units, texts)
}

/// Checks that no unit has children or a value outside the array. This includes units that no
/// search reaches.
fn check_places(units: &[u32], texts: &str) -> Result<(), String> {
    // A search follows the children of the root without checking its kind.
    if units[0] & LEAF != 0 {
        return Err("has a value for its root".to_owned());
    }
    for (at, &unit) in units.iter().enumerate().filter(|(_, unit)| *unit & LEAF == 0) {
        let children = at ^ offset(unit);
        let Some(&value) = units.get(children).filter(|_| children | (BLOCK - 1) < units.len())
        else {
            return Err(format!("points at unit {children} of {}", units.len()));
        };
        if has_value(unit) && text_at(texts, value).is_none() {
            let place = value & !LEAF;
            return Err(format!("points at byte {place} of {} bytes of texts", texts.len()));
        }
    }
    Ok(())
}

/// Returns the text at the position in `value`, or `None` if the position is invalid.
fn text_at(texts: &str, value: u32) -> Option<&str> {
    let text = texts.get((value & !LEAF) as usize..).filter(|text| !text.is_empty())?;
    // Limit the search for the final zero. Otherwise, many values that point into one long text
    // would take quadratic time.
    let end = text.floor_char_boundary(4 * (MOST_LONG_CHARACTERS + 1));
    let text = &text[..end];
    Some(text.split_once('\0').map_or(text, |(text, _)| text))
}

/// Checks the length of the replacement of each key.
///
/// The search proceeds by the length of the keys and visits each unit once. So a unit that several
/// keys reach is checked with the shortest key, which has the strictest limit.
fn check_expansion(units: &[u32], texts: &str) -> Result<(), String> {
    let mut seen = vec![false; units.len()];
    let mut long = 0;
    let mut nodes = vec![offset(units[0])];
    for length in 1..=LONGEST_KEY {
        let mut next = Vec::new();
        for children in nodes {
            for label in 1..BLOCK {
                // In bounds: `check_places` has verified that the block of children lies in the
                // array.
                let at = children ^ label;
                let unit = units[at];
                if (unit & (LEAF | 0xff)) as usize != label || seen[at] {
                    continue;
                }
                seen[at] = true;
                let below = at ^ offset(unit);
                next.push(below);
                if !has_value(unit) {
                    continue;
                }
                let characters =
                    text_at(texts, units[below]).map_or(0, |text| text.chars().count());
                long += usize::from(characters > MOST_EXPANSION * length);
                // Only keys of at least three bytes, such as the two ligatures, may have a longer
                // replacement.
                if characters > MOST_LONG_CHARACTERS
                    || long > MOST_LONG
                    || (length < 3 && characters > MOST_EXPANSION * length)
                {
                    return Err(format!("turns {length} bytes into {characters} characters"));
                }
            }
        }
        nodes = next;
    }
    Ok(())
}

#[cfg(test)]
pub(in crate::engine) mod tests {
    use super::*;

    /// Builds a charsmap of keys of one byte each, every key with its replacement text.
    pub(in crate::engine) fn charsmap(entries: &[(u8, &str)]) -> Vec<u8> {
        // The children of the root are in the first block. The value of unit `u` is at `u ^ 0x200`,
        // in the third block.
        let mut units = vec![0_u32; 4 * BLOCK];
        let mut texts = Vec::new();
        for &(key, text) in entries {
            let place = u32::try_from(texts.len()).unwrap();
            units[usize::from(key)] = u32::from(key) | 1 << 8 | 0x200 << 10;
            units[usize::from(key) ^ 0x200] = place | LEAF;
            texts.extend(text.bytes().chain([0]));
        }
        let length = u32::try_from(units.len() * 4).unwrap().to_le_bytes();
        let units = units.iter().flat_map(|unit| unit.to_le_bytes());
        length.into_iter().chain(units).chain(texts).collect()
    }

    fn refusal(bytes: &[u8]) -> String {
        check(bytes).unwrap_err()
    }

    #[test]
    fn valid_charsmap_runs_in_the_library() {
        let bytes = charsmap(&[(b'a', "b"), (b'\t', " "), (b'x', ""), (b'!', "ﬁ½")]);
        check(&bytes).unwrap();
        let library = tokenizers::normalizers::Precompiled::from(&bytes).unwrap();
        assert_eq!(library.normalize_string("a\tax!ü"), "b bﬁ½ü");
    }

    #[test]
    fn inconsistent_lengths_are_refused() {
        // The library would reserve eight gigabytes for this charsmap.
        assert_eq!(
            refusal(b"\xff\xff\xff\xff"),
            "declares 4294967295 bytes for its array, but has 0"
        );
        assert_eq!(refusal(b"\x04\0"), "has 2 bytes, too few for its length");
        assert!(refusal(&[0; 4]).contains("array of 0 units"));
        assert!(refusal(b"\x01\0\0\0a").contains("not a multiple of 4"));
        assert!(refusal(b"\x04\0\0\0abcd").contains("array of 1 units"));
        assert!(refusal(&vec![0; MOST_BYTES + 1]).contains("more than"));
        let mut bytes = charsmap(&[(b'a', "b")]);
        bytes.push(0xff);
        assert_eq!(refusal(&bytes), "has texts that are not UTF-8");
    }

    /// Builds a charsmap with one unit changed.
    fn changed(at: usize, unit: u32) -> Vec<u8> {
        let mut bytes = charsmap(&[(b'a', "é"), (b'b', "c")]);
        bytes[4 + 4 * at..][..4].copy_from_slice(&unit.to_le_bytes());
        bytes
    }

    #[test]
    fn out_of_range_offsets_are_refused() {
        let a = usize::from(b'a');
        assert!(refusal(&changed(a, u32::from(b'a') | 0x400 << 10)).contains("of 1024"));
        assert!(refusal(&changed(0, 0x001f_ffff << 10)).starts_with("points at unit"));
        // The positions are behind the last byte (twice), in the middle of a character, and far
        // behind the end.
        for place in [5, 6, 1, u32::MAX >> 1] {
            let bytes = changed(a ^ 0x200, LEAF | place);
            assert!(refusal(&bytes).starts_with("points at byte"), "{place}");
        }
        assert!(check(&changed(a ^ 0x200, LEAF | 3)).is_ok());
    }

    #[test]
    fn excessive_expansion_is_refused() {
        assert!(check(&charsmap(&[(b'a', "bc")])).is_ok());
        assert_eq!(refusal(&charsmap(&[(b'a', "bcd")])), "turns 1 bytes into 3 characters");
        assert_eq!(
            refusal(&charsmap(&[(b'a', &"b".repeat(1000))])),
            "turns 1 bytes into 76 characters"
        );
    }

    #[test]
    fn cyclic_double_array_terminates() {
        // Each unit of the first block is a child of the root, and they all have the same children.
        let mut bytes = charsmap(&[(b'a', "b")]);
        for label in 1..BLOCK {
            let unit = u32::try_from(label | label << 10).unwrap();
            bytes[4 + 4 * label..][..4].copy_from_slice(&unit.to_le_bytes());
        }
        assert!(check(&bytes).is_ok());
    }

    #[test]
    fn leaf_root_is_refused() {
        let mut bytes = charsmap(&[(b'a', "b")]);
        bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(refusal(&bytes), "has a value for its root");
    }

    proptest::proptest! {
        #[test]
        fn accepted_charsmap_never_panics_and_bounds_expansion(
            changes in proptest::collection::vec((0_usize..1030, proptest::num::u32::ANY), 0..8),
            text in "[ab\t é½\u{300}a-z]{0,40}",
        ) {
            let mut bytes = charsmap(&[(b'a', "bc"), (b'\t', " "), (b'b', ""), (0xc3, "é")]);
            for (at, value) in changes {
                if let Some(unit) = bytes.get_mut(4 * at..4 * at + 4) {
                    unit.copy_from_slice(&value.to_le_bytes());
                }
            }
            if check(&bytes).is_ok() {
                let library = tokenizers::normalizers::Precompiled::from(&bytes).unwrap();
                let longer = library.normalize_string(&text).chars().count();
                proptest::prop_assert!(longer <= text.len() * MOST_LONG_CHARACTERS);
            }
        }
    }
}
