//! Parses pressure stall information: the share of time in which tasks waited for memory.
//!
//! The format is described in <https://docs.kernel.org/accounting/psi.html>.

/// Time lost to memory stalls in a control group or on the whole machine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Psi {
    /// Percentage of the last 10 s in which some task waited.
    pub some_avg10: f32,
    /// Percentage of the last 60 s in which some task waited.
    pub some_avg60: f32,
    /// Percentage of the last 10 s in which all tasks waited; 0 on kernels that do not count it.
    pub full_avg10: f32,
    /// Microseconds in which some task waited, since the start of the machine or the creation of
    /// the group.
    pub some_total_us: u64,
}

/// Error for a text that is not a pressure file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it does not have the format of a pressure file")]
pub(super) struct NotPressure;

impl Psi {
    /// Parses a `memory.pressure` file.
    pub(super) fn parse(text: &str) -> Result<Self, NotPressure> {
        Self::read(text).ok_or(NotPressure)
    }

    fn read(text: &str) -> Option<Self> {
        let line = |kind: &str| {
            text.lines().find_map(|line| line.strip_prefix(kind).filter(|l| l.starts_with(' ')))
        };
        let some = line("some")?;
        Some(Self {
            some_avg10: percent(some, "avg10")?,
            some_avg60: percent(some, "avg60")?,
            full_avg10: match line("full") {
                Some(full) => percent(full, "avg10")?,
                None => 0.0,
            },
            some_total_us: value(some, "total")?.parse().ok()?,
        })
    }
}

fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// Parses a percentage. Rejects NaN and infinity, which `parse` accepts.
fn percent(line: &str, key: &str) -> Option<f32> {
    value(line, key)?.parse().ok().filter(|percent| (0.0..=100.0).contains(percent))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SOME: &str = "some avg10=1.50 avg60=0.25 avg300=0.00 total=123456\n";

    #[test]
    fn pressure_file_is_parsed() {
        let some =
            Psi { some_avg10: 1.5, some_avg60: 0.25, full_avg10: 0.0, some_total_us: 123_456 };
        assert_eq!(Psi::parse(SOME), Ok(some));
        let both = format!("{SOME}full avg10=0.75 avg60=0.00 avg300=0.00 total=99\n");
        assert_eq!(Psi::parse(&both), Ok(Psi { full_avg10: 0.75, ..some }));
    }

    #[test]
    fn malformed_pressure_file_is_refused() {
        for text in [
            "",
            "some",
            "something avg10=1.50 avg60=0.25 avg300=0.00 total=1\n",
            "full avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
            "some avg10=nan avg60=0.00 avg300=0.00 total=1\n",
            "some avg10=inf avg60=0.00 avg300=0.00 total=1\n",
            "some avg10=-1 avg60=0.00 avg300=0.00 total=1\n",
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=-1\n",
            "some avg10=0.00 avg60=0.00 avg300=0.00\n",
            "some avg10 avg60=0.00 avg300=0.00 total=1\n",
        ] {
            assert_eq!(Psi::parse(text), Err(NotPressure), "{text}");
        }
        let bad_full = format!("{SOME}full avg10=x\n");
        assert_eq!(Psi::parse(&bad_full), Err(NotPressure));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "((some|full)?( (avg10|avg60|total)=?[0-9.]{0,22}.?){0,4}\n?){0,3}") {
            if let Ok(psi) = Psi::parse(&text) {
                prop_assert!((0.0..=100.0).contains(&psi.some_avg10));
            }
        }
    }
}
