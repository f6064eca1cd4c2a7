//! TrafficSplit of the Service Mesh Interface: how the traffic of one Service is shared among several.
//!
//! `v1alpha1` writes weights as Kubernetes quantities (`50`, `"500m"`), `v1alpha2` as numbers; both versions share
//! what is stored, so either form may come back whichever version is asked. [`SplitWeight`] reads both.

use crate::resource::{NoStatus, custom_resource};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

custom_resource!(
    /// Shares the traffic of `spec.service` among `spec.backends` by weight.
    TrafficSplit,
    TrafficSplitSpec,
    NoStatus,
    "split.smi-spec.io",
    "v1alpha2",
    "trafficsplits"
);

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrafficSplitSpec {
    /// The apex: the name that clients use.
    pub service: String,
    pub backends: Vec<Backend>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Backend {
    pub service: String,
    pub weight: SplitWeight,
}

/// A weight in thousandths, so that `500m` and `1` compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SplitWeight {
    milli: u64,
}

impl SplitWeight {
    pub const ZERO: Self = Self { milli: 0 };

    pub const fn whole(weight: u32) -> Self {
        Self {
            milli: weight as u64 * 1000,
        }
    }

    pub const fn from_milli(milli: u64) -> Self {
        Self { milli }
    }

    pub const fn milli(self) -> u64 {
        self.milli
    }

    /// Reads a quantity: a decimal number with an optional suffix among `m`, `k`, `M`, `G`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let scale: u64 = match suffix {
            "m" => 1,
            "" => 1_000,
            "k" => 1_000_000,
            "M" => 1_000_000_000,
            "G" => 1_000_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.len() > 9 {
            return None;
        }
        let units = |digits: &str| {
            if digits.is_empty() {
                Some(0)
            } else {
                digits.parse::<u64>().ok()
            }
        };
        let tenths = 10_u64.pow(fraction.len() as u32);
        let milli = units(whole)?
            .checked_mul(scale)?
            .checked_add(units(fraction)?.checked_mul(scale)? / tenths)?;
        Some(Self { milli })
    }
}

impl Serialize for SplitWeight {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.milli % 1000 {
            0 => serializer.serialize_u64(self.milli / 1000),
            _ => serializer.serialize_str(&format!("{}m", self.milli)),
        }
    }
}

impl<'de> Deserialize<'de> for SplitWeight {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = SplitWeight;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a weight such as 50 or \"500m\"")
            }
            fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<SplitWeight, E> {
                let milli = v
                    .checked_mul(1000)
                    .ok_or_else(|| E::custom("the weight is too large"))?;
                Ok(SplitWeight { milli })
            }
            fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<SplitWeight, E> {
                u64::try_from(v)
                    .map_err(|_| E::custom("a weight can't be negative"))
                    .and_then(|v| self.visit_u64(v))
            }
            fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<SplitWeight, E> {
                if !(0.0..=1e12).contains(&v) {
                    return Err(E::custom("the weight is out of range"));
                }
                Ok(SplitWeight {
                    milli: (v * 1000.0).round() as u64,
                })
            }
            fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<SplitWeight, E> {
                SplitWeight::parse(v).ok_or_else(|| E::custom(format!("{v:?} is not a weight")))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_weights_are_read() {
        for (json, milli) in [
            ("50", 50_000),
            ("\"500m\"", 500),
            ("\"1\"", 1000),
            ("1.5", 1500),
            ("\"1k\"", 1_000_000),
        ] {
            assert_eq!(
                serde_json::from_str::<SplitWeight>(json).unwrap().milli(),
                milli,
                "{json}"
            );
        }
        for wrong in ["-1", "\"\"", "\"1x\"", "\".\"", "true", "1e300"] {
            assert!(serde_json::from_str::<SplitWeight>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn whole_weights_are_written_as_numbers_and_parts_as_quantities() {
        assert_eq!(serde_json::to_string(&SplitWeight::whole(3)).unwrap(), "3");
        assert_eq!(
            serde_json::to_string(&SplitWeight::from_milli(500)).unwrap(),
            "\"500m\""
        );
    }

    #[test]
    fn a_split_keeps_its_shape_through_json() {
        let json = serde_json::json!({
            "apiVersion": "split.smi-spec.io/v1alpha2", "kind": "TrafficSplit",
            "metadata": {"name": "web-svc", "namespace": "emojivoto"},
            "spec": {"service": "web-svc", "backends": [
                {"service": "web-svc", "weight": 1}, {"service": "web-svc-east", "weight": 0}]},
        });
        let split: TrafficSplit = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(&split).unwrap(), json);
    }
}
