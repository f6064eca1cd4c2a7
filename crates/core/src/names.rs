//! Names of clusters, namespaces and services, and how a mirror is called.
//!
//! Whether a named thing exists is not known here. Lengths and alphabets are Kubernetes' (RFC 1123 labels: 63 bytes,
//! lower case, digits and hyphens).

use std::fmt;
use std::str::FromStr;

/// Longest DNS label, and so the longest Service name (RFC 1035, Kubernetes API).
pub const LABEL_LENGTH_MAX: usize = 63;
/// Longest DNS name.
pub const SUBDOMAIN_LENGTH_MAX: usize = 253;

/// Why a text cannot be a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("{name:?} is not a DNS label: use lower-case letters, digits and inner hyphens")]
    Alphabet { name: String },
    #[error("{name:?} is {} characters long; the limit is {limit}", name.len())]
    TooLong { name: String, limit: usize },
}

pub(crate) fn dns_label(name: &str) -> Result<(), NameError> {
    if name.len() > LABEL_LENGTH_MAX {
        return Err(NameError::TooLong {
            name: name.to_owned(),
            limit: LABEL_LENGTH_MAX,
        });
    }
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if name.is_empty() || name.starts_with('-') || name.ends_with('-') || !name.bytes().all(inner) {
        return Err(NameError::Alphabet {
            name: name.to_owned(),
        });
    }
    Ok(())
}

pub(crate) fn dns_subdomain(name: &str) -> Result<(), NameError> {
    if name.len() > SUBDOMAIN_LENGTH_MAX {
        return Err(NameError::TooLong {
            name: name.to_owned(),
            limit: SUBDOMAIN_LENGTH_MAX,
        });
    }
    name.split('.').try_for_each(dns_label)
}

macro_rules! label_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                dns_label(text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

label_type! {
    /// A cluster, as links and mirrors call it.
    ClusterName
}
label_type! {
    /// A Kubernetes namespace.
    Namespace
}
label_type! {
    /// A Kubernetes Service's name.
    ServiceName
}

/// A Service in some cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId {
    pub namespace: Namespace,
    pub name: ServiceName,
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// How the mirror of `remote` is called where `cluster` is linked: `<service>-<cluster>`.
///
/// Fails when the joined name no longer fits a DNS label. Source: `spec/multicluster.md` 6.2.
pub fn mirror(remote: &ServiceName, cluster: &ClusterName) -> Result<ServiceName, NameError> {
    format!("{remote}-{cluster}").parse()
}

/// The remote name of a mirror, or `None` when `name` is not a mirror of that cluster's service.
pub fn mirrored(name: &ServiceName, cluster: &ClusterName) -> Option<ServiceName> {
    name.as_str()
        .strip_suffix(cluster.as_str())?
        .strip_suffix('-')?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_mirror_is_called_after_its_service_and_cluster() {
        let name = mirror(
            &"web-svc".parse().expect("legal"),
            &"east".parse().expect("legal"),
        );
        assert_eq!(name.expect("short enough").as_str(), "web-svc-east");
    }

    #[test]
    fn a_mirror_name_over_63_characters_is_refused() {
        let service = "a".repeat(60).parse().expect("legal");
        let error = mirror(&service, &"east".parse().expect("legal")).expect_err("65 characters");
        assert!(
            error.to_string().contains("65 characters long; the limit is 63"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn the_remote_name_is_found_again(service in "[a-z][a-z0-9]{0,20}", cluster in "[a-z][a-z0-9]{0,20}") {
            let (service, cluster): (ServiceName, ClusterName) =
                (service.parse().expect("legal"), cluster.parse().expect("legal"));
            let name = mirror(&service, &cluster).expect("short enough");
            prop_assert_eq!(mirrored(&name, &cluster), Some(service));
        }

        #[test]
        fn any_text_is_a_name_or_an_error(text in ".{0,80}") {
            let _ = text.parse::<ServiceName>();
        }
    }
}
