//! HTTPRoutes and GRPCRoutes, of Linkerd's group and of the Gateway API's: as their authors wrote them.
//!
//! Both groups have the same fields where it matters here, so one set of types reads both. A route that can't be read
//! is no route at all; a part that is not understood is kept as [`Filter::Unsupported`], because requests that need it
//! must fail rather than pass without it. What routes mean is decided in `policy`.

use std::fmt;

use kube::ResourceExt;
use kube::core::DynamicObject;
use serde::Deserialize;
use serde_json::Value;

use super::objects::{Key, Labels, created};

pub const POLICY_GROUP: &str = "policy.linkerd.io";
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    Http,
    Grpc,
}

impl fmt::Display for RouteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
        })
    }
}

/// Which route: the same name may stand in two groups.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteId {
    pub kind: RouteKind,
    pub group: &'static str,
    pub key: Key,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    pub id: RouteId,
    pub created: String,
    pub annotations: Labels,
    pub parents: Vec<(Parent, Option<u16>)>,
    pub hostnames: Vec<String>,
    pub rules: Vec<Rule>,
}

/// What a route is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Parent {
    /// Requests to this Service.
    Service(Key),
    /// Requests that come in at this Server.
    Server(Key),
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    pub matches: Vec<Match>,
    #[serde(deserialize_with = "filters")]
    pub filters: Vec<Filter>,
    pub backend_refs: Vec<BackendRef>,
    pub timeouts: RuleTimeouts,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RuleTimeouts {
    pub request: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Match {
    pub path: Option<Text>,
    pub headers: Vec<Named>,
    pub query_params: Vec<Named>,
    pub method: Option<Method>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Method {
    Http(String),
    Grpc {
        #[serde(rename = "type", default)]
        kind: Option<String>,
        #[serde(default)]
        service: String,
        #[serde(default)]
        method: String,
    },
}

/// How a text is compared, by the names of the Gateway API: `Exact`, `PathPrefix`, `RegularExpression`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Text {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub value: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Named {
    pub name: String,
    #[serde(rename = "type", default)]
    pub kind: Option<String>,
    pub value: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct BackendRef {
    pub group: String,
    pub kind: Option<String>,
    pub name: String,
    pub namespace: Option<String>,
    pub port: Option<u16>,
    pub weight: Option<u32>,
    #[serde(deserialize_with = "filters")]
    pub filters: Vec<Filter>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    RequestHeaders(Headers),
    ResponseHeaders(Headers),
    Redirect(Redirect),
    Unsupported(String),
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Headers {
    pub set: Vec<Header>,
    pub add: Vec<Header>,
    pub remove: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Header {
    pub name: String,
    pub value: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Redirect {
    pub scheme: Option<String>,
    pub hostname: Option<String>,
    pub path: Option<RedirectPath>,
    pub port: Option<u16>,
    pub status_code: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all_fields = "camelCase")]
pub enum RedirectPath {
    ReplaceFullPath { replace_full_path: String },
    ReplacePrefixMatch { replace_prefix_match: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FilterSpec {
    #[serde(rename = "type")]
    kind: String,
    request_header_modifier: Option<Headers>,
    response_header_modifier: Option<Headers>,
    request_redirect: Option<Redirect>,
}

fn filters<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Filter>, D::Error> {
    let specs = Vec::<FilterSpec>::deserialize(deserializer)?;
    let filter = |spec: FilterSpec| {
        let found = match spec.kind.as_str() {
            "RequestHeaderModifier" => spec.request_header_modifier.map(Filter::RequestHeaders),
            "ResponseHeaderModifier" => spec.response_header_modifier.map(Filter::ResponseHeaders),
            "RequestRedirect" => spec.request_redirect.map(Filter::Redirect),
            _ => None,
        };
        found.unwrap_or(Filter::Unsupported(spec.kind))
    };
    Ok(specs.into_iter().map(filter).collect())
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    parent_refs: Vec<ParentRef>,
    hostnames: Vec<String>,
    rules: Vec<Rule>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ParentRef {
    group: Option<String>,
    kind: Option<String>,
    name: String,
    namespace: Option<String>,
    port: Option<u16>,
}

impl ParentRef {
    /// `None` for gateways and whatever else routes may be for.
    fn parent(self, namespace: &str) -> Option<(Parent, Option<u16>)> {
        let key = Key::new(self.namespace.as_deref().unwrap_or(namespace), self.name);
        let parent = match (self.group.as_deref()?, self.kind.as_deref()?) {
            ("" | "core", "Service") => Parent::Service(key),
            (POLICY_GROUP, "Server") => Parent::Server(key),
            _ => return None,
        };
        Some((parent, self.port))
    }
}

impl Route {
    pub fn parse(kind: RouteKind, group: &'static str, object: &DynamicObject) -> Option<Self> {
        let key = Key::of(object);
        let spec: Spec = match serde_json::from_value(object.data.get("spec").cloned().unwrap_or(Value::Null))
        {
            Ok(spec) => spec,
            Err(error) => {
                tracing::warn!(%kind, route = %key, %error, "a route can't be read, and is ignored");
                return None;
            }
        };
        let parents = spec.parent_refs.into_iter();
        Some(Self {
            created: created(object),
            annotations: object.annotations().clone(),
            parents: parents
                .filter_map(|parent| parent.parent(&key.namespace))
                .collect(),
            hostnames: spec.hostnames,
            rules: spec.rules,
            id: RouteId { kind, group, key },
        })
    }

    /// Whether it is for this port of a parent.
    pub fn is_for(&self, parent: &Parent, port: u16) -> bool {
        self.parents
            .iter()
            .any(|(candidate, only)| candidate == parent && only.is_none_or(|only| only == port))
    }
}
