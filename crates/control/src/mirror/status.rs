//! Turns what became of each exported Service into the Link's status.
//!
//! Pure. An entry whose meaning didn't change keeps its transition time; nothing is written when nothing changed.
//! While the target doesn't answer, entries say so instead of pretending that they are current.

use std::collections::BTreeMap;

use hawser_crd::keys;
use hawser_crd::link::{LinkCondition, LinkStatus, ObjectRef, ServiceStatus};

use super::plan::Verdict;
use crate::observe::Key;

const TARGET_UNREACHABLE: &str = "TargetUnreachable";
/// Type of the condition of a whole Link.
const READY: &str = "Ready";

/// The status that `verdicts` call for, or `None` when the Link has it already.
pub(crate) fn from_verdicts(
    previous: &LinkStatus,
    verdicts: &BTreeMap<Key, Verdict>,
    federated: &BTreeMap<Key, Verdict>,
    now: &str,
) -> Option<LinkStatus> {
    let entries = |verdicts: &BTreeMap<Key, Verdict>, previous: &[ServiceStatus]| {
        let entry = |(key, verdict): (&Key, &Verdict)| match verdict {
            Verdict::Outrun => find(previous, key).cloned(),
            verdict => Some(entry(key, condition(verdict), previous, now)),
        };
        verdicts.iter().filter_map(entry).collect()
    };
    changed(
        previous,
        LinkStatus {
            mirror_services: entries(verdicts, &previous.mirror_services),
            federated_services: entries(federated, &previous.federated_services),
            conditions: previous.conditions.clone(),
        },
    )
}

/// The status while the target doesn't answer: everything stays, and is in doubt.
pub(crate) fn unreachable(previous: &LinkStatus, reason: &str, now: &str) -> Option<LinkStatus> {
    let doubt = |previous: &[ServiceStatus]| -> Vec<ServiceStatus> {
        let entries = previous.iter().map(|old| {
            // The reason differs from attempt to attempt; the first one is worth as much as the last.
            if old
                .conditions
                .first()
                .is_some_and(|condition| condition.reason == TARGET_UNREACHABLE)
            {
                return old.clone();
            }
            let key = Key::new(&old.remote_ref.namespace, &old.remote_ref.name);
            let local_ref = old
                .conditions
                .first()
                .and_then(|condition| condition.local_ref.clone());
            let condition = LinkCondition {
                type_: "Mirrored".into(),
                status: "Unknown".into(),
                reason: TARGET_UNREACHABLE.into(),
                message: format!(
                    "The target cluster does not answer; mirrors are kept as they were: {reason}"
                ),
                local_ref,
                ..Default::default()
            };
            entry(&key, condition, previous, now)
        });
        entries.collect()
    };
    changed(
        previous,
        LinkStatus {
            mirror_services: doubt(&previous.mirror_services),
            federated_services: doubt(&previous.federated_services),
            conditions: previous.conditions.clone(),
        },
    )
}

