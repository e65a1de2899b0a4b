//! Defines quantities with units: sizes in bytes and shares in percent.
//!
//! The types keep the unit of a number on its way from the configuration to a limit. Durations are
//! [`std::time::Duration`], which [`parse_duration`] reads.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A number of bytes, read from `512MiB` or `1.5GB` and printed as `512.0 MiB`.
///
/// Serde sees the bare number, because programs exchange sizes always in bytes. A number in a file
/// for people needs its unit.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize,
)]
pub struct Bytes(pub u64);

impl Bytes {
    /// Returns `mib` mebibytes.
    pub const fn mib(mib: u64) -> Self {
        Self(mib << 20)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bytesize::ByteSize(self.0).display().iec().fmt(f)
    }
}

/// A share of a whole in percent, from 0 to 100, read from `75%` and printed in the same form.
///
/// Serde sees the bare number, as with [`Bytes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct Percent(u8);

impl Percent {
    /// Returns a share of `percent`; more than 100 becomes 100.
    pub const fn new(percent: u8) -> Self {
        Self(if percent > 100 { 100 } else { percent })
    }

    /// Returns this share of `whole`, rounded down.
    pub fn of(self, whole: Bytes) -> Bytes {
        let share = u128::from(whole.0) * u128::from(self.0) / 100;
        // The conversion cannot fail, because a share is not larger than its whole.
        Bytes(u64::try_from(share).unwrap_or(whole.0))
    }
}

impl From<Percent> for u8 {
    fn from(percent: Percent) -> Self {
        percent.0
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl FromStr for Percent {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Accept digits only: the parser of integers also accepts a sign.
        let digits = text.strip_suffix('%').filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        let percent =
            digits.and_then(|digits| digits.parse().ok()).filter(|&percent| percent <= 100);
        percent.map(Self).ok_or_else(|| ParseUnitError {
            expected: "a whole number of percent, such as \"75%\"",
            found: text.to_owned(),
        })
    }
}

/// The error for a text that is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found \"{found}\"")]
pub struct ParseUnitError {
    expected: &'static str,
    found: String,
}

impl FromStr for Bytes {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseUnitError {
            expected: "a size with its unit, such as \"512MiB\"",
            found: text.to_owned(),
        };
        // Require a unit: some people would read a bare number as bytes and others as mebibytes.
        if !text.ends_with(['B', 'b']) {
            return Err(error());
        }
        text.parse::<bytesize::ByteSize>().map(|size| Self(size.0)).map_err(|_cause| error())
    }
}

/// Returns `duration` in whole milliseconds, rounded down.
pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Parses `250ms`, `10s`, `5m`, `24h` or a sum such as `1h 30m`.
///
/// # Errors
/// When `text` is not a duration with a unit. The error states the expected form.
pub fn parse_duration(text: &str) -> Result<Duration, ParseUnitError> {
    humantime::parse_duration(text).map_err(|_cause| ParseUnitError {
        expected: "a duration with its unit, such as \"10s\"",
        found: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_need_a_unit() {
        assert_eq!("64MiB".parse(), Ok(Bytes::mib(64)));
        assert_eq!("1.5 GB".parse(), Ok(Bytes(1_500_000_000)));
        for bad in ["64", "", "MiB", "-1MiB", "64Mi", "lots", "1e9B B"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("300s"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_duration("24h"), Ok(Duration::from_secs(86_400)));
        for bad in ["300", "", "s", "-1s", "soon"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn percentages_need_their_sign_and_are_bounded() {
        assert_eq!("75%".parse(), Ok(Percent(75)));
        assert_eq!("0%".parse(), Ok(Percent(0)));
        assert_eq!("100%".parse(), Ok(Percent(100)));
        for bad in ["75", "", "%", "101%", "256%", "7.5%", "-1%", "+5%", "75 %", "75%%"] {
            assert!(bad.parse::<Percent>().is_err(), "{bad}");
        }
        let shares =
            [(75, Bytes(200), 150), (33, Bytes(10), 3), (0, Bytes(9), 0), (99, Bytes(0), 0)];
        for (percent, whole, share) in shares {
            assert_eq!(Percent(percent).of(whole), Bytes(share), "{percent} % of {whole:?}");
        }
        assert_eq!(Percent::new(255), Percent(100));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".*") {
            drop((text.parse::<Bytes>(), text.parse::<Percent>(), parse_duration(&text)));
        }

        #[test]
        fn percentages_round_trip_and_are_monotonic(
            (less, more) in (0_u8..=100, 0_u8..=100), whole: u64,
        ) {
            let (less, more) = (Percent(less.min(more)), Percent(less.max(more)));
            prop_assert_eq!(less.to_string().parse(), Ok(less));
            prop_assert!(less.of(Bytes(whole)) <= more.of(Bytes(whole)));
            prop_assert_eq!(Percent(100).of(Bytes(whole)), Bytes(whole));
        }

        #[test]
        fn whole_mebibytes_are_parsed_exactly(mib in 0_u64..1 << 20) {
            let size = Bytes::mib(mib);
            prop_assert_eq!(format!("{mib}MiB").parse::<Bytes>(), Ok(size));
        }
    }
}
