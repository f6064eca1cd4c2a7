//! TrafficSplit of the Service Mesh Interface: how the traffic of one Service is shared among several.
//!
//! `v1alpha1` writes weights as Kubernetes quantities (`50`, `"500m"`), `v1alpha2` as numbers; both versions share
//! what is stored, so either form may come back whichever version is asked. [`SplitWeight`] reads both.

use crate::resource::{NoStatus, custom_resource};
use hawser_core::Weight;
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

/// A core [`Weight`] as the two versions of the resource write it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SplitWeight(pub Weight);

impl Serialize for SplitWeight {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.milli() {
            milli if milli % 1000 == 0 => serializer.serialize_u32(milli / 1000),
            _ => serializer.collect_str(&self.0),
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
                self.visit_str(&v.to_string())
            }
            fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<SplitWeight, E> {
                self.visit_str(&v.to_string())
            }
            fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<SplitWeight, E> {
                // Display writes a float in full, never with an exponent.
                self.visit_str(&v.to_string())
            }
            fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<SplitWeight, E> {
                v.parse().map(SplitWeight).map_err(E::custom)
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
                serde_json::from_str::<SplitWeight>(json).unwrap().0.milli(),
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
        assert_eq!(
            serde_json::to_string(&SplitWeight(Weight::from_units(3))).unwrap(),
            "3"
        );
        assert_eq!(
            serde_json::to_string(&SplitWeight(Weight::from_milli(500))).unwrap(),
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