/// How a Link as a whole fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health<'a> {
    Working,
    /// The target wasn't seen yet.
    Connecting,
    /// Its spec can't be used.
    Invalid(&'a str),
    Unreachable(&'a str),
    Refused(&'a str),
    GatewayDead,
}

/// `status`, with what is said of the Link as a whole.
pub(crate) fn with_health(
    mut status: LinkStatus,
    previous: &LinkStatus,
    health: Health<'_>,
    now: &str,
) -> LinkStatus {
    let (value, reason, message) = match health {
        Health::Working => ("True", "Mirroring", String::new()),
        Health::Connecting => (
            "Unknown",
            "Connecting",
            "The target cluster was not listed yet".into(),
        ),
        Health::Invalid(why) => ("False", "InvalidSpec", why.to_owned()),
        Health::Unreachable(why) => (
            "False",
            TARGET_UNREACHABLE,
            format!("The target cluster can't be watched; mirrors are kept as they were: {why}"),
        ),
        Health::Refused(why) => (
            "False",
            "AccessRefused",
            format!("The target cluster refuses this link; mirrors are kept as they were: {why}"),
        ),
        Health::GatewayDead => (
            "False",
            "GatewayDead",
            "The gateway does not answer probes".into(),
        ),
    };
    let old = previous.conditions.iter().find(|old| old.type_ == READY);
    status.conditions = vec![match old {
        // An error's wording may differ from attempt to attempt; a spec's differs when somebody tried to correct it.
        Some(old)
            if old.status == value
                && old.reason == reason
                && (old.message == message || !matches!(health, Health::Invalid(_))) =>
        {
            old.clone()
        }
        old => LinkCondition {
            type_: READY.into(),
            status: value.into(),
            reason: reason.into(),
            message,
            last_transition_time: old
                .filter(|old| old.status == value)
                .map_or_else(|| now.to_owned(), |old| old.last_transition_time.clone()),
            local_ref: None,
        },
    }];
    status
}

fn changed(previous: &LinkStatus, status: LinkStatus) -> Option<LinkStatus> {
    (status != *previous).then_some(status)
}

fn find<'a>(previous: &'a [ServiceStatus], key: &Key) -> Option<&'a ServiceStatus> {
    previous
        .iter()
        .find(|old| old.remote_ref.name == key.name && old.remote_ref.namespace == key.namespace)
}

fn entry(key: &Key, mut condition: LinkCondition, previous: &[ServiceStatus], now: &str) -> ServiceStatus {
    let remote_ref = ObjectRef::service(&key.namespace, &key.name);
    let old = find(previous, key).and_then(|old| old.conditions.first());
    condition.last_transition_time = match old {
        Some(old) if old.status == condition.status && old.reason == condition.reason => {
            // The schema's default would otherwise make every comparison fail.
            if let (Some(new), Some(old)) = (&mut condition.local_ref, &old.local_ref) {
                new.group.clone_from(&old.group);
            }
            old.last_transition_time.clone()
        }
        _ => now.to_owned(),
    };
    ServiceStatus {
        controller_name: keys::SERVICE_MIRROR_CONTROLLER.into(),
        remote_ref,
        conditions: vec![condition],
    }
}

