//! Decides which members of a failover group receive traffic.
//!
//! A pure function of the last observation: no clock, no client, no randomness. Whoever applies the answer may do so
//! at any time and again. Weights that a user wrote are kept as ratios among the members that receive traffic.
//! Source: `spec/multicluster.md` 8.3, with the decision that weights stay as they were when nobody is ready.

use crate::names::ServiceName;
use crate::weight::Weight;

/// One backend of a TrafficSplit, as observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub service: ServiceName,
    /// What the split says now.
    pub weight: Weight,
    /// What the user wanted when this member takes part; [`Weight::ONE`] when nobody said.
    pub preferred: Weight,
    /// Has at least one ready endpoint.
    pub ready: bool,
}

/// Why the weights are as they are; shown in Events and by the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    PrimaryReady,
    PrimaryHasNoEndpoints,
    NobodyIsReady,
    PrimaryIsNotABackend,
    NoBackends,
}

/// The weights that the group should have, in the members' order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub weights: Vec<Weight>,
    pub because: Reason,
}

/// Weighs the members. The primary is the named one, or the first when no name was given.
pub fn plan(primary: Option<&ServiceName>, members: &[Member]) -> Plan {
    let keep = |because| Plan {
        weights: members.iter().map(|m| m.weight).collect(),
        because,
    };
    let Some(first) = members.first() else {
        return keep(Reason::NoBackends);
    };
    let primary = primary.unwrap_or(&first.service);
    // Zeroing everything for a typing error in an annotation would cut all traffic.
    let Some(primary) = members.iter().find(|m| m.service == *primary) else {
        return keep(Reason::PrimaryIsNotABackend);
    };
    let active = |m: &Member| {
        if primary.ready {
            m.service == primary.service
        } else {
            m.ready
        }
    };
    if !members.iter().any(active) {
        return keep(Reason::NobodyIsReady);
    }
    let weight = |m: &Member| match (active(m), m.preferred) {
        (false, _) => Weight::ZERO,
        (true, preferred) if preferred.is_zero() => Weight::ONE,
        (true, preferred) => preferred,
    };
    let because = if primary.ready {
        Reason::PrimaryReady
    } else {
        Reason::PrimaryHasNoEndpoints
    };
    Plan {
        weights: members.iter().map(weight).collect(),
        because,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(service: &str, weight: u32, ready: bool) -> Member {
        Member {
            service: service.parse().expect("a legal name"),
            weight: Weight::from_units(weight),
            preferred: Weight::ONE,
            ready,
        }
    }

    fn check(primary: &str, members: &[Member]) -> (Vec<String>, Reason) {
        let plan = plan(Some(&primary.parse().expect("a legal name")), members);
        (plan.weights.iter().map(Weight::to_string).collect(), plan.because)
    }

    #[test]
    fn a_ready_primary_has_all_traffic() {
        let members = [member("web", 0, true), member("web-east", 1, true)];
        assert_eq!(
            check("web", &members),
            (vec!["1".into(), "0".into()], Reason::PrimaryReady)
        );
    }

    #[test]
    fn ready_secondaries_share_when_the_primary_has_no_endpoints() {
        let members = [
            member("web", 1, false),
            member("a", 0, true),
            member("b", 0, false),
            member("c", 0, true),
        ];
        let expected = vec!["0".into(), "1".into(), "0".into(), "1".into()];
        assert_eq!(check("web", &members), (expected, Reason::PrimaryHasNoEndpoints));
    }

    #[test]
    fn weights_stay_when_nobody_is_ready() {
        let members = [member("web", 7, false), member("web-east", 3, false)];
        assert_eq!(
            check("web", &members),
            (vec!["7".into(), "3".into()], Reason::NobodyIsReady)
        );
    }

    #[test]
    fn an_unknown_primary_changes_nothing() {
        let members = [member("web", 7, true), member("web-east", 3, true)];
        assert_eq!(
            check("wbe", &members),
            (vec!["7".into(), "3".into()], Reason::PrimaryIsNotABackend)
        );
    }

    #[test]
    fn a_users_weights_are_kept_as_ratios() {
        let mut members = [
            member("web", 1, false),
            member("a", 0, true),
            member("b", 0, true),
        ];
        members[1].preferred = Weight::from_units(3);
        assert_eq!(check("web", &members).0, ["0", "3", "1"]);
    }

    proptest! {
        #[test]
        fn traffic_goes_to_a_ready_member_whenever_there_is_one(
            readiness in prop::collection::vec((any::<bool>(), 0u32..5, 0u32..5), 1..6),
            primary in 0usize..6,
        ) {
            let members: Vec<_> = readiness.iter().enumerate().map(|(i, (ready, weight, preferred))| Member {
                preferred: Weight::from_units(*preferred), ..member(&format!("m{i}"), *weight, *ready)
            }).collect();
            let primary = members[primary % members.len()].service.clone();
            let plan = plan(Some(&primary), &members);
            if members.iter().any(|m| m.ready) {
                for (member, weight) in members.iter().zip(&plan.weights) {
                    prop_assert!(member.ready || weight.is_zero());
                }
                prop_assert!(plan.weights.iter().any(|w| !w.is_zero()));
            } else {
                prop_assert_eq!(plan.weights, members.iter().map(|m| m.weight).collect::<Vec<_>>());
            }
        }
    }
}
