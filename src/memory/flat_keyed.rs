//! Parses numbers in the kernel's text files: a single number, as in `memory.max`, or lines with a
//! key and a number, as in `memory.stat`, `memory.events`, `/proc/meminfo` and `/proc/self/status`.
//!
//! The functions are pure. Keys include the colon where the file has one.

/// Error for a text without the expected content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum KernelTextError {
    /// The value is not a whole number below 2^64.
    #[error("{0} is not a number")]
    NotANumber(&'static str),
    /// The line is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
}

/// Smallest value that means "no limit". Version 1 writes the largest whole number of pages in 63
/// bits for it.
const NO_LIMIT: u64 = 1 << 62;

/// Parses a text that is a single number.
pub(super) fn parse_number(text: &str) -> Result<u64, KernelTextError> {
    text.trim_ascii().parse().map_err(|_cause| KernelTextError::NotANumber("its content"))
}

/// Parses a text that is a single limit in bytes; `None` means that there is no limit.
pub(super) fn parse_limit(text: &str) -> Result<Option<u64>, KernelTextError> {
    if text.trim_ascii() == "max" {
        return Ok(None);
    }
    Ok(Some(parse_number(text)?).filter(|limit| *limit < NO_LIMIT))
}

/// Returns the number after `key`; `None` without such a line, because kernels report different
/// keys.
pub(super) fn find_number(text: &str, key: &'static str) -> Result<Option<u64>, KernelTextError> {
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() == Some(key) {
            let number = words.next().and_then(|word| word.parse().ok());
            return number.map(Some).ok_or(KernelTextError::NotANumber(key));
        }
    }
    Ok(None)
}

/// Returns the number after a `key` that every kernel reports.
pub(super) fn require_number(text: &str, key: &'static str) -> Result<u64, KernelTextError> {
    find_number(text, key)?.ok_or(KernelTextError::Missing(key))
}

/// Returns the sum of the numbers after `keys`. Absent keys count as 0.
pub(super) fn sum_numbers(text: &str, keys: &[&'static str]) -> Result<u64, KernelTextError> {
    keys.iter().try_fold(0_u64, |sum, key| {
        Ok(sum.saturating_add(find_number(text, key)?.unwrap_or_default()))
    })
}

/// Converts kilobytes to bytes. The kernel's `kB` means 1024 bytes.
pub(super) fn kibibytes(number: u64) -> u64 {
    number.saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn value_is_found_missing_or_malformed() {
        let text = "anon 12\nanonymous 13\nMemTotal:  7 kB\nfar 99999999999999999999\nbare\nx -1\n";
        assert_eq!(find_number(text, "anon"), Ok(Some(12)));
        assert_eq!(find_number(text, "MemTotal:"), Ok(Some(7)));
        assert_eq!(find_number(text, "file"), Ok(None));
        assert_eq!(require_number(text, "file"), Err(KernelTextError::Missing("file")));
        assert_eq!(sum_numbers(text, &["anon", "file", "anonymous"]), Ok(25));
        for key in ["far", "bare", "x"] {
            assert_eq!(find_number(text, key), Err(KernelTextError::NotANumber(key)));
            assert_eq!(sum_numbers(text, &["anon", key]), Err(KernelTextError::NotANumber(key)));
        }
    }

    #[test]
    fn a_limit_is_a_number_or_none() {
        assert_eq!(parse_limit("268435456\n"), Ok(Some(268_435_456)));
        assert_eq!(parse_limit("0\n"), Ok(Some(0)));
        // The values of kernels with pages of 4 KiB and of 64 KiB.
        for none in ["max\n", "9223372036854771712\n", "9223372036854710272\n"] {
            assert_eq!(parse_limit(none), Ok(None), "{none}");
        }
        for bad in ["", "\n", "-1\n", "1.5\n", "maximum\n", "1 2\n", "99999999999999999999\n"] {
            assert_eq!(parse_limit(bad), Err(KernelTextError::NotANumber("its content")), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn sums_saturate(a: u64, b: u64) {
            let text = format!("a {a}\nb {b}\n");
            prop_assert_eq!(sum_numbers(&text, &["a", "b"]), Ok(a.saturating_add(b)));
            prop_assert!(kibibytes(a) >= a);
        }
    }
}
