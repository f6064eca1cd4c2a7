//! May this client enter here? Decided from its address and identity, by the authorizations of a server.
//!
//! The proxy decides with this on every connection or request; the command line explains with it. Where
//! authorizations come from (Server, ServerAuthorization, AuthorizationPolicy) is the policy controller's business.
//! Source: `spec/proxy.md` 6.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::identity::{Identity, IdentityPattern};

/// What the transport says about a client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// No TLS that ended here.
    Plain,
    /// TLS that ended here, without a client certificate.
    Anonymous,
    Authenticated(Identity),
}

/// What an authorization asks of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authentication {
    /// Anything, also plain text.
    Unauthenticated,
    /// Mesh TLS, with or without an identity.
    TlsUnauthenticated,
    /// Mesh TLS with an identity that matches one of these.
    TlsAuthenticated(Vec<IdentityPattern>),
}

/// Client addresses, less exceptions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub net: IpNet,
    pub except: Vec<IpNet>,
}

/// The resource that an answer comes from, as metrics and logs name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// API group, empty for built-in defaults.
    pub group: Arc<str>,
    /// Lower-case kind, `default` for built-in defaults.
    pub kind: Arc<str>,
    pub name: Arc<str>,
}

/// One way to be let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorization {
    pub networks: Vec<Network>,
    pub authentication: Authentication,
    pub source: Source,
}

/// Why nothing let the client in; the closest miss, so that operators see what to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Denial {
    NoAuthorizations,
    NetworkNotAllowed,
    NotAuthenticated,
    IdentityNotAllowed,
}

impl Denial {
    /// A constant for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoAuthorizations => "no authorization applies to this server",
            Self::NetworkNotAllowed => "client address is not in an allowed network",
            Self::NotAuthenticated => "client is not authenticated by mesh TLS",
            Self::IdentityNotAllowed => "client identity is not allowed",
        }
    }
}

impl Network {
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.net.contains(&address) && !self.except.iter().any(|hole| hole.contains(&address))
    }
}

impl Authentication {
    fn admits(&self, client: &Client) -> Result<(), Denial> {
        match (self, client) {
            (Self::Unauthenticated, _) => Ok(()),
            (Self::TlsUnauthenticated, Client::Anonymous | Client::Authenticated(_)) => Ok(()),
            (Self::TlsAuthenticated(patterns), Client::Authenticated(identity)) => {
                let allowed = patterns.iter().any(|pattern| pattern.matches(identity));
                allowed.then_some(()).ok_or(Denial::IdentityNotAllowed)
            }
            (Self::TlsUnauthenticated, Client::Plain)
            | (Self::TlsAuthenticated(_), Client::Plain | Client::Anonymous) => Err(Denial::NotAuthenticated),
        }
    }
}

/// The first authorization that admits the client, or the closest miss.
pub fn authorize<'a>(
    authorizations: impl IntoIterator<Item = &'a Authorization>,
    address: IpAddr,
    client: &Client,
) -> Result<&'a Authorization, Denial> {
    let mut closest = Denial::NoAuthorizations;
    for authorization in authorizations {
        let miss = if !authorization
            .networks
            .iter()
            .any(|network| network.contains(address))
        {
            Denial::NetworkNotAllowed
        } else {
            match authorization.authentication.admits(client) {
                Ok(()) => return Ok(authorization),
                Err(miss) => miss,
            }
        };
        closest = closest.max(miss);
    }
    Err(closest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authorization(net: &str, except: &[&str], authentication: Authentication) -> Authorization {
        let parse = |text: &str| text.parse().expect("a legal network");
        Authorization {
            networks: vec![Network {
                net: parse(net),
                except: except.iter().map(|n| parse(n)).collect(),
            }],
            authentication,
            source: Source {
                group: "".into(),
                kind: "default".into(),
                name: "test".into(),
            },
        }
    }

    fn meshed(pattern: &str) -> Authentication {
        Authentication::TlsAuthenticated(vec![pattern.parse().expect("a legal pattern")])
    }

    fn identity(name: &str) -> Client {
        Client::Authenticated(name.parse().expect("a legal identity"))
    }

    fn check(authorizations: &[Authorization], address: &str, client: Client) -> Result<(), Denial> {
        authorize(authorizations, address.parse().expect("a legal address"), &client).map(|_| ())
    }

    #[test]
    fn nobody_enters_without_an_authorization() {
        assert_eq!(
            check(&[], "10.0.0.1", identity("a.b")),
            Err(Denial::NoAuthorizations)
        );
    }

    #[test]
    fn an_exception_is_a_hole_in_its_network() {
        let rules = [authorization(
            "10.0.0.0/8",
            &["10.1.0.0/16"],
            Authentication::Unauthenticated,
        )];
        assert_eq!(check(&rules, "10.2.0.1", Client::Plain), Ok(()));
        assert_eq!(
            check(&rules, "10.1.0.1", Client::Plain),
            Err(Denial::NetworkNotAllowed)
        );
    }

    #[test]
    fn v4_mapped_addresses_are_v4_addresses() {
        let rules = [authorization("10.0.0.0/8", &[], Authentication::Unauthenticated)];
        assert_eq!(check(&rules, "::ffff:10.2.0.1", Client::Plain), Ok(()));
    }

    #[test]
    fn an_identity_needs_the_right_name_and_the_right_network() {
        let rules = [authorization("10.0.0.0/8", &[], meshed("*.west"))];
        assert_eq!(check(&rules, "10.0.0.1", identity("web.west")), Ok(()));
        assert_eq!(
            check(&rules, "10.0.0.1", identity("web.east")),
            Err(Denial::IdentityNotAllowed)
        );
        assert_eq!(
            check(&rules, "11.0.0.1", identity("web.west")),
            Err(Denial::NetworkNotAllowed)
        );
        assert_eq!(
            check(&rules, "10.0.0.1", Client::Anonymous),
            Err(Denial::NotAuthenticated)
        );
        assert_eq!(
            check(&rules, "10.0.0.1", Client::Plain),
            Err(Denial::NotAuthenticated)
        );
    }

    #[test]
    fn one_authorization_is_enough() {
        let rules = [
            authorization("10.0.0.0/8", &[], meshed("*.west")),
            authorization("0.0.0.0/0", &[], meshed("*.east")),
        ];
        assert_eq!(check(&rules, "192.0.2.1", identity("web.east")), Ok(()));
    }
}
