//! The share of traffic that one member of a split gets, relative to the others.
//!
//! TrafficSplits write weights as integers or as Kubernetes quantities (`500m`); both become thousandths here.
//! Source: `spec/multicluster.md` 8.1.

use std::fmt;
use std::str::FromStr;

/// A weight in thousandths; only ratios between weights mean anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Weight {
    milli: u32,
}

/// Why a text is not a weight.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a weight: write a number such as 50, 0.5 or 500m")]
pub struct WeightError(String);

impl Weight {
    pub const ZERO: Self = Self { milli: 0 };
    pub const ONE: Self = Self { milli: 1_000 };

    /// Saturates at about four million.
    pub fn from_units(units: u32) -> Self {
        Self {
            milli: units.saturating_mul(1_000),
        }
    }

    pub fn from_milli(milli: u32) -> Self {
        Self { milli }
    }

    pub fn milli(self) -> u32 {
        self.milli
    }

    pub fn is_zero(self) -> bool {
        self.milli == 0
    }
}

impl FromStr for Weight {
    type Err = WeightError;

    fn from_str(text: &str) -> Result<Self, WeightError> {
        let wrong = || WeightError(text.to_owned());
        if let Some(milli) = text.strip_suffix('m') {
            return digits(milli).map(Self::from_milli).ok_or_else(wrong);
        }
        if let Some(kilo) = text.strip_suffix('k') {
            let milli = digits(kilo)
                .and_then(|k| k.checked_mul(1_000_000))
                .ok_or_else(wrong)?;
            return Ok(Self::from_milli(milli));
        }
        let (units, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let units = digits(units)
            .and_then(|u| u.checked_mul(1_000))
            .ok_or_else(wrong)?;
        if fraction.len() > 9 {
            return Err(wrong());
        }
        let places = u32::try_from(fraction.len()).map_err(|_| wrong())?;
        let fraction = u64::from(digits(fraction).ok_or_else(wrong)?);
        // Rounded up, as Kubernetes rounds quantities: a positive weight never becomes zero.
        let milli = (fraction * 1_000).div_ceil(10_u64.pow(places));
        let milli = u32::try_from(milli)
            .ok()
            .and_then(|m| units.checked_add(m))
            .ok_or_else(wrong)?;
        Ok(Self::from_milli(milli))
    }
}

fn digits(text: &str) -> Option<u32> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.milli.is_multiple_of(1_000) {
            write!(f, "{}", self.milli / 1_000)
        } else {
            write!(f, "{}m", self.milli)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn integers_fractions_and_quantities_are_weights() {
        for (text, milli) in [
            ("0", 0),
            ("1", 1_000),
            ("50", 50_000),
            ("500m", 500),
            ("0.5", 500),
            ("2k", 2_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Weight::from_milli(milli)), "{text}");
        }
        assert_eq!(
            "0.0001".parse(),
            Ok(Weight::from_milli(1)),
            "a positive weight stays positive"
        );
        for bad in ["", "-1", "m", ".5", "1.", "1e3", "+1", "99999999", "1.0000000001"] {
            assert!(bad.parse::<Weight>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_printed_weight_reads_back(milli: u32) {
            let weight = Weight::from_milli(milli);
            prop_assert_eq!(weight.to_string().parse(), Ok(weight));
        }

        #[test]
        fn any_text_is_a_weight_or_an_error(text in ".{0,20}") {
            let _ = text.parse::<Weight>();
        }
    }
}
