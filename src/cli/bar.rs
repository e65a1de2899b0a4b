//! Bars of characters that show how much of something is used, readable without colour and without
//! Unicode.

use std::env;

/// Returns a bar such as `[####----]`, `width` characters in all. Any share above zero shows at
/// least one mark, and only a full share fills the bar.
pub(super) fn bar(share: f64, width: usize, unicode: bool) -> String {
    let (full, free) = if unicode { ('█', '░') } else { ('#', '-') };
    let inner = width.saturating_sub(2);
    let share = if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to inner")]
    let mut cells = (share * inner as f64).round() as usize;
    if share > 0.0 {
        cells = cells.max(1);
    }
    if share < 1.0 {
        cells = cells.min(inner.saturating_sub(1));
    }
    let cell = |index| if index < cells { full } else { free };
    let inner: String = (0..inner).map(cell).collect();
    format!("[{inner}]")
}

/// Returns the part of `whole` that `used` is; 1 if `whole` is 0.
pub(super) fn share(used: u64, whole: u64) -> f64 {
    if whole == 0 { 1.0 } else { used as f64 / whole as f64 }
}

/// Returns whether the locale uses UTF-8. The first of these variables that is set decides, as in
/// the C library.
pub(super) fn supports_unicode() -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .filter_map(|name| env::var(name).ok())
        .find(|value| !value.is_empty());
    locale.is_some_and(|locale| is_unicode(&locale))
}

fn is_unicode(locale: &str) -> bool {
    let locale = locale.to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bar_shows_empty_partial_and_full() {
        for (share, expected) in [
            (0.0, "[--------]"),
            (0.001, "[#-------]"),
            (0.5, "[####----]"),
            (0.999, "[#######-]"),
            (1.0, "[########]"),
            (7.0, "[########]"),
            (f64::NAN, "[--------]"),
        ] {
            assert_eq!(bar(share, 10, false), expected, "{share}");
        }
        assert_eq!(bar(0.5, 4, true), "[█░]");
        assert_eq!(share(0, 0), 1.0);
    }

    #[test]
    fn unicode_locales_are_recognized() {
        let speak = ["de_DE.UTF-8", "C.utf8", "en_US.UTF-8@euro"];
        let do_not = ["C", "POSIX", "de_DE.ISO-8859-1", "ja_JP.eucJP"];
        assert!(speak.iter().all(|locale| is_unicode(locale)));
        assert!(!do_not.iter().any(|locale| is_unicode(locale)));
    }

    proptest! {
        #[test]
        fn bar_has_requested_width(share: f64, width in 2_usize..200) {
            prop_assert_eq!(bar(share, width, true).chars().count(), width);
        }
    }
}