/// What the Link says of a Service.
pub(super) fn condition(verdict: &Verdict) -> LinkCondition {
    let (status, reason, message) = match verdict {
        Verdict::Mirrored { .. } | Verdict::Joined { .. } => ("True", "Mirrored", String::new()),
        Verdict::MissingNamespace => ("False", "MissingNamespace", "Namespace does not exist".to_owned()),
        Verdict::NameConflict { local } => (
            "False",
            "NameConflict",
            format!("{local} exists and does not belong to this link; it is left alone"),
        ),
        Verdict::Unfit(why) => (
            "False",
            "Error",
            format!("Failed to create mirror service: {why}"),
        ),
        Verdict::Invalid(why) => ("False", "InvalidService", (*why).to_owned()),
        Verdict::Failed(message) => ("False", "Error", message.clone()),
        Verdict::Waiting(what) => ("Unknown", "Waiting", (*what).to_owned()),
        Verdict::Outrun => ("Unknown", "Error", "Another writer was faster".to_owned()),
    };
    let local_ref = match verdict {
        Verdict::Mirrored { local } | Verdict::Joined { local } => {
            Some(ObjectRef::service(&local.namespace, &local.name))
        }
        _ => None,
    };
    LinkCondition {
        type_: "Mirrored".into(),
        status: status.into(),
        reason: reason.into(),
        message,
        local_ref,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(all: &[(&str, Verdict)]) -> BTreeMap<Key, Verdict> {
        all.iter()
            .map(|(name, verdict)| (Key::new("test", *name), verdict.clone()))
            .collect()
    }

    fn from(previous: &LinkStatus, verdicts: &BTreeMap<Key, Verdict>, now: &str) -> Option<LinkStatus> {
        from_verdicts(previous, verdicts, &BTreeMap::new(), now)
    }

    fn mirrored() -> Verdict {
        Verdict::Mirrored {
            local: Key::new("test", "web-east"),
        }
    }

    #[test]
    fn an_unchanged_status_is_not_written_and_keeps_its_times() {
        let first = from(&LinkStatus::default(), &verdicts(&[("web", mirrored())]), "then").unwrap();
        assert_eq!(from(&first, &verdicts(&[("web", mirrored())]), "now"), None);
        let second = from(
            &first,
            &verdicts(&[("web", mirrored()), ("b", Verdict::MissingNamespace)]),
            "now",
        );
        let times: Vec<_> = second
            .unwrap()
            .mirror_services
            .iter()
            .map(|entry| {
                (
                    entry.remote_ref.name.clone(),
                    entry.conditions[0].last_transition_time.clone(),
                )
            })
            .collect();
        assert_eq!(times, [("b".into(), "now".into()), ("web".into(), "then".into())]);
    }

    #[test]
    fn a_links_health_changes_its_time_only_with_its_status() {
        let none = LinkStatus::default();
        let first = with_health(none.clone(), &none, Health::Unreachable("timeout"), "then");
        let again = with_health(first.clone(), &first, Health::Unreachable("other"), "now");
        assert_eq!(again, first, "the first reason is as good as the last");
        let refused = with_health(first.clone(), &first, Health::Refused("401"), "now");
        let condition = &refused.conditions[0];
        assert_eq!(
            (condition.reason.as_str(), condition.last_transition_time.as_str()),
            ("AccessRefused", "then")
        );
        let working = with_health(refused.clone(), &refused, Health::Working, "now");
        assert_eq!(working.conditions[0].last_transition_time, "now");
        let wrong = with_health(none.clone(), &none, Health::Invalid("a"), "then");
        let still = with_health(wrong.clone(), &wrong, Health::Invalid("b"), "now");
        assert_eq!(still.conditions[0].message, "b");
    }

    #[test]
    fn the_last_entry_goes_too() {
        let first = from(&LinkStatus::default(), &verdicts(&[("web", mirrored())]), "then").unwrap();
        assert_eq!(from(&first, &BTreeMap::new(), "now"), Some(LinkStatus::default()));
    }

    #[test]
    fn a_silent_target_puts_every_entry_in_doubt_once() {
        let first = from(&LinkStatus::default(), &verdicts(&[("web", mirrored())]), "then").unwrap();
        let doubt = unreachable(&first, "timeout", "now").unwrap();
        let condition = &doubt.mirror_services[0].conditions[0];
        assert_eq!(
            (condition.status.as_str(), condition.reason.as_str()),
            ("Unknown", "TargetUnreachable")
        );
        assert_eq!(condition.local_ref.as_ref().unwrap().name, "web-east");
        assert_eq!(unreachable(&doubt, "another timeout", "later"), None);
    }

    #[test]
    fn a_name_conflict_is_told_with_the_name() {
        let verdict = Verdict::NameConflict {
            local: Key::new("test", "web-east"),
        };
        let status = from(&LinkStatus::default(), &verdicts(&[("web", verdict)]), "now").unwrap();
        let condition = &status.mirror_services[0].conditions[0];
        assert_eq!(condition.reason, "NameConflict");
        assert!(condition.message.starts_with("test/web-east exists"));
    }
    #[test]
    fn members_have_a_list_of_their_own_and_one_that_was_outrun_keeps_its_entry() {
        let local = Key::new("test", "web-federated");
        let joined = verdicts(&[("web", Verdict::Joined { local })]);
        let none = BTreeMap::new();
        let first = from_verdicts(&LinkStatus::default(), &none, &joined, "then").unwrap();
        let condition = &first.federated_services[0].conditions[0];
        assert_eq!(
            (condition.status.as_str(), condition.reason.as_str()),
            ("True", "Mirrored")
        );
        assert!(first.mirror_services.is_empty());
        let outrun = verdicts(&[("web", Verdict::Outrun)]);
        assert_eq!(from_verdicts(&first, &none, &outrun, "now"), None);
    }
}
