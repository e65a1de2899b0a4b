//! Formats an error with its causes as one line, at the edges of the program.

use std::error::Error;
use std::io;

/// Returns `error` and its causes, joined by colons. Each error prints only its own part and not
/// its cause.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    Vec::from_iter(causes.map(ToString::to_string)).join(": ")
}

/// Returns the errno in the causes of `error`, for journald's field `ERRNO`.
pub fn errno(error: &(dyn Error + 'static)) -> Option<i32> {
    std::iter::successors(Some(error), |&error| error.source())
        .find_map(|error| error.downcast_ref::<io::Error>()?.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::FileError;

    #[test]
    fn errno_is_found_in_error_chain() {
        let missing = io::Error::from_raw_os_error(2);
        let error = FileError::new("read", std::path::Path::new("/nowhere"))(missing);
        assert_eq!(errno(&error), Some(2));
        assert_eq!(errno(&io::Error::other("no number")), None);
    }
}
