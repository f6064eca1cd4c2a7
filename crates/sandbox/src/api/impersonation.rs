//! `kubectl --as`: acting as somebody else, for those who may.
//!
//! Each part of the other identity (user or ServiceAccount, groups, uid, extra) needs its own permission: the verb
//! `impersonate` on a resource that exists only for this.

use http::HeaderMap;

use super::Cluster;
use super::error::{ApiError, Result};
use super::identity::Identity;
use super::rbac::Action;
use super::request::decode;

const AUTHENTICATION: &str = "authentication.k8s.io";
const EXTRA: &str = "impersonate-extra-";
/// More than this many headers of one kind are nobody's groups.
const COUNT_MAX: usize = 128;

impl Cluster {
    /// Whom a request acts as: its author, or whom its headers name.
    pub(crate) fn impersonate(&self, author: &Identity, headers: &HeaderMap) -> Result<Identity> {
        if !headers
            .keys()
            .any(|name| name.as_str().starts_with("impersonate-"))
        {
            return Ok(author.clone());
        }
        let all = |name: &str| -> Result<Vec<String>> {
            let values = headers.get_all(name).iter().take(COUNT_MAX);
            let texts = values.map(|value| value.to_str().map(str::to_owned));
            let texts: std::result::Result<Vec<_>, _> = texts.collect();
            texts.map_err(|_| ApiError::bad_request(format!("the header {name} is not text")))
        };
        let one = |name: &str| all(name).map(|values| values.into_iter().next().unwrap_or_default());
        let (user, uid) = (one("impersonate-user")?, one("impersonate-uid")?);
        if user.is_empty() {
            return Err(ApiError::bad_request(
                "requested to impersonate groups, a uid or extra without impersonating a user",
            ));
        }
        let may = |group: &str, resource: &str, namespace: &str, name: &str| {
            let action = Action::Resource {
                verb: "impersonate",
                group,
                resource: resource.to_owned(),
                namespace,
                name,
            };
            if self.allowed(author, &action) {
                return Ok(());
            }
            let scope = match namespace {
                "" => "at the cluster scope".to_owned(),
                namespace => format!("in the namespace {namespace:?}"),
            };
            let why = format!(
                "User {:?} cannot impersonate resource {resource:?} in API group {group:?} {scope}",
                author.user
            );
            Err(ApiError::forbidden(group, resource, name, why))
        };
        let account = user
            .strip_prefix("system:serviceaccount:")
            .and_then(|rest| rest.split_once(':'));
        let mut identity = match account {
            Some((namespace, name)) => {
                may("", "serviceaccounts", namespace, name)?;
                Identity::service_account(namespace, name)
            }
            None => {
                may("", "users", "", &user)?;
                Identity {
                    user: user.clone(),
                    ..Identity::default()
                }
            }
        };
        let groups = all("impersonate-group")?;
        for group in &groups {
            may("", "groups", "", group)?;
        }
        if !groups.is_empty() {
            identity.groups = groups;
        }
        let implied = match user.as_str() {
            "system:anonymous" => "system:unauthenticated",
            _ => "system:authenticated",
        };
        if !identity.groups.iter().any(|group| group == implied) {
            identity.groups.push(implied.to_owned());
        }
        if !uid.is_empty() {
            may(AUTHENTICATION, "uids", "", &uid)?;
            identity.uid = uid;
        }
        for name in headers.keys() {
            let Some(key) = name.as_str().strip_prefix(EXTRA) else {
                continue;
            };
            let values = all(name.as_str())?;
            let key = decode(key)?.into_owned();
            for value in &values {
                may(AUTHENTICATION, &format!("userextras/{key}"), "", value)?;
            }
            identity.extra.insert(key, values);
        }
        Ok(identity)
    }
}
