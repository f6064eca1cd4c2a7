//! Who a process is: the name in its certificate.
//!
//! Linkerd's identities are DNS-like (`web.emojivoto.serviceaccount.identity.linkerd.cluster.local`); SPIFFE ids are
//! URIs. Certificates and chains are `hawser-tls`'s business; this module only knows names.
//! Source: `spec/proxy.md` 3.1, RFC 1123, the SPIFFE ID specification.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::names::{NameError, dns_label, dns_subdomain};

/// The identity of a peer or of ourselves. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// Lower-case DNS name without trailing dot, at most 253 bytes.
    Dns(Arc<str>),
    /// `spiffe://trust-domain/path`.
    Uri(Arc<str>),
}

/// The DNS-like suffix of every identity that one mesh issues, for example `cluster.local`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(String);

/// Why a text is not an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("an identity must be a DNS name or a spiffe:// URI: {0:?}")]
    Malformed(String),
    #[error(transparent)]
    Name(#[from] NameError),
}

impl Identity {
    /// `<account>.<namespace>.serviceaccount.identity.<control plane namespace>.<trust domain>`
    pub fn of_service_account(
        account: &str,
        namespace: &str,
        control_plane_namespace: &str,
        trust_domain: &TrustDomain,
    ) -> Result<Self, IdentityError> {
        // Accounts may contain dots in Kubernetes; here that would let `a.b` in namespace `c` pose as `a` in `b.c`.
        for label in [account, namespace, control_plane_namespace] {
            dns_label(label)?;
        }
        format!("{account}.{namespace}.serviceaccount.identity.{control_plane_namespace}.{trust_domain}")
            .parse()
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::Dns(name) | Self::Uri(name) => name,
        }
    }

    /// The DNS name, which is also what a client sends as SNI. URI identities need a separate server name.
    pub fn dns_name(&self) -> Option<&str> {
        match self {
            Self::Dns(name) => Some(name),
            Self::Uri(_) => None,
        }
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        if let Some(rest) = text.strip_prefix("spiffe://") {
            let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
            let legal = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
            let path_is_clean = path.is_empty()
                || path
                    .split('/')
                    .all(|s| !matches!(s, "" | "." | "..") && s.bytes().all(legal));
            if domain.is_empty() || !domain.bytes().all(legal) || !path_is_clean || text.len() > 2048 {
                return Err(IdentityError::Malformed(text.to_owned()));
            }
            return Ok(Self::Uri(text.into()));
        }
        let name = text.to_ascii_lowercase();
        dns_subdomain(&name).map_err(|_| IdentityError::Malformed(text.to_owned()))?;
        Ok(Self::Dns(name.into()))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for TrustDomain {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        dns_subdomain(text)?;
        Ok(Self(text.to_owned()))
    }
}

impl TrustDomain {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A set of identities, as policies write it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IdentityPattern {
    /// `*`: every authenticated peer.
    Any,
    /// `*.ns.serviceaccount.identity.linkerd.cluster.local`, kept without the `*.`. Matches DNS identities only.
    Suffix(String),
    Exactly(Identity),
}

impl IdentityPattern {
    pub fn matches(&self, identity: &Identity) -> bool {
        match self {
            Self::Any => true,
            Self::Exactly(wanted) => wanted == identity,
            Self::Suffix(suffix) => identity
                .dns_name()
                .and_then(|name| name.strip_suffix(suffix.as_str()))
                // A label boundary, and at least one label in front of it.
                .is_some_and(|front| front.len() > 1 && front.ends_with('.')),
        }
    }
}

impl FromStr for IdentityPattern {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Some(suffix) = text.strip_prefix("*.") {
            let suffix = suffix.to_ascii_lowercase();
            dns_subdomain(&suffix).map_err(|_| IdentityError::Malformed(text.to_owned()))?;
            return Ok(Self::Suffix(suffix));
        }
        text.parse().map(Self::Exactly)
    }
}

impl fmt::Display for IdentityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Suffix(suffix) => write!(f, "*.{suffix}"),
            Self::Exactly(identity) => identity.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_account_has_linkerds_identity() {
        let domain = "cluster.local".parse().expect("a legal trust domain");
        let id = Identity::of_service_account("web", "emojivoto", "linkerd", &domain).expect("legal names");
        assert_eq!(
            id.as_str(),
            "web.emojivoto.serviceaccount.identity.linkerd.cluster.local"
        );
    }

    #[test]
    fn a_dotted_service_account_cannot_pose_as_another_namespaces() {
        let domain = "cluster.local".parse().expect("a legal trust domain");
        assert!(Identity::of_service_account("web.emojivoto", "evil", "linkerd", &domain).is_err());
    }

    #[test]
    fn identities_are_dns_names_or_spiffe_uris() {
        for good in ["a.b", "Web.Emojivoto", "spiffe://td/ns/a/sa/b", "spiffe://td"] {
            assert!(good.parse::<Identity>().is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "a.",
            "a..b",
            "-a.b",
            "http://a/b",
            "spiffe:///x",
            "spiffe://td/../x",
            "a b",
            "*.a",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }

    #[test]
    fn patterns_match_whole_labels() {
        let id: Identity = "web.ns.serviceaccount".parse().expect("legal");
        let check = |pattern: &str| {
            pattern
                .parse::<IdentityPattern>()
                .expect("legal pattern")
                .matches(&id)
        };
        assert!(check("*"));
        assert!(check("*.ns.serviceaccount"));
        assert!(check("*.serviceaccount"));
        assert!(check("web.ns.serviceaccount"));
        assert!(!check("*.s.serviceaccount"));
        assert!(!check("*.web.ns.serviceaccount"));
        assert!(!check("eb.ns.serviceaccount"));
    }

    #[test]
    fn a_suffix_never_matches_a_uri() {
        let id: Identity = "spiffe://td/a.b".parse().expect("legal");
        assert!(
            !"*.b"
                .parse::<IdentityPattern>()
                .expect("legal pattern")
                .matches(&id)
        );
    }
}
