//! What questions can be about: kinds of Kubernetes objects, as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Kind {
    Namespace,
    Deployment,
    StatefulSet,
    DaemonSet,
    ReplicaSet,
    ReplicationController,
    Job,
    CronJob,
    Pod,
    Service,
    /// `name:port` as clients ask for it.
    Authority,
    /// `server/route` of an inbound policy.
    Route,
}

/// A kind that nothing is known about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no kind that has statistics: use deploy, sts, ds, rs, rc, job, cj, po, svc, ns, authority or route"
)]
pub struct UnknownKind(String);

impl Kind {
    /// What owns pods.
    pub(crate) const WORKLOADS: [Self; 7] = [
        Self::Deployment,
        Self::StatefulSet,
        Self::DaemonSet,
        Self::ReplicaSet,
        Self::ReplicationController,
        Self::Job,
        Self::CronJob,
    ];

    pub fn singular(self) -> &'static str {
        self.names()[0]
    }

    /// The singular first, then what else people write.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Namespace => &["namespace", "namespaces", "ns"],
            Self::Deployment => &["deployment", "deployments", "deploy"],
            Self::StatefulSet => &["statefulset", "statefulsets", "sts"],
            Self::DaemonSet => &["daemonset", "daemonsets", "ds"],
            Self::ReplicaSet => &["replicaset", "replicasets", "rs"],
            Self::ReplicationController => &["replicationcontroller", "replicationcontrollers", "rc"],
            Self::Job => &["job", "jobs"],
            Self::CronJob => &["cronjob", "cronjobs", "cj"],
            Self::Pod => &["pod", "pods", "po"],
            Self::Service => &["service", "services", "svc"],
            Self::Authority => &["authority", "authorities", "au"],
            Self::Route => &["route", "routes"],
        }
    }
}

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        const OTHERS: [Kind; 5] = [
            Kind::Namespace,
            Kind::Pod,
            Kind::Service,
            Kind::Authority,
            Kind::Route,
        ];
        let wanted = text.to_ascii_lowercase();
        let mut kinds = Self::WORKLOADS.into_iter().chain(OTHERS);
        kinds
            .find(|kind| kind.names().contains(&&*wanted))
            .ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.singular())
    }
}

impl TryFrom<String> for Kind {
    type Error = UnknownKind;

    fn try_from(text: String) -> Result<Self, UnknownKind> {
        text.parse()
    }
}

impl From<Kind> for String {
    fn from(kind: Kind) -> Self {
        kind.singular().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_as_people_write_them() {
        for (text, kind) in [
            ("deploy", Kind::Deployment),
            ("Deployments", Kind::Deployment),
            ("po", Kind::Pod),
            ("svc", Kind::Service),
            ("ns", Kind::Namespace),
            ("sts", Kind::StatefulSet),
        ] {
            assert_eq!(text.parse(), Ok(kind), "{text}");
        }
        assert_eq!("secret".parse::<Kind>(), Err(UnknownKind("secret".into())));
    }
}
